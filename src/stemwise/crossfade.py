"""Windows of frames that overlap, and one estimate of them all: the nearer to its window's middle, the more it counts.

A network does not see what is beyond its window, and takes zeros for it. On clips of MIR-1K windows of 64 frames gain
0.8 dB by a quarter of overlap (`benchmarks/quality/inference.py`): about half of it where windows join, a third because
the last window ends where the song does, and is not filled up with zeros, and the rest by the odd `step`.

Axes: S stem, C channel, T frames of a window, t frames of a piece, F bin.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from stemwise.errors import UserError

MOST = 0.9  # each frame passes the networks ten times
# Estimates (S, C, t, F) and the spectrum (C, t, ≥ F) that they are of.
Estimated = tuple[Tensor, Tensor]


def check(overlap: object, key: str) -> None:
    """Raises `UserError` for a share of the window that is none; `key` is how the user said it, `--overlap `."""
    if isinstance(overlap, bool) or not isinstance(overlap, int | float) or not 0 <= overlap <= MOST:
        raise UserError(
            f"{key}{overlap}: not a share of the window from 0 to {MOST}. Take 0.25, or 0 for windows side by side."
        )


def step(frames: int, overlap: float) -> int:
    """Frames from the beginning of a window of T to that of the next; odd where windows overlap.

    A strided network treats the frames of a window in pairs, pairs of pairs and so on. After an odd step a frame has
    another place in them, and its estimates err less alike: of a step of 48, 32 and 16 frames in windows of 64 the SDR
    was 10.37, 10.32 and 10.34 dB, of 47, 31 and 15 it was 10.45, 10.45 and 10.54.
    """
    count = max(round(frames * (1 - overlap)), 1)
    return count - 1 + count % 2 if overlap else count


def crossfaded(
    spectra: Iterable[Tensor], estimated: Callable[[Iterator[Tensor]], Iterator[Estimated]], frames: int, step: int
) -> Iterator[Estimated]:
    """Estimates of a spectrum that comes in pieces (C, t, F'), and the spectrum, in pieces that follow one another.

    `estimated` gives the estimates of each window of T = `frames`. A window begins every `step` frames, and the last
    ends where the spectrum does; a spectrum that is shorter than T is one window. What is in memory does not grow.
    """
    starts: deque[int] = deque()

    def cut() -> Iterator[Tensor]:
        for start, window in _windows(spectra, frames, step):
            starts.append(start)
            yield window

    return _joined((starts.popleft(), *window) for window in estimated(cut()))


def _windows(spectra: Iterable[Tensor], frames: int, step: int) -> Iterator[tuple[int, Tensor]]:
    """Windows (C, T, F'), each with the frame that it begins with."""
    held: Tensor | None = None  # from the frame `start` on, with which the last window began
    start, end = 0, frames  # `end`: of the next window, counted from there
    for piece in spectra:
        held = piece if held is None else torch.cat([held, piece], dim=-2)
        while held.shape[-2] >= end:
            start, held = start + end - frames, held[..., end - frames :, :]
            yield start, held[..., :frames, :]
            end = frames + step
    # Less than a window if there was none yet, and more if some frames were in none.
    if held is not None and held.shape[-2] != frames:
        left = max(held.shape[-2] - frames, 0)
        yield start + left, held[..., left:, :]


def _joined(windows: Iterable[tuple[int, Tensor, Tensor]]) -> Iterator[Estimated]:
    """The weighted mean of the estimates of each frame; a frame is done when a window begins behind it."""
    before: tuple[int, Tensor, Tensor, Tensor] | None = None
    for start, estimates, spectrum in windows:
        weights = _weights(estimates)
        total = estimates * weights
        if before is not None:
            begun, earlier, counted, mixture = before
            done = start - begun
            yield earlier[..., :done, :] / counted[:done], mixture[..., :done, :]
            shared = earlier.shape[-2] - done
            total[..., :shared, :] += earlier[..., done:, :]
            weights[:shared] += counted[done:]
        before = start, total, weights, spectrum
    if before is not None:
        yield before[1] / before[2], before[3]


def _weights(estimates: Tensor) -> Tensor:
    """(t, 1): a Hann window that is nowhere zero, so that where there is but one estimate it is the mean."""
    middles = torch.arange(estimates.shape[-2], dtype=estimates.dtype, device=estimates.device) + 0.5
    return torch.sin(middles * (math.pi / len(middles))).square().unsqueeze(-1)
