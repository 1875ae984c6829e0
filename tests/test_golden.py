"""Spleeter's own weights in our network give Spleeter's own output."""

import pytest
import torch

from stemwise import audio
from stemwise.spleeter import model as spleeter


@pytest.mark.parametrize("name", ["2stems", "5stems"])
def test_our_numbers_equal_spleeters(shared_data, name):
    folder = shared_data / "golden" / name
    model = spleeter.read(folder)
    mixture = audio.read(shared_data / "golden" / "mixture.flac", sample_rate=44100, channels=2)
    for stem, ours in zip(model.stems, model.separate(mixture), strict=True):
        theirs = audio.read(folder / f"{stem}.flac", sample_rate=44100, channels=2)
        # What went past full scale was clipped on its way into the FLAC, which reads back as 1 - 2^-23.
        whole = theirs.abs() < 1 - 2**-22
        difference = (ours - theirs)[whole].square().sum()
        decibels = 10 * torch.log10(theirs[whole].square().sum() / difference)
        assert decibels > 95, stem
