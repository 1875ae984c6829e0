"""How far a run is and how fast: numbers beside the loss, and what any curve can be drawn over.

`progress/songs` (how many examples were shown, each a song's crop) and `progress/hours` (of training, validations
included) stand beside every number that is logged, with Lightning's `epoch` and step. They go on where a run goes on.
"""

import logging
import time
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from stemwise.data import StemData
from stemwise.training import SeparatorTraining

log = logging.getLogger(__name__)

GIB = 2**30
CLOCKED = ("speed/", "progress/hours")  # how the names of numbers begin that no two runs have in common


class Meters(Callback):
    """Logs the numbers of a step, `train/lr`, `speed/…` and `progress/…`, every `trainer.log_every_n_steps` steps, and
    `progress/…` again with each validation.

    `speed/examples_per_second` counts those of all ranks, without the time that validations take. `speed/waiting` is
    the share of that time in which rank 0 waited for data. On a GPU, `speed/gpu_memory` is the most that this process
    had of rank 0's so far in GiB, and `speed/gpu_utilisation` in percent what NVIDIA's driver says at that moment.
    """

    def __init__(self) -> None:
        self._before = 0.0  # seconds of training in processes before this one
        self._start: float | None = None
        self._mark = 0.0
        self._shown, self._waited = 0, 0.0
        self._validating = 0.0  # seconds since the mark

    # When

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._start = time.monotonic()
        self._begin(trainer)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        if trainer._logger_connector.should_update_logs and not trainer.fit_loop._should_accumulate():
            assert isinstance(pl_module, SeparatorTraining)
            rate = float(trainer.optimizers[0].param_groups[0]["lr"])
            numbers = {name: float(value) for name, value in pl_module.numbers.items()}
            row: Any = {**numbers, "train/lr": rate, **self._speed(trainer), **self._progress(trainer)}
            trainer._logger_connector.log_metrics(row)
            self._begin(trainer)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._began_validation = time.monotonic()

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.sanity_checking:
            for name, value in self._progress(trainer).items():
                pl_module.log(name, value)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._validating += time.monotonic() - self._began_validation

    # What

    def _begin(self, trainer: lightning.Trainer) -> None:
        """From now on it counts what is logged next."""
        self._mark, self._validating = time.monotonic(), 0.0
        self._shown, self._waited = _shown(trainer), _waited(trainer)

    def _speed(self, trainer: lightning.Trainer) -> dict[str, float]:
        took = max(time.monotonic() - self._mark - self._validating, 1e-9)
        return {
            "speed/examples_per_second": (_shown(trainer) - self._shown) / took,
            "speed/waiting": min((_waited(trainer) - self._waited) / took, 1.0),
            **_gpu(trainer.strategy.root_device),
        }

    def _progress(self, trainer: lightning.Trainer) -> dict[str, float]:
        return {"progress/songs": float(_shown(trainer)), "progress/hours": self.seconds / 3600}

    @property
    def seconds(self) -> float:
        """Of training so far."""
        return self._before + (0.0 if self._start is None else time.monotonic() - self._start)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = state_dict["seconds"]


def _shown(trainer: lightning.Trainer) -> int:
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, StemData)
    return data.shown


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
