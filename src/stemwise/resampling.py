"""Resampling of a waveform that comes in blocks, equal to torchaudio's resampling of the whole."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

# The filter of torchaudio.functional.resample, whose defaults these are (a Hann-windowed sinc).
_WIDTH = 6
_ROLLOFF = 0.99


def resample(blocks: Iterator[Tensor], old: int, new: int) -> Iterator[Tensor]:
    """Resamples blocks (C, n), cut anywhere, from `old` to `new` Hz: ceil(n · new / old) samples in all.

    An output sample needs `margin` input samples on either side, so as much of the past is kept and the last
    `margin` samples wait for what follows. With rates reduced to lowest terms, `old` input samples make `new`
    output samples and the filter's phases repeat; cuts at multiples of `old` therefore change nothing.
    """
    from torchaudio.functional import resample as whole  # slow to import, and most files need none of it

    old, new = old // math.gcd(old, new), new // math.gcd(old, new)
    margin = _reach(old, new)
    held, past = None, 0
    for block in blocks:
        held = block if held is None else torch.cat((held, block), 1)
        ready = (held.shape[1] - past - margin) // old * old
        if ready <= 0:
            continue
        output = whole(held[:, : past + ready + margin], old, new)
        yield output[:, past // old * new : (past + ready) // old * new]
        kept = min(past + ready, margin)
        held, past = held[:, past + ready - kept :], kept
    if held is not None:
        yield whole(held, old, new)[:, past // old * new :]


def position(start: int, old: int, new: int) -> tuple[int, int]:
    """Where to begin reading for output from sample `start` on, and how many output samples to drop then."""
    step, phases = old // math.gcd(old, new), new // math.gcd(old, new)
    first = max(0, start // phases * step - _reach(step, phases))
    return first, start - first // step * phases


def _reach(old: int, new: int) -> int:
    """Input samples on which an output sample can depend, to one side; a multiple of `old`."""
    width = math.ceil(_WIDTH * old / (min(old, new) * _ROLLOFF))
    return math.ceil(width / old) * old
