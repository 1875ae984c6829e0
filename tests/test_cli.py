import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

import stemwise as stemwise_package
from stemwise import audio, index, model_file, separation
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


@pytest.mark.parametrize("name", ["a/mix.wav", "b/mix.wav", "ok.wav"])
def test_songs_that_would_share_their_stems_are_refused_before_any_work(stemwise, model_path, tmp_path, name):
    first = {"a/mix.wav": "a/../a/mix.wav", "b/mix.wav": "a/mix.wav", "ok.wav": "ok.flac"}[name]
    hint = {"a/mix.wav": "Name the song once", "b/mix.wav": "{foldername}", "ok.wav": "-o"}[name]
    for path in (tmp_path / "a", tmp_path / "b"):
        path.mkdir()
    for song in (first, name):
        write(tmp_path / song)
    done = stemwise("separate", first, name, "--model", model_path, "-o", "out")
    assert done.code == 2
    assert f"{first} and {name}: both" in done.output
    assert hint in done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


def test_folder_names_keep_songs_apart(stemwise, model_path, tmp_path, monkeypatch):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "mix.wav")
    monkeypatch.chdir(tmp_path / "a")
    pattern = "{foldername}/{filename}/{instrument}.{codec}"
    done = stemwise("separate", "mix.wav", "../b/mix.wav", "--model", model_path, "-o", "../out", "-f", pattern)
    assert done.code == 0, done.output
    assert {path.parent.parent.name for path in (tmp_path / "out").rglob("*.wav")} == {"a", "b"}


def test_a_stem_never_overwrites_a_song(stemwise, model_path, tmp_path):
    song, other = write(tmp_path / "vocals.wav"), write(tmp_path / "other.wav")
    before = song.read_bytes()
    done = stemwise("separate", other, song, "--model", model_path, "-o", ".", "-f", "{instrument}.{codec}")
    assert done.code == 2
    assert f"{song}: a stem of {other} would overwrite this song" in done.output
    assert song.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-f", "{title}"], "is no field"),
        (["-o", "/proc/x"], "-o /proc/x: cannot be written"),
        (["-o", "song.wav"], "-o song.wav: cannot be written"),
        (["--device", "foo"], "--device foo: this machine has no such device. Choose one of cpu"),
        (["--device", "cuda:99"], "--device cuda:99: this machine has no such device"),
    ],
)
def test_wrong_options_end_before_any_work(stemwise, model_path, tmp_path, options, message):
    write(tmp_path / "song.wav")
    write(tmp_path / "song 2.wav")
    done = stemwise("separate", "song.wav", "song 2.wav", "--model", model_path, *options)
    assert done.code == 2
    assert done.output.count(message) == 1
    assert "Traceback" not in done.output


def test_songs_that_all_fail_are_a_wrong_use(stemwise, model_path):
    done = stemwise("separate", "none.wav", "--model", model_path)
    assert done.code == 2
    assert "none.wav: no such file" in done.output


def test_clipped_samples_are_counted(stemwise, model_path, tmp_path):
    square = np.tile(np.repeat([1.9, -1.9], 20), 200)
    soundfile.write(tmp_path / "loud.wav", square, 8000, "FLOAT")
    done = stemwise("separate", "loud.wav", "--model", model_path, "-o", "out")
    assert done.code == 0
    count = int(re.search(r"  (\d+) samples past full scale were clipped", done.output)[1])
    stems = model_file.load(model_path).separate(torch.from_numpy(square).float()[None])
    assert count == (stems.abs() > 1).sum() > 100
    write(tmp_path / "quiet.wav")
    assert "clipped" not in stemwise("separate", "quiet.wav", "--model", model_path, "-o", "out").output


def test_the_song_is_never_whole_in_memory(model_path, tmp_path, monkeypatch):
    model = model_file.load(model_path)
    song = write(tmp_path / "song.wav", seconds=20)
    came, seen, stream = [], [], audio.stream
    blocks = lambda *a, **k: (came.append(b.shape[1]) or b for b in stream(*a, **k, block=8000))  # noqa: E731
    window = model._separate_window
    monkeypatch.setattr(audio, "stream", blocks)
    monkeypatch.setattr(model, "_separate_window", lambda padded: seen.append(sum(came)) or window(padded))
    targets = [tmp_path / f"{stem}.wav" for stem in model.stems]
    assert separation.separate_file(model, song, targets) == 0
    assert seen[0] == 8000
    assert seen[-1] == 160_000
    expected = model.separate(audio.read(song, sample_rate=8000, channels=1))
    for target, stem in zip(targets, expected, strict=True):
        found = audio.read(target, sample_rate=8000, channels=1)
        assert (found - stem).abs().max() < 2**-15


INTERRUPTED = """
import sys, signal, builtins
from stemwise import cli
sys.argv = ["stemwise", *sys.argv[2:]]
load = builtins.__import__
def interrupt(name, *rest, **more):
    if name == "torch":
        signal.raise_signal(signal.SIGINT)
    return load(name, *rest, **more)
builtins.__import__ = interrupt
sys.exit(cli.main())
"""


@pytest.mark.parametrize("command", ["separate song.wav --model m", "evaluate checkpoint=m", "train"])
def test_ctrl_c_ends_with_one_line_even_while_modules_load(tmp_path, command):
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "", *command.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.startswith("Interrupted.")
    assert done.stderr.count("\n") == 1


def test_version(stemwise):
    done = stemwise("--version")
    assert (done.code, done.output) == (0, f"stemwise {stemwise_package.__version__}\n")


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
        ("/tmp/{instrument}.wav", "an absolute path"),
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


@pytest.mark.parametrize("target", ["/proc/x", "file", "file/deeper"])
def test_an_index_that_cannot_be_written_is_a_wrong_use(stemwise, songs, tmp_path, target):
    (tmp_path / "file").write_text("mine")
    done = stemwise("index", "folders", songs, "-o", target)
    assert done.code == 2
    assert "cannot be written" in done.output
    assert "Traceback" not in done.output
    assert (tmp_path / "file").read_text() == "mine"


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
