"""A loader's worker that dies: one message, an end, no hang."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from stemwise import workers
from stemwise.training import SeparatorTraining

TORCH = "DataLoader worker (pid 17) is killed by signal: {}. It is possible that it is."


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (TORCH.format("Killed"), ("worker 17", "killed by signal: Killed", "Song of 17", "data.num_workers", "dmesg")),
        (TORCH.format("Bus error"), ("worker 17", "Bus error", "/dev/shm", "--shm-size")),
        (TORCH.format("Segmentation fault"), ("Segmentation fault", "data.num_workers=0")),
        ("DataLoader worker (pid(s) 17, 18) exited unexpectedly", ("17, 18", "Song of 17, Song of 18")),
        ("DataLoader worker (pid 17) exited unexpectedly with exit code 1. Details", ("worker 17", "ended")),
    ],
)
def test_what_torch_says_becomes_one_message(said: str, expected: tuple[str, ...]) -> None:
    message = str(workers.death(RuntimeError(said), 2, lambda process: f"Song of {process}"))
    assert message.startswith("rank 2: ")
    for part in expected:
        assert part in message


def test_other_errors_are_left_alone() -> None:
    for error in (RuntimeError("out of memory"), RuntimeError("DataLoader timed out after 3 seconds")):
        assert workers.death(error, 0, lambda _: None) is None
        assert not workers.is_death(error)


class Broken:
    """A batch that a worker does not live to hand over."""

    def __reduce__(self) -> tuple[Any, ...]:
        return breaks, (os.getpid(),)


def breaks(process: int) -> None:
    threading.Timer(0.2, os.kill, (process, signal.SIGKILL)).start()
    raise ConnectionResetError


def test_a_worker_that_dies_as_it_hands_over_a_batch_is_dead() -> None:
    loader = workers.Loader([Broken()], batch_size=None, num_workers=1)
    with pytest.raises(RuntimeError, match="is killed by signal: Killed") as caught:
        list(loader)
    assert workers.is_death(caught.value)


def test_the_signal_is_known_where_torch_only_sees_that_a_worker_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks by itself where no SIGCHLD has come yet: every five seconds, here more often."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
    loader = workers.Loader(range(100), batch_size=None, num_workers=1)
    batches = iter(loader)
    next(batches)
    (worker,) = multiprocessing.active_children()
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        os.kill(worker.pid, signal.SIGSEGV)
        with pytest.raises(RuntimeError, match="is killed by signal: Segmentation fault"):
            list(batches)
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
@pytest.mark.parametrize("storage", ["half", "complex"])
def test_a_worker_that_is_killed_ends_the_run_with_one_message(train, monkeypatch, how, storage):
    step = SeparatorTraining.training_step

    def kills(self: SeparatorTraining, batch: Any, number: int) -> Any:
        if self.global_step == 2:
            os.kill(multiprocessing.active_children()[0].pid, how)
        return step(self, batch, number)

    monkeypatch.setattr(SeparatorTraining, "training_step", kills)
    start = time.monotonic()
    keys = ["data.num_workers=1", "data.batch_size=2", "trainer.max_steps=2000", f"data.storage={storage}"]
    done = train(*keys, "data.examples_per_song=10", "trainer.val_check_interval=10000")
    assert done.code == 2, done.output
    assert time.monotonic() - start < 60
    assert "rank 0: worker " in done.output
    assert "killed by signal" in done.output
    assert "last: Song " in done.output
    assert "data.num_workers" in done.output
    assert "Traceback" not in done.output


def test_a_thread_that_pins_memory_and_meets_a_dead_worker_means_it() -> None:
    process = SimpleNamespace(pid=17, exitcode=-9)
    error = workers._killed(RuntimeError("Pin memory thread exited unexpectedly"), [process])
    assert error is not None
    assert workers.is_death(error)
    assert "worker 17" in str(workers.death(error, 0, lambda _: None))


LEFT = """
import signal, sys
from torch.utils.data import DataLoader
from stemwise import workers
loader = iter(DataLoader(range(100), num_workers=2, worker_init_fn=workers.leave_signals))
next(loader)
print(*(worker.pid for worker in loader._workers))
sys.exit(3)
"""


def test_workers_that_are_left_do_not_keep_a_program_from_its_end():
    """They ignore the SIGTERM by which multiprocessing would end them."""
    done = subprocess.run([sys.executable, "-c", LEFT], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stderr
    assert not done.stderr
    for number in done.stdout.split():
        assert not Path("/proc", number).exists()


def test_an_end_leaves_torch_its_look_at_workers_that_die():
    loader = iter(DataLoader(range(100), num_workers=1, worker_init_fn=workers.leave_signals))
    next(loader)
    before = signal.getsignal(signal.SIGCHLD)
    assert callable(before)
    workers.end(patience=0.1)
    assert signal.getsignal(signal.SIGCHLD) is before
    assert not multiprocessing.active_children()
