"""The benchmark of inference: its ways to separate are what their names say, and its table is of what was measured."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def inference(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from quality import inference

    return inference


def test_every_way_to_separate_works_and_is_another(inference, small_separator):
    """But for windows that are as long as the model's own."""
    song = torch.randn(1, 80 * 64 + 13)
    model = copy.copy(small_separator)
    model.spectrogram = replace(model.spectrogram, frames=32)
    found = {}
    for way in inference.MONO:
        frames = way.frames and way.frames // 8
        found[way.name] = replace(way, frames=frames).applied(model)(song)
        assert found[way.name].shape == (2, 1, song.shape[-1])
    plain = found.pop(inference.PLAIN)
    same = [name for name, stems in found.items() if torch.allclose(stems, plain, atol=1e-5)]
    assert same == ["windows of 256"]
    assert (model.overlap, model.mask.exponent, model.spectrogram.frames) == (0, 2, 32)


def test_swapping_channels_gives_each_its_own(inference, small_separator):
    model = copy.copy(small_separator)
    sides = torch.tensor([[1.0], [2.0]])
    model.separate = lambda waveform, divide=None: torch.stack([waveform * sides, waveform])  # knows left from right
    stems = inference.swapped(model, torch.ones(2, 5))
    torch.testing.assert_close(stems, torch.stack([torch.full((2, 5), 1.5), torch.ones(2, 5)]))


def test_shifts_are_taken_back(inference, small_separator):
    model = copy.copy(small_separator)
    model.separate = lambda waveform, divide=None: waveform.expand(2, 1, -1)
    song = torch.randn(1, 100)
    torch.testing.assert_close(inference.shifted(4)(model, song), song.expand(2, 1, -1))


def test_a_difference_of_chance_is_none(inference):
    assert inference.difference([1.5, 2.5, 3.5], [1.0, 2.0, 3.0]) == "+0.50 ± 0.00"
    assert inference.difference([1.5, 1.5, 3.0], [1.0, 2.0, 3.0]) == "none (+0.00)"
    assert inference.difference([1.5], [1.0]) == "none (+0.50)"


def test_the_table_says_time_beside_plain(inference):
    ways = (inference.Way(inference.PLAIN), inference.Way("slow", ours=False))
    found = {
        "mixture": [0.0, 1.0],
        "sdr": {"plain": [5.0, 6.0], "slow": [5.5, 6.5]},
        "seconds": {"plain": [1.0, 2.0], "slow": [2.0, 4.0]},
    }
    assert inference.table(found, ways).splitlines()[2:] == [
        "| plain | 5.50 | 5.00 |  |  |",
        "| slow * | 6.00 | 5.50 | +0.50 ± 0.00 | 2.00 × |",
    ]
