"""Samples into audio files, block by block and published all at once.

A `Writer` takes a file block by block, in memory that does not grow. What it writes stays hidden until
`publish`, so that several files (the stems of a song) appear together, complete, or not at all:

    with ExitStack() as stack:
        writers = [stack.enter_context(encoding.Writer(path, 44100, 2, format)) for path in paths]
        for stems in blocks:
            for writer, stem in zip(writers, stems, strict=True):
                writer.write(stem)
        for writer in writers:
            writer.end()
        for writer in writers:
            writer.finish()
        for writer in writers:
            writer.publish()

Each writer works in a thread of its own: `write` and `end` return at once, so the files above are coded side by side.
What goes wrong there is raised by the next call, at the latest by `finish`.

Blocks are float32 tensors (C, n), full scale at ±1. The file has as many samples as were written, and does not
depend on how they were cut into blocks (Ogg Vorbis: but for its random serial number). An M4A says how many these
are, in its edit list; `audio.read` gives AAC's last packet whole, and so up to 1023 samples more. Whatever is wrong
with the target or the settings raises `UserError`.
"""

import errno
import math
import os
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from stemwise.codecs import encoders, formats
from stemwise.codecs.formats import Format
from stemwise.errors import UserError

OVERS = ("clamp", "keep")

_PIECE = 1 << 16  # samples that are converted at a time: what a processor's cache holds


class Writer:
    """A file that is being written: `path` in `format`, at `sample_rate` Hz with `channels` channels.

    The samples go to a hidden file beside `path`, whose folders are made. `publish` gives it its name; what stood
    there before is replaced in one step. A writer that is left, as a context, without `publish` leaves nothing.

    `overs` is one of `OVERS` and says what becomes of samples past full scale. With `clamp` they are clamped to it,
    and `clipped` counts them. With `keep` the lossy codecs get them as they are; 16 and 24 bits, where a sample is
    rounded to the nearest step of 2**(1 - bits), have no room for them, and still clamp and count. Float WAV keeps
    them with either. `frames` counts what was written, per channel.

    `tags` are those of the song, by FFmpeg's names, as `audio.tags` gives them. Of `formats.TAGS`, the format's own are
    written: WAV has no album_artist, composer and disc, and neither has Ogg Vorbis as libsndfile writes it.

    Every method raises `UserError` where the target cannot be written, the disk is full, or samples are NaN or
    infinite: at once or, `finish` at the latest, for a block that was written before.
    """

    def __init__(
        self,
        path: Path,
        sample_rate: int,
        channels: int,
        format: Format,
        tags: Mapping[str, str] | None = None,
        *,
        overs: str = "clamp",
    ) -> None:
        if overs not in OVERS:
            raise ValueError(f"expected overs to be one of {', '.join(OVERS)}, got {overs!r}")
        format.check(sample_rate, channels)
        self.path = path
        self.sample_rate = sample_rate
        self.channels = channels
        self.frames = 0
        self.clipped = 0  # final after `finish`
        self._ending = False
        self._bits = format.bits
        self._clamps = self._bits is not None or (overs == "clamp" and format.bit_depth != "float")
        with self._reported():
            _check_target(path)
        self._part = _Part(path.with_name(f".{secrets.token_hex(6)}.part"))
        self._worker = _Worker()
        try:
            with self._reported():
                path.parent.mkdir(parents=True, exist_ok=True)
                self._part.open()
                settings = (self._part.path, sample_rate, channels, format, formats.written(tags or {}))
                self._encoder = self._worker.do(encoders.opened, *settings)
        except BaseException:
            self._worker.end()
            self._part.discard()
            raise

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def write(self, block: Tensor) -> None:
        """Appends a block (C, n), of any length, which must not be changed before `finish`.

        Waits until no more than one block before it is still being written.
        """
        if block.dim() != 2 or len(block) != self.channels:
            raise ValueError(f"expected a block ({self.channels}, n), got {tuple(block.shape)}")
        if not block.shape[1]:
            return
        samples = block.detach().to("cpu", torch.float32).numpy()
        with self._reported():
            self._worker.later(self._append, samples, self.frames)
        self.frames += block.shape[1]

    def wait(self) -> None:
        """Waits until all blocks are written."""
        with self._reported():
            self._worker.settle()

    def end(self) -> None:
        """Begins to end the file; `finish` waits for it."""
        if not self.frames:
            raise UserError(
                f"{self.path}: not written, there are 0 samples to write. Check the offset and the duration."
            )
        if not self._ending:
            self._ending = True
            with self._reported():
                self._worker.later(self._close)

    def finish(self) -> None:
        """Ends the file and waits until it is on the disk, still under its hidden name."""
        self.end()
        self.wait()
        self._worker.end()

    def publish(self) -> None:
        """Gives the file its name; finishes it first, unless that was done."""
        self.finish()  # which says again what went wrong, if anything did
        with self._reported():
            os.replace(self._part.path, self.path)

    def discard(self) -> None:
        """Removes what was written; does nothing after `publish`."""
        ended = self._part.closed
        self._part.discard()
        self._worker.end(None if ended else self._encoder.discard)

    def _append(self, samples: np.ndarray, position: int) -> None:
        # With NumPy: torch would start threads for it, for which those of the networks and of other stems wait.
        for start in range(0, samples.shape[1], _PIECE):
            part = samples[:, start : start + _PIECE]
            self._encoder.write(self._coded(part, position + start), position + start)

    def _coded(self, samples: np.ndarray, position: int) -> np.ndarray:
        """The samples (C, n) as the encoder takes them."""
        low, high = float(samples.min()), float(samples.max())  # NaN if there is one anywhere
        if not math.isfinite(high - low):
            raise UserError(
                f"{self.path}: not written, NaN or infinite samples after {position / self.sample_rate:.2f} s. "
                "Check the model, or compute in single precision."
            )
        if self._clamps and (low < -1 or high > 1):
            self.clipped += int(np.count_nonzero(np.abs(samples) > 1))
            samples = samples.clip(-1, 1)
        return _steps(samples, self._bits) if self._bits else samples

    def _close(self) -> None:
        self._encoder.close()
        self._part.close()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror or error}). Choose another folder, or make room."
            ) from None


