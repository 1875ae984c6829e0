"""MIR-1K: karaoke clips of 4 to 13 s, the accompaniment on the left channel and the voice on the right.

    root/Wavfile/abjones_1_01.wav                the archive as it is downloaded
    root/train/abjones_1_01.flac, root/test/…    sorted by hand, any audio format

The singers decide the split, whatever the folder: the usual protocol trains on `abjones` and `amy` and tests
on the other 17. The mixture is the sum of both channels, so the indexes have no mixture column.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from stemwise.errors import UserError
from stemwise.index import Cell, Index, Track

log = logging.getLogger(__name__)

LAYOUTS = (("Wavfile",), ("train", "test"), (".",))
TRAIN_SINGERS = frozenset({"abjones", "amy"})
# A tenth of the training clips (20 of 175, 157 of 1416 s), from both singers, and whole songs: clips of one
# song share voice, key and backing track, and would make a validation loss look better than it is.
VALID = ("abjones_1", "amy_2", "amy_9")
ACCOMPANIMENT, VOICE = 0, 1  # channels

_CLIP = re.compile(r"[^\W_]+_\d+_\d+\.(flac|wav)")


def find(root: Path | None, valid: Sequence[str] = VALID) -> dict[str, Index]:
    """The splits train, valid and test; test has no tracks where only the training singers are there.

    `valid` are the songs (`amy_2`), or singers, of the training clips that are held out.

    Raises `UserError` where `root` holds no clips, or none of a name in `valid` that was chosen.
    """
    if root is None or not root.is_dir():
        raise UserError(f"data.root={root}: no such folder. Set it to the folder of MIR-1K that holds Wavfile.")
    clips = next(filter(None, (_clips(root, layout) for layout in LAYOUTS)), None)
    if clips is None:
        raise UserError(
            f"{root}: no MIR-1K in it: no clips like Wavfile/abjones_1_01.wav or train/abjones_1_01.flac. "
            "Set data.root to the folder that holds Wavfile."
        )
    indexes = {split: Index(f"MIR-1K {split} ({root})", root, []) for split in ("train", "valid", "test")}
    for path in clips:
        indexes[_split(path, valid)].tracks.append(_track(path))
    names = {name for track in indexes["valid"].tracks for name in _names(track.name)}
    # A part of the data set may lack the usual ones.
    if tuple(valid) != VALID and (unknown := [name for name in valid if name not in names]):
        raise UserError(
            f"data.dataset.valid={list(valid)}: no clip of {unknown[0]!r} is among those of "
            f"{' and '.join(sorted(TRAIN_SINGERS))}. Name songs, such as amy_2, or one of the singers."
        )
    return indexes


def _clips(root: Path, layout: tuple[str, ...]) -> list[Path]:
    paths = [path for folder in layout for path in sorted((root / folder).glob("[!.]*.*")) if path.is_file()]
    clips = [path for path in paths if _CLIP.fullmatch(path.name)]
    if clips and len(clips) < len(paths):
        others = [path.name for path in paths if not _CLIP.fullmatch(path.name)]
        many = f"{len(others)} files that are no clips: {others[0]}, …"
        log.warning("%s: left out %s", root, many if others[1:] else f"{others[0]}, which is no clip")
    return clips


def _split(path: Path, valid: Sequence[str]) -> str:
    singer, song = _names(path.stem)
    if singer not in TRAIN_SINGERS:
        return "test"
    return "valid" if {singer, song}.intersection(valid) else "train"


def _names(clip: str) -> tuple[str, str]:
    """Singer and song of a clip: `amy_2_03` is of `amy` and `amy_2`."""
    return clip.partition("_")[0], clip.rpartition("_")[0]


def _track(path: Path) -> Track:
    return Track(path.stem, {"vocals": Cell(path, channel=VOICE), "accompaniment": Cell(path, channel=ACCOMPANIMENT)})
