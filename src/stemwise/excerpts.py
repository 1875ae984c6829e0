"""A song that can be read from anywhere, and the part of it that is wanted; both as streams of blocks.

Axes: C channel, N sample of a song, n of a block.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from stemwise import audio, resampling
from stemwise.errors import UserError


@dataclass(frozen=True)
class Song:
    """A mixture of known length that can be read from anywhere, at any rate, as often as needed.

    `read(rate, start, frames)` yields blocks (C, n) with the channels that the model takes.
    """

    name: str
    frames: int
    sample_rate: int
    read: Callable[[int, int, int], Iterator[Tensor]]

    @classmethod
    def from_file(cls, path: Path, channels: int) -> "Song":
        """Raises `UserError` for what `audio.probe` finds wrong with a file."""
        info = audio.probe(path)

        def read(rate: int, start: int, frames: int) -> Iterator[Tensor]:
            return audio.stream(path, sample_rate=rate, channels=channels, start=start, frames=frames)

        return cls(path.name, info.frames, info.sample_rate, read)

    @classmethod
    def from_waveform(cls, waveform: Tensor, sample_rate: int, channels: int) -> "Song":
        """A song that is in memory, (C, N)."""
        mixed = audio.mixed(waveform, channels)

        def read(rate: int, start: int, frames: int) -> Iterator[Tensor]:
            blocks = iter([mixed])
            if rate != sample_rate:
                blocks = resampling.resample(blocks, sample_rate, rate)
            return cut(blocks, start, frames)

        return cls("waveform", waveform.shape[-1], sample_rate, read)


@dataclass(frozen=True)
class Excerpt:
    """The part of a song that is wanted, at the sample rate of the stems.

    It begins `begin` samples into the song, counted at the rate `grid`, which divides all rates that are asked
    for, so that it begins at one moment at every rate. `frames` samples at `sample_rate` follow the first `skip`.
    """

    song: Song
    begin: int
    grid: int
    skip: int
    frames: int
    sample_rate: int

    @classmethod
    def of(cls, song: Song, sample_rate: int, model_rate: int, offset: float, duration: float | None) -> "Excerpt":
        """The excerpt from `offset` on, `duration` long (None: to the end), in seconds, for a model at `model_rate`.

        Raises `UserError` where the song has ended by then.
        """
        total = -(-song.frames * sample_rate // song.sample_rate)
        start = round(offset * sample_rate)
        if start >= total:
            seconds = song.frames / song.sample_rate
            raise UserError(f"{song.name}: ends at {seconds:.3f} s, the offset is {offset:.3f} s. Lower it.")
        left = total - start
        frames = left if duration is None else min(left, max(1, round(duration * sample_rate)))
        grid = math.gcd(model_rate, sample_rate)
        begin = start * grid // sample_rate
        skip = start - begin * sample_rate // grid
        return cls(song, begin, grid, skip, frames, sample_rate)

    def length(self, rate: int) -> int:
        """Samples at `rate` from `begin` to the end of the excerpt."""
        return -(-(self.skip + self.frames) * rate // self.sample_rate)

    def mixture(self) -> Iterator[Tensor]:
        """The mixture (C, n) of the excerpt at its own rate."""
        return cut(self.blocks(self.sample_rate), self.skip, self.frames)

    def blocks(self, rate: int) -> Iterator[Tensor]:
        """The mixture (C, n) from `begin` to the end of the excerpt."""
        return self.song.read(rate, self.begin * rate // self.grid, self.length(rate))


def cut(pieces: Iterator[Tensor], skip: int, frames: int) -> Iterator[Tensor]:
    """Samples `skip` to `skip + frames` of the pieces (…, n)."""
    for piece in pieces:
        kept = piece[..., skip : skip + frames]
        skip = max(0, skip - piece.shape[-1])
        frames -= kept.shape[-1]
        if kept.shape[-1]:
            yield kept


def beside(pieces: Iterable[Tensor], blocks: Iterator[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each piece (…, n) and the next n samples of the blocks (C, m)."""
    held = torch.empty(0)
    for piece in pieces:
        count = piece.shape[-1]
        parts = [held] if held.numel() else []
        while sum(part.shape[-1] for part in parts) < count:
            parts.append(next(blocks))
        held = torch.cat(parts, dim=-1)
        yield piece, held[..., :count]
        held = held[..., count:]
