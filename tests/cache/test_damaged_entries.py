"""Entries that are damaged, or gone: only complete ones are read, and the others mended."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import cached_songs
from cached_songs import SETTINGS, WRITTEN, built, files_in, signal_of
from stemwise import signals
from stemwise.cache import entries, storage, store
from stemwise.cache.store import Cache
from stemwise.errors import UserError
from stemwise.index import Cell, Signal


@pytest.fixture(autouse=True)
def _as_new(monkeypatch: pytest.MonkeyPatch) -> None:
    cached_songs.as_new(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cached_songs.write_songs(tmp_path_factory.mktemp("songs"))


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
