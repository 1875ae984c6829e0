"""Files and waveforms: every route into a file gives the same samples; no fault in one passes unnoticed."""

import errno
import math
import os
import struct
import subprocess
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
import torch
from torchaudio.functional import resample

from stemwise import audio, resampling
from stemwise.codecs import ffmpeg as decoder
from stemwise.errors import UserError

RATE = 44100
SECONDS = 6
MUSDB = Path(__file__).resolve().parents[2] / "shared/data/musdb18-7s"
needs_musdb = pytest.mark.skipif(not MUSDB.is_dir(), reason=f"MUSDB18's excerpts are not at {MUSDB}")

# Containers that read differently: by libsndfile, by seeking in FFmpeg, by FFmpeg from the beginning.
FORMATS = {
    "song.flac": [],
    "song.ogg": ["-c:a", "libvorbis"],
    "song.opus": ["-b:a", "8k"],
    "song.mp3": ["-b:a", "64k"],
    "bare.mp3": ["-q:a", "4", "-write_xing", "0"],
    "song.m4a": ["-movflags", "faststart"],  # FFmpeg's own encoder codes noise as noise (PNS)
    "lossless.m4a": ["-c:a", "alac"],
    "song.aac": [],
    "song.mkv": ["-c:a", "aac"],
    "song.webm": ["-c:a", "libopus"],
    "song.wma": [],
}


def ffmpeg(*arguments: object) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True)


def whole(path: Path, **changes: int) -> torch.Tensor:
    return audio.read(path, **{"sample_rate": RATE, "channels": 2, **changes})


def tone(hertz: float, rate: int, seconds: float) -> torch.Tensor:
    return 0.5 * torch.sin(2 * math.pi * hertz * torch.arange(int(rate * seconds), dtype=torch.float64) / rate)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A song of noise and a tone, 16-bit stereo, as `song.wav` and in every other format."""
    folder = tmp_path_factory.mktemp("audio")
    noise = torch.randn(2, RATE * SECONDS + 123, generator=torch.Generator().manual_seed(0))
    song = 0.1 * noise
    song[:, : RATE * SECONDS] += tone(440, RATE, SECONDS)
    soundfile.write(folder / "song.wav", song.T.numpy(), RATE)
    for name, arguments in FORMATS.items():
        ffmpeg("-i", folder / "song.wav", *arguments, folder / name)
    return folder


# What is read.


@needs_musdb
def test_stem_mp4_equals_musdb() -> None:
    import musdb

    for track in musdb.DB(str(MUSDB), subsets="test").tracks:
        for stream in range(5):
            ours = whole(Path(track.path), stream=stream)
            theirs = torch.from_numpy(track.stems[stream].T).float()
            assert ours.shape == theirs.shape
            # musdb decodes to 16 bits, which clip and are off by up to half a step.
            assert (ours.clamp(-1, 1 - 2**-15) - theirs).abs().max() < 0.51 / 2**15


@needs_musdb
def test_stem_mp4_equals_one_uninterrupted_decode_of_ffmpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    path = sorted(MUSDB.glob("train/*.mp4"))[3]
    raw = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", path, "-map", "0:a:4", "-f", "f32le", "-"],
        capture_output=True,
        check=True,
    ).stdout
    theirs = torch.from_numpy(np.frombuffer(raw, "<f4").copy().reshape(-1, 2).T)
    monkeypatch.setattr(decoder, "SEGMENT", 2)  # three joints in the 6.8 s
    ours = whole(path, stream=4)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-6
    assert audio.probe(path, 4).frames == ours.shape[1]


@pytest.mark.parametrize("name", ["song.wav", *FORMATS])
def test_a_read_from_start_is_the_slice_of_the_whole(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "SEGMENT", 2)
    path = folder / name
    info = audio.probe(path)
    song = whole(path, sample_rate=info.sample_rate)
    assert song.shape == (2, info.frames)
    assert song.std() > 0.2
    for start in (1, 1500, 2 * info.sample_rate - 1, 2 * info.sample_rate, 150_001, info.frames - 700):
        part = whole(path, sample_rate=info.sample_rate, start=start, frames=30_000)
        assert torch.equal(part, song[:, start : start + 30_000]), start
    assert whole(path, sample_rate=info.sample_rate, start=info.frames + 5).shape == (2, 0)


@pytest.fixture(scope="session")
def half_a_minute(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ogg Opus as FFmpeg codes it, 25 s of a tone and noise."""
    path = tmp_path_factory.mktemp("opus") / "song.opus"
    song = 0.1 * torch.randn(2, 25 * 48000, generator=torch.Generator().manual_seed(0)) + tone(440, 48000, 25).float()
    soundfile.write(path.with_suffix(".wav"), song.T.numpy(), 48000)
    ffmpeg("-i", path.with_suffix(".wav"), path)
    return path


