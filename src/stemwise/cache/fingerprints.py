"""What stands for the content of a song's file, and whether it is still that of before."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stemwise.errors import UserError
from stemwise.files import stores
from stemwise.files.places import Place, Url
from stemwise.index import Signal

FILES = 1 << 20  # of which is remembered what is known about them

Mark = str | stores.State
"""What another process may take over about a file: of a local one its fingerprint, of a URL what its store says."""

_digests: dict[Path, str] = {}
_begun: dict[Place, tuple[int, int | str] | None] = {}  # size and time of change of songs that are read again and again


def fingerprint(path: Place) -> str:
    """Stands for a file's content without reading all of it: its and its folder's name, size, time, and three pieces.

    Any edit changes the time. The rest tells apart files whose times were set alike, and the names those that are as
    long and silent wherever a piece is read: stems from one archive. Of a URL it is what its store says of the content.
    """
    if isinstance(path, Url):
        return _remote_fingerprint(path, stores.known(path))
    if path not in _digests:
        _digests[path] = _local_fingerprint(path)
    return _digests[path]


def mark(path: Place) -> Mark:
    """What this process knows about a file, found out if need be."""
    return stores.known(path) if isinstance(path, Url) else fingerprint(path)


def take(path: Place, mark: Mark) -> None:
    """Takes over what another process found out, in place of looking."""
    if isinstance(path, Url):
        stores.take(path, stores.State(*mark))
    else:
        _digests[path] = str(mark)


def fingerprint_now(path: Place) -> str:
    """The same of the file as it is by now."""
    return _remote_fingerprint(path, stores.look(path)) if isinstance(path, Url) else _local_fingerprint(path)


def content(path: Place) -> str:
    """The same for a file that may be copied: of its size and the three pieces only, so that copies are alike.

    Of a URL it is the fingerprint.
    """
    return fingerprint(path) if isinstance(path, Url) else _pieces(path, lambda stat: [stat.st_size])


def _remote_fingerprint(url: Url, state: stores.State) -> str:
    return hashlib.blake2b(json.dumps([str(url), *state]).encode(), digest_size=20).hexdigest()


def _local_fingerprint(path: Path) -> str:
    names = [path.absolute().parent.name, path.name]
    return _pieces(path, lambda stat: [*names, stat.st_size, stat.st_mtime_ns])


def _pieces(path: Path, known: Callable[[os.stat_result], list[str | int]]) -> str:
    """Of three pieces of a file, and of what is `known` about it."""
    piece = 1 << 16
    try:
        stat = path.stat()
        digest = hashlib.blake2b(json.dumps(known(stat)).encode(), digest_size=20)
        with path.open("rb") as file:
            for place in (0, stat.st_size // 2, max(stat.st_size - piece, 0)):
                file.seek(place)
                digest.update(file.read(piece))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Check the path and who may read it.") from None
    return digest.hexdigest()


def check_unchanged(signal: Signal) -> None:
    """Raises `UserError` if a file is not as it was when this process, or the one that started it, first asked."""
    for cell in signal:
        now = _state(cell.path)
        if _begun.setdefault(cell.path, now) != now:
            raise changed(str(cell.path))


@contextmanager
def unchanged(*signals: Signal) -> Iterator[None]:
    """Around reading these: raises as `check_unchanged`, also where a file that is being replaced looks damaged."""
    try:
        yield
    except UserError:
        there = tuple(cell for signal in signals for cell in signal if _state(cell.path) is not None)
        try:
            check_unchanged(there)
        except UserError as other:
            raise other from None
        raise
    for signal in signals:
        check_unchanged(signal)


def _state(path: Place) -> tuple[int, int | str] | None:
    """Size and time of change, or a store's mark; None if there is no such file: who reads it says so."""
    if isinstance(path, Url):
        return stores.known(path)  # whoever read it has just looked
    try:
        stat = path.stat()
        return stat.st_size, stat.st_mtime_ns
    except OSError:
        return None


def changed(names: str) -> UserError:
    """What to say of songs that are not those of before."""
    return UserError(f"{names}: changed since this run began. Leave songs alone while it runs.")


def forget() -> None:
    """Looks at all files anew."""
    _digests.clear()
    _begun.clear()
    stores.forget()
