import json
import pickle
import zipfile

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from stemwise import model_file
from stemwise.errors import UserError
from stemwise.masks import MaskRule
from stemwise.separator import Separator


def with_other_rule(model: Separator) -> Separator:
    rule = MaskRule(exponent=1.5, extension="average", rest=True)
    other = Separator(model.stems, model.spectrogram, model.unet, rule, "softmax", overlap=0.5)
    other.load_state_dict(model.state_dict())
    return other.eval()


def test_a_model_file_carries_all_that_separation_needs(small_separator, tmp_path):
    model = with_other_rule(small_separator)
    path = tmp_path / "new" / "model.safetensors"
    model_file.save(model, path, {"step": 7, "sdr": {"mean": 1.5}})
    loaded, facts = model_file.read(path)
    assert facts == {"step": 7, "sdr": {"mean": 1.5}}
    assert loaded.settings == model.settings
    assert not loaded.training
    song = torch.randn(1, 3000)
    torch.testing.assert_close(loaded.separate(song), model.separate(song), rtol=0, atol=0)
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


def test_a_file_from_before_windows_could_overlap(small_separator, tmp_path):
    path = tmp_path / "model.safetensors"
    settings = {name: value for name, value in small_separator.settings.items() if name != "overlap"}
    metadata = {model_file.METADATA_KEY: json.dumps({"format": 1, **settings})}
    weights = {name: value.contiguous() for name, value in small_separator.state_dict().items()}
    save_file(weights, path, metadata=metadata)
    assert model_file.load(path).overlap == 0


def throw(error):
    raise error


def test_a_failed_save_leaves_the_old_model(small_separator, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    model_file.save(small_separator, path, {"step": 1})

    for error in (OSError(28, "No space left on device"), SafetensorError("No space left on device (os error 28)")):
        monkeypatch.setattr(model_file, "save_file", lambda *_, error=error, **__: throw(error))
        with pytest.raises(UserError, match=r"model\.safetensors: cannot be written \(No space left"):
            model_file.save(small_separator, path, {"step": 2})
    assert model_file.read(path)[1] == {"step": 1}
    assert len(list(tmp_path.iterdir())) == 1


class Boom:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code from the file ran')",))


def description(model: Separator, **changes: object) -> dict[str, str]:
    return {model_file.METADATA_KEY: json.dumps({"format": 1, **model.settings, **changes})}


def test_files_that_are_no_model_are_refused(small_separator, tmp_path):
    weights = dict(small_separator.state_dict())
    short = {name: value for name, value in weights.items() if name != "unets.0.last.bias"}
    wrong = weights | {"unets.0.last.bias": torch.zeros(99)}
    settings = small_separator.settings
    cases = {
        "a safetensors file, but not of stemwise": (weights, None),
        "description is damaged .KeyError": (weights, {model_file.METADATA_KEY: '{"format": 1}'}),
        "not a model file": (weights, {model_file.METADATA_KEY: "{"}),
        "model format 99": (weights, description(small_separator, format=99)),
        "1 weights do not fit": (short, description(small_separator)),
        "first unets.0.last.bias": (wrong, description(small_separator)),
        "unet.encoder_activation='exec'": (
            weights,
            description(small_separator, unet=settings["unet"] | {"encoder_activation": "exec"}),
        ),
        # Which torch refuses, and Python to write down.
        "description is damaged": (
            weights,
            description(small_separator, unet=settings["unet"] | {"filters": [10**12] * 3}),
        ),
        "at most 64": (weights, description(small_separator, stems=[f"stem {n}" for n in range(10**4)])),
        "make a window of": (
            weights,
            description(small_separator, spectrogram=settings["spectrogram"] | {"frames": 2**40}),
        ),
        "is no name for a stem": (weights, description(small_separator, stems=["vocals", "\x1b[2J"])),
        # Would be terabytes if it were built.
        "weights do not fit": (weights, description(small_separator, unet=settings["unet"] | {"filters": [10**6] * 3})),
    }
    path = tmp_path / "model.safetensors"
    for message, (tensors, metadata) in cases.items():
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata=metadata)
        with pytest.raises(UserError, match=message):
            model_file.load(path)
    for content in (b"", b"RIFF....", b"\xff" * 100, path.read_bytes()[:5000]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a model file"):
            model_file.load(path)
    for text in ("[" * 100_000, '{"a": ' + "9" * 5000 + "}", '{"a": "\\ud800"}', "NaN", "[]"):
        save_file({"a": torch.zeros(1)}, path, metadata={model_file.METADATA_KEY: text})
        with pytest.raises(UserError, match=r"not a model file|description is damaged"):
            model_file.load(path)


def test_checkpoints_that_are_none_are_refused_and_run_no_code(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {}}, path)
    truncated = path.read_bytes()[:300]
    for content in (b"", b"not a zip", truncated, pickle.dumps(Boom())):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"last.ckpt: not a checkpoint of stemwise"):
            model_file.load(path)
    torch.save({"state_dict": {}, "separator": Boom()}, path)
    with pytest.raises(UserError, match="not a checkpoint"):
        model_file.load(path)


