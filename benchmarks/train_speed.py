"""Times one step of training beside Spleeter's and beside plain PyTorch: `python benchmarks/train_speed.py`.

4 stems, batches of 4 with 512 frames of 1024 bins, full-size networks, on the processor. Each candidate is a process of
its own that takes a step when it is asked to; they take turns. Spleeter trains as `spleeter train` does, stemwise as
`python -m train` does, both on the same index CSV, each with its own cache and input pipeline. Plain PyTorch
(`plain_unet.py`) has one batch in memory. Starting, the first step and compilation are not in a step's time. Memory is
the peak of the training process; loaders and other children are not in it.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ceilings
import environment
import floor
import plain_unet
import report
import soundfile
import steered
import timing
import torch

from stemwise.datasets import demo

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src"
RATE = 44100
BATCH = 4
STEMS = ("vocals", "drums", "bass", "other")
SONGS, SECONDS = 4, 24.0  # Spleeter cuts chunks of 20 s

BF16 = ("trainer.precision=bf16-mixed",)
OURS: dict[str, tuple[str, ...]] = {
    "fp32": (),
    "fp32-compiled": ("compile=default",),
    # Spleeter's networks do less: their normalisations use stored statistics, and dropout does nothing.
    "fp32-stored": ("normalization=stored", "model.unet.dropout=0"),
    "bf16": BF16,
    "bf16-compiled": (*BF16, "compile=default"),
}
NAMES = {
    "spleeter": "Spleeter, fp32",
    "plain": "plain PyTorch, fp32",
    "fp32": "stemwise, fp32",
    "fp32-compiled": "stemwise, fp32, compiled",
    "fp32-stored": "stemwise, fp32, no more work than Spleeter's (`normalization=stored model.unet.dropout=0`)",
    "bf16": "stemwise, bf16 (`trainer.precision=bf16-mixed`)",
    "bf16-compiled": "stemwise, bf16, compiled",
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
COLUMNS = (
    "what",
    "seconds per step",
    "faster than Spleeter",
    "than plain PyTorch",
    "times the floor",
    "peak memory, GB",
    "start and first step, s",
)
INTRODUCTION = """# One step of training

{size}.
Medians of {repeats} steps, in brackets the fastest and the slowest. Each of ours takes turns with Spleeter and plain
PyTorch, and ratios are those of the same turns. Spleeter trains by its own estimator and input pipeline, stemwise by
`python -m train`, on the same index CSV; plain PyTorch is `plain_unet.py`, one loop over stems with one batch in
memory. Peak memory is that of the training process.

The floor is what arithmetic and bytes demand at the rates that this machine was measured at, layer by layer the larger
of the two (`floor.py`)."""
PROFILES = """## Where the time of a step goes

Operators by the time that they take themselves, forward and backward, of one step under torch's profiler."""


def main() -> int:
    """Times the candidates and writes the report."""
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no halted program is left behind
    programs = environment.prepare("spleeter", options.environments) if "spleeter" in options.candidates else None
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        songs = write_songs(Path(folder))
        commands = _commands(options, Path(folder), songs, programs)
        found = measure(commands, options.repeats, [name for name in options.profiles if name in commands])
    floors = _floors(options)
    versions = {"spleeter": environment.versions("spleeter", options.environments)} if programs else {}
    _report(options, found, floors, versions)
    return 0


def measure(commands: Mapping[str, steered.Program], repeats: int, profiles: Sequence[str]) -> dict[str, Any]:
    """Seconds of each step, seconds until the first was done, peak of memory, and operators of those to profile.

    Each of ours takes turns with all the others, one of ours after the other: all at once would need 30 GB. `beside`
    are the seconds of the others meanwhile.
    """
    others = {name: program for name, program in commands.items() if name not in OURS}
    ours = [name for name in commands if name in OURS]
    found: dict[str, Any] = {}
    with _under_way(others) as first:
        for name in ours or [None]:
            mine = {name: commands[name]} if name else {}
            with _under_way(mine) as started:
                runs = _in_turn({**others, **mine}, {**first, **started}, repeats)
                operators = commands[name].ask(steered.PROFILE)["operators"] if name in profiles else []
            if name:
                beside = {other: runs[other]["seconds"] for other in others}
                found[name] = {**runs[name], "beside": beside, "operators": operators}
            for other in others:
                before = found.get(other, {"seconds": ()})["seconds"]
                found[other] = {**runs[other], "seconds": (*before, *runs[other]["seconds"])}
    return {name: found[name] for name in commands}


