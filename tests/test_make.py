"""The Makefile's own promises, as far as they can be checked without installing everything again."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pins() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.lower().split("==") for line in lines)


def test_every_requirement_has_an_exact_pin_within_its_range():
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    for line in [*PROJECT["dependencies"], *extras]:
        requirement = Requirement(line)
        if requirement.name != "stemwise":
            assert Version(pins()[requirement.name.lower()]) in requirement.specifier, line
    assert (pins()["torch"], pins()["torchaudio"]) == ("2.11.0", "2.11.0")


@pytest.mark.parametrize("bad", ["2.6.2", "2.6.3"])
def test_malicious_uploads_are_out_of_range(bad):
    lightning = next(Requirement(line) for line in PROJECT["dependencies"] if line.startswith("lightning"))
    assert bad not in lightning.specifier


def test_ci_runs_make_test_and_nothing_cleverer():
    lines = (REPOSITORY / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert lines[-1] == "make test"
    workflow = (REPOSITORY / ".github/workflows/test.yml").read_text(encoding="utf-8")
    assert "run: make test" in workflow
    tested = re.search(r"python: \[(.*?)\]", workflow)
    assert tested
    versions = [line.split(" :: ")[-1] for line in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", line)]
    assert tested[1].replace('"', "").split(", ") == [versions[0], versions[-1]]


def test_an_old_python_is_refused_in_one_line(tmp_path):
    old = tmp_path / "python3"
    old.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'import sys; sys.exit(1)'\n")
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    done = subprocess.run(["make", f"PYTHON={old}", "setup"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "stemwise needs Python 3.11 or newer" in done.stdout
    assert not (tmp_path / ".venv").exists()
