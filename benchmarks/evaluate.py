"""Times `stemwise evaluate` beside `museval.eval_mus_dir`, on the same songs: `python benchmarks/evaluate.py`.

Whole commands in turn, each a process of its own from start to end. Ours also separates the songs; museval's finds the
same model's stems as files. Then the two solvers alone, in one process, on one of the songs. The songs are composed and
laid out as MUSDB18-HQ has them. Their files are dithered to 16 bits: without noise of its own on each channel a mono
stem leaves museval's equations singular, and its ISR, SIR and SAR are made of rounding (they change with the number of
its threads).
Ends with exit code 1 if a score of ours, from museval or from our solver, is more than 0.001 dB from museval's.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import report
import soundfile
import timing
import torch

from stemwise import audio, model_file
from stemwise.datasets import demo
from stemwise.evaluation import bss_eval
from stemwise.evaluation.documents import METRICS
from stemwise.masks import MaskRule
from stemwise.separator import Separator
from stemwise.spectrogram import Spectrogram
from stemwise.unet import UNetSettings

RATE = 44100
STEMS = ("vocals", "drums", "bass", "other")
TOLERANCE = 0.001  # dB
THEIRS = "museval.eval_mus_dir"
PEER = """
import sys, musdb, museval
songs, estimates, output = sys.argv[1:]
museval.eval_mus_dir(musdb.DB(root=songs, is_wav=True, subsets="test"), estimates, output)
"""

Documents = dict[str, dict[str, np.ndarray]]


def main() -> int:
    """Times the commands and solvers, compares the scores, and writes the report."""
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        work = Path(folder)
        _lay_out(work, options.songs, options.seconds)
        commands = _commands(work)
        timings = timing.in_turn(
            {name: _runner(work, *command) for name, command in commands.items()}, options.repeats, 0
        )
        scores = {name: _read(output) for name, (_, output) in commands.items()}
        alone = timing.in_turn(_solvers(work), options.repeats)
    differences = {name: _differences(scores[THEIRS], found) for name, found in scores.items() if name != THEIRS}
    _report(timings, alone, differences, options)
    return int(any(value > TOLERANCE for found in differences.values() for value in found.values()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--songs", type=int, default=2, help="how many (default: 2)")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each (default: 60)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where songs and scores go")
    return parser


def _lay_out(work: Path, songs: int, seconds: float) -> None:
    """Songs and their index, a model, and its estimates."""
    torch.manual_seed(0)
    model = Separator(STEMS, Spectrogram(), UNetSettings(filters=(4, 6, 8, 10, 12, 14)), MaskRule()).eval()
    model_file.save(model, work / "model.safetensors", {})
    lines = [",".join(["mix_path", *(f"{stem}_path" for stem in STEMS)])]
    for seed in range(songs):
        place = f"test/Song {seed}"
        stems = _compose(seed, seconds)
        _write(work / "songs" / place, {"mixture": stems.sum(axis=0), **dict(zip(STEMS, stems, strict=True))}, "PCM_16")
        mixture = audio.read(work / "songs" / place / "mixture.wav", sample_rate=RATE, channels=2)
        # With one thread, as in our command: convolutions round by the number of threads.
        estimates = _with_one_thread(lambda mixture=mixture: model.separate(mixture)).numpy()
        _write(work / "estimates" / place, dict(zip(STEMS, estimates, strict=True)), "FLOAT")
        lines.append(",".join(f"{place}/{name}.wav" for name in ("mixture", *STEMS)))
    (work / "songs/test.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _compose(seed: int, seconds: float) -> np.ndarray:
    """Stems (S, C, N), whose last bit is random."""
    waves = demo.compose(seed, seconds=seconds, sample_rate=RATE)
    stems = 0.5 * np.stack([waves[stem] for stem in STEMS])
    random = np.random.default_rng(seed)
    return stems + (random.random(stems.shape) - random.random(stems.shape)) / 2**15


def _write(folder: Path, waves: Mapping[str, np.ndarray], subtype: str) -> None:
    folder.mkdir(parents=True)
    for name, wave in waves.items():
        soundfile.write(folder / f"{name}.wav", wave.T, RATE, subtype)


def _with_one_thread(call: Callable[[], Any]) -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return call()
    finally:
        torch.set_num_threads(threads)


def _commands(work: Path) -> dict[str, tuple[Sequence[str], Path]]:
    """What is timed: each command, and the folder with a JSON per song that it leaves."""
    songs = work / "songs"
    ours = [str(Path(sys.executable).with_name("stemwise")), "evaluate", f"checkpoint={work / 'model.safetensors'}"]
    ours += ["data=csv", f"data.root={songs}", f"data.test={songs / 'test.csv'}", "baselines=[]"]
    ours.append("listening_songs=0")  # museval leaves nothing to listen to either
    found: dict[str, tuple[Sequence[str], Path]] = {
        THEIRS: (
            [sys.executable, "-c", PEER, str(songs), str(work / "estimates"), str(work / "theirs")],
            work / "theirs/test",
        )
    }
    keys = {"solver=museval": [], "solver=torch device=cpu": []} | (
        {"solver=torch device=cuda": []} if torch.cuda.is_available() else {}
    )
    for number, key in enumerate(keys):
        output = work / f"ours{number}"
        found[f"stemwise evaluate {key}"] = ([*ours, *key.split(), f"output={output}"], output / "model")
    return found


def _runner(work: Path, command: Sequence[str], output: Path) -> Callable[[], None]:
    """Runs the command from nothing; stops the benchmark if it fails."""

    def run() -> None:
        shutil.rmtree(output, ignore_errors=True)
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, env={**os.environ})
        if done.returncode or not output.is_dir():
            sys.exit(f"{command}: exit code {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")

    return run


def _solvers(work: Path) -> dict[str, Callable[[], object]]:
    """museval's solver and ours on the first song, with all cores."""
    import museval

    folders = [work / part / "test/Song 0" for part in ("songs", "estimates")]
    references, estimates = (
        torch.stack([audio.read(folder / f"{stem}.wav", sample_rate=RATE, channels=2) for stem in STEMS])
        for folder in folders
    )
    arrays = [waves.transpose(1, 2).double().numpy() for waves in (references, estimates)]
    found: dict[str, Callable[[], object]] = {"museval.evaluate": lambda: museval.evaluate(*arrays)}
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        waves = references.to(device), estimates.to(device)
        found[f"bss_eval.evaluate, {device}"] = lambda waves=waves: bss_eval.evaluate(*waves, RATE)
    return found


