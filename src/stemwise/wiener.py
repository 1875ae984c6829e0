"""Stems from estimated magnitudes by a multichannel Wiener filter: Spleeter's `--mwf`, in bounded memory.

The result is that of norbert 0.2.1 with its defaults, one step of expectation maximisation after a soft mask
(`norbert.wiener`; Nugraha, Liutkus, Vincent, "Multichannel audio source separation with deep neural networks",
IEEE/ACM TASLP 24(9), 2016). For stem j, frame t and bin f, with x the mixture (C) and e its estimates:

    y_j = e_j / (ε + Σ_k e_k) · x                first stems, the soft mask
    v_j = mean over channels of |y_j|²           power
    R_j = Σ_t y_j y_jᴴ / (ε + Σ_t v_j)           spatial covariance (C, C), one per bin
    stem_j = v_j R_j (Σ_k v_k R_k + √ε I)⁻¹ x

Only R_j needs the whole song, so a song in pieces takes two passes, and equals the song in one piece:

    total = functools.reduce(operator.add, (wiener.statistics(e, x) for e, x in pieces))
    stems = (wiener.filtered(e, x, total) for e, x in pieces)

norbert divides x by m = max(1, max |x| / 10) first and multiplies the stems by it. That is the same as ε m² and
√ε m² in the last two formulas, so m too may be found in the first pass.

Inside, numbers have double precision. Where a bin is loud and comes from one direction, the matrix to invert has
elements of up to 100, and only √ε = 3e-4 keeps it from being singular: single precision leaves few digits. norbert
in complex64, as Spleeter calls it, was 68 to 115 dB from itself in complex128 on three stereo songs, and 50 to 60 dB
on one of them in mono on two channels. This module is at 150 dB, the rounding of its complex64 result.

Axes: S stem, C channel (1 or 2), T frame, F bin of the estimates. A spectrum may have more bins; there the stems
are zero, and only max |x| takes notice of them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = torch.finfo(torch.float32).eps
# Frames that are worked on at a time: what a processor's cache holds (32 are 5 % slower, 512 half as fast), and on
# a GPU a whole window of Spleeter's, because there each step costs the same however small it is.
FRAMES = 16
FRAMES_ON_GPU = 512


@dataclass(frozen=True, eq=False)
class Statistics:
    """What the filter has to know of a whole song; the sum of two is that of both pieces together.

    `covariances` (S, C², F) is Σ_t y yᴴ before scaling, as `_product` takes it; `peak` () is max |x|. Both are in
    double precision, on the device of the estimates: 128 KiB for 4 stems of 1024 bins in stereo.
    """

    covariances: Tensor
    peak: Tensor

    def __add__(self, other: "Statistics") -> "Statistics":
        return Statistics(self.covariances + other.covariances, torch.maximum(self.peak, other.peak))


@torch.no_grad()
def statistics(estimates: Tensor, spectrum: Tensor) -> Statistics:
    """What a piece adds to the statistics of its song: magnitudes (S, C, T, F), complex mixture (C, T, ≥ F)."""
    stems, channels, _, bins = estimates.shape
    covariances = estimates.new_zeros(stems, channels**2, bins, dtype=torch.float64)
    peak = covariances.new_zeros(())
    for magnitudes, mixture in _pieces(estimates, spectrum):
        peak = torch.maximum(peak, _energy(mixture).amax())
        cross = _cross(mixture[..., :bins] / _total(magnitudes))
        for stem, one in enumerate(magnitudes):
            covariances[stem, :channels] += (one.square() * cross[:channels]).sum(dim=-2)
            if channels == 2:
                covariances[stem, 2:] += (one.prod(dim=0) * cross[2:]).sum(dim=-2)
    return Statistics(covariances, peak.sqrt())


@torch.no_grad()
def filtered(estimates: Tensor, spectrum: Tensor, total: Statistics) -> Tensor:
    """Complex stems (S, C, T, F) of a piece, given the statistics of the whole song.

    Takes what `statistics` takes; the result is complex64. Beside it, 4 stems of 1024 bins in stereo need about 5 MiB
    on a CPU, whatever T is, and 150 MiB on a GPU. The device must have double precision, so not Apple's `mps`.
    """
    spatial, noise = _model(total)
    stems = torch.empty(estimates.shape, dtype=torch.complex64, device=estimates.device)
    start = 0
    for magnitudes, mixture in _pieces(estimates, spectrum[..., : estimates.shape[-1]]):
        energy = _energy(mixture / _total(magnitudes))
        powers = [(one.square() * energy).mean(dim=0) for one in magnitudes]
        whitened = _solve(_mix(powers, spatial, noise), mixture)
        end = start + mixture.shape[-2]
        for stem, power, matrix in zip(stems, powers, spatial, strict=True):
            part = _product(matrix, whitened * power)
            stem[:, start:end].real.copy_(part[:, 0])
            stem[:, start:end].imag.copy_(part[:, 1])
        start = end
    return stems


def wiener(estimates: Tensor, spectrum: Tensor) -> Tensor:
    """Complex stems (S, C, T, F) of a song in one piece."""
    return filtered(estimates, spectrum, statistics(estimates, spectrum))


def _pieces(estimates: Tensor, spectrum: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Estimates (S, C, t, F) and the mixture (C, 2, t, F), real and imaginary part apart, some frames at a time."""
    frames = FRAMES if estimates.device.type == "cpu" else FRAMES_ON_GPU
    for some, mixture in zip(estimates.split(frames, dim=-2), spectrum.split(frames, dim=-2), strict=True):
        yield some.double(), torch.stack([mixture.real, mixture.imag], dim=1).double()


