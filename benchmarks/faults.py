"""Injects faults into real commands and says what was lost: `python benchmarks/faults.py`. Takes half an hour.

Every fault is done to a command in processes of its own, on songs of noise and a network that trains in seconds. A run
that goes on after a fault must end as the run without it: last and best checkpoint and model bit for bit, the same
value logged at each step, no file and no process more. The exit code is 1 if any fault led to anything else. To fill a
disk takes root, which mounts a small one.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import faults_files as files
import faults_parts as parts
import faults_stops as stops
import report
from faults_ground import Ground, Trial, Unexpected, write_songs

EXPLAINED = """\
Every fault was done to the real command, in processes of its own. A run that went on after it was compared with one
that nothing happened to. *Lost* is what differed at the end, bit for bit: weights, optimiser, schedule and averaged
weights of the last and the best checkpoint, the model, every logged value; and what was there besides: processes, half
files, other messages than the one that was due. *Done again* is what was computed twice because of the fault, by the
log (which every other killed training writes at checkpoints only, as is the default), *to its end* the longest time
from the fault to the end of the command, whether it stopped there or recovered and went on.

Nothing finds a bit of the cache that flips in a run while its file keeps its time of change: `data.verify=true` reads
every byte before a run, and `stemwise cache verify` at any time."""
STEPS, ENTRIES = "steps", "spectrograms"
STOP, KILL = stops.signal.SIGSTOP, stops.signal.SIGKILL


@dataclass(frozen=True)
class Fault:
    """One row of the table. `trial` injects it once; `unit` is what has to be done again after it."""

    name: str
    how: str
    trial: Callable[[Ground, int], Trial]
    times: int
    unit: str = STEPS


# What --only takes, and the faults of it.
SUITE: dict[str, list[Fault]] = {
    "training": [
        Fault(
            "training is killed",
            "`kill -9` at random moments, of all processes or the first alone; the same command again",
            stops.killed_training,
            50,
        ),
    ],
    "saves": [
        Fault(
            "a checkpoint's save is killed",
            "`kill -9` with half a checkpoint on the disk, or a whole one that is not in its place; the same command",
            stops.killed_save,
            20,
        ),
    ],
    "builds": [
        Fault(
            "a cache build is killed",
            "`kill -9` at random moments of the writing, of all processes or the first alone; the same command again",
            stops.killed_build,
            50,
            ENTRIES,
        ),
    ],
    "signals": [
        Fault("SIGTERM", "to the first process of a run; the same command again", stops.SIGTERM, 3),
        Fault("SIGUSR1", "to all its processes; the same command again", stops.SIGUSR1, 3),
        Fault("Ctrl-C", "to all its processes; the same command again", stops.CTRL_C, 3),
        Fault("Ctrl-C twice", "at once, to all its processes; the same command again", stops.interrupted_twice, 3),
    ],
    "ranks": [
        Fault("rank 0 of two dies", "`kill -9`; the same command again", partial(stops.lost_rank, rank=0, how=KILL), 2),
        Fault("rank 1 of two dies", "`kill -9`; the same command again", partial(stops.lost_rank, rank=1, how=KILL), 2),
        Fault("rank 1 of two hangs", "SIGSTOP; the same command", partial(stops.lost_rank, rank=1, how=STOP), 1),
    ],
    "numbers": [
        Fault(
            "gradients are not finite",
            "a song with samples of 1e24, and no cache; the song mended, the same command again",
            parts.loud_song,
            2,
        ),
        Fault(
            "the same, skipped",
            "the same song; `on_nonfinite=skip`",
            parts.loud_song_skipped,
            2,
        ),
        Fault("the loss is not finite", "`optimizer.lr=1e30`, `max_nonfinite=3`", parts.learning_rate, 2),
    ],
    "disks": [
        Fault("the disk is full for a while", "the run folder's, a filled tmpfs of 20 MB", files.full_for_a_while, 2),
        Fault(
            "the disk is full to the end",
            "the same; room made, the same command again",
            files.full_to_the_end,
            2,
        ),
        Fault(
            "the disk is full in a cache build",
            "a filled tmpfs of 512 MB; room made, the same command again",
            files.full_in_a_build,
            2,
            ENTRIES,
        ),
    ],
    "cache": [
        Fault("the cache folder is removed", "in a run", files.cache_removed, 3),
        Fault("bits of the cache flip", "one in each entry, in a run", files.bits_flipped_under_way, 3),
        Fault("bits of the cache flip before", "one in each entry", files.bits_flipped_before, 2),
        Fault(
            "bits flip and nothing shows it",
            "the same, with the old time of change; `data.verify=true`",
            files.bits_flipped_quietly,
            2,
        ),
    ],
    "songs": [
        Fault("songs are removed", "in a run without a cache; put back, the same command", files.song_removed, 2),
        Fault("songs are cut off", "in a run without a cache; put back, the same command", files.song_cut_off, 2),
        Fault("songs are changed", "in a run without a cache; put back, the same command", files.song_changed, 2),
        Fault("songs are changed, cache removed", "in a run; put back, the same command", files.song_and_cache_gone, 2),
        Fault("songs are removed, cache whole", "in a run", files.song_not_needed, 2),
    ],
    "workers": [
        Fault("a loader's worker dies", "`kill -9`, as for memory; the same command again", parts.killed_worker, 3),
        Fault(
            "a worker of a cache build dies",
            "`kill -9`, as for memory; the same command again",
            parts.killed_builder,
            3,
            ENTRIES,
        ),
        Fault("a step hangs", "SIGSTOP to the loader's worker, `watchdog=2`; SIGCONT", parts.stopped_worker, 2),
    ],
    "wandb": [
        Fault("W&B is unreachable", "a closed port as its server", parts.wandb_refused, 2),
        Fault("W&B does not answer", "a port that takes connections as its server", parts.wandb_silent, 1),
        Fault("W&B fails after the login", "a server that knows the key and nothing else", parts.wandb_gone, 1),
        Fault("W&B's folder cannot be written", "a file in its place", parts.wandb_unwritable, 2),
        Fault("W&B's process dies", "`kill -9` in a run", parts.wandb_killed, 2),
    ],
}


def main() -> int:
    """Runs the suite and writes `results/DEVICE/faults.{md,json}`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SUITE, default=list(SUITE), help="these parts (default: all)")
    parser.add_argument("--quick", action="store_true", help="each fault once, as a look that is not kept")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--jobs", type=int, default=2, help="parts at once, each in a folder of its own (default: 2)")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    start = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        parts_found = pool.map(lambda part: _rows(part, options.seed, options.quick), options.only)
        found = [row for rows in parts_found for row in rows]
    columns = ["fault", "how it was injected", "times", "lost", "done again", "to its end", "as expected"]
    table = report.table(columns, [_cells(row) for row in found])
    minutes = (time.monotonic() - start) / 60
    kept = options.only == list(SUITE) and not options.quick
    report.write(
        "faults",
        f"# What faults cost\n\n{EXPLAINED}\n\n{table}\n\n{minutes:.0f} minutes in all.",
        {"minutes": minutes, "faults": found},
        {},
        device=None if kept else report.look(),
    )
    return 0 if all(row["held"] for row in found) else 1


