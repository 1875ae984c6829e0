"""A batch that gave a number that is not finite, in a folder, and again: `python -m stemwise.running.replay FOLDER`.

The folder has three files, none of them a pickle:

    batch.safetensors   mixture (B, C, T, F) and stems (B, S, C, T, F) as the network saw them, and the state of the
                        generators that dropout draws from
    model.safetensors   the weights before the update, a model file; statistics as before the batch
    fault.json          step, epoch, songs, precision, seed, versions, the resolved config

The replay computes the loss and the gradients of that batch again, on the device and in the precision of the run.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stemwise import losses, model_file, training
from stemwise.errors import UserError
from stemwise.separator import Separator
from stemwise.training import SeparatorTraining

SPLEETERS = {"_target_": "stemwise.losses.L1"}  # where a run had no choice yet
MODEL, BATCH, FACTS = "model.safetensors", "batch.safetensors", "fault.json"
# What Lightning calls them; `transformer-engine` and the like cannot be replayed.
MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
WHOLE = {"32-true": torch.float32, "64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}


@dataclass(frozen=True)
class Seen:
    """A batch as the network saw it, and the state of the generators before it did."""

    batch: Mapping[str, Any]
    random: Tensor
    cuda_random: Tensor | None


def seen(batch: Mapping[str, Any], device: torch.device) -> Seen:
    """`batch`, and the generators' state of this moment."""
    on_gpu = device.type == "cuda"
    return Seen(batch, torch.get_rng_state(), torch.cuda.get_rng_state(device) if on_gpu else None)


def write(folder: Path, separator: Separator, seen: Seen, facts: Mapping[str, Any]) -> None:
    """Writes the bundle; `fault.json` comes last, so that a folder that has it is whole. Raises `UserError`."""
    tensors = {"mixture": seen.batch["mixture"], "stems": seen.batch["stems"], "random": seen.random}
    if seen.cuda_random is not None:
        tensors["cuda_random"] = seen.cuda_random
    model_file.save(separator, folder / MODEL, {"step": facts["step"], "stemwise": facts["versions"]["stemwise"]})
    try:
        # Copies: mixture and stems may lie in one block of memory, which safetensors does not take.
        save_file({name: value.detach().cpu().clone() for name, value in tensors.items()}, folder / BATCH)
        (folder / FACTS).write_text(json.dumps(facts, indent=1, default=str) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be written ({error}). Make room.") from None


@dataclass(frozen=True)
class Found:
    """What a replay computed: the loss of each stem, and the weights whose gradient is not finite."""

    losses: dict[str, float]
    gradients: list[str]
    weights: int

    @property
    def is_finite(self) -> bool:
        """Whether nothing went wrong this time."""
        return bool(torch.tensor([*self.losses.values()]).isfinite().all()) and not self.gradients


def replay(folder: Path, device: str | None = None) -> Found:
    """Computes loss and gradients of a bundle's batch again; `device` is by default that of the run, if it is there."""
    facts, tensors = read(folder)
    on = torch.device(device or (facts["device"] if torch.cuda.is_available() else "cpu"))
    separator, _ = model_file.read(folder / MODEL)
    module = SeparatorTraining(separator, torch.optim.Adam, _no_schedule, {}, facts["normalization"])
    module.train().to(on, WHOLE.get(facts["precision"]))
    torch.set_float32_matmul_precision(facts["config"].get("matmul_precision", "highest"))
    with torch.random.fork_rng(devices=[on] if on.type == "cuda" else []), _precision(facts["precision"], on):
        torch.set_rng_state(tensors["random"])
        if on.type == "cuda" and "cuda_random" in tensors:
            torch.cuda.set_rng_state(tensors["cuda_random"], on)
        loss = losses.from_config(facts["config"].get("loss", SPLEETERS))
        found = training.losses(module.separator, loss, tensors["mixture"].to(on), tensors["stems"].to(on))
    found.sum().backward()
    return Found(
        dict(zip(separator.stems, found.tolist(), strict=True)),
        not_finite(separator),
        sum(1 for _ in separator.parameters()),
    )


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Facts and tensors of a bundle. Raises `UserError` if it is none."""
    try:
        return json.loads((folder / FACTS).read_text(encoding="utf-8")), load_file(folder / BATCH)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{folder}: not a fault that a run left ({error}). Give a folder such as runs/RUN/faults/step_17."
        ) from None


def not_finite(separator: Separator) -> list[str]:
    """Names of the weights whose gradient has a number that is not finite."""
    gradients = {name: weight.grad for name, weight in separator.named_parameters() if weight.grad is not None}
    return [name for name, gradient in gradients.items() if not gradient.isfinite().all()]


def _no_schedule(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.ConstantLR(optimizer)


@contextmanager
def _precision(name: str, device: torch.device) -> Iterator[None]:
    if name not in MIXED | WHOLE:
        raise UserError(f"trainer.precision={name}: cannot be replayed. Known are {', '.join(MIXED | WHOLE)}.")
    with torch.autocast(device.type, MIXED.get(name), enabled=name in MIXED):
        yield


def main() -> int:
    """Exit code 0 if the fault shows again, 1 if it does not."""
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m stemwise.running.replay", description=about)
    parser.add_argument("folder", type=Path, help="a fault that a run left: runs/RUN/faults/step_17")
    parser.add_argument("--device", help="cpu, cuda; that of the run if left out")
    options = parser.parse_args()
    try:
        facts, _ = read(options.folder)
        found = replay(options.folder, options.device)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"step {facts['step']}, epoch {facts['epoch']}: the loss was {facts['loss']}. The batch:")
    print("\n".join(f"  {crop}" for crop in facts["crops"]))
    print("\n".join(f"loss of {stem}: {loss:g}" for stem, loss in found.losses.items()))
    print(f"weights with a gradient that is not finite: {len(found.gradients)} of {found.weights}")
    print("".join(f"  {name}\n" for name in found.gradients[:10]), end="")
    print("Not seen again: all is finite." if found.is_finite else "Seen again.")
    return int(found.is_finite)


if __name__ == "__main__":
    sys.exit(main())
