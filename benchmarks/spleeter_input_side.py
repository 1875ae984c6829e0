"""Spleeter's input pipeline, timed in its own environment: `spleeter_input_side.py JOB.json OUTPUT.json`.

JOB.json: `csv`, `root`, `cache` (a path that does not exist yet), `chunks` per song, `batches` to time. What runs is
`spleeter.dataset.get_training_dataset`. Writes the seconds that it takes to fill its cache, and, from the full cache,
the seconds until the first batch (its buffer of 256 examples to shuffle) and those of the batches after it.
Knows nothing of stemwise; runs on Python 3.8 to 3.11.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import tensorflow as tf
from spleeter.audio.adapter import AudioAdapter
from spleeter.dataset import DatasetBuilder, get_training_dataset

AUDIO = {"mix_name": "mix", "sample_rate": 44100, "frame_length": 4096, "frame_step": 1024, "T": 512, "F": 1024}


def main(job: dict) -> dict:
    """Seconds of each part."""
    params = {
        **AUDIO,
        "n_channels": 2,
        "instrument_list": job["stems"],
        "train_csv": job["csv"],
        "training_cache": job["cache"],
        "batch_size": job["batch_size"],
        "n_chunks_per_song": job["chunks"],
    }
    cached = []
    original = DatasetBuilder.cache

    def cache(self, dataset, path, wait):
        cached.append(original(self, dataset, path, wait))
        return cached[-1]

    DatasetBuilder.cache = cache  # only to get hold of what comes out of it
    batches = get_training_dataset(params, AudioAdapter.default(), job["root"])
    start = time.perf_counter()
    count = sum(1 for _ in cached[-1])
    build = time.perf_counter() - start
    start = time.perf_counter()
    served = iter(batches)
    next(served)
    first = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(job["batches"]):
        next(served)
    return {"chunks": count, "build": build, "first": first, "batches": time.perf_counter() - start}


if __name__ == "__main__":
    tf.get_logger().setLevel("ERROR")
    found = main(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(found))
