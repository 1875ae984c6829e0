"""Losses: each is zero where it should be, has a gradient everywhere, and judges what its name says."""

import math

import pytest
import torch
from torch import Tensor

from stemwise import losses, masks, spectrogram
from stemwise.errors import UserError
from stemwise.losses import L1, Compressed, Logarithmic, Loss, Masked, MultiResolution, Spectral, Waveform

ALL = [
    *(L1(), Compressed(), Logarithmic(), Masked(L1()), Masked(Compressed(power=0.3))),
    *(Spectral(), Waveform(), MultiResolution(n_ffts=(64, 128))),
]


def example(needs_phase: bool, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A mixture (3, 1, 16, 64) and its two stems (3, 2, 1, 16, 64), with silent bins."""
    generator = torch.Generator().manual_seed(seed)
    stems = torch.randn(3, 2, 1, 16, 64, dtype=torch.complex64, generator=generator)
    stems[..., 50:] = 0
    mixture = stems.sum(dim=1)
    return (mixture, stems) if needs_phase else (mixture.abs(), stems.abs())


def of(loss: Loss, model, estimates: Tensor, seed: int = 0) -> Tensor:
    return loss(model, estimates, *example(loss.needs_phase, seed))


@pytest.mark.parametrize("loss", ALL, ids=str)
def test_a_loss_per_stem_with_a_finite_gradient_even_in_silence(loss, small_separator):
    estimates = torch.rand(3, 2, 1, 16, 64)
    estimates[..., 40:] = 0
    estimates.requires_grad_()
    found = of(loss, small_separator, estimates)
    assert found.shape == (2,)
    assert (found > 0).all()
    found.sum().backward()
    assert estimates.grad is not None
    assert estimates.grad.isfinite().all()
    assert all(estimates.grad[:, stem].any() for stem in range(2))


@pytest.mark.parametrize("loss", [L1(), Compressed(), Logarithmic()], ids=str)
def test_nothing_is_lost_on_true_magnitudes(loss, small_separator):
    assert of(loss, small_separator, example(False)[1]).max() < 1e-6


@pytest.mark.parametrize("loss", ALL[3:], ids=str)
def test_what_inference_makes_right_costs_nothing(loss, small_separator):
    """Stems that do not overlap: their ratio masks are exact, however loud the estimates are."""
    stems = example(True)[1]
    stems[:, 0, ..., ::2] = 0
    stems[:, 1, ..., 1::2] = 0
    mixture = stems.sum(dim=1)
    estimates = 7 * stems.abs()
    inputs = (mixture, stems) if loss.needs_phase else (mixture.abs(), stems.abs())
    assert loss(small_separator, estimates, *inputs).max() < 2e-3
    assert L1()(small_separator, estimates, mixture.abs(), stems.abs()).min() > 1
    assert loss(small_separator, estimates.flip(1), *inputs).min() > 0.01  # stems that were swapped


def test_compressed_and_logarithmic_weigh_quiet_bins_more(small_separator):
    """The same error, in loud bins or in quiet ones."""
    mixture, stems = torch.ones(1, 1, 16, 64), torch.full((1, 2, 1, 16, 64), 0.01)
    stems[..., 32:] = 10.0
    quiet, loud = stems.clone(), stems.clone()
    quiet[..., :32] += 0.01
    loud[..., 32:] += 0.01
    for loss in (Compressed(), Logarithmic()):
        ratio = loss(small_separator, quiet, mixture, stems) / loss(small_separator, loud, mixture, stems)
        assert (ratio > 5).all()
    plain = L1()(small_separator, quiet, mixture, stems) / L1()(small_separator, loud, mixture, stems)
    torch.testing.assert_close(plain, torch.ones(2), rtol=1e-3, atol=0)
    half = Compressed(power=1)(small_separator, quiet, mixture, stems)
    torch.testing.assert_close(half, L1()(small_separator, quiet, mixture, stems))


def test_the_spectral_loss_is_of_the_models_own_masks(small_separator):
    estimates = torch.rand(3, 2, 1, 16, 64)
    mixture, stems = example(True)
    shares = masks.ratio(estimates, mixture.abs(), small_separator.mask) * mixture.unsqueeze(1)
    expected = (shares - stems).abs().mean(dim=(0, 2, 3, 4))
    torch.testing.assert_close(Spectral()(small_separator, estimates, mixture, stems), expected)


def test_the_waveform_loss_is_that_of_waveforms(small_separator):
    """A mixture's STFT and its stems': the loss is the mean distance of the waveforms that inference would return."""
    settings = small_separator.spectrogram
    waveforms = torch.randn(2, 1, 16 * settings.hop + settings.overlap)
    spectra = spectrogram.spectra(waveforms, settings)[..., : settings.bins]
    mixture, stems = spectra.sum(dim=0, keepdim=True), spectra.unsqueeze(0)
    estimates = torch.rand(1, 2, 1, 16, settings.bins)
    made = masks.divided(estimates[0], mixture[0], small_separator.mask)
    middle = slice(settings.overlap, -settings.overlap)
    shares = torch.stack([spectrogram.overlap_add(one, settings)[..., middle] for one in made])
    truth = spectrogram.overlap_add(spectra, settings)[..., middle]
    expected = (shares - truth).abs().mean(dim=(1, 2))
    torch.testing.assert_close(Waveform()(small_separator, estimates, mixture, stems), expected)


@pytest.mark.parametrize("loss", ALL, ids=str)
def test_a_loss_is_found_again_in_a_config(loss):
    assert losses.from_config(config(loss)) == loss


def config(loss) -> dict:
    values = {key: config(value) if key == "loss" else value for key, value in vars(loss).items()}
    return {"_target_": f"stemwise.losses.{type(loss).__name__}", **values}


@pytest.mark.parametrize("target", ["os.system", "stemwise.losses.Loss", None])
def test_nothing_else_is_called_that_a_config_names(target):
    with pytest.raises(UserError, match="not one of"):
        losses.from_config({"_target_": target, "command": "true"})


@pytest.mark.parametrize(
    "make",
    [
        *(lambda: Compressed(power=0), lambda: Compressed(power=1.5), lambda: Logarithmic(floor=0)),
        lambda: Logarithmic(floor=math.inf),
        *(lambda: MultiResolution(n_ffts=()), lambda: MultiResolution(n_ffts=(30,))),
    ],
)
def test_values_out_of_range_are_refused(make):
    with pytest.raises(UserError, match="loss"):
        make()


OPTIONS = ["l1", "compressed", "logarithmic", "masked", "spectral", "waveform", "multiresolution"]


@pytest.mark.parametrize("option", OPTIONS)
def test_every_loss_trains(option, train):
    """From the config to a model file, with stems mixed anew where phases are at hand."""
    keys = [f"loss={option}", "augment=all" if option in OPTIONS[-3:] else "augment=none", "trainer.max_steps=2"]
    keys += ["loss.n_ffts=[64,128]"] if option == "multiresolution" else []
    assert train(*keys).code == 0


def test_frames_longer_than_a_crop_are_refused(train):
    found = train("loss=multiresolution", "loss.n_ffts=[64,8192]", "trainer.max_steps=1")
    assert found.code == 2, found.output
    assert "loss.n_ffts=[64, 8192]: a crop has" in found.output


def test_a_loss_of_spectra_needs_phases_and_says_so(train):
    found = train("loss=spectral", "data.storage=half")
    assert found.code == 2
    assert "Set data.storage=complex" in found.output
    found = train("loss=spectral", "augment=stretch")
    assert found.code == 2
    assert "TimeStretch, PitchShift changes magnitudes alone" in found.output
