"""Songs of noise and their caches, for the tests of how an entry is read, built and mended."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from stemwise.cache import entries, storage, store
from stemwise.cache.store import Cache
from stemwise.index import Cell, Signal
from stemwise.spectrogram import Spectrogram

RATE = 8000
SETTINGS = Spectrogram(sample_rate=RATE, channels=2, n_fft=64, hop=16, bins=24, frames=50)
WRITTEN = 10**9  # seconds


def as_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at anew, and the clock stands.

    An entry has its time of writing: builds are equal byte for byte if they happen at the same time.
    """
    store.forget_files()
    monkeypatch.setattr(entries, "now", lambda: WRITTEN)


def write_songs(folder: Path) -> Path:
    """Noise as stereo, mono and at other rates; lengths that fill no frame."""
    files = {
        "stereo.wav": (RATE, 2, 3003),
        "longer.flac": (RATE, 2, 4100),
        "mono.wav": (RATE, 1, 2500),
        "fast.wav": (44100, 2, 20000),
        "slow.flac": (6000, 1, 3000),
    }
    for seed, (name, (rate, channels, samples)) in enumerate(files.items()):
        noise = np.random.default_rng(seed).uniform(-0.5, 0.5, (samples, channels))
        soundfile.write(folder / name, noise, rate)
    return folder


SIGNALS = {
    "stereo": ["stereo.wav"],
    "mono": ["mono.wav"],
    "one channel": ["stereo.wav#channel=1"],
    "a sum": ["stereo.wav", "longer.flac", "mono.wav"],
    "from 44.1 kHz": ["fast.wav"],
    "from 6 kHz": ["slow.flac"],
    "a sum of rates": ["longer.flac", "fast.wav", "slow.flac#channel=0"],
}


def signal_of(folder: Path, names: list[str]) -> Signal:
    return tuple(Cell.parse(name, folder) for name in names)


def built(where: Path, signals: list[Signal], kind: str = "half", settings: Spectrogram = SETTINGS) -> Cache:
    made = Cache(where, settings, storage.by_name(kind))
    assert made.build(dict.fromkeys(signals, 1.0), workers=0) == {}
    return made


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
