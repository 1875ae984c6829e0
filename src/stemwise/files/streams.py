"""A file behind a URL as a stream, which is read in parts."""

import errno
import io
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from stemwise.errors import UserError
from stemwise.files import stores
from stemwise.files.places import Place, Url

FIRST, LARGEST = 1 << 18, 1 << 23  # bytes of a request: a header is in the first, a song takes few of the last


class Remote:
    """A file behind a URL as it is now, to be read more than once; its first bytes are fetched once.

    Raises `UserError` if there is none.
    """

    def __init__(self, url: Url) -> None:
        self.url, self.size = url, stores.look(url).size

    def __str__(self) -> str:
        return str(self.url)

    @cached_property
    def head(self) -> bytes:
        return self.read(0, FIRST)

    def read(self, start: int, count: int) -> bytes:
        """`count` bytes, or all there are, from `start` on in one request. Raises `UserError`."""
        end = min(start + count, self.size)

        def part(system: Any) -> bytes:
            found: bytes = system.cat_file(self.url.address, start=start, end=end)
            if len(found) < end - start:
                raise OSError(errno.EIO, "it breaks off")
            if len(found) > end - start:
                raise UserError(f"{self}: the server sends no part of a file (Range). Put it on another one.")
            return found

        return stores.ask(self.url, part) if start < end else b""

    def open(self, mode: str = "rb") -> BinaryIO:
        """A stream of its bytes."""
        assert mode == "rb"
        return io.BufferedReader(Stream(self))


class Stream(io.RawIOBase):
    """A remote file as a stream. Requests double in size for as long as they follow each other."""

    def __init__(self, file: Remote) -> None:
        self._file = file
        self._place = self._start = 0
        self._block, self._amount = b"", FIRST

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._file.size}[whence])
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Fills `buffer` unless the file ends: libsndfile takes less than it asked for as the end."""
        done = 0
        while done < len(buffer) and (part := self._part(len(buffer) - done)):
            buffer[done : done + len(part)] = part
            done += len(part)
        return done

    def _part(self, count: int) -> bytes:
        """Up to so many bytes, from one block; none at the end."""
        if self._place < len(self._file.head):
            start, block = 0, self._file.head
        else:
            start, block = self._fetched()
        first = self._place - start
        part = block[first : first + count]
        self._place += len(part)
        return part

    def _fetched(self) -> tuple[int, bytes]:
        """The block that holds the next byte, and where that begins; empty at the end."""
        end = self._start + len(self._block) if self._block else len(self._file.head)
        if not self._start <= self._place < end or not self._block:
            follows = end <= self._place <= end + self._amount
            self._amount = min(2 * self._amount, LARGEST) if follows else FIRST
            self._start, self._block = self._place, self._file.read(self._place, self._amount)
        return self._start, self._block


def open_read(place: Place) -> BinaryIO:
    """Opens a file for reading. Raises `OSError` for one of this machine, else `UserError`."""
    return place.open("rb") if isinstance(place, Path) else Remote(place).open()
