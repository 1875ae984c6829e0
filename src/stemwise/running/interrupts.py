"""Signals that end a training: after the step at hand and with a checkpoint. A second Ctrl-C ends it at once.

SIGTERM is what preemption sends, SIGUSR1 what `sbatch --signal=USR1@120` does, SIGUSR2 what submitit asks SLURM for.
In a job of SLURM, the last two also ask for the job to be queued again, and so does a preemption: SLURM itself takes a
job that ends within its GraceTime for one that failed (22.05).
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

REQUEUE = (signal.SIGUSR1, signal.SIGUSR2)
SIGNALS = (signal.SIGINT, signal.SIGTERM, *REQUEUE)


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

    def act(self, number: int, leading: bool) -> None:
        """Ends the run, now that there is a checkpoint; asks for the job to be queued again, if the signal does."""
        if leading and asks_to_requeue(number):
            requeue()
        raise Stopped(number, leading)

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        # What there is to save was saved when the validation began. Several ranks must not part here: they go on.
        if self.number and trainer.state.fn == "fit" and trainer.world_size == 1:
            self.act(self.number, leading=True)


def before_training() -> None:
    """What SLURM's signals do from here until a training starts: nothing is to save, the cache keeps what it has.

    SLURM sends them to all ranks; one of them asks for the job to be queued again.
    """
    first = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
    process = os.getpid()

    def end(number: int, _: FrameType | None) -> None:
        if os.getpid() != process:  # a process that inherited this
            os._exit(128 + number)
        if first and asks_to_requeue(number):
            requeue()
        raise Stopped(number, first)

    if threading.current_thread() is threading.main_thread():
        for number in (*REQUEUE, signal.SIGTERM) if "SLURM_JOB_ID" in os.environ else REQUEUE:
            signal.signal(number, end)


def after_training() -> None:
    """From here on a job that ends is not queued again, nor killed as Python takes its handlers away.

    Of a run that a signal stops, SLURM's next one may come when Python is about to leave.
    """
    if threading.current_thread() is threading.main_thread() and "SLURM_JOB_ID" in os.environ:
        for number in (*REQUEUE, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def asks_to_requeue(number: int) -> bool:
    """Whether after this signal the job is to be queued again."""
    return number in REQUEUE or (number == signal.SIGTERM and _preempted())


def requeue() -> None:
    """Puts this job of SLURM back into the queue, if it is one."""
    if (name := _job()) is None:
        return
    try:
        _scontrol("requeue", name)
    except OSError as error:
        log.warning("SLURM job %s was not queued again: %s", name, error)
    else:
        log.info("SLURM job %s is queued again.", name)


def _preempted() -> bool:
    """Whether SLURM wants the nodes of this job for another; else SIGTERM is `scancel`, or the end of its time."""
    if (name := _job()) is None:
        return False
    try:
        facts = dict(word.split("=", 1) for word in _scontrol("show", "job", "-o", name).split() if "=" in word)
    except OSError as error:
        log.warning("SLURM job %s: not known whether it is preempted: %s", name, error)
        return False
    when = facts.get("PreemptTime", "None")
    return when != "None" and when >= facts.get("StartTime", "")  # both as 2026-11-23T07:08:37


def _job() -> str | None:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def _scontrol(*arguments: str) -> str:
    """What it prints. Raises `OSError` if it fails."""
    try:
        done = subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(str(error)) from error
    if done.returncode:
        raise OSError(done.stderr.strip())
    return done.stdout
