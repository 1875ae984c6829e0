"""Augmentations: each does to a signal what its name says, by as much as it may, and nothing else."""

import numpy as np
import pytest
import torch
from torch import Tensor

from stemwise import augment
from stemwise.augment import (
    BandLimit,
    ChannelSwap,
    Formants,
    Gain,
    Mixup,
    PitchShift,
    Polarity,
    Remix,
    Silence,
    TimeStretch,
)
from stemwise.errors import UserError

ROWS, CHANNELS, FRAMES, BINS = 3, 2, 100, 200
ALL = [Gain(), ChannelSwap(), Polarity(), Formants(), Silence(0.5), BandLimit(0.5), TimeStretch(), PitchShift()]


def spectra(channels: int = CHANNELS) -> Tensor:
    """An example (R, C, T, F) with a phase, no two values alike."""
    shape = (ROWS, channels, FRAMES, BINS)
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))


def example(change: augment.Augmentation) -> Tensor:
    return spectra() if change.needs_phase else spectra().abs()


def draws(count: int = 200) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(count)]


@pytest.mark.parametrize("change", ALL, ids=lambda change: type(change).__name__)
def test_shape_stays_and_the_generator_decides(change: augment.Augmentation) -> None:
    before = example(change)
    first = change(before, np.random.default_rng(1))
    assert first.shape == before.shape
    assert first.dtype == before.dtype
    assert torch.equal(first, change(before, np.random.default_rng(1)))
    assert torch.equal(before, example(change))  # what was handed in is as it was
    others = [change(before, random) for random in draws(20)]
    assert not all(torch.equal(first, other) for other in others)


def test_gain_changes_each_row_by_up_to_its_decibels() -> None:
    before = spectra()
    levels = []
    for random in draws():
        factors = Gain(decibels=6)(before, random) / before
        assert factors.imag.abs().max() < 1e-5
        row = factors.real[:, 0, 0, 0]
        assert torch.allclose(factors.real, row[:, None, None, None].expand_as(factors))
        levels.append(20 * row.log10())
    found = torch.stack(levels)
    assert found.abs().max() <= 6 + 1e-4
    assert found.min() < -5.5
    assert found.max() > 5.5
    assert found.mean().abs() < 0.5  # evenly in decibels
    assert torch.corrcoef(found.T).triu(1).abs().max() < 0.25  # each row by itself


def test_gain_of_nothing_changes_nothing() -> None:
    assert torch.equal(Gain(decibels=0)(spectra(), np.random.default_rng(0)), spectra())


def test_polarity_turns_rows_upside_down() -> None:
    before = spectra()
    flipped = []
    for random in draws():
        after = Polarity(probability=0.3)(before, random)
        assert torch.equal(after.abs(), before.abs())
        signs = (after / before).real[:, 0, 0, 0].round()
        assert torch.equal(after, before * signs[:, None, None, None])
        flipped.append(signs < 0)
    share = torch.stack(flipped).float().mean(0)
    assert ((share - 0.3).abs() < 0.12).all()
    assert len({tuple(row.tolist()) for row in flipped}) == 2**ROWS


def test_channel_swap_swaps_left_and_right_of_a_row() -> None:
    before = spectra()
    swapped = []
    for random in draws():
        after = ChannelSwap(probability=0.3)(before, random)
        for row in range(ROWS):
            same = torch.equal(after[row], before[row])
            assert same or torch.equal(after[row], before[row][[1, 0]])
            swapped.append(not same)
    assert abs(np.mean(swapped) - 0.3) < 0.06
    assert torch.equal(ChannelSwap(probability=1)(spectra(1), np.random.default_rng(0)), spectra(1))


@pytest.mark.parametrize("kind", [ChannelSwap, Polarity])
def test_probabilities_of_never_and_always(kind: type) -> None:
    for random in draws(20):
        assert torch.equal(kind(probability=0)(spectra(), random), spectra())
        assert not (kind(probability=1)(spectra(), random) == spectra()).any()


