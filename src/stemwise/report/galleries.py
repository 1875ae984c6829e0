"""Pictures of songs and their scores, of one model or several: how they spread, what was gained, the best and worst,
along the songs, and above the band.

With one model a mark or line is a stem's; with several it is a model's, and each stem has a picture of its own.
"""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from stemwise.evaluation import pairing, statistics
from stemwise.evaluation.results import MIXTURE, MODEL, ORACLE, Evaluation
from stemwise.report import axes, grid, plots
from stemwise.report.plots import Series
from stemwise.report.scores import Models, first

UNMEASURED = Markup(
    "<p>Not measured: all stems are silent, or an older version scored them. Evaluate once more: scores are kept.</p>"
)
EXTREMES = 5  # of the best and the worst songs in the picture
LOOKS = {MIXTURE: 7, ORACLE: 2}  # of the baselines beside one model


def gallery(title: str, figures: Sequence[Markup], note: str = "", legend: Markup | None = None) -> Markup:
    """Pictures below a heading; nothing if there are none."""
    if not figures:
        return Markup("")
    text = Markup('<p class="note">{}</p>').format(note) if note else Markup("")
    return Markup('<h3 class="gallery">{}</h3>{}{}<div class="plots">{}</div>').format(
        title, text, legend or "", Markup("").join(figures)
    )


def spreads(models: Models) -> Markup:
    """A box for each model, and beside a single one those of the baselines."""
    one, stems = first(models), first(models).about.stems
    rows = [(name, evaluation, MODEL, look) for look, (name, evaluation) in enumerate(models.items())]
    if len(models) == 1:
        rows += [(variant, one, variant, LOOKS[variant]) for variant in one.variants if variant != MODEL]
    every = [which.values(variant, stem) for _, which, variant, _ in rows for stem in stems]
    figures = []
    for stem in stems:
        series = [Series(name, which.values(variant, stem), look) for name, which, variant, look in rows]
        figures.append(axes.figure(plots.boxes(series, every, f"SDR of {stem} over the songs"), heading=stem))
    return gallery("How the songs spread", figures)


def gains(models: Models) -> Markup:
    """Improvement against input SDR, for models whose mixture was scored."""
    scored = {name: one for name, one in models.items() if MIXTURE in one.variants}
    several = len(models) > 1
    figures = []
    for stem in first(models).about.stems if scored else ():
        points = {name if several else "": _gained(one, stem) for name, one in scored.items()}
        title, axis = f"Improvement of {stem} against its input SDR", "SDR of the mixture, dB"
        figures.append(axes.figure(plots.scatter(points, title, axis, "improvement, dB", diagonal=False), heading=stem))
    legend = plots.legend(list(scored)) if several else None
    return gallery("What is gained, and from where", figures, legend=legend)


def _gained(one: Evaluation, stem: str) -> list[plots.Point]:
    values = zip(one.songs, one.values(MIXTURE, stem), one.improvement(stem), strict=True)
    return [(song.name, float(before), float(gained)) for song, before, gained in values]


def extremes(models: Models) -> Markup:
    """The best and the worst songs: every stem of one model, or the mean of every model."""
    order = ranked(models)
    parts = {"From best to worst": order}
    if len(order) > 2 * EXTREMES:
        parts = {f"The best {EXTREMES}": order[:EXTREMES], f"The worst {EXTREMES}": order[: -EXTREMES - 1 : -1]}
    values, songs = _of_songs(models), first(models).songs
    rows = {
        title: [(songs[place].name, {name: float(of[place]) for name, of in values.items()}) for place in places]
        for title, places in parts.items()
    }
    scale = [value for found in rows.values() for _, of in found for value in of.values()]
    what = "SDR, dB" if len(models) == 1 else "mean SDR of a song’s stems, dB"
    figures = [
        axes.figure(plots.songs(found, scale, title, what), heading=title) for title, found in rows.items() if found
    ]
    note = "Ranked by how far a song’s stems lie above the median of their stem, on average"
    note += "." if len(models) == 1 else "; and that over the models."
    return gallery("Best and worst songs", figures, note, plots.legend(list(values)))


