import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stemwise import masks
from stemwise.errors import UserError
from stemwise.masks import MaskRule


def example(stems: int, scale: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    estimates = scale * torch.rand(1, stems, 2, 3, 4, generator=generator)
    return estimates, estimates.sum(dim=1) * 1.2


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 5),
    st.sampled_from([0.0, 1e-12, 1e-4, 1.0, 1e3]),
    st.sampled_from([1.0, 2.0, 3.0]),
    st.booleans(),
    st.integers(0, 1000),
)
def test_masks_are_non_negative_and_divide_the_mixture(stems, scale, exponent, rest, seed):
    estimates, mixture = example(stems, scale, seed)
    found = masks.ratio(estimates, mixture, MaskRule(exponent=exponent, rest=rest))
    assert found.shape == estimates.shape
    assert (found >= 0).all()
    total = found.sum(dim=1)
    if rest:
        assert (total <= 1 + 1e-5).all()
    else:
        torch.testing.assert_close(total, torch.ones_like(total))


def test_the_rule_is_spleeters():
    estimates, mixture = example(3, 1.0, 0)
    squares = estimates**2
    expected = (squares + 1e-10 / 3) / (squares.sum(dim=1, keepdim=True) + 1e-10)
    torch.testing.assert_close(masks.ratio(estimates, mixture, MaskRule()), expected)


@pytest.mark.parametrize("extension", masks.EXTENSIONS)
@pytest.mark.parametrize(("exponent", "rest"), [(2.0, False), (2.0, True), (1.0, False)])
def test_divided_is_the_plain_product_of_mask_and_mixture(extension, exponent, rest):
    generator = torch.Generator().manual_seed(0)
    estimates = torch.rand(3, 2, 5, 8, generator=generator)
    spectrum = torch.randn(2, 5, 11, dtype=torch.complex64, generator=generator)
    claims = estimates.double()
    if rest:
        left = (spectrum[..., :8].abs() - estimates.sum(0)).clamp(min=0)
        claims = torch.cat([claims, left.double().unsqueeze(0)])
    powers = claims**exponent
    plain = ((powers + 1e-10 / len(powers)) / (powers.sum(0) + 1e-10))[:3]
    expected = masks.extend(plain, 11, extension) * spectrum
    before = estimates.clone()
    found = torch.stack(list(masks.divided(estimates, spectrum, MaskRule(exponent, extension, rest))))
    assert estimates.equal(before)
    bins = 8 if extension == "zeros" else 11
    torch.testing.assert_close(found, expected[..., :bins].to(torch.complex64), rtol=1e-6, atol=1e-7)
    assert found.shape == (3, 2, 5, bins)


def test_silence_is_divided_evenly():
    silence = torch.zeros(1, 4, 2, 3, 4)
    torch.testing.assert_close(masks.ratio(silence, silence[:, 0], MaskRule()), torch.full_like(silence, 0.25))


def test_a_single_stem_is_weighed_against_what_is_left():
    mixture = torch.full((1, 2, 3, 4), 2.0)
    estimate = 0.5 * mixture.unsqueeze(1)
    alone = masks.ratio(estimate, mixture, MaskRule())
    torch.testing.assert_close(alone, torch.ones_like(alone))  # why `rest` exists
    with_rest = masks.ratio(estimate, mixture, MaskRule(rest=True))
    torch.testing.assert_close(with_rest, torch.full_like(with_rest, 0.5))


def test_nothing_is_left_where_the_estimates_exceed_the_mixture():
    estimates, _ = example(2, 1.0, 0)
    found = masks.ratio(estimates, estimates.sum(dim=1) * 0.5, MaskRule(rest=True))
    torch.testing.assert_close(found.sum(dim=1), torch.ones_like(found[:, 0]))


def test_extension_above_the_band():
    found = torch.rand(1, 2, 1, 3, 8)
    zeros, average, top = (masks.extend(found, 11, name)[..., 8:] for name in masks.EXTENSIONS)
    assert not zeros.any()
    torch.testing.assert_close(average, found.mean(dim=-1, keepdim=True).expand(-1, -1, -1, -1, 3))
    torch.testing.assert_close(top, found[..., 6:].mean(dim=-1, keepdim=True).expand(-1, -1, -1, -1, 3))


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(masks.EXTENSIONS), st.integers(1, 9), st.integers(0, 9), st.integers(1, 5), st.integers(0, 1000))
def test_above_the_band_masks_stay_masks(extension, band, more, stems, seed):
    estimates = torch.rand(1, stems, 2, 3, band, generator=torch.Generator().manual_seed(seed)) ** 8
    found = masks.ratio(estimates, estimates.sum(dim=1), MaskRule())
    full = masks.extend(found, band + more, extension)
    assert full.shape == (1, stems, 2, 3, band + more)
    assert full[..., :band].equal(found)
    above = full[..., band:]
    assert ((above >= 0) & (above <= 1 + 1e-6)).all()
    total = torch.zeros_like(above[:, 0]) if extension == "zeros" else torch.ones_like(above[:, 0])
    torch.testing.assert_close(above.sum(dim=1), total)


@pytest.mark.parametrize("extension", masks.EXTENSIONS)
def test_frames_stems_and_channels_are_extended_one_by_one(extension):
    found = torch.rand(2, 2, 5, 8)
    whole = masks.extend(found, 12, extension)
    for stem, channel, frame in ((0, 0, 0), (1, 0, 4), (0, 1, 2)):
        alone = masks.extend(found[stem, channel, frame], 12, extension)
        torch.testing.assert_close(whole[stem, channel, frame], alone)


def test_only_the_top_of_the_band_decides_who_gets_what_is_above_it():
    bass = torch.cat([torch.ones(3, 12), torch.zeros(3, 4)], dim=-1)
    hats = 1 - bass
    above = masks.extend(torch.stack([bass, hats]), 20, "top")[..., 16:]
    assert not above[0].any()
    assert (above[1] == 1).all()
    leaked = masks.extend(torch.stack([bass, hats]), 20, "average")[0, :, 16:]
    assert (leaked == 0.75).all()  # why `top` exists


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"extension": "ones"}, "mask.extension='ones' is not one of zeros, average, top"),
        ({"exponent": 0}, r"mask.exponent=0 is not in \(0, 16\]"),
    ],
)
def test_rules_that_cannot_work_say_why(arguments, message):
    with pytest.raises(UserError, match=message):
        MaskRule(**arguments)
