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

from stemwise import audio, cache, signals, spectrogram, storage
from stemwise.cache import Cache, Direct
from stemwise.errors import UserError
from stemwise.index import Cell, Signal
from stemwise.spectrogram import Spectrogram

RATE = 8000
SETTINGS = Spectrogram(sample_rate=RATE, channels=2, n_fft=64, hop=16, bins=24, frames=50)
MONO = replace(SETTINGS, channels=1)
TOLERANCE = {"half": 5e-4, "complex": 1e-3, "decibel": 0.025}  # of the magnitude


@pytest.fixture(autouse=True)
def _files_are_looked_at_anew() -> None:
    cache.forget_files()


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
    with path.open("wb") as file:  # 400 MB, all but 20 records a hole in the file
        cache._write_header(file, dtype, count)
        begin = file.tell()
        file.truncate(begin + count * dtype.itemsize)
        file.seek(begin + 3_000_000 * dtype.itemsize)
        records = np.arange(20, dtype="<f2")[:, None, None].repeat(2, 1).repeat(24, 2)
        file.write(records.tobytes())
    tracemalloc.start()
    found = made.crop(signal, 3_000_000 - 5, 30)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.frame_count(signal) == count
    assert found[0, :, 0].tolist() == [0] * 5 + list(range(20)) + [0] * 5
    assert peak < 100_000


def test_the_header_has_one_length_for_any_count(tmp_path: Path) -> None:
    sizes = set()
    for kind in ("half", "complex", "decibel"):
        dtype = storage.by_name(kind).dtype(SETTINGS)
        for count in (0, 7, 10**12):
            with (tmp_path / "header").open("wb") as file:
                cache._write_header(file, dtype, count)
                sizes.add((kind, file.tell()))
    assert len(sizes) == 3


# What an entry is called.


def test_the_name_changes_with_all_that_shapes_the_entry(folder: Path, tmp_path: Path) -> None:
    source = shutil.copy(folder / "stereo.wav", tmp_path / "song.wav")
    signal = (Cell(source),)
    made = Cache(tmp_path, SETTINGS, storage.by_name("half"))
    names = [made.path(signal)]
    changes = {"sample_rate": 16000, "channels": 1, "n_fft": 128, "hop": 8, "bins": 25}
    names += [Cache(tmp_path, replace(SETTINGS, **{k: v}), made.storage).path(signal) for k, v in changes.items()]
    names += [Cache(tmp_path, SETTINGS, storage.by_name(kind)).path(signal) for kind in ("complex", "decibel")]
    names += [made.path((replace(signal[0], channel=0),)), made.path((replace(signal[0], stream=0),))]
    names += [made.path((*signal, *signal)), made.path((Cell(folder / "longer.flac"),))]
    assert len(set(names)) == len(names)
    assert Cache(tmp_path, replace(SETTINGS, frames=7), made.storage).path(signal) == names[0]


def test_the_name_changes_with_content_and_with_time(tmp_path: Path) -> None:
    path = tmp_path / "song.wav"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 300_000)
    made = Cache(tmp_path, SETTINGS, storage.by_name("half"))

    def name(samples: np.ndarray, time_ns: int) -> Path:
        soundfile.write(path, samples, RATE)
        os.utime(path, ns=(time_ns, time_ns))
        cache.forget_files()
        return made.path((Cell(path),))

    names = [name(noise, 10**18), name(noise, 10**18 + 1), name(noise[:-1], 10**18)]
    for place in (0, 150_000, 299_999):  # the three pieces, the time set alike
        other = noise.copy()
        other[place] = 0.9
        names.append(name(other, 10**18))
    assert len(set(names)) == len(names)
    assert name(noise, 10**18) == names[0]


def test_a_copy_elsewhere_with_its_time_is_the_same_entry(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copy2(folder / "stereo.wav", tmp_path / "moved.wav")
    made = Cache(tmp_path, SETTINGS, storage.by_name("half"))
    assert made.path((Cell(Path(copy)),)) == made.path((Cell(folder / "stereo.wav"),))


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
    shutil.copy2(folder / "0.wav", folder / "copy.wav")
    found: list[Signal] = [(Cell(path),) for path in sorted(folder.iterdir())]
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
    assert {name: clean[name] for name in left if name.endswith(".npy")}.items() <= left.items()
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
        list(pool.map(lambda _: made._check_folder(), range(1000)))
    assert files_in(made.folder) == {}


def test_an_entry_that_came_while_we_waited_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "entry.npy"
    monkeypatch.setattr(cache.fcntl, "flock", lambda *_: path.write_bytes(b"theirs"))
    with cache._claim(path) as file:
        assert file is None
    assert files_in(tmp_path) == {"entry.npy": b"theirs"}


def test_a_half_written_entry_is_not_read(folder: Path, tmp_path: Path) -> None:
    signal = signal_of(folder, ["stereo.wav"])
    clean = files_in(built(tmp_path / "clean", [signal]).folder)
    made = Cache(tmp_path / "cache", SETTINGS, storage.by_name("half"))
    part = made.path(signal).with_suffix(".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(b"half an entry, and longer than a whole one " * 10_000)
    with pytest.raises(UserError, match="cache entry cannot be read"):
        made.crop(signal, 0, 20)
    assert made.build({signal: 1.0}, workers=0) == {}
    assert files_in(made.folder) == clean


def test_what_is_there_is_not_built_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = [signal_of(folder, names) for names in (["stereo.wav"], ["mono.wav"])]
    made = built(tmp_path, some[:1])
    first = made.path(some[0]).stat()
    wrote = []
    write = cache._write_entry
    monkeypatch.setattr(cache, "_write_entry", lambda path, *rest: (wrote.append(path), write(path, *rest)))
    made.build(dict.fromkeys(some, 1.0), workers=0)
    assert wrote == [made.path(some[1])]
    assert made.path(some[0]).stat() == first


@pytest.mark.parametrize("content", [b"", b"not an entry", None], ids=["empty", "garbage", "cut off"])
def test_a_damaged_entry_is_named(content: bytes | None, folder: Path, tmp_path: Path) -> None:
    signal = signal_of(folder, ["stereo.wav"])
    made = built(tmp_path, [signal])
    path = made.path(signal)
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    with pytest.raises(UserError, match=rf"{path.name}: cache entry cannot be read .*Delete it"):
        made.crop(signal, 0, 20)


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
    free = needed + cache.SPARE_BYTES
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
    from stemwise import cache, storage
    from stemwise.index import Cell
    from stemwise.spectrogram import Spectrogram

    torch.set_num_threads(1)
    made = cache.Cache(Path(sys.argv[1]), Spectrogram(sample_rate=8000), storage.by_name("decibel"))
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
