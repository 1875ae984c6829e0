"""Storages: what comes back from disk is what went in, within the error that each one promises."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stemwise.cache import storage
from stemwise.cache.storage import Complex, Decibel, Half
from stemwise.errors import UserError
from stemwise.spectrogram import Spectrogram

SETTINGS = Spectrogram(bins=300)
FULL_SCALE = SETTINGS.n_fft / 2  # 0 dB
STORAGES = [Half(), Complex(), Decibel()]
by_storage = pytest.mark.parametrize("kind", STORAGES, ids=lambda kind: kind.name)


def spectra(low: float, high: float, frames: int = 40) -> Tensor:
    """Spectra (C, T, F) with levels spread evenly over a range of decibels, and any phase."""
    random = torch.Generator().manual_seed(0)
    shape = (SETTINGS.channels, frames, SETTINGS.bins)
    decibels = low + (high - low) * torch.rand(shape, generator=random, dtype=torch.float64)
    phases = 2 * math.pi * torch.rand(shape, generator=random, dtype=torch.float64)
    return torch.polar(FULL_SCALE * 10 ** (decibels / 20), phases).to(torch.complex64)


def there_and_back(kind: storage.Storage, values: Tensor) -> Tensor:
    return kind.decode(kind.encode(values))


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest error in decibels."""
    return float((20 * (found / expected).log10()).abs().max())


@by_storage
@pytest.mark.parametrize("channels", [1, 2])
def test_records_are_frames_of_the_stated_type(kind: storage.Storage, channels: int) -> None:
    settings = Spectrogram(channels=channels, bins=300)
    records = kind.encode(spectra(-60, 0)[:channels])
    dtype = kind.dtype(settings)
    assert records.shape[0] == 40
    assert records.nbytes == 40 * dtype.itemsize
    # What is written as bytes is read under this type.
    read = np.frombuffer(records.tobytes(), dtype)
    assert torch.equal(kind.decode(read), kind.decode(records))
    per_bin = {"half": 2, "complex": 4, "decibel": 1}[kind.name]
    assert dtype.itemsize == channels * 300 * per_bin + (8 if kind.name == "decibel" else 0)


@by_storage
def test_a_frame_does_not_depend_on_its_neighbours(kind: storage.Storage) -> None:
    values = spectra(-60, 0)
    records = kind.encode(values)
    for place in (0, 17, 39):
        expected = kind.decode(records)[:, place : place + 1]
        torch.testing.assert_close(kind.decode(records[place : place + 1]), expected)
        torch.testing.assert_close(there_and_back(kind, values[:, place : place + 1]), expected)


def test_half_keeps_magnitudes_to_half_a_thousandth() -> None:
    values = spectra(-150, 30)
    found, expected = there_and_back(Half(), values), values.abs()
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    assert ((found - expected) / expected).abs().max() <= 5e-4


def test_complex_keeps_magnitudes_and_phases() -> None:
    values = spectra(-100, 27)  # a part of the number may be much smaller than its magnitude
    found = there_and_back(Complex(), values)
    assert found.dtype == torch.complex64
    assert ((found - values).abs() / values.abs()).max() <= 5e-4
    assert ((found.abs() - values.abs()) / values.abs()).abs().max() <= 5e-4
    assert (found / values).angle().abs().max() <= 5e-4


@pytest.mark.parametrize("top", [30, 0, -80])
def test_decibel_is_within_a_fifth_of_a_decibel_over_100_db(top: float) -> None:
    values = spectra(top - 99.9, top)
    assert apart(there_and_back(Decibel(), values), values.abs()) <= 0.2


def test_decibel_lifts_what_is_lower_to_100_db_below_the_maximum_of_its_frame() -> None:
    values = spectra(-180, 0)
    values[:, 20:] *= 0.01  # another maximum, hence another floor
    floor = values.abs().amax(dim=(0, 2), keepdim=True) * 10 ** (-100 / 20)
    assert apart(there_and_back(Decibel(), values), torch.maximum(values.abs(), floor)) <= 0.2


