"""Who watches a step: says what it waits for and says so once in a while, and is quiet when nothing is wrong."""

import logging
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch

from stemwise.cache import store
from stemwise.running.watchdog import FIRST, TIMES, Watchdog
from stemwise.training import SeparatorTraining

LIMIT = 0.1


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    watching = Watchdog(LIMIT)
    trainer: Any = SimpleNamespace(global_rank=3, global_step=41)
    watching.on_train_start(trainer, None)
    yield watching
    watching.teardown(trainer, None, "fit")


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    return said


def steps(watchdog: Watchdog, count: int, seconds: float = 0.0) -> None:
    for _ in range(count):
        time.sleep(seconds)
        watchdog.on_train_batch_end(None, None, None, None, 0)


def test_a_step_that_hangs_is_said_once_with_the_stack_and_then_at_doubled_intervals(watchdog, said):
    steps(watchdog, 4)
    time.sleep(LIMIT * 5)  # after 1, 2 and 4
    first, *others = said()
    assert "rank 3: step 42 has not moved for 0.1" in first
    assert "test_a_step_that_hangs" in first  # of this thread
    assert len(others) == 2
    assert not any("test_a_step" in text for text in others)
    steps(watchdog, 1)
    time.sleep(LIMIT * 1.6)
    assert len(said()) == 4
    assert "test_a_step_that_hangs" in said()[-1]  # another step, told anew


def test_the_first_step_has_more_time_and_is_no_measure(watchdog, said):
    time.sleep(LIMIT * 3)
    assert not said()
    steps(watchdog, 1)
    assert watchdog.limit() == FIRST * LIMIT
    steps(watchdog, 2)
    assert watchdog.limit() == LIMIT
    time.sleep(LIMIT * 1.6)
    assert len(said()) == 1


def test_slow_steps_are_usual_where_all_are_slow(watchdog, said):
    steps(watchdog, 4, seconds=0.02)
    assert watchdog.limit() == pytest.approx(TIMES * 0.02, rel=0.3)
    time.sleep(LIMIT * 2)
    assert not said()


def test_a_validation_has_a_measure_of_its_own(watchdog, said):
    steps(watchdog, 4)
    watchdog.on_validation_start(None, None)
    assert watchdog.limit() == FIRST * LIMIT
    for loader, seconds in ((0, 0.001), (1, 0.03), (1, 0.03)):
        time.sleep(seconds)
        watchdog.on_validation_batch_end(None, None, None, None, 0, loader)
    time.sleep(LIMIT * 2)
    watchdog.on_validation_end(None, None)
    assert watchdog.limit() == LIMIT  # steps are as short as before
    watchdog.on_validation_start(None, None)
    assert watchdog.limit() == pytest.approx(TIMES * 0.03, rel=0.3)
    assert not said()


def test_it_ends_with_the_training(watchdog, said):
    thread = watchdog._thread
    steps(watchdog, 3)
    watchdog.on_exception(None, None, KeyboardInterrupt())
    assert not thread.is_alive()
    time.sleep(LIMIT * 2)
    assert not said()


STOPPED = """
    import logging, time
    from types import SimpleNamespace
    from stemwise.running.watchdog import Watchdog

    logging.basicConfig()
    watchdog = Watchdog(0.3)
    watchdog.on_train_start(SimpleNamespace(global_rank=0, global_step=0), None)
    for _ in range(3):
        watchdog.on_train_batch_end(None, None, None, None, 0)
    print("ready", flush=True)
    time.sleep(WAIT)
    watchdog.teardown(None, None, "fit")
"""


@pytest.mark.parametrize("wait", [0.05, 2.5])  # seconds, of which one is spent stopped
def test_time_in_which_the_process_was_stopped_does_not_count(wait):
    code = textwrap.dedent(STOPPED).replace("WAIT", str(wait))
    with subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(1)
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate(timeout=20)
    assert ("has not moved" in errors) == (wait > 2)


def test_each_phase_of_a_training_is_known(train, monkeypatch):
    """One run in which everything hangs once; if Lightning moves its code, this test knows."""
    monkeypatch.setattr("stemwise.running.watchdog.TIMES", 2)  # steps here are a mere 20 ms
    hung: set[str] = set()

    def hangs(owner: Any, name: str, phase: str, step: int) -> None:
        inner = getattr(owner, name)

        def slow(self: Any, *arguments: Any, **options: Any) -> Any:
            trainer = running[0] if running else None
            if trainer and trainer.global_step >= step and trainer.state.fn == "fit" and phase not in hung:
                hung.add(phase)
                time.sleep(1)
            return inner(self, *arguments, **options)

        monkeypatch.setattr(owner, name, slow)

    running: list[lightning.Trainer] = []
    start = Watchdog.on_train_start
    monkeypatch.setattr(
        Watchdog,
        "on_train_start",
        lambda self, trainer, module: (running.append(trainer), start(self, trainer, module)),
    )
    hangs(store.Cache, "read", "waiting for data", 5)
    hangs(SeparatorTraining, "training_step", "forward and backward", 6)
    hangs(torch.optim.Adam, "_init_group", "optimiser", 7)
    hangs(SeparatorTraining, "validation_step", "validation", 16)
    hangs(lightning.pytorch.loggers.CSVLogger, "log_metrics", "logging", 9)
    hangs(lightning.Trainer, "save_checkpoint", "checkpoint", 10)
    keys = ["watchdog=0.3", "trainer.max_steps=17", "trainer.val_check_interval=8", "data.examples_per_song=20"]
    done = train(*keys, "data.batch_size=1")
    assert done.code == 0, done.output
    found = set(re.findall(r"Phase: (.*?)\.", done.output))
    assert hung == {"waiting for data", "forward and backward", "optimiser", "validation", "logging", "checkpoint"}
    assert found >= hung  # on a busy machine something else may hang as well


def test_a_worker_that_hangs_is_waited_for_as_data(train, monkeypatch):
    """What is asked for ahead of time is used up first."""
    monkeypatch.setattr("stemwise.running.watchdog.TIMES", 4)
    read = store.Cache.read
    calls = [0]

    def slow(self: store.Cache, *arguments: Any) -> None:
        calls[0] += 1
        if calls[0] == 100:
            time.sleep(1.5)
        read(self, *arguments)

    monkeypatch.setattr(store.Cache, "read", slow)
    keys = ["watchdog=0.3", "trainer.max_steps=14", "data.batch_size=2", "data.examples_per_song=20"]
    done = train(*keys, "data.num_workers=1", "trainer.val_check_interval=100")
    assert done.code == 0, done.output
    assert done.output.count("Phase: waiting for data.") >= 1


def test_a_run_in_which_nothing_hangs_says_nothing(train):
    done = train("watchdog=5", "trainer.val_check_interval=2")
    assert done.code == 0
    assert "has not moved" not in done.output