def _read(folder: Path) -> Documents:
    """dB in each window of every song, by song and stem: (M, W)."""
    found: Documents = {}
    for path in sorted(folder.glob("*.json")):
        targets = json.loads(path.read_text(encoding="utf-8"))["targets"]
        found[path.stem] = {
            target["name"]: np.array([[f["metrics"][m] for f in target["frames"]] for m in METRICS], float)
            for target in targets
        }
    return found


def _differences(expected: Documents, found: Documents) -> dict[str, float]:
    """The largest difference in dB of any window, by metric; infinite where one has a score and the other none."""
    largest = dict.fromkeys(METRICS, 0.0)
    for song, stems in expected.items():
        for stem, values in stems.items():
            apart = np.abs(values - found[song][stem])
            apart[np.isnan(values) & np.isnan(found[song][stem])] = 0
            apart[np.isnan(apart)] = np.inf
            largest = {m: max(largest[m], float(row.max())) for m, row in zip(METRICS, apart, strict=True)}
    return largest


def _report(
    timings: Mapping[str, timing.Timing],
    alone: Mapping[str, timing.Timing],
    differences: Mapping[str, Mapping[str, float]],
    options: argparse.Namespace,
) -> None:
    size = f"{options.songs} songs of {options.seconds:g} s, {len(STEMS)} stems"
    columns = ("command", "wall time, s", "times as fast", *(f"{metric}, dB apart" for metric in METRICS))
    text = f"# Evaluation: {size}\n\nWhole commands; median (lowest to highest). Largest differences of any window.\n\n"
    text += report.table(columns, (_row(name, timings, differences) for name in timings))
    text += f"\n\nThe solvers alone, in one process: one song of {options.seconds:g} s.\n\n"
    base = alone["museval.evaluate"].median
    text += report.table(
        ("solver", "s", "times as fast"),
        ((name, some.text(), f"{base / some.median:.2f}") for name, some in alone.items()),
    )
    data = {
        "seconds": {name: some.seconds for name, some in {**timings, **alone}.items()},
        "differences": differences,
    }
    versions = {"museval": {name: version(name) for name in ("museval", "musdb", "numpy", "scipy")}}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report.write(
        "evaluate", text, data, versions, summary=_summary(timings, differences, size), device=report.slug(device)
    )


def _row(
    name: str, timings: Mapping[str, timing.Timing], differences: Mapping[str, Mapping[str, float]]
) -> tuple[str, ...]:
    ratio = timings[THEIRS].median / timings[name].median
    apart = [f"{differences[name][metric]:.5f}" if name in differences else "" for metric in METRICS]
    return (name, timings[name].text(), f"{ratio:.2f}", *apart)


def _summary(
    timings: Mapping[str, timing.Timing], differences: Mapping[str, Mapping[str, float]], size: str
) -> list[report.Row]:
    targets = {"solver=museval": 1.6, "device=cuda": 10.0}
    rows = []
    for name, found in differences.items():
        ratio, worst = timings[THEIRS].median / timings[name].median, max(found.values())
        least = next((value for key, value in targets.items() if name.endswith(key)), None)
        rows.append(
            report.Row(
                what=f"{name.removeprefix('stemwise ')}: {size}",
                peer=f"{THEIRS}: {timings[THEIRS].text()} s",
                ours=f"{timings[name].text()} s",
                ratio=ratio,
                target=f"at least {least:g} x" if least else "",
                met=(ratio >= least and worst <= TOLERANCE) if least else None,
                note=f"scores at most {worst:.5f} dB apart",
            )
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
