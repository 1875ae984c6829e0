"""What processes share: memory that a loader's workers fill and the trainer reads, what each worker is at, and what
the first of several ranks found out.

A batch is some 40 MB. In fresh memory the kernel clears a page and takes a fault for every 4096 bytes of it, which
takes five times as long as to fill it. A `Pool` therefore keeps its buffers: one is free again when the last tensor
that lies in it is gone, so that nobody needs to give it back, and whoever keeps a batch keeps it whole.
"""

import itertools
import json
import os
import time
import weakref
from collections import Counter
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from stemwise.errors import UserError

COUNT = 4  # buffers of a worker: one that is filled, two that wait, one in use
TICK = 0.2  # seconds between two questions whether the first rank is done

_pools: "weakref.WeakValueDictionary[int, Pool]" = weakref.WeakValueDictionary()
_numbers = itertools.count()
_asked: Counter[tuple[str, int]] = Counter()


class Pool:
    """Up to `count` buffers of `size` bytes for each of a loader's `workers` (or for this process, if there are none).

    It is made before the workers start, and goes to them with the dataset.
    """

    def __init__(self, size: int, workers: int = 0, count: int = COUNT) -> None:
        self.size, self.workers, self.number = size, workers, next(_numbers)
        new = _shared if workers else _own
        # Nothing is taken from the machine before it is written to.
        with torch.inference_mode(False):  # a batch for validation may be the first, one for training the next
            self._buffers = [[new(size) for _ in range(count)] for _ in range(max(workers, 1))]
            self._taken = torch.zeros(len(self._buffers), count, dtype=torch.uint8).share_memory_()
        _pools[self.number] = self

    def filled(self, shape: tuple[int, ...], fill: Callable[[Tensor], None]) -> Any:
        """A tensor of bytes that `fill` has written, from a free buffer, or from fresh memory if there is none.

        In a worker, it is what becomes that tensor in the process that the worker's loader belongs to.
        """
        if prod(shape) > self.size:
            return _fresh(shape, fill)
        info = get_worker_info()
        worker = info.id if info else 0
        free = (self._taken[worker] == 0).nonzero().flatten().tolist()
        if not free:
            return _fresh(shape, fill)
        fill(_view(self._buffers[worker][free[0]], shape))
        self._taken[worker, free[0]] = 1
        place = (worker, free[0], shape)
        return _Message(self.number, *place) if info else self.tensor(*place)

    def tensor(self, worker: int, number: int, shape: tuple[int, ...]) -> Tensor:
        """The bytes of a taken buffer; the buffer is free when nothing refers to them any more."""
        array = _view(self._buffers[worker][number], shape).numpy()
        weakref.finalize(array, _free, self._taken[worker, number], os.getpid()).atexit = False
        return torch.from_numpy(array)


class Whereabouts:
    """The number of what each of a loader's `workers` is at, to be read by the process that the loader belongs to.

    It outlives the worker: of one that died in the middle of something, it says of what.
    """

    def __init__(self, workers: int = 0) -> None:
        self._table = torch.full((max(workers, 1), 2), -1, dtype=torch.int64).share_memory_()

    def at(self, number: int) -> None:
        """Says that this process is at `number`."""
        info = get_worker_info()
        if info is None or info.id < len(self._table):  # a loader of somebody else's may have more workers
            self._table[info.id if info else 0] = torch.tensor([os.getpid(), number])

    def of(self, process: int) -> int | None:
        """The last number of the worker with this process id, if it was at any."""
        found = [number for worker, number in self._table.tolist() if worker == process]
        return found[0] if found else None


def from_first(name: str, rank: int, make: Callable[[], Any]) -> Any:
    """What `make` returns on the first rank, for all ranks: a plain value, which goes to the others as JSON.

    Through the store where the ranks met, so that they may ask at different times, and not all need to; where none
    have met, each makes it. What a rank asks for under this name for the nth time is what the first rank made then: one
    process may run several trainings, and the store outlives them. (A key made of the data would not do: ranks that
    have different data would wait for each other, and never hear of it.) Raises what `make` raises; on the other ranks,
    `UserError` with the first line of it, or that the first rank is gone.
    """
    if not torch.distributed.is_initialized():
        return make()
    store = torch.distributed.distributed_c10d._get_default_store()
    key = f"stemwise/{name}/{_asked[name, rank]}"
    _asked[name, rank] += 1
    if rank == 0:
        try:
            found = make()
        except BaseException as error:
            store.set(key, json.dumps({"error": str(error).partition("\n")[0] or type(error).__name__}))
            raise
        store.set(key, json.dumps({"found": found}))
        return found
    try:
        while not store.check([key]):
            time.sleep(TICK)
        told = json.loads(store.get(key))
    except RuntimeError:  # of torch: nobody answers any more
        raise UserError(f"rank 0 is gone; rank {rank} ends as well. See what it said last.") from None
    if "error" in told:
        raise UserError(f"rank 0 ended: {told['error'].rstrip('.')}. Rank {rank} ends as well.")
    return told["found"]


def _free(taken: Tensor, process: int) -> None:
    # A process that was forked meanwhile has the tensor as well, and may lose it first.
    if os.getpid() == process:
        taken.zero_()


class _Message:
    """A filled buffer on its way out of a worker: unpickled, it is the tensor."""

    def __init__(self, *place: Any) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
        return _received, self.place


def _received(pool: int, *place: Any) -> Tensor:
    return _pools[pool].tensor(*place)


def _view(buffer: Tensor, shape: tuple[int, ...]) -> Tensor:
    return buffer[: prod(shape)].view(shape)


def _fresh(shape: tuple[int, ...], fill: Callable[[Tensor], None]) -> Tensor:
    # What a worker hands over must be shared; if it is not yet, it is copied.
    tensor = _view((_shared if get_worker_info() else _own)(prod(shape)), shape)
    fill(tensor)
    return tensor


def _shared(size: int) -> Tensor:
    """Memory of several processes, as torch's own collation makes it; `share_memory_` would copy what is not there."""
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))


def _own(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8)
