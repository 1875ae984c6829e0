"""`stemwise convert`: each kind of conversion from the command line, and what it says."""

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import SafetensorError

from stemwise import export, model_file
from stemwise.commands import convert
from stemwise.errors import UserError
from stemwise.masks import MaskRule
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram
from stemwise.spleeter import model as spleeter
from stemwise.unet import UNetSettings


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser("stemwise")
    convert.add(parser.add_subparsers(required=True))
    options = parser.parse_args(["convert", *map(str, arguments)])
    return options.run(options)


@pytest.fixture
def model() -> Separator:
    torch.manual_seed(0)
    settings = Spectrogram(n_fft=512, hop=128, bins=64, frames=64)
    return Separator(["vocals", "accompaniment"], settings, UNetSettings((2, 3, 2, 3, 2, 4)), MaskRule()).eval()


@pytest.fixture
def folder(model, tmp_path) -> Path:
    spleeter.write(model, tmp_path / "theirs")
    return tmp_path / "theirs"


def test_a_models_way_there_and_back(model, folder, tmp_path, capsys):
    assert run("spleeter", folder, "-o", tmp_path / "new" / "ours.safetensors") == 0
    said = capsys.readouterr().out
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert re.search(rf"ours\.safetensors: vocals, accompaniment; 44100 Hz.* 2-3-2-3-2-4.* {weights:,} weights", said)
    found, facts = model_file.read(tmp_path / "new" / "ours.safetensors")
    assert facts["origin"]["folder"] == "theirs"
    assert run("tensorflow", tmp_path / "new" / "ours.safetensors", "-o", tmp_path / "back") == 0
    assert "spleeter separate -p" in capsys.readouterr().out
    back = spleeter.read(tmp_path / "back")
    for name, value in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)
        assert torch.equal(back.state_dict()[name], value)
    for name in ("model.index", "model.data-00000-of-00001"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()


def test_adam_makes_it_three_times_as_large(model, tmp_path):
    model_file.save(model, tmp_path / "m.safetensors", {})
    for name, flags in (("plain", []), ("adam", ["--adam"])):
        run("tensorflow", tmp_path / "m.safetensors", "-o", tmp_path / name, *flags)
    sizes = [(tmp_path / name / "model.data-00000-of-00001").stat().st_size for name in ("plain", "adam")]
    assert 2.8 < sizes[1] / sizes[0] < 3


def test_what_is_different_there_is_said(model, tmp_path, capsys):
    model.spectrogram = replace(model.spectrogram, hop=64)
    model.overlap = 0.5
    model_file.save(model, tmp_path / "m.safetensors", {})
    run("tensorflow", tmp_path / "m.safetensors", "-o", tmp_path / "out")
    said = capsys.readouterr().out
    assert "note: Spleeter reckons with windows at 75 % overlap" in said
    assert "note: overlap=0.5: Spleeter's windows do not overlap" in said


def test_the_configuration_can_be_given(folder, tmp_path):
    (folder / "config.json").rename(tmp_path / "c.json")
    with pytest.raises(UserError, match="--config"):
        run("spleeter", folder, "-o", tmp_path / "m.safetensors")
    run("spleeter", folder, "-o", tmp_path / "m.safetensors", "--config", tmp_path / "c.json")
    with pytest.raises(UserError, match="leads to"):
        run("spleeter", folder, "-o", tmp_path / "m.safetensors", "--config", "2stems-16kHz")


def test_nothing_is_written_where_it_does_not_belong(folder, tmp_path):
    with pytest.raises(UserError, match=r"write model\.safetensors"):
        run("spleeter", folder, "-o", tmp_path / "model.pt")
    with pytest.raises(UserError, match="cannot be written"):
        run("spleeter", folder, "-o", folder / "config.json" / "model.safetensors")
    with pytest.raises(UserError, match=r"write conf\.yaml"):
        run("config", folder / "config.json", "-o", tmp_path / "conf")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_a_full_disk_is_no_traceback(folder, tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(model_file, "save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        run("spleeter", folder, "-o", tmp_path / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_a_configuration_becomes_a_command(folder, capsys):
    assert run("config", folder / "config.json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "python -m train \\"
    assert "  spectrogram.n_fft=512 \\" in lines
    assert "  trainer.max_steps=1000000 \\" in lines


def test_a_configuration_becomes_an_experiment(folder, tmp_path, capsys):
    assert run("config", folder / "config.json", "-o", tmp_path / "experiment" / "mine.yaml") == 0
    assert "python -m train experiment=mine" in capsys.readouterr().out
    text = (tmp_path / "experiment" / "mine.yaml").read_text(encoding="utf-8")
    assert text.startswith("# @package _global_\n# python -m train experiment=mine ")
    assert yaml.safe_load(text)["spectrogram"] == {"n_fft": 512, "hop": 128, "bins": 64, "frames": 64}


def test_what_is_no_configuration_is_refused(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"T": 512}))
    with pytest.raises(UserError, match="no sample_rate"):
        run("config", tmp_path / "c.json")


@pytest.mark.parametrize(("kind", "writer", "name"), [("onnx", "onnx", "m.onnx"), ("torch", "program", "m.pt2")])
def test_exports_say_how_far_they_are_from_pytorch(kind, writer, name, model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, writer, lambda model, path: path.write_text(str(model.stems)) and 2.5e-7)
    model_file.save(model, tmp_path / "m.safetensors", {})
    assert run(kind, tmp_path / "m.safetensors", "-o", tmp_path / name) == 0
    assert "difference from PyTorch in a check: 2.5e-07" in capsys.readouterr().out
    assert (tmp_path / name).read_text() == "('vocals', 'accompaniment')"


def test_help_does_not_wait_for_torch():
    code = (
        "import argparse, sys; from stemwise.commands import convert\n"
        "convert.add(argparse.ArgumentParser().add_subparsers())\n"
        "assert not {'torch', 'numpy', 'hydra', 'yaml'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


def test_a_model_of_half_precision_is_half_as_large_and_nearly_the_same(small_separator, tmp_path, capsys):
    wide = Separator(["vocals"], small_separator.spectrogram, UNetSettings((32, 64, 64)), MaskRule()).eval()
    for norm in [module for module in wide.modules() if isinstance(module, torch.nn.BatchNorm2d)]:
        torch.nn.init.normal_(norm.running_mean)
    model_file.save(wide, tmp_path / "model.safetensors", {"step": 7})
    assert run("half", tmp_path / "model.safetensors", "-o", tmp_path / "small.safetensors") == 0
    assert "small.safetensors: vocals; 8000 Hz" in capsys.readouterr().out
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("small", "model")]
    assert sizes[0] < 0.52 * sizes[1]
    found, facts = model_file.read(tmp_path / "small.safetensors")
    assert facts == {"step": 7}
    assert {value.dtype for value in found.parameters()} == {torch.float32}
    for name, value in wide.state_dict().items():
        exact = value.dim() != 4
        torch.testing.assert_close(
            found.state_dict()[name], value, rtol=0 if exact else 1e-3, atol=0 if exact else 1e-7
        )
    mixture = torch.rand(1, 1, 16, 64)
    torch.testing.assert_close(found(mixture), wide(mixture), rtol=0, atol=2e-3)


def test_weights_that_half_precision_cannot_hold_are_kept(model, tmp_path):
    with torch.no_grad():
        model.unets[0].last.weight[0, 0, 0, 0] = 1e5
    model_file.save(model, tmp_path / "model.safetensors", {})
    with pytest.raises(UserError, match="weights of up to 100000, which half precision cannot hold"):
        run("half", tmp_path / "model.safetensors", "-o", tmp_path / "small.safetensors")
    assert not (tmp_path / "small.safetensors").exists()
