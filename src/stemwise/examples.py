"""What a model is shown: random crops to learn from, fixed crops and whole songs to be judged by.

Items are what a loader would make batches of, in float32. A loader that asks for many at once gets a batch: of cached
magnitudes that nothing changes, as the bytes that lie in the cache, which `unpacked` turns into the same float32
where they are needed.

Every random draw comes from a generator keyed by (seed, epoch, position in the epoch): an example is the same
whichever worker or rank makes it, and in whatever order.
Axes: R rows of a stacked example, S stem, C channel, T frame, F bin, N sample.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from stemwise import augment, signals
from stemwise.augment import Augmentation
from stemwise.cache import fingerprints
from stemwise.cache.storage import Complex
from stemwise.cache.store import Cache, Source
from stemwise.catalogue import Song
from stemwise.sharing import Pool, Whereabouts
from stemwise.spectrogram import Spectrogram


@dataclass(frozen=True)
class Place:
    """Position `position` of epoch `epoch`, which shows song number `song`."""

    epoch: int
    position: int
    song: int


class Origin(NamedTuple):
    """Where an example came from: its place in the order, its songs, and the first frame in each of them.

    Songs are several if stems of different ones were mixed. A tuple goes as it is through loaders' workers, pinned
    memory and Lightning.
    """

    epoch: int
    position: int
    songs: tuple[str, ...]
    starts: tuple[int, ...]


class Order(Sampler[Place]):
    """The order of an epoch: every song `per_song` times, each round in an order of its own.

    The epoch is filled up to whole batches over all ranks with songs of a further round; rank r of W takes
    every W-th place, so that the examples of a step are the same for any number of ranks. A run that had
    shown some examples when it stopped goes on behind them, `shown` in number over all ranks. If it goes on with
    another `multiple`, the number in a step over all ranks, it begins at the last whole step, as all ranks must.
    """

    def __init__(
        self, count: int, per_song: int, multiple: int, seed: int, rank: int = 0, ranks: int = 1, shown: int = 0
    ) -> None:
        self.count, self.seed, self.rank, self.ranks = count, seed, rank, ranks
        self.total = -(-count * per_song // multiple) * multiple
        self.first_epoch, behind = divmod(shown, self.total)
        self.steps_behind = behind // multiple
        self.skipped = self.steps_behind * multiple
        self.counted_from = None if shown else 0
        self.epoch = self.first_epoch

    def set_epoch(self, epoch: int) -> None:
        """Lightning's hook. What it counts from after a stop is not what was shown: it closes the epoch."""
        if self.counted_from is None:
            self.counted_from = epoch
        self.epoch = self.first_epoch + epoch - self.counted_from

    def __len__(self) -> int:
        return self.total // self.ranks

    def __iter__(self) -> Iterator[Place]:
        rounds = -(-self.total // self.count)
        order = np.concatenate([self._round(number) for number in range(rounds)])
        start = self.skipped if self.epoch == self.first_epoch else 0
        for position in range(start + self.rank, self.total, self.ranks):
            yield Place(self.epoch, position, int(order[position]))

    def _round(self, number: int) -> np.ndarray:
        return np.random.default_rng([self.seed, self.epoch, number]).permutation(self.count)


class RandomCrops(Dataset[dict[str, Any]]):
    """Examples to learn from: T frames from anywhere in a song, changed at random.

    An item is the mixture's magnitudes (C, T, F) and the stems' (S, C, T, F), or with `phase` their spectra, which the
    source must have. If it has, the
    rows (the stems and, unless the stems are all there is, the rest of the mixture) can be changed one by
    one, and the mixture is their sum; else mixture and stems are used as recorded. `origin` says where it came from.
    `whereabouts` shows to other processes which song is read.
    """

    def __init__(
        self,
        songs: Sequence[Song],
        source: Source,
        augmentations: Sequence[Augmentation],
        complete: bool,
        seed: int,
        pool: Pool | None = None,
        phase: bool = False,
    ) -> None:
        self.pool, self.phase = pool or Pool(0), phase
        self.whereabouts = Whereabouts(self.pool.workers)
        self.songs, self.source, self.complete, self.seed = songs, source, complete, seed
        self.frames = source.settings.frames
        self.remix = next((a for a in augmentations if isinstance(a, augment.Remix)), None)
        self.mixup = next((a for a in augmentations if isinstance(a, augment.Mixup)), None)
        changes = [a for a in augmentations if not isinstance(a, augment.Remix | augment.Mixup)]
        self.on_rows = [change for change in changes if change.needs_phase]
        self.on_magnitudes = [change for change in changes if not change.needs_phase]

    def __len__(self) -> int:
        return len(self.songs)

    def __getitems__(self, places: Sequence[Place]) -> dict[str, Any]:
        """A batch of the items at `places`, perhaps packed."""
        if self.on_magnitudes or not is_packable(self.source):
            examples = [self[place] for place in places]
            origins = [example.pop("origin") for example in examples]  # a collation would take them apart
            return {**default_collate(examples), "origin": origins}
        songs = [self.songs[place.song] for place in places]
        starts = [self._start(place.song, self._random(place)) for place in places]
        origins = [self._origin(place, {place.song: start}) for place, start in zip(places, starts, strict=True)]
        self.whereabouts.at(places[0].song)  # of a whole batch: it is read at once
        return {**packed(songs, starts, self.source, self.pool), "origin": origins}

    def _random(self, place: Place) -> np.random.Generator:
        # The number 1 keeps these draws apart from those of the order, which has the same seed.
        return np.random.default_rng([self.seed, place.epoch, place.position, 1])

    def __getitem__(self, place: Place) -> dict[str, Any]:
        random = self._random(place)
        made = self._mixed if self.source.has_phase else self._recorded
        example, starts = made(place.song, random)
        example = example if self.phase else example.abs()
        for change in self.on_magnitudes:
            example = change(example, random)
        name, origin = self.songs[place.song].name, self._origin(place, starts)
        return {"mixture": example[0], "stems": example[1:], "name": name, "origin": origin}

    def _origin(self, place: Place, starts: Mapping[int, int]) -> Origin:
        songs = tuple(self.songs[number].name for number in starts)
        return Origin(place.epoch, place.position, songs, tuple(starts.values()))

    def _start(self, number: int, random: np.random.Generator) -> int:
        self.whereabouts.at(number)
        return _random_start(self.songs[number], self.source, self.frames, random)

    def _recorded(self, number: int, random: np.random.Generator) -> tuple[Tensor, dict[int, int]]:
        """Mixture and stems (1 + S, C, T, F) as the source has them, and the first frame in the song."""
        start = self._start(number, random)
        return crop(self.songs[number], self.source, start, self.frames), {number: start}

    def _mixed(self, number: int, random: np.random.Generator) -> tuple[Tensor, dict[int, int]]:
        """The same as spectra that were changed row by row and added up, and the first frame in each song."""
        rows = len(self.songs[number].stems) + (not self.complete)
        chosen = self.remix.songs(number, len(self.songs), rows, random) if self.remix else [number] * rows
        added = self.mixup.songs(len(self.songs), rows, random) if self.mixup else [None] * rows
        starts = {song: self._start(song, random) for song in sorted({*chosen, *added} - {None})}
        spectra = torch.stack([self._row(row, song, starts[song]) for row, song in enumerate(chosen)])
        for row, song in enumerate(added):
            if song is not None:
                spectra[row] += self._row(row, song, starts[song])
        for change in self.on_rows:
            spectra = change(spectra, random)
        mixture = spectra.sum(dim=0, keepdim=True)
        return torch.cat([mixture, spectra[: len(self.songs[number].stems)]]), starts

    def _row(self, row: int, number: int, start: int) -> Tensor:
        """Spectra (C, T, F) of a stem, or of what is in the mixture besides the stems."""
        self.whereabouts.at(number)
        song = self.songs[number]
        if row < len(song.stems):
            return self.source.crop(song.stems[row], start, self.frames)
        rest = self.source.crop(song.mixture, start, self.frames)
        for stem in song.stems:
            rest = rest - self.source.crop(stem, start, self.frames)
        return rest


class FixedCrops(Dataset[dict[str, Any]]):
    """The middle T frames of each song as recorded, for the validation loss: mixture and stems as in `RandomCrops`."""

    def __init__(self, songs: Sequence[Song], source: Source, pool: Pool | None = None, phase: bool = False) -> None:
        self.songs, self.source, self.frames = songs, source, source.settings.frames
        self.pool, self.phase = pool or Pool(0), phase

    def __len__(self) -> int:
        return len(self.songs)

    def __getitem__(self, number: int) -> dict[str, Any]:
        song = self.songs[number]
        example = crop(song, self.source, self._start(song), self.frames)
        example = example if self.phase else example.abs()
        return {"mixture": example[0], "stems": example[1:], "name": song.name}

    def __getitems__(self, numbers: Sequence[int]) -> dict[str, Any]:
        """A batch of these items, perhaps packed."""
        if not is_packable(self.source):
            return default_collate([self[number] for number in numbers])
        songs = [self.songs[number] for number in numbers]
        return packed(songs, [self._start(song) for song in songs], self.source, self.pool)

    def _start(self, song: Song) -> int:
        return max(self.source.frame_count(song.mixture) - self.frames, 0) // 2


class WholeSongs(Dataset[dict[str, Any]]):
    """Waveforms of whole songs: the mixture (C, N) and its stems (S, C, N)."""

    def __init__(self, songs: Sequence[Song], settings: Spectrogram) -> None:
        self.songs, self.settings = songs, settings

    def __len__(self) -> int:
        return len(self.songs)

    def __getitem__(self, number: int) -> dict[str, Any]:
        song = self.songs[number]
        parts = (song.mixture, *song.stems)
        with fingerprints.unchanged(*parts):
            waveforms = signals.stack(parts, self.settings)
        return {"mixture": waveforms[0], "stems": waveforms[1:], "name": song.name}


class EveryNth(Sampler[int]):
    """Items `rank`, `rank + ranks`, …: each rank's share of a validation set, none of it twice."""

    def __init__(self, count: int, rank: int = 0, ranks: int = 1) -> None:
        self.places = range(rank, count, ranks)

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)


