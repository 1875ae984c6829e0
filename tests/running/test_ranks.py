"""Several processes train as one does: through the real command, on processors, with gloo."""

import csv
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from stemwise import model_file
from stemwise.running import ranks
from tiny import TINY

# Four examples a step, however many ranks share them. Dropout draws anew on each rank, so it is left out.
KEYS = ["model.unet.dropout=0", "data.examples_per_song=4", "trainer.max_steps=6", "trainer.val_check_interval=3"]
KEYS += ["optimizer.lr=0.001", "trainer.sync_batchnorm=true", "ema=0.9", "augment=remix"]


def keys_for(songs: Path, run: Path, count: int) -> list[str]:
    # Three songs to validate with: they do not divide among two.
    lines = (songs / "train.csv").read_text().splitlines()
    (songs / "three.csv").write_text("\n".join([*lines[:4], ""]))
    shape = [f"trainer.devices={count}", f"data.batch_size={4 // count}", f"hydra.run.dir={run}"]
    return [f"data.valid={songs}/three.csv", *KEYS, *shape]


def command(songs: Path, run: Path, count: int, *overrides: str) -> list[str]:
    data = ["data=csv", f"data.root={songs}", f"data.train={songs}/train.csv"]
    return [sys.executable, "-m", "train", *data, *TINY, *keys_for(songs, run, count), *overrides]


def trained(*arguments, environment=None) -> None:
    done = subprocess.run(
        command(*arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=250,
        cwd=arguments[1].parent,
        env={**os.environ, **(environment or {})},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def logged(run: Path) -> dict[tuple[str, str], float]:
    """Values by step and name. The training loss is one rank's, and left out."""
    with (run / "csv/version_0/metrics.csv").open() as file:
        return {
            (row["step"], name): float(value)
            for row in csv.DictReader(file)
            for name, value in row.items()
            if value and name.startswith(("val/", "sdr/"))
        }


def shown(run: Path) -> dict[str, Any]:
    """The songs of the last table, what can be heard and seen, and how many songs were shown by which step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run / "tensorboard")).Reload()
    (table,) = read.Tensors("songs/table/text_summary")[-1].tensor_proto.string_val
    rows = [line.split(" | ")[0] for line in table.decode().splitlines()[2:]]
    progress = [(event.step, event.value) for event in read.Scalars("progress/songs")]
    return {"rows": sorted(rows), "tags": [read.Tags()[kind] for kind in ("audio", "images")], "progress": progress}


@pytest.mark.slow
def test_two_ranks_train_and_validate_as_one(train, songs, tmp_path):
    """Weights after six steps, statistics, averaged weights, losses and SDR: to float32's rounding."""
    loggers = "logger=[csv,tensorboard]"
    assert train(*keys_for(songs, tmp_path / "1", 1), loggers).code == 0
    trained(songs, tmp_path / "2", 2, loggers)
    one, two = (torch.load(tmp_path / f"{n}/checkpoints/last.ckpt", weights_only=True) for n in (1, 2))
    for part in ("state_dict", "current_model_state"):
        torch.testing.assert_close(one[part], two[part], rtol=1e-3, atol=2e-5)
    assert one["optimizer_states"][0]["state"][0]["step"] == 6
    losses = logged(tmp_path / "1"), logged(tmp_path / "2")
    assert losses[0].keys() == losses[1].keys()
    assert len(losses[0]) == 2 * (5 + 15)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3, abs=1e-3)
    assert shown(tmp_path / "1") == shown(tmp_path / "2")
    assert {path.name for path in tmp_path.iterdir() if path.name != "data"} == {"1", "2"}  # a folder each
    assert not list((tmp_path / "2").rglob("*.part"))
    assert model_file.read(tmp_path / "2/model.safetensors")[1]["step"] in (3, 6)


@pytest.mark.slow
def test_more_ranks_than_songs_to_validate_with(train, songs, tmp_path):
    """The rank for which none is left does not count."""
    keys = [f"data.valid={songs}/valid.csv", "trainer.max_steps=3"]
    assert train(*keys_for(songs, tmp_path / "1", 1), *keys).code == 0
    trained(songs, tmp_path / "2", 2, *keys)
    found = logged(tmp_path / "1"), logged(tmp_path / "2")
    assert len(found[0]) == 5 + 15
    assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-3)


