"""Which folder a run has: a new one, that of the same run before it, or the one that all its processes agree on.

One run at a time trains in it.
"""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from stemwise.errors import UserError

# These say how a run starts, and not which run it is.
_STARTS = ("resume", "ckpt_path")

LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # of some file systems of clusters


def choose(resume: str | None, overrides: Sequence[str], parent: str, name: str) -> str:
    """The run folder below `parent`: `name`, unless `resume` is auto and a run with the same overrides has checkpoints.

    Processes that SLURM or torchrun start cannot ask each other for the time yet; they share the name of their job,
    and of its step after the first. Raises `UserError` if it has none.
    """
    if resume == "auto" and (found := _same(Path(parent), overrides)):
        return str(found)
    ranks = max(int(os.environ.get(name) or 1) for name in ("SLURM_NTASKS", "WORLD_SIZE"))
    if ranks > 1 and (job := os.environ.get("SLURM_JOB_ID")):
        step = os.environ.get("SLURM_STEP_ID", "0")  # of several `srun` in one job; it is the same when queued again
        return f"{parent}/slurm-{job}" if step == "0" else f"{parent}/slurm-{job}-{step}"
    if ranks > 1:
        job = os.environ.get("TORCHELASTIC_RUN_ID", "none")
        if job == "none":
            raise UserError(
                f"hydra.run.dir: each of the {ranks} processes would make a run folder of its own. "
                "Give one, hydra.run.dir=runs/NAME, or let torchrun name the job: --rdzv-id=NAME."
            )
        return f"{parent}/{job}"
    return f"{parent}/{name}"


@contextmanager
def claimed(run: Path) -> Iterator[None]:
    """Keeps others from training in the folder `run`. Raises `UserError` if another process does.

    The first rank asks. The kernel gives the lock back when the process ends, in whatever way, and children of it do
    not inherit it. Where files cannot be locked there is none.
    """
    from lightning.pytorch.utilities import rank_zero_only

    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    with (run / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise UserError(
                    f"{run}: {file.read() or 'another process'} trains in it. Wait for its end, or give this run a "
                    "folder of its own: hydra.run.dir=runs/NAME."
                ) from None
            if error.errno not in _NO_LOCKS:
                raise
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _same(parent: Path, overrides: Sequence[str]) -> Path | None:
    """The run below `parent` with these overrides whose checkpoint is the newest."""
    wanted = _what(overrides)
    found = []
    for file in parent.glob("*/.hydra/overrides.yaml"):
        run = file.parents[1]
        times = [checkpoint.stat().st_mtime for checkpoint in run.glob("checkpoints/*.ckpt")]
        if times and _what(_read(file)) == wanted:
            found.append((max(times), run))
    return max(found)[1] if found else None


def _read(file: Path) -> list[str]:
    """The overrides in a run's folder. Hydra writes them anew in each rank; the file is empty for a moment then."""
    deadline = time.monotonic() + 5
    while not (text := file.read_text(encoding="utf-8")) and time.monotonic() < deadline:
        time.sleep(0.01)
    return list(yaml.safe_load(text) or [])


def _what(overrides: Sequence[str]) -> list[str]:
    return sorted(override for override in overrides if override.split("=")[0].lstrip("+") not in _STARTS)