def ogg_pages(data: bytes) -> list[bytearray]:
    return [bytearray(b"OggS\0" + page) for page in data.split(b"OggS\0")[1:]]


def checksum(page: bytearray) -> int:
    """RFC 3533, 6: the polynomial 0x04c11db7, not reflected, over the page with zeros in the checksum's place."""
    value = 0
    for byte in (*page[:22], 0, 0, 0, 0, *page[26:]):
        value ^= byte << 24
        for _ in range(8):
            value = value << 1 ^ (0x104C11DB7 if value & 1 << 31 else 0)
    return value


def test_opus_with_a_page_that_comes_late(half_a_minute: Path, tmp_path: Path) -> None:
    """As FFmpeg writes it from a Vorbis file whose time stamps jump. libsndfile 1.2.2 stops there."""
    pages = ogg_pages(half_a_minute.read_bytes())
    page = pages[8]
    struct.pack_into("<q", page, 6, struct.unpack_from("<q", page, 6)[0] + 488)
    struct.pack_into("<I", page, 22, checksum(page))
    path = tmp_path / "late.opus"
    path.write_bytes(b"".join(pages))
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.read(path)
    assert audio.probe(path) == audio.probe(half_a_minute) == audio.Info(25 * 48000, 48000, 2)
    song = whole(path, sample_rate=48000)
    assert torch.equal(song, whole(half_a_minute, sample_rate=48000))
    for start in (5, 340_000, 25 * 48000 - 100):
        assert torch.equal(whole(path, sample_rate=48000, start=start, frames=900), song[:, start : start + 900])


def test_opus_equals_libsndfile(half_a_minute: Path) -> None:
    theirs, _ = soundfile.read(half_a_minute, dtype="float32")
    assert (whole(half_a_minute, sample_rate=48000) - torch.from_numpy(theirs.T)).abs().max() < 1e-5


def test_chained_opus_is_read_to_its_end(half_a_minute: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "two.opus").write_bytes(half_a_minute.read_bytes() + (folder / "song.opus").read_bytes())
    frames = [audio.probe(path).frames for path in (half_a_minute, folder / "song.opus", tmp_path / "two.opus")]
    assert frames[0] + frames[1] == frames[2]


def test_opus_that_begins_late_or_lacks_a_part(half_a_minute: Path, tmp_path: Path) -> None:
    pages = ogg_pages(half_a_minute.read_bytes())
    (tmp_path / "radio.opus").write_bytes(b"".join(pages[:2] + pages[12:]))
    assert audio.probe(tmp_path / "radio.opus").frames == 15 * 48000
    (tmp_path / "hole.opus").write_bytes(b"".join(pages[:8] + pages[10:]))
    for find in (audio.probe, whole):
        with pytest.raises(UserError, match=r"cut off, its header says 25\.01 s, 2[23]\.\d\d s are there"):
            find(tmp_path / "hole.opus")


@pytest.mark.parametrize("name", ["song.ogg", "song.mp3", "song.m4a", "lossless.m4a", "song.webm"])
def test_what_was_coded_comes_out_in_its_place(name: str, folder: Path) -> None:
    """The encoder's delay is gone, in formats that say how long it is."""
    original = whole(folder / "song.wav")[0, RATE : 2 * RATE]
    coded = whole(folder / name)[0, RATE - 50 : 2 * RATE + 50]
    match = torch.nn.functional.conv1d(coded[None, None], original[None, None])[0, 0]
    assert int(match.argmax()) == 50


