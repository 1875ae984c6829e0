"""Pictures of numbers, without a plotting library: spectrograms and masks in a perceptual colour map, box plots.

Axes: C channel, T frame, F frequency bin.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

RANGE = 80.0  # dB below the loudest that a spectrogram shows
INK, FAINT, PAPER = (30, 30, 36), (205, 205, 212), (255, 255, 255)
SIZE = (320, 220)  # of a panel, in pixels
LEFT, TOP, RIGHT, BOTTOM = 46, 26, 66, 40  # what stands around it

# OKLab of linear light (Björn Ottosson, "A perceptual color space for image processing", 2020).
_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


@dataclass(frozen=True)
class Panel:
    """A matrix (T, F) of numbers from 0 to 1, and what 0 and 1 mean, such as `-80 dB` and `0 dB`."""

    title: str
    values: np.ndarray
    lowest: str
    highest: str


def decibels(magnitudes: np.ndarray, loudest: float) -> np.ndarray:
    """Magnitudes (C, T, F) as numbers (T, F) from 0 to 1: the channels' mean power, `RANGE` dB up to `loudest`."""
    power = np.square(magnitudes, dtype=np.float64).mean(axis=0)
    floor = 10 ** (-RANGE / 10)
    relative = power / max(loudest, 1e-12) ** 2
    return 1 + np.clip(10 * np.log10(np.maximum(relative, floor)), -RANGE, 0) / RANGE


@functools.cache
def colours() -> np.ndarray:
    """The colour map, (256, 3) of 8 bits: from dark violet over green to light yellow.

    Its lightness in OKLab rises evenly, so equal steps look equal, also in grey and to the colour-blind.
    """
    along = np.linspace(0, 1, 256)
    lightness = 0.17 + 0.78 * along
    hue = np.radians(300 - 190 * along)
    # As much colour as every hue on the way has room for on a screen, and a little less.
    chroma = 0.09 + 0.06 * np.abs(2 * along - 1) ** 2 * (along > 0.5)
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    linear = np.clip((lab @ np.linalg.inv(_TO_LAB).T) ** 3 @ np.linalg.inv(_TO_LMS).T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * encoded).astype(np.uint8)


def heat(values: np.ndarray, size: tuple[int, int] | None = None) -> Image.Image:
    """Numbers (T, F) from 0 to 1 as colours: time to the right, frequency upwards; a pixel each, or `size` pixels."""
    levels = np.round(255 * np.clip(np.nan_to_num(values), 0, 1)).astype(np.uint8)
    grey = Image.fromarray(np.ascontiguousarray(levels.T[::-1]))
    # The levels are resized, not the colours: between two of them lies a level, but not always a colour of the map.
    resized = grey if size is None else grey.resize(size, Image.Resampling.BOX)
    return Image.fromarray(colours()[np.asarray(resized)])


def side_by_side(panels: Sequence[Panel], seconds: tuple[float, float], kilohertz: float) -> Image.Image:
    """Panels in a row with axes in seconds, between two instants of a song, and in kHz up to `kilohertz`."""
    column = LEFT + SIZE[0] + RIGHT
    picture = Image.new("RGB", (column * len(panels), TOP + SIZE[1] + BOTTOM), PAPER)
    draw = ImageDraw.Draw(picture)
    for number, panel in enumerate(panels):
        left = number * column + LEFT
        picture.paste(heat(panel.values, SIZE), (left, TOP))
        picture.paste(heat(np.linspace(0, 1, SIZE[1])[np.newaxis].repeat(10, 0)), (left + SIZE[0] + 8, TOP))
        _label(draw, left, panel)
        _axes(draw, left, seconds, kilohertz)
    return picture


def _label(draw: ImageDraw.ImageDraw, left: int, panel: Panel) -> None:
    width, height = SIZE
    _text(draw, (left, TOP - 7), panel.title, "ls", size=14)
    _text(draw, (left + width + 21, TOP), panel.highest, "lt")
    _text(draw, (left + width + 21, TOP + height), panel.lowest, "ls")


def _axes(draw: ImageDraw.ImageDraw, left: int, seconds: tuple[float, float], kilohertz: float) -> None:
    (width, height), (start, end) = SIZE, seconds
    for time in ticks(start, end):
        x = left + round((time - start) / (end - start) * (width - 1))
        draw.line([(x, TOP + height), (x, TOP + height + 4)], INK)
        _text(draw, (x, TOP + height + 6), f"{time:g}", "mt")
    _text(draw, (left + width / 2, TOP + height + 22), "s", "mt")
    for frequency in ticks(0, kilohertz):
        y = TOP + height - 1 - round(frequency / kilohertz * (height - 1))
        draw.line([(left - 5, y), (left - 1, y)], INK)
        _text(draw, (left - 8, y), f"{frequency:g}", "rm")
    _text(draw, (left - 8, TOP - 8), "kHz", "rs")


def boxes(values: Mapping[str, Sequence[float]], unit: str) -> Image.Image:
    """A box plot over each name's numbers: quartiles and median, whiskers to the ends, and each number as a point.

    Numbers that are not finite are left out.
    """
    finite = {name: np.array([v for v in some if np.isfinite(v)]) for name, some in values.items()}
    every = np.concatenate([*finite.values(), [0.0]])
    low, high = float(every.min()) - 1, float(every.max()) + 1
    column, height = 90, 300
    picture = Image.new("RGB", (LEFT + column * len(finite) + 12, TOP + height + BOTTOM), PAPER)
    draw = ImageDraw.Draw(picture)

    def row(value: float) -> int:
        return TOP + round((high - value) / (high - low) * height)

    for tick in ticks(low, high):
        draw.line([(LEFT, row(tick)), (picture.width - 12, row(tick))], FAINT)
        _text(draw, (LEFT - 6, row(tick)), f"{tick:g}", "rm")
    _text(draw, (4, TOP - 12), unit, "ls")
    for number, (name, some) in enumerate(finite.items()):
        middle = LEFT + column * number + column // 2
        if len(some):
            quartiles = np.quantile(some, (0, 0.25, 0.5, 0.75, 1))
            _box(draw, middle, [row(value) for value in some], [row(value) for value in quartiles])
        _text(draw, (middle, TOP + height + 8), f"{name[:12]}", "mt")
        _text(draw, (middle, TOP + height + 22), f"{len(some)} songs", "mt", size=10)
    return picture


def _box(draw: ImageDraw.ImageDraw, middle: int, points: Sequence[int], rows: Sequence[int]) -> None:
    """One box at a column; `rows` are those of minimum, quartiles and maximum."""
    lowest, first, median, third, highest = rows
    draw.line([(middle, highest), (middle, lowest)], INK)
    draw.rectangle([(middle - 22, third), (middle + 22, first)], fill=(222, 232, 236), outline=INK)
    draw.line([(middle - 22, median), (middle + 22, median)], INK, width=3)
    for number, y in enumerate(points):
        x = middle + (number * 7) % 29 - 14  # beside one another, and the same in every picture
        draw.ellipse([(x - 2, y - 2), (x + 2, y + 2)], fill=tuple(int(c) for c in colours()[110]))


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, about five of them."""
    if not high > low:
        return [low]
    power = 10 ** np.floor(np.log10((high - low) / 5))
    step = next(float(power * factor) for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= 6)
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    return [round(number * step, 10) for number in range(first, last + 1)]


def _text(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, anchor: str, size: int = 12) -> None:
    draw.text(place, text, fill=INK, font=_font(size), anchor=anchor)


@functools.cache
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
