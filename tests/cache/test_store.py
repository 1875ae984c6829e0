"""The cache: crops equal the STFT of the whole, only complete entries are read, and a kill costs nothing."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from stemwise import audio, signals, spectrogram
from stemwise.cache import entries, fingerprints, storage, store, upkeep
from stemwise.cache.store import Cache, Direct
from stemwise.errors import UserError
from stemwise.index import Cell, Signal
from stemwise.spectrogram import Spectrogram

RATE = 8000
SETTINGS = Spectrogram(sample_rate=RATE, channels=2, n_fft=64, hop=16, bins=24, frames=50)
MONO = replace(SETTINGS, channels=1)
TOLERANCE = {"half": 5e-4, "complex": 1e-3, "decibel": 0.025}  # of the magnitude


WRITTEN = 10**9  # seconds


@pytest.fixture(autouse=True)
def _files_are_looked_at_anew() -> None:
    store.forget_files()


@pytest.fixture(autouse=True)
def _the_clock_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry has its time of writing: builds are equal byte for byte if they happen at the same time."""
    monkeypatch.setattr(entries, "now", lambda: WRITTEN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise as stereo, mono and at other rates; lengths that fill no frame."""
    folder = tmp_path_factory.mktemp("songs")
    files = {
        "stereo.wav": (RATE, 2, 3003),
        "longer.flac": (RATE, 2, 4100),
        "mono.wav": (RATE, 1, 2500),
        "fast.wav": (44100, 2, 20000),
        "slow.flac": (6000, 1, 3000),
    }
    for seed, (name, (rate, channels, samples)) in enumerate(files.items()):
        noise = np.random.default_rng(seed).uniform(-0.5, 0.5, (samples, channels))
        soundfile.write(folder / name, noise, rate)
    return folder


SIGNALS = {
    "stereo": ["stereo.wav"],
    "mono": ["mono.wav"],
    "one channel": ["stereo.wav#channel=1"],
    "a sum": ["stereo.wav", "longer.flac", "mono.wav"],
    "from 44.1 kHz": ["fast.wav"],
    "from 6 kHz": ["slow.flac"],
    "a sum of rates": ["longer.flac", "fast.wav", "slow.flac#channel=0"],
}


def signal_of(folder: Path, names: list[str]) -> Signal:
    return tuple(Cell.parse(name, folder) for name in names)


def built(where: Path, signals: list[Signal], kind: str = "half", settings: Spectrogram = SETTINGS) -> Cache:
    made = Cache(where, settings, storage.by_name(kind))
    assert made.build(dict.fromkeys(signals, 1.0), workers=0) == {}
    return made


def whole(signal: Signal, settings: Spectrogram) -> Tensor:
    """The STFT in memory, with nothing of the cache."""
    waves = [
        audio.read(c.path, sample_rate=RATE, channels=settings.channels, stream=c.stream, channel=c.channel)
        for c in signal
    ]
    total = torch.zeros(settings.channels, max(wave.shape[1] for wave in waves))
    for wave in waves:
        total[:, : wave.shape[1]] += wave
    return spectrogram.stft(total, settings)[..., : settings.bins]


def cut(spectra: Tensor, start: int, frames: int) -> Tensor:
    """Frames of the whole, zeros outside it."""
    out = spectra.new_zeros(spectra.shape[0], frames, spectra.shape[2])
    for place in range(frames):
        if 0 <= start + place < spectra.shape[1]:
            out[:, place] = spectra[:, start + place]
    return out


def places(count: int) -> list[tuple[int, int]]:
    """Crops at, around and beyond both ends, and between."""
    starts = (0, 1, 5, count // 2, count - 20, count - 1, count, count + 30, -1, -7, -19, -20, -45)
    return [(start, 20) for start in starts] + [(0, count), (-3, count + 6), (7, 1)]


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What a crop holds.


@pytest.mark.parametrize("names", SIGNALS.values(), ids=SIGNALS)
@pytest.mark.parametrize("settings", [SETTINGS, MONO], ids=["stereo model", "mono model"])
@pytest.mark.parametrize("kind", ["half", "complex", "decibel"])
def test_crops_equal_the_stft_of_the_whole(
    names: list[str], settings: Spectrogram, kind: str, folder: Path, tmp_path: Path
) -> None:
    signal = signal_of(folder, names)
    made, expected = built(tmp_path, [signal], kind, settings), whole(signal, settings)
    count = made.frame_count(signal)
    assert count == expected.shape[1]
    reference = expected if made.has_phase else expected.abs()
    loudest = expected.abs().amax(dim=(0, 2), keepdim=True)
    for start, frames in places(count):
        found = made.crop(signal, start, frames)
        wanted = cut(reference, start, frames)
        assert found.shape == wanted.shape
        assert found.dtype == wanted.dtype
        # What lies 100 dB below its frame's maximum is not kept by `decibel`.
        lost = 1e-5 * cut(loudest, start, frames) * 1.03 + 1e-7
        assert ((found - wanted).abs() <= TOLERANCE[kind] * wanted.abs() + lost).all(), (start, frames)
        assert (found[wanted.abs().expand_as(found) == 0].abs() <= 1e-4).all()


@pytest.mark.parametrize("names", SIGNALS.values(), ids=SIGNALS)
@pytest.mark.parametrize("settings", [SETTINGS, MONO], ids=["stereo model", "mono model"])
@pytest.mark.parametrize("has_phase", [True, False])
def test_direct_crops_are_those_of_the_stft(
    names: list[str], settings: Spectrogram, has_phase: bool, folder: Path
) -> None:
    signal = signal_of(folder, names)
    direct, expected = Direct(settings, has_phase), whole(signal, settings)
    reference = expected if has_phase else expected.abs()
    assert direct.frame_count(signal) == expected.shape[1]
    for start, frames in places(expected.shape[1]):
        # Not bit for bit: FFT and resampling round by where a sample lies in their blocks.
        torch.testing.assert_close(
            direct.crop(signal, start, frames), cut(reference, start, frames), rtol=1e-5, atol=2e-6
        )


def test_what_lies_outside_is_zero(folder: Path, tmp_path: Path) -> None:
    signal = signal_of(folder, ["stereo.wav"])
    for kind in ("half", "complex", "decibel"):
        source = built(tmp_path, [signal], kind)
        for start in (-45, -20, source.frame_count(signal), source.frame_count(signal) + 30):
            assert (source.crop(signal, start, 20) == 0).all()
        assert (source.crop(signal, -3, 20)[:, :3] == 0).all()


def test_a_song_that_comes_in_many_blocks(tmp_path: Path) -> None:
    settings = replace(SETTINGS, n_fft=1024, hop=256, bins=100, frames=16)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, ((1 << 19) * 2 + 12345, 2))
    soundfile.write(tmp_path / "long.wav", noise, RATE)
    signal = signal_of(tmp_path, ["long.wav"])
    made, expected = built(tmp_path / "cache", [signal], "half", settings), whole(signal, settings).abs()
    found = made.crop(signal, 0, made.frame_count(signal))
    torch.testing.assert_close(found, expected, rtol=5e-4, atol=1e-6)


def test_a_crop_reads_only_its_frames(folder: Path, tmp_path: Path) -> None:
    signal = signal_of(folder, ["stereo.wav"])
    made = built(tmp_path, [signal])
    dtype, count = made.storage.dtype(SETTINGS), 1 << 22
    path = made.path(signal)
    header = entries.Header(path.stem, made.kind, count, WRITTEN, checksum=0)
    with path.open("wb") as file:  # 400 MB, all but 20 records a hole in the file
        file.write(header.page())
        file.truncate(header.size)
        file.seek(entries.PAGE + 3_000_000 * dtype.itemsize)
        records = np.arange(20, dtype="<f2")[:, None, None].repeat(2, 1).repeat(24, 2)
        file.write(records.tobytes())
    os.utime(path, (WRITTEN, WRITTEN))
    tracemalloc.start()
    found = made.crop(signal, 3_000_000 - 5, 30)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.frame_count(signal) == count
    assert found[0, :, 0].tolist() == [0] * 5 + list(range(20)) + [0] * 5
    assert peak < 100_000


# What an entry is called.


def test_the_name_changes_with_all_that_shapes_the_entry(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no stemwise reads what another version, format or setting wrote."""
    source = shutil.copy(folder / "stereo.wav", tmp_path / "song.wav")
    signal = (Cell(source),)
    made = Cache(tmp_path, SETTINGS, storage.by_name("half"))
    names = [made.path(signal)]
    changes = {"sample_rate": 16000, "channels": 1, "n_fft": 128, "hop": 8, "bins": 25}
    names += [Cache(tmp_path, replace(SETTINGS, **{k: v}), made.storage).path(signal) for k, v in changes.items()]
    names += [Cache(tmp_path, SETTINGS, storage.by_name(kind)).path(signal) for kind in ("complex", "decibel")]
    names += [made.path((replace(signal[0], channel=0),)), made.path((replace(signal[0], stream=0),))]
    names += [made.path((*signal, *signal)), made.path((Cell(folder / "longer.flac"),))]
    monkeypatch.setattr(store, "__version__", "0.0.9")
    names += [Cache(tmp_path, SETTINGS, made.storage).path(signal)]
    monkeypatch.undo()
    monkeypatch.setattr(store, "FORMAT", store.FORMAT + 1)
    store.forget_files()
    names += [made.path(signal)]
    monkeypatch.undo()
    store.forget_files()
    assert len(set(names)) == len(names)
    assert Cache(tmp_path, replace(SETTINGS, frames=7), made.storage).path(signal) == names[0]


def test_the_name_changes_with_content_and_with_time(tmp_path: Path) -> None:
    path = tmp_path / "song.wav"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 300_000)
    made = Cache(tmp_path, SETTINGS, storage.by_name("half"))

    def name(samples: np.ndarray, time_ns: int) -> Path:
        soundfile.write(path, samples, RATE)
        os.utime(path, ns=(time_ns, time_ns))
        store.forget_files()
        return made.path((Cell(path),))

    names = [name(noise, 10**18), name(noise, 10**18 + 1), name(noise[:-1], 10**18)]
    for place in (0, 150_000, 299_999):  # the three pieces, the time set alike
        other = noise.copy()
        other[place] = 0.9
        names.append(name(other, 10**18))
    assert len(set(names)) == len(names)
    assert name(noise, 10**18) == names[0]


