"""Medians, means and intervals over songs: against theory, and where there is little to go by."""

import math

import numpy as np
import pytest

from stemwise.evaluation import statistics


def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_song_without_a_score_changes_nothing():
    values = np.array([1.0, math.nan, 4.0, 2.5, math.nan])
    for summarize in (statistics.median, statistics.mean):
        assert summarize(values, generator()) == summarize(values[np.isfinite(values)], generator())
    assert statistics.median(values, generator()).value == 2.5
    assert statistics.mean(values, generator()).value == 2.5
    assert statistics.median(values, generator()).songs == 3


def test_one_song_has_a_value_and_no_interval_and_none_has_neither():
    one = statistics.mean(np.array([3.0, math.nan]), generator())
    assert (one.value, one.songs) == (3.0, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    none = statistics.median(np.array([math.nan]), generator())
    assert math.isnan(none.value)
    assert none.songs == 0


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = statistics.interval(values, np.mean, generator())
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    random = np.random.default_rng(2)
    held = 0
    for _ in range(200):
        low, high = statistics.interval(random.normal(3, 1, 50), np.median, random)
        held += low <= 3 <= high
    assert 0.88 * 200 <= held <= 0.99 * 200


def test_the_same_scores_have_the_same_interval_however_many_are_drawn_at_once(monkeypatch):
    values = np.random.default_rng(3).normal(size=30)
    once = statistics.interval(values, np.median, generator())
    monkeypatch.setattr(statistics, "BLOCK", 100)
    assert statistics.interval(values, np.median, generator()) == once


def test_pairing_sees_what_the_songs_differences_hide():
    """Songs differ by 10 dB, the models by 0.3 dB on each."""
    random = np.random.default_rng(4)
    second = random.normal(5, 10, 50)
    first = second + 0.3 + random.normal(0, 0.1, 50)
    found = statistics.difference(first - second, generator())
    assert found.mean.value == pytest.approx(0.3, abs=0.05)
    assert found.is_clear
    assert found.better == 50
    back = statistics.difference(second - first, generator())
    assert not statistics.difference((first - second)[: statistics.FEW - 1], generator()).is_clear
    assert (back.better, back.worse) == (0, 50)
    assert back.mean.value == -found.mean.value


def test_differences_count_only_songs_that_both_have():
    first = np.array([1.0, math.nan, 3.0, 2.0, 7.0])
    second = np.array([2.0, 1.0, math.nan, 2.001, 5.0])
    found = statistics.difference(first - second, generator())
    assert (found.better, found.worse, found.equal, found.mean.songs) == (1, 1, 1, 3)
    assert not found.is_clear
    nothing = statistics.difference(first[1:2] - second[1:2], generator())
    assert nothing.mean.songs == 0
    assert not nothing.is_clear
