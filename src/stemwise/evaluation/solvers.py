"""What computes the scores of a song: museval, or our own solver, which equals it and is faster; or mir_eval.

Both of the former are BSSEval v4, in windows of a second. mir_eval's `bss_eval_sources` is version 3, of a whole mono
song at once (Vincent, Gribonval, Févotte, 2006), which the papers on MIR-1K have.

Axes: S stem, C channel, N sample.
"""

import json
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stemwise.errors import UserError
from stemwise.evaluation import bss_eval
from stemwise.evaluation.documents import METRICS

MUSEVAL, TORCH, MIR_EVAL = "museval", "torch", "mir_eval"
SOLVERS = (MUSEVAL, TORCH, MIR_EVAL)


def score(
    references: Tensor, estimates: Tensor, stems: Sequence[str], sample_rate: int, solver: str = MUSEVAL
) -> dict[str, Any]:
    """museval's JSON document for the stems (S, C, N) that are not silent, in references and estimates.

    mir_eval's scores are one window as long as the song, without ISR.
    """
    heard = [i for i in range(len(stems)) if _is_heard(references[i]) and _is_heard(estimates[i])]
    solve = {MUSEVAL: _by_museval, TORCH: _by_torch, MIR_EVAL: _by_mir_eval}
    document = solve[solver](references[heard], estimates[heard], [stems[i] for i in heard], sample_rate)
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


def _by_mir_eval(references: Tensor, estimates: Tensor, stems: Sequence[str], sample_rate: int) -> dict[str, Any]:
    from mir_eval.separation import bss_eval_sources

    if not stems:
        return {"targets": []}
    truth, found = references[:, 0].double().numpy(), estimates[:, 0].double().numpy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*bss_eval_sources.*Deprecated", FutureWarning)
        sdr, sir, sar, _ = bss_eval_sources(truth, found, compute_permutation=False)
    seconds = references.shape[-1] / sample_rate
    rows = zip(stems, sdr.tolist(), sir.tolist(), sar.tolist(), strict=True)
    return {
        "targets": [
            {
                "name": stem,
                "frames": [{"time": 0.0, "duration": seconds, "metrics": {"SDR": s, "SIR": i, "SAR": a, "ISR": None}}],
            }
            for stem, s, i, a in rows
        ]
    }


def _is_heard(waveform: Tensor) -> bool:
    # museval calls silent what sums to zero over the channels at every sample.
    return bool((waveform.double().sum(dim=0) != 0).any())


def device(name: str, solver: str) -> torch.device:
    """Where networks and solver compute. Raises `UserError` for what is not there, or no solver can use."""
    if solver not in SOLVERS:
        raise UserError(f"solver={solver}: not one of {', '.join(SOLVERS)}.")
    if solver != TORCH and name not in ("auto", "cpu"):
        raise UserError(f"device={name}: {solver} computes on the processor only. Set solver=torch, or device=cpu.")
    if solver != TORCH or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    there = ["auto", "cpu", "cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    if name not in there or (name == "cuda" and not torch.cuda.is_available()):
        there.remove("cuda")
        raise UserError(f"device={name}: this machine has no such device. Choose one of {', '.join(there)}.")
    return torch.device("cuda" if name == "auto" else name)


def check(solver: str, channels: int) -> None:
    """Raises `UserError` if the solver is not installed, or cannot score so many channels."""
    if solver == MUSEVAL:
        _check_museval()
    if solver != MIR_EVAL:
        return
    if channels != 1:
        raise UserError(f"solver=mir_eval: scores mono models, this one has {channels} channels. Set solver=museval.")
    try:
        import mir_eval.separation  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"solver=mir_eval needs mir_eval ({error}). pip install 'stemwise[eval]'") from None


def _check_museval() -> None:
    try:
        import museval  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(f"evaluation needs museval ({error}). pip install 'stemwise[eval]'") from None
    except RuntimeError as error:
        # stempeg, which museval imports, looks for both programs.
        raise UserError(f"evaluation needs ffmpeg and ffprobe on the PATH ({error}). apt-get install ffmpeg") from None
