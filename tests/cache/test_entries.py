"""An entry's file: nothing but a whole, sound entry of the right kind passes for one."""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stemwise.cache import entries
from stemwise.cache.entries import FORMAT, PAGE, Header, Kind

KIND = Kind("0.1.0", "half", 44100, 2, 4096, 1024, 1024, record=50)
NAME = "0123456789abcdef0123456789abcdef01234567"
RECORDS = np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)
PIECES = [RECORDS[:7].tobytes(), RECORDS[7:8].tobytes(), b"", RECORDS[8:].tobytes()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A whole entry of 40 records."""
    path = tmp_path / "cache" / "01" / f"{NAME}.stft"
    entries.create(path, KIND, PIECES)
    return path


def all_records(entry: entries.Entry, first: int = 0, count: int = 40) -> np.ndarray:
    records = np.zeros((count, 50), np.uint8)
    entry.read(first, records)
    return records


def put_back_the_time(path: Path, written: float) -> None:
    os.utime(path, (time.time(), written))


# What is written is what is read.


def test_there_and_back(path: Path) -> None:
    for found in (entries.look(path), entries.check(path)):
        assert (found.header.name, found.header.kind, found.header.count) == (NAME, KIND, 40)
        assert found.header.size == path.stat().st_size
        assert (all_records(found) == RECORDS).all()
        assert (all_records(found, 11, 5) == RECORDS[11:16]).all()
    assert abs(found.header.written - time.time()) < 60
    assert list(path.parent.iterdir()) == [path]


def test_an_entry_without_records(tmp_path: Path) -> None:
    path = tmp_path / "01" / f"{NAME}.stft"
    entries.create(path, KIND, [])
    assert entries.check(path).header.count == 0


def test_the_page_says_all_without_the_records(path: Path) -> None:
    page = path.read_bytes()[:PAGE]
    header = entries.parse(page)
    assert header == entries.look(path).header
    assert header.page() == page
    assert entries.format_of(page[:12]) == FORMAT


@given(
    st.builds(
        Kind,
        st.text("0123456789.abc+", max_size=64),
        st.sampled_from(["half", "x" * 16]),
        *[st.integers(0, 2**32 - 1)] * 6,
    ),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
)
def test_any_header_there_and_back(kind: Kind, count: int, written: int, checksum: int) -> None:
    header = Header(NAME, kind, count, written, checksum)
    assert len(header.page()) == PAGE
    assert entries.parse(header.page()) == header


# What is broken is found.


def test_every_flipped_bit_of_the_page_is_found(path: Path) -> None:
    page = bytearray(path.read_bytes()[:PAGE])
    for bit in range(8 * PAGE):
        page[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match=r"it is no|it is of format|is damaged"):
            entries.parse(bytes(page))
        page[bit // 8] ^= 1 << bit % 8


def test_every_flipped_bit_of_the_records_is_found_by_check(path: Path) -> None:
    whole, written = bytearray(path.read_bytes()), path.stat().st_mtime
    for bit in range(8 * PAGE, 8 * len(whole), 61):
        whole[bit // 8] ^= 1 << bit % 8
        path.write_bytes(whole)
        put_back_the_time(path, written)
        assert entries.look(path)  # which reads no records
        with pytest.raises(ValueError, match="its checksum is wrong"):
            entries.check(path)
        whole[bit // 8] ^= 1 << bit % 8


def test_what_was_written_to_is_read_through(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(PAGE + 999)
        file.write(b"\0\1")
    with pytest.raises(ValueError, match="its checksum is wrong"):
        entries.look(path)


def test_every_length_but_the_right_one_is_found(path: Path) -> None:
    whole, written = path.read_bytes(), path.stat().st_mtime
    for length in (*range(0, len(whole), 97), PAGE, len(whole) - 1, len(whole) + 1):
        path.write_bytes((whole + b"\0")[:length])
        put_back_the_time(path, written)
        with pytest.raises(ValueError, match=r"it is no|is damaged|bytes of"):
            entries.look(path)


def test_another_name_and_another_format_are_refused(path: Path) -> None:
    other = path.with_stem(NAME[::-1])
    shutil.copy2(path, other)
    with pytest.raises(ValueError, match="it is the entry of another signal"):
        entries.look(other)
    page = bytearray(path.read_bytes())
    page[8] += 1
    path.write_bytes(page)
    with pytest.raises(ValueError, match=f"it is of format {FORMAT + 1}, not {FORMAT}"):
        entries.look(path)


def test_a_reader_that_knows_an_entry_notices_that_it_was_changed(path: Path) -> None:
    known = entries.look(path)
    with path.open("r+b") as file:
        file.seek(PAGE + 999)
        file.write(b"\0\1")
    with pytest.raises(ValueError, match="it was changed"):
        all_records(known)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        all_records(known)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.booleans(), st.binary(max_size=200), st.booleans())
def test_strange_bytes_are_refused_without_more_ado(
    tmp_path: Path, start: bytes, begins_well: bool, records: bytes, sums_fit: bool
) -> None:
    """Also where magic, format and checksum of the page are right: only lies about what follows are left."""
    if begins_well:
        start = b"stemwise" + FORMAT.to_bytes(4, "little") + bytes.fromhex(NAME) + start
    if sums_fit:
        start = start.ljust(PAGE - 4, b"\0")
        start += entries._checksum(start).to_bytes(4, "little")
    path = tmp_path / f"{NAME}.stft"
    path.write_bytes(start + records)
    for look in (entries.look, entries.check):
        try:
            found = look(path)
        except ValueError:
            continue
        assert found.header.size == len(start + records)


# Times.


def test_a_copy_is_read_through_once(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / path.name
    shutil.copyfile(path, copy)
    os.utime(copy)
    entries.look(copy)
    monkeypatch.setattr(entries, "check", None)
    assert (all_records(entries.look(copy)) == RECORDS).all()


def test_where_times_cannot_be_set_all_is_read_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "utime", refuse)
    path = tmp_path / "cache" / "01" / f"{NAME}.stft"
    entries.create(path, KIND, PIECES)
    checked = []
    check = entries.check
    monkeypatch.setattr(entries, "check", lambda path: (checked.append(path), check(path))[1])
    found = entries.look(path)
    entries.mark_used(replace(found, used=0.0))
    assert (all_records(found) == RECORDS).all()
    assert checked == [path]


def test_use_is_noted_and_is_no_change(path: Path) -> None:
    written = path.stat().st_mtime_ns
    os.utime(path, ns=(0, written))
    entries.mark_used(replace(entries.look(path), used=0.0))
    assert time.time() - path.stat().st_atime < 60
    assert path.stat().st_mtime_ns == written


def test_use_is_noted_once_a_day(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = replace(entries.look(path), used=time.time() - 0.5 * entries.DAY)
    monkeypatch.setattr(os, "utime", None)
    entries.mark_used(found)


# Writing.


def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield PIECES[0]
        raise RuntimeError("mine")

    path = tmp_path / "cache" / "01" / f"{NAME}.stft"
    with pytest.raises(RuntimeError, match="mine"):
        entries.create(path, KIND, pieces())
    assert list(path.parent.iterdir()) == []


def test_an_entry_that_came_while_we_waited_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "01" / "entry.stft"
    path.parent.mkdir()
    assert entries._has_locks(tmp_path)
    monkeypatch.setattr(fcntl, "flock", lambda *_: path.write_bytes(b"theirs"))
    with entries._claim(path) as file:
        assert file is None
    assert [found.read_bytes() for found in path.parent.iterdir()] == [b"theirs"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_without_locks_each_writes_its_own(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    entries._has_locks.cache_clear()
    path = tmp_path / "cache" / "01" / f"{NAME}.stft"
    fork = get_context("fork")
    processes = [fork.Process(target=entries.create, args=(path, KIND, PIECES)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    entries._has_locks.cache_clear()
    assert (all_records(entries.check(path)) == RECORDS).all()
    assert list(path.parent.iterdir()) == [path]
    # Nobody knows who writes a `.part` there: only its age tells.
    part = path.with_suffix(".part")
    part.touch()
    assert not entries.is_abandoned(part)
    assert not entries.remove_abandoned(part)
    os.utime(part, (0, 0))
    assert entries.is_abandoned(part)
    assert entries.remove_abandoned(part)
    assert not part.exists()


def test_a_part_is_abandoned_when_nobody_holds_its_lock(tmp_path: Path) -> None:
    part = tmp_path / f"{NAME}.part"
    with part.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not entries.is_abandoned(part)
        assert not entries.remove_abandoned(part)
        assert part.exists()
    assert entries.is_abandoned(part)
    assert part.exists()
    assert entries.remove_abandoned(part)
    assert not part.exists()
