"""Injects faults into real runs and says what was lost: `python benchmarks/faults.py`. Takes half an hour.

Every fault is done to the real command, in processes of its own, on songs of noise and a network that trains in
seconds. A run that goes on after a fault must end as the run without it: last checkpoint and model bit for bit, and the
same value logged at each step. The exit code is 1 if anything was lost.
"""

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import report
import soundfile
import torch

from stemwise.running import checkpoints

STEMS = ("vocals", "accompaniment")
STEPS = 240
LAST = Path(checkpoints.LAST)
KEYS = [
    "stems=2", "data=csv", "logger=csv", "augment=remix", "data.storage=complex", "ema=0.99", "scheduler=cosine",
    "spectrogram.sample_rate=8000", "spectrogram.channels=1", "spectrogram.n_fft=512", "spectrogram.hop=128",
    "spectrogram.bins=128", "spectrogram.frames=64", "model.unet.filters=[8,16,32]", "optimizer.lr=0.001",
    f"scheduler.T_max={STEPS}", f"trainer.max_steps={STEPS}", "trainer.val_check_interval=25",
    "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "data.batch_size=2",
    "data.examples_per_song=5", "data.num_workers=1", "checkpoints.every=10", "resume=auto",
]  # fmt: skip

# Saves one checkpoint after the other, and says which are there.
SAVES = """
import sys, torch
from pathlib import Path
from types import SimpleNamespace
from stemwise.running.checkpoints import CheckpointFiles, Checkpoints
files = CheckpointFiles()
ours = Checkpoints(Path(sys.argv[1]), files, None)
trainer = SimpleNamespace(is_global_zero=True, loggers=[])
for step in range(10**9):
    trainer.global_step = step
    checkpoint = {"step": step, "weights": torch.full((5_000_000,), step)}
    trainer.save_checkpoint = lambda path: files.save_checkpoint(checkpoint, path)
    ours.save(trainer, validation_due=False)
    print(step, flush=True)
"""


@dataclass(frozen=True)
class Outcome:
    """One row of the table."""

    fault: str
    how: str
    times: int
    lost: str
    held: bool


@dataclass(frozen=True)
class Ground:
    """Where the songs are, and a run without faults to compare with."""

    folder: Path
    draw: random.Random
    seconds: float = 0.0  # that the run took

    def command(self, run: str, *overrides: str) -> list[str]:
        songs = self.folder / "songs"
        splits = [f"data.{split}={songs}/{split}.csv" for split in ("train", "valid")]
        where = [f"data.root={songs}", *splits, f"hydra.run.dir={self.folder / run}"]
        given = {override.split("=")[0] for override in overrides}
        keys = [key for key in (*KEYS, *where) if key.split("=")[0] not in given]
        return [sys.executable, "-m", "train", *keys, *overrides]


