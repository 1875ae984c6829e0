"""The configuration reference: `conf/` as tables, with what the constructors behind it say of their arguments.

A key's meaning is its comment in the YAML file, beside it or above it; without one, what the constructor's docstring
says of the argument of that name. So each has one home, and this page none of its own.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_object

CONF = Path(__file__).resolve().parents[2] / "conf"
COMMANDS = {"train": "stemwise train", "evaluate": "stemwise evaluate", "cache_build": "stemwise cache build"}
# Recipes have a page of their own, and what a recipe sets is explained at its key.
GROUPS = ("data", "model", "loss", "augment", "optimizer", "scheduler", "trainer", "logger", "hydra/launcher")
OFFERED = {"trainer/lightning": "lightning.Trainer"}  # made by `launch.offer_trainer_arguments`
NOT_KEYS = ("_target_", "_partial_", "defaults", "hydra")
NOT_ARGUMENTS = ("self", "params", "optimizer", "root", "logger", "callbacks", "default_root_dir")


@dataclass(frozen=True)
class Key:
    """One value of a file: its name from the config's root on, how it is written, and what the file says of it."""

    name: str
    value: str
    comment: str


@dataclass(frozen=True)
class Config:
    """A file of `conf/`."""

    name: str  # such as data/csv
    about: str  # the comment at its top
    parents: tuple[str, ...]
    keys: tuple[Key, ...]
    targets: Mapping[str, str] = field(default_factory=dict)  # prefix of keys -> what they are the arguments of


def files() -> dict[str, Config]:
    """Every file of `conf/` by its name."""
    found = [path.relative_to(CONF).with_suffix("").as_posix() for path in sorted(CONF.rglob("*.yaml"))]
    return {name: read(name, (CONF / f"{name}.yaml").read_text(encoding="utf-8")) for name in found}


def read(name: str, text: str) -> Config:
    """The file `name` of this text."""
    lines = text.splitlines()
    top = [line.lstrip("# ") for line in _block(lines, 0)]
    about = " ".join(line for line in top if not line.startswith("@package"))
    group = name.rpartition("/")[0].replace("/", ".")
    prefix = "" if any(line == "@package _global_" for line in top) else group
    root = yaml.compose(text)
    keys = tuple(_keys(root, f"{prefix}." if prefix else "", lines))
    defaults = (yaml.safe_load(text) or {}).get("defaults", []) if isinstance(root, yaml.MappingNode) else []
    parents = [str(entry).partition("@")[0] for entry in defaults if isinstance(entry, str) and entry != "_self_"]
    folder = name.rpartition("/")[0]
    targets = dict(_targets(root, prefix))
    return Config(name, about, tuple(f"{folder}/{parent}".lstrip("/") for parent in parents), keys, targets)


def _block(lines: list[str], start: int) -> list[str]:
    """The comment that begins at this line."""
    end = start
    while end < len(lines) and lines[end].lstrip().startswith("#"):
        end += 1
    return lines[start:end]


def _keys(node: yaml.Node, prefix: str, lines: list[str]) -> Iterator[Key]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        if key.value in NOT_KEYS or _is_bare(value):
            continue
        name, comment = f"{prefix}{key.value}", _comment(lines, key.start_mark.line, value)
        nested = isinstance(value, yaml.MappingNode) and not value.flow_style
        below = list(_keys(value, f"{name}.", lines)) if nested else []
        if below and (not comment or any(inner.comment for inner in below)):
            if comment:
                yield Key(name, "", comment)
            yield from below
        elif comment or not nested:
            yield Key(name, _written(value), comment)


def _is_bare(node: yaml.Node) -> bool:
    """Whether a node names a function and none of its arguments; the function has a line of its own."""
    return isinstance(node, yaml.MappingNode) and {key.value for key, _ in node.value} == {"_target_", "_partial_"}


def _comment(lines: list[str], line: int, value: yaml.Node) -> str:
    """What stands above a key and behind it; the comment at the file's top belongs to the file."""
    first = line
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    above = [text.strip().lstrip("# ") for text in lines[first:line]] if first else []
    beside = re.search(r"(?:^|\s)# (.*)$", lines[line])
    return " ".join([*above, *([beside[1]] if beside else [])])


