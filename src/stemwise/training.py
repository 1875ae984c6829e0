"""The LightningModule: a loss per stem (`losses`), and the SDR of whole validation songs.

What it logs: `train/loss` and `val/loss` (summed over stems), `train/<stem>` and `val/<stem>`; in dB `sdr/mean` and
`sdr/<stem>`, `sdr/improvement/…` over the unprocessed mixture, and as a line to compare with `sdr/oracle/…`, the
ceiling of the mask rule on the same songs. `running` adds the rest (docs/dashboards.md).
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
from stemwise.losses import L1, Loss
from stemwise.separator import Separator

NORMALIZATIONS = ("batch", "stored")
CROPS, SONGS = 0, 1  # the validation loaders of `StemData`
SPLEETERS = L1()
LOSS, SDR, MIXTURE, ORACLE = range(4)  # what a validation sums up


class SeparatorTraining(lightning.LightningModule):
    """Trains a separator with any loss, optimiser and schedule; the schedule counts steps.

    `normalization` says what batch normalisation normalises by: `batch`, the statistics of the batch, or `stored`,
    those that the model has, which then stay as they are. Spleeter trains with stored ones whatever its code seems
    to say (Keras layers that are not told to train, in a graph of TensorFlow 1): a model of its starts as the
    model that it was only with `stored`.

    `compile` is a mode of torch.compile (`compilation.MODES`) for the networks and their loss, or None. Only training
    steps go that way: their batches are all of one size. A validation has other sizes and few batches, and would be
    compiled for longer than it takes.

    `facts` are plain values that go with the model wherever it is saved, such as which columns its stems are.

    `update_skipped` is whether the update of the current step was not made (`faults.NonFinite`). `clip` is how many
    samples from the middle of the estimates of each validation song are handed on (`media.Media`).

    `numbers` are those of the last step by the names under which `meters.Meters` logs them, now and then. Lightning's
    own `log` would take a millisecond of every step.
    """

    update_skipped = False
    clip = 0

    def __init__(
        self,
        separator: Separator,
        optimizer: Callable[[Iterable[Tensor]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler],
        facts: Mapping[str, Any] | None = None,
        normalization: str = "batch",
        compile: str | None = None,
        loss: Loss = SPLEETERS,
    ) -> None:
        super().__init__()
        if normalization not in NORMALIZATIONS:
            raise UserError(f"normalization={normalization} is not one of {', '.join(NORMALIZATIONS)}.")
        self.normalization = normalization
        self.separator, self.loss = separator, loss
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.facts = dict(facts or {})
        self.training_losses = losses if compile is None else compilation.compiled(losses, compile)
        self.numbers: dict[str, Tensor] = {}
        self._bounds: dict[int, Tensor] = {}  # SDR (2, S) of the mixture and of the oracle, by a song's number
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
        found = self.training_losses(self.separator, self.loss, batch["mixture"], batch["stems"])
        loss = found.sum()
        self.numbers = {f"train/{stem}": one for stem, one in zip(self.separator.stems, found.detach(), strict=True)}
        self.numbers["train/loss"] = loss.detach()
        return loss

    def on_validation_epoch_start(self) -> None:
        stems = len(self.separator.stems)
        # Sums over this rank's crops and songs, and how many there were: of each stem's loss, and of its SDRs.
        self._sums = torch.zeros(4, 2, stems, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: dict[str, Any], number: int, dataloader_idx: int = CROPS) -> dict[str, Any] | None:
        """Of a song that counts on this rank, the SDR of each stem (S,) and the middle of the estimates (S, C, n)."""
        if dataloader_idx == CROPS:
            count = len(batch["stems"]) * batch.get("counted", True)
            self._sums[LOSS, 0] += count * losses(self.separator, self.loss, batch["mixture"], batch["stems"])
            self._sums[LOSS, 1] += count
            return None
        if not batch.get("counted", True):
            return None
        estimates = self.separator.separate(batch["mixture"])
        scores = metrics.usdr(batch["stems"], estimates)
        for row, found in zip((SDR, MIXTURE, ORACLE), (scores, *self._bounds_of(batch, number)), strict=True):
            self._sums[row, 0] += found.nan_to_num(nan=0.0)
            self._sums[row, 1] += ~found.isnan()
        # A copy, for a part of the estimates would keep all of them in memory.
        return {"sdr": scores, "clip": middle(estimates, self.clip).clone()}

    def _bounds_of(self, batch: dict[str, Any], number: int) -> Tensor:
        """What doing nothing and the oracle would have; computed once, for neither learns."""
        if number not in self._bounds:
            mixture, stems = batch["mixture"], batch["stems"]
            oracle = metrics.usdr(stems, self.separator.oracle(mixture, stems))
            self._bounds[number] = torch.stack([metrics.usdr(stems, mixture.expand_as(stems)), oracle])
        return self._bounds[number]

    def on_validation_epoch_end(self) -> None:
        # Each rank has its share of the songs, some one more; silent references count for none. Lightning's own mean
        # over ranks rounds the number of examples.
        shares: Any = self.all_gather(self._sums)
        total, count = shares.reshape(-1, *self._sums.shape).sum(dim=0).unbind(dim=1)
        loss, sdr, mixture, oracle = (total / count).float()
        for number, stem in enumerate(self.separator.stems):
            self.log(f"val/{stem}", loss[number])
        self.log("val/loss", loss.sum())
        for group, values in {"": sdr, "improvement/": sdr - mixture, "oracle/": oracle}.items():
            for number, stem in enumerate(self.separator.stems):
                self.log(f"sdr/{group}{stem}", values[number])
            self.log(f"sdr/{group}mean", values.nanmean())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes the checkpoint a model file as well: `model_file.load` needs no config."""
        checkpoint["separator"] = {**self.separator.settings, "facts": {"step": self.global_step, **self.facts}}


def losses(separator: Separator, loss: Loss, mixture: Tensor, stems: Tensor) -> Tensor:
    """Loss of each stem (S,) for a mixture (B, C, T, F) and its stems (B, S, C, T, F), magnitudes or spectra."""
    magnitudes = mixture.abs() if mixture.is_complex() else mixture
    return loss(separator, separator(magnitudes), mixture, stems)


def middle(waveform: Tensor, samples: int) -> Tensor:
    """The middle (…, n) of a waveform (…, N), n = min(samples, N)."""
    count = min(samples, waveform.shape[-1])
    return waveform.narrow(-1, (waveform.shape[-1] - count) // 2, count)
