import math

import numpy as np
import pytest
import torch

from stemwise import spectrogram
from stemwise.errors import UserError
from stemwise.spectrogram import Spectrogram

SPLEETER = Spectrogram()
SMALL = Spectrogram(sample_rate=8000, channels=1, n_fft=64, hop=16, bins=32, frames=8)


def noise(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape))


@pytest.mark.parametrize("samples", [1, 1023, 1024, 1025, 4096, 50_000])
@pytest.mark.parametrize("settings", [SPLEETER, SMALL, Spectrogram(n_fft=512, hop=64, bins=128)])
def test_the_inverse_inverts(settings, samples):
    waveform = noise(2, samples)
    spectrum = spectrogram.stft(waveform, settings)
    assert spectrum.shape == (2, settings.frame_count(samples), settings.full_bins)
    back = spectrogram.istft(spectrum, samples, settings)
    torch.testing.assert_close(back, waveform, rtol=0, atol=1e-12)


def test_framing_is_spleeters():
    """One frame of zeros in front, frames every 1024 samples, ceil((N + 4096) / 1024) of them, periodic Hann."""
    samples = 7000
    waveform = noise(1, samples)
    frames = math.ceil((samples + 4096) / 1024)
    padded = np.zeros(frames * 1024 + 4096)
    padded[4096 : 4096 + samples] = waveform[0].numpy()
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(4096) / 4096)
    expected = np.stack([np.fft.rfft(padded[t * 1024 : t * 1024 + 4096] * window) for t in range(frames)])
    np.testing.assert_allclose(spectrogram.stft(waveform, SPLEETER)[0].numpy(), expected, atol=1e-9)


def test_synthesis_scales_by_two_thirds():
    """Spleeter multiplies by the window and by 2/3; anything else would not invert its analysis."""
    spectrum = torch.zeros(1, 1, 2049, dtype=torch.complex128)
    spectrum[..., 0] = 4096  # a frame of ones
    window = torch.hann_window(4096, dtype=torch.float64)
    torch.testing.assert_close(spectrogram.overlap_add(spectrum, SPLEETER)[0, :4096], window * 2 / 3)


@pytest.mark.parametrize("frames", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("bins", [40, 129])
def test_frames_in_pieces_are_the_frames_at_once(frames, bins):
    settings = Spectrogram(n_fft=256, hop=64, bins=40)
    spectrum = torch.complex(noise(2, frames, bins), noise(2, frames, bins))
    found = spectrogram.overlap_add(spectrum, settings)
    window = torch.hann_window(256, dtype=torch.float64)
    expected = torch.zeros(2, (frames + 3) * 64, dtype=torch.float64)
    for number, frame in enumerate(torch.fft.irfft(spectrum, n=256).unbind(1)):
        expected[:, number * 64 : number * 64 + 256] += frame * window * 2 / 3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_a_tone_peaks_in_its_bin():
    time = torch.arange(44100) / 44100
    magnitudes = spectrogram.stft(torch.sin(2 * math.pi * 44100 / 4096 * 100 * time), SPLEETER).abs()
    assert int(magnitudes[20].argmax()) == 100
    # A full-scale sine under a Hann window of n_fft samples: n_fft / 4.
    assert float(magnitudes[20].max()) == pytest.approx(1024, rel=1e-3)


@pytest.mark.parametrize("samples", [0, 5, 16 * 8 - 64, 16 * 8 - 63, 1000, 5000])
@pytest.mark.parametrize("block", [1, 37, 128, 10_000])
def test_windows_of_a_stream_have_the_frames_of_the_whole(samples, block):
    waveform = noise(1, samples)
    pieces = list(spectrogram.windows(iter(waveform.float().split(block, dim=-1)), SMALL))
    frames = torch.cat([spectrogram.spectra(piece, SMALL) for piece in pieces], dim=-2)
    torch.testing.assert_close(frames, spectrogram.stft(waveform.float(), SMALL))
    assert all(spectrogram.spectra(piece, SMALL).shape[-2] == SMALL.frames for piece in pieces[:-1])
    whole = torch.cat(list(spectrogram.joined((spectrogram.spectra(p, SMALL) for p in pieces), SMALL)), -1)
    torch.testing.assert_close(whole[..., :samples], waveform.float())
    assert whole[..., samples:].abs().sum() < 1e-4


def test_a_waveform_on_a_device_is_cut_there():
    """torch's device without memory refuses to be mixed with another, as a GPU does."""
    windows = list(spectrogram.windows([torch.zeros(SMALL.channels, 100, device="meta")], SMALL))
    assert {window.device.type for window in windows} == {"meta"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bins": 3000}, r"spectrogram.bins=3000 is more than n_fft/2\+1 = 2049"),
        ({"hop": 1000}, "spectrogram.hop=1000 does not divide n_fft=4096"),
        ({"hop": 2048}, "at least 3 parts"),
        ({"sample_rate": 0}, "spectrogram.sample_rate=0"),
        ({"sample_rate": 2**21}, "spectrogram.sample_rate=2097152 is more than 1048576 Hz"),
        ({"frames": 2**20}, "spectrogram.frames=1048576 of n_fft=4096 make a window of 4294967296 values"),
        ({"frames": 1.5}, "spectrogram.frames=1.5 is not a whole number"),
        ({"channels": 6}, r"spectrogram.channels=6: models are mono \(1\) or stereo \(2\)"),
    ],
)
def test_settings_that_cannot_work_say_why(arguments, message):
    with pytest.raises(UserError, match=message):
        Spectrogram(**arguments)
