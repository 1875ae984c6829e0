"""A training of the quality benchmarks: started, what it cost in CPU time, what it reached and how it got there."""

import csv
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quality.questions import Question

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "benchmarks/.quality"  # runs, songs and cache, which git ignores
RECORDINGS = ROOT.parent / "shared/data"  # which are not part of the project, beside the checkout


@dataclass(frozen=True)
class Run:
    """One training: its overrides, without those that say where things lie."""

    variant: str
    overrides: tuple[str, ...]
    seed: int

    @property
    def key(self) -> str:
        return " ".join((*self.overrides, f"seed={self.seed}"))


def needed(question: Question, seeds: int) -> list[Run]:
    """All that a question needs; first all variants with the first seed."""
    return [
        Run(name, (*question.recipe, *split, *extra), seed)
        for seed in range(seeds)
        for name, extra in question.variants.items()
        for split in question.splits.values()
    ]


def songs(question: Question, root: Path | None) -> Path:
    """The folder of the songs that a question trains on, `root` if that is given.

    Raises `SystemExit` if recordings are not there; the demo set's songs are composed.
    """
    if question.recordings is None:
        return WORK / "songs"
    folder = root or RECORDINGS / question.recordings
    if not folder.is_dir():
        raise SystemExit(
            f"{folder}: no such folder. This question needs the recordings of {question.recordings}. "
            "Say where they lie: --root FOLDER."
        )
    return folder


def trained(run: Run, threads: int, work: Path, root: Path) -> dict[str, Any]:
    """What a training reaches and costs, `result`. Raises `SystemExit` if it fails."""
    folder = work / "runs" / hashlib.blake2b(run.key.encode(), digest_size=8).hexdigest()
    own = ["trainer.accelerator=cpu", "data.num_workers=0", "logger=[csv]", "media.every=null"]
    files = ["checkpoints.last=1", "checkpoints.best=0"]
    where = [f"data.root={root}", f"data.cache={work / 'cache'}", f"hydra.run.dir={folder}"]
    command = [sys.executable, "-m", "train", *run.overrides, f"seed={run.seed}", *own, *files, *where]
    seconds = spent(command, {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)})
    found = result(folder)
    shutil.rmtree(folder)
    return {**found, "cpu_seconds": round(seconds, 1)}


def spent(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Runs a command; the CPU seconds of its processes. Raises `SystemExit` with what it said if it fails.

    CPU time and not time on the clock: trainings share the machine, with one another and with other work.
    """
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)}\n{said.read()[-4000:]}")
    return usage.ru_utime + usage.ru_stime


def result(folder: Path) -> dict[str, Any]:
    """SDR of each stem and the mean in dB after the last step, how much the mean is above the mixture's, and the curve.

    Of the last step and not the best: to choose a step by the songs that it is scored with would flatter it. The
    curve has a step, the mean SDR and the loss of each validation.
    """
    (path,) = folder.glob("csv/*/metrics.csv")
    rows = list(_validations(path))
    last = rows[-1]
    stems = (name for name in last if name.startswith("sdr/") and name.count("/") == 1)  # not sdr/oracle/vocals
    return {
        "sdr": {name.removeprefix("sdr/"): round(last[name], 4) for name in stems},
        "improvement": round(last["sdr/improvement/mean"], 4),
        "curve": [[int(row["step"]) + 1, round(row["sdr/mean"], 3), round(row["val/loss"], 5)] for row in rows],
    }


def _validations(path: Path) -> Iterator[dict[str, float]]:
    with path.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            if row.get("sdr/mean"):
                yield {name: float(value) for name, value in row.items() if value}
