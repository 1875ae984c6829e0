"""Memory that is used again: never while somebody reads it, and no matter who keeps what."""

import gc
import os
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stemwise.sharing import Pool


def filling(value: int) -> Any:
    return lambda memory: memory.fill_(value)


class Numbers(Dataset[Tensor]):
    """Batch i is full of the number of its first item."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def __len__(self) -> int:
        return 60

    def __getitems__(self, items: list[int]) -> Any:
        return {"records": self.pool.filled((len(items), 1000), filling(items[0])), "name": items}


def as_is(batch: Any) -> Any:
    return batch


def loader(pool: Pool, workers: int) -> DataLoader[Any]:
    return DataLoader(Numbers(pool), batch_size=4, num_workers=workers, collate_fn=as_is)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("size", [0, 4000], ids=["fresh memory", "buffers"])
def test_batches_that_are_all_kept_stay_what_they_are(workers: int, size: int) -> None:
    """More of them than there are buffers."""
    kept = list(loader(Pool(size, workers), workers))
    assert len(kept) == 15
    for number, batch in enumerate(kept):
        assert batch["records"].shape == (4, 1000)
        assert batch["records"].dtype == torch.uint8
        assert (batch["records"] == 4 * number).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_that_are_dropped_give_their_buffers_back(workers: int) -> None:
    pool = Pool(4000, workers)
    places = set()
    for batch in loader(pool, workers):
        view = batch["records"][1:, 5:9].transpose(0, 1)
        places.add(batch["records"].data_ptr())
        del batch
        assert pool._taken.sum() > 0  # a view is enough to keep it
        assert view.unique().numel() == 1
    del view
    gc.collect()
    assert pool._taken.sum() == 0
    assert len(places) <= pool._taken.numel()


def test_a_process_that_was_forked_gives_nothing_back() -> None:
    """It has the tensor as well, and loses it first."""
    pool = Pool(10, workers=1, count=1)
    kept = pool.filled((10,), filling(1))
    if (child := os.fork()) == 0:
        del kept
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    assert pool._taken.sum() == 1
    del kept
    gc.collect()
    assert pool._taken.sum() == 0


def test_a_buffer_is_taken_until_its_last_view_is_gone() -> None:
    pool = Pool(10, count=1)
    first = pool.filled((2, 5), filling(1))
    row = first[1].view(torch.int8)
    del first
    second = pool.filled((10,), filling(2))
    assert (row == 1).all()
    assert second.data_ptr() != row.data_ptr() - 5
    del row
    third = pool.filled((5,), filling(3))
    assert pool._taken.sum() == 1
    assert (second == 2).all()
    assert (third == 3).all()


def test_what_is_larger_than_a_buffer_gets_memory_of_its_own() -> None:
    pool = Pool(10)
    assert (pool.filled((3, 7), filling(9)) == 9).all()
    assert pool._taken.sum() == 0


def test_a_fill_that_fails_takes_nothing() -> None:
    pool = Pool(10)

    def fail(_: Tensor) -> None:
        raise ValueError

    for _ in range(20):
        with pytest.raises(ValueError):  # noqa: PT011
            pool.filled((10,), fail)
    assert pool._taken.sum() == 0
