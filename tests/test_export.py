"""Exported files are read here by the programs that they are for: onnxruntime and plain `torch.export`."""

import importlib.util
import json
import logging
import warnings
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor

from stemwise import export
from stemwise.errors import UserError
from stemwise.masks import MaskRule
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram
from stemwise.unet import UNetSettings

# Spleeter's two kinds, and a mono one of the smallest size that its layers allow.
SETTINGS = Spectrogram(sample_rate=8000, n_fft=256, hop=64, bins=64, frames=16)
MONO = Spectrogram(sample_rate=8000, channels=1, n_fft=256, hop=64, bins=8, frames=8)
KINDS = {
    "sigmoid": (["vocals", "rest"], SETTINGS, UNetSettings((4, 6, 8)), MaskRule(), "sigmoid"),
    "softmax": (["a", "b", "c"], SETTINGS, UNetSettings((4, 6, 8, 8), "elu", "elu"), MaskRule(1.5), "softmax"),
    "mono": (["vocals"], MONO, UNetSettings((4, 6, 8), "relu", "leaky_relu"), MaskRule(rest=True), "sigmoid"),
}


def tiny(kind: str) -> Separator:
    """A model that has seen training: statistics of its own, and training mode."""
    torch.manual_seed(0)
    model = Separator(*KINDS[kind])
    for norm in [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]:
        for values in (norm.weight, norm.bias, norm.running_mean):
            torch.nn.init.normal_(values)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    return model.train()


@pytest.fixture(scope="module", params=["sigmoid", "softmax"])
def exported(request, tmp_path_factory):
    """A model and the folder with its two exports, in a new folder, with all that was said on the way."""
    model, folder = tiny(request.param), tmp_path_factory.mktemp("export") / "new"
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings(record=True) as caught:
        differences = export.onnx(model, folder / "model.onnx"), export.program(model, folder / "model.pt2")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(0 <= difference < 1e-4 for difference in differences)
    assert not [str(warning.message) for warning in caught]
    return model.eval(), folder


def assert_computes_as(model: Separator, network: export.Network) -> None:
    settings = model.spectrogram
    for batch in (1, 2, 5):
        mixture = 50 * torch.rand(batch, settings.channels, settings.frames, settings.bins)
        with torch.inference_mode():
            expected = model(mixture)
        torch.testing.assert_close(network(mixture), expected, rtol=1e-4, atol=1e-4 * float(expected.max()))


def test_onnx_computes_what_pytorch_does(exported):
    model, folder = exported
    session = onnxruntime.InferenceSession(folder / "model.onnx")

    def run(mixture: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"mixture": mixture.numpy()})[0])

    assert_computes_as(model, run)
    (given,), (found,) = session.get_inputs(), session.get_outputs()
    sizes = [model.spectrogram.channels, model.spectrogram.frames, model.spectrogram.bins]
    assert (given.name, given.shape) == ("mixture", ["batch", *sizes])
    assert (found.name, found.shape) == ("estimates", ["batch", len(model.stems), *sizes])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["stemwise"]) == {"format": 1, **model.settings}


def test_the_program_computes_what_pytorch_does(exported):
    model, folder = exported
    extra = {"stemwise": ""}
    program = torch.export.load(folder / "model.pt2", extra_files=extra)
    assert_computes_as(model, program.module())
    assert json.loads(extra["stemwise"]) == {"format": 1, **model.settings}


def test_the_files_stand_alone_and_tell_nothing_of_this_machine(exported):
    _, folder = exported
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.pt2"]
    for path in folder.iterdir():
        for place in (Path(export.__file__).parent, Path(torch.__file__).parent, folder):
            assert str(place).encode() not in path.read_bytes()


def test_nothing_is_printed(tmp_path, capfd, caplog):
    model = tiny("mono")
    assert export.onnx(model, tmp_path / "model.onnx") < 1e-4
    assert export.program(model, tmp_path / "model.pt2") < 1e-4
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """A file from before, and exporters that are quick and write nonsense."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    monkeypatch.setattr(export, "_onnx_bytes", lambda model: b"new")
    monkeypatch.setattr(export, "_onnx_network", lambda path: tiny("mono").eval())
    return path


def assert_untouched(path: Path) -> None:
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [0.01, float("nan")])
def test_a_file_that_computes_something_else_does_not_appear(old, monkeypatch, error):
    model = tiny("mono")
    network = tiny("mono").eval()
    export.onnx(model, old)
    assert old.read_bytes() == b"new"
    old.write_bytes(b"old")
    monkeypatch.setattr(export, "_onnx_network", lambda path: lambda mixture: network(mixture) * (1 + error))
    with pytest.raises(RuntimeError, match="differs from PyTorch by"):
        export.onnx(model, old)
    assert_untouched(old)


def test_a_full_disk_leaves_the_old_file(old, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(UserError, match=r"model.onnx: cannot be written \(No space left on device\)"):
        export.onnx(tiny("mono"), old)
    assert_untouched(old)


def test_targets_that_cannot_be_written_say_so(old):
    (old.parent / "folder").mkdir()
    for target in (old / "below.onnx", old.parent / "folder"):
        with pytest.raises(UserError, match="cannot be written"):
            export.onnx(tiny("mono"), target)
    assert sorted(path.name for path in old.parent.iterdir()) == ["folder", "model.onnx"]
    assert not any((old.parent / "folder").iterdir())


def test_missing_packages_are_named(old, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else real(name))
    with pytest.raises(
        UserError, match=r"needs onnx and onnxscript and onnxruntime: pip install onnx onnxscript onnxruntime"
    ):
        export.onnx(tiny("mono"), old)
    assert_untouched(old)


def test_a_model_that_no_onnx_file_can_hold_is_refused_at_once(old, monkeypatch):
    monkeypatch.setattr(export, "LARGEST_ONNX", 1000)
    with pytest.raises(UserError, match="an ONNX file holds 2 GB"):
        export.onnx(tiny("mono"), old)
    assert_untouched(old)
