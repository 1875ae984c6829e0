"""A run's checkpoints: written whole or not at all, read only if sound, and the last few of them kept.

`checkpoints/last.ckpt` is the newest, `last-1.ckpt` the one before it, and so on. Lightning's own format, with plain
values only, so that a checkpoint from a stranger executes nothing.
"""

import errno
import logging
import os
import pickle
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from stemwise.errors import UserError
from stemwise.running.interrupts import Interrupts, Stopped

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
LAST = f"{FOLDER}/last.ckpt"
NEW = "new.ckpt"  # complete, and about to become the last one


def fault(path: Path) -> str | None:
    """What is wrong with a checkpoint's bytes, or None: it is a zip archive, with a checksum of each part."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        with suppress(pickle.UnpicklingError):  # whole, and not plain values: who loads it refuses it
            torch.load(path, map_location="meta", weights_only=True)  # what torch asks of an archive besides
    except (OSError, EOFError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        return str(error) or type(error).__name__
    return f"{damaged} in it is not what was written" if damaged else None


def newest(run: Path) -> Path | None:
    """The newest sound checkpoint of a run, None if it has none yet; what is damaged is named in a warning.

    Raises `UserError` if all are damaged.
    """
    folder = run / FOLDER
    found = sorted(folder.glob("last*.ckpt"), key=_age)
    found = [path for path in (folder / NEW, *found) if path.is_file()]
    for path in found:
        if (what := fault(path)) is None:
            return path
        log.warning("%s: a damaged checkpoint (%s). It is left out.", path, what)
    if found:
        raise UserError(f"{folder}: all {len(found)} checkpoints are damaged. Begin anew, in another hydra.run.dir.")
    return None


def _age(path: Path) -> int:
    """0 for last.ckpt, 1 for last-1.ckpt…"""
    number = path.stem.removeprefix("last").removeprefix("-")
    return int(number) if number.isdigit() else 0


class CheckpointFiles(TorchCheckpointIO):
    """Writes under another name, reads that back, and only then replaces what was there.

    A disk that takes no more costs this checkpoint and not the run: `problem` says what was wrong with the last one.
    """

    def __init__(self) -> None:
        self.problem: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(checkpoint, part)
            os.replace(part, path)
            self.problem = None
        except (OSError, RuntimeError) as error:
            self.problem = _reason(error)
            log.error("%s: not written (%s). What was there stays. The run goes on.", path, self.problem)
        finally:
            part.unlink(missing_ok=True)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        if what := fault(Path(path)):
            raise UserError(f"{path}: a damaged checkpoint ({what}). Give another, or ckpt_path=last.")
        place: Any = map_location or "cpu"
        return super().load_checkpoint(path, place, weights_only=True)


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint to the disk, not only to the kernel, and reads it back."""
    with open(path, "wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    if what := fault(path):
        raise OSError(errno.EIO, f"it reads back damaged: {what}")


def _reason(error: BaseException) -> str:
    """torch reports a full disk by an error of its own, with the system's behind it."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        raise error
    return cause.strerror or str(cause)


class Checkpoints(Checkpoint):
    """Saves before each validation, every `every` steps if given, at the end, and when a signal came; keeps `keep`.

    A validation that was due and did not happen is made up for when the run goes on. Each rank has torch's generators
    in the checkpoint, from which dropout draws. Lightning calls it after all callbacks of other kinds, so that it saves
    what they did at this step.
    """

    def __init__(
        self, run: Path, files: CheckpointFiles, interrupts: Interrupts, every: int | None = None, keep: int = 2
    ) -> None:
        self.run, self.files, self.interrupts = run, files, interrupts
        self.every, self.keep = every, keep
        self.validation_due = False
        self._making_up = False
        self._between_steps = True
        self._saved_at = -1
        self._tried_at = -1  # as on every rank: all of them must save at the same steps

    # When

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        loop, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
        if self.validation_due:
            self._make_up(trainer, loop.val_loop)
        if loop.restarting and fetcher is not None:
            # Where a validation lies behind, Lightning begins with a turn without a batch, and logs it as a step.
            loop._batches_that_stepped = trainer.global_step - loop._should_check_val_fx(fetcher)

    def _make_up(self, trainer: lightning.Trainer, validation: Any) -> None:
        # Lightning takes a checkpoint of this moment to be one of after the validation.
        self._making_up = trainer.validating = True
        validation.restarting = False  # from its first song, wherever that of the checkpoint had come
        validation.run()
        trainer.training = True
        self._making_up = self.validation_due = False

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        self._between_steps = not trainer.fit_loop._should_accumulate()

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        # Not at the end of the batch before: its values are logged after that.
        if not self._between_steps:
            return  # half a step cannot be saved
        stop, step = self.interrupts.agreed(trainer), trainer.global_step
        if stop or (self.every and step % self.every == 0 and step not in (0, self._tried_at)):
            self.save(trainer, validation_due=False)
        if stop:
            self.interrupts.act(stop, trainer.is_global_zero)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # Before averaged weights take the place of the current ones: a stop during the validation loses nothing.
        if trainer.state.fn == "fit" and not self._making_up and not trainer.sanity_checking:
            self.save(trainer, validation_due=True)
            if stop := self.interrupts.agreed(trainer):
                self.interrupts.act(stop, trainer.is_global_zero)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.save(trainer, validation_due=False)
        if self.files.problem:
            raise UserError(
                f"{self.run / LAST}: the last checkpoint could not be written ({self.files.problem}). "
                f"Make room, and go on: hydra.run.dir={self.run} resume=auto."
            )

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, KeyboardInterrupt | Stopped) and (self.run / LAST).exists():
            step = f"Stopped at step {trainer.global_step}." if isinstance(exception, Stopped) else "Stopped at once."
            log.info("%s Go on: hydra.run.dir=%s resume=auto", step, self.run)

    # What

    def save(self, trainer: lightning.Trainer, *, validation_due: bool) -> None:
        """Writes the newest checkpoint; those of earlier steps move on by one, and the oldest goes."""
        for logger in trainer.loggers:
            logger.save()  # a run that is killed and goes on logs what comes after this
        self._tried_at = trainer.global_step
        before, self.validation_due = self.validation_due, validation_due
        trainer.save_checkpoint(self.run / FOLDER / NEW)
        self.validation_due = before
        if trainer.is_global_zero and not self.files.problem:
            self._rotate(self.run / FOLDER, self.keep if trainer.global_step != self._saved_at else 1)
            self._saved_at = trainer.global_step

    @staticmethod
    def _rotate(folder: Path, keep: int) -> None:
        names = [folder / NEW, folder / "last.ckpt", *(folder / f"last-{age}.ckpt" for age in range(1, keep))]
        for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
            if newer.exists():
                os.replace(newer, older)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # A batch that is ready and not begun is not part of it. Lightning would count it, and the step before it twice.
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts["ready"] = counts["completed"]

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # With other batches or ranks it is another place in an epoch. And from behind the last batch of one, where a
        # validation may be, Lightning would go on in an epoch without batches, for ever.
        epoch, behind = trainer.datamodule.position  # type: ignore[attr-defined]
        loop = checkpoint["loops"]["fit_loop"]
        batches = loop["epoch_loop.batch_progress"]
        batches["current"], batches["is_last_batch"] = dict.fromkeys(batches["current"], behind), False
        begun = epoch + (behind > 0)
        for counts in loop["epoch_progress"].values():
            counts |= {"ready": begun, "started": begun, "processed": epoch, "completed": epoch}

    def state_dict(self) -> dict[str, Any]:
        return {"validation_due": self.validation_due, "random": _of_all_ranks(_random())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validation_due = state_dict["validation_due"]
        rank, states = _rank(), state_dict["random"]
        if rank < len(states):
            _set_random(states[rank])


def _random() -> dict[str, Any]:
    """Where this rank's generators stand."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _set_random(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"])


def _of_all_ranks(value: Any) -> list[Any]:
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def _rank() -> int:
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if there else 0
