"""What all plots are drawn with: scales, axes with round numbers and titles, marks that differ in shape.

A picture is an SVG whose colours are classes of `plots.css`, so that it follows the page into the dark, with a title
and a description for who does not see it. Lengths are in units of its view box, about a pixel each.
"""

import hashlib
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

STYLE = "plots.css"


def _turned(corners: list[tuple[float, float]], quarters: int) -> list[tuple[float, float]]:
    """The corners after so many quarter turns."""
    for _ in range(quarters):
        corners = [(-y, x) for x, y in corners]
    return corners


def _round(corners: int, radius: float = 1.0, turn: float = 0.0) -> list[tuple[float, float]]:
    """The corners of a regular polygon, the first at the top."""
    angles = [2 * math.pi * (corner + turn) / corners for corner in range(corners)]
    return [(radius * math.sin(angle), -radius * math.cos(angle)) for angle in angles]


# The corners of each mark around its middle, right and down; told apart without colour.
MARKS = {
    "circle": _round(12),
    "square": _round(4, 1.2, 0.5),
    "triangle": _round(3, 1.35),
    "diamond": _round(4, 1.3),
    "plus": [(x, y) for a in range(4) for x, y in _turned([(-0.3, -0.3), (-0.3, -1.2), (0.3, -1.2)], a)],
    "hourglass": [(-1.0, -1.1), (1.0, -1.1), (-1.0, 1.1), (1.0, 1.1)],
    "bar": [(-0.3, -1.3), (0.3, -1.3), (0.3, 1.3), (-0.3, 1.3)],
    "pointer": _round(3, 1.35, 1.5),
}


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` on lengths from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def reaching(values: Iterable[float], start: float, end: float, ticks: int = 6) -> Scale:
    """A scale whose ends are round numbers around all values that are numbers."""
    low, high = span(values)
    for _ in range(2):  # rounding may widen it so much that its ticks are further apart
        step = _step(high - low, ticks)
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return Scale(low, high, start, end)


def span(values: Iterable[float]) -> tuple[float, float]:
    """The least and the greatest of what is a number, a little apart; 0 and 1 if there is none."""
    known = [float(value) for value in values if math.isfinite(value)]
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    return (low, high) if high - low > 1e-6 else (low - 0.5, high + 0.5)


def ticks(scale: Scale, count: int = 6) -> list[float]:
    """Round numbers on the scale, about `count` of them."""
    step = _step(scale.high - scale.low, count)
    first, last = math.ceil(scale.low / step - 1e-9), math.floor(scale.high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _step(width: float, count: int) -> float:
    """1, 2 or 5 times a power of ten."""
    power = 10 ** math.floor(math.log10(width / count))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power * count >= width * (1 - 1e-9))


def picture(width: float, height: float, title: str, description: str, parts: Iterable[Markup]) -> Markup:
    """The SVG of these parts."""
    drawn = Markup("").join(parts)
    # Of its content, so that the same scores make the same page.
    key = f"plot-{hashlib.blake2b(f'{title}{description}{drawn}'.encode(errors='replace'), digest_size=6).hexdigest()}"
    return Markup(
        '<svg class="plot" viewBox="0 0 {} {}" role="img" aria-labelledby="{}-t {}-d">'
        '<title id="{}-t">{}</title><desc id="{}-d">{}</desc>{}</svg>'
    ).format(number(width), number(height), key, key, key, title, key, description, drawn)


def figure(svg: Markup, caption: str = "", heading: str = "") -> Markup:
    """A picture with what stands above and below it."""
    head = Markup("<h4>{}</h4>").format(heading) if heading else Markup("")
    foot = Markup("<figcaption>{}</figcaption>").format(caption) if caption else Markup("")
    return Markup("<figure>{}{}{}</figure>").format(head, svg, foot)


def horizontal(scale: Scale, y: float, top: float, title: str, labels: Sequence[tuple[float, str]] = ()) -> Markup:
    """The axis below a plot whose lines rise from `y` to `top`; `labels` in place of round numbers."""
    found = labels or [(tick, plain(tick)) for tick in ticks(scale)]
    parts = [
        Markup(
            '<path class="grid{}" d="M{} {}V{}"/><text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>'
        ).format(" zero" if tick == 0 and not labels else "", *_n(scale(tick), y, top, scale(tick), y + 15), text)
        for tick, text in found
    ]
    middle = (scale.start + scale.end) / 2
    parts.append(
        Markup('<text class="axis" x="{}" y="{}" text-anchor="middle">{}</text>').format(*_n(middle, y + 32), title)
    )
    return Markup("").join(parts)


def vertical(scale: Scale, x: float, right: float, title: str) -> Markup:
    """The axis left of a plot whose lines go from `x` to `right`."""
    parts = [
        Markup(
            '<path class="grid{}" d="M{} {}H{}"/><text class="tick" x="{}" y="{}" text-anchor="end">{}</text>'
        ).format(" zero" if tick == 0 else "", *_n(x, scale(tick), right, x - 6, scale(tick) + 4), plain(tick))
        for tick in ticks(scale)
    ]
    # Above the axis and not along it: text that lies on its side is hard to read.
    parts.append(
        Markup('<text class="axis" x="{}" y="{}">{}</text>').format(*_n(0, min(scale.start, scale.end) - 12), title)
    )
    return Markup("").join(parts)


def text(x: float, y: float, words: str, kind: str = "label", anchor: str = "start") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(kind, *_n(x, y), anchor, words)


def apart(places: Sequence[float], bottom: float, least: float = 15.0) -> list[float]:
    """The places of labels, moved so that no two overlap and none lies below `bottom`."""
    order = sorted(range(len(places)), key=lambda number: places[number])
    found = list(places)
    for before, number in itertools.pairwise(order):
        found[number] = max(found[number], found[before] + least)
    beyond = max(max(found, default=0.0) - bottom, 0.0)
    moved = [place - beyond for place in found]
    for number, after in reversed(list(itertools.pairwise(order))):
        moved[number] = min(moved[number], moved[after] - least)
    return moved


def mark(name: str, x: float, y: float, size: float = 4.0) -> str:
    """The path of a mark around a point."""
    corners = " ".join(f"{x + size * right:.1f} {y + size * down:.1f}" for right, down in MARKS[name])
    return f"M{corners}z"


def plain(value: float) -> str:
    """A tick's number, with a real minus."""
    return f"{value:g}".replace("-", "−")


def number(value: float) -> str:
    """A length, to a tenth."""
    return f"{value:.1f}".removesuffix(".0")


def _n(*values: float) -> list[str]:
    return [number(value) for value in values]


def thinned(values: Sequence[float], most: int) -> list[float]:
    """At most so many of the values that are numbers, sorted: both ends, and in between every so many-th."""
    known = sorted(value for value in values if math.isfinite(value))
    if len(known) <= most:
        return known
    return [known[round(place)] for place in np.linspace(0, len(known) - 1, most)]
