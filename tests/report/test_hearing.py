"""Songs of an evaluation to hear: what is played is what was scored."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import synthetic
from stemwise import resampling
from stemwise.errors import UserError
from stemwise.evaluation.results import Scored
from stemwise.masks import MaskRule
from stemwise.report import hearing
from stemwise.report.listening import Variant
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram
from stemwise.unet import UNetSettings

STEMS = ("vocals", "accompaniment")


@pytest.fixture
def song(tmp_path: Path) -> Scored:
    """Half a second at 8 kHz; the accompaniment is the sum of two files."""
    waves = 0.1 * np.random.default_rng(0).standard_normal((3, 4000))
    paths = [str(tmp_path / f"{name}, [1].wav") for name in ("vocals", "drums", "bass")]
    for path, wave in zip(paths, waves, strict=True):
        soundfile.write(path, wave, 8000, subtype="FLOAT")
    files = {"vocals": (paths[0],), "accompaniment": tuple(paths[1:])}
    return Scored("A song", 0.5, {}, {}, file="A song.json", mixture=tuple(paths), stems=files)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[Variant, torch.Tensor]:
    """What would be written, by its variant."""
    heard: dict[Variant, torch.Tensor] = {}

    class Recording:
        def __init__(self, path, title, variants, sample_rate, frames):
            self.variants, self.frames, self.blocks = variants, frames, []

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def write(self, blocks):
            self.blocks.append(blocks.clone())

        def finish(self):
            whole = torch.cat(self.blocks, dim=-1)
            assert whole.shape[-1] == self.frames
            heard.update(zip(self.variants, whole, strict=True))

    monkeypatch.setattr(hearing, "Recording", Recording)
    monkeypatch.setattr(hearing, "BLOCK", 1500)
    return heard


def read(path: str) -> torch.Tensor:
    return torch.from_numpy(soundfile.read(path, dtype="float32", always_2d=True)[0].T)


def test_mixture_truths_and_estimates_are_those_that_are_scored(song, recorded, small_separator, tmp_path):
    hearing.players(tmp_path / "report.html", {"A song": song}, STEMS, {"": small_separator})
    mixture = sum(read(path) for path in song.mixture)
    expected = {Variant("mixture"): mixture}
    expected |= {Variant("truth", stem): sum(read(path) for path in song.stems[stem]) for stem in STEMS}
    estimates = small_separator.separate(mixture)
    expected |= {Variant("estimate", stem): estimate for stem, estimate in zip(STEMS, estimates, strict=True)}
    assert list(recorded) == list(expected)
    for variant, waveform in expected.items():
        torch.testing.assert_close(recorded[variant], waveform, atol=1e-6, rtol=0)


def test_models_of_other_rates_and_channels_play_together(song, recorded, small_separator, tmp_path):
    torch.manual_seed(1)
    settings = Spectrogram(sample_rate=16000, channels=2, n_fft=256, hop=64, bins=64, frames=16)
    stems = ["piano", "accompaniment", "vocals"]  # another order, and one that is not compared
    wide = Separator(stems, settings, UNetSettings(filters=(4, 6, 8)), MaskRule()).eval()
    models = {"A: narrow": small_separator, "B: wide": wide}
    hearing.players(tmp_path / "report.html", {"A song": song}, STEMS, models)
    assert {tuple(waveform.shape) for waveform in recorded.values()} == {(2, 8000)}
    order = [*dict.fromkeys((variant.kind, variant.system) for variant in recorded)]
    assert order == [*(("estimate", name) for name in models), ("mixture", ""), ("truth", "")]
    systems = {(variant.system, variant.stem) for variant in recorded if variant.kind == "estimate"}
    assert systems == {(name, stem) for name in models for stem in STEMS}
    mixture = sum(read(path) for path in song.mixture)
    narrow = small_separator.separate(mixture)[0]
    raised = torch.cat(list(resampling.resample(iter([narrow]), 8000, 16000)), -1)
    torch.testing.assert_close(recorded[Variant("estimate", "vocals", "A: narrow")], raised.expand(2, -1))
    vocals = wide.separate(recorded[Variant("mixture")])[2]
    torch.testing.assert_close(recorded[Variant("estimate", "vocals", "B: wide")], vocals, atol=1e-5, rtol=0)


def test_a_song_that_is_gone_is_said(small_separator, tmp_path):
    gone = synthetic.scored("gone", {}, STEMS)
    with pytest.raises(UserError, match="nowhere"):
        hearing.players(tmp_path / "report.html", {"gone": gone}, STEMS, {"": small_separator})
    assert not list(tmp_path.rglob("*.js"))
