"""What a benchmark found, as `results/NAME.md` to read and `results/NAME.json` to compute with.

Both say on which machine and with which versions it was found, and with which command.
"""

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("stemwise", "torch", "numpy")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; numbers stand to the right, and floats have one decimal unless they come as text."""
    rows = [tuple(row) for row in rows]
    right = [bool(rows) and all(_is_number(row[at]) for row in rows) for at in range(len(columns))]
    lines = [columns, ["--:" if number else "---" for number in right], *([_cell(v) for v in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(name: str, text: str, data: Mapping[str, Any], versions: Mapping[str, str]) -> None:
    """Writes both files, and prints the text. `versions` are those of the other program."""
    facts = {
        "date": date.today().isoformat(),
        "command": _command(name),
        "machine": machine(),
        "stemwise": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "spleeter": dict(versions),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({**facts, **data}, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(f"{text}\n\n{_origin(facts)}\n", encoding="utf-8")
    print(text)


def machine() -> dict[str, Any]:
    """What speed depends on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    # The processors that this process may use, which in a container are fewer than the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": _processor(), "cores": cores, "memory_gib": round(memory, 1), "system": platform.system()}


def _command(name: str) -> str:
    """What was typed, but for the place of Spleeter's environment, which changes nothing."""
    given = list(sys.argv[1:])
    if "--environment" in given:
        at = given.index("--environment")
        del given[at : at + 2]
    return shlex.join(["python", f"benchmarks/{name}.py", *given])


def _origin(facts: Mapping[str, Any]) -> str:
    where = facts["machine"]
    ours, theirs = (", ".join(f"{k} {v}" for k, v in facts[side].items()) for side in ("stemwise", "spleeter"))
    return (
        f"`{facts['command']}`, {facts['date']}, on {where['processor']} ({where['cores']} cores, "
        f"{where['memory_gib']} GiB, {where['system']}). Ours: {ours}. Theirs: {theirs}."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _cell(value: object) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value).replace("|", "\\|")
