"""Spectrograms on disk, computed once: a crop in time reads only its own frames.

An entry is one signal's spectrogram in a file (`cache_entry`), named after a digest of everything that shapes it: the
songs' fingerprints, the STFT settings, the storage, the format's number and the version of stemwise. What is not there,
or broken, is computed by `Cache.build` before a run, and in its place where it happens in the middle of one.

`Direct` serves the same crops without a cache, straight from the files.
"""

import errno
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stemwise import __version__, audio, progress, signals, spectrogram
from stemwise.cache import building, entries, fingerprints, upkeep
from stemwise.cache.copies import Copies
from stemwise.cache.entries import FORMAT, PAGE, SUFFIX, Entry, Kind
from stemwise.cache.storage import Decibel, Storage
from stemwise.cache.upkeep import SPARE_BYTES, Look, gigabytes, reason
from stemwise.errors import UserError
from stemwise.files.places import Place
from stemwise.index import TOLERANCE, Signal
from stemwise.spectrogram import Spectrogram

log = logging.getLogger(__name__)

PIECE = 1 << 19  # samples of windowed frames that are transformed at a time: 2 MB, which a core's cache holds

_seen: dict[Path, Entry] = {}  # entries are looked at once: to read a first page takes as long as a crop of records


@dataclass(frozen=True)
class Cache:
    """The entries of one folder for one kind of spectrogram, and perhaps copies of them on a disk that is nearer."""

    folder: Path
    settings: Spectrogram
    storage: Storage
    copies: Copies | None = None

    @property
    def has_phase(self) -> bool:
        return self.storage.has_phase

    @cached_property
    def kind(self) -> Kind:
        known, record = self.settings, self.storage.dtype(self.settings).itemsize
        shape = (known.sample_rate, known.channels, known.n_fft, known.hop, known.bins)  # not the length of a crop
        return Kind(__version__, self.storage.name, *shape, record)

    def path(self, signal: Signal) -> Path:
        """Where the entry of `signal` lies, whether it is there yet or not."""
        return _path(self.folder, self.kind, signal)

    def frame_count(self, signal: Signal) -> int:
        """T of the whole signal."""
        return self._entry(signal).header.count

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
        if not records.size or (self.copies and self.copies.read(self.path(signal), first, records)):
            return
        for _ in range(2):
            entry = self._shared(signal)
            try:
                return entry.read(first, records)
            except (OSError, ValueError) as problem:
                error = problem
            if isinstance(error, OSError) and error.errno == errno.EFAULT:
                raise UserError(
                    "/dev/shm: too small for the batches that workers hand over. "
                    "Make it larger (docker run --shm-size=8g), or set data.num_workers=0."
                )
            _seen.pop(entry.path, None)
            if isinstance(error, OSError):
                self._mend(signal, error)
        raise self._unreadable(signal, error)

    # What is there, and what is broken

    def _entry(self, signal: Signal) -> Entry:
        """The entry of `signal`: the copy if it has one, made now if it is to have one, else the shared entry."""
        copies, path = self.copies, self.path(signal)
        if copies is None:
            return self._shared(signal)
        if copies.lacks(signal, path):
            shared = self._shared(signal)
            try:
                copies.make(shared)
            except ValueError:
                _seen.pop(path, None)
                self._shared(signal, entries.check)
        return copies.known.get(path) or self._shared(signal)

    def _shared(self, signal: Signal, look: Look = entries.look) -> Entry:
        """The entry in the cache's folder, computed anew if it is gone or broken: a run outlives its cache."""
        path = self.path(signal)
        if path not in _seen:
            try:
                _seen[path] = self._look(path, look)
            except (OSError, ValueError) as error:
                self._mend(signal, error)
                try:
                    _seen[path] = self._look(path)
                except (OSError, ValueError) as again:
                    raise self._unreadable(signal, again) from None
        return _seen[path]

    def _look(self, path: Path, look: Look = entries.look) -> Entry:
        found = look(path)
        if found.header.kind != self.kind:
            raise ValueError(f"it is of another kind, {found.header.kind}")
        return found

    def _mend(self, signal: Signal, error: OSError | ValueError) -> None:
        """Computes an entry anew while others may read it, or do the same."""
        path, why = self.path(signal), reason(error)
        try:
            if entries.is_broken(error):
                path.unlink(missing_ok=True)
            self.compute(signal)
        except UserError as problem:
            raise UserError(f"{path}: cache entry cannot be read ({why}), nor computed anew: {problem}") from None
        except OSError as problem:
            raise UserError(
                f"{path}: cache entry cannot be read ({why}), nor written anew ({reason(problem)}). "
                f"See that {self.folder} can be written, and run again."
            ) from None
        log.warning("%s: cache entry could not be read (%s) and was computed anew.", path, why)

    def _unreadable(self, signal: Signal, error: Exception) -> UserError:
        return UserError(
            f"{self.path(signal)}: cache entry cannot be read ({reason(error)}). "
            f"Run `stemwise cache verify {self.folder} --delete`, and train again."
        )

    # Filling it

    def compute(self, signal: Signal) -> None:
        """Writes the entry of `signal` if it is not there. Raises `OSError`, and `UserError` about the songs."""
        entries.create(self.path(signal), self.kind, self._pieces(signal))

    def _pieces(self, signal: Signal) -> Iterator[bytes]:
        """The records of the whole signal."""
        settings = self.settings
        short = replace(settings, frames=max(PIECE // (settings.channels * settings.n_fft), 1))
        for window in spectrogram.windows(signals.stream(signal, settings), short):
            try:
                records = self.storage.encode(spectrogram.spectra(window, settings)[..., : settings.bins])
            except UserError as error:
                raise UserError(f"{_names(signal)}: {error}") from None
            yield records.tobytes()
        # What was read must be what the entry is named after.
        if _digest(self.kind, signal, fingerprints.fingerprint_now) != self.path(signal).stem:
            raise fingerprints.changed(_names(signal))

    def build(
        self, lengths: Mapping[Signal, float], workers: int | None = None, look: Look = entries.look
    ) -> dict[Signal, str]:
        """Computes the entries that are not there, or broken, and returns what is wrong with those that failed.

        `lengths` are the signals' durations in seconds; `look` decides what is broken (`entries.check` reads
        every byte). Raises `UserError` before it starts if the disk has too little room, and where the folder cannot
        be written.
        """
        signals_at = {self.path(signal): signal for signal in lengths}  # copies of a file have one entry
        faults = self._faults(list(signals_at), look)
        if not faults:
            return {}
        missing = {path: signals_at[path] for path in faults}
        some = _some(list(missing.values()))
        lacking = f"{len(faults)} of {len(signals_at)} spectrograms are missing or broken there ({some})"
        upkeep.check_writable(self.folder, lacking)
        self._check_room([lengths[signal] for signal in missing.values()])
        upkeep.remove_broken(faults)
        done = building.compute(missing, self.compute, workers)
        work = progress.track(done, what="Computing spectrograms", total=len(missing))
        failed = {path: message for path, message in work if message}
        return {signal: failed[path] for signal in lengths if (path := self.path(signal)) in failed}

    def _faults(self, paths: Sequence[Path], look: Look) -> dict[Path, Exception]:
        """The entries that are not there or broken. The others are remembered, also by the processes that follow."""
        found = {}
        for path, entry in upkeep.faults(paths, lambda path: self._look(path, look), "Looking at the cache"):
            if isinstance(entry, Exception):
                found[path] = entry
            else:
                _seen[path] = entry
                entries.mark_used(entry)
        return found

    def share(self, lengths: Mapping[Signal, float], part: int, parts: int) -> dict[Signal, float]:
        """Share `part`, from 0 on, of `parts` about equal ones, whole songs together; each entry is in one of them."""
        signals = list({self.path(signal): signal for signal in lengths}.values())
        first, last = (len(signals) * number // parts for number in (part, part + 1))
        return {signal: lengths[signal] for signal in signals[first:last]}

    def make_room(self, lengths: Mapping[Signal, float], limit: int) -> None:
        """Removes what other runs used least recently until `limit` bytes hold the folder and the entries to come.

        Raises `UserError` if the entries of `lengths` alone are too much.
        """
        own = {self.path(signal): signal for signal in lengths}
        needed = self._bytes([lengths[signal] for path, signal in own.items() if not path.exists()])
        upkeep.make_room(self.folder, limit, needed, own.keys())

    def with_copies(self, folder: Path, lengths: Mapping[Signal, float], limit: int | None) -> "Cache":
        """This cache with copies in `folder` of as much as fits into `limit` bytes (see `Copies`).

        `lengths` are the durations in seconds of all that is read, that first which is copied first.
        """
        sizes = {signal: PAGE + self._bytes([seconds + TOLERANCE]) for signal, seconds in lengths.items()}
        return replace(self, copies=Copies(folder, self._look, sizes, limit))

    def prepare_copies(self, verify: bool) -> None:
        """Makes room for the copies, once for each node before anybody reads; `verify` reads those that are there."""
        if self.copies is None:
            return
        originals = [self._shared(signal) for signal in self.copies.chosen]
        self.copies.make_room(originals)
        if verify:
            self.copies.check(originals)

    def _check_room(self, seconds: Sequence[float]) -> None:
        needed, free = self._bytes(seconds), shutil.disk_usage(self.folder).free
        hours = sum(seconds) / 3600
        amount = f"{len(seconds)} spectrograms ({hours:.2f} h, {self.storage.name}) take {gigabytes(needed)}"
        if needed > free - SPARE_BYTES:
            small = gigabytes(needed / self.kind.record * Decibel().dtype(self.settings).itemsize)
            smaller = "" if isinstance(self.storage, Decibel) else f"data.storage=decibel ({small}), "
            raise UserError(
                f"data.cache={self.folder}: {amount}, {gigabytes(free)} are free. Set data.cache to a larger disk, "
                f"{smaller}or data.cache=null to train without a cache."
            )
        log.info("Cache %s: %s, %s are free.", self.folder, amount, gigabytes(free))

    def _bytes(self, seconds: Sequence[float]) -> int:
        settings = self.settings
        return self.kind.record * sum(settings.frame_count(round(s * settings.sample_rate)) for s in seconds)


@dataclass(frozen=True)
class Direct:
    """The same crops as `Cache` gives, decoded and transformed each time."""

    settings: Spectrogram
    has_phase: bool

    def frame_count(self, signal: Signal) -> int:
        rate = self.settings.sample_rate
        lengths = (_samples(cell.path, cell.stream, rate, cell.speed) for cell in signal)
        return self.settings.frame_count(max(lengths))

    def crop(self, signal: Signal, start: int, frames: int) -> Tensor:
        """See `Cache.crop`."""
        settings = self.settings
        # Frame t starts n_fft samples before sample t * hop, because of the zeros in front.
        first = start * settings.hop - settings.n_fft
        length = frames * settings.hop + settings.overlap
        before = min(max(-first, 0), length)
        with fingerprints.unchanged(signal):
            waveform = signals.read(signal, settings, max(first, 0), length - before)
        padded = torch.nn.functional.pad(waveform, (before, length - before - waveform.shape[-1]))
        found = spectrogram.spectra(padded, settings)[..., : settings.bins]
        return found if self.has_phase else found.abs()


Source = Cache | Direct


@lru_cache(maxsize=fingerprints.FILES)
def _path(folder: Path, kind: Kind, signal: Signal) -> Path:
    digest = _digest(kind, signal, fingerprints.fingerprint)
    return folder / digest[:2] / f"{digest}{SUFFIX}"


def _digest(kind: Kind, signal: Signal, fingerprint: Callable[[Place], str]) -> str:
    # Without the usual speed, which entries from before there was another do not name.
    cells = [
        (fingerprint(cell.path), cell.stream, cell.channel, *([cell.speed] if cell.speed != 100 else []))
        for cell in signal
    ]
    return hashlib.blake2b(json.dumps((FORMAT, *astuple(kind), cells)).encode(), digest_size=20).hexdigest()


def _names(signal: Signal) -> str:
    return " + ".join(str(cell.path) for cell in signal)


def _some(missing: Sequence[Signal]) -> str:
    return ", ".join(_names(signal) for signal in missing[:3]) + (", …" if len(missing) > 3 else "")


def _within(entry: Entry, start: int, frames: int) -> tuple[int, int]:
    """The frames of a crop that are there, from the first to before the last; as many as none if there are none."""
    count = entry.header.count
    first = min(max(start, 0), count)
    return first, max(min(start + frames, count), first)


def forget_files() -> None:
    """Looks at all files anew: within one process, a change is not expected."""
    for known in (_path, _samples):
        known.cache_clear()
    _seen.clear()
    fingerprints.forget()


def _pad(found: Tensor, start: int, frames: int) -> Tensor:
    before = min(max(-start, 0), frames)
    return torch.nn.functional.pad(found, (0, 0, before, frames - before - found.shape[-2]))


@lru_cache(maxsize=fingerprints.FILES)
def _samples(path: Place, stream: int | None, sample_rate: int, speed: int) -> int:
    return audio.length(audio.probe(path, stream), sample_rate, speed)
