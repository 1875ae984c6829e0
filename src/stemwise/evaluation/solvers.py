"""What computes the scores of a song: museval, or our own solver, which equals it and is faster.

Axes: S stem, C channel, N sample.
"""

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stemwise.errors import UserError
from stemwise.evaluation import bss_eval
from stemwise.evaluation.documents import METRICS

MUSEVAL, TORCH = "museval", "torch"
SOLVERS = (MUSEVAL, TORCH)


def score(
    references: Tensor, estimates: Tensor, stems: Sequence[str], sample_rate: int, solver: str = MUSEVAL
) -> dict[str, Any]:
    """museval's JSON document for the stems (S, C, N) that are not silent, in references and estimates."""
    heard = [i for i in range(len(stems)) if _is_heard(references[i]) and _is_heard(estimates[i])]
    solve = _by_museval if solver == MUSEVAL else _by_torch
    document = solve(references[heard], estimates[heard], [stems[i] for i in heard], sample_rate)
    return {**document, "solver": solver}


def _by_museval(references: Tensor, estimates: Tensor, stems: Sequence[str], sample_rate: int) -> dict[str, Any]:
    import museval

    store = museval.TrackStore(track_name="", win=1.0, hop=1.0)
    if stems:
        values = museval.evaluate(
            references.transpose(1, 2).double().numpy(),
            estimates.transpose(1, 2).double().numpy(),
            win=sample_rate,
            hop=sample_rate,
        )
        for row, stem in enumerate(stems):
            by_metric = dict(zip(("SDR", "ISR", "SIR", "SAR"), (value[row].tolist() for value in values), strict=True))
            store.add_target(stem, by_metric)
    return json.loads(store.json)


def _by_torch(references: Tensor, estimates: Tensor, stems: Sequence[str], sample_rate: int) -> dict[str, Any]:
    if not stems:
        return {"targets": []}
    with torch.inference_mode():
        values = bss_eval.evaluate(references, estimates, sample_rate)
    by_metric = {metric: values[metric].tolist() for metric in METRICS}
    return {
        "targets": [
            {
                "name": stem,
                "frames": [
                    # museval's digits.
                    {
                        "time": float(at),
                        "duration": 1.0,
                        "metrics": {m: round(v[row][at], 5) for m, v in by_metric.items()},
                    }
                    for at in range(values["SDR"].shape[-1])
                ],
            }
            for row, stem in enumerate(stems)
        ]
    }


def _is_heard(waveform: Tensor) -> bool:
    # museval calls silent what sums to zero over the channels at every sample.
    return bool((waveform.double().sum(dim=0) != 0).any())


def device(name: str, solver: str) -> torch.device:
    """Where networks and solver compute. Raises `UserError` for what is not there, or no solver can use."""
    if solver not in SOLVERS:
        raise UserError(f"solver={solver}: not one of {', '.join(SOLVERS)}.")
    if solver == MUSEVAL and name not in ("auto", "cpu"):
        raise UserError(f"device={name}: museval computes on the processor only. Set solver=torch, or device=cpu.")
    if solver == MUSEVAL or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    there = ["auto", "cpu", "cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if name not in there or (name == "cuda" and not torch.cuda.is_available()):
        there.remove("cuda")
        raise UserError(f"device={name}: this machine has no such device. Choose one of {', '.join(there)}.")
    return torch.device("cuda" if name == "auto" else name)


def check_museval() -> None:
    """Raises `UserError` if museval, or a program that it calls, is not installed."""
    try:
        import museval  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"evaluation needs museval ({error}). pip install 'stemwise[eval]'") from None
    except RuntimeError as error:
        # stempeg, which museval imports, looks for both programs.
        raise UserError(f"evaluation needs ffmpeg and ffprobe on the PATH ({error}). apt-get install ffmpeg") from None
