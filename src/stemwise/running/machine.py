"""What computes: versions of what a result can depend on, the code's state, processor, memory and GPUs."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import stemwise

COMPUTING = ("torch", "torchaudio", "lightning", "numpy", "soundfile", "av")
BESIDE = ("stemwise", "hydra-core", "omegaconf", "safetensors", "wandb")

_PACKAGE = Path(stemwise.__file__).resolve().parent
# The same code on the same kind of machine gives the same numbers; another of these may change the last digits.
_MATTERS = {"code.sha256", "hardware.machine", "hardware.cpu", "hardware.gpus", "threads"}
_MATTERS |= {f"versions.{name}" for name in COMPUTING}


def matters(key: str) -> bool:
    """Whether a result can depend on this key of `flat`."""
    return key in _MATTERS


def flat(environment: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with keys such as `versions.torch`."""
    found: dict[str, Any] = {}
    for key, value in environment.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def environment(project: Path) -> dict[str, Any]:
    """Everything, as plain values; None where nobody knows. `project` is the folder that a command runs in."""
    import torch

    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in (*COMPUTING, *BESIDE)}},
        "code": {"sha256": _code(), **_git(_PACKAGE, "__init__.py")},
        "project": _git(project),
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return stemwise.__version__ if name == "stemwise" else None  # from its source, without being installed


@functools.cache
def _code() -> str:
    """SHA-256 over stemwise's own modules: it tells what ran even where there is no git, or an unclean tree."""
    digest = hashlib.sha256()
    for path in [*sorted(_PACKAGE.rglob("*.py")), _PACKAGE.parent / "train.py"]:
        if path.is_file():
            digest.update(f"{path.relative_to(_PACKAGE.parent).as_posix()}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _git(folder: Path, tracked: str | None = None) -> dict[str, Any]:
    """The commit that is checked out in a folder, and whether tracked files differ from it.

    Without git, outside of a repository, and where `tracked` is not under its control (an environment inside
    somebody's project), both are None.
    """
    nothing = {"commit": None, "dirty": None}
    if tracked and _ask_git(folder, "ls-files", "--error-unmatch", tracked) is None:
        return nothing
    commit = _ask_git(folder, "rev-parse", "--verify", "HEAD")
    if not commit:
        return nothing
    # Without what is untracked: a folder of runs would make every tree unclean.
    changes = _ask_git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _ask_git(folder: Path, *question: str) -> str | None:
    # Somebody may be committing meanwhile: take no locks.
    return _output("git", "-C", str(folder), *question, GIT_OPTIONAL_LOCKS="0")


def _output(*command: str, **variables: str) -> str | None:
    """What a program prints; None if it is not there, fails, or takes too long."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=20,
            env={**os.environ, **variables, "LC_ALL": "C"},
            text=True,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GB, GPUs with their driver.

    Without the machine's name: that explains no result.
    """
    # Not by torch, which would start CUDA in this process, before Lightning and the loaders have forked.
    found = _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    gpus = [line.rpartition(", ") for line in (found or "").splitlines()]
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpus": [name for name, _, _ in gpus],
        "driver": gpus[0][2] if gpus else None,
    }


def _cpu() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or None
