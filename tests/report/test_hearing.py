"""Songs of an evaluation to hear: what is played is what was scored."""

import contextlib
import weakref
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import synthetic
from stemwise import resampling
from stemwise.evaluation.results import Scored
from stemwise.masks import MaskRule
from stemwise.report import hearing, listening
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


def record(folder: Path, song: Scored, models: dict[str, Separator]) -> str:
    return hearing.record([], folder / "report.html", {song.name: song}, STEMS, lambda: models)


def test_mixture_truths_and_estimates_are_those_that_are_scored(song, recorded, small_separator, tmp_path):
    assert record(tmp_path, song, {"": small_separator}) == ""
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
    assert record(tmp_path, song, models) == ""
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
    why = record(tmp_path, gone, {"": small_separator})
    assert why.startswith("There are no songs to listen to: ")
    assert "nowhere" in why
    assert not list(tmp_path.rglob("*.js"))


def test_songs_before_the_one_that_is_gone_are_heard(song, small_separator, tmp_path):
    players, path = [], tmp_path / "report.html"
    songs = {"A song": song, "gone": synthetic.scored("gone", {}, STEMS)}
    why = hearing.record(players, path, songs, STEMS, lambda: {"": small_separator})
    assert [player.title for player in players] == ["A song"]
    assert why.startswith("Not all songs are here to listen to: ")
    [section] = listening.sections(players, why)
    assert "Not all songs are here" in section.body
    assert 'aria-label="A song"' in section.body
    assert section.scripts


def test_no_song_needs_no_model(tmp_path):
    assert hearing.record([], tmp_path / "report.html", {}, STEMS, lambda: 1 / 0) == ""


def test_whoever_interrupts_it_leaves_no_files_and_the_page_before_has_its_own(song, small_separator, tmp_path):
    path = tmp_path / "report.html"
    models, before = {"": small_separator}, []
    hearing.record(before, path, {"A song": song}, STEMS, lambda: models)
    kept = sorted(tmp_path.rglob("*.js"))
    assert kept

    def interrupted():
        hearing.record(players, path, {"A song": song}, STEMS, lambda: models)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), listening.publishing(path) as players:
        interrupted()
    assert sorted(tmp_path.rglob("*.js")) == kept
    with listening.publishing(path) as players:
        hearing.record(players, path, {"A song": song}, STEMS, lambda: models)
    assert [folder.name for folder in listening.folder(path).iterdir()] == [players[0].folder.name]
    assert not before[0].folder.exists()


def test_a_song_is_never_whole_in_memory(small_separator, monkeypatch, tmp_path):
    """Ten minutes pass in blocks: nothing that a model or a file yields is held longer."""
    settings, alive, most = small_separator.spectrogram, weakref.WeakSet(), 0

    def blocks(signal, at):
        nonlocal most
        for _ in range(600):
            block = torch.zeros(at.channels, at.sample_rate)
            alive.add(block)
            most = max(most, len(alive))
            yield block

    monkeypatch.setattr(hearing.signals, "stream", blocks)
    monkeypatch.setattr(hearing, "BLOCK", 2 * settings.sample_rate)
    monkeypatch.setattr(hearing, "Recording", Nothing)
    long = synthetic.scored("long", {}, STEMS)
    assert record(tmp_path, long, {"": small_separator}) == ""
    assert most < 60


class Nothing(contextlib.nullcontext):
    def __init__(self, path, title, variants, sample_rate, frames):
        super().__init__(self)
        self.left = frames

    def write(self, blocks):
        assert len(blocks) == 1 + 2 * len(STEMS)
        self.left -= blocks.shape[-1]

    def finish(self):
        assert self.left == 0
