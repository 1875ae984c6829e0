"""What README and notebooks do from Python."""

import numpy as np
import pytest
import soundfile
import torch

import stemwise as package
from stemwise import model_file
from stemwise.errors import UserError


@pytest.fixture
def model(small_separator, tmp_path):
    model_file.save(small_separator, tmp_path / "model.safetensors", {})
    return package.load(tmp_path / "model.safetensors", device="cpu")


def noise(*shape):
    return (0.1 * np.random.default_rng(0).standard_normal(shape)).astype(np.float32)


def test_an_array_becomes_named_arrays(model):
    song = noise(1, 9000)
    stems = package.separate(model, song)
    assert list(stems) == ["vocals", "accompaniment"]
    expected = model.separate(torch.from_numpy(song))
    for stem, wanted in zip(stems.values(), expected, strict=True):
        assert (stem.dtype, stem.shape) == (np.float32, (1, 9000))
        np.testing.assert_allclose(stem, wanted.numpy(), atol=1e-6)


def test_tensors_mono_and_stereo_arrays_are_taken(model):
    song = noise(9000)
    expected = package.separate(model, song)["vocals"]
    for same in (torch.from_numpy(song), np.stack([song, song]), song.astype(np.float64)):
        np.testing.assert_allclose(package.separate(model, same)["vocals"], expected, atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 11025, 44100])
def test_a_file_and_its_samples_give_the_same(model, tmp_path, rate):
    song = noise(rate + 7)
    soundfile.write(tmp_path / "song.wav", song, rate, "FLOAT")
    from_file, from_array = package.separate(model, tmp_path / "song.wav"), package.separate(model, song, rate)
    for name in model.stems:
        assert from_file[name].shape == (1, rate + 7)
        np.testing.assert_allclose(from_file[name], from_array[name], atol=1e-6)


def test_a_file_at_another_rate(model, tmp_path):
    soundfile.write(tmp_path / "song.wav", noise(16000), 16000)
    assert package.separate(model, str(tmp_path / "song.wav"), 48000)["vocals"].shape == (1, 48000)


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (np.zeros((9000, 2), np.float32), r"Transpose it: waveform\.T"),
        (np.zeros((1, 2, 3), np.float32), r"got the shape \(1, 2, 3\)"),
        (np.zeros(0, np.float32), "got the shape"),
        (np.zeros(9000, np.int16), "expected a waveform in floating point"),
        (np.full(9000, np.nan, np.float32), "NaN or infinite"),
        (np.full(9000, 1e39), "NaN or infinite"),
        (np.zeros((20, 2), np.float32), "Transpose it"),
        (None, "expected a waveform in floating point"),
        (b"RIFF", "expected a waveform in floating point"),
        ("nowhere.wav", "no such file"),
    ],
)
def test_what_is_no_song_says_so(model, waveform, message):
    with pytest.raises(UserError, match=message):
        package.separate(model, waveform)


@pytest.mark.parametrize("rate", [0, -5, 48000.0, "48000", True])
def test_a_rate_that_is_none_says_so(model, rate):
    with pytest.raises(UserError, match="is not a whole number of Hz"):
        package.separate(model, noise(9000), rate)


def test_views_and_read_only_arrays_are_taken(model):
    song = noise(1, 9000)
    song.flags.writeable = False
    np.testing.assert_allclose(
        package.separate(model, song[:, ::-1])["vocals"], package.separate(model, song[:, ::-1].copy())["vocals"]
    )


def test_a_wish_goes_for_arrays_and_files(model, tmp_path):
    song = noise(1, 44100)
    soundfile.write(tmp_path / "song.wav", song[0], 44100, "FLOAT")
    wish = package.Wish(two_stems="vocals", offset=0.2, duration=0.5)
    of_array = package.separate(model, song, 44100, wish)
    of_file = package.separate(model, tmp_path / "song.wav", wish=wish)
    assert list(of_array) == ["vocals", "no_vocals"]
    for name in of_array:
        np.testing.assert_allclose(of_array[name], of_file[name], atol=1e-6)
    np.testing.assert_allclose(sum(of_array.values()), song[:, 8820 : 8820 + 22050], atol=1e-6)


def test_a_stem_that_is_kept_does_not_keep_the_others(model):
    stems = package.separate(model, noise(9000))
    assert all(stem.base is None for stem in stems.values())


def test_a_model_in_training_is_refused(model):
    with pytest.raises(UserError, match=r"model\.eval\(\)"):
        package.separate(model.train(), noise(9000))


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere.safetensors", "no such model file"), ("spleeter:3stems", "spleeter:2stems")]
)
def test_a_model_that_is_not_there_says_so(name, message):
    with pytest.raises(UserError, match=message):
        package.load(name)


def test_a_model_can_be_told_what_to_do_above_its_band(model, tmp_path):
    song = noise(1, 9000)
    model_path = tmp_path / "model.safetensors"
    other = package.load(model_path, "cpu", mask_extension="top")
    assert np.abs(package.separate(other, song)["vocals"] - package.separate(model, song)["vocals"]).max() > 0.01


def test_a_model_can_be_told_how_far_windows_overlap(model, tmp_path):
    song = noise(1, 9000)
    other = package.load(tmp_path / "model.safetensors", "cpu", overlap=0.5)
    assert np.abs(package.separate(other, song)["vocals"] - package.separate(model, song)["vocals"]).max() > 1e-3
    with pytest.raises(UserError, match="overlap=1: not a share of the window"):
        package.load(tmp_path / "model.safetensors", overlap=1)


def test_names_of_the_package(monkeypatch):
    assert {"load", "separate", "Wish"} <= {*dir(package)}
    with pytest.raises(AttributeError, match="no attribute 'seperate'"):
        package.seperate  # noqa: B018
