"""Compares one step of training with Spleeter's own: `python benchmarks/training_step.py`.

Both start from the same random weights, see the same batch of magnitudes and have dropout off. Compared are the loss,
the gradients, the weights after one step of Adam, and the statistics of the normalisations.

Spleeter is asked twice. As it trains: nobody tells Keras that this is training, so its normalisations use the
statistics of the checkpoint and leave them alone (and dropout would do nothing). And with Keras's learning phase on:
statistics of the batch, and moving statistics that follow.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environment
import golden
import numpy as np
import report
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from stemwise import losses, spectrogram, training
from stemwise.datasets import demo
from stemwise.separator import Separator
from stemwise.spleeter import model as spleeter_model

CONF = Path(__file__).resolve().parents[1] / "conf"
BATCH = 4
SECONDS = 4.0
STEPS = 3  # that Spleeter trains on from a checkpoint of ours
RATE = golden.CONFIG["learning_rate"]
# TensorFlow's Adam divides its epsilon by √(1 - β₂^t), PyTorch's does not. This is its epsilon at the first step.
EPSILON = 1e-8 / math.sqrt(1 - 0.999)

SHORT = {"T": 128}  # frames, so that it takes minutes
CASES = (
    golden.Case("2stems", "LeakyReLU and ReLU", golden.SMALL, SHORT),
    golden.Case(
        "4stems",
        "softmax, ELU",
        golden.SMALL | golden.ELU,
        SHORT | {"instrument_list": golden.FOUR},
        "unet.softmax_unet",
    ),
)
PHASES = {"as Spleeter trains": "stored", "learning phase on": "batch"}

INTRODUCTION = """# One training step, compared with Spleeter

Relative differences of the loss, of all gradients together, and of the moving statistics (the largest; in brackets how
far they moved in the step). As Spleeter trains: its normalisations use the stored statistics and leave them alone, and
dropout does nothing (`normalization=stored model.unet.dropout=0`); with Keras's learning phase on they follow the batch
(`normalization=batch`). Dropout is off in both.

Differences of weights are parts of one step of Adam: 1 is the learning rate. The first step of Adam is about
rate · sign(gradient), so a gradient within float32 noise of zero, where the sign is chance, makes a difference of up
to 2: the distance from our computation in float64 says how much noise there is. TensorFlow divides Adam's epsilon by
√(1 - 0.999^t) at step t, so that it is 3e-7 at the first step and PyTorch's 1e-8 after some thousand: `tf_adam` does so
too. "From their gradients" is TensorFlow's formula on Spleeter's own gradients: what is left is the rounding of
weights."""
RESUMED = """## Spleeter trains on from our checkpoint

The loss of the batch by our network (statistics as stored), by Spleeter before and after it went on training from
what `stemwise convert tensorflow` writes for training, and its count of steps."""
RESUMED_COLUMNS = ("model", "ours", "Spleeter, before", "Spleeter, after", "step")

Named = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """What one step made of a model: its loss, gradients and state, by our names of the weights."""

    loss: float
    gradients: Named
    after: Named


def main() -> int:
    """Runs the comparison and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    environment.add_option(parser)
    folder = parser.parse_args().environments
    programs = environment.prepare("spleeter", folder)
    with tempfile.TemporaryDirectory() as work:
        steps = [row for case in CASES for row in compare(programs, case, Path(work) / case.name)]
        resumed = [goes_on(programs, case, Path(work) / case.name) for case in CASES]
    _report(steps, resumed, {"spleeter": environment.versions("spleeter", folder)})
    return 0


