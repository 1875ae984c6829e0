"""What a training minimises: how far the estimates are from the stems, one number a stem.

A loss is called with a model, what its networks estimate of the stems (B, S, C, T, F), and mixture (B, C, T, F) and
stems (B, S, C, T, F): magnitudes, or complex spectra for a loss that `needs_phase`. It returns (S,).

Spleeter's loss, `L1`, judges what each network says of its own stem. At inference the ratio masks decide, and they
divide the mixture with its phases: `Masked`, `Spectral`, `Waveform` and `MultiResolution` judge what comes of that.
Axes: B batch, S stem, C channel, T frame, F bin, N sample.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from stemwise import masks, spectrogram
from stemwise.errors import UserError
from stemwise.separator import Separator

SMALLEST = 1e-8  # below which a square root's slope is cut off


class Loss(Protocol):
    """What every loss here is."""

    needs_phase: ClassVar[bool]

    def __call__(self, model: Separator, estimates: Tensor, mixture: Tensor, stems: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class L1:
    """Spleeter's; see `l1`."""

    needs_phase: ClassVar[bool] = False

    def __call__(self, model: Separator, estimates: Tensor, mixture: Tensor, stems: Tensor) -> Tensor:
        return l1(estimates, stems)


@dataclass(frozen=True)
class Compressed:
    """`L1` of magnitudes to a power below 1, which weighs quiet bins more."""

    needs_phase: ClassVar[bool] = False
    power: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.power, int | float) or not 0 < self.power <= 1:
            raise UserError(f"loss.power={self.power} is not above 0 and at most 1.")

    def __call__(self, model: Separator, estimates: Tensor, mixture: Tensor, stems: Tensor) -> Tensor:
        # The slope of a power at zero is infinite.
        smallest = SMALLEST ** min(self.power, 0.5)
        return _mean(((estimates + smallest).pow(self.power) - (stems + smallest).pow(self.power)).abs())


@dataclass(frozen=True)
class Logarithmic:
    """`L1` of log(1 + magnitude / `floor`); magnitudes far below `floor` weigh as in `L1`, far above by their ratio."""

    needs_phase: ClassVar[bool] = False
    floor: float = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.floor, int | float) or not 0 < self.floor < math.inf:
            raise UserError(f"loss.floor={self.floor} is not a finite number above 0.")

    def __call__(self, model: Separator, estimates: Tensor, mixture: Tensor, stems: Tensor) -> Tensor:
        return _mean(((estimates / self.floor).log1p() - (stems / self.floor).log1p()).abs())


@dataclass(frozen=True)
class Masked:
    """Another loss, of magnitudes, with the estimates replaced by the shares of the mixture that inference makes."""

    needs_phase: ClassVar[bool] = False
    loss: L1 | Compressed | Logarithmic

    def __call__(self, model: Separator, estimates: Tensor, mixture: Tensor, stems: Tensor) -> Tensor:
        shares = masks.ratio(estimates, mixture, model.mask) * mixture.unsqueeze(1)
        return self.loss(model, shares, mixture, stems)


@dataclass(frozen=True)
class Spectral:
    """The mean of |estimate - stem| over (B, C, T, F) of complex spectra, the estimates as inference makes them.

    A mask is then best that makes up for the mixture's phase where that is not the stem's (Erdogan et al.,
    "Phase-sensitive and recognition-boosted speech separation using deep recurrent neural networks", ICASSP 2015).
    """

    needs_phase: ClassVar[bool] = True

    def __call__(self, model: Separator, estimates: Tensor, mixture: Tensor, stems: Tensor) -> Tensor:
        return _mean(_magnitude(_shares(model, estimates, mixture) - stems))


@dataclass(frozen=True)
class Waveform:
    """The mean of |estimate - stem| over (B, C, N) of the waveforms of the crop, the estimates as inference makes them.

    Both waveforms are of the model's band.
    """

    needs_phase: ClassVar[bool] = True

    def __call__(self, model: Separator, estimates: Tensor, mixture: Tensor, stems: Tensor) -> Tensor:
        estimate, stem = _waveforms(model, estimates, mixture, stems)
        return (estimate - stem).abs().mean(dim=(0, 2, 3))


