"""What a song looks like, from blocks that pass once: its waveform as peaks, its spectrogram as a PNG.

Both have one column for every so many samples, chosen so that a song of any length has at most `COLUMNS`; memory does
not grow with it. Axes: V variant, C channel, N sample.
"""

import math
from fractions import Fraction
from functools import cached_property, lru_cache

import av
import numpy as np
import torch
from torch import Tensor

COLUMNS, ROWS = 1600, 192
N_FFT = 2048
HOPS = (256, 2048)  # samples, the least and the most
HIGHEST = 20_000.0  # Hz
RANGE = 80.0  # dB below the loudest place of the song, where black begins
TICKS = (0.5, 1, 2, 4, 8, 16)  # kHz


class Peaks:
    """The lowest and the highest sample in each column, over the channels."""

    def __init__(self, variants: int, frames: int) -> None:
        self.columns = min(COLUMNS, frames)
        self._frames, self._done = frames, 0
        self._low = np.zeros((variants, self.columns), np.float32)
        self._high = np.zeros((variants, self.columns), np.float32)

    def write(self, blocks: Tensor) -> None:
        """Appends (V, C, n)."""
        low, high = blocks.amin(1).numpy(), blocks.amax(1).numpy()
        columns = (self._done + np.arange(low.shape[1])) * self.columns // self._frames
        self._done += low.shape[1]
        found, starts = np.unique(columns, return_index=True)
        self._low[:, found] = np.minimum(self._low[:, found], np.minimum.reduceat(low, starts, 1))
        self._high[:, found] = np.maximum(self._high[:, found], np.maximum.reduceat(high, starts, 1))

    def shown(self) -> np.ndarray:
        """(V, 2, columns) in int8: the lowest, the highest; 127 is the loudest sample of all variants."""
        both = np.stack([self._low, self._high], 1)
        return np.rint(both * (127 / (np.abs(both).max() or 1))).astype(np.int8)


class Pictures:
    """Spectrograms: the mean power of the frames in each column, on a mel scale up to 20 kHz."""

    def __init__(self, variants: int, frames: int, sample_rate: int) -> None:
        self.rate = sample_rate
        self._hop = int(np.clip(frames // (2 * COLUMNS), *HOPS))
        self.columns = max(1, min(COLUMNS, frames // self._hop))
        self._frames = frames
        self._next = 0  # the sample in the middle of the next STFT frame
        self._held: Tensor | None = None
        self._power = torch.zeros(variants, self.columns, ROWS)
        self._count = torch.zeros(self.columns)

    @property
    def highest(self) -> float:
        return min(self.rate / 2, HIGHEST)

    @cached_property
    def _rows(self) -> Tensor:
        """(bins, rows): which part of a row each bin covers, so that a row holds the mean power of its band."""
        edges = _hertz(torch.linspace(0, _mel(self.highest), ROWS + 1, dtype=torch.float64))
        step = self.rate / N_FFT
        bins = (torch.arange(N_FFT // 2 + 1, dtype=torch.float64) - 0.5)[:, None] * step
        shared = torch.minimum(edges[1:], bins + step) - torch.maximum(edges[:-1], bins)
        return (shared.clamp(min=0) / edges.diff()).float()

    def write(self, blocks: Tensor) -> None:
        """Appends (V, C, n)."""
        if self._held is None:
            self._held = blocks.new_zeros(*blocks.shape[:2], N_FFT // 2)
        held = torch.cat([self._held, blocks], -1)
        count = max(0, (held.shape[-1] - N_FFT) // self._hop + 1)
        # 64 frames of five stereo variants are 10 MB of spectra.
        for first in range(0, count, 64):
            last = min(first + 64, count)
            self._add(held[..., first * self._hop : (last - 1) * self._hop + N_FFT])
        self._held = held[..., count * self._hop :].clone()

    def _add(self, samples: Tensor) -> None:
        frames = samples.unfold(-1, N_FFT, self._hop) * torch.hann_window(N_FFT)
        power = torch.fft.rfft(frames).abs().square().sum(1) @ self._rows
        centres = self._next + self._hop * torch.arange(power.shape[1])
        self._next += self._hop * power.shape[1]
        columns = (centres * self.columns // self._frames).clamp(max=self.columns - 1)
        self._power.index_add_(1, columns, power)
        self._count.index_add_(0, columns, torch.ones(len(columns)))

    def shown(self) -> list[bytes]:
        """A PNG of each variant, `ROWS` high; black is `RANGE` dB below the loudest place of all of them."""
        if self._held is not None:  # the frames whose second half is behind the end
            self.write(self._held.new_zeros(*self._held.shape[:2], N_FFT // 2))
        power = self._power / self._count.clamp(min=1)[:, None]
        level = 10 * torch.log10((power / power.max().clamp(min=1e-20)).clamp(min=1e-12))
        steps = (255 * (1 + level / RANGE)).clamp(0, 255).round().to(torch.uint8).numpy()
        return [png(image.T[::-1]) for image in steps]

    def ticks(self) -> list[tuple[float, str]]:
        """Where a frequency lies, from 0 at the lower edge to 1, and what it is called (kHz)."""
        known = [tick for tick in TICKS if 1000 * tick < self.highest]
        return [(_mel(1000 * tick) / _mel(self.highest), f"{tick:g}") for tick in known]


def png(steps: np.ndarray) -> bytes:
    """A picture (rows, columns) of uint8 as a PNG in the colours of `colours`."""
    height, width = steps.shape
    context = av.CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt = width, height, "rgb24"
    context.time_base = Fraction(1)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(colours()[steps]), format="rgb24")
    packets = [*context.encode(frame), *context.encode(None)]
    return b"".join(bytes(packet) for packet in packets)


@lru_cache
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


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def _hertz(mel: Tensor) -> Tensor:
    return 700 * (10 ** (mel / 2595) - 1)
