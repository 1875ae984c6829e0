"""What a song looks like, from blocks that pass once: its waveform as peaks, its spectrogram as a PNG.

Both have one column for every so many samples, chosen so that a song of any length has at most `COLUMNS`; memory does
not grow with it. Axes: V variant, C channel, N sample.
"""

import io
import math
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from stemwise import pictures

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


class Spectrograms:
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
        return [_png(image) for image in (1 + level / RANGE).numpy()]

    def ticks(self) -> list[tuple[float, str]]:
        """Where a frequency lies, from 0 at the lower edge to 1, and what it is called (kHz)."""
        known = [tick for tick in TICKS if 1000 * tick < self.highest]
        return [(_mel(1000 * tick) / _mel(self.highest), f"{tick:g}") for tick in known]


def _png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    pictures.heat(values).save(file, "PNG")
    return file.getvalue()


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def _hertz(mel: Tensor) -> Tensor:
    return 700 * (10 ** (mel / 2595) - 1)
