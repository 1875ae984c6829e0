"""Runs a command and watches how long it takes and how much memory it has at its peak, all its processes together."""

import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

INTERVAL = 0.05


@dataclass(frozen=True)
class Run:
    """One run: seconds from start to end, and bytes at its peak."""

    seconds: float
    memory: int


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Run:
    """Runs a command to its end; stops the benchmark if it fails.

    Memory is looked at every 50 ms; a page that several processes share counts once.
    """
    with tempfile.TemporaryFile("w+") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment or os.environ)
        watch = _Watch(process.pid)
        watch.start()
        code = process.wait()
        seconds = time.perf_counter() - start
        watch.ended.set()
        watch.join()
        if code:
            output.seek(0)
            sys.exit(f"{shlex.join(command)}: exit code {code}\n{output.read()[-3000:]}")
    return Run(seconds, watch.peak)


class _Watch(threading.Thread):
    """Looks at a process from time to time; beside the wait for its end, which would otherwise be noticed late."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self.ended = pid, 0, threading.Event()

    def run(self) -> None:
        while not self.ended.is_set():
            self.peak = max(self.peak, _memory(self.pid))
            self.ended.wait(INTERVAL)


def _memory(pid: int) -> int:
    """All of the process, and of its descendants what is theirs alone: pages since a fork are the parent's already."""
    try:
        process = psutil.Process(pid)
        own = process.memory_info().rss
        children = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return 0
    for child in children:
        try:
            own += child.memory_full_info().uss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return own
