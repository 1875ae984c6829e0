"""What the benchmarks measure with; Spleeter itself takes part only when they are run."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from stemwise import model_file
from stemwise.masks import MaskRule
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram
from stemwise.unet import UNetSettings

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a script from `benchmarks`, whose modules find each other by name."""
    monkeypatch.syspath_prepend(FOLDER)
    return lambda name: __import__(name)


@pytest.mark.parametrize("name", [path.stem for path in FOLDER.glob("*.py") if not path.match("spleeter_*side.py")])
def test_scripts_fit_the_package(benchmark, name):
    assert benchmark(name).__doc__


def test_a_table_keeps_its_columns(benchmark):
    report = benchmark("report")
    assert report.table(("song", "dB"), [("a|b", 98.25), ("c", 101)]).splitlines() == [
        "| song | dB |",
        "| --- | --: |",
        "| a\\|b | 98.2 |",
        "| c | 101 |",
    ]


def test_the_command_in_a_report_names_no_folder_of_the_machine(benchmark, monkeypatch):
    report = benchmark("report")
    monkeypatch.setattr(sys, "argv", ["golden.py", "--environments", "/home/me/v", "--cases", "own instruments"])
    assert report._command("golden") == "python benchmarks/golden.py --cases 'own instruments'"


def test_what_a_file_clipped_is_not_compared(benchmark, tmp_path):
    golden = benchmark("golden")
    place = golden.Place("x", "", tmp_path, tmp_path, tmp_path, references=tmp_path)
    theirs = torch.rand(2, 1000, generator=torch.Generator().manual_seed(0)) - 0.5
    ours = 1.0001 * theirs
    theirs[:, 500], ours[:, 500] = 1 - 2**-23, 1.2
    assert golden._score(place, "vocals", "masks", theirs, ours)["decibels"] == pytest.approx(80, abs=0.1)
    within = golden.Place("x", "", tmp_path, tmp_path, tmp_path)
    assert golden._score(within, "vocals", "masks", theirs, ours)["decibels"] < 50


def test_memory_of_a_forked_process_counts_once(benchmark):
    code = (
        "import os, time\n"
        "shared = b'1' * 200_000_000\n"
        "if (child := os.fork()) == 0:\n"
        "    own = b'1' * 100_000_000\n"
        "    time.sleep(0.3)\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
    )
    run = benchmark("watched").run([sys.executable, "-c", code])
    assert 300e6 < run.memory < 350e6
    assert 0.3 < run.seconds < 5


def test_ours_in_bf16_is_in_bf16(benchmark, tmp_path):
    side = benchmark("separate_side")
    model = Separator(["a"], Spectrogram(frames=64, bins=64), UNetSettings(), MaskRule())
    model_file.save(model, tmp_path / "model.safetensors", {})
    for precision in ("float32", "bfloat16"):
        lowered = side._ours(str(tmp_path / "model.safetensors"), precision)
        assert lowered.unets[0].encoder[0].weight.dtype == getattr(torch, precision)


def test_a_command_that_fails_is_not_timed(benchmark):
    with pytest.raises(SystemExit, match="exit code 3"):
        benchmark("watched").run([sys.executable, "-c", "raise SystemExit(3)"])


def test_candidates_take_turns_and_the_first_rounds_do_not_count(benchmark):
    order = []
    candidates = {name: lambda n=name: order.append(n) for name in "ab"}
    found = benchmark("timing").in_turn(candidates, repeats=3, warmup=2)
    assert "".join(order) == "ab" * 5
    assert {name: len(timing.seconds) for name, timing in found.items()} == {"a": 3, "b": 3}


def test_a_call_is_timed_and_not_what_stands_around_it(benchmark):
    timing = benchmark("timing")
    found = timing.in_turn({"a": lambda: time.sleep(0.02), "b": lambda: None}, repeats=2)
    assert found["a"].lowest >= 0.02 > found["b"].highest


def test_a_timing_says_median_and_spread(benchmark):
    timing = benchmark("timing").Timing((0.0351, 0.0123, 0.02))
    assert (timing.median, timing.lowest, timing.highest) == (0.02, 0.0123, 0.0351)
    assert timing.text() == "0.0200 (0.0123 to 0.0351)"
    assert timing.text(unit=1e-3) == "20.0 (12.3 to 35.1)"
    assert timing.rates(1.0)[2] == pytest.approx(50)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0.000"), (0.01234, "0.0123"), (1.0, "1.00"), (9.999, "10.0"), (1234.4, "1234")]
)
def test_three_digits_of_a_number_count(benchmark, value, text):
    assert benchmark("timing").number(value) == text


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("Intel(R) Xeon(R) Processor 2 cores", "xeon-2-cores"),
        ("Intel(R) Xeon(R) CPU E5-2686 v4 @ 2.30GHz 8 cores", "xeon-e5-2686-v4-8-cores"),
        ("AMD EPYC 7B13 64-Core Processor 4 cores", "epyc-7b13-4-cores"),
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"),
    ],
)
def test_a_folder_has_the_name_of_its_device(benchmark, name, slug):
    assert benchmark("report")._plain(name) == slug


@pytest.fixture
def results(benchmark, monkeypatch, tmp_path):
    """Where reports go while a test runs."""
    report = benchmark("report")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_speed.py"])
    monkeypatch.setattr(report, "machine", lambda: {"processor": "X", "cores": 2, "memory_gib": 8, "system": "Linux"})
    return tmp_path


