"""The parts of a training of ours, found in Lightning's trainer, which knows them by their general types."""

from typing import TypeVar

import lightning
from lightning.pytorch.callbacks import Callback

from stemwise.data import StemData
from stemwise.training import SeparatorTraining

Kind = TypeVar("Kind", bound=Callback)


def module(trainer: lightning.Trainer) -> SeparatorTraining:
    """What is trained."""
    found = trainer.lightning_module
    assert isinstance(found, SeparatorTraining)
    return found


def data(trainer: lightning.Trainer) -> StemData:
    """What it is trained with."""
    found = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(found, StemData)
    return found


def callback(trainer: lightning.Trainer, kind: type[Kind]) -> Kind:
    """The callback of a kind, of which a run has one."""
    found: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next(one for one in found if isinstance(one, kind))


def last_step(trainer: lightning.Trainer) -> int | None:
    """With which step the training ends, by `max_steps` or `max_epochs`; None if neither is given."""
    found = trainer.estimated_stepping_batches
    return int(found) if 0 < found < float("inf") else None
