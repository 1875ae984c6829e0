"""Whether a training still learns: of the demo set, in half a minute, as well as it did, and says so itself.

What it learned is judged from outside: the model file separates the songs' mixtures, and the result is compared with
the files of the stems, by their names. A training that is broken in a way that nothing else notices must fail here;
four such ways are tried.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stemwise import audio, examples, metrics, model_file, training
from stemwise.datasets import demo
from stemwise.running import callbacks
from stemwise.separator import Separator

SONGS = {"train": 12, "valid": 2, "test": 0}
# dB: mean SDR of four stems, of two songs. Seeds 0 to 3 reach 3.3, 2.3, 4.0 and 3.8, the breaks below at most 0.1.
FLOOR = 1.5
# In the last steps the learning rate is thirty times as high. Averaged weights take no harm, the others do.
KEYS = [
    *("data=demo", "data.dataset.seconds=8", "augment=remix", "data.batch_size=4", "data.examples_per_song=8"),
    *(f"data.dataset.songs.{split}={count}" for split, count in SONGS.items()),
    *("spectrogram.sample_rate=11025", "spectrogram.channels=1", "spectrogram.n_fft=1024", "spectrogram.hop=256"),
    *("spectrogram.bins=512", "spectrogram.frames=32", "model.unet.filters=[8,16,32,32]", "optimizer.lr=3e-3"),
    *("scheduler._target_=torch.optim.lr_scheduler.StepLR", "~scheduler.factor", "~scheduler.total_iters"),
    *("+scheduler.step_size=297", "+scheduler.gamma=30", "ema=0.98", "trainer.max_steps=300"),
    *("trainer.val_check_interval=300", "trainer.accelerator=cpu", "data.num_workers=0", "logger=[csv]"),
    *("media.every=null", "hydra.run.dir=run", "seed=0"),
]


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo set's songs, and room for their cache, for all tests of this file."""
    root = tmp_path_factory.mktemp("quality")
    demo.find(root / "songs", songs=SONGS, seconds=8.0, seed=0)
    return root


@pytest.fixture
def learn(stemwise, songs: Path) -> Callable[..., tuple[float, float]]:
    def run() -> tuple[float, float]:
        """What the run says its model reaches, and what it does."""
        found = stemwise("train", *KEYS, f"data.root={songs}/songs", f"data.cache={songs}/cache")
        assert found.code == 0, found.output
        model, facts = model_file.read(Path("run") / callbacks.MODEL_FILE)
        judged = torch.stack([judge(model, folder) for folder in sorted((songs / "songs/valid").iterdir())])
        return facts["sdr"]["mean"], float(judged.mean())

    return run


def judge(model: Separator, folder: Path) -> Tensor:
    """SDR (S,) of a model's stems of a song, in dB over the whole of it."""
    mixture, *stems = (
        audio.read(folder / f"{name}.flac", sample_rate=11025, channels=1) for name in ("mixture", *model.stems)
    )
    return metrics.usdr(torch.stack(stems), model.separate(mixture))


def test_a_training_learns_as_well_as_it_did(learn):
    said, reached = learn()
    assert reached > FLOOR
    assert said == pytest.approx(reached, abs=0.02)


def swap_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocals' network is shown drums, and the drums' vocals."""
    made = examples.RandomCrops._row
    swapped = {0: 1, 1: 0}
    monkeypatch.setattr(examples.RandomCrops, "_row", lambda self, row, *rest: made(self, swapped.get(row, row), *rest))


def shift_stems(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was mixed anew is handed on as the next stem's."""
    made = examples.RandomCrops._mixed

    def shifted(self: examples.RandomCrops, *arguments: object) -> tuple[Tensor, dict[int, int]]:
        example, starts = made(self, *arguments)
        return torch.cat([example[:1], example[1:].roll(1, dims=0)]), starts

    monkeypatch.setattr(examples.RandomCrops, "_mixed", shifted)


def forget_average(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are averaged, and the last ones are validated and written."""
    monkeypatch.setattr(callbacks.EMA, "on_validation_epoch_start", lambda *arguments: None)
    monkeypatch.setattr(callbacks.EMA, "on_validation_end", lambda *arguments: None)


def validate_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout, and normalised by what is validated."""
    step = training.SeparatorTraining.validation_step

    @functools.wraps(step)
    def training_mode(self: training.SeparatorTraining, *arguments: object) -> object:
        self.train()
        try:
            return step(self, *arguments)
        finally:
            self.eval()

    monkeypatch.setattr(training.SeparatorTraining, "validation_step", training_mode)


@pytest.mark.parametrize("broken", [swap_labels, shift_stems, forget_average], ids=lambda broken: broken.__name__)
def test_a_training_that_is_broken_shows(broken, learn, monkeypatch):
    broken(monkeypatch)
    assert learn()[1] < FLOOR


def test_a_validation_in_training_mode_shows(learn, monkeypatch):
    validate_in_training(monkeypatch)
    said, reached = learn()
    assert abs(said - reached) > 0.05
