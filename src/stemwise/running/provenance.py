"""Where a run comes from: songs and their content, code, versions, machine, config and command line of each start.

    RUN/provenance.json
      index    split -> the songs of the first start (`Split`): cells as in an index CSV, files with size and SHA-256,
             of a URL the mark that its store gives to the content (ETag) instead
      inputs   files that the config names, with their SHA-256: the model of init_from, a checkpoint
      starts   a `Start` for the first time and for each resume

It stays in the run's folder: it holds paths, and nothing of it goes into a model file; loggers are told the `facts`.
There are no names of hosts or users in it but those in paths, and no environment variables.
"""

import hashlib
import json
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stemwise.errors import UserError
from stemwise.files.places import Place, Url, below
from stemwise.files.stores import known_all
from stemwise.index import MIXTURE, Cell, Index
from stemwise.running import contents, machine

log = logging.getLogger(__name__)

FILE = "provenance.json"
FORMAT = 1
NAMED = 5  # songs that a message names before it only counts
INPUTS = ("init_from", "ckpt_path")


@dataclass(frozen=True)
class File:
    """A file's content: SHA-256, or the time of its last change in ns where nobody wanted to wait for that.

    Of a URL, which would have to be fetched for that, the mark that its store gives to the content: `stores.State`.
    """

    size: int
    sha256: str | None = None
    changed: int | None = None
    token: str | None = None

    def __post_init__(self) -> None:
        _expect(isinstance(self.size, int), isinstance(self.changed, int | None))
        _expect(isinstance(self.sha256, str | None), isinstance(self.token, str | None))

    @property
    def content(self) -> str:
        """What two files must share to count as the same."""
        if self.sha256:
            return f"SHA-256 {self.sha256[:12]}…"
        mark = f"changed at {self.changed}" if self.token is None else f"ETag {self.token or 'unknown'}"
        return f"{self.size} bytes, {mark}"


@dataclass(frozen=True)
class Split:
    """The songs of a split: name and cells (column -> cell) of each, and the files by path.

    Paths are relative to `root`, which is absolute, where they lie below it.
    """

    source: str
    root: str
    songs: list[tuple[str, dict[str, str]]]
    files: dict[str, File] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """One start of a run. `command` is what was typed, `overrides` the part of it that Hydra took for the config."""

    time: str
    command: list[str]
    directory: str
    run: str
    overrides: list[str]
    seed: int
    config: dict[str, Any]
    environment: dict[str, Any]
    changed_songs: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        lists = (self.command, self.overrides, self.changed_songs)
        _expect(*(isinstance(some, list) and all(isinstance(one, str) for one in some) for some in lists))
        _expect(*(isinstance(text, str) for text in (self.time, self.directory, self.run)))
        _expect(isinstance(self.config, dict), isinstance(self.environment, dict))


@dataclass(frozen=True)
class Record:
    """All of the file."""

    index: dict[str, Split]
    inputs: dict[str, File]
    starts: list[Start]


@dataclass(frozen=True)
class Difference:
    """Something that was different when a run was made, and whether the result can depend on it."""

    what: str
    then: str
    now: str
    changes_results: bool

    def __str__(self) -> str:
        return f"{self.what}: {self.then} → {self.now}"


def record(folder: Path, config: Mapping[str, Any], overrides: Sequence[str], indexes: Mapping[str, Index]) -> Record:
    """Writes down this start of the run in `folder`, which uses these indexes and this resolved config; returns all.

    With `config["hash_songs"]` every file is read to its end, once (see `contents`); without, its size and time
    of change have to do. A run that finds other songs than its first start warns. Raises `UserError`.
    """
    if not isinstance(hashed := config["hash_songs"], bool):
        raise UserError(f"hash_songs={hashed} is not true or false.")
    described = {split: describe(found) for split, found in indexes.items()}
    index = with_contents(described, {split: places(found) for split, found in indexes.items()}, hashed)
    named = [Path(str(config[key])) for key in INPUTS if config.get(key)]
    inputs = files({str(path.absolute()): path for path in named if path.is_file()}, hashed)
    known = read(folder) if (folder / FILE).exists() else Record(index, inputs, [])
    changed = [str(difference) for difference in song_differences(known.index, index)]
    if changed:
        more = f" and {len(changed) - NAMED} more" if len(changed) > NAMED else ""
        log.warning("The songs are not those that this run began with: %s%s.", "; ".join(changed[:NAMED]), more)
    start = Start(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        command=list(sys.orig_argv),
        directory=os.getcwd(),
        run=str(folder.absolute()),
        overrides=list(overrides),
        seed=config["seed"],
        config=dict(config),
        environment=machine.environment(Path.cwd()),
        changed_songs=changed,
    )
    found = Record(known.index, known.inputs, [*known.starts, start])
    _write(folder / FILE, found)
    return found


def facts(found: Record) -> dict[str, Any]:
    """What a logger is told of a run: the command of the last start, code and versions, and how many songs each split
    had at the first, with a hash of their cells and the content of their files."""
    start = found.starts[-1]
    told = {"command": shlex.join(start.command), "folder": start.run}
    told |= {name: start.environment[name] for name in ("code", "versions") if name in start.environment}
    return {
        **told,
        "songs": {split: len(part.songs) for split, part in found.index.items()},
        "index": {split: _hash(part) for split, part in found.index.items()},
    }


def _hash(split: Split) -> str:
    """The same wherever the songs lie, if their order, cells and files are the same."""
    content = [split.songs, sorted((name, file.content) for name, file in split.files.items())]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def describe(index: Index) -> Split:
    """The songs of an index, without their files."""
    songs = []
    for track in index.tracks:
        cells = {MIXTURE: track.mixture, **track.stems} if track.mixture else track.stems
        songs.append((track.name, {column: cell.text(index.root) for column, cell in cells.items()}))
    return Split(index.source, str(index.root.absolute()), songs, {name: File(0) for name in places(index)})


