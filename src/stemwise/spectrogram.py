"""Waveforms to short-time Fourier spectra and back, with Spleeter's framing.

Axes: C channel, T frame, F frequency bin, N audio sample. Spectra are complex (…, T, F), F = n_fft/2 + 1;
models see the magnitudes of the first `bins` of them.

The waveform is preceded by one frame of zeros, so that the first sample is covered by as many frames as any
other; there are ceil((N + n_fft) / hop) frames, the last ones padded with zeros. The window is a periodic
Hann, at analysis and again at synthesis (spleeter.model.EstimatorSpecBuilder).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from stemwise.errors import UserError

# Frames that are inverted at a time on a CPU: of 2 channels they are 2 MiB, which its cache holds.
FRAMES = 64
# A model file says how large a window is: without bounds, one of 1 KB could ask for all memory there is.
FASTEST = 2**20  # Hz
LARGEST = 2**27  # frames × n_fft; 64 times Spleeter's


@dataclass(frozen=True)
class Spectrogram:
    """The settings that shape a spectrogram; a model file carries them.

    `frames` is T, the length of a training example and of an inference window; `bins` is F, how many of the
    n_fft/2 + 1 frequency bins the model sees. The defaults are Spleeter's: 11.9 s windows up to 11 kHz.
    """

    sample_rate: int = 44100
    channels: int = 2
    n_fft: int = 4096
    hop: int = 1024
    bins: int = 1024
    frames: int = 512

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise UserError(f"spectrogram.{name}={value!r} is not a whole number above zero.")
        if self.sample_rate > FASTEST:
            raise UserError(f"spectrogram.sample_rate={self.sample_rate} is more than {FASTEST} Hz. Lower it.")
        if self.frames * self.n_fft > LARGEST:
            raise UserError(
                f"spectrogram.frames={self.frames} of n_fft={self.n_fft} make a window of {self.frames * self.n_fft} "
                f"values, more than {LARGEST}. Lower frames."
            )
        if self.channels > 2:
            raise UserError(f"spectrogram.channels={self.channels}: models are mono (1) or stereo (2).")
        if self.n_fft % self.hop or self.n_fft // self.hop < 3:
            raise UserError(
                f"spectrogram.hop={self.hop} does not divide n_fft={self.n_fft} into at least 3 parts, so the "
                f"squared Hann windows do not add up evenly. Take hop={max(self.n_fft // 4, 1)}."
            )
        if self.bins > self.full_bins:
            raise UserError(
                f"spectrogram.bins={self.bins} is more than n_fft/2+1 = {self.full_bins}. Lower bins or raise n_fft."
            )

    @property
    def full_bins(self) -> int:
        return self.n_fft // 2 + 1

    @property
    def overlap(self) -> int:
        """Samples that neighbouring frames share."""
        return self.n_fft - self.hop

    def frame_count(self, samples: int) -> int:
        """T of a waveform of N samples."""
        return -(-(samples + self.n_fft) // self.hop)


def stft(waveform: Tensor, settings: Spectrogram) -> Tensor:
    """Spectra (…, T, n_fft/2 + 1) of a waveform (…, N), T = `settings.frame_count(N)`."""
    frames = settings.frame_count(waveform.shape[-1])
    length = (frames - 1) * settings.hop + settings.n_fft
    after = length - settings.n_fft - waveform.shape[-1]
    return spectra(torch.nn.functional.pad(waveform, (settings.n_fft, after)), settings)


def istft(spectrum: Tensor, samples: int, settings: Spectrogram) -> Tensor:
    """The waveform (…, N) of which `spectrum` is the `stft`; N = `samples`."""
    waveform = overlap_add(spectrum, settings)
    return waveform[..., settings.n_fft : settings.n_fft + samples]


def spectra(padded: Tensor, settings: Spectrogram) -> Tensor:
    """Spectra (…, T, n_fft/2 + 1) of the whole frames within `padded` (…, overlap + T * hop samples)."""
    window = _window(settings.n_fft, padded.dtype, padded.device)
    return torch.fft.rfft(padded.unfold(-1, settings.n_fft, settings.hop) * window)


def overlap_add(spectrum: Tensor, settings: Spectrogram) -> Tensor:
    """Inverse of `spectra` (…, T, F) -> (…, T * hop + overlap), away from the first and last `overlap` samples.

    Bins that are missing at the end count as zeros.

    Those edges lack the contributions of frames before and after; whoever processes a long song in pieces
    adds the end of one piece to the start of the next.
    """
    count, parts = spectrum.shape[-2], settings.n_fft // settings.hop
    out = spectrum.real.new_zeros(*spectrum.shape[:-2], count + parts - 1, settings.hop)
    window = _synthesis_window(settings, out.dtype, out.device)
    step = min(FRAMES, count) if out.device.type == "cpu" else count
    # With the bins that are missing: irfft would clear them anew each time.
    full = spectrum.new_zeros(*spectrum.shape[:-2], step, settings.full_bins)
    start = 0
    for some in spectrum.split(step, dim=-2):
        end = start + some.shape[-2]
        full[..., : end - start, : some.shape[-1]] = some
        frames = torch.fft.irfft(full[..., : end - start, :], n=settings.n_fft).unflatten(-1, (parts, settings.hop))
        for part in range(parts):
            out[..., start + part : end + part, :].addcmul_(frames[..., part, :], window[part])
        start = end
    return out.flatten(-2)


def windows(blocks: Iterable[Tensor], settings: Spectrogram) -> Iterator[Tensor]:
    """Cuts a waveform that comes in blocks (C, n) into pieces whose `spectra` are the `stft` of the whole.

    Each piece (C, t * hop + overlap) holds t = T = `settings.frames` frames, the last one the frames that are
    left; neighbours share `overlap` samples.
    """
    step = settings.frames * settings.hop
    buffer = torch.zeros(settings.channels, settings.n_fft)
    samples = 0
    for block in blocks:
        buffer = torch.cat([buffer.to(block.device), block], dim=-1)
        samples += block.shape[-1]
        while buffer.shape[-1] >= step + settings.overlap:
            yield buffer[..., : step + settings.overlap]
            buffer = buffer[..., step:]
    done = (settings.n_fft + samples - buffer.shape[-1]) // settings.hop
    left = settings.frame_count(samples) - done
    while left > 0:
        length = min(left, settings.frames) * settings.hop + settings.overlap
        missing = max(length - buffer.shape[-1], 0)
        yield torch.nn.functional.pad(buffer, (0, missing))[..., :length]
        buffer = buffer[..., step:]
        left -= settings.frames


def joined(spectra: Iterable[Iterable[Tensor]], settings: Spectrogram) -> Iterator[Tensor]:
    """The inverse of `spectra` (S, C, t, F) of `windows`: waveforms (S, C, n) that follow one another, the frame of
    zeros in front dropped.

    A window's spectra are taken one stem at a time, so that they may be made as they are taken.

    All but the last piece are of T · hop samples or, the first, of n_fft less. The zeros after the end are left
    in: whoever knows how long the waveform is cuts it.
    """
    tail: Tensor | float = 0.0
    skip = settings.n_fft
    for spectrum in spectra:
        piece = torch.stack([overlap_add(part, settings) for part in spectrum])
        # A last window of few frames can be shorter than the overlap.
        piece[..., : settings.overlap] += tail
        count = piece.shape[-1] - settings.overlap
        tail = piece[..., count:]
        yield piece[..., min(skip, count) : count]
        skip = max(skip - count, 0)


@lru_cache(maxsize=8)
def _window(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # Outside inference mode, because the cached tensor may later take part in training.
    with torch.inference_mode(False):
        return torch.hann_window(length, periodic=True, dtype=dtype, device=device)


@lru_cache(maxsize=8)
def _synthesis_window(settings: Spectrogram, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(n_fft / hop, hop): what a frame is multiplied by, in the parts that meet those of other frames."""
    window = _window(settings.n_fft, dtype, device)
    with torch.inference_mode(False):
        # Σ window² over the frames that cover a sample is Σ window² / hop: 3/2 for Spleeter's 75 % overlap.
        return (window * (settings.hop / window.square().sum())).unflatten(-1, (-1, settings.hop))
