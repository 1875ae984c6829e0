from pathlib import Path

import pytest

from stemwise import loggers


@pytest.fixture
def no_login(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")


def test_wandb_is_offline_without_a_login(no_login, tmp_path):
    assert loggers.wandb("stemwise", str(tmp_path))._offline is True


def test_wandb_is_online_with_a_key_and_obeys_its_own_variable(no_login, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert loggers.wandb("stemwise", str(tmp_path))._offline is False
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert loggers.wandb("stemwise", str(tmp_path))._offline is False


@pytest.mark.slow
def test_a_run_without_a_login_asks_nothing_and_writes_an_offline_run(no_login, train):
    done = train("logger=wandb", "trainer.max_steps=2")
    assert done.code == 0, done.output
    assert list(Path("run/wandb").glob("offline-run-*/*.wandb"))
