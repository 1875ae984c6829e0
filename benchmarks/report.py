"""What a benchmark found, as `results/DEVICE/NAME.md` to read and `results/DEVICE/NAME.json` to compute with.

Both say on which machine, with which versions and with which command it was found. DEVICE is the processor's or
the GPU's name and how much of it was used: `xeon-2-cores`, `nvidia-h100-80gb-hbm3`.

    rows = [report.Row(what="train step, bf16", peer="Spleeter fp32: 4.61 s", ours="2.10 s", ratio=2.2,
                       floor="1.5 s", target="at least 2 x faster than Spleeter", met=ratio >= 2)]
    report.write("train_speed", text, data, {"spleeter": environment.versions("spleeter", folder)}, summary=rows)

The rows of `summary` end in NAME.json under the key `summary`; `summary.py` puts those of all parts into one table.
`met` is computed from what was measured, never typed.
"""

import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("stemwise", "torch", "numpy")
# Options that say where things lie on this machine, which changes no result.
PLACES = ("--environments", "--scratch", "--keep", "--model", "--data", "--stereo-model", "--stereo-data")


@dataclass(frozen=True)
class Row:
    """One line of the summary; cells are texts with their units.

    `ratio`: how many times better ours is than the peer's (above 1: ours is ahead), None where there is no peer.
    `floor`: what the machine demands at least. `target` is that of the project; `met` is None where there is none,
    or where it was not measured. `note`: the cause of a miss, or where to read on.
    """

    what: str
    peer: str
    ours: str
    ratio: float | None = None
    floor: str = ""
    target: str = ""
    met: bool | None = None
    note: str = ""


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; numbers stand to the right, and floats have one decimal unless they come as text."""
    rows = [tuple(row) for row in rows]
    right = [bool(rows) and all(_is_number(row[at]) for row in rows) for at in range(len(columns))]
    lines = [columns, ["--:" if number else "---" for number in right], *([_cell(v) for v in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(
    name: str,
    text: str,
    data: Mapping[str, Any],
    versions: Mapping[str, Mapping[str, str]],
    *,
    summary: Sequence[Row] = (),
    device: str | None = None,
) -> None:
    """Writes both files, and prints the text.

    `versions` are those of the other programs, by program and package; ours are added. `device` is a `slug`, the
    processor's if it is None.
    """
    packages = {package: _version(package) for package in PACKAGES}
    facts = {
        "date": date.today().isoformat(),
        "command": _command(name),
        "machine": machine(),
        "versions": {"stemwise": {"python": platform.python_version(), **packages}, **versions},
        "summary": [asdict(row) for row in summary],
    }
    folder = RESULTS / (device or slug())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({**facts, **data}, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(f"{text}\n\n{_origin(facts)}\n", encoding="utf-8")
    print(text)


def slug(device: str = "cpu") -> str:
    """The name of a device's folder: of the processor with its count of cores, or of the GPU."""
    if device == "cpu":
        found = machine()
        return _plain(f"{found['processor']} {found['cores']} cores")
    import torch  # here, because it takes two seconds that a report on the processor does not need

    return _plain(torch.cuda.get_device_name(device))


def look(device: str = "cpu") -> str:
    """The folder for results of a quick look, which are not kept: `results/quick/DEVICE`."""
    return f"quick/{slug(device)}"


def machine() -> dict[str, Any]:
    """What speed depends on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    # The processors that this process may use, which in a container are fewer than the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": _processor(), "cores": cores, "memory_gib": round(memory, 1), "system": platform.system()}


def _plain(name: str) -> str:
    """`Intel(R) Xeon(R) Processor 2 cores` -> `xeon-2-cores`."""
    clock = r"@ *[\d.]+ *[GM]Hz"
    words = r"\((r|tm)\)|\b(intel|amd|cpu|processor|\d+-core)\b"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(f"{clock}|{words}", " ", name, flags=re.IGNORECASE).lower()).strip("-")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a machine that has the source tree and torch alone
        return "not installed"


def _command(name: str) -> str:
    """What was typed, but for the places on this machine."""
    given = list(sys.argv[1:])
    for option in PLACES:
        if option in given:
            at = given.index(option)
            del given[at : at + 2]
    return shlex.join(["python", f"benchmarks/{name}.py", *given])


def _origin(facts: Mapping[str, Any]) -> str:
    where = facts["machine"]
    programs = ". ".join(
        f"{program}: {', '.join(f'{package} {number}' for package, number in packages.items())}"
        for program, packages in facts["versions"].items()
    )
    return (
        f"`{facts['command']}`, {facts['date']}, on {where['processor']} ({where['cores']} cores, "
        f"{where['memory_gib']} GiB, {where['system']}). {programs}."
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
