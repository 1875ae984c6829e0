"""A cache's folder as a whole: what lies in it, what of it is broken, and what may go.

Only files that are called as entries are (two hexadecimal digits, a digest below) are ever looked at, so that the name
of a wrong folder does no harm.
"""

import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from stemwise.cache import entries
from stemwise.cache.entries import DAY, FORMAT, PAGE, PART, SUFFIX, Entry, Header
from stemwise.errors import UserError

log = logging.getLogger(__name__)

SPARE_BYTES = 1 << 28  # left free on a disk: logs and checkpoints must still fit
FIRST_FORMAT = ".npy"  # the suffix of format 1

_SHELF = re.compile(r"[0-9a-f]{2}")
_FILE = re.compile(rf"[0-9a-f]{{40}}(\.[^/]*)?({re.escape(SUFFIX)}|{re.escape(FIRST_FORMAT)}|{re.escape(PART)})")
_SIZE = re.compile(r"(\d+(?:\.\d*)?)\s*([kmgt]?)b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}

Look = Callable[[Path], Entry]


@dataclass(frozen=True)
class File:
    """A file of a cache, as its first page describes it."""

    path: Path
    size: int  # bytes
    used: float  # seconds: the last time of writing or of a run that needs it
    format: int | None = None  # None if it is no entry, or half of one
    header: Header | None = None  # None if we cannot read it
    fault: str = ""

    @property
    def is_part(self) -> bool:
        return self.path.suffix == PART


def files(folder: Path) -> list[File]:
    """All files of the cache `folder`, sorted by name. No records are read."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. Name the folder that is data.cache in training.")
    try:
        shelves = [shelf for shelf in os.scandir(folder) if _SHELF.fullmatch(shelf.name) and shelf.is_dir()]
        paths = [Path(one.path) for shelf in shelves for one in os.scandir(shelf) if _FILE.fullmatch(one.name)]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror}). See that it can be read.") from None
    return [found for path in sorted(paths) if (found := _file(path)) is not None]


def _file(path: Path) -> File | None:
    """None if it is no file, or no longer one: others may write and remove meanwhile."""
    try:
        if not path.is_file():
            return None
        stat = path.stat()
        start = b""
        if path.suffix == SUFFIX:
            with entries.quietly_opened(path) as file:
                start = file.read(PAGE)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). See that it can be.") from None
    known = path, stat.st_size, max(stat.st_atime, stat.st_mtime)
    if path.suffix != SUFFIX:
        return File(*known, format=1 if path.suffix == FIRST_FORMAT else None)
    number = entries.format_of(start)
    try:
        return File(*known, number, entries.parse(start))
    except ValueError as error:
        return File(*known, number, fault=str(error))


# What is broken


def faults(paths: Sequence[Path], look: Look, what: str) -> Iterator[tuple[Path, Entry | Exception]]:
    """Each path with what `look` finds, or the error that it raises, many at once and with progress named `what`."""
    from stemwise import progress  # `stemwise --help` need not wait for it

    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    try:
        found = pool.map(lambda path: _looked(path, look), paths)
        yield from zip(paths, progress.track(found, what=what, total=len(paths)), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C need not wait for the rest


def _looked(path: Path, look: Look) -> Entry | Exception:
    try:
        return look(path)
    except (OSError, ValueError) as error:
        return error


def reason(error: Exception) -> str:
    """Why an entry cannot be used, in brackets after its name."""
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def broken(found: Iterable[File]) -> Iterator[tuple[Path, Exception]]:
    """The entries whose bytes are not those that were written, or cannot be read, and why. Reads all of them."""
    # Of another format we do not know what should be in it; what has none bears the name and is not an entry.
    paths = [file.path for file in found if file.path.suffix == SUFFIX and file.format in (FORMAT, None)]
    for path, result in faults(paths, entries.check, "Checking"):
        if isinstance(result, Exception) and not isinstance(result, FileNotFoundError):
            yield path, result


# What may go


def useless(found: Iterable[File]) -> list[File]:
    """Entries of older formats, and what killed builds have left."""
    return [
        file
        for file in found
        if (file.format is not None and file.format < FORMAT) or (file.is_part and _is_abandoned(file.path))
    ]


def _is_abandoned(part: Path) -> bool:
    try:
        return entries.is_abandoned(part)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"{part}: cannot be read ({error.strerror}). See that it can be.") from None


def unused_for(found: Iterable[File], days: float) -> list[File]:
    """Entries that no run has needed for so many days."""
    return [file for file in found if not file.is_part and file.used < time.time() - days * DAY]


def beyond(found: Sequence[File], limit: int, keep: Collection[Path] = ()) -> list[File]:
    """The entries to remove, least recently used first, until the rest is within `limit` bytes; `keep` stay."""
    total, gone = sum(file.size for file in found), []
    for file in sorted(found, key=lambda file: file.used):
        if total <= limit:
            break
        if not file.is_part and file.path not in keep:
            gone.append(file)
            total -= file.size
    return gone


def remove(gone: Iterable[File]) -> None:
    """Removes these files; a `.part` file that somebody writes again by now stays."""
    for file in gone:
        try:
            if file.is_part:
                entries.remove_abandoned(file.path)
            else:
                file.path.unlink()
        except FileNotFoundError:
            continue  # somebody else was quicker
        except OSError as error:
            raise UserError(f"{file.path}: cannot be removed ({error.strerror}). See that it can be written.") from None


def remove_broken(faults: Mapping[Path, Exception]) -> None:
    """Removes the entries that are broken, and says so; the rest of `faults` is not there."""
    for path, error in faults.items():
        if isinstance(error, FileNotFoundError):
            continue
        try:
            if not entries.is_broken(error):
                raise error
            path.unlink(missing_ok=True)
        except OSError as problem:
            raise UserError(
                f"{path}: cache entry cannot be read ({reason(error)}), nor replaced ({reason(problem)}). "
                "Remove it and run again, or set data.cache to another folder."
            ) from None
        log.warning("%s: cache entry is broken (%s); it is computed anew.", path, reason(error))


# A folder to write to


def check_writable(folder: Path, lacking: str) -> None:
    """Makes the folder if it is not there. Raises `UserError` that also says what the cache is `lacking`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Without a name: nobody else's is touched, and nothing is left if we are killed here.
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"data.cache={folder}: the folder cannot be written ({error.strerror}), and {lacking}. "
            "Set data.cache to another folder, or to null to train without a cache."
        ) from None


