"""Songs of your own: a folder per song, that holds a file per stem.

    root/train/<song>/vocals.wav, drums.flac, Bass.mp3, mixture.wav       split by hand
    root/<song>/vocals.wav, …                                             split by a hash of the song's name

A file's name is its stem, whatever the case and the audio format; `mixture.*` or `mix.*` is the mixture, and
without it the mixture is the sum of all the stems. Hidden files and what is no audio are ignored.
"""

import hashlib
import logging
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from stemwise.errors import UserError, raise_all
from stemwise.index import SPLITS, Cell, Index, Track

log = logging.getLogger(__name__)

NAMED = 5  # stems that a message names before it only counts
MIXTURE = "mixture"
MIXTURES = frozenset({MIXTURE, "mix"})
IGNORED = frozenset({"__MACOSX"})
AUDIO = frozenset(
    # What soundfile or FFmpeg reads and people keep stems in.
    f".{name}"
    for name in (
        *("wav", "wave", "flac", "aif", "aiff", "aifc", "caf", "au", "w64", "rf64"),
        *("mp3", "ogg", "oga", "opus", "m4a", "mp4", "aac", "wma", "webm", "mka", "ape", "wv"),
    )
)
SHARE = 0.1  # of the songs, for validation and for test each

Song = dict[str, Path]
"""The files of one song, by stem or `mixture`."""


def find(root: Path | None) -> dict[str, Index]:
    """The splits train, valid and test of the songs below `root`; a split may be empty.

    All songs of the result have the same stems: those that at least half of the songs have. Stems that fewer
    have are left out with a warning.

    Raises `UserError` that lists all the songs that lack a stem, have two files for one, or have no audio.
    """
    if root is None or not root.is_dir():
        raise UserError(f"data.root={root}: no such folder. Set it to the folder that holds a folder per song.")
    splits, problems = _splits(root)
    songs = {folder: _song(folder, root, problems) for folders in splits.values() for folder in folders}
    if not songs:
        problems.append("no songs. Make a folder per song with files such as vocals.wav, drums.wav in it.")
    stems = _stems(root, songs, problems)
    raise_all(problems + _gaps(root, songs, stems), heading=str(root))
    return {
        split: Index(f"{split} of {root}", root, [_track(folder.name, songs[folder], stems) for folder in folders])
        for split, folders in splits.items()
    }


def _splits(root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The song folders of each split, and what is wrong with the layout."""
    below = _folders(root)
    if not any(folder.name in SPLITS for folder in below):
        return split_by_name(below), []
    problems = [
        f"{folder.name}/ is none of train/, valid/ and test/. Rename it, or move its songs into one of them."
        for folder in below
        if folder.name not in SPLITS
    ]
    return {split: _folders(root / split) for split in SPLITS}, problems


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name not in IGNORED)


def split_by_name(folders: Sequence[Path]) -> dict[str, list[Path]]:
    """About 80, 10 and 10 % of the songs; each depends on nothing but its folder's name.

    A song therefore stays in its split when others are added. The exception: where no song of a few falls
    into test (or valid), the nearest one stands in, until one does. Two songs make train and valid.
    """
    order = sorted(folders, key=lambda folder: (_fraction(folder.name), folder.name))
    tests = min(max(1, sum(_fraction(folder.name) < SHARE for folder in order)), max(0, len(order) - 2))
    held = sum(_fraction(folder.name) < 2 * SHARE for folder in order)
    valids = min(max(1, held - tests), max(0, len(order) - tests - 1))
    test, valid, train = order[:tests], order[tests : tests + valids], order[tests + valids :]
    return {"train": sorted(train), "valid": sorted(valid), "test": sorted(test)}


def _fraction(name: str) -> float:
    """A number in [0, 1) that looks random and is the same everywhere; `hash()` differs in each process."""
    digest = hashlib.sha256(unicodedata.normalize("NFC", name).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _song(folder: Path, root: Path, problems: list[str]) -> Song:
    files = defaultdict(list)
    for path in _visible(folder):
        if path.suffix.lower() in AUDIO and path.is_file():
            stem = path.stem.strip().casefold()
            files[MIXTURE if stem in MIXTURES else stem].append(path)
    where = folder.relative_to(root)
    if not files:
        problems.append(f"{where}/: no audio file in it. Put vocals.wav and so on there, or remove the folder.")
    for stem, paths in files.items():
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            problems.append(f"{where}/: {len(paths)} files for {stem}: {names}. Keep one of them.")
    return {stem: paths[0] for stem, paths in files.items()}


def _stems(root: Path, songs: dict[Path, Song], problems: list[str]) -> list[str]:
    """Stems (and the mixture) that all songs should have: what half of them have is what the rest forgot."""
    filled = [song for song in songs.values() if song]
    counts = Counter(sorted(stem for song in filled for stem in song))
    expected = [stem for stem, count in counts.items() if 2 * count >= len(filled)]
    if filled and not set(expected) - {MIXTURE}:
        there = ", ".join(f"{stem} ({count})" for stem, count in counts.most_common(NAMED))
        problems.append(
            f"no stem that half of the {len(filled)} songs have (found: {there}). "
            "Name the files after their stems, the same in each folder: vocals.wav, drums.wav."
        )
    elif rare := [f"{stem} ({counts[stem]} of {len(filled)})" for stem in counts if stem not in expected]:
        count = f"{len(rare)} stem{'s' * (len(rare) > 1)}"
        log.warning("%s: left out %s that few songs have: %s", root, count, ", ".join(rare[:NAMED]))
    return expected


def _gaps(root: Path, songs: dict[Path, Song], stems: Sequence[str]) -> list[str]:
    """A problem for each song that lacks some of `stems`; empty folders have been reported."""
    return [
        f"{folder.relative_to(root)}/: no {' and no '.join(missing)}, which other songs have "
        f"(found: {', '.join(path.name for path in song.values())}). "
        "Add a file of that name, silent if need be, or remove the song."
        for folder, song in songs.items()
        if song and (missing := [stem for stem in stems if stem not in song])
    ]


def _track(name: str, song: Song, stems: Sequence[str]) -> Track:
    mixture = Cell(song[MIXTURE]) if MIXTURE in stems else None
    return Track(name, {stem: Cell(song[stem]) for stem in stems if stem != MIXTURE}, mixture)
