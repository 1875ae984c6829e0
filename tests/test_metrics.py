import numpy as np
import pytest
import torch

from stemwise import metrics


def test_a_tenth_of_the_amplitude_wrong_is_twenty_decibels():
    reference = torch.randn(3, 2, 1000)
    torch.testing.assert_close(metrics.usdr(reference, 0.9 * reference), torch.full((3,), 20.0))


def test_the_definition_over_a_whole_song():
    random = np.random.default_rng(0)
    reference, estimate = random.standard_normal((2, 2, 2, 500))
    expected = 10 * np.log10((reference**2).sum((1, 2)) / ((reference - estimate) ** 2).sum((1, 2)))
    np.testing.assert_allclose(metrics.usdr(torch.tensor(reference), torch.tensor(estimate)).numpy(), expected)


def test_a_perfect_estimate_has_a_finite_score_and_a_silent_reference_none():
    reference = torch.stack([torch.randn(2, 100), torch.zeros(2, 100)])
    scores = metrics.usdr(reference, reference)
    assert float(scores[0]) == pytest.approx(150, abs=1)
    assert scores[1].isnan()
