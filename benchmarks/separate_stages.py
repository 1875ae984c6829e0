"""How long each stage of separating a song takes alone: decode, STFT, networks, masks, inverse, encode.

Each stage is the part of stemwise that the product uses, fed with what the stage before it would give (one window,
again and again, where the values do not matter). Alone, none of them overlaps with another, so their sum is more than
the whole takes where the product overlaps them. Axes: S stem, C channel, T frame, F bin, N sample.
"""

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plain_unet
import timing
import torch
from timing import Timing
from torch import Tensor
from torch.nn import functional

from stemwise import audio, separation, spectrogram
from stemwise.codecs import encoding
from stemwise.codecs.formats import Format
from stemwise.separator import Separator

STAGES = ("decode", "STFT", "networks", "masks", "inverse", "encode")
PLAIN = "networks, plain PyTorch"
WHOLE = "whole song"


@dataclass(frozen=True)
class Pieces:
    """A song, and what the stages make of its first window: estimates, mixture's spectrum, stems' spectra, stems."""

    path: Path
    waveform: Tensor
    windows: int
    estimated: tuple[Tensor, Tensor]
    spectra: list[Tensor]
    stems: Tensor


def measure(model: Separator, path: Path, repeats: int, work: Path) -> dict[str, Timing]:
    """Seconds of each of `STAGES` for a song at the model's rate, of the whole, and of plain networks."""
    with torch.inference_mode():
        pieces = _pieces(model, path)
        plain = _plain(model).eval()
        parts: dict[str, Callable[[], object]] = {
            "decode": lambda: _use(_decoded(model, path)),
            "STFT": lambda: _use(_magnitudes(model, pieces.waveform)),
            "estimates": lambda: _use(model.estimates([pieces.waveform])),
            "masks": lambda: _use(itertools.chain.from_iterable(model.by_ratio(_again(pieces.estimated, pieces)))),
            "inverse": lambda: _use(spectrogram.joined(_again(pieces.spectra, pieces), model.spectrogram)),
            "encode": lambda: _encode(model, pieces, work),
            WHOLE: lambda: _whole(model, path, work),
            PLAIN: lambda: [plain(padded) for padded in _magnitudes(model, pieces.waveform)],
        }
        found = timing.in_turn(parts, repeats)
    # The model gives no estimates without a spectrum, and plain networks get theirs here: both are without it.
    networks = {"networks": _less(found.pop("estimates"), found["STFT"]), PLAIN: _less(found.pop(PLAIN), found["STFT"])}
    return {name: (found | networks)[name] for name in (*STAGES, WHOLE, PLAIN)}


def _pieces(model: Separator, path: Path) -> Pieces:
    settings = model.spectrogram
    waveform = audio.read(path, sample_rate=settings.sample_rate, channels=settings.channels)
    windows = -(-settings.frame_count(waveform.shape[-1]) // settings.frames)
    estimated = next(iter(model.estimates([waveform])))
    spectra = list(next(iter(model.by_ratio(iter([estimated])))))  # which are made as they are taken
    stems = model.separate(waveform[:, : settings.frames * settings.hop])
    return Pieces(path, waveform, windows, estimated, spectra, stems)


def _plain(model: Separator) -> plain_unet.PlainSeparator:
    """Networks as large as the model's, with other weights."""
    filters = model.settings["unet"]["filters"]
    return plain_unet.PlainSeparator(len(model.stems), model.spectrogram.channels, filters)


def _decoded(model: Separator, path: Path) -> Iterator[Tensor]:
    return audio.stream(path, sample_rate=model.spectrogram.sample_rate, channels=model.spectrogram.channels)


def _magnitudes(model: Separator, waveform: Tensor) -> Iterator[Tensor]:
    """What networks see (1, C, T, F) of each window."""
    settings = model.spectrogram
    for padded in spectrogram.windows([waveform], settings):
        magnitudes = spectrogram.spectra(padded, settings)[..., : settings.bins].abs()
        yield functional.pad(magnitudes, (0, 0, 0, settings.frames - magnitudes.shape[-2])).unsqueeze(0)


def _encode(model: Separator, pieces: Pieces, work: Path) -> None:
    rate, channels = model.spectrogram.sample_rate, model.spectrogram.channels
    with tempfile.TemporaryDirectory(dir=work) as folder, ExitStack() as stack:
        targets = [Path(folder, f"{stem}.wav") for stem in model.stems]
        writers = [stack.enter_context(encoding.Writer(target, rate, channels, Format())) for target in targets]
        left = pieces.waveform.shape[-1]
        while left > 0:
            for writer, stem in zip(writers, pieces.stems, strict=True):
                writer.write(stem[:, :left])
            left -= pieces.stems.shape[-1]
        for writer in writers:
            writer.finish()
        for writer in writers:
            writer.publish()


def _whole(model: Separator, path: Path, work: Path) -> None:
    with tempfile.TemporaryDirectory(dir=work) as folder:
        separation.separate_file(model, path, [Path(folder, f"{stem}.wav") for stem in model.stems])


def _again(piece: Any, pieces: Pieces) -> Iterator[Any]:
    """The piece for each window of the song."""
    return itertools.repeat(piece, pieces.windows)


def _use(values: Iterator[object]) -> None:
    for _ in values:
        pass


def _less(one: Timing, other: Timing) -> Timing:
    return Timing(tuple(a - b for a, b in zip(one.seconds, other.seconds, strict=True)))
