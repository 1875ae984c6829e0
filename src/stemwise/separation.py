"""A song to its stems, as a stream: decode, separate, bring back to the song's rate, write.

Nothing here grows with the song. What needs all of it before the first sample can be written (Wiener filtering
with the whole song's statistics, rescaling to its peak) reads the song twice or spools to disk.
Axes: S stem, C channel, N sample.
"""

import functools
import math
import operator
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from stemwise import audio, progress, resampling
from stemwise.codecs import encoding, formats
from stemwise.codecs.formats import Format
from stemwise.errors import UserError
from stemwise.excerpts import Excerpt, Song, beside, cut
from stemwise.separator import Divide, Separator

if TYPE_CHECKING:
    from stemwise.report.song_page import SongPage  # which loads what only a page needs

T = TypeVar("T")

CLIPS = ("clamp", "rescale", "float")
RESIDUAL = "residual"


@dataclass(frozen=True)
class Wish:
    """What is wanted of a song.

    `stems`: only these of the model's (None: all). `residual`: also what no stem of the model claimed.
    `two_stems`: one stem and, as `no_<stem>`, the rest of the mixture; instead of `stems`. `offset` and `duration`
    (None: to the end) in seconds. `sample_rate` of the stems (None: the song's). `wiener`: multichannel Wiener
    filtering instead of ratio masks, with the statistics of the whole song (0) or of this many of the pieces in which
    the model's estimates come, a window of T frames each unless they overlap.
    `clip` says what becomes of samples past full scale: `clamp` cuts them off, `rescale` lowers all stems of the
    song alike until none is left, `float` keeps them.
    """

    stems: tuple[str, ...] | None = None
    two_stems: str | None = None
    residual: bool = False
    offset: float = 0.0
    duration: float | None = None
    sample_rate: int | None = None
    wiener: int | None = None
    clip: str = "clamp"

    def __post_init__(self) -> None:
        if self.clip not in CLIPS:
            raise UserError(f"clip={self.clip!r} is not one of {', '.join(CLIPS)}.")

    def names(self, model: Separator) -> list[str]:
        """What the outputs are called, in order. Raises `UserError` for a stem that the model does not have."""
        asked = self.stems or model.stems
        if self.two_stems is not None:
            asked = (self.two_stems,)
        for stem in asked:
            if stem not in model.stems:
                raise UserError(f"the model has no stem {stem!r}. It has {', '.join(model.stems)}.")
        rest = [f"no_{self.two_stems}"] if self.two_stems is not None else []
        return [*asked, *rest, *([RESIDUAL] if self.residual else [])]

    def excerpt(self, song: Song, model: Separator, sample_rate: int) -> Excerpt:
        """What is wanted of a song, for stems at `sample_rate`. Raises `UserError` if it ends before the offset."""
        return Excerpt.of(song, sample_rate, model.spectrogram.sample_rate, self.offset, self.duration)


@dataclass(frozen=True)
class Done:
    """What became of a song.

    Its length in seconds, its sample rate and that of the stems, how many samples were clamped to full scale, and the
    gain by which all stems were rescaled.
    """

    seconds: float
    song_rate: int
    sample_rate: int
    clamped: int
    gain: float


def separate_file(
    model: Separator,
    path: Path,
    targets: Sequence[Path | None],
    *,
    wish: Wish | None = None,
    form: Format | None = None,
    page: "SongPage | None" = None,
) -> Done:
    """Separates one song into `targets`, a file for each of `wish.names(model)`; None is not written.

    The stems have the song's length and tags, and the model's channel count; its sample rate too, unless
    `wish.sample_rate` is another or the codec does not have it (`formats.sample_rate`). They appear together when
    all are complete; if anything fails none does. `page` shows all of them, before any clipping.
    """
    wish, form = wish or Wish(), form or Format()
    channels = model.spectrogram.channels
    song = Song.from_file(path, channels)
    rate = formats.sample_rate(form.codec, wish.sample_rate or song.sample_rate)
    excerpt = wish.excerpt(song, model, rate)
    tags = audio.tags(path)
    places = [target for target in targets if target is not None]
    chosen = [number for number, target in enumerate(targets) if target is not None]
    overs = "keep" if wish.clip == "float" else "clamp"
    with ExitStack() as stack:
        writers = [
            stack.enter_context(encoding.Writer(place, rate, channels, form, tags, overs=overs)) for place in places
        ]
        pieces = outputs(model, excerpt, wish)
        if page:
            stack.enter_context(page.begin(rate, excerpt.frames))
            pieces = _heard(pieces, excerpt, page)
        spool = stack.enter_context(_Spool(places[0].parent)) if places and wish.clip == "rescale" else None
        # On a CPU encoders and networks would take turns on the same cores, and wait for each other at every turn.
        beside = next(model.parameters()).device.type != "cpu"
        _write(spool.rescaled(pieces) if spool else pieces, dict(zip(chosen, writers, strict=True)), beside)
        for writer in writers:
            writer.end()
        for writer in writers:
            writer.finish()
        if page:
            page.finish()
            if writers:
                page.withdraw()
        for writer in writers:
            writer.publish()
        if page:
            page.publish()
    clamped = sum(writer.clipped for writer in writers)
    return Done(excerpt.frames / rate, song.sample_rate, rate, clamped, spool.gain if spool else 1.0)


def _write(pieces: Iterable[Tensor], writers: Mapping[int, encoding.Writer], beside: bool) -> None:
    """Each output of the pieces to the writer of its number; `beside` has these work while the next is computed."""
    for piece in pieces:
        for number, writer in writers.items():
            writer.write(piece[number])
        if not beside:
            for writer in writers.values():
                writer.wait()


