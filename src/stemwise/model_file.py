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
MOST_VALUES = 10_000  # in a model's description


def save(model: Separator, path: Path, facts: Mapping[str, Any], kernels: torch.dtype = torch.float32) -> None:
    """Writes a model file: weights in safetensors, and settings and `facts` (step, score…) as JSON metadata.

    `kernels` is the type of what nearly all of it is, the kernels of the convolutions: with `torch.float16` the file
    is half as large, and whoever loads it computes in float32 with weights that are off by up to 0.05 %.

    The file appears under its name only when it is complete. Raises `UserError` if it cannot be written.
    """
    weights = {
        name: value.detach().cpu().contiguous().to(kernels if value.dim() == 4 else value.dtype)
        for name, value in model.state_dict().items()
    }
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
    model.load_state_dict(_fitting(path, model, weights), assign=True)
    facts = description.get("facts")
    # Anew, because the kernels are now those of the file.
    return model.to(device).arrange().eval(), facts if isinstance(facts, dict) else {}


def _description(text: str) -> dict[str, Any]:
    description = json.loads(text)
    json.dumps(description, ensure_ascii=False).encode()  # half a character would break the first line that shows it
    return description


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get(METADATA_KEY)
            if metadata is None:
                raise UserError(
                    f"{path}: a safetensors file, but not of stemwise. Give the model.safetensors of a run."
                )
            return _description(metadata), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except UserError:
        raise
    # ValueError: not JSON, or a number too long; RecursionError: brackets without end; AttributeError: weights of a
    # type that this torch does not have.
    except (SafetensorError, ValueError, RecursionError, AttributeError, OSError) as error:
        raise UserError(
            f"{path}: not a model file ({str(error)[:120]}). Give the model.safetensors of a run."
        ) from None


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        prefix = "separator."
        weights = checkpoint["state_dict"]
        _check_plain(checkpoint["separator"])
        return checkpoint["separator"], {
            name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)
        }
    # What torch.load raises for a damaged or foreign file depends on where it notices: a dozen kinds, AssertionError
    # and struct.error among them. All of them mean the same here.
    except Exception as error:
        raise UserError(f"{path}: not a checkpoint of stemwise ({str(error)[:120]}).") from None


def _check_plain(description: Any) -> None:
    """Raises `ValueError` for what JSON could not hold in a small file.

    A pickle of 1 KB can hold a list of lists of lists… of which each is in the next one many times: any message about
    it would not fit into memory.
    """
    left, todo = MOST_VALUES, [description]
    while todo:
        value = todo.pop()
        left -= 1
        if left < 0 or not isinstance(value, dict | list | tuple | str | int | float | None):
            raise ValueError("its description is no plain values, or too many")
        if isinstance(value, dict):
            todo += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple):
            todo += value


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
                overlap=description.get("overlap", 0.0),  # which files once did not have
            )
    except UserError:
        raise
    # RuntimeError, OverflowError, ValueError: numbers that no tensor can have, or no message.
    except (KeyError, TypeError, AttributeError, RuntimeError, OverflowError, ValueError) as error:
        raise UserError(
            f"{path}: the model's description is damaged ({error!r:.200}). Train or download it again."
        ) from None


def _fitting(path: Path, model: Separator, weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights as the model's own type, if they are all of them and no others. Raises `UserError`."""
    expected = model.state_dict()
    wrong = sorted(expected.keys() ^ weights.keys())
    wrong += [name for name in expected if name in weights and not _fits(weights[name], expected[name])]
    if wrong:
        raise UserError(f"{path}: {len(wrong)} weights do not fit the model that the file describes, first {wrong[0]}.")
    # In a checkpoint, many weights can lie in the same bytes, and one in fewer than it has numbers.
    needed = sum(value.numel() * value.element_size() for value in weights.values())
    if needed > (length := path.stat().st_size):
        raise UserError(f"{path}: damaged, {needed} bytes of weights in {length} bytes. Train or download it again.")
    return {name: value.to(expected[name].dtype) for name, value in weights.items()}


def _fits(value: Any, expected: Tensor) -> bool:
    if not isinstance(value, Tensor) or value.shape != expected.shape:
        return False
    same = value.dtype == expected.dtype or (value.is_floating_point() and expected.is_floating_point())
    return same and value.layout == torch.strided and value.device.type == "cpu"
