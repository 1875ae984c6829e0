"""The LightningModule: Spleeter's L1 loss on magnitudes, and the SDR of whole validation songs.

What it logs: `train/loss` and `val/loss` (summed over stems), `train/<stem>` and `val/<stem>`, and `sdr/mean`
and `sdr/<stem>` in dB. `faults` adds `train/grad_norm` and `train/nonfinite`.
Axes: B batch, S stem, C channel, T frame, F bin, N sample.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import lightning
import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from stemwise import compilation, metrics
from stemwise.errors import UserError
from stemwise.separator import Separator

NORMALIZATIONS = ("batch", "stored")
CROPS, SONGS = 0, 1  # the validation loaders of `StemData`


class SeparatorTraining(lightning.LightningModule):
    """Trains a separator with any optimiser and schedule; the schedule counts steps.

    `normalization` says what batch normalisation normalises by: `batch`, the statistics of the batch, or `stored`,
    those that the model has, which then stay as they are. Spleeter trains with stored ones whatever its code seems
    to say (Keras layers that are not told to train, in a graph of TensorFlow 1): a model of its starts as the
    model that it was only with `stored`.

    `compile` is a mode of torch.compile (`compilation.MODES`) for the networks and their loss, or None. Only training
    steps go that way: their batches are all of one size. A validation has other sizes and few batches, and would be
    compiled for longer than it takes.

    `facts` are plain values that go with the model wherever it is saved, such as which columns its stems are.

    `update_skipped` is whether the update of the current step was not made (`faults.NonFinite`).
    """

    update_skipped = False

    def __init__(
        self,
        separator: Separator,
        optimizer: Callable[[Iterable[Tensor]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler],
        facts: Mapping[str, Any] | None = None,
        normalization: str = "batch",
        compile: str | None = None,
    ) -> None:
        super().__init__()
        if normalization not in NORMALIZATIONS:
            raise UserError(f"normalization={normalization} is not one of {', '.join(NORMALIZATIONS)}.")
        self.normalization = normalization
        self.separator = separator
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.facts = dict(facts or {})
        self.training_losses = losses if compile is None else compilation.compiled(losses, compile)
        self._hold_statistics()  # Lightning need not call `train`: it leaves modules in the mode that they have

    def setup(self, stage: str) -> None:
        # Else all ranks would drop the same places of their examples. A checkpoint's generators come after this.
        if stage == "fit" and self.trainer.world_size > 1:
            torch.manual_seed(torch.initial_seed() + self.trainer.global_rank)

    def train(self, mode: bool = True) -> "SeparatorTraining":
        super().train(mode)
        self._hold_statistics()
        return self

    def _hold_statistics(self) -> None:
        if self.normalization == "stored":
            for module in self.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.eval()

    def configure_optimizers(self) -> Any:
        try:
            optimizer = self.make_optimizer(self.separator.parameters())
            scheduler = self.make_scheduler(optimizer)
        except (TypeError, ValueError) as error:
            raise UserError(f"optimizer or scheduler: {error}. Mend the value in the config.") from error
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: dict[str, Any], _: int) -> Tensor:
        found = self.training_losses(self.separator, batch["mixture"], batch["stems"])
        options: Any = {"batch_size": len(batch["stems"])}
        for stem, loss in zip(self.separator.stems, found, strict=True):
            self.log(f"train/{stem}", loss, **options)
        loss = found.sum()
        self.log("train/loss", loss, prog_bar=True, **options)
        return loss

    def on_validation_epoch_start(self) -> None:
        stems = len(self.separator.stems)
        # Sums over this rank's crops and songs, and how many there were: of each stem's loss, and of its SDR.
        self._sums = torch.zeros(2, 2, stems, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: dict[str, Any], _: int, dataloader_idx: int = CROPS) -> None:
        if dataloader_idx == CROPS:
            count = len(batch["stems"]) * batch.get("counted", True)
            self._sums[CROPS, 0] += count * losses(self.separator, batch["mixture"], batch["stems"])
            self._sums[CROPS, 1] += count
            return
        if batch.get("counted", True):
            scores = metrics.usdr(batch["stems"], self.separator.separate(batch["mixture"]))
            self._sums[SONGS, 0] += scores.nan_to_num(nan=0.0)
            self._sums[SONGS, 1] += ~scores.isnan()

    def on_validation_epoch_end(self) -> None:
        # Each rank has its share of the songs, some one more; silent references count for none. Lightning's own mean
        # over ranks rounds the number of examples.
        shares: Any = self.all_gather(self._sums)
        total, count = shares.reshape(-1, *self._sums.shape).sum(dim=0).unbind(dim=1)
        loss, sdr = (total / count).float()
        for stem, of_stem, score in zip(self.separator.stems, loss, sdr, strict=True):
            self.log(f"val/{stem}", of_stem)
            self.log(f"sdr/{stem}", score)
        self.log("val/loss", loss.sum())
        self.log("sdr/mean", sdr.nanmean(), prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes the checkpoint a model file as well: `model_file.load` needs no config."""
        checkpoint["separator"] = {**self.separator.settings, "facts": {"step": self.global_step, **self.facts}}


def losses(separator: Separator, mixture: Tensor, stems: Tensor) -> Tensor:
    """Loss of each stem (S,) for magnitudes of a mixture (B, C, T, F) and its stems (B, S, C, T, F)."""
    return l1(separator(mixture), stems)


def l1(estimates: Tensor, stems: Tensor) -> Tensor:
    """Loss of each stem (S,): the mean of |estimate - stem| over (B, C, T, F) (spleeter.model, `L1_mask`)."""
    # Over F first: on the CPU, float32 sums along strides of channels-last tensors are off by up to 1e-4.
    return (estimates - stems).abs().mean(dim=-1).mean(dim=(0, 2, 3))
