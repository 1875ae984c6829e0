import numpy as np
import pytest
import soundfile

from stemwise import index, model_file, separation
from stemwise.errors import UserError


@pytest.fixture
def model_path(small_separator, tmp_path):
    model_file.save(small_separator, tmp_path / "model.safetensors", {})
    return tmp_path / "model.safetensors"


def write(path, rate=8000, channels=1, seconds=1.7):
    noise = 0.1 * np.random.default_rng(0).standard_normal((round(rate * seconds), channels))
    soundfile.write(path, noise, rate)
    return path


@pytest.mark.parametrize(("rate", "channels"), [(8000, 1), (8000, 2), (44100, 2), (11025, 1)])
def test_stems_have_the_songs_length_and_rate(stemwise, model_path, tmp_path, rate, channels):
    song = write(tmp_path / "A song.wav", rate, channels)
    done = stemwise("separate", song, "--model", model_path, "-o", "out")
    assert done.code == 0, done.output
    for stem in ("vocals", "accompaniment"):
        info = soundfile.info(tmp_path / "out" / "A song" / f"{stem}.wav")
        assert (info.frames, info.samplerate) == (soundfile.info(song).frames, rate)
        assert str(tmp_path / "out" / "A song" / f"{stem}.wav").endswith(f"A song/{stem}.wav")


def test_the_files_add_up_to_the_song_below_the_models_band(stemwise, model_path, small_separator, tmp_path):
    time = np.arange(16000) / 8000
    soundfile.write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 700 * time), 8000)  # F is 2 kHz
    assert stemwise("separate", "tone.wav", "--model", model_path, "-o", "out").code == 0
    stems = [soundfile.read(path)[0] for path in (tmp_path / "out/tone").iterdir()]
    song = soundfile.read(tmp_path / "tone.wav")[0]
    np.testing.assert_allclose(np.sum(stems, axis=0)[200:-200], song[200:-200], atol=2e-3)


def test_names_that_mean_something_to_a_shell_are_only_names(stemwise, model_path, tmp_path):
    name = 'It\'s [live], "no" {brackets}=1 é🎵'
    song = write(tmp_path / f"{name}.wav")
    assert stemwise("separate", song, "--model", model_path, "-o", "out", "-c", "flac").code == 0
    assert (tmp_path / "out" / name / "vocals.flac").is_file()


def test_one_bad_song_does_not_stop_the_others(stemwise, model_path, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    write(tmp_path / "good.wav")
    done = stemwise("separate", "bad.wav", "good.wav", "--model", model_path, "-o", "out")
    assert done.code == 1
    assert "bad.wav" in done.output
    assert "1 of 2 songs failed" in done.output
    assert "Traceback" not in done.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good"]


def test_a_model_file_that_is_none_is_a_wrong_use(stemwise, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"not a model")
    done = stemwise("separate", write(tmp_path / "song.wav"), "--model", "model.safetensors")
    assert done.code == 2
    assert "not a model file" in done.output
    assert "Traceback" not in done.output


def test_the_pattern_places_the_stems(tmp_path):
    song = tmp_path / "Album" / "Song.mp3"
    places = separation.targets_of(song, tmp_path, ["vocals"], "{foldername}/{filename} - {instrument}.{codec}", "flac")
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
        ("/tmp/{instrument}.wav", "is outside of"),
    ],
)
def test_patterns_that_cannot_work_say_why(tmp_path, pattern, message):
    with pytest.raises(UserError, match=message):
        separation.targets_of(tmp_path / "song.wav", tmp_path / "out", ["vocals", "drums"], pattern, "wav")


def test_index_writes_what_a_data_set_would_use(stemwise, songs, tmp_path):
    done = stemwise("index", "folders", songs, "-o", "csvs")
    assert done.code == 0, done.output
    splits = {path.stem: index.read(path, songs) for path in (tmp_path / "csvs").iterdir()}
    assert set(splits) == {"train", "valid", "test"}
    tracks = [track for split in splits.values() for track in split.tracks]
    assert sorted(track.name for track in tracks) == [f"Song {number}" for number in range(6)]
    assert all(track.duration for track in tracks)


def test_index_of_nothing_is_a_wrong_use(stemwise, tmp_path):
    done = stemwise("index", "folders", "nowhere", "-o", "csvs")
    assert done.code == 2
    assert "nowhere" in done.output
    assert "Traceback" not in done.output


def test_help_teaches(stemwise):
    assert "separate SONG.mp3 --model M" in stemwise("--help").output
    assert "example: stemwise separate" in stemwise("separate", "--help").output
    assert "example: stemwise index folders" in stemwise("index", "--help").output
    done = stemwise("separate")
    assert done.code == 2
    assert "required" in done.output
