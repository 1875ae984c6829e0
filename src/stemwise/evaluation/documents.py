"""A song's scores as a JSON file in museval's format, and what a split's songs have in common: medians, a table."""

import hashlib
import json
import math
import os
import re
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stemwise.errors import UserError

METRICS = ("SDR", "SIR", "SAR", "ISR")
KEY = "stemwise"  # beside museval's own keys: what the scores depend on
ABOVE = "above_band"  # the same: per stem, the share of the truth's energy that the model's band leaves out


Medians = dict[str, dict[str, float]]
"""Of one variant of a song: `medians[stem][metric]` in dB."""


@dataclass(frozen=True)
class SongScores:
    """A song's medians per variant, and the share of each true stem's energy that lies above the model's band.

    Stems without a score are not there; `above` is empty where documents are older than it.
    """

    name: str
    seconds: float
    medians: dict[str, Medians]
    above: dict[str, float]


@dataclass
class Scores:
    """dB per song: `values[variant][stem][metric]`, and the stems that could not be scored, per song."""

    values: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)
    silent: dict[str, list[str]] = field(default_factory=dict)
    songs: list[SongScores] = field(default_factory=list)

    def add(self, song: SongScores) -> None:
        """Adds a song behind the others."""
        self.songs.append(song)
        for variant, medians in song.medians.items():
            values = self.values.setdefault(variant, {})
            for name, metrics in medians.items():
                stem = values.setdefault(name, {metric: [] for metric in METRICS})
                for metric in METRICS:
                    stem[metric].append(metrics[metric])

    def median(self, variant: str, stem: str, metric: str) -> float:
        """Median over songs; nan if no song has the stem."""
        found = [v for v in self.values.get(variant, {}).get(stem, {}).get(metric, []) if not math.isnan(v)]
        return statistics.median(found) if found else math.nan

    def _is_known(self, metric: str) -> bool:
        stems = (stem for stems in self.values.values() for stem in stems.values())
        return any(not math.isnan(value) for stem in stems for value in stem[metric])

    def table(self, stems: Sequence[str]) -> str:
        """Markdown: a row per stem and variant, a column per metric that any song has."""
        metrics = [metric for metric in METRICS if self._is_known(metric)] or METRICS
        lines = [f"| stem | what | {' | '.join(metrics)} |", "|---|---|" + "---:|" * len(metrics)]
        for stem in stems:
            for variant in self.values:
                cells = " | ".join(f"{self.median(variant, stem, metric):.2f}" for metric in metrics)
                lines.append(f"| {stem} | {variant} | {cells} |")
        return "\n".join(lines)


def medians(document: Mapping[str, Any]) -> Medians:
    """A document's medians over its windows."""
    return {
        target["name"]: {metric: _median(frame["metrics"][metric] for frame in target["frames"]) for metric in METRICS}
        for target in document["targets"]
    }


def _median(frames: Iterable[float | None]) -> float:
    # museval writes windows in which a stem is silent as nan.
    known = [value for value in frames if value is not None and not math.isnan(value)]
    return statistics.median(known) if known else math.nan


def curves(document: Mapping[str, Any], metric: str) -> dict[str, list[tuple[float, float]]]:
    """Per stem, the windows that have a score: where each begins, in seconds, and its dB."""
    return {
        target["name"]: [
            (frame["time"], value)
            for frame in target["frames"]
            for value in [frame["metrics"][metric]]
            if value is not None and math.isfinite(value)
        ]
        for target in document["targets"]
    }


def read(path: Path, key: str) -> dict[str, Any] | None:
    """The document at `path`; None if there is none, or one whose scores depend on something else than `key`."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) and document.get(KEY) == key else None


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Writes a document: it appears complete or not at all. Raises `UserError` if it cannot be."""
    make_folder(path.parent)
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8") as file:
            try:
                json.dump(document, file, indent=1)
                file.flush()
                os.replace(file.name, path)
            finally:
                Path(file.name).unlink(missing_ok=True)
    except OSError as error:
        raise _not_written(path.parent, error) from None


def make_folder(folder: Path) -> None:
    """Makes the folder of scores. Raises `UserError` if it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_written(folder, error) from None


def _not_written(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"{folder}: the scores cannot be written there ({error.strerror}). Set output to another folder, or make room."
    )


def file_name(song: str) -> str:
    """A file name of its own for each song: without slashes or a dot in front, and at most 255 bytes."""
    name = re.sub(r"[/\\\0]", "_", song).lstrip(".")
    if name and name == song and len(os.fsencode(name)) <= 250 and not re.search(r"-[0-9a-f]{12}$", name):
        return f"{name}.json"
    # What was changed or cut may now be called as another song: a digest of the full name tells them apart.
    digest = hashlib.blake2b(os.fsencode(song), digest_size=6).hexdigest()
    return f"{os.fsencode(name)[:237].decode('utf-8', 'ignore')}-{digest}.json"
