import os
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
    found = naming.songs(inputs, Path(output))
    assert not found.problems
    return [str(path) for path in found.songs]


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
    assert names("none.wav", "x" * 300) == ["none.wav", "x" * 300]


def test_a_song_is_taken_once(album):
    assert names("b.mp3", "../album/b.mp3", "*.mp3", "-", "-") == ["b.mp3", "/dev/stdin"]


def test_a_pattern_may_match_folders_and_leaves_covers_and_last_times_stems_out(album):
    assert names("*") == ["Song [live].flac", "a.WAV", "b.mp3", "disc 2/c.ogg"]
    assert naming.songs(["**/*.wav"], Path("stems")).songs == []
    assert names("*.jpg") == ["cover.jpg"]
    assert names("*.mp3", output=".") == ["b.mp3"]


def test_a_loop_of_links_is_left_to_the_decoder_too(album):
    (album / "loop.wav").symlink_to("loop.wav")
    assert names("loop.wav") == ["loop.wav"]
    assert "loop.wav" in names(".")
    assert naming.plan([Path("loop.wav")], Path("out"), ["a"], naming.PATTERN, "wav") == [[Path("out/loop/a.wav")]]


@pytest.mark.parametrize(
    ("inputs", "message"), [(["*.xyz"], "no song matches it"), (["empty"], "empty: no songs in this folder")]
)
def test_inputs_without_songs_are_problems_of_their_own(album, inputs, message):
    (album / "empty").mkdir()
    found = naming.songs([*inputs, "b.mp3"], Path("out"))
    assert found.songs == [Path("b.mp3")]
    assert len(found.problems) == 1
    assert message in found.problems[0]


def test_a_folder_that_cannot_be_read_is_a_problem_and_the_rest_is_done(album, monkeypatch):
    scan = os.scandir

    def locked(path):
        if str(path).endswith("disc 2"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", locked)
    found = naming.songs(["."], Path("stems"))
    assert len(found.songs) == 3
    assert found.problems == ["./disc 2: cannot be read (Permission denied). Name the songs in it one by one."]


def test_standard_input_has_a_name_and_a_dash_may_be_a_file(tmp_path):
    assert naming.targets(naming.STDIN, tmp_path, ["a"], naming.PATTERN, "wav") == [tmp_path / "stdin/a.wav"]
    assert names("./-") == ["-"]
    assert naming.targets(Path("-"), tmp_path, ["a"], naming.PATTERN, "wav") == [tmp_path / "-/a.wav"]


@pytest.mark.parametrize(("name", "folder"), [("...wav", "__"), ("..wav", "_")])
def test_a_song_that_is_called_like_a_folder_has_its_own(tmp_path, name, folder):
    path = naming.targets(tmp_path / name, tmp_path / "out", ["a"], naming.PATTERN, "wav")[0]
    if Path(name).stem in (".", ".."):
        assert path == tmp_path / "out" / folder / "a.wav"
    assert path.parent.parent == tmp_path / "out"


def test_all_clashes_are_named_at_once(tmp_path):
    files = [tmp_path / name for name in ("a.mp3", "a.flac", "b.mp3", "b.flac")]
    with pytest.raises(UserError, match="2 problems") as caught:
        naming.plan(files, tmp_path / "out", ["x", "y"], naming.PATTERN, "wav")
    assert "a.flac" in str(caught.value)
    assert "b.flac" in str(caught.value)


def test_the_pattern_places_the_stems(tmp_path):
    song = tmp_path / "Album" / "Song.mp3"
    places = naming.targets(song, tmp_path, ["vocals"], "{foldername}/{filename} - {instrument}.{codec}", "flac")
    assert places == [tmp_path / "Album" / "Song - vocals.flac"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{title}.{codec}", "Use {filename}"),
        ("{0}.wav", "Use {filename}"),
        ("{filename", "a brace has no partner"),
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