def _rows(part: str, seed: int, quick: bool) -> list[dict[str, Any]]:
    """Injects the faults of one part, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix=f"faults-{part}-", ignore_cleanup_errors=True) as folder:
        ground = Ground(Path(folder), random.Random(f"{seed} {part}"))
        write_songs(ground.folder / "songs")
        write_songs(ground.folder / "long", seconds=30.0, rate=44100)
        return [_row(ground, fault, quick) for fault in SUITE[part]]


def _row(ground: Ground, fault: Fault, quick: bool) -> dict[str, Any]:
    """Injects one fault again and again."""
    trials = []
    for number in range(1 if quick else fault.times):
        trial = Trial(wrong=["the suite itself failed"])
        try:
            trial = fault.trial(ground, number)
        except Unexpected as what:
            trial = Trial(wrong=[str(what)])
        finally:
            ground.stop(tell=bool(trial.wrong))
        trials.append(trial)
        verdict = "; ".join(trial.wrong) or "held"
        print(f"{fault.name}, {number + 1} of {fault.times}: {verdict}", file=sys.stderr, flush=True)
    return {
        "fault": fault.name,
        "how": fault.how,
        "unit": fault.unit,
        "held": not any(trial.wrong for trial in trials),
        "trials": [asdict(trial) for trial in trials],
    }


def _cells(row: dict[str, Any]) -> list[object]:
    trials = [Trial(**trial) for trial in row["trials"]]
    wrong = sorted({what for trial in trials for what in trial.wrong})
    lost = "; ".join([*wrong, *sorted({trial.lost for trial in trials if trial.lost})]) or "nothing"
    failed = sum(bool(trial.wrong) for trial in trials)
    again = _range([trial.again for trial in trials])
    seconds = f"{max(trial.seconds for trial in trials):.1f} s"
    verdict = "yes" if row["held"] else f"**no, {failed} of {len(trials)}**"
    return [row["fault"], row["how"], str(len(trials)), lost, f"{again} {row['unit']}", seconds, verdict]


def _range(numbers: Sequence[int]) -> str:
    lowest, highest = min(numbers), max(numbers)
    return f"{lowest}" if lowest == highest else f"{lowest} to {highest}"


if __name__ == "__main__":
    sys.exit(main())
