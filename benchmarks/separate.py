"""Times separation against Spleeter, Open-Unmix and HTDemucs: `python benchmarks/separate.py`.

Three parts, each with the separators in turn, on the processor. Whole commands (`stemwise separate`, `spleeter
separate`), from the start of a process to its end. In process: from a waveform in memory to four stems in memory, once
the model is loaded and warm. And each stage of ours alone (`separate_stages.py`).

Four stems, full-size networks with random weights, which take as long as trained ones. Peak memory is that of all
processes of a command together, or of the one process that separates. `--quick` is for a look.
"""

import argparse
import itertools
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ceilings
import environment
import floor
import golden
import numpy as np
import report
import separate_stages
import soundfile
import steered
import timing
import torch
import watched
from timing import Timing
from watched import Run

from stemwise import model_file
from stemwise.datasets import demo
from stemwise.separator import Separator
from stemwise.spleeter import model as spleeter_model

RATE = 44100
VERSE = 30.0  # seconds that stemwise composes; a song repeats them
CASE = golden.Case("4stems", "full size", golden.ELU, {"instrument_list": golden.FOUR})
PRECISIONS = {"stemwise": "float32", "stemwise, bf16": "bfloat16"}
# Seconds up to which each takes part. Spleeter cuts what is longer, and would run out of memory (30 MB a second), as
# Open-Unmix does; HTDemucs, about as long as the song, takes its time.
LONGEST = {"spleeter": 600.0, "openunmix": 240.0, "demucs": 60.0}
WHOLE_SONGS = 600.0  # above it ours hands its stems over piece by piece, in process too
SONG = 240.0  # what the targets are for
SPEED, MEMORY, NETWORKS = 45.0, 1.5e9, 70.0  # the targets: × real time, bytes, × real time

Calls = Mapping[str, Callable[[], Run]]


@dataclass(frozen=True)
class Place:
    """Where things lie: the model as each program reads it, and the programs of each peer."""

    work: Path
    model: Path
    theirs: Path
    programs: Mapping[str, Path]


@dataclass(frozen=True)
class Found:
    """What one separator took for a song of so many seconds."""

    part: str
    program: str
    song: float
    runs: list[Run]

    @property
    def timing(self) -> Timing:
        return Timing(tuple(run.seconds for run in self.runs))

    @property
    def speed(self) -> float:
        """× real time, of the median run."""
        return self.song / self.timing.median

    @property
    def memory(self) -> int:
        return max(run.memory for run in self.runs)

    @property
    def data(self) -> dict[str, Any]:
        return {**vars(self), "runs": [vars(run) for run in self.runs]}


@dataclass(frozen=True)
class Stages:
    """Seconds of each stage for a song, by precision, and the least that the machine would take for the networks."""

    song: float
    timings: Mapping[str, Mapping[str, Timing]]
    floors: Mapping[str, float]


