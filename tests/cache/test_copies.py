"""A node's copies of a shared cache: crops stay the same whatever happens to them, and the cache is left alone."""

import errno
import fcntl
import logging
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import numpy as np
import pytest
import soundfile
import torch

from stemwise.cache import copies, entries, storage, store
from stemwise.cache.copies import Copies
from stemwise.cache.entries import DAY
from stemwise.cache.store import Cache
from stemwise.index import Cell, Signal
from stemwise.spectrogram import Spectrogram

RATE = 8000
SETTINGS = Spectrogram(sample_rate=RATE, channels=2, n_fft=64, hop=16, bins=24, frames=50)
SECONDS = 0.5


@pytest.fixture(autouse=True)
def _files_are_looked_at_anew() -> None:
    store.forget_files()


@pytest.fixture(scope="module")
def signals(tmp_path_factory: pytest.TempPathFactory) -> list[Signal]:
    """Eight songs of half a second, none quite as long as another."""
    folder = tmp_path_factory.mktemp("songs")
    for number in range(8):
        noise = np.random.default_rng(number).uniform(-0.5, 0.5, (round(SECONDS * RATE) - 20 * number, 2))
        soundfile.write(folder / f"{number}.wav", noise, RATE)
    return [(Cell(folder / f"{number}.wav"),) for number in range(8)]


@pytest.fixture
def shared(signals: list[Signal], tmp_path: Path) -> Cache:
    """A complete cache of them."""
    made = Cache(tmp_path / "shared", SETTINGS, storage.by_name("half"))
    assert made.build(dict.fromkeys(signals, SECONDS), workers=0) == {}
    return made


@pytest.fixture
def local(shared: Cache, signals: list[Signal], tmp_path: Path) -> Cache:
    """The same with room for copies of all."""
    return with_copies(shared, signals)


def with_copies(shared: Cache, signals: list[Signal], limit: int | None = None) -> Cache:
    """As another process has it."""
    return shared.with_copies(shared.folder.parent / "local", dict.fromkeys(signals, SECONDS), limit)


def copy_of(made: Cache, signal: Signal) -> Path:
    assert made.copies
    return made.copies.path(made.path(signal))


def copied(made: Cache, signals: list[Signal]) -> list[bool]:
    return [copy_of(made, signal).exists() for signal in signals]


def crops(made: Cache, signals: list[Signal]) -> torch.Tensor:
    return torch.stack([made.crop(signal, 5, 20) for signal in signals])