def test_results_lie_under_the_device_and_name_every_program(benchmark, results):
    report = benchmark("report")
    report.write("golden", "# Golden", {"found": [1]}, {"spleeter": {"spleeter": "2.4.2"}, "demucs": {"demucs": "4"}})
    found = json.loads((results / "x-2-cores" / "golden.json").read_text())
    assert found["found"] == [1]
    assert found["command"] == "python benchmarks/golden.py"
    assert {"stemwise", "spleeter", "demucs"} == set(found["versions"])
    assert "spleeter: spleeter 2.4.2. demucs: demucs 4." in (results / "x-2-cores" / "golden.md").read_text()
    report.write("golden", "", {}, {}, device="nvidia-h100")
    assert (results / "nvidia-h100" / "golden.md").exists()


def test_the_summary_has_the_rows_of_every_part(benchmark, results):
    report, summary = benchmark("report"), benchmark("summary")
    missed = report.Row("step", "Spleeter: 4 s", "3 s", 4 / 3, "1 s", "twice as fast", met=False, note="the cause")
    report.write("train_speed", "", {}, {}, summary=[missed])
    report.write("separate", "", {}, {}, summary=[report.Row("song", "-", "9 s"), report.Row("s", "", "", met=True)])
    report.write("golden", "", {}, {})
    parts = summary.read(results / "x-2-cores")
    assert list(parts) == ["separate", "train_speed"]
    page = summary.page("x-2-cores", parts)
    assert (
        "| step | Spleeter: 4 s | 3 s | 1.33 × | 1 s | twice as fast | **no** | [train_speed](train_speed.md) |" in page
    )
    assert "| song | - | 9 s |  |  |  |  | [separate](separate.md) |" in page
    assert "1 of 2 are met" in page
    assert "- step: the cause" in page


@pytest.mark.parametrize("name", ["spleeter", "openunmix", "demucs"])
def test_an_environment_is_made_once(benchmark, monkeypatch, tmp_path, name):
    environment = benchmark("environment")
    peer, commands = environment.PEERS[name], []

    def fake(command, **_):
        commands.append([str(part) for part in command])
        if "pip" in commands[-1]:
            program = tmp_path / name / "bin" / peer.program
            program.parent.mkdir(parents=True)
            program.touch()
        return subprocess.CompletedProcess(command, 0, stdout=str(tmp_path))

    monkeypatch.setattr(environment.subprocess, "run", fake)
    assert environment.prepare(name, tmp_path) == tmp_path / name / "bin"
    assert commands[-1][-1] == peer.requirement
    assert (tmp_path / "torch_of_stemwise.pth").exists() == peer.our_torch
    count = len(commands)
    environment.prepare(name, tmp_path)
    assert len(commands) == count


def test_an_environment_that_failed_is_made_again(benchmark, monkeypatch, tmp_path):
    environment = benchmark("environment")

    def fails(command, **_):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(environment.subprocess, "run", fails)
    for _ in range(2):
        with pytest.raises(subprocess.CalledProcessError):
            environment.prepare("openunmix", tmp_path)


def test_torch_is_lent_behind_what_the_environment_has(benchmark, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    benchmark("environment")._lend_torch(tmp_path / "bin" / "python")
    code = "import importlib.util, sys; print(importlib.util.find_spec('torch').origin, *sys.path, sep='\\n')"
    found = subprocess.run([tmp_path / "bin" / "python", "-c", code], check=True, capture_output=True, text=True)
    origin, *path = found.stdout.splitlines()
    assert origin == torch.__file__
    own = [place for place in path if place.startswith(str(tmp_path))]
    assert own
    assert path.index(own[-1]) < path.index(str(Path(torch.__file__).parents[1]))


def test_stages_are_those_of_the_product(benchmark, tmp_path, small_separator):
    """The pieces that are timed alone put together what `separate` gives."""
    stages = benchmark("separate_stages")
    model = small_separator
    path = tmp_path / "song.wav"
    samples = round(0.7 * model.spectrogram.frames * model.spectrogram.hop)
    waveform = torch.rand(1, samples, generator=torch.Generator().manual_seed(0)) - 0.5
    stages.audio.write(path, waveform, model.spectrogram.sample_rate)
    with torch.inference_mode():
        pieces = stages._pieces(model, path)
        joined = stages.spectrogram.joined(model.by_ratio(iter([pieces.estimated])), model.spectrogram)
        assert torch.equal(next(iter(joined))[..., : pieces.stems.shape[-1]], pieces.stems)
        assert sum(1 for _ in stages._magnitudes(model, pieces.waveform)) == pieces.windows
    found = stages.measure(model, path, 1, tmp_path)
    assert tuple(found) == (*stages.STAGES, stages.WHOLE, stages.PLAIN)


def test_a_separator_answers_with_seconds_and_memory(benchmark, tmp_path):
    environment, steered = benchmark("environment"), benchmark("steered")
    code = (
        "import separate_side, sys\n"
        "separate_side.SEPARATORS['fake'] = lambda: lambda song: print('noise', b'1' * 100_000_000 and len(song))\n"
        "sys.argv[1:] = ['fake']\n"
        "separate_side.main()\n"
    )
    song = tmp_path / "song.npy"
    np.save(song, np.zeros((10, 2), np.float32))
    variables = {**environment.quiet(), "PYTHONPATH": str(FOLDER)}
    program = steered.Program("fake", [sys.executable, "-c", code], variables)
    first, answer = program.start(), program.ask(str(song))
    program.stop()
    assert answer["seconds"][0] > 0
    assert answer["peak"] > first["peak"] + 90e6
