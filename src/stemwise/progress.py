"""One progress bar for everything that takes longer than two seconds."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

SILENT_FOR = 2.0  # seconds
SECONDS_BETWEEN_LINES = 10.0


def track(items: Iterable[T], *, what: str, total: int) -> Iterator[T]:
    """Yields `items` and shows on standard error how many of `total` are done.

    A terminal gets a live bar; anything else (a log file, CI) gets a plain line every ten seconds, and
    nothing at all if the work takes less than two seconds.
    """
    # Not as Rich would tell: FORCE_COLOR, which notebooks set for the commands they start, makes no terminal of a pipe.
    console = Console(stderr=True, force_terminal=sys.stderr.isatty())
    shown = _live(items, what, total, console) if console.is_terminal else _lines(items, what, total)
    yield from shown


def _live(items: Iterable[T], what: str, total: int, console: Console) -> Iterator[T]:
    columns = (
        TextColumn("{task.description}", markup=False),  # a song may be called "Song [live]"
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        for item in items:
            yield item
            bar.advance(task)


def _lines(items: Iterable[T], what: str, total: int) -> Iterator[T]:
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    start = time.monotonic()
    next_line = start + SILENT_FOR
    done, said = 0, False
    for item in items:
        if time.monotonic() >= next_line:
            left = (time.monotonic() - start) / done * (total - done) if done else 0
            console.print(f"{what}: {done}/{total}" + (f", {left:.0f} s left" if done else ""))
            next_line, said = time.monotonic() + SECONDS_BETWEEN_LINES, True
        yield item
        done += 1
    if said:
        console.print(f"{what}: {done}/{total} in {time.monotonic() - start:.0f} s")
