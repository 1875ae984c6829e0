"""How a frame of a spectrogram lies on disk: three trades of size against what is kept.

Each storage turns spectra (C, T, F) into an array of T records and back. A record is one frame of all
channels, so that a crop in time is one piece of the file. What keeps magnitudes can also `unpack` the bytes of many
records at once, on the device where they are needed.

| name    | bytes per bin | keeps                                                                    |
|---------|---------------|--------------------------------------------------------------------------|
| half    | 2             | magnitudes in half precision: 0.05 % error, from -150 dB to +30 dB       |
| complex | 4             | real and imaginary part in half precision, for mixing stems anew         |
| decibel | 1             | magnitudes as 8-bit decibels over 100 dB: 0.2 dB error, as in Spleeter   |

0 dB is n_fft/2 = 2048, the largest magnitude of samples within ±1.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stemwise.errors import UserError
from stemwise.spectrogram import Spectrogram

DECIBEL_RANGE = 100.0
QUIETEST = 1e-10  # magnitude of the lowest level: below it, decibels would go to minus infinity
LARGEST_HALF = 65520.0  # from here on, half precision rounds to infinity


@dataclass(frozen=True)
class Half:
    """Magnitudes in half precision."""

    name = "half"
    has_phase = False

    def dtype(self, settings: Spectrogram) -> np.dtype[Any]:
        return np.dtype(("<f2", (settings.channels, settings.bins)))

    def encode(self, spectra: Tensor) -> np.ndarray:
        return _to_half(_magnitudes(spectra).transpose(0, 1))

    def decode(self, records: np.ndarray) -> Tensor:
        return torch.from_numpy(records.copy()).float().transpose(0, 1)

    def silence(self, settings: Spectrogram) -> np.ndarray:
        """The record of a frame without sound."""
        return np.zeros((), self.dtype(settings))

    def unpack(self, records: Tensor, out: Tensor) -> Tensor:
        """Magnitudes of records (..., T, bytes of one) into `out` (..., C, T, F) in float32, on the same device."""
        channels, _, bins = out.shape[-3:]
        return out.copy_(records.view(torch.float16).unflatten(-1, (channels, bins)).transpose(-3, -2))


@dataclass(frozen=True)
class Complex:
    """Spectra as pairs of half precision numbers."""

    name = "complex"
    has_phase = True

    def dtype(self, settings: Spectrogram) -> np.dtype[Any]:
        return np.dtype(("<f2", (settings.channels, settings.bins, 2)))

    def encode(self, spectra: Tensor) -> np.ndarray:
        return _to_half(torch.view_as_real(spectra.transpose(0, 1).contiguous()))

    def decode(self, records: np.ndarray) -> Tensor:
        parts = torch.from_numpy(records.copy()).float()
        # Not view_as_complex, which refuses an empty tensor: a crop may lie outside the song.
        return torch.complex(parts[..., 0], parts[..., 1]).transpose(0, 1)

    def silence(self, settings: Spectrogram) -> np.ndarray:
        """The record of a frame without sound."""
        return np.zeros((), self.dtype(settings))


@dataclass(frozen=True)
class Decibel:
    """Magnitudes as 256 levels of decibels between the frame's lowest and highest value.

    Spleeter has one range for 20 seconds (spleeter.audio.convertor); one per frame costs 8 bytes more.
    """

    name = "decibel"
    has_phase = False

    def dtype(self, settings: Spectrogram) -> np.dtype[Any]:
        return self._record(settings.channels, settings.bins)

    def encode(self, spectra: Tensor) -> np.ndarray:
        decibels = 20 * _magnitudes(spectra).clamp(min=QUIETEST).log10().transpose(0, 1)
        high = decibels.amax(dim=(1, 2))
        low = torch.maximum(decibels.amin(dim=(1, 2)), high - DECIBEL_RANGE)
        step = (high - low).clamp(min=1e-6) / 255
        levels = ((decibels - low[:, None, None]) / step[:, None, None]).round().clamp(0, 255)
        records = np.empty(len(decibels), self._record(*decibels.shape[1:]))
        records["low"], records["high"], records["levels"] = low, high, levels.to(torch.uint8)
        return records

    def decode(self, records: np.ndarray) -> Tensor:
        low = torch.from_numpy(records["low"].astype(np.float32))[:, None, None]
        high = torch.from_numpy(records["high"].astype(np.float32))[:, None, None]
        levels = torch.from_numpy(records["levels"].astype(np.float32))
        return _from_levels(levels, low, high).transpose(0, 1)

    def silence(self, settings: Spectrogram) -> np.ndarray:
        """The record of a frame without sound."""
        return self.encode(torch.zeros(settings.channels, 1, settings.bins, dtype=torch.complex64))[0]

    def unpack(self, records: Tensor, out: Tensor) -> Tensor:
        """Magnitudes of records (..., T, bytes of one) into `out` (..., C, T, F) in float32, on the same device."""
        channels, _, bins = out.shape[-3:]
        low, high = records[..., :8].contiguous().view(torch.float32).unsqueeze(-3).split(1, dim=-1)
        out.copy_(records[..., 8:].unflatten(-1, (channels, bins)).transpose(-3, -2))
        return _from_levels(out, low, high)

    @staticmethod
    def _record(channels: int, bins: int) -> np.dtype[Any]:
        return np.dtype([("low", "<f4"), ("high", "<f4"), ("levels", "u1", (channels, bins))])


Storage = Half | Complex | Decibel


def by_name(name: str) -> Storage:
    """The storage called `name` in a config."""
    storages: dict[str, Storage] = {"half": Half(), "complex": Complex(), "decibel": Decibel()}
    if name not in storages:
        raise UserError(f"data.storage={name!r} is not one of {', '.join(storages)}.")
    return storages[name]


def _magnitudes(spectra: Tensor) -> Tensor:
    """|spectra|, three times as fast as `abs` of complex numbers, which guards against squares out of range."""
    parts = torch.view_as_real(spectra)
    return (parts[..., 0].square() + parts[..., 1].square()).sqrt_()


def _from_levels(levels: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Magnitudes in the place of float32 levels between `low` and `high` decibels."""
    levels.mul_((high - low) / 255).add_(low)
    levels.mul_(math.log(10) / 20).exp_()  # nine times as fast as 10 ** x
    # Silence, clamped on the way in, is silence again.
    return levels.masked_fill_(levels <= 2 * QUIETEST, 0.0)


def _to_half(values: Tensor) -> np.ndarray:
    # One pass for the bounds instead of several that ask each number whether it is finite. NaN is below nothing.
    if values.numel() and not values.abs().amax() < LARGEST_HALF:
        raise UserError(
            f"spectrogram values of up to {values.abs().max():.0f} do not fit half precision: the "
            "samples are far past full scale. Export the file with peaks near 1."
        )
    return torch.empty(values.shape, dtype=torch.float16).copy_(values).numpy()
