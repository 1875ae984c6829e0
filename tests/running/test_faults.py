"""A loss or gradient that is not finite: nothing of it reaches the weights, and somebody is told where it came from."""

import csv
import json
import math
import subprocess
import sys
import textwrap
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from stemwise import model_file, optimizers
from stemwise.data import StemData
from stemwise.errors import UserError
from stemwise.examples import Origin
from stemwise.running import faults, replay
from stemwise.spectrogram import Spectrogram
from stemwise.training import SeparatorTraining
from tiny import TINY

RUN = Path("run")
KEYS = ["data.batch_size=2", "data.examples_per_song=3", "trainer.max_steps=5", "optimizer.lr=0.001", "watchdog=null"]
Poison = Callable[..., None]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Poison:
    """Puts `value` into one number of the batches of the first epoch that begin at these positions."""
    served = StemData.on_after_batch_transfer

    def poison(positions: Collection[int], value: float = math.nan, key: str = "stems") -> None:
        def spoilt(self: StemData, batch: dict[str, Any], loader: int) -> dict[str, Any]:
            made = served(self, batch, loader)
            first = made["origin"][0] if "origin" in made else None
            if first and first.epoch == 0 and first.position in positions:
                made[key].view(-1)[5] = value
            return made

        monkeypatch.setattr(StemData, "on_after_batch_transfer", spoilt)

    return poison


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """All that a step may change, before each batch and after it."""
    taken: list[list[Tensor]] = []

    def state(module: SeparatorTraining) -> list[Tensor]:
        tensors = [*module.state_dict().values()]
        for moments in module.trainer.optimizers[0].state.values():
            tensors += moments.values()
        for callback in module.trainer.callbacks:
            if (average := getattr(callback, "_average_model", None)) is not None:
                tensors += average.state_dict().values()
        return [tensor.detach().clone() for tensor in tensors]

    def before(self: SeparatorTraining, batch: Any, number: int) -> None:
        taken.append(state(self))

    def after(self: SeparatorTraining, outputs: Any, batch: Any, number: int) -> None:
        taken.append(state(self))

    monkeypatch.setattr(SeparatorTraining, "on_train_batch_start", before)
    monkeypatch.setattr(SeparatorTraining, "on_train_batch_end", after)
    return taken


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def logged(name: str, run: Path = RUN) -> dict[int, float]:
    with (run / "csv/version_0/metrics.csv").open() as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row[name]}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_stops_before_the_update_and_says_where_it_came_from(train, poison, workers):
    clean = train("hydra.run.dir=clean", *KEYS, f"data.num_workers={workers}", "trainer.max_steps=2")
    poison({4}, key="mixture")
    done = train(*KEYS, f"data.num_workers={workers}")
    assert clean.code == 0
    assert done.code == 2
    assert "Traceback" not in done.output
    bundle = RUN / "faults/step_3"
    assert {path.name for path in bundle.iterdir()} == {"batch.safetensors", "model.safetensors", "fault.json"}
    facts = json.loads((bundle / "fault.json").read_text())
    assert (facts["step"], facts["epoch"], facts["seed"], facts["loss"]) == (3, 0, 0, "nan")
    assert facts["config"]["data"]["batch_size"] == 2
    assert [origin["position"] for origin in facts["origins"]] == [4, 5]
    for expected in ("step 3: the loss is nan", "Lower optimizer.lr", "on_nonfinite=skip", *facts["crops"]):
        assert expected in done.output
    assert "Not all numbers of the batch itself are finite" in done.output
    assert f"python -m stemwise.running.replay {bundle.resolve()}" in done.output
    assert not load_file(bundle / "batch.safetensors")["mixture"].isfinite().all()
    before = model_file.load(Path("clean/checkpoints/last.ckpt")).state_dict()
    found = model_file.load(bundle / "model.safetensors").state_dict()
    torch.testing.assert_close(found, before, rtol=0, atol=0)  # statistics included


