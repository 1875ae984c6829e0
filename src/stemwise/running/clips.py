"""The middle of a validation song: files of sound and pictures, small enough to be logged.

Axes: S stem, C channel, T frame, F bin, N sample.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from stemwise import masks, pictures, spectrogram
from stemwise.pictures import Panel
from stemwise.separator import Separator
from stemwise.training import middle

MIXTURE, MEAN, TRUTH = "mixture", "mean", " truth"
HEARD = 50  # songs beyond these have scores and no sound
_MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


@dataclass(frozen=True)
class Clip:
    """A validation song: its number in the index, its SDR in dB by stem and as `mean`, and its middle.

    `sounds` are files in `codec`: `mixture`, `<stem>` (the estimate) and, of the songs that are chosen, `<stem> truth`.
    `drawn` are PNGs by stem, of the same songs.
    """

    number: int
    name: str
    sdr: dict[str, float]
    codec: str
    sounds: dict[str, bytes]
    drawn: dict[str, bytes]


def of(module: Any, number: int, batch: dict[str, Any], outputs: dict[str, Any], chosen: bool) -> Clip:
    """The clip of a validation song, from what `SeparatorTraining.validation_step` was given and gave."""
    model: Separator = module.separator
    scores = {**dict(zip(model.stems, outputs["sdr"].tolist(), strict=True)), MEAN: float(outputs["sdr"].nanmean())}
    mixture, truths = middle(batch["mixture"], module.clip), middle(batch["stems"], module.clip)
    sounds: dict[str, Tensor] = {}
    if number < HEARD or chosen:
        sounds = {MIXTURE: mixture, **dict(zip(model.stems, outputs["clip"], strict=True))}
    drawn: dict[str, bytes] = {}
    if chosen:
        sounds |= {f"{stem}{TRUTH}": truth for stem, truth in zip(model.stems, truths, strict=True)}
        start = (batch["mixture"].shape[-1] - mixture.shape[-1]) / 2 / model.spectrogram.sample_rate
        drawn = _drawn(model, mixture, outputs["clip"], truths, start)
    rate = model.spectrogram.sample_rate
    files = {name: encoded(waveform, rate, codec(rate)) for name, waveform in sounds.items()}
    return Clip(number, batch["name"], scores, codec(rate), files, drawn)


def codec(sample_rate: int) -> str:
    """How sound at this rate is coded: MP3, which every browser plays, or FLAC where MP3 has no such rate."""
    return "mp3" if sample_rate in _MP3_RATES else "flac"


def encoded(waveform: Tensor, sample_rate: int, codec: str) -> bytes:
    """A waveform (C, N) as a file; what is beyond full scale is cut."""
    file = io.BytesIO()
    samples = waveform.float().clamp(-1, 1).cpu().numpy().T
    soundfile.write(file, samples, sample_rate, format=codec.upper(), subtype=None if codec == "mp3" else "PCM_16")
    return file.getvalue()


def decoded(file: bytes) -> np.ndarray:
    """The waveform (C, N) of such a file."""
    return soundfile.read(io.BytesIO(file), dtype="float32", always_2d=True)[0].T


def _drawn(model: Separator, mixture: Tensor, estimates: Tensor, truths: Tensor, start: float) -> dict[str, bytes]:
    """A PNG for each stem (S, C, N): estimate, truth and mask."""
    settings = model.spectrogram
    # Not of the very loudest: that is one bin of the bass, and 20 dB above all that is to be seen.
    loudest = float(np.quantile(_magnitudes(mixture, model), 0.999))
    seconds = start, start + mixture.shape[-1] / settings.sample_rate
    files = {}
    for stem, estimate, truth, mask in zip(model.stems, estimates, truths, _masks(model, mixture), strict=True):
        shown = (pictures.decibels(_magnitudes(waveform, model), loudest) for waveform in (estimate, truth))
        panels = [
            Panel(f"{stem}: {what}", values, f"-{pictures.RANGE:g} dB", "0 dB")
            for what, values in zip(("estimate", "truth"), shown, strict=True)
        ]
        panels.append(Panel(f"{stem}: mask", _within(mask, mixture.shape[-1], model).mean(axis=0), "0", "1"))
        file = io.BytesIO()
        pictures.side_by_side(panels, seconds, settings.sample_rate / 2000).save(file, "PNG", optimize=True)
        files[stem] = file.getvalue()
    return files


def _masks(model: Separator, mixture: Tensor) -> Tensor:
    """The masks (S, C, T, n_fft/2 + 1) that the model would multiply the spectrum of a waveform (C, N) by."""
    settings, rule = model.spectrogram, model.mask
    parts = []
    for estimates, spectrum in model.estimates([mixture]):
        own = spectrum[..., : settings.bins].abs()
        parts.append(masks.ratio(estimates.unsqueeze(0), own.unsqueeze(0), rule)[0])
    return masks.extend(torch.cat(parts, dim=-2), settings.full_bins, rule.extension)


def _magnitudes(waveform: Tensor, model: Separator) -> np.ndarray:
    return _within(spectrogram.stft(waveform, model.spectrogram).abs(), waveform.shape[-1], model)


def _within(frames: Tensor, samples: int, model: Separator) -> np.ndarray:
    """Of the frames (…, T, F) of a waveform, those whose middle lies within it."""
    settings = model.spectrogram
    before = settings.n_fft // settings.hop // 2
    return frames[..., before : before + max(samples // settings.hop, 1), :].float().cpu().numpy()
