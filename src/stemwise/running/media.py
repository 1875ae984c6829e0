"""What a validation sounds and looks like, for loggers that can play and show it: the middle of its songs."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from stemwise import workers
from stemwise.running import boards, clips, parts
from stemwise.running.clips import Clip
from stemwise.running.meters import Meters
from stemwise.training import SONGS

log = logging.getLogger(__name__)


class Media(Callback):
    """Shows the first validation of a run, every `every`-th after it, and that of the last step; none if it is None.

    Of all songs there are the scores, and of the first `clips.HEARD` the mixture and the estimates as sound, `seconds`
    from their middle; of `songs` of them, spread over the index, the truths as well, and pictures of estimate, truth
    and mask. The estimates are cut from those of the whole song, which were scored; the mask is that for the cut alone.

    Each rank has a share of the songs, and rank 0 logs them all. What fails here costs a warning and not the run.
    """

    def __init__(self, every: int | None, songs: int, seconds: float) -> None:
        self.every, self.songs, self.seconds = every, songs, seconds
        self.validations = 0  # that are done
        self._due = self._off = False
        self._clips: list[Clip] = []

    # When

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._clips, self._due = [], False
        if self._is_turn(trainer):
            shown = not self._off and any(boards.shows(logger) for logger in trainer.loggers)
            self._due = trainer.strategy.reduce_boolean_decision(shown)
        module = parts.module(trainer)
        module.clip = round(self.seconds * module.separator.spectrogram.sample_rate) if self._due else 0

    def _is_turn(self, trainer: lightning.Trainer) -> bool:
        if self.every is None or trainer.sanity_checking:
            return False
        if trainer.state.fn == "validate" or self.validations % self.every == 0:  # the first: after a training's end
            return True
        last = parts.last_step(trainer)
        return last is not None and trainer.global_step >= last

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._due and outputs and dataloader_idx == SONGS:
            number = trainer.global_rank + batch_idx * trainer.world_size  # as `StemData` deals them out
            chosen = number in spread(len(parts.data(trainer).catalogue.songs("valid")), self.songs)
            self._attempt(lambda: self._clips.append(clips.of(pl_module, number, batch, outputs, chosen)))

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not self._due:
            return
        songs, self._clips = _of_all_ranks(trainer, self._clips), []
        if trainer.is_global_zero and songs:
            step = trainer.fit_loop.epoch_loop._batches_that_stepped  # as Lightning counts what it logs
            axes = parts.callback(trainer, Meters).axes(trainer)
            rate = parts.module(trainer).separator.spectrogram.sample_rate
            for logger in trainer.loggers:
                self._attempt(partial(boards.show, logger, songs, step, axes, rate))

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # Not before the checkpoint that precedes a validation: one that is made up for is the same one.
        self.validations += not trainer.sanity_checking

    def _attempt(self, work: Callable[[], None]) -> None:
        if self._off:
            return
        try:
            work()
        except Exception as error:
            if workers.is_death(error):  # it comes from a signal's handler, whatever happens to be under way
                raise
            log.warning("media: %s: %s. Training goes on without sounds and pictures.", type(error).__name__, error)
            self._off = True

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = state_dict["validations"]


def spread(count: int, wanted: int) -> set[int]:
    """`wanted` numbers, evenly spread over the first `count`, the first one among them."""
    return {number * count // wanted for number in range(wanted)} if wanted < count else set(range(count))


def _of_all_ranks(trainer: lightning.Trainer, own: list[Clip]) -> list[Clip]:
    """The songs of all ranks in the index's order."""
    shares = [own]
    if trainer.world_size > 1:
        shares = [[] for _ in range(trainer.world_size)]
        torch.distributed.all_gather_object(shares, own)
    return sorted((song for share in shares for song in share), key=lambda song: song.number)
