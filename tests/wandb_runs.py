"""Reads what W&B wrote of an offline run: the file that `wandb sync` uploads."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7  # of LevelDB's log format: CRC (4), length (2), type (1)
WHOLE, LAST = 1, 4


def contents(path: Path) -> Iterator[bytes]:
    """The records of a `.wandb` file; those that span blocks come in parts."""
    data, place, record = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        record += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (WHOLE, LAST):
            yield record
            record = b""


class OfflineRun:
    """What was logged below a folder `wandb`, in the newest run there."""

    def __init__(self, folder: Path) -> None:
        from wandb.proto.wandb_internal_pb2 import Record

        (self.path,) = sorted(folder.glob("offline-run-*/*.wandb"))[-1:]
        self.files = self.path.parent / "files"
        self.rows: list[dict[str, Any]] = []
        self.config: dict[str, Any] = {}
        self.axes: set[str] = set()
        self.artifacts: list[Any] = []
        self.exit_code: int | None = None
        for content in contents(self.path):
            self._take(Record.FromString(content))

    def _take(self, record: Any) -> None:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            self.id = record.run.run_id
        elif kind == "history":
            items = record.history.item
            self.rows.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
        elif kind == "config":
            for item in record.config.update:
                self.config["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
        elif kind == "metric" and record.metric.name:
            self.axes.add(record.metric.name)
        elif kind == "artifact":
            self.artifacts.append(record.artifact)
        elif kind == "exit":
            self.exit_code = record.exit.exit_code

    def values(self, name: str) -> list[Any]:
        """What was logged under a name, in order."""
        return [row[name] for row in self.rows if name in row]

    @property
    def names(self) -> set[str]:
        return {name for row in self.rows for name in row if not name.startswith("_")}