def centre(curve: Tensor) -> float:
    """Where the mass of a curve lies."""
    return float((curve * torch.arange(len(curve))).sum() / curve.sum())


@pytest.mark.parametrize("semitones", [-12, -1, 1, 4])
def test_pitch_shift_moves_a_line_by_its_factor(semitones: float) -> None:
    before = torch.zeros(ROWS, CHANNELS, FRAMES, BINS)
    before[..., 90] = 1
    after = PitchShift(abs(semitones))(before, Fixed(semitones))
    factor = 2 ** (semitones / 12)
    for row in after.flatten(0, 1):
        assert centre(row[50]) == pytest.approx((90 + 0.5) * factor - 0.5, abs=0.5)
    assert torch.allclose(after[:, :, :1].expand_as(after), after)


def test_pitch_shift_draws_both_ways_as_far_as_it_may() -> None:
    before = torch.zeros(1, 1, 4, BINS)
    before[..., 90] = 1
    factors = [(centre(PitchShift(2)(before, random)[0, 0, 0]) + 0.5) / 90.5 for random in draws()]
    moved = 12 * np.log2(factors)
    assert np.abs(moved).max() < 2.1
    assert moved.min() < -1.8
    assert moved.max() > 1.8


def test_pitch_shift_cuts_what_rises_out_and_pads_what_sinks() -> None:
    flat = torch.ones(1, 1, 4, BINS)
    sunk = PitchShift(12)(flat, Fixed(-12))[0, 0, 0]
    assert torch.allclose(sunk[:100], torch.ones(100))
    assert (sunk[100:] == 0).all()
    assert torch.allclose(PitchShift(12)(flat, Fixed(12)), flat)
    assert torch.allclose(PitchShift(0)(spectra().abs(), np.random.default_rng(0)), spectra().abs())


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 2.0])
def test_time_stretch_moves_a_click_away_from_the_middle(factor: float) -> None:
    before = torch.zeros(ROWS, CHANNELS, FRAMES, BINS)
    before[:, :, 60] = 1
    after = TimeStretch(0.5, 2)(before, Fixed(factor))
    middle = FRAMES / 2 - 0.5
    for row in after.flatten(0, 1):
        assert centre(row[:, 7]) == pytest.approx(middle + (60 - middle) * factor, abs=0.6)
    assert torch.allclose(after[..., :1].expand_as(after), after)


def test_time_stretch_cuts_and_pads_evenly() -> None:
    flat = torch.ones(1, 1, FRAMES, 4)
    short = TimeStretch(0.5, 2)(flat, Fixed(0.5))[0, 0, :, 0]
    assert torch.allclose(short[25:75], torch.ones(50))
    assert (short[:25] == 0).all()
    assert (short[75:] == 0).all()
    assert torch.allclose(TimeStretch(0.5, 2)(flat, Fixed(2.0)), flat)
    ramp = torch.arange(101.0)[None, None, :, None].expand(1, 1, 101, 4)
    assert TimeStretch(0.5, 2)(ramp, Fixed(2.0))[0, 0, 50, 0] == pytest.approx(50, abs=0.5)
    assert torch.allclose(TimeStretch(1, 1)(spectra().abs(), np.random.default_rng(0)), spectra().abs())


def test_time_stretch_draws_from_its_range() -> None:
    flat = torch.ones(1, 1, 1000, 1)
    lengths = [int((TimeStretch(0.7, 0.9)(flat, random) > 0.5).sum()) for random in draws()]
    assert 700 <= min(lengths) < 710
    assert 890 < max(lengths) <= 900


