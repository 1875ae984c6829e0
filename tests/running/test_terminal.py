"""What a training shows: a bar on a terminal, lines elsewhere."""

import csv
import io
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from stemwise import model_file
from stemwise.running import terminal


class Screen(io.StringIO):
    """A terminal of so many columns, where standard error goes, and standard output unless it goes into a file."""

    columns = 200
    takes_output = True

    @property
    def plain(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())


@pytest.fixture
def screen(monkeypatch) -> Screen:
    shown = Screen()
    monkeypatch.setattr(
        terminal, "Console", lambda **_: Console(file=shown, force_terminal=True, width=shown.columns, height=20)
    )
    monkeypatch.setattr(terminal.Bar, "SECONDS", 0.0)
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda file: shown.takes_output or file is not sys.stdout)
    return shown


BAR = ["trainer.enable_progress_bar=true", "trainer.val_check_interval=2", "trainer.max_steps=6"]


def test_a_bar_shows_loss_sdr_rate_and_time_left_below_the_lines_of_the_log(train, screen):
    """While it is drawn it takes standard output; afterwards all is as it was."""
    streams = sys.stdout, sys.stderr
    done = train(*BAR)
    assert done.code == 0, done.output
    assert (sys.stdout, sys.stderr) == streams
    plain = screen.plain
    assert re.search(r"train .* 1/6, loss \d\.\d{4}, [\d.]+ examples/s, \d+ s left", plain)
    assert re.search(r" 4/6, loss \d\.\d{4}, SDR -?\d+\.\d\d dB \(best -?\d+\.\d\d\), ", plain)
    assert "validate " in plain
    assert "step 2 of 6: validation loss" in plain
    assert "step 2 of 6" not in done.output
    assert "Run folder" in done.output
    assert "Model: " in done.output
    assert "Epoch 0" not in done.output  # no other bar


def test_the_log_goes_into_a_file_where_standard_output_does(train, screen):
    """`python -m train > file`: there is a bar, for standard error is a terminal."""
    screen.takes_output = False
    done = train(*BAR)
    assert done.code == 0, done.output
    assert "train " in screen.plain
    assert "validation loss" not in screen.plain
    assert done.output.count("validation loss") == 3


def test_the_bar_says_the_examples_per_second_that_are_logged(train, screen):
    """Validations take most of the time here, and count neither here nor there."""
    done = train(*BAR, "trainer.log_every_n_steps=2")
    assert done.code == 0, done.output
    with Path("run/csv/version_0/metrics.csv").open() as file:
        logged = [row["speed/examples_per_second"] for row in csv.DictReader(file)]
    logged = [f"{float(rate):.1f}" for rate in logged if rate]
    said = re.findall(r"train .* (\d)/6, .*?([\d.]+) examples/s", screen.plain)
    assert len(logged) == 3
    assert {rate for step, rate in said if step in "23"} == {logged[0]}
    assert {rate for step, rate in said if step == "6"} == {logged[2]}


def test_in_a_narrow_terminal_the_bar_stays_in_one_line(train, screen):
    screen.columns = 40
    done = train(*BAR)
    assert done.code == 0, done.output
    lines = [line for line in re.split(r"[\r\n]+", screen.plain) if line.startswith(("train", "validate"))]
    assert any(re.fullmatch(r"train +[━╸╺]+ 3/6, loss [\d.]+, \d+ s left *", line) for line in lines), lines
    assert all(len(line) <= 40 and "…" not in line for line in lines)


@pytest.mark.parametrize("bar", ["true", "null"])
def test_a_run_of_so_many_epochs_knows_its_end(train, screen, bar):
    """Four songs, two in a batch, and two batches in a step: an epoch has one step."""
    keys = ["trainer.max_steps=-1", "trainer.max_epochs=3", "data.batch_size=2", "trainer.accumulate_grad_batches=2"]
    done = train(*keys, "trainer.val_check_interval=2", f"trainer.enable_progress_bar={bar}")
    assert done.code == 0, done.output
    assert re.search("step 3 of 3: validation loss", done.output + screen.plain)
    assert bar == "null" or re.search(r"train .* 1/3, .* \d+ s left", screen.plain)


def test_a_run_of_so_much_time_says_what_is_left_of_it(train, screen):
    done = train(*BAR, "trainer.max_steps=-1", "trainer.max_time=00:00:00:06", "trainer.val_check_interval=1000")
    assert done.code == 0, done.output
    assert re.search(r"train .* 1, .* [3456] s left", screen.plain)


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


LONG = {
    "step": "123456/200000",
    "loss": "loss 0.1724",
    "sdr": "SDR 11.24 dB",
    "best": "(best 11.30)",
    "rate": "145.6 examples/s",
    "left": "12.5 h left",
}


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (110, "123456/200000, loss 0.1724, SDR 11.24 dB (best 11.30), 145.6 examples/s, 12.5 h left"),
        (80, "123456/200000, loss 0.1724, SDR 11.24 dB, 145.6 examples/s, 12.5 h left"),
        (60, "123456/200000, loss 0.1724, 12.5 h left"),
        (40, "123456/200000, 12.5 h left"),
        (30, "123456/200000"),
    ],
)
def test_the_bar_of_a_long_run_says_what_fits(width, expected):
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=width)
    with Progress(*terminal.columns(), console=console, expand=True) as progress:
        said = terminal.fitted(LONG, width - len("train") - terminal.BAR)
        progress.add_task("train", total=2, completed=1, said=said)
    assert f" {expected}" in shown.getvalue()
    assert "…" not in shown.getvalue()


@pytest.mark.parametrize(("seconds", "expected"), [(45, "45 s"), (120, "2.0 min"), (7200, "2.0 h")])
def test_durations_are_said_in_their_unit(seconds, expected):
    assert terminal.duration(seconds) == expected