def places(index: Index) -> dict[str, Place]:
    """Where the files of an index lie, by their names in `Split.files`; those of URLs are without credentials."""
    paths = {cell.path for track in index.tracks for cell in (*track.stems.values(), *track.mixture_signal)}
    return {below(path, index.root) or str(path.absolute()): path for path in sorted(paths, key=str)}


def with_contents(
    index: Mapping[str, Split], places: Mapping[str, Mapping[str, Place]], hashed: bool
) -> dict[str, Split]:
    """The same splits with what is in their files, which are at `places`. Raises `UserError` for one that is not."""
    # All at once: one bar of progress.
    everything = files({str(path): path for paths in places.values() for path in paths.values()}, hashed)
    return {
        split: Split(
            found.source, found.root, found.songs, {n: everything[str(path)] for n, path in places[split].items()}
        )
        for split, found in index.items()
    }


def files(places: Mapping[str, Place], hashed: bool) -> dict[str, File]:
    """What is in these files, by whatever name they are given here. Raises `UserError`."""
    from stemwise import pretrained

    urls = {name: place for name, place in places.items() if isinstance(place, Url)}
    states = known_all(list(urls.values()))
    paths = {name: place for name, place in places.items() if isinstance(place, Path)}
    digests = contents.digests(paths.values(), pretrained.cache() / contents.STORE) if hashed else {}
    found = {name: File(states[url].size, token=states[url].token) for name, url in urls.items()}
    for name, path in paths.items():
        try:
            status = path.stat()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}). Check the path.") from None
        found[name] = File(status.st_size, digests.get(path), None if hashed else status.st_mtime_ns)
    return found


def file_differences(then: Mapping[str, File], now: Mapping[str, File], where: str) -> list[Difference]:
    """Files that are gone or whose content is another."""
    found = []
    for name, file in then.items():
        other = now.get(name)
        if other is None:
            found.append(Difference(f"{where}{name}", file.content, "gone", True))
        elif file.content != other.content:
            found.append(Difference(f"{where}{name}", file.content, other.content, True))
    return found


def song_differences(then: Mapping[str, Split], now: Mapping[str, Split]) -> list[Difference]:
    """What is different in the songs: which ones, in which order, and the content of their files."""
    found = []
    for split, old in then.items():
        new = now.get(split)
        if new is None:
            found.append(Difference(split, f"{len(old.songs)} songs", "none", True))
            continue
        found += _listing_differences(split, old, new)
        # A file that nobody names any more is not gone: its song is among those that are missing.
        there = _named(new).union(new.files)
        named = {name: file for name, file in old.files.items() if name in there}
        found += file_differences(named, new.files, f"{split}: ")
    return found


def _named(split: Split) -> set[str]:
    cells = (cell for _, song in split.songs for cell in song.values())
    return {Cell.parse(cell, Path()).path.as_posix() for cell in cells}


def _listing_differences(split: str, then: Split, now: Split) -> list[Difference]:
    old, new = ([(name, tuple(cells.items())) for name, cells in found.songs] for found in (then, now))
    if old == new:
        return []
    gone, added = (_names(n for n in some if n not in {*others}) for some, others in ((old, new), (new, old)))
    if not gone and not added:
        return [Difference(f"{split}: the order of the songs", "as recorded", "another", True)]
    details = [f"{what} {names}" for what, names in (("without", gone), ("with", added)) if names]
    return [Difference(f"{split}: songs", str(len(old)), f"{len(new)}, {' and '.join(details)}", True)]


def _names(songs: Iterable[tuple[str, Any]]) -> str:
    names = [name for name, _ in songs]
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def environment_differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """What is different in two environments, as `machine.environment` describes them."""
    old, new = machine.flat(then), machine.flat(now)
    return [
        Difference(key, _shown(old.get(key)), _shown(new.get(key)), machine.matters(key))
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "unknown" if value is None else str(value)


def read(folder: Path) -> Record:
    """The record of the run in `folder`. Raises `UserError` if there is none, or not one that can be read."""
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"{path}: no such file. Give the folder of a run that recorded where it comes from.")
    try:
        found = json.loads(path.read_bytes())
        if found["format"] != FORMAT:
            raise UserError(f"{path}: format {found['format']!r}; this stemwise reads {FORMAT}. Upgrade it.")
        index = {split: _split(one) for split, one in found["index"].items()}
        inputs = {name: File(**one) for name, one in found["inputs"].items()}
        parsed = Record(index, inputs, [Start(**start) for start in found["starts"]])
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    except UserError:
        raise
    # KeyError and the like: JSON of another form. RecursionError: brackets without end.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error!r:.100}). Restore it, or move it away.") from None
    if not parsed.starts:
        raise UserError(f"{path}: damaged, no start in it. Restore it, or move it away.")
    return parsed


def _split(found: Mapping[str, Any]) -> Split:
    songs = [(str(name), {column: str(cell) for column, cell in cells.items()}) for name, cells in found["songs"]]
    files = {name: File(**one) for name, one in found["files"].items()}
    return Split(str(found["source"]), str(found["root"]), songs, files)


def _expect(*facts: bool) -> None:
    """Somebody else may have written the file."""
    if not all(facts):
        raise TypeError("a value is of another type")


def _write(path: Path, found: Record) -> None:
    """The file appears complete, and the one before stays if that fails."""
    text = json.dumps({"format": FORMAT, **asdict(found)}, indent=1)
    temporary = None
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{FILE}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}). Make room, or choose another folder.") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
