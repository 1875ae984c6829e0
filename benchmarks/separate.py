"""Times `stemwise separate` and `spleeter separate` on the same model and song: `python benchmarks/separate.py`.

Full-size networks for 4 stems with random weights, which take as long as trained ones. Each run is the whole command in
a process of its own, from its start to its end, on the processor; the two commands take turns. Peak memory is that of
all its processes together, looked at every 50 ms: a page that several of them share counts once.
"""

import argparse
import itertools
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import environment
import golden
import numpy as np
import psutil
import report
import soundfile

from stemwise import model_file
from stemwise.datasets import demo
from stemwise.spleeter import model as spleeter_model

RATE = 44100
VERSE = 30.0  # seconds that stemwise composes; a song repeats them
# Spleeter cuts what is longer, unless told otherwise; then it runs out of memory instead (about 30 MB a second).
LONGEST = 600.0
INTERVAL = 0.05
CASE = golden.Case("4stems", "full size", golden.ELU, {"instrument_list": golden.FOUR})


@dataclass(frozen=True)
class Run:
    """One run of a command: seconds from start to end, and bytes at its peak."""

    seconds: float
    memory: int


@dataclass(frozen=True)
class Programs:
    """What is timed: a command for each program, to which the song and the output folder are added."""

    stemwise: Sequence[str]
    spleeter: Sequence[str]

    def of(self, seconds: float) -> dict[str, Sequence[str]]:
        """Those that can separate a song of this length."""
        both = {"stemwise": self.stemwise, "spleeter": self.spleeter}
        return both if seconds <= LONGEST else {"stemwise": self.stemwise}


def main() -> int:
    """Times the commands and writes the report."""
    options = _parser().parse_args()
    installed = environment.prepare(options.environment)
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        work = Path(folder)
        programs = _programs(installed, work, shlex.split(options.options))
        _time(programs, min(VERSE, *options.seconds), 1, work)  # so that no run is the first to read the files
        pairs = zip(
            options.seconds, itertools.chain(options.repeats, itertools.repeat(options.repeats[-1])), strict=False
        )
        found = [row for seconds, repeats in pairs for row in _time(programs, seconds, repeats, work)]
    _report(found, environment.versions(installed), options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    environment.add_option(parser)
    parser.add_argument("--seconds", nargs="+", type=float, default=[240.0, 7200.0], help="lengths (default: 240 7200)")
    parser.add_argument("--repeats", nargs="+", type=int, default=[3, 1], help="runs at each length (default: 3 1)")
    parser.add_argument("--options", default="", help="more options for `stemwise separate`, in one argument")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where songs and stems go: 7 GB for two hours")
    return parser


def _programs(installed: Path, work: Path, options: Sequence[str]) -> Programs:
    """Makes the model, for both programs, and returns their commands."""
    folder, ours = work / "model", work / "model.safetensors"
    song = work / "verse.npy"
    np.save(song, _verse())
    config = CASE.config | {"model_dir": str(folder)}
    environment.run(installed, [{"task": "make", "folder": folder, "config": config, "waveform": song, "seed": 0}])
    model_file.save(spleeter_model.read(folder), ours, {})
    stemwise = Path(sys.executable).with_name("stemwise")
    return Programs(
        [str(stemwise), "separate", "--model", str(ours), *options],
        [str(installed / "spleeter"), "separate", "-p", str(folder / "config.json")],
    )


def _verse() -> np.ndarray:
    """(N, 2), float32."""
    return sum(demo.compose(golden.SEED, seconds=VERSE, sample_rate=RATE).values()).T.astype(np.float32)


def _time(programs: Programs, seconds: float, repeats: int, work: Path) -> list[dict[str, Any]]:
    """Seconds and bytes of each run of each program, on a song of that length."""
    song = work / f"{seconds:g}.wav"
    _write_song(song, seconds)
    commands = programs.of(seconds)
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for number in range(repeats):
        # The first becomes the last, so that none always follows the other.
        for name in sorted(commands, reverse=bool(number % 2)):
            runs[name].append(_measure([*commands[name], "-o", str(work / "out"), str(song)]))
            shutil.rmtree(work / "out")
    song.unlink()
    return [{"seconds": seconds, "program": name, "runs": some} for name, some in runs.items()]


def _write_song(path: Path, seconds: float) -> None:
    verse, left = _verse(), round(seconds * RATE)
    with soundfile.SoundFile(path, "w", RATE, 2, "PCM_16") as file:
        while left > 0:
            file.write(verse[:left])
            left -= len(verse)


def _measure(command: Sequence[str]) -> Run:
    """Runs a command to its end; stops the benchmark if it fails."""
    peak = 0
    with tempfile.TemporaryFile("w+") as output:
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment.quiet())
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, _memory(watched))
            time.sleep(INTERVAL)
        seconds = time.monotonic() - start
        if process.returncode:
            output.seek(0)
            sys.exit(f"{shlex.join(command)}: exit code {process.returncode}\n{output.read()[-3000:]}")
    return Run(seconds, peak)


def _memory(process: psutil.Process) -> int:
    """All of the process, and of its descendants what is theirs alone: pages since a fork are the parent's already."""
    try:
        own = process.memory_info().rss
        children = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return 0
    for child in children:
        try:
            own += child.memory_full_info().uss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return own


def _report(found: Sequence[dict[str, Any]], versions: dict[str, str], options: argparse.Namespace) -> None:
    columns = ("song", "program", "wall time, s", "× real time", "peak memory, GB", "runs")
    text = (
        "# Whole commands: separating a song into 4 stems\n\n"
        "Full-size networks, on the processor, from the start of the process to its end; median (lowest to highest). "
        f"Spleeter takes part up to {LONGEST:.0f} s, where it cuts songs.\n\n"
    )
    text += report.table(columns, map(_row, found))
    runs = [{**row, "runs": [vars(run) for run in row["runs"]]} for row in found]
    report.write("separate", text, {"options": options.options, "found": runs}, versions)


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    seconds = [run.seconds for run in row["runs"]]
    memory = [run.memory / 1e9 for run in row["runs"]]
    speeds = [row["seconds"] / wall for wall in seconds]
    cells = (_median(seconds, ".1f"), _median(speeds, ".1f"), _median(memory, ".2f"))
    return (f"{row['seconds']:g} s", row["program"], *cells, str(len(seconds)))


def _median(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


if __name__ == "__main__":
    sys.exit(main())
