"""What is recorded of versions, code and hardware, also where there is nothing to be found."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

import stemwise
from stemwise.running import machine


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "file").write_text("one")
    git(folder, "init", "-q")
    git(folder, "add", "file")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "First")
    return folder


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", folder, *arguments], check=True, capture_output=True, text=True).stdout.strip()


def test_it_is_plain_and_says_what_computes(tmp_path):
    found = machine.environment(tmp_path)
    assert json.loads(json.dumps(found)) == found
    flat = machine.flat(found)
    assert flat["versions.stemwise"] == stemwise.__version__
    assert torch.__version__.startswith(flat["versions.torch"])
    assert flat["threads"] == torch.get_num_threads()
    assert flat["hardware.cores"] >= 1
    assert flat["hardware.cpu"]
    assert len(flat["code.sha256"]) == 64
    assert machine.matters("versions.torch")
    assert machine.matters("code.sha256")
    assert not machine.matters("versions.wandb")
    # Otherwise a typo would make it matter to nobody.
    assert not machine._MATTERS - set(flat)


def test_it_names_neither_the_host_nor_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "hidden")
    text = json.dumps(machine.environment(tmp_path))
    assert "hidden" not in text
    assert str(Path.home()) not in text
    assert str(tmp_path) not in text


def test_a_commit_and_whether_files_differ_from_it(repository):
    commit = git(repository, "rev-parse", "HEAD")
    (repository / "untracked").write_text("a run")
    assert machine.environment(repository)["project"] == {"commit": commit, "dirty": False}
    (repository / "file").write_text("two")
    assert machine.environment(repository)["project"] == {"commit": commit, "dirty": True}


def test_code_that_lies_in_somebody_elses_repository_is_not_of_its_commit(repository):
    (repository / ".venv").mkdir()
    (repository / ".venv/module.py").touch()
    assert machine._git(repository / ".venv", "module.py") == {"commit": None, "dirty": None}
    assert machine._git(repository, "file")["commit"]


def test_without_git_nothing_is_known(repository, tmp_path, monkeypatch):
    nothing = {"commit": None, "dirty": None}
    assert machine._git(tmp_path) == nothing
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine._git(repository) == nothing


def test_gpus_are_those_that_nvidia_smi_shows(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 570.1'\necho 'NVIDIA H100 80GB HBM3, 570.1'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = machine.hardware()
    assert found["gpus"] == ["NVIDIA H100 80GB HBM3"] * 2
    assert found["driver"] == "570.1"
    program.write_text("#!/bin/sh\necho 'no driver'\nexit 9\n")
    assert machine.hardware()["gpus"] == []
    program.unlink()
    assert (machine.hardware()["gpus"], machine.hardware()["driver"]) == ([], None)


def test_any_change_of_the_code_changes_its_digest(tmp_path, monkeypatch):
    package = tmp_path / "stemwise"
    (package / "inner").mkdir(parents=True)
    (package / "inner/a.py").write_text("a = 1\n")
    monkeypatch.setattr(machine, "_PACKAGE", package)
    seen = set()
    for change in (lambda: None, lambda: (package / "inner/a.py").write_text("a = 2\n"), (package / "b.py").touch):
        change()
        machine._code.cache_clear()
        seen.add(machine._code())
    (package / "b.py").rename(package / "c.py")
    machine._code.cache_clear()
    seen.add(machine._code())
    machine._code.cache_clear()
    assert len(seen) == 4