@dataclass(frozen=True)
class MultiResolution:
    """The mean over several frame lengths of the mean of |estimate - stem| of the waveforms' complex spectra."""

    needs_phase: ClassVar[bool] = True
    n_ffts: Sequence[int] = (512, 1024, 2048)

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_ffts", tuple(self.n_ffts))
        if not self.n_ffts or any(not isinstance(n, int) or n < 8 or n % 4 for n in self.n_ffts):
            raise UserError(f"loss.n_ffts={list(self.n_ffts)} is not a list of multiples of 4 from 8 on.")

    def __call__(self, model: Separator, estimates: Tensor, mixture: Tensor, stems: Tensor) -> Tensor:
        estimate, stem = _waveforms(model, estimates, mixture, stems)
        error = (estimate - stem).flatten(0, 2)
        if max(self.n_ffts) // 2 >= error.shape[-1]:
            raise UserError(
                f"loss.n_ffts={list(self.n_ffts)}: a crop has {error.shape[-1]} samples to judge, not more than half "
                "of the longest frame. Shorten it, or raise spectrogram.frames."
            )
        found = []
        for n_fft in self.n_ffts:
            window = torch.hann_window(n_fft, device=error.device)
            spectra = torch.stft(error, n_fft, n_fft // 4, window=window, return_complex=True)
            # Scaled to the level of the waveform, so that no length weighs more than another.
            found.append(_magnitude(spectra).mean(dim=(-2, -1)) / window.square().sum().sqrt())
        return torch.stack(found).mean(dim=0).unflatten(0, estimate.shape[:3]).mean(dim=(0, 2))


LOSSES: tuple[Any, ...] = (L1, Compressed, Logarithmic, Masked, Spectral, Waveform, MultiResolution)


def from_config(settings: Mapping[str, Any]) -> Loss:
    """The loss of a run's config as plain values, without calling what else a config may name.

    Raises `UserError` for what is none of these losses.
    """
    known = {f"{__name__}.{kind.__name__}": kind for kind in LOSSES}
    values = dict(settings)
    kind = known.get(values.pop("_target_", None))
    if kind is None:
        raise UserError(f"loss={settings}: not one of {', '.join(known)}.")
    return kind(**{name: from_config(value) if name == "loss" else value for name, value in values.items()})


def l1(estimates: Tensor, stems: Tensor) -> Tensor:
    """The mean (S,) of |estimate - stem| over (B, C, T, F) of magnitudes (spleeter.model, `L1_mask`)."""
    return _mean((estimates - stems).abs())


def _shares(model: Separator, estimates: Tensor, mixture: Tensor) -> Tensor:
    """The spectra (B, S, C, T, F) of the stems that inference makes of these estimates."""
    return masks.ratio(estimates, mixture.abs(), model.mask) * mixture.unsqueeze(1)


def _waveforms(model: Separator, estimates: Tensor, mixture: Tensor, stems: Tensor) -> tuple[Tensor, Tensor]:
    """Waveforms (B, S, C, N) of estimates and stems, without the ends for which frames are missing."""
    both = torch.stack([_shares(model, estimates, mixture), stems])
    overlap = model.spectrogram.overlap
    estimate, stem = spectrogram.overlap_add(both, model.spectrogram)[..., overlap:-overlap].unbind()
    return estimate, stem


def _magnitude(spectra: Tensor) -> Tensor:
    # Not `abs`, whose gradient of complex numbers takes several times as long.
    parts = torch.view_as_real(spectra).square()
    return (parts[..., 0] + parts[..., 1] + SMALLEST**2).sqrt()


def _mean(differences: Tensor) -> Tensor:
    """The mean (S,) of (B, S, C, T, F) over all but S."""
    # Over F first: on the CPU, float32 sums along strides of channels-last tensors are off by up to 1e-4.
    return differences.mean(dim=-1).mean(dim=(0, 2, 3))
