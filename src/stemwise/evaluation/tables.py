"""An evaluation as tables for others to read: a CSV of every song, and Markdown for a README."""

import csv
import io
import math
import re
from collections.abc import Iterator

from stemwise.evaluation import published
from stemwise.evaluation.documents import METRICS
from stemwise.evaluation.pairing import Paired, verdict
from stemwise.evaluation.results import MIXTURE, MODEL, Evaluation, Scored
from stemwise.evaluation.statistics import Summary

COLUMNS = ("song", "seconds", "variant", "stem", *METRICS, "SDR_improvement", "energy_above_band")


def songs_csv(evaluation: Evaluation) -> str:
    """A row per song, variant and stem: dB; seconds; the improvement of SDR over the mixture's; a share from 0 to 1.

    What is not known is empty: a stem that is silent has no score.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for song in evaluation.songs:
        writer.writerows(_rows(song, evaluation))
    return text.getvalue()


def _rows(song: Scored, evaluation: Evaluation) -> Iterator[list[str]]:
    for variant in evaluation.variants:
        for stem in evaluation.about.stems:
            metrics = song.medians.get(variant, {}).get(stem, {})
            sdr = metrics.get("SDR", math.nan)
            before = song.medians.get(MIXTURE, {}).get(stem, {}).get("SDR", math.nan)
            numbers = [*(metrics.get(metric, math.nan) for metric in METRICS), sdr - before]
            share = song.above.get(stem, math.nan)
            yield [
                song.name,
                f"{song.seconds:.3f}",
                variant,
                stem,
                *(digits(n, 5) for n in numbers),
                digits(share, 8),
            ]


def digits(number: float, count: int = 5) -> str:
    """A number for a CSV; nothing of what is not known."""
    return f"{number:.{count}f}" if math.isfinite(number) else ""


def markdown(evaluation: Evaluation) -> str:
    """SDR per stem of model, baselines and published systems, with intervals; then means."""
    stems = evaluation.about.stems
    heads = f"| SDR, dB | {' | '.join(map(cell, stems))} |\n|---|{'---:|' * len(stems)}"
    lines = [f"Median over {_count(evaluation)} with its 95 % interval (bootstrap over songs):", "", heads]
    lines += [_line(variant, evaluation, "median") for variant in evaluation.variants]
    systems = published.beside(evaluation.about)
    for system in systems:
        cells = " | ".join(f"{system.scores[stem]['SDR']:.2f}" if stem in system.scores else "" for stem in stems)
        lines.append(f"| *{system.name} ({system.origin}), trained on {system.trained_on} (published)* | {cells} |")
    if systems:
        lines += ["", "Published by others, not measured here:", ""]
        lines += [f"- {published.source(system)}" for system in systems]
    lines += ["", "Mean over the songs with its 95 % interval:", "", heads]
    lines += [_line(variant, evaluation, "mean") for variant in evaluation.variants]
    return "\n".join(lines) + "\n"


def _line(variant: str, evaluation: Evaluation, statistic: str) -> str:
    cells = [bracketed(evaluation.summary(variant, stem, statistic=statistic)) for stem in evaluation.about.stems]
    name = evaluation.about.model if variant == MODEL else variant
    return f"| {cell(name)} | {' | '.join(cells)} |"


def cell(name: str) -> str:
    """A name as a cell of a Markdown table shows it: nothing in it is markup, or ends the cell or the line."""
    visible = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda found: repr(found[0])[1:-1], name)
    return re.sub(r"[\\`*<>|\[\]]", r"\\\g<0>", visible)


def bracketed(found: Summary) -> str:
    """`4.32 [3.90, 4.71]`, or what there is of it."""
    if not math.isfinite(found.value):
        return "–"
    if not math.isfinite(found.low):
        return f"{found.value:.2f}"
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _count(evaluation: Evaluation) -> str:
    return f"{len(evaluation.songs)} song{'' if len(evaluation.songs) == 1 else 's'}"


def differences_csv(paired: Paired) -> str:
    """A row per song and stem: SDR of each model, and how far each is above the first."""
    first, *others = names = [one.about.model for one in paired.evaluations]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["song", "stem", *(f"SDR {name}" for name in names), *(f"{name} - {first}" for name in others)])
    for place, song in enumerate(paired.evaluations[0].songs):
        for stem in paired.stems:
            values = [float(one.values(MODEL, stem)[place]) for one in paired.evaluations]
            numbers = [*values, *(value - values[0] for value in values[1:])]
            writer.writerow([song.name, stem, *(digits(number) for number in numbers)])
    return text.getvalue()


def differences_markdown(paired: Paired) -> str:
    """The paired differences of each model and the first, per stem."""
    lines = ["| SDR | stem | mean difference, dB | 95 % interval | better | worse | equal | taken together |"]
    lines.append("|---|---|---:|---|---:|---:|---:|---|")
    first, *others = [cell(one.about.model) for one in paired.evaluations]
    for number, name in enumerate(others, 1):
        for stem, (_, found) in paired.differences(number).items():
            mean = found.mean
            value = f"{mean.value:+.2f}" if math.isfinite(mean.value) else "–"
            ends = f"{mean.low:+.2f} to {mean.high:+.2f}" if math.isfinite(mean.low) else "–"
            counts = f"{found.better} | {found.worse} | {found.equal}"
            lines.append(
                f"| {name} − {first} | {cell(stem)} | {value} | {ends} | {counts} | {verdict(found, name, first)} |"
            )
    return "\n".join(lines) + "\n"
