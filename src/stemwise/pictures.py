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
    """(256, 3) in uint8, from black over violet and orange to pale yellow: the lightness grows evenly.

    Drawn in OKLab (B. Ottosson, 2020), where equal distances look equal: lightness is a straight line, the hue turns
    from violet to yellow, and the saturation is as high as a screen allows, within a bound.
    """
    part = np.linspace(0, 1, 256)
    lightness, hue = 0.08 + 0.9 * part, np.radians(280 + 185 * part)
    chroma = 0.16 * np.sin(np.pi * np.clip(0.06 + 0.9 * part, 0, 1)) ** 0.8
    for _ in range(60):  # lowers the saturation of what no screen can show
        rgb = _linear_rgb(lightness, chroma * np.cos(hue), chroma * np.sin(hue))
        chroma = np.where(((rgb > -1e-3) & (rgb < 1.001)).all(1), chroma, 0.95 * chroma)
    clipped = rgb.clip(0, 1)
    coded = np.where(clipped <= 0.0031308, 12.92 * clipped, 1.055 * clipped ** (1 / 2.4) - 0.055)
    return np.rint(255 * coded).astype(np.uint8)


def _linear_rgb(lightness: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """OKLab to linear sRGB, (n, 3)."""
    lab = np.stack([lightness, a, b], 1)
    to_lms = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.291485548]]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.707614701],
        ]
    )
    return (lab @ to_lms.T) ** 3 @ to_rgb.T


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
    column = max([90, *(round(_font(12).getlength(name)) + 12 for name in finite)])
    height = 300
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
        _text(draw, (middle, TOP + height + 18), name, "ms")
        _text(draw, (middle, TOP + height + 32), f"{len(some)} songs", "ms", size=10)
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
