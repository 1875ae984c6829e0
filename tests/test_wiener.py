"""The reference is norbert 0.2.1, which Spleeter calls: as Spleeter calls it, and in double precision."""

import functools
import operator

import norbert
import numpy as np
import pytest
import torch
from torch import Tensor

from stemwise import audio, spectrogram, wiener
from stemwise.spectrogram import Spectrogram


def reference(estimates: Tensor, spectrum: Tensor, precision: type = np.complex128) -> Tensor:
    """norbert's stems (S, C, T, F) with the ε of single precision, whatever it computes in."""
    magnitudes = estimates.permute(2, 3, 1, 0).numpy()
    above = spectrum.shape[-1] - estimates.shape[-1]
    magnitudes = np.pad(magnitudes, ((0, 0), (0, above), (0, 0), (0, 0)))
    mixture = spectrum.permute(1, 2, 0).numpy().astype(precision)  # a copy: norbert scales it in place
    if precision == np.complex128:
        magnitudes = magnitudes.astype(np.float64)
    stems = norbert.wiener(magnitudes, mixture, eps=np.finfo(np.float32).eps)
    assert not stems[:, estimates.shape[-1] :].any()
    return torch.from_numpy(stems).permute(3, 2, 0, 1)[..., : estimates.shape[-1]]


def decibels(found: Tensor, expected: Tensor) -> float:
    """Signal to difference."""
    difference = (found - expected).abs().double().square().sum()
    return float(10 * torch.log10(expected.abs().double().square().sum() / difference))