def _total(magnitudes: Tensor) -> Tensor:
    """What the soft mask divides by (C, 1, t, F)."""
    return (magnitudes.sum(dim=0) + EPSILON).unsqueeze(1)


def _energy(mixture: Tensor) -> Tensor:
    return mixture.square().sum(dim=1)


def _cross(mixture: Tensor) -> Tensor:
    """x xᴴ (C², t, F) of x (C, 2, t, F), as `_product` takes it."""
    energy = _energy(mixture)
    if len(mixture) == 1:
        return energy
    (left, left_imag), (right, right_imag) = mixture
    real = left * right + left_imag * right_imag
    imag = left_imag * right - left * right_imag
    return torch.stack([*energy, real, imag])


def _model(total: Statistics) -> tuple[Tensor, Tensor]:
    """R (S, C², 1, F), and the variance of the noise that keeps the mixture's matrix invertible."""
    channels = math.isqrt(total.covariances.shape[1])
    scale = (total.peak / 10).clamp(min=1).square()
    powers = total.covariances[:, :channels].mean(dim=1, keepdim=True)
    spatial = total.covariances / (EPSILON * scale + powers)
    # norbert adds ε once more where it inverts a single channel.
    noise = math.sqrt(EPSILON) + (EPSILON if channels == 1 else 0)
    return spatial.unsqueeze(-2), noise * scale


def _mix(powers: Sequence[Tensor], spatial: Tensor, noise: Tensor) -> Tensor:
    """Σ v_k R_k + noise · I (C², t, F)."""
    matrix = powers[0] * spatial[0]
    for power, one in zip(powers[1:], spatial[1:], strict=True):
        matrix.addcmul_(power, one)
    matrix[: math.isqrt(len(matrix))] += noise
    return matrix


def _solve(matrix: Tensor, vector: Tensor) -> Tensor:
    """Inverses of Hermitian matrices (C², t, F) times vectors (C, 2, t, F)."""
    if len(vector) == 1:
        return vector / matrix
    left, right, real, imag = matrix
    determinant = left * right - real.square() - imag.square()
    return _product(torch.stack([right, left, -real, -imag]), vector / determinant)


def _product(matrix: Tensor, vector: Tensor) -> Tensor:
    """Hermitian matrices (C², …, F) times vectors (C, 2, t, F).

    A matrix is its diagonal, then the real and the imaginary part of the element above it; a vector has real and
    imaginary parts apart. Torch's complex numbers take several times as long.
    """
    if len(vector) == 1:
        return matrix * vector
    left, right, real, imag = matrix
    (x, x_imag), (y, y_imag) = vector
    out = torch.empty_like(vector)
    torch.mul(left, x, out=out[0, 0]).addcmul_(real, y).addcmul_(imag, y_imag, value=-1)
    torch.mul(left, x_imag, out=out[0, 1]).addcmul_(real, y_imag).addcmul_(imag, y)
    torch.mul(right, y, out=out[1, 0]).addcmul_(real, x).addcmul_(imag, x_imag)
    torch.mul(right, y_imag, out=out[1, 1]).addcmul_(real, x_imag).addcmul_(imag, x, value=-1)
    return out