def main() -> int:
    """Times everything and writes the report."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        place = _prepare(options, Path(folder))
        lengths = sorted(options.seconds)
        repeats = list(itertools.islice(itertools.chain(options.repeats, itertools.repeat(1)), len(lengths)))
        found = []
        for part in (_commands, _in_process):
            for seconds, count in zip(lengths, repeats, strict=True):
                found += part(place, seconds, count, options)
        stages = _stages(place, max(s for s in lengths if s <= SONG or s == lengths[0]), repeats[0])
    versions = {name: environment.versions(name, options.environments) for name in options.peers}
    _report(found, stages, versions, options)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    environment.add_option(parser)
    lengths, repeats = [10.0, 60.0, SONG, 7200.0], [3, 3, 3, 1]
    parser.add_argument("--seconds", nargs="+", type=float, help="lengths of songs (default: 10 60 240 7200)")
    parser.add_argument("--repeats", nargs="+", type=int, help="runs at each length, short to long (default: 3 3 3 1)")
    parser.add_argument("--peers", nargs="+", choices=LONGEST, default=list(LONGEST), help="default: all")
    parser.add_argument("--quick", action="store_true", help="songs of 10 and 30 s, once, into results/quick")
    parser.add_argument("--options", default="", help="more options for `stemwise separate`, in one argument")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where songs and stems go: 10 GB for two hours")
    options = parser.parse_args()
    options.seconds = options.seconds or ([10.0, 30.0] if options.quick else lengths)
    options.repeats = options.repeats or ([1] if options.quick else repeats)
    return options


# --- what is separated, and with what


def _prepare(options: argparse.Namespace, work: Path) -> Place:
    """Makes the model, for both programs that read it."""
    programs = {name: environment.prepare(name, options.environments) for name in {"spleeter", *options.peers}}
    theirs, ours, song = work / "model", work / "model.safetensors", work / "verse.npy"
    np.save(song, _verse())
    config = CASE.config | {"model_dir": str(theirs)}
    job = {"task": "make", "folder": theirs, "config": config, "waveform": song, "seed": 0}
    environment.run(programs["spleeter"], [job])
    model_file.save(spleeter_model.read(theirs), ours, {})
    return Place(work, ours, theirs, programs)


def _verse() -> np.ndarray:
    """(N, 2), float32."""
    return sum(demo.compose(golden.SEED, seconds=VERSE, sample_rate=RATE).values()).T.astype(np.float32)


def _parts(seconds: float) -> Iterator[np.ndarray]:
    verse, left = _verse(), round(seconds * RATE)
    while left > 0:
        yield verse[:left]
        left -= len(verse)


@contextmanager
def _file(place: Place, seconds: float) -> Iterator[Path]:
    """The song as a WAV file, for as long as it is needed."""
    path = place.work / f"{seconds:g}.wav"
    with soundfile.SoundFile(path, "w", RATE, 2, "PCM_16") as file:
        for part in _parts(seconds):
            file.write(part)
    yield path
    path.unlink()


@contextmanager
def _array(place: Place, seconds: float) -> Iterator[Path]:
    """The song as an array (N, 2) of float32."""
    path = place.work / f"{seconds:g}.npy"
    array = np.lib.format.open_memmap(path, "w+", np.float32, (round(seconds * RATE), 2))
    at = 0
    for part in _parts(seconds):
        array[at : at + len(part)] = part
        at += len(part)
    array.flush()
    del array
    yield path
    path.unlink()


# --- the three parts


def _commands(place: Place, seconds: float, repeats: int, options: argparse.Namespace) -> list[Found]:
    """Whole commands, on a song of that length."""
    separate = [str(Path(sys.executable).with_name("stemwise")), "separate", "--model", str(place.model)]
    separate += shlex.split(options.options)
    commands = {name: [*separate, "--precision", precision] for name, precision in PRECISIONS.items()}
    if "spleeter" in options.peers and seconds <= LONGEST["spleeter"]:
        commands["spleeter"] = [str(place.programs["spleeter"] / "spleeter"), "separate"]
        commands["spleeter"] += ["-p", str(place.theirs / "config.json")]
    with _file(place, seconds) as song:
        calls = {name: lambda c=command: _run(place, c, song) for name, command in commands.items()}
        found = _in_turn(calls, repeats, warmup=int(seconds == min(options.seconds)))
    return [Found("command", name, seconds, runs) for name, runs in found.items()]


def _run(place: Place, command: Sequence[str], song: Path) -> Run:
    found = watched.run([*command, "-o", str(place.work / "out"), str(song)], environment.quiet())
    shutil.rmtree(place.work / "out")
    return found


def _in_process(place: Place, seconds: float, repeats: int, options: argparse.Namespace) -> list[Found]:
    """Loaded and warm, on a song of that length; every separator in a process of its own, which stays."""
    with ExitStack() as stack:
        song = stack.enter_context(_array(place, seconds))
        short = stack.enter_context(_array(place, min(*options.seconds, VERSE) - 1))
        programs = [steered.Program(*parts) for parts in _sides(place, seconds, options.peers)]
        for program in programs:
            stack.callback(program.stop)
            program.start()
            program.ask(str(short))
        calls = {program.name: lambda p=program: _asked(p, song) for program in programs}
        found = _in_turn(calls, repeats, warmup=0)
    return [Found("in process", name, seconds, runs) for name, runs in found.items()]


def _sides(place: Place, seconds: float, peers: Sequence[str]) -> Iterator[tuple[str, list[str], Mapping[str, str]]]:
    """Name, command and variables of each separator that takes part."""
    side = str(environment.HERE / "separate_side.py")
    ours = "stemwise" if seconds <= WHOLE_SONGS else "stream"
    for name, precision in PRECISIONS.items():
        yield name, [sys.executable, side, ours, str(place.model), precision], environment.quiet()
    arguments = {
        "spleeter": {"spleeter": ["spleeter", str(place.theirs)]},
        "openunmix": {"Open-Unmix": ["openunmix", "0"], "Open-Unmix, one Wiener step": ["openunmix", "1"]},
        "demucs": {"HTDemucs": ["demucs"]},
    }
    for peer in peers:
        for name, given in arguments[peer].items() if seconds <= LONGEST[peer] else ():
            yield name, [str(place.programs[peer] / "python"), side, *given], environment.quiet()


def _asked(program: steered.Program, song: Path) -> Run:
    answer = program.ask(str(song))
    return Run(answer["seconds"][0], answer["peak"])


def _in_turn(calls: Calls, repeats: int, warmup: int) -> dict[str, list[Run]]:
    """As `timing.in_turn`, for what times itself."""
    runs: dict[str, list[Run]] = {name: [] for name in calls}
    for number in range(-warmup, repeats):
        for name, call in calls.items():
            found = call()
            if number >= 0:
                runs[name].append(found)
    return runs


def _stages(place: Place, seconds: float, repeats: int) -> Stages:
    timings, floors = {}, {}
    with _file(place, seconds) as song:
        for name, precision in PRECISIONS.items():
            model, dtype = model_file.load(place.model), getattr(torch, precision)
            model.lower(dtype)
            timings[name] = separate_stages.measure(model, song, repeats, place.work)
            floors[name] = _floor(model, seconds, dtype)
    return Stages(seconds, timings, floors)


def _floor(model: Separator, seconds: float, dtype: torch.dtype) -> float:
    """Seconds that the networks' arithmetic and bytes take at the rates that the machine reaches."""
    settings = model.spectrogram
    windows = -(-settings.frame_count(round(seconds * RATE)) // settings.frames)
    shape = (1, settings.channels, settings.frames, settings.bins)
    layers = floor.separation(floor.full_size(len(model.stems)), shape, dtype.itemsize)
    return windows * floor.floor(layers, ceilings.matrix_rate(dtype), ceilings.bandwidth()).seconds


# --- the page


INTRODUCTION = """# Separating a song into 4 stems

Full-size networks on the processor, the separators in turn; median (lowest to highest). *Ours is faster*: so many
times, with float32 and with bf16. Spleeter, Open-Unmix and HTDemucs take part up to 600, 240 and 60 s. Open-Unmix
(`umxhq`) and HTDemucs (`htdemucs`, one random shift, an overlap of a quarter) have random weights, which take as
long."""
COLUMNS = ("song", "separator", "time, s", "× real time", "ours is faster", "peak memory, GB", "runs")
STAGES = """Seconds, median. Their sum is more than the whole song takes in process, from file to files, where stages
overlap. Floor: what the networks' arithmetic and bytes take at the rates that the machine reaches."""


def _report(found: Sequence[Found], stages: Stages, versions: Mapping[str, Any], options: argparse.Namespace) -> None:
    text = [INTRODUCTION]
    for part, title in (("command", "Whole commands"), ("in process", "In process, loaded and warm")):
        rows = [_row(one, found) for one in found if one.part == part]
        text += [f"## {title}", report.table(COLUMNS, rows)]
    text += [f"## Stages of ours, each alone, {stages.song:g} s", STAGES, _stages_table(stages)]
    data = {
        "options": options.options,
        "found": [one.data for one in found],
        "stages": {
            "song": stages.song,
            "floors": dict(stages.floors),
            "seconds": {name: {s: t.seconds for s, t in some.items()} for name, some in stages.timings.items()},
        },
    }
    rows = [*_songs(found), *_networks(stages)]
    device = report.look() if options.quick else None
    report.write("separate", "\n\n".join(text), data, versions, summary=rows, device=device)


def _row(one: Found, found: Sequence[Found]) -> tuple[str, ...]:
    ratios = [] if one.program in PRECISIONS else [ours.speed / one.speed for ours in _ours(one, found)]
    return (
        f"{one.song:g} s",
        one.program,
        one.timing.text(),
        timing.spread(one.timing.rates(one.song)),
        ", ".join(f"{timing.number(ratio)} ×" for ratio in ratios),
        f"{one.memory / 1e9:.2f}",
        str(len(one.runs)),
    )


def _ours(one: Found, found: Sequence[Found]) -> list[Found]:
    """Ours of the same part and song, by precision."""
    same = {other.program: other for other in found if (other.part, other.song) == (one.part, one.song)}
    return [same[name] for name in PRECISIONS]


def _stages_table(stages: Stages) -> str:
    columns = ["stage", *(f"{name}, {unit}" for name in PRECISIONS for unit in ("s", "× real time"))]
    sums = {name: sum(some[stage].median for stage in separate_stages.STAGES) for name, some in stages.timings.items()}
    rows = {
        stage: {name: some[stage].median for name, some in stages.timings.items()}
        for stage in (*separate_stages.STAGES, separate_stages.WHOLE, separate_stages.PLAIN)
    }
    rows |= {"sum of the stages": sums, "floor of the networks": dict(stages.floors)}
    order = (*separate_stages.STAGES, "sum of the stages", separate_stages.WHOLE, separate_stages.PLAIN)
    return report.table(columns, [_stage(what, rows[what], stages.song) for what in (*order, "floor of the networks")])


def _stage(what: str, seconds: Mapping[str, float], song: float) -> tuple[str, ...]:
    cells = ((timing.number(seconds[name]), timing.number(song / seconds[name])) for name in PRECISIONS)
    return (what, *itertools.chain.from_iterable(cells))


# --- the summary


def _songs(found: Sequence[Found]) -> Iterator[report.Row]:
    """The longest song that each peer takes part in; the target is of a whole command and four minutes."""
    longest = {(one.part, one.program): one for one in found if one.program not in PRECISIONS}
    for peer in longest.values():
        for ours in _ours(peer, found):
            aims = peer.part == "command" and peer.song == SONG
            met = ours.speed >= SPEED and ours.memory <= MEMORY
            yield report.Row(
                what=f"separate, {peer.part}, {peer.song:g} s, {PRECISIONS[ours.program]}",
                peer=f"{peer.program}: {_said(peer)}",
                ours=_said(ours),
                ratio=ours.speed / peer.speed,
                target=f"at least {SPEED:g} × real time, at most {MEMORY / 1e9:g} GB" if aims else "",
                met=met if aims else None,
            )


def _said(one: Found) -> str:
    return f"{timing.number(one.speed)} × real time, {one.memory / 1e9:.2f} GB"


def _networks(stages: Stages) -> Iterator[report.Row]:
    for name, timings in stages.timings.items():
        plain, ours = timings[separate_stages.PLAIN].median, timings["networks"].median
        bf16 = PRECISIONS[name] == "bfloat16"
        yield report.Row(
            what=f"separate, networks only, {stages.song:g} s, {PRECISIONS[name]}",
            peer=f"plain PyTorch, float32: {timing.number(stages.song / plain)} × real time",
            ours=f"{timing.number(stages.song / ours)} × real time",
            ratio=plain / ours,
            floor=f"{timing.number(stages.song / stages.floors[name])} × real time",
            target=f"at least {NETWORKS:g} × real time" if bf16 else "",
            met=stages.song / ours >= NETWORKS if bf16 else None,
        )


if __name__ == "__main__":
    sys.exit(main())
