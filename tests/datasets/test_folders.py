"""Folders of songs: names of files, both layouts, the split by hash, all problems at once."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stemwise import index
from stemwise.datasets import folders
from stemwise.errors import UserError
from stemwise.index import Cell, Index


def touch(root: Path, *files: str) -> Path:
    """Empty files: `find` reads names, not audio."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def names(indexes: dict[str, Index]) -> dict[str, list[str]]:
    return {split: [track.name for track in found.tracks] for split, found in indexes.items()}


def problems(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        folders.find(root)
    return str(caught.value)


def test_files_are_stems_whatever_their_case_and_format(tmp_path: Path) -> None:
    touch(tmp_path, *(f"train/One/{name}" for name in ("vocals.wav", "Drums.FLAC", "BASS.mp3", "Mix.ogg")))
    touch(tmp_path, *(f"train/Two/{name}" for name in ("vocals.m4a", "drums.wav", "bass.wav", "mixture.wav")))
    one, two = folders.find(tmp_path)["train"].tracks
    assert one.mixture == Cell(tmp_path / "train/One/Mix.ogg")
    assert one.stems == {
        "vocals": Cell(tmp_path / "train/One/vocals.wav"),
        "drums": Cell(tmp_path / "train/One/Drums.FLAC"),
        "bass": Cell(tmp_path / "train/One/BASS.mp3"),
    }
    assert list(two.stems) == list(one.stems)


def test_without_a_mixture_the_stems_add_up(tmp_path: Path) -> None:
    (track,) = folders.find(touch(tmp_path, "train/One/vocals.wav", "train/One/rest.wav"))["train"].tracks
    assert track.mixture is None
    assert len(track.mixture_signal) == 2


def test_folders_named_after_splits_are_the_splits(tmp_path: Path) -> None:
    touch(tmp_path, "train/A/vocals.wav", "train/B/vocals.wav", "test/A/vocals.wav")
    assert names(folders.find(tmp_path)) == {"train": ["A", "B"], "valid": [], "test": ["A"]}


def test_hidden_files_and_other_files_are_ignored(tmp_path: Path) -> None:
    touch(tmp_path, "train/A/vocals.wav", "train/A/._vocals.wav", "train/A/cover.jpg", "train/.DS_Store")
    touch(tmp_path, "__MACOSX/A/vocals.wav", "train/__MACOSX/vocals.wav", ".cache/x.wav", "notes.txt")
    assert names(folders.find(tmp_path)) == {"train": ["A"], "valid": [], "test": []}


@pytest.mark.parametrize(("songs", "counts"), [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (7, (5, 1, 1))])
def test_few_songs_fill_the_splits_in_this_order(songs: int, counts: tuple[int, int, int], tmp_path: Path) -> None:
    found = names(folders.find(touch(tmp_path, *(f"{song}/vocals.wav" for song in range(songs)))))
    assert tuple(len(found[split]) for split in ("train", "valid", "test")) == counts


def test_many_songs_are_split_in_about_80_10_10() -> None:
    split = folders.split_by_name([Path(f"song {number}") for number in range(2000)])
    assert 150 < len(split["valid"]) < 250
    assert 150 < len(split["test"]) < 250


def test_the_split_is_the_same_on_every_machine() -> None:
    songs = [Path(name) for name in ("Öl", "Second", "Third", "Fourth", "Fifth")]
    assert folders.split_by_name(songs) == {
        "train": [Path("Fifth"), Path("Fourth"), Path("Second")],
        "valid": [Path("Öl")],
        "test": [Path("Third")],
    }
    decomposed = folders.split_by_name([Path("O\u0308l"), *songs[1:]])
    assert decomposed["valid"] == [Path("O\u0308l")]


@given(st.sets(st.text("abcdefgh", min_size=1, max_size=6), min_size=3), st.sets(st.text("xyz", min_size=1)))
def test_every_song_is_in_one_split_and_most_stay_when_others_come(few: set[str], more: set[str]) -> None:
    before = folders.split_by_name([Path(name) for name in few])
    after = folders.split_by_name([Path(name) for name in few | more])
    assert all(before.values())
    assert sorted(path.name for paths in before.values() for path in paths) == sorted(few)
    for split, lowest in {"test": 0.0, "valid": 0.1}.items():
        belong = {Path(name) for name in few if lowest <= folders._fraction(name) < lowest + 0.1}
        assert belong & set(before[split]) <= set(after[split])


def test_songs_stay_where_they_are_when_others_are_added() -> None:
    songs = [Path(f"song {number}") for number in range(200)]
    before, after = folders.split_by_name(songs[:100]), folders.split_by_name(songs)
    for split in index.SPLITS:
        assert set(before[split]) <= set(after[split])


def test_all_problems_of_a_root_come_in_one_message(tmp_path: Path) -> None:
    touch(tmp_path, *(f"train/{song}/{stem}.wav" for song in ("A", "B", "C") for stem in ("vocals", "drums")))
    touch(tmp_path, "train/Forgot/drums.wav", "train/Forgot/vocal.wav", "train/Empty/readme.txt")
    touch(
        tmp_path,
        "valid/Twice/vocals.wav",
        "valid/Twice/vocals.flac",
        "valid/Twice/drums.wav",
        "extra/X/a.wav",
    )
    message = problems(tmp_path)
    assert message.startswith(f"{tmp_path}: 4 problems")
    assert "train/Forgot/: no vocals, which other songs have (found: drums.wav, vocal.wav). Add a file" in message
    assert "train/Empty/: no audio file in it. Put vocals.wav" in message
    assert "valid/Twice/: 2 files for vocals: vocals.flac and vocals.wav. Keep one of them." in message
    assert "extra/ is none of train/, valid/ and test/. Rename it" in message


def test_a_mixture_that_some_songs_lack_is_a_problem(tmp_path: Path) -> None:
    touch(tmp_path, "A/vocals.wav", "A/mix.wav", "B/vocals.wav", "B/mixture.wav", "C/vocals.wav")
    assert "C/: no mixture, which other songs have" in problems(tmp_path)


def test_of_two_songs_the_one_with_fewer_stems_has_the_problem(tmp_path: Path) -> None:
    message = problems(touch(tmp_path, "A/vocals.wav", "A/drums.wav", "B/vocals.wav"))
    assert "1 problem\n" in message
    assert "B/: no drums, which other songs have" in message


def test_mix_and_mixture_are_two_files_for_one(tmp_path: Path) -> None:
    assert "2 files for mixture" in problems(touch(tmp_path, "A/vocals.wav", "A/mix.wav", "A/mixture.wav"))


def test_a_stem_that_few_songs_have_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, *(f"train/{song}/vocals.wav" for song in "ABC"), "train/A/kazoo.wav")
    assert folders.find(tmp_path)["train"].columns == ["vocals"]
    assert "left out 1 stem that few songs have: kazoo (1 of 3)" in caplog.text


