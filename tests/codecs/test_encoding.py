"""Every format: what was written is what is read; files appear complete, together, or not at all."""

import errno
import math
import os
import re
import resource
import signal
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import av
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stemwise import audio
from stemwise.codecs import encoding, formats
from stemwise.codecs.encoding import Writer
from stemwise.codecs.formats import CODECS, Format
from stemwise.errors import UserError

LOSSY = ("mp3", "ogg", "m4a", "opus")
RATES = dict.fromkeys(CODECS, 44100) | {"opus": 48000}


def noise(samples: int, channels: int = 2) -> torch.Tensor:
    return 0.1 * torch.randn(channels, samples, generator=torch.Generator().manual_seed(samples))


def write(path: Path, waveform: torch.Tensor, format: Format, rate: int, block: int = 1 << 16, tags=None) -> None:
    with Writer(path, rate, len(waveform), format, tags) as writer:
        for part in waveform.split(block, 1):
            writer.write(part)
        writer.publish()


def read(path: Path, rate: int, channels: int = 2) -> torch.Tensor:
    return audio.read(path, sample_rate=rate, channels=channels)


def claimed(path: Path) -> int:
    """Samples that the file says it has."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        return round(stream.duration * stream.time_base * stream.codec_context.sample_rate)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextmanager
def full_at(size: int) -> Iterator[None]:
    """No file may grow past this many bytes, as on a full disk. Not a fixture: pytest itself may write to a file."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, handler)


# What is in the file.


