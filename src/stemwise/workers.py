"""The worker processes of a data loader: the signals that are not for them, their end, and one that dies, in words."""

import atexit
import multiprocessing
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader

from stemwise.errors import UserError

# torch/csrc/DataLoader.cpp and torch/utils/data/dataloader.py, of torch 2.11.
_DEATH = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is (killed by signal: [^.]+)|exited unexpectedly)"
)
_PINNING = "Pin memory thread exited unexpectedly"  # of a loader for a GPU: the thread met the broken connection
_ADVICE = {
    "Killed": "Mostly that is the kernel where memory is short, and `dmesg | grep -i oom` tells. Lower "
    "data.num_workers or data.batch_size, or give the job more memory",
    "Bus error": "/dev/shm is too small for the batches that workers hand over. Make it larger "
    "(docker run --shm-size=8g), or set data.num_workers=0",
}
_OTHERWISE = "Look at `dmesg`, lower data.num_workers, or set data.num_workers=0, where the cause shows"


class Loader(DataLoader[Any]):
    """torch's loader, which says of a worker that died by which signal, whatever it was at.

    `waited` is how many seconds were waited for batches so far, or, without workers, spent on making them.
    """

    waited = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches, end = super().__iter__(), object()
        processes = multiprocessing.active_children()
        while True:
            start = time.perf_counter()
            batch = _next(batches, end, processes)
            self.waited += time.perf_counter() - start
            if batch is end:
                return
            yield batch


def _next(batches: Iterator[Any], end: object, processes: Sequence[BaseProcess]) -> Any:
    try:
        try:
            return next(batches, end)
        except (ConnectionError, EOFError):  # a connection may break before the kernel calls the worker dead
            return next(batches, end)  # waits for that batch, and looks whose it was
    except RuntimeError as error:
        if killed := _killed(error, processes):
            raise killed from None
        raise


def _killed(error: RuntimeError, processes: Sequence[BaseProcess]) -> RuntimeError | None:
    """What torch says of a worker whose end it saw by a signal, where it only saw that there is none any more."""
    found = _DEATH.match(str(error))
    gone = found[1].split(", ") if found and not found[2] else []
    for process in processes:
        is_meant = str(process.pid) in gone or _PINNING in str(error)
        if is_meant and process.exitcode is not None and process.exitcode < 0:
            name = signal.strsignal(-process.exitcode)
            return RuntimeError(f"DataLoader worker (pid {process.pid}) is killed by signal: {name}.")
    return None


def leave_signals(_: int = 0) -> None:
    """To begin a worker with: Ctrl-C reaches every process of a command, and a cluster's signals those of a job.

    Its first process saves, and needs the workers for the step at hand. They end with it.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def end(patience: float = 1.0) -> None:
    """Ends the workers of this process, after so many seconds for good.

    Their loader would wait five seconds for each; and multiprocessing, at a program's end, for ever: it sends SIGTERM.
    """
    running = [process for process in multiprocessing.active_children() if process.daemon]
    with _deaths_unseen():
        for process in running:
            process.terminate()
        until = time.monotonic() + patience
        for process in running:
            process.join(max(until - time.monotonic(), 0))
            if process.is_alive():
                process.kill()
                process.join()


@contextmanager
def _deaths_unseen() -> Iterator[None]:
    """torch's handler takes a worker that was ended for one that crashed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


atexit.register(end)


def is_death(error: BaseException) -> bool:
    """Whether torch says with this error that a worker died."""
    return isinstance(error, RuntimeError) and _DEATH.match(str(error)) is not None


def death(error: RuntimeError, rank: int, song: Callable[[int], str | None]) -> UserError | None:
    """The same as a message, or None if no worker died; `song` names the one that a process read last."""
    found = _DEATH.match(str(error))
    if found is None:
        return None
    processes = [int(number) for number in found[1].split(",")]
    cause = f"was {found[2]}" if found[2] else "ended"
    songs = ", ".join(sorted({name for name in map(song, processes) if name}))
    advice = next((text for name, text in _ADVICE.items() if cause.endswith(name)), _OTHERWISE)
    return UserError(
        f"rank {rank}: worker {found[1]} of the data loader {cause}. "
        f"The song that it read last: {songs or 'not known'}. {advice}. Then go on from the run's last checkpoint."
    )