class _Part:
    """The hidden file, which the libraries open and write by themselves: of a Python file they lose the errors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.closed = False
        self._file: BinaryIO | None = None

    def open(self) -> None:
        self._file = self.path.open("xb")

    def close(self) -> None:
        """Waits until the file is on the disk."""
        if self._file:
            os.fsync(self._file.fileno())
            self._file.close()
        self.closed = True

    def discard(self) -> None:
        if self._file:
            self._file.close()
            self.path.unlink(missing_ok=True)


_Call = tuple[Callable[[], Any], "SimpleQueue[tuple[Any, BaseException | None]]"]


class _Worker:
    """A thread that calls the libraries, one call after the other.

    Handlers of signals run in the main thread only. There PyAV and soundfile would now and then drop what they raise
    (a KeyboardInterrupt): both run a little Python inside of C. `SimpleQueue` is all C, and lets a handler raise
    while it waits; `concurrent.futures` is not, and can then be left locked.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._answers: deque[SimpleQueue[tuple[Any, BaseException | None]]] = deque()
        self._error: BaseException | None = None  # the first; what comes after it would be written with a gap
        self._thread = threading.Thread(target=_serve, args=(self._calls,), daemon=True)
        self._thread.start()

    def do(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        """What `operation` returns, after all that was to be done `later`."""
        self.settle()
        self._put(operation, *arguments)
        return self._answer()

    def later(self, operation: Callable[..., Any], *arguments: Any) -> None:
        """Has `operation` called when the one before, for which this may wait, is done; raises what any before did."""
        while len(self._answers) > 1:
            self._answer()
        if self._error:
            raise self._error
        self._put(operation, *arguments)

    def settle(self) -> None:
        while self._answers:
            self._answer()
        if self._error:
            raise self._error

    def _put(self, operation: Callable[..., Any], *arguments: Any) -> None:
        # A queue for each call: an answer that nobody waited for is not taken for the next one's.
        answer: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._calls.put((partial(operation, *arguments), answer))
        self._answers.append(answer)

    def _answer(self) -> Any:
        result, error = self._answers.popleft().get()
        if error:
            self._error = self._error or error
            raise error
        return result

    def end(self, last: Callable[[], Any] | None = None) -> None:
        """Lets the thread finish what it does, then `last`; does nothing once it has ended."""
        if last:
            self._calls.put((last, SimpleQueue()))
        self._calls.put(None)
        self._thread.join()


def _serve(calls: "SimpleQueue[_Call | None]") -> None:
    while call := calls.get():
        operation, answer = call
        try:
            answer.put((operation(), None))
        except BaseException as error:
            answer.put((None, error))
        del call, operation  # with the block that they hold


def _check_target(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.exists() and not path.is_file():  # /dev/null would be replaced
        raise OSError("it is a device or a pipe")


def _steps(samples: np.ndarray, bits: int) -> np.ndarray:
    """Full scale at ±1 to integers, where the sample format has them: 24 bits are the upper ones of 32."""
    scale = 1 << (bits - 1)
    steps = samples * np.float32(scale)
    np.rint(steps, out=steps)
    np.minimum(steps, np.float32(scale - 1), out=steps)
    return steps.astype(np.int16) if bits == 16 else steps.astype(np.int32) << 8