def ranked(models: Models) -> list[int]:
    """Places of the songs from the best to the worst; those without any score are not among them."""
    standing = statistics.average(np.stack([one.standing() for one in models.values()]))
    return statistics.spread(standing, len(standing))


def _of_songs(models: Models) -> dict[str, statistics.Array]:
    if len(models) == 1:
        return {stem: first(models).values(MODEL, stem) for stem in first(models).about.stems}
    return dict(zip(models, pairing.averages(list(models.values())), strict=True))


def along(models: Models, places: Sequence[int]) -> Markup:
    """SDR in windows over the time of these songs, from their documents."""
    if not first(models).about.of_windows:
        return Markup("<p>These scores are of whole songs: mir_eval has no windows.</p>")
    stems, several = first(models).about.stems, len(models) > 1
    figures = []
    for place in places:
        name = first(models).songs[place].name
        lines = {model: one.curves(one.songs[place]) for model, one in models.items()}
        if not any(lines.values()):
            continue
        known = {stem: {model: of.get(stem, []) for model, of in lines.items()} for stem in stems}
        if several:
            figures += [_along(known[stem], f"{name}: {stem}") for stem in stems]
        else:
            figures.append(_along({stem: line for stem in stems for line in known[stem].values()}, name))
    if not figures:
        return Markup("<p>The windows of the songs are not there: their documents beside the scores are gone.</p>")
    text = "SDR in windows of one second. A gap: the stem or its estimate is silent there."
    text += f" {len(places)} songs, evenly over their ranks." if len(places) < len(first(models).songs) else ""
    return Markup('<p>{}</p><div class="plots">{}</div>').format(text, Markup("").join(figures))


def _along(lines: dict[str, list[tuple[float, float]]], heading: str) -> Markup:
    return axes.figure(plots.curves(lines, f"SDR along {heading}"), heading=heading)


def above(models: Models) -> Markup:
    """The energy of the true stems above the models' bands, once for each band."""
    bands: dict[float, list[str]] = {}
    for name, one in models.items():
        bands.setdefault(one.about.band, []).append(name)
    several = len(models) > 1
    parts = []
    for band, names in bands.items():
        measured = [models[name] for name in names if any(song.above for song in models[name].songs)]
        heading = f"{' and '.join(names)}: above {kilohertz(band)}" if several else ""
        parts.append(Markup("<h3>{}</h3>").format(heading) if heading else Markup(""))
        parts.append(_above(measured[0], len(parts) // 2) if measured else UNMEASURED)
    words = (
        "A model’s networks see nothing above their band. What a true stem has there is lost, or left to the mask’s "
        "extension: a share of 1 % that is lost bounds the SDR at 20 dB, one of 10 % at 10 dB."
    )
    return Markup("<p>{}</p>{}").format(words, Markup("").join(parts))


def kilohertz(band: float) -> str:
    return f"{band / 1000:.1f} kHz"


def _above(one: Evaluation, number: int) -> Markup:
    shares = {stem: one.above(stem) for stem in one.about.stems}
    series = [Series(stem, values, look) for look, (stem, values) in enumerate(shares.items())]
    svg = plots.shares(series, f"Energy of the true stems above {kilohertz(one.about.band)}")
    rows = [grid.Row(stem, _shares(values)) for stem, values in shares.items() if np.isfinite(values).any()]
    key = f"band-table-{number + 1}" if number else "band-table"
    table = grid.table(key, "Share of the energy", ["stem", "median", "most", "songs"], [grid.Group(rows)])
    return Markup('<div class="plots">{}{}</div>').format(axes.figure(svg), table)


def _shares(values: statistics.Array) -> list[str]:
    known = values[np.isfinite(values)]
    return [plots.per_cent(float(np.median(known))), plots.per_cent(float(known.max())), str(len(known))]
