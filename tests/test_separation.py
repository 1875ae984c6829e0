"""One song to its stems: as a stream, at any rate, from any moment, whole or not at all."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from stemwise import audio, separation
from stemwise.codecs import encoding
from stemwise.codecs.formats import Format
from stemwise.errors import UserError
from stemwise.excerpts import Song
from stemwise.separation import Wish
from stemwise.separator import Separator

FLOAT = Format("wav", "float")


@pytest.fixture
def song(tmp_path):
    def write(name="song.wav", rate=8000, channels=1, seconds=1.7, subtype="FLOAT"):
        noise = 0.1 * np.random.default_rng(0).standard_normal((round(rate * seconds), channels))
        soundfile.write(tmp_path / name, noise, rate, subtype)
        return tmp_path / name

    return write


def separated(model: Separator, path, wish: Wish, rate: int) -> torch.Tensor:
    excerpt = wish.excerpt(Song.from_file(path, model.spectrogram.channels), model, rate)
    return torch.cat(list(separation.outputs(model, excerpt, wish)), dim=-1)


def read(path, rate=8000, channels=1):
    return audio.read(path, sample_rate=rate, channels=channels)


@pytest.mark.parametrize(("offset", "duration"), [(0.0, 0.5), (0.3, None), (0.25, 0.9), (1.6, 5.0), (1.6999, None)])
def test_an_excerpt_is_separated_like_a_song_of_its_own(small_separator, song, offset, duration):
    path = song()
    found = separated(small_separator, path, Wish(offset=offset, duration=duration), 8000)
    stop = None if duration is None else round(offset * 8000) + round(duration * 8000)
    expected = small_separator.separate(read(path)[:, round(offset * 8000) : stop])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", [11025, 44100, 48000, 7999])
def test_at_other_rates_the_stems_are_those_of_the_resampled_song(small_separator, song, rate):
    path = song(rate=rate, seconds=1.3)
    found = separated(small_separator, path, Wish(), rate)
    assert found.shape[-1] == audio.probe(path).frames
    stems = small_separator.separate(read(path)).flatten(0, 1)
    whole = separation.resampling.resample(iter([stems]), 8000, rate)
    expected = torch.cat(list(whole), -1)[:, : found.shape[-1]]
    torch.testing.assert_close(found.flatten(0, 1), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 11025, 48000])
@pytest.mark.parametrize("offset", [0.0, 0.123, 0.7])
def test_one_stem_and_the_rest_are_the_mixture_at_every_rate_and_moment(small_separator, song, rate, offset):
    path = song(rate=rate)
    wish = Wish(two_stems="vocals", residual=True, offset=offset, duration=0.6)
    found = separated(small_separator, path, wish, rate)
    assert wish.names(small_separator) == ["vocals", "no_vocals", "residual"]
    start = round(offset * rate)
    mixture = read(path, rate)[:, start : start + round(0.6 * rate)]
    torch.testing.assert_close(found[0] + found[1], mixture, rtol=0, atol=1e-6)


def test_an_excerpt_begins_at_one_moment_at_all_rates(small_separator, song):
    # A click must come out where it is, also when the offset is on no sample of the model's rate.
    rate, at = 48000, 30_011
    waveform = np.zeros(rate)
    waveform[at] = 0.9
    soundfile.write(song().with_name("click.wav"), waveform, rate, "FLOAT")
    path = song().with_name("click.wav")
    for offset in (0.0, 0.1, 0.123456, 0.6):
        found = separated(small_separator, path, Wish(offset=offset), rate).sum(0)[0]
        assert abs(int(found.abs().argmax()) - (at - round(offset * rate))) <= 1


def test_selected_stems_are_those_of_the_whole(small_separator, song):
    path = song()
    every = separated(small_separator, path, Wish(), 8000)
    one = separated(small_separator, path, Wish(stems=("accompaniment",)), 8000)
    torch.testing.assert_close(one, every[1:], rtol=0, atol=0)


def test_wiener_filtering_in_two_passes_is_that_of_the_whole(small_separator, song):
    path = song(seconds=2.5)
    found = separated(small_separator, path, Wish(wiener=0), 8000)
    expected = small_separator.separate(read(path), small_separator.by_wiener_of(1000))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    one = separated(small_separator, path, Wish(wiener=1), 8000)
    torch.testing.assert_close(one, small_separator.separate(read(path), small_separator.by_wiener_of(1)))


def test_the_song_is_never_whole_in_memory(small_separator, song, tmp_path, monkeypatch):
    path = song(seconds=20)
    came, ahead, stream, write = [], [], audio.stream, encoding.Writer.write
    blocks = lambda *a, **k: (came.append(b.shape[1]) or b for b in stream(*a, **k, block=8000))  # noqa: E731

    def noted(writer, block):
        ahead.append(sum(came) - writer.frames)
        write(writer, block)

    monkeypatch.setattr(audio, "stream", blocks)
    monkeypatch.setattr(encoding.Writer, "write", noted)
    separation.separate_file(small_separator, path, [tmp_path / "a.wav", tmp_path / "b.wav"], form=FLOAT)
    assert max(ahead) <= 8000 + 3 * 1024  # a block that was read, two windows of 1024 samples at a time, and the rest
    expected = small_separator.separate(read(path))
    for name, stem in zip("ab", expected, strict=True):
        torch.testing.assert_close(read(tmp_path / f"{name}.wav"), stem, rtol=0, atol=1e-6)


def test_stems_appear_together_or_not_at_all(small_separator, song, tmp_path, monkeypatch):
    targets = [tmp_path / "out" / name for name in ("a.wav", "b.wav")]
    write = encoding.Writer.write

    def fails(writer, block):
        if writer.path == targets[1] and writer.frames > 4000:
            raise UserError("disk full")
        write(writer, block)

    monkeypatch.setattr(encoding.Writer, "write", fails)
    with pytest.raises(UserError, match="disk full"):
        separation.separate_file(small_separator, song(), targets)
    assert not list((tmp_path / "out").iterdir())


FULL = """
import resource, sys
from pathlib import Path
from stemwise import model_file, separation
from stemwise.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = model_file.load(Path(sys.argv[1]))
targets = [Path(sys.argv[3]) / f"{stem}.wav" for stem in model.stems]
wish = separation.Wish(clip=sys.argv[4])
try:
    separation.separate_file(model, Path(sys.argv[2]), targets, wish=wish)
