"""Spleeter's configurations: what each key means, and what is refused."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stemwise.errors import UserError
from stemwise.masks import MaskRule
from stemwise.spectrogram import Spectrogram
from stemwise.spleeter import config as configuration
from stemwise.unet import UNetSettings

BASE = {
    "instrument_list": ["voice", "rest"],
    "sample_rate": 22050,
    "frame_length": 2048,
    "frame_step": 512,
    "T": 128,
    "F": 512,
    "n_channels": 2,
    "separation_exponent": 1,
    "mask_extension": "average",
    "model": {"type": "unet.softmax_unet", "params": {"conv_n_filters": [1, 2, 3, 4, 5, 6]}},
}


def network(**params) -> configuration.Config:
    return configuration.parse(BASE | {"model": {"type": "unet.unet", "params": params}}, "x.json")


def test_every_key_has_its_place():
    found = configuration.parse(BASE, "x.json")
    assert found.stems == ("voice", "rest")
    assert found.spectrogram == Spectrogram(22050, 2, 2048, 512, bins=512, frames=128)
    assert found.unet == UNetSettings((1, 2, 3, 4, 5, 6), "leaky_relu", "relu", dropout=0)
    assert found.mask == MaskRule(1, "average")
    assert found.output == "softmax"


@pytest.mark.parametrize(
    ("name", "encoder", "decoder"),
    [
        ("ReLU", "relu", "relu"),
        ("ELU", "elu", "elu"),
        ("LeakyReLU", "leaky_relu", "leaky_relu"),
        # Spleeter takes what it does not know for its defaults.
        ("Swish", "leaky_relu", "relu"),
        ("elu", "leaky_relu", "relu"),
        (None, "leaky_relu", "relu"),
        (3, "leaky_relu", "relu"),
        (["ELU"], "leaky_relu", "relu"),
    ],
)
def test_activations_fall_back_as_in_spleeter(name, encoder, decoder):
    assert network(conv_activation=name).unet.encoder_activation == encoder
    assert network(deconv_activation=name).unet.decoder_activation == decoder


def test_a_seventh_number_of_filters_is_not_looked_at():
    assert network(conv_n_filters=[1, 2, 3, 4, 5, 6, 7]).unet.filters == (1, 2, 3, 4, 5, 6)
    assert network().unet == UNetSettings(dropout=0)
    assert configuration.parse(BASE | {"model": {"params": None}}, "x.json").unet == UNetSettings(dropout=0)


@pytest.mark.parametrize(
    ("name", "stems", "output", "activation", "bins"),
    [
        ("2stems", 2, "sigmoid", "leaky_relu", 1024),
        ("4stems", 4, "sigmoid", "elu", 1024),
        ("5stems", 5, "softmax", "elu", 1024),
        ("2stems-16kHz", 2, "sigmoid", "leaky_relu", 1536),
        ("4stems-16kHz", 4, "sigmoid", "elu", 1536),
        ("5stems-16kHz", 5, "softmax", "elu", 1536),
    ],
)
def test_the_released_models_are_known(name, stems, output, activation, bins):
    found = configuration.load(name)
    assert (len(found.stems), found.output) == (stems, output)
    assert found.spectrogram == Spectrogram(bins=bins)
    assert found.unet.encoder_activation == activation
    assert found.unet.filters == UNetSettings().filters
    assert found.mask == MaskRule(2, "zeros")
    assert found.raw["model_dir"] == name.removesuffix("-16kHz")
    assert configuration.load(f"spleeter:{name}") == found


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": {"type": "blstm.blstm", "params": {}}}, "only Spleeter's U-Nets can be taken over: unet.unet"),
        ({"model": {"type": ["unet.unet"]}}, "only Spleeter's U-Nets"),
        ({"model": "unet.unet"}, "not an object with type and params"),
        ({"model": {"params": []}}, "model.params is"),
        ({"model": {"params": {"conv_n_filters": [1, 2, 3]}}}, "6 whole numbers"),
        ({"model": {"params": {"conv_n_filters": [1, 2, 3, 4, 5, 0]}}}, "6 whole numbers"),
        ({"model": {"params": {"conv_n_filters": [1, 2, 3, 4, 5, 10**12]}}}, "6 whole numbers"),
        ({"model": {"params": {"conv_n_filters": None}}}, "6 whole numbers"),
        ({"n_channels": 1}, "n_channels is 1; Spleeter's networks are stereo"),
        ({"mask_extension": "mirror"}, "mask_extension is 'mirror', not one of zeros, average"),
        ({"separation_exponent": 0}, "x.json: mask.exponent=0"),
        ({"separation_exponent": "2"}, "x.json: mask.exponent=2"),
        ({"T": 100}, "x.json: spectrogram.frames=100 is not a multiple of 64"),
        ({"F": 2048}, "x.json: spectrogram.bins=2048 is more than .* F is bins"),
        ({"frame_step": 1024}, "x.json: spectrogram.hop=1024 .* frame_step is hop"),
        ({"sample_rate": 44100.5}, "x.json: spectrogram.sample_rate=44100.5"),
        ({"instrument_list": []}, "instrument_list is not a list"),
        ({"instrument_list": "vocals"}, "instrument_list is not a list"),
        ({"instrument_list": ["x"] * 65}, "instrument_list is not a list of 1 to 64"),
        ({"instrument_list": ["vocals", "vocals"]}, "each once"),
        ({"instrument_list": ["../vocals"]}, "is no name for a stem"),
        ({"instrument_list": [1]}, "is no name for a stem"),
        ({"instrument_list": [["a"]]}, "is no name for a stem"),
    ],
)
def test_what_is_not_spleeters_is_refused(changed, message):
    with pytest.raises(UserError, match=message):
        configuration.parse(BASE | changed, "x.json").separator()


def test_all_missing_keys_are_named_at_once():
    with pytest.raises(UserError, match=r"no sample_rate, n_channels, .*T, instrument_list.*model"):
        configuration.parse({}, "x.json")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"null",
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "\\ud800"}',
        bytes(2**21),
    ],
)
def test_files_that_are_no_configuration_are_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json: "):
        configuration.find(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="3stems: no such configuration"):
        configuration.load("3stems")
    with pytest.raises(UserError, match="no such configuration"):
        configuration.load(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=8,
)


@settings(max_examples=100)
@given(st.sampled_from([*BASE, "type", "params", "conv_n_filters", "conv_activation"]), JSON)
def test_any_value_of_any_key_is_taken_or_refused(key, value):
    raw = copy.deepcopy(BASE)
    raw["model"]["params"]["conv_n_filters"] = [1] * 6
    place = raw["model"]["params"] if key.startswith("conv") else raw["model"] if key in ("type", "params") else raw
    place[key] = value
    try:
        assert configuration.parse(json.loads(json.dumps(raw)), "x.json").stems
    except UserError:
        assert key != "conv_activation"