def example(stems: int, channels: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Noise: estimates (S, C, 40, 24) and spectrum (C, 40, 33)."""
    generator = torch.Generator().manual_seed(stems)
    spectrum = scale * torch.randn(channels, 40, 33, dtype=torch.complex64, generator=generator)
    shares = torch.rand(stems, channels, 40, 24, generator=generator)
    return shares * spectrum[..., :24].abs(), spectrum


def song(pans: Tensor) -> tuple[Tensor, Tensor]:
    """Two seconds of bass, chords, beats and hiss, panned (4, C), as loud as music: |x| goes up to hundreds.

    Estimates are of the right size and leak into each other.
    """
    time = torch.arange(2 * 8000) / 8000
    beats = torch.randn(len(time), generator=torch.Generator().manual_seed(0)) * (time % 0.5 < 0.05)
    tones = [(6.2832 * pitch * time).sin() for pitch in (110, 440, 660)]
    hiss = 0.01 * torch.randn(len(time), generator=torch.Generator().manual_seed(1))
    stems = torch.stack([0.5 * tones[0], 0.1 * (tones[1] + tones[2]), 0.3 * beats, hiss])
    settings = Spectrogram(sample_rate=8000, n_fft=1024, hop=256, bins=256)
    spectra = spectrogram.stft(stems[:, None] * pans[..., None], settings)
    magnitudes = spectra[..., : settings.bins].abs()
    return magnitudes + 0.1 * magnitudes.sum(dim=0), spectra.sum(dim=0)


STEREO = torch.tensor([[1.0, 1.0], [0.4, 0.9], [1.0, 0.6], [-0.5, 1.0]])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0, 1e4])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("stems", [1, 4])
def test_noise_is_filtered_as_norbert_does(stems, channels, scale):
    estimates, spectrum = example(stems, channels, scale)
    found = wiener.wiener(estimates, spectrum)
    assert found.dtype == torch.complex64
    assert found.shape == estimates.shape
    assert decibels(found, reference(estimates, spectrum)) > 140
    assert decibels(found, reference(estimates, spectrum, np.complex64)) > 120


@pytest.mark.parametrize("pans", [STEREO, STEREO[:, :1]], ids=["stereo", "mono"])
def test_music_is_filtered_as_norbert_does(pans):
    estimates, spectrum = song(pans)
    assert spectrum.abs().max() > 50
    assert decibels(wiener.wiener(estimates, spectrum), reference(estimates, spectrum)) > 140


def test_a_mono_song_on_two_channels_keeps_the_digits_that_single_precision_loses():
    estimates, spectrum = song(torch.ones(4, 2))
    found, exact = wiener.wiener(estimates, spectrum), reference(estimates, spectrum)
    single = reference(estimates, spectrum, np.complex64)
    assert decibels(found, exact) > 140
    assert decibels(single, exact) < 90  # so nothing can be closer to it than this
    assert decibels(found, single) == pytest.approx(decibels(exact, single), abs=0.1)


def test_a_real_song_is_filtered_as_spleeter_does(shared_data):
    waveform = audio.read(shared_data / "golden" / "mixture.flac", sample_rate=44100, channels=2)[:, :88200]
    settings = Spectrogram()
    spectrum = spectrogram.stft(waveform, settings)
    shares = torch.rand(2, 1, *spectrum.shape[1:], generator=torch.Generator().manual_seed(0))[..., : settings.bins]
    estimates = shares**3 * spectrum[..., : settings.bins].abs()
    found = wiener.wiener(estimates, spectrum)
    assert decibels(found, reference(estimates, spectrum, np.complex64)) > 100


def test_pieces_equal_the_whole():
    estimates, spectrum = song(STEREO)
    lengths = [7, 1, 30, estimates.shape[-2] - 38]
    pieces = list(zip(estimates.split(lengths, dim=-2), spectrum.split(lengths, dim=-2), strict=True))
    total = functools.reduce(operator.add, (wiener.statistics(*piece) for piece in pieces))
    found = torch.cat([wiener.filtered(*piece, total) for piece in pieces], dim=-2)
    whole = wiener.wiener(estimates, spectrum)
    torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-6 * float(whole.abs().max()))
    alone = torch.cat([wiener.wiener(*piece) for piece in pieces], dim=-2)
    assert decibels(alone, whole) < 40  # the statistics of the others matter


def test_the_loudest_bin_counts_above_the_band_too():
    estimates, spectrum = example(2, 2)
    quiet = wiener.wiener(estimates, spectrum)
    spectrum[0, 3, 30] = 1e4
    found = wiener.wiener(estimates, spectrum)
    assert decibels(found, reference(estimates, spectrum)) > 140
    assert decibels(found, quiet) < 40


def test_stems_sum_to_the_mixture():
    estimates, spectrum = song(STEREO)
    whole = spectrum[..., : estimates.shape[-1]]
    assert decibels(wiener.wiener(estimates, spectrum).sum(dim=0), whole) > 35


def test_what_was_panned_apart_comes_apart():
    # Left and right hold one stem each; estimates that know nothing of channels do not tell.
    generator = torch.Generator().manual_seed(0)
    spectrum = 100 * torch.randn(2, 200, 8, dtype=torch.complex64, generator=generator)
    powers = torch.stack([spectrum[0].abs(), spectrum[1].abs()])
    estimates = torch.stack([powers[0:1].expand(2, -1, -1), powers[1:2].expand(2, -1, -1)]).contiguous()
    masked = estimates / estimates.sum(dim=0) * spectrum
    truth = torch.zeros_like(masked)
    truth[0, 0], truth[1, 1] = spectrum
    assert decibels(wiener.wiener(estimates, spectrum), truth) > decibels(masked, truth) + 1


@pytest.mark.parametrize("channels", [1, 2])
def test_silence_stays_silent(channels):
    estimates, spectrum = example(3, channels)
    assert not wiener.wiener(torch.zeros_like(estimates), torch.zeros_like(spectrum)).any()
    assert not wiener.wiener(torch.zeros_like(estimates), spectrum).any()
    estimates[:, :, 10:25], spectrum[:, 10:25] = 0, 0
    estimates[1] = 0
    found = wiener.wiener(estimates, spectrum)
    assert not found[:, :, 10:25].any()
    assert not found[1].any()
    assert decibels(found, reference(estimates, spectrum)) > 140


def test_one_silent_channel():
    estimates, spectrum = example(3, 2, scale=30.0)
    estimates[:, 1], spectrum[1] = 0, 0
    found = wiener.wiener(estimates, spectrum)
    assert not found[:, 1].any()
    assert decibels(found, reference(estimates, spectrum)) > 140


def test_inputs_are_left_alone_and_gradients_are_not_followed():
    estimates, spectrum = example(2, 2)
    before = estimates.clone(), spectrum.clone()
    found = wiener.wiener(estimates.requires_grad_(), spectrum)
    assert not found.requires_grad
    assert torch.equal(estimates, before[0])
    assert torch.equal(spectrum, before[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_computes_the_same():
    estimates, spectrum = song(STEREO)
    found = wiener.wiener(estimates.cuda(), spectrum.cuda())
    assert found.is_cuda
    assert decibels(found.cpu(), wiener.wiener(estimates, spectrum)) > 140