@pytest.mark.slow
def test_two_ranks_that_a_signal_stops_go_on_as_if_it_had_not(songs, tmp_path):
    """The signal comes to one of them; with dropout, for which each has a generator of its own."""
    keys = ["trainer=ddp", "trainer.precision=32-true", "matmul_precision=highest"]  # which would be those of GPUs
    keys += ["model.unet.dropout=0.5", "trainer.max_steps=60", "trainer.val_check_interval=100"]
    trained(songs, tmp_path / "whole", 2, *keys)
    process = subprocess.Popen(
        command(songs, tmp_path / "parts", 2, *keys, "checkpoints.every=5"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
    )
    end = time.monotonic() + 120
    while not (tmp_path / "parts/checkpoints/last.ckpt").exists() and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=100)[0]
    assert process.returncode == 128 + signal.SIGTERM, printed
    assert "Stopped at step" in printed
    assert "Traceback" not in printed
    trained(songs, tmp_path / "parts", 2, *keys, "resume=auto")
    states = [torch.load(tmp_path / f"{n}/checkpoints/last.ckpt", weights_only=True) for n in ("whole", "parts")]
    for part in ("state_dict", "current_model_state", "optimizer_states"):
        torch.testing.assert_close(states[0][part], states[1][part], rtol=0, atol=0)


# A rank that is gone


def started(songs: Path, run: Path, rank: int, port: int) -> subprocess.Popen[str]:
    """One of two ranks, as torchrun starts it, without a torchrun that looks after it."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "mine"}
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    keys = ["trainer.max_steps=100000", "trainer.val_check_interval=100000", "checkpoints.every=5"]
    return subprocess.Popen(
        command(songs, run, 2, *keys),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=run.parent,
        env={**os.environ, **where, **place},
    )


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_is_killed_is_named_and_ends_the_other(songs, tmp_path, victim):
    """Whichever it is: rank 0 has the store in which they say that they are there."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    both = [started(songs, tmp_path / "run", rank, port) for rank in (0, 1)]
    end = time.monotonic() + 120
    while not (tmp_path / "run/checkpoints/last-1.ckpt").exists() and time.monotonic() < end:
        time.sleep(0.05)
    both[victim].kill()
    other = both[1 - victim]
    printed = other.communicate(timeout=60)[0]
    both[victim].communicate()
    assert other.returncode == 2, printed
    assert f"rank {victim} ({socket.gethostname()}, process {both[victim].pid}) gives no sign of life" in printed
    assert "Traceback" not in printed


class Store(dict):
    """What two watches share."""

    set = dict.__setitem__

    def multi_get(self, keys):
        return [self.get(key, b"") for key in keys]


@pytest.fixture
def watches(monkeypatch):
    """Two that share a store, and the exits that they wanted."""
    exits = []
    monkeypatch.setattr(ranks, "TICK", 0.02)
    monkeypatch.setattr(ranks.os, "_exit", exits.append)
    store, names = Store(), {0: "here", 1: "there"}
    both = [ranks.Watch(store, rank, names, silent=10) for rank in names]
    yield *both, exits
    for watch in both:
        watch._end.set()


def test_ranks_that_are_there_leave_each_other_alone(watches):
    one, other, exits = watches
    one.start()
    other.start()
    time.sleep(0.6)
    assert not exits


def test_a_rank_without_a_word_is_taken_for_dead(watches, capfd):
    one, other, exits = watches
    one.start()
    other.start()
    time.sleep(0.1)
    other._end.set()
    time.sleep(0.6)
    assert exits[0] == 1
    assert re.match(r"error: rank 1 \(there\) gives no sign of life.* Rank 0 \(here\) ends", capfd.readouterr().err)


def test_a_rank_that_ends_says_why(watches):
    one, other, _ = watches
    one.start()
    other.start()
    time.sleep(0.1)
    other.stop("data/train.csv: no such file")
    time.sleep(0.1)
    assert one.culprit().startswith("rank 1 (there) ended: data/train.csv: no such file. Rank 0")


def test_only_a_broken_connection_is_a_lost_rank():
    assert ranks.is_lost(RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"))
    assert ranks.is_lost(torch.distributed.DistBackendError("NCCL communicator was aborted"))
    assert not ranks.is_lost(RuntimeError("shape mismatch"))
