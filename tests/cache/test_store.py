"""The cache: crops equal the STFT of the whole, and an entry's name changes with all that shapes it."""

import os
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

import cached_songs
from cached_songs import RATE, SETTINGS, SIGNALS, WRITTEN, built, signal_of
from stemwise import audio, signals, spectrogram
from stemwise.cache import entries, fingerprints, storage, store
from stemwise.cache.store import Cache, Direct
from stemwise.errors import UserError
from stemwise.index import Cell, Signal
from stemwise.spectrogram import Spectrogram

MONO = replace(SETTINGS, channels=1)
TOLERANCE = {"half": 5e-4, "complex": 1e-3, "decibel": 0.025}  # of the magnitude


@pytest.fixture(autouse=True)
def _as_new(monkeypatch: pytest.MonkeyPatch) -> None:
    cached_songs.as_new(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cached_songs.write_songs(tmp_path_factory.mktemp("songs"))


def whole(signal: Signal, settings: Spectrogram) -> Tensor:
    """The STFT in memory, with nothing of the cache."""
    waves = [
        audio.read(c.path, sample_rate=RATE, channels=settings.channels, stream=c.stream, channel=c.channel)
        for c in signal
    ]
    total = torch.zeros(settings.channels, max(wave.shape[1] for wave in waves))
    for wave in waves:
        total[:, : wave.shape[1]] += wave
    return spectrogram.stft(total, settings)[..., : settings.bins]


def cut(spectra: Tensor, start: int, frames: int) -> Tensor:
    """Frames of the whole, zeros outside it."""
    out = spectra.new_zeros(spectra.shape[0], frames, spectra.shape[2])
    for place in range(frames):
        if 0 <= start + place < spectra.shape[1]:
            out[:, place] = spectra[:, start + place]
    return out


def places(count: int) -> list[tuple[int, int]]:
    """Crops at, around and beyond both ends, and between."""
    starts = (0, 1, 5, count // 2, count - 20, count - 1, count, count + 30, -1, -7, -19, -20, -45)
    return [(start, 20) for start in starts] + [(0, count), (-3, count + 6), (7, 1)]


# What a crop holds.


@pytest.mark.parametrize("names", SIGNALS.values(), ids=SIGNALS)
@pytest.mark.parametrize("settings", [SETTINGS, MONO], ids=["stereo model", "mono model"])
@pytest.mark.parametrize("kind", ["half", "complex", "decibel"])
def test_crops_equal_the_stft_of_the_whole(
    names: list[str], settings: Spectrogram, kind: str, folder: Path, tmp_path: Path
) -> None:
    signal = signal_of(folder, names)
    made, expected = built(tmp_path, [signal], kind, settings), whole(signal, settings)
    count = made.frame_count(signal)
    assert count == expected.shape[1]
    reference = expected if made.has_phase else expected.abs()
    loudest = expected.abs().amax(dim=(0, 2), keepdim=True)
    for start, frames in places(count):
        found = made.crop(signal, start, frames)
        wanted = cut(reference, start, frames)
        assert found.shape == wanted.shape
        assert found.dtype == wanted.dtype
        # What lies 100 dB below its frame's maximum is not kept by `decibel`.
        lost = 1e-5 * cut(loudest, start, frames) * 1.03 + 1e-7
        assert ((found - wanted).abs() <= TOLERANCE[kind] * wanted.abs() + lost).all(), (start, frames)
        assert (found[wanted.abs().expand_as(found) == 0].abs() <= 1e-4).all()


@pytest.mark.parametrize("names", SIGNALS.values(), ids=SIGNALS)
@pytest.mark.parametrize("settings", [SETTINGS, MONO], ids=["stereo model", "mono model"])
@pytest.mark.parametrize("has_phase", [True, False])
def test_direct_crops_are_those_of_the_stft(
    names: list[str], settings: Spectrogram, has_phase: bool, folder: Path
) -> None:
    signal = signal_of(folder, names)
    direct, expected = Direct(settings, has_phase), whole(signal, settings)
    reference = expected if has_phase else expected.abs()
    assert direct.frame_count(signal) == expected.shape[1]
    for start, frames in places(expected.shape[1]):
        # Not bit for bit: FFT and resampling round by where a sample lies in their blocks.
        torch.testing.assert_close(
            direct.crop(signal, start, frames), cut(reference, start, frames), rtol=1e-5, atol=2e-6
        )


def test_what_lies_outside_is_zero(folder: Path, tmp_path: Path) -> None:
    signal = signal_of(folder, ["stereo.wav"])
    for kind in ("half", "complex", "decibel"):
        source = built(tmp_path, [signal], kind)
        for start in (-45, -20, source.frame_count(signal), source.frame_count(signal) + 30):
            assert (source.crop(signal, start, 20) == 0).all()
        assert (source.crop(signal, -3, 20)[:, :3] == 0).all()


def test_a_song_that_comes_in_many_blocks(tmp_path: Path) -> None:
    settings = replace(SETTINGS, n_fft=1024, hop=256, bins=100, frames=16)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, ((1 << 19) * 2 + 12345, 2))
    soundfile.write(tmp_path / "long.wav", noise, RATE)
    signal = signal_of(tmp_path, ["long.wav"])
    made, expected = built(tmp_path / "cache", [signal], "half", settings), whole(signal, settings).abs()
    found = made.crop(signal, 0, made.frame_count(signal))
    torch.testing.assert_close(found, expected, rtol=5e-4, atol=1e-6)


def test_a_crop_reads_only_its_frames(folder: Path, tmp_path: Path) -> None:
    signal = signal_of(folder, ["stereo.wav"])
    made = built(tmp_path, [signal])
    dtype, count = made.storage.dtype(SETTINGS), 1 << 22
    path = made.path(signal)
    header = entries.Header(path.stem, made.kind, count, WRITTEN, checksum=0)
    with path.open("wb") as file:  # 400 MB, all but 20 records a hole in the file
        file.write(header.page())
        file.truncate(header.size)
        file.seek(entries.PAGE + 3_000_000 * dtype.itemsize)
        records = np.arange(20, dtype="<f2")[:, None, None].repeat(2, 1).repeat(24, 2)
        file.write(records.tobytes())
    os.utime(path, (WRITTEN, WRITTEN))
    tracemalloc.start()
    found = made.crop(signal, 3_000_000 - 5, 30)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.frame_count(signal) == count
    assert found[0, :, 0].tolist() == [0] * 5 + list(range(20)) + [0] * 5
    assert peak < 100_000


def test_signals_are_read_in_time_with_each_other(folder: Path) -> None:
    """A sum in blocks is the sum of the wholes, whatever the rates and lengths."""
    signal = signal_of(folder, SIGNALS["a sum of rates"])
    waves = [signals.read((cell,), SETTINGS) for cell in signal]
    total = signals.stack([(cell,) for cell in signal], SETTINGS).sum(0)
    assert total.shape[1] == max(wave.shape[1] for wave in waves)
    torch.testing.assert_close(signals.read(signal, SETTINGS), total)
    torch.testing.assert_close(signals.read(signal, SETTINGS, 1001, 500), total[:, 1001:1501], rtol=1e-5, atol=1e-6)


def test_shared_memory_that_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    """As in a container: pages of it can be promised, and are missing when they are written to."""
    signal = signal_of(folder, ["stereo.wav"])
    made = built(tmp_path, [signal])
    size = made.storage.dtype(SETTINGS).itemsize
    with (tmp_path / "memory").open("w+b") as file:
        file.truncate(200 * size)
        memory = np.memmap(file, np.uint8, "r+", shape=(200, size))
        file.truncate(0)
        with pytest.raises(UserError, match=r"/dev/shm: too small.*data\.num_workers=0"):
            made.read(signal, 0, memory[:20])


@pytest.mark.parametrize("kind", ["half", "complex", "decibel"])
def test_records_are_the_bytes_of_a_crop(kind: str, folder: Path, tmp_path: Path) -> None:
    signal = signal_of(folder, ["stereo.wav"])
    made = built(tmp_path, [signal], kind)
    dtype = made.storage.dtype(SETTINGS)
    for start, frames in places(made.frame_count(signal)):
        records = np.full((frames, dtype.itemsize), 77, np.uint8)
        made.read(signal, start, records)
        decoded = made.storage.decode(np.ndarray(frames, dtype, records))
        assert torch.equal(decoded, made.crop(signal, start, frames))


# What an entry is called.


def test_the_name_changes_with_all_that_shapes_the_entry(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that no stemwise reads what another version, format or setting wrote."""
    source = shutil.copy(folder / "stereo.wav", tmp_path / "song.wav")
    signal = (Cell(source),)
    made = Cache(tmp_path, SETTINGS, storage.by_name("half"))
    names = [made.path(signal)]
    changes = {"sample_rate": 16000, "channels": 1, "n_fft": 128, "hop": 8, "bins": 25}
    names += [Cache(tmp_path, replace(SETTINGS, **{k: v}), made.storage).path(signal) for k, v in changes.items()]
    names += [Cache(tmp_path, SETTINGS, storage.by_name(kind)).path(signal) for kind in ("complex", "decibel")]
    names += [made.path((replace(signal[0], channel=0),)), made.path((replace(signal[0], stream=0),))]
    names += [made.path((*signal, *signal)), made.path((Cell(folder / "longer.flac"),))]
    monkeypatch.setattr(store, "__version__", "0.0.9")
    names += [Cache(tmp_path, SETTINGS, made.storage).path(signal)]
    monkeypatch.undo()
    monkeypatch.setattr(store, "FORMAT", store.FORMAT + 1)
    store.forget_files()
    names += [made.path(signal)]
    monkeypatch.undo()
    store.forget_files()
    assert len(set(names)) == len(names)
    assert Cache(tmp_path, replace(SETTINGS, frames=7), made.storage).path(signal) == names[0]


def test_the_name_changes_with_content_and_with_time(tmp_path: Path) -> None:
    path = tmp_path / "song.wav"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 300_000)
    made = Cache(tmp_path, SETTINGS, storage.by_name("half"))

    def name(samples: np.ndarray, time_ns: int) -> Path:
        soundfile.write(path, samples, RATE)
        os.utime(path, ns=(time_ns, time_ns))
        store.forget_files()
        return made.path((Cell(path),))

    names = [name(noise, 10**18), name(noise, 10**18 + 1), name(noise[:-1], 10**18)]
    for place in (0, 150_000, 299_999):  # the three pieces, the time set alike
        other = noise.copy()
        other[place] = 0.9
        names.append(name(other, 10**18))
    assert len(set(names)) == len(names)
    assert name(noise, 10**18) == names[0]


def test_a_copy_elsewhere_with_its_time_is_the_same_entry(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / folder.name
    moved.mkdir(parents=True)
    copy = shutil.copy2(folder / "stereo.wav", moved)
    made = Cache(tmp_path, SETTINGS, storage.by_name("half"))
    assert made.path((Cell(Path(copy)),)) == made.path((Cell(folder / "stereo.wav"),))


def test_stems_that_differ_only_where_nobody_looks_are_two_entries(tmp_path: Path) -> None:
    """As long, from one archive, and silent at the start, in the middle and at the end."""
    paths = [tmp_path / name for name in ("one/vocals.wav", "one/drums.wav", "two/vocals.wav")]
    for number, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        samples = np.zeros(300_000)
        samples[75_000] = 0.1 * (number + 1)
        soundfile.write(path, samples, RATE)
        os.utime(path, ns=(10**18, 10**18))
    assert len({fingerprints.fingerprint(path) for path in paths}) == 3


def test_a_file_that_is_gone_is_the_users_to_find(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.wav: cannot be read \(No such file.*Check the path"):
        Cache(tmp_path, SETTINGS, storage.by_name("half")).path((Cell(tmp_path / "gone.wav"),))
