"""How time grows with batch, stems, ranks and songs: `python benchmarks/scaling.py`.

- batch: 1 to 64 examples a step; stems: 1 to 5 networks; both with half-size networks and 64 frames, so that the
  largest fits a laptop's memory. What does not fit the time budget is left out, and the table says so.
- ranks: `python -m train` with 1 and 2 processes (gloo), each with its share of the threads.
- songs: 10 to 10 000 tiny songs, each with files of its own: checking the index, building the cache, and with the cache
  built the start of a training up to its first batch, each in a process of its own.

The exponent of growth is the slope of a straight line through the logarithms: 1 is linear, 2 would be the square.
"""

import argparse
import csv
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import report
import timing
import torch
import train_speed

from stemwise.masks import MaskRule
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram
from stemwise.unet import UNetSettings

HERE = Path(__file__).resolve().parent
SMALL = (8, 16, 32, 64, 128, 256)  # conf/model/unet_small.yaml
FRAMES = 64
BATCHES = (1, 2, 4, 8, 16, 32, 64)
STEMS = (1, 2, 3, 4, 5)
RANKS = (1, 2)
SONGS = (10, 100, 1000, 10000)
PARTS = ("batch", "stems", "ranks", "songs")
LARGEST = 1.2  # an exponent above it is not linear any more; the square is 2
WARM, STEPS = 3, 8  # steps of each rank that do not count, and that do
FILES = "STEMWISE_STEP_TIMES"  # the variable that says where ranks leave their times

# Songs of 0.1 s, spectrograms of 1 KB: the files are many and not large.
TINY = {"sample_rate": 8000, "channels": 1, "n_fft": 256, "hop": 64, "bins": 32, "frames": 8}
STAGES = ("index", "cache", "set up", "first batch")

INTRODUCTION = """# How time grows

Medians of {repeats}, in brackets the lowest and the highest. {size}"""
SONGS_INTRODUCTION = """## Songs

A training of two stems on songs of 0.1 s, three files each, started in a process of its own: reading and checking the
index, building the cache (or finding that it is complete), setting up, and the first batch of the loader. A tenth of
the songs are validated, too. The exponents are those of the growth from {first} songs on."""


