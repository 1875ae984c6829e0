"""Unpacks Spleeter's released checkpoints, `.tar.gz`, with bounds: a stranger may have made them."""

import gzip
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from stemwise import progress
from stemwise.errors import UserError

LARGEST_UNPACKED = 2**30  # bytes
LARGEST_HEADER = 2**20  # and the largest piece that is read at once
MOST_MEMBERS = 1000

_MEGABYTE = 10**6
_WANTED = re.compile(r"checkpoint|config\.json|\w[\w.-]{0,90}\.(index|data-\d{5}-of-\d{5})", re.ASCII)


def unpack(archive: Path, folder: Path, label: str) -> None:
    """Writes the files of a checkpoint into `folder`, which is empty; what else an archive holds is left in it.

    Raises `UserError`, which calls the archive `label`, for one that is damaged, hostile or without a checkpoint.
    """
    try:
        with gzip.open(archive) as stream:
            bounded: Any = _Bounded(stream, LARGEST_UNPACKED, label)
            with tarfile.open(fileobj=bounded, mode="r:") as tar:
                _unpack_members(tar, folder, label)
    except UserError:
        raise
    # What tarfile raises for a damaged header depends on the header.
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, ArithmeticError, RecursionError) as e:
        raise UserError(f"{label}: not a tar.gz, or a damaged one ({str(e)[:120] or type(e).__name__}).") from None
    if not any(folder.iterdir()):
        raise UserError(f"{label}: holds no checkpoint: no *.index and *.data-* at the top or in its one folder.")


def _unpack_members(tar: tarfile.TarFile, folder: Path, label: str) -> None:
    parents, taken = set(), set()
    for number, member in enumerate(tar, start=1):
        if number > MOST_MEMBERS:
            raise UserError(f"{label}: a damaged or hostile archive, with more than {MOST_MEMBERS} files.")
        name, shown = PurePosixPath(member.name), repr(member.name[:200])
        if name.is_absolute() or ".." in name.parts or "\\" in member.name:
            raise UserError(f"{label}: a hostile archive: {shown} leads out of its folder.")
        if len(name.parts) > 2 or member.isdir() or not _WANTED.fullmatch(name.name):
            continue
        source = tar.extractfile(member) if member.isreg() and not member.issparse() else None
        if source is None:
            raise UserError(f"{label}: a damaged or hostile archive: {shown} is no plain file.")
        parents.add(name.parent)
        # Some file systems take Model.index and model.index for one.
        if name.name.lower() in taken or len(parents) > 1:
            raise UserError(f"{label}: more than one checkpoint: {shown} comes on top of another.")
        taken.add(name.name.lower())
        total = -(-member.size // _MEGABYTE)
        with source, open(folder / name.name, "xb") as file:
            for piece in progress.track(_megabytes(source), what=f"unpacking {name.name}, MB", total=total):
                file.write(piece)


def _megabytes(source: IO[bytes]) -> Iterator[bytes]:
    while piece := source.read(_MEGABYTE):
        yield piece


class _Bounded:
    """A stream that is only read forwards, to a limit and in small pieces.

    tarfile takes sizes from headers: it reads a header of a gigabyte at once, and with a negative size it goes
    back and round forever (CVE-2025-8194, in Pythons that are in use).
    """

    def __init__(self, stream: gzip.GzipFile, limit: int, label: str) -> None:
        self.stream, self.limit, self.label = stream, limit, label

    def tell(self) -> int:
        return self.stream.tell()

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LARGEST_HEADER:
            raise UserError(f"{self.label}: a damaged or hostile archive, with a header of {size} bytes.")
        self._check(self.tell() + size)
        return self.stream.read(size)

    def seek(self, offset: int) -> int:
        if offset < self.tell():
            raise UserError(f"{self.label}: a damaged or hostile archive, with a size below zero.")
        self._check(offset)
        return self.stream.seek(offset)

    def _check(self, end: int) -> None:
        if end > self.limit + LARGEST_HEADER:
            raise UserError(f"{self.label}: unpacks to more than the {self.limit} bytes that are allowed.")