def test_the_songs_are_those_of_the_crops(train, poison, songs):
    """The crop is cut again from the song that the message names, from the frame that it names."""
    poison({4}, key="mixture")
    train(*KEYS, "data.num_workers=2")
    origin = Origin(**json.loads((RUN / "faults/step_3/fault.json").read_text())["origins"][1])
    stems = load_file(RUN / "faults/step_3/batch.safetensors")["stems"][1]
    settings = Spectrogram(sample_rate=8000, channels=1, n_fft=256, hop=64, bins=64, frames=16)
    data = StemData(["vocals", "drums", "bass", "other"], settings, songs, train=songs / "train.csv", cache=None)
    song = next(song for song in data.catalogue.songs("train") if song.name == origin.songs[0])
    again = torch.stack([data.source.crop(signal, origin.starts[0], 16) for signal in song.stems])
    torch.testing.assert_close(stems, again, rtol=1e-2, atol=1e-2)  # the cache is in half precision
    elsewhere = torch.stack([data.source.crop(signal, origin.starts[0] + 3, 16) for signal in song.stems])
    assert (stems - again).abs().max() < 0.1 * (stems - elsewhere).abs().max()


@pytest.mark.parametrize("keys", [[], ["trainer.precision=bf16-mixed"], ["normalization=stored"]], ids=str)
def test_a_replay_shows_it_again_and_a_mended_batch_does_not(train, poison, keys, monkeypatch, capfd):
    poison({4})
    assert train(*KEYS, *keys).code == 2
    bundle = RUN / "faults/step_3"
    found = replay.replay(bundle)
    assert not found.is_finite
    assert math.isnan(found.losses["vocals"])
    assert math.isfinite(found.losses["bass"])  # only one stem's number was spoilt
    assert all(name.startswith("unets.0.") for name in found.gradients)
    monkeypatch.setattr("sys.argv", ["replay", str(bundle)])
    assert replay.main() == 0
    assert "Seen again." in capfd.readouterr().out
    tensors = load_file(bundle / "batch.safetensors")
    tensors["stems"].view(-1)[5] = 0
    save_file(tensors, bundle / "batch.safetensors")
    assert replay.main() == 1
    assert "Not seen again" in capfd.readouterr().out


def test_a_replay_draws_the_dropout_of_the_run(train, poison, monkeypatch):
    """Its losses are those of the run, to the last digit."""
    losses = []

    def watched(self: SeparatorTraining, batch: dict[str, Any], number: int) -> Tensor:
        found = self.training_losses(self.separator, self.loss, batch["mixture"], batch["stems"])
        losses.append(found.tolist())
        return found.sum()

    monkeypatch.setattr(SeparatorTraining, "training_step", watched)
    poison({4})
    train(*KEYS, "logger=[]")
    found = [*replay.replay(RUN / "faults/step_3").losses.values()]
    assert math.isnan(found[0])
    assert found[1:] == losses[-1][1:]


