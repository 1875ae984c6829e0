"""The songs of a data set: its indexes, read and checked, as the songs that training and evaluation need."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stemwise import index
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
    """

    def __init__(
        self, stems: Sequence[str], sums: Sums, root: Place | None, dataset: Find | None, csvs: Mapping[str, Place]
    ) -> None:
        self.stems, self.sums = tuple(stems), sums
        self.root, self.dataset, self.csvs = root, dataset, csvs
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

    def take(self, split: str, seconds: Sequence[float | None]) -> None:
        """Takes over the tracks' lengths from a process that has checked the index, in place of looking at the files.

        Raises `UserError` if that was another index.
        """
        found = self.index(split)
        if len(seconds) != len(found.tracks):
            raise UserError(
                f"{found.source}: has {len(found.tracks)} songs here and {len(seconds)} where the first rank reads it. "
                "Leave it alone while ranks start, and see that all machines have the same."
            )
        self._checked[split] = index.measured(found, seconds)

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
            self._songs[split] = songs(self.checked(split), self.stems, self.sums)
        return self._songs[split]

    def keep(self, split: str, songs: list[Song]) -> None:
        """Leaves out all other songs of a split."""
        self._songs[split] = songs

    def write(self, folder: Path) -> None:
        """Writes the index CSVs that were checked."""
        for split, used in self._checked.items():
            index.write(used, folder / f"{split}.csv")