def test_a_copy_elsewhere_with_its_time_is_the_same_entry(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / folder.name
    moved.mkdir(parents=True)
    copy = shutil.copy2(folder / "stereo.wav", moved)
    made = Cache(tmp_path, SETTINGS, storage.by_name("half"))
    assert made.path((Cell(Path(copy)),)) == made.path((Cell(folder / "stereo.wav"),))


def test_stems_that_differ_only_where_nobody_looks_are_two_entries(tmp_path: Path) -> None:
    """As long, from one archive, and silent at the start, in the middle and at the end."""
    paths = [tmp_path / name for name in ("one/vocals.wav", "one/drums.wav", "two/vocals.wav")]
    for number, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        samples = np.zeros(300_000)
        samples[75_000] = 0.1 * (number + 1)
        soundfile.write(path, samples, RATE)
        os.utime(path, ns=(10**18, 10**18))
    assert len({fingerprints.fingerprint(path) for path in paths}) == 3


def test_a_file_that_is_gone_is_the_users_to_find(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.wav: cannot be read \(No such file.*Check the path"):
        Cache(tmp_path, SETTINGS, storage.by_name("half")).path((Cell(tmp_path / "gone.wav"),))


# Builds that are killed, or run beside each other.


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[Signal]:
    """Sixteen songs, two of which are copies of one file, and a sum of two."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(14):
        noise = np.random.default_rng(number).uniform(-0.5, 0.5, (RATE * 20, 2))
        soundfile.write(folder / f"{number}.wav", noise, RATE)
    again = folder / "again" / folder.name
    again.mkdir(parents=True)
    shutil.copy2(folder / "0.wav", again)
    found: list[Signal] = [(Cell(path),) for path in sorted(folder.rglob("*.wav"))]
    return [*found, (*found[0], *found[1])]


def start_build(where: Path, signals: list[Signal], before: Callable[[], None] | None = None) -> int:
    """A build with two workers in a process group of its own; returns its id."""

    def work() -> None:
        os.setsid()
        torch.set_num_threads(1)
        if before:
            before()
        # Standard error is pytest's.
        made = Cache(where, SETTINGS, storage.by_name("half"))
        assert made.build(dict.fromkeys(signals, 20.0), workers=2) == {}

    process = get_context("fork").Process(target=work)
    process.start()
    RUNNING.append(process)
    return process.pid or 0


RUNNING: list = []


@pytest.fixture(autouse=True)
def _nothing_stays_behind() -> Iterator[None]:
    yield
    for process in RUNNING:
        process.kill()
        process.join()
    RUNNING.clear()


def kill_group(pid: int) -> None:
    """Kills the process and its workers, which may not have left the list of processes when this returns."""
    while True:
        ended = RUNNING[-1].exitcode is not None
        with suppress(ProcessLookupError):  # it has not made its group yet, or all of it is gone
            os.killpg(pid, signal.SIGKILL)
        if ended:
            return
        time.sleep(0.002)


def test_a_build_that_is_killed_again_and_again_ends_like_a_clean_one(many: list[Signal], tmp_path: Path) -> None:
    clean = files_in(built(tmp_path / "clean", many).folder)
    assert len(clean) == 15
    moments = random.Random(0)
    kills = parts = rounds = 0
    while kills < 24:
        where = tmp_path / f"killed{rounds}"
        rounds += 1
        while len(files_in(where) if where.exists() else ()) < 15 or list(where.rglob("*.part")):
            pid = start_build(where, many)
            RUNNING[-1].join(0.05 + moments.random() * 0.25)
            kills += RUNNING[-1].exitcode is None
            kill_group(pid)
            parts += bool(list(where.rglob("*.part")))
        pid = start_build(where, many)  # has nothing to do, or the rest
        RUNNING[-1].join()
        assert RUNNING[-1].exitcode == 0
        assert files_in(where) == clean
    assert parts > 0  # some were caught while they wrote


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_kill_at_the_end_of_an_entry(function: str, after: bool, many: list[Signal], tmp_path: Path) -> None:
    some = many[:3]
    clean = files_in(built(tmp_path / "clean", some).folder)
    original = getattr(os, function)

    def die(*arguments: object) -> None:
        if after:
            original(*arguments)
        os.killpg(0, signal.SIGKILL)

    pid = start_build(tmp_path / "cache", some, lambda: setattr(os, function, die))
    RUNNING[-1].join()
    kill_group(pid)
    assert RUNNING[-1].exitcode == -signal.SIGKILL
    left = files_in(tmp_path / "cache")
    assert left
    # What bears an entry's name is an entry.
    assert {name: clean[name] for name in left if name.endswith(".stft")}.items() <= left.items()
    assert files_in(built(tmp_path / "cache", some).folder) == clean


def test_two_builds_at_once_give_the_same(many: list[Signal], tmp_path: Path) -> None:
    clean = files_in(built(tmp_path / "clean", many).folder)
    for _ in range(3):
        start_build(tmp_path / "cache", many)
    for process in RUNNING:
        process.join()
        assert process.exitcode == 0
    assert files_in(tmp_path / "cache") == clean


def test_builds_that_begin_at_once_do_not_trip_over_each_other(tmp_path: Path) -> None:
    made = Cache(tmp_path / "cache", SETTINGS, storage.by_name("half"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: upkeep.check_writable(made.folder, ""), range(1000)))
    assert files_in(made.folder) == {}


def test_a_half_written_entry_is_not_read(folder: Path, tmp_path: Path) -> None:
    signal = signal_of(folder, ["stereo.wav"])
    clean = built(tmp_path / "clean", [signal])
    made = Cache(tmp_path / "cache", SETTINGS, storage.by_name("half"))
    part = made.path(signal).with_suffix(".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half an entry, and longer than a whole one " * 10_000)
    assert torch.equal(made.crop(signal, 0, 20), clean.crop(signal, 0, 20))
    assert files_in(made.folder) == files_in(clean.folder)


def test_what_is_there_is_not_built_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = [signal_of(folder, names) for names in (["stereo.wav"], ["mono.wav"])]
    made = built(tmp_path, some[:1])
    first = made.path(some[0]).stat()
    wrote = []
    compute = Cache.compute
    monkeypatch.setattr(Cache, "compute", lambda self, signal: (wrote.append(signal), compute(self, signal)))
    made.build(dict.fromkeys(some, 1.0), workers=0)
    assert wrote == [some[1]]
    after = made.path(some[0]).stat()
    assert (after.st_ino, after.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)


@pytest.mark.parametrize("parts", [1, 2, 5, 16, 40])
def test_shares_make_one_cache(parts: int, many: list[Signal], tmp_path: Path) -> None:
    made = Cache(tmp_path / "cache", SETTINGS, storage.by_name("half"))
    lengths = dict.fromkeys(many, 20.0)
    shares = [made.share(lengths, part, parts) for part in range(parts)]
    paths = [made.path(signal) for share in shares for signal in share]
    assert sorted(paths) == sorted({made.path(signal) for signal in many})
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [signal for share in shares for signal in share] == [*made.share(lengths, 0, 1)]


def test_shares_that_are_built_at_once_are_one_build(many: list[Signal], tmp_path: Path) -> None:
    clean = files_in(built(tmp_path / "clean", many).folder)
    made = Cache(tmp_path / "cache", SETTINGS, storage.by_name("half"))
    for part in range(3):
        start_build(made.folder, list(made.share(dict.fromkeys(many, 20.0), part, 3)))
    for process in RUNNING:
        process.join()
        assert process.exitcode == 0
    assert files_in(made.folder) == clean


# Entries that are damaged, or gone.


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0b100
    path.write_bytes(content)


def other_kind(path: Path) -> None:
    """The entry of another stemwise under the very same name."""
    content = path.read_bytes()
    header = entries.parse(content[: entries.PAGE])
    page = replace(header, kind=replace(header.kind, version="0.0.9")).page()
    path.write_bytes(page + content[entries.PAGE :])
    os.utime(path, (WRITTEN, WRITTEN))


def quietly(spoil: Callable[[Path], object]) -> Callable[[Path], None]:
    """As a disk does it: the time of change stays."""

    def do(path: Path) -> None:
        spoil(path)
        os.utime(path, (WRITTEN, WRITTEN))

    return do


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(b"not an entry"),
    "another file": lambda path: path.write_bytes(b"RIFF" + bytes(100_000)),
    "cut off": lambda path: os.truncate(path, path.stat().st_size - 1),
    "cut off quietly": quietly(lambda path: os.truncate(path, path.stat().st_size - 1)),
    "in the first page": lambda path: os.truncate(path, 100),
    "too long": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "a bit of the page": quietly(lambda path: flip(path, 30)),
    "a bit of the records": lambda path: flip(path, entries.PAGE + 3000),
    "the last bit": lambda path: flip(path, -1),
    "another signal": lambda path: shutil.copy2(next(p for p in path.parents[1].glob("*/*") if p != path), path),
    "another version": other_kind,
}
GONE: dict[str, Callable[[Path], object]] = {
    "removed": lambda path: path.unlink(),
    "folder removed": lambda path: shutil.rmtree(path.parents[1]),
}


def two_signals(folder: Path) -> list[Signal]:
    return [signal_of(folder, names) for names in (["stereo.wav"], ["mono.wav"])]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_build_mends_what_is_damaged(
    damage: Callable[[Path], object], folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    some = two_signals(folder)
    made = built(tmp_path, some)
    clean, path = files_in(tmp_path), made.path(some[0])
    damage(path)
    assert files_in(tmp_path) != clean
    store.forget_files()
    built(tmp_path, some)
    assert files_in(tmp_path) == clean
    assert len(said(caplog)) == 1
    assert str(path) in said(caplog)[0]


PAGE_ONLY = {"a bit of the page", "another version"}  # which nobody looks at again, and the records are as they were


@pytest.mark.parametrize(
    ("damage", "known"),
    [(name, known) for name in DAMAGE | GONE for known in (True, False) if not (known and name in PAGE_ONLY)],
    ids=lambda value: value if isinstance(value, str) else "in a run" if value else "at its first crop",
)
def test_a_reader_mends_what_is_damaged(
    damage: str, known: bool, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    some = two_signals(folder)
    made = built(tmp_path / "cache", some)
    clean, path = files_in(made.folder), made.path(some[0])
    crops = [made.crop(signal, 5, 20) for signal in some]
    if not known:
        store.forget_files()
    (DAMAGE | GONE)[damage](path)
    assert torch.equal(made.crop(some[0], 5, 20), crops[0])
    assert path.exists()
    assert len(said(caplog)) == 1
    assert path.name in said(caplog)[0]
    assert torch.equal(made.crop(some[1], 5, 20), crops[1])
    assert files_in(made.folder) == clean


def test_what_a_disk_changed_quietly_is_found_where_every_byte_is_checked(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    some = two_signals(folder)
    made = built(tmp_path, some)
    clean, path = files_in(tmp_path), made.path(some[0])
    quietly(lambda path: flip(path, entries.PAGE + 3000))(path)
    store.forget_files()
    built(tmp_path, some)
    assert said(caplog) == []
    made.build(dict.fromkeys(some, 1.0), workers=0, look=entries.check)
    assert files_in(tmp_path) == clean
    assert len(said(caplog)) == 1
    assert "its checksum is wrong" in said(caplog)[0]


def test_a_copy_of_a_cache_is_as_good(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read through, as its times are others, and that only once."""
    some = two_signals(folder)
    made = built(tmp_path / "first", some)
    for path in made.folder.glob("*/*"):
        copy = tmp_path / "second" / path.relative_to(made.folder)
        copy.parent.mkdir(parents=True)
        shutil.copyfile(path, copy)
    read = []
    check = entries.check
    monkeypatch.setattr(entries, "check", lambda path: (read.append(path), check(path))[1])
    monkeypatch.setattr(Cache, "compute", None)
    for expected in (2, 2):
        store.forget_files()
        second = built(tmp_path / "second", some)
        assert torch.equal(second.crop(some[0], 5, 20), made.crop(some[0], 5, 20))
        assert len(read) == expected


def test_a_song_that_changed_is_not_what_a_run_began_with(tmp_path: Path, folder: Path) -> None:
    song = Path(shutil.copy(folder / "stereo.wav", tmp_path / "song.wav"))
    made = built(tmp_path / "cache", [(Cell(song),)])
    crop = made.crop((Cell(song),), 5, 20)
    shutil.copy(folder / "mono.wav", song)
    assert torch.equal(made.crop((Cell(song),), 5, 20), crop)  # the entry is of the song as it was
    shutil.rmtree(made.folder)
    with pytest.raises(UserError, match=r"\.stft: cache entry cannot .*nor computed anew: .*song\.wav: changed since"):
        made.crop((Cell(song),), 5, 20)
    song.unlink()
    with pytest.raises(UserError, match=r"\.stft: cache entry cannot .*nor computed anew: .*song\.wav: no such file"):
        made.crop((Cell(song),), 5, 20)
    assert files_in(made.folder) == {}


def test_a_song_that_changes_while_it_is_read_makes_no_entry(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    song = Path(shutil.copy(folder / "stereo.wav", tmp_path / "song.wav"))
    stream = signals.stream

    def changing(*arguments: object) -> Iterator[Tensor]:
        for block in stream(*arguments):  # type: ignore[arg-type]
            os.utime(song)
            yield block

    monkeypatch.setattr(signals, "stream", changing)
    made = Cache(tmp_path / "cache", SETTINGS, storage.by_name("half"))
    failed = made.build({(Cell(song),): 1.0}, workers=0)
    assert "song.wav: changed since this run began" in failed[(Cell(song),)]
    assert files_in(made.folder) == {}


def test_a_complete_cache_need_not_be_written(
    folder: Path, tmp_path: Path, read_only: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    some = two_signals(folder)
    made = built(tmp_path / "cache", some)
    crop = made.crop(some[0], 5, 20)
    for path in made.folder.glob("*/*"):
        os.utime(path, (1, 1))  # to be read through, and to be marked as used
    store.forget_files()
    read_only(made.folder)
    assert torch.equal(built(made.folder, some).crop(some[0], 5, 20), crop)
    assert said(caplog) == []


@pytest.mark.parametrize("broken", [False, True], ids=["missing", "broken"])
def test_an_incomplete_cache_that_cannot_be_written_says_what_is_missing(
    broken: bool, folder: Path, tmp_path: Path, read_only: Callable[[Path], None]
) -> None:
    some = two_signals(folder)
    made = built(tmp_path / "cache", some)
    path = made.path(some[1])
    flip(path, 5000) if broken else path.unlink()
    store.forget_files()
    read_only(made.folder)
    with pytest.raises(UserError, match=r"cannot be written \(Read-only.*1 of 2 .*mono\.wav\).*another folder"):
        made.build(dict.fromkeys(some, 1.0), workers=0)
    with pytest.raises(UserError, match=rf"{path.name}: cache entry cannot be read.*Read-only.*can be written"):
        made.crop(some[1], 5, 20)


def test_a_process_that_is_killed_for_memory_is_one_message(
    many: list[Signal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cache, "compute", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    made = Cache(tmp_path / "cache", SETTINGS, storage.by_name("half"))
    with pytest.raises(UserError, match="was killed, perhaps for want of memory"):
        made.build(dict.fromkeys(many, 20.0), workers=2)


# What can go wrong.


def test_a_broken_file_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "whole.flac", np.random.default_rng(0).uniform(-0.5, 0.5, RATE * 200), RATE)
    content = bytearray((tmp_path / "whole.flac").read_bytes())
    middle = len(content) // 2
    (tmp_path / "cut.flac").write_bytes(content[:middle])
    content[middle : middle + 30_000] = bytes(30_000)
    (tmp_path / "damaged.flac").write_bytes(content)
    broken = [(Cell(tmp_path / name),) for name in ("cut.flac", "damaged.flac")]
    good = signal_of(folder, ["stereo.wav"])
    both = (*good, *broken[0])  # a sum breaks with any of its cells
    made = Cache(tmp_path / "cache", SETTINGS, storage.by_name("half"))
    failed = made.build(dict.fromkeys((broken[0], good, broken[1], both), 1.0), workers=2)
    assert set(failed) == {*broken, both}
    assert all(str(signal[-1].path) in message for signal, message in failed.items())
    assert set(files_in(made.folder)) == {str(made.path(good).relative_to(made.folder))}
    assert not list(made.folder.rglob("*.part"))


def test_samples_far_past_full_scale_are_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "loud.wav", np.full(5000, 1e6), RATE, subtype="FLOAT")
    signal = (Cell(tmp_path / "loud.wav"),)
    made = Cache(tmp_path / "cache", SETTINGS, storage.by_name("half"))
    assert "loud.wav: spectrogram values" in made.build({signal: 1.0}, workers=0)[signal]
    assert files_in(made.folder) == {}


@pytest.mark.parametrize("kind", ["half", "decibel"])
def test_a_disk_that_is_too_small(kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Cache(tmp_path / "cache", SETTINGS, storage.by_name(kind))
    # 100 000 s at 500 frames/s of 2 · 24 bins: 1 or 2 bytes each, and 8 for a range.
    needed = 100_000 * 500 * (96 if kind == "half" else 56)
    free = needed + store.SPARE_BYTES
    signal = signal_of(folder, ["stereo.wav"])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free - 10_000_000))
    with pytest.raises(UserError) as caught:
        made.build({signal: 100_000.0}, workers=0)
    message = str(caught.value)
    assert message.startswith(f"data.cache={made.folder}: 1 spectrograms (27.78 h, {kind}) take {needed / 1e9:.2f} GB")
    assert f"{(free - 10_000_000) / 1e9:.2f} GB are free" in message
    assert ("data.storage=decibel (2.80 GB)" in message) == (kind == "half")
    assert files_in(made.folder) == {}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free + 10_000_000))
    assert made.build({signal: 100_000.0}, workers=0) == {}


@pytest.mark.parametrize(
    ("number", "todo"), [(errno.ENOSPC, "No space left.*Free some space"), (errno.EIO, "error.*can be written")]
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_disk_that_fails(
    number: int, todo: str, workers: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    made = Cache(tmp_path / "cache", SETTINGS, storage.by_name("half"))
    some = [signal_of(folder, names) for names in SIGNALS.values()]
    with pytest.raises(UserError, match=f"{todo}.*data.cache"):
        made.build(dict.fromkeys(some, 1.0), workers=workers)
    assert files_in(made.folder) == {}


def test_a_disk_that_fails_in_the_middle_of_an_entry(many: list[Signal], tmp_path: Path) -> None:
    made = Cache(tmp_path / "cache", SETTINGS, storage.by_name("half"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be written \(File too large\)"):
            made.build({many[0]: 20.0}, workers=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files_in(made.folder) == {}
    assert made.build({many[0]: 20.0}, workers=0) == {}


@pytest.mark.parametrize("where", ["taken", "taken/cache"])
def test_a_folder_that_cannot_be_written(where: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    made = Cache(tmp_path / where, SETTINGS, storage.by_name("half"))
    with pytest.raises(UserError, match=r"data\.cache=.*cannot be written.*another folder, or to null"):
        made.build({signal_of(folder, ["stereo.wav"]): 1.0}, workers=0)


MEMORY = """
    import json, resource, sys, torch
    from pathlib import Path
    from stemwise.cache import store, storage
    from stemwise.index import Cell
    from stemwise.spectrogram import Spectrogram

    torch.set_num_threads(1)
    made = store.Cache(Path(sys.argv[1]), Spectrogram(sample_rate=8000), storage.by_name("decibel"))
    peaks = []
    for name in ("short.wav", "long.wav"):
        assert made.build({(Cell(Path(sys.argv[2]) / name),): 1.0}, workers=0) == {}
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    print(json.dumps(peaks))
"""


def test_memory_does_not_grow_with_the_song(tmp_path: Path) -> None:
    minute = np.random.default_rng(0).uniform(-0.5, 0.5, (RATE * 60, 2))
    for name, minutes in (("short.wav", 3), ("long.wav", 30)):
        with soundfile.SoundFile(tmp_path / name, "w", RATE, 2) as file:
            for _ in range(minutes):
                file.write(minute)
    command = [sys.executable, "-c", textwrap.dedent(MEMORY), tmp_path / "cache", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    short, long = json.loads(done.stdout)
    # The waveform alone is 115 MB for the long song, and 12 MB for the short one.
    assert (long - short) / 1024 < 60


def test_signals_are_read_in_time_with_each_other(folder: Path) -> None:
    """A sum in blocks is the sum of the wholes, whatever the rates and lengths."""
    signal = signal_of(folder, SIGNALS["a sum of rates"])
    waves = [signals.read((cell,), SETTINGS) for cell in signal]
    total = signals.stack([(cell,) for cell in signal], SETTINGS).sum(0)
    assert total.shape[1] == max(wave.shape[1] for wave in waves)
    torch.testing.assert_close(signals.read(signal, SETTINGS), total)
    torch.testing.assert_close(signals.read(signal, SETTINGS, 1001, 500), total[:, 1001:1501], rtol=1e-5, atol=1e-6)


def test_shared_memory_that_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    """As in a container: pages of it can be promised, and are missing when they are written to."""
    signal = signal_of(folder, ["stereo.wav"])
    made = built(tmp_path, [signal])
    size = made.storage.dtype(SETTINGS).itemsize
    with (tmp_path / "memory").open("w+b") as file:
        file.truncate(200 * size)
        memory = np.memmap(file, np.uint8, "r+", shape=(200, size))
        file.truncate(0)
        with pytest.raises(UserError, match=r"/dev/shm: too small.*data\.num_workers=0"):
            made.read(signal, 0, memory[:20])


@pytest.mark.parametrize("kind", ["half", "complex", "decibel"])
def test_records_are_the_bytes_of_a_crop(kind: str, folder: Path, tmp_path: Path) -> None:
    signal = signal_of(folder, ["stereo.wav"])
    made = built(tmp_path, [signal], kind)
    dtype = made.storage.dtype(SETTINGS)
    for start, frames in places(made.frame_count(signal)):
        records = np.full((frames, dtype.itemsize), 77, np.uint8)
        made.read(signal, start, records)
        decoded = made.storage.decode(np.ndarray(frames, dtype, records))
        assert torch.equal(decoded, made.crop(signal, start, frames))
