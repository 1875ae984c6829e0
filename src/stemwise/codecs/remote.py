"""Decoding of what lies behind a URL: libsndfile and FFmpeg call back to read, and lose what goes wrong there.

An error of the network is kept, and raised as soon as they return. A signal handler that raises, as that of Ctrl-C
does, would be lost before any line of ours ran; handlers run in the main thread, so all decoding goes to another one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from stemwise.errors import UserError
from stemwise.files.stores import threads
from stemwise.files.streams import Remote, Stream

File = Path | Remote
"""What is decoded."""


class Source(Protocol):
    """See `decoding`."""

    @property
    def sample_rate(self) -> int: ...
    @property
    def channels(self) -> int: ...
    def length(self) -> int: ...
    def blocks(self, start: int) -> Iterator[Tensor]: ...


@dataclass(frozen=True)
class Aside:
    """A source whose decoding takes place in a thread of its own."""

    source: Source

    @classmethod
    def open(cls, find: Callable[[], Source]) -> "Aside":
        with threads(1) as thread:
            return cls(thread.submit(find).result())

    @property
    def sample_rate(self) -> int:
        return self.source.sample_rate

    @property
    def channels(self) -> int:
        return self.source.channels

    def length(self) -> int:
        with threads(1) as thread:
            return thread.submit(self.source.length).result()

    def blocks(self, start: int) -> Iterator[Tensor]:
        blocks = self.source.blocks(start)
        with threads(1) as thread:
            try:
                while (block := thread.submit(next, blocks, None).result()) is not None:
                    yield block
            finally:
                thread.submit(getattr(blocks, "close"))  # noqa: B009


class Callbacks:
    """A remote file as libsndfile (`readinto`) and FFmpeg (`read`) want to read it; `error` is the first that rose."""

    def __init__(self, file: Remote) -> None:
        self.name = file.url.name  # by its suffix FFmpeg guesses, as it does for local files
        self.error: UserError | None = None
        self._stream = Stream(file)
        self.seek, self.tell = self._stream.seek, self._stream.tell

    def read(self, count: int) -> bytes:
        try:
            return self._stream.read(count) or b""
        except UserError as error:
            self.error = self.error or error
            raise  # PyAV hands it on

    def readinto(self, buffer: Any) -> int:
        try:
            return self._stream.readinto(buffer)
        except UserError as error:
            self.error = self.error or error
            return 0  # cffi would print it

    def check(self) -> None:
        """Raises what went wrong."""
        if self.error:
            raise self.error


@contextmanager
def handle(file: File, local: Callable[[Path], str | bytes]) -> Iterator[Any]:
    """What a library opens: what `local` makes of a path, or callbacks. Raises what went wrong in them."""
    if isinstance(file, Path):
        yield local(file)
        return
    callbacks = Callbacks(file)
    try:
        yield callbacks
    except Exception:
        callbacks.check()  # what a failed read led to is not the cause
        raise
    callbacks.check()