def main() -> int:
    """Runs the parts and writes the report."""
    options = _parser().parse_args()
    if options.start:
        print(json.dumps(start(options.start)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        parts = {"batch": batches, "stems": stems, "ranks": ranks, "songs": songs}
        found = {name: parts[name](options, Path(folder)) for name in options.parts}
    _report(options, found)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--stems", nargs="+", type=int, default=STEMS)
    parser.add_argument("--ranks", nargs="+", type=int, default=RANKS)
    parser.add_argument("--songs", nargs="+", type=int, default=SONGS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--budget", type=float, default=120.0, help="seconds for the batches (default: 120)")
    parser.add_argument("--scratch", help="folder for songs and caches (default: the system's)")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    return parser


# Networks


def batches(options: argparse.Namespace, _: Path) -> list[dict[str, Any]]:
    """Steps of 4 stems, batch by batch; those that would take longer than the budget have no seconds."""
    model = _model(4)
    calls: dict[int, Callable[[], object]] = {}
    left = options.budget
    for size in sorted(options.batches):
        call = _step_of(model, size)
        # The first call is the warm-up.
        left -= timing.timed(call) * (options.repeats + 1)
        if left < 0:
            break
        calls[size] = call
    times = timing.in_turn({str(size): call for size, call in calls.items()}, options.repeats, warmup=0)
    return [
        {"batch": size, "seconds": times[str(size)].seconds if size in calls else ()}
        for size in sorted(options.batches)
    ]


def stems(options: argparse.Namespace, _: Path) -> list[dict[str, Any]]:
    """Steps of batches of 4, by the count of stems."""
    calls = {str(count): _step_of(_model(count), 4) for count in options.stems}
    times = timing.in_turn(calls, options.repeats)
    return [{"stems": int(count), "seconds": time.seconds} for count, time in times.items()]


def _model(count: int) -> Separator:
    settings = UNetSettings(filters=SMALL, encoder_activation="elu", decoder_activation="elu")
    names = [f"stem{number}" for number in range(count)]
    model = Separator(names, Spectrogram(frames=FRAMES), settings, MaskRule())
    return model.to(memory_format=torch.channels_last)  # as `SeparatorTraining` has it


def _step_of(model: Separator, size: int) -> Callable[[], object]:
    settings = model.spectrogram
    mixture = torch.rand(size, settings.channels, settings.frames, settings.bins)
    parts = torch.rand(size, len(model.stems), *mixture.shape[1:])
    adam = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        adam.zero_grad()
        (model(mixture) - parts).abs().mean().backward()
        adam.step()

    return step


# Ranks


def ranks(options: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """Seconds of a step with each count of processes, whole trainings in turn."""
    index = train_speed.write_songs(work)
    seconds: dict[int, list[float]] = {count: [] for count in options.ranks}
    for repeat in range(options.repeats):
        for count in options.ranks:
            seconds[count].append(_trained(count, index, work / f"run-{repeat}-{count}"))
    return [{"ranks": count, "seconds": tuple(some)} for count, some in seconds.items()]


def _trained(count: int, index: Path, folder: Path) -> float:
    """Seconds of a step, the slowest rank's."""
    folder.mkdir()
    overrides = [
        *train_speed.overrides(index, folder.parent / "spectrograms", folder / "run"),
        "model=unet_small",
        f"spectrogram.frames={FRAMES}",
        "data.num_workers=1",
        "trainer._target_=scaling.trainer",
        f"trainer.devices={count}",
        f"trainer.max_steps={WARM + STEPS}",
        *(["trainer.strategy=ddp"] if count > 1 else []),
    ]
    threads = max(len(os.sched_getaffinity(0)) // count, 1)
    variables = {**train_speed.variables(), "OMP_NUM_THREADS": str(threads), FILES: str(folder)}
    done = subprocess.run([sys.executable, "-m", "train", *overrides], env=variables, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"Training with {count} ranks failed:\n{done.stderr[-4000:]}")
    return max(json.loads(path.read_text()) for path in folder.glob("rank-*.json"))


def trainer(**arguments: Any) -> Any:
    """Lightning's Trainer for `python -m train trainer._target_=scaling.trainer`; a rank leaves its seconds a step."""
    import lightning  # only the trainings need it

    class Clock(lightning.Callback):
        def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
            if trainer.global_step == WARM:
                self.began = time.perf_counter()
            if trainer.global_step == WARM + STEPS:
                path = Path(os.environ[FILES], f"rank-{trainer.global_rank}.json")
                path.write_text(json.dumps((time.perf_counter() - self.began) / STEPS))

    arguments["callbacks"] = [*arguments.get("callbacks", []), Clock()]
    return lightning.Trainer(**arguments)


# Songs


def songs(options: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """What a start takes with each count of songs: once without a cache, then with it."""
    found = []
    for count in sorted(options.songs):
        folder = work / f"songs-{count}"
        write_songs(folder, count)
        cold, *warm = (_started(folder) for _ in range(1 + options.repeats))
        found.append({"songs": count, "cold": cold, "warm": warm})
    return found


def write_songs(folder: Path, count: int) -> None:
    """`train.csv` and `valid.csv`, a tenth of it, with three files of noise for each song."""
    rows = [("mix_path", "vocals_path", "accompaniment_path", "duration")]
    for number in range(count):
        near = folder / f"{number // 100}"
        near.mkdir(parents=True, exist_ok=True)
        paths = [near / f"{number}-{name}.wav" for name in ("mix", "vocals", "accompaniment")]
        for path in paths:
            with wave.open(str(path), "wb") as file:
                file.setparams((1, 2, TINY["sample_rate"], 0, "NONE", ""))
                file.writeframes(os.urandom(2 * TINY["sample_rate"] // 10))
        rows.append((*(str(path.relative_to(folder)) for path in paths), "0.1"))
    for name, part in (("train", rows), ("valid", rows[: 2 + count // 10])):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(part)


def _started(folder: Path) -> dict[str, float]:
    command = [sys.executable, HERE / "scaling.py", "--start", folder]
    done = subprocess.run(command, env=train_speed.variables(), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"Starting on {folder} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def start(folder: Path) -> dict[str, float]:
    """Seconds of the stages up to the first batch of a training on these songs."""
    from stemwise.data import StemData  # two seconds, and only this needs it

    settings = Spectrogram(**TINY)
    csvs = {split: folder / f"{split}.csv" for split in ("train", "valid")}
    data = StemData(["vocals", "accompaniment"], settings, folder, cache=folder / "cache", **csvs)
    calls: Mapping[str, Callable[[], object]] = {
        "index": lambda: [data.catalogue.checked(split) for split in csvs],
        "cache": data.prepare_data,
        "set up": lambda: data.setup("fit"),
        "first batch": lambda: next(iter(data.train_dataloader())),
    }
    return {stage: timing.timed(calls[stage]) for stage in STAGES}


def exponent(amounts: Sequence[float], seconds: Sequence[float]) -> float:
    """k of seconds ≈ c · amount^k: the slope of the least-squares line through the logarithms."""
    x, y = [math.log(amount) for amount in amounts], [math.log(second) for second in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


# Report


def _report(options: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> None:
    size = f"Networks with filters {', '.join(map(str, SMALL))}, {FRAMES} frames of 1024 bins, float32."
    text = [INTRODUCTION.format(repeats=options.repeats, size=size)]
    summary: list[report.Row] = []
    if "batch" in found:
        text += ["## Batch, 4 stems", _networks("batch", found["batch"], lambda row: row["batch"])]
        summary += _even("batch", found["batch"])
    if "stems" in found:
        text += ["## Stems, batches of 4", _networks("stems", found["stems"], lambda _: 4)]
        summary += _even("stems", found["stems"])
    if "ranks" in found:
        text += ["## Ranks, batches of 4 each", _networks("ranks", found["ranks"], lambda row: 4 * row["ranks"])]
    if "songs" in found:
        rows, lines = _songs(found["songs"])
        text += [SONGS_INTRODUCTION.format(first=_fitted(found["songs"])[0]["songs"]), rows]
        summary += lines
    report.write("scaling", "\n\n".join(text), found, {}, summary=summary)


def _networks(what: str, rows: Sequence[Mapping[str, Any]], examples: Callable[[Any], int]) -> str:
    """A table of seconds per step and of examples per second."""
    lines = []
    for row in rows:
        if row["seconds"]:
            time = timing.Timing(tuple(row["seconds"]))
            lines.append((row[what], time.text(), f"{examples(row) / time.median:.2f}"))
        else:
            lines.append((row[what], "not run: over the time budget", ""))
    return report.table((what, "seconds per step", "examples per second"), lines)


def _even(what: str, rows: Sequence[Mapping[str, Any]]) -> list[report.Row]:
    measured = [row for row in rows if row["seconds"]]
    if len(measured) < 2:
        return []
    medians = [timing.Timing(tuple(row["seconds"])).median for row in measured]
    growth = exponent([row[what] for row in measured], medians)
    span = f"{measured[0][what]} to {measured[-1][what]}"
    return [_linear(f"train step by {what}, {span}", f"{medians[0]:.2f} to {medians[-1]:.2f} s", growth)]


def _linear(what: str, ours: str, growth: float) -> report.Row:
    return report.Row(
        what=what,
        peer="",
        ours=f"{ours}, exponent {growth:.2f}",
        target="nothing grows with the square",
        met=growth <= LARGEST,
    )


def _fitted(rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Those that say how it grows: with fewer songs a start takes as long as with none."""
    return [row for row in rows if row["songs"] >= 100] if rows[-1]["songs"] > 100 else rows


def _songs(rows: Sequence[dict[str, Any]]) -> tuple[str, list[report.Row]]:
    columns = ("songs", "cache", *(f"{stage}, s" for stage in STAGES), "to the first batch, s")
    lines, grown = [], []
    for kind, runs in (("cold", lambda row: [row["cold"]]), ("warm", lambda row: row["warm"])):
        for row in rows:
            cells = [timing.spread([run[stage] for run in runs(row)]) for stage in STAGES]
            lines.append((row["songs"], kind, *cells, timing.spread(_totals(runs(row)))))
        if len(fitted := _fitted(rows)) > 1:
            counts = [row["songs"] for row in fitted]
            stages = [[_median(runs(row), stage) for row in fitted] for stage in STAGES]
            totals = [timing.Timing(tuple(_totals(runs(row)))).median for row in fitted]
            powers = [exponent(counts, seconds) for seconds in (*stages, totals)]
            lines.append(("exponent", kind, *(f"{power:.2f}" for power in powers)))
            name = f"time to first batch at {counts[-1]} songs, {'cache to build' if kind == 'cold' else 'cache built'}"
            grown.append(_linear(name, f"{totals[-1]:.1f} s", max(powers)))
    return report.table(columns, lines), grown


def _totals(runs: Sequence[Mapping[str, float]]) -> list[float]:
    return [sum(run[stage] for stage in STAGES) for run in runs]


def _median(runs: Sequence[Mapping[str, float]], stage: str) -> float:
    return timing.Timing(tuple(run[stage] for run in runs)).median


if __name__ == "__main__":
    sys.exit(main())