def _written(value: yaml.Node) -> str:
    if isinstance(value, yaml.ScalarNode):
        return value.value if value.style is None else f'"{value.value}"'
    plain = yaml.safe_load(yaml.serialize(value))
    return yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=10_000).strip()


def _targets(node: yaml.Node, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == "_target_":
                yield prefix, value.value
            yield from _targets(value, f"{prefix}.{key.value}".lstrip("."))


def arguments(target: str) -> dict[str, inspect.Parameter]:
    """What a constructor or function takes."""
    found = inspect.signature(get_object(target)).parameters
    return {name: found[name] for name in found if name not in NOT_ARGUMENTS}


def said(target: str, name: str) -> str:
    """What the docstring of a constructor or function says of its argument `name`."""
    made = get_object(target)
    parts = [inspect.getdoc(made) or ""]
    if inspect.isclass(made):
        parts.append(inspect.getdoc(made.__init__) or "")
    return _listed("\n\n".join(parts), name) or _mentioned(parts[0], name)


def _listed(doc: str, name: str) -> str:
    """The first sentence of an entry `name: …` in a list of arguments, as Lightning and PyTorch write them."""
    entry = re.search(rf"^ *{name}(?: \([^)]*\))?: (.*?)(?:\n *\n|\n *\w+(?: \([^)]*\))?: |\Z)", doc, re.M | re.S)
    if not entry:
        return ""
    text = re.sub(r"``|:\w+:", lambda found: "`" if found[0] == "``" else "", " ".join(entry[1].split()))
    return re.sub(r"`~?([\w.]+\.)?(\w+)`", r"`\2`", re.split(r"(?<=\.)\s", text)[0])


def _mentioned(doc: str, name: str) -> str:
    """The sentences with the argument's name in them, as ours are written."""
    paragraphs = [" ".join(part.split()) for part in doc.split("\n\n")]
    sentences = [sentence for part in paragraphs for sentence in re.split(r"(?<=\.)\s+(?=[A-Z`])", part)]
    return " ".join(sentence for sentence in sentences if re.search(rf"`{name}(=[^`]*)?`", sentence))


class Reference:
    """All of `conf/`, and what its keys mean."""

    def __init__(self, configs: Mapping[str, Config] | None = None) -> None:
        self.configs = dict(configs or files())

    def target(self, config: Config, key: str) -> tuple[str, str] | None:
        """What the key is an argument of, and the argument's name; a file has its parents' constructors too."""
        prefix, _, name = key.rpartition(".")
        for one in (config.name, *config.parents):
            known = self.configs.get(one)
            if one in OFFERED and prefix == one.partition("/")[0]:
                return OFFERED[one], name
            if known and prefix in known.targets:
                return known.targets[prefix], name
            if known and one != config.name and (found := self.target(known, key)):
                return found
        return None

    def meaning(self, config: Config, key: Key) -> str:
        """What a file and the constructor behind it say of a key; empty if neither does."""
        if key.comment:
            return key.comment
        if reference := re.fullmatch(r"\$\{([\w.]+)\}", key.value):
            return f"As `{reference[1]}`."
        found = self.target(config, key.name)
        return said(*found) if found else ""

    def unexplained(self) -> list[str]:
        """Keys that no file and no constructor explains, as `file: key`."""
        known = {key.name for config in self._of("train") for key in config.keys if self.meaning(config, key)}
        own = [(config, key) for config in self.configs.values() for key in config.keys]
        lacking = [(config.name, key.name) for config, key in own if not self.meaning(config, key)]
        return [f"conf/{name}.yaml: {key}" for name, key in lacking if name == "evaluate" or key not in known]

    def _of(self, command: str) -> list[Config]:
        """The files that a command composes its config of."""
        others = {name for name in COMMANDS if name != command}
        return [config for name, config in self.configs.items() if name not in others]

    # The page

    def page(self) -> str:
        """Markdown: the keys of each command, then of each group's options."""
        parts = [self._command(name) for name in COMMANDS]
        return "\n\n".join([*parts, *(self._group(name) for name in GROUPS)])

    def _command(self, name: str) -> str:
        config = self.configs[name]
        return f"## `{COMMANDS[name]}`\n\n{_file(name)}\n\n{self._table(config)}"

    def _group(self, group: str) -> str:
        options = [config for name, config in self.configs.items() if name.rpartition("/")[0] == group]
        # What others build upon comes first.
        options.sort(key=lambda config: (len(self._ancestors(config)), config.name))
        parts = [f"## {group}", *(self._option(config) for config in options)]
        parts += [_offered(name, target) for name, target in OFFERED.items() if name.startswith(f"{group}/")]
        return "\n\n".join(parts)

    def _ancestors(self, config: Config) -> list[str]:
        known = [self.configs[parent] for parent in config.parents if parent in self.configs]
        return [name for parent in known for name in (parent.name, *self._ancestors(parent))]

    def _option(self, config: Config) -> str:
        group, _, name = config.name.rpartition("/")
        given = f"logger=[{name}]" if group == "logger" else f"{group}={name}"
        parents = [f"`{group}={parent.rpartition('/')[2]}`" for parent in config.parents if parent in self.configs]
        upon = f" Builds on {', '.join(parents)}." if parents else ""
        parts = [f"### `{given}`", f"{_with_link(config.about)} {_file(config.name)}{upon}".strip()]
        if config.keys:
            parts.append(self._table(config))
        return "\n\n".join([*parts, *self._others(config)])

    def _table(self, config: Config) -> str:
        rows = []
        for key in config.keys:
            repeated = not key.comment and any(
                key.name == other.name
                for name in (*self._ancestors(config), "train")
                if name != config.name
                for other in self.configs[name].keys
            )
            rows.append((key.name, key.value, "" if repeated else self.meaning(config, key)))
        return _rows(("key", "value", "meaning"), rows)

    def _others(self, config: Config) -> Iterator[str]:
        """A line for each constructor: its name, and the arguments that the file does not set."""
        for prefix, target in config.targets.items():
            given = {key.name for key in config.keys}
            more = [
                f"`{'**' * (p.kind is p.VAR_KEYWORD)}{name}`"
                for name, p in arguments(target).items()
                if f"{prefix}.{name}" not in given and not any(key.startswith(f"{prefix}.{name}.") for key in given)
            ]
            rest = f"; also takes, with `+` in front of the key, {', '.join(more)}" if more else ""
            yield f"`{prefix}` is {_linked(target)}{rest}."


def _with_link(text: str) -> str:
    """A comment that names a page leads to it."""
    return re.sub(r"\(data/(\w+)\.md\)", r"([data/\1.md](../data/\1.md))", text)


def _file(name: str) -> str:
    return f"[conf/{name}.yaml](../conf/{name}.yaml)"


def _linked(target: str) -> str:
    return f"[`{target}`][{target}]" if target.startswith("stemwise.") else f"`{target}`"


def _offered(name: str, target: str) -> str:
    """Every argument of a constructor of others, each of which is a key."""
    group = name.partition("/")[0]
    rows = [(f"{group}.{key}", _default(p), said(target, key)) for key, p in arguments(target).items()]
    lines = _rows(("key", "default", f"what {target.partition('.')[0].title()} says of it"), rows).splitlines()
    folded = "\n".join(f"    {line}" for line in lines)
    return f'??? note "Every argument of `{target}` is a key"\n\n{folded}'


def _default(parameter: inspect.Parameter) -> str:
    value: Any = parameter.default
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _rows(head: tuple[str, ...], rows: list[tuple[str, str, str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    lines += [
        f"| {_code(name)} | {_code(value)} | {meaning.replace('|', chr(92) + '|')} |" for name, value, meaning in rows
    ]
    return "\n".join(lines)


def _code(text: str) -> str:
    return f"`{text.replace('|', chr(92) + '|')}`" if text else ""
