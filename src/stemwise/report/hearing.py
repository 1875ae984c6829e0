"""Songs of an evaluation to hear: the mixture, the true stems, and what models make of it.

Nothing of a song is kept while it is scored, so the few that are chosen are read and separated once more: that takes
seconds, where the sound of all songs would take gigabytes. A song passes through piece by piece.
Axes: V variant, S stem, C channel, N sample.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from stemwise import progress, resampling, signals
from stemwise.errors import UserError
from stemwise.evaluation.results import Scored
from stemwise.index import Signal
from stemwise.report.listening import Player, Recording, Variant
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram

BLOCK = 1 << 18  # samples that are handed on at once

Models = Mapping[str, Separator]
"""Separators by what the player calls them."""

# Variants and pieces (V, C, n) of their waveforms.
_Part = tuple[list[Variant], Iterator[Tensor]]


def record(
    players: list[Player],
    path: Path,
    songs: Mapping[str, Scored],
    stems: Sequence[str],
    models: Callable[[], Models],
) -> str:
    """Appends the players of these songs, as they come; returns why any are missing, or nothing.

    Scores are all there without them, and what is missing may lie on another machine.
    """
    try:
        players.extend(_players(path, songs, stems, models() if songs else {}))  # one after the other
    except UserError as error:
        return f"{'Not all songs are here' if players else 'There are no songs'} to listen to: {error}"
    return ""


def _players(path: Path, songs: Mapping[str, Scored], stems: Sequence[str], models: Models) -> Iterator[Player]:
    """Players for the page at `path` of songs by their titles. Raises `UserError` for files that cannot be read."""
    for title, song in progress.track(songs.items(), what="Songs to listen to", total=len(songs)):
        yield _player(path, title, song, stems, models)


def _player(path: Path, title: str, song: Scored, stems: Sequence[str], models: Models) -> Player:
    rate = max(model.spectrogram.sample_rate for model in models.values())
    channels = max(model.spectrogram.channels for model in models.values())
    heard = next(m.spectrogram for m in models.values() if m.spectrogram.sample_rate == rate)
    source = song.song()
    truths = dict(zip(song.stems, source.stems, strict=True))
    known = {Variant("mixture"): source.mixture} | {Variant("truth", stem): truths[stem] for stem in stems}
    # Read once more for it: what an index says of a compressed file's length may be off.
    frames = max(_length(signal, heard) for signal in known.values())
    parts: list[_Part] = [
        ([variant], (block[None] for block in signals.stream(signal, heard))) for variant, signal in known.items()
    ]
    made = [
        _estimates(source.mixture, model, stems, name if len(models) > 1 else "", rate)
        for name, model in models.items()
    ]
    # The player's keys are letters in this order: where models are called A and B, A and B are theirs.
    return _recorded(path, title, made + parts if len(models) > 1 else parts + made, (rate, channels, frames))


def _length(signal: Signal, settings: Spectrogram) -> int:
    return sum(block.shape[-1] for block in signals.stream(signal, settings))


def _estimates(mixture: Signal, model: Separator, stems: Sequence[str], name: str, rate: int) -> _Part:
    settings = model.spectrogram
    places = [model.stems.index(stem) for stem in stems]
    pieces = (piece[places].cpu() for piece in model.stream(signals.stream(mixture, settings)))
    if settings.sample_rate != rate:
        flat = resampling.resample((piece.flatten(0, 1) for piece in pieces), settings.sample_rate, rate)
        pieces = (piece.unflatten(0, (len(stems), settings.channels)) for piece in flat)
    return [Variant("estimate", stem, name) for stem in stems], pieces


def _recorded(path: Path, title: str, parts: Sequence[_Part], form: tuple[int, int, int]) -> Player:
    """The player of these parts, in a form of a sample rate, C and N."""
    rate, channels, frames = form
    variants = [variant for names, _ in parts for variant in names]
    streams = [_cut(pieces, (len(names), channels), frames) for names, pieces in parts]
    with Recording(path, title, variants, rate, frames) as recording:
        for blocks in zip(*streams, strict=True):
            recording.write(torch.cat(blocks))
        return recording.finish()


def _cut(pieces: Iterator[Tensor], shape: tuple[int, int], frames: int) -> Iterator[Tensor]:
    """Blocks (V, C, n), N samples together; mono on all channels, and zeros where the pieces are over."""
    held = torch.zeros(*shape, 0)
    for start in range(0, frames, BLOCK):
        size = min(BLOCK, frames - start)
        while held.shape[-1] < size:
            piece = next(pieces, held.new_zeros(*shape, size - held.shape[-1]))
            held = torch.cat([held, piece.expand(*shape, -1)], dim=-1)
        yield held[..., :size]
        held = held[..., size:]
