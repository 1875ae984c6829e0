"""The systems that are compared: each trains until its time is over, and separates the songs that are scored.

A system's time begins when its process is started, so that importing, reading songs and filling caches are in it, and
is over with the last step that began in it; what it then takes to validate and to save is not counted, nor is
separating. Each has all cores to itself.
"""

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import environment
import numpy as np
import torch
from quality import songs
from quality.songs import STEMS, Split

from stemwise import model_file

FRAMES = 256  # Spleeter's windows of 512 frames are 11.9 s; the excerpts have 6.8 s
CHUNK = 6.2  # seconds that Spleeter cuts crops from, in place of 20
PILOT = 0.05  # of the time, to find out how many steps the schedule of a learning rate has
PILOT_SECONDS = 30.0, 60.0  # at least and at most
PLANNED = 0.95  # of the time that is left then: the rest is for validations, and for a machine that slows down

RECIPE = ("experiment=spleeter_4stems", f"spectrogram.frames={FRAMES}")
OURS = ("experiment=musdb18",)
LAST = "checkpoints/last.ckpt"
STOPPED = (143, -15)  # exit codes after SIGTERM


@dataclass(frozen=True)
class Task:
    """One training: its songs, its time, and where it may write; `data` is the folder that `songs.write` made."""

    data: Path
    split: Split
    seed: int
    seconds: float
    device: str
    environments: Path
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """What a training did, and a folder of estimates for each row of the table that it makes."""

    steps: int
    seconds: float
    what: str
    estimates: Mapping[str, Path]


def spleeter(task: Task) -> Outcome:
    """Spleeter's own training and separation, on the processor."""
    programs = environment.prepare("spleeter", task.environments)
    index = songs.index(task.split.train, task.data, task.folder / "train.csv")
    settings = {"T": FRAMES, "chunk_duration": CHUNK, "random_seed": task.seed}
    job = {"csv": index, "root": task.data, "folder": task.folder, "settings": settings}
    start = time.time()
    environment.run(programs, [{"task": "within", **job, "deadline": start + task.seconds}])
    seconds = time.time() - start
    estimates, jobs = task.folder / "estimates", []
    for song in task.split.scored:
        mixture, _ = songs.read(task.data, song)
        waveform = task.folder / f"{len(jobs)}.npy"
        np.save(waveform, mixture.T.numpy())
        job = {"folder": task.folder / "run", "waveform": waveform, "output": estimates / song, "mwf": False}
        jobs.append({"task": "separate", **job})
    environment.run(programs, jobs)
    steps = json.loads((task.folder / "steps.json").read_text(encoding="utf-8"))
    return Outcome(steps, seconds, f"4stems.json with {json.dumps(settings)}", {"Spleeter": estimates})


def openunmix(task: Task) -> Outcome:
    """Open-Unmix's networks and separation, trained as was published (`openunmix_side.py`)."""
    programs = environment.prepare("openunmix", task.environments)
    common = {"folder": str(task.folder), "songs": str(task.data), "stems": STEMS}
    own = {"train": task.split.train, "watched": task.split.watched, "seed": task.seed, "device": task.device}
    start = time.time()
    _side(programs, {"task": "train", **common, **own, "deadline": start + task.seconds}, task.folder)
    seconds = time.time() - start
    outputs = {steps: str(task.folder / f"estimates-{steps}") for steps in (0, 1)}
    _side(programs, {"task": "separate", **common, "scored": task.split.scored, "outputs": outputs}, task.folder)
    done = json.loads((task.folder / "steps.json").read_text(encoding="utf-8"))
    names = ("Open-Unmix", "Open-Unmix, one Wiener step")
    estimates = {name: Path(folder) for name, folder in zip(names, outputs.values(), strict=True)}
    epochs = ", ".join(f"{stem} {one['epochs']}" for stem, one in done.items())
    return Outcome(sum(one["steps"] for one in done.values()), seconds, f"epochs begun: {epochs}", estimates)


