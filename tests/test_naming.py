from pathlib import Path

import pytest

from stemwise import naming
from stemwise.errors import UserError


@pytest.fixture
def album(tmp_path, monkeypatch):
    """A folder with songs, files that are none, hidden ones and the stems of last time."""
    names = ["b.mp3", "a.WAV", "Song [live].flac", "cover.jpg", "disc 2/c.ogg", ".trash/d.wav", ".e.wav.part", ".f.wav"]
    for name in [*names, "stems/b/vocals.wav"]:
        (tmp_path / "album" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "album" / name).touch()
    monkeypatch.chdir(tmp_path / "album")
    return tmp_path / "album"


def names(*inputs, output="stems"):
    return [str(path) for path in naming.songs(inputs, Path(output))]


def test_a_folder_stands_for_the_songs_below_it(album):
    assert names(".") == ["Song [live].flac", "a.WAV", "b.mp3", "disc 2/c.ogg"]
    assert names(str(album), output="/elsewhere")[-1] == str(album / "stems/b/vocals.wav")


def test_a_pattern_stands_for_what_it_matches(album):
    assert names("*.mp3", "**/*.ogg") == ["b.mp3", "disc 2/c.ogg"]
    assert names("[ab].*") == ["a.WAV", "b.mp3"]


def test_a_name_that_exists_is_no_pattern(album):
    (album / "Song l.flac").touch()
    assert names("Song [live].flac") == ["Song [live].flac"]


def test_what_is_not_there_is_left_to_the_decoder_to_say(album):
    assert names("none.wav", "-") == ["none.wav", "-"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["*.xyz"], "no file matches it"),
        (["empty"], "empty: no songs in this folder"),
        (["-", "-"], "can be read once"),
    ],
)
def test_inputs_without_songs_say_so(album, inputs, message):
    (album / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        names(*inputs)


def test_standard_input_has_a_name(tmp_path):
    assert naming.targets(Path("-"), tmp_path, ["vocals"], naming.PATTERN, "wav") == [tmp_path / "stdin/vocals.wav"]


def test_the_pattern_places_the_stems(tmp_path):
    song = tmp_path / "Album" / "Song.mp3"
    places = naming.targets(song, tmp_path, ["vocals"], "{foldername}/{filename} - {instrument}.{codec}", "flac")
    assert places == [tmp_path / "Album" / "Song - vocals.flac"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{title}.{codec}", "Use {filename}"),
        ("{0}.wav", "Use {filename}"),
        ("{filename", "Use {filename}"),
        ("{filename.__class__}/{instrument}", "Use {filename}"),
        ("{filename}.wav", "all stems get the same name"),
        ("../{instrument}.wav", "is outside of"),
        ("{foldername}/../../{instrument}.wav", "is outside of"),
        ("/tmp/{instrument}.wav", "an absolute path"),
    ],
)
def test_patterns_that_cannot_work_say_why(tmp_path, pattern, message):
    with pytest.raises(UserError, match=message):
        naming.targets(tmp_path / "song.wav", tmp_path / "out", ["vocals", "drums"], pattern, "wav")
