"""`report.html` of a comparison: the page of an evaluation for several models, and where which of them is better.

The first model is what the others are measured against. The page's size is bounded as that of `evaluation`.
"""

import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from stemwise.evaluation import pairing, statistics
from stemwise.evaluation.pairing import Paired, verdict
from stemwise.evaluation.results import MODEL
from stemwise.report import axes, evaluation, galleries, grid, listening, page, plots, scores
from stemwise.report.evaluation import SONGS
from stemwise.report.galleries import gallery
from stemwise.report.listening import Player
from stemwise.report.page import Section
from stemwise.report.scores import Models

ALONG = 4  # songs that are shown over time, each with a picture for every stem


def write(paired: Paired, folder: Path, players: Sequence[Player] = (), unheard: str = "") -> Path:
    """Writes the page. `unheard` says why songs to hear are missing, if any are."""
    evaluations, count = paired.evaluations, len(paired.evaluations[0].songs)
    about = evaluations[0].about
    models = {letter(number): one for number, one in enumerate(evaluations)}
    along = galleries.along(models, statistics.spread(paired.average_difference(1), ALONG))
    sections = [
        _scores(paired, models),
        _where(paired),
        _songs(paired, models),
        Section("time", "Along the songs", along, [axes.STYLE]),
        Section("band", "Above the models’ bands", galleries.above(models), [axes.STYLE, grid.STYLE]),
        *listening.sections(players, unheard),
        _method(paired),
    ]
    path = folder / page.FILE
    page.write(
        path,
        f"{' and '.join(one.about.model for one in evaluations)} compared",
        sections,
        lead=f"The same {'song' if count == 1 else f'{count} songs'} of {about.data}, {about.split}. Higher is better.",
        facts={name: one.about.model for name, one in models.items()},
    )
    return path


def letter(number: int) -> str:
    """What the page calls a model in short."""
    return string.ascii_uppercase[number] if number < 26 else str(number + 1)


# Scores


def _scores(paired: Paired, models: Models) -> Section:
    notes = [Markup('<p class="note">{}</p>').format(note) for note in paired.notes]
    named = {f"{name}: {one.about.model}": one for name, one in models.items()}
    parts = [
        *notes,
        scores.headline(named),
        *(_against(paired, number) for number in range(1, len(models))),
        scores.measures(models),
    ]
    return Section("scores", "Scores", Markup("").join(parts), [grid.STYLE, axes.STYLE])


def _against(paired: Paired, number: int) -> Markup:
    found = paired.differences(number)
    first, name = letter(0), letter(number)
    rows = [
        grid.Row(
            stem,
            [
                grid.stacked(one.mean, sign=True),
                grid.stacked(one.median, sign=True),
                str(one.better),
                str(one.worse),
                str(one.equal),
                verdict(one, name, first),
            ],
        )
        for stem, (_, one) in found.items()
    ]
    columns = ["stem", "mean", "median", f"{name} better", f"{first} better", "equal", "taken together"]
    caption = f"SDR of {name} minus SDR of {first}, song by song, dB, with 95 % intervals; then the number of songs"
    table = grid.table(f"difference-{name}", caption, columns, [grid.Group(rows)])
    svg = plots.differences(
        [(stem, values, one.mean) for stem, (values, one) in found.items()],
        f"SDR of {name} minus SDR of {first} per song",
        f"SDR of {name} − SDR of {first}, dB",
    )
    caption = f"A mark for each song; the bar is the mean with its interval. Right of zero, {name} is better."
    return Markup('<h3 class="gallery">{} against {}</h3>{}<div class="plots">{}</div>').format(
        name, first, table, axes.figure(svg, caption)
    )


def _where(paired: Paired) -> Section:
    parts = []
    for number in range(1, len(paired.evaluations)):
        first, other = paired.evaluations[0], paired.evaluations[number]
        figures = []
        for stem in paired.stems:
            pairs = zip(first.songs, first.values(MODEL, stem), other.values(MODEL, stem), strict=True)
            points = [(song.name, float(x), float(y)) for song, x, y in pairs]
            name = letter(number)
            svg = plots.scatter(
                {"": points}, f"SDR of {stem}", f"SDR of {letter(0)}, dB", f"SDR of {name}, dB", diagonal=True
            )
            figures.append(axes.figure(svg, heading=stem))
        note = f"A mark for each song; above the dashed line, {letter(number)} is better."
        parts.append(gallery(f"{letter(number)} against {letter(0)}, song by song", figures, note))
    return Section("where", "Which is better where", Markup("").join(parts), [axes.STYLE])


def _songs(paired: Paired, models: Models) -> Section:
    parts = [galleries.spreads(models), galleries.gains(models), galleries.extremes(models), _table(paired)]
    return Section("songs", "Songs", Markup("").join(parts), [axes.STYLE, grid.STYLE], [grid.SORT])


def _table(paired: Paired) -> Markup:
    models = paired.evaluations
    apart = np.stack([paired.average_difference(number) for number in range(1, len(models))])
    widest = np.where(np.isfinite(apart), np.abs(apart), -1).max(axis=0)
    order = np.argsort(-widest, kind="stable")[:SONGS]
    averages = pairing.averages(models)
    rows = []
    for place in order:
        song = models[0].songs[place]
        cells = [grid.decibels(float(values[place])) for values in averages]
        for number in range(1, len(models)):
            cells.append(grid.signed(float(apart[number - 1, place])))
            cells += [grid.signed(float(paired.difference(number, stem)[place])) for stem in paired.stems]
        rows.append(grid.Row(song.name, cells))
    columns = ["song", *(letter(number) for number in range(len(models)))]
    for number in range(1, len(models)):
        minus = f"{letter(number)} − {letter(0)}"
        columns += [minus, *(f"{stem}" if len(models) == 2 else f"{stem}, {minus}" for stem in paired.stems)]
    note = ""
    if len(widest) > SONGS:
        note = f"The {SONGS} songs that differ most, of {len(widest)}; all of them are in comparison.csv."
    caption = (
        "Mean SDR per model, over the stems of a song for which all of them have a score, and differences per stem, "
        "dB; what differs most comes first"
    )
    return grid.table("song-table", caption, columns, [grid.Group(rows)], note=note, sortable=True)


def _method(paired: Paired) -> Section:
    first = paired.evaluations[0].about
    notes = [
        *evaluation.bss_eval(first, f"The oracle divides the mixture by {letter(0)}’s mask rule on the true stems."),
        f"{letter(0)} is the first folder that was named, and what the others are compared with. Mixture and oracle "
        "are those of its evaluation; a model with another mask rule or band has another ceiling.",
        f"Intervals: percentile bootstrap over songs, {statistics.DRAWS} draws with seed {statistics.SEED}; of "
        "differences, of the songs’ own. One model is called better where the interval of the "
        f"mean leaves out zero, of {statistics.FEW} songs or more. Of twenty such verdicts on equal models, one comes "
        "by chance, and each stem is a verdict of its own.",
    ]
    for number, one in enumerate(paired.evaluations):
        about = one.about
        how = f"{evaluation.solver(about.solver)}, {about.sample_rate} Hz, band up to {about.band / 1000:.1f} kHz"
        notes.append(f"{letter(number)} is {about.model}: {how}.")
        notes += [f"{letter(number)}: {sentence}" for sentence in evaluation.silent(one)]
    return evaluation.method(notes, first)
