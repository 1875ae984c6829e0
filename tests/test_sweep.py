"""The sweep of docs/sweep.yaml, as W&B's agent would run it; the server that says which values is left out."""

import os
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir

from stemwise import launch
from stemwise.running import loggers

SWEEP = yaml.safe_load((Path(__file__).resolve().parents[1] / "docs/sweep.yaml").read_text(encoding="utf-8"))


def command(values: dict[str, object]) -> list[str]:
    """The command line for these values (wandb.wandb_agent, `_command_run`)."""
    from wandb.sdk.launch.sweeps import utils

    arguments = utils.create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    known = {**arguments, "env": ["/usr/bin/env"], "interpreter": ["python"], "program": ["train"]}
    parts = utils.create_sweep_command([*SWEEP["command"]])
    return [word for part in parts for word in (known[part[2:-1]] if part.startswith("${") else [part])]


def extremes() -> list[dict[str, object]]:
    """Values at either end of each parameter."""
    ends: list[dict[str, object]] = [{}, {}]
    for name, parameter in SWEEP["parameters"].items():
        choice = [parameter["value"]] if "value" in parameter else parameter.get("values")
        choice = choice or [parameter["min"], parameter["max"]]
        ends[0][name], ends[1][name] = choice[0], choice[-1]
    return ends


@pytest.mark.parametrize("values", extremes())
def test_the_agents_command_is_a_training(values, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    words = command(values)
    assert words[:4] == ["/usr/bin/env", "python", "-m", "train"]
    launch.offer_trainer_arguments()
    with initialize_config_dir(launch.CONF, version_base="1.3"):
        cfg = compose("train", overrides=words[4:], return_hydra_config=True)
    assert cfg.hydra.run.dir == "runs/sweep/abc123"
    assert cfg.optimizer.lr == pytest.approx(values["optimizer.lr"])
    assert cfg.data.batch_size == values["data.batch_size"]
    assert ("remix" in (cfg.data.augment or {})) == (values["augment"] == "remix")
    assert "wandb" in cfg.logger


def test_a_run_of_a_sweep_has_the_id_that_the_agent_gave_it(monkeypatch, tmp_path):
    import wandb

    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert loggers.earlier_run(tmp_path) is None
    settings = wandb.Settings()
    settings.update_from_env_vars(dict(os.environ))
    logger = loggers.wandb("stemwise", str(tmp_path))
    assert (settings.run_id, logger._wandb_init["id"]) == ("abc123", None)  # so nothing stands in its way
