"""MUSDB18 and MUSDB18-HQ on disk, as three indexes: the official 86, 14 and 50 songs.

    root/train/<song>.stem.mp4                                           MUSDB18
    root/train/<song>/{mixture,vocals,drums,bass,other}.wav              MUSDB18-HQ

and the same below `root/test`. Where both are there, the form with more songs is taken, the WAVs if equal.
"""

import importlib.util
import logging
import unicodedata
from collections.abc import Mapping
from pathlib import Path

import yaml

from stemwise import index
from stemwise.errors import UserError
from stemwise.index import SPLITS, Cell, Index, Track

log = logging.getLogger(__name__)

FOLDERS = ("train", "test")
STEMS = ("vocals", "drums", "bass", "other")
MIXTURE = "mixture"
STREAMS = {MIXTURE: 0, "drums": 1, "bass": 2, "other": 3, "vocals": 4}
SUFFIX = ".stem.mp4"
NAMED = 3  # songs that a log line names before it only counts

Found = dict[str, tuple[str, Track]]
"""Songs on disk by the key of their name: the folder that each was in, and its track."""


def find(root: Path | None) -> dict[str, Index]:
    """The official splits of the MUSDB18 at `root`.

    Songs that are absent are counted in one warning, so that the 7-second previews or a part of the data
    set serve too; a split may be empty. Songs that are in no official list stay in their folder's split.

    Raises `UserError` where `root` is no MUSDB18, or where the `musdb` package, whose list of validation
    songs this is, is not installed.
    """
    if root is None:
        raise UserError(
            "data.root is not set. Set it to the folder of MUSDB18 or MUSDB18-HQ that holds train and test, "
            "data.root=/path/to/musdb18, or export MUSDB18_PATH."
        )
    songs = _songs(root)
    official = official_splits()
    _report(root, songs, official)
    indexes = {split: Index(f"MUSDB18 {split} ({root})", root, []) for split in SPLITS}
    for key, (folder, track) in sorted(songs.items()):
        # The list before the folder: a test song that was moved must not be trained on.
        _, split = official.get(key, (track.name, folder))
        indexes[split].tracks.append(track)
    return indexes


def _songs(root: Path) -> Found:
    if not root.is_dir():
        raise UserError(f"{root}: no such folder. Set data.root or MUSDB18_PATH to the folder of MUSDB18.")
    waves: Found = {}
    streams: Found = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).glob("*")):
            if path.is_dir() and any((path / f"{name}.wav").is_file() for name in STREAMS):
                waves[_key(path.name)] = (folder, _from_waves(path))
            elif path.name.endswith(SUFFIX) and not path.name.startswith("."):
                streams[_key(path.name.removesuffix(SUFFIX))] = (folder, _from_streams(path))
    if not waves and not streams:
        there = _some(sorted(path.name for path in root.iterdir())) or "nothing"
        raise UserError(
            f"{root}: no MUSDB18, neither train/*{SUFFIX} nor train/<song>/mixture.wav (found: {there}). "
            "Set data.root or MUSDB18_PATH to the folder that holds its train and test."
        )
    taken = waves if len(waves) >= len(streams) else streams
    if waves and streams:
        form = "WAV" if taken is waves else SUFFIX
        counts = f"{len(waves)} songs as WAV and {len(streams)} as {SUFFIX}"
        log.warning("%s holds %s: the %s are taken, the others ignored.", root, counts, form)
    return taken


def _from_waves(folder: Path) -> Track:
    stems = {stem: Cell(folder / f"{stem}.wav") for stem in STEMS}
    return Track(folder.name, stems, Cell(folder / f"{MIXTURE}.wav"))


def _from_streams(path: Path) -> Track:
    stems = {stem: Cell(path, stream=STREAMS[stem]) for stem in STEMS}
    return Track(path.name.removesuffix(SUFFIX), stems, Cell(path, stream=STREAMS[MIXTURE]))


def official_splits() -> dict[str, tuple[str, str]]:
    """Name and split of the 150 songs, by the key of their name.

    The songs are those of the index CSVs in `data/`; which of them validate is for the `musdb` package
    to say, so that our numbers are made on the same songs as everybody's.
    """
    folder = _lists()
    songs = {
        _key(track.name): (track.name, split)
        for split in SPLITS
        for track in index.read(folder / f"musdb18_{split}.csv", folder).tracks
    }
    validation = {_key(name) for name in validation_songs()}
    return {
        key: (name, split if split == "test" else "valid" if key in validation else "train")
        for key, (name, split) in songs.items()
    }


def _lists() -> Path:
    """Where the index CSVs are: inside an installed package, or in the `data/` of a checkout."""
    here = Path(__file__).resolve()
    installed = here.with_name("csv")
    return installed if installed.is_dir() else here.parents[3] / "data"


def validation_songs() -> list[str]:
    """The 14 songs that `musdb` itself holds out of the training folder."""
    # Its configuration is read as a file: importing musdb needs ffmpeg and ffprobe on the PATH.
    spec = importlib.util.find_spec("musdb")
    if spec is None or spec.origin is None:
        raise UserError(
            "data=musdb18 takes its validation songs from the package musdb, which is not installed. "
            "Install it: pip install 'stemwise[eval]'."
        )
    config = Path(spec.origin).with_name("configs") / "mus.yaml"
    return list(yaml.safe_load(config.read_text(encoding="utf-8"))["validation_tracks"])


def _report(root: Path, songs: Found, official: Mapping[str, tuple[str, str]]) -> None:
    if absent := [name for key, (name, _) in official.items() if key not in songs]:
        log.warning("%s: %d of the %d songs are absent: %s", root, len(absent), len(official), _some(absent))
    if unknown := [f"{folder}/{track.name}" for key, (folder, track) in songs.items() if key not in official]:
        log.warning(
            "%s: %d songs are not MUSDB18's, each stays in its folder's split: %s",
            root,
            len(unknown),
            _some(unknown),
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")


def _key(name: str) -> str:
    """Letters and digits of a name: file systems and archives change case, accents' form and apostrophes."""
    return "".join(letter for letter in unicodedata.normalize("NFKC", name).casefold() if letter.isalnum())
