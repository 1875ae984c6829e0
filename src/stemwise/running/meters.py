"""How far a run is and how fast: numbers beside the loss, and what any curve can be drawn over.

`progress/songs` (how many examples were shown, each a song's crop) and `progress/hours` (of training, validations not
included) stand beside everything that is logged, with Lightning's `epoch` and step. They go on where a run goes on.
"""

import logging
import time
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from stemwise.running import parts

log = logging.getLogger(__name__)

GIB = 2**30
CLOCKED = ("speed/", "progress/hours")  # how the names of numbers begin that no two runs have in common


class Meters(Callback):
    """Logs the numbers of a step, `train/lr`, `speed/…` and `progress/…`, every `trainer.log_every_n_steps` steps, and
    `progress/…` again with each validation.

    Its clock stands still while a validation is under way, and after the last step: `progress/hours` is what came
    before a step, and no validation behind a checkpoint sets it ahead of the run that goes on from there.
    `speed/examples_per_second` counts those of all ranks. `speed/waiting` is the share of the time in which rank 0
    waited for data. On a GPU, `speed/gpu_memory` is the most that this process had of rank 0's so far in GiB, and
    `speed/gpu_utilisation` in percent what NVIDIA's driver says at that moment.
    """

    def __init__(self) -> None:
        self._before = 0.0  # seconds on the clock, when it was stopped last
        self._start: float | None = None  # and since when it goes
        self._mark = 0.0
        self._shown, self._waited = 0, 0.0
        self._rate: float | None = None

    # When

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._start = time.monotonic()
        self._begin(trainer)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        if trainer._logger_connector.should_update_logs and not trainer.fit_loop._should_accumulate():
            rate = float(trainer.optimizers[0].param_groups[0]["lr"])
            numbers = {name: float(value) for name, value in parts.module(trainer).numbers.items()}
            row: Any = {**numbers, "train/lr": rate, **self._speed(trainer), **self._progress(trainer)}
            trainer._logger_connector.log_metrics(row)
            self._begin(trainer)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._stop()

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.sanity_checking:
            for name, value in self._progress(trainer).items():
                pl_module.log(name, value)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._start = time.monotonic()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._stop()

    # What

    def _stop(self) -> None:
        self._before, self._start = self.seconds, None

    def _begin(self, trainer: lightning.Trainer) -> None:
        """From now on it counts what is logged next."""
        self._mark, self._shown, self._waited = self.seconds, parts.data(trainer).shown, _waited(trainer)

    def _speed(self, trainer: lightning.Trainer) -> dict[str, float]:
        self._rate = self._examples(trainer)
        waited = _waited(trainer) - self._waited
        return {
            "speed/examples_per_second": self._rate,
            "speed/waiting": min(waited / self._took(), 1.0),
            **_gpu(trainer.strategy.root_device),
        }

    def _examples(self, trainer: lightning.Trainer) -> float:
        return (parts.data(trainer).shown - self._shown) / self._took()

    def _took(self) -> float:
        return max(self.seconds - self._mark, 1e-9)

    def examples_per_second(self, trainer: lightning.Trainer) -> float:
        """As it was logged last; before that, since the training began."""
        return self._examples(trainer) if self._rate is None else self._rate

    def axes(self, trainer: lightning.Trainer) -> dict[str, float]:
        """What stands beside every number and can be drawn over, besides the step."""
        return {"epoch": trainer.current_epoch, **self._progress(trainer)}

    def _progress(self, trainer: lightning.Trainer) -> dict[str, float]:
        return {"progress/songs": float(parts.data(trainer).shown), "progress/hours": self.seconds / 3600}

    @property
    def seconds(self) -> float:
        """Of training so far."""
        return self._before + (0.0 if self._start is None else time.monotonic() - self._start)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["seconds"]


def _waited(trainer: lightning.Trainer) -> float:
    return float(getattr(trainer.train_dataloader, "waited", 0.0))


def _gpu(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    found = {"speed/gpu_memory": torch.cuda.max_memory_allocated(device) / GIB}
    try:
        found["speed/gpu_utilisation"] = float(torch.cuda.utilization(device))
    except Exception as error:  # no pynvml, or one of its own errors: a part of a device (MIG) does not tell
        log.debug("speed/gpu_utilisation: %s", error)
    return found
