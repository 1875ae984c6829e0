"""Keeps a number that is not finite out of the weights: the update that it would go into is not made.

What is checked is the loss of every batch and the norm of its gradients, before the optimiser sees them. A step that
is refused leaves everything as it was before: weights, moments, averaged weights and the statistics of batch
normalisation, which the forward pass has moved by then.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

import stemwise
from stemwise.errors import UserError
from stemwise.examples import Origin
from stemwise.running import parts, replay
from stemwise.spectrogram import Spectrogram
from stemwise.training import SeparatorTraining

log = logging.getLogger(__name__)

FOLDER = "faults"
ACTIONS = ("stop", "skip")


@dataclass(frozen=True)
class Fault:
    """A batch whose loss or gradients were not finite."""

    loss: float
    norm: float
    seen: replay.Seen


class NonFinite(Callback):
    """Stops before an update with a loss or gradient that is not finite, or skips up to `max_nonfinite` of them.

    To stop is a `UserError` that names the songs, and a folder `faults/step_N` in the run's, which `stemwise.replay`
    replays; it holds `config` as well. A step that is skipped counts as a step of the schedule, and is counted in
    `train/nonfinite`. With `trainer.accumulate_grad_batches`, the whole update is refused if one of its batches is bad.

    In float16 only the loss counts: its scaler looks for gradients that are not finite itself, skips their updates, and
    they are how it finds its scale. Several ranks refuse the same updates.

    It logs `train/grad_norm`, every `trainer.log_every_n_steps` steps: the norm of the gradients of an update before
    they are clipped, of all batches that it accumulates and all ranks, without float16's scale. A strategy that gives
    each rank a part of the gradients logs the norm of rank 0's part.

    It waits for the device once in an update.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], on_nonfinite: str = "stop", max_nonfinite: int = 10
    ) -> None:
        if on_nonfinite not in ACTIONS:
            raise UserError(f"on_nonfinite={on_nonfinite} is not one of {', '.join(ACTIONS)}.")
        if isinstance(max_nonfinite, bool) or not isinstance(max_nonfinite, int) or max_nonfinite < 0:
            raise UserError(f"max_nonfinite={max_nonfinite} is not a whole number from 0 on.")
        self.folder, self.config = folder, dict(config)
        self.allowed = max_nonfinite if on_nonfinite == "skip" else 0
        self.skipped = 0
        self._fault: Fault | None = None
        self._origins: list[Origin] = []  # of an update, which may take several batches
        self._seen: replay.Seen | None = None
        self._numbers: Tensor | None = None  # loss and norm of a batch, not looked at yet
        self._before: list[tuple[Tensor, replay.Seen]] = []  # the same of the update's earlier ones

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._statistics = Statistics(pl_module)
        self._begin(pl_module)

    def _begin(self, module: Any) -> None:
        self._statistics.keep()
        self._fault, self._origins, self._before = None, [], []
        module.update_skipped = False

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._begin(pl_module)
        self._origins += batch["origin"]
        self._seen = replay.seen(batch, pl_module.device)

    def on_before_backward(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, loss: Tensor
    ) -> None:
        self._loss = loss.detach()

    def on_after_backward(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        norm = torch.zeros_like(self._loss) if scaled else gradient_norm(pl_module).to(self._loss)
        self._numbers = torch.stack([self._loss, norm])

    def on_before_optimizer_step(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, optimizer: Optimizer
    ) -> None:
        assert self._numbers is not None
        due, numbers = trainer._logger_connector.should_update_logs, parts.module(trainer).numbers
        if due:
            unscaled = getattr(trainer.precision_plugin, "scaler", None) is not None  # by now
            numbers["train/grad_norm"] = gradient_norm(pl_module) if unscaled else self._numbers[1]
        refused, anyones_loss = self._look_with_all_ranks(trainer, self._numbers)
        if refused:
            self._refuse(trainer, pl_module, optimizer, not anyones_loss)
        if due and self.allowed:
            numbers["train/nonfinite"] = torch.tensor(float(self.skipped))

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._numbers is not None and self._seen is not None:  # the first batches of an update that takes several
            self._keep(self._numbers, self._seen)
        self._seen = self._numbers = None  # the batch's memory is free for the next

    def _keep(self, numbers: Tensor, seen: replay.Seen) -> None:
        """For the update's look at all of its batches: of the batches themselves the first that is bad, or any."""
        kept = {key: seen.batch[key] for key in ("mixture", "stems")}
        if not self._before:
            kept = {key: value.clone() for key, value in kept.items()}
        else:
            earlier = torch.stack([one for one, _ in self._before])
            first = earlier.isfinite().all() & ~numbers.isfinite().all()
            for key, value in kept.items():
                there = self._before[0][1].batch[key]
                kept[key] = torch.where(first, value, there, out=there)
        self._before.append((numbers, replace(seen, batch={**kept, "origin": seen.batch["origin"]})))

    def _look_with_all_ranks(self, trainer: lightning.Trainer, numbers: Tensor) -> tuple[bool, bool]:
        """Whether any rank has a fault in this update, and whether any has one whose loss is not finite."""
        assert self._seen is not None
        found = torch.stack([*(one for one, _ in self._before), numbers])
        bad = ~found.isfinite()
        first = bad.any(dim=1).cumsum(dim=0) == 1  # and what comes between the first that is bad and the second
        flags = torch.stack([bad.any(), (bad[:, 0] & first).any()]).to(numbers)
        if trainer.world_size > 1:
            torch.distributed.all_reduce(flags)
        *values, faults, losses = torch.cat([found.flatten(), flags]).tolist()
        seen = [*(one for _, one in self._before), self._seen]
        for loss, norm, batch in zip(values[::2], values[1::2], seen, strict=True):
            if self._fault is None and not (math.isfinite(loss) and math.isfinite(norm)):
                self._fault = Fault(loss, norm, batch)
        self._numbers = None
        return faults > 0, losses > 0

    def _refuse(self, trainer: lightning.Trainer, module: Any, optimizer: Optimizer, by_gradients: bool) -> None:
        """Puts everything back, and raises unless this update may be skipped."""
        self._statistics.restore()
        # The sum over ranks spreads one rank's gradients to all. Where a loss is not finite, its rank is the one.
        own = self._fault if self._fault and (by_gradients or not math.isfinite(self._fault.loss)) else None
        told = self._told(trainer, module, own)
        if self.skipped >= self.allowed:
            raise UserError(self._stop(trainer, module, own, told))
        self.skipped += 1
        module.update_skipped = True
        # An optimiser passes over weights without a gradient: no update, no decay, no moment, no count.
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = None
        if told:
            log.warning(
                "%s\nSkipped, %d of %d that max_nonfinite allows. Nothing was updated.",
                told,
                self.skipped,
                self.allowed,
            )

    def _told(self, trainer: lightning.Trainer, module: SeparatorTraining, fault: Fault | None) -> str:
        """What went wrong on which rank in which songs; all of it on rank 0, nothing on the others."""
        text = "" if fault is None else self._description(trainer, module, fault)
        if trainer.world_size == 1:
            return text
        texts: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(texts, text)
        named = [f"rank {rank}, {text}" for rank, text in enumerate(texts) if text]
        return "\n".join(named) if trainer.is_global_zero else ""

    def _description(self, trainer: lightning.Trainer, module: SeparatorTraining, fault: Fault) -> str:
        what = f"the loss is {fault.loss}"
        if math.isfinite(fault.loss):
            what = (
                f"the loss is {fault.loss * trainer.accumulate_grad_batches:.4g}, but its gradients' norm {fault.norm}"
            )
        lines = [f"  {crop}" for crop in described(self._origins, module.separator.spectrogram)]
        batch = fault.seen.batch
        whole = bool(batch["mixture"].isfinite().all() and batch["stems"].isfinite().all())
        lines.append(f"{'All' if whole else 'Not all'} numbers of the batch itself are finite.")
        return "\n".join([f"step {trainer.global_step + 1}: {what}. The batch:", *lines])

    def _stop(self, trainer: lightning.Trainer, module: SeparatorTraining, fault: Fault | None, told: str) -> str:
        bundle = self.folder / FOLDER / f"step_{trainer.global_step + 1}"
        if trainer.world_size > 1:
            bundle = bundle.with_name(f"{bundle.name}_rank_{trainer.global_rank}")
        kept = f"python -m stemwise.running.replay {bundle if fault else bundle.with_name(f'{bundle.name[:-1]}R')}"
        if fault is not None:
            try:
                replay.write(bundle, module.separator, fault.seen, self._facts(trainer, module, fault))
            except UserError as error:
                kept = f"none, {error}"
        if not trainer.is_global_zero:
            return f"rank {trainer.global_rank}: stopped with all ranks; rank 0 says why."
        skipped = f" max_nonfinite={self.allowed} were skipped before." if self.allowed else ""
        return (
            f"{told}\nStopped before the update.{skipped} Lower optimizer.lr, or set trainer.gradient_clip_val=1; mend "
            f"or leave out the songs if it is theirs; or set on_nonfinite=skip. Replay: {kept}"
        )

    def _facts(self, trainer: lightning.Trainer, module: SeparatorTraining, fault: Fault) -> dict[str, Any]:
        return {
            "format": 1,
            "step": trainer.global_step + 1,
            "epoch": self._origins[0].epoch,
            "rank": trainer.global_rank,
            "ranks": trainer.world_size,
            "seed": self.config.get("seed"),
            "device": str(module.device),
            "precision": str(trainer.precision),
            "normalization": module.normalization,
            "loss": str(fault.loss),
            "gradient_norm": str(fault.norm),
            "gradients": replay.not_finite(module.separator),
            "crops": described(fault.seen.batch["origin"], module.separator.spectrogram),
            "origins": [origin._asdict() for origin in fault.seen.batch["origin"]],
            "update": [origin._asdict() for origin in self._origins],
            "versions": {
                "stemwise": stemwise.__version__,
                "torch": torch.__version__,
                "lightning": lightning.__version__,
            },
            "config": self.config,
        }

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]


