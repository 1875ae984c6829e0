"""What a training shows on the terminal: a bar that redraws itself, or lines where nobody would see it move."""

import logging
import sys
import time
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn

from stemwise.data import StemData
from stemwise.running import callbacks
from stemwise.training import SeparatorTraining

log = logging.getLogger(__name__)

WIDE = 110  # columns of a terminal that has room for everything


class Rate:
    """Steps and examples per second since a training began in this process, and what is left of it."""

    def __init__(self, trainer: lightning.Trainer) -> None:
        self.first_step, self.start = trainer.global_step, time.monotonic()
        self.first_example = _data(trainer).shown

    def steps(self, trainer: lightning.Trainer) -> float:
        return (trainer.global_step - self.first_step) / max(time.monotonic() - self.start, 1e-9)

    def examples(self, trainer: lightning.Trainer) -> float:
        return (_data(trainer).shown - self.first_example) / max(time.monotonic() - self.start, 1e-9)

    def left(self, trainer: lightning.Trainer) -> str:
        """The time left, or nothing where there is no last step."""
        rate = self.steps(trainer)
        return duration((trainer.max_steps - trainer.global_step) / rate) if trainer.max_steps > 0 and rate else ""


def _data(trainer: lightning.Trainer) -> StemData:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, StemData)
    return data


def _module(trainer: lightning.Trainer) -> SeparatorTraining:
    assert isinstance(trainer.lightning_module, SeparatorTraining)
    return trainer.lightning_module


class Lines(Callback):
    """A line of progress every `seconds`, for logs and pipes, where a bar that redraws itself is noise."""

    def __init__(self, seconds: float = 15.0) -> None:
        self.seconds = seconds

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.rate, self.next_line = Rate(trainer), time.monotonic() + 2
        _say(trainer, "starts")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        if time.monotonic() < self.next_line:
            return
        self.next_line = time.monotonic() + self.seconds
        loss = float(_module(trainer).numbers["train/loss"])
        rates = f"{self.rate.steps(trainer):.2f} steps/s, {self.rate.examples(trainer):.1f} examples/s"
        left = self.rate.left(trainer)
        _say(trainer, f"loss {loss:.4f}, {rates}{left and f', {left} left'}")

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.sanity_checking:
            _say(trainer, "validation")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        _say(trainer, _validated(trainer))


def _validated(trainer: lightning.Trainer) -> str:
    scores = ", ".join(f"{name} {score:.2f}" for name, score in callbacks.scores(trainer).items())
    return f"validation loss {float(trainer.callback_metrics['val/loss']):.4f}, SDR in dB: {scores}"


def _say(trainer: lightning.Trainer, text: str) -> None:
    if trainer.is_global_zero:
        last = trainer.max_steps if trainer.max_steps > 0 else "∞"
        log.info("step %d of %s: %s", trainer.global_step, last, text)


def columns() -> tuple[ProgressColumn, ...]:
    """What is said stays whole; the bar has the room that is left."""
    return TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[said]}")


def can_draw() -> bool:
    """Whether standard error is a terminal that a bar can be drawn on, and drawn again."""
    console = Console(stderr=True)
    return console.is_terminal and not console.is_dumb_terminal


class Bar(Callback):
    """A bar with the step, the loss, the mean SDR of the last validation and of the best, examples per second and the
    time left; beneath it one for a validation, which leaves a line. Drawn at most twice a second: only then is the loss
    looked at.
    """

    SECONDS = 0.5

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._progress: Progress | None = None
        self._validation: TaskID | None = None
        self._streams: list[tuple[logging.StreamHandler[Any], Any]] = []
        self._said_scores = ""
        self._drawn = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self.rate = Rate(trainer)
        self._progress = Progress(*columns(), console=self.console, auto_refresh=False, expand=True)
        total = trainer.max_steps if trainer.max_steps > 0 else None
        self._training = self._progress.add_task("train", total=total, completed=trainer.global_step, said="")
        before = sys.stdout, sys.stderr
        self._progress.start()
        self._redirect_log(*before)

    def _redirect_log(self, *before: Any) -> None:
        """Lines of the log go above the bar: rich has put itself before standard output and error while it draws."""
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream in before:
                self._streams.append((handler, handler.stream))
                handler.setStream(sys.stdout)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        now = time.monotonic()
        if self._progress is not None and now - self._drawn >= self.SECONDS:
            self._drawn = now
            self._progress.update(self._training, completed=trainer.global_step, said=self._said(trainer))
            self._progress.refresh()

    def _said(self, trainer: lightning.Trainer) -> str:
        parts = [f"{trainer.global_step}" + (f"/{trainer.max_steps}" if trainer.max_steps > 0 else "")]
        if (loss := _module(trainer).numbers.get("train/loss")) is not None:
            parts += [f"loss {float(loss):.4f}"]
        parts += [self._said_scores, f"{self.rate.examples(trainer):.1f} examples/s"]
        left = self.rate.left(trainer)
        return ", ".join(part for part in (*parts, left and f"{left} left") if part)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._progress is not None and not trainer.sanity_checking:
            total = sum(trainer.num_val_batches)
            self._validation = self._progress.add_task("validate", total=total, said="")
            self._progress.refresh()

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        if self._progress is not None and self._validation is not None:
            self._progress.advance(self._validation)
            self._progress.refresh()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        parts: Any = trainer.callbacks  # type: ignore[attr-defined]
        folder = next(part for part in parts if isinstance(part, callbacks.RunFolder))
        best = f" (best {folder.best:.2f})" if self.console.width >= WIDE else ""
        self._said_scores = f"SDR {callbacks.scores(trainer)['mean']:.2f} dB{best}"
        if self._progress is not None and self._validation is not None:
            self._progress.remove_task(self._validation)
            self._validation = None
        _say(trainer, _validated(trainer))

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._progress is not None:
            self._progress.update(self._training, completed=trainer.global_step, said=self._said(trainer))
        self._stop()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self._stop()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        for handler, stream in self._streams:
            handler.setStream(stream)
        self._streams = []


def duration(seconds: float) -> str:
    if seconds > 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds > 90 else f"{seconds:.0f} s"
