"""What each part of a recipe is worth: `python benchmarks/quality/ablations.py augmentation`, or another question.

Every variant (`questions.py`) is trained with several seeds, and scored with the SDR (uSDR, dB) of songs that it was
not trained on, averaged over stems and songs. A run that is done is not done again: it is in
`benchmarks/results/quality/QUESTION.json`, under what it was started with. The page beside it says how far apart seeds
are; a difference from the recipe that chance may have made is none.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the other scripts, which find each other by name

import report
from quality import curves, pages, runs, sizes
from quality.questions import QUESTIONS
from quality.runs import Run

RESULTS = report.RESULTS / "quality"


def answer(name: str, seeds: int, jobs: int, root: Path | None = None) -> None:
    """Trains what is missing, some at a time, and writes table and runs after each."""
    songs = runs.songs(QUESTIONS[name], root)
    found = done(name)
    models = sizes.measured(QUESTIONS[name], kept(name, "models"))
    missing = [run for run in runs.needed(QUESTIONS[name], seeds) if run.key not in found]
    for number, (run, result) in enumerate(_all(missing, jobs, songs), 1):
        found[run.key] = result
        print(f"{number} of {len(missing)}: {run.variant}, seed {run.seed}: {result['sdr']['mean']:.2f} dB", flush=True)
        write(name, found, seeds, models)
    write(name, found, seeds, models)


def done(name: str) -> dict[str, dict[str, Any]]:
    """The runs of a question that are there, by what they were started with."""
    return kept(name, "runs")


def kept(name: str, part: str) -> dict[str, dict[str, Any]]:
    """A part of what a question's file has: `runs`, or `models` with their sizes."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")).get(part, {}) if path.exists() else {}


def _all(missing: Sequence[Run], jobs: int, songs: Path) -> Iterator[tuple[Run, dict[str, Any]]]:
    if not missing:
        return
    threads = max((os.cpu_count() or 1) // jobs, 1)

    def trained(run: Run) -> dict[str, Any]:
        return runs.trained(run, threads, runs.WORK, songs)

    # The first alone: it composes the songs, for which the others would wait.
    yield missing[0], trained(missing[0])
    with ThreadPoolExecutor(jobs) as pool:
        yield from zip(missing[1:], pool.map(trained, missing[1:]), strict=True)


def write(name: str, found: Mapping[str, Any], seeds: int, models: Mapping[str, Any]) -> None:
    """Writes page, picture and runs."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    machine = report.machine()
    where = f"{machine['processor']} ({machine['cores']} cores)"
    origin = f"`python benchmarks/quality/ablations.py {name} --seeds {seeds}`, on {where}."
    text = f"{pages.page(name, QUESTIONS[name], found, seeds, models)}\n{origin}\n"
    (RESULTS / f"{name}.json").write_text(_lines({"runs": found, "models": models}), encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    svg = curves.picture(name, pages.variants(QUESTIONS[name], found, seeds))
    (RESULTS / f"{name}.svg").write_text(svg, encoding="utf-8")


def _lines(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """JSON with a run a line; a part that is empty is left out."""
    texts = []
    for name, part in parts.items():
        lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(one)}" for key, one in part.items())
        texts += [f"{json.dumps(name)}: {{\n{lines}\n}}"] if part else []
    return f"{{{', '.join(texts)}}}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("question", nargs="*", default=list(QUESTIONS), help=f"{', '.join(QUESTIONS)}; all of them")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each variant (3)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="trainings at once; one for each core")
    parser.add_argument("--root", type=Path, help="the recordings of the question (../shared/data/NAME)")
    options = parser.parse_args()
    if unknown := [name for name in options.question if name not in QUESTIONS]:
        parser.error(f"{unknown[0]}: not one of {', '.join(QUESTIONS)}")
    if options.root and (len(options.question) > 1 or not QUESTIONS[options.question[0]].recordings):
        parser.error(f"--root {options.root}: it is for one question about recordings. Name that question alone.")
    for name in options.question:
        answer(name, options.seeds, options.jobs, options.root)
        print((RESULTS / f"{name}.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
