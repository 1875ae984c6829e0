"""The processes that compute the entries that a cache lacks."""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from stemwise.errors import UserError
from stemwise.index import Signal

Write = Callable[[Signal], None]


def compute(missing: dict[Path, Signal], write: Write, workers: int | None) -> Iterator[tuple[Path, str]]:
    """Has `write` write the entries `missing` in `workers` processes (None: one for each core, 0: in this one).

    Yields each entry and what is wrong with its songs, or nothing. Raises `UserError` where nothing else can be
    written either.
    """
    cores = len(os.sched_getaffinity(0))
    loader = DataLoader(
        _Entries(list(missing.items()), write),
        batch_size=None,
        num_workers=min(cores if workers is None else workers, len(missing)),
        prefetch_factor=None if workers == 0 else 1,
        worker_init_fn=_one_thread,
        # A loader draws a seed; from the global generator, a run that builds would differ from one that does not.
        generator=torch.Generator(),
    )
    paths = list(missing)
    for number, message in _written(loader):
        if number < 0:
            raise UserError(message)
        yield paths[number], message


class _Entries(Dataset[tuple[int, str]]):
    """The entries to write, as work for a loader's processes: item i writes entry i and says what was wrong.

    The number is negative if nothing else can be written either.
    """

    def __init__(self, missing: Sequence[tuple[Path, Signal]], write: Write) -> None:
        self.missing, self.write = missing, write

    def __len__(self) -> int:
        return len(self.missing)

    def __getitem__(self, number: int) -> tuple[int, str]:
        path, signal = self.missing[number]
        try:
            self.write(signal)
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