def test_decibel_has_the_range_of_spleeter() -> None:
    values = spectra(-150, 0, frames=1)  # Spleeter's range is a piece's, ours a frame's: the same for one frame
    # spleeter.audio.convertor: spectrogram_to_db_uint and back, in NumPy.
    decibels = 20 / np.log(10) * np.log(np.maximum(values.abs().numpy(), 1e-10))
    decibels = np.maximum(decibels, decibels.max() - 100.0)
    low, high = decibels.min(), decibels.max()
    levels = ((decibels - low) / (high - low + 1e-16) * 255.9999).astype(np.uint8)
    spleeters = torch.from_numpy(10 ** ((levels * ((high - low) / 255) + low) / 20))
    (record,) = Decibel().encode(values)
    assert record["low"] == pytest.approx(low, abs=1e-3)
    assert record["high"] == pytest.approx(high, abs=1e-3)
    # It rounds down where we round to the nearest: at most a level apart.
    assert np.abs(record["levels"].astype(int) - levels[:, 0]).max() <= 1
    assert apart(there_and_back(Decibel(), values), spleeters) <= 100 / 255 + 1e-3


@by_storage
def test_silence_stays_silence(kind: storage.Storage) -> None:
    values = spectra(-60, 0)
    values[:, 5:9] = 0
    found = there_and_back(kind, values)
    assert (found[:, 5:9] == 0).all()
    assert (found[:, :5].abs() > 0).all()
    assert (there_and_back(kind, torch.zeros_like(values)) == 0).all()


@by_storage
def test_a_frame_of_one_level_survives(kind: storage.Storage) -> None:
    values = torch.full((2, 3, 300), 7.0, dtype=torch.complex64)
    assert there_and_back(kind, values).abs().numpy() == pytest.approx(7.0, rel=1e-3)


@by_storage
def test_no_frames_are_no_frames(kind: storage.Storage) -> None:
    found = kind.decode(np.empty(0, kind.dtype(SETTINGS)))
    assert found.shape == (2, 0, 300)
    assert found.is_complex() == kind.has_phase


@pytest.mark.parametrize("kind", [Half(), Complex()], ids=lambda kind: kind.name)
@pytest.mark.parametrize("value", [7e4, math.inf, math.nan])
def test_what_does_not_fit_is_an_error(kind: storage.Storage, value: float) -> None:
    values = spectra(-60, 0)
    values[1, 3, 5] = value
    with pytest.raises(UserError, match=r"do not fit half precision.*peaks near 1"):
        kind.encode(values)


def test_storages_by_name() -> None:
    assert [storage.by_name(name) for name in ("half", "complex", "decibel")] == STORAGES
    with pytest.raises(UserError, match=r"data\.storage='float' is not one of half, complex, decibel"):
        storage.by_name("float")


@pytest.mark.parametrize("kind", [Half(), Decibel()], ids=lambda kind: kind.name)
@pytest.mark.parametrize("channels", [1, 2])
def test_records_unpack_to_what_they_decode_to(kind: Half | Decibel, channels: int) -> None:
    """Bit by bit, several crops at once, silence included."""
    settings = Spectrogram(channels=channels, bins=300)
    values = spectra(-140, 10)[:channels]
    values[:, 5:9] = 0
    crops = [kind.encode(values[:, begin : begin + 20]) for begin in (0, 3, 20)]
    crops.append(
        np.stack([kind.silence(settings)] * 20) if kind.name == "half" else np.full(20, kind.silence(settings))
    )
    packed = torch.stack(
        [torch.from_numpy(np.frombuffer(bytearray(crop.tobytes()), np.uint8).reshape(20, -1)) for crop in crops]
    )
    found = kind.unpack(packed, torch.full((4, channels, 20, 300), math.nan))
    assert torch.equal(found, torch.stack([kind.decode(crop) for crop in crops]))
    assert (found[3] == 0).all()
