"""What each part of a recipe is worth: `python benchmarks/quality/ablations.py augmentation`, or another question.

Every variant (`questions.py`) is trained with several seeds, and scored with the SDR (uSDR, dB) of songs that it was
not trained on, averaged over stems and songs. A run that is done is not done again: it is in
`benchmarks/results/quality/QUESTION.json`, under what it was started with. The page beside it says how far apart seeds
are; a difference from the recipe that chance may have made is none.
"""

import argparse
import hashlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the other scripts, which find each other by name

import report
from quality.questions import QUESTIONS

RESULTS = report.RESULTS / "quality"
WORK = Path(__file__).resolve().parents[1] / ".quality"  # runs, songs and cache, which git ignores


@dataclass(frozen=True)
class Run:
    """One training: its overrides, without those that say where things lie."""

    variant: str
    overrides: tuple[str, ...]
    seed: int

    @property
    def key(self) -> str:
        return " ".join((*self.overrides, f"seed={self.seed}"))


def runs(question: str, seeds: int) -> list[Run]:
    """All that a question needs; first all variants with the first seed."""
    recipe, variants = QUESTIONS[question]
    return [Run(name, (*recipe, *extra), seed) for seed in range(seeds) for name, extra in variants.items()]


def trained(run: Run, threads: int, work: Path) -> dict[str, Any]:
    """SDR of each stem and the mean in dB, and the seconds that it took. Raises `SystemExit` if the training fails."""
    folder = work / "runs" / hashlib.blake2b(run.key.encode(), digest_size=8).hexdigest()
    own = ["trainer.accelerator=cpu", "data.num_workers=0", "logger=[csv]", "media.every=null", "checkpoints.last=1"]
    where = [f"data.root={work / 'songs'}", f"data.cache={work / 'cache'}", f"hydra.run.dir={folder}"]
    command = [sys.executable, "-m", "train", *run.overrides, f"seed={run.seed}", *own, *where]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    start = time.monotonic()
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)}\n{ended.stdout[-2000:]}{ended.stderr[-2000:]}")
    from stemwise import model_file

    _, facts = model_file.read(folder / "model.safetensors")
    shutil.rmtree(folder)
    return {"sdr": facts["sdr"], "seconds": round(time.monotonic() - start, 1)}


def done(question: str) -> dict[str, dict[str, Any]]:
    """The runs of a question that are there, by what they were started with."""
    path = RESULTS / f"{question}.json"
    return json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else {}


def page(question: str, found: Mapping[str, Mapping[str, Any]], seeds: int) -> str:
    """The question's table."""
    recipe, variants = QUESTIONS[question]
    values = {name: _values(found, (*recipe, *extra), seeds) for name, extra in variants.items()}
    first = next(iter(values))
    rows = [(name, *_row(scores, values[first], name == first)) for name, scores in values.items()]
    columns = ["variant", "SDR, dB", "of each seed", "against the first", "minutes a run"]
    minutes = [_minutes(found, (*recipe, *extra), seeds) for extra in variants.values()]
    table = report.table(columns, [(*row, time) for row, time in zip(rows, minutes, strict=True)])
    return (
        f"# {question.capitalize()}\n\nThe mean over stems and songs that were not trained on, and ± the standard "
        "deviation over seeds. A difference is taken for one where it is more than twice its standard error.\n\n"
        f"{table}\n\nThe recipe, to which a variant adds what its line in `benchmarks/quality/questions.py` says:\n\n"
        f"    python -m train {' '.join(recipe)}\n"
    )


def _values(found: Mapping[str, Mapping[str, Any]], overrides: tuple[str, ...], seeds: int) -> list[float]:
    keys = [Run("", overrides, seed).key for seed in range(seeds)]
    return [found[key]["sdr"]["mean"] for key in keys if key in found]


def _minutes(found: Mapping[str, Mapping[str, Any]], overrides: tuple[str, ...], seeds: int) -> str:
    keys = [Run("", overrides, seed).key for seed in range(seeds)]
    seconds = [found[key]["seconds"] for key in keys if key in found]
    return f"{statistics.median(seconds) / 60:.1f}" if seconds else ""


def _row(scores: Sequence[float], reference: Sequence[float], is_first: bool) -> tuple[str, str, str]:
    if not scores:
        return "not run", "", ""
    spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    each = " ".join(f"{score:.2f}" for score in scores)
    return f"{statistics.mean(scores):.2f}{spread}", each, "" if is_first else difference(scores, reference)


def difference(scores: Sequence[float], reference: Sequence[float]) -> str:
    """`+0.31`, or `none` where it is less than twice its standard error; the same seeds are compared in pairs."""
    apart = [one - other for one, other in zip(scores, reference, strict=False)]
    if len(apart) < 2:
        return "one seed"
    mean, error = statistics.mean(apart), statistics.stdev(apart) / math.sqrt(len(apart))
    return f"{mean:+.2f}" if abs(mean) > 2 * error else f"none ({mean:+.2f})"


def answer(question: str, seeds: int, jobs: int) -> None:
    """Trains what is missing, some at a time, and writes table and runs after each."""
    found = done(question)
    missing = [run for run in runs(question, seeds) if run.key not in found]
    threads = max((os.cpu_count() or 1) // jobs, 1)
    for number, (run, result) in enumerate(_all(missing, jobs, threads), 1):
        found[run.key] = result
        print(f"{number} of {len(missing)}: {run.variant}, seed {run.seed}: {result['sdr']['mean']:.2f} dB", flush=True)
        write(question, found, seeds)
    write(question, found, seeds)


def _all(missing: Sequence[Run], jobs: int, threads: int) -> Iterator[tuple[Run, dict[str, Any]]]:
    if not missing:
        return
    # The first alone: it composes the songs, for which the others would wait.
    yield missing[0], trained(missing[0], threads, WORK)
    with ThreadPoolExecutor(jobs) as pool:
        yield from zip(missing[1:], pool.map(lambda run: trained(run, threads, WORK), missing[1:]), strict=True)


def write(question: str, found: Mapping[str, Any], seeds: int) -> None:
    """Writes page and runs."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    machine = report.machine()
    where = f"{machine['processor']} ({machine['cores']} cores)"
    origin = f"`python benchmarks/quality/ablations.py {question} --seeds {seeds}`, on {where}."
    (RESULTS / f"{question}.json").write_text(json.dumps({"runs": found}, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"{question}.md").write_text(f"{page(question, found, seeds)}\n{origin}\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("question", nargs="*", default=list(QUESTIONS), help=f"{', '.join(QUESTIONS)}; all of them")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each variant (3)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trainings at once; one for each core")
    options = parser.parse_args()
    if unknown := [name for name in options.question if name not in QUESTIONS]:
        parser.error(f"{unknown[0]}: not one of {', '.join(QUESTIONS)}")
    for question in options.question:
        answer(question, options.seeds, options.jobs)
        print(page(question, done(question), options.seeds))


if __name__ == "__main__":
    main()
