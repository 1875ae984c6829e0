"""What the benchmarks measure with; Spleeter itself takes part only when they are run."""

import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a script from `benchmarks`, whose modules find each other by name."""
    monkeypatch.syspath_prepend(FOLDER)
    return lambda name: __import__(name)


@pytest.mark.parametrize("name", [path.stem for path in FOLDER.glob("*.py") if path.stem != "spleeter_side"])
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
    monkeypatch.setattr(sys, "argv", ["golden.py", "--environment", "/home/me/v", "--cases", "own instruments"])
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
    separate = benchmark("separate")
    code = (
        "import os, time\n"
        "shared = b'1' * 200_000_000\n"
        "if (child := os.fork()) == 0:\n"
        "    own = b'1' * 100_000_000\n"
        "    time.sleep(0.3)\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
    )
    run = separate._measure([sys.executable, "-c", code])
    assert 300e6 < run.memory < 350e6
    assert 0.3 < run.seconds < 5


def test_a_command_that_fails_is_not_timed(benchmark):
    with pytest.raises(SystemExit, match="exit code 3"):
        benchmark("separate")._measure([sys.executable, "-c", "raise SystemExit(3)"])
