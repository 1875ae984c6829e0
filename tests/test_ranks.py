"""Several processes train as one does: through the real command, on processors, with gloo."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import TINY
from stemwise import model_file

# Four examples a step, however many ranks share them. Dropout draws anew on each rank, so it is left out.
KEYS = ["model.unet.dropout=0", "data.examples_per_song=4", "trainer.max_steps=6", "trainer.val_check_interval=3"]
KEYS += ["optimizer.lr=0.001", "trainer.sync_batchnorm=true", "ema=0.9", "augment=remix"]


def command(songs: Path, run: Path, ranks: int, *overrides: str) -> list[str]:
    # Three songs to validate with: they do not divide among two.
    lines = (songs / "train.csv").read_text().splitlines()
    (songs / "three.csv").write_text("\n".join([*lines[:4], ""]))
    data = ["data=csv", f"data.root={songs}", f"data.train={songs}/train.csv", f"data.valid={songs}/three.csv"]
    shape = [f"trainer.devices={ranks}", f"data.batch_size={4 // ranks}", f"hydra.run.dir={run}"]
    return [sys.executable, "-m", "train", *data, *TINY, *KEYS, *shape, *overrides]


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


@pytest.mark.slow
def test_two_ranks_train_and_validate_as_one(songs, tmp_path):
    """Weights after six steps, statistics, averaged weights, losses and SDR: to float32's rounding."""
    for ranks in (1, 2):
        trained(songs, tmp_path / str(ranks), ranks)
    one, two = (torch.load(tmp_path / f"{n}/checkpoints/last.ckpt", weights_only=True) for n in (1, 2))
    for part in ("state_dict", "current_model_state"):
        torch.testing.assert_close(one[part], two[part], rtol=1e-3, atol=2e-5)
    assert one["optimizer_states"][0]["state"][0]["step"] == 6
    losses = logged(tmp_path / "1"), logged(tmp_path / "2")
    assert losses[0].keys() == losses[1].keys()
    assert len(losses[0]) == 2 * (5 + 5)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3, abs=1e-3)
    assert {path.name for path in tmp_path.iterdir() if path.name != "data"} == {"1", "2"}  # a folder each
    assert not list((tmp_path / "2").rglob("*.part"))
    assert model_file.read(tmp_path / "2/model.safetensors")[1]["step"] in (3, 6)


@pytest.mark.slow
def test_two_ranks_that_a_signal_stops_go_on_as_if_it_had_not(songs, tmp_path):
    """The signal comes to one of them; with dropout, for which each has a generator of its own."""
    keys = ["model.unet.dropout=0.5", "trainer.max_steps=60", "trainer.val_check_interval=100"]
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
