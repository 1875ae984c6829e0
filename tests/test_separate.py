"""`stemwise separate` as its users meet it."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from stemwise import audio, masks, model_file, separation
from stemwise.codecs import formats
from stemwise.commands import separate


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
    name = 'It\'s [live], "no"\n{brackets}=1 [b] é🎵'
    song = write(tmp_path / f"{name}.wav")
    assert stemwise("separate", song, "--model", model_path, "-o", "out", "-c", "flac").code == 0
    assert (tmp_path / "out" / name / "vocals.flac").is_file()


def test_a_name_that_is_no_unicode_is_only_a_name(model_path, tmp_path):
    song = write(tmp_path / "song.wav").rename(tmp_path / os.fsdecode(b"caf\xe9.wav"))
    command = [sys.executable, "-m", "stemwise.cli", "separate", song, "-m", model_path, "-o", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert (tmp_path / "out" / os.fsdecode(b"caf\xe9") / "vocals.wav").is_file()
    assert b"Traceback" not in done.stderr


def test_an_error_is_one_line_whatever_the_song_is_called(stemwise, model_path, tmp_path):
    (tmp_path / "a\nb.wav").write_bytes(b"RIFF")
    done = stemwise("separate", tmp_path / "a\nb.wav", "-m", model_path)
    assert done.code == 1
    assert done.output.count("\n") == 1
    assert "a\\nb.wav: cannot be read as audio" in done.output


def test_one_bad_song_does_not_stop_the_others(stemwise, model_path, tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    write(tmp_path / "good.wav")
    done = stemwise("separate", "bad.wav", "good.wav", "--model", model_path, "-o", "out")
    assert done.code == 1
    assert "bad.wav" in done.output
    assert "2 songs: 1 separated (0:00:02 of music in 0:00:00), 1 failed" in done.output
    assert "Traceback" not in done.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good"]


def test_a_model_file_that_is_none_is_a_wrong_use(stemwise, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"not a model")
    done = stemwise("separate", write(tmp_path / "song.wav"), "--model", "model.safetensors")
    assert done.code == 2
    assert "not a model file" in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize("name", ["b/mix.wav", "ok.wav"])
def test_songs_that_would_share_their_stems_are_refused_before_any_work(stemwise, model_path, tmp_path, name):
    first = {"b/mix.wav": "a/mix.wav", "ok.wav": "ok.flac"}[name]
    hint = {"b/mix.wav": "{foldername}", "ok.wav": "-o"}[name]
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


def test_a_song_that_is_not_there_fails(stemwise, model_path):
    done = stemwise("separate", "none.wav", "--model", model_path)
    assert done.code == 1
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


def stems_of(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("codec", ["wav", "flac", "mp3", "ogg", "m4a", "opus"])
def test_every_codec_has_the_songs_length(stemwise, model_path, tmp_path, codec):
    song = write(tmp_path / "song.wav", rate=48000, seconds=1.3)
    done = stemwise("separate", song, "--model", model_path, "-o", "out", "-c", codec)
    assert done.code == 0, done.output
    for stem in ("vocals", "accompaniment"):
        info = audio.probe(tmp_path / f"out/song/{stem}.{codec}")
        # FFmpeg gives AAC's last frame whole; tests/test_encoding.py looks at the length that the file states.
        assert 0 <= info.frames - round(1.3 * 48000) < (1024 if codec == "m4a" else 1)
        assert info.sample_rate == 48000


@pytest.mark.parametrize(
    ("options", "subtype"),
    [
        ([], "PCM_16"),
        (["--bit-depth", "24"], "PCM_24"),
        (["--bit-depth", "float"], "FLOAT"),
        (["--clip", "float"], "FLOAT"),
    ],
)
def test_bit_depths_of_wav(stemwise, model_path, tmp_path, options, subtype):
    assert stemwise("separate", write(tmp_path / "song.wav"), "--model", model_path, "-o", "out", *options).code == 0
    assert soundfile.info(tmp_path / "out/song/vocals.wav").subtype == subtype


def test_a_bitrate_makes_a_file_smaller(stemwise, model_path, tmp_path):
    song = write(tmp_path / "song.wav", rate=44100, seconds=3)
    sizes = []
    for bitrate in ("64k", "256k"):
        done = stemwise("separate", song, "-m", model_path, "-o", bitrate, "-c", "mp3", "-b", bitrate)
        assert done.code == 0, done.output
        sizes.append((tmp_path / bitrate / "song/vocals.mp3").stat().st_size)
    assert sizes[1] > 3 * sizes[0]


def test_another_sample_rate(stemwise, model_path, tmp_path):
    song = write(tmp_path / "song.wav", rate=44100, seconds=1)
    assert stemwise("separate", song, "-m", model_path, "-o", "out", "--sample-rate", "16000").code == 0
    info = soundfile.info(tmp_path / "out/song/vocals.wav")
    assert (info.samplerate, info.frames) == (16000, 16000)


def test_only_these_stems(stemwise, model_path, tmp_path):
    song = write(tmp_path / "song.wav")
    assert stemwise("separate", song, "-m", model_path, "-o", "out", "--stems", "accompaniment").code == 0
    assert stems_of(tmp_path / "out") == ["accompaniment.wav"]


def test_two_stems_are_the_whole_song(stemwise, model_path, tmp_path):
    song = write(tmp_path / "song.wav", rate=11025)
    wanted = ["--two-stems", "vocals", "--clip", "float"]
    assert stemwise("separate", song, "-m", model_path, "-o", "out", *wanted).code == 0
    parts = [soundfile.read(tmp_path / f"out/song/{stem}.wav")[0] for stem in ("vocals", "no_vocals")]
    np.testing.assert_allclose(sum(parts), soundfile.read(song)[0], atol=1e-6)


@pytest.mark.parametrize("extension", masks.EXTENSIONS)
def test_what_is_above_the_band_can_be_chosen(stemwise, model_path, tmp_path, extension):
    time = np.arange(16000) / 8000
    soundfile.write(tmp_path / "tone.wav", 0.5 * np.sin(2 * np.pi * 3000 * time), 8000)  # F is 2 kHz
    command = ["separate", "tone.wav", "-m", model_path, "-o", extension, "--mask-extension", extension]
    assert stemwise(*command).code == 0
    total = sum(soundfile.read(path)[0] for path in (tmp_path / extension / "tone").iterdir())
    assert np.abs(total[1000:-1000]).max() == pytest.approx(0 if extension == "zeros" else 0.5, abs=2e-3)


def test_the_residual_is_what_the_stems_lack(stemwise, model_path, tmp_path):
    song = write(tmp_path / "song.wav", rate=44100)
    wanted = ["--residual", "--clip", "float"]
    assert stemwise("separate", song, "-m", model_path, "-o", "out", *wanted).code == 0
    names = ["vocals", "accompaniment", "residual"]
    parts = [soundfile.read(tmp_path / f"out/song/{name}.wav")[0] for name in names]
    np.testing.assert_allclose(sum(parts), soundfile.read(song)[0], atol=1e-6)
    assert np.abs(parts[2]).max() > 0.01  # what is above the model's band, at the least


def test_stems_that_are_there_are_kept_unless_asked_otherwise(stemwise, model_path, tmp_path):
    song = write(tmp_path / "song.wav")
    command = ["separate", song, "-m", model_path, "-o", "out"]
    assert stemwise(*command).code == 0
    vocals = tmp_path / "out/song/vocals.wav"
    whole = (tmp_path / "out/song/accompaniment.wav").read_bytes()
    vocals.write_bytes(b"mine")
    done = stemwise(*command)
    assert (done.code, vocals.read_bytes()) == (0, b"mine")
    assert "song.wav: its stems are there; --overwrite replaces them" in done.output
    (tmp_path / "out/song/accompaniment.wav").unlink()
    done = stemwise(*command)
    assert (done.code, vocals.read_bytes()) == (0, b"mine")
    assert "song.wav: keeps vocals; --overwrite replaces what is there" in done.output
    assert (tmp_path / "out/song/accompaniment.wav").read_bytes() == whole
    assert stemwise(*command, "--overwrite").code == 0
    assert vocals.read_bytes() != b"mine"


def test_folders_and_patterns_and_a_summary(stemwise, model_path, tmp_path):
    for name in ("album/a.wav", "album/b.wav", "more/c.wav"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name)
    done = stemwise("separate", "album", "more/*.wav", "-m", model_path, "-o", "out")
    assert done.code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b", "c"]
    assert re.search(r"3 songs: 3 separated \(0:00:05 of music in 0:00:0\d\)", done.output)


def test_tags_go_on_to_the_stems(stemwise, model_path, tmp_path):
    with soundfile.SoundFile(tmp_path / "song.wav", "w", 8000, 1) as file:
        file.title, file.artist = 'A "title" 🎵', "Some One"
        file.write(0.1 * np.random.default_rng(0).standard_normal(9000))
    for codec in ("wav", "flac", "mp3", "m4a", "ogg", "opus"):
        assert stemwise("separate", "song.wav", "-m", model_path, "-o", codec, "-c", codec).code == 0
        found = audio.tags(tmp_path / codec / f"song/vocals.{codec}")
        assert (found["title"], found["artist"]) == ('A "title" 🎵', "Some One")


def test_loud_stems_are_lowered_alike(stemwise, model_path, tmp_path):
    square = np.tile(np.repeat([1.9, -1.9], 20), 200)
    soundfile.write(tmp_path / "loud.wav", square, 8000, "FLOAT")
    for clip in ("rescale", "float"):
        done = stemwise("separate", "loud.wav", "-m", model_path, "-o", clip, "--clip", clip, "--bit-depth", "float")
        assert done.code == 0, done.output
        if clip == "rescale":
            assert re.search(r"all stems were lowered by \d\.\d\d dB", done.output)
    ratios = []
    for stem in ("vocals", "accompaniment"):
        kept, lowered = (soundfile.read(tmp_path / f"{clip}/loud/{stem}.wav")[0] for clip in ("float", "rescale"))
        ratios.append(np.dot(kept, lowered) / np.dot(kept, kept))
        np.testing.assert_allclose(lowered, kept * ratios[-1], atol=1e-6)
    assert ratios[0] == pytest.approx(ratios[1])
    assert ratios[0] < 0.9
    assert not [
        path
        for path in (tmp_path / "rescale").rglob("*")
        if path.name not in ("loud", "vocals.wav", "accompaniment.wav")
    ]


def test_standard_input_and_output(model_path, tmp_path):
    song = write(tmp_path / "song.wav")
    command = [sys.executable, "-m", "stemwise.cli", "separate", "-", "-m", model_path, "--stems", "vocals", "-o", "-"]
    done = subprocess.run(command, input=song.read_bytes(), capture_output=True, check=True)
    (tmp_path / "out.wav").write_bytes(done.stdout)
    expected = model_file.load(model_path).separate(audio.read(song, sample_rate=8000, channels=1))[0]
    assert (audio.read(tmp_path / "out.wav", sample_rate=8000, channels=1) - expected).abs().max() < 2**-15
    assert b"standard input: 1.7 s in" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stems", "piano"], "no stem 'piano'. It has vocals, accompaniment"),
        (["--stems", ","], "name stems, each once"),
        (["--two-stems", "drums"], "no stem 'drums'"),
        (["--two-stems", "vocals", "--stems", "vocals"], "not allowed with argument"),
        (["--offset", "-1"], "--offset -1: not a number of seconds"),
        (["--duration", "0"], "--duration 0: not a number of seconds"),
        (["--bitrate", "fast", "-c", "mp3"], "'fast' is no bit rate"),
        (["--bitrate", "128k"], "wav is lossless"),
        (["--bit-depth", "24", "-c", "mp3"], "mp3 has no bit depth 24"),
        (["--clip", "float", "-c", "flac"], "--clip float: flac of 16 bits ends at full scale"),
        (["--clip", "clamp", "--bit-depth", "float"], "--clip clamp: floating point keeps"),
        (["-c", "mp3", "-b", "9999k"], "9999k"),
        (["--sample-rate", "96000", "-c", "mp3"], "mp3 has no sample rate of 96000"),
        (["--mwf", "--mwf-window", "5"], "not allowed with argument"),
        (["--mwf-window", "0"], "--mwf-window 0: not a number of seconds"),
        (["--mwf", "--mask-extension", "top"], "--mask-extension: a Wiener filter has no masks"),
        (["--overlap", "1"], "--overlap 1.0: not a share of the window"),
        (["-o", "-"], "standard output takes one stem of one song"),
    ],
)
def test_wishes_that_cannot_be_met_end_before_any_work(stemwise, model_path, tmp_path, options, message):
    done = stemwise("separate", write(tmp_path / "song.wav"), "--model", model_path, *options)
    assert done.code == 2
    assert done.output.count(message) == 1
    assert "Traceback" not in done.output
    assert not (tmp_path / "separated").exists()


@pytest.fixture(scope="module")
def long_song(tmp_path_factory):
    """One that is still being separated when a signal comes."""
    return write(tmp_path_factory.mktemp("long") / "song.wav", rate=44100, seconds=600)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)], ids=str
)
@pytest.mark.parametrize("clip", separate.CLIPS)
def test_a_signal_leaves_nothing_half_written(model_path, long_song, tmp_path, number, code, clip):
    command = [sys.executable, "-m", "stemwise.cli", "separate", long_song, "-m", model_path, "-o", tmp_path / "out"]
    running = subprocess.Popen([*command, "--clip", clip], stderr=subprocess.PIPE, text=True)
    # While modules load, Python itself may drop an exception (in importlib's callbacks): wait until it is at work.
    assert running.stderr.readline().startswith("song.wav: ")
    assert list(tmp_path.glob("out/song/.*.part"))
    running.send_signal(number)
    said = running.communicate(timeout=20)[1]
    assert running.returncode == code
    assert said.splitlines()[-1] == ("Interrupted." if number == signal.SIGINT else "Terminated.")
    assert "Traceback" not in said
    assert stems_of(tmp_path / "out") == []


def test_the_choices_are_those_of_the_modules():
    assert separate.CODECS == formats.CODECS
    assert separate.EXTENSIONS == masks.EXTENSIONS
    assert separate.CLIPS == separation.CLIPS


def test_an_excerpt_and_a_wiener_filter_from_the_command_line(stemwise, model_path, tmp_path):
    song = write(tmp_path / "song.wav", seconds=3)
    for name, options in {"mask": [], "whole": ["--mwf"], "windows": ["--mwf-window", "0.1"]}.items():
        command = ["separate", song, "-m", model_path, "-o", name, "-s", "0.5", "-d", "2", "--clip", "float"]
        assert stemwise(*command, *options).code == 0
    model = model_file.load(model_path)
    mixture = audio.read(song, sample_rate=8000, channels=1)[:, 4000:20000]
    for name, divide in {"mask": None, "whole": model.by_wiener_of(99), "windows": model.by_wiener_of(1)}.items():
        found = audio.read(tmp_path / f"{name}/song/vocals.wav", sample_rate=8000, channels=1)
        torch.testing.assert_close(found, model.separate(mixture, divide)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", separate.PRECISIONS)
def test_precision_from_the_command_line(stemwise, model_path, tmp_path, precision):
    song = write(tmp_path / "song.wav")
    command = ["separate", song, "-m", model_path, "-o", "out", "--precision", precision, "--clip", "float"]
    assert stemwise(*command).code == 0
    model = model_file.load(model_path)
    model.lower(getattr(torch, precision))
    expected = model.separate(audio.read(song, sample_rate=8000, channels=1))[0]
    found = audio.read(tmp_path / "out/song/vocals.wav", sample_rate=8000, channels=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [[], ["--mwf"], ["--mwf-window", "0.2"]])
def test_windows_that_overlap_from_the_command_line(stemwise, model_path, tmp_path, options):
    song = write(tmp_path / "song.wav", seconds=3)
    command = ["separate", song, "-m", model_path, "-o", "out", "--overlap", "0.5", "--clip", "float", *options]
    assert stemwise(*command).code == 0
    model = model_file.load(model_path)
    model.overlap = 0.5
    # 0.2 s are 25 frames, and a step 7.
    divide = {"--mwf": model.by_wiener_of(999), "--mwf-window": model.by_wiener_of(4)}.get("".join(options[:1]))
    expected = model.separate(audio.read(song, sample_rate=8000, channels=1), divide)[0]
    found = audio.read(tmp_path / "out/song/vocals.wav", sample_rate=8000, channels=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_rate_that_the_codec_lacks_is_said(stemwise, model_path, tmp_path):
    done = stemwise("separate", write(tmp_path / "song.wav", 96000), "-m", model_path, "-o", "out", "-c", "mp3")
    assert done.code == 0
    assert "mp3 has no 96000 Hz: the stems have 48000 Hz" in done.output


def test_what_can_be_done_is_done(stemwise, model_path, tmp_path):
    write(tmp_path / "good.wav")
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    long = "x" * 300 + ".wav"
    done = stemwise("separate", "empty", "loop.wav", long, "good.wav", "-m", model_path, "-o", "out")
    assert done.code == 1
    assert done.output.count("error: ") == 3
    assert "Traceback" not in done.output
    assert stems_of(tmp_path / "out") == ["accompaniment.wav", "vocals.wav"]


def test_stems_with_names_that_are_too_long_fail_their_song_only(stemwise, model_path, tmp_path):
    write(tmp_path / ("y" * 240 + ".wav"))
    write(tmp_path / "good.wav")
    pattern = "{filename} - the stem {instrument}.{codec}"
    done = stemwise("separate", ".", "-m", model_path, "-o", "out", "-f", pattern)
    assert done.code == 1
    assert done.output.count("error: ") == 1
    assert len(stems_of(tmp_path / "out")) == 2


def shell(command, tmp_path):
    environment = os.environ | {"S": f"{sys.executable} -m stemwise.cli"}
    return subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("> /dev/full", 1, "standard output cannot be written (No space left on device)"),
        (">&-", 0, "b.wav: 1.7 s in"),
        ("2>&-", 0, ""),
        ("| true", 0, "b.wav: 1.7 s in"),
    ],
)
def test_what_becomes_of_standard_output_is_no_crash(model_path, tmp_path, end, code, said):
    for name in "ab":
        write(tmp_path / f"{name}.wav")
    done = shell(f"set -o pipefail; $S separate a.wav b.wav -m {model_path} -o out {end}", tmp_path)
    assert "Traceback" not in done.stderr
    assert said in done.stderr
    assert done.returncode == code
    if code == 0:
        assert len(stems_of(tmp_path / "out")) == 4


def test_a_stem_for_a_full_standard_output(model_path, tmp_path):
    write(tmp_path / "a.wav")
    done = shell(f"$S separate a.wav -m {model_path} --stems vocals -o - > /dev/full", tmp_path)
    assert done.returncode == 1
    assert "standard output cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_song_from_standard_input_is_not_taken_for_the_first(model_path, tmp_path):
    write(tmp_path / "a.wav")
    command = f"$S separate - -m {model_path} -o out < a.wav"
    assert shell(command, tmp_path).returncode == 0
    again = shell(command, tmp_path)
    assert again.returncode == 1
    assert "standard input: vocals, accompaniment are there already" in again.stderr
    broken = shell(f"head -c 3 a.wav | $S separate - -m {model_path} -o new", tmp_path)
    assert broken.stderr.startswith("error: standard input: cannot be read as audio")
