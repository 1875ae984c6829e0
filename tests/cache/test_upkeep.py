"""A cache's folder: nothing foreign is touched, and what goes is what may."""

import fcntl
import os
import random
import time
from pathlib import Path

import pytest

from stemwise.cache import entries, upkeep
from stemwise.cache.entries import DAY, FORMAT, Kind
from stemwise.cache.upkeep import File
from stemwise.errors import UserError

KIND = Kind("0.1.0", "half", 44100, 2, 4096, 1024, 1024, record=50)


def name(number: int) -> str:
    return f"{number:040x}"[::-1]


def entry(folder: Path, number: int, size: int = 100, days: float = 0.0) -> Path:
    """An entry of `size` bytes of records that was last used so many days ago."""
    path = folder / name(number)[:2] / f"{name(number)}.stft"
    then = time.time() - days * DAY
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entries, "now", lambda: int(then))
        entries.create(path, KIND, [bytes([number]) * size])
    os.utime(path, ns=(int(then * 1e9), path.stat().st_mtime_ns))
    return path


def newer(path: Path, number: int) -> Path:
    page = bytearray(path.read_bytes())
    page[8] = number
    path.write_bytes(page)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache in which there is much that is not its own."""
    folder = tmp_path / "cache"
    for place in (
        "notes.txt",
        "ab/song.wav",
        "ab/" + "f" * 40 + ".wav",
        "shelf/" + "9" * 40 + ".stft",
        "deep/ab/" + "e" * 40 + ".stft",
        "e" * 40 + ".npy",
    ):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(b"mine")
    (folder / "ab" / ("d" * 40 + ".stft")).mkdir()
    os.mkfifo(folder / "ab" / ("c" * 40 + ".stft"))
    return folder


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.is_dir()}


# What there is.


def test_only_what_is_called_as_an_entry_is_looked_at(folder: Path) -> None:
    assert upkeep.files(folder) == []
    made = {entry(folder, number) for number in range(5)}
    assert {file.path for file in upkeep.files(folder)} == made


def test_a_file_is_what_its_page_says(folder: Path) -> None:
    sound, old, new, cut = (entry(folder, number) for number in range(4))
    old = old.rename(old.with_suffix(".npy"))
    newer(new, FORMAT + 1)
    cut.write_bytes(cut.read_bytes()[:50])
    part = sound.with_suffix(".part")
    part.write_bytes(b"half")
    found = {file.path: file for file in upkeep.files(folder)}
    assert {path: file.format for path, file in found.items()} == {
        sound: FORMAT,
        old: 1,
        new: FORMAT + 1,
        cut: FORMAT,
        part: None,
    }
    assert [path for path, file in found.items() if file.header] == [sound]
    assert found[sound].header.kind == KIND
    assert found[sound].size == sound.stat().st_size
    assert "damaged" in found[cut].fault
    assert [path for path, file in found.items() if file.is_part] == [part]


def test_to_look_is_not_to_use(folder: Path) -> None:
    path = entry(folder, 1, days=10)
    for _ in range(2):
        (found,) = upkeep.files(folder)
        assert found.used == pytest.approx(time.time() - 10 * DAY, abs=60)
        assert list(upkeep.broken([found])) == []
    assert path.exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone: no such folder.*data\.cache"):
        upkeep.files(tmp_path / "gone")


def test_what_is_removed_meanwhile_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [entry(folder, number) for number in range(3)]
    scandir = os.scandir

    def slowly(where: os.PathLike[str]) -> list[os.DirEntry[str]]:
        found = list(scandir(where))
        made[1].unlink(missing_ok=True)
        return found

    monkeypatch.setattr(os, "scandir", slowly)
    assert {file.path for file in upkeep.files(folder)} == {made[0], made[2]}


# What is broken.


def test_broken_entries_are_found_and_others_are_not(folder: Path) -> None:
    made = [entry(folder, number, 5000) for number in range(6)]
    with made[1].open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    made[2].write_bytes(b"")
    os.truncate(made[3], 5000)
    newer(made[4], FORMAT + 1)
    made[5].with_suffix(".part").write_bytes(b"half")
    broken = dict(upkeep.broken(upkeep.files(folder)))
    assert set(broken) == set(made[1:4])
    assert upkeep.reason(broken[made[1]]) == "its checksum is wrong"


def test_an_entry_that_cannot_be_read_is_not_removed_for_it(folder: Path) -> None:
    path = entry(folder, 1)
    with pytest.raises(UserError, match=r"cannot be read \(Too many open files"):
        upkeep.remove_broken({path: OSError(24, "Too many open files")})
    assert path.exists()


# What may go.


def test_useless_is_what_no_stemwise_reads_or_writes_any_more(folder: Path) -> None:
    sound, new, old = (entry(folder, number) for number in range(3))
    newer(new, FORMAT + 1)
    old = old.rename(old.with_suffix(".npy"))
    left, held = sound.with_suffix(".part"), new.with_suffix(".part")
    left.touch()
    with held.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        gone = upkeep.useless(upkeep.files(folder))
        assert {file.path for file in gone} == {old, left}
        before = everything(folder)
        upkeep.remove([*gone, *gone, *(file for file in upkeep.files(folder) if file.path == held)])
        assert before - everything(folder) == {old, left}


def test_unused_is_what_no_run_needed_for_so_long(folder: Path) -> None:
    made = [entry(folder, days, days=days) for days in range(6)]
    gone = upkeep.unused_for(upkeep.files(folder), 2.5)
    assert {file.path for file in gone} == set(made[3:])


def test_down_to_a_size_the_least_recently_used_go_first() -> None:
    draws = random.Random(0)
    for _ in range(300):
        times = draws.sample(range(1000), 12)
        found = [File(Path(f"{n}.stft"), draws.randrange(1, 50), used, FORMAT) for n, used in enumerate(times)]
        keep = {file.path for file in found if draws.random() < 0.2}
        limit = draws.randrange(0, 400)
        gone = upkeep.beyond(found, limit, keep)
        stay = [file for file in found if file not in gone]
        free = [file for file in stay if file.path not in keep]
        assert not {file.path for file in gone} & keep
        assert sum(file.size for file in stay) <= limit or not free
        assert max((file.used for file in gone), default=-1) < min((file.used for file in free), default=10**4)
        # Not one too many: with the last one it would be too much.
        assert not gone or sum(file.size for file in stay) + gone[-1].size > limit


def test_room_is_made_of_what_others_used(folder: Path) -> None:
    made = [entry(folder, number, 10_000, days=number) for number in range(4)]
    size = made[0].stat().st_size
    upkeep.make_room(folder, 4 * size, 0, made[:1])
    assert all(path.exists() for path in made)
    upkeep.make_room(folder, 4 * size, 2 * size, [made[3]])
    assert [path.exists() for path in made] == [True, False, False, True]
    with pytest.raises(UserError, match=r"data\.cache_limit=0\.00 GB: .*Raise the limit, or set data\.cache=null"):
        upkeep.make_room(folder, 4 * size, 4 * size, [made[3]])
    assert [path.exists() for path in made] == [True, False, False, True]
    upkeep.make_room(folder / "not there", size, size, [])


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("50G", 50 * 10**9),
        ("1.5T", 1.5e12),
        ("800 mb", 8e8),
        ("7k", 7000),
        ("123", 123),
        (10**6, 10**6),
        (2.5e9, 2.5e9),
    ],
)
def test_sizes(text: str | float, size: float) -> None:
    assert upkeep.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "50X", "50 G B", "nan", "inf", "1e30", "0", 0, -5, True, float("nan")])
def test_what_is_no_size(text: str | float) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        upkeep.parse_size(text)
