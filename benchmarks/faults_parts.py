"""Faults of what takes part in a run: its numbers, its workers, its loggers."""

import http.server
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import soundfile
import torch
from faults_files import DIRECT, one_message
from faults_ground import LAST, Command, Ground, Trial, Unexpected, contents

WANDB = "logger=[csv,wandb]"


# Numbers that are not finite


def loud_song(ground: Ground, number: int) -> Trial:
    """Its gradients overflow: the run stops before the update and names it; without it, the run goes on."""
    name = f"loud{number}"
    songs, loud = _songs_with_a_loud_one(ground, name)
    command = ground.train(name, *DIRECT, songs=songs)
    seconds = command.end(2)
    wrong = [*one_message(command, "Stopped before the update"), *command.orphans()]
    wrong += (
        [] if re.search(rf"^  .*\b{loud.name.split('-')[0]}\b.* from [\d.]+ s", command.text, re.M) else ["no song"]
    )
    wrong += _bundle(ground.folder / name)
    shutil.copy2(ground.folder / "songs" / loud.name, loud)
    trial = ground.goes_on(name, like=DIRECT, songs=songs)
    return Trial([*wrong, *trial.wrong], again=trial.again, seconds=seconds)


def loud_song_skipped(ground: Ground, number: int) -> Trial:
    """Every update with it is left out and counted, and the others are made."""
    name = f"skipped{number}"
    songs, _ = _songs_with_a_loud_one(ground, name)
    command = ground.train(name, *DIRECT, "on_nonfinite=skip", "max_nonfinite=200", songs=songs)
    seconds = command.end(0)
    count = command.text.count("Skipped, ")
    state = torch.load(ground.folder / name / LAST, weights_only=True)["state_dict"]
    wrong = [f"{key} is not finite" for key, value in state.items() if not value.isfinite().all()]
    wrong += [] if f"Skipped, {count} of 200" in command.text and count else [f"{count} skipped, counted otherwise"]
    return Trial([*wrong, *command.orphans()], lost=f"{count} updates, which were skipped", seconds=seconds)


def learning_rate(ground: Ground, number: int) -> Trial:
    """Three updates are skipped, the next one stops the run; what comes from the rate leaves no number not finite."""
    name = f"rate{number}"
    command = ground.train(name, "optimizer.lr=1e30", "on_nonfinite=skip", "max_nonfinite=3")
    seconds = command.end(2)
    wrong = [*one_message(command, "max_nonfinite=3 were skipped before"), *command.orphans()]
    wrong += [] if command.text.count("Skipped, ") == 3 else [f"{command.text.count('Skipped, ')} skipped"]
    return Trial([*wrong, *_bundle(ground.folder / name)], seconds=seconds)


def _bundle(run: Path) -> list[str]:
    bundles = list((run / "faults").glob("step_*"))
    if len(bundles) != 1:
        return [f"{len(bundles)} bundles"]
    missing = {"batch.safetensors", "model.safetensors", "fault.json"} - {path.name for path in bundles[0].iterdir()}
    replay = [sys.executable, "-m", "stemwise.running.replay", bundles[0]]
    seen = subprocess.run(replay, capture_output=True, text=True, check=False)
    shown = seen.returncode == 0 and "Seen again" in seen.stdout
    return [*(f"no {name}" for name in missing), *([] if shown else ["a replay does not show it"])]


def _songs_with_a_loud_one(ground: Ground, name: str) -> tuple[str, Path]:
    ground.copy("songs", f"{name}-songs")
    loud = ground.folder / f"{name}-songs/2-vocals.wav"
    samples, rate = soundfile.read(loud)
    soundfile.write(loud, np.float32(1e25) * samples, rate, subtype="FLOAT")
    return f"{name}-songs", loud


# Workers


def killed_worker(ground: Ground, number: int) -> Trial:
    """One message; then the run goes on."""
    run = f"worker{number}"
    command = ground.train(run)
    command.until((ground.folder / run / LAST).exists)
    _worker(command).kill()
    command.struck_now()
    seconds = command.end(2)
    wrong = [*one_message(command, "of the data loader"), *command.orphans()]
    trial = ground.goes_on(run)
    return Trial([*wrong, *trial.wrong], again=trial.again, seconds=seconds)


