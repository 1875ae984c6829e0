"""Spleeter's model folders: a checkpoint and its configuration become a `Separator`, and a `Separator` such a folder.

    model = spleeter.model.read(Path("2stems"))                # as downloaded, or as Spleeter's training left it
    spleeter.model.write(model, Path("mine"))                  # for `spleeter separate -p mine/config.json`
    spleeter.model.write_for_training(model, Path("mine"))     # for `spleeter train`, too

Which variable is which weight says `weights`; which key is which setting, `config`.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stemwise.errors import UserError
from stemwise.separator import Separator
from stemwise.spleeter import checkpoint, weights
from stemwise.spleeter import config as configuration
from stemwise.spleeter.checkpoint import Checkpoint

STEP = "global_step"
# Spleeter's normalisation does not see the batch, nor does it learn statistics: see `training.SeparatorTraining`.
TRAINED = {"normalization": "stored"}

_FLOAT32 = 1
_FLOAT = checkpoint.DTYPES[_FLOAT32]
_NOT_SPLEETERS = "Give a model that Spleeter wrote."


def read(folder: Path, config: Path | str | None = None) -> Separator:
    """The model in a folder of Spleeter's, ready for inference on the CPU.

    `config` is a JSON file of Spleeter's or a released name such as `4stems-16kHz`; without it, see `config.find`.
    Only the network's variables are read, not what Adam keeps beside them. Raises `UserError`.
    """
    found = checkpoint.find(folder)
    chosen = configuration.find(folder, config)
    with torch.device("meta"):
        model = chosen.separator()
    pairs = weights.names(model)
    _check(found, model, pairs, chosen.source)
    values = checkpoint.read(found, pairs)
    state = {ours: weights.to_ours(values[theirs]) for theirs, ours in pairs.items()}
    # Keras does not count batches, and our momentum does not need the number.
    counts = {name: torch.tensor(0) for name in model.state_dict() if name.endswith(".num_batches_tracked")}
    model.load_state_dict(state | counts, assign=True)
    return model.eval()


def _check(found: Checkpoint, model: Separator, pairs: Mapping[str, str], source: str) -> None:
    """Holds what the configuration leads to against what the checkpoint says it has."""
    here = f"{found.prefix}.index"
    stems = weights.stems(found.variables, len(model.unet.filters))
    if stems != len(model.stems):
        raise UserError(
            f"{here}: has {stems} U-Nets, but {source} names {len(model.stems)} stems: {', '.join(model.stems)}. "
            "Give the configuration of this model with --config."
        )
    if missing := [name for name in pairs if name not in found.variables]:
        raise UserError(f"{here}: no variable {missing[0]} ({len(missing)} of {len(pairs)} missing). {_NOT_SPLEETERS}")
    expected = model.state_dict()
    for theirs, ours in pairs.items():
        variable, shape = found.variables[theirs], weights.shape(expected[ours])
        if variable.shape != shape:
            raise UserError(
                f"{here}: {theirs} has the shape {list(variable.shape)}, {source} leads to {list(shape)}. "
                "Give the configuration of this model with --config."
            )
        if variable.dtype != _FLOAT32:
            raise UserError(f"{here}: {theirs} is not of float32. {_NOT_SPLEETERS}")


def facts(folder: Path, config: Path | str | None = None) -> dict[str, Any]:
    """What a model file should remember of where it came from: format, folder, configuration, steps of training."""
    found = checkpoint.find(folder)
    chosen = configuration.find(folder, config)
    known: dict[str, Any] = {"format": "spleeter", "folder": folder.resolve().name, "config": Path(chosen.source).name}
    step = found.variables.get(STEP)
    if step is not None and step.shape == () and checkpoint.DTYPES.get(step.dtype, _FLOAT).kind == "i":
        known["step"] = int(checkpoint.read(found, [STEP])[STEP])
    return {"origin": known, **TRAINED}


def write(model: Separator, folder: Path) -> list[str]:
    """Writes a folder from which Spleeter separates, and returns notes on what it will do differently.

    The folder must be new or empty; it appears complete or not at all. Raises `UserError` for a model that Spleeter
    has no network for.
    """
    return _write(model, folder, weights.variables(model))


def write_for_training(model: Separator, folder: Path) -> list[str]:
    """Like `write`, with all that Spleeter's training restores: Adam's state before its first step.

    The folder is three times as large.
    """
    moments: dict[str, np.ndarray] = {
        "beta1_power": np.array(0.9, np.float32),
        "beta2_power": np.array(0.999, np.float32),
    }
    for name, value in weights.trained(model).items():
        zeros = np.broadcast_to(np.float32(0), value.shape)
        moments |= {f"{name}/Adam": zeros, f"{name}/Adam_1": zeros}
    return _write(model, folder, weights.variables(model) | moments)


def _write(model: Separator, folder: Path, variables: Mapping[str, np.ndarray]) -> list[str]:
    folder = folder.absolute()
    values, notes = configuration.describe(model, folder.name)
    # An estimator restores the count of steps even where it does not train.
    variables = {**variables, STEP: np.array(0, np.int64)}
    temporary = None
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{folder}: is there already. Choose another folder, or remove it.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        checkpoint.write(temporary, variables)
        (temporary / configuration.FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        _publish(temporary, folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}). Choose another folder, or make room."
        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return notes


def _publish(temporary: Path, folder: Path) -> None:
    for path in temporary.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o777 & ~mask)
    # Takes the place of an empty folder, and of nothing else.
    os.rename(temporary, folder)
