"""Models to Spleeter's folders and back: bit by bit, under its names, and nothing that it could not load."""

import itertools
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stemwise.errors import UserError
from stemwise.masks import MaskRule
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram
from stemwise.spleeter import checkpoint
from stemwise.spleeter import config as configuration
from stemwise.spleeter import model as spleeter
from stemwise.unet import UNetSettings

SETTINGS = Spectrogram(n_fft=512, hop=128, bins=64, frames=64)
FILTERS = (2, 3, 2, 3, 2, 4)


def separator(stems=("vocals", "accompaniment"), output="sigmoid", **changed) -> Separator:
    """A tiny model with weights and statistics that are all different."""
    torch.manual_seed(0)
    parts = {"spectrogram": SETTINGS, "unet": UNetSettings(FILTERS, dropout=0), "mask": MaskRule(), **changed}
    model = Separator(stems, **parts, output=output)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.1)
    return model.eval()


@pytest.fixture
def folder(tmp_path) -> Path:
    spleeter.write(separator(), tmp_path / "model")
    return tmp_path / "model"


def same(model: Separator, other: Separator) -> bool:
    states = (model.state_dict(), other.state_dict())
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )


ACTIVATIONS = ("leaky_relu", "relu", "elu")


@pytest.mark.parametrize("write", [spleeter.write, spleeter.write_for_training])
@pytest.mark.parametrize(("encoder", "decoder"), list(itertools.product(ACTIVATIONS, ACTIVATIONS)))
def test_what_was_written_is_read_again_bit_by_bit(tmp_path, write, encoder, decoder):
    unet = UNetSettings(FILTERS, encoder, decoder, dropout=0)
    wanted = separator(("a", "b", "ç 3"), "softmax", unet=unet, mask=MaskRule(1.5, "average"))
    assert write(wanted, tmp_path / "model") == []
    found = spleeter.read(tmp_path / "model")
    assert found.settings == wanted.settings
    assert same(found, wanted)
    assert not found.training
    mixture = torch.randn(2, 3000)
    assert torch.equal(found.separate(mixture), wanted.separate(mixture))


def test_spleeters_reference_models_come_back_as_they_were(shared_data, tmp_path):
    """The same variables, with the same shapes and values; but for the normalisation that is not used."""
    for name in ("2stems", "5stems"):
        theirs = shared_data / "golden" / name
        spleeter.write(spleeter.read(theirs), tmp_path / name)
        read = [checkpoint.read(found, found.variables) for found in map(checkpoint.find, (theirs, tmp_path / name))]
        assert read[0].keys() == read[1].keys()
        unused = [f"batch_normalization_{12 * stem + 5}/" for stem in range(5)]
        for variable, value in read[0].items():
            if not variable.startswith(tuple(unused)):
                np.testing.assert_array_equal(read[1][variable], value, strict=True)


def variables(folder: Path) -> dict[str, np.ndarray]:
    found = checkpoint.find(folder)
    return checkpoint.read(found, found.variables)


def test_the_variables_are_those_that_an_estimator_restores(folder):
    found = variables(folder)
    assert found["global_step"] == 0
    assert found["global_step"].dtype == np.int64
    layers = {name.split("/")[0] for name in found} - {"global_step"}
    counts = Counter(re.sub(r"_\d+$", "", layer) for layer in layers)
    assert counts == {"conv2d": 14, "conv2d_transpose": 12, "batch_normalization": 24}
    assert len(found) == 2 * (14 + 12) + 4 * 24 + 1
    # The sixth normalisation of each stem has no effect and no place in our network.
    for number in (5, 17):
        layer = f"batch_normalization_{number}"
        for part, value in {"gamma": 1, "beta": 0, "moving_mean": 0, "moving_variance": 1}.items():
            assert np.array_equal(found[f"{layer}/{part}"], np.full(4, value))


def test_adams_state_is_that_before_the_first_step(tmp_path):
    spleeter.write_for_training(separator(), tmp_path / "model")
    found = variables(tmp_path / "model")
    assert (found["beta1_power"], found["beta2_power"]) == (np.float32(0.9), np.float32(0.999))
    network = [name for name in found if "/" in name and "/Adam" not in name]
    # What has no gradient has no moments: statistics, and the normalisation that is not used.
    trained = [
        n
        for n in network
        if "moving" not in n and not n.startswith(("batch_normalization_5/", "batch_normalization_17/"))
    ]
    assert {name for name in found if "/Adam" in name} == {
        f"{n}/{slot}" for n in trained for slot in ("Adam", "Adam_1")
    }
    for name in trained:
        for slot in ("Adam", "Adam_1"):
            assert found[f"{name}/{slot}"].shape == found[name].shape
            assert not found[f"{name}/{slot}"].any()


