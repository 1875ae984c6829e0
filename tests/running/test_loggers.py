"""Logging never stops training, whatever happens to a logger; and Weights & Biases asks nothing."""

import csv
import http.server
import json
import logging
import os
import pickle
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from stemwise.running import loggers
from stemwise.running.loggers import guarded
from stemwise.training import SeparatorTraining
from tiny import TINY

RUN = Path("run")


@pytest.fixture
def no_login(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC", "WANDB_BASE_URL", "WANDB_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def server(monkeypatch, no_login) -> Iterator[SimpleNamespace]:
    """What W&B's server says about a key; `status` and `answer` can be changed."""
    says = SimpleNamespace(status=200, answer={"data": {"viewer": {"id": "somebody"}}}, asked=[], connections=0)

    class Handler(http.server.BaseHTTPRequestHandler):
        def setup(self) -> None:
            says.connections += 1
            super().setup()

        def do_POST(self) -> None:
            says.asked.append((self.path, self.headers["Authorization"]))
            body = json.dumps(says.answer).encode()
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(says.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield says
        listening.shutdown()


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


# Weights & Biases.


def test_wandb_is_offline_without_a_login(no_login, tmp_path):
    assert loggers.wandb("stemwise", str(tmp_path))._offline is True


def test_wandb_is_online_with_a_key_that_its_server_takes(server, tmp_path, caplog):
    assert loggers.wandb("stemwise", str(tmp_path))._offline is False
    assert [path for path, _ in server.asked] == ["/graphql"]
    assert not warnings(caplog)


def test_a_run_that_goes_on_keeps_its_id(no_login, tmp_path):
    assert loggers.earlier_run(tmp_path) is None
    for number, name in enumerate(("offline-run-20261123_070000-first", "run-20261123_060000-my-own-id")):
        (tmp_path / "wandb" / name).mkdir(parents=True)
        os.utime(tmp_path / "wandb" / name, (number, number))
    assert loggers.wandb("stemwise", str(tmp_path))._wandb_init["id"] == "my-own-id"


def test_wandb_is_offline_where_a_key_says_so(server, tmp_path):
    assert loggers.wandb("stemwise", str(tmp_path), offline=True)._offline is True
    assert not server.asked


def test_wandb_obeys_its_own_variable(server, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert loggers.wandb("stemwise", str(tmp_path))._offline is False
    assert not server.asked


SETTINGS = "[default]\nmode = offline\nproject = a 100% project\n"


@pytest.mark.parametrize(
    ("file", "variables"),
    [
        ("wandb/settings", {}),
        (".wandb/settings", {}),
        (".config/wandb/settings", {}),
        ("mine/settings", {"WANDB_CONFIG_DIR": "mine"}),
        ("there/wandb/settings", {"WANDB_DIR": "there"}),
    ],
)
def test_wandb_obeys_its_own_settings(server, tmp_path, monkeypatch, file, variables):
    """`wandb offline` writes them."""
    for name, value in variables.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(SETTINGS)
    assert loggers.wandb("stemwise", str(tmp_path / "run"))._offline is True
    assert server.connections == 0
    monkeypatch.setenv("WANDB_MODE", "online")  # comes before them
    assert loggers.wandb("stemwise", str(tmp_path / "run"))._offline is False


def test_the_server_may_be_named_in_a_file(server, tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb/settings").write_text(f"[default]\nbase_url = {os.environ['WANDB_BASE_URL']}/\n")
    monkeypatch.delenv("WANDB_BASE_URL")
    assert loggers.wandb("stemwise", str(tmp_path))._offline is False
    assert [path for path, _ in server.asked] == ["/graphql"]


def test_settings_that_are_no_settings_cost_a_warning(no_login, tmp_path, caplog):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb/settings").write_text("mode = offline\n")
    assert loggers.wandb("stemwise", str(tmp_path))._offline is True
    assert "its settings cannot be read" in warnings(caplog)[0]


@pytest.mark.parametrize(
    ("status", "answer", "expected"),
    [
        (401, {}, "does not take WANDB_API_KEY"),
        (403, {}, "does not take WANDB_API_KEY"),
        (200, {"data": {"viewer": None}}, "does not take WANDB_API_KEY"),
        (200, {"errors": []}, "is not reachable"),
        (200, [], "is not reachable"),
        (503, {}, "is not reachable"),
    ],
)
def test_wandb_is_offline_where_its_server_refuses(server, tmp_path, caplog, status, answer, expected):
    server.status, server.answer = status, answer
    assert loggers.wandb("stemwise", str(tmp_path))._offline is True
    (said,) = warnings(caplog)
    assert expected in said
    assert "wandb sync" in said


def test_a_server_that_is_not_there_costs_no_time(no_login, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", closed_port())
    start = time.monotonic()
    assert loggers.wandb("stemwise", str(tmp_path))._offline is True
    assert time.monotonic() - start < 2 * loggers.CONNECT
    assert "is not reachable" in warnings(caplog)[0]


def command(folder: Path, songs: Path, *keys: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """Trains in a process of its own, for W&B's lasts as long as the one that started it; `code` runs before it."""
    script = folder / "training.py"
    script.write_text(f"{textwrap.dedent(code)}\nimport sys, train\nsys.exit(train.main())\n")
    where = ["data=csv", f"data.root={songs}", "hydra.run.dir=run"]
    where += [f"data.{split}={songs}/{split}.csv" for split in ("train", "valid")]
    arguments = [sys.executable, str(script), *where, *[key for key in TINY if "logger" not in key], *keys]
    return subprocess.run(arguments, cwd=folder, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


@pytest.mark.slow
def test_a_run_with_a_server_that_is_not_there_goes_on_offline(no_login, tmp_path, songs, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", closed_port())
    start = time.monotonic()
    done = command(tmp_path, songs, "logger=wandb", "trainer.max_steps=2")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 60
    assert (done.stdout + done.stderr).count("is not reachable") == 1
    assert list((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.slow
def test_after_wandb_offline_no_server_is_asked(server, tmp_path, songs):
    """Though there is a key, and the server would take it."""
    done = subprocess.run([sys.executable, "-m", "wandb", "offline"], cwd=tmp_path, capture_output=True, text=True)
    assert "W&B offline" in done.stdout, done.stderr
    server.connections = 0
    done = command(tmp_path, songs, "logger=wandb", "trainer.max_steps=2")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))
    assert server.connections == 0


KILLS_WANDB = """
    import psutil
    from stemwise.training import SeparatorTraining

    step = SeparatorTraining.training_step

    def kills(self, batch, number):
        if self.global_step == 3:
            children = psutil.Process().children(recursive=True)
            found = [child for child in children if "wandb-core" in " ".join(child.cmdline())]
            assert found
            for child in found:
                child.kill()
        return step(self, batch, number)

    SeparatorTraining.training_step = kills
"""


@pytest.mark.slow
def test_a_run_whose_wandb_process_is_killed_goes_on(no_login, tmp_path, songs):
    start = time.monotonic()
    done = command(tmp_path, songs, "logger=[wandb,csv]", "trainer.max_steps=8", code=KILLS_WANDB)
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert time.monotonic() - start < 60
    assert printed.count("Training goes on without this logger") == 1
    with (tmp_path / "run/csv/version_0/metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file) if row["train/loss"]] == [str(step) for step in range(8)]


@pytest.mark.slow
def test_a_folder_that_wandb_cannot_write_costs_a_warning(no_login, tmp_path, songs):
    (tmp_path / "file").touch()
    done = command(tmp_path, songs, "logger=wandb", "logger.wandb.folder=file/wandb", "trainer.max_steps=2")
    printed = done.stdout + done.stderr
    assert done.returncode == 0, printed
    assert "logger=wandb: NotADirectoryError" in printed
    assert (tmp_path / "run/model.safetensors").exists()


# Any logger.


class Failing(Logger):
    """Fails in the method that it is told, from its call number `after` on."""

    def __init__(self, where: str, after: int = 0, error: Exception | None = None) -> None:
        self.where, self.after, self.calls = where, after, 0
        self.error = error or OSError(28, "No space left on device")
        self.fail("__init__")

    def fail(self, name: str) -> None:
        if name == self.where:
            self.calls += 1
            if self.calls > self.after:
                raise self.error

    @property
    def name(self) -> str:
        self.fail("name")
        return "failing"

    @property
    def version(self) -> int:
        self.fail("version")
        return 7

    @property
    def save_dir(self) -> str:
        return "somewhere"

    @property
    def experiment(self) -> str:
        self.fail("experiment")
        return "an experiment"

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        self.fail("log_metrics")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.fail("log_hyperparams")

    def save(self) -> None:
        self.fail("save")

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        self.fail("after_save_checkpoint")

    def finalize(self, status: str) -> None:
        self.fail("finalize")


METHODS = [name for name in vars(Failing) if not name.startswith("_") and name not in ("fail", "save_dir")]


def test_a_logger_that_cannot_be_made_is_named_and_left_out(caplog):
    assert guarded("mine", lambda: Failing("__init__")) is None
    assert warnings(caplog) == [
        "logger=mine: OSError: [Errno 28] No space left on device. Training goes on without this logger."
    ]


@pytest.mark.parametrize("where", METHODS)
@pytest.mark.parametrize("after", [0, 1])
def test_a_logger_that_fails_anywhere_costs_one_warning(train, monkeypatch, where, after):
    """Lightning calls it, beside one that works."""
    made = []

    def make(*_: Any, **__: Any) -> Failing:
        made.append(Failing(where, after))
        return made[0]

    monkeypatch.setattr("lightning.pytorch.loggers.TensorBoardLogger", make)
    done = train("logger=[csv,tensorboard]", "trainer.val_check_interval=2")
    assert done.code == 0, done.output
    failed = made[0].calls > after
    assert done.output.count("logger=tensorboard: OSError: [Errno 28]") == failed
    assert failed or (where, after) in NOT_CALLED
    with (RUN / "csv/version_0/metrics.csv").open() as file:
        assert len([row for row in csv.DictReader(file) if row["train/loss"]]) == 4


# How often a run calls a method is Lightning's affair; here are those that it need not call so often.
NOT_CALLED = [("name", 0), ("name", 1), ("version", 0), ("version", 1), ("log_hyperparams", 1), ("finalize", 1)]


def test_a_logger_that_failed_is_not_called_again(caplog):
    failing = Failing("log_metrics")
    logger = guarded("mine", lambda: failing)
    for _ in range(3):
        assert logger.log_metrics({"a": 1.0}, 1) is None
    assert failing.calls == 1
    assert len(warnings(caplog)) == 1
    assert logger.experiment.add_scalar("a", 1) is None  # of an experiment that takes everything
    assert (logger.save_dir, logger.name, logger.version) == ("somewhere", "failing", 7)
    logger.finalize("success")


def test_what_is_no_failure_of_a_logger_is_not_taken():
    for error in (
        KeyboardInterrupt(),
        SystemExit(),
        RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed."),
    ):
        logger = guarded("mine", lambda error=error: Failing("log_metrics", error=error))
        with pytest.raises(type(error)):
            logger.log_metrics({})


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger, WandbLogger])
def test_it_passes_for_the_logger_that_it_guards(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    inner = kind(save_dir=tmp_path)
    logger = guarded("mine", lambda: inner)
    assert isinstance(logger, Logger)
    assert isinstance(logger, kind)
    assert not isinstance(logger, {CSVLogger, TensorBoardLogger, WandbLogger}.difference({kind}).pop())
    assert logger.name == inner.name
    assert logger.save_dir == inner.save_dir
    assert not hasattr(logger, "nothing_of_the_kind")
    with pytest.raises(AttributeError):
        logger.nothing_of_the_kind()
    trainer = lightning.Trainer(logger=[logger], accelerator="cpu", default_root_dir=tmp_path)
    assert trainer.log_dir == (inner.save_dir if kind is WandbLogger else inner.log_dir)
    assert trainer.logger is logger


def test_it_can_be_pickled(tmp_path):
    logger = pickle.loads(pickle.dumps(guarded("mine", lambda: CSVLogger(tmp_path, name="a"))))
    assert isinstance(logger, CSVLogger)
    assert logger.name == "a"


@pytest.mark.parametrize("logger", ["csv", "tensorboard"])
def test_a_folder_that_cannot_be_written_costs_a_warning(train, logger):
    RUN.mkdir()
    (RUN / logger).touch()
    done = train(f"logger={logger}")
    assert done.code == 0, done.output
    assert done.output.count("Training goes on without this logger") == 1
    assert f"logger={logger}: " in done.output


@pytest.mark.parametrize("logger", ["csv", "tensorboard"])
def test_a_disk_that_is_full_costs_a_warning(train, monkeypatch, logger):
    """From the third step on, what is written goes to a device that is always full."""
    step = SeparatorTraining.training_step

    def fills(self: SeparatorTraining, batch: Any, number: int) -> Any:
        if self.global_step == 2:
            (file,) = [path for path in (RUN / logger).rglob("*") if path.suffix == ".csv" or "tfevents" in path.name]
            full = file.with_name("full")
            full.symlink_to("/dev/full")
            full.replace(file)  # at once: both open the file anew whenever they write, TensorBoard in a thread
        return step(self, batch, number)

    monkeypatch.setattr(SeparatorTraining, "training_step", fills)
    done = train(f"logger={logger}", "trainer.max_steps=8")
    assert done.code == 0, done.output
    assert done.output.count("Training goes on without this logger") == 1
    assert "No space left on device" in done.output
    assert (RUN / "model.safetensors").exists()
