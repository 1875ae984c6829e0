"""Separation from Python and from notebooks, in two functions; see `stemwise.__init__` for the shortest use."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stemwise import audio, model_file, pretrained, resampling, separation
from stemwise.errors import UserError
from stemwise.separator import Separator

Waveform = np.ndarray | Tensor


def load(model: str | os.PathLike[str], device: str = "auto", mask_extension: str | None = None) -> Separator:
    """A model by name or path, ready to separate.

    `model` is `spleeter:2stems`, `4stems` or `5stems`, each also with `-16kHz` (fetched at first use), or the path
    of a model file or a training checkpoint. `device` is `cpu`, `cuda`, `cuda:1`, or `auto`: the GPU if there is
    one. `mask_extension` says what happens above the model's band, see `masks.MaskRule` (None: as the model says).
    What the model knows of itself: `model.stems`, `model.spectrogram.sample_rate`.

    A model may be used by several threads at once. Raises `UserError` for a model or a device that is not there.
    """
    name = model if isinstance(model, str) else Path(model)
    loaded = model_file.load(pretrained.path(name), separation.device(device))
    if mask_extension is not None:
        loaded.mask = replace(loaded.mask, extension=mask_extension)
    return loaded


def separate(
    model: Separator, song: "str | os.PathLike[str] | Waveform", sample_rate: int | None = None
) -> dict[str, np.ndarray]:
    """The stems of a song by name: float32 arrays (C, N), full scale at ±1, C as the model has.

    `song` is a file that FFmpeg can decode, or a waveform (C, N) or (N,) in floating point. `sample_rate` in Hz
    is that of the waveform (None: the model's), and the stems have it too; from a file the stems have the file's
    own rate, or `sample_rate` if it is given. The stems are as long as the song. Mono is doubled for a stereo
    model, and of more than two channels the first two are kept.

    All stems are in memory at the end; `stemwise separate` and `separation.separate_file` stream them to files.
    Raises `UserError` for a file that cannot be decoded and a waveform of another shape or with NaN in it.
    """
    if isinstance(song, str | os.PathLike):
        path = Path(song)
        rate = sample_rate or audio.probe(path).sample_rate
        excerpt = separation.Excerpt.of(path, model, separation.Wish(), rate)
        stems = torch.cat(list(separation.outputs(model, excerpt, separation.Wish())), dim=-1)
    else:
        rate = sample_rate or model.spectrogram.sample_rate
        stems = _of_waveform(model, _checked(song, model.spectrogram.channels), rate)
    return {name: stem.numpy() for name, stem in zip(model.stems, stems, strict=True)}


def _of_waveform(model: Separator, waveform: Tensor, rate: int) -> Tensor:
    own = model.spectrogram.sample_rate
    stems = (piece.cpu() for piece in model.stream(_resampled(waveform, rate, own)))
    flat = torch.cat([piece.flatten(0, 1) for piece in stems], dim=-1)
    back = torch.cat(list(_resampled(flat, own, rate)), dim=-1)[:, : waveform.shape[-1]]
    return back.unflatten(0, (len(model.stems), -1))


def _resampled(waveform: Tensor, old: int, new: int) -> "list[Tensor]":
    return [waveform] if old == new else list(resampling.resample(iter([waveform]), old, new))


def _checked(waveform: Waveform, channels: int) -> Tensor:
    """The waveform as a float32 tensor (C, N) on the CPU."""
    tensor = torch.as_tensor(waveform).detach().cpu()
    if not tensor.is_floating_point():
        raise UserError(f"expected a waveform in floating point, got {tensor.dtype}. Divide it by its full scale.")
    if tensor.ndim == 1:
        tensor = tensor.unsqueeze(0)
    if tensor.ndim != 2 or not tensor.numel():
        raise UserError(f"expected a waveform (channels, samples), got the shape {tuple(tensor.shape)}.")
    if tensor.shape[0] > 32:
        raise UserError(f"expected (channels, samples), got {tuple(tensor.shape)}. Transpose it: waveform.T.")
    if not tensor.isfinite().all():
        raise UserError("the waveform has NaN or infinite samples. Repair it first.")
    return audio.mixed(tensor.float(), channels)
