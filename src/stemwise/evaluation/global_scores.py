"""GNSDR, GSIR and GSAR: means over clips by their length, as papers on MIR-1K report them.

NSDR is how much higher the SDR of an estimate is than that of the unprocessed mixture (Ozerov et al., "Adaptation of
Bayesian models for single-channel source separation and its application to voice/music separation in popular songs",
2007); a global score weighs each clip by its duration (Hsu and Jang, "On the improvement of singing voice separation
for monaural recordings using the MIR-1K dataset", 2010). The SDR of those papers is `solver=mir_eval`.
"""

import math
from dataclasses import dataclass

import numpy as np

from stemwise.evaluation.results import MIXTURE, MODEL, Evaluation
from stemwise.evaluation.statistics import Array
from stemwise.evaluation.tables import cell

NAMES = ("GNSDR", "GSIR", "GSAR")


@dataclass(frozen=True)
class GlobalScores:
    """dB of one stem, and of how many clips: those in which model and mixture have a score."""

    gnsdr: float
    gsir: float
    gsar: float
    clips: int


def of(evaluation: Evaluation, stem: str, variant: str = MODEL) -> GlobalScores:
    """The global scores of a stem; nan where no clip has one, or the mixture was not scored."""
    seconds = np.array([song.seconds for song in evaluation.songs])
    gain = evaluation.values(variant, stem) - evaluation.values(MIXTURE, stem)
    sir, sar = (_mean(evaluation.values(variant, stem, metric), seconds) for metric in ("SIR", "SAR"))
    return GlobalScores(_mean(gain, seconds), sir, sar, int(np.isfinite(gain).sum()))


def table(evaluation: Evaluation) -> str:
    """Markdown: a row per stem and variant."""
    lines = [f"| stem | what | {' | '.join(NAMES)} | clips |", "|---|---|" + "---:|" * (len(NAMES) + 1)]
    for stem in evaluation.about.stems:
        for variant in evaluation.variants:
            scores = of(evaluation, stem, variant)
            cells = (f"{value:.2f}" for value in (scores.gnsdr, scores.gsir, scores.gsar))
            lines.append(f"| {cell(stem)} | {variant} | {' | '.join(cells)} | {scores.clips} |")
    return "\n".join(lines)


def _mean(values: Array, weights: Array) -> float:
    known = np.isfinite(values)
    return float(np.average(values[known], weights=weights[known])) if known.any() else math.nan
