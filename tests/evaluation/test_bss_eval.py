"""Our BSSEval solver beside museval's, and what the definition demands of both."""

import warnings

import numpy as np
import pytest
import torch

from stemwise import audio
from stemwise.evaluation import bss_eval

METRICS = ("SDR", "ISR", "SIR", "SAR")
RATE = 2000  # windows of 2000 samples: filters of 512 taps and their tails matter, and museval takes no second


def noise(stems: int = 2, channels: int = 2, samples: int = 7000, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(stems, channels, samples, generator=generator)


def smeared(references: torch.Tensor) -> torch.Tensor:
    """Estimates with echoes, leakage and noise: all three kinds of error."""
    leaked = references + 0.3 * references.roll(1, 0) + 0.2 * references.roll(40, -1)
    return leaked + 0.2 * noise(*references.shape, seed=1)


def by_museval(references: torch.Tensor, estimates: torch.Tensor, window: int) -> dict[str, np.ndarray]:
    import museval

    arrays = [waves.transpose(1, 2).double().numpy() for waves in (references, estimates)]
    return dict(zip(METRICS, museval.evaluate(*arrays, win=window, hop=window), strict=True))


def assert_same(references: torch.Tensor, estimates: torch.Tensor, window: int, tolerance: float) -> None:
    expected = by_museval(references, estimates, window)
    found = bss_eval.evaluate(references, estimates, window)
    for metric in METRICS:
        np.testing.assert_allclose(found[metric], expected[metric], atol=tolerance, rtol=0, err_msg=metric)


def test_the_last_ridge_is_tried_too_and_none_is_passed_over_in_silence(monkeypatch):
    matrix = torch.tensor([[1.0, 1.0], [1.0, 1.0 - 1e-9]], dtype=torch.double)  # a negative eigenvalue of 5e-10
    right = torch.ones(2, 1, dtype=torch.double)
    monkeypatch.setattr(bss_eval, "RIDGES", (0.0, 1e-15, 1e-8))
    assert bss_eval._solve(matrix.clone(), right).isfinite().all()
    monkeypatch.setattr(bss_eval, "RIDGES", (0.0, 1e-15))
    with pytest.raises(ArithmeticError, match="no solution"):
        bss_eval._solve(matrix.clone(), right)


@pytest.mark.parametrize("stems", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 2])
def test_scores_of_noise_are_musevals_to_rounding(stems, channels):
    references = noise(stems, channels)
    estimates = references + 0.05 * noise(stems, channels, seed=1) + 0.01 * references.roll(30, -1)
    if stems == 1:  # Nothing interferes: museval's SIR is that of rounding, and ours ends there.
        expected, found = by_museval(references, estimates, RATE), bss_eval.evaluate(references, estimates, RATE)
        assert (found["SIR"] > 250).all()
        for metric in ("SDR", "ISR", "SAR"):
            np.testing.assert_allclose(found[metric], expected[metric], atol=1e-9)
        return
    assert_same(references, estimates, RATE, 1e-9)


# Blocks of the correlations are 7681 samples apart and reach 511 beyond: just under, at, and behind each edge; also
# songs of less than a window, of exactly one, and of more blocks than are transformed at a time.
@pytest.mark.parametrize("samples", [700, 2000, 2001, 7680, 7681, 7682, 8191, 8192, 8193, 15362, 15700, 130_000])
def test_songs_of_any_length_are_scored_as_by_museval(samples):
    references = noise(2, 1, samples)
    assert_same(references, smeared(references), RATE, 1e-9)


def test_windows_in_which_something_is_silent_have_no_score():
    references, estimates = noise(), smeared(noise())
    references[0, :, 2000:4000] = 0
    # Channels that cancel each other are silence to museval.
    estimates[1, 1, 4000:6000] = -estimates[1, 0, 4000:6000]
    assert_same(references, estimates, RATE, 1e-9)
    found = bss_eval.evaluate(references, estimates, RATE)
    for metric in METRICS:
        assert found[metric].isnan().tolist() == [[False, True, True]] * 2


