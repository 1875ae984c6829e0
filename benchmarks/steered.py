"""Programs that train one step when they are told to, so that several can take turns and each has its own memory.

The one who measures starts them with `Program`, and asks for steps over their standard input; they answer on their
standard output with a line `STEERED {"seconds": […], "peak": bytes}`; what else they print there is passed over. Their
side: `trainer` for `python -m train`, `serve` for a loop of one's own, and for Spleeter what is in `spleeter_side.py`.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

MARK = "STEERED "
PROFILE = "profile"
OPERATORS = 12  # of a profile, those with most time of their own


class Program:
    """A program under way. Its first step, with everything that comes before and is compiled, is done on `start`.

    While it is not asked it is halted, its children too: loaders that work ahead would slow down whoever has a turn.
    """

    def __init__(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str]) -> None:
        self.name, self.command, self.environment = name, list(command), dict(environment)
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `stop`
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> dict[str, Any]:
        """Starts it, and gives the first answer; `waited` are the seconds until then."""
        began = time.perf_counter()
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(self.command, env=self.environment, text=True, start_new_session=True, **pipes)
        return {**self._answer(), "waited": time.perf_counter() - began}

    def ask(self, what: str) -> dict[str, Any]:
        """`what` is a number of steps, or `profile` for one step that says where its time goes."""
        assert self.process
        assert self.process.stdin
        self._signal(signal.SIGCONT)
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        """Ends it; what it does on its way out does not matter."""
        if self.process:
            self._signal(signal.SIGKILL)
            self.process.wait()
        self.errors.close()

    def _signal(self, number: int) -> None:
        assert self.process
        with suppress(ProcessLookupError):  # it may be gone
            os.killpg(self.process.pid, number)

    def _answer(self) -> dict[str, Any]:
        assert self.process
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(MARK):
                self._signal(signal.SIGSTOP)
                return json.loads(line.removeprefix(MARK))
        self.errors.seek(0)
        sys.exit(f"{self.name} failed:\n{self.errors.read()[-4000:]}")


class Steps:
    """The other side: counts steps, and after those that were asked for answers and waits for the next question."""

    def __init__(self) -> None:
        self.left, self.seconds, self.profiler = 1, [], None
        self.began = time.perf_counter()

    def done(self) -> bool:
        """To be called after each step; false when nobody asks any more."""
        self.seconds.append(time.perf_counter() - self.began)
        self.left -= 1
        if self.left == 0:
            self._answer()
            question = sys.stdin.readline().strip()
            if not question:
                return False
            self.left, self.seconds = 1 if question == PROFILE else int(question), []
            self.profiler = self._started() if question == PROFILE else None
        self.began = time.perf_counter()
        return True

    def _answer(self) -> None:
        # Linux counts in KiB.
        answer = {"seconds": self.seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        if self.profiler:
            self.profiler.stop()
            answer["operators"] = _operators(self.profiler)
        print(f"\n{MARK}{json.dumps(answer)}", flush=True)

    def _started(self) -> profile:
        profiler = profile(activities=[ProfilerActivity.CPU])
        profiler.start()
        return profiler


def serve(step: Callable[[], object]) -> None:
    """Takes steps as they are asked for, until nobody asks."""
    steps = Steps()
    step()
    while steps.done():
        step()


def trainer(**arguments: Any) -> Any:
    """Lightning's Trainer for `python -m train trainer._target_=steered.trainer`."""
    import lightning  # the plain program does without

    class Steering(lightning.Callback):
        def on_train_start(self, *_: Any) -> None:
            self.steps = Steps()

        def on_train_batch_end(self, *_: Any) -> None:
            if not self.steps.done():
                raise KeyboardInterrupt  # so that Lightning ends its loaders

    arguments["callbacks"] = [*arguments.get("callbacks", []), Steering()]
    return lightning.Trainer(**arguments)


def _operators(profiler: profile) -> list[dict[str, Any]]:
    """By the time that each operator takes itself; the rest of them together comes last."""
    events = sorted(profiler.key_averages(), key=lambda event: event.self_cpu_time_total, reverse=True)
    named = [(event.key, event.self_cpu_time_total / 1e6, event.count) for event in events]
    rest = ("all others", sum(seconds for _, seconds, _ in named[OPERATORS:]), sum(n for *_, n in named[OPERATORS:]))
    return [dict(zip(("name", "seconds", "calls"), row, strict=True)) for row in (*named[:OPERATORS], rest)]
