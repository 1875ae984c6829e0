"""Builds of a cache: a kill costs nothing, several at once give the same, and what cannot go on says why."""

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
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import cached_songs
from cached_songs import RATE, SETTINGS, SIGNALS, built, files_in, signal_of
from stemwise.cache import storage, store, upkeep
from stemwise.cache.store import Cache
from stemwise.errors import UserError
from stemwise.index import Cell, Signal


@pytest.fixture(autouse=True)
def _as_new(monkeypatch: pytest.MonkeyPatch) -> None:
    cached_songs.as_new(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cached_songs.write_songs(tmp_path_factory.mktemp("songs"))


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


def wait_for_a_change(where: Path) -> None:
    """A build that runs has begun a file, made one, or ended: on a busy machine it may do nothing in a fixed time."""
    before = set(where.rglob("*"))
    while RUNNING[-1].exitcode is None and set(where.rglob("*")) <= before:
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
            if moments.random() < 0.8:
                wait_for_a_change(where)
            RUNNING[-1].join(moments.random() * 0.1)
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
