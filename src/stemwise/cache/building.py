"""The processes that compute the entries that a cache lacks."""

import errno
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch.utils.data import DataLoader, Dataset

from stemwise.errors import UserError
from stemwise.index import Signal

if TYPE_CHECKING:  # which imports this module
    from stemwise.cache.store import Cache


def compute(cache: "Cache", missing: Sequence[Signal], workers: int | None) -> Iterator[tuple[Signal, str]]:
    """Writes the entries of `missing` in `workers` processes (None: one for each core, 0: in this one).

    Yields each signal and what is wrong with its songs, or nothing. Raises `UserError` where nothing else can be
    written either.
    """
    cores = len(os.sched_getaffinity(0))
    loader = DataLoader(
        _Entries(cache, missing),
        batch_size=None,
        num_workers=min(cores if workers is None else workers, len(missing)),
        prefetch_factor=None if workers == 0 else 1,
        worker_init_fn=_one_thread,
        # A loader draws a seed; from the global generator, a run that builds would differ from one that does not.
        generator=torch.Generator(),
    )
    for number, message in _written(loader):
        if number < 0:
            raise UserError(message)
        yield missing[number], message


class _Entries(Dataset[tuple[int, str]]):
    """The entries to write, as work for a loader's processes: item i writes entry i and says what was wrong.

    The number is negative if nothing else can be written either.
    """

    def __init__(self, cache: "Cache", missing: Sequence[Signal]) -> None:
        self.cache, self.missing = cache, missing

    def __len__(self) -> int:
        return len(self.missing)

    def __getitem__(self, number: int) -> tuple[int, str]:
        signal = self.missing[number]
        path = self.cache.path(signal)
        try:
            self.cache.compute(signal)
        except UserError as error:
            return number, str(error)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            todo = "Free some space" if full else "See that it can be written"
            return -1, (
                f"{path}: the spectrogram cannot be written ({error.strerror}). "
                f"{todo} and run again, or set data.cache to another folder."
            )
        return number, ""


def _written(loader: DataLoader[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "data.cache: a process that computes spectrograms was killed, perhaps for want of memory. "
            "Free some and run again: what is complete stays."
        ) from error


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