def state(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """All that can be told of a folder's files but when they were read."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: (path.read_bytes(), (stat := path.stat()).st_mtime_ns, stat.st_ino) for name, path in found.items()}


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-500] ^= 0b100
    path.write_bytes(content)


def quietly(spoil: Callable[[Path], object]) -> Callable[[Path], None]:
    """As a disk does it: the time of change stays."""

    def do(path: Path) -> None:
        written = path.stat().st_mtime_ns
        spoil(path)
        os.utime(path, ns=(written, written))

    return do


# What is copied.


def test_what_fits_is_copied_in_the_order_given(tmp_path: Path) -> None:
    draws = random.Random(0)
    for _ in range(200):
        sizes = {(Cell(Path(f"{number}")),): draws.randrange(1, 50) for number in range(draws.randrange(20))}
        limit = draws.randrange(0, 600)
        chosen = Copies(tmp_path, entries.look, sizes, limit).chosen
        total = sum(sizes[signal] for signal in chosen)
        assert total <= limit
        assert all(total + size > limit for signal, size in sizes.items() if signal not in chosen)
        before = 0
        for signal, size in sizes.items():
            if before + size > limit:
                break
            assert signal in chosen
            before += size
        assert Copies(tmp_path, entries.look, dict(sizes), limit).chosen == chosen
        assert Copies(tmp_path, entries.look, sizes, None).chosen == set(sizes)


def test_an_entry_is_copied_when_it_is_first_read(shared: Cache, local: Cache, signals: list[Signal]) -> None:
    before = state(shared.folder)
    for number, signal in enumerate(signals):
        assert copied(local, signals) == [other < number for other in range(8)]
        assert torch.equal(local.crop(signal, 5, 20), shared.crop(signal, 5, 20))
    for signal in signals:
        original, copy = entries.check(shared.path(signal)), entries.check(copy_of(local, signal))
        assert replace(copy.header, written=0) == replace(original.header, written=0)
    assert state(shared.folder) == before
    first = state(shared.folder.parent / "local")
    assert len(first) == 8
    crops(local, signals)
    assert state(shared.folder.parent / "local") == first


def test_the_copies_stay_within_the_limit(shared: Cache, signals: list[Signal]) -> None:
    size = shared.path(signals[0]).stat().st_size
    for limit, count in ((size // 2, 0), (4 * size, 3), (9 * size, 7)):  # a stem may last 0.1 s longer than its song
        made = with_copies(shared, signals, limit)
        made.prepare_copies(verify=False)
        for _ in range(2):
            assert torch.equal(crops(made, signals), crops(shared, signals))
        assert copied(made, signals) == [True] * count + [False] * (8 - count)
        assert sum(len(content) for content, *_ in state(shared.folder.parent / "local").values()) <= limit


def test_what_is_copied_needs_the_shared_folder_no_more(shared: Cache, local: Cache, signals: list[Signal]) -> None:
    expected = crops(shared, signals)
    crops(local, signals[:6])
    shutil.rmtree(shared.folder)
    assert torch.equal(crops(local, signals[:6]), expected[:6])
    store.forget_files()  # another rank has looked at nothing yet
    later = with_copies(shared, signals)
    assert torch.equal(crops(later, signals[:6]), expected[:6])
    assert later.frame_count(signals[0]) == 254
    assert not shared.folder.exists()
    assert torch.equal(crops(later, signals), expected)  # the rest is computed anew, as ever
    assert len(state(shared.folder)) == 2


def test_what_somebody_copied_beforehand_is_taken(shared: Cache, local: Cache, signals: list[Signal]) -> None:
    folder = shutil.copytree(shared.folder, local.copies.folder)
    before = state(folder)
    shared.folder.rename(shared.folder.with_name("gone"))
    assert len(crops(local, signals)) == len(before)
    assert state(folder) == before


def test_the_shared_folder_need_not_be_written(
    shared: Cache, local: Cache, signals: list[Signal], read_only: Callable[[Path], None], caplog
) -> None:
    expected = crops(shared, signals)
    read_only(shared.folder)
    local.prepare_copies(verify=True)
    for _ in range(2):
        assert torch.equal(crops(local, signals), expected)
    assert all(copied(local, signals))
    assert said(caplog) == []


# Several processes.


def in_processes(count: int, work: Callable[[int], None]) -> None:
    fork = get_context("fork")
    processes = [fork.Process(target=work, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * count


def test_many_readers_make_one_copy(
    shared: Cache, signals: list[Signal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = crops(shared, signals)
    replaced = os.replace

    def noted(source: str, target: Path) -> None:
        with (tmp_path / "made").open("a") as file:
            file.write(f"{target.name}\n")
        replaced(source, target)

    monkeypatch.setattr(os, "replace", noted)

    def work(number: int) -> None:
        made = with_copies(shared, signals)
        for _ in range(20):
            assert torch.equal(crops(made, signals), expected)

    in_processes(6, work)
    made = (tmp_path / "made").read_text().split()
    assert sorted(made) == sorted(shared.path(signal).name for signal in signals)
    assert set(state(tmp_path / "local")) == set(state(shared.folder))


def test_nobody_waits_for_a_copy_that_another_makes(shared: Cache, local: Cache, signals: list[Signal]) -> None:
    part = copy_of(local, signals[0]).with_suffix(".part")
    part.parent.mkdir(parents=True)
    with part.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert torch.equal(crops(local, signals[:2]), crops(shared, signals[:2]))
        assert copied(local, signals[:2]) == [False, True]
    # It was killed.
    crops(local, signals[:1])
    assert copied(local, signals[:2]) == [True, True]
    assert not part.exists()


# Copies that are damaged, or gone.

DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(os.urandom(99_999)),
    "cut off": lambda path: os.truncate(path, path.stat().st_size - 1),
    "cut off quietly": quietly(lambda path: os.truncate(path, 5000)),
    "a bit": flip,
    "another entry": lambda path: shutil.copy2(next(p for p in path.parents[1].glob("*/*") if p != path), path),
    "removed": lambda path: path.unlink(),
    "folder removed": lambda path: shutil.rmtree(path.parents[1]),
}


@pytest.mark.parametrize("known", [True, False], ids=["in a run", "at its first crop"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_copy_is_made_anew_from_the_original(
    damage: str, known: bool, shared: Cache, local: Cache, signals: list[Signal], caplog
) -> None:
    expected, before = crops(local, signals), state(shared.folder)
    path = copy_of(local, signals[2])
    DAMAGE[damage](path)
    made = local if known else with_copies(shared, signals)
    for _ in range(3):
        assert torch.equal(crops(made, signals), expected)
    assert all(copied(made, signals))
    assert entries.check(path)
    assert state(shared.folder) == before
    if not known and "removed" in damage:  # as if there had been none
        assert said(caplog) == []
    else:
        assert len(said(caplog)) == 1
        assert "local copy" in said(caplog)[0]
        assert "removed" in damage or str(path) in said(caplog)[0]


def test_a_disk_that_breaks_a_copy_twice_is_not_given_it_again(
    shared: Cache, local: Cache, signals: list[Signal], caplog
) -> None:
    expected, path = crops(local, signals), copy_of(local, signals[0])
    for _ in range(4):
        if path.exists():
            flip(path)
        for _ in range(3):
            assert torch.equal(crops(local, signals), expected)
    assert not path.exists()
    assert len(said(caplog)) == 2


def test_a_disk_that_cannot_read_is_left_for_the_shared_one(
    shared: Cache, local: Cache, signals: list[Signal], monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    expected = crops(local, signals)
    read = entries.Entry.read

    def failing(self: entries.Entry, first: int, records: np.ndarray) -> None:
        if self.path == copy_of(local, signals[0]):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        read(self, first, records)

    monkeypatch.setattr(entries.Entry, "read", failing)
    for _ in range(5):
        assert torch.equal(crops(local, signals), expected)
    assert len(said(caplog)) == 2
    assert "Input/output error" in said(caplog)[0]


def test_a_copy_that_another_process_replaced_is_looked_at(
    shared: Cache, local: Cache, signals: list[Signal], caplog
) -> None:
    expected, path = crops(local, signals), copy_of(local, signals[0])
    time.sleep(0.01)
    path.unlink()
    entries.create(path, shared.kind, entries.look(shared.path(signals[0])).pieces())
    os.utime(path)  # read through
    for _ in range(2):
        assert torch.equal(crops(local, signals), expected)
    assert said(caplog) == []


def test_what_a_disk_changed_quietly_is_found_where_every_byte_is_checked(
    shared: Cache, local: Cache, signals: list[Signal], caplog
) -> None:
    expected = crops(local, signals)
    before = state(shared.folder)
    path = copy_of(local, signals[0])
    quietly(flip)(path)
    with_copies(shared, signals).prepare_copies(verify=False)
    assert said(caplog) == []
    made = with_copies(shared, signals)
    made.prepare_copies(verify=True)
    assert len(said(caplog)) == 1
    assert f"{path}: the local copy was broken (its checksum is wrong)" in said(caplog)[0]
    assert not path.exists()
    assert torch.equal(crops(made, signals), expected)
    assert entries.check(path)
    assert state(shared.folder) == before


def test_a_broken_original_is_not_copied_but_computed_anew(
    shared: Cache, local: Cache, signals: list[Signal], caplog
) -> None:
    expected, path = crops(shared, signals), shared.path(signals[0])
    quietly(flip)(path)
    for _ in range(2):
        assert torch.equal(crops(local, signals), expected)
    assert len(said(caplog)) == 1
    assert f"{path}: cache entry could not be read (its checksum is wrong) and was computed anew" in said(caplog)[0]
    assert entries.check(path)
    assert entries.check(copy_of(local, signals[0]))


def test_a_bit_that_is_flipped_on_the_way_is_found(
    shared: Cache, local: Cache, signals: list[Signal], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    expected, before = crops(shared, signals), state(shared.folder)
    original, opened = shared.path(signals[0]), entries.quietly_opened
    arrived = Path(shutil.copy(original, tmp_path / "arrived"))
    flip(arrived)

    def once(path: Path) -> IO[bytes]:
        if path == original:
            monkeypatch.setattr(entries, "quietly_opened", opened)
        return opened(arrived if path == original else path)

    monkeypatch.setattr(entries, "quietly_opened", once)
    assert torch.equal(crops(local, signals), expected)
    assert not copied(local, signals)[0]
    assert torch.equal(crops(local, signals), expected)
    assert entries.check(copy_of(local, signals[0]))
    assert state(shared.folder) == before
    assert said(caplog) == []


# A disk that is full, or cannot be written.


def full(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=copies.SPARE_BYTES))


def fails(monkeypatch: pytest.MonkeyPatch, local: Path) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)


def taken(_: pytest.MonkeyPatch, local: Path) -> None:
    local.write_text("a file")


TROUBLE = {
    "no spare": (full, "No space left"),
    "full": (fails, "No space left"),
    "a file": (taken, "Not a directory|File exists"),
}


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("name", TROUBLE)
def test_a_folder_that_takes_no_copies_costs_one_warning(
    name: str, prepared: bool, shared: Cache, local: Cache, signals: list[Signal], tmp_path: Path, monkeypatch, capfd
) -> None:
    expected, before = crops(shared, signals), state(shared.folder)
    arrange, why = TROUBLE[name]
    arrange(monkeypatch, tmp_path / "local")
    warnings = tmp_path / "warnings"
    handler = logging.FileHandler(warnings)
    copies.log.addHandler(handler)
    if prepared:
        local.prepare_copies(verify=False)

    def work(_: int) -> None:
        for _ in range(3):
            assert torch.equal(crops(local, signals), expected)

    try:
        work(0)
        in_processes(3, work)  # workers
    finally:
        copies.log.removeHandler(handler)
        handler.close()
    assert state(shared.folder) == before
    assert not (tmp_path / "local").is_dir() or state(tmp_path / "local") == {}
    lines = [line for line in warnings.read_text().splitlines() if "no copies can be made any more" in line]
    assert len(lines) == 1
    assert any(part in lines[0] for part in why.split("|"))
    assert f"data.local_cache={tmp_path}/local" in lines[0]


def test_copies_that_are_there_are_read_where_none_can_be_made(
    shared: Cache, local: Cache, signals: list[Signal], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = crops(shared, signals)
    crops(local, signals[:4])
    full(monkeypatch, Path())
    later = with_copies(shared, signals)
    for _ in range(2):
        assert torch.equal(crops(later, signals[::-1]), expected.flip(0))
    shutil.rmtree(shared.folder)
    assert torch.equal(crops(later, signals[:4]), expected[:4])
    assert not shared.folder.exists()


# Before a run.


def leftover(made: Cache, number: int, days: float, size: int = 20_000) -> Path:
    """A copy that another run has left, as it was last used so many days ago."""
    path = made.copies.folder / f"{number:02x}" / f"{number:02x}{'0' * 38}.stft"
    entries.create(path, made.kind, [bytes(size)])
    os.utime(path, (time.time() - days * DAY, path.stat().st_mtime))
    stat = path.stat()
    content = bytearray(path.read_bytes())
    header = replace(entries.parse(bytes(content[: entries.PAGE])), written=int(time.time() - days * DAY))
    path.write_bytes(header.page() + content[entries.PAGE :])
    os.utime(path, (header.written, header.written))
    assert path.stat().st_size == stat.st_size
    return path


def test_room_is_made_of_what_was_used_least_recently(shared: Cache, signals: list[Signal]) -> None:
    size = shared.path(signals[0]).stat().st_size
    made = with_copies(shared, signals[:2], 2 * size + 100_000)
    crops(made, signals[:1])
    assert copied(made, signals[:2]) == [True, False]
    os.utime(copy_of(made, signals[0]), (1, 1))  # it is the oldest, and needed
    others = [leftover(made, number, days=number) for number in range(1, 8)]
    part = others[0].with_suffix(".part")
    part.write_bytes(b"half of one")
    (made.copies.folder / "mine.txt").write_text("mine")
    made.prepare_copies(verify=False)
    left = [path.exists() for path in others]
    count = 100_000 // (20_000 // made.kind.record * made.kind.record + entries.PAGE)
    assert left == [True] * count + [False] * (7 - count)
    assert copied(made, signals[:2]) == [True, False]
    assert not part.exists()
    assert (made.copies.folder / "mine.txt").exists()
    crops(made, signals[:2])
    total = sum(path.stat().st_size for path in made.copies.folder.glob("*/*.stft"))
    assert total <= 2 * size + 100_000


def test_what_another_run_removes_is_copied_again(
    shared: Cache, local: Cache, signals: list[Signal], caplog: pytest.LogCaptureFixture
) -> None:
    expected = crops(local, signals)
    other = with_copies(shared, signals[:1], 2 * shared.path(signals[0]).stat().st_size)
    other.prepare_copies(verify=False)
    assert sum(copied(local, signals)) == 2
    assert torch.equal(crops(local, signals), expected)
    assert torch.equal(crops(other, signals), expected)
    assert len(said(caplog)) == 1


def test_a_copy_of_what_was_computed_anew_with_another_result_goes(
    shared: Cache, local: Cache, signals: list[Signal]
) -> None:
    """As on another processor, whose FFT rounds otherwise."""
    crops(local, signals)
    path = shared.path(signals[0])
    path.unlink()
    records = np.full((254, shared.kind.record), 7, np.uint8)
    entries.create(path, shared.kind, [records.tobytes()])
    store.forget_files()
    made = with_copies(shared, signals)
    made.prepare_copies(verify=False)
    assert copied(made, signals) == [False] + [True] * 7
    assert torch.equal(crops(made, signals), crops(shared, signals))


def test_the_share_that_is_local_is_said(
    shared: Cache, signals: list[Signal], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    size = 10**9
    sizes = dict.fromkeys(signals, size)
    made = replace(shared, copies=Copies(shared.folder.parent / "local", entries.look, sizes, 3 * size))
    made.prepare_copies(verify=False)
    assert f"Local cache {shared.folder.parent}/local: 3 of 8 spectrograms (3.00 GB of 8.00 GB)" in caplog.text
    assert said(caplog) == []
    full(monkeypatch, Path())
    made.prepare_copies(verify=False)
    assert len(said(caplog)) == 1
    assert "are to come, and only 0.27 GB are free" in said(caplog)[0]
