"""BSSEval v4 in torch, on any device: SDR, ISR, SIR and SAR of estimated stems, window by window.

Every estimate is projected on what filters of 512 taps can make of the true stems; what the projections leave over is
named spatial distortion, interference or artifacts, and each is compared in energy. The filters are fitted once, to the
whole song; the energies are those of one window at a time (Vincent, Gribonval, Févotte, "Performance measurement in
blind audio source separation", 2006; Vincent, "Improved perceptual metrics for the evaluation of audio source
separation", 2012; Stöter, Liutkus, Ito, "The 2018 Signal Separation Evaluation Campaign"). Everything is float64.
Axes: S stem, C channel, N sample; K = S·C channels of references, E of estimates, L tap, W window, F frequency bin.
"""

import torch
from torch import Tensor
from torch.nn import functional

TAPS = 512
EPSILON = torch.finfo(torch.float64).eps
# What is added to the normal equations' diagonal, times its mean, where they have no unique solution.
RIDGES = (0.0, 1e-15, 1e-14, 1e-13, 1e-12, 1e-11)
# Songs are correlated in FFTs of this size, so many at a time: more would not stay in a processor's cache.
BLOCK = 8192
BLOCKS = 16
# Samples of one channel that are transformed at once: about a gigabyte for 4 stems on a GPU, 100 MB on a processor.
SPAN = {"cpu": 2**17, "cuda": 2**21}


