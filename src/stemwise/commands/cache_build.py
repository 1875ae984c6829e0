"""`stemwise cache build data=… shard=3/16`: fills the spectrogram cache as training would, as a Hydra command."""

import re
import sys
from collections.abc import Sequence
from typing import Any

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from stemwise import checks, launch
from stemwise.errors import UserError

FLAG = "--shard"


@hydra.main(version_base="1.3", config_path=launch.CONF, config_name="cache_build")
@launch.task
def command(cfg: DictConfig) -> None:
    """Computes what the cache of `cfg.data` lacks, or the share `cfg.shard` of it; see `conf/cache_build.yaml`."""
    part, parts = _shard(cfg.shard)
    checks.training(cfg)
    data = instantiate(cfg.data, _convert_="all")
    there, needed = data.build_cache(part, parts)
    share = "" if cfg.shard is None else f"shard {cfg.shard} is done; "
    print(f"{cfg.data.cache}: {share}{there} of {needed} spectrograms are there")


def _shard(value: Any) -> tuple[int, int]:
    """`3/16` as the number from 0 on, and of how many."""
    if value is None:
        return 0, 1
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", str(value))
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"shard={value}: not one of several. Write shard=1/16 to shard=16/16.")
    return int(match[1]) - 1, int(match[2])


def _as_keys(arguments: Sequence[str]) -> list[str]:
    """The flag as the key that it stands for."""
    rest, keys = iter(arguments), []
    for argument in rest:
        name, given, value = argument.partition("=")
        keys.append(f"shard={value if given else next(rest, '')}" if name == FLAG else argument)
    return keys


def main() -> int:
    """Entry point of `stemwise cache build`."""
    sys.argv[1:] = _as_keys(sys.argv[1:])
    launch.offer_trainer_arguments()
    code = launch.run(command)
    if code == 130:
        print("Interrupted. The same command goes on where this one ended.", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
