"""The demo songs as a data set on disk: written once, found again on the next run.

    root/demo.json                  what the songs were made from, and which folders are ours
    root/train.csv                  the index of a split
    root/train/001 …/vocals.flac    16 bits, 44.1 kHz, stereo; also drums, bass, other and mixture

A file that is there is whole: songs are written next to where they belong and moved into place. What
`demo.json` does not name is never touched.
"""

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from stemwise import index, progress
from stemwise.datasets.demo import band, score, titles
from stemwise.errors import UserError
from stemwise.index import SPLITS, Cell, Index, Track

VERSION = 1  # of the composer: raise it whenever the same seed sounds different, so that old songs are replaced
RATE = 44100
SONGS = {"train": 24, "valid": 2, "test": 2}
MANIFEST = "demo.json"
MIXTURE = "mixture"
FILES = tuple(f"{name}.flac" for name in (MIXTURE, *band.PLAYERS))
MOST = 100_000  # songs per split, so that no two splits share a seed
BYTES_PER_SECOND = 290_000  # of all five files of a song, measured


@dataclass(frozen=True)
class Song:
    """One song to be: its place in the data set and the seed that it is composed from."""

    split: str
    name: str
    seed: int
    seconds: float

    @property
    def folder(self) -> str:
        return f"{self.split}/{self.name}"

    @classmethod
    def plan(cls, split: str, number: int, seconds: float, seed: int) -> "Song":
        own = (seed * len(SPLITS) + SPLITS.index(split)) * MOST + number
        title = titles.title(number * len(SPLITS) + SPLITS.index(split), seed)
        return cls(split, f"{number + 1:03d} {title} in {score.write(own, seconds).key}", own, seconds)

    def is_whole(self, root: Path) -> bool:
        return all((root / self.folder / file).is_file() for file in FILES)

    def track(self, root: Path) -> Track:
        folder = root / self.folder
        stems = {name: Cell(folder / f"{name}.flac") for name in band.PLAYERS}
        return Track(self.name, stems, Cell(folder / f"{MIXTURE}.flac"), round(self.seconds * RATE) / RATE)


def find(
    root: Path, *, songs: Mapping[str, int] | None = None, seconds: float = 12.0, seed: int = 0
) -> dict[str, Index]:
    """Indexes of the demo songs below `root`, per split; composes those that are not there yet.

    `songs` says how many each of train, valid and test has (24, 2 and 2 by default; a split without songs is
    left out), `seconds` how long each is. More songs are added to those that are there; another length or
    seed replaces them. Processes that ask at the same time wait for each other.

    Raises `UserError` for arguments out of bounds, for a folder that holds another data set, and for one
    that cannot be written to.
    """
    counts = _checked(SONGS if songs is None else songs, seconds, seed)
    recipe = {"composer": VERSION, "seed": seed, "seconds": float(seconds)}
    planned = [Song.plan(split, number, seconds, seed) for split in counts for number in range(counts[split])]
    try:
        if not _is_complete(root, recipe, counts, planned):
            root.mkdir(parents=True, exist_ok=True)
            with _lock(root):
                _complete(root, recipe, counts, planned)
    except OSError as error:
        size = len(planned) * seconds * BYTES_PER_SECOND / 1e6
        raise UserError(
            f"{root}: cannot write the demo songs there ({error.strerror or error}). "
            f"Set data.root to a folder that you may write to, with {size:.0f} MB free."
        ) from error
    return {split: index.read(root / f"{split}.csv", root) for split in counts}


def _checked(songs: Mapping[str, int], seconds: float, seed: int) -> dict[str, int]:
    if unknown := [split for split in songs if split not in SPLITS]:
        raise UserError(f"data.dataset.songs.{unknown[0]}: no such split. Choose from {', '.join(SPLITS)}.")
    for split, count in songs.items():
        if not 0 <= count <= MOST:
            raise UserError(f"data.dataset.songs.{split}={count} is out of bounds. Choose a number from 0 to {MOST}.")
    if not any(songs.values()):
        raise UserError("data.dataset.songs: no songs at all. Ask for some, for example data.dataset.songs.train=24.")
    if not (math.isfinite(seconds) and 1.0 <= seconds <= 600.0):
        raise UserError(f"data.dataset.seconds={seconds} is out of bounds. Choose a length from 1 to 600 seconds.")
    if seed < 0:
        raise UserError(f"data.dataset.seed={seed} is below zero. Choose a number from 0 on.")
    return {split: int(songs[split]) for split in SPLITS if songs.get(split)}


