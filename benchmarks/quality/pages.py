"""The page of a question: a table of its variants, made of the runs that are there."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import report
from quality.questions import Overrides, Question
from quality.runs import Run
from scipy.stats import t

Found = Mapping[str, Mapping[str, Any]]
"""Runs by what they were started with."""
Taken = Mapping[int, Sequence[Mapping[str, Any]]]
"""A variant's run of each split, by seed."""
COLUMNS = ("variant", "SDR, dB", "above the mixture", "of each seed", "against the first", "CPU minutes a run")
SIZES = ("million weights", "times real time")
READ = (
    "± behind a score is the standard deviation over seeds. Differences are those of the same seed{0}; ± behind their "
    "mean is half of its 95 % interval (Student's), and where that holds zero there is none."
)


def page(name: str, question: Question, found: Found, seeds: int, models: Found) -> str:
    """The question's table, how it is to be read, and the picture `NAME.svg` (`curves`).

    `models` are sizes and speeds by overrides, if the question asks for them.
    """
    runs = variants(question, found, seeds)
    first = next(iter(runs))
    rows = [(variant, *_row(own, runs[first], variant == first)) for variant, own in runs.items()]
    columns = COLUMNS
    if models:
        columns = (*COLUMNS, *SIZES)
        own = [(*question.recipe, *extra) for extra in question.variants.values()]
        rows = [(*row, *_size(models[" ".join(overrides)])) for row, overrides in zip(rows, own, strict=True)]
    splits = len(question.splits) > 1
    over = f" and over the splits {', '.join(question.splits)}" if splits else ""
    return (
        f"# {name.capitalize()}\n\nThe mean over stems and songs that were not trained on{over}. "
        f"{READ.format(' and split' if splits else '')}\n\n{report.table(columns, rows)}\n\n"
        f"{_full_size(question, models)}![Learning curves]({name}.svg)\n\n"
        "The recipe, to which a variant adds what its line in `benchmarks/quality/questions.py` says:\n\n"
        f"    python -m train {' '.join(question.recipe)}\n"
    )


def _full_size(question: Question, models: Found) -> str:
    """The table of the models that were not trained."""
    if not models:
        return ""
    rows = [(f"`{name}`", *_size(models[" ".join(one)])) for name, one in question.full_size.items()]
    return (
        "Speed is that of separation, in seconds of a song for a second of one core. At full size, 44.1 kHz and stereo "
        f"with 4 stems, not trained for this page:\n\n{report.table(('model', *SIZES), rows)}\n\n"
    )


def _size(model: Mapping[str, Any]) -> tuple[str, str]:
    return f"{model['weights'] / 1e6:.2f}", f"{model['speed']:.3g}"


def variants(question: Question, found: Found, seeds: int) -> dict[str, Taken]:
    """The runs of each variant."""
    return {name: taken(question, extra, found, seeds) for name, extra in question.variants.items()}


def taken(question: Question, extra: Overrides, found: Found, seeds: int) -> Taken:
    """The runs of a variant, of those seeds for which all splits are there."""
    keys = {
        seed: [Run("", (*question.recipe, *split, *extra), seed).key for split in question.splits.values()]
        for seed in range(seeds)
    }
    return {seed: [found[key] for key in own] for seed, own in keys.items() if all(key in found for key in own)}


def _row(runs: Taken, reference: Taken, is_first: bool) -> tuple[str, ...]:
    if not runs:
        return "not run", "", "", "", ""
    scores = [statistics.mean(run["sdr"]["mean"] for run in own) for own in runs.values()]
    above = statistics.mean(run["improvement"] for own in runs.values() for run in own)
    minutes = statistics.median(run["cpu_seconds"] for own in runs.values() for run in own) / 60
    spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    both = [seed for seed in runs if seed in reference]
    apart = difference(_scores(runs, both), _scores(reference, both))
    each = " ".join(f"{score:.2f}" for score in scores)
    score = f"{statistics.mean(scores):.2f}{spread}"
    return score, f"{above:.2f}", each, "" if is_first else apart, f"{minutes:.1f}"


def _scores(runs: Taken, seeds: Sequence[int]) -> list[float]:
    return [run["sdr"]["mean"] for seed in seeds for run in runs[seed]]


def difference(scores: Sequence[float], reference: Sequence[float]) -> str:
    """The mean of paired differences with half of its 95 % interval, `+0.31 ± 0.12`; `none (…)` if that holds zero."""
    apart = [one - other for one, other in zip(scores, reference, strict=True)]
    if len(apart) < 2:
        return "one run"
    mean, error = statistics.mean(apart), statistics.stdev(apart) / math.sqrt(len(apart))
    half = float(t.ppf(0.975, len(apart) - 1)) * error
    text = f"{mean:+.2f} ± {half:.2f}"
    return text if abs(mean) > half else f"none ({text})"
