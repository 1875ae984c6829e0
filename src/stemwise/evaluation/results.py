"""What an evaluation found, as it stands in its folder: one file that reports and comparisons read.

`evaluation.json` says what was scored, with which model, on which songs and files, and the medians of every song; the
windows behind them are in the songs' own documents. Axes: K song.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from stemwise.cache import fingerprints
from stemwise.catalogue import Song
from stemwise.errors import UserError
from stemwise.evaluation import documents, solvers, statistics
from stemwise.evaluation.documents import Medians, Scores, SongScores
from stemwise.evaluation.statistics import Array, Summary
from stemwise.index import Cell, Signal

FILE = "evaluation.json"
FORMAT = 1
NOWHERE = Path(os.devnull)  # no file lies below it: cells are written with their whole paths
MODEL, MIXTURE, ORACLE = "model", "mixture", "oracle"


@dataclass(frozen=True)
class About:
    """What was scored, and how.

    `band` is in Hz: what lies above it the model does not see. `overlap` of windows is None: the model's own.
    """

    model: str
    checkpoint: str
    digest: str
    data: str
    split: str
    solver: str
    stems: tuple[str, ...]
    sample_rate: int
    channels: int
    band: float
    version: str
    overlap: float | None = None

    @property
    def of_windows(self) -> bool:
        """Whether a score is BSSEval v4's, the median of windows of a second; else it is v3's, of a whole song."""
        return self.solver != solvers.MIR_EVAL


@dataclass(frozen=True)
class Scored(SongScores):
    """A song's scores, the name of its documents, and the files that it was read from.

    `marks` stand for the content of the files of each stem, and as `""` of the mixture; evaluations from before there
    were any have none.
    """

    file: str
    mixture: tuple[str, ...]
    stems: Mapping[str, tuple[str, ...]]
    marks: Mapping[str, str] = field(default_factory=dict)

    def song(self) -> Song:
        """The song to be read once more."""
        return Song(
            self.name, _signal(self.mixture), tuple(_signal(cells) for cells in self.stems.values()), self.seconds
        )


@dataclass(frozen=True)
class Evaluation:
    """All of an evaluation but the windows of its songs."""

    folder: Path
    about: About
    songs: tuple[Scored, ...]

    @property
    def variants(self) -> tuple[str, ...]:
        """`model`, and the baselines that were scored beside it."""
        return tuple(self.songs[0].medians) if self.songs else (MODEL,)

    def values(self, variant: str, stem: str, metric: str = "SDR") -> Array:
        """dB (K,); nan where a song has no score."""
        found = [song.medians.get(variant, {}).get(stem, {}).get(metric, math.nan) for song in self.songs]
        return np.array(found, dtype=np.float64)

    def average(self, variant: str = MODEL, metric: str = "SDR") -> Array:
        """dB (K,), the mean over a song's stems that have a score; nan where none has."""
        return statistics.average(np.stack([self.values(variant, stem, metric) for stem in self.about.stems]))

    def improvement(self, stem: str) -> Array:
        """dB (K,) of SDR by which the model is above the unprocessed mixture; nan where one has no score."""
        return self.values(MODEL, stem) - self.values(MIXTURE, stem)

    def gain(self) -> Array:
        """dB (K,), the mean improvement over the stems of a song for which both have a score."""
        return statistics.average(np.stack([self.improvement(stem) for stem in self.about.stems]))

    def standing(self) -> Array:
        """dB (K,) by which a song's stems lie above the median of their stem, on average: what songs are ranked by.

        Means of songs would not do: one without vocals would be ranked by its other stems, which may all be easier.
        """
        values = [self.values(MODEL, stem) for stem in self.about.stems]
        medians = [np.median(known) if len(known := v[np.isfinite(v)]) else math.nan for v in values]
        return statistics.average(np.stack([v - median for v, median in zip(values, medians, strict=True)]))

    def summary(self, variant: str, stem: str, metric: str = "SDR", statistic: str = "median") -> Summary:
        """`median` or `mean` over songs, with the interval that is the same wherever it is shown."""
        generator = np.random.default_rng(statistics.SEED)
        summarize = statistics.median if statistic == "median" else statistics.mean
        return summarize(self.values(variant, stem, metric), generator)

    def above(self, stem: str) -> Array:
        """Shares (K,) of the true stem's energy above the band; nan where that was not measured."""
        return np.array([song.above.get(stem, math.nan) for song in self.songs], dtype=np.float64)

    def only(self, names: Sequence[str], stems: Sequence[str]) -> "Evaluation":
        """The same of these songs and stems, in this order."""
        by_name = {song.name: song for song in self.songs}
        about = replace(self.about, stems=tuple(stems))
        return replace(self, about=about, songs=tuple(by_name[name] for name in names))

    def curves(self, song: Scored, variant: str = MODEL, metric: str = "SDR") -> dict[str, list[tuple[float, float]]]:
        """Per stem, (seconds, dB) of the windows of one song; empty where its document is gone."""
        try:
            document = json.loads((self.folder / variant / song.file).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return documents.curves(document, metric)


def gather(folder: Path, about: About, songs: Sequence[Song], scores: Scores) -> Evaluation:
    """The evaluation of these songs, whose scores are in the same order. Raises `UserError` if a file is gone."""
    scored = [
        Scored(
            **vars(found),
            file=documents.file_name(song.name),
            mixture=_texts(song.mixture),
            stems={stem: _texts(cells) for stem, cells in zip(about.stems, song.stems, strict=True)},
            marks={
                key: _mark(cells) for key, cells in zip(("", *about.stems), (song.mixture, *song.stems), strict=True)
            },
        )
        for song, found in zip(songs, scores.songs, strict=True)
    ]
    return Evaluation(folder, about, tuple(scored))


def write(evaluation: Evaluation) -> None:
    """Writes `evaluation.json` into its folder. Raises `UserError` if that cannot be."""
    songs = [asdict(song) for song in evaluation.songs]
    documents.write(evaluation.folder / FILE, {"format": FORMAT, **asdict(evaluation.about), "songs": finite(songs)})


def read(folder: Path) -> Evaluation:
    """The evaluation in a folder. Raises `UserError` if there is none, or one that cannot be read."""
    path = folder / FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return _parsed(folder, document)
    except FileNotFoundError:
        raise UserError(f"{folder}: {_missing(folder)}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Check the path and who may read it.") from None
    except UserError:
        raise
    except json.JSONDecodeError as error:
        raise _odd(path, f"no JSON from line {error.lineno} on") from None
    except KeyError as error:
        raise _odd(path, f"{error} is missing in it") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise _odd(path, f"something in it is of another kind: {error}") from None


def _odd(path: Path, found: str) -> UserError:
    return UserError(
        f"{path}: not what stemwise evaluate writes ({found}). Evaluate the model once more: songs that are scored are "
        "kept."
    )


def digest(path: Path) -> str:
    """Of a model file's bytes."""
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def finite(values: Any) -> Any:
    """`values` with None, JSON's null, for numbers that JSON does not have."""
    if isinstance(values, dict):
        return {key: finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _missing(folder: Path) -> str:
    if not folder.is_dir():
        return "no such folder. Name a folder that stemwise evaluate has written."
    if (folder / "scores.json").exists():
        return f"no {FILE}: an evaluation by an older stemwise. Evaluate into it once more: what is scored is kept."
    return f"no {FILE}, so no evaluation. Name a folder that stemwise evaluate has written."


def _parsed(folder: Path, document: Any) -> Evaluation:
    if not isinstance(document, dict):
        raise TypeError(f"a {type(document).__name__} where an object should be")
    if (found := document.get("format")) != FORMAT:
        raise UserError(
            f"{folder / FILE}: of format {found}, and this version of stemwise reads {FORMAT}. Read it with the "
            "version that wrote it, or evaluate the model once more."
        )
    earlier = {"overlap": document.get("overlap")}  # which evaluations once did not have
    given = {name: document[name] for name in About.__dataclass_fields__ if name not in earlier} | earlier
    numbers = {
        "sample_rate": int(given["sample_rate"]),
        "channels": int(given["channels"]),
        "band": float(given["band"]),
    }
    about = About(**given | numbers | {"stems": tuple(given["stems"])})
    return Evaluation(folder, about, tuple(_song(song) for song in document["songs"]))


def _song(found: Mapping[str, Any]) -> Scored:
    medians = {variant: _numbers(stems) for variant, stems in found["medians"].items()}
    return Scored(
        name=str(found["name"]),
        seconds=float(found["seconds"]),
        medians=medians,
        above=_number_of_each(found["above"]),
        file=str(found["file"]),
        mixture=tuple(found["mixture"]),
        stems={stem: tuple(cells) for stem, cells in found["stems"].items()},
        marks={key: str(mark) for key, mark in found.get("marks", {}).items()},
    )


def _numbers(stems: Mapping[str, Mapping[str, float | None]]) -> Medians:
    return {stem: _number_of_each(metrics) for stem, metrics in stems.items()}


def _number_of_each(values: Mapping[str, float | None]) -> dict[str, float]:
    return {key: math.nan if value is None else float(value) for key, value in values.items()}


def _texts(signal: Signal) -> tuple[str, ...]:
    """The cells as an index holds them, with the whole path."""
    return tuple(replace(cell, path=cell.path.absolute()).text(NOWHERE) for cell in signal)


def _mark(signal: Signal) -> str:
    """Stands for the content of these cells, wherever their files lie and whatever they are called."""
    parts = [(fingerprints.content(cell.path), cell.stream, cell.channel) for cell in signal]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _signal(cells: Sequence[str]) -> Signal:
    return tuple(Cell.parse(cell, Path("/")) for cell in cells)