def is_packable(source: Source) -> TypeGuard[Cache]:
    """Whether the records of the source are the magnitudes that a model sees."""
    return isinstance(source, Cache) and not source.has_phase


def packed_size(batch_size: int, stems: int, cache: Cache) -> int:
    """Bytes of the records of a batch."""
    return batch_size * (1 + stems) * cache.settings.frames * cache.storage.dtype(cache.settings).itemsize


def packed(songs: Sequence[Song], starts: Sequence[int], cache: Cache, pool: Pool) -> dict[str, Any]:
    """The crops of songs from these frames on as the cache's records (B, 1 + S, T, bytes of one), mixtures first."""
    shape = (len(songs), 1 + len(songs[0].stems), cache.settings.frames, cache.storage.dtype(cache.settings).itemsize)

    def fill(records: Tensor) -> None:
        for song, start, rows in zip(songs, starts, records.numpy(), strict=True):
            for signal, row in zip((song.mixture, *song.stems), rows, strict=True):
                cache.read(signal, start, row)

    return {"records": pool.filled(shape, fill), "name": [song.name for song in songs]}


def unpacked(batch: dict[str, Any], source: Source, pool: Pool) -> dict[str, Any]:
    """A batch with `mixture` (B, C, T, F) and `stems` (B, S, C, T, F) in float32, on the device of its records.

    A batch that is not packed stays as it is. On the CPU, the numbers go into memory from `pool`.
    """
    if "records" not in batch or not is_packable(source):
        return batch
    records, storage, settings = batch["records"], source.storage, source.settings
    assert not isinstance(storage, Complex)  # which is not packable
    count, rows, frames = records.shape[:3]
    shape = (settings.channels, frames, settings.bins)

    def magnitudes(memory: Tensor) -> tuple[Tensor, Tensor]:
        mixture, stems = memory.view(torch.float32).split(
            [count * math.prod(shape), count * (rows - 1) * math.prod(shape)]
        )
        return mixture.view(count, *shape), stems.view(count, rows - 1, *shape)

    def fill(memory: Tensor) -> None:
        for out, packed in zip(magnitudes(memory), (records[:, 0], records[:, 1:]), strict=True):
            storage.unpack(packed, out)

    size = (4 * count * rows * math.prod(shape),)
    if records.device.type == "cpu":
        memory = pool.filled(size, fill)
    else:
        memory = torch.empty(size, dtype=torch.uint8, device=records.device)
        fill(memory)
    mixture, stems = magnitudes(memory)
    return {name: value for name, value in batch.items() if name != "records"} | {"mixture": mixture, "stems": stems}


def crop(song: Song, source: Source, start: int, frames: int) -> Tensor:
    """Mixture and stems (1 + S, C, T, F) from frame `start` on."""
    return torch.stack([source.crop(signal, start, frames) for signal in (song.mixture, *song.stems)])


def _random_start(song: Song, source: Source, frames: int, random: np.random.Generator) -> int:
    """A first frame such that the crop lies within the song, every such frame equally likely."""
    return int(random.integers(max(source.frame_count(song.stems[0]) - frames, 0) + 1))
