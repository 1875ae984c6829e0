"""The songs of a data set: its indexes, read and checked, as the songs that training and evaluation need."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stemwise import index, progress
from stemwise.cache import fingerprints
from stemwise.errors import UserError
from stemwise.files.places import Place, Url
from stemwise.index import Index, Signal

Find = Callable[[Path | None], Mapping[str, Index]]
Sums = Mapping[str, Sequence[str] | str]


@dataclass(frozen=True)
class Song:
    """The waveforms of one track that training or evaluation needs."""

    name: str
    mixture: Signal
    stems: tuple[Signal, ...]
    seconds: float

    def at(self, speed: int) -> "Song":
        """The song at `speed` percent of its own."""
        mixture, *stems = (
            tuple(replace(cell, speed=speed) for cell in signal) for signal in (self.mixture, *self.stems)
        )
        return Song(f"{self.name} at {speed} %", mixture, tuple(stems), self.seconds * 100 / speed)


def songs(split: Index, stems: Sequence[str], sums: Sums) -> list[Song]:
    """The tracks of a checked index as songs of these stems."""
    parts, _ = index.sources(split.columns, stems, sums)
    return [
        Song(
            track.name,
            track.mixture_signal,
            tuple(track.signal(columns) for columns in parts.values()),
            track.duration or 0.0,
        )
        for track in split.tracks
    ]


class Catalogue:
    """The songs of each split with these stems.

    `csvs` has the index CSV of a split, with paths relative to `root`, all of which may be URLs; a split that is not
    there comes from `dataset`, a function of the root (`stemwise.datasets`). `sums` is explained at `index.sources`.
    The songs to train with are there at each of `speeds`, in percent, too.
    """

    def __init__(
        self,
        stems: Sequence[str],
        sums: Sums,
        root: Place | None,
        dataset: Find | None,
        csvs: Mapping[str, Place],
        speeds: Sequence[int] = (),
    ) -> None:
        self.stems, self.sums = tuple(stems), sums
        self.root, self.dataset, self.csvs, self.speeds = root, dataset, csvs, tuple(speeds)
        self._found: Mapping[str, Index] | None = None
        self._read: dict[str, Index] = {}
        self._checked: dict[str, Index] = {}
        self._songs: dict[str, list[Song]] = {}

    def index(self, split: str) -> Index:
        """The index of a split as it was read; nobody has looked at its files."""
        if split not in self._read:
            self._read[split] = self._find(split)
        return self._read[split]

    def _find(self, split: str) -> Index:
        if split in self.csvs:
            csv = self.csvs[split]
            return index.read(csv, self.root or csv.parent)
        if self.dataset is None:
            raise UserError(f"data.{split}: no index CSV is given. Set data.{split}=PATH.csv.")
        if self._found is None:
            if isinstance(self.root, Url):
                raise UserError(
                    f"data.root={self.root}: only songs that are listed in CSVs may lie behind a URL. "
                    f"Set data=csv data.train=… data.valid=…, or copy them to this machine."
                )
            self._found = self.dataset(self.root)
        found = self._found[split]
        if not found.tracks:
            raise UserError(f"{found.source}: the split {split!r} is empty. Add songs, or set data.{split} to a CSV.")
        return found

    def checked(self, split: str) -> Index:
        """The index of a split, checked: every file is there and fits the others. Raises `UserError`."""
        if split not in self._checked:
            self._checked[split] = index.check(self.index(split), self.stems, self.sums)
        return self._checked[split]

    @property
    def complete(self) -> bool:
        """Whether the stems together are the whole mixture, as far as the index to train with tells."""
        found = self.index("train")
        parts, _ = index.sources(found.columns, self.stems, self.sums)
        # Once each: a column in two stems would be twice in their sum.
        claimed = sorted(column for stem in parts.values() for column in stem)
        return claimed == sorted(found.columns) and not (len(self.stems) == 1 and found.has_mixture)

    def songs(self, split: str) -> list[Song]:
        """The songs of a split, without those that were left out. Raises `UserError` as `checked` does."""
        if split not in self._songs:
            found = songs(self.checked(split), self.stems, self.sums)
            faster = [song.at(speed) for speed in self.speeds for song in found] if split == "train" else []
            self._songs[split] = found + faster
        return self._songs[split]

    def keep(self, split: str, songs: list[Song]) -> None:
        """Leaves out all other songs of a split."""
        self._songs[split] = songs

    def findings(self, splits: Sequence[str], cached: bool) -> dict[str, Any]:
        """What there is to know about these splits when all of their files were looked at, as plain values.

        With `cached`, the fingerprints of local files as well. Raises `UserError` as `checked` does.
        """
        indexes = {split: self.checked(split) for split in splits}
        seconds = {split: [track.duration for track in found.tracks] for split, found in indexes.items()}
        files = self._files(splits, cached)
        reading = progress.track(files, what="Reading parts of files", total=len(files))
        return {"seconds": seconds, "marks": [fingerprints.mark(file) for file in reading]}

    def take(self, found: Mapping[str, Any], cached: bool) -> None:
        """Takes over what another process found, in place of looking. Raises `UserError` if its index is another."""
        for split, seconds in found["seconds"].items():
            self._checked[split] = self._measured(self.index(split), seconds)
        for file, mark in zip(self._files(list(found["seconds"]), cached), found["marks"], strict=True):
            fingerprints.take(file, mark)

    def _measured(self, found: Index, seconds: Sequence[float | None]) -> Index:
        if len(seconds) != len(found.tracks):
            raise UserError(
                f"{found.source}: has {len(found.tracks)} songs here and {len(seconds)} where the first rank reads it. "
                "Leave it alone while ranks start, and see that all machines have the same."
            )
        return index.measured(found, seconds)

    def _files(self, splits: Sequence[str], cached: bool) -> list[Place]:
        """The files behind URLs and, with `cached`, all others, each once and in the same order in every process."""
        songs = [song for split in splits for song in self.songs(split)]
        cells = [cell.path for song in songs for signal in (song.mixture, *song.stems) for cell in signal]
        return [path for path in dict.fromkeys(cells) if cached or isinstance(path, Url)]

    def write(self, folder: Path) -> None:
        """Writes the index CSVs that were checked."""
        for split, used in self._checked.items():
            index.write(used, folder / f"{split}.csv")
