"""One separator's part of the comparison of separation: `separate_side.py NAME [MODEL]`, by the Python that has it.

Loads the separator, and then separates the songs whose names (.npy, float32, (N, 2), 44 100 Hz) come in on standard
input, a line each: from a waveform in memory to its four stems in memory. Questions and answers are those of
`steered.py`. Spleeter and stemwise read a model; the others have the architecture that was released, with random
weights, which takes as long. Knows nothing of the other separators; runs on Python 3.8 to 3.13.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    Separate = Callable[[np.ndarray], Any]

MARK = "STEERED "  # steered.MARK; that module needs PyTorch
RATE = 44100
STEMS = ["vocals", "drums", "bass", "other"]


def main() -> None:
    """Answers until nobody asks any more."""
    # What packages print must not be taken for an answer.
    answers, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr
    begun = time.perf_counter()
    separate = SEPARATORS[sys.argv[1]](*sys.argv[2:])
    _answer(answers, [time.perf_counter() - begun])
    for line in sys.stdin:
        song = np.load(line.strip(), mmap_mode="r" if sys.argv[1] == "stream" else None)
        begun = time.perf_counter()
        separate(song)
        _answer(answers, [time.perf_counter() - begun])


def stemwise(model: str, precision: str) -> Separate:
    """Our own, with the networks in this precision."""
    import torch

    separator = _ours(model, precision)
    return lambda song: separator.separate(torch.from_numpy(song.T))


def stream(model: str, precision: str) -> Separate:
    """Our own, piece by piece, of which none is kept: for songs whose stems do not fit into memory."""
    import torch

    separator = _ours(model, precision)

    def block(song: np.memmap, start: int) -> torch.Tensor:
        # Mapped anew each time: what was read of a file that stays mapped counts as memory of the process.
        return torch.from_numpy(np.array(np.load(song.filename, mmap_mode="r")[start : start + 10 * RATE].T))

    def separate(song: np.memmap) -> None:
        for _ in separator.stream(block(song, start) for start in range(0, len(song), 10 * RATE)):
            pass

    return separate


def spleeter(model: str) -> Separate:
    """Masks, in one process."""
    from spleeter.separator import Separator

    separator = Separator(str(Path(model, "config.json")), MWF=False, multiprocess=False)
    # Absolute, so that Spleeter does not look for the model on the net.
    separator._params["model_dir"] = str(Path(model).resolve())
    return separator.separate


def openunmix(steps: str) -> Separate:
    """`umxhq` with so many Wiener steps."""
    import torch
    from openunmix import model, utils

    bins = utils.bandwidth_to_max_bin(rate=RATE, n_fft=4096, bandwidth=16000)
    networks = {stem: model.OpenUnmix(nb_bins=2049, nb_channels=2, hidden_size=512, max_bin=bins) for stem in STEMS}
    separator = model.Separator(networks, niter=int(steps), sample_rate=RATE, n_fft=4096, n_hop=1024, nb_channels=2)
    separator.freeze()
    return lambda song: _without_gradients(lambda: separator(torch.from_numpy(song.T)[None]))


def demucs() -> Separate:
    """`htdemucs`: what its command does with a waveform, with one random shift and segments of 7.8 s."""
    from fractions import Fraction

    import torch
    from demucs.apply import apply_model
    from demucs.htdemucs import HTDemucs

    # Where the released model differs from the defaults; it has 41 984 456 weights.
    model = HTDemucs(STEMS, bottom_channels=512, dconv_mode=3, segment=Fraction(39, 5))
    model.eval()
    return lambda song: _without_gradients(lambda: apply_model(model, torch.from_numpy(song.T)[None]))


SEPARATORS: dict[str, Callable[..., Separate]] = {
    "stemwise": stemwise,
    "stream": stream,
    "spleeter": spleeter,
    "openunmix": openunmix,
    "demucs": demucs,
}


def _ours(model: str, precision: str) -> Any:
    import torch

    from stemwise import model_file

    separator = model_file.load(Path(model))
    separator.lower(getattr(torch, precision))
    return separator


def _without_gradients(call: Callable[[], Any]) -> Any:
    import torch

    with torch.no_grad():
        return call()


def _answer(answers: Any, seconds: list[float]) -> None:
    answers.write(f"{MARK}{json.dumps({'seconds': seconds, 'peak': _peak()})}\n")
    answers.flush()


def _peak() -> int:
    """Bytes. Not `getrusage`, which counts what the parent held when it forked."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
