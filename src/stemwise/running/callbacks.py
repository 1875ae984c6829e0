"""What happens beside the steps of a training: a run's files and averaged weights."""

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

import stemwise
from stemwise import model_file
from stemwise.index import Index
from stemwise.running import parts

log = logging.getLogger(__name__)

MODEL_FILE = "model.safetensors"
SCORE = "sdr/mean"


def scores(trainer: lightning.Trainer) -> dict[str, float]:
    """SDR in dB of each stem and the mean, as the last validation found them."""
    names = (*parts.module(trainer).separator.stems, "mean")
    return {name: float(trainer.callback_metrics[f"sdr/{name}"]) for name in names}


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
            data = parts.data(trainer)
            self.record(data.indexes())
            data.catalogue.write(self.folder / "index")

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.validated_at = trainer.global_step
        found = {name: round(score, 4) for name, score in scores(trainer).items()}
        score = found["mean"]
        if math.isnan(score):
            why = "all stems of all validation songs are silent, or the estimates are no numbers"
            log.warning("Step %d: no SDR: %s.", trainer.global_step, why)
        if score > self.best:
            self.best = score
        elif (self.folder / MODEL_FILE).exists():
            return
        self.write_model(trainer, found)

    def write_model(self, trainer: lightning.Trainer, found: dict[str, float]) -> None:
        """Writes the weights of this moment as the run's model."""
        module = parts.module(trainer)
        if trainer.is_global_zero:
            facts = {"step": trainer.global_step, "sdr": found, "stemwise": stemwise.__version__, **module.facts}
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
