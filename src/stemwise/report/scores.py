"""Tables of scores: of one model or several, beside the mixture, the oracle, and what others published."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from stemwise.evaluation import published, statistics
from stemwise.evaluation.documents import METRICS
from stemwise.evaluation.results import MIXTURE, MODEL, ORACLE, About, Evaluation
from stemwise.report import grid

Models = Mapping[str, Evaluation]
"""Evaluations of the same songs and stems by what the page calls their models. Mixture and oracle are the first's."""

PUBLISHED = "published by others, not measured here"


def first(models: Models) -> Evaluation:
    return next(iter(models.values()))


def headline(models: Models) -> Markup:
    """SDR per stem: models, mixture, oracle, and below them what others published."""
    one, (name, *_) = first(models), models
    stems = one.about.stems
    rows = [_row(evaluation, MODEL, name, stems) for name, evaluation in models.items()]
    words = {MIXTURE: "unprocessed mixture", ORACLE: f"oracle, the ceiling of {name}"}
    rows += [_row(one, variant, words[variant], stems) for variant in words if variant in one.variants]
    groups = [grid.Group(rows)]
    if systems := published.beside(one.about):
        groups.append(grid.Group([_published(system, stems) for system in systems], PUBLISHED))
    columns = ["SDR, dB", *stems, "mean"]
    count = len(one.songs)
    caption = f"Signal to distortion, median over {'1 song' if count == 1 else f'{count} songs'}"
    caption += ", with its 95 % interval" if count > 1 else ""
    caption += ", of which so few songs say little" if 1 < count < statistics.FEW else ""
    return grid.table("headline", caption, columns, groups, note=_beside(one) if systems else "")


def _row(one: Evaluation, variant: str, name: str, stems: Sequence[str]) -> grid.Row:
    found = [one.summary(variant, stem) for stem in stems]
    mean = float(np.mean([summary.value for summary in found]))
    kind = "model" if variant == MODEL else variant
    return grid.Row(name, [*(grid.stacked(summary) for summary in found), grid.decibels(mean)], kind)


def _published(system: published.System, stems: Sequence[str]) -> grid.Row:
    name = Markup("{} <small>{}; trained on {}</small>").format(system.name, system.origin, system.trained_on)
    values = [system.scores.get(stem, {}).get("SDR", math.nan) for stem in stems]
    mean = float(np.mean(values))
    return grid.Row(name, [grid.decibels(value) for value in (*values, mean)], "published")


def _beside(evaluation: Evaluation) -> str:
    about, count = evaluation.about, len(evaluation.songs)
    ours = about.data == "musdb18" and about.split == "test" and count == 50
    songs = "the same songs, if these are the whole ones" if ours else f"other songs than these {count}"
    return (
        f"Published figures are not measured here. They are of {published.WHOLE} or MUSDB18-HQ’s: {songs}. "
        "Second-hand ones are taken from others who quote them. What each was trained and scored on and where it is "
        "printed stands at the end of this page."
    )


def measures(models: Models) -> Markup:
    """All four measures per stem, the medians and the means."""
    parts = [_measure(models, statistic) for statistic in ("median", "mean")]
    return Markup('<h3>All four measures</h3><div class="pair">{}{}</div>').format(*parts)


def _measure(models: Models, statistic: str) -> Markup:
    one, stems = first(models), first(models).about.stems
    rows = [(name, evaluation, MODEL) for name, evaluation in models.items()]
    rows += [(variant, one, variant) for variant in one.variants if variant != MODEL]
    groups = []
    for stem in stems:
        found = [
            grid.Row(name, [grid.stacked(which.summary(variant, stem, m, statistic)) for m in METRICS], variant)
            for name, which, variant in rows
        ]
        if statistic == "median":
            found += [_all_measures(system, stem) for system in published.beside(one.about) if system.is_whole]
        groups.append(grid.Group(found, stem))
    caption = f"The {statistic} over the songs, dB, with its 95 % interval"
    caption += (
        "; in italics what was published by others" if published.beside(one.about) and statistic == "median" else ""
    )
    return grid.table(f"{statistic}s", caption, ["", *METRICS], groups)


def _all_measures(system: published.System, stem: str) -> grid.Row:
    values = system.scores.get(stem, {})
    name = Markup("{} <small>{}</small>").format(system.name, system.origin)
    return grid.Row(name, [grid.decibels(values.get(metric, math.nan)) for metric in METRICS], "published")


def sources(about: About) -> list[str]:
    """A sentence on each published system that stands on the page."""
    return [published.source(system) for system in published.beside(about)]