def test_seeking_does_not_decode_what_is_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.m4a"
    ffmpeg("-f", "lavfi", "-i", "anoisesrc=r=16000:d=90", path)
    decoded = []
    tensor = decoder.Ffmpeg._tensor

    def count(self: decoder.Ffmpeg, frame: object, position: int) -> torch.Tensor:
        decoded.append(tensor(self, frame, position))  # type: ignore[arg-type]
        return decoded[-1]

    monkeypatch.setattr(decoder.Ffmpeg, "_tensor", count)
    part = audio.read(path, sample_rate=16000, channels=1, start=75 * 16000, frames=16000)
    assert part.shape == (1, 16000)
    assert sum(frame.shape[1] for frame in decoded) < 23 * 16000
    decoded.clear()
    assert audio.probe(path).seconds == pytest.approx(90, abs=0.1)
    assert sum(frame.shape[1] for frame in decoded) < 2 * 16000


@pytest.mark.parametrize(
    ("suffix", "subtype", "step"),
    [
        ("wav", "PCM_U8", 2**-7),
        ("wav", "PCM_16", 2**-15),
        ("wav", "PCM_24", 2**-23),
        ("wav", "PCM_32", 2**-23),
        ("wav", "FLOAT", 2**-23),
        ("wav", "DOUBLE", 2**-23),
        ("flac", "PCM_16", 2**-15),
        ("flac", "PCM_24", 2**-23),
    ],
)
def test_bit_depths(suffix: str, subtype: str, step: float, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    expected = torch.tensor([[-1, -0.5, -step, 0, step, 0.25, 1 - step]])
    soundfile.write(path, expected[0].double().numpy(), RATE, subtype)
    assert torch.equal(whole(path, channels=1), expected)
    if suffix == "wav":  # and as FFmpeg hands it over, which reads files that a pipe left without a size
        size = path.read_bytes().index(b"data") + 4
        path.write_bytes(path.read_bytes()[:size] + bytes(4) + path.read_bytes()[size + 4 :])
        assert torch.equal(whole(path, channels=1)[:, :7], expected)


def test_channels(tmp_path: Path) -> None:
    for channels in (1, 2, 6):
        samples = torch.arange(1, channels + 1) / 8
        soundfile.write(tmp_path / f"{channels}.wav", samples.expand(50, -1).numpy(), RATE)
    for file, channels, channel, expected in [
        (1, 2, None, [1, 1]),
        (2, 2, None, [1, 2]),
        (2, 1, None, [1.5]),
        (6, 2, None, [1, 2]),
        (6, 1, None, [1.5]),
        (6, 2, 4, [5, 5]),
        (6, 1, 5, [6]),
    ]:
        waveform = whole(tmp_path / f"{file}.wav", channels=channels, channel=channel)
        assert torch.equal(waveform, (torch.tensor(expected) / 8)[:, None].expand(-1, 50))
    with pytest.raises(UserError, match=r"has 2 channels, number 2 was asked for. Count from 0"):
        whole(tmp_path / "2.wav", channel=2)


# Blocks and resampling.


@pytest.mark.parametrize("rate", [RATE, 16000, 48000])
def test_blocks_of_any_size_are_the_whole(rate: int, folder: Path) -> None:
    song = whole(folder / "song.flac", sample_rate=rate)
    assert song.shape[1] == audio.length(audio.probe(folder / "song.flac"), rate)
    for block in (997, 1 << 16, 1 << 20):
        blocks = list(audio.stream(folder / "song.flac", sample_rate=rate, channels=2, block=block))
        assert {part.shape[1] for part in blocks[:-1]} <= {block}
        assert 0 < blocks[-1].shape[1] <= block
        assert torch.equal(torch.cat(blocks, 1), song)


@pytest.mark.parametrize(
    ("old", "new"), [(44100, 48000), (48000, 44100), (44100, 16000), (8000, 44100), (96000, 48000)]
)
def test_resampling_in_chunks_equals_resampling_the_whole(old: int, new: int, tmp_path: Path) -> None:
    waveform = torch.rand(2, 3 * old + 17, generator=torch.Generator().manual_seed(1)) - 0.5
    audio.write(tmp_path / "a.wav", waveform, old, bit_depth="float")
    expected = resample(waveform, old, new)
    found = whole(tmp_path / "a.wav", sample_rate=new)
    assert found.shape == expected.shape == (2, math.ceil(waveform.shape[1] * new / old))
    assert (found - expected).abs().max() < 1e-6
    for start in (1, 163, 40_000, 2 * new + 5):
        part = whole(tmp_path / "a.wav", sample_rate=new, start=start, frames=5000)
        assert part.shape == (2, 5000)
        assert (part - expected[:, start : start + 5000]).abs().max() < 1e-6


@pytest.mark.parametrize(("old", "new"), [(44100, 48000), (1332, 1225), (8000, 441), (441, 8000)])
def test_rates_with_large_filters_are_resampled_as_torchaudio_does(old: int, new: int, monkeypatch) -> None:
    monkeypatch.setattr(resampling, "_LARGEST_FILTERS", 0)
    # In double precision: in single, torchaudio rounds the phases.
    waveform = torch.randn(2, 30_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = torch.cat(list(resampling.resample(iter(waveform.split(7001, 1)), old, new)), 1)
    expected = resample(waveform, old, new)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-9


@pytest.mark.parametrize(("old", "new"), [(44101, 44100), (192001, 44100), (44100, 96001)])
def test_odd_rates_need_little_memory(old: int, new: int, tmp_path: Path) -> None:
    audio.write(tmp_path / "tone.wav", tone(1000, old, 3)[None], old, bit_depth="float")
    process = psutil.Process()
    before = process.memory_info().rss
    found = whole(tmp_path / "tone.wav", sample_rate=new, channels=1)
    assert process.memory_info().rss - before < 300e6
    assert found.shape == (1, math.ceil(3 * new))
    assert (found[0] - tone(1000, new, 3))[new // 10 : -new // 10].abs().max() < 2e-3
    part = whole(tmp_path / "tone.wav", sample_rate=new, channels=1, start=50_001, frames=9000)
    assert (part - found[:, 50_001:59_001]).abs().max() < 1e-6


@pytest.mark.parametrize(("old", "new"), [(48000, 44100), (44100, 16000), (16000, 44100)])
def test_a_tone_keeps_its_frequency_and_level(old: int, new: int, tmp_path: Path) -> None:
    audio.write(tmp_path / "tone.wav", tone(1000, old, 2)[None], old, bit_depth="float")
    found = whole(tmp_path / "tone.wav", sample_rate=new, channels=1)[0]
    middle = slice(new // 10, -new // 10)
    assert (found - tone(1000, new, 2))[middle].abs().max() < 2e-3


@pytest.mark.parametrize(("old", "new"), [(44100, 192_000), (192_000, 44100)])
def test_memory_for_resampling_does_not_grow_with_the_block(old: int, new: int) -> None:
    block = torch.rand(10, 1 << 19, generator=torch.Generator().manual_seed(1)) - 0.5  # 21 MB
    process = psutil.Process()
    before = after = process.memory_info().rss
    for piece in resampling.resample(iter([block]), old, new):
        assert piece.nbytes < 8e6
        after = max(after, process.memory_info().rss)
    assert after - before < 60e6


def test_a_tone_above_the_new_band_vanishes(tmp_path: Path) -> None:
    audio.write(tmp_path / "tone.wav", tone(12000, 44100, 2)[None], 44100, bit_depth="float")
    assert whole(tmp_path / "tone.wav", sample_rate=16000, channels=1)[0, 1600:-1600].abs().max() < 2e-3


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path, rate = tmp_path / "long.wav", 8000
    with soundfile.SoundFile(path, "w", rate, 1, "PCM_16") as file:
        for _ in range(20):
            file.write(np.full(60 * rate, 0.5, np.float32))
    process = psutil.Process()
    count, memory = 0, []
    for block in audio.stream(path, sample_rate=2 * rate, channels=1, block=1 << 17):
        memory.append(process.memory_info().rss)
        count += block.shape[1]
    assert count == 20 * 60 * 2 * rate  # 77 MB
    assert max(memory) - memory[2] < 20e6


# What is wrong with files.


def test_no_such_file_folder_or_audio(tmp_path: Path) -> None:
    (tmp_path / "nothing.wav").touch()
    (tmp_path / "text.wav").write_text("these are words")
    soundfile.write(tmp_path / "silent.wav", np.zeros((0, 2)), RATE)
    ffmpeg("-f", "lavfi", "-i", "testsrc=d=1:r=5", tmp_path / "picture.mp4")
    for name, message in {
        "absent.wav": "no such file",
        ".": "is a folder",
        "nothing.wav": "empty, 0 bytes",
        "silent.wav": "empty, 0 samples",
        "text.wav": "cannot be read as audio",
        "picture.mp4": "has no audio",
    }.items():
        with pytest.raises(UserError, match=message) as error:
            audio.probe(tmp_path / name)
        assert str(error.value).startswith(f"{tmp_path / name}: ")


def test_pipes_and_devices_are_not_read_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    for path in (tmp_path / "pipe.wav", Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(UserError, match=rf"{path}: is a pipe or a device, a file is needed. Pipe the song in"):
            audio.probe(path)


def test_paths_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    (tmp_path / "text").touch()
    audio.write(tmp_path / "locked.wav", torch.zeros(2, 10), RATE)
    for name, message in {
        "n" * 300: r"cannot be opened \(File name too long\)",
        "loop.wav": r"cannot be opened \(Too many levels of symbolic links\)",
        "text/a.wav": "no such file",
        "nul\0.wav": "no such file",
    }.items():
        with pytest.raises(UserError, match=message):
            audio.probe(tmp_path / name)
        assert audio.tags(tmp_path / name) == {}

    def locked(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    for operation in ("open", "stat"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, operation, locked)
            with pytest.raises(UserError, match=r"locked.wav: cannot be opened \(Permission denied\)"):
                audio.probe(tmp_path / "locked.wav")


@pytest.mark.parametrize(("name", "streams"), [("song.wav", "1 audio stream"), ("two.mp4", "2 audio streams")])
def test_a_stream_that_does_not_exist(name: str, streams: str, folder: Path) -> None:
    ffmpeg("-i", folder / "song.m4a", "-map", "0:a", "-map", "0:a", "-c", "copy", folder / "two.mp4")
    assert audio.probe(folder / name, 0).channels == 2
    with pytest.raises(UserError, match=f"has {streams}, number 2 was asked for. Count from 0"):
        audio.probe(folder / name, 2)


@pytest.mark.parametrize("share", [0.4, 0.97])
@pytest.mark.parametrize("name", ["song.wav", "song.flac", "song.ogg", "song.opus", "song.m4a", "late.m4a", "rf64.wav"])
def test_a_file_that_was_cut_off(name: str, share: float, folder: Path, tmp_path: Path) -> None:
    if name == "late.m4a":  # with the table of its samples at the end
        ffmpeg("-i", folder / "song.m4a", "-c", "copy", folder / name)
    if name == "rf64.wav":
        soundfile.write(folder / name, whole(folder / "song.wav").T.numpy(), RATE, format="RF64")
    data = (folder / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match="cut off"):
        audio.probe(path)
    with pytest.raises(UserError, match="cut off"):
        whole(path)


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_wav_files_from_a_pipe_are_whole(size: int, folder: Path, tmp_path: Path) -> None:
    data = bytearray((folder / "song.wav").read_bytes())
    at = data.index(b"data") + 4
    data[4:8] = data[at : at + 4] = struct.pack("<I", size)
    (tmp_path / "pipe.wav").write_bytes(data)
    assert audio.probe(tmp_path / "pipe.wav") == audio.probe(folder / "song.wav")
    assert torch.equal(whole(tmp_path / "pipe.wav"), whole(folder / "song.wav"))


def test_flac_from_a_pipe_is_whole(folder: Path, tmp_path: Path) -> None:
    with (tmp_path / "pipe.flac").open("wb") as pipe:
        subprocess.run(["ffmpeg", "-v", "error", "-i", folder / "song.wav", "-f", "flac", "-"], stdout=pipe, check=True)
    assert audio.probe(tmp_path / "pipe.flac") == audio.probe(folder / "song.wav")


@pytest.mark.parametrize("count", [20, 5000])
def test_mp3_whose_header_lies_about_its_length(count: int, folder: Path, tmp_path: Path) -> None:
    data = bytearray((folder / "song.mp3").read_bytes())
    at = data.index(b"Info")
    assert struct.unpack(">I", data[at + 4 : at + 8])[0] & 1  # the header has a count of frames
    data[at + 8 : at + 12] = struct.pack(">I", count)
    path = tmp_path / "lie.mp3"
    path.write_bytes(data)
    true = audio.probe(folder / "song.mp3")
    assert true == audio.probe(folder / "song.wav")
    info = audio.probe(path)
    assert 0 <= info.frames - true.frames < 2 * 1152  # the encoder's padding, whose place the header hides
    assert torch.equal(whole(path)[:, 60_000 : true.frames], whole(folder / "song.mp3")[:, 60_000:])
    assert torch.equal(whole(path, start=100_001), whole(path)[:, 100_001:])


@pytest.mark.parametrize("name", ["song.flac", "song.m4a", "song.mp3", "song.mkv"])
def test_damage_in_the_middle_says_where(name: str, folder: Path, tmp_path: Path) -> None:
    data = bytearray((folder / name).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 5000] = bytes(5000)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=r"cannot be decoded after [1-3]\.\d\d s"):
        whole(tmp_path / name)


def test_bytes_after_the_sound_are_no_damage(folder: Path, tmp_path: Path) -> None:
    """Tags that FFmpeg does not know, and half a frame, as they end many an MP3."""
    song = (folder / "bare.mp3").read_bytes()
    for number, junk in enumerate((b"APETAGEX" + bytes(3000), song[5000:5200], b"TAG" + bytes(125))):
        path = tmp_path / f"{number}.mp3"
        path.write_bytes(song + junk)
        assert torch.equal(whole(path), whole(folder / "bare.mp3"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_samples_that_are_not_numbers(value: float, tmp_path: Path) -> None:
    samples = np.zeros((5 * RATE, 2), np.float32)
    samples[3 * RATE, 1] = value
    soundfile.write(tmp_path / "a.wav", samples, RATE, "FLOAT")
    for start in (0, 2 * RATE):
        with pytest.raises(UserError, match=r"a.wav: NaN or infinite samples at 3.00 s"):
            whole(tmp_path / "a.wav", start=start)


# What is written. The formats, failing disks and tags are in test_encoding.py.


@pytest.mark.parametrize(
    ("codec", "bit_depth"),
    [("wav", None), ("wav", "16"), ("wav", "24"), ("wav", "float"), ("flac", "16"), ("flac", "24")],
)
def test_what_was_written_is_read(codec: str, bit_depth: str | None, tmp_path: Path) -> None:
    waveform = torch.stack((torch.arange(-(2**15), 2**15), torch.arange(2**15 - 1, -(2**15) - 1, -1))) / 2**15
    path = tmp_path / "new/folders" / f"a.{codec}"
    audio.write(path, waveform, 48000, codec=codec, bit_depth=bit_depth)
    assert torch.equal(whole(path, sample_rate=48000), waveform)
    assert audio.probe(path) == audio.Info(2**16, 48000, 2)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_samples_past_full_scale_are_clamped(tmp_path: Path) -> None:
    loud = torch.tensor([[1.5, -1.5, 0.5]])
    assert audio.write(tmp_path / "a.wav", loud, RATE) == 2
    assert torch.equal(whole(tmp_path / "a.wav", channels=1), loud.clamp(-1, 1 - 2**-15))
    assert audio.write(tmp_path / "a.wav", loud, RATE, bit_depth="float") == 0
    assert torch.equal(whole(tmp_path / "a.wav", channels=1), loud)


def test_tags_of_files_that_have_none(tmp_path: Path) -> None:
    audio.write(tmp_path / "a.wav", torch.zeros(2, 10), RATE)
    (tmp_path / "text.wav").write_text("these are words")
    for name in ("a.wav", "text.wav", "absent.wav"):
        assert audio.tags(tmp_path / name) == {}


def test_tags_that_are_no_text_are_left_out(tmp_path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", "-metadata", "TITLE=Caf?", "-metadata", "artist=Ella", tmp_path / "a.wav")
    data = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(data.replace(b"Caf?", "Café".encode("latin-1")))
    found = audio.tags(tmp_path / "a.wav")
    assert found["artist"] == "Ella"
    assert "title" not in found
