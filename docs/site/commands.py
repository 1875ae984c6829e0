"""The reference of the command line: what each command's own `--help` says."""

import argparse
from collections.abc import Iterator

from stemwise import cli

WIDTH = 100


def page() -> str:
    """Markdown: a heading and the help of each command that is not Hydra's."""
    return "\n\n".join(f"## `{name}`\n\n```text\n{text.strip()}\n```" for name, text in helps(cli._parser()))


def helps(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Each command below `parser` with its help; those that have commands below them are followed by these."""
    for name, command in below(parser).items():
        if command.add_help:
            full = f"stemwise {name}"
            command.formatter_class = _wide(command.formatter_class)
            yield full, command.format_help()
            yield from ((f"{full} {inner.removeprefix('stemwise ')}", text) for inner, text in helps(command))


def below(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands that a parser has."""
    return {
        name: command
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, command in action.choices.items()
    }


def _wide(formatter: type[argparse.HelpFormatter]) -> type[argparse.HelpFormatter]:
    """The same lines on every terminal."""

    class Wide(formatter):  # type: ignore[misc, valid-type]
        def __init__(self, prog: str) -> None:
            super().__init__(prog, max_help_position=30, width=WIDTH)

    return Wide
