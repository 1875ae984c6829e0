"""Signals that end a training: after the step at hand and with a checkpoint. A second Ctrl-C ends it at once.

SIGTERM is what preemption sends, SIGUSR1 what `sbatch --signal=USR1@120` does. In a job of SLURM, SIGUSR1 also asks
for the job to be queued again.
"""

import logging
import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(SystemExit):
    """Ends a run that a signal asked to end; its exit code is the one that a shell shows for that signal."""

    def __init__(self, number: int, leading: bool = True) -> None:
        # Lightning takes a process that it started and that ends with another code for a failure, and kills the rest.
        super().__init__(128 + number if leading else 0)


class Interrupts(Callback):
    """Remembers the signal that came. Who can save asks `agreed` when a step is whole."""

    def __init__(self) -> None:
        self.number = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # Now, because Lightning's own handlers are there by now, and end a step anywhere. It takes ours away again.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.number:
            # Not by the log, which may be in the middle of a line.
            name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            os.write(2, f"\n{name}: the run ends after this step, with a checkpoint.\n".encode())
        self.number = number

    def agreed(self, trainer: lightning.Trainer) -> int:
        """The signal that came to any rank, or 0. All ranks must ask at the same step."""
        if trainer.world_size == 1:
            return self.number
        numbers = torch.tensor(self.number, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(numbers, reduce_op="max"))

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        # What there is to save was saved when the validation began. Several ranks must not part here: they go on.
        if self.number and trainer.state.fn == "fit" and trainer.world_size == 1:
            raise Stopped(self.number)


def requeue() -> None:
    """Puts this job of SLURM back into the queue, if it is one."""
    if not (job := os.environ.get("SLURM_JOB_ID")):
        return
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    name = f"{array}_{task}" if array and task else job
    try:
        done = subprocess.run(["scontrol", "requeue", name], capture_output=True, text=True, timeout=60, check=False)
        problem = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        log.warning("SLURM job %s was not queued again: %s", name, problem)
    else:
        log.info("SLURM job %s is queued again.", name)
