"""MUSDB18: both forms on disk, the official split, absent and foreign songs."""

import importlib.util
import logging
import unicodedata
from pathlib import Path

import pytest

from stemwise import index
from stemwise.datasets import musdb18
from stemwise.errors import UserError
from stemwise.index import Cell

LISTS = Path(__file__).resolve().parents[2] / "data"
COUNTS = {"train": 86, "valid": 14, "test": 50}


def touch_stems(root: Path, *songs: str) -> Path:
    """Empty `.stem.mp4` files: `find` reads names, not audio."""
    for song in songs:
        path = root / f"{song}.stem.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def touch_waves(root: Path, *songs: str) -> Path:
    for song in songs:
        (root / song).mkdir(parents=True)
        for name in ("mixture", "vocals", "drums", "bass", "other"):
            (root / song / f"{name}.wav").touch()
    return root


def names(indexes: dict[str, index.Index]) -> dict[str, list[str]]:
    return {split: [track.name for track in found.tracks] for split, found in indexes.items()}


@pytest.fixture(scope="module")
def official() -> dict[str, list[index.Track]]:
    return {split: index.read(LISTS / f"musdb18_{split}.csv", LISTS).tracks for split in COUNTS}


def everything(official: dict[str, list[index.Track]]) -> list[str]:
    folder = {"train": "train", "valid": "train", "test": "test"}
    return [f"{folder[split]}/{track.name}" for split, tracks in official.items() for track in tracks]


def test_the_lists_are_the_official_split(official: dict[str, list[index.Track]]) -> None:
    assert {split: len(tracks) for split, tracks in official.items()} == COUNTS
    assert {track.name for track in official["valid"]} == set(musdb18.validation_songs())
    hours = sum(track.duration or 0 for tracks in official.values() for track in tracks) / 3600
    assert 9.5 < hours < 10


def test_the_names_differ_by_more_than_case_and_punctuation(official: dict[str, list[index.Track]]) -> None:
    keys = {musdb18._key(track.name) for tracks in official.values() for track in tracks}
    assert len(keys) == 150


def test_the_lists_name_the_streams_of_the_format(official: dict[str, list[index.Track]]) -> None:
    for tracks in official.values():
        for track in tracks:
            assert track.mixture is not None
            path = track.mixture.path
            streams = {stem: cell.stream for stem, cell in track.stems.items()}
            assert path.name == f"{track.name}.stem.mp4"
            assert {cell.path for cell in track.stems.values()} == {path}
            assert {"mixture": track.mixture.stream, **streams} == musdb18.STREAMS


@pytest.mark.parametrize("touch", [touch_stems, touch_waves])
def test_a_whole_data_set_gives_the_official_split_without_a_warning(
    touch, tmp_path: Path, official: dict[str, list[index.Track]], caplog: pytest.LogCaptureFixture
) -> None:
    found = musdb18.find(touch(tmp_path, *everything(official)))
    assert {split: set(tracks) for split, tracks in names(found).items()} == {
        split: {track.name for track in tracks} for split, tracks in official.items()
    }
    assert not caplog.records


