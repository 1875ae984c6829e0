"""MUSDB18 in five parts, for where its official split has too few songs to score: the 42 of the 7-second excerpts.

All songs of an artist are in one part, for a voice and a sound that were trained on flatter the score. `find` is a data
set: `data=musdb18 data.dataset._target_=quality.folds.find +data.dataset.fold=0` holds out the first part.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from stemwise.datasets import musdb18
from stemwise.errors import UserError
from stemwise.index import Index

COUNT = 5


def artist(song: str) -> str:
    """`The Easton Ellises (Baumi) - SDRNR` -> `The Easton Ellises`."""
    return re.sub(r"\s*\(.*?\)", "", song.partition(" - ")[0]).strip()


def parts(songs: Iterable[str], count: int = COUNT) -> list[list[str]]:
    """The songs, `Artist - Song`, in parts of about the same size, all of an artist in one.

    Whoever has most is dealt first, each time to the smallest part: the same for the same songs in any order.
    """
    by_artist: dict[str, list[str]] = {}
    for song in sorted(songs):
        by_artist.setdefault(artist(song), []).append(song)
    found: list[list[str]] = [[] for _ in range(count)]
    for together in sorted(by_artist.values(), key=len, reverse=True):
        min(found, key=len).extend(together)
    return found


def split(songs: Iterable[str], fold: int) -> tuple[list[str], list[str]]:
    """The songs to train on, and those of part `fold`, which are held out."""
    found = parts(songs)
    if not 0 <= fold < len(found):
        raise UserError(f"data.dataset.fold={fold}: there are {COUNT} folds. Give one from 0 to {COUNT - 1}.")
    return sorted(song for part in found if part is not found[fold] for song in part), sorted(found[fold])


def find(root: Path | None, fold: int) -> dict[str, Index]:
    """All songs of the MUSDB18 at `root`, those of the official test as well: train, and as valid what is held out."""
    tracks = {track.name: track for index in musdb18.find(root).values() for track in index.tracks}
    train, valid = split(tracks, fold)
    names = {"train": train, "valid": valid, "test": []}
    return {
        name: Index(f"MUSDB18 without fold {fold}, {name} ({root})", root, [tracks[song] for song in songs])
        for name, songs in names.items()
    }