class Fixed(np.random.Generator):
    """A generator whose uniform draws are one number, within the bounds that were asked for."""

    def __init__(self, value: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.value = value

    def uniform(self, low: float, high: float) -> float:  # type: ignore[override]
        assert low <= self.value <= high
        return self.value


def test_all_rows_are_stretched_and_shifted_alike() -> None:
    """Mixture and stems must stay in step: the mixture of the stretched is the stretched mixture."""
    stems = spectra()[1:].abs()
    both = torch.cat([stems.sum(0, keepdim=True), stems])
    for change in (TimeStretch(0.5, 2), PitchShift(12)):
        for random in draws(10):
            after = change(both, random)
            torch.testing.assert_close(after[0], after[1:].sum(0), rtol=1e-4, atol=1e-4)


# Remix.


def test_remix_keeps_the_song_of_the_first_row_and_draws_the_others() -> None:
    random = np.random.default_rng(0)
    drawn = [Remix(probability=0.4).songs(2, 5, 3, random) for _ in range(4000)]
    assert all(type(song) is int for songs in drawn for song in songs)
    assert {songs[0] for songs in drawn} == {2}
    # As recorded: not drawn, or drawn so by chance.
    assert np.mean([songs == [2, 2, 2] for songs in drawn]) == pytest.approx(0.6 + 0.4 / 25, abs=0.03)
    mixed = np.array([songs[1:] for songs in drawn if songs != [2, 2, 2]])
    for first in range(5):
        for second in range(5):
            share = np.mean((mixed == (first, second)).all(1))
            assert share == pytest.approx(0 if (first, second) == (2, 2) else 1 / 24, abs=0.02)


def test_remix_never_always_and_alone() -> None:
    for random in draws(50):
        assert Remix(probability=0).songs(3, 10, 4, random) == [3] * 4
        assert Remix(probability=1).songs(0, 1, 4, random) == [0] * 4
    assert Remix(probability=1).songs(3, 10**6, 4, np.random.default_rng(0))[1:] != [3] * 3


def test_mixup_adds_a_song_to_each_row_by_itself() -> None:
    drawn = [Mixup(probability=0.3).songs(5, 2, random) for random in draws(2000)]
    added = np.array([[song is not None for song in songs] for songs in drawn])
    assert added.mean(0) == pytest.approx([0.3, 0.3], abs=0.04)
    assert np.all(added, axis=1).mean() == pytest.approx(0.09, abs=0.03)
    assert {song for songs in drawn for song in songs} == {None, 0, 1, 2, 3, 4}
    assert all(type(song) in (int, type(None)) for songs in drawn for song in songs)
    assert Mixup(probability=0).songs(5, 3, np.random.default_rng(0)) == [None] * 3


def resonances(peak: float, bins: int = 1024) -> Tensor:
    """Three rows (R, 1, 4, F) of partials 20 bins apart, with one resonance around a bin."""
    at = torch.arange(bins)
    envelope = torch.exp(-0.5 * ((at - peak) / 100) ** 2) + 1e-3
    partials = torch.where(at % 20 == 0, 1.0, 0.01)
    phases = torch.polar(torch.ones(ROWS, 1, 4, bins), torch.rand(ROWS, 1, 4, bins) * 6)
    return (envelope * partials) * phases


def test_formants_move_the_resonance_and_leave_partials_and_phases() -> None:
    before = resonances(400)
    moves = []
    for random in draws(60):
        after = Formants(percent=25)(before, random)
        assert torch.allclose((after / before).imag, torch.zeros(()), atol=1e-4)
        magnitudes = after.abs()[:, 0, 0]
        between = magnitudes[:, 10::20][:, :50] / magnitudes[:, 0::20][:, :50]
        assert between.max() < 0.1  # the partials are where they were
        centre = (magnitudes * torch.arange(1024)).sum(-1) / magnitudes.sum(-1)
        moves.append(centre / 400)
    found = torch.stack(moves)
    assert 0.75 < found.min() < 0.85
    assert 1.18 < found.max() < 1.3
    assert torch.corrcoef(found.T).triu(1).abs().max() < 0.4  # each row by itself


def test_formants_bound_what_they_change() -> None:
    cliff = torch.cat([torch.ones(ROWS, 1, 4, 300), torch.zeros(ROWS, 1, 4, 300) + 1e-6], dim=-1).to(torch.complex64)
    for random in draws(20):
        change = (Formants(percent=100)(cliff, random) / cliff).abs().log10() * 20
        assert change.abs().max() <= Formants.LIMIT + 1e-3
    silent = torch.zeros(ROWS, 1, 4, 600, dtype=torch.complex64)
    assert torch.equal(Formants()(silent, np.random.default_rng(0)), silent)


def test_formants_of_nothing_change_nothing() -> None:
    assert torch.allclose(Formants(percent=0)(spectra(), np.random.default_rng(0)), spectra())


def test_silence_takes_rows_and_leaves_one() -> None:
    before = spectra()
    heard = []
    for random in draws(1000):
        after = Silence(probability=0.5)(before, random)
        rows = [bool(row.any()) for row in after]
        assert torch.equal(after, before * torch.tensor(rows)[:, None, None, None])
        heard.append(sum(rows))
    assert min(heard) == 1
    assert max(heard) == ROWS
    # Each of three is silent by half, but for the one that was drawn to stay.
    assert np.mean(heard) == pytest.approx(2.0, abs=0.1)


def test_band_limit_cuts_all_rows_at_one_bin() -> None:
    before = spectra().abs()
    edges = []
    for random in draws(500):
        after = BandLimit(probability=0.5, lowest=0.4)(before, random)
        edge = int(after.any(dim=(0, 1, 2)).nonzero().max()) + 1
        assert torch.equal(after[..., :edge], before[..., :edge])
        edges.append(edge)
    cut = [edge for edge in edges if edge < BINS]
    assert len(cut) / len(edges) == pytest.approx(0.5, abs=0.07)
    assert min(cut) < 0.45 * BINS
    assert min(cut) >= 0.4 * BINS
    assert np.mean(cut) == pytest.approx(0.7 * BINS, abs=0.03 * BINS)


# Parameters.


@pytest.mark.parametrize("kind", [Remix, Mixup, ChannelSwap, Polarity, Silence, BandLimit])
@pytest.mark.parametrize("probability", [-0.1, 1.1, float("nan")])
def test_probabilities_are_probabilities(kind: type, probability: float) -> None:
    with pytest.raises(UserError, match=rf"augment: {kind.__name__} has probability={probability}.*not in \[0, 1\]"):
        kind(probability=probability)


@pytest.mark.parametrize("decibels", [-1, 61, float("nan"), float("inf")])
def test_gain_is_within_reason(decibels: float) -> None:
    with pytest.raises(UserError, match=r"augment: Gain of .* decibels is not in \[0, 60\]"):
        Gain(decibels)


@pytest.mark.parametrize("settings", [{"percent": -1}, {"percent": 101}, {"bins": 3}, {"bins": 60.5}])
def test_formants_are_within_reason(settings: dict[str, float]) -> None:
    with pytest.raises(UserError, match="Formants"):
        Formants(**settings)


@pytest.mark.parametrize(("low", "high"), [(1.1, 0.9), (0, 1), (1, 11), (float("nan"), 1)])
def test_time_stretch_has_a_range(low: float, high: float) -> None:
    with pytest.raises(UserError, match=r"augment: TimeStretch from .* is not a range within 0\.1 to 10"):
        TimeStretch(low, high)


@pytest.mark.parametrize("lowest", [0, 1.1, float("nan")])
def test_band_limit_keeps_something(lowest: float) -> None:
    with pytest.raises(UserError, match=f"BandLimit with lowest={lowest}"):
        BandLimit(lowest=lowest)


@pytest.mark.parametrize("semitones", [-1, 25, float("nan")])
def test_pitch_shift_is_within_two_octaves(semitones: float) -> None:
    with pytest.raises(UserError, match=r"augment: PitchShift of .* semitones is not in \[0, 24\]"):
        PitchShift(semitones)
