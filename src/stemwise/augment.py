"""Random changes to one training example, each a small module with its own parameters.

Two places, by what a module needs. With the stems' complex spectra at hand, the mixture is their sum, and each stem
can be changed by itself: `Remix`, `Mixup`, `Gain`, `ChannelSwap`, `Polarity`, `Formants`, `Silence`. On magnitudes,
where the mixture cannot be made anew, mixture and stems are changed alike: `TimeStretch`, `PitchShift`, `BandLimit`.

A module takes an example and a NumPy generator and returns an example of the same shape; `Remix` and `Mixup` come
before that and say which songs the rows of an example are read from.
Axes: R rows (the stems, and what else is in the mixture), C channel, T frame, F bin.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stemwise.errors import UserError


def _check_probability(owner: object, probability: float) -> None:
    if not 0 <= probability <= 1:
        raise UserError(f"augment: {type(owner).__name__} has probability={probability}, which is not in [0, 1].")


@dataclass(frozen=True)
class Remix:
    """With `probability`, every row comes from a song of its own: songs that nobody has played together."""

    needs_phase: ClassVar[bool] = True
    probability: float = 0.5

    def __post_init__(self) -> None:
        _check_probability(self, self.probability)

    def songs(self, song: int, count: int, rows: int, random: np.random.Generator) -> list[int]:
        """Which of `count` songs each row is taken from; `song` for all of them if it stays as recorded."""
        if random.random() >= self.probability:
            return [song] * rows
        return [song, *random.integers(count, size=rows - 1).tolist()]


@dataclass(frozen=True)
class Mixup:
    """With `probability`, a row is the sum of itself and the same row of another song: two singers, two bands.

    Défossez et al., "Music source separation in the waveform domain", 2019, do so for data without labels.
    """

    needs_phase: ClassVar[bool] = True
    probability: float = 0.2

    def __post_init__(self) -> None:
        _check_probability(self, self.probability)

    def songs(self, count: int, rows: int, random: np.random.Generator) -> list[int | None]:
        """Which of `count` songs is added to each row, or None."""
        others = random.integers(count, size=rows).tolist()
        added = random.random(rows) < self.probability
        return [song if here else None for song, here in zip(others, added, strict=True)]


@dataclass(frozen=True)
class Gain:
    """Each row louder or softer by up to `decibels`, evenly drawn in decibels."""

    needs_phase: ClassVar[bool] = True
    decibels: float = 6.0

    def __post_init__(self) -> None:
        if not 0 <= self.decibels <= 60:
            raise UserError(f"augment: Gain of {self.decibels} decibels is not in [0, 60].")

    def __call__(self, example: Tensor, random: np.random.Generator) -> Tensor:
        decibels = random.uniform(-self.decibels, self.decibels, size=len(example))
        gains = torch.from_numpy(10 ** (decibels / 20)).to(example.real.dtype)
        return example * gains[:, None, None, None]


@dataclass(frozen=True)
class ChannelSwap:
    """With `probability`, left and right of a row change places. Mono examples stay."""

    needs_phase: ClassVar[bool] = True
    probability: float = 0.5

    def __post_init__(self) -> None:
        _check_probability(self, self.probability)

    def __call__(self, example: Tensor, random: np.random.Generator) -> Tensor:
        swapped = torch.from_numpy(random.random(len(example)) < self.probability)
        return torch.where(swapped[:, None, None, None], example.flip(1), example)


@dataclass(frozen=True)
class Polarity:
    """With `probability`, a row is turned upside down. It changes how the rows add up, not the rows."""

    needs_phase: ClassVar[bool] = True
    probability: float = 0.5

    def __post_init__(self) -> None:
        _check_probability(self, self.probability)

    def __call__(self, example: Tensor, random: np.random.Generator) -> Tensor:
        flipped = torch.from_numpy(random.random(len(example)) < self.probability)
        return torch.where(flipped[:, None, None, None], -example, example)


@dataclass(frozen=True)
class Formants:
    """Each row's spectral envelope stretched along frequency by up to `percent` either way: other throats and bodies.

    Pitch, tempo and phases stay: every bin is only louder or softer, by `LIMIT` at most. The envelope is the mean of
    the magnitudes over some `bins` bins, which should reach over several partials (500 Hz).
    Jaitly and Hinton, "Vocal tract length perturbation (VTLP) improves speech recognition", 2013, stretch pitch too.
    """

    needs_phase: ClassVar[bool] = True
    LIMIT: ClassVar[float] = 30.0  # dB
    percent: float = 25.0
    bins: int = 60

    def __post_init__(self) -> None:
        if not 0 <= self.percent <= 100:
            raise UserError(f"augment: Formants of {self.percent} percent is not in [0, 100].")
        if not isinstance(self.bins, int) or not 4 <= self.bins <= 1024:
            raise UserError(f"augment: Formants with bins={self.bins}, which is not a whole number from 4 to 1024.")

    def __call__(self, example: Tensor, random: np.random.Generator) -> Tensor:
        most = np.log1p(self.percent / 100)
        factors = torch.from_numpy(np.exp(random.uniform(-most, most, size=len(example)))).float()
        envelopes = self._envelopes(example.abs())
        points = torch.arange(envelopes.shape[-1])
        moved = torch.stack([_read(row, points * factor) for row, factor in zip(envelopes, factors, strict=True)])
        limit = self.LIMIT / 20 * np.log(10)
        gains = (moved - envelopes).clamp(-limit, limit)
        return example * _read(gains, torch.arange(example.shape[-1]) / self._step).exp().to(example.real.dtype)

    @property
    def _step(self) -> int:
        """Bins from one point of an envelope to the next."""
        return self.bins // 4

    def _envelopes(self, magnitudes: Tensor) -> Tensor:
        """(R, C, T, F) -> (R, C, T, points), logarithms."""
        rows = magnitudes.flatten(1, 2)
        points = functional.avg_pool1d(rows, 4 * self._step + 1, self._step, 2 * self._step, count_include_pad=False)
        smooth = functional.avg_pool1d(points, 5, 1, 2, count_include_pad=False)
        floor = 1e-3 * smooth.mean(dim=-1, keepdim=True) + 1e-8  # what is far below the rest is not an envelope
        return (smooth + floor).log().unflatten(1, magnitudes.shape[1:3])


@dataclass(frozen=True)
class Silence:
    """With `probability`, a row is silent; one row stays at least."""

    needs_phase: ClassVar[bool] = True
    probability: float = 0.1

    def __post_init__(self) -> None:
        _check_probability(self, self.probability)

    def __call__(self, example: Tensor, random: np.random.Generator) -> Tensor:
        heard = random.random(len(example)) >= self.probability
        heard[random.integers(len(example))] = True
        return example * torch.from_numpy(heard)[:, None, None, None]


@dataclass(frozen=True)
class BandLimit:
    """With `probability`, nothing above a bin: as in a lossy file. It is drawn evenly from `lowest` · F to F."""

    needs_phase: ClassVar[bool] = False
    probability: float = 0.2
    lowest: float = 0.3

    def __post_init__(self) -> None:
        _check_probability(self, self.probability)
        if not 0 < self.lowest <= 1:
            raise UserError(f"augment: BandLimit with lowest={self.lowest}, which is not above 0 and at most 1.")

    def __call__(self, example: Tensor, random: np.random.Generator) -> Tensor:
        if random.random() >= self.probability:
            return example
        bins = example.shape[-1]
        kept = round(bins * random.uniform(self.lowest, 1))
        return functional.pad(example[..., :kept], (0, bins - kept))


@dataclass(frozen=True)
class TimeStretch:
    """Magnitudes stretched along time by a factor, then cut or padded evenly at both ends to T frames.

    As spleeter.audio.spectrogram, whose default range is 0.9 to 1.1.
    """

    needs_phase: ClassVar[bool] = False
    low: float = 0.9
    high: float = 1.1

    def __post_init__(self) -> None:
        if not 0.1 <= self.low <= self.high <= 10:
            raise UserError(f"augment: TimeStretch from {self.low} to {self.high} is not a range within 0.1 to 10.")

    def __call__(self, example: Tensor, random: np.random.Generator) -> Tensor:
        frames, bins = example.shape[-2:]
        stretched = _resize(example, round(frames * random.uniform(self.low, self.high)), bins)
        missing = frames - stretched.shape[-2]
        before = missing // 2 if missing > 0 else -(-missing // 2)
        return functional.pad(stretched, (0, 0, before, missing - before))


@dataclass(frozen=True)
class PitchShift:
    """Magnitudes stretched along frequency by up to `semitones` either way; what passes F is cut off.

    As spleeter.audio.spectrogram, whose default is one semitone.
    """

    needs_phase: ClassVar[bool] = False
    semitones: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.semitones <= 24:
            raise UserError(f"augment: PitchShift of {self.semitones} semitones is not in [0, 24].")

    def __call__(self, example: Tensor, random: np.random.Generator) -> Tensor:
        frames, bins = example.shape[-2:]
        factor = 2 ** (random.uniform(-self.semitones, self.semitones) / 12)
        shifted = _resize(example, frames, round(bins * factor))[..., :bins]
        return functional.pad(shifted, (0, bins - shifted.shape[-1]))


ON_MAGNITUDES = (TimeStretch, PitchShift)  # of no use to a loss that needs phases
Change = Gain | ChannelSwap | Polarity | Formants | Silence | BandLimit | TimeStretch | PitchShift
Augmentation = Remix | Mixup | Change


def _resize(example: Tensor, frames: int, bins: int) -> Tensor:
    return functional.interpolate(example, size=(frames, bins), mode="bilinear", antialias=True)


def _read(values: Tensor, at: Tensor) -> Tensor:
    """Values (..., N) at places between 0 and N - 1, on straight lines; beyond the last, the last."""
    at = at.clamp(max=values.shape[-1] - 1)
    below = at.floor().long().clamp(max=max(values.shape[-1] - 2, 0))
    above = (below + 1).clamp(max=values.shape[-1] - 1)
    return torch.lerp(values[..., below], values[..., above], (at - below).to(values.dtype))
