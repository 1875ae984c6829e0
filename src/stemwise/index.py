"""The index CSV: which file holds which stem of which song. It is the contract of every data set.

    mix_path,vocals_path,accompaniment_path,duration
    one/mix.wav,one/vocals.wav,one/rest.wav,183.2

- `<stem>_path` names a stem's file, relative to the data root (or absolute). `mix_path` names the
  mixture's; without that column the mixture is the sum of all the stems.
- It may be a URL (`places.PROTOCOLS`), and so may the root and the CSV itself.
- A cell may name one audio stream of a file, `song.stem.mp4#stream=4`, or one channel of it,
  `clip.flac#channel=1`, or both in this order; both count from 0.
- `duration` (seconds) and `name` (what the song is called) may be missing. Other columns are ignored.

Spaces around a cell do not count. Spleeter's own index files are of this form.
"""

import csv
import io
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from stemwise import audio, progress
from stemwise.errors import UserError, raise_all
from stemwise.files import places, stores, streams
from stemwise.files.places import Place, Url

log = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
MIXTURE = "mix"
SUFFIX = "_path"
REST = "rest"
TOLERANCE = 0.1  # seconds by which a stem may differ from its mixture

_CELL = re.compile(r"(?P<path>.*?)(#stream=(?P<stream>\d{1,9}))?(#channel=(?P<channel>\d{1,9}))?", re.DOTALL)


@dataclass(frozen=True)
class Cell:
    """One waveform in a file: all of it, or one audio stream of it, or one channel of that.

    `speed` is at how many percent of its own speed it is played, as a tape: pitch and formants go with it.
    """

    path: Place
    stream: int | None = None
    channel: int | None = None
    speed: int = 100

    @classmethod
    def parse(cls, text: str, root: Place) -> "Cell":
        """Reads `path`, `path#stream=I` or `path#channel=I`, the path relative to `root`. Raises `UserError`."""
        found = _CELL.fullmatch(text)
        assert found  # `.*?` takes whatever the selectors leave
        stream, channel = found["stream"], found["channel"]
        return cls(places.join(root, found["path"]), int(stream) if stream else None, int(channel) if channel else None)

    def text(self, root: Place) -> str:
        """The cell as an index holds it; its path is relative to `root` where it lies below it."""
        path = places.below(self.path, root) or self.path.as_posix()
        selectors = (("stream", self.stream), ("channel", self.channel))
        return path + "".join(f"#{which}={value}" for which, value in selectors if value is not None)


Signal = tuple[Cell, ...]
"""A waveform that is the sum of its cells' waveforms."""

File = tuple[Place, int | None]
"""A path and an audio stream of it: what is opened once, however many channels of it are used."""


@dataclass(frozen=True)
class Track:
    """One song: a row of the index."""

    name: str
    stems: Mapping[str, Cell]
    mixture: Cell | None = None
    duration: float | None = None
    row: int | None = field(default=None, compare=False)

    @property
    def mixture_signal(self) -> Signal:
        """The mixture's own cell, or all the stems where the index has no mixture."""
        return (self.mixture,) if self.mixture else tuple(self.stems.values())

    def signal(self, columns: Sequence[str]) -> Signal:
        """The sum of these stems."""
        return tuple(self.stems[column] for column in columns)


@dataclass(frozen=True)
class Index:
    """The tracks of one split, where they came from, and what is wrong with them so far."""

    source: str
    root: Place
    tracks: list[Track]
    problems: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        """Stems that any track has: a track without one of them is among the problems that `check` raises."""
        return list(dict.fromkeys(stem for track in self.tracks for stem in track.stems))

    @property
    def has_mixture(self) -> bool:
        """Whether every track has a mixture of its own."""
        return bool(self.tracks) and all(track.mixture for track in self.tracks)

    def where(self, track: Track) -> str:
        """How a message names this track."""
        return f"row {track.row} ({track.name})" if track.row else track.name


