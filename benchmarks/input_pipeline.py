"""Times what is before a training step, beside Spleeter's: `python benchmarks/input_pipeline.py`.

Filling the cache, in seconds of audio (of every stem and mixture) per second and core, from several formats; examples
per second out of the cache, as the loader hands them over and as float32 magnitudes; and the share of a step that
training waits for data. 4 stems, batches of 4 with 512 frames of 1024 bins, on songs that stemwise composes.

Warm: the files are in memory. Cold: the kernel was asked to forget them before each epoch; a disk that caches by itself
does not forget. Spleeter's pipeline is tf.data with its own cache (`spleeter_input_side.py`).
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environment
import lightning
import numpy as np
import report
import timing
import torch
from lightning.pytorch.profilers import SimpleProfiler
from torch.utils.data import DataLoader

from stemwise import audio
from stemwise.augment import Gain, PitchShift, Polarity, Remix, TimeStretch
from stemwise.cache import storage
from stemwise.cache.store import Cache
from stemwise.data import StemData
from stemwise.datasets import demo
from stemwise.index import Cell, Signal
from stemwise.masks import MaskRule
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram
from stemwise.training import SeparatorTraining
from stemwise.unet import UNetSettings

HERE = Path(__file__).resolve().parent
STEMS = ("vocals", "drums", "bass", "other")
FORMATS = {"wav": "WAV", "flac": "FLAC", "mp3": "MP3", "m4a": "AAC (M4A, `.stem.mp4`)"}
BATCH, VERSE, CHUNK = 4, 30.0, 20.0  # seconds; a chunk is what Spleeter decodes at a time
SETTINGS = Spectrogram()
LIMIT = 3.0  # seconds after which a slow loader is not timed any longer
TARGET_RATE, TARGET_BUILD, TARGET_WAIT = 200, 4, 0.05
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "stretch and pitch": {"stretch": TimeStretch(), "pitch": PitchShift()},
    "remix, gain, polarity": {"remix": Remix(), "gain": Gain(), "polarity": Polarity()},
}
KINDS = (
    ("half", "none"),
    ("decibel", "none"),
    ("complex", "none"),
    ("half", "stretch and pitch"),
    ("complex", "remix, gain, polarity"),
)


@dataclass(frozen=True)
class Rate:
    """Examples per second of one way to serve them."""

    storage: str
    augment: str
    workers: int
    state: str
    handed_over: float
    magnitudes: float


def main() -> None:
    """Measures and writes `results/DEVICE/input_pipeline.{md,json}`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--songs", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a song")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batches", type=int, default=40, help="batches from a warm cache that are timed")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=8, help="steps of training, after two that do not count")
    parser.add_argument("--precision", default="bf16-mixed", help="of the training (default: the fastest)")
    parser.add_argument("--scratch", type=Path, help="where songs and caches go, and are removed again")
    parser.add_argument("--no-spleeter", action="store_true", help="only ours")
    environment.add_option(parser)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.scratch) as folder:
        measure(chosen, Path(folder))


def measure(chosen: argparse.Namespace, folder: Path) -> None:
    """All parts, one after the other; Spleeter's and ours take turns."""
    compose(folder, chosen.songs, chosen.seconds)
    builds: dict[str, list[float]] = {name: [] for name in FORMATS}
    theirs = []
    for number in range(chosen.repeats):
        for name in FORMATS:
            builds[name].append(build_rate(folder, name, chosen.songs, chosen.seconds))
        if not chosen.no_spleeter:
            theirs.append(spleeter(chosen, folder, number))
    rates = [rate for kind, augment in KINDS for rate in served(chosen, folder, kind, augment)]
    waits = waiting(chosen, folder)
    write(builds, theirs, rates, waits, chosen)


