"""How far a run is and how fast, as every logger is told it."""

import csv
import time
from pathlib import Path
from statistics import mean

import pytest
import torch

from stemwise.examples import RandomCrops
from stemwise.running import meters
from stemwise.training import SeparatorTraining

STEPS = ["trainer.val_check_interval=2", "trainer.max_steps=4"]


def rows(run: str) -> list[dict[str, str]]:
    """All of a run, in order."""
    found = []
    for path in sorted(Path(run).glob("csv/version_*/metrics.csv")):
        with path.open() as file:
            found += list(csv.DictReader(file))
    return found


def column(run: str, name: str) -> list[float]:
    return [float(row[name]) for row in rows(run) if row.get(name)]


def test_progress_goes_on_where_a_run_goes_on(train):
    """Songs that were shown count over accumulated batches, and hours and songs over all starts."""
    keys = ["data.batch_size=2", "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=2"]
    assert train("trainer.max_steps=2", *keys).code == 0
    before = column("run", "progress/hours")[-1]
    assert train("trainer.max_steps=4", "resume=auto", "hydra.run.dir=run", *keys).code == 0
    # A row for each step and one for each validation, which is one after each step.
    assert column("run", "progress/songs") == [4, 4, 8, 8, 12, 12, 16, 16]
    hours = column("run", "progress/hours")
    assert hours == sorted(hours)
    assert hours[4] > before
    assert hours[-1] < 0.1
    assert len(column("run", "train/lr")) == 4


def test_no_curve_folds_back_where_a_run_goes_on_after_its_last_validation(train, monkeypatch):
    """That comes after the last checkpoint, at the last step like any other, and takes no time of the training's."""
    validate = SeparatorTraining.validation_step
    monkeypatch.setattr(SeparatorTraining, "validation_step", lambda *given: time.sleep(0.5) or validate(*given))
    keys = ["trainer.val_check_interval=2", "hydra.run.dir=run"]
    assert train("trainer.max_steps=3", *keys).code == 0
    assert train("trainer.max_steps=5", "resume=auto", *keys).code == 0
    for name in ("step", "epoch", "progress/songs", "progress/hours"):
        values = column("run", name)
        assert values == sorted(values), name
        assert len(values) == len(rows("run"))
    assert [int(row["step"]) for row in rows("run") if row["sdr/mean"]] == [1, 2, 3, 4]
    validations = 4 * (2 * 0.5)  # at the least: a batch of crops, and a song
    assert 3600 * column("run", "progress/hours")[-1] < validations


def test_waiting_is_the_share_of_time_in_which_there_was_no_data(train, monkeypatch):
    assert train("hydra.run.dir=quick", *STEPS).code == 0
    original = RandomCrops.__getitems__
    monkeypatch.setattr(RandomCrops, "__getitems__", lambda *given: time.sleep(0.5) or original(*given))
    assert train("hydra.run.dir=slow", *STEPS).code == 0
    # The loader is one batch ahead, so the first step waits for two and the last for none.
    quick, slow = (column(run, "speed/waiting")[1:-1] for run in ("quick", "slow"))
    assert mean(quick) < 0.5 < mean(slow)
    assert max(slow) <= 1
    assert max(column("slow", "speed/examples_per_second")[:-1]) < 4 / 0.5
    assert not [name for name in rows("slow")[0] if "gpu" in name]


def test_values_come_as_often_as_the_losses(train):
    assert train("trainer.log_every_n_steps=2", *STEPS).code == 0
    for name in ("train/loss", "train/lr", "speed/waiting", "speed/examples_per_second"):
        assert len(column("run", name)) == 2, name


@pytest.mark.parametrize("error", [None, ModuleNotFoundError("pynvml"), RuntimeError("driver")])
def test_a_gpu_that_does_not_tell_how_busy_it_is_costs_nothing(monkeypatch, error):
    def utilization(_: torch.device) -> int:
        if error:
            raise error
        return 87

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3 * 2**29)
    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    told = {} if error else {"speed/gpu_utilisation": 87.0}
    assert meters._gpu(torch.device("cuda", 0)) == {"speed/gpu_memory": 1.5, **told}
    assert meters._gpu(torch.device("cpu")) == {}
