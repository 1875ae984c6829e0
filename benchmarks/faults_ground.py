"""What `faults.py` does its faults to: songs of noise, real commands in sessions of their own, and what they leave."""

import csv
import os
import random
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import soundfile
import torch

from stemwise.cache import entries
from stemwise.cache.entries import Header
from stemwise.running import checkpoints
from stemwise.running.meters import CLOCKED

STEMS = ("vocals", "accompaniment")
STEPS = 120
LAST = Path(checkpoints.LAST)
# A network that trains in seconds, with everything that draws or remembers.
KEYS = [
    "stems=2", "data=csv", "logger=csv", "augment=remix", "data.storage=complex", "ema=0.99", "scheduler=cosine",
    "spectrogram.sample_rate=8000", "spectrogram.channels=1", "spectrogram.n_fft=512", "spectrogram.hop=128",
    "spectrogram.bins=128", "spectrogram.frames=64", "model.unet.filters=[8,16,32]", "optimizer.lr=0.001",
    f"scheduler.T_max={STEPS}", f"trainer.max_steps={STEPS}", "trainer.val_check_interval=25",
    "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "data.batch_size=2",
    "data.examples_per_song=5", "data.num_workers=1", "checkpoints.every=10", "resume=auto",
]  # fmt: skip
PARTS = ("global_step", "state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "StemData")

PATIENCE = 180.0  # seconds until a command is taken to hang; none takes a tenth of that on a machine of its own
ORPHANED = 60.0  # seconds in which all other processes of a command must be gone
MARK = "STEMWISE_FAULTS"  # in the environment of a command, and so of all processes that it starts
REACHED = "+logger.csv.flush_logs_every_n_steps=1"  # for every step that was done to be in the log


class Unexpected(Exception):
    """A command did not do what the fault leaves it to do; the text says what it did instead."""


@dataclass
class Trial:
    """What one injection of a fault led to: what is wrong, what was lost as expected, what had to be done again."""

    wrong: list[str] = field(default_factory=list)
    lost: str = ""
    again: int = 0
    seconds: float = 0.0  # from the fault to the end of the command


class Command:
    """A command under way, with all the processes that it starts."""

    def __init__(self, arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
        self._mark = secrets.token_hex(8)
        self._output = folder / f"output-{self._mark}.txt"
        self.struck = time.monotonic()
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                arguments,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **environment, MARK: self._mark},
            )

    @property
    def text(self) -> str:
        """All that it printed so far."""
        return self._output.read_text(errors="replace")

    def until(self, condition: Callable[[], object]) -> None:
        """Waits for that. Raises `Unexpected` if the command ends before."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self._give_up("ended before the fault" if self.process.poll() is not None else "hung before the fault")
            time.sleep(0.002)

    def lasts(self, seconds: float) -> bool:
        """Whether it is still there after so many seconds."""
        with_patience = time.monotonic() + seconds
        while time.monotonic() < with_patience and self.process.poll() is None:
            time.sleep(0.002)
        return self.process.poll() is None

    def struck_now(self) -> None:
        """The fault was injected just now."""
        self.struck = time.monotonic()

    def send(self, number: int, *, to_all: bool = False) -> None:
        """The fault itself: a signal to the first process, or to all, as a terminal or SLURM sends it."""
        self.struck = time.monotonic()
        os.killpg(self.process.pid, number) if to_all else self.process.send_signal(number)

    def end(self, *codes: int) -> float:
        """Waits for its end, with one of these exit codes, and returns the seconds since the fault."""
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._give_up("hangs")
        if code not in codes:
            self._give_up(f"ended with {code} and not {' or '.join(map(str, codes))}")
        return time.monotonic() - self.struck

    def processes(self) -> list[psutil.Process]:
        """Those that it started and that still run, its first one left out."""
        return [found for found in psutil.process_iter() if found.pid != self.process.pid and self._is_ours(found)]

    def orphans(self) -> list[str]:
        """What is wrong if processes outlive the first one for long. They are killed."""
        deadline = time.monotonic() + ORPHANED
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        for process in left:
            process.kill()
        return [f"{len(left)} processes left"] if left else []

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self._mark
        except psutil.Error:  # gone by now
            return False

    def stop(self) -> None:
        """Kills what is left of it."""
        for process in (*self.processes(), self.process):
            process.kill()
        self.process.wait()

    def _give_up(self, what: str) -> None:
        self.stop()
        raise Unexpected(f"the command {what}")


@dataclass(frozen=True)
class Ground:
    """The folder in which all happens. `clean` makes the runs to compare with, each once."""

    folder: Path
    draw: random.Random
    _clean: dict[tuple[str, ...], Path] = field(default_factory=dict)
    _commands: list[Command] = field(default_factory=list)

    def train(self, run: str, *overrides: str, songs: str = "songs", **environment: str) -> Command:
        """Starts `python -m train` in the folder `run`, on the songs of the folder `songs`."""
        root = self.folder / songs
        where = [f"data.{split}={root}/{split}.csv" for split in ("train", "valid")]
        where += [f"data.root={root}", f"data.cache={self.folder}/cache", f"hydra.run.dir={self.folder / run}"]
        given = {override.split("=")[0] for override in overrides}
        keys = [key for key in (*KEYS, *where) if key.split("=")[0] not in given]
        return self._started([sys.executable, "-m", "train", *keys, *overrides], environment)

    def _started(self, arguments: list[str], environment: dict[str, str]) -> Command:
        self._commands.append(Command(arguments, self.folder, environment))
        return self._commands[-1]

    def stop(self, *, tell: bool) -> None:
        """Ends whatever still runs, and prints what the last commands said."""
        while self._commands:
            command = self._commands.pop(0)
            command.stop()
            if tell:
                print(command.text[-4000:], file=sys.stderr)

    def clean(self, *overrides: str) -> Path:
        """The run with these keys to which nothing happens."""
        if overrides not in self._clean:
            run = f"clean{len(self._clean)}"
            self.train(run, *overrides).end(0)
            self._clean[overrides] = self.folder / run
        return self._clean[overrides]

    @cached_property
    def seconds(self) -> tuple[float, float]:
        """That a run takes until its first checkpoint, and from there to its end."""
        command = self.train("timed")
        command.until((self.folder / "timed" / LAST).exists)
        start = time.monotonic() - command.struck
        return start, command.end(0) - start

    def goes_on(self, run: str, *overrides: str, like: tuple[str, ...] = (), songs: str = "songs") -> Trial:
        """The same command again, to its end. `like` are those of its keys that change what a run ends as."""
        self.train(run, *like, *overrides, songs=songs).end(0)
        return self.compared(run, *like)

    def compared(self, run: str, *like: str) -> Trial:
        """A run that came to its end, beside the clean one: what differs is wrong."""
        clean, path = self.clean(*like), self.folder / run
        return Trial(wrong=[*differences(clean, path), *left_behind(clean, path)], again=done_again(path))

    def build(self, cache: str) -> Command:
        """Starts `stemwise cache build` for the longer songs."""
        songs = self.folder / "long"
        keys = ["stems=2", "data=csv", f"data.root={songs}", f"data.cache={self.folder / cache}"]
        keys += [f"data.{split}={songs}/{split}.csv" for split in ("train", "valid")]
        return self._started([sys.executable, "-m", "stemwise.cli", "cache", "build", *keys], {})

    @cached_property
    def built(self) -> tuple[dict[str, Header], float]:
        """What a build to which nothing happens leaves, and the seconds that it writes."""
        command, cache = self.build("built"), self.folder / "built"
        command.until(lambda: any(cache.glob("*/*")))
        start = time.monotonic()
        command.end(0)
        return contents(cache), time.monotonic() - start

    def copy(self, folder: str, name: str) -> Path:
        """A copy of `folder`, times of change included."""
        return Path(shutil.copytree(self.folder / folder, self.folder / name))


def write_songs(folder: Path, seconds: float = 3.0, rate: int = 8000, count: int = 6) -> None:
    """Songs of noise with two stems, and index CSVs that leave the last two for validation."""
    noise = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        for stem in STEMS:
            soundfile.write(folder / f"{number}-{stem}.wav", 0.1 * noise.standard_normal(round(seconds * rate)), rate)
    lines = [",".join(f"{number}-{stem}.wav" for stem in STEMS) for number in range(count)]
    header = ",".join(f"{stem}_path" for stem in STEMS)
    (folder / "train.csv").write_text("\n".join([header, *lines[:-2], ""]))
    (folder / "valid.csv").write_text("\n".join([header, *lines[-2:], ""]))


# What was lost


def differences(clean: Path, run: Path) -> list[str]:
    """In what a run ended differently from the one without faults."""
    wrong = []
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (torch.load(folder / LAST.parent / name, weights_only=True) for folder in (clean, run))
        wrong += [f"{part} of {name}" for part in PARTS if not _equal(one.get(part), other.get(part))]
    if (clean / "model.safetensors").read_bytes() != (run / "model.safetensors").read_bytes():
        wrong.append("model.safetensors")
    if lost := missing_values(clean, run):
        wrong.append(f"{lost} logged values")
    return wrong


def left_behind(clean: Path, run: Path) -> list[str]:
    """Files that a run without faults does not leave, its logs left out."""
    before, after = ({str(path.relative_to(folder)) for path in folder.rglob("*")} for folder in (clean, run))
    left = sorted(name for name in after - before if not name.startswith(("csv/", "wandb", "faults")))
    return [f"left behind: {', '.join(left)}"] if left else []


def missing_values(clean: Path, run: Path) -> int:
    """How many values that the clean run logged the other did not, or with another number."""
    one, other = _logged(clean), _logged(run)
    return sum(other.get(step, {}).get(name) != value for step, row in one.items() for name, value in row.items())


def done_again(run: Path) -> int:
    """How many steps were trained more than once."""
    steps = [step for path in _logs(run) for step, row in _rows(path).items() if "train/loss" in row]
    return len(steps) - len(set(steps))


def reached(run: Path) -> int:
    """How many steps are in the log of a run's last start, which has them all with `REACHED`."""
    logs = _logs(run)
    return len(_rows(logs[-1])) if logs else 0


def contents(cache: Path) -> dict[str, Header]:
    """The entries of a cache, every byte checked, but for the time when they were written.

    Raises `Unexpected` if one is broken, or if a file is there that is no entry.
    """
    found = {}
    for path in cache.glob("*/*"):
        try:
            found[path.name] = replace(entries.check(path).header, written=0)
        except (OSError, ValueError) as error:
            raise Unexpected(f"in the cache: {path.suffix} file, {error}") from None
    return found


def _equal(one: Any, other: Any) -> bool:
    try:
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    except AssertionError:
        return False
    return True


def _logged(run: Path) -> dict[str, dict[str, str]]:
    """The last value of each column at each step, whichever start of the run logged it."""
    found: dict[str, dict[str, str]] = {}
    for path in _logs(run):
        for step, row in _rows(path).items():
            found.setdefault(step, {}).update(row)
    return found


def _logs(run: Path) -> list[Path]:
    return sorted(run.glob("csv/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))


def _rows(path: Path) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            values = {n: value for n, value in row.items() if value and not n.startswith(("epoch", *CLOCKED))}
            found.setdefault(row["step"], {}).update(values)
    return found
