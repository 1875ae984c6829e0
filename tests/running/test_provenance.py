"""The record of a run: what it says of songs, what a resume adds, and what no stranger's file can do to us."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from stemwise import index
from stemwise.errors import UserError
from stemwise.running import provenance
from stemwise.running.provenance import FILE, File, Split

CONFIG = {"seed": 3, "hash_songs": True, "init_from": None, "ckpt_path": None}


@pytest.fixture
def root(tmp_path: Path, write_song) -> Path:
    songs = tmp_path / "songs"
    for name in ("One", "Two"):
        write_song(songs / name, {"vocals": None, "drums": None}, seconds=0.01)
    rows = ["vocals_path,drums_path", *(f"{name}/vocals.wav,{name}/drums.wav" for name in ("One", "Two"))]
    (songs / "train.csv").write_text("\n".join(rows) + "\n")
    (songs / "valid.csv").write_text("\n".join(rows[:2]) + "\n")
    return songs


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def indexes(root: Path) -> dict[str, index.Index]:
    return {split: index.read(root / f"{split}.csv", root) for split in ("train", "valid")}


def start(run: Path, root: Path, *overrides: str, **config: object) -> provenance.Record:
    provenance.record(run, CONFIG | config, overrides, indexes(root))
    return provenance.read(run)


def test_a_start_is_written_down(run, root):
    found = start(run, root, "stems=2", "data.root='a b'")
    assert list(found.index) == ["train", "valid"]
    split = found.index["train"]
    assert split.songs == [
        (name, {"vocals": f"{name}/vocals.wav", "drums": f"{name}/drums.wav"}) for name in ("One", "Two")
    ]
    assert set(split.files) == {f"{name}/{stem}.wav" for name in ("One", "Two") for stem in ("vocals", "drums")}
    assert all(len(file.sha256 or "") == 64 and file.size > 40 for file in split.files.values())
    (only,) = found.starts
    assert (only.seed, only.overrides, only.directory) == (3, ["stems=2", "data.root='a b'"], os.getcwd())
    assert only.config == CONFIG
    assert only.command
    assert only.changed_songs == []
    assert [path.name for path in run.iterdir()] == [FILE]


def test_a_resume_adds_a_start_and_keeps_the_first(run, root):
    first = start(run, root)
    second = start(run, root, "ckpt_path=last")
    assert second.starts[0] == first.starts[0]
    assert [one.overrides for one in second.starts] == [[], ["ckpt_path=last"]]
    assert second.index == first.index


def test_a_resume_with_other_songs_warns_and_says_which(run, root, caplog):
    first = start(run, root)
    with (root / "Two/drums.wav").open("r+b") as file:
        file.seek(60)
        file.write(b"other")
    second = start(run, root, "ckpt_path=last")
    assert "not those that this run began with: train: Two/drums.wav" in caplog.text
    (changed,) = second.starts[1].changed_songs
    assert "Two/drums.wav" in changed
    assert second.index == first.index


def test_without_hashes_size_and_time_have_to_do(run, root):
    found = start(run, root, hash_songs=False)
    files = found.index["train"].files
    assert all(file.sha256 is None and file.changed for file in files.values())
    os.utime(root / "One/drums.wav", ns=(0, 0))
    places = {split: {name: root / name for name in known.files} for split, known in found.index.items()}
    now = provenance.with_contents(found.index, places, False)
    (difference, *rest) = provenance.song_differences(found.index, now)
    assert difference.what == "train: One/drums.wav"
    assert [one.what for one in rest] == ["valid: One/drums.wav"]
    with pytest.raises(UserError, match="hash_songs=no way is not true or false"):
        start(run, root, hash_songs="no way")


def test_the_model_that_a_run_starts_from_is_among_its_inputs(run, root, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    found = start(run, root, init_from=str(tmp_path / "model.safetensors"), ckpt_path="last")
    assert list(found.inputs) == [str(tmp_path / "model.safetensors")]


def test_files_outside_the_root_keep_their_path(run, root, tmp_path):
    (tmp_path / "far.wav").write_bytes((root / "One/vocals.wav").read_bytes())
    (root / "train.csv").write_text(f"vocals_path,drums_path\n{tmp_path}/far.wav#channel=1,One/drums.wav\n")
    found = start(run, root)
    assert set(found.index["train"].files) == {f"{tmp_path}/far.wav", "One/drums.wav"}


SPLIT = Split(
    "train.csv",
    "/songs",
    [("One", {"vocals": "a.wav"}), ("Two", {"vocals": "b.wav"})],
    {"a.wav": File(5, "a" * 64), "b.wav": File(5, "b" * 64)},
)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (SPLIT, []),
        (replace(SPLIT, root="/elsewhere", source="other.csv"), []),
        (replace(SPLIT, files={"a.wav": File(5, "a" * 64)}), ["train: b.wav: SHA-256 bbbbbbbbbbbb… → gone"]),
        (
            replace(SPLIT, files=SPLIT.files | {"b.wav": File(5, "c" * 64)}),
            ["train: b.wav: SHA-256 bbbbbbbbbbbb… → SHA-256 cccccccccccc…"],
        ),
        (replace(SPLIT, songs=SPLIT.songs[::-1]), ["train: the order of the songs: as recorded → another"]),
        (replace(SPLIT, songs=SPLIT.songs[:1]), ["train: songs: 2 → 1, without Two"]),
        (
            replace(SPLIT, songs=SPLIT.songs[:1], files={"a.wav": File(5, "a" * 64)}),
            ["train: songs: 2 → 1, without Two"],
        ),
        (
            replace(SPLIT, songs=[*SPLIT.songs, *((f"{n}", {}) for n in range(7))]),
            ["train: songs: 2 → 9, with 0, 1, 2, 3, 4 and 2 more"],
        ),
        (
            replace(SPLIT, songs=[SPLIT.songs[0], ("Two", {"vocals": "b.wav#channel=1"})]),
            ["train: songs: 2 → 2, without Two and with Two"],
        ),
        (None, ["train: 2 songs → none"]),
    ],
)
def test_every_difference_of_songs_is_named(now, expected):
    found = provenance.song_differences({"train": SPLIT}, {"train": now} if now else {})
    assert [str(one) for one in found] == expected
    assert all(one.changes_results for one in found)


def test_an_environment_differs_by_key():
    then = {"versions": {"torch": "1", "wandb": "1"}, "hardware": {"gpus": ["A", "A"]}, "old": None}
    now = {"versions": {"torch": "2", "wandb": "2"}, "hardware": {"gpus": []}, "new": 3}
    found = {str(one): one.changes_results for one in provenance.environment_differences(then, now)}
    assert found == {
        "versions.torch: 1 → 2": True,
        "versions.wandb: 1 → 2": False,
        "hardware.gpus: A, A → none": True,
        "new: unknown → 3": False,
    }


def test_a_song_that_vanishes_is_named(run, root):
    (root / "One/drums.wav").unlink()
    with pytest.raises(UserError, match=r"One/drums\.wav: cannot be read"):
        start(run, root)


def test_a_folder_that_cannot_be_written_is_named_and_the_old_record_stays(run, root, monkeypatch):
    before = start(run, root)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"provenance\.json: cannot be written \(No space left"):
        start(run, root)
    assert provenance.read(run) == before
    assert [path.name for path in run.iterdir()] == [FILE]


def test_no_record_is_said_so(tmp_path):
    with pytest.raises(UserError, match=r"provenance\.json: no such file"):
        provenance.read(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"\xff",
        b"[" * 100_000,
        b'{"format": ' + b"9" * 5000 + b"}",
        b'{"format": 2}',
        b'{"format": 1}',
        b'{"format": 1, "index": {}, "inputs": {}, "starts": []}',
        b'{"format": 1, "index": [], "inputs": {}, "starts": [1]}',
        b'{"format": 1, "index": {"train": {"songs": [1]}}, "inputs": {}, "starts": []}',
        b'{"format": 1, "index": {}, "inputs": {"a": {"size": "b"}}, "starts": []}',
        b'{"format": 1, "index": {}, "inputs": {}, "starts": [{"time": 1}]}',
    ],
)
def test_a_damaged_record_is_one_message(run, content):
    (run / FILE).write_bytes(content)
    with pytest.raises(UserError, match=r"provenance\.json: (damaged|format)"):
        provenance.read(run)


@pytest.mark.parametrize("key", ["command", "overrides", "config", "environment", "run", "directory"])
def test_values_of_another_type_are_damage(run, root, key):
    start(run, root)
    raw = json.loads((run / FILE).read_text())
    raw["starts"][0][key] = 3
    (run / FILE).write_text(json.dumps(raw))
    with pytest.raises(UserError, match="damaged"):
        provenance.read(run)
