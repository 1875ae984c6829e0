"""The recipes of `conf/experiment`: each file opens with the command that runs it and the result that it gave."""

from pathlib import Path

EXPERIMENTS = Path(__file__).resolve().parents[2] / "conf" / "experiment"


def experiments() -> str:
    """Markdown: a heading, the file's comment and its keys, of each experiment."""
    return "\n\n".join(_experiment(path) for path in sorted(EXPERIMENTS.glob("*.yaml")))


def _experiment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = [line.lstrip("# ") for line in lines if line.startswith("#") and "@package" not in line]
    keys = "\n".join(line for line in lines if not line.startswith("#"))
    command, *result = comment
    return f"### `experiment={path.stem}`\n\n```sh\n{command}\n```\n\n{' '.join(result)}\n\n```yaml\n{keys}\n```"