def test_adams_moments_are_not_read(tmp_path, monkeypatch):
    spleeter.write_for_training(separator(), tmp_path / "model")
    names = []
    read = checkpoint.read
    monkeypatch.setattr(checkpoint, "read", lambda found, wanted: names.extend(wanted) or read(found, wanted))
    spleeter.read(tmp_path / "model")
    assert names
    assert not [name for name in names if "Adam" in name]


def test_where_a_model_came_from(folder):
    assert spleeter.facts(folder) == {
        "origin": {"format": "spleeter", "folder": "model", "config": "config.json", "step": 0},
        "normalization": "stored",
    }


@pytest.mark.parametrize("step", [float("nan"), float("inf"), 3.5])
def test_a_count_of_steps_that_is_no_number_is_not_passed_on(tmp_path, step):
    spleeter.write(separator(), tmp_path / "model")
    found = checkpoint.find(tmp_path / "model")
    values = checkpoint.read(found, found.variables)
    checkpoint.write(tmp_path / "model", {**values, "global_step": np.array(step, np.float32)})
    assert "step" not in spleeter.facts(tmp_path / "model")["origin"]


# Folders and configurations that do not fit


def configured(folder: Path, **changed) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"instrument_list": ["vocals"]}, "has 2 U-Nets, but .* names 1 stems: vocals"),
        ({"instrument_list": ["a", "b", "c"]}, "has 2 U-Nets, but .* names 3 stems"),
        (
            {"model": {"type": "unet.unet", "params": {"conv_n_filters": [2, 3, 2, 3, 2, 5]}}},
            r"kernel has the shape \[5, 5, 2, 4\], .* leads to \[5, 5, 2, 5\]",
        ),
        (
            {"model": {"type": "unet.unet", "params": {"conv_n_filters": [65536] * 6}}},
            r"conv2d/kernel has the shape \[5, 5, 2, 2\], .* leads to \[5, 5, 2, 65536\]",
        ),
    ],
)
def test_a_configuration_of_another_model_is_refused(folder, changed, message):
    configured(folder, **changed)
    with pytest.raises(UserError, match=message):
        spleeter.read(folder)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("conv2d_3/bias", None, r"no variable conv2d_3/bias \(1 of 140 missing\)"),
        ("conv2d_3/bias", np.zeros(3, np.float64), "not of float32"),
        ("conv2d_3/bias", np.zeros((3, 1), np.float32), r"the shape \[3, 1\]"),
    ],
)
def test_a_checkpoint_without_a_variable_or_with_another_is_refused(folder, name, value, message):
    found = {n: v for n, v in variables(folder).items() if n != name}
    checkpoint.write(folder, found if value is None else found | {name: value})
    with pytest.raises(UserError, match=message):
        spleeter.read(folder)


def test_the_configuration_is_given_or_there_or_named_by_the_folder(tmp_path, folder):
    (folder / "config.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(UserError, match=r"'model' is no model that Spleeter released\. .* --config"):
        spleeter.read(folder)
    assert spleeter.read(folder, tmp_path / "elsewhere.json").spectrogram == SETTINGS
    for name in ("2stems", "2stems-finetune", "5stems-16kHz"):
        named = configuration.find(folder.rename(tmp_path / name))
        assert named.source == name.removesuffix("-finetune")
        folder = tmp_path / name
    assert configuration.find(folder, "spleeter:4stems").source == "4stems"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (separator(unet=UNetSettings((2, 3))), "6 layers, this model 2"),
        (separator(spectrogram=replace(SETTINGS, channels=1)), "mono"),
        (separator(mask=MaskRule(rest=True)), "mask.rest"),
    ],
)
def test_what_spleeter_cannot_do_is_refused(tmp_path, model, message):
    with pytest.raises(UserError, match=message):
        spleeter.write(model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_what_spleeter_does_differently_is_said(tmp_path):
    odd = separator(spectrogram=replace(SETTINGS, hop=64))
    notes = spleeter.write(odd, tmp_path / "model")
    assert len(notes) == 1
    assert "2 times as loud" in notes[0]


def test_a_folder_appears_complete_or_not_at_all(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "song.wav").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        spleeter.write(separator(), tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["song.wav"]

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.table, "write", full_disk)
    with pytest.raises(UserError, match="No space left on device"):
        spleeter.write(separator(), tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "model").mkdir()
    spleeter.write(separator(), tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "checkpoint",
        "config.json",
        "model.data-00000-of-00001",
        "model.index",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
