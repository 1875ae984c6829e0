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
from dataclasses import dataclass, replace
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
PIECE = 1 << 19  # samples of windowed frames that are transformed at a time: 2 MB, which a core's cache holds
FILES = 1 << 20  # of which is remembered what is known about them


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
        return _path(self.folder, self.storage.name, _shape(self.settings), signal)

    def frame_count(self, signal: Signal) -> int:
        """T of the whole signal."""
        return self._entry(signal).count

    def crop(self, signal: Signal, start: int, frames: int) -> Tensor:
        """Frames `start` to `start + frames` (C, frames, F): complex if `has_phase`, else magnitudes.

        What lies outside the signal is zero.
        """
        first, last = _within(self._entry(signal), start, frames)
        dtype = self.storage.dtype(self.settings)
        records = np.empty((last - first, dtype.itemsize), np.uint8)
        self._read(signal, first, records)
        return _pad(self.storage.decode(np.ndarray(last - first, dtype, records)), start, frames)

    def read(self, signal: Signal, start: int, records: np.ndarray) -> None:
        """The same as `crop`, as the bytes of one record after another (frames, bytes of one), into `records`."""
        first, last = _within(self._entry(signal), start, len(records))
        if last - first < len(records):
            records[:] = np.frombuffer(self.storage.silence(self.settings).tobytes(), np.uint8)
        before = max(first - start, 0)
        self._read(signal, first, records[before : before + last - first])

    def _read(self, signal: Signal, first: int, records: np.ndarray) -> None:
        """Straight into the place where they are wanted: a memory map would cost a page fault every 4096 bytes."""
        if not records.size:
            return
        path, entry = self.path(signal), self._entry(signal)
        try:
            with open(path, "rb", buffering=0) as file:
                file.seek(entry.begin + first * records.shape[1])
                whole = records.data.cast("B")
                done = 0
                while done < len(whole):
                    count = file.readinto(whole[done:])
                    if not count:
                        raise EOFError("it ends too early")
                    done += count
        except (OSError, EOFError) as error:
            if isinstance(error, OSError) and error.errno == errno.EFAULT:
                raise UserError(
                    "/dev/shm: too small for the batches that workers hand over. "
                    "Make it larger (docker run --shm-size=8g), or set data.num_workers=0."
                ) from None
            raise _unreadable(path, error) from None

    def _entry(self, signal: Signal) -> "_Entry":
        path = self.path(signal)
        try:
            return _entry(path, self.storage, self.settings)
        except (OSError, ValueError, EOFError) as error:
            raise _unreadable(path, error) from None

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
        short = replace(settings, frames=max(PIECE // (settings.channels * settings.n_fft), 1))
        for window in spectrogram.windows(signals.stream(signal, settings), short):
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


@dataclass(frozen=True)
class _Entry:
    """Where the records of a file begin, and how many there are."""

    begin: int
    count: int


@lru_cache(maxsize=FILES)
def _entry(path: Path, storage: Storage, settings: Spectrogram) -> _Entry:
    """Looks at an entry once: it never changes, and to parse its header takes as long as to read a crop of it."""
    dtype = storage.dtype(settings)
    with path.open("rb") as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("not an entry of this version")
        shape, _, found = np.lib.format.read_array_header_1_0(file)
        entry = _Entry(file.tell(), shape[0] if shape else 0)
        if np.dtype((found, shape[1:])) != dtype:
            raise ValueError(f"its records are {found} of shape {shape[1:]}")
        if path.stat().st_size < entry.begin + entry.count * dtype.itemsize:
            raise ValueError("it is cut off")
    return entry


@lru_cache(maxsize=FILES)
def _path(folder: Path, storage: str, shape: tuple[int, ...], signal: Signal) -> Path:
    files = [(fingerprint(cell.path), cell.stream, cell.channel) for cell in signal]
    parts = (FORMAT, storage, *shape, files)
    digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=20).hexdigest()
    return folder / digest[:2] / f"{digest}.npy"


def _shape(settings: Spectrogram) -> tuple[int, ...]:
    """What an entry depends on; the length of a crop is not among it."""
    return (settings.sample_rate, settings.channels, settings.n_fft, settings.hop, settings.bins)


def _within(entry: _Entry, start: int, frames: int) -> tuple[int, int]:
    """The frames of a crop that are there, from the first to before the last; as many as none if there are none."""
    first = min(max(start, 0), entry.count)
    return first, max(min(start + frames, entry.count), first)


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: cache entry cannot be read ({error}). Delete it and run again.")


def forget_files() -> None:
    """Looks at all files anew: within one process, a change is not expected."""
    for known in (fingerprint, _path, _entry, _samples):
        known.cache_clear()


def _pad(found: Tensor, start: int, frames: int) -> Tensor:
    before = min(max(-start, 0), frames)
    return torch.nn.functional.pad(found, (0, 0, before, frames - before - found.shape[-2]))


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


@lru_cache(maxsize=FILES)
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


@lru_cache(maxsize=FILES)
def _samples(path: Path, stream: int | None, sample_rate: int) -> int:
    return audio.length(audio.probe(path, stream), sample_rate)