def _heard(pieces: Iterator[Tensor], excerpt: Excerpt, page: "SongPage") -> Iterator[Tensor]:
    """The pieces, which the page gets too, together with the mixture."""
    for piece, mixture in beside(pieces, excerpt.mixture()):
        page.write(piece, mixture)
        yield piece


def outputs(model: Separator, excerpt: Excerpt, wish: Wish) -> Iterator[Tensor]:
    """The outputs (len(wish.names), C, n) of an excerpt at its sample rate, piece by piece, on the CPU.

    What needs the whole song first (`wish.wiener` of 0) is computed before this returns.
    """
    divide = _wiener(model, excerpt, wish.wiener)
    rate = model.spectrogram.sample_rate
    stems = _shown(model.stream(excerpt.blocks(rate), divide), model, excerpt, excerpt.song.name)
    return _outputs(model, _fetched(stems), excerpt, wish)


def _fetched(pieces: Iterator[Tensor]) -> Iterator[Tensor]:
    """The pieces on the CPU; from a GPU one is on its way while the next is computed."""
    held: list[tuple[Tensor, torch.cuda.Event]] = []
    for piece in pieces:
        if piece.device.type != "cuda":
            yield piece.cpu()
            continue
        copy = torch.empty(piece.shape, dtype=piece.dtype, pin_memory=True).copy_(piece, non_blocking=True)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(piece.device))
        held.append((copy, done))
        if len(held) > 1:
            yield _arrived(*held.pop(0))
    for one in held:
        yield _arrived(*one)


def _arrived(copy: Tensor, done: torch.cuda.Event) -> Tensor:
    done.synchronize()
    return copy


def _outputs(model: Separator, stems: Iterator[Tensor], excerpt: Excerpt, wish: Wish) -> Iterator[Tensor]:
    """From all stems at the model's rate to the outputs at the excerpt's."""
    rate, channels = model.spectrogram.sample_rate, model.spectrogram.channels
    asked = [model.stems.index(stem) for stem in wish.names(model) if stem in model.stems]
    rests = wish.two_stems is not None or wish.residual
    chosen = (_chosen(piece, asked, rests) for piece in stems)
    if rate != excerpt.sample_rate:
        flat = resampling.resample((piece.flatten(0, 1) for piece in chosen), rate, excerpt.sample_rate)
        chosen = (piece.unflatten(0, (-1, channels)) for piece in flat)
    pieces = cut(chosen, excerpt.skip, excerpt.frames)
    if not rests:
        yield from pieces
        return
    yield from _with_rests(pieces, excerpt.mixture(), wish)


def _chosen(piece: Tensor, asked: Sequence[int], rests: bool) -> Tensor:
    """The stems `asked` of all (S, C, n), and for `rests` the sum of all of them, whatever is asked for."""
    some = piece if list(asked) == list(range(len(piece))) else piece[asked]  # which copies
    return torch.cat([some, piece.sum(0, keepdim=True)]) if rests else some


def _with_rests(pieces: Iterable[Tensor], mixture: Iterator[Tensor], wish: Wish) -> Iterator[Tensor]:
    """Stems and, as the last of each piece, the sum of all -> the outputs that were asked for."""
    for piece, whole in beside(pieces, mixture):
        stems, total = piece[:-1], piece[-1]
        rests = [whole - stems[0]] if wish.two_stems is not None else []
        rests += [whole - total] if wish.residual else []
        yield torch.cat([stems, torch.stack(rests)])


def _wiener(model: Separator, excerpt: Excerpt, windows: int | None) -> Divide | None:
    if windows is None:
        return None
    if windows:
        return model.by_wiener_of(windows)
    parts = model.statistics(excerpt.blocks(model.spectrogram.sample_rate))
    shown = _shown(parts, model, excerpt, f"{excerpt.song.name}, first pass")
    return model.by_wiener(functools.reduce(operator.add, shown))


def _shown(items: Iterator[T], model: Separator, excerpt: Excerpt, what: str) -> Iterator[T]:
    return progress.track(items, what=what, total=model.pieces(excerpt.length(model.spectrogram.sample_rate)))


class _Spool:
    """Pieces on the disk, 4 bytes a sample, where they wait until the peak of all of them is known."""

    def __init__(self, folder: Path) -> None:
        self.gain = 1.0
        self._folder = folder
        with self._reported():
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def __enter__(self) -> "_Spool":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # the end of what did not fit; the file goes anyway
            self._file.close()

    def rescaled(self, pieces: Iterator[Tensor]) -> Iterator[Tensor]:
        """The pieces, all lowered alike so that no sample is past full scale."""
        shapes, peak = [], 1.0
        for piece in pieces:
            peak = max(peak, float(piece.abs().max()))
            shapes.append(piece.shape)
            with self._reported():
                self._file.write(piece.contiguous().numpy().data)
        self.gain = 1 / peak
        with self._reported():
            self._file.seek(0)
        for shape in shapes:
            with self._reported():
                read = np.frombuffer(self._file.read(4 * math.prod(shape)), dtype=np.float32)
            yield torch.from_numpy(read.reshape(shape) * np.float32(self.gain))

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self._folder}: --clip rescale needs room there while it works ({error.strerror}). Make some."
            ) from None


def device(name: str) -> torch.device:
    """The device called `name`; `auto` is the GPU if there is one. Raises `UserError` if there is none of the name."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # Computing is the proof: torch.device("cuda") is valid on any machine.
        torch.zeros(1, device=name).item()
        return torch.device(name)
    except (RuntimeError, AssertionError, ImportError, AttributeError, ValueError):
        there = ", ".join(["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))])
        raise UserError(f"--device {name}: this machine has no such device. Choose one of {there}.") from None