def compose(folder: Path, songs: int, seconds: float) -> None:
    """Songs in every format, and an index CSV of each, with paths that Spleeter can read too."""
    names = ("mix", *STEMS)
    times = -(-seconds // VERSE)
    for number in range(songs):
        stems = demo.compose(number, seconds=VERSE)
        waves = {"mix": sum(stems.values()), **stems}
        for name in names:
            whole = np.tile(waves[name], int(times))[:, : round(seconds * SETTINGS.sample_rate)]
            for kind in FORMATS:
                audio.write(
                    folder / kind / f"{number}-{name}.{kind}", torch.from_numpy(whole), SETTINGS.sample_rate, codec=kind
                )
    for kind in FORMATS:
        rows = [",".join([f"{number}-{name}.{kind}" for name in names] + [str(seconds)]) for number in range(songs)]
        header = ",".join([f"{name}_path" for name in names] + ["duration"])
        (folder / kind / "train.csv").write_text("\n".join([header, *rows, ""]))


def build_rate(folder: Path, kind: str, songs: int, seconds: float) -> float:
    """Seconds of audio per second and core while a cache of half precision is filled."""
    where = folder / "built"
    cache = Cache(where, SETTINGS, storage.by_name("half"))
    signals: list[Signal] = [
        (Cell(folder / kind / f"{number}-{name}.{kind}"),) for number in range(songs) for name in ("mix", *STEMS)
    ]
    cores = len(os.sched_getaffinity(0))
    taken = timing.timed(lambda: cache.build(dict.fromkeys(signals, seconds), workers=cores))
    shutil.rmtree(where)
    return len(signals) * seconds / taken / cores


def spleeter(chosen: argparse.Namespace, folder: Path, number: int) -> dict[str, float]:
    """Spleeter's rates: `build` in seconds of audio per second and core, `examples` per second, `first` in seconds."""
    programs = environment.prepare("spleeter", chosen.environments)
    chunks = max(int(chosen.seconds // CHUNK), 2)
    job = {
        "csv": str(folder / "wav/train.csv"),
        "root": str(folder / "wav"),
        "cache": str(folder / f"theirs{number}/cache"),
        "stems": list(STEMS),
        "batch_size": BATCH,
        "chunks": chunks,
        "batches": chosen.batches,
    }
    paths = folder / "job.json", folder / "found.json"
    paths[0].write_text(json.dumps(job))
    done = subprocess.run(
        [programs / "python", HERE / "spleeter_input_side.py", *paths],
        capture_output=True,
        text=True,
        env=environment.quiet(),
    )
    if done.returncode:
        sys.exit(f"Spleeter's side failed:\n{done.stderr[-4000:]}")
    shutil.rmtree(folder / f"theirs{number}")
    found = json.loads(paths[1].read_text())
    cores = len(os.sched_getaffinity(0))
    heard = found["chunks"] * CHUNK * (1 + len(STEMS))
    return {
        "build": heard / found["build"] / cores,
        "examples": BATCH * chosen.batches / found["batches"],
        "first": found["first"],
    }


def served(chosen: argparse.Namespace, folder: Path, kind: str, augment: str) -> Iterator[Rate]:
    """Examples per second for each number of workers, warm and cold."""
    for workers in chosen.workers:
        data = made(folder, kind, augment, workers, chosen.songs)
        loader = data.train_dataloader()
        over, magnitudes = (rate(data, loader, convert, chosen.batches) for convert in (False, True))
        yield Rate(kind, augment, workers, "warm", over, magnitudes)
        if augment == "none":
            over, magnitudes = (cold(data, loader, convert) for convert in (False, True))
            yield Rate(kind, augment, workers, "cold", over, magnitudes)


def made(folder: Path, kind: str, augment: str, workers: int, songs: int) -> StemData:
    """A data module with its cache filled; an epoch is long enough that its end is not what is timed."""
    data = StemData(
        STEMS,
        SETTINGS,
        train=folder / "wav/train.csv",
        valid=folder / "wav/train.csv",
        cache=folder / "cache",
        storage=kind,
        augment=AUGMENTATIONS[augment],
        batch_size=BATCH,
        examples_per_song=-(-4000 // songs),
        num_workers=workers,
    )
    data.prepare_data()
    data.setup("fit")
    return data


def rate(data: StemData, loader: DataLoader[Any], convert: bool, batches: int) -> float:
    """Examples per second after the first batches."""
    stream = iter(loader)
    before = 1 + 2 * loader.num_workers  # what was waiting in the workers' queues does not count
    for batch in itertools.islice(stream, before):
        data.on_after_batch_transfer(batch, 0)
    return per_second(data, stream, convert, batches)


def per_second(data: StemData, stream: Iterator[Any], convert: bool, batches: int) -> float:
    """Examples per second of the next batches, or of those that `LIMIT` allows."""
    start = time.perf_counter()
    count = 0
    for batch in itertools.islice(stream, batches):
        count += 1
        if convert:
            data.on_after_batch_transfer(batch, 0)
        if time.perf_counter() - start > LIMIT:
            break
    return BATCH * count / (time.perf_counter() - start)


def cold(data: StemData, loader: DataLoader[Any], convert: bool) -> float:
    """Examples per second from the first batch on, until about half the cache has been read."""
    songs = data.catalogue.songs("train")
    crops = sum(song.seconds for song in songs) / (SETTINGS.frames * SETTINGS.hop / SETTINGS.sample_rate)
    next(iter(loader))  # workers are there
    time.sleep(1)  # and have done what they were given
    forget(data.source.folder)  # type: ignore[union-attr]
    batches = max(int(crops / 2 / BATCH), 1)
    start = time.perf_counter()
    for batch in itertools.islice(loader, batches):
        if convert:
            data.on_after_batch_transfer(batch, 0)
    return BATCH * batches / (time.perf_counter() - start)


def forget(folder: Path) -> None:
    """Asks the kernel to drop what it holds of these files."""
    for path in folder.rglob("*.stft"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def waiting(chosen: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds per step of real training, and how many of them it waited for the loader and converted what came."""
    data = made(folder, "half", "none", min(len(os.sched_getaffinity(0)), 8), chosen.songs)
    model = Separator(STEMS, SETTINGS, UNetSettings(), MaskRule())
    module = SeparatorTraining(
        model,
        lambda parameters: torch.optim.Adam(parameters, lr=1e-4),
        lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
    )
    profiler = SimpleProfiler()
    trainer = lightning.Trainer(
        accelerator="cpu",
        precision=chosen.precision,
        max_steps=chosen.steps + 2,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        profiler=profiler,
    )
    trainer.fit(module, data)
    took = profiler.recorded_durations
    part = slice(2, None)  # the first step starts the workers, the second still tries out what is fastest
    names = {"wait": ".train_dataloader_next", "convert": "StemData.on_after_batch_transfer", "batch": "training_batch"}
    means = {
        name: float(np.mean(next(took[key] for key in took if key.endswith(ending))[part]))
        for name, ending in names.items()
    }
    return {**means, "step": sum(means.values())}


def write(
    builds: dict[str, list[float]],
    theirs: Sequence[dict[str, float]],
    rates: Sequence[Rate],
    waits: dict[str, float],
    chosen: argparse.Namespace,
) -> None:
    """The tables, the figures behind them, and the rows of the summary."""
    share = (waits["wait"] + waits["convert"]) / waits["step"]
    built = [[FORMATS[kind], timing.spread(found)] for kind, found in builds.items()]
    if theirs:
        built.append(["Spleeter, from WAV", timing.spread([run["build"] for run in theirs])])
    out = [[r.storage, r.augment, r.workers, r.state, r.handed_over, r.magnitudes] for r in rates]
    if theirs:
        examples = timing.spread([run["examples"] for run in theirs])
        out.append(["Spleeter (tf.data)", "none", "", "warm", "", examples])
    columns = ["storage", "augmentation", "workers", "files", "examples/s handed over", "examples/s as float32"]
    text = "\n".join(
        [
            "# Input pipeline\n",
            f"{chosen.songs} songs of {chosen.seconds:.0f} s, 4 stems, batches of {BATCH}, T=512, F=1024.\n",
            "## Filling the cache: seconds of audio per second and core\n",
            report.table(["from", "seconds per second and core"], built),
            "\n## Examples per second out of the cache\n",
            report.table(columns, out),
            f"\n## Waiting for data\n\nOf a step of {waits['step']:.2f} s ({chosen.precision}), "
            f"{1000 * waits['wait']:.1f} ms are waiting for the loader and {1000 * waits['convert']:.1f} ms making "
            f"float32 magnitudes of what came: {100 * share:.1f} %.",
        ]
    )
    data = {"build": builds, "spleeter": list(theirs), "examples": [vars(r) for r in rates], "waiting": waits}
    versions = {"spleeter": environment.versions("spleeter", chosen.environments)} if theirs else {}
    report.write("input_pipeline", text, data, versions, summary=summary(builds, theirs, rates, waits))


def summary(
    builds: dict[str, list[float]], theirs: Sequence[dict[str, float]], rates: Sequence[Rate], waits: dict[str, float]
) -> list[report.Row]:
    """What the issue asks for."""
    best = max((r for r in rates if (r.storage, r.augment, r.state) == ("half", "none", "warm")), key=_by_magnitudes)
    share = (waits["wait"] + waits["convert"]) / waits["step"]
    ours = float(np.median(builds["wav"]))
    their_build = float(np.median([run["build"] for run in theirs])) if theirs else None
    their_rate = float(np.median([run["examples"] for run in theirs])) if theirs else None
    return [
        report.Row(
            what="cache build, WAV, per core",
            peer=f"Spleeter: {their_build:.0f} s of audio/s" if their_build else "not measured",
            ours=f"{ours:.0f} s of audio/s",
            ratio=ours / their_build if their_build else None,
            target=f"at least {TARGET_BUILD} ×",
            met=ours >= TARGET_BUILD * their_build if their_build else None,
        ),
        report.Row(
            what="examples from the cache, as float32",
            peer=f"Spleeter: {their_rate:.0f} per s" if their_rate else "not measured",
            ours=f"{best.magnitudes:.0f} per s (handed over: {best.handed_over:.0f})",
            ratio=best.magnitudes / their_rate if their_rate else None,
            target=f"at least {TARGET_RATE} per s",
            met=best.magnitudes >= TARGET_RATE,
        ),
        report.Row(
            what="share of a training step that waits for data",
            peer="",
            ours=f"{100 * share:.1f} %",
            target=f"under {100 * TARGET_WAIT:.0f} %",
            met=share < TARGET_WAIT,
        ),
    ]


def _by_magnitudes(found: Rate) -> float:
    return found.magnitudes


if __name__ == "__main__":
    main()