def evaluate(references: Tensor, estimates: Tensor, window: int) -> dict[str, Tensor]:
    """SDR, ISR, SIR and SAR in dB of estimates (S, C, N) of references (S, C, N): (S, N // window), on their device.

    Windows have `window` samples and do not overlap; what is left behind the last is not scored, and a song that is
    shorter than one is one window. All values of a window are nan where a reference or an estimate is silent (its
    channels add up to zero at every sample), as in museval. A ratio ends at 313 dB, where rounding begins.
    """
    window = min(window, references.shape[-1])
    together, alone = _filters(references.flatten(0, 1), estimates.flatten(0, 1), len(references))
    size = _fast_size(window + TAPS - 1)
    spectra = torch.fft.rfft(together, size), torch.fft.rfft(alone, size)
    step = max(SPAN[references.device.type] // window, 1) * window
    last = references.shape[-1] // window * window
    parts = [
        _score(_windows(references[..., at:end], window), _windows(estimates[..., at:end], window), *spectra, size)
        for at in range(0, last, step)
        for end in [min(at + step, last)]
    ]
    return dict(zip(("SDR", "ISR", "SIR", "SAR"), torch.cat(parts, dim=-1), strict=True))


def _score(references: Tensor, estimates: Tensor, together: Tensor, alone: Tensor, size: int) -> Tensor:
    """SDR, ISR, SIR, SAR (4, S, W) of windows (W, S, C, n), with the filters' spectra; FFTs have `size` points.

    Projections are longer than the window by the filters' tails; `size` has room for them. By Parseval's theorem their
    energies need no inverse transform.
    """
    truth, estimate = torch.fft.rfft(references, size), torch.fft.rfft(estimates, size)
    # What the estimate's own stem explains of it, and what all stems do.
    own = torch.einsum("wscf,scdf->wsdf", truth, alone)
    explained = torch.einsum("wkf,kef->wef", truth.flatten(1, 2), together).view_as(truth)
    signal = references.square().sum(dim=(-2, -1))
    ratios = torch.stack(
        [
            _decibels(signal, (estimates - references).square().sum(dim=(-2, -1))),
            _decibels(signal, _energy(own - truth, size)),
            _decibels(_energy(own, size), _energy(explained - own, size)),
            _decibels(_energy(explained, size), _energy(estimate - explained, size)),
        ]
    )
    heard = (_is_heard(references) & _is_heard(estimates)).all(dim=-1)
    return ratios.where(heard[:, None], torch.nan).transpose(1, 2)


def _filters(references: Tensor, estimates: Tensor, stems: int) -> tuple[Tensor, Tensor]:
    """Least-squares filters from references (K, N) to estimates (K, N).

    From all references to each estimate (K, E, L), and from a stem's own channels to its estimate's (S, C, C, L).
    """
    channels = len(references) // stems
    found = _correlations(references, torch.cat([references, estimates]))
    within, across = found[:, : len(references)], found[:, len(references) :]
    # Lags -(L-1) to L-1: a correlation at a negative lag is that of the swapped pair at the positive.
    lags = torch.cat([within.transpose(0, 1).flip(-1)[..., :-1], within], dim=-1)
    together = _solve(_toeplitz(lags), across.transpose(1, 2).flatten(0, 1))
    blocks = [slice(at, at + channels) for at in range(0, len(references), channels)]
    alone = [_solve(_toeplitz(lags[b, b]), across[b, b].transpose(1, 2).flatten(0, 1)) for b in blocks]
    together = together.view(len(references), TAPS, -1).transpose(1, 2)
    return together, torch.stack(alone).view(stems, channels, TAPS, channels).transpose(2, 3)


def _correlations(left: Tensor, right: Tensor) -> Tensor:
    """Σ_n left_a[n] · right_b[n + l] of signals (A, N) and (B, N) for lags l from 0 to L-1: (A, B, L).

    Blocks of the left meet blocks of the right that are L-1 samples longer, so no product wraps around; the products
    add up as spectra, which takes one inverse transform a pair however long the song is.
    """
    hop, samples = BLOCK - TAPS + 1, left.shape[-1]
    total = left.new_zeros(BLOCK // 2 + 1, len(left), len(right), dtype=torch.complex128)
    for start in range(0, samples, BLOCKS * hop):
        count = min(BLOCKS, -(-(samples - start) // hop))
        first, second = (_blocks(signals[:, start:], count, hop) for signals in (left, right))
        first, second = torch.fft.rfft(first[..., :hop], BLOCK), torch.fft.rfft(second)
        total += torch.einsum("anf,bnf->fab", first.conj(), second)
    return torch.fft.irfft(total, BLOCK, dim=0)[:TAPS].permute(1, 2, 0)


def _blocks(signals: Tensor, count: int, hop: int) -> Tensor:
    """The first blocks (A, count, BLOCK) of signals (A, N), `hop` samples from each other; zeros behind the end."""
    signals = signals[:, : (count - 1) * hop + BLOCK].double()
    return functional.pad(signals, (0, (count - 1) * hop + BLOCK - signals.shape[-1])).unfold(-1, BLOCK, hop)


def _toeplitz(lags: Tensor) -> Tensor:
    """The normal equations' matrix (A·L, A·L) from correlations (A, A, 2L-1): entry (a, i), (b, j) is lag i - j."""
    matrix = lags.unfold(-1, TAPS, 1).flip(-1).transpose(1, 2).reshape(2 * (len(lags) * TAPS,))
    # Keeps the rows of a silent channel apart, as museval does; to all others it is nothing.
    matrix.diagonal().add_(EPSILON)
    return matrix


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """x of matrix · x = right, for a symmetric matrix that has no negative eigenvalues but by rounding."""
    # Two equal channels, or a stem without high notes, leave filters open, and Cholesky finds no factor: then the
    # smallest ridge that closes them, which takes next to nothing from the projection. An LU decomposition, as museval
    # has it, returns filters that are made of rounding.
    level = matrix.diagonal().mean()
    for ridge in RIDGES:
        matrix.diagonal().add_(ridge * level)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not failed:
            return torch.cholesky_solve(right, factor)
    raise ArithmeticError(f"the filters of {len(matrix)} taps have no solution")


def _windows(signals: Tensor, window: int) -> Tensor:
    """(S, C, W·n) -> (W, S, C, n)."""
    return signals.double().unflatten(-1, (-1, window)).movedim(-2, 0)


def _energy(spectra: Tensor, size: int) -> Tensor:
    """Energies (W, S) of the signals of `size` samples, an even number, whose spectra are (W, S, C, F)."""
    # All bins but the first and the last stand for two.
    ends = spectra[..., :: spectra.shape[-1] - 1]
    whole, once = (torch.view_as_real(part).square().sum(dim=(-3, -2, -1)) for part in (spectra, ends))
    return (2 * whole - once) / size


def _decibels(signal: Tensor, error: Tensor) -> Tensor:
    return 10 * torch.log10(signal / error.maximum(EPSILON**2 * signal))


def _is_heard(signals: Tensor) -> Tensor:
    return (signals.sum(dim=-2) != 0).any(dim=-1)


def _fast_size(least: int) -> int:
    """The smallest even number from `least` on that has no prime factor above 5: FFTs of such sizes are fast."""
    size = least + least % 2
    while not _is_smooth(size):
        size += 2
    return size


def _is_smooth(number: int) -> bool:
    for factor in (2, 3, 5):
        while number % factor == 0:
            number //= factor
    return number == 1
