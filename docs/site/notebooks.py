"""The notebooks as pages: their prose, formulas and code, without the pictures and sounds that running them makes."""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>([.,;:?!)]*)', re.S)


def page(path: Path) -> str:
    """Markdown of a notebook's cells; below its title, how to run it."""
    title, *rest = _cells(json.loads(path.read_text(encoding="utf-8"))["cells"])
    heading, _, opening = title.partition("\n")
    run = "`make notebooks` runs it and keeps its pictures and sounds in"
    note = f'!!! tip ""\n    {run} `runs/notebooks`. To change its values: `jupyter lab notebooks/{path.name}`.'
    return "\n\n".join([heading, note, opening.strip(), *rest])


def with_formulas(page: str) -> str:
    """HTML with the formulas that Markdown marked as MathML, which browsers draw by themselves."""
    return FORMULA.sub(_formula, page)


def _cells(cells: list[dict[str, Any]]) -> Iterator[str]:
    for cell in cells:
        text = "".join(cell["source"])
        language = "sh" if text.startswith("!") else "python"
        yield text if cell["cell_type"] == "markdown" else f"````{language}\n{text}\n````"


def _formula(found: re.Match[str]) -> str:
    tag, latex, behind = found.groups()  # a comma behind a formula stays in its line
    drawn = convert(html.unescape(latex), display="block" if tag == "div" else "inline")
    return f'<{tag} class="formula">{drawn}{behind}</{tag}>'
