"""How good separated songs are, whoever separated them: museval's SDR and uSDR, and what they come to over songs.

A song's scores are `{"SDR": {stem: dB}, "uSDR": {stem: dB}}`: SDR is the median of windows of a second, and a stem that
is silent has none. Axes: S stem, C channel, N sample.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality import songs
from threadpoolctl import threadpool_limits
from torch import Tensor

from stemwise import metrics
from stemwise.evaluation import documents, solvers
from stemwise.masks import MaskRule
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram
from stemwise.unet import UNetSettings

Scores = dict[str, dict[str, float]]
METRICS = ("SDR", "uSDR")


def of_song(references: Tensor, estimates: Tensor) -> Scores:
    """The scores of estimates (S, C, N) of the stems (S, C, N)."""
    # museval's scores depend on the number of threads where a stem is the same on both channels.
    with threadpool_limits(1):
        document = solvers.score(references, estimates, songs.STEMS, songs.RATE)
    medians = {stem: metrics["SDR"] for stem, metrics in documents.medians(document).items()}
    whole = zip(songs.STEMS, metrics.usdr(references, estimates).tolist(), strict=True)
    return {"SDR": _known(medians.items()), "uSDR": _known(whole)}


def of_folder(folder: Path, data: Path, names: Sequence[str]) -> dict[str, Scores]:
    """The scores of FOLDER/<song>/<stem>.npy, each (N, C)."""
    found = {}
    for name in names:
        _, references = songs.read(data, name)
        estimates = np.stack([np.load(folder / name / f"{stem}.npy").T for stem in songs.STEMS])
        found[name] = of_song(references, torch.from_numpy(estimates).float())
    return found


def bounds(data: Path, names: Sequence[str]) -> dict[str, dict[str, Scores]]:
    """What any separator should lie between: the mixture as it is, and the best that Spleeter's masks could do."""
    oracle = Separator(songs.STEMS, Spectrogram(), UNetSettings(filters=(1, 1)), MaskRule())
    read = {name: songs.read(data, name) for name in names}
    return {
        "mixture": {name: of_song(stems, mixture.expand_as(stems)) for name, (mixture, stems) in read.items()},
        "oracle": {name: of_song(stems, oracle.oracle(mixture, stems)) for name, (mixture, stems) in read.items()},
    }


def over_songs(found: Mapping[str, Scores]) -> Scores:
    """Each stem's SDR, the median over songs, and uSDR, the mean over songs, as usual; and their means over stems."""
    averages: dict[str, Any] = {"SDR": statistics.median, "uSDR": statistics.fmean}
    result: Scores = {}
    for metric, average in averages.items():
        values = {stem: [song[metric][stem] for song in found.values() if stem in song[metric]] for stem in songs.STEMS}
        by_stem = {stem: average(each) for stem, each in values.items() if each}
        result[metric] = {**by_stem, "mean": statistics.fmean(by_stem.values())}
    return result


def _known(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    return {stem: round(value, 4) for stem, value in values if math.isfinite(value)}
