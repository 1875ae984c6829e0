"""A song whose variants can be told apart, and placed to the sample, by what is heard of them."""

from pathlib import Path

import numpy as np
import torch

from stemwise import resampling
from stemwise.report import listening, page
from stemwise.report.listening import Player, Variant
from stemwise.report.sound import RATE

SECONDS = 16  # a chunk and a bit
VARIANTS = [
    Variant("mixture"),
    *(Variant("estimate", stem) for stem in ("vocals", "drums")),
    *(Variant("truth", stem) for stem in ("vocals", "drums")),
]


def noise(variants: int = len(VARIANTS), sample_rate: int = 44100, seconds: float = SECONDS) -> torch.Tensor:
    """(V, 1, N): noise below 2 kHz, another for each variant; Opus keeps such waveforms."""
    count = round(seconds * sample_rate)
    spectrum = torch.fft.rfft(torch.from_numpy(np.random.default_rng(0).standard_normal((variants, 1, count))))
    spectrum[..., round(2000 * seconds) :] = 0
    waveform = torch.fft.irfft(spectrum, n=count).float()
    return 0.1 * waveform / waveform.std()


def at_rate_of_sound(waveforms: torch.Tensor, sample_rate: int) -> np.ndarray:
    """(V, N) as the browser plays them."""
    return torch.cat(list(resampling.resample(iter([waveforms[:, 0]]), sample_rate, RATE)), 1).numpy()


def record(path: Path, waveforms: torch.Tensor, title: str = "A song", rate: int = 44100, variants=VARIANTS) -> Player:
    with listening.Recording(path, title, variants, rate, waveforms.shape[-1]) as recording:
        for block in waveforms.split(100_000, -1):
            recording.write(block)
        return recording.finish()


def write(path: Path, *players: Player, title: str = "A page") -> Path:
    page.write(path, title, [listening.section(players)])
    return path