except UserError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize("clip", ["clamp", "rescale"])
def test_a_full_disk_in_the_middle_leaves_nothing(small_separator, song, tmp_path, clip):
    from stemwise import model_file

    model_file.save(small_separator, tmp_path / "model.safetensors", {})
    path = song(seconds=8)
    command = [sys.executable, "-c", FULL, tmp_path / "model.safetensors", path, tmp_path / "out", clip]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_an_offset_past_the_end_says_where_the_end_is(small_separator, song):
    with pytest.raises(UserError, match=r"song\.wav: ends at 1\.700 s, the offset is 2\.000 s"):
        separated(small_separator, song(), Wish(offset=2), 8000)


@pytest.mark.parametrize("name", ["cuda:99", "foo", "cpu:foo"])
def test_a_device_that_is_not_there_says_which_are(name):
    with pytest.raises(UserError, match="Choose one of cpu"):
        separation.device(name)


# What users throw at a separator: the right result or one clear line.
def test_ten_samples(small_separator, song, tmp_path):
    path = song(seconds=10 / 8000)
    done = separation.separate_file(small_separator, path, [tmp_path / "a.wav", tmp_path / "b.wav"], form=FLOAT)
    assert done.seconds == 10 / 8000
    torch.testing.assert_close(read(tmp_path / "a.wav"), small_separator.separate(read(path))[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("wish", [Wish(), Wish(wiener=0), Wish(clip="rescale"), Wish(two_stems="vocals")])
def test_silence_stays_silence(small_separator, tmp_path, wish):
    soundfile.write(tmp_path / "song.wav", np.zeros(12000), 8000)
    separation.separate_file(
        small_separator, tmp_path / "song.wav", [tmp_path / "a.wav", tmp_path / "b.wav"], wish=wish
    )
    for name in ("a.wav", "b.wav"):
        assert read(tmp_path / name).shape == (1, 12000)
        assert not read(tmp_path / name).any()


@pytest.mark.parametrize(("rate", "channels"), [(8000, 8), (8000, 1), (192000, 2), (44101, 2), (96000, 6)])
def test_any_rate_and_number_of_channels(song, tmp_path, rate, channels):
    from stemwise.masks import MaskRule
    from stemwise.spectrogram import Spectrogram
    from stemwise.unet import UNetSettings

    settings = Spectrogram(channels=2, n_fft=512, hop=128, bins=64, frames=64)
    model = Separator(["a", "b"], settings, UNetSettings((4, 4)), MaskRule(extension="average")).eval()
    path = song(rate=rate, channels=channels, seconds=0.8, subtype="PCM_16")
    targets = [tmp_path / "a.wav", tmp_path / "b.wav"]
    separation.separate_file(model, path, targets, form=FLOAT)
    info = audio.probe(path)
    parts = [audio.read(target, sample_rate=rate, channels=2) for target in targets]
    assert audio.probe(targets[0]).sample_rate == rate
    assert parts[0].shape == (2, info.frames)
    if rate == 8000:  # below the model's own rate nothing is lost: the stems add up to the first two channels
        mixture = audio.read(path, sample_rate=rate, channels=2)
        inner = slice(300, -300)  # the resampling filter sees silence beyond both ends
        assert (sum(parts) - mixture)[:, inner].square().mean() < 0.05 * mixture.square().mean()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty, 0 bytes"),
        (b"RIFF", "cannot be read as audio"),
        (b"this is a letter, not a song" * 100, "cannot be read as audio"),
        ("nan", r"NaN or infinite samples at 1\.00 s"),
        ("cut", "cut off"),
        ("video", "has no audio"),
    ],
)
def test_files_that_are_no_songs_say_so(small_separator, song, tmp_path, content, message):
    path = tmp_path / "bad.wav"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "nan":
        samples = np.zeros(12000)
        samples[8000] = np.nan
        soundfile.write(path, samples, 8000, "FLOAT")
    elif content == "cut":
        path.write_bytes(song(seconds=3).read_bytes()[:-5000])
    else:
        silent_video(path)
    with pytest.raises(UserError, match=message) as caught:
        separation.separate_file(small_separator, path, [tmp_path / "out/a.wav", tmp_path / "out/b.wav"])
    assert str(path) in str(caught.value)
    assert not list(tmp_path.glob("out/*"))


