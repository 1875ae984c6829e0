"""Times things in turn, so that whatever else the machine does meets all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of each run, in the order in which they ran."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def lowest(self) -> float:
        return min(self.seconds)

    @property
    def highest(self) -> float:
        return max(self.seconds)

    def text(self, unit: float = 1.0) -> str:
        """`median (lowest to highest)` in units of so many seconds; three digits that count."""
        return spread([seconds / unit for seconds in self.seconds])

    def rates(self, amount: float) -> tuple[float, ...]:
        """What is done in a second of each run, if a run does this much."""
        return tuple(amount / seconds for seconds in self.seconds)


def in_turn(candidates: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1) -> dict[str, Timing]:
    """Calls a, b, a, b, … and times each call; the first `warmup` rounds do not count.

    Waits for a GPU that is in use, before and after, so that what a call started is what is timed.
    """
    for _ in range(warmup):
        for call in candidates.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, call in candidates.items():
            seconds[name].append(timed(call))
    return {name: Timing(tuple(some)) for name, some in seconds.items()}


def timed(call: Callable[[], object]) -> float:
    """Seconds that one call takes, on the GPU too."""
    _wait()
    start = time.perf_counter()
    call()
    _wait()
    return time.perf_counter() - start


def spread(values: list[float] | tuple[float, ...]) -> str:
    """`median (lowest to highest)`; only the median if there is no more than one."""
    if len(values) == 1:
        return number(values[0])
    return f"{number(statistics.median(values))} ({number(min(values))} to {number(max(values))})"


def number(value: float) -> str:
    """Three digits that count, without an exponent: 0.0123, 1.23, 12.3, 1234."""
    digits = 3 if value == 0 else max(0, 2 - _exponent(value))
    return f"{value:.{digits}f}"


def _exponent(value: float) -> int:
    return int(f"{value:.2e}".partition("e")[2])


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
