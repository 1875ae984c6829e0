"""Fixtures that more than one test file needs."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import soundfile

WriteSong = Callable[..., Path]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real recordings beside the checkout; they are not part of the project."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real recordings at {folder}")
    return folder


@pytest.fixture(scope="session")
def write_song() -> WriteSong:
    """Writes `stems` as WAVs into a folder: each a waveform (C, N), or None for seeded stereo noise."""

    def write(
        folder: Path,
        stems: Mapping[str, np.ndarray | None],
        *,
        sample_rate: int = 44100,
        seconds: float = 0.5,
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for seed, (stem, waveform) in enumerate(stems.items()):
            if waveform is None:
                noise = np.random.default_rng(seed).standard_normal((2, round(seconds * sample_rate)))
                waveform = 0.1 * noise
            soundfile.write(folder / f"{stem}.wav", waveform.T, sample_rate)
        return folder

    return write
