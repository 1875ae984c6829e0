"""Faults that end processes: kills, signals, and a rank that is gone."""

import os
import shutil
import signal
import socket
import time
from functools import partial
from pathlib import Path

import psutil
from faults_ground import LAST, REACHED, Command, Ground, Trial, contents, reached

RANKS = ("trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=1")
MINUTE = 60.0


def killed_training(ground: Ground, number: int) -> Trial:
    """A fifth of the kills come before the first checkpoint, and every other one to the first process alone."""
    run, at_start = f"killed{number}", number % 5 == 0
    moment = ground.draw.uniform(0, ground.seconds[0 if at_start else 1])
    keys = [REACHED] if number % 4 < 2 else []  # the log as it is by default must lose nothing either
    command = ground.train(run, *keys)
    if not at_start:
        command.until((ground.folder / run / LAST).exists)
    if (seconds := _killed(command, moment, to_all=number % 2 == 0)) is None:
        shutil.rmtree(ground.folder / run)
        return killed_training(ground, number)
    return _gone_on(ground, run, command, keys, seconds)


def killed_save(ground: Ground, number: int) -> Trial:
    """Stopped first, to see that a checkpoint is half written or not in its place yet, and then killed."""
    run = f"saved{number}"
    folder, command = ground.folder / run / LAST.parent, ground.train(run, REACHED)
    half = (folder / ".new.ckpt.part", folder / "new.ckpt")
    for _ in range(number % 8):  # another save each time
        command.until(lambda: any(map(Path.exists, half)))
        command.until(lambda: not any(map(Path.exists, half)))
    while True:
        command.until(lambda: any(map(Path.exists, half)))
        time.sleep(ground.draw.uniform(0, 0.01))
        command.send(signal.SIGSTOP)
        if any(map(Path.exists, half)):
            command.send(signal.SIGKILL, to_all=True)
            return _gone_on(ground, run, command, [REACHED], command.end(-signal.SIGKILL))
        command.send(signal.SIGCONT)


def _killed(command: Command, moment: float, *, to_all: bool) -> float | None:
    """Kills it after so many seconds; returns those that its end took, None if it was done before."""
    if command.lasts(moment):
        command.send(signal.SIGKILL, to_all=to_all)
    seconds = command.end(-signal.SIGKILL, 0)
    return seconds if command.process.returncode else None


def _gone_on(ground: Ground, run: str, command: Command, keys: list[str], seconds: float) -> Trial:
    """The same command after a fault, at once: workers of the first may still be there."""
    trial = ground.goes_on(run, *keys)
    trial.wrong += command.orphans()
    trial.seconds = seconds
    return trial


def killed_build(ground: Ground, number: int) -> Trial:
    """No broken entry is ever there, and a second build makes the cache of a clean one."""
    clean, writing = ground.built
    cache = ground.folder / f"built{number}"
    command = ground.build(cache.name)
    command.until(lambda: any(cache.glob("*/*")))
    if (seconds := _killed(command, ground.draw.uniform(0, writing), to_all=number % 2 == 0)) is None:
        shutil.rmtree(cache)
        return killed_build(ground, number)
    trial = Trial(seconds=seconds, again=len(list(cache.glob("*/*.part"))))
    ground.build(cache.name).end(0)
    trial.wrong += command.orphans()
    if contents(cache) != clean:
        trial.wrong.append("the cache is another")
    shutil.rmtree(cache)
    return trial


def signalled(ground: Ground, number: int, sent: signal.Signals, *, to_all: bool) -> Trial:
    """The run ends after the step at hand with a checkpoint, and nothing is done again."""
    run = f"{sent.name}{number}"
    command = _somewhere_in_training(ground, run)
    command.send(sent, to_all=to_all)
    trial = _gone_on(ground, run, command, [REACHED], command.end(128 + sent))
    if trial.again:
        trial.wrong.append(f"{trial.again} steps")
    return trial


def interrupted_twice(ground: Ground, number: int) -> Trial:
    """It ends at once, and what comes after the last checkpoint is done again."""
    run = f"twice{number}"
    command = _somewhere_in_training(ground, run)
    command.send(signal.SIGINT, to_all=True)
    time.sleep(0.001)
    os.killpg(command.process.pid, signal.SIGINT)
    return _gone_on(ground, run, command, [REACHED], command.end(130))


def _somewhere_in_training(ground: Ground, run: str) -> Command:
    step, command = ground.draw.randrange(10, 110), ground.train(run, REACHED)
    command.until(lambda: reached(ground.folder / run) >= step)
    command.lasts(ground.draw.uniform(0, 0.03))
    return command


# A rank of two


def lost_rank(ground: Ground, number: int, rank: int, how: signal.Signals) -> Trial:
    """The other one ends within a minute, names it, and the run goes on later."""
    run = f"rank{rank}-{how.name}{number}"
    command = ground.train(run, *RANKS, REACHED)
    command.until((ground.folder / run / LAST).exists)
    processes = {0: psutil.Process(command.process.pid), 1: _second_rank(command)}
    victim, other = processes[rank], processes[1 - rank]
    victim.send_signal(how)
    start = time.monotonic()
    psutil.wait_procs([other], timeout=2 * MINUTE)
    seconds = time.monotonic() - start
    victim.send_signal(signal.SIGCONT) if how == signal.SIGSTOP else None
    command.process.wait(MINUTE)
    wrong = command.orphans()
    # Lightning names one that it started itself, and ends the first.
    ours = f"rank {rank} ({socket.gethostname()}, process {victim.pid}) gives no sign of life"
    if ours not in command.text and f"[rank: {rank}] Child process with PID {victim.pid} term" not in command.text:
        wrong.append("the rank is not named")
    if seconds > MINUTE:
        wrong.append(f"the other rank took {seconds:.0f} s to end")
    trial = ground.goes_on(run, REACHED, like=RANKS)
    return Trial([*wrong, *trial.wrong], again=trial.again, seconds=seconds)


def _second_rank(command: Command) -> psutil.Process:
    """The process that Lightning starts for it, not a worker of either."""
    children = psutil.Process(command.process.pid).children()
    return next(child for child in children if child.environ().get("LOCAL_RANK") == "1")


SIGTERM = partial(signalled, sent=signal.SIGTERM, to_all=False)
SIGUSR1 = partial(signalled, sent=signal.SIGUSR1, to_all=True)
CTRL_C = partial(signalled, sent=signal.SIGINT, to_all=True)
