"""`report.html` of one evaluation: its scores beside those of others, its songs, and some of them to hear.

The page stays small however many songs there are: beyond `SONGS` its table of songs has the best and the worst, and a
plot draws so many points at most (`plots.POINTS`, `plots.WINDOWS`). All songs are in `scores.csv`.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from stemwise.evaluation import published, statistics, tables
from stemwise.evaluation.documents import METRICS
from stemwise.evaluation.results import MIXTURE, MODEL, ORACLE, Evaluation, Scored
from stemwise.report import axes, grid, listening, page, plots
from stemwise.report.listening import Player
from stemwise.report.page import Section
from stemwise.report.plots import Series

FILE = "report.html"
SONGS = 200  # rows of the table of songs
PUBLISHED = "published by others, not measured here"
EXTREMES = 5  # of the best and the worst songs in the picture
LOOKS = {MODEL: 0, MIXTURE: 7, ORACLE: 2}


def write(
    evaluation: Evaluation, chosen: Sequence[Scored] = (), players: Sequence[Player] = (), unheard: str = ""
) -> Path:
    """Writes the page into the evaluation's folder. `chosen` are the songs that are shown over time, and heard.

    `unheard` says why there are no players, if there should be some.
    """
    about = evaluation.about
    path = evaluation.folder / FILE
    sections = [_scores(evaluation), _songs(evaluation)]
    if over_time := _over_time(evaluation, chosen):
        sections.append(over_time)
    sections.append(_above(evaluation))
    if players:
        sections.append(listening.section(players))
    elif unheard:
        sections.append(Section("listening", "Listening", Markup("<p>{}</p>").format(unheard)))
    sections.append(_method(evaluation))
    count = len(evaluation.songs)
    page.write(
        path,
        f"Evaluation of {about.model}",
        sections,
        lead=f"{count} {'song' if count == 1 else 'songs'} of {about.data}, {about.split}. Higher is better.",
        facts={
            "Stems": ", ".join(about.stems),
            "Scores": solver(about.solver),
            "Sample rate": f"{about.sample_rate} Hz",
            "Model’s band": f"up to {about.band / 1000:.1f} kHz",
            "stemwise": about.version,
        },
    )
    return path


def solver(name: str) -> str:
    return "museval (BSSEval v4)" if name == "museval" else f"BSSEval v4, solver={name}"


# Scores


def _scores(evaluation: Evaluation) -> Section:
    body = headline([evaluation]) + _measures(evaluation)
    return Section("scores", "Scores", body, styles=[grid.STYLE])


def headline(evaluations: Sequence[Evaluation]) -> Markup:
    """SDR per stem: models, mixture, oracle, and below them what others published."""
    first = evaluations[0]
    stems = first.about.stems
    rows = [_row(one, MODEL, one.about.model, stems) for one in evaluations]
    words = {MIXTURE: "unprocessed mixture", ORACLE: f"oracle, the ceiling of {first.about.model}"}
    rows += [_row(first, variant, words[variant], stems) for variant in words if variant in first.variants]
    groups = [grid.Group(rows)]
    if systems := published.beside(stems):
        groups.append(grid.Group([_published(system, stems) for system in systems], PUBLISHED))
    columns = ["SDR, dB", *stems, "mean"]
    count = len(first.songs)
    caption = f"Signal to distortion, median over {'1 song' if count == 1 else f'{count} songs'}"
    caption += ", with its 95 % interval" if count > 1 else ""
    caption += ", of which so few songs say little" if 1 < count < statistics.FEW else ""
    return grid.table("headline", caption, columns, groups, note=_beside(first) if systems else "")


def _row(one: Evaluation, variant: str, name: str, stems: Sequence[str]) -> grid.Row:
    found = [tables.summary(one, variant, stem, "SDR", "median") for stem in stems]
    mean = float(np.mean([summary.value for summary in found]))
    kind = "model" if variant == MODEL else variant
    return grid.Row(name, [*(grid.interval(summary) for summary in found), grid.decibels(mean)], kind)


def _published(system: published.System, stems: Sequence[str]) -> grid.Row:
    name = Markup("{} <small>trained on {}</small>").format(system.name, system.trained_on)
    values = [system.sdr.get(stem, math.nan) for stem in stems]
    mean = float(np.mean(values))
    return grid.Row(name, [grid.decibels(value) for value in (*values, mean)], "published")


def _beside(evaluation: Evaluation) -> str:
    about, count = evaluation.about, len(evaluation.songs)
    ours = about.data == "musdb18" and about.split == "test" and count == 50
    songs = "the same songs, if these are the whole ones" if ours else f"other songs than these {count}"
    return (
        f"Published figures are not measured here. They are of {published.SONGS}: {songs}. Where each is printed "
        "stands at the end of this page."
    )


def _measures(evaluation: Evaluation) -> Markup:
    parts = [_measure(evaluation, what) for what in ("median", "mean")]
    return Markup('<h3>All four measures</h3><div class="pair">{}{}</div>').format(*parts)


def _measure(evaluation: Evaluation, what: str) -> Markup:
    groups = []
    for stem in evaluation.about.stems:
        rows = []
        for variant in evaluation.variants:
            cells = [grid.interval(tables.summary(evaluation, variant, stem, metric, what)) for metric in METRICS]
            rows.append(grid.Row(variant, cells, variant))
        groups.append(grid.Group(rows, stem))
    caption = f"The {what} over the songs, dB, with its 95 % interval"
    return grid.table(f"{what}s", caption, ["", *METRICS], groups)


# Songs


def _songs(evaluation: Evaluation) -> Section:
    parts = [
        gallery("How the songs spread", _spreads(evaluation)),
        gallery("What is gained, and from where", _gains(evaluation)),
        _extremes(evaluation),
        _table(evaluation),
    ]
    return Section("songs", "Songs", Markup("").join(parts), [axes.STYLE, grid.STYLE], [grid.SORT])


def gallery(title: str, figures: Sequence[Markup], note: str = "", legend: Markup | None = None) -> Markup:
    if not figures:
        return Markup("")
    text = Markup('<p class="note">{}</p>').format(note) if note else Markup("")
    return Markup('<h3 class="gallery">{}</h3>{}{}<div class="plots">{}</div>').format(
        title, text, legend or "", Markup("").join(figures)
    )


def _spreads(evaluation: Evaluation) -> list[Markup]:
    stems, variants = evaluation.about.stems, evaluation.variants
    every = [evaluation.values(variant, stem) for variant in variants for stem in stems]
    return [
        axes.figure(
            plots.boxes(
                [Series(variant, evaluation.values(variant, stem), LOOKS[variant]) for variant in variants],
                every,
                f"SDR of {stem} over the songs",
            ),
            heading=stem,
        )
        for stem in stems
    ]


def _gains(evaluation: Evaluation) -> list[Markup]:
    if MIXTURE not in evaluation.variants:
        return []
    figures = []
    for stem in evaluation.about.stems:
        before, after = evaluation.values(MIXTURE, stem), evaluation.values(MODEL, stem)
        points = [(song.name, x, y) for song, x, y in zip(evaluation.songs, before, after - before, strict=True)]
        svg = plots.scatter(
            points,
            f"Improvement of {stem} against its input SDR",
            "SDR of the mixture, dB",
            "improvement, dB",
            diagonal=False,
        )
        figures.append(axes.figure(svg, heading=stem))
    return figures


def _extremes(evaluation: Evaluation) -> Markup:
    stems = evaluation.about.stems
    order = statistics.spread(evaluation.average(), len(evaluation.songs))
    parts = {"From best to worst": order}
    if len(order) > 2 * EXTREMES:
        parts = {f"The best {EXTREMES}": order[:EXTREMES], f"The worst {EXTREMES}": order[: -EXTREMES - 1 : -1]}
    rows = {title: [_values(evaluation.songs[place], stems) for place in places] for title, places in parts.items()}
    scale = [value for found in rows.values() for _, values in found for value in values.values()]
    figures = [
        axes.figure(plots.songs(found, scale, title, "SDR, dB"), heading=title)
        for title, found in rows.items()
        if found
    ]
    note = "By the mean SDR of a song’s stems."
    return gallery("Best and worst songs", figures, note, plots.legend(stems))


def _values(song: Scored, stems: Sequence[str]) -> tuple[str, Mapping[str, float]]:
    return song.name, {stem: song.medians[MODEL].get(stem, {}).get("SDR", math.nan) for stem in stems}


def _table(evaluation: Evaluation) -> Markup:
    average, before = evaluation.average(), evaluation.average(MIXTURE)
    gain = average - before
    ranked = statistics.spread(average, len(average))
    order = [*ranked, *(place for place in range(len(average)) if place not in {*ranked})]
    shown = order if len(order) <= SONGS else [*order[: SONGS // 2], *order[-SONGS // 2 :]]
    rows = []
    for place in shown:
        song = evaluation.songs[place]
        values = [average[place], gain[place], *_values(song, evaluation.about.stems)[1].values()]
        rows.append(grid.Row(song.name, [grid.length(song.seconds), *(grid.decibels(float(v)) for v in values)]))
    note = ""
    if len(shown) < len(order):
        note = f"The best and the worst {SONGS // 2} of {len(order)} songs; all of them are in scores.csv."
    columns = ["song", "length", "mean", "gained", *evaluation.about.stems]
    caption = "SDR of the model in dB, the median of a song’s windows; mean: of its stems; gained: over the mixture"
    return grid.table("song-table", caption, columns, [grid.Group(rows)], note=note, sortable=True)


# Over time, and above the band


def _over_time(evaluation: Evaluation, chosen: Sequence[Scored]) -> Section | None:
    figures = []
    for song in chosen:
        if lines := evaluation.curves(song):
            known = {stem: lines.get(stem, []) for stem in evaluation.about.stems}
            figures.append(axes.figure(plots.curves(known, f"SDR along {song.name}"), heading=song.name))
    if not figures:
        return None
    body = Markup("<p>SDR of the model in windows of one second. A gap: the stem is silent there.</p>")
    return Section(
        "time",
        "Along the songs",
        body + Markup('<div class="plots">{}</div>').format(Markup("").join(figures)),
        [axes.STYLE],
    )


def _above(evaluation: Evaluation) -> Section:
    about = evaluation.about
    known = [np.isfinite(evaluation.above(stem)).sum() for stem in about.stems]
    title = f"Above {about.band / 1000:.1f} kHz"
    if not any(known):
        words = "Not measured: the songs were scored by an older version. Songs that are scored anew have it."
        return Section("band", title, Markup("<p>{}</p>").format(words))
    series = [Series(stem, evaluation.above(stem), look) for look, stem in enumerate(about.stems)]
    svg = plots.shares(series, f"Energy of the true stems above {about.band / 1000:.1f} kHz")
    words = (
        "The model’s networks see nothing above their band. What a true stem has there is lost, or left to the mask’s "
        "extension: a share of 1 % that is lost bounds the SDR at 20 dB, one of 10 % at 10 dB."
    )
    rows = [
        grid.Row(
            stem,
            [
                plots.per_cent(np.nanmedian(values)),
                plots.per_cent(np.nanmax(values)),
                str(int(np.isfinite(values).sum())),
            ],
        )
        for stem in about.stems
        for values in [evaluation.above(stem)]
        if np.isfinite(values).any()
    ]
    table = grid.table("band-table", "Share of the energy", ["stem", "median", "most", "songs"], [grid.Group(rows)])
    body = Markup('<p>{}</p><div class="plots">{}{}</div>').format(words, axes.figure(svg), table)
    return Section("band", title, body, [axes.STYLE, grid.STYLE])


# How it was measured


def _method(evaluation: Evaluation) -> Section:
    notes = [
        "SDR, SIR, SAR and ISR are those of BSSEval v4. A song’s score is the median of its windows of one second; "
        "medians and means are over songs.",
        "The mixture’s scores are those of handing out the mixture as every stem. The oracle divides the mixture by "
        "the model’s mask rule on the true stems: the ceiling of this model.",
        f"Intervals: percentile bootstrap over songs, {statistics.DRAWS} draws with seed {statistics.SEED}. They say "
        "how far other songs of this kind might move a number, and nothing of other kinds; of few songs they say "
        "little.",
        *silent(evaluation),
        f"Plots draw at most {plots.POINTS} songs, evenly over their ranks, and boxes and medians are those of all. "
        f"The numbers behind this page: scores.csv, scores.json and {MODEL}/ beside it.",
    ]
    return method(notes, evaluation.about.stems)


def silent(evaluation: Evaluation) -> list[str]:
    """A sentence on the songs of which a stem has no score, if there are any."""
    counts = {stem: int(np.isnan(evaluation.values(MODEL, stem)).sum()) for stem in evaluation.about.stems}
    found = ", ".join(f"{stem} in {count}" for stem, count in counts.items() if count)
    return [f"Without a score, because the stem or its estimate is silent (number of songs): {found}."] if found else []


def method(notes: Sequence[str], stems: Sequence[str]) -> Section:
    """The last section: how things were measured, and where the published figures are printed."""
    items = [Markup("<li>{}</li>").format(note) for note in notes]
    if systems := published.beside(stems):
        where = "; ".join(f"{system.name} ({system.trained_on}): {system.printed_in}" for system in systems)
        items.append(Markup("<li>Published figures: {}.</li>").format(where))
    body = Markup('<ul class="notes">{}</ul>').format(Markup("").join(items))
    return Section("method", "How this was measured", body, [grid.STYLE])
