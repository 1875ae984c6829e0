"""`stemwise cache`: what it says about a cache is so, and what it fills is what training reads."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stemwise import __version__
from stemwise.cache import entries, store
from tiny import TINY

CACHE = Path("data/cache")


@pytest.fixture
def build(stemwise, songs: Path):
    """Runs `stemwise cache build` with the keys that the fixture `train` has."""

    def run(*arguments: str):
        store.forget_files()
        keys = [
            "data=csv",
            f"data.root={songs}",
            *(f"data.{split}={songs}/{split}.csv" for split in ("train", "valid")),
        ]
        return stemwise("cache", "build", *keys, *TINY, *arguments)

    return run


def files() -> list[Path]:
    return sorted(CACHE.glob("*/*.stft"))


def contents() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in files()}


def spoil(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"xyz")


@pytest.fixture
def no_new_entries(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(store.Cache, "compute", None)


# Build


def test_what_is_built_is_what_training_reads(build, train, no_new_entries) -> None:
    done = build("trainer.max_steps=3")  # any key of training, so that one line serves both
    assert done.code == 0, done.output
    assert "data/cache: 25 of 25 spectrograms are there" in done.output
    assert len(files()) == 25  # 5 songs, mixture and 4 stems
    assert sorted(path.name for path in Path().iterdir()) == ["data"]  # no run folder
    no_new_entries()
    done = train("trainer.max_steps=1")
    assert done.code == 0, done.output


@pytest.mark.parametrize("flag", [["shard={}/3"], ["--shard", "{}/3"], ["--shard={}/3"]], ids=["key", "flag", "flag="])
def test_shards_make_one_cache(flag: list[str], build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "now", lambda: 10**9)
    assert build().code == 0
    whole = contents()
    shutil.rmtree(CACHE)
    for number, there in ((2, 8), (3, 17), (1, 25), (1, 25)):
        done = build(*(word.format(number) for word in flag))
        assert done.code == 0, done.output
        assert f"shard {number}/3 is done; {there} of 25 spectrograms are there" in done.output
    assert contents() == whole


@pytest.mark.parametrize("shard", ["0/3", "4/3", "3", "1/0", "a/b", "-1/3", "1.5/3", ""])
def test_a_shard_that_cannot_be(shard: str, build) -> None:
    done = build(f"--shard={shard}")
    assert done.code == 2
    assert f"shard={shard}: not one of several. Write shard=1/16" in done.output
    assert "Traceback" not in done.output


def test_without_a_cache_there_is_nothing_to_build(build) -> None:
    done = build("data.cache=null")
    assert done.code == 2
    assert "data.cache=null: there is no cache to build" in done.output


def test_a_limit_that_is_too_small_and_one_that_makes_room(build) -> None:
    done = build("data.cache_limit=10k")
    assert done.code == 2
    assert "data.cache_limit=0.00 GB: " in done.output
    assert "Traceback" not in done.output
    assert build("data.storage=decibel").code == 0
    others = files()
    size = sum(path.stat().st_size for path in others)
    assert build(f"data.cache_limit={int(2.2 * size)}").code == 0
    assert len(files()) - 25 < 25
    assert build(f"data.cache_limit={10 * size}").code == 0


@pytest.mark.parametrize(("key", "value"), [("cache_limit", "much"), ("cache_limit", "[1]"), ("verify", "3")])
def test_values_that_cannot_be(key: str, value: str, build) -> None:
    done = build(f"data.{key}={value}")
    assert done.code == 2
    assert f"data.{key}=" in done.output
    assert "Traceback" not in done.output


# Info


def test_info_says_what_there_is(build, stemwise) -> None:
    build()
    build("data.storage=decibel", "spectrogram.bins=32")
    done = stemwise("cache", "info")
    assert done.code == 0, done.output
    assert f"data/cache: 50 entries, {sum(path.stat().st_size for path in files()) / 1e9:.2f} GB\n" in done.output
    known = f"8000 Hz, channels=1, n_fft=256, hop=64, bins={{}} (stemwise {__version__})"
    assert f"25 entries, 0.00 GB, used today: half, {known.format(64)}\n" in done.output
    assert f"25 entries, 0.00 GB, used today: decibel, {known.format(32)}\n" in done.output
    assert len(done.output.splitlines()) == 3


def test_info_names_what_is_old_broken_or_left(build, stemwise) -> None:
    build()
    first, second, third, fourth, *_ = files()
    first.rename(first.with_suffix(".npy"))
    second.write_bytes(b"")
    page = bytearray(third.read_bytes())
    page[8] += 1
    third.write_bytes(page)
    third.with_suffix(".part").touch()
    with fourth.with_suffix(".part").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = stemwise("cache", "info", CACHE)
    assert "data/cache: 22 entries" in done.output
    assert "1 entry, 0.00 GB of format 1, not 2" in done.output
    assert "1 entry, 0.00 GB of format 3, not 2" in done.output
    assert "1 entry, 0.00 GB that cannot be read: stemwise cache verify data/cache --delete" in done.output
    assert "2 .part files: 1 being written, 1 left by killed builds" in done.output
    assert "of no use: stemwise cache prune data/cache" in done.output


@pytest.mark.parametrize("command", ["info", "verify", "prune"])
def test_a_folder_that_is_not_there(command: str, stemwise) -> None:
    done = stemwise("cache", command, "nowhere")
    assert done.code == 2
    assert "nowhere: no such folder" in done.output
    assert "Traceback" not in done.output


# Verify


def test_verify_finds_and_training_mends(build, stemwise, train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "now", lambda: 10**9)
    build()
    clean = contents()
    assert stemwise("cache", "verify").code == 0
    broken = files()[3]
    spoil(broken)
    os.utime(broken, (10**9, 10**9))  # as a disk does it
    done = stemwise("cache", "verify", CACHE)
    assert done.code == 1
    assert f"{broken}: its checksum is wrong" in done.output
    assert broken.exists()
    done = stemwise("cache", "verify", CACHE, "--delete")
    assert done.code == 1
    assert "1 broken, removed" in done.output
    assert clean.keys() - contents().keys() == {broken}
    assert stemwise("cache", "verify", CACHE).code == 0
    store.forget_files()
    assert train("trainer.max_steps=1").code == 0
    assert contents() == clean


def test_training_checks_every_byte_if_it_is_told_to(build, train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entries, "now", lambda: 10**9)
    build()
    clean, broken = contents(), files()[3]
    spoil(broken)
    os.utime(broken, (10**9, 10**9))
    store.forget_files()
    assert train("trainer.max_steps=1").code == 0
    assert contents() != clean
    store.forget_files()
    done = train("trainer.max_steps=1", "data.verify=true")
    assert done.code == 0
    assert f"{broken}: cache entry is broken (its checksum is wrong); it is computed anew." in done.output
    assert contents() == clean


# Prune


def test_prune_removes_what_is_of_no_use_and_nothing_else(build, stemwise) -> None:
    build()
    first, second, *_ = files()
    sound = set(files()) - {first}
    first.rename(first.with_suffix(".npy"))
    first.with_suffix(".part").touch()
    (CACHE / "notes.txt").write_text("mine")
    with second.with_suffix(".part").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = stemwise("cache", "prune", "--dry-run")
        assert done.output.startswith("data/cache: 2 files would go (0.00 GB)")
        assert first.with_suffix(".npy").exists()
        done = stemwise("cache", "prune")
        assert done.code == 0
        assert done.output.startswith("data/cache: 2 files removed (0.00 GB)")
        left = {path for path in CACHE.rglob("*") if path.is_file()}
    assert left == sound | {CACHE / "notes.txt", second.with_suffix(".part")}


def test_prune_by_age_and_by_size(build, stemwise) -> None:
    build()
    made = files()
    for days, path in enumerate(made):
        os.utime(path, (path.stat().st_atime - days * entries.DAY, 10**9))
    assert stemwise("cache", "prune", "--older-than", "19.5").code == 0
    assert files() == made[:20]
    assert stemwise("cache", "prune", "--to", sum(path.stat().st_size for path in made[:7])).code == 0
    assert files() == made[:7]


def test_prune_what_no_run_of_these_reads(build, train, stemwise) -> None:
    assert train("trainer.max_steps=1").code == 0
    mine = files()
    build("data.storage=decibel")
    both = files()
    store.forget_files()
    assert stemwise("cache", "prune", CACHE, "--unused-by", "run", "--dry-run").code == 0
    assert files() == both
    done = stemwise("cache", "prune", CACHE, "--unused-by", "run")
    assert done.code == 0, done.output
    assert files() == mine
    done = stemwise("cache", "prune", CACHE, "--unused-by", "run", "data")
    assert done.code == 2
    assert "--unused-by data: data/config.yaml cannot be read" in done.output
    Path("data/config.yaml").write_text("data: {_target_: [")
    assert stemwise("cache", "prune", "--unused-by", "data").code == 2
    Path("data/config.yaml").write_text("mine: 1")
    assert stemwise("cache", "prune", "--unused-by", "data").code == 2
    assert files() == mine


@pytest.mark.parametrize("arguments", ["--to much", "--older-than -1", "--older-than x", "--to"])
def test_prune_refuses_what_it_does_not_understand(arguments: str, build, stemwise) -> None:
    build()
    done = stemwise("cache", "prune", *arguments.split())
    assert done.code == 2
    assert len(files()) == 25


# Help


def test_help(stemwise) -> None:
    assert "stemwise cache build stems=4 data=musdb18" in stemwise("cache", "--help").output
    assert stemwise("cache", "verify", "--help").code == 0
    assert stemwise("cache").code == 2
