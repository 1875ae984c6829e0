"""What an index names -> what a model hears: cells decoded, brought to the model's rate, and added up.

Axes: C channel, N sample, at the sample rate and channel count of the spectrogram settings.
"""

from collections.abc import Iterator, Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from stemwise import audio
from stemwise.index import Cell, Signal
from stemwise.spectrogram import Spectrogram


def stream(signal: Signal, settings: Spectrogram, start: int = 0, frames: int | None = None) -> Iterator[Tensor]:
    """Blocks (C, n) of the sum of the cells; a shorter cell counts as silent after its end."""
    decoded = (_decode(cell, settings, start, frames) for cell in signal)
    for blocks in zip_longest(*decoded):
        yield _sum([block for block in blocks if block is not None])


def read(signal: Signal, settings: Spectrogram, start: int = 0, frames: int | None = None) -> Tensor:
    """The sum of the cells as one waveform (C, N)."""
    blocks = list(stream(signal, settings, start, frames))
    return torch.cat(blocks, dim=-1) if blocks else torch.zeros(settings.channels, 0)


def stack(signals: Sequence[Signal], settings: Spectrogram) -> Tensor:
    """Whole waveforms (len(signals), C, N), the shorter ones padded with silence."""
    waveforms = [read(signal, settings) for signal in signals]
    longest = max(waveform.shape[-1] for waveform in waveforms)
    padded = [torch.nn.functional.pad(w, (0, longest - w.shape[-1])) for w in waveforms]
    return torch.stack(padded)


def _decode(cell: Cell, settings: Spectrogram, start: int, frames: int | None) -> Iterator[Tensor]:
    return audio.stream(
        cell.path,
        sample_rate=settings.sample_rate,
        channels=settings.channels,
        stream=cell.stream,
        channel=cell.channel,
        start=start,
        frames=frames,
        speed=cell.speed,
    )


def _sum(blocks: Sequence[Tensor]) -> Tensor:
    if len(blocks) == 1:
        return blocks[0]
    longest = max(block.shape[-1] for block in blocks)
    total = blocks[0].new_zeros(blocks[0].shape[0], longest)
    for block in blocks:
        total[:, : block.shape[-1]] += block
    return total