def test_a_folder_that_is_no_fault_is_one_message(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("sys.argv", ["replay", str(tmp_path)])
    assert replay.main() == 2
    assert "not a fault that a run left" in capfd.readouterr().err


@pytest.mark.parametrize(("key", "value"), [("mixture", math.nan), ("stems", math.inf)])
@pytest.mark.parametrize(
    "keys",
    [
        ["ema=0.9", "optimizer=adamw", "optimizer.weight_decay=0.1"],
        ["ema=0.9", "optimizer=tf_adam", "trainer.gradient_clip_val=0.1"],
        ["ema=0.9", "trainer.accumulate_grad_batches=2", "trainer.precision=bf16-mixed"],
    ],
    ids=["adamw", "tf_adam", "accumulated"],
)
def test_a_skipped_step_leaves_everything_as_it_was(train, poison, states, keys, key, value):
    """A mixture with NaN ruins statistics and gradients; an infinite number in a stem only the loss."""
    poison({4}, value, key)
    done = train(*KEYS, *keys, "on_nonfinite=skip", "trainer.max_steps=4", "trainer.limit_val_batches=0")
    assert done.code == 0, done.output
    batches = 2 if "accumulate" in str(keys) else 1
    updates = [(states[2 * i], states[2 * (i + batches) - 1]) for i in range(0, len(states) // 2, batches)]
    assert [equal(*update) for update in updates] == [index == 2 // batches for index in range(4)]
    assert "Skipped, 1 of 10 that max_nonfinite allows" in done.output
    assert logged("train/nonfinite")[3] == 1.0
    assert not (RUN / "faults").exists()
    grown = logged("train/grad_norm")
    assert [math.isfinite(grown[step]) for step in range(4)] == [
        key == "stems" or step != 2 // batches for step in range(4)
    ]


THREE = ["data.batch_size=1", "data.examples_per_song=3", "trainer.accumulate_grad_batches=3", "watchdog=null"]


@pytest.mark.parametrize("bad", [[3, 4, 5], [4, 5], [5]])
def test_of_an_update_of_several_batches_the_first_bad_one_is_kept(train, poison, monkeypatch, bad):
    poison(bad, key="mixture")
    step, seen = SeparatorTraining.training_step, {}

    def watched(self: SeparatorTraining, batch: dict[str, Any], number: int) -> Tensor:
        seen[batch["origin"][0].position] = batch["mixture"].clone()
        return step(self, batch, number)

    monkeypatch.setattr(SeparatorTraining, "training_step", watched)
    done = train(*THREE)
    assert done.code == 2
    facts = json.loads((RUN / "faults/step_2/fault.json").read_text())
    assert [origin["position"] for origin in facts["origins"]] == [bad[0]]
    assert [origin["position"] for origin in facts["update"]] == [3, 4, 5]
    assert facts["loss"] == "nan"
    kept = load_file(RUN / "faults/step_2/batch.safetensors")
    torch.testing.assert_close(kept["mixture"], seen[bad[0]], rtol=0, atol=0, equal_nan=True)
    assert replay.replay(RUN / "faults/step_2").is_finite is False


def test_the_device_is_waited_for_once_in_an_update(train, monkeypatch):
    waits = []

    def counted(name: str) -> None:
        original = getattr(Tensor, name)

        def read(tensor: Tensor, *arguments: Any) -> Any:
            if sys._getframe(1).f_code.co_filename == faults.__file__:
                waits.append(name)
            return original(tensor, *arguments)

        monkeypatch.setattr(Tensor, name, read)

    for name in ("tolist", "item", "cpu", "numpy", "__bool__", "__float__", "__int__"):
        counted(name)
    done = train(*THREE, "trainer.max_steps=4")
    assert done.code == 0, done.output
    assert waits == ["tolist"] * 4


def test_more_than_max_nonfinite_stop_the_run(train, poison):
    poison({2, 6})
    done = train(*KEYS, "on_nonfinite=skip", "max_nonfinite=1")
    assert done.code == 2
    assert "step 2: the loss is nan" in done.output
    assert "step 4: the loss is nan" in done.output
    assert "max_nonfinite=1 were skipped before" in done.output
    assert [path.name for path in (RUN / "faults").iterdir()] == ["step_4"]


def test_a_run_that_skipped_resumes_as_if_it_was_not_stopped(train, poison):
    poison({4, 8})
    keys = [*KEYS, "on_nonfinite=skip", "max_nonfinite=2", "ema=0.9", "scheduler=cosine", "scheduler.T_max=6"]
    whole = train("hydra.run.dir=whole", *keys, "trainer.max_steps=6")
    train("hydra.run.dir=parts", *keys, "trainer.max_steps=3")
    resumed = train("hydra.run.dir=parts", *keys, "trainer.max_steps=6", "ckpt_path=last")
    assert (whole.code, resumed.code) == (0, 0), resumed.output
    assert "Skipped, 2 of 2" in resumed.output
    one, other = (torch.load(Path(name) / "checkpoints/last.ckpt", weights_only=True) for name in ("whole", "parts"))
    for part in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(one[part], other[part], rtol=0, atol=0)


def test_gradients_that_are_not_finite_stop_a_run_whose_loss_is(train, monkeypatch):
    step = SeparatorTraining.training_step

    def spoilt(self: SeparatorTraining, batch: dict[str, Any], number: int) -> Tensor:
        if self.global_step == 2:
            next(self.separator.unets[1].parameters()).register_hook(lambda gradient: gradient * math.inf)
        return step(self, batch, number)

    monkeypatch.setattr(SeparatorTraining, "training_step", spoilt)
    done = train(*KEYS)
    assert done.code == 2
    assert "but its gradients' norm" in done.output
    assert "All numbers of the batch itself are finite" in done.output
    gradients = json.loads((RUN / "faults/step_3/fault.json").read_text())["gradients"]
    assert gradients == [name for name in gradients if name.startswith("unets.1.")] != []


def test_a_learning_rate_that_is_too_high_is_one_message(train):
    done = train("optimizer.lr=1e30", "trainer.max_steps=20")
    assert done.code == 2
    assert "All numbers of the batch itself are finite" in done.output
    assert "Lower optimizer.lr" in done.output
    assert "Traceback" not in done.output


def test_a_bundle_that_cannot_be_written_hides_nothing(train, poison):
    RUN.mkdir()
    (RUN / "faults").touch()
    poison({4})
    done = train(*KEYS)
    assert done.code == 2
    assert "step 3: the loss is nan" in done.output
    assert f"Replay: none, {RUN.resolve()}/faults/step_3" in done.output
    assert "Traceback" not in done.output


def test_the_norm_is_that_of_the_whole_update_before_it_is_clipped(train, monkeypatch):
    norms: dict[int, float] = {}
    clip = SeparatorTraining.configure_gradient_clipping

    def watched(self: SeparatorTraining, *arguments: Any, **options: Any) -> None:
        gradients = torch.cat([weight.grad.flatten() for weight in self.parameters()])
        norms[self.global_step] = float(gradients.norm())
        clip(self, *arguments, **options)
        gradients = torch.cat([weight.grad.flatten() for weight in self.parameters()])
        assert gradients.norm() == pytest.approx(1e-4, rel=1e-2)

    monkeypatch.setattr(SeparatorTraining, "configure_gradient_clipping", watched)
    keys = ["trainer.gradient_clip_val=1e-4", "trainer.accumulate_grad_batches=2", "trainer.log_every_n_steps=2"]
    done = train(*KEYS, *keys, "trainer.max_steps=6")
    assert done.code == 0, done.output
    found = logged("train/grad_norm")
    assert list(found) == [1, 3, 5]
    assert found == pytest.approx({step: norms[step] for step in found}, rel=1e-5)


@pytest.mark.parametrize("keys", [["on_nonfinite=warn"], ["max_nonfinite=-1"], ["max_nonfinite=many"], ["watchdog=0"]])
def test_values_that_cannot_be_are_refused(train, keys):
    done = train(*keys)
    assert done.code == 2
    assert keys[0] in done.output
    assert "Traceback" not in done.output


# Float16, on Lightning's own trainer: it has no float16 for CPUs, PyTorch has.


class Batches(lightning.LightningDataModule):
    """Random batches; the one of `bad` has a number that is not finite."""

    def __init__(self, count: int, bad: int | None = None) -> None:
        super().__init__()
        self.count, self.bad = count, bad

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        torch.manual_seed(0)
        made = []
        for number in range(self.count):
            mixture = torch.rand(2, 1, 16, 64)
            stems = torch.stack([0.7 * mixture, 0.3 * mixture], dim=1)
            stems[0, 0, 0, 0, 0] = math.nan if number == self.bad else 1.0
            origin = [Origin(0, 2 * number + row, ("a song",), (7,)) for row in range(2)]
            made.append({"mixture": mixture, "stems": stems, "origin": origin})
        return DataLoader(made, batch_size=None)  # type: ignore[arg-type]


def half_precision(folder: Path) -> lightning.Trainer:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    return lightning.Trainer(
        accelerator="cpu",
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
        max_steps=4,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[faults.NonFinite(folder, {})],
    )


@pytest.fixture
def module(small_separator):
    schedule = partial(torch.optim.lr_scheduler.ConstantLR, factor=1.0, total_iters=0)
    return SeparatorTraining(small_separator.train(), partial(optimizers.adam, lr=1e-3), schedule)


def test_in_float16_gradients_that_overflow_are_the_scalers_affair(module, tmp_path):
    weight = next(module.separator.parameters())
    calls = []

    def overflows(gradient: Tensor) -> Tensor:
        calls.append(weight.detach().clone())
        return gradient * math.inf if len(calls) == 2 else gradient

    weight.register_hook(overflows)
    trainer = half_precision(tmp_path)
    trainer.fit(module, Batches(4))
    assert trainer.global_step == 4
    assert not torch.equal(calls[0], calls[1])
    assert torch.equal(calls[1], calls[2])  # the scaler left that update out
    assert trainer.precision_plugin.scaler.get_scale() == 2.0**9
    assert not list(tmp_path.iterdir())


def test_in_float16_the_norm_is_that_of_gradients_without_the_scale(module, tmp_path):
    half_precision(tmp_path).fit(module, Batches(1))
    assert 0.01 < float(module.numbers["train/grad_norm"]) < 10  # the scale is 1024


def test_in_float16_a_loss_that_is_not_finite_stops(module, tmp_path):
    with pytest.raises(UserError, match="step 3: the loss is nan"):
        half_precision(tmp_path).fit(module, Batches(4, bad=2))
    assert (tmp_path / "faults/step_3/fault.json").exists()


# Several ranks.

TWO_RANKS = """
    import math, sys
    from stemwise.data import StemData

    served = StemData.on_after_batch_transfer

    def spoilt(self, batch, loader):
        made = served(self, batch, loader)
        if "origin" in made and made["origin"][0][:2] in POSITIONS:  # which only one rank has
            made["mixture" if math.isnan(VALUE) else "stems"].view(-1)[5] = VALUE
        return made

    StemData.on_after_batch_transfer = spoilt

    import train

    sys.exit(train.main())
"""


def two_ranks(folder: Path, songs: Path, value: str, positions: str, *keys: str) -> subprocess.CompletedProcess[str]:
    script = folder / "two_ranks.py"
    script.write_text(textwrap.dedent(TWO_RANKS).replace("POSITIONS", positions).replace("VALUE", value))
    where = [
        "data=csv",
        f"data.root={songs}",
        "hydra.run.dir=run",
        *(f"data.{s}={songs}/train.csv" for s in ("train", "valid")),
    ]
    ranks = ["trainer.devices=2", "trainer.strategy=ddp", f"data.cache={folder}/cache"]
    command = [sys.executable, str(script), *where, *TINY, *KEYS, *ranks, *keys]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["math.nan", "math.inf"])
def test_all_ranks_stop_for_the_fault_of_one(songs, tmp_path, value):
    """Places 4 to 7 of the first epoch are the second step's, the odd ones rank 1's."""
    done = two_ranks(tmp_path, songs, value, "[(0, 5)]")
    printed = done.stdout + done.stderr
    assert done.returncode == 2, printed
    assert f"rank 1, step 2: the loss is {value.removeprefix('math.')}" in printed
    assert "rank 0, step 2" not in printed
    assert "rank 1: stopped with all ranks" in printed
    assert "position 5 of epoch 0" in printed
    assert "Traceback" not in printed
    assert [path.name for path in (tmp_path / "run/faults").iterdir()] == ["step_2_rank_1"]


@pytest.mark.slow
def test_all_ranks_skip_the_same_update(songs, tmp_path):
    done = two_ranks(tmp_path, songs, "math.inf", "[(0, 5)]", "on_nonfinite=skip", "trainer.max_steps=4")
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert printed.count("Skipped, 1 of 10") == 1
    model = model_file.load(tmp_path / "run/model.safetensors")
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