def make_room(folder: Path, limit: int, needed: int, keep: Collection[Path]) -> None:
    """Removes entries, least recently used first and none of `keep`, until `needed` bytes more stay within `limit`.

    Raises `UserError` where that cannot be.
    """
    found = files(folder) if folder.is_dir() else []
    gone = beyond(found, limit - needed, keep)
    left = sum(file.size for file in found) - sum(file.size for file in gone)
    if left + needed > limit:
        raise UserError(
            f"data.cache_limit={gigabytes(limit)}: with the spectrograms of this run, {folder} has "
            f"{gigabytes(left + needed)}. Raise the limit, or set data.cache=null to train without a cache."
        )
    remove(gone)
    if gone:
        freed = gigabytes(sum(file.size for file in gone))
        log.info("Cache %s: %d least recently used entries removed (%s).", folder, len(gone), freed)


def parse_size(value: str | float) -> int:
    """Bytes from a number or a text such as 50G, 1.5T or 800M (of 1000). Raises `ValueError`."""
    if isinstance(value, bool):
        raise ValueError(value)
    match = _SIZE.fullmatch(str(value).strip()) if isinstance(value, str) else None
    found = float(match[1]) * _UNITS[match[2].lower()] if match else float(value)
    if not 0 < found < 2**63:
        raise ValueError(value)
    return int(found)


def gigabytes(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / 1e9:.2f} GB"
