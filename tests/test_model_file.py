import json
import pickle

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
    other = Separator(model.stems, model.spectrogram, model.unet, rule, "softmax")
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
        "description is damaged": (weights, {model_file.METADATA_KEY: '{"format": 1}'}),
        "not a model file": (weights, {model_file.METADATA_KEY: "{"}),
        "model format 99": (weights, description(small_separator, format=99)),
        "1 weights do not fit": (short, description(small_separator)),
        "first unets.0.last.bias": (wrong, description(small_separator)),
        "unet.encoder_activation='exec'": (
            weights,
            description(small_separator, unet=settings["unet"] | {"encoder_activation": "exec"}),
        ),
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


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(UserError, match="no such model file"):
        model_file.load(tmp_path / "none.safetensors")