class Statistics:
    """A copy of the statistics of a network's batch normalisations, to go back to."""

    def __init__(self, module: torch.nn.Module) -> None:
        norms = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d | torch.nn.SyncBatchNorm)]
        buffers = [buffer for norm in norms for buffer in norm.buffers()]
        # One call for all of a kind: a hundred copies one by one cost a GPU's step a millisecond.
        kinds = {buffer.dtype for buffer in buffers}
        self._live = [[buffer for buffer in buffers if buffer.dtype == kind] for kind in kinds]
        self._kept = [[torch.empty_like(buffer) for buffer in kind] for kind in self._live]

    def keep(self) -> None:
        """Copies them as they are now."""
        for kept, live in zip(self._kept, self._live, strict=True):
            torch._foreach_copy_(kept, live)

    def restore(self) -> None:
        """Puts the copy back in place."""
        for kept, live in zip(self._kept, self._live, strict=True):
            torch._foreach_copy_(live, kept)


def gradient_norm(module: torch.nn.Module) -> Tensor:
    """The Euclidean norm of all gradients, 0 if there are none. It is infinite if their squares overflow float32."""
    gradients = [weight.grad for weight in module.parameters() if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of shards


def described(origins: Sequence[Origin], settings: Spectrogram) -> list[str]:
    """A line for each example: its songs, where in them it begins, and its place in the order."""

    def start(frame: int) -> str:
        return f"from {frame * settings.hop / settings.sample_rate:.2f} s (frame {frame})"

    return [
        " + ".join(f"{song} {start(frame)}" for song, frame in zip(origin.songs, origin.starts, strict=True))
        + f", position {origin.position} of epoch {origin.epoch}"
        for origin in origins
    ]
