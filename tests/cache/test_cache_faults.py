"""A run whose cache or songs are damaged under its feet recovers to the last digit, or ends with one message."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stemwise.cache import fingerprints, store
from stemwise.errors import UserError
from stemwise.index import Cell
from stemwise.training import SeparatorTraining

CACHE = Path("data/cache")
STEPS = ["trainer.max_steps=12", "trainer.val_check_interval=4", "data.examples_per_song=4", "data.batch_size=2"]


@pytest.fixture
def after_step_3(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Has something happen in the middle of a run."""

    def arrange(happens: Callable[[], object]) -> None:
        def hook(self: SeparatorTraining, *_: object) -> None:
            if self.global_step == 3:
                happens()

        monkeypatch.setattr(SeparatorTraining, "on_train_batch_end", hook)

    return arrange


def weights() -> dict[str, torch.Tensor]:
    # The last step's, which are not those of the best validation.
    return torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]


def each(damage: Callable[[Path], object]) -> Callable[[], None]:
    def do() -> None:
        found = list(CACHE.glob("*/*.stft"))
        assert found
        for path in found:
            damage(path)

    return do


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


FAULTS: dict[str, Callable[[], object]] = {
    "folder removed": lambda: shutil.rmtree(CACHE),
    "entries removed": each(Path.unlink),
    "entries cut off": each(lambda path: os.truncate(path, path.stat().st_size // 2)),
    "entries emptied": each(lambda path: os.truncate(path, 0)),
    "a byte of each entry changed": each(flip),
    "entries overwritten": each(lambda path: path.write_bytes(os.urandom(9999))),
}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_whose_cache_is_damaged_is_the_run_without_it(workers: int, train, after_step_3, tmp_path) -> None:
    keys = [*STEPS, f"data.num_workers={workers}"]
    assert train(*keys).code == 0
    clean = weights()
    for name, fault in FAULTS.items():
        shutil.rmtree("run")
        store.forget_files()
        after_step_3(fault)
        done = train(*keys)
        assert done.code == 0, (name, done.output)
        assert "computed anew" in done.output, name
        found = weights()
        assert all(torch.equal(found[key], clean[key]) for key in clean), name
        assert not list(CACHE.glob("*/*.part"))


def local(damage: Callable[[Path], object]) -> Callable[[], None]:
    def do() -> None:
        found = list(Path("local").glob("*/*.stft"))
        assert found
        for path in found:
            damage(path)

    return do


LOCAL_FAULTS: dict[str, Callable[[], object]] = {
    "none": lambda: None,
    "folder removed": lambda: Path("local").rename("gone"),
    "a byte of each copy changed": local(flip),
}


def test_a_run_with_local_copies_is_the_run_without_whatever_happens_to_them(train, after_step_3) -> None:
    keys = [*STEPS, "data.num_workers=2"]
    assert train(*keys).code == 0
    clean, cache = weights(), {path: path.stat().st_mtime_ns for path in CACHE.glob("*/*")}
    keys += ["data.local_cache=local", "data.local_cache_limit=60k"]
    for name, fault in LOCAL_FAULTS.items():
        shutil.rmtree("run")
        for folder in ("local", "gone"):
            shutil.rmtree(folder, ignore_errors=True)
        store.forget_files()
        after_step_3(fault)
        done = train(*keys)
        assert done.code == 0, (name, done.output)
        assert "Local cache local: " in done.output
        assert ("local copy" in done.output) == (name != "none"), (name, done.output)
        assert "computed anew" not in done.output
        found = weights()
        assert all(torch.equal(found[key], clean[key]) for key in clean), name
        copies = list(Path("local").glob("*/*"))
        assert 0 < len(copies) < len(cache)
        assert sum(path.stat().st_size for path in copies) <= 60_000
        assert {path: path.stat().st_mtime_ns for path in CACHE.glob("*/*")} == cache


@pytest.fixture
def own_songs(songs: Path, tmp_path: Path) -> list[str]:
    """Songs that may be damaged, and the keys that name them."""
    root = shutil.copytree(songs, tmp_path / "own")
    return [f"data.root={root}", *(f"data.{split}={root}/{split}.csv" for split in ("train", "valid", "test"))]


def remove_songs() -> None:
    for path in Path("own").glob("*/*.wav"):
        path.unlink()


def change_songs() -> None:
    for path in Path("own").glob("*/*.wav"):
        path.write_bytes(path.read_bytes()[:-4] + b"\1\2\3\4")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda: (remove_songs(), shutil.rmtree(CACHE)), "nor computed anew"),
        (lambda: (change_songs(), shutil.rmtree(CACHE)), "changed since this run began"),
        (remove_songs, "no such file"),  # validation hears whole songs
    ],
    ids=["cache and songs removed", "cache removed and songs changed", "songs removed"],
)
def test_songs_that_are_gone_end_a_run_with_one_message(
    fault: Callable[[], object], message: str, workers: int, train, own_songs, after_step_3
) -> None:
    store.forget_files()
    after_step_3(fault)
    done = train(*STEPS, *own_songs, f"data.num_workers={workers}")
    assert done.code == 2, done.output
    assert done.output.count("error: ") == 1
    assert message in done.output
    assert ".wav" in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("keys", [["data.cache=null", "trainer.limit_val_batches=0"], []], ids=["no cache", "cache"])
def test_songs_that_changed_are_not_taken_for_those_of_before(keys, workers: int, train, own_songs, after_step_3):
    """Without a cache they are read for each crop, and with one for the validation. The length stays."""
    store.forget_files()
    after_step_3(change_songs)
    done = train(*STEPS, *own_songs, *keys, f"data.num_workers={workers}")
    assert done.code == 2, done.output
    assert done.output.count("error: ") == 1
    assert ".wav: changed since this run began" in done.output


def test_a_song_that_is_read_while_it_is_replaced_changed(songs, tmp_path):
    """Half of it is there: that it is cut off is no news."""
    path = tmp_path / "song.wav"
    path.write_bytes((songs / "Song 0" / "bass.wav").read_bytes())
    signal = (Cell(path),)
    fingerprints.check_unchanged(signal)
    with pytest.raises(UserError, match="cut off"), fingerprints.unchanged(signal):
        raise UserError(f"{path}: cut off")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"song\.wav: changed since this run began"), fingerprints.unchanged(signal):
        raise UserError(f"{path}: cut off")
    path.unlink()
    with pytest.raises(UserError, match="no such file"), fingerprints.unchanged(signal):
        raise UserError(f"{path}: no such file")


def test_songs_that_are_gone_do_not_end_a_run_that_does_not_need_them(train, own_songs, after_step_3) -> None:
    store.forget_files()
    after_step_3(remove_songs)
    done = train(*STEPS, *own_songs, "trainer.limit_val_batches=0")
    assert done.code == 0, done.output