def stemwise(name: str, overrides: Sequence[str], scheduled: bool, task: Task) -> Outcome:
    """`python -m train`; where its learning rate follows a schedule, that has as many steps as there is time for."""
    start = time.time()
    deadline = start + task.seconds
    arguments = [*overrides, *_arguments(task)]
    planned = [f"trainer.max_steps={_steps(arguments, task, deadline)}"] if scheduled else []
    run = task.folder / "run"
    model = _train([*arguments, *planned], run, deadline)
    seconds = time.time() - start
    separator = model_file.load(model)
    for song in task.split.scored:
        mixture, _ = songs.read(task.data, song)
        folder = task.folder / "estimates" / song
        folder.mkdir(parents=True)
        for stem, estimate in zip(separator.stems, separator.separate(mixture), strict=True):
            np.save(folder / f"{stem}.npy", estimate.T.numpy())
    what = " ".join(["python -m train", *overrides, *planned])
    return Outcome(_step(run), seconds, what, {name: task.folder / "estimates"})


CONTENDERS: Mapping[str, Callable[[Task], Outcome]] = {
    "spleeter": spleeter,
    "openunmix": openunmix,
    "recipe": partial(stemwise, "stemwise, Spleeter's recipe", RECIPE, False),
    "ours": partial(stemwise, "stemwise, its own recipe", OURS, True),
}


SETTINGS = {
    "spleeter": f"T={FRAMES} chunk_duration={CHUNK}",
    "openunmix": "",
    "recipe": " ".join(RECIPE),
    "ours": " ".join(OURS),
}
"""What a result depends on besides songs, seed and time."""


def _arguments(task: Task) -> list[str]:
    """What `python -m train` is told besides its recipe."""
    csvs = {"train": task.split.train, "valid": task.split.watched}
    indexes = {name: songs.index(names, task.data, task.folder / f"{name}.csv") for name, names in csvs.items()}
    where = "cpu" if task.device == "cpu" else "gpu"
    return [
        *(f"data.{name}={index}" for name, index in indexes.items()),
        *(f"data.root={task.data}", f"data.cache={task.folder / 'cache'}", f"seed={task.seed}"),
        *("logger=[csv]", "media.every=null", f"trainer.accelerator={where}", "trainer.devices=1"),
    ]


def _train(arguments: Sequence[str], run: Path, deadline: float) -> Path:
    """Trains, and stops it with a signal when its time is over; gives the best model, or what a stopped run left."""
    command = [sys.executable, "-m", "train", *arguments, f"hydra.run.dir={run}"]
    said = run.with_suffix(".log")
    with said.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            process.wait(max(deadline - time.time(), 0))
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
        finally:
            process.kill()  # if it still runs, because this one is interrupted
    # One that a signal stopped has not judged its last steps; those of a schedule that has ended are its best.
    model = run / ("model.safetensors" if process.returncode == 0 else LAST)
    if process.returncode not in (0, *STOPPED) or not model.exists():
        raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}\n{said.read_text()[-4000:]}")
    return model


def _steps(arguments: Sequence[str], task: Task, deadline: float) -> int:
    """How many steps fit between now and the deadline, by a pilot that takes its time from them."""
    least, most = PILOT_SECONDS
    seconds = min(max(PILOT * task.seconds, least), most)
    run = task.folder / "pilot"
    _train([*arguments, "trainer.max_steps=1000000", "trainer.log_every_n_steps=1"], run, time.time() + seconds)
    steps, trained = _pace(run / "csv/version_0/metrics.csv")
    starting = seconds - trained[-1]
    rate = (steps[-1] - steps[0]) / (trained[-1] - trained[0])
    return max(int(PLANNED * rate * (deadline - time.time() - starting)), 1)


def _pace(metrics: Path) -> tuple[list[int], list[float]]:
    """Steps, and the seconds of training that lay before each. Raises `SystemExit` if there are fewer than two."""
    with metrics.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/lr")]
    if len(rows) < 2:
        raise SystemExit(f"{metrics}: {len(rows)} steps in the pilot, too few to plan by. Give more --minutes.")
    return [int(row["step"]) for row in rows], [3600 * float(row["progress/hours"]) for row in rows]


def _step(run: Path) -> int:
    return int(torch.load(run / LAST, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def _side(programs: Path, job: Mapping[str, object], folder: Path) -> None:
    """Runs Open-Unmix's side on one job."""
    path = folder / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    command = [programs / "python", Path(__file__).with_name("openunmix_side.py"), path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"Open-Unmix's side failed:\n{done.stderr[-4000:]}")
