"""`report.html` of one evaluation: its scores beside those of others, its songs, and some of them to hear.

The page stays small however many songs there are: beyond `SONGS` its table of songs has the best and the worst, `ALONG`
of them are shown over time, and a plot draws so many points at most (`plots.POINTS`, `plots.WINDOWS`). All songs are in
`scores.csv`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from stemwise.evaluation import statistics
from stemwise.evaluation.results import MODEL, About, Evaluation
from stemwise.report import axes, galleries, grid, listening, page, plots, scores
from stemwise.report.listening import Player
from stemwise.report.page import Section

SONGS = 200  # rows of the table of songs
ALONG = 12  # songs that are shown over time


def write(evaluation: Evaluation, players: Sequence[Player] = (), unheard: str = "") -> Path:
    """Writes the page into the evaluation's folder. `unheard` says why songs to hear are missing, if any are."""
    about = evaluation.about
    path = evaluation.folder / page.FILE
    models = {MODEL: evaluation}
    tables = scores.headline({about.model: evaluation}) + scores.measures(models)
    along = galleries.along(models, statistics.spread(evaluation.standing(), ALONG))
    sections = [
        Section("scores", "Scores", tables, [grid.STYLE]),
        _songs(evaluation),
        Section("time", "Along the songs", along, [axes.STYLE]),
        Section("band", f"Above {galleries.kilohertz(about.band)}", galleries.above(models), [axes.STYLE, grid.STYLE]),
        *listening.sections(players, unheard),
        _method(evaluation),
    ]
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
            "Model’s band": f"up to {galleries.kilohertz(about.band)}",
            "stemwise": about.version,
        },
    )
    return path


def solver(name: str) -> str:
    return {"museval": "museval (BSSEval v4)", "mir_eval": "mir_eval (BSSEval v3, whole songs)"}.get(
        name, f"BSSEval v4, solver={name}"
    )


def _songs(evaluation: Evaluation) -> Section:
    models = {MODEL: evaluation}
    parts = [galleries.spreads(models), galleries.gains(models), galleries.extremes(models), _table(evaluation)]
    return Section("songs", "Songs", Markup("").join(parts), [axes.STYLE, grid.STYLE], [grid.SORT])


def _table(evaluation: Evaluation) -> Markup:
    average, gain = evaluation.average(), evaluation.gain()
    ranked = galleries.ranked({MODEL: evaluation})
    known = {*ranked}
    order = [*ranked, *(place for place in range(len(average)) if place not in known)]
    shown = order if len(order) <= SONGS else [*order[: SONGS // 2], *order[-SONGS // 2 :]]
    stems = [evaluation.values(MODEL, stem) for stem in evaluation.about.stems]
    rows = []
    for place in shown:
        song = evaluation.songs[place]
        values = [grid.decibels(float(of[place])) for of in (average, gain, *stems)]
        rows.append(grid.Row(song.name, [grid.length(song.seconds), *values]))
    note = ""
    if len(shown) < len(order):
        note = f"The best and the worst {SONGS // 2} of {len(order)} songs; all of them are in scores.csv."
    columns = ["song", "length", "mean", "gained", *evaluation.about.stems]
    windows = ", the median of a song’s windows" if evaluation.about.of_windows else ""
    caption = (
        f"SDR of the model in dB{windows}; mean: of its stems that have a score; gained: over the mixture, of the "
        "stems for which both have one"
    )
    return grid.table("song-table", caption, columns, [grid.Group(rows)], note=note, sortable=True)


def _method(evaluation: Evaluation) -> Section:
    notes = [
        *bss_eval(
            evaluation.about,
            "The oracle divides the mixture by the model’s mask rule on the true stems: the ceiling of this model.",
        ),
        f"Intervals: percentile bootstrap over songs, {statistics.DRAWS} draws with seed {statistics.SEED}. They say "
        "how far other songs of this kind might move a number, and nothing of other kinds; of few songs they say "
        "little.",
        *silent(evaluation),
        f"Plots draw at most {plots.POINTS} songs, evenly over their ranks, and boxes and medians are those of all. "
        f"The numbers behind this page: scores.csv, scores.json and {MODEL}/ beside it.",
    ]
    return method(notes, evaluation.about)


def bss_eval(about: About, oracle: str) -> list[str]:
    """What the measures are, and what is beside a model."""
    measures = "SDR, SIR and SAR are those of BSSEval v3, of whole songs"
    if about.of_windows:
        measures = "SDR, SIR, SAR and ISR are those of BSSEval v4. A song’s score is the median of its windows of one "
        measures += "second"
    return [
        f"{measures}; medians and means are over songs.",
        f"The mixture’s scores are those of handing out the mixture as every stem. {oracle}",
    ]


def silent(evaluation: Evaluation) -> list[str]:
    """A sentence on the songs of which a stem has no score, if there are any."""
    counts = {stem: int(np.isnan(evaluation.values(MODEL, stem)).sum()) for stem in evaluation.about.stems}
    found = ", ".join(f"{stem} in {count}" for stem, count in counts.items() if count)
    return [f"Without a score, because the stem or its estimate is silent (number of songs): {found}."] if found else []


def method(notes: Sequence[str], about: About) -> Section:
    """The last section: how things were measured, and where the published figures are printed."""
    items = [Markup("<li>{}</li>").format(note) for note in notes]
    body = Markup('<ul class="notes">{}</ul>').format(Markup("").join(items))
    if sources := [Markup("<li>{}</li>").format(source) for source in scores.sources(about)]:
        body += Markup('<h3 class="gallery">Published figures</h3><ul class="notes">{}</ul>').format(
            Markup("").join(sources)
        )
    return Section("method", "How this was measured", body, [grid.STYLE])
