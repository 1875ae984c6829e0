"""A training of the quality benchmarks: started, what it cost in CPU time, what it reached and how it got there."""

import csv
import hashlib
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quality.questions import Question

from stemwise.evaluation import results

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "benchmarks/.quality"  # runs, songs and cache, which git ignores
RECORDINGS = ROOT.parent / "shared/data"  # which are not part of the project, beside the checkout


@dataclass(frozen=True)
class Run:
    """One training: its overrides, without those that say where things lie.

    `museval` are those of `stemwise evaluate`; without any, it is not called.
    """

    variant: str
    overrides: tuple[str, ...]
    seed: int
    museval: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return " ".join((*self.overrides, f"seed={self.seed}"))


def needed(question: Question, seeds: int) -> list[Run]:
    """All that a question needs; first all variants with the first seed."""
    return [
        Run(name, (*question.recipe, *split, *extra), seed, (question.museval, *split) if question.museval else ())
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
    """What a training reaches and costs. Raises `SystemExit` if it fails."""
    folder = work / "runs" / hashlib.blake2b(run.key.encode(), digest_size=8).hexdigest()
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
    own = ["trainer.accelerator=cpu", "data.num_workers=0", "logger=[csv]", "media.every=null"]
    files = ["checkpoints.last=1", "checkpoints.best=0"]
    where = [f"data.root={root}", f"data.cache={work / 'cache'}", f"hydra.run.dir={folder}"]
    command = [sys.executable, "-m", "train", *run.overrides, f"seed={run.seed}", *own, *files, *where]
    found = {"cpu_seconds": round(spent(command, threads), 1), **result(folder)}
    if run.museval:
        found["museval"] = evaluated(run, folder, threads, root)
    shutil.rmtree(folder)
    return found


def spent(command: Sequence[str], threads: int) -> float:
    """Runs a command; the CPU seconds of its processes. Raises `SystemExit` with what it said if it fails.

    CPU time and not time on the clock: trainings share the machine, with one another and with other work.
    """
    number = str(threads)
    paths = os.pathsep.join(filter(None, (str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH"))))  # `quality.folds`
    own = {**os.environ, "OMP_NUM_THREADS": number, "MKL_NUM_THREADS": number, "PYTHONPATH": paths}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, env=own, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)}\n{said.read()[-4000:]}")
    return usage.ru_utime + usage.ru_stime


def evaluated(run: Run, folder: Path, threads: int, root: Path) -> dict[str, dict[str, float]]:
    """museval's SDR in dB of each song that was held out and each stem in it, the median over windows of a second.

    Of the last checkpoint, with the averaged weights: the model file is that of the best validation.
    """
    what = [f"checkpoint={folder / 'checkpoints/last.ckpt'}", *run.museval, "split=valid", "baselines=[]"]
    how = [f"data.root={root}", f"output={folder / 'evaluation'}", f"workers={threads}", "listening_songs=0"]
    spent([sys.executable, "-m", "stemwise.cli", "evaluate", *what, *how], threads)
    return {
        song.name: {
            stem: round(scores["SDR"], 4)
            for stem, scores in song.medians[results.MODEL].items()
            if not math.isnan(scores["SDR"])
        }
        for song in results.read(folder / "evaluation").songs
    }


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