def compare(programs: Path, case: golden.Case, work: Path) -> list[dict[str, Any]]:
    """One row of numbers for each of `PHASES`; leaves `model` and `batch.npz` in `work`."""
    model, batch = work / "model", work / "batch.npz"
    work.mkdir()
    song = work / "song.npy"
    np.save(song, sum(demo.compose(golden.SEED, seconds=SECONDS).values()).T.astype(np.float32))
    environment.run(programs, [{"task": "make", "folder": model, "config": case.config, "waveform": song, "seed": 1}])
    magnitudes = _magnitudes(spleeter_model.read(model))
    np.savez(batch, **{f"{name}_spectrogram": value.permute(0, 2, 3, 1).numpy() for name, value in magnitudes.items()})
    jobs = [
        {"task": "step", "folder": model, "batch": batch, "training": phase == "batch", "output": work / name}
        for name, phase in PHASES.items()
    ]
    environment.run(programs, jobs)
    return [
        {"case": case.name, "what": case.what, "phase": name, **_numbers(model, work / name, magnitudes, phase)}
        for name, phase in PHASES.items()
    ]


def goes_on(programs: Path, case: golden.Case, work: Path) -> dict[str, Any]:
    """Whether Spleeter trains on from a checkpoint that we wrote, and the losses of the batch that it reports."""
    ours = work / "ours"
    model = spleeter_model.read(work / "model")
    spleeter_model.write_for_training(model, ours)
    output = work / "resumed.json"
    job = {"task": "train", "folder": ours, "batch": work / "batch.npz", "steps": STEPS, "output": output}
    environment.run(programs, [job])
    mine = _our_step(model, _magnitudes(model), "stored")
    return {"case": case.name, "ours": mine.loss, **json.loads(output.read_text())}


def _magnitudes(model: Separator) -> Named:
    """The mixture's (`mix`) and each stem's magnitudes (B, C, T, F) of songs that stemwise composes."""
    songs = [demo.compose(seed, seconds=SECONDS) for seed in range(BATCH)]
    found: dict[str, list[Tensor]] = {}
    for song in songs:
        rest = sum(value for name, value in song.items() if name not in model.stems)
        parts = {"mix": sum(song.values())} | {stem: song.get(stem, rest) for stem in model.stems}
        for name, waveform in parts.items():
            spectrum = spectrogram.stft(torch.from_numpy(waveform), model.spectrogram)
            crop = spectrum[:, 4 : 4 + model.spectrogram.frames, : model.spectrogram.bins]
            found.setdefault(name, []).append(crop.abs())
    return {name: torch.stack(crops) for name, crops in found.items()}


def _numbers(model: Path, output: Path, magnitudes: Named, normalization: str) -> dict[str, Any]:
    """The differences between Spleeter's step and ours; those of weights in steps of Adam, which are the rate long."""
    before = spleeter_model.read(model).state_dict()
    theirs = _their_step(model, output)
    ours = _our_step(spleeter_model.read(model), magnitudes, normalization)
    like = _our_step(spleeter_model.read(model), magnitudes, normalization, "tf_adam")
    doubled = {name: value.double() for name, value in magnitudes.items()}
    exact = _our_step(spleeter_model.read(model).double(), doubled, normalization)
    return {
        "loss": {
            "theirs": theirs.loss,
            "ours": ours.loss,
            "difference": abs(ours.loss / theirs.loss - 1),
            "ours from float64": abs(ours.loss / exact.loss - 1),
            "theirs from float64": abs(theirs.loss / exact.loss - 1),
        },
        "gradients": {
            "difference": _relative(ours.gradients, theirs.gradients),
            "ours from float64": _relative(ours.gradients, exact.gradients),
            "theirs from float64": _relative(theirs.gradients, exact.gradients),
        },
        "weights": {
            "ours": _steps(ours.after, theirs.after, ours.gradients),
            "ours, tf_adam": _steps(like.after, theirs.after, ours.gradients),
            "their gradients, TensorFlow's formula": _steps(_tensorflows(before, theirs), theirs.after, ours.gradients),
        },
        "statistics": {
            "difference": _furthest(ours.after, theirs.after),
            "moved": _furthest(before, theirs.after),
        },
    }