def test_the_previews_find_what_is_there_and_count_the_rest(
    shared_data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = musdb18.find(shared_data / "musdb18-7s")
    assert {split: len(tracks) for split, tracks in names(found).items()} == {
        "train": 37,
        "valid": 3,
        "test": 2,
    }
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "108 of the 150 songs are absent: ANiMAL - Clinic A, " in caplog.text
    index.check(found["valid"], musdb18.STEMS, {})


def test_stem_files_become_stream_cells(tmp_path: Path) -> None:
    (track,) = musdb18.find(touch_stems(tmp_path, "test/Zeno - Signs"))["test"].tracks
    path = tmp_path / "test/Zeno - Signs.stem.mp4"
    assert track.name == "Zeno - Signs"
    assert track.mixture == Cell(path, stream=0)
    assert track.stems == {
        "vocals": Cell(path, stream=4),
        "drums": Cell(path, stream=1),
        "bass": Cell(path, stream=2),
        "other": Cell(path, stream=3),
    }


def test_wave_folders_become_files(tmp_path: Path) -> None:
    (track,) = musdb18.find(touch_waves(tmp_path, "test/Zeno - Signs"))["test"].tracks
    assert track.mixture == Cell(tmp_path / "test/Zeno - Signs/mixture.wav")
    assert track.stems["bass"] == Cell(tmp_path / "test/Zeno - Signs/bass.wav")


@pytest.mark.parametrize(
    ("waves", "taken"),
    [(["test/Zeno - Signs"], ".wav"), (["test/Zeno - Signs", "test/PR - Oh No"], ".wav"), ([], ".mp4")],
)
def test_the_more_complete_form_is_taken_and_named(
    waves: list[str], taken: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch_waves(tmp_path, *waves)
    (track, *_) = musdb18.find(touch_stems(tmp_path, "test/Zeno - Signs"))["test"].tracks
    assert track.stems["vocals"].path.suffix == taken
    assert ("the WAV are taken" in caplog.text) == bool(waves)


def test_half_converted_waves_do_not_hide_the_rest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch_waves(tmp_path, "test/Zeno - Signs")
    found = musdb18.find(touch_stems(tmp_path, "test/Zeno - Signs", "test/PR - Oh No"))
    assert len(found["test"].tracks) == 2
    assert "1 songs as WAV and 2 as .stem.mp4" in caplog.text


def test_case_and_unicode_form_of_a_name_do_not_matter(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "young griffo – PENNIES")
    found = musdb18.find(touch_stems(tmp_path, f"train/{decomposed}", "train/Actions - Devil’s Words"))
    assert names(found) == {"train": ["Actions - Devil’s Words"], "valid": [decomposed], "test": []}


def test_a_foreign_song_stays_in_its_folder_and_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = musdb18.find(touch_stems(tmp_path, "train/My Own", "test/My Other"))
    assert names(found) == {"train": ["My Own"], "valid": [], "test": ["My Other"]}
    assert "2 songs are not MUSDB18's" in caplog.text
    assert "train/My Own" in caplog.text


def test_a_test_song_in_the_training_folder_is_not_trained_on(tmp_path: Path) -> None:
    assert names(musdb18.find(touch_stems(tmp_path, "train/Zeno - Signs")))["test"] == ["Zeno - Signs"]


def test_hidden_files_are_no_songs(tmp_path: Path) -> None:
    found = musdb18.find(touch_stems(tmp_path, "test/Zeno - Signs", "test/._PR - Oh No"))
    assert names(found)["test"] == ["Zeno - Signs"]


def test_no_root_says_where_to_set_it() -> None:
    with pytest.raises(UserError, match=r"data\.root.*MUSDB18_PATH"):
        musdb18.find(None)


@pytest.mark.parametrize("made", [False, True])
def test_a_root_that_is_no_musdb18_says_what_was_expected(made: bool, tmp_path: Path) -> None:
    root = tmp_path / "music"
    if made:
        (root / "pictures").mkdir(parents=True)
    with pytest.raises(UserError, match=r"music: no (such folder|MUSDB18, neither .*found: pictures)") as caught:
        musdb18.find(root)
    assert "MUSDB18_PATH" in str(caught.value)


def test_without_musdb_the_message_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'stemwise\[eval\]'"):
        musdb18.find(touch_stems(tmp_path, "test/Zeno - Signs"))


def test_the_written_index_reads_back(tmp_path: Path) -> None:
    found = musdb18.find(touch_stems(tmp_path, "train/Jokers, Jacks & Kings - Sea Of Leaves"))["train"]
    index.write(found, tmp_path / "train.csv")
    assert index.read(tmp_path / "train.csv", tmp_path).tracks == found.tracks
