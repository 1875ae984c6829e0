"""The LightningDataModule: indexes are read and checked, spectrograms cached, examples served in batches."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from stemwise import data_settings, examples, sharing, workers
from stemwise.augment import Augmentation
from stemwise.cache import entries, fingerprints, storage
from stemwise.cache.store import Cache, Direct, Source
from stemwise.catalogue import Catalogue, Find, Song, Sums
from stemwise.errors import UserError, raise_all
from stemwise.examples import RandomCrops
from stemwise.index import Index, Signal
from stemwise.sharing import Pool
from stemwise.spectrogram import Spectrogram

log = logging.getLogger(__name__)

SPLITS = ("train", "valid")  # what a training reads


class StemData(lightning.LightningDataModule):
    """Songs with stems, from index CSVs or from a data set's own layout.

    `train`, `valid` and `test` are index CSVs with paths relative to `root`, all of which may be URLs; splits that
    are not given come from `dataset`, a function of the root (`stemwise.datasets`). `sums` is explained at
    `index.sources`.
    `cache` is the folder of the spectrogram cache, or None to compute every crop anew; `storage` names what
    it holds (`storage.by_name`). It is kept within `cache_limit` (such as "50G") by removing what was used least
    recently; `verify` has every byte of it checked before a run, not only what was changed or copied.
    `local_cache` is a folder of each node for copies of what is read from `cache`, as much as fits into
    `local_cache_limit`, or onto the disk. An epoch shows each song `examples_per_song` times.
    `on_error="skip"` leaves out, counted and named, the songs that cannot be decoded; `raise` stops. It needs
    the cache, whose build decodes every song. With `speeds`, in percent, the songs to train with are there at each of
    these speeds as well, as a tape plays them. An example has `frames` frames, or as many as a window of the model's:
    short examples are many different ones in a batch, and long windows have few edges. `phase` asks for spectra in
    place of magnitudes, for losses that need them.
    """

    def __init__(
        self,
        stems: Sequence[str],
        spectrogram: Spectrogram,
        root: str | Path | None = None,
        dataset: Find | None = None,
        train: str | Path | None = None,
        valid: str | Path | None = None,
        test: str | Path | None = None,
        sums: Sums | None = None,
        cache: str | Path | None = None,
        storage: str = "half",
        cache_limit: str | float | None = None,
        local_cache: str | Path | None = None,
        local_cache_limit: str | float | None = None,
        verify: bool = False,
        augment: Mapping[str, Augmentation] | None = None,
        batch_size: int = 4,
        examples_per_song: int = 1,
        num_workers: int | None = None,
        on_error: str = "raise",
        seed: int = 0,
        speeds: Sequence[int] = (),
        frames: int | None = None,
        phase: bool = False,
    ) -> None:
        super().__init__()
        self.stems = tuple(stems)
        self.spectrogram = data_settings.with_frames(spectrogram, frames)
        data_settings.check_speeds(speeds)
        given = ("train", train), ("valid", valid), ("test", test)
        csvs = {split: data_settings.place(split, csv) for split, csv in given if csv is not None}
        where = None if root is None else data_settings.place("root", root)
        self.catalogue = Catalogue(stems, sums or {}, where, dataset, csvs, speeds)
        self.cache, self.storage = cache, storage
        self.cache_limit, self.verify = data_settings.size("cache_limit", cache_limit), verify
        self.local_cache, self.local_cache_limit = (
            local_cache,
            data_settings.size("local_cache_limit", local_cache_limit),
        )
        self.augmentations = list((augment or {}).values())
        self.batch_size, self.examples_per_song = batch_size, examples_per_song
        cores = len(os.sched_getaffinity(0))
        self.num_workers = min(cores, 8) if num_workers is None else num_workers
        self.on_error, self.seed, self.phase = on_error, seed, phase
        self._looked = False
        self._copied: Cache | None = None  # the cache with its local copies
        self._magnitudes: Pool | None = None
        self._counted = True  # whether what this rank validates is not another's as well
        self._resumed: int | None = None  # examples that were shown, of all ranks, as a checkpoint says
        self._origin = (0, 0)  # the run's batches, and the examples shown with them, when the loader was made
        self._crops: RandomCrops | None = None
        self._check_settings()

    def _check_settings(self) -> None:
        for name, least in (("batch_size", 1), ("examples_per_song", 1), ("num_workers", 0), ("seed", 0)):
            data_settings.check_number(name, getattr(self, name), least)
        data_settings.check_verify(self.verify)
        data_settings.check_on_error(self.on_error, self.cache)
        data_settings.check_caches(self.cache, self.local_cache)
        data_settings.check_phase(self.storage, self.augmentations, self.phase)

    # Lightning's hooks

    def prepare_data(self) -> None:
        """Builds what is missing in the cache. Runs once per machine."""
        self._look_once()
        songs = self._songs_to_learn()
        source = self.source
        if isinstance(source, Cache):
            self._build(source, songs)

    def indexes(self) -> dict[str, Index]:
        """The checked indexes of what a training reads. Raises `UserError`."""
        return {split: self.catalogue.checked(split) for split in SPLITS}

    def _look_once(self) -> None:
        """Of several ranks, the first looks at the files, and the others take over what it found."""
        rank, ranks = self._ranks()
        if ranks > 1 and not self._looked:
            cached = self.cache is not None
            found = sharing.from_first("songs", rank, lambda: self.catalogue.findings(SPLITS, cached))
            self.catalogue.take(found, cached)
        self._looked = True

    def build_cache(self, part: int, parts: int) -> tuple[int, int]:
        """Builds share `part`, from 0 on, of `parts`; returns how many entries are there then, and of how many."""
        cache, songs = self.source, self._songs_to_learn()
        if not isinstance(cache, Cache):
            raise UserError("data.cache=null: there is no cache to build. Set data.cache to a folder.")
        self._build(cache, songs, part, parts)
        paths = self.entries()
        return sum(path.exists() for path in paths), len(paths)

    def entries(self) -> set[Path]:
        """The entries of the cache that training reads, whether they are there or not; none if there is no cache."""
        cache, songs = self.source, self._songs_to_learn()
        if not isinstance(cache, Cache):
            return set()
        return {cache.path(signal) for split, song in songs for signal in self._needed(song, split)}

    def setup(self, stage: str) -> None:
        self._look_once()
        if stage == "fit":
            self._say_short()
            self._note_files()
        # With on_error=raise the build has raised: what is gone by now, its first reader computes.
        if isinstance(self.source, Cache) and self.on_error == "skip":
            self._leave_out_missing(self.source)
        if isinstance(self.source, Cache) and self.local_cache is not None and self._copied is None:
            self._copied = self._with_copies(self.source, Path(self.local_cache))

    def _with_copies(self, cache: Cache, folder: Path) -> Cache:
        # The songs to learn from come first, and whole: validation reads a crop of each now and then.
        copied = cache.with_copies(folder, self._lengths(self._songs_to_learn()), self.local_cache_limit)
        if not self.trainer or self.trainer.local_rank == 0:
            copied.prepare_copies(self.verify)
        return copied

    @property
    def source(self) -> Source:
        """Where crops come from."""
        if self._copied is not None:
            return self._copied
        kind = storage.by_name(self.storage)
        if self.cache is None:
            return Direct(self.spectrogram, kind.has_phase)
        return Cache(Path(self.cache), self.spectrogram, kind)

    def _needed(self, song: Song, split: str) -> tuple[Signal, ...]:
        """The spectrograms of a song that training reads; a mixture that is summed anew is not among them."""
        summed = split == "train" and storage.by_name(self.storage).has_phase and self.catalogue.complete
        return song.stems if summed else (song.mixture, *song.stems)

    def _songs_to_learn(self) -> list[tuple[str, Song]]:
        return [(split, song) for split in SPLITS for song in self.catalogue.songs(split)]

    def _lengths(self, songs: Sequence[tuple[str, Song]]) -> dict[Signal, float]:
        """Seconds of each spectrogram that training reads."""
        return {signal: song.seconds for split, song in songs for signal in self._needed(song, split)}

    def _build(self, cache: Cache, songs: Sequence[tuple[str, Song]], part: int = 0, parts: int = 1) -> None:
        lengths = self._lengths(songs)
        if self.cache_limit is not None:
            cache.make_room(lengths, self.cache_limit)
        look = entries.check if self.verify else entries.look
        failed = cache.build(cache.share(lengths, part, parts), look=look)
        broken = [
            f"{split}: {song.name}: {failed[signal]}"
            for split, song in songs
            for signal in self._needed(song, split)
            if signal in failed
        ]
        broken = list(dict.fromkeys(broken))  # a broken stem breaks the sum that it is part of, too
        if self.on_error == "raise":
            raise_all(broken, heading="Songs that cannot be decoded (data.on_error=skip leaves them out)")
        for problem in broken:
            log.warning("%s", problem)

    def _leave_out_missing(self, cache: Cache) -> None:
        """What is not in the cache by now could not be decoded."""
        for split in SPLITS:
            there: list[Song] = []
            gone: list[Song] = []
            for song in self.catalogue.songs(split):
                found = all(cache.path(signal).exists() for signal in self._needed(song, split))
                (there if found else gone).append(song)
            if gone:
                names = ", ".join(song.name for song in gone)
                log.warning("%s: %d of %d songs left out, broken: %s", split, len(gone), len(gone) + len(there), names)
            if not there:
                raise UserError(f"data.{split}: no song is left that can be decoded. See the warnings above.")
            self.catalogue.keep(split, there)

    def _note_files(self) -> None:
        """Has the files that are read in a run noted before there are workers: all must know the same ones."""
        for split, song in self._songs_to_learn():
            if split == "valid" or isinstance(self.source, Direct):
                for signal in (song.mixture, *song.stems):
                    fingerprints.check_unchanged(signal)

    def _say_short(self) -> None:
        settings = self.spectrogram
        length = settings.frames * settings.hop / settings.sample_rate
        short = [s.name for split in SPLITS for s in self.catalogue.songs(split) if s.seconds < length]
        if short:
            names = ", ".join(short[:3]) + (", …" if len(short) > 3 else "")
            log.warning(
                "%d songs are shorter than an example (%.2f s) and padded with silence: %s",
                len(short),
                length,
                names,
            )

    # Loaders

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        songs, pool = self.catalogue.songs("train"), Pool(self._packed_size(), self.num_workers)
        crops = examples.RandomCrops(
            songs, self.source, self.augmentations, self.catalogue.complete, self.seed, pool, self.phase
        )
        order = self._order()
        self._crops = crops
        self._origin = self._batches(), order.first_epoch * order.total + order.skipped
        return self._loader(crops, order, self.batch_size, persistent_workers=self.num_workers > 0)

    def _order(self) -> examples.Order:
        rank, ranks = self._ranks()
        step = self.batch_size * ranks
        shown = self._batches() * step if self._resumed is None else self._resumed
        return examples.Order(
            len(self.catalogue.songs("train")), self.examples_per_song, step, self.seed, rank, ranks, shown
        )

    @property
    def position(self) -> tuple[int, int]:
        """The epoch in which a run goes on, and how many batches of it, as large as they are now, lie behind."""
        order = self._order()
        return order.first_epoch, order.steps_behind

    def _batches(self) -> int:
        """Batches of this run so far, on this rank. What was begun and not finished is shown again."""
        if not self.trainer:
            return 0
        total: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return int(total.processed)

    @property
    def shown(self) -> int:
        """Examples that were shown since the run began, on all ranks."""
        batches, shown = self._origin
        return shown + (self._batches() - batches) * self.batch_size * self._ranks()[1]

    def state_dict(self) -> dict[str, Any]:
        """Counts examples, not batches: a run may go on with another number of ranks."""
        return {"shown": self.shown}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict["shown"]

    def read_by(self, process: int) -> str | None:
        """The song that a worker of the training's loader read last, dead or alive; None if there is no such worker."""
        number = self._crops.whereabouts.of(process) if self._crops else None
        return None if self._crops is None or number is None else self._crops.songs[number].name

    def val_dataloader(self) -> list[DataLoader[dict[str, Any]]]:
        """Fixed crops for the loss, and whole songs for the SDR.

        All ranks must take part: one for which no song is left does the first one again, and `counted` is false.
        """
        songs, (rank, ranks) = self.catalogue.songs("valid"), self._ranks()
        self._counted = rank < len(songs)
        share = examples.EveryNth(len(songs), rank if self._counted else 0, ranks)
        crops = self._loader(examples.FixedCrops(songs, self.source, phase=self.phase), share, self.batch_size)
        return [crops, self._loader(examples.WholeSongs(songs, self.spectrogram), share, None)]

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Magnitudes in float32 from what a loader handed over, on the device."""
        if self._magnitudes is None:
            self._magnitudes = Pool(4 * self._numbers())
        return {**examples.unpacked(batch, self.source, self._magnitudes), "counted": self._counted}

    def _numbers(self) -> int:
        """Magnitudes in a batch."""
        settings = self.spectrogram
        return self.batch_size * (1 + len(self.stems)) * settings.channels * settings.frames * settings.bins

    def _packed_size(self) -> int:
        source = self.source
        return examples.packed_size(self.batch_size, len(self.stems), source) if examples.is_packable(source) else 0

    def _loader(self, dataset: Any, sampler: Any, batch_size: int | None, **options: Any) -> DataLoader[dict[str, Any]]:
        count = min(self.num_workers, -(-len(sampler) // (batch_size or 1)))
        return workers.Loader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=count,
            collate_fn=_as_is,  # the data sets make whole batches
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=workers.leave_signals,
            # A loader draws a seed; from the global generator, dropout after a resume would draw otherwise.
            generator=torch.Generator(),
            **options,
        )

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def _as_is(batch: Any) -> Any:
    return batch
