"""`stemwise reproduce RUN`: the command that makes the same run again, and what is different today.

Nothing is trained or written, and nothing in the record is executed: of the data sets that a config can name, only
our own are looked at, and only those that do not write.
"""

import argparse
import importlib
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stemwise.errors import UserError

if TYPE_CHECKING:
    from stemwise.files.places import Place
    from stemwise.index import Index
    from stemwise.running.provenance import Difference, Record, Split, Start

DATASETS = ("folders", "mir1k", "musdb18")  # `demo` would compose its songs; its config says what they are
LISTED = 50  # differences of a kind; songs on another disk are all of them
# They belong to a start and not to the run.
OF_A_START = ("ckpt_path", "resume")
# They say where things lie, how long a run goes on, how fast, and who is told; another value gives the same steps.
_WITHOUT_EFFECT = re.compile(
    r"(logger|log_model|media|ckpt_path|resume|checkpoints|hash_songs"
    r"|data\.(root|train|valid|test|cache|local_cache(_limit)?|num_workers)"
    r"|trainer\.(max_steps|max_time|enable_\w+|log_every_n_steps|default_root_dir))(\..*)?"
)


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "reproduce",
        help="the command that makes a run again, and what differs today",
        description="Prints the command that makes the same run again, and on standard error what differs today from "
        "what the run recorded: songs, code, versions, machine, config. The exit code is 0 if nothing differs that "
        "can change the result, else 1.",
        epilog="example: stemwise reproduce runs/2026-11-23_08-00-00 data.root=/elsewhere/musdb18",
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="the run's folder")
    parser.add_argument("keys", nargs="*", metavar="KEY=VALUE", help="put into the command, such as data.root=…")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from stemwise import grammar
    from stemwise.running import machine, provenance

    record = provenance.read(options.folder)
    first, last = record.starts[0], record.starts[-1]
    wanted = _overrides(first, last, options.keys)
    config, refused = _composed(wanted, Path(last.run))
    if ours := [key for key in options.keys if key in refused]:
        raise UserError(f"{ours[0]}: {refused[ours[0]]}")
    found = [_difference(f"config: {key}", "accepted", f"refused, {why}", True) for key, why in refused.items()]
    restored, changed = _config_changes(last.config, config, {_key(key) for key in options.keys})
    found += [*changed, *_between_starts(record), *_songs(record, config, Path(last.directory))]
    found += provenance.environment_differences(first.environment, machine.environment(Path(last.directory)))
    command = [key for key in wanted if key not in refused]
    command += [f"{key}={grammar.text(value)}" for key, value in restored.items()]
    print(_line(Path(last.directory), command))
    return _report(record, found)