@pytest.mark.parametrize("samples", [1, 10, 1023, 1152, 5 * 1152 + 17, 44100, 100_001])
@pytest.mark.parametrize("codec", CODECS)
def test_a_file_is_as_long_as_what_was_written(codec: str, samples: int, tmp_path: Path) -> None:
    path = tmp_path / f"a.{codec}"
    for rate in {RATES[codec], 24000}:
        write(path, noise(samples), Format(codec), rate)
        if codec == "m4a":
            assert claimed(path) == samples
            assert 0 <= audio.probe(path).frames - samples < 1024
        elif codec == "opus":  # is decoded at 48 kHz, whatever was put in
            assert audio.probe(path) == audio.Info(samples * 48000 // rate, 48000, 2)
            assert read(path, rate).shape == (2, samples)
        else:
            assert audio.probe(path) == audio.Info(samples, rate, 2)
            assert read(path, rate).shape == (2, samples)


@pytest.mark.parametrize("codec", LOSSY)
def test_lossy_sound_is_in_its_place_at_its_level(codec: str, tmp_path: Path) -> None:
    rate = RATES[codec]
    time = torch.arange(2 * rate) / rate
    tones = torch.stack([0.3 * torch.sin(2 * math.pi * hertz * time) for hertz in (440, 1000)])
    tones[:, :rate] = 0
    write(tmp_path / "a", tones, Format(codec), rate)
    found = read(tmp_path / "a", rate)[:, : 2 * rate]
    middle = slice(rate + rate // 10, 2 * rate - rate // 10)
    assert (found - tones)[:, middle].square().mean().sqrt() < 0.01
    assert found[:, : rate - rate // 10].abs().max() < 0.01


@pytest.mark.parametrize("codec", CODECS)
def test_blocks_do_not_matter(codec: str, tmp_path: Path) -> None:
    song = noise(30_011)
    for block in (997, 30_011):
        write(tmp_path / str(block), song, Format(codec), RATES[codec], block)
    one, other = ((tmp_path / name).read_bytes() for name in ("997", "30011"))
    if codec == "ogg":  # libsndfile draws the serial number, which the pages' checksums cover
        assert torch.equal(read(tmp_path / "997", 44100), read(tmp_path / "30011", 44100))
        assert len(one) == len(other)
    else:
        assert one == other


@given(st.lists(st.integers(-(2**15), 2**15 - 1), min_size=1, max_size=50), st.sampled_from(["wav", "flac"]))
@settings(max_examples=20, deadline=None)
def test_sixteen_bits_survive(tmp_path_factory: pytest.TempPathFactory, samples: list[int], codec: str) -> None:
    path = tmp_path_factory.getbasetemp() / "bits"
    waveform = torch.tensor([samples]) / 2**15
    write(path, waveform, Format(codec), 44100)
    assert torch.equal(read(path, 44100, 1), waveform)


@pytest.mark.parametrize(("codec", "bits"), [("wav", 16), ("wav", 24), ("flac", 16), ("flac", 24)])
def test_samples_are_rounded_to_the_nearest_step(codec: str, bits: int, tmp_path: Path) -> None:
    step = 2.0 ** (1 - bits)
    waveform = torch.tensor([[0.4, 0.6, -0.4, -0.6, 1000.6]]) * step
    write(tmp_path / "a", waveform, Format(codec, str(bits)), 44100)
    assert torch.equal(read(tmp_path / "a", 44100, 1), torch.tensor([[0, 1, 0, -1, 1001]]) * step)


@pytest.mark.parametrize("overs", encoding.OVERS)
@pytest.mark.parametrize(("codec", "bits"), [("wav", 16), ("wav", 24), ("flac", 16), ("flac", 24)])
def test_what_is_past_full_scale_is_clamped_and_counted(codec: str, bits: int, overs: str, tmp_path: Path) -> None:
    with Writer(tmp_path / "a", 44100, 1, Format(codec, str(bits)), overs=overs) as writer:
        writer.write(torch.tensor([[1.5, -1.0, 1.0]]))
        writer.write(torch.tensor([[-1.001, 0.5]]))
        writer.publish()
    assert writer.clipped == 2
    assert writer.frames == 5
    top = 1 - 2.0 ** (1 - bits)
    assert torch.equal(read(tmp_path / "a", 44100, 1), torch.tensor([[top, -1, top, -1, 0.5]]))


@pytest.mark.parametrize("overs", encoding.OVERS)
@pytest.mark.parametrize("format", [Format("wav", "float"), *map(Format, LOSSY)], ids=lambda format: format.codec)
def test_floats_keep_what_is_past_full_scale_and_lossy_codecs_if_told_to(
    format: Format, overs: str, tmp_path: Path
) -> None:
    rate = RATES[format.codec]
    loud = 1.5 * torch.sin(2 * math.pi * 440 * torch.arange(rate) / rate).expand(2, -1)
    with Writer(tmp_path / "a", rate, 2, format, overs=overs) as writer:
        writer.write(loud)
        writer.publish()
    peak = float(read(tmp_path / "a", rate)[:, rate // 4 : rate // 2].abs().max())
    if overs == "keep" or format.codec == "wav":
        assert writer.clipped == 0
        assert 1.4 < peak < 1.6
    else:
        assert writer.clipped == int((loud.abs() > 1).sum())
        assert 0.9 < peak < 1.3


@pytest.mark.parametrize("codec", CODECS)
def test_mono(codec: str, tmp_path: Path) -> None:
    write(tmp_path / "a", noise(20_000, 1), Format(codec), RATES[codec])
    assert audio.probe(tmp_path / "a").channels == 1


@pytest.mark.parametrize("codec", ["wav", "flac"])
def test_many_channels(codec: str, tmp_path: Path) -> None:
    waveform = (torch.arange(8)[:, None] / 8).expand(8, 100)
    write(tmp_path / "a", waveform, Format(codec), 192_000)
    assert torch.equal(read(tmp_path / "a", 192_000, 8), waveform)


def test_wav_past_four_gigabytes_is_rf64(tmp_path: Path) -> None:
    """The header leaves the room; a file with sizes past 4 GiB was written and read by hand."""
    write(tmp_path / "a.wav", noise(100), Format("wav"), 44100)
    head = (tmp_path / "a.wav").read_bytes()[:48]
    assert head[:4] == b"RIFF"
    assert head[12:20] == b"JUNK" + struct.pack("<I", 28)  # where the sizes of RF64 go


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    block = noise(1 << 16)
    tracemalloc.start()
    with Writer(tmp_path / "a.flac", 44100, 2, Format("flac")) as writer:
        peaks = []
        for _ in range(40):
            writer.write(block)
            peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert peaks[-1] < peaks[3] + 1e6  # a block is half of that, and few are on their way


# Settings.


@pytest.mark.parametrize(
    ("codec", "wanted", "given"),
    [
        ("wav", 192_000, 192_000),
        ("flac", 44101, 44101),
        ("mp3", 44100, 44100),
        ("mp3", 96000, 48000),
        ("mp3", 44101, 48000),
        ("mp3", 4000, 8000),
        ("ogg", 96000, 48000),
        ("ogg", 30000, 30000),
        ("m4a", 192_000, 96000),
        ("m4a", 50000, 64000),
        ("opus", 44100, 48000),
        ("opus", 22050, 24000),
        ("opus", 96000, 48000),
    ],
)
def test_the_rate_a_file_gets(codec: str, wanted: int, given: int, tmp_path: Path) -> None:
    assert formats.sample_rate(codec, wanted) == given
    write(tmp_path / "a", noise(2000), Format(codec), given)
    assert audio.probe(tmp_path / "a").sample_rate == (48000 if codec == "opus" else given)
    if given != wanted:
        with pytest.raises(
            UserError, match=rf"{codec} has no sample rate of {wanted} Hz. Choose .*{given}|Choose from"
        ):
            Writer(tmp_path / "b", wanted, 2, Format(codec))


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_bit_rate_is_kept(codec: str, channels: int, tmp_path: Path) -> None:
    seconds, rate = 3, RATES[codec]
    sizes = {}
    for kilobits in (64, 96, 192):
        write(tmp_path / "a", noise(seconds * rate, channels), Format(codec, bitrate=kilobits * 1000), rate)
        sizes[kilobits] = (tmp_path / "a").stat().st_size * 8 / seconds / 1000
    # Vorbis keeps a quality, and only about a rate.
    tolerance = 0.35 if codec == "ogg" else 0.1
    for kilobits, found in sizes.items():
        assert found == pytest.approx(kilobits, rel=tolerance)


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("rate", [8000, 24000, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_the_bounds_that_are_named_can_be_written(codec: str, rate: int, channels: int, tmp_path: Path) -> None:
    allowed = formats._bitrates(codec, rate, channels)
    for bitrate in (None, allowed[0], allowed[-1]):
        write(tmp_path / str(bitrate), noise(rate // 4, channels), Format(codec, bitrate=bitrate), rate)
        assert audio.probe(tmp_path / str(bitrate)).sample_rate == (48000 if codec == "opus" else rate)
    for bitrate in (allowed[0] - 1, allowed[-1] + 1):
        with pytest.raises(UserError, match=rf"{codec} (at {rate} Hz in (mono|stereo) )?has no bitrate of .* Choose"):
            Format(codec, bitrate=bitrate).check(rate, channels)


# Tags.

SOME = {name: f'{name} "it\'s" é 🎵' for name in formats.TAGS} | {"date": "1999", "track": "3/10", "disc": "1/2"}
ABSENT = {"wav": {"album_artist", "composer", "disc"}, "ogg": {"album_artist", "composer", "disc"}}


@pytest.mark.parametrize("codec", CODECS)
def test_tags_come_back(codec: str, tmp_path: Path) -> None:
    others = {"encoder": "someone's", "replaygain_track_gain": "-9 dB", "major_brand": "M4A "}
    write(tmp_path / "a", noise(3000), Format(codec), RATES[codec], tags=SOME | others)
    found = audio.tags(tmp_path / "a")
    assert {name: found[name] for name in formats.TAGS if name in found} == {
        name: value for name, value in SOME.items() if name not in ABSENT.get(codec, ())
    }
    assert "replaygain_track_gain" not in found
    assert found.get("encoder") != "someone's"


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("two\nlines\r\n", "two\nlines"),
        ("x" * 10_000, "x" * 10_000),
        ("a\0b", "ab"),
        ("\0", None),
        ("", None),
        ("\ud800half", "half"),
        ("=;#\\'\t", "=;#\\'"),
    ],
)
def test_odd_tags(codec: str, value: str, expected: str | None, tmp_path: Path) -> None:
    write(tmp_path / "a", noise(3000), Format(codec), RATES[codec], tags={"comment": value, "title": "here"})
    found = audio.tags(tmp_path / "a")
    assert found["title"] == "here"
    comment = found.get("comment")
    assert (comment and comment.replace("\r", "").strip()) == expected
    assert read(tmp_path / "a", RATES[codec]).shape[1] >= 3000


# Whole files or none.


@pytest.mark.parametrize("codec", CODECS)
def test_nothing_has_its_name_before_publish(codec: str, tmp_path: Path) -> None:
    old, new = tmp_path / f"old.{codec}", tmp_path / "a/b" / f"new.{codec}"
    old.write_bytes(b"what was there before")
    with ExitStack() as stack:
        writers = [stack.enter_context(Writer(path, RATES[codec], 2, Format(codec))) for path in (old, new)]
        for part in noise(30_000).split(7000, 1):
            for writer in writers:
                writer.write(part)
        for writer in writers:
            writer.finish()
        assert old.read_bytes() == b"what was there before"
        assert not new.exists()
        for writer in writers:
            writer.publish()
    assert left(tmp_path) == ["a", old.name]
    assert left(tmp_path / "a/b") == [new.name]
    assert audio.probe(old) == audio.probe(new)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, None])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_what_is_not_published_is_gone(codec: str, error: type | None, steps: int, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"before")
    try:
        with Writer(tmp_path / "a", RATES[codec], 2, Format(codec)) as writer:
            assert len(left(tmp_path)) == 2
            if steps > 0:
                writer.write(noise(10_000))
            if steps > 1:
                writer.finish()
            if error:
                raise error
    except (KeyboardInterrupt, RuntimeError):
        assert error
    assert left(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"before"


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("samples", [3000, 200_000])  # fails at the end, fails in the middle
def test_a_full_disk(codec: str, samples: int, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"before")
    long = {"comment": "x" * (20_000 if samples == 3000 else 1)}
    with full_at(20_000), pytest.raises(UserError) as error:
        write(tmp_path / "a", noise(samples), Format(codec), RATES[codec], 1000, long)
    assert str(error.value) == (
        f"{tmp_path / 'a'}: cannot be written ({os.strerror(errno.EFBIG)}). Choose another folder, or make room."
    )
    assert left(tmp_path) == ["a"]
    assert (tmp_path / "a").read_bytes() == b"before"


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_a_disk_that_fails_last(codec: str, operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*_: object) -> None:
        raise full

    with Writer(tmp_path / "a", RATES[codec], 2, Format(codec)) as writer:
        writer.write(noise(10_000))
        monkeypatch.setattr(os, operation, fail)
        with pytest.raises(UserError, match=r"a: cannot be written \(No space left on device\)"):
            writer.publish()
    assert left(tmp_path) == []


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("missing", [1, 100, 3000])
def test_a_disk_with_room_for_nearly_all(codec: str, missing: int, tmp_path: Path) -> None:
    """What does not fit is written last, as the libraries close the file."""
    write(tmp_path / "b", noise(20_000), Format(codec), RATES[codec])
    size = (tmp_path / "b").stat().st_size
    reason = re.escape(f"a: cannot be written ({os.strerror(errno.EFBIG)})")
    with full_at(size - missing), pytest.raises(UserError, match=reason):
        write(tmp_path / "a", noise(20_000), Format(codec), RATES[codec])
    with full_at(size):
        write(tmp_path / "a", noise(20_000), Format(codec), RATES[codec])
    assert left(tmp_path) == ["a", "b"]


def write_long(writer: Writer) -> None:
    for _ in range(30):  # FFmpeg holds back 256 KiB
        writer.write(noise(50_000))


@pytest.mark.parametrize("codec", CODECS)
def test_a_disk_that_is_full_for_a_while(codec: str, tmp_path: Path) -> None:
    """The hole in the middle is noticed as it comes about: nothing at the file's end tells of it."""
    writer = Writer(tmp_path / "a", RATES[codec], 2, Format(codec))
    with writer, full_at(20_000), pytest.raises(UserError, match="File too large"):
        write_long(writer)
    assert left(tmp_path) == []


class Stop(BaseException):
    """What a handler of a signal raises."""


@pytest.fixture
def stop_after() -> Iterator[Callable[[float], list[int]]]:
    """Raises `Stop` after so many seconds, wherever the program is then; the list tells that it was raised."""
    fired: list[int] = []

    def stop(number: int, _: object) -> None:
        fired.append(number)
        raise Stop

    def start(seconds: float) -> list[int]:
        fired.clear()
        signal.setitimer(signal.ITIMER_REAL, seconds)
        return fired

    handler = signal.signal(signal.SIGALRM, stop)
    yield start
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, handler)


def write_until(fired: list[int], writer: Writer, part: torch.Tensor) -> None:
    while not fired:
        writer.write(part)


@pytest.mark.parametrize("codec", CODECS)
def test_a_signal_is_not_lost(codec: str, tmp_path: Path, stop_after: Callable[[float], list[int]]) -> None:
    part = noise(4096)
    for number in range(60):
        with Writer(tmp_path / "a", RATES[codec], 2, Format(codec)) as writer, pytest.raises(Stop):
            write_until(stop_after(0.001 + 0.0001 * number), writer, part)
    assert left(tmp_path) == []


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = left(tmp_path)
    for target, reason in {
        "file/a.wav": "Not a directory|File exists",
        "folder": "Is a directory",
        "pipe": "it is a device or a pipe",
        "n" * 300: "File name too long",
    }.items():
        with pytest.raises(UserError, match=rf"{target}: cannot be written \(({reason})\)\. Choose another folder"):
            Writer(tmp_path / target, 44100, 2, Format())
    assert left(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        Writer(tmp_path / "a.wav", 44100, 2, Format())


@pytest.mark.parametrize("name", ["'\"[x],{y};%20.wav", "two\nlines.wav", "🎵 é.wav", "file:a.wav", "-.wav", ".wav"])
def test_odd_names(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, noise(100), Format(), 44100)
    assert left(tmp_path) == [name]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_samples_that_are_not_numbers(codec: str, value: float, tmp_path: Path) -> None:
    bad = noise(RATES[codec])
    bad[1, -1] = value
    with Writer(tmp_path / "a", RATES[codec], 2, Format(codec)) as writer:
        writer.write(noise(RATES[codec]))
        writer.write(bad)
        for end in (writer.finish, writer.finish, writer.publish):  # once wrong, it stays wrong
            with pytest.raises(UserError, match=r"a: not written, NaN or infinite samples after 1.00 s"):
                end()
    assert left(tmp_path) == []


@pytest.mark.parametrize("codec", CODECS)
def test_no_samples(codec: str, tmp_path: Path) -> None:
    with Writer(tmp_path / "a", RATES[codec], 2, Format(codec)) as writer:
        writer.write(torch.zeros(2, 0))
        with pytest.raises(UserError, match="there are 0 samples to write"):
            writer.publish()
    assert left(tmp_path) == []


def test_what_was_written_in_the_background_fails_no_later_than_finish(tmp_path: Path) -> None:
    with Writer(tmp_path / "a", 44100, 2, Format("flac")) as writer, full_at(1000):
        writer.write(noise(100_000))
        writer.end()  # returns at once
        with pytest.raises(UserError, match="cannot be written"):
            writer.finish()
        assert not list(tmp_path.glob("a"))
    assert left(tmp_path) == []


def test_a_block_of_another_shape_is_our_mistake(tmp_path: Path) -> None:
    with Writer(tmp_path / "a", 44100, 2, Format()) as writer:
        for shape in ((1, 10), (10,), (1, 2, 10)):
            with pytest.raises(ValueError, match=r"expected a block \(2, n\)"):
                writer.write(torch.zeros(shape))


@pytest.mark.parametrize("codec", ["wav", "flac", "mp3", "m4a", "opus"])
def test_no_version_of_ffmpeg_changes_the_files(codec: str, tmp_path: Path) -> None:
    write(tmp_path / "a", noise(3000), Format(codec), RATES[codec])
    data = (tmp_path / "a").read_bytes()
    assert not [name for name in (b"Lavc6", b"Lavf6", b"libopus 1") if name in data]
