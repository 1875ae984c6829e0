"""Resampling of a waveform that comes in blocks, equal to torchaudio's resampling of the whole."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

# The filter of torchaudio.functional.resample, whose defaults these are (a Hann-windowed sinc).
_WIDTH = 6
_ROLLOFF = 0.99
_LARGEST_FILTERS = 1 << 21

# Input values, over all channels, that are filtered at a time: torchaudio makes several copies of what comes out.
_PIECE = 1 << 17


def resample(blocks: Iterator[Tensor], old: int, new: int) -> Iterator[Tensor]:
    """Resamples blocks (C, n), cut anywhere, from `old` to `new` Hz: ceil(n · new / old) samples in all.

    An output sample needs `margin` input samples on either side, so as much of the past is kept and the last
    `margin` samples wait for what follows. With rates reduced to lowest terms, `old` input samples make `new`
    output samples and the filter's phases repeat; cuts at multiples of `old` therefore change nothing.
    """
    old, new = old // math.gcd(old, new), new // math.gcd(old, new)
    margin = _reach(old, new)
    held, past = None, 0
    for block in _pieces(blocks):
        held = block if held is None else torch.cat((held, block), 1)
        ready = (held.shape[1] - past - margin) // old * old
        if ready <= 0:
            continue
        output = _whole(held[:, : past + ready + margin], old, new)
        yield output[:, past // old * new : (past + ready) // old * new]
        kept = min(past + ready, margin)
        held, past = held[:, past + ready - kept :], kept
    if held is not None:
        yield _whole(held, old, new)[:, past // old * new :]


def _pieces(blocks: Iterator[Tensor]) -> Iterator[Tensor]:
    for block in blocks:
        yield from block.split(max(1, _PIECE // len(block)), 1)


def position(start: int, old: int, new: int) -> tuple[int, int]:
    """Where to begin reading for output from sample `start` on, and how many output samples to drop then."""
    step, phases = old // math.gcd(old, new), new // math.gcd(old, new)
    first = max(0, start // phases * step - _reach(step, phases))
    return first, start - first // step * phases


def _whole(waveform: Tensor, old: int, new: int) -> Tensor:
    # torchaudio holds a filter for each of the `new` phases, each about `old` long: 0.1 GB at this limit. From
    # 44101 to 44100 Hz the filters alone would be 8 GB.
    if old * new > _LARGEST_FILTERS:
        return _direct(waveform, old, new)
    from torchaudio.functional import resample as filtered  # slow to import, and most files need none of it

    return filtered(waveform, old, new)


def _direct(waveform: Tensor, old: int, new: int) -> Tensor:
    """What torchaudio computes, with the filter of each output sample made on the way: memory stays bounded.

    Output sample i lies at input sample i · old / new. An input sample at a distance of t periods of the
    cut-off frequency from there has the weight sinc(t) · cos²(π t / 2 width), |t| < width.
    """
    cutoff = min(old, new) * _ROLLOFF
    width = math.ceil(_WIDTH * old / cutoff)
    taps = 2 * width + 2
    padded = torch.nn.functional.pad(waveform, (width, width + 1))
    around = padded.unfold(1, taps, 1)  # (C, n, taps)
    offsets = torch.arange(-width, width + 2, dtype=torch.float64)
    count = math.ceil(waveform.shape[1] * new / old)
    pieces = []
    for part in torch.arange(count).split(max(1, (1 << 20) // taps)):
        # In whole numbers first: the position's fraction keeps its precision however long the waveform is.
        nearest, fraction = part * old // new, (part * old % new).double() / new
        t = ((offsets - fraction[:, None]) / old * cutoff).clamp(-_WIDTH, _WIDTH)
        weights = torch.sinc(t) * torch.cos(t * (math.pi / 2 / _WIDTH)).square() * (cutoff / old)
        pieces.append(torch.einsum("cnt,nt->cn", around[:, nearest], weights.to(waveform.dtype)))
    return torch.cat(pieces, 1)


def _reach(old: int, new: int) -> int:
    """Input samples on which an output sample can depend, to one side; a multiple of `old`."""
    width = math.ceil(_WIDTH * old / (min(old, new) * _ROLLOFF))
    return math.ceil(width / old) * old
