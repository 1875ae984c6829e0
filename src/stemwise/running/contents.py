"""What is in a file: its SHA-256, which is computed once and remembered for as long as the file is left alone.

The store is a text file with a line of JSON per file. Whoever hashes at the same time appends beside us, and who is
killed loses no more than the files that were being read. `sha256sum` gives the same numbers.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from stemwise import progress
from stemwise.errors import UserError

log = logging.getLogger(__name__)

STORE = "sha256.jsonl"

# Absolute path, size in bytes, times of change of the content and of the entry in the folder, in ns. The second time
# cannot be set back, so an edit is noticed that the first one hides (`touch -d`, `rsync -t`).
State = tuple[str, int, int, int]


def digests(paths: Iterable[Path], store: Path) -> dict[Path, str]:
    """SHA-256 of each file as 64 hexadecimal digits, from `store` where that knows the file as it is now.

    Raises `UserError` for a file that cannot be read, or changes meanwhile. A store that cannot be read or written
    costs a warning, and the same work next time.
    """
    states = {path: _state(path) for path in dict.fromkeys(paths)}
    known = _remembered(store, {state[0] for state in states.values()})
    found = {path: known[state] for path, state in states.items() if state in known}
    missing = [path for path in states if path not in found]
    if not missing:
        return found
    with _appended(store) as file, ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), 8)) as pool:
        done = progress.track(pool.map(_digest, missing), what="Hashing songs", total=len(missing))
        for path, (state, digest) in zip(missing, done, strict=True):
            found[path] = digest
            # One write a line, so that lines of several processes do not mix.
            file.write(json.dumps([*state, digest]) + "\n")
            file.flush()
    return found


def _state(path: Path, descriptor: int | None = None) -> State:
    try:
        status = path.stat() if descriptor is None else os.fstat(descriptor)
    except OSError as error:
        raise _unreadable(path, error) from None
    return str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _digest(path: Path) -> tuple[State, str]:
    try:
        with path.open("rb") as file:
            before = _state(path, file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            after = _state(path, file.fileno())
    except OSError as error:
        raise _unreadable(path, error) from None
    if before != after:
        raise UserError(f"{path}: changed while it was read. Wait until it is complete, and run again.")
    return after, digest


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be read ({error.strerror}). Check the path and who may read it.")


def _remembered(store: Path, wanted: set[str]) -> dict[State, str]:
    """What the store knows of these paths. A line that a kill has cut short counts as not there."""
    found: dict[State, str] = {}
    try:
        with store.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    path, size, changed, moved, digest = json.loads(line)
                except (ValueError, TypeError, RecursionError):
                    continue
                if isinstance(path, str) and path in wanted and isinstance(digest, str):
                    found[path, size, changed, moved] = digest
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("%s: cannot be read (%s), so songs are hashed once more.", store, error.strerror)
    return found


@contextmanager
def _appended(store: Path) -> Iterator[IO[str]]:
    """The store, to write at its end; nowhere, if that is not possible."""
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        file = store.open("a", encoding="utf-8")
    except OSError as error:
        log.warning(
            "%s: cannot be written (%s), so songs are hashed again next time. Set STEMWISE_CACHE to another folder.",
            store,
            error.strerror,
        )
        file = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    with file:
        yield file
