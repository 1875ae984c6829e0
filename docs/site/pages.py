"""MkDocs hook: the site's pages are the repository's own Markdown, where it lies.

A page's address is its place in the repository, so that a link works here as it does there. What a page links to and
is no page, such as a module, becomes one. What is made of the code stands where a page says `<!-- made: NAME -->`.
Notebooks are pages too.
"""

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import commands
import configuration
import notebooks
import recipes
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "docs/*.md", "data/*.md", "benchmarks/*.md", "benchmarks/results/**/*.md")
NOTEBOOKS = "notebooks/*.ipynb"
BESIDE = ("docs/*.svg", "docs/*.png", "benchmarks/results/**/*.svg", "docs/site/*.css", "docs/site/*.js")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".toml": "toml", ".sh": "bash"}

LINK = re.compile(r"\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")
MADE = re.compile(r"^<!-- made: (\w+) -->$", re.M)
MAKERS: dict[str, Callable[[], str]] = {
    "commands": commands.page,
    "configuration": lambda: configuration.Reference().page(),
    "experiments": recipes.experiments,
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replaces what lies in docs_dir by the pages of the whole repository, and what they link to."""
    texts = {name: _text(name) for name in _found(*PAGES) if not name.startswith("benchmarks/results/quick/")}
    texts |= {name: notebooks.page(ROOT / name) for name in _found(NOTEBOOKS)}
    linked = {target for name, text in texts.items() for target in _links(name, text) if _is_text(target)}
    mounted = [_file(config, _address(name), content=text) for name, text in texts.items()]
    mounted += [_file(config, _address(name), content=_shown(name)) for name in sorted(linked - set(texts))]
    mounted += [_file(config, name, abs_src_path=str(ROOT / name)) for name in _found(*BESIDE)]
    return Files([*(file for file in files if file.src_dir != config.docs_dir), *mounted])


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lets links to files lead to the pages that show them."""
    return LINK.sub(lambda link: _towards_page(link, page.file.src_uri, files), markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts drawings into their pages, so that they know the page's colours, and formulas in place of their LaTeX."""

    def inlined(image: re.Match[str]) -> str:
        path = ROOT / posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), image[1]))
        return path.read_text(encoding="utf-8")

    return notebooks.with_formulas(re.sub(r'<img [^>]*src="([^":]+\.svg)"[^>]*>', inlined, html))


def _found(*patterns: str) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for pattern in patterns for path in sorted(ROOT.glob(pattern))]


def _text(name: str) -> str:
    """A page with what is made in its place."""
    return MADE.sub(lambda found: MAKERS[found[1]](), (ROOT / name).read_text(encoding="utf-8"))


def _address(name: str) -> str:
    """What MkDocs knows a file by that is shown as a page: it takes Markdown alone for pages."""
    return name if name.endswith(".md") else f"{name}.md"


def _file(config: MkDocsConfig, name: str, **content: Any) -> File:
    # Results and files that are shown are reached by links; any other page must be in the navigation.
    written = name.endswith(".ipynb.md") or (name.endswith(".md") and (ROOT / name).exists())
    own = written and not name.startswith("benchmarks/results/")
    level = InclusionLevel.UNDEFINED if own else InclusionLevel.NOT_IN_NAV
    return File.generated(config, name, inclusion=level, **content)


def _links(name: str, text: str) -> Iterator[str]:
    for link in LINK.finditer(text):
        yield posixpath.normpath(posixpath.join(posixpath.dirname(name), link["path"]))


def _is_text(name: str) -> bool:
    path = ROOT / name
    return path.is_file() and path.suffix not in (".svg", ".png", ".jpg")


def _towards_page(link: re.Match[str], here: str, files: Files) -> str:
    there = posixpath.normpath(posixpath.join(posixpath.dirname(here), link["path"]))
    if files.get_file_from_path(there) is None and files.get_file_from_path(f"{there}.md") is not None:
        return f"]({link['path']}.md{link['anchor'] or ''})"
    return link[0]


def _shown(name: str) -> str:
    """A page that shows a file as it is."""
    text = (ROOT / name).read_text(encoding="utf-8")
    language = LANGUAGES.get(Path(name).suffix, "text")
    return f"---\nsearch:\n  exclude: true\n---\n\n# {name}\n\n````{language}\n{text}````\n"
