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
    over = f", and over the splits {', '.join(question.splits)}" if splits else ""
    read = READ.format(" and split" if splits else "")
    return (
        f"# {question.title or name.capitalize()}\n\n"
        f"The mean over stems and over songs that were not trained on{over}. {read}\n\n"
        f"{report.table(columns, rows)}\n\n"
        f"{_museval(question, runs)}{_full_size(question, models)}![Learning curves]({name}.svg)\n\n{_recipe(question)}"
    )


def _recipe(question: Question) -> str:
    """How a run is started, and what a split is."""
    splits = "".join(f"\n- {name}: `{' '.join(split)}`" for name, split in question.splits.items() if split)
    ours = "PYTHONPATH=benchmarks " if "quality." in splits else ""  # a data set of these benchmarks
    return (
        "The recipe, to which a variant adds what its line in `benchmarks/quality/questions.py` says"
        f"{', and each split its own' if splits else ''}:\n\n    {ours}python -m train {' '.join(question.recipe)}\n"
        f"{splits}{splits and chr(10)}"
    )


def _museval(question: Question, runs: Mapping[str, Taken]) -> str:
    """The table of museval's scores: of each stem the median over songs, of all splits, of medians over windows."""
    if not question.museval:
        return ""
    seeds = {variant: [medians(each) for each in own.values()] for variant, own in runs.items() if own}
    stems = next(iter(seeds.values()), [{}])[0]
    rows = [(name, *(_spread([one[stem] for one in each]) for stem in stems)) for name, each in seeds.items()]
    return (
        "museval's SDR of the same songs, dB: the median over songs, of all splits, of their medians over windows of a "
        f"second.\n\n{report.table(('variant', *stems), rows)}\n\n"
    )


def medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of each stem the median over the songs of these runs that have it, and the mean of stems."""
    songs = [song for run in runs for song in run["museval"].values()]
    stems = dict.fromkeys(stem for song in songs for stem in song)
    found = {stem: statistics.median(song[stem] for song in songs if stem in song) for stem in stems}
    return {**found, "mean": statistics.mean(found.values())}


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


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
    both = [seed for seed in runs if seed in reference]
    apart = difference(_scores(runs, both), _scores(reference, both))
    each = " ".join(f"{score:.2f}" for score in scores)
    return _spread(scores), f"{above:.2f}", each, "" if is_first else apart, f"{minutes:.1f}"


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
