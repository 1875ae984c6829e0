"""What the Hydra commands share: where `conf/` lies, and how a user's mistake ends a command.

Exit code 0: done. 1: our mistake, with a traceback. 2: the user's, in a message that says what to do.
"""

import functools
import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import stemwise
from stemwise import grammar
from stemwise.errors import UserError
from stemwise.files import places
from stemwise.running import folders

_PACKAGE = Path(stemwise.__file__).parent
# Inside the wheel, or beside src/ in a checkout.
CONF = str(_PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parents[1] / "conf")

URLS = ("data.root", "data.train", "data.valid", "data.test")  # keys that may be one

OmegaConf.register_new_resolver("run_folder", folders.choose, use_cache=True, replace=True)


def offer_trainer_arguments() -> None:
    """Makes every argument of Lightning's Trainer a key below `trainer`, with Lightning's default.

    Without this, Hydra would refuse `trainer.accumulate_grad_batches=2` as an unknown key.
    """
    import lightning

    arguments = inspect.signature(lightning.Trainer.__init__).parameters
    defaults = {name: a.default for name, a in arguments.items() if a.default is not inspect.Parameter.empty}
    node = {"_target_": "lightning.Trainer", **defaults}
    # The command has places of its own for these.
    for name in ("logger", "callbacks", "default_root_dir"):
        del node[name]
    ConfigStore.instance().store(group="trainer", name="lightning", node=node)


class _Started:
    """Whether Hydra has come as far as our own code."""

    done = False


def task(function: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Wraps the body of a Hydra command: a mistake of the user becomes one message and exit code 2."""

    @functools.wraps(function)
    def wrapped(cfg: DictConfig) -> None:
        _Started.done = True
        try:
            function(cfg)
        except Exception as error:
            message = _users_mistake(error)
            if message is None:
                raise
            print(f"error: {message}", file=sys.stderr)
            sys.exit(2)

    return wrapped


def _users_mistake(error: BaseException) -> str | None:
    """The message if the user can mend it, None if it is a fault of ours."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError | MisconfigurationException):
            # What a loader's worker raised comes with the worker's traceback in front of the message.
            return str(cause).rpartition(f"{UserError.__name__}: ")[2]
        cause = cause.__cause__
    if isinstance(error, InstantiationException | OmegaConfBaseException | HydraException):
        return f"config: {error}"
    return None


def run(command: Callable[[], Any]) -> int:
    """Runs a function decorated by `hydra.main` and returns the exit code.

    A config that Hydra cannot compose (an unknown key, a wrong option) is the user's mistake too: Hydra
    prints it and exits with 1 before our code starts.
    """
    _Started.done = False
    try:
        _check_urls(sys.argv[1:])
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
        return 2 if code == 1 and not _Started.done else code
    except KeyboardInterrupt:
        return 130
    return 0


def _check_urls(arguments: Sequence[str]) -> None:
    """Refuses URLs with credentials before Hydra writes down what was typed."""
    for argument in arguments:
        key, _, value = argument.lstrip("+~").partition("=")
        if key in URLS:
            places.configured(key, value.strip("'\""))


def given() -> list[str]:
    """What the command line says of the config: overrides of its keys, and where else configs lie."""
    hydra = HydraConfig.get()
    dirs = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    searched = [text for text in hydra.overrides.hydra if "hydra.searchpath=" in text]
    searched += [
        f"hydra.searchpath=[{grammar.text(f'file://{Path(path).absolute()}')}]" for path in dirs if not searched
    ]
    return [*hydra.overrides.task, *searched]


def plain(node: Any) -> Any:
    """A config node as plain lists and dictionaries, all references resolved."""
    return OmegaConf.to_container(node, resolve=True)


def quiet_lightning() -> None:
    """Leaves the terminal to our own lines: no advertisements, and no warnings that are wrong here.

    What all ranks do, the first one says.
    """
    from lightning.pytorch.utilities import rank_zero_only

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    if rank_zero_only.rank:  # type: ignore[attr-defined]
        logging.getLogger("stemwise").setLevel(logging.WARNING)
    # Steps are counted across epochs, so an epoch may well be shorter than the logging interval.
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging")
    # The sampler goes on behind what was shown, which Lightning cannot see; and a run has one folder.
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    # What is logged at the end of a validation has been summed over the ranks.
    warnings.filterwarnings("ignore", message="It is recommended to use .*sync_dist=True")
    # Lightning's own use of torch; nothing that a user could change.
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.. is deprecated")