def test_files_that_share_no_name_are_explained(tmp_path: Path) -> None:
    touch(tmp_path, "A/A voice.wav", "B/B voice.wav", "C/C voice.wav")
    assert "no stem that half of the 3 songs have (found: a voice (1), b voice (1), c voice (1))" in problems(tmp_path)


def test_mixtures_alone_are_no_data_set(tmp_path: Path) -> None:
    assert "no stem that half of the 1 songs have" in problems(touch(tmp_path, "A/mixture.wav"))


def test_no_songs_says_what_to_make(tmp_path: Path) -> None:
    assert "no songs. Make a folder per song" in problems(tmp_path)


@pytest.mark.parametrize("root", [None, "absent"])
def test_a_root_that_is_not_there_says_what_to_set(root: str | None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root=.*no such folder"):
        folders.find(tmp_path / root if root else None)


def test_real_files_pass_the_check_and_read_back(tmp_path: Path, write_song) -> None:
    for song in ("One, two", 'The "Three"'):
        write_song(tmp_path / "train" / song, {"vocals": None, "drums": None, "mixture": None})
    found = folders.find(tmp_path)["train"]
    index.check(found, ("vocals", "drums"), {})
    index.write(found, tmp_path / "train.csv")
    assert index.read(tmp_path / "train.csv", tmp_path).tracks == found.tracks
