"""Other programs, each in a virtual environment of its own, because they need other versions of most things.

Made on first use, in `benchmarks/.peers/NAME` unless told otherwise. What needs PyTorch there takes that of the Python
that runs this, so it is the same one that ours is measured with, and 5 GB are not installed again.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FOLDER = HERE / ".peers"
ANY = ((3, 8), (3, 99))


@dataclass(frozen=True)
class Peer:
    """What to install, and what is said of it in a report.

    `program` appears in the environment when all else is there. `pythons` are the first version that will do, and the
    first that will not; with `our_torch` it is the Python that runs this, and its PyTorch.
    """

    requirement: str
    program: str
    packages: tuple[str, ...]
    size: str
    pythons: tuple[tuple[int, int], tuple[int, int]] = ANY
    our_torch: bool = False


PEERS = {
    "spleeter": Peer(
        "spleeter==2.4.2", "spleeter", ("spleeter", "tensorflow", "numpy", "norbert"), "2 GB", ((3, 8), (3, 12))
    ),
    "openunmix": Peer("openunmix==1.3.0", "umx", ("openunmix", "torch", "torchaudio"), "50 MB", our_torch=True),
    "demucs": Peer("demucs==4.0.1", "demucs", ("demucs", "torch", "torchaudio"), "60 MB", our_torch=True),
}


def add_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--environments DIR`."""
    parser.add_argument(
        "--environments",
        type=Path,
        default=FOLDER,
        metavar="DIR",
        help="where the virtual environments of the other programs are, DIR/spleeter and so on; "
        "made if they are not there (default: benchmarks/.peers)",
    )


def prepare(name: str, folder: Path = FOLDER) -> Path:
    """The folder with the programs of the peer `name` (`python`, `spleeter`); makes its environment if need be."""
    peer, home = PEERS[name], folder.absolute() / name
    programs = home / "bin"
    if not (programs / peer.program).exists():
        print(f"Installing {peer.requirement} into {home} ({peer.size}, some minutes)", file=sys.stderr)
        interpreter = sys.executable if peer.our_torch else _interpreter(peer)
        subprocess.run([interpreter, "-m", "venv", home], check=True)
        if peer.our_torch:
            _lend_torch(programs / "python")
        install = [programs / "python", "-m", "pip", "install", "--quiet", peer.requirement]
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


def versions(name: str, folder: Path = FOLDER) -> dict[str, str]:
    """The version of each of the peer's packages that matters, and of its Python."""
    packages = PEERS[name].packages
    code = (
        "import importlib.metadata, platform, sys; print(platform.python_version());"
        "[print(importlib.metadata.version(name)) for name in sys.argv[1:]]"
    )
    command = [prepare(name, folder) / "python", "-c", code, *packages]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(zip(("python", *packages), found.stdout.split(), strict=True))


def _lend_torch(python: Path) -> None:
    """Lets the environment see our packages behind its own: what is in both is its own version."""
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    theirs = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        sys.exit(f"{sys.executable} has no PyTorch to lend. Run this with the Python that has stemwise.")
    Path(theirs, "torch_of_stemwise.pth").write_text(f"{Path(found.origin).parents[1]}\n", encoding="utf-8")


def _interpreter(peer: Peer) -> str:
    for candidate in _candidates():
        code = f"import sys; sys.exit(not {peer.pythons[0]} <= sys.version_info[:2] < {peer.pythons[1]})"
        # A name on the PATH may be a shim for a version that is not there.
        if subprocess.run([candidate, "-c", code], capture_output=True).returncode == 0:
            return candidate
    (first, last) = (f"3.{peer.pythons[0][1]}", f"3.{peer.pythons[1][1] - 1}")
    sys.exit(
        f"{peer.requirement} needs Python {first} to {last}, and there is none. Install python{last}, "
        "or use pyenv or uv."
    )


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
