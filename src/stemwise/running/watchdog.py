"""A thread that says where a step takes unreasonably long, for runs that nobody looks at.

What the training waits for is read off the stack of its thread, so that to know it costs a step nothing.
"""

import logging
import statistics
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from types import FrameType
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

log = logging.getLogger(__name__)

TIMES = 20  # what usually takes a second may take so many
FIRST = 10  # a step that nothing is known about may take so many times the limit: its start, a compilation
OTHER = "none that is known"
# (what, end of the file's path, function or None for any): the innermost call that is among them tells.
PHASES: tuple[tuple[str, str, str | None], ...] = (
    ("waiting for data", "lightning/pytorch/loops/fetchers.py", None),
    ("waiting for data", "torch/utils/data/dataloader.py", None),
    ("checkpoint", "lightning/pytorch/trainer/trainer.py", "save_checkpoint"),
    ("checkpoint", "stemwise/running/checkpoints.py", "save"),
    ("checkpoint", "stemwise/model_file.py", "save"),
    ("logging", "logger_connector/logger_connector.py", "log_metrics"),
    ("logging", "stemwise/running/boards.py", None),
    ("logging", "stemwise/running/media.py", None),
    ("logging", "lightning/pytorch/loops/training_epoch_loop.py", "_save_loggers_on_train_batch_end"),
    # It waits there for a GPU to be done with both.
    ("forward and backward", "stemwise/running/faults.py", "on_before_optimizer_step"),
    ("validation", "lightning/pytorch/loops/evaluation_loop.py", None),
    ("forward and backward", "lightning/pytorch/loops/optimization/automatic.py", "closure"),
    ("optimiser", "lightning/pytorch/loops/optimization/automatic.py", "_optimizer_step"),
)


class Watchdog(Callback):
    """Warns where a step takes more than `seconds` and more than `TIMES` the median of the last ones.

    It warns again each time that the step takes twice as long; the first time with the stack. A step of a kind that
    has not been done yet (the first one, the first validation) may take `FIRST` times `seconds`. In a validation, each
    batch or song counts as a step. Time in which the process was stopped does not count.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._durations: dict[str, deque[float]] = {}
        self._stage, self._beats, self._since = "train", 0, 0.0
        self._thread: threading.Thread | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._trainer, self._watched = trainer, threading.get_ident()
        self._steps, self._end = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._beat("train")
        self._thread.start()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        # The first one, with all that starts with it, is not what a step takes.
        self._beat("train", "train" if self._steps else None)
        self._steps += 1

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._beat("validation")

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._beat("validation", f"loader {dataloader_idx}")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        loaders = [times for name, times in self._durations.items() if name.startswith("loader")]
        if loaders:
            self._durations["validation"] = max(loaders, key=_median)  # whole songs take longer than crops
        self._beat("train")

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._thread is not None:
            self._end.set()
            self._thread.join(timeout=1)  # it may be about to say something that nobody takes
            self._thread = None

    def _beat(self, stage: str, done: str | None = None) -> None:
        """Something is done: what `done` names took from the last beat to this one. Next comes something of `stage`."""
        now = time.monotonic()
        if done:
            self._durations.setdefault(done, deque(maxlen=64)).append(now - self._since)
        self._stage, self._since = stage, now
        self._beats += 1

    def limit(self) -> float:
        """Seconds that what is under way may take."""
        known = self._durations.get(self._stage)
        return max(self.seconds, TIMES * _median(known)) if known else FIRST * self.seconds

    def _watch(self) -> None:
        tick = min(1.0, self.seconds / 10)
        beats, waited, warnings, last = -1, 0.0, 0, time.monotonic()
        while not self._end.wait(tick):
            now = time.monotonic()
            # A process that was stopped, or a machine that slept, does not tick: that is no waiting.
            waited, last = waited + min(now - last, 2 * tick), now
            if beats != self._beats:
                beats, waited, warnings = self._beats, 0.0, 0
            elif waited > self.limit() * 2**warnings:
                self._warn(waited, with_stack=warnings == 0)
                warnings += 1

    def _warn(self, waited: float, with_stack: bool) -> None:
        frame = sys._current_frames().get(self._watched)
        known = self._durations.get(self._stage)
        usual = f"{_median(known):.2g} s are usual" if known else "nothing like it was done before"
        stack = "\n" + "".join(traceback.format_stack(frame)).rstrip() if with_stack and frame else ""
        log.warning(
            "rank %d: step %d has not moved for %.3g s (%s). Phase: %s.%s",
            self._trainer.global_rank,
            self._trainer.global_step + 1,
            waited,
            usual,
            phase(frame),
            stack,
        )


def phase(frame: FrameType | None) -> str:
    """What a thread of training is at, by its innermost call; one of those in `PHASES`, or `OTHER`."""
    for call in _outwards(frame):
        for name, file, function in PHASES:
            if call.f_code.co_filename.endswith(file) and function in (None, call.f_code.co_name):
                return name
    return OTHER


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _median(durations: deque[float]) -> float:
    return statistics.median(durations.copy())  # another thread may add to it
