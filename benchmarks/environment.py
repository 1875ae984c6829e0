"""Spleeter in a virtual environment of its own, because it and stemwise need different versions of most things.

Made on first use, in `benchmarks/.spleeter` unless told otherwise: 2 GB. Needs a Python 3.8 to 3.11.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
VERSION = "2.4.2"
PACKAGES = ("spleeter", "tensorflow", "numpy", "norbert")


def add_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--environment DIR`."""
    parser.add_argument(
        "--environment",
        type=Path,
        default=HERE / ".spleeter",
        metavar="DIR",
        help="virtual environment with Spleeter; made if it is not there (default: benchmarks/.spleeter)",
    )


def prepare(folder: Path) -> Path:
    """The folder with the environment's programs (`python`, `spleeter`); makes the environment where it is missing."""
    programs = folder.absolute() / "bin"
    if not (programs / "spleeter").exists():  # written last, so it is there when everything is
        print(f"Installing Spleeter {VERSION} into {folder} (2 GB, some minutes)", file=sys.stderr)
        subprocess.run([_interpreter(), "-m", "venv", folder], check=True)
        install = [programs / "python", "-m", "pip", "install", "--quiet", f"spleeter=={VERSION}"]
        subprocess.run(install, check=True, stdout=sys.stderr)
    return programs


def run(programs: Path, jobs: Sequence[dict[str, Any]]) -> None:
    """Runs `spleeter_side.py` on these jobs, one after the other in one process."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump([{name: _plain(value) for name, value in job.items()} for job in jobs], file)
        file.flush()
        command = [programs / "python", HERE / "spleeter_side.py", file.name]
        done = subprocess.run(command, capture_output=True, text=True, env=quiet())
    if done.returncode:
        sys.exit(f"Spleeter's side failed:\n{done.stderr[-4000:]}")


def quiet() -> dict[str, str]:
    """The variables in which TensorFlow runs: silent, and on the processor."""
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}


def versions(programs: Path) -> dict[str, str]:
    """The version of each package that matters, and of Python."""
    code = (
        "import importlib.metadata, platform, sys; print(platform.python_version());"
        "[print(importlib.metadata.version(name)) for name in sys.argv[1:]]"
    )
    found = subprocess.run([programs / "python", "-c", code, *PACKAGES], check=True, capture_output=True, text=True)
    return dict(zip(("python", *PACKAGES), found.stdout.split(), strict=True))


def _interpreter() -> str:
    for candidate in _candidates():
        code = "import sys; sys.exit(not (3, 8) <= sys.version_info < (3, 12))"
        # A name on the PATH may be a shim for a version that is not there.
        if subprocess.run([candidate, "-c", code], capture_output=True).returncode == 0:
            return candidate
    sys.exit(f"Spleeter {VERSION} needs Python 3.8 to 3.11, and there is none. Install python3.11, or use pyenv or uv.")


def _candidates() -> Iterator[str]:
    yield sys.executable
    for minor in (11, 10, 9, 8):
        if found := shutil.which(f"python3.{minor}"):
            yield found
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for minor in (11, 10, 9, 8):
        yield from map(str, sorted(pyenv.glob(f"versions/3.{minor}.*/bin/python")))


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