def _our_step(model: Separator, magnitudes: Named, normalization: str, optimizer: str = "adam") -> Step:
    """One step of our own training, dropout off, with an optimiser of `conf`."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    adam = instantiate(OmegaConf.load(CONF / "optimizer" / f"{optimizer}.yaml"))
    constant = instantiate(OmegaConf.load(CONF / "scheduler" / "constant.yaml"))
    made = training.SeparatorTraining(model.train(), adam, constant, normalization=normalization)
    configured = made.configure_optimizers()
    stems = torch.stack([magnitudes[stem] for stem in model.stems], dim=1)
    loss = losses.l1(model(magnitudes["mix"]), stems).sum()
    loss.backward()
    gradients = {name: value.grad for name, value in model.named_parameters()}
    configured["optimizer"].step()
    return Step(loss.item(), gradients, model.state_dict())


def _their_step(model: Path, output: Path) -> Step:
    config = model / "config.json"
    gradients = spleeter_model.read(output / "gradients", config)
    after = spleeter_model.read(output / "after", config).state_dict()
    return Step(json.loads((output / "loss.json").read_text()), dict(gradients.named_parameters()), after)


def _tensorflows(before: Named, step: Step) -> Named:
    """The weights after TensorFlow's first step of Adam, by its formula, from a step's gradients."""
    return {
        name: before[name] - RATE * gradient / (gradient.abs() + EPSILON) for name, gradient in step.gradients.items()
    }


def _relative(ours: Named, theirs: Named) -> float:
    """‖ours - theirs‖ / ‖theirs‖ over all weights together."""
    difference = sum((ours[name] - theirs[name]).double().square().sum().item() for name in ours)
    return math.sqrt(difference / sum(theirs[name].double().square().sum().item() for name in ours))


def _steps(ours: Named, theirs: Named, weights: Iterable[str]) -> dict[str, float]:
    """Differences of weights as parts of a step: the largest, the root mean square, and how many are above 1 %."""
    found = torch.cat([(ours[name] - theirs[name]).double().abs().flatten() / RATE for name in weights])
    return {
        "largest": found.max().item(),
        "rms": found.square().mean().sqrt().item(),
        "above 1 %": (found > 0.01).double().mean().item(),
    }


def _furthest(ours: Named, theirs: Named) -> float:
    """The largest relative difference of a moving variance, or of a moving mean as part of its deviation."""
    largest = 0.0
    for name in (name for name in theirs if name.endswith("running_var")):
        mean = name.replace("running_var", "running_mean")
        variance = (ours[name] / theirs[name] - 1).abs().max().item()
        shift = ((ours[mean] - theirs[mean]).abs() / theirs[name].sqrt()).max().item()
        largest = max(largest, variance, shift)
    return largest


def _report(
    steps: Sequence[dict[str, Any]], resumed: Sequence[dict[str, Any]], versions: Mapping[str, Mapping[str, str]]
) -> None:
    columns = (
        "model",
        "Spleeter's mode",
        "loss",
        "from float64: ours, theirs",
        "gradients",
        "from float64: ours, theirs",
        "weights with `adam`: largest, rms, above 1 %",
        "with `tf_adam`",
        "from their gradients",
        "statistics (moved by)",
    )
    text = [
        INTRODUCTION,
        report.table(columns, map(_row, steps)),
        RESUMED,
        report.table(RESUMED_COLUMNS, map(_resumed, resumed)),
    ]
    report.write("training_step", "\n\n".join(text), {"steps": list(steps), "resumed": list(resumed)}, versions)


def _row(step: dict[str, Any]) -> tuple[str, ...]:
    statistics = step["statistics"]
    return (
        f"{step['case']} ({step['what']})",
        step["phase"],
        *(cell for name in ("loss", "gradients") for cell in _differences(step[name])),
        *(f"{w['largest']:.2g}, {w['rms']:.1g}, {w['above 1 %']:.2%}" for w in step["weights"].values()),
        f"{statistics['difference']:.0e} ({statistics['moved']:.0e})",
    )


def _differences(found: dict[str, float]) -> tuple[str, str]:
    return f"{found['difference']:.0e}", f"{found['ours from float64']:.0e}, {found['theirs from float64']:.0e}"


def _resumed(found: dict[str, Any]) -> tuple[str, ...]:
    before, after = found["before"], found["after"]
    return (found["case"], f"{found['ours']:.6f}", f"{before['loss']:.6f}", f"{after['loss']:.6f}", str(after["step"]))


if __name__ == "__main__":
    sys.exit(main())