def read(path: Place, root: Place) -> Index:
    """Parses an index CSV. Problems are collected in the result, for `check` to raise them all at once.

    Raises `UserError` where nothing can be parsed at all: no such file or root, no header, no rows.
    """
    if isinstance(root, Path) and not os.path.isdir(root):
        raise UserError(f"{root}: no such folder. Set data.root to the folder that the paths in {path} start from.")
    header, *lines = _table(path)
    _check_header(path, header)
    # Numbered as a spreadsheet does: the header is row 1, blank rows count.
    rows = [(number, line) for number, line in enumerate(lines, start=2) if any(line)]
    if not rows:
        raise UserError(f"{path}: no songs below the header. Add a row per song.")
    return _parse(path, root, header, rows)


def _table(path: Place) -> list[list[str]]:
    """All lines of the file, the header first."""
    if isinstance(path, Path) and not os.path.isfile(path):
        raise UserError(f"{path}: no such index CSV. Write one, or let `stemwise index` write it.")
    try:
        with io.TextIOWrapper(streams.open_read(path), newline="", encoding="utf-8-sig") as file:
            lines = [[cell.strip() for cell in line] for line in csv.reader(file, strict=True)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error}). Export it again as CSV.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Check who may read it.") from None
    if not lines or not any(lines[0]):
        raise UserError(f"{path}: empty. The first line names the columns: mix_path,vocals_path,…,duration.")
    return lines


def _check_header(path: Place, header: list[str]) -> None:
    if len(header) == 1 and (separator := next((mark for mark in ";\t" if mark in header[0]), None)):
        raise UserError(f"{path}: cells are separated by {separator!r}. Export it with commas between them.")
    if not any(name.endswith(SUFFIX) and name != MIXTURE + SUFFIX for name in header):
        raise UserError(
            f"{path}: no column with a stem (columns: {', '.join(header)}). "
            "Name them vocals_path, drums_path and so on in the first line."
        )
    # Spreadsheets like to leave columns without a name at the end: those are nobody's business.
    if repeated := [name for name, count in Counter(header).items() if name and count > 1]:
        raise UserError(f"{path}: column {repeated[0]!r} is there twice. Rename or remove one of them.")


def _parse(path: Place, root: Place, header: list[str], rows: list[tuple[int, list[str]]]) -> Index:
    index = Index(str(path), root, [])
    seen: dict[tuple[Cell, ...], int] = {}
    for number, line in rows:
        if len(line) != len(header):
            index.problems.append(
                f"row {number}: {len(line)} cells, the header has {len(header)}. "
                "Fill in what is missing, and quote cells that contain a comma."
            )
            continue
        cells = dict(zip(header, line, strict=True))
        paths = {name: text for name, text in cells.items() if name.endswith(SUFFIX)}
        try:
            found = {name.removesuffix(SUFFIX): Cell.parse(text, root) for name, text in paths.items() if text}
        except UserError as error:
            index.problems.append(f"row {number}: {error}")
            continue
        first = seen.setdefault(tuple(found.values()), number)
        if found and first != number:
            index.problems.append(f"row {number}: the same files as row {first}. Remove one of them.")
            continue
        duration = _duration(cells.get("duration", ""), number, index.problems)
        mixture = found.pop(MIXTURE, None)
        index.tracks.append(Track(cells.get("name", ""), found, mixture, duration, number))
    index.tracks[:] = _named(index.tracks)
    return index


def _duration(text: str, row: int, problems: list[str]) -> float | None:
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        problems.append(f"row {row}: duration is {text!r}, not a number of seconds. Mend it, or leave it empty.")
        return None
    if not math.isfinite(seconds) or seconds <= 0:
        problems.append(f"row {row}: duration is {text}. Give seconds above zero, or leave it empty.")
        return None
    return seconds


def _named(tracks: Sequence[Track]) -> list[Track]:
    """Names the tracks that have no name of their own, after their files, and makes all names differ."""
    names = [track.name or _name(track) for track in tracks]
    counts = Counter(names)
    return [
        replace(track, name=f"{name} ({track.row})" if counts[name] > 1 else name)
        for track, name in zip(tracks, names, strict=True)
    ]


