"""Memory that is used again: never while somebody reads it, and no matter who keeps what."""

import gc
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stemwise import sharing
from stemwise.errors import UserError
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


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> torch.distributed.HashStore:
    """A store where ranks have met."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(sharing, "_asked", Counter())  # as in processes of their own
    return store


def fail(*_: Any) -> Any:
    raise UserError("songs.csv: two problems.\nrow 2: no file")


def test_the_first_rank_finds_out_and_the_others_wait_for_it(met: torch.distributed.HashStore) -> None:
    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(sharing.from_first, "songs", rank, fail) for rank in (1, 2)]
        assert not wait(others, timeout=2 * sharing.TICK).done
        assert sharing.from_first("songs", 0, lambda: {"é": [1.5, None]}) == {"é": [1.5, None]}
        assert [other.result(timeout=10) for other in others] == [{"é": [1.5, None]}] * 2


def test_the_next_training_of_the_same_processes_hears_what_was_found_for_it(met: torch.distributed.HashStore) -> None:
    """The jobs of a multirun have one store."""
    assert sharing.from_first("songs", 0, lambda: "of the first") == "of the first"
    assert sharing.from_first("songs", 1, fail) == "of the first"
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(sharing.from_first, "songs", 1, fail)  # asks before the first rank knows
        assert not wait([other], timeout=2 * sharing.TICK).done
        assert sharing.from_first("songs", 0, lambda: "of the second") == "of the second"
        assert other.result(timeout=10) == "of the second"


def test_what_the_first_rank_raises_ends_the_others(met: torch.distributed.HashStore) -> None:
    with pytest.raises(UserError, match="row 2"):
        sharing.from_first("songs", 0, fail)
    with pytest.raises(UserError, match=r"rank 0 ended: songs.csv: two problems\. Rank 3 ends as well") as error:
        sharing.from_first("songs", 3, fail)
    assert "\n" not in str(error.value)


def test_a_first_rank_that_is_gone_is_not_waited_for(
    met: torch.distributed.HashStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, timeout=timedelta(seconds=2))
    other = torch.distributed.TCPStore("127.0.0.1", gone.port, is_master=False, timeout=timedelta(seconds=2))
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_store", lambda: other)
    del gone
    with pytest.raises(UserError, match="rank 0 is gone; rank 1 ends as well"):
        sharing.from_first("songs", 1, fail)


def test_a_rank_that_met_no_others_finds_out_by_itself() -> None:
    assert sharing.from_first("songs", 1, lambda: 7) == 7
