"""What a training shows on the terminal: a bar that redraws itself, or lines where nobody would see it move."""

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, Timer
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn

from stemwise.running import callbacks, parts
from stemwise.running.meters import Meters

log = logging.getLogger(__name__)

VALIDATE = "validate"
BAR = 3  # columns that are kept for the bar and what is between it and the words
DROPPED = ("best", "rate", "sdr", "loss", "left")  # in a terminal that has no room for all, in this order


class Pace:
    """Steps per second since a training began in this process, validations included, and how long it still takes."""

    def __init__(self, trainer: lightning.Trainer) -> None:
        self.first_step, self.start = trainer.global_step, time.monotonic()

    def left(self, trainer: lightning.Trainer) -> str:
        """The time left, by the last step or `max_time`; nothing where there is neither, or not known yet."""
        last, done = parts.last_step(trainer), trainer.global_step - self.first_step
        found = [timer.time_remaining() for timer in trainer.callbacks if isinstance(timer, Timer)]  # type: ignore[attr-defined]
        if last is not None and done:
            found.append((last - trainer.global_step) * (time.monotonic() - self.start) / done)
        times = [seconds for seconds in found if seconds is not None]
        return duration(max(min(times), 0.0)) if times else ""


class Lines(Callback):
    """A line of progress every `seconds`, for logs and pipes, where a bar that redraws itself is noise."""

    def __init__(self, seconds: float = 15.0) -> None:
        self.seconds = seconds

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.pace, self.next_line = Pace(trainer), time.monotonic() + 2
        _say(trainer, "starts")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        if time.monotonic() < self.next_line:
            return
        self.next_line = time.monotonic() + self.seconds
        loss, left = float(parts.module(trainer).numbers["train/loss"]), self.pace.left(trainer)
        _say(trainer, f"loss {loss:.4f}, {_rate(trainer)}{left and f', {left} left'}")

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
        log.info("step %d of %s: %s", trainer.global_step, parts.last_step(trainer) or "∞", text)


def _rate(trainer: lightning.Trainer) -> str:
    return f"{parts.callback(trainer, Meters).examples_per_second(trainer):.1f} examples/s"


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
        self._said_scores: dict[str, str] = {}
        self._drawn = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        self.pace = Pace(trainer)
        self._progress = Progress(
            *columns(),
            console=self.console,
            auto_refresh=False,
            expand=True,
            redirect_stdout=sys.stdout.isatty(),  # what goes into a file still does
            redirect_stderr=sys.stderr.isatty(),
        )
        last, done = parts.last_step(trainer), trainer.global_step
        self._training = self._progress.add_task("train", total=last, completed=done, said="")
        before = sys.stdout, sys.stderr
        self._progress.start()
        self._redirect_log(*before)

    def _redirect_log(self, *before: Any) -> None:
        """Lines of the log go above the bar, where rich has put itself before the stream that they go to."""
        for handler in logging.getLogger().handlers:
            for stream, now in zip(before, (sys.stdout, sys.stderr), strict=True):
                if isinstance(handler, logging.StreamHandler) and handler.stream is stream is not now:
                    self._streams.append((handler, stream))
                    handler.setStream(now)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        now = time.monotonic()
        if now - self._drawn >= self.SECONDS:
            self._drawn = now
            self._draw(trainer)

    def _draw(self, trainer: lightning.Trainer) -> None:
        if self._progress is not None:
            self._progress.update(self._training, completed=trainer.global_step, said=self._said(trainer))
            self._progress.refresh()

    def _said(self, trainer: lightning.Trainer) -> str:
        last, loss = parts.last_step(trainer), parts.module(trainer).numbers.get("train/loss")
        left = self.pace.left(trainer)
        said = {
            "step": f"{trainer.global_step}" + (f"/{last}" if last else ""),
            "loss": "" if loss is None else f"loss {float(loss):.4f}",
            **self._said_scores,
            "rate": _rate(trainer),
            "left": left and f"{left} left",
        }
        beside = "train" if self._validation is None else VALIDATE
        return fitted(said, self.console.width - len(beside) - BAR)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self._progress is not None and not trainer.sanity_checking:
            total = sum(trainer.num_val_batches)
            self._validation = self._progress.add_task(VALIDATE, total=total, said="")
            self._draw(trainer)

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        if self._progress is not None and self._validation is not None:
            self._progress.advance(self._validation)
            self._progress.refresh()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        best = parts.callback(trainer, callbacks.RunFolder).best
        self._said_scores = {"sdr": f"SDR {callbacks.scores(trainer)['mean']:.2f} dB", "best": f"(best {best:.2f})"}
        if self._progress is not None and self._validation is not None:
            self._progress.remove_task(self._validation)
            self._validation = None
        _say(trainer, _validated(trainer))

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._draw(trainer)
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


def fitted(said: Mapping[str, str], width: int) -> str:
    """What is said in one line, without as many of `DROPPED` as there is no room for."""
    for count in range(len(DROPPED) + 1):
        kept = [text for name, text in said.items() if text and name not in DROPPED[:count]]
        line = ", ".join(kept).replace(", (", " (")
        if len(line) <= width:
            break
    return line


def duration(seconds: float) -> str:
    if seconds > 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds > 90 else f"{seconds:.0f} s"
