"""What a training shows: a bar on a terminal, lines elsewhere."""

import io
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from stemwise import model_file
from stemwise.running import terminal


@pytest.fixture
def screen(monkeypatch) -> io.StringIO:
    """A terminal 200 columns wide."""
    shown = io.StringIO()
    monkeypatch.setattr(terminal, "Console", lambda **_: Console(file=shown, force_terminal=True, width=200))
    monkeypatch.setattr(terminal.Bar, "SECONDS", 0.0)
    return shown


def test_a_bar_shows_loss_sdr_rate_and_time_left_below_the_lines_of_the_log(train, screen):
    """While it is drawn it takes standard output; afterwards all is as it was."""
    streams = sys.stdout, sys.stderr
    done = train("trainer.enable_progress_bar=true", "trainer.val_check_interval=2", "trainer.max_steps=6")
    assert done.code == 0, done.output
    assert (sys.stdout, sys.stderr) == streams
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert re.search(r"train .* 1/6, loss \d\.\d{4}, [\d.]+ examples/s, \d+ s left", plain)
    assert re.search(r" 4/6, loss \d\.\d{4}, SDR -?\d+\.\d\d dB \(best -?\d+\.\d\d\), ", plain)
    assert "validate " in plain
    assert "step 2 of 6: validation loss" in plain
    assert "step 2 of 6" not in done.output
    assert "Run folder" in done.output
    assert "Model: " in done.output
    assert "Epoch 0" not in done.output  # no other bar


def test_without_a_terminal_there_are_lines_and_no_bar(train):
    done = train("trainer.val_check_interval=2")
    assert done.code == 0, done.output
    assert "\x1b" not in done.output
    assert "step 0 of 4: starts" in done.output
    assert re.search(r"step 4 of 4: validation loss \d\.\d{4}, SDR in dB: vocals .*, mean -?\d+\.\d\d", done.output)
    assert "improvement" not in done.output


def test_a_sanity_check_in_front_says_and_saves_nothing(train):
    """Nor does it count, though a learning rate that ruins the weights leaves it the best."""
    keys = ["trainer.num_sanity_val_steps=1", "trainer.enable_progress_bar=true", "logger=[csv,tensorboard]", "ema=0.5"]
    done = train(*keys, "optimizer.lr=1.0")
    assert done.code == 0, done.output
    assert "step 0 of 4: validation" not in done.output
    assert done.output.count("validation loss") == 1
    assert model_file.read(Path("run/model.safetensors"))[1]["step"] == 4


def test_the_bar_of_a_long_run_fits_80_columns():
    shown = io.StringIO()
    columns = terminal.columns()
    said = "123456/200000, loss 0.1724, SDR 11.24 dB, 145.6 examples/s, 12.5 h left"
    with Progress(*columns, console=Console(file=shown, force_terminal=True, width=80), expand=True) as progress:
        progress.add_task("train", total=2, completed=1, said=said)
    assert said in shown.getvalue()


@pytest.mark.parametrize(("seconds", "expected"), [(45, "45 s"), (120, "2.0 min"), (7200, "2.0 h")])
def test_durations_are_said_in_their_unit(seconds, expected):
    assert terminal.duration(seconds) == expected