def test_a_silent_stem_leaves_no_score():
    references = noise()
    references[1] = 0
    assert bss_eval.evaluate(references, noise(seed=1), RATE)["SDR"].isnan().all()


def test_a_stem_with_one_silent_channel_is_scored_as_by_museval():
    references = noise()
    references[0, 1] = 0
    assert_same(references, smeared(noise()), RATE, 1e-6)


def test_a_stem_with_two_equal_channels_has_the_scores_of_one():
    references = noise(2, 1)
    estimates = smeared(references)
    expected = bss_eval.evaluate(references, estimates, RATE)
    found = bss_eval.evaluate(references.expand(2, 2, -1), estimates.expand(2, 2, -1), RATE)
    for metric in METRICS:
        torch.testing.assert_close(found[metric], expected[metric], atol=1e-3, rtol=0)


def test_a_perfect_estimate_is_as_good_as_rounding_allows():
    references = noise()
    found = bss_eval.evaluate(references, references, RATE)
    for metric in METRICS:
        assert ((found[metric] > 200) & (found[metric] <= 314)).all(), metric


def test_the_loudness_of_an_estimate_alters_neither_interference_nor_artifacts():
    references = noise()
    estimates = smeared(references)
    once, twice = (bss_eval.evaluate(references, gain * estimates, RATE) for gain in (1.0, 0.5))
    for metric in ("SIR", "SAR"):
        torch.testing.assert_close(twice[metric], once[metric], atol=1e-4, rtol=0)
    assert (twice["SDR"] - once["SDR"]).abs().min() > 0.1
    # All signals louder together: nothing changes.
    louder = bss_eval.evaluate(3 * references, 3 * estimates, RATE)
    for metric in METRICS:
        torch.testing.assert_close(louder[metric], once[metric], atol=1e-4, rtol=0)


def test_a_filtered_stem_is_distortion_of_space_and_nothing_else():
    references = noise(samples=12000)
    # 100 samples late, and quieter: within the reach of the filters.
    estimates = 0.7 * torch.nn.functional.pad(references, (100, 0))[..., :12000]
    found = bss_eval.evaluate(references, estimates, 4000)
    assert (found["SIR"] > 20).all()
    assert (found["SAR"] > 5 + found["ISR"]).all()
    assert (found["SDR"] < 0).all()


def test_the_order_of_stems_changes_nothing_but_the_order():
    references = noise(3)
    estimates = smeared(references)
    found = bss_eval.evaluate(references, estimates, RATE)
    turned = bss_eval.evaluate(references.flip(0), estimates.flip(0), RATE)
    for metric in METRICS:
        torch.testing.assert_close(turned[metric].flip(0), found[metric], atol=1e-9, rtol=0)


def test_real_songs_are_scored_as_by_museval(shared_data):
    """AAC without high notes: the equations are all but singular, and museval's own threads move it as far."""
    song = sorted(shared_data.glob("musdb18-7s/test/*.stem.mp4"))[0]
    # drums and vocals, 2.5 s, mono: two seconds of computing instead of five.
    stems = [audio.read(song, sample_rate=44100, channels=1, stream=stream)[:, :110_000] for stream in (1, 4)]
    references = torch.stack(stems)
    assert_same(references, references + 0.3 * references.flip(0), 44100, 1e-3)


def test_sizes_of_transforms_are_even_smooth_and_enough():
    for least in (1, 511, 44611, 8511):
        size = bss_eval._fast_size(least)
        assert least <= size < 1.2 * least + 2
        assert size % 2 == 0
        assert bss_eval._is_smooth(size)


def test_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bss_eval.evaluate(noise(), smeared(noise()), RATE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_scores_as_the_processor():
    references = noise(4, 2, 100_000)
    estimates = smeared(references)
    expected = bss_eval.evaluate(references, estimates, 44100)
    found = bss_eval.evaluate(references.cuda(), estimates.cuda(), 44100)
    for metric in METRICS:
        torch.testing.assert_close(found[metric].cpu(), expected[metric], atol=1e-6, rtol=0)
