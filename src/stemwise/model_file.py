"""A separator as one file without pickle: weights in safetensors, everything else as JSON in its metadata.

The metadata holds the constructor's arguments (stems, STFT settings, U-Net settings, mask rule) and facts about
the training (step, score), so nothing has to be typed again to use the model. A Lightning checkpoint of ours
can be read in its place.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stemwise.errors import UserError
from stemwise.masks import MaskRule
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram
from stemwise.unet import UNetSettings

FORMAT = 1
METADATA_KEY = "stemwise"


def save(model: Separator, path: Path, facts: Mapping[str, Any]) -> None:
    """Writes a model file: weights in safetensors, and settings and `facts` (step, score…) as JSON metadata.

    The file appears under its name only when it is complete. Raises `UserError` if it cannot be written.
    """
    weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    metadata = {METADATA_KEY: json.dumps({"format": FORMAT, **model.settings, "facts": dict(facts)})}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            save_file(weights, temporary, metadata=metadata)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:  # safetensors says so when the disk is full
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{path}: cannot be written ({reason}). Choose another folder, or make room.") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load(path: Path, device: str | torch.device = "cpu") -> Separator:
    """Loads a model file, or the model inside a training checkpoint (.ckpt), ready for inference.

    Nothing in the file is executed. Raises `UserError` for a file that is no model of ours.
    """
    return read(path, device)[0]


def read(path: Path, device: str | torch.device = "cpu") -> tuple[Separator, dict[str, Any]]:
    """Like `load`, and also the facts that were stored with it (step, score…)."""
    path = Path(path)
    if not os.path.isfile(path):  # unlike Path.is_file, also of a name that is too long
        raise UserError(f"{path}: no such model file. Give the model.safetensors of a run.")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: cannot be read (permission denied). Ask its owner, or copy it.")
    if path.suffix == ".ckpt":
        description, weights = _read_checkpoint(path)
    else:
        description, weights = _read_safetensors(path)
    model = _build(path, description)
    _check_weights(path, model, weights)
    model.load_state_dict(weights, assign=True)
    facts = description.get("facts")
    # Anew, because the kernels are now those of the file.
    return model.to(device).arrange().eval(), facts if isinstance(facts, dict) else {}


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get(METADATA_KEY)
            if metadata is None:
                raise UserError(
                    f"{path}: a safetensors file, but not of stemwise. Give the model.safetensors of a run."
                )
            return json.loads(metadata), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise UserError(f"{path}: not a model file ({error}). Give the model.safetensors of a run.") from None


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        prefix = "separator."
        weights = checkpoint["state_dict"]
        return checkpoint["separator"], {
            name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)
        }
    # What torch.load raises for a damaged or foreign file depends on where it notices.
    except (
        RuntimeError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        OSError,
        ValueError,
        UnpicklingError,
    ) as error:
        raise UserError(f"{path}: not a checkpoint of stemwise ({str(error)[:120]}).") from None


def _build(path: Path, description: Any) -> Separator:
    """The model that `description` describes, without memory for its weights yet."""
    try:
        if description.get("format", FORMAT) != FORMAT:
            raise UserError(f"{path}: model format {description['format']}; this stemwise reads {FORMAT}. Upgrade it.")
        with torch.device("meta"):
            return Separator(
                stems=[str(stem) for stem in description["stems"]],
                spectrogram=Spectrogram(**description["spectrogram"]),
                unet=UNetSettings(**description["unet"]),
                mask=MaskRule(**description["mask"]),
                output=description["output"],
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: the model's description is damaged ({error!r}). Train or download it again."
        ) from None


def _check_weights(path: Path, model: Separator, weights: Mapping[str, Tensor]) -> None:
    expected = model.state_dict()
    wrong = sorted(expected.keys() ^ weights.keys())
    wrong += [name for name in expected.keys() & weights.keys() if expected[name].shape != weights[name].shape]
    if wrong:
        raise UserError(f"{path}: {len(wrong)} weights do not fit the model that the file describes, first {wrong[0]}.")
