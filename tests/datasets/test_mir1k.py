"""MIR-1K: channels as stems, the protocol's singers, songs held out whole."""

from pathlib import Path

import pytest

from stemwise import index
from stemwise.datasets import mir1k
from stemwise.errors import UserError
from stemwise.index import Cell, Index


def touch(root: Path, *clips: str) -> Path:
    """Empty files: `find` reads names, not audio."""
    for clip in clips:
        (root / clip).parent.mkdir(parents=True, exist_ok=True)
        (root / clip).touch()
    return root


def names(indexes: dict[str, Index]) -> dict[str, list[str]]:
    return {split: [track.name for track in found.tracks] for split, found in indexes.items()}


def song(clip: str) -> str:
    return clip.rpartition("_")[0]


def test_the_training_singers_are_split_by_song(shared_data: Path) -> None:
    found = names(mir1k.find(shared_data / "mir1k"))
    assert {split: len(clips) for split, clips in found.items()} == {"train": 155, "valid": 20, "test": 0}
    assert not {song(clip) for clip in found["train"]} & {song(clip) for clip in found["valid"]}
    assert {clip.split("_")[0] for clip in found["valid"]} == {"abjones", "amy"}


def test_real_clips_pass_the_check(shared_data: Path) -> None:
    index.check(mir1k.find(shared_data / "mir1k")["valid"], ("vocals", "accompaniment"), {})


def test_the_voice_is_the_right_channel_and_the_mixture_the_sum(tmp_path: Path) -> None:
    (track,) = mir1k.find(touch(tmp_path, "train/amy_1_01.flac"))["train"].tracks
    path = tmp_path / "train/amy_1_01.flac"
    assert track.stems == {"vocals": Cell(path, channel=1), "accompaniment": Cell(path, channel=0)}
    assert track.mixture is None
    assert set(track.mixture_signal) == set(track.stems.values())


@pytest.mark.parametrize("folder", ["Wavfile/", "", "train/"])
def test_singers_and_not_folders_decide_the_split(folder: str, tmp_path: Path) -> None:
    clips = ["amy_1_01", "amy_2_03", "abjones_1_02", "Kenshin_1_01", "amy_10_01", "abjones_10_01"]
    found = names(mir1k.find(touch(tmp_path, *(f"{folder}{clip}.wav" for clip in clips))))
    assert found == {
        "train": ["abjones_10_01", "amy_10_01", "amy_1_01"],
        "valid": ["abjones_1_02", "amy_2_03"],
        "test": ["Kenshin_1_01"],
    }


def test_a_singer_or_other_songs_are_held_out(tmp_path: Path) -> None:
    clips = ["amy_1_01", "amy_2_03", "abjones_1_02", "abjones_4_02", "Kenshin_1_01"]
    root = touch(tmp_path, *(f"{clip}.wav" for clip in clips))
    found = names(mir1k.find(root, ["amy"]))
    assert found == {"train": clips[2:4], "valid": clips[:2], "test": clips[4:]}
    assert names(mir1k.find(root, ["abjones", "amy_1"]))["train"] == ["amy_2_03"]
    assert names(mir1k.find(root, ["abjones_4"]))["valid"] == ["abjones_4_02"]


@pytest.mark.parametrize("name", ["Kenshin", "am", "amy_3", ""])
def test_what_is_held_out_is_there(name: str, tmp_path: Path) -> None:
    root = touch(tmp_path, "amy_1_01.wav", "abjones_1_02.wav", "Kenshin_1_01.wav")
    with pytest.raises(UserError, match=rf"data\.dataset\.valid=.*no clip of {name!r}"):
        mir1k.find(root, ["amy_1", name])


def test_train_and_test_folders_are_read_together(tmp_path: Path) -> None:
    found = names(mir1k.find(touch(tmp_path, "train/amy_1_01.flac", "test/bug_1_01.flac")))
    assert found == {"train": ["amy_1_01"], "valid": [], "test": ["bug_1_01"]}


def test_other_files_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "Wavfile/amy_1_01.wav", "Wavfile/._amy_1_01.wav", "Wavfile/amy.wav")
    assert names(mir1k.find(tmp_path))["train"] == ["amy_1_01"]
    assert "left out amy.wav, which is no clip" in caplog.text
    touch(tmp_path, "Wavfile/amy_1_01.pv")
    assert names(mir1k.find(tmp_path))["train"] == ["amy_1_01"]
    assert "left out 2 files that are no clips: amy.wav" in caplog.text


@pytest.mark.parametrize("root", [None, "absent"])
def test_a_root_that_is_not_there_says_what_to_set(root: str | None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root=.*no such folder"):
        mir1k.find(tmp_path / root if root else None)


def test_a_root_without_clips_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no MIR-1K in it: .*Wavfile/abjones_1_01\.wav.*Set data\.root"):
        mir1k.find(touch(tmp_path, "train/song.flac"))


def test_the_written_index_reads_back(tmp_path: Path) -> None:
    found = mir1k.find(touch(tmp_path, "Wavfile/amy_1_01.wav", "Wavfile/amy_1_02.wav"))["train"]
    index.write(found, tmp_path / "train.csv")
    assert index.read(tmp_path / "train.csv", tmp_path).tracks == found.tracks
