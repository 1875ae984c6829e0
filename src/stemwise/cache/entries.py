"""One spectrogram in a file: a page that says what it is, then T records (see `storage`), one for each frame.

The page, little-endian, lets nobody take a file for what it is not:

| bytes      | what                                                                |
|------------|---------------------------------------------------------------------|
| 8, 4       | `stemwise`, the number of the format                                |
| 20         | the digest that the file is named after                             |
| 64, 16     | the version of stemwise, the storage                                |
| 6 × 4      | sample rate, channels, n_fft, hop, bins, bytes of a record          |
| 8, 4, 4    | T, the time of writing in seconds, the CRC-32C of all records       |
| the last 4 | the CRC-32C of the page up to here; what lies between is zero       |

An entry appears under its name only when it is complete; while it is written it is called `.part` and locked, so that
a build can be killed anywhere and several may run at once. A finished entry bears the time of writing as its time of
change. One that bears another was changed or copied since: `look` reads it through once before anybody uses it.
"""

import errno
import fcntl
import os
import socket
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

import google_crc32c

if TYPE_CHECKING:  # `stemwise --help` need not wait for it
    import numpy as np

# Goes up with every change of what lies in a file or of how it is computed. 1 was a NumPy file without checksums.
FORMAT = 2
SUFFIX, PART = ".stft", ".part"
PAGE = 4096  # bytes
DAY = 86400.0  # seconds

_MAGIC = b"stemwise"
_START = struct.Struct("<8sI")
_FIELDS = struct.Struct("<8sI20s64s16s6IQII")
_PIECE = 1 << 20  # bytes that are checked at a time
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Kind:
    """What the entries of a run have in common. No other kind is ever read in their place."""

    version: str  # of stemwise
    storage: str
    sample_rate: int
    channels: int
    n_fft: int
    hop: int
    bins: int
    record: int  # bytes


@dataclass(frozen=True)
class Header:
    """What the first page of an entry says."""

    name: str  # the digest in hexadecimal
    kind: Kind
    count: int  # T
    written: int  # seconds
    checksum: int

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return PAGE + self.count * self.kind.record

    def page(self) -> bytes:
        kind = self.kind
        numbers = (kind.sample_rate, kind.channels, kind.n_fft, kind.hop, kind.bins, kind.record)
        texts = (kind.version.encode(), kind.storage.encode())
        rest = (self.count, self.written, self.checksum)
        page = _FIELDS.pack(_MAGIC, FORMAT, bytes.fromhex(self.name), *texts, *numbers, *rest).ljust(PAGE - 4, b"\0")
        return page + _checksum(page).to_bytes(4, "little")


@dataclass(frozen=True)
class Entry:
    """A sound entry, as its file was when it was looked at."""

    path: Path
    header: Header
    changed: int  # nanoseconds
    used: float  # seconds

    def read(self, first: int, records: "np.ndarray") -> None:
        """Records from number `first` on, as bytes (frames, bytes of one), straight into the place for them.

        A memory map would cost a page fault every 4096 bytes. Raises `OSError`, and `ValueError` if the file is not
        the one that was looked at.
        """
        with open(self.path, "rb", buffering=0) as file:
            found = os.fstat(file.fileno())
            if (found.st_size, found.st_mtime_ns) != (self.header.size, self.changed):
                raise ValueError("it was changed")
            file.seek(PAGE + first * records.shape[1])
            whole = records.data.cast("B")
            done = 0
            while done < len(whole):
                count = file.readinto(whole[done:])
                if not count:
                    raise ValueError("it ends too early")
                done += count

    def pieces(self) -> Iterator[bytes]:
        """All records, some at a time. Raises `OSError`, and `ValueError` behind them if they are not those written."""
        with quietly_opened(self.path) as file:
            file.seek(PAGE)
            checksum = 0
            while piece := file.read(_PIECE):
                checksum = _checksum(piece, checksum)
                yield piece
        if checksum != self.header.checksum:
            raise ValueError("its checksum is wrong")


# Reading


def format_of(start: bytes) -> int | None:
    """The format of an entry that begins with these bytes, known to us or not; None if it is no entry."""
    if len(start) < _START.size:
        return None
    magic, number = _START.unpack_from(start)
    return int(number) if magic == _MAGIC else None


def parse(page: bytes) -> Header:
    """Reads the first page. Raises `ValueError` that says what is wrong with it."""
    number = format_of(page)
    if number is None:
        raise ValueError("it is no cache entry")
    if number != FORMAT:
        raise ValueError(f"it is of format {number}, not {FORMAT}")
    if len(page) < PAGE or _checksum(page[:-4]) != int.from_bytes(page[-4:], "little"):
        raise ValueError("its first page is damaged")
    _, _, name, version, storage, *numbers, count, written, checksum = _FIELDS.unpack_from(page)
    version, storage = (text.rstrip(b"\0").decode("utf-8", "replace") for text in (version, storage))
    return Header(name.hex(), Kind(version, storage, *numbers), count, written, checksum)


def look(path: Path) -> Entry:
    """The entry `path` if its first page and size are in order, and its bytes too if it was changed since written.

    Raises `OSError`, and `ValueError` that says what is wrong with it.
    """
    with quietly_opened(path) as file:
        found = _start(file, path)
    return found if found.changed == _nanoseconds(found.header.written) else check(path)


