"""The Makefile's own promises, as far as they can be checked without installing everything again."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
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


def test_a_notebook_that_takes_too_long_fails_and_is_named(tmp_path):
    for name, code in (("a_short", "1 + 1"), ("b_endless", "while True: pass"), ("c_never", "1 + 1")):
        nbformat.write(new_notebook(cells=[new_code_cell(code)]), tmp_path / f"{name}.ipynb")

    def make(notebooks: str, *given: str) -> subprocess.CompletedProcess:
        makefile = ["make", "-f", str(REPOSITORY / "Makefile"), "-o", "setup", f"BIN={Path(sys.executable).parent}"]
        command = [*makefile, "notebooks", f"NOTEBOOKS={notebooks}", *given]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert re.search(r"^a_short.ipynb: \d+ s$", make("a_short.ipynb").stdout, re.M)
    late = make("b_endless.ipynb c_never.ipynb", "LIMIT=3")
    assert late.returncode != 0
    assert "b_endless.ipynb: not done after 3 s" in late.stdout
    assert [path.name for path in (tmp_path / "runs/notebooks").iterdir()] == ["a_short.ipynb"]


def missing(package: str, folder: Path, user: int, sudo: bool) -> subprocess.CompletedProcess:
    """`make PACKAGE` where none of its programs is there; whatever apt-get is asked for is written down."""
    log = folder / "log"
    stubs = {"id": f"echo {user}", "apt-get": f'echo "apt-get $*" >> {log}'}
    stubs |= {"sudo": f'echo sudo >> {log}; shift; exec "$@"'} if sudo else {}
    for name, body in stubs.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    make = shutil.which("make")
    assert make
    command = [make, "-f", str(REPOSITORY / "Makefile"), package]
    return subprocess.run(command, cwd=folder, env={"PATH": str(folder)}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("package", ["ffmpeg", "chromium"])
@pytest.mark.parametrize(("user", "sudo"), [(0, False), (1000, True)])
def test_packages_are_installed_where_that_is_permitted(tmp_path, package, user, sudo):
    done = missing(package, tmp_path, user, sudo)
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "log").read_text().splitlines()
    assert [call for call in calls if call != "sudo"] == ["apt-get update -qq", f"apt-get install -y -qq {package}"]
    assert ("sudo" in calls) is sudo


def test_ffmpeg_is_asked_for_in_one_line_where_it_is_not(tmp_path):
    done = missing("ffmpeg", tmp_path, 1000, sudo=False)
    assert done.returncode != 0
    assert "sudo apt-get install ffmpeg" in done.stdout
    assert not (tmp_path / "log").exists()


def test_without_a_browser_its_tests_are_said_to_be_skipped(tmp_path):
    done = missing("chromium", tmp_path, 1000, sudo=False)
    assert done.returncode == 0
    assert "browser tests will be skipped: sudo apt-get install chromium" in done.stdout
