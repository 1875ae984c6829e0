"""What happens beside the steps of a training: a run's files, averaged weights, lines of progress."""

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

import stemwise
from stemwise import model_file
from stemwise.data import StemData
from stemwise.index import Index
from stemwise.training import SeparatorTraining

log = logging.getLogger(__name__)

MODEL_FILE = "model.safetensors"
SCORE = "sdr/mean"


class RunFolder(Callback):
    """Keeps a run's folder current: the indexes that it uses, which go to `record` as well, and the best model.

    `model.safetensors` is the model with the best `sdr/mean` of a validation so far. It stands before the
    averaging of weights in the list of callbacks, so that it sees the averaged weights that were validated.
    """

    def __init__(self, folder: Path, record: Callable[[Mapping[str, Index]], None] = lambda indexes: None) -> None:
        self.folder, self.record = folder, record
        self.best = -math.inf
        self.validated_at = -1

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if trainer.is_global_zero and stage == "fit":
            data = trainer.datamodule  # type: ignore[attr-defined]
            assert isinstance(data, StemData)
            self.record(data.indexes())
            data.catalogue.write(self.folder / "index")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, SeparatorTraining)
        self.validated_at = trainer.global_step
        scores = {
            name.removeprefix("sdr/"): round(float(value), 4)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("sdr/")
        }
        score = scores["mean"]
        if math.isnan(score):
            why = "all stems of all validation songs are silent, or the estimates are no numbers"
            log.warning("Step %d: no SDR: %s.", trainer.global_step, why)
        if score > self.best:
            self.best = score
        elif (self.folder / MODEL_FILE).exists():
            return
        self.write_model(trainer, scores)

    def write_model(self, trainer: lightning.Trainer, scores: dict[str, float]) -> None:
        """Writes the weights of this moment as the run's model."""
        module = trainer.lightning_module
        assert isinstance(module, SeparatorTraining)
        if trainer.is_global_zero:
            facts = {"step": trainer.global_step, "sdr": scores, "stemwise": stemwise.__version__, **module.facts}
            model_file.save(module.separator, self.folder / MODEL_FILE, facts)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
        # The checkpoint may be older than the model: the last validation comes after it.
        if (self.folder / MODEL_FILE).exists():
            score = model_file.read(self.folder / MODEL_FILE)[1].get("sdr", {}).get("mean", -math.inf)
            self.best = max(self.best, score)


class EMA(WeightAveraging):
    """Exponential moving average of weights and statistics, which stays in place until the validation is over.

    Lightning's own swaps the weights back before the callbacks that write the validated model get their turn, puts the
    average in their place before those that write the last checkpoint, and averages tensor by tensor, which takes
    longer than all at once.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        pass

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)  # after the last checkpoint, which has both

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if pl_module.update_skipped:
            self._latest_update_step = trainer.global_step  # of weights that have not moved, there is nothing to take
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        pass

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)


class Lines(Callback):
    """A line of progress every `seconds`, for logs and pipes, where a bar that redraws itself is noise."""

    def __init__(self, seconds: float = 15.0) -> None:
        self.seconds = seconds

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.first_step, self.start = trainer.global_step, time.monotonic()
        self.next_line = self.start + 2
        self._say(trainer, "starts")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        now = time.monotonic()
        if now < self.next_line:
            return
        self.next_line = now + self.seconds
        rate = (trainer.global_step - self.first_step) / (now - self.start)
        loss = float(trainer.callback_metrics["train/loss"])
        left = (
            f", {_time((trainer.max_steps - trainer.global_step) / rate)} left"
            if trainer.max_steps > 0 and rate
            else ""
        )
        self._say(trainer, f"loss {loss:.4f}, {rate:.2f} steps/s{left}")

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._say(trainer, "validation")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        metrics = trainer.callback_metrics
        scores = ", ".join(
            f"{name.removeprefix('sdr/')} {float(value):.2f}"
            for name, value in metrics.items()
            if name.startswith("sdr/")
        )
        self._say(trainer, f"validation loss {float(metrics['val/loss']):.4f}, SDR in dB: {scores}")

    @staticmethod
    def _say(trainer: lightning.Trainer, text: str) -> None:
        if trainer.is_global_zero:
            last = trainer.max_steps if trainer.max_steps > 0 else "∞"
            log.info("step %d of %s: %s", trainer.global_step, last, text)


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.1f} min"
