"""The fault suite sees what it looks for: a bit that differs, a value that is gone, a file and a process too many."""

import os
import random
import sys
from pathlib import Path

import psutil
import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
HEADER = "epoch,step,train/loss\n"


@pytest.fixture
def ground(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return __import__("faults_ground")


@pytest.fixture
def run(tmp_path):
    """Writes a run of two starts, the second of which did one step again."""

    def write(name: str, weight: float = 1.0, log: tuple[str, ...] = ("0,0,0.5\n0,1,0.25\n", "0,1,0.25\n0,2,0.1\n")):
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        for file in ("last.ckpt", "best.ckpt"):
            torch.save(
                {"global_step": 3, "state_dict": {"weight": torch.tensor(weight)}}, folder / "checkpoints" / file
            )
        (folder / "model.safetensors").write_bytes(b"model")
        for number, rows in enumerate(log):
            (folder / f"csv/version_{number}").mkdir(parents=True)
            (folder / f"csv/version_{number}/metrics.csv").write_text(HEADER + rows)
        return folder

    return write


def test_runs_that_are_equal_have_no_differences(ground, run):
    one, other = run("one"), run("other", log=("0,0,0.5\n0,1,0.25\n0,2,0.1\n",))
    assert ground.differences(one, other) == ground.left_behind(one, other) == []
    assert (ground.done_again(one), ground.done_again(other)) == (1, 0)


def test_a_bit_that_differs_is_seen(ground, run):
    one, other = run("one"), run("other", weight=1.0 + 2**-23)
    assert ground.differences(one, other) == ["state_dict of last.ckpt", "state_dict of best.ckpt"]


@pytest.mark.parametrize("log", [("0,0,0.5\n", "0,2,0.1\n"), ("0,0,0.5\n0,1,0.25000001\n0,2,0.1\n",)])
def test_a_value_that_is_gone_or_another_is_seen(ground, run, log):
    one, other = run("one"), run("other", log=log)
    assert ground.differences(one, other)[0].endswith("logged values")


def test_files_too_many_are_seen(ground, run):
    one, other = run("one"), run("other")
    (other / "checkpoints/.new.ckpt.part").touch()
    assert ground.left_behind(one, other) == ["left behind: checkpoints/.new.ckpt.part"]


def test_a_cache_with_half_an_entry_is_not_whole(ground, tmp_path):
    (tmp_path / "aa").mkdir()
    (tmp_path / "aa/aa.part").touch()
    with pytest.raises(ground.Unexpected, match=r"\.part file"):
        ground.contents(tmp_path)


def test_a_process_that_outlives_its_command_is_seen_and_ended(ground, monkeypatch, tmp_path):
    monkeypatch.setattr(ground, "ORPHANED", 0.2)
    code = "import os, time; os.fork() or (os.setsid(), time.sleep(100))"
    command = ground.Command([sys.executable, "-c", code], tmp_path, {})
    command.end(0)
    (left,) = command.processes()
    assert left.pid != command.process.pid
    assert command.orphans() == ["1 processes left"]
    psutil.wait_procs([left], timeout=5)
    assert not command.processes()


def test_a_command_that_hangs_or_ends_otherwise_is_not_waited_for(ground, monkeypatch, tmp_path):
    monkeypatch.setattr(ground, "PATIENCE", 0.5)
    for code, said in (("import time; time.sleep(100)", "hangs"), ("raise SystemExit(3)", "ended with 3 and not 0")):
        command = ground.Command([sys.executable, "-c", code], tmp_path, {})
        with pytest.raises(ground.Unexpected, match=said):
            command.end(0)
        assert command.process.poll() is not None
        with pytest.raises(ground.Unexpected, match="before the fault"):
            command.until(lambda: False)


def test_a_fault_that_was_not_held_is_told_in_the_table(ground):
    faults = __import__("faults")
    trials = iter([ground.Trial(again=2, seconds=1.0), ground.Trial(wrong=["a weight"], again=7, seconds=4.0)])
    fault = faults.Fault("a kill", "`kill -9`", lambda *_: next(trials), 2)
    row = faults._row(ground.Ground(Path(os.devnull), random.Random(0)), fault, quick=False)
    assert not row["held"]
    assert faults._cells(row) == ["a kill", "`kill -9`", "2", "a weight", "2 to 7 steps", "4.0 s", "**no, 1 of 2**"]
