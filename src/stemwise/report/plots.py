"""The pictures of a report: scores of many songs, of one song over time, of two models.

Each says with shape and words what it says with colour, and stays below a size however many songs there are: of more
than `POINTS` songs that many are drawn, evenly over their ranks, the least and the greatest among them; boxes, medians
and counts are those of all. Values are in dB unless it is said.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from stemwise.evaluation.statistics import Array, Summary
from stemwise.report import axes

POINTS = 150
WINDOWS = 400  # of a curve; of more, each point is the median of several
WIDTH = 400
LEFT, RIGHT = 104, 388


@dataclass(frozen=True)
class Series:
    """Scores (K,) of one thing over songs, with its name; `look` numbers its colour, mark and dash."""

    name: str
    values: Array
    look: int


def boxes(series: Sequence[Series], scale_of: Sequence[Array], title: str, axis: str = "SDR, dB") -> Markup:
    """A row for each series: its quartiles as a box, its median as a line, the songs as marks.

    `scale_of` are the values that the axis covers: the same for pictures that are to be compared.
    """
    height = 34 * len(series) + 8
    scale = axes.reaching(np.concatenate([*scale_of, np.zeros(0)]), LEFT, RIGHT)
    parts = [axes.horizontal(scale, height, 0, axis)]
    for row, one in enumerate(series):
        parts.append(_box(one, scale, 34 * row + 21))
    words = "; ".join(_described(one) for one in series)
    return axes.picture(WIDTH, height + 40, title, f"{axis}. {words}.", parts)


def _box(one: Series, scale: axes.Scale, y: float) -> Markup:
    label = axes.text(LEFT - 10, y + 4, one.name, anchor="end")
    known = one.values[np.isfinite(one.values)]
    if not len(known):
        return label + axes.text(LEFT + 6, y + 4, "no score", "tick")
    low, middle, high = (scale(value) for value in np.quantile(known, [0.25, 0.5, 0.75]))
    box = Markup('<rect class="box {}" x="{}" y="{}" width="{}" height="18" rx="2"/>').format(
        _look(one), axes.number(low), axes.number(y - 9), axes.number(max(high - low, 0.5))
    )
    line = Markup('<path class="median {}" d="M{} {}v22"/>').format(
        _look(one), axes.number(middle), axes.number(y - 11)
    )
    return label + box + _points(one, [(scale(v), y + _jitter(n)) for n, v in enumerate(_some(known))]) + line


def _jitter(rank: int) -> float:
    """A place across the row that keeps neighbours in rank apart."""
    return 16 * ((rank * 0.618) % 1) - 8


def _some(known: Array) -> list[float]:
    return axes.thinned(known.tolist(), POINTS)


def _described(one: Series) -> str:
    known = one.values[np.isfinite(one.values)]
    if not len(known):
        return f"{one.name}: no score"
    low, middle, high = np.quantile(known, [0.25, 0.5, 0.75])
    return f"{one.name}: median {middle:.2f}, half of the songs from {low:.2f} to {high:.2f}"


Point = tuple[str, float, float]
"""A name, x and y."""


def scatter(series: Mapping[str, Sequence[Point]], title: str, x_axis: str, y_axis: str, diagonal: bool) -> Markup:
    """A mark for each point, with its name to hover over, of a shape for each series; and a line of `no difference`.

    The line is x = y if `diagonal`, when both axes are one and the same; else y = 0.
    """
    known = {name: [p for p in points if math.isfinite(p[1] + p[2])] for name, points in series.items()}
    every = [point for points in known.values() for point in points]
    xs, ys = [x for _, x, _ in every], [y for _, _, y in every]
    across = axes.reaching([*xs, *ys] if diagonal else xs, 44, RIGHT)
    up = axes.reaching([*xs, *ys] if diagonal else [*ys, 0.0], 262, 26)
    parts = [axes.horizontal(across, 262, 26, x_axis), axes.vertical(up, 44, RIGHT, y_axis)]
    if diagonal:
        parts.append(Markup('<path class="same" d="M44 262L{} 26"/>').format(RIGHT))
    told = []
    kind = "point" if len(known) == 1 else "outline"  # through which what lies below can be seen
    for look, (name, points) in enumerate(known.items()):
        for song, x, y in _evenly(points, POINTS // len(known)):
            words = f"{name}, {song}" if name else song
            parts.append(_named(f"{kind} s{look % 8 + 1}", look, (across(x), up(y)), f"{words}: {x:.2f}, {y:.2f} dB"))
        above = sum(y > (x if diagonal else 0) for _, x, y in points)
        told.append(f"{name + ', ' if name else ''}songs: {len(points)}, above the line of no difference: {above}")
    return axes.picture(WIDTH, 302, title, f"{'. '.join(told)}. {x_axis}; {y_axis}.", parts)


def _named(kind: str, look: int, place: tuple[float, float], name: str) -> Markup:
    path = axes.mark(_mark(look), *place, 4.0)
    return Markup('<path class="{}" d="{}"><title>{}</title></path>').format(kind, path, name)


def _evenly(points: Sequence[Point], most: int) -> list[Point]:
    """At most so many of them, evenly over the ranks of y."""
    if len(points) <= most:
        return list(points)
    ranked = sorted(points, key=lambda point: point[2])
    return [ranked[round(place)] for place in np.linspace(0, len(points) - 1, most)]


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], title: str, axis: str = "SDR, dB") -> Markup:
    """A line for each name through its (seconds, dB), each with a dash and a mark of its own and its name at the end.

    Where a stem is silent there is a gap.
    """
    every = [value for line in lines.values() for _, value in line]
    end = max((at for line in lines.values() for at, _ in line), default=0.0) + 1
    across, up = axes.Scale(0.0, end, 44, 330), axes.reaching(every, 262, 26)
    parts = [axes.horizontal(across, 262, 26, "time, s"), axes.vertical(up, 44, 330, axis)]
    ends = axes.apart([up(line[-1][1]) if line else 262.0 for line in lines.values()], 262)
    for look, ((name, line), y) in enumerate(zip(lines.items(), ends, strict=True)):
        places = [(across(at + 0.5), up(value)) for at, value in _medians(line)]
        parts.append(_curve(places, across(1) - across(0), name, look, y))
    words = "; ".join(
        f"{name}: median {np.median([value for _, value in line]):.2f}" if line else f"{name}: silent"
        for name, line in lines.items()
    )
    return axes.picture(WIDTH, 302, title, f"{axis} over time in windows of one second. {words}.", parts)


def _curve(places: Sequence[tuple[float, float]], second: float, name: str, look: int, y: float) -> Markup:
    reach = 1.5 * max(second, (places[-1][0] - places[0][0]) / max(len(places) - 1, 1) if places else 0)
    jumps = [
        "L" if before is not None and place[0] - before[0] <= reach else "M"
        for before, place in zip([None, *places], places, strict=False)
    ]
    path = "".join(f"{jump}{x:.1f} {y:.1f}" for jump, (x, y) in zip(jumps, places, strict=True))
    every = max(len(places) // 8, 1)
    marks = "".join(axes.mark(_mark(look), *place, 3.4) for place in places[look % every :: every])
    return Markup(
        '<path class="curve s{} d{}" d="{}"/><path class="solid s{}" d="{}"/><path class="solid s{}" d="{}"/>'
    ).format(
        look % 8 + 1, look % 4 + 1, path, look % 8 + 1, marks, look % 8 + 1, axes.mark(_mark(look), 339, y)
    ) + axes.text(347, y + 4, name)


def _medians(line: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The windows, or so many medians of neighbours that there are at most `WINDOWS`."""
    size = -(-len(line) // WINDOWS) or 1
    groups = [line[at : at + size] for at in range(0, len(line), size)]
    return [(float(np.mean([at for at, _ in g])), float(np.median([value for _, value in g]))) for g in groups]


def songs(rows: Sequence[tuple[str, Mapping[str, float]]], scale_of: Sequence[float], title: str, axis: str) -> Markup:
    """A row for each song, its name above it, with a mark for each stem or model."""
    scale = axes.reaching(scale_of, 12, RIGHT)
    top, height = 8, 40 * len(rows) + 12
    parts = [axes.horizontal(scale, height, top, axis)]
    for number, (name, values) in enumerate(rows):
        y = 40 * number + 36
        parts.append(axes.text(12, y - 12, _short(name)))
        parts.append(Markup('<path class="track" d="M12 {}H{}"/>').format(axes.number(y), RIGHT))
        for look, value in enumerate(values.values()):
            if math.isfinite(value):
                parts.append(
                    Markup('<path class="solid s{}" d="{}"/>').format(
                        look % 8 + 1, axes.mark(_mark(look), scale(value), y, 5)
                    )
                )
    words = ". ".join(
        f"{name}: {', '.join(f'{k} {v:.2f}' for k, v in values.items() if math.isfinite(v)) or 'no score'}"
        for name, values in rows
    )
    return axes.picture(WIDTH, height + 40, title, f"{axis}. {words}.", parts)


def legend(names: Sequence[str]) -> Markup:
    """The marks of `curves` and `songs`, with what they stand for."""
    items = Markup("").join(
        Markup(
            '<li><svg class="key" viewBox="0 0 16 16" aria-hidden="true"><path class="solid s{}" d="{}"/></svg>{}</li>'
        ).format(look % 8 + 1, axes.mark(_mark(look), 8, 8, 5), name)
        for look, name in enumerate(names)
    )
    return Markup('<ul class="legend">{}</ul>').format(items)


def _short(name: str, most: int = 54) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def shares(series: Sequence[Series], title: str) -> Markup:
    """A row for each stem on a logarithmic axis of per cent: the songs as marks, the median as a line."""
    floor = -3.0  # 0.001 %: what lies below is drawn there
    height = 34 * len(series) + 8
    scale = axes.Scale(floor, 2.0, LEFT, RIGHT - 6)
    labels = [(float(power), f"{10.0**power:g}") for power in range(-3, 3)]
    parts = [axes.horizontal(scale, height, 0, "share of the stem’s energy, %", labels)]
    told = []
    for row, one in enumerate(series):
        y = 34 * row + 21
        parts.append(axes.text(LEFT - 10, y + 4, one.name, anchor="end"))
        known = one.values[np.isfinite(one.values)]
        if not len(known):
            told.append(f"{one.name}: not measured")
            continue
        places = [scale(max(math.log10(max(100 * value, 1e-9)), floor)) for value in _some(known)]
        parts.append(_points(one, [(x, y + _jitter(number)) for number, x in enumerate(places)]))
        middle = float(np.median(known))
        x = scale(max(math.log10(max(100 * middle, 1e-9)), floor))
        parts.append(
            Markup('<path class="median {}" d="M{} {}v22"/>').format(_look(one), axes.number(x), axes.number(y - 11))
        )
        told.append(f"{one.name}: median {per_cent(middle)}")
    return axes.picture(WIDTH, height + 40, title, f"{'; '.join(told)}.", parts)


def per_cent(share: float) -> str:
    """Two digits of what is not next to nothing."""
    return f"{100 * share:.2g} %" if share >= 1e-5 else "< 0.001 %"


def differences(rows: Sequence[tuple[str, Array, Summary]], title: str, axis: str) -> Markup:
    """A row for each stem: the songs' differences as marks, the mean with its 95 % interval as a bar."""
    height = 40 * len(rows) + 8
    scale = axes.reaching([0.0, *(value for _, values, _ in rows for value in values)], LEFT, RIGHT)
    parts = [axes.horizontal(scale, height, 0, axis)]
    for row, (name, values, mean) in enumerate(rows):
        y = 40 * row + 24
        one = Series(name, values, row)
        known = values[np.isfinite(values)]
        parts.append(axes.text(LEFT - 10, y + 4, name, anchor="end"))
        parts.append(_points(one, [(scale(v), y - 5 + _jitter(n) / 2) for n, v in enumerate(_some(known))]))
        parts.append(_bar(mean, scale, y + 9, _look(one)))
    words = "; ".join(_told(name, mean) for name, _, mean in rows)
    return axes.picture(WIDTH, height + 40, title, f"{axis}. {words}.", parts)


def _told(name: str, mean: Summary) -> str:
    if not mean.songs:
        return f"{name}: no score"
    ends = f", from {mean.low:+.2f} to {mean.high:+.2f}" if math.isfinite(mean.low) else ""
    return f"{name}: mean {mean.value:+.2f}{ends}"


def _bar(found: Summary, scale: axes.Scale, y: float, look: str) -> Markup:
    if not math.isfinite(found.value):
        return Markup("")
    low, high = (end if math.isfinite(end) else found.value for end in (found.low, found.high))
    return Markup('<path class="interval {}" d="M{} {}v8m0-4H{}m0-4v8"/><path class="solid {}" d="{}"/>').format(
        look,
        axes.number(scale(low)),
        axes.number(y - 4),
        axes.number(scale(high)),
        look,
        axes.mark("diamond", scale(found.value), y, 4),
    )


def _points(one: Series, places: Sequence[tuple[float, float]]) -> Markup:
    """All marks of a series as one path: a thousand of them are some kilobytes."""
    path = "".join(axes.mark(_mark(one.look), x, y, 3) for x, y in places)
    return Markup('<path class="points {}" d="{}"/>').format(_look(one), path)


def _look(one: Series) -> str:
    return f"s{one.look % 8 + 1}"


def _mark(look: int) -> str:
    return list(axes.MARKS)[look % len(axes.MARKS)]
