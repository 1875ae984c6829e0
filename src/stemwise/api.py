"""Separation from Python and from notebooks, in two functions; see `stemwise.__init__` for the shortest use."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stemwise import crossfade, model_file, pretrained, separation
from stemwise.errors import UserError
from stemwise.excerpts import Song
from stemwise.separation import Wish
from stemwise.separator import Separator

Waveform = np.ndarray | Tensor

MOST_CHANNELS = 16  # what has more is (samples, channels)


def load(
    model: str | os.PathLike[str],
    device: str = "auto",
    mask_extension: str | None = None,
    overlap: float | None = None,
) -> Separator:
    """A model by name or path, ready to separate.

    `model` is `spleeter:2stems`, `4stems` or `5stems`, each also with `-16kHz` (fetched at first use), or the path
    of a model file or a training checkpoint. `device` is `cpu`, `cuda`, `cuda:1`, or `auto`: the GPU if there is
    one. `mask_extension` says what happens above the model's band, see `masks.MaskRule`; `overlap` is the
    share of a window, 0 to 0.9, that it has in common with the next (None: as the model says, for both).
    What the model knows of itself: `model.stems`, `model.spectrogram.sample_rate`.

    A model may be used by several threads at once. Raises `UserError` for a model or a device that is not there.
    """
    if overlap is not None:
        crossfade.check(overlap, "overlap=")
    name = model if isinstance(model, str) else Path(model)
    loaded = model_file.load(pretrained.path(name), separation.device(device))
    if mask_extension is not None:
        loaded.mask = replace(loaded.mask, extension=mask_extension)
    if overlap is not None:
        loaded.overlap = overlap
    return loaded


def separate(
    model: Separator,
    song: "str | os.PathLike[str] | Waveform",
    sample_rate: int | None = None,
    wish: Wish | None = None,
) -> dict[str, np.ndarray]:
    """The stems of a song by name: float32 arrays (C, N), full scale at ±1, C as the model has.

    `song` is a file that FFmpeg can decode, or a waveform (C, N) or (N,) in floating point. `sample_rate` in Hz
    is that of the waveform (None: the model's), and the stems have it too; from a file the stems have the file's
    own rate, or `sample_rate` if it is given. The stems are as long as the song. Mono is doubled for a stereo
    model, and of more than two channels the first two are kept.

    `wish` asks for an excerpt, some of the stems, the rest of the mixture or a Wiener filter: see `separation.Wish`,
    whose `sample_rate` and `clip` are for files and of no meaning here.

    All stems are in memory at the end; `stemwise separate` and `separation.separate_file` stream them to files.
    Raises `UserError` for a file that cannot be decoded, a waveform of another shape or with NaN in it, and a model
    that is being trained.
    """
    if model.training:
        raise UserError("the model is in training mode, in which dropout is random. Call model.eval() first.")
    if sample_rate is not None and (type(sample_rate) is not int or sample_rate < 1):
        raise UserError(f"sample_rate={sample_rate!r} is not a whole number of Hz above zero.")
    wish, channels = wish or Wish(), model.spectrogram.channels
    if isinstance(song, str | os.PathLike):
        found = Song.from_file(Path(song), channels)
    else:
        found = Song.from_waveform(_checked(song), sample_rate or model.spectrogram.sample_rate, channels)
    excerpt = wish.excerpt(found, model, sample_rate or found.sample_rate)
    stems = torch.cat(list(separation.outputs(model, excerpt, wish)), dim=-1)
    # Copies, so that whoever keeps one stem does not keep all.
    return {name: stem.numpy().copy() for name, stem in zip(wish.names(model), stems, strict=True)}


def _checked(waveform: Waveform) -> Tensor:
    """The waveform as a float32 tensor (C, N) on the CPU."""
    if isinstance(waveform, Tensor):
        waveform = waveform.detach().cpu().float().numpy() if waveform.is_floating_point() else waveform.cpu().numpy()
    array = np.asarray(waveform)
    if array.dtype.kind != "f":
        raise UserError(f"expected a waveform in floating point, got {array.dtype}. Divide it by its full scale.")
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or not array.size:
        raise UserError(f"expected a waveform (channels, samples), got the shape {array.shape}.")
    if array.shape[0] > MOST_CHANNELS:
        raise UserError(f"expected (channels, samples), got {array.shape}. Transpose it: waveform.T.")
    with np.errstate(over="ignore"):  # what overflows is infinite, and said to be so
        copied = np.array(array, dtype=np.float32)
    if not np.isfinite(copied).all():
        raise UserError("the waveform has NaN or infinite samples. Repair it first.")
    return torch.from_numpy(copied)