def killed_builder(ground: Ground, number: int) -> Trial:
    """The same while a cache is built."""
    cache = ground.folder / f"builder{number}"
    command = ground.build(cache.name)
    command.until(lambda: any(cache.glob("*/*.stft")))
    _worker(command).kill()
    command.struck_now()
    seconds = command.end(2)
    wrong = [*one_message(command, "was killed, perhaps for want of memory"), *command.orphans()]
    begun = len(list(cache.glob("*/*.part")))
    ground.build(cache.name).end(0)
    wrong += [] if contents(cache) == ground.built[0] else ["the cache is another"]
    return Trial(wrong, again=begun, seconds=seconds)


def stopped_worker(ground: Ground, number: int) -> Trial:
    """The watchdog says which rank waits, and for what; when the worker goes on, so does the run."""
    run = f"watched{number}"
    command = ground.train(run, "watchdog=2")
    command.until((ground.folder / run / LAST).exists)
    worker = _worker(command)
    worker.suspend()
    command.struck_now()
    try:
        command.until(lambda: "Phase: " in command.text)
    finally:
        worker.resume()
    said = re.search(r"rank 0: step \d+ has not moved for .* Phase: waiting for data\.", command.text)
    seconds = command.end(0)
    trial = ground.compared(run)
    trial.wrong += [*([] if said else ["rank and phase are not named"]), *command.orphans()]
    trial.seconds = seconds
    return trial


def _worker(command: Command) -> psutil.Process:
    """A process of a loader: a copy of the first one."""
    first = psutil.Process(command.process.pid)
    return next(child for child in first.children() if child.cmdline() == first.cmdline())


# Weights & Biases


def wandb_refused(ground: Ground, number: int) -> Trial:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    return _with_wandb(ground, f"refused{number}", "is not reachable", f"http://127.0.0.1:{port}")


def wandb_silent(ground: Ground, number: int) -> Trial:
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        server = f"http://127.0.0.1:{silent.getsockname()[1]}"
        return _with_wandb(ground, f"silent{number}", "is not reachable", server)


def wandb_gone(ground: Ground, number: int) -> Trial:
    """A server that takes the key and then says nothing that makes sense."""
    with _server() as server:
        return _with_wandb(ground, f"gone{number}", "Training goes on without this logger", server)


def wandb_unwritable(ground: Ground, number: int) -> Trial:
    (ground.folder / f"file{number}").touch()
    folder = f"logger.wandb.folder={ground.folder}/file{number}/wandb"
    return _with_wandb(ground, f"unwritable{number}", "Training goes on without this logger", None, folder)


def wandb_killed(ground: Ground, number: int) -> Trial:
    run = f"wandb{number}"
    command = ground.train(run, WANDB, WANDB_API_KEY="", WANDB_MODE="offline")
    command.until((ground.folder / run / LAST).exists)
    found = [process for process in command.processes() if "wandb-core" in " ".join(process.cmdline())]
    if not found:
        raise Unexpected("W&B has no process")
    for process in found:
        process.kill()
    command.struck_now()
    return _warned(ground, run, command, "Training goes on without this logger")


def _with_wandb(ground: Ground, run: str, warning: str, server: str | None, *keys: str) -> Trial:
    environment = {"WANDB_BASE_URL": server, "WANDB_API_KEY": "0" * 40, "NO_PROXY": "*"} if server else {}
    return _warned(ground, run, ground.train(run, WANDB, *keys, **environment), warning)


def _warned(ground: Ground, run: str, command: Command, warning: str) -> Trial:
    """The run ends as without W&B, and what that was is said once."""
    seconds = command.end(0)
    trial = ground.compared(run)
    trial.seconds = seconds
    said = command.text.count(warning)
    trial.wrong += [*([] if said == 1 else [f"{said} warnings"]), *command.orphans()]
    return trial


@contextmanager
def _server() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        asked = 0

        def do_POST(self) -> None:
            Handler.asked += 1
            first = Handler.asked == 1
            body = b'{"data": {"viewer": {"id": "somebody"}}}' if first else b"{}"
            self.send_response(200 if first else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}"
        finally:
            listening.shutdown()
