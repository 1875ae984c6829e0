"""Which folder a run has: a new one, that of the same run before it, or the one that all its processes agree on.

One run at a time trains in it.
"""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import yaml

from stemwise.errors import UserError

# These say how a run starts, and not which run it is.
_STARTS = ("resume", "ckpt_path")

LOCK, OVERRIDES = ".lock", ".overrides.yaml"
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
def claimed(run: Path, overrides: Sequence[str]) -> Iterator[None]:
    """Keeps others from training in the folder `run`, and notes there which run it is.

    The first rank asks. The kernel gives the lock back when the process ends, in whatever way, and children of it do
    not inherit it. Where files cannot be locked there is none. Raises `UserError` if another process trains in the
    folder, or if it cannot be written.
    """
    from lightning.pytorch.utilities import rank_zero_only

    # Lightning's own start of several nodes knows the rank later.
    node = int(os.environ.get("NODE_RANK") or os.environ.get("GROUP_RANK") or 0)
    if rank_zero_only.rank != 0 or node != 0:  # type: ignore[attr-defined]
        yield
        return
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise _not_written(run, error) from None
    with file:
        _lock(file, run)
        _note(run, overrides)
        yield


def _lock(file: TextIO, run: Path) -> None:
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
            raise _not_written(run, error) from None
    with suppress(OSError):  # it is for the message only
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()


def _note(run: Path, overrides: Sequence[str]) -> None:
    """The file appears complete: other ranks may read it at this moment."""
    new = run / f"{OVERRIDES}.new"
    try:
        new.write_text(yaml.safe_dump(list(overrides)), encoding="utf-8")
        new.replace(run / OVERRIDES)
    except OSError as error:
        raise _not_written(run, error) from None


def _not_written(run: Path, error: OSError) -> UserError:
    return UserError(f"{run}: cannot be written ({error.strerror}). Make room, or set hydra.run.dir to another folder.")


def _same(parent: Path, overrides: Sequence[str]) -> Path | None:
    """The run below `parent` with these overrides whose checkpoint is the newest."""
    wanted = _what(overrides)
    found = []
    # Not Hydra's own file, which a run that is refused has written anew by then.
    for file in parent.glob(f"*/{OVERRIDES}"):
        run = file.parent
        times = [checkpoint.stat().st_mtime for checkpoint in run.glob("checkpoints/*.ckpt")]
        if times and _what(yaml.safe_load(file.read_text(encoding="utf-8")) or []) == wanted:
            found.append((max(times), run))
    return max(found)[1] if found else None


def _what(overrides: Sequence[str]) -> list[str]:
    return sorted(override for override in overrides if override.split("=")[0].lstrip("+") not in _STARTS)
