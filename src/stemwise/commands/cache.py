"""`stemwise cache info|verify|prune [FOLDER]`: what lies in a spectrogram cache, whether it is sound, what may go.

`stemwise cache build` has the keys of training, and so a module of its own (`cache_build`).
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from stemwise.cache import entries, upkeep
from stemwise.cache.entries import DAY, FORMAT, Kind
from stemwise.cache.upkeep import File, gigabytes
from stemwise.errors import UserError

Run = Callable[[argparse.Namespace], int]

FOLDER = Path("data/cache")  # as in conf/data/csv.yaml

EXAMPLES = """examples:
  stemwise cache build stems=4 data=musdb18 data.root=/path --shard 3/16    one share of sixteen, in an array job
  stemwise cache verify --delete                                            training computes anew what was broken
  stemwise cache prune --older-than 30 --to 200G
"""


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Registers `cache` with what can be done to one."""
    parser = commands.add_parser(
        "cache",
        help="look after the spectrogram cache, or fill it without training",
        description="Looks after the spectrogram cache of training.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(metavar="COMMAND", required=True)
    kinds.add_parser("build", add_help=False, help="fill it: the keys of training, and --shard K/N (Hydra)")
    _add(kinds, "info", "what lies in it: entries, bytes, settings, versions", _info)
    verify = _add(kinds, "verify", "check every byte; the exit code is 1 if anything is broken", _verify)
    verify.add_argument("--delete", action="store_true", help="remove what is broken: training computes it anew")
    prune = _add(
        kinds, "prune", "remove what nobody can use any more: older formats, leftovers of killed builds", _prune
    )
    prune.add_argument("--older-than", type=_days, metavar="DAYS", help="and what no run has needed for so long")
    prune.add_argument("--unused-by", type=Path, nargs="+", metavar="RUN", help="and what none of these runs reads")
    prune.add_argument("--to", type=_size, metavar="SIZE", help="and what was used least recently, down to 50G or so")
    prune.add_argument("--dry-run", action="store_true", help="only say what would go")


def _add(
    kinds: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, what: str, run: Run
) -> argparse.ArgumentParser:
    parser = kinds.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, metavar="FOLDER", help=f"default: {FOLDER}")
    parser.set_defaults(run=run)
    return parser


def _days(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < 10**5:
        raise argparse.ArgumentTypeError(f"{text} is not a number of days")
    return found


def _size(text: str) -> int:
    try:
        return upkeep.parse_size(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a size, such as 50G or 800M") from None


# Info


def _info(options: argparse.Namespace) -> int:
    found = upkeep.files(options.folder)
    entries = [file for file in found if file.header]
    print(f"{options.folder}: {_amount(entries)}")
    for kind in sorted({file.header.kind for file in entries if file.header}, key=str):
        of_kind = [file for file in entries if file.header and file.header.kind == kind]
        print(f"  {_amount(of_kind)}, {_ago(of_kind)}: {_described(kind)}")
    others = sorted({file.format for file in found if file.format not in (FORMAT, None)}, key=str)
    for number in others:
        print(f"  {_amount([file for file in found if file.format == number])} of format {number}, not {FORMAT}")
    damaged = [file for file in found if file.fault and file.format in (FORMAT, None)]
    if damaged:
        print(f"  {_amount(damaged)} that cannot be read: stemwise cache verify {options.folder} --delete")
    useless = upkeep.useless(found)
    parts = [file for file in found if file.is_part]
    left = [file for file in useless if file.is_part]
    if parts:
        print(f"  {len(parts)} .part files: {len(parts) - len(left)} being written, {len(left)} left by killed builds")
    if useless:
        print(f"  {gigabytes(_bytes(useless))} are of no use: stemwise cache prune {options.folder}")
    return 0


def _described(kind: Kind) -> str:
    return (
        f"{kind.storage}, {kind.sample_rate} Hz, channels={kind.channels}, n_fft={kind.n_fft}, hop={kind.hop}, "
        f"bins={kind.bins} (stemwise {kind.version})"
    )


def _amount(files: Sequence[File]) -> str:
    return f"{len(files)} {'entry' if len(files) == 1 else 'entries'}, {gigabytes(_bytes(files))}"


def _bytes(files: Iterable[File]) -> int:
    return sum(file.size for file in files)


def _ago(files: Iterable[File]) -> str:
    days = (time.time() - max(file.used for file in files)) / DAY
    return "used today" if days < 1 else f"last used {days:.0f} days ago"


# Verify and prune


def _verify(options: argparse.Namespace) -> int:
    found = upkeep.files(options.folder)
    broken = dict(upkeep.broken(found))
    for path, error in broken.items():
        print(f"{path}: {upkeep.reason(error)}")
    if options.delete:
        # Not what only cannot be read: that is no fault of its own.
        gone = {path for path, error in broken.items() if entries.is_broken(error)}
        upkeep.remove(file for file in found if file.path in gone)
    print(f"{options.folder}: {_verdict(len(broken), options)}", file=sys.stderr)
    return 1 if broken else 0


def _verdict(broken: int, options: argparse.Namespace) -> str:
    if not broken:
        return "all entries are sound"
    return f"{broken} broken, {'removed' if options.delete else 'remove them with --delete'}"


def _prune(options: argparse.Namespace) -> int:
    found = upkeep.files(options.folder)
    gone = {file.path: file for file in upkeep.useless(found)}
    if options.older_than is not None:
        gone |= {file.path: file for file in upkeep.unused_for(found, options.older_than)}
    if options.unused_by:
        used = _used_by(options.unused_by)
        gone |= {file.path: file for file in found if file.header and file.path.name not in used}
    left = [file for file in found if file.path not in gone]
    if options.to is not None:
        gone |= {file.path: file for file in upkeep.beyond(left, options.to)}
    if not options.dry_run:
        upkeep.remove(gone.values())
    done = "would go" if options.dry_run else "removed"
    stay = [file for file in found if file.path not in gone]
    print(f"{options.folder}: {len(gone)} files {done} ({gigabytes(_bytes(gone.values()))}), {_amount(stay)} stay")
    return 0


def _used_by(runs: Sequence[Path]) -> set[str]:
    """The names of the entries that training reads in these run folders."""
    from hydra.errors import HydraException, InstantiationException
    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from stemwise.data import StemData

    used: set[str] = set()
    for run in runs:
        path = run / "config.yaml"
        try:
            data = instantiate(OmegaConf.select(OmegaConf.load(path), "data"), _convert_="all")
        except (OSError, HydraException, InstantiationException, OmegaConfBaseException, YAMLError) as error:
            raise UserError(f"--unused-by {run}: {path} cannot be read ({error}). Name the folder of a run.") from None
        if not isinstance(data, StemData):
            raise UserError(f"--unused-by {run}: {path} names no data of stemwise. Name the folder of a run.")
        used |= {entry.name for entry in data.entries()}
    return used
