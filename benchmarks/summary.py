"""One table of what all parts found on a device: `python benchmarks/summary.py` writes `results/DEVICE/README.md`.

Reads the key `summary` of every `results/DEVICE/*.json` (see `report.py`). Measures nothing.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import report
import timing

COLUMNS = ("what", "peer", "ours", "ratio", "floor", "target", "met?", "from")
MET = {True: "yes", False: "**no**", None: ""}
INTRODUCTION = """# Speed: {device}

What each part of `make bench` found here, on {machine}. *Ratio*: how many times better ours is than the peer's.
*Floor*: what the machine demands at least. Of the targets {met} of {aimed} are met."""


def main() -> int:
    """Writes the summary of a device, or of every device that has results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("devices", nargs="*", help="folders in results (default: all)")
    devices = parser.parse_args().devices or sorted(path.name for path in report.RESULTS.iterdir() if path.is_dir())
    for device in devices:
        if found := read(report.RESULTS / device):
            text = page(device, found)
            (report.RESULTS / device / "README.md").write_text(f"{text}\n", encoding="utf-8")
            print(text)
    return 0


def read(folder: Path) -> dict[str, Mapping[str, Any]]:
    """What each part with a summary left in a device's folder, by its name."""
    parts = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    return {name: part for name, part in parts.items() if part.get("summary")}


def page(device: str, parts: Mapping[str, Mapping[str, Any]]) -> str:
    """The summary in Markdown."""
    rows = [(name, row) for name, part in parts.items() for row in part["summary"]]
    aimed = [row["met"] for _, row in rows if row["met"] is not None]
    where = next(iter(parts.values()))["machine"]
    machine = f"{where['processor']} ({where['cores']} cores, {where['memory_gib']} GiB)"
    head = INTRODUCTION.format(device=device, machine=machine, met=sum(aimed), aimed=len(aimed))
    notes = [f"- {row['what']}: {row['note']}" for _, row in rows if row["note"]]
    return "\n\n".join([head, report.table(COLUMNS, [_cells(*row) for row in rows]), *_listed(notes)])


def _cells(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    ratio = "" if row["ratio"] is None else f"{timing.number(row['ratio'])} ×"
    texts = (row["what"], row["peer"], row["ours"], ratio, row["floor"], row["target"])
    return (*texts, MET[row["met"]], f"[{name}]({name}.md)")


def _listed(notes: Sequence[str]) -> list[str]:
    return ["\n".join(notes)] if notes else []


if __name__ == "__main__":
    sys.exit(main())