def _overrides(first: "Start", last: "Start", added: Sequence[str]) -> list[str]:
    """What to give to the command: what the last start was given, which may have raised the number of steps.

    A resume of the run itself is left out; a checkpoint of another run, from which the first start went on, is not.
    """
    given = {_key(text) for text in added}
    foreign = [text for text in first.overrides if _key(text) == "ckpt_path" and not text.endswith(("=last", "=null"))]
    typed = [text for text in last.overrides if _key(text) not in OF_A_START]
    return [text for text in (*typed, *foreign) if _key(text) not in given] + list(added)


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _composed(overrides: Sequence[str], folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Today's config for these overrides, and those that it refuses, with the reason. Raises `UserError`."""
    try:
        return _compose(overrides, folder), {}
    except UserError as error:
        whole = error
    refused = {}
    for override in overrides:
        try:
            _compose([override], folder)
        except UserError as error:
            refused[override] = str(error).splitlines()[0]
    if not refused:
        raise whole
    return _compose([override for override in overrides if override not in refused], folder), refused


def _compose(overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from stemwise import launch

    if any("pkg://" in override for override in overrides):
        raise UserError("pkg:// would execute a package. Give the folder of the configs as file://.")
    launch.offer_trainer_arguments()
    try:
        with initialize_config_dir(launch.CONF, version_base="1.3"):
            cfg = compose("train", overrides=list(overrides), return_hydra_config=True)
        OmegaConf.set_struct(cfg, False)
        cfg.hydra.runtime.output_dir = str(folder)  # to which loggers refer
        HydraConfig.instance().set_config(cfg)
        del cfg.hydra
        return json.loads(json.dumps(launch.plain(cfg)))  # as the record has it
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(str(error)) from None


def _config_changes(
    then: Mapping[str, Any], now: Mapping[str, Any], given: set[str]
) -> tuple[dict[str, Any], list["Difference"]]:
    """Values that the command must name because today's defaults are others, and all differences."""
    from stemwise.running import machine

    old, new = machine.flat(then), machine.flat(now)
    restored, found = {}, []
    for key in dict.fromkeys([*old, *new]):
        if key in given or _of(key, OF_A_START) or (key in old and key in new and old[key] == new[key]):
            continue
        if key not in new:
            found.append(_difference(f"config: {key}", old[key], "no such key", not _WITHOUT_EFFECT.fullmatch(key)))
        elif key not in old:
            found.append(_difference(f"config: {key}", "no such key", new[key], False))
        elif key.endswith("_target_"):
            found.append(_difference(f"config: {key}", old[key], new[key], True))
        else:
            restored[key] = old[key]
            found.append(_difference(f"config: {key}, by default", old[key], f"{new[key]}; in the command", False))
    return restored, found


def _of(key: str, names: Sequence[str]) -> bool:
    return key.partition(".")[0] in names


def _between_starts(record: "Record") -> list["Difference"]:
    """What changed while the run was going on, so that no single command makes it."""
    from stemwise.running import machine, provenance

    first, count, found = record.starts[0], len(record.starts), []
    if "ckpt_path=last" in first.overrides:
        found.append(_difference(f"start 1 of {count}", "a resume", "what was before is not recorded", True))
    for number, start in enumerate(record.starts[1:], start=2):
        name = f"start {number} of {count}"
        found += [
            _difference(f"{name}: {each.what}", each.then, each.now, each.changes_results)
            for each in provenance.environment_differences(first.environment, start.environment)
        ]
        old, new = machine.flat(first.config), machine.flat(start.config)
        for key in dict.fromkeys([*old, *new]):
            if old.get(key) != new.get(key) and not _of(key, OF_A_START):
                matters = not _WITHOUT_EFFECT.fullmatch(key)
                found.append(_difference(f"{name}: config: {key}", old.get(key), new.get(key), matters))
        found += [_difference(f"{name}: songs", "those of start 1", text, True) for text in start.changed_songs]
    return found


def _songs(record: "Record", config: Mapping[str, Any], directory: Path) -> list["Difference"]:
    """What happened to the songs and to the files that the config names."""
    from stemwise.files import places
    from stemwise.running import provenance

    data, found, now = config.get("data") or {}, [], {}
    for split, then in record.index.items():
        root = places.join(directory, data["root"]) if data.get("root") else places.place(then.root)
        try:
            today = _index(data, split, root, directory)
        except UserError as error:
            found.append(_difference(f"{split}: the index", then.source, str(error).splitlines()[0], True))
            today = None
        split_now = provenance.describe(today) if today else then
        try:
            now[split] = _with_files(then, split_now, root, provenance.places(today) if today else {})
        except UserError as error:  # a URL whose credentials were not recorded, say
            found.append(_difference(f"{split}: the files", "as recorded", str(error).splitlines()[0], True))
            now[split] = replace(split_now, files=then.files)
    found += provenance.song_differences(record.index, now)
    inputs = provenance.files({name: Path(name) for name in record.inputs if Path(name).is_file()}, _hashed(record))
    return found + provenance.file_differences(record.inputs, inputs, "")


def _with_files(then: "Split", now: "Split", root: "Place", known: Mapping[str, "Place"]) -> "Split":
    """`now`, with the content of those files of `then` that are still there: at `known`, or below the root."""
    from stemwise.files import places, stores
    from stemwise.running import provenance

    at = {name: known.get(name) or places.join(root, name) for name in then.files}
    urls = set(stores.existing([place for place in at.values() if isinstance(place, places.Url)]))
    there = {n: place for n, place in at.items() if (place.is_file() if isinstance(place, Path) else place in urls)}
    hashed = all(file.changed is None for file in then.files.values())
    return provenance.with_contents({"": now}, {"": there}, hashed)[""]


def _hashed(record: "Record") -> bool:
    return all(file.sha256 for file in record.inputs.values())


def _index(data: Mapping[str, Any], split: str, root: "Place", directory: Path) -> "Index | None":
    """The split as it is found today, unchecked; None where it would have to be made."""
    from stemwise import index
    from stemwise.files import places

    if csv := data.get(split):
        path = places.join(directory, csv)
        return index.read(path, root if data.get("root") else path.parent)
    target = re.fullmatch(r"stemwise\.datasets\.(\w+)\.find", str((data.get("dataset") or {}).get("_target_")))
    if not target or target[1] not in DATASETS or not isinstance(root, Path):
        return None
    found: Mapping[str, Index] = importlib.import_module(f"stemwise.datasets.{target[1]}").find(root)
    return found[split]


def _line(directory: Path, overrides: Sequence[str]) -> str:
    place = [] if directory == Path.cwd() else [f"cd {shlex.quote(str(directory))}"]
    return " && ".join([*place, shlex.join(["stemwise", "train", *overrides])])


def _report(record: "Record", found: Sequence["Difference"]) -> int:
    serious = [difference for difference in found if difference.changes_results]
    harmless = [difference for difference in found if not difference.changes_results]
    lines = [f"Begun {record.starts[0].time}, started {len(record.starts)} times."]
    lines += _listed("Differs, and can change the result:", serious)
    lines += _listed("Differs, without changing the result:", harmless)
    code = record.starts[0].environment.get("code") or {}
    if code.get("commit") and any(one.what == "code.sha256" for one in serious):
        unclean = ", with changes that were not committed" if code.get("dirty") else ""
        lines.append(f"The code of then: git checkout {code['commit']}{unclean}")
    lines += [] if serious else ["Nothing differs that can change the result."]
    print("\n".join(lines), file=sys.stderr)
    return 1 if serious else 0


def _listed(heading: str, found: Sequence["Difference"]) -> list[str]:
    more = [f"  and {len(found) - LISTED} more"] if len(found) > LISTED else []
    return [heading, *(f"  {one}" for one in found[:LISTED]), *more] if found else []


def _difference(what: str, then: object, now: object, changes_results: bool) -> "Difference":
    from stemwise.running.provenance import Difference

    return Difference(what, str(then), str(now), changes_results)
