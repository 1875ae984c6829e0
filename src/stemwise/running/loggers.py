"""Loggers that a run does without where they fail, and Weights & Biases without a question.

Logging never stops training: whatever a logger raises costs one warning, and then it is switched off.
"""

import configparser
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers
import requests.utils
from lightning.pytorch.loggers.logger import DummyExperiment, Logger
from lightning.pytorch.utilities import rank_zero_only

from stemwise import workers

log = logging.getLogger(__name__)

OFFLINE = ("offline", "dryrun")  # modes of W&B
# Seconds to connect to a W&B server and to hear from it.
CONNECT, ANSWER = 3.0, 10.0
# Seconds that W&B may take to make a run (its own patience: 90), and at the end to upload what is left (for ever).
PATIENCE = {"init_timeout": 30.0, "finish_timeout": 600.0}


def guarded(name: str, make: Callable[[], Logger]) -> Logger | None:
    """The logger that `make` returns, which cannot raise any more; None, and a warning, if it cannot be made."""
    try:
        return Guarded(name, make())  # type: ignore[return-value]  # it says so itself
    except Exception as error:
        _say(name, error)
        return None


class Guarded:
    """Stands before a logger and takes what it raises: one warning, and from then on its methods do nothing.

    It passes for the logger, `isinstance` included, for Lightning asks for the classes of some. What the logger lacks,
    it lacks too. Only what goes through the logger is guarded, not what is done with its `experiment`.
    """

    def __init__(self, name: str, logger: Logger) -> None:
        self._guard_name, self._guard_logger, self._guard_off = name, logger, False

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._guard_logger)

    def __reduce__(self) -> Any:
        return Guarded, (self._guard_name, self._guard_logger)

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("__", "_guard")):  # a copy is asked for these before it has a logger
            raise AttributeError(name)
        if name == "experiment" and self._guard_off:
            return DummyExperiment()
        try:
            value = getattr(self._guard_logger, name)
        except AttributeError:
            raise
        except Exception as error:
            self._guard_switch_off(error)
            return DummyExperiment() if name == "experiment" else None
        return self._guard_call(value) if callable(value) else value

    def _guard_call(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self._guard_off:
                return None
            try:
                return method(*arguments, **options)
            except Exception as error:
                self._guard_switch_off(error)
                return None

        return call

    def _guard_switch_off(self, error: Exception) -> None:
        if workers.is_death(error):  # it comes from a signal's handler, whatever happens to be under way
            raise error
        if not self._guard_off:
            _say(self._guard_name, error)
        self._guard_off = True


def using(logger: Any, use: Callable[[Any], None]) -> None:
    """Calls `use` with the experiment of a guarded logger; what it raises is taken as if the logger had raised it."""
    logger._guard_call(lambda: use(logger._guard_logger.experiment))()


def experiment(logger: Any) -> Any:
    """The experiment of a guarded logger, for what may fail without it; None if it is switched off."""
    return None if logger._guard_off else logger._guard_logger.experiment


def _say(name: str, error: BaseException) -> None:
    error = error.__cause__ or error  # Hydra wraps what a constructor raises
    reason = (str(error).strip().splitlines() or ["no reason given"])[0]
    log.warning("logger=%s: %s: %s. Training goes on without this logger.", name, type(error).__name__, reason[:300])


def wandb(
    project: str, folder: str, offline: bool | None = None, **options: Any
) -> lightning.pytorch.loggers.WandbLogger:
    """A W&B logger that is offline where there is no login, instead of asking for one, or no server that takes it.

    With `offline`, WANDB_MODE or `wandb offline` it is as is said, and nothing is tried. `options` are the other
    arguments of Lightning's logger.
    """
    told = _told()
    host, mode = told.get("base_url", "https://api.wandb.ai").rstrip("/"), told.get("mode")
    key = told.get("api_key") or (requests.utils.get_netrc_auth(host) or (None, None))[1]
    chosen = mode is not None or offline is not None
    offline = offline or (offline is None and mode in OFFLINE) or (not key and not chosen)
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    if key and not chosen and first and (reason := refusal(host, str(key))):
        log.warning(
            "logger=wandb: %s. This run is logged offline; `wandb sync %s/wandb/offline-run-*` uploads it later.",
            reason,
            folder,
        )
        offline = True
    Path(folder).mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("WANDB_SILENT", "true")
    settings = {"settings": _settings(), "id": earlier_run(Path(folder)), **options}
    logger = lightning.pytorch.loggers.WandbLogger(project=project, save_dir=folder, offline=offline, **settings)
    logger._wandb_init.pop("anonymous", None)  # W&B warns of it whatever it is
    return logger


def _told() -> dict[str, str]:
    """What W&B was told by files of settings, which `wandb offline` and `wandb login` write, and by variables."""
    files = configparser.ConfigParser(interpolation=None)
    folders = [Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()]
    for here in (Path(), Path(os.environ.get("WANDB_DIR", ""))):
        folders += [here / "wandb", here / ".wandb"]
    try:
        files.read([folder / "settings" for folder in folders])
    except (OSError, configparser.Error, UnicodeDecodeError) as error:
        log.warning("logger=wandb: its settings cannot be read (%s). Mend or remove the file.", error)
    known = dict(files["default"]) if files.has_section("default") else {}
    for name in ("mode", "base_url", "api_key"):
        if value := os.environ.get(f"WANDB_{name.upper()}"):
            known[name] = value
    return known


def earlier_run(folder: Path) -> str | None:
    """The id of the W&B run that was logged into this run folder before: what goes on is the same run."""
    found = sorted(folder.glob("wandb/*run-*-*"), key=lambda path: path.stat().st_mtime)
    # run-20261123_184155-my-own-id, or the same behind "offline-"
    return found[-1].name.removeprefix("offline-").split("-", 2)[2] if found else None


def refusal(host: str, key: str) -> str | None:
    """Why a W&B server would not take a run with this key, or None if nothing speaks against it.

    To ask is cheaper than to try: W&B waits for a server that is not there, and asks for another key at the terminal.
    """
    query = {"query": "query { viewer { id } }"}
    try:
        answer = requests.post(f"{host}/graphql", json=query, auth=("api", key), timeout=(CONNECT, ANSWER))
        if answer.status_code in (401, 403) or (answer.ok and answer.json()["data"]["viewer"] is None):
            return f"{host} does not take WANDB_API_KEY or the key in .netrc. Check it at {host}/authorize"
        answer.raise_for_status()
    except (requests.RequestException, KeyError, TypeError) as error:
        return f"{host} is not reachable ({type(error).__name__}). Check the network, or WANDB_BASE_URL"
    return None


def _settings() -> Any:
    import wandb

    known: dict[str, Any] = {name: value for name, value in PATIENCE.items() if name in wandb.Settings.model_fields}
    return wandb.Settings(**known)