def checkpoint(model: Separator) -> dict:
    weights = {f"separator.{name}": value for name, value in model.state_dict().items()}
    return {"state_dict": weights, "separator": model.settings}


def refused(path, content: dict, message: str) -> None:
    torch.save(content, path)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(UserError, match=message) as caught:
        model_file.load(path)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "value",
    [
        "text",
        torch.zeros(2, 1, 4, 4),
        torch.zeros(1, 1, 4, 4, dtype=torch.int64),
        torch.zeros(1, 1, 4, 4, dtype=torch.complex64),
        torch.zeros(1, 1, 4, 4).to_sparse(),
        torch.zeros(1, 1, 4, 4, device="meta"),
    ],
    ids=["text", "shape", "integers", "complex", "sparse", "meta"],
)
def test_weights_that_are_none_are_refused(small_separator, tmp_path, value):
    content = checkpoint(small_separator)
    assert content["state_dict"]["separator.unets.0.last.weight"].shape == (1, 1, 4, 4)
    content["state_dict"]["separator.unets.0.last.weight"] = value
    refused(tmp_path / "last.ckpt", content, "first unets.0.last.weight")


def test_weights_of_another_precision_become_float32(small_separator, tmp_path):
    content = checkpoint(small_separator.bfloat16())
    torch.save(content, tmp_path / "last.ckpt")
    model = model_file.load(tmp_path / "last.ckpt")
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert model.separate(torch.randn(1, 3000)).isfinite().all()


def test_weights_that_are_more_than_the_file_holds_are_refused(small_separator, tmp_path):
    """One number can be stretched to any shape, and one block of bytes be all the weights."""
    content = checkpoint(small_separator)
    content["separator"] = small_separator.settings | {
        "unet": small_separator.settings["unet"] | {"filters": [2**16] * 3}
    }
    with torch.device("meta"):
        huge = model_file._build(tmp_path, content["separator"])
    content["state_dict"] = {
        f"separator.{name}": torch.zeros((), dtype=value.dtype).expand(value.shape)
        for name, value in huge.state_dict().items()
    }
    refused(tmp_path / "last.ckpt", content, "bytes of weights in")


def test_a_description_that_multiplies_itself_is_refused(small_separator, tmp_path):
    laughs: object = "ha"
    for _ in range(60):
        laughs = [laughs, laughs]
    content = checkpoint(small_separator)
    for wrong in (
        small_separator.settings | {"spectrogram": small_separator.settings["spectrogram"] | {"hop": laughs}},
        small_separator.settings | {"stems": [torch.zeros(3)]},
    ):
        refused(tmp_path / "last.ckpt", content | {"separator": wrong}, "no plain values, or too many")


def test_pickles_that_break_anywhere_are_refused(tmp_path):
    """Which exception comes out depends on the operation: IndexError, struct.error, AssertionError, …"""
    path = tmp_path / "last.ckpt"
    for operations in (b".", b"e.", b"G\0\0.", b"h\x05.", b"X\xff\xff\xff\x7f.", b""):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", b"\x80\x02" + operations)
            file.writestr("archive/version", "3\n")
        with pytest.raises(UserError, match="not a checkpoint of stemwise"):
            model_file.load(path)


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(UserError, match="no such model file"):
        model_file.load(tmp_path / "none.safetensors")
