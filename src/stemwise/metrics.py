"""uSDR, the cheap score of a separated song: one number per stem from whole waveforms."""

import torch
from torch import Tensor


def usdr(references: Tensor, estimates: Tensor) -> Tensor:
    """10 log10(Σ reference² / Σ (reference - estimate)²) in dB, (S, C, N) -> (S,); nan if the reference is silent.

    The sums run over channels and samples of the whole song, as in the Music Demixing Challenge
    (Mitsufuji et al., 2022). Unlike museval's SDR it allows no filtering of the reference, and it is not comparable to
    published BSSEval tables. A perfect estimate gets the ceiling of float32, about 150 dB, not infinity.
    """
    signal = references.square().sum(dim=(-2, -1))
    error = (references - estimates).square().sum(dim=(-2, -1))
    decibels = 10 * torch.log10(signal / error.clamp(min=1e-15 * signal))
    return torch.where(signal > 0, decibels, torch.nan)