def _in_turn(
    programs: Mapping[str, steered.Program], first: Mapping[str, dict[str, Any]], repeats: int
) -> dict[str, dict[str, Any]]:
    peaks: dict[str, int] = {}

    def step_of(name: str) -> Callable[[], None]:
        def step() -> None:
            peaks[name] = programs[name].ask("1")["peak"]

        return step

    times = timing.in_turn({name: step_of(name) for name in programs}, repeats)
    return {
        name: {"seconds": times[name].seconds, "start": first[name]["waited"], "peak": peaks[name]} for name in programs
    }


@contextmanager
def _under_way(commands: Mapping[str, steered.Program]) -> Iterator[dict[str, dict[str, Any]]]:
    try:
        yield {name: program.start() for name, program in commands.items()}
    finally:
        for program in commands.values():
            program.stop()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    environment.add_option(parser)
    parser.add_argument("--candidates", nargs="+", choices=list(NAMES), default=list(NAMES), help="default: all")
    parser.add_argument("--profiles", nargs="*", choices=list(OURS), default=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each (default: 5)")
    parser.add_argument("--frames", type=int, default=512, help="T (default: 512)")
    parser.add_argument("--bins", type=int, default=1024, help="F (default: 1024)")
    parser.add_argument("--scratch", help="folder for songs and caches (default: the system's)")
    return parser


def write_songs(folder: Path) -> Path:
    """Songs that stemwise composes, and the index CSV that both programs train on."""
    lines = [["mix_path", *(f"{stem}_path" for stem in STEMS), "duration"]]
    for number in range(SONGS):
        stems = demo.compose(number, seconds=SECONDS)
        rest = sum(value for name, value in stems.items() if name not in STEMS[:-1])
        waveforms = {"mix": sum(stems.values()), **{stem: stems[stem] for stem in STEMS[:-1]}, "other": rest}
        for name, samples in waveforms.items():
            soundfile.write(folder / f"{number}-{name}.wav", samples.T, RATE, subtype="PCM_16")
        lines.append([*(f"{number}-{name}.wav" for name in waveforms), str(SECONDS)])
    index = folder / "songs.csv"
    index.write_text("".join(",".join(line) + "\n" for line in lines), encoding="utf-8")
    return index


def _commands(
    options: argparse.Namespace, work: Path, songs: Path, spleeter: Path | None
) -> dict[str, steered.Program]:
    made = {}
    for name in options.candidates:
        folder = work / name
        folder.mkdir()
        if name == "spleeter":
            assert spleeter
            command, places = _theirs(spleeter, options, folder, songs), environment.quiet()
        elif name == "plain":
            job = {"stems": len(STEMS), "filters": plain_unet.FULL, "shape": _shape(options)}
            command, places = [sys.executable, HERE / "plain_side.py", _job(folder, job)], dict(os.environ)
        else:
            command, places = _ours(OURS[name], options, folder, songs), variables()
        made[name] = steered.Program(NAMES[name], command, places)
    return made


def _theirs(programs: Path, options: argparse.Namespace, folder: Path, songs: Path) -> list[str | Path]:
    settings = {"T": options.frames, "F": options.bins, "batch_size": BATCH}
    job = {"task": "timed", "csv": str(songs), "root": str(songs.parent), "folder": str(folder), "settings": settings}
    return [programs / "python", HERE / "spleeter_side.py", _job(folder, [job])]


def _ours(changes: Sequence[str], options: argparse.Namespace, folder: Path, songs: Path) -> list[str | Path]:
    sizes = (f"spectrogram.frames={options.frames}", f"spectrogram.bins={options.bins}")
    steering = ("model=unet_elu", "trainer._target_=steered.trainer")  # Spleeter's network for 4 stems
    common = overrides(songs, folder.parent / "spectrograms", folder / "run")
    return [sys.executable, "-m", "train", *common, *sizes, *steering, *changes]


def overrides(songs: Path, cache: Path, run: Path) -> list[str]:
    """Arguments of `python -m train` for batches of 4 with 4 stems on the processor, without validation."""
    return [
        "stems=4",
        "data=csv",
        f"data.train={songs}",
        f"data.valid={songs}",
        f"data.cache={cache}",
        f"data.batch_size={BATCH}",
        "logger=csv",
        "trainer.accelerator=cpu",
        "trainer.limit_val_batches=0",
        f"hydra.run.dir={run}",
    ]


def variables() -> dict[str, str]:
    """The variables by which `train` finds the trainers of this folder."""
    paths = (str(HERE), str(SOURCE), os.environ.get("PYTHONPATH", ""))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def _job(folder: Path, job: Any) -> Path:
    path = folder / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    return path


def _shape(options: argparse.Namespace) -> tuple[int, int, int, int]:
    return BATCH, 2, options.frames, options.bins


def _floors(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Of each precision: operations and bytes of a step, the machine's rates, and the seconds that these make."""
    bandwidth = ceilings.bandwidth()
    found = {}
    for name, dtype in DTYPES.items():
        layers = floor.training_step(floor.full_size(len(STEMS)), _shape(options), dtype.itemsize)
        rate = ceilings.matrix_rate(dtype)
        least = floor.floor(layers, rate, bandwidth)
        found[name] = {
            "operations": sum(layer.operations for layer in layers),
            "bytes": sum(layer.bytes for layer in layers),
            "rate": rate,
            "bandwidth": bandwidth,
            "seconds of operations": least.operations,
            "seconds of bytes": least.bytes,
            "seconds": least.seconds,
        }
    return found


def _report(
    options: argparse.Namespace,
    found: dict[str, Any],
    floors: dict[str, dict[str, float]],
    versions: Mapping[str, Mapping[str, str]],
) -> None:
    size = f"{len(STEMS)} stems, batches of {BATCH} with {options.frames} frames of {options.bins} bins, full size"
    text = [
        INTRODUCTION.format(size=size, repeats=options.repeats),
        report.table(COLUMNS, [_row(name, found, floors) for name in found]),
        report.table(
            ("floor", "GFLOP", "GFLOP/s", "GB", "GB/s", "arithmetic, s", "bytes, s", "floor, s"), _least(floors)
        ),
    ]
    if profiles := {name: run["operators"] for name, run in found.items() if run.get("operators")}:
        text += [PROFILES, *(_profile(name, operators) for name, operators in profiles.items())]
    summary = [row for precision in DTYPES if (row := _target(precision, found, floors))]
    report.write("train_speed", "\n\n".join(text), {"runs": found, "floors": floors}, versions, summary=summary)


def _row(name: str, found: dict[str, Any], floors: dict[str, dict[str, float]]) -> tuple[object, ...]:
    time = timing.Timing(tuple(found[name]["seconds"]))
    return (
        NAMES[name],
        time.text(),
        *(f"{_ratio(found, other, name):.2f} ×" if other in found else "" for other in ("spleeter", "plain")),
        f"{time.median / floors[_precision(name)]['seconds']:.2f}",
        f"{found[name]['peak'] / 1e9:.2f}",
        f"{found[name]['start']:.0f}",
    )


def _least(floors: dict[str, dict[str, float]]) -> Iterator[tuple[object, ...]]:
    for precision, least in floors.items():
        yield (
            precision,
            f"{least['operations'] / 1e9:.0f}",
            f"{least['rate'] / 1e9:.0f}",
            f"{least['bytes'] / 1e9:.2f}",
            f"{least['bandwidth'] / 1e9:.1f}",
            *(f"{least[key]:.2f}" for key in ("seconds of operations", "seconds of bytes", "seconds")),
        )


def _profile(name: str, operators: Sequence[Mapping[str, Any]]) -> str:
    total = sum(row["seconds"] for row in operators)
    rows = [(f"`{r['name']}`", f"{r['seconds']:.2f}", f"{r['seconds'] / total:.0%}", r["calls"]) for r in operators]
    return f"{NAMES[name]}:\n\n" + report.table(("operator", "seconds", "share", "calls"), rows)


def _target(precision: str, found: dict[str, Any], floors: dict[str, dict[str, float]]) -> report.Row | None:
    """The fastest of ours in this precision, beside Spleeter and the floor."""
    ours = [name for name in found if name in OURS and name.startswith(precision) and "stored" not in name]
    if not ours or "spleeter" not in found:
        return None
    best = min(ours, key=lambda name: _median(found, name))
    ratio, floors_of = _ratio(found, "spleeter", best), _median(found, best) / floors[precision]["seconds"]
    bf16 = precision == "bf16"
    met = ratio >= 2 and floors_of <= 1.5 if bf16 else ratio >= 1
    return report.Row(
        what=f"train step, {precision}",
        peer=f"Spleeter fp32: {_median(found, 'spleeter'):.2f} s",
        ours=f"{_median(found, best):.2f} s ({'compiled' if 'compiled' in best else 'eager'})",
        ratio=ratio,
        floor=f"{floors[precision]['seconds']:.2f} s; {floors_of:.2f} × of it",
        target="at least 2 × faster than Spleeter, within 1.5 × of the floor"
        if bf16
        else "at least as fast as Spleeter",
        met=met,
        note="" if met else "where the time goes: the profile in train_speed.md",
    )


def _median(found: dict[str, Any], name: str) -> float:
    return timing.Timing(tuple(found[name]["seconds"])).median


def _ratio(found: dict[str, Any], other: str, name: str) -> float:
    """How many times faster `name` is than `other`: ours than the others in the same turns."""
    theirs = found[name].get("beside", {}).get(other) or found[other]["seconds"]
    return timing.Timing(tuple(theirs)).median / _median(found, name)


def _precision(name: str) -> str:
    return "bf16" if name.startswith("bf16") else "fp32"


if __name__ == "__main__":
    sys.exit(main())