def main() -> int:
    """Runs the suite and writes `results/DEVICE/faults.{md,json}`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of training runs, and of cache builds (default: 50)")
    parser.add_argument("--saves", type=int, default=20, help="kills while a checkpoint is saved (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        ground = _prepared(Path(folder), random.Random(options.seed))
        found = [
            killed_runs(ground, options.kills),
            killed_saves(ground, options.saves),
            *(stopped_runs(ground, number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)),
        ]
    rows = [[o.fault, o.how, o.times, o.lost] for o in found]
    text = "# What faults cost\n\n" + report.table(["fault", "how it was injected", "times", "lost"], rows)
    report.write("faults", text, {"faults": [vars(outcome) for outcome in found]}, {})
    return 0 if all(outcome.held for outcome in found) else 1


def _prepared(folder: Path, draw: random.Random) -> Ground:
    """Songs, and the run that nothing happens to."""
    write_songs(folder / "songs")
    ground = Ground(folder, draw)
    start = time.monotonic()
    subprocess.run(ground.command("clean"), check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    return Ground(folder, draw, time.monotonic() - start)


def write_songs(folder: Path) -> None:
    """Six songs of noise with two stems, and index CSVs that split them 4 and 2."""
    noise = np.random.default_rng(0)
    folder.mkdir()
    for number in range(6):
        for stem in STEMS:
            soundfile.write(folder / f"{number}-{stem}.wav", 0.1 * noise.standard_normal(24000), 8000)
    lines = [",".join(f"{number}-{stem}.wav" for stem in STEMS) for number in range(6)]
    header = ",".join(f"{stem}_path" for stem in STEMS)
    (folder / "train.csv").write_text("\n".join([header, *lines[:4], ""]))
    (folder / "valid.csv").write_text("\n".join([header, *lines[4:], ""]))


# Faults


def killed_runs(ground: Ground, kills: int) -> Outcome:
    """kill -9 of the whole process group, again and again, until the run gets through."""
    done, runs, wrong = 0, 0, []
    while done < kills:
        name = f"killed{runs}"
        runs += 1
        # Some of these times are longer than the run, and once there were kills enough it is left alone.
        while not _ran(ground.command(name), _sleeps(ground.draw.uniform(0.0, 1.3 * ground.seconds)), signal.SIGKILL):
            done += 1
            if done == kills:
                _ran(ground.command(name), iter(()), signal.SIGKILL)
                break
        wrong += [f"{name}: {what}" for what in differences(ground.folder / "clean", ground.folder / name)]
        _say(f"training: {done} of {kills} kills, {runs} runs ended, {len(wrong)} differences")
    how = f"`kill -9` of all its processes at random moments of a run of {ground.seconds:.0f} s, then the same command"
    return Outcome("training is killed", f"{how}; {runs} runs ended", done, _lost(wrong), not wrong)


def killed_saves(ground: Ground, kills: int) -> Outcome:
    """kill -9 while checkpoints are written without a pause."""
    run, wrong = ground.folder / "saves", []
    for number in range(kills):
        process = subprocess.Popen([sys.executable, "-c", SAVES, run], stdout=subprocess.PIPE, text=True)
        assert process.stdout
        process.stdout.readline()
        time.sleep(ground.draw.uniform(0.0, 0.5))
        process.kill()
        said = [int(line) for line in process.stdout.read().split()]
        process.wait()
        found = checkpoints.newest(run)
        step = torch.load(found, weights_only=True)["step"] if found else -1
        if step < (said[-1] if said else 0):
            wrong.append(f"kill {number}: step {said[-1]} was saved, {step} is there")
    _say(f"saves: {kills} kills, {len(wrong)} lost")
    return Outcome("a checkpoint's writer is killed", "`kill -9` amid saves", kills, _lost(wrong), not wrong)


def stopped_runs(ground: Ground, number: signal.Signals) -> Outcome:
    """A signal to the first process, five times in one run."""
    name, times, wrong = f"stopped{number}", 0, []
    for _ in range(5):
        if _ran(ground.command(name), _until_training(ground.folder / name, ground.draw), number):
            break
        times += 1
    while not _ran(ground.command(name), iter(()), number):
        pass
    wrong = differences(ground.folder / "clean", ground.folder / name)
    _say(f"{number.name}: {times} stops, {len(wrong)} differences")
    return Outcome(f"{number.name}", "to a run that trains, then the same command", times, _lost(wrong), not wrong)


def _ran(command: list[str], waits: Iterator[None], number: signal.Signals) -> bool:
    """Starts a command and, when `waits` are over, sends it the signal; whether it came to its end before."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    waited = False
    for _ in waits:
        waited = True
        if process.poll() is not None:
            break
    if waited and process.poll() is None:
        send: Callable[[], None] = {
            signal.SIGKILL: lambda: os.killpg(process.pid, signal.SIGKILL),
        }.get(number, lambda: process.send_signal(number))
        send()
    errors = process.communicate()[1].decode()
    expected = {0, -signal.SIGKILL, 128 + number}
    if process.returncode not in expected:
        sys.exit(f"It ended with {process.returncode}:\n{errors}")
    return process.returncode == 0


def _sleeps(seconds: float) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
        yield


def _until_training(run: Path, draw: random.Random) -> Iterator[None]:
    """Until this start of a run has logged something, and a random while longer."""
    before = {*run.glob("csv/*")}
    while not {*run.glob("csv/*/metrics.csv")} - {path / "metrics.csv" for path in before}:
        time.sleep(0.02)
        yield
    yield from _sleeps(draw.uniform(0.0, 0.3))


# What was lost


def differences(clean: Path, run: Path) -> list[str]:
    """In what a run ended differently from the one without faults."""
    wrong = []
    one, other = (torch.load(folder / LAST, weights_only=True) for folder in (clean, run))
    for part in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
        try:
            torch.testing.assert_close(one[part], other[part], rtol=0, atol=0)
        except AssertionError:
            wrong.append(part)
    if (clean / "model.safetensors").read_bytes() != (run / "model.safetensors").read_bytes():
        wrong.append("model.safetensors")
    if _logged(clean) != _logged(run):
        wrong.append("the logged values")
    if left := [path.name for path in run.rglob("*.part")]:
        wrong.append(f"left behind: {', '.join(left)}")
    return wrong


def _logged(run: Path) -> dict[str, dict[str, str]]:
    """The last value of each column at each step, whichever start of the run logged it."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(run.glob("csv/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1])):
        with path.open() as file:
            for row in csv.DictReader(file):
                values = {name: value for name, value in row.items() if value and name != "epoch"}
                found.setdefault(row["step"], {}).update(values)
    return found


def _lost(wrong: list[str]) -> str:
    return "; ".join(wrong) or "nothing"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