def _name(track: Track) -> str:
    """`songs/One/mixture.wav` is "One" (files named after stems); `songs/One.stem.mp4` is "One"."""
    cells = track.mixture_signal
    if not cells:
        return ""
    path = cells[0].path
    is_stem = path.stem.casefold() in {MIXTURE, "mixture", *(stem.casefold() for stem in track.stems)}
    return path.parent.name if is_stem else path.name.split(".stem.")[0].removesuffix(path.suffix)


def write(index: Index, path: Path) -> None:
    """Writes an index CSV that `read` reads back as the same tracks, its paths relative to the root.

    Raises `UserError` if the file cannot be written.
    """
    columns, has_mixture = index.columns, index.has_mixture
    lines = [["name", *([MIXTURE + SUFFIX] * has_mixture), *(stem + SUFFIX for stem in columns), "duration"]]
    for track in index.tracks:
        cells = [track.mixture] * has_mixture + [track.stems.get(stem) for stem in columns]
        duration = "" if track.duration is None else str(track.duration)
        lines.append([track.name, *(cell.text(index.root) if cell else "" for cell in cells), duration])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(lines)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}). Choose another folder, or make room.") from None


def sources(
    columns: Sequence[str], stems: Sequence[str], sums: Mapping[str, Sequence[str] | str]
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Which columns of an index make up each stem, and what is wrong with that.

    A stem is the column of its name, unless `sums` says otherwise: a list of columns to add up, or `rest`,
    which is the stem's own column or, where there is none, the sum of all that no other stem takes.
    With `{"accompaniment": "rest"}`, `vocals,drums,bass,other` serves a vocals-accompaniment model.
    """
    problems = []
    found: dict[str, tuple[str, ...]] = {}
    for stem in stems:
        parts = sums.get(stem, (stem,))
        if parts != REST:
            found[stem] = (parts,) if isinstance(parts, str) else tuple(parts)
        elif stem in columns:
            found[stem] = (stem,)
    if len(rests := [stem for stem in stems if stem not in found]) > 1:
        problems.append(f"stem_sums: {' and '.join(rests)} are both {REST!r}. Say for one of them which columns it is.")
    problems += [
        f"stem_sums.{stem}={list(parts)} has no column, or one twice. Name each column once."
        for stem, parts in found.items()
        if not parts or len({*parts}) < len(parts)
    ]
    claimed = {column for parts in found.values() for column in parts}
    for stem in stems:
        if stem not in found:
            found[stem] = tuple(column for column in columns if column not in claimed) or (stem,)
    for stem, parts in found.items():
        if missing := [part for part in parts if part not in columns]:
            names = " and ".join(repr(part + SUFFIX) for part in missing)
            possible = [name for name in stems if all(part in columns for part in found[name])]
            problems.append(
                f"no column {names}, which the stem {stem!r} needs "
                f"(stems there: {', '.join(columns) or 'none'}). Add the column, "
                f"or train the stems that are there: stem_names=[{','.join(possible or columns)}]."
            )
    return {stem: found[stem] for stem in stems}, problems


def check(index: Index, stems: Sequence[str], sums: Mapping[str, Sequence[str] | str]) -> Index:
    """Looks at every file that training `stems` needs and raises all the problems of the index at once.

    Returns the index with each track's duration as it was measured, whatever the index says.

    Raises `UserError` for missing columns, files that are missing, unreadable or truncated, stems and
    mixtures whose lengths differ by more than 0.1 s, and whatever `read` had collected.
    """
    columns = index.columns
    parts, missing = sources(columns, stems, sums)
    needed = {column for cells in parts.values() for column in cells}.intersection(columns)
    tracks = [(index.where(track), _cells(track, needed)) for track in index.tracks]
    needed_files = {(cell.path, cell.stream) for _, cells in tracks for cell in cells}
    # Where no row could be parsed, it is the rows that are wrong and not the columns.
    problems = [*(missing if tracks else []), *index.problems, *_empty(index, needed)]
    if needed_files and not _is_any_there([path for path, _ in needed_files]):
        # One message in place of one per file: a wrong root is the one mistake behind all of them.
        where, first = next((where, cells[0]) for where, cells in tracks if cells)
        problems.append(
            f"none of the {len(needed_files)} files is there; {where}: {first.path}. "
            f"Set data.root to the folder that the paths start from (now {index.root})."
        )
        raise_all(problems, heading=index.source)
    found = _probe(sorted(needed_files, key=str))
    for where, cells in tracks:
        problems += _track_problems(where, index.root, cells, found)
    raise_all(problems, heading=index.source)
    return measured(index, [_length(track, needed, found) for track in index.tracks])


def _is_any_there(paths: Sequence[Place]) -> bool:
    urls = [path for path in paths if isinstance(path, Url)]
    # Unlike Path.exists, also of a name that is too long.
    there = any(isinstance(path, Path) and os.path.exists(path) for path in paths)
    return there or next(stores.existing(urls), None) is not None


def _empty(index: Index, needed: set[str]) -> list[str]:
    """Cells that are empty in columns that training reads: all of them, where the mixture is their sum."""
    with_mixture = any(track.mixture for track in index.tracks)
    columns = sorted(needed) if with_mixture else index.columns
    problems = []
    for track in index.tracks:
        empty = [column for column in columns if column not in track.stems]
        empty += [MIXTURE] if with_mixture and not track.mixture else []
        problems += [f"row {track.row}: {column}{SUFFIX} is empty. Fill it in." for column in empty]
    return problems


def _cells(track: Track, needed: set[str]) -> list[Cell]:
    """The cells that training reads, the one that sets the length first."""
    if track.mixture:
        return [track.mixture, *(cell for stem, cell in track.stems.items() if stem in needed)]
    return list(track.stems.values())


def _probe(wanted: Sequence[File]) -> dict[File, audio.Info | str]:
    """Length and rate of each file, or what is wrong with it."""

    def look(file: File) -> audio.Info | str:
        try:
            return audio.probe(*file)
        except UserError as error:
            return str(error)

    with stores.threads() as pool:
        found = progress.track(pool.map(look, wanted), what="Checking files", total=len(wanted))
        return dict(zip(wanted, found, strict=True))


def measured(index: Index, seconds: Sequence[float | None]) -> Index:
    """The index with the length of each track."""
    tracks = [replace(track, duration=length) for track, length in zip(index.tracks, seconds, strict=True)]
    return replace(index, tracks=tracks)


def _length(track: Track, needed: set[str], found: Mapping[File, audio.Info | str]) -> float:
    first = _cells(track, needed)[0]
    info = found[first.path, first.stream]
    assert not isinstance(info, str)  # it would have been among the problems
    return info.seconds


def _track_problems(where: str, root: Place, cells: list[Cell], found: Mapping[File, audio.Info | str]) -> list[str]:
    problems = []
    lengths: dict[Cell, float] = {}
    for cell in cells:
        info = found[cell.path, cell.stream]
        if isinstance(info, str):
            problems.append(f"{where}: {info}")
        elif cell.channel is not None and cell.channel >= info.channels:
            problems.append(
                f"{where}: {cell.text(root)} names channel {cell.channel}, the file has {info.channels}. Count from 0."
            )
        else:
            lengths[cell] = info.seconds
    if lengths:
        usual = max(lengths, key=lambda cell: sum(_is_close(lengths[cell], other) for other in lengths.values()))
        problems += [
            f"{where}: {cell.text(root)} lasts {seconds:.2f} s, {usual.text(root)} {lengths[usual]:.2f} s. "
            "Export both with the same start and end."
            for cell, seconds in lengths.items()
            if not _is_close(seconds, lengths[usual])
        ]
    return problems


def _is_close(one: float, other: float) -> bool:
    return abs(one - other) <= TOLERANCE
