"""One HTML page that needs nothing but itself: style and scripts are inside of it, and nothing comes from a network.

What stands on it is text unless it is `Markup`, so that a song may be called `<script>`:

    body = page.rendered("table.html", rows=rows)          # a template of this package
    body = Markup("<p>{}</p>").format(song)                # or a line of one's own
    page.write(path, "Evaluation", [page.Section("scores", "Scores", body)])

Styles, scripts and templates are files of this package. A policy in the page's head (Content-Security-Policy) lets
only these scripts run: no attribute of the page may hold code or style, so a style is a class, and SVG is coloured by
classes too.
"""

import base64
import functools
import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from stemwise.errors import UserError

STYLE = "page.css"
KEY_WITHIN = 4096  # characters from the beginning of a page
FILE = "report.html"  # what a page is called in a folder of its own


@dataclass(frozen=True)
class Section:
    """A part of the page, below a heading of its own.

    `key` is where a link `#key` leads. `styles` and `scripts` are files of this package; each is put into the page
    once, however many sections want it.
    """

    key: str
    title: str
    body: Markup
    styles: Sequence[str] = ()
    scripts: Sequence[str] = ()


def write(
    path: Path,
    title: str,
    sections: Sequence[Section],
    *,
    lead: str = "",
    facts: Mapping[str, str] | None = None,
    key: str = "",
) -> None:
    """Writes the page: it appears complete or not at all, and what stood there before is replaced in one step.

    `lead` is a sentence below the title; `facts` are small things to know (model, data, date), by their names; `key`
    stands for what the page shows, and `key_of` reads it again.
    Raises `UserError` where the page cannot be written.
    """
    styles = _inlined([STYLE, *(name for section in sections for name in section.styles)])
    scripts = _inlined(name for section in sections for name in section.scripts)
    text = rendered(
        "page.html",
        title=title,
        lead=lead,
        facts=facts or {},
        sections=sections,
        styles=styles,
        scripts=scripts,
        policy=_policy(styles, scripts),
        key=key,
    )
    replace(path, text)


def key_of(path: Path) -> str | None:
    """The key of a page that was written; None if it has none, or is no page, or not there."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            found = re.search(r'<meta name="stemwise-key" content="(\w+)">', file.read(KEY_WITHIN))
    except OSError:
        return None
    return found[1] if found else None


def rendered(template: str, **values: Any) -> Markup:
    """A template of this package, filled. Every value but `Markup` is escaped; one that is missing is an error."""
    return Markup(_templates().get_template(template).render(**values))


def replace(path: Path, text: str) -> None:
    """Writes a file of text in one step, in a folder that is made. Raises `UserError` where that cannot be."""
    part = path.with_name(f".{secrets.token_hex(6)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # What is no Unicode (a name of Latin-1 on the disk) is shown as a question mark.
            part.write_text(text, encoding="utf-8", errors="replace", newline="\n")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}). Choose another folder, or make room."
        ) from None


@functools.cache
def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _inlined(names: Iterable[str]) -> list[Markup]:
    """The text of each of these files, once, as it stands between its tags."""
    return [Markup("\n" + _read(name)) for name in dict.fromkeys(names)]


def _read(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _policy(styles: Sequence[str], scripts: Sequence[str]) -> str:
    """Nothing but what is inside of the page and beside it, on a server ('self') and on the disk (file:)."""
    hashes = {kind: " ".join(_hash(text) for text in texts) for kind, texts in (("s", styles), ("j", scripts))}
    return (
        f"default-src 'none'; style-src {hashes['s']}; script-src {hashes['j']} 'self' file:; "
        "img-src 'self' file: data:; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