def _is_complete(root: Path, recipe: dict[str, Any], counts: dict[str, int], planned: list[Song]) -> bool:
    manifest = _manifest(root)
    if manifest is None or manifest["recipe"] != recipe or manifest["songs"] != counts:
        return False
    has_indexes = all((root / f"{split}.csv").is_file() for split in counts)
    return has_indexes and all(song.is_whole(root) for song in planned)


def _complete(root: Path, recipe: dict[str, Any], counts: dict[str, int], planned: list[Song]) -> None:
    """Brings the folder to what is asked for; may be interrupted anywhere and run again."""
    folders = _make_room(root, recipe)
    folders |= {song.folder for song in planned}
    # Named before they are written: what is interrupted here is known to be ours on the next run. The counts
    # come last, because they mean that the indexes are those of these songs.
    _write_manifest(root, recipe, {}, folders)
    missing = [song for song in planned if not song.is_whole(root)]
    for song in progress.track(missing, what="Composing demo songs", total=len(missing)):
        _write_song(root, song)
    for split in counts:
        tracks = [song.track(root) for song in planned if song.split == split]
        part = root / f".{split}.csv.part"
        index.write(Index(str(root / f"{split}.csv"), root, tracks), part)
        os.replace(part, root / f"{split}.csv")
    _write_manifest(root, recipe, counts, folders)


def _make_room(root: Path, recipe: dict[str, Any]) -> set[str]:
    """Removes songs made from another recipe; returns the folders of those that may stay."""
    manifest = _manifest(root)
    if manifest is None:
        if foreign := [split for split in SPLITS if (root / f"{split}.csv").exists()]:
            raise UserError(
                f"{root / foreign[0]}.csv: not written by the demo data set (no {MANIFEST} beside it). "
                "Set data.root to an empty folder."
            )
        return set()
    if manifest["recipe"] == recipe:
        return set(manifest["folders"])
    for split in SPLITS:
        (root / f"{split}.csv").unlink(missing_ok=True)
    for folder in manifest["folders"]:
        for place in (root / folder, _part(root, folder)):
            for file in FILES:
                (place / file).unlink(missing_ok=True)
            with suppress(OSError):  # not empty: somebody keeps something of their own there
                place.rmdir()
    return set()


def _manifest(root: Path) -> dict[str, Any] | None:
    path = root / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return {key: manifest[key] for key in ("recipe", "songs", "folders")}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: damaged. Remove {root} and run again: the songs are made anew.") from None


def _write_manifest(root: Path, recipe: dict[str, Any], counts: dict[str, int], folders: set[str]) -> None:
    part = root / f".{MANIFEST}.part"
    manifest = {"recipe": recipe, "songs": counts, "folders": sorted(folders)}
    part.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    os.replace(part, root / MANIFEST)


def _part(root: Path, folder: str) -> Path:
    """Where a song is while it is being written: next to its folder, so that it moves without a copy."""
    return (root / folder).with_name(f".{Path(folder).name}.part")


def _write_song(root: Path, song: Song) -> None:
    final, part = root / song.folder, _part(root, song.folder)
    for folder in (final, part):
        folder.mkdir(parents=True, exist_ok=True)
    stems = band.compose(song.seed, seconds=song.seconds, sample_rate=RATE)
    # Rounded first and added then, so that the files of the stems sum to the mixture's exactly.
    rounded = {name: np.round(stem.T * 32767).astype(np.int16) for name, stem in stems.items()}
    rounded[MIXTURE] = np.sum(list(rounded.values()), axis=0, dtype=np.int16)
    for name, samples in rounded.items():
        soundfile.write(part / f"{name}.flac", samples, RATE, subtype="PCM_16")
    for file in FILES:
        os.replace(part / file, final / file)
    part.rmdir()


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    """Holds the data set while it is being changed; released by the system even if the process is killed."""
    with (root / ".demo.lock").open("w") as file:
        # Some cluster file systems have no locks. Two processes that start at once are then on their own.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
