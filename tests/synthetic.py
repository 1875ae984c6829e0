"""Evaluations made of random numbers, for what reads them."""

import json
import math
from pathlib import Path

import numpy as np

from stemwise.evaluation.documents import METRICS, Medians, Scores, SongScores
from stemwise.evaluation.results import About, Evaluation, Scored

FOUR = ("vocals", "drums", "bass", "other")


def about(model: str = "mine", stems: tuple[str, ...] = FOUR, **other: object) -> About:
    values = {
        "model": model,
        "checkpoint": f"/nowhere/{model}.safetensors",
        "digest": "0" * 32,
        "data": "musdb18",
        "split": "test",
        "solver": "museval",
        "stems": stems,
        "sample_rate": 44100,
        "channels": 2,
        "band": 11025.0,
        "version": "0",
    }
    return About(**values | other)


def medians(stems: tuple[str, ...], level: float, random: np.random.Generator) -> Medians:
    return {stem: {metric: level + float(random.normal()) for metric in METRICS} for stem in stems}


def scored(name: str, by_variant: dict[str, Medians], stems: tuple[str, ...] = FOUR) -> Scored:
    files = {stem: (f"/nowhere/{stem}.wav",) for stem in stems}
    share = {stem: 0.1 * (number + 1) / 100 for number, stem in enumerate(stems)}
    return Scored(name, 200.0, by_variant, share, file=f"{name}.json", mixture=("/nowhere/mix.wav",), stems=files)


def evaluation(
    folder: Path,
    songs: int = 3,
    model: str = "mine",
    stems: tuple[str, ...] = FOUR,
    level: float = 5.0,
    **other: object,
) -> Evaluation:
    """Songs called `Song 0`, …: the model around `level` dB, the mixture around -5, the oracle around 9."""
    baselines, random = np.random.default_rng(0), np.random.default_rng([1, *model.encode()])
    found = [
        scored(
            f"Song {number}",
            {
                "model": medians(stems, level, random),
                "mixture": medians(stems, -5.0, baselines),
                "oracle": medians(stems, 9.0, baselines),
            },
            stems,
        )
        for number in range(songs)
    ]
    return Evaluation(folder, about(model, stems, **other), tuple(found))


def write_documents(made: Evaluation, seconds: int = 5) -> None:
    """Leaves the windows of every song in the evaluation's folder, each of the song's median."""
    (made.folder / "model").mkdir(parents=True, exist_ok=True)
    for song in made.songs:
        targets = [
            {"name": stem, "frames": [{"time": float(at), "metrics": values} for at in range(seconds)]}
            for stem, values in song.medians["model"].items()
        ]
        (made.folder / "model" / song.file).write_text(json.dumps({"targets": targets}))


def without(song: Scored, stem: str) -> Scored:
    """The same song with this stem silent: it has no score anywhere."""
    kept = {name: {s: m for s, m in values.items() if s != stem} for name, values in song.medians.items()}
    above = {name: share for name, share in song.above.items() if name != stem}
    return Scored(**vars(song) | {"medians": kept, "above": above})


def scores(*songs: SongScores) -> Scores:
    found = Scores()
    for song in songs:
        found.add(song)
    return found


NAN = math.nan
