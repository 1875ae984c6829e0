"""Spectrograms on disk, computed once: a crop in time reads only its own frames.

An entry is one signal's spectrogram, a NumPy file of T records (see `storage`), named after a digest of
everything that shapes it: the files' fingerprints, the STFT settings, the storage and the format's version.
An entry appears under its name only when it is complete; while it is written it is called `.part` and locked,
so that a build can be killed anywhere and several may run at once.

`Direct` serves the same crops without a cache, straight from the files.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stemwise import audio, progress, signals, spectrogram
from stemwise.errors import UserError
from stemwise.index import Signal
from stemwise.spectrogram import Spectrogram
from stemwise.storage import Decibel, Storage

log = logging.getLogger(__name__)

FORMAT = 1
SPARE_BYTES = 1 << 28  # left free on the disk: logs and checkpoints must still fit


@dataclass(frozen=True)
class Cache:
    """The entries of one folder for one kind of spectrogram."""

    folder: Path
    settings: Spectrogram
    storage: Storage

    @property
    def has_phase(self) -> bool:
        return self.storage.has_phase

    def path(self, signal: Signal) -> Path:
        """Where the entry of `signal` lies, whether it is there yet or not."""
        shape = (self.settings.sample_rate, self.settings.channels, self.settings.n_fft, self.settings.hop)
        files = [(fingerprint(cell.path), cell.stream, cell.channel) for cell in signal]
        parts = (FORMAT, self.storage.name, *shape, self.settings.bins, files)
        digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=20).hexdigest()
        return self.folder / digest[:2] / f"{digest}.npy"

    def frame_count(self, signal: Signal) -> int:
        """T of the whole signal."""
        return len(self._records(signal))

    def crop(self, signal: Signal, start: int, frames: int) -> Tensor:
        """Frames `start` to `start + frames` (C, frames, F): complex if `has_phase`, else magnitudes.

        What lies outside the signal is zero.
        """
        records = self._records(signal)
        found = self.storage.decode(records[max(start, 0) : max(start + frames, 0)])
        return _pad(found, start, frames)

    def _records(self, signal: Signal) -> np.ndarray:
        path = self.path(signal)
        try:
            records = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: cache entry cannot be read ({error}). Delete it and run again.") from None
        return records

    def build(self, lengths: Mapping[Signal, float], workers: int | None = None) -> dict[Signal, str]:
        """Computes the entries that are not there yet and returns what is wrong with those that failed.

        `lengths` are the signals' durations in seconds. Raises `UserError` before it starts if the disk has
        too little room, and where the folder cannot be written.
        """
        missing = [signal for signal in lengths if not self.path(signal).exists()]
        if not missing:
            return {}
        self._check_folder()
        self._check_room([lengths[signal] for signal in missing])
        cores = len(os.sched_getaffinity(0))
        loader = DataLoader(
            _Entries(self, missing),
            batch_size=None,
            num_workers=min(cores if workers is None else workers, len(missing)),
            prefetch_factor=None if workers == 0 else 1,
            worker_init_fn=_one_thread,
            # A loader draws a seed; from the global generator, a run that builds would differ from one that does not.
            generator=torch.Generator(),
        )
        failed = {}
        for number, message in progress.track(loader, what="Computing spectrograms", total=len(missing)):
            if number < 0:
                raise UserError(message)
            if message:
                failed[missing[number]] = message
        return failed

    def _check_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Without a name: nobody else's is touched, and nothing is left if we are killed here.
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise UserError(
                f"data.cache={self.folder}: the folder cannot be written ({error.strerror}). "
                "Set data.cache to another folder, or to null to train without a cache."
            ) from None

    def _check_room(self, seconds: Sequence[float]) -> None:
        frames = sum(self.settings.frame_count(round(length * self.settings.sample_rate)) for length in seconds)
        needed = frames * self.storage.dtype(self.settings).itemsize
        free = shutil.disk_usage(self.folder).free
        hours = sum(seconds) / 3600
        amount = f"{len(seconds)} spectrograms ({hours:.2f} h, {self.storage.name}) take {_gigabytes(needed)}"
        if needed > free - SPARE_BYTES:
            small = _gigabytes(frames * Decibel().dtype(self.settings).itemsize)
            smaller = "" if isinstance(self.storage, Decibel) else f"data.storage=decibel ({small}), "
            raise UserError(
                f"data.cache={self.folder}: {amount}, {_gigabytes(free)} are free. Set data.cache to a larger disk, "
                f"{smaller}or data.cache=null to train without a cache."
            )
        log.info("Cache %s: %s, %s are free.", self.folder, amount, _gigabytes(free))


@dataclass(frozen=True)
class Direct:
    """The same crops as `Cache` gives, decoded and transformed each time."""

    settings: Spectrogram
    has_phase: bool

    def frame_count(self, signal: Signal) -> int:
        lengths = (_samples(cell.path, cell.stream, self.settings.sample_rate) for cell in signal)
        return self.settings.frame_count(max(lengths))

    def crop(self, signal: Signal, start: int, frames: int) -> Tensor:
        """See `Cache.crop`."""
        settings = self.settings
        # Frame t starts n_fft samples before sample t * hop, because of the zeros in front.
        first = start * settings.hop - settings.n_fft
        length = frames * settings.hop + settings.overlap
        before = min(max(-first, 0), length)
        waveform = signals.read(signal, settings, max(first, 0), length - before)
        padded = torch.nn.functional.pad(waveform, (before, length - before - waveform.shape[-1]))
        found = spectrogram.spectra(padded, settings)[..., : settings.bins]
        return found if self.has_phase else found.abs()


Source = Cache | Direct


class _Entries(Dataset[tuple[int, str]]):
    """The entries to write, as work for a loader's processes: item i writes entry i and says what was wrong.

    The number is negative if nothing else can be written either.
    """

    def __init__(self, cache: Cache, missing: Sequence[Signal]) -> None:
        self.cache, self.missing = cache, missing

    def __len__(self) -> int:
        return len(self.missing)

    def __getitem__(self, number: int) -> tuple[int, str]:
        signal = self.missing[number]
        path = self.cache.path(signal)
        try:
            _write_entry(path, signal, self.cache.settings, self.cache.storage)
        except UserError as error:
            return number, str(error)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            todo = "Free some space" if full else "See that it can be written"
            return -1, (
                f"{path}: the spectrogram cannot be written ({error.strerror}). "
                f"{todo} and run again, or set data.cache to another folder."
            )
        return number, ""


def _write_entry(path: Path, signal: Signal, settings: Spectrogram, storage: Storage) -> None:
    path.parent.mkdir(exist_ok=True)
    with _claim(path) as file:
        if file is None:
            return
        dtype, count = storage.dtype(settings), 0
        _write_header(file, dtype, count)
        for window in spectrogram.windows(signals.stream(signal, settings), settings):
            try:
                records = storage.encode(spectrogram.spectra(window, settings)[..., : settings.bins])
            except UserError as error:
                raise UserError(f"{' + '.join(str(cell.path) for cell in signal)}: {error}") from None
            file.write(records.tobytes())
            count += len(records)
        file.seek(0)
        _write_header(file, dtype, count)
        file.flush()
        os.fsync(file.fileno())
        os.replace(file.name, path)


def _write_header(file: IO[bytes], dtype: np.dtype, count: int) -> None:
    """The same number of bytes for any `count`: NumPy leaves room for the first axis to grow."""
    header = np.lib.format.header_data_from_array_1_0(np.empty(0, dtype))
    header["shape"] = (count, *header["shape"][1:])
    np.lib.format.write_array_header_1_0(file, header)


@contextmanager
def _claim(path: Path) -> Iterator[IO[bytes] | None]:
    """The locked, empty `.part` file of an entry; None if the entry is there, perhaps written meanwhile.

    The lock goes with the process that holds it, so a killed build leaves a `.part` that the next one
    overwrites.
    """
    part = path.with_suffix(".part")
    while not path.exists():
        with open(part, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_CREAT, 0o666)) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever had the lock before may have renamed this very file to the entry: it must not be touched.
            if not _is_same(part, file):
                continue
            if path.exists():
                part.unlink()
                continue
            file.truncate(0)
            try:
                yield file
            except BaseException:
                part.unlink()
                raise
            return
    yield None


def _is_same(path: Path, file: IO[bytes]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _pad(found: Tensor, start: int, frames: int) -> Tensor:
    before = min(max(-start, 0), frames)
    return torch.nn.functional.pad(found, (0, 0, before, frames - before - found.shape[-2]))


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


@lru_cache(maxsize=1 << 17)
def fingerprint(path: Path) -> str:
    """Stands for a file's content without reading all of it: size, time of change, and three pieces.

    Any edit changes the time; the pieces tell apart files whose times were set alike.
    """
    piece = 1 << 16
    try:
        stat = path.stat()
        digest = hashlib.blake2b(f"{stat.st_size} {stat.st_mtime_ns}".encode(), digest_size=20)
        with path.open("rb") as file:
            for place in (0, stat.st_size // 2, max(stat.st_size - piece, 0)):
                file.seek(place)
                digest.update(file.read(piece))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Check the path and who may read it.") from None
    return digest.hexdigest()


@lru_cache(maxsize=1 << 17)
def _samples(path: Path, stream: int | None, sample_rate: int) -> int:
    return audio.length(audio.probe(path, stream), sample_rate)
