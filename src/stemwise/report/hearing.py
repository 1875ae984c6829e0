"""Songs of an evaluation to hear: the mixture, the true stems, and what models make of it.

Nothing of a song is kept while it is scored, so the few that are chosen are read and separated once more: that takes
seconds, where the sound of all songs would take gigabytes. Axes: S stem, C channel, N sample.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stemwise import progress, resampling, signals
from stemwise.evaluation.results import Scored
from stemwise.index import Signal
from stemwise.report.listening import Player, Recording, Variant
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram

BLOCK = 1 << 18  # samples that are handed on at once

Models = Mapping[str, Separator]
"""Separators by what the player calls them."""


def players(path: Path, songs: Mapping[str, Scored], stems: Sequence[str], models: Models) -> list[Player]:
    """Players for the page at `path` of songs by their titles. Raises `UserError` for files that cannot be read."""
    tracked = progress.track(songs.items(), what="Songs to listen to", total=len(songs))
    return [_player(path, title, song, stems, models) for title, song in tracked]


def _player(path: Path, title: str, song: Scored, stems: Sequence[str], models: Models) -> Player:
    rate = max(model.spectrogram.sample_rate for model in models.values())
    channels = max(model.spectrogram.channels for model in models.values())
    source = song.song()
    truths = dict(zip(song.stems, source.stems, strict=True))
    settings = [(Variant("mixture"), source.mixture), *((Variant("truth", stem), truths[stem]) for stem in stems)]
    heard = next(m.spectrogram for m in models.values() if m.spectrogram.sample_rate == rate)
    known = {variant: _read(signal, heard, channels) for variant, signal in settings}
    made = {}
    for name, model in models.items():
        for stem, estimate in _estimates(source.mixture, model, stems):
            variant = Variant("estimate", stem, name if len(models) > 1 else "")
            made[variant] = _spread(_at(estimate, model.spectrogram.sample_rate, rate), channels)
    # The player's keys are letters in this order: where models are called A and B, A and B are theirs.
    return _recorded(path, title, made | known if len(models) > 1 else known | made, rate)


def _read(signal: Signal, settings: Spectrogram, channels: int) -> Tensor:
    return _spread(signals.read(signal, settings), channels)


def _estimates(mixture: Signal, model: Separator, stems: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    device = next(model.parameters()).device
    with torch.inference_mode():
        found = model.separate(signals.read(mixture, model.spectrogram).to(device)).cpu()
    return ((stem, found[model.stems.index(stem)]) for stem in stems)


def _at(waveform: Tensor, old: int, new: int) -> Tensor:
    return waveform if old == new else torch.cat(list(resampling.resample(iter([waveform]), old, new)), dim=-1)


def _spread(waveform: Tensor, channels: int) -> Tensor:
    """A mono waveform on all channels."""
    return waveform.expand(channels, -1)


def _recorded(path: Path, title: str, sound: Mapping[Variant, Tensor], sample_rate: int) -> Player:
    frames = max(waveform.shape[-1] for waveform in sound.values())
    with Recording(path, title, list(sound), sample_rate, frames) as recording:
        for start in range(0, frames, BLOCK):
            end = min(start + BLOCK, frames)
            recording.write(torch.stack([_cut(waveform, start, end) for waveform in sound.values()]))
        return recording.finish()


def _cut(waveform: Tensor, start: int, end: int) -> Tensor:
    """Samples from `start` to `end`; zeros where the waveform is over."""
    part = waveform[:, start:end]
    return torch.nn.functional.pad(part, (0, end - start - part.shape[-1]))
