"""A node's own copies of the entries of a shared cache, each made when it is first read, within a limit.

A copy is an entry of the same name in another folder, as safe against kills, flipped bits and other versions as any
(`entries`). Which entries get one is settled before the run: each process comes to the same choice from the index
alone, so that nobody counts bytes while training reads. Songs are read at random, one as often as the other: no rule
of what to replace would find more of them in the folder than to keep what is there.

Whatever is wrong with a copy or its folder, the shared entry is read in its place, and never touched for it.
"""

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from stemwise.cache import entries, upkeep
from stemwise.cache.entries import Entry, Header
from stemwise.cache.upkeep import SPARE_BYTES, File, Look, gigabytes, reason
from stemwise.errors import UserError
from stemwise.index import Signal

log = logging.getLogger(__name__)


class Copies:
    """The copies in `folder`, which is not the shared one; `look` says what is sound.

    `sizes` are the bytes of all entries that a run reads, at most. Those are copied, in this order, that fit into
    `limit` bytes together; all of them if it is None, as far as the disk has room.
    """

    def __init__(self, folder: Path, look: Look, sizes: Mapping[Signal, int], limit: int | None) -> None:
        self.folder, self.look, self.limit = folder, look, limit
        self.sizes = sizes
        self.chosen = frozenset(_first_that_fit(sizes, limit))
        self.known: dict[Path, Entry | None] = {}  # the copy of an original; None: read the original from now on
        self._broken: set[Path] = set()  # originals that had a broken copy
        # Of the workers too: whether no copies are made any more, and whether it was said that some are gone.
        self._flags = torch.zeros(2, dtype=torch.bool).share_memory_()

    def path(self, original: Path) -> Path:
        """Where the copy of an entry lies, whether it is there yet or not."""
        return Path(self.folder, *original.parts[-2:])

    # Before a run, once for each node

    def make_room(self, originals: Sequence[Entry]) -> None:
        """Removes what stands in the way of copies of `originals`, which are those chosen, and says how much they are.

        That is what killed runs have left, copies that are not of what the originals hold today, and, as far as limit
        and disk demand it, what was used least recently of the rest. Where it fails, no copies are made.
        """
        log.info(
            "Local cache %s: %d of %d spectrograms (%s of %s) are copied there when they are first read.",
            self.folder,
            len(self.chosen),
            len(self.sizes),
            gigabytes(sum(self.sizes[signal] for signal in self.chosen)),
            gigabytes(sum(self.sizes.values())),
        )
        needed = {self.path(original.path): original.header for original in originals}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            found = upkeep.files(self.folder)
            useless = {file.path: file for file in (*upkeep.useless(found), *_outdated(found, needed))}
            upkeep.remove(useless.values())
            self._make_room([file for file in found if file.path not in useless], needed)
        except (OSError, UserError) as error:
            self._stop(error)

    def _make_room(self, found: Sequence[File], needed: Mapping[Path, Header]) -> None:
        there = {file.path for file in found}
        to_come = sum(header.size for path, header in needed.items() if path not in there)
        free = shutil.disk_usage(self.folder).free
        room = sum(file.size for file in found) + max(free - SPARE_BYTES, 0)
        gone = upkeep.beyond(found, min(room, room if self.limit is None else self.limit) - to_come, needed)
        upkeep.remove(gone)
        if to_come > free + sum(file.size for file in gone) - SPARE_BYTES:
            log.warning(
                "Local cache %s: %s are to come, and only %s are free. What finds no room is read from the shared one.",
                self.folder,
                gigabytes(to_come),
                gigabytes(free),
            )

    def check(self, originals: Sequence[Entry]) -> None:
        """Reads every byte of the copies that are there, and removes those that are broken."""
        paths = {self.path(original.path): original.path for original in originals}
        there = [path for path in paths if path.exists()]
        for path, found in upkeep.faults(there, entries.check, "Checking the local cache"):
            if isinstance(found, Exception):
                self._drop(paths[path], found)

    # Reading

    def lacks(self, signal: Signal, original: Path) -> bool:
        """Whether a copy of the entry `original` of `signal` is to be made; if not, it is in `known`, or None is."""
        if original in self.known:
            return False
        if signal not in self.chosen or (not self._find(original) and self._flags[0]):
            self.known[original] = None
        return original not in self.known

    def _find(self, original: Path) -> bool:
        try:
            found = self.look(self.path(original))
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            self._drop(original, error)
            return False
        entries.mark_used(found)
        self.known[original] = found
        return True

    def make(self, original: Entry) -> None:
        """Copies an entry, unless another process does at this moment, which need not be waited for.

        Raises `ValueError` if the original cannot be read, or is not what was written.
        """
        path = self.path(original.path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(path.parent).free < original.header.size + SPARE_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            entries.create(path, original.header.kind, _pieces(original), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError as error:
            self._stop(error)
        self._find(original.path)

    def read(self, original: Path, first: int, records: np.ndarray) -> bool:
        """Whether there is a copy from which `records` (frames, bytes of one) could be filled, as `Entry.read` does."""
        copy = self.known.get(original)
        if copy is None:
            return False
        try:
            copy.read(first, records)
        except ValueError:
            del self.known[original]  # another process may have replaced it: it is looked at anew
            return False
        except OSError as error:
            if error.errno != errno.EFAULT:  # no memory to read into: whoever reads the original will say so
                self._drop(original, error)
            return False
        return True

    # What goes wrong

    def _drop(self, original: Path, error: Exception) -> None:
        """Forgets a copy that cannot be read; one that is broken is removed."""
        path = self.path(original)
        self.known.pop(original, None)
        if entries.is_broken(error):
            with suppress(OSError):
                path.unlink(missing_ok=True)
            if original in self._broken:
                self.known[original] = None  # the second time: this disk is not to be trusted with it
            self._broken.add(original)
            log.warning("%s: the local copy was broken (%s) and is made anew.", path, reason(error))
        elif not self._flags[1]:
            self._flags[1] = True
            log.warning(
                "%s: the local copy cannot be read (%s). Copies that are gone are made anew.", path, reason(error)
            )

    def _stop(self, error: Exception) -> None:
        """No copies are made any more; those that are there are read."""
        if not self._flags[0]:
            self._flags[0] = True
            log.warning(
                "data.local_cache=%s: no copies can be made any more (%s). What is not there is read from the shared "
                "cache.",
                self.folder,
                reason(error),
            )


def _outdated(found: Sequence[File], needed: Mapping[Path, Header]) -> list[File]:
    """Copies of what was computed anew since with another result, as another processor may give it."""
    ours = [(file, needed[file.path]) for file in found if file.path in needed]
    return [file for file, header in ours if file.header and file.header.checksum != header.checksum]


def _first_that_fit(sizes: Mapping[Signal, int], limit: int | None) -> Iterator[Signal]:
    total = 0
    for signal, size in sizes.items():
        if limit is None or total + size <= limit:
            total += size
            yield signal


def _pieces(original: Entry) -> Iterator[bytes]:
    """All of its records. Raises `ValueError`: an `OSError` would seem to be one of writing."""
    try:
        yield from original.pieces()
    except OSError as error:
        raise ValueError(reason(error)) from error