def check(path: Path) -> Entry:
    """The entry `path` if all of its bytes are those that were written. Raises as `look` does."""
    with quietly_opened(path) as file:
        found = _start(file, path)
        checksum = 0
        while piece := file.read(_PIECE):
            checksum = _checksum(piece, checksum)
        if checksum != found.header.checksum:
            raise ValueError("its checksum is wrong")
        # It need not be read through again. In a folder that cannot be written, it will be.
        with suppress(OSError):
            _stamp(file, found.header)
        return replace(found, changed=os.fstat(file.fileno()).st_mtime_ns)


def quietly_opened(path: Path) -> IO[bytes]:
    """A file to read that is not used for that: its time of access stays, where that can be."""
    return open(path, "rb", buffering=0, opener=_without_access)


def _without_access(name: str, flags: int) -> int:
    try:
        return os.open(name, flags | os.O_NOATIME)
    except PermissionError:
        return os.open(name, flags)  # somebody else's file


def is_broken(error: Exception) -> bool:
    """Whether what `look`, `check` or `read` raised is the entry's own fault, so that it is better removed."""
    return not isinstance(error, OSError) or error.errno == errno.EIO


def mark_used(entry: Entry) -> None:
    """Notes that a run needs the entry, once a day: a file's time of access is not kept everywhere."""
    if time.time() - entry.used > DAY:
        # Somebody else's, or not to be written: it is only to say what `prune` may take first.
        with suppress(OSError):
            os.utime(entry.path, ns=(time.time_ns(), entry.changed))


def _start(file: IO[bytes], path: Path) -> Entry:
    header = parse(file.read(PAGE))
    found = os.fstat(file.fileno())
    if header.name != path.stem:
        raise ValueError("it is the entry of another signal")
    if found.st_size != header.size:
        raise ValueError(f"it has {found.st_size} bytes of {header.size}")
    return Entry(path, header, found.st_mtime_ns, found.st_atime)


# Writing


def create(path: Path, kind: Kind, pieces: Iterable[bytes], lock: int = fcntl.LOCK_EX) -> None:
    """Writes the records that come in `pieces` as the entry `path`, unless it is there or comes meanwhile.

    It is on the disk when this returns. Raises `OSError`, and whatever `pieces` raises; then nothing is left. With
    `fcntl.LOCK_NB` in `lock` it raises `BlockingIOError` where somebody else writes the entry, else it waits for them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _claim(path, lock) as file:
        if file is None:
            return
        file.write(bytes(PAGE))
        checksum = size = 0
        for piece in pieces:
            file.write(piece)
            checksum, size = _checksum(piece, checksum), size + len(piece)
        header = Header(path.stem, kind, size // kind.record, now(), checksum)
        file.seek(0)
        file.write(header.page())
        file.flush()
        os.fsync(file.fileno())
        # After the last write. Where times cannot be set, each run reads the entry through.
        with suppress(OSError):
            _stamp(file, header)
        os.replace(file.name, path)


def now() -> int:
    """Seconds; even, as some file systems keep no finer times."""
    return int(time.time()) // 2 * 2


def _stamp(file: IO[bytes], header: Header) -> None:
    found = os.fstat(file.fileno())
    if found.st_mtime_ns != _nanoseconds(header.written):
        os.utime(file.fileno(), ns=(found.st_atime_ns, _nanoseconds(header.written)))


@contextmanager
def _claim(path: Path, lock: int = fcntl.LOCK_EX) -> Iterator[IO[bytes] | None]:
    """The locked, empty `.part` file of an entry; None if the entry is there, perhaps written meanwhile.

    The lock goes with the process that holds it, so a killed build leaves a `.part` that the next one overwrites.
    """
    locks = _has_locks(path.parent.parent)
    # Without locks nobody waits: each writes a file of its own, and they are all the same entry.
    own = path.with_name(f"{path.stem}.{socket.gethostname()}-{os.getpid()}{PART}")
    part = path.with_suffix(PART) if locks else own
    while not path.exists():
        with open(part, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_CREAT, 0o666)) as file:
            if locks:
                fcntl.flock(file, lock)
            # Whoever had the lock before may have renamed this very file to the entry: it must not be touched.
            if not _is_same(part, file):
                continue
            if path.exists():
                part.unlink()
                continue
            file.truncate(0)
            try:
                yield file
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            return
    yield None


def is_abandoned(part: Path) -> bool:
    """Whether nobody writes this `.part` file any more. Raises `OSError`."""
    with part.open("rb") as file:
        return _is_free(file, fcntl.LOCK_SH)


def remove_abandoned(part: Path) -> bool:
    """Removes a `.part` file that nobody writes any more; False if somebody does. Raises `OSError`."""
    with part.open("r+b") as file:
        free = _is_free(file, fcntl.LOCK_EX)
        # Whoever waits for the lock will see that the file is no longer there.
        if free and _is_same(part, file):
            part.unlink()
        return free


def _is_free(file: IO[bytes], lock: int) -> bool:
    """Whether the lock could be had; where there are none, whether the file is a day old."""
    try:
        fcntl.flock(file, lock | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return time.time() - os.fstat(file.fileno()).st_mtime > DAY
    return True


@lru_cache
def _has_locks(folder: Path) -> bool:
    """Whether files there can be locked: on some clusters (Lustre mounted without `flock`) they cannot."""
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            raise
    return True


def _is_same(path: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _checksum(piece: bytes, so_far: int = 0) -> int:
    # CRC-32C runs at 14 GB/s, zlib's CRC-32 at 2.7, BLAKE2 at 1.1; a build writes 0.1 to 0.2 GB/s on a core.
    return int(google_crc32c.extend(so_far, piece))


def _nanoseconds(seconds: int) -> int:
    return seconds * 10**9