def silent_video(path):
    import av

    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 16
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(16, 16, "yuv420p")))
        container.mux(stream.encode(None))


def test_a_video_gives_its_sound(small_separator, tmp_path):
    import av

    samples = (0.1 * np.random.default_rng(0).standard_normal((1, 16000)) * 32768).astype(np.int16)
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        picture = container.add_stream("mpeg4", rate=5)
        picture.width = picture.height = 16
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for _ in range(10):
            container.mux(picture.encode(av.VideoFrame(16, 16, "yuv420p")))
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(sound.encode(frame))
        container.mux(picture.encode(None))
        container.mux(sound.encode(None))
    targets = [tmp_path / "a.wav", tmp_path / "b.wav"]
    separation.separate_file(small_separator, tmp_path / "clip.mkv", targets, form=FLOAT)
    expected = small_separator.separate(torch.from_numpy(samples).float() / 32768)
    torch.testing.assert_close(read(targets[0]), expected[0], rtol=0, atol=1e-6)


def test_the_place_must_be_writable(small_separator, song):
    from pathlib import Path

    with pytest.raises(UserError, match=r"/proc/nowhere/a\.wav: cannot be written"):
        separation.separate_file(small_separator, song(), [Path("/proc/nowhere/a.wav"), Path("/proc/nowhere/b.wav")])


def test_what_is_there_need_not_be_written(small_separator, song, tmp_path):
    separation.separate_file(small_separator, song(), [None, tmp_path / "b.wav"], form=FLOAT)
    assert [path.name for path in tmp_path.glob("?.wav")] == ["b.wav"]
    torch.testing.assert_close(read(tmp_path / "b.wav"), small_separator.separate(read(song()))[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("overlap", [0, 0.25, 0.7])
def test_progress_counts_windows_at_every_rate(small_separator, song, monkeypatch, overlap):
    small_separator.overlap = overlap
    counted = []

    def track(items, *, what, total):
        counted.append([what, total, 0])
        for item in items:
            counted[-1][2] += 1
            yield item

    monkeypatch.setattr(separation.progress, "track", track)
    for rate in (8000, 48000, 11025):
        separated(small_separator, song(rate=rate), Wish(wiener=0), rate)
    assert {what for what, _, _ in counted} == {"song.wav", "song.wav, first pass"}
    assert all(total == done for _, total, done in counted)
