"""The documentation: it builds without a warning, needs no network, and says nothing that the code does not."""

import argparse
import importlib
import logging
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from hydra import compose, initialize_config_dir
from mkdocs.commands.build import build
from mkdocs.config import load_config

from stemwise import cli, launch

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [
    path
    for pattern in ("*.md", "docs/*.md", "data/*.md", "benchmarks/README.md")
    for path in sorted(REPOSITORY.glob(pattern))
]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SPLEETER = (REPOSITORY / "docs/spleeter.md").read_text(encoding="utf-8")
# What `spleeter COMMAND --help` of version 2.4.2 lists, and all that its own configurations and code read from JSON.
THEIRS = {
    "separate": "--inputs -i --adapter -a --bitrate -b --codec -c --duration -d --offset -s --output_path -o "
    "--filename_format -f --params_filename -p --mwf --verbose",
    "train": "--adapter -a --data -d --params_filename -p --verbose",
    "evaluate": "--adapter -a --output_path -o --params_filename -p --mus_dir --mwf --verbose",
}


@pytest.fixture(scope="module")
def generators():
    """The modules that make parts of pages."""
    sys.path.insert(0, str(REPOSITORY / "docs/site"))
    names = ("configuration", "commands", "recipes")
    yield {name: importlib.import_module(name) for name in names}
    sys.path.remove(str(REPOSITORY / "docs/site"))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site; what building warned of fails every test that looks at it."""
    folder, warnings = tmp_path_factory.mktemp("site"), []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            warnings.append(record.getMessage())

    listening, log = Listening(logging.WARNING), logging.getLogger("mkdocs")
    log.addHandler(listening)
    try:
        build(load_config(str(REPOSITORY / "mkdocs.yml"), site_dir=str(folder)))
    finally:
        log.removeHandler(listening)
    assert not warnings
    return folder


class Addresses(HTMLParser):
    """What a page loads, what it links to, and what can be linked to in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: set[str] = set()
        self.linked: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a":
            self.linked |= {given["href"]} if "href" in given else set()
        elif given.get("rel") != "canonical":
            self.loaded |= {given[name] for name in ("src", "href", "srcset", "data") if name in given}


def test_the_site_is_complete_and_needs_no_network(site):
    pages = {path.relative_to(site): Addresses(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    del pages[Path("404.html")]  # its addresses begin at the server's root
    for page, addresses in pages.items():
        assert not [url for url in addresses.loaded if urlsplit(url).scheme not in ("", "data")], page
        for url in addresses.loaded | addresses.linked:
            parts = urlsplit(url)
            if parts.scheme or url.startswith("data:"):
                continue
            there = (site / page.parent / unquote(parts.path)).resolve() if parts.path else site / page
            assert there.exists(), f"{page}: {url}"
            if parts.fragment and there.suffix == ".html":
                assert unquote(parts.fragment) in pages[there.relative_to(site)].anchors, f"{page}: {url}"
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert not [style for style in styles if re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style)]


def test_notebooks_are_pages_with_every_formula_drawn(site):
    drawn = {}
    for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        page = (site / f"notebooks/{path.name}.html").read_text(encoding="utf-8")
        drawn[path.stem] = page.count("</math>")
        assert drawn[path.stem] == len(re.findall(r"\$\$.+?\$\$|\$[^$]+\$", prose, re.S))
        assert "arithmatex" not in page
        assert "<pre" in page
    assert drawn["how_it_works"] > 30


def test_the_readme_shows_one_picture_which_is_small_and_described():
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    ((source, described),) = re.findall(r'<img src="([^"]+)" width="\d+" alt="([^"]+)">', readme)
    assert len(described) > 50
    assert (REPOSITORY / source).stat().st_size < 200_000
    others = REPOSITORY.glob("docs/**/*.png")
    assert [path.relative_to(REPOSITORY).as_posix() for path in others] == [source]


def test_every_key_is_on_the_page_and_explained(generators, site):
    reference = generators["configuration"].Reference()
    assert reference.unexplained() == []
    page = (site / "docs/configuration.html").read_text(encoding="utf-8")
    for config in reference.configs.values():
        for key in config.keys:
            assert config.name.startswith("experiment/") or f"<code>{key.name}</code>" in page, key.name
    launch.offer_trainer_arguments()
    with initialize_config_dir(launch.CONF, version_base="1.3"):
        cfg = compose("train")
    for name in (*cfg, *(f"data.{name}" for name in cfg.data), *(f"trainer.{name}" for name in cfg.trainer)):
        # Groups and what has keys below it are no rows of their own.
        assert re.search(rf"<code>{name}(\.[\w.]+)?</code>", page) or "._" in name, name


def test_a_key_without_a_word_is_found(generators):
    configuration = generators["configuration"]
    text = "# About.\n_target_: stemwise.masks.MaskRule\nextension: zeros\nrest: null # a word\nexponent: 2\n"
    configs = {"train": configuration.read("train", text)}
    assert configuration.Reference(configs).unexplained() == ["conf/train.yaml: exponent"]


def test_every_recipe_says_how_it_is_run_and_what_came_out(generators):
    parts = generators["recipes"].experiments().split("### ")[1:]
    assert len(parts) == len(list((REPOSITORY / "conf/experiment").glob("*.yaml")))
    for part in parts:
        name = re.match(r"`experiment=(\w+)`", part)[1]
        assert f"python -m train experiment={name}" in part
        # What nobody here has hours for says so.
        assert re.search(r"museval SDR|GNSDR|Not run to its end here", part)


def fences(text: str) -> Iterator[str]:
    """Commands in the shell's blocks of a page, and in indented ones, each in one line."""
    blocks = re.findall(r"^```(?:sh|bash)\n(.*?)^```", text, re.M | re.S)
    blocks += re.findall(r"(?:^    .*\n)+", text, re.M)
    for block in blocks:
        yield from (line.strip() for line in block.replace("\\\n", " ").splitlines())


def commands(kind: str) -> list[str]:
    """The commands of all pages that begin so, without comments and placeholders."""
    every = [line for page in PAGES for line in fences(page.read_text(encoding="utf-8"))]
    return sorted({line.split("   #")[0].strip() for line in every if line.startswith(kind) and "…" not in line})


def test_every_command_on_a_page_has_the_flags_that_are_there():
    found = [line for line in commands("stemwise ") if not re.match(r"stemwise (train|evaluate|cache build) ", line)]
    assert len(found) > 15
    for line in found:
        parser = cli._parser()
        parser.exit_on_error = False
        cli._parser().parse_args(shlex.split(line, comments=True)[1:])


def keys(line: str) -> list[str]:
    return [word for word in shlex.split(line, comments=True) if re.match(r"\+?[\w./]+=", word)]


def test_every_key_on_a_page_is_one():
    launch.offer_trainer_arguments()
    trainings = [
        line.removeprefix("srun ") for line in (*commands("python -m train"), *commands("srun python -m train"))
    ]
    given = {("train", tuple(keys(line))) for line in trainings if "hydra/launcher" not in line}
    given |= {("evaluate", tuple(keys(line))) for line in commands("stemwise evaluate")}
    given |= {("cache_build", tuple(keys(line))) for line in commands("stemwise cache build")}
    assert len(given) > 20
    with initialize_config_dir(launch.CONF, version_base="1.3"):
        for command, overrides in sorted(given):
            # Values of a sweep are more than one.
            single = [word for word in overrides if not re.search(r"=[^\[]*,", word)]
            compose(command, overrides=single)


def flags(parser: argparse.ArgumentParser) -> set[str]:
    own = {flag for action in parser._actions for flag in action.option_strings}
    below = [a.choices.values() for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return own.union(*(flags(inner) for parsers in below for inner in parsers))


def test_every_option_and_key_of_spleeter_has_its_line():
    from stemwise.spleeter import config

    for command, options in THEIRS.items():
        section = re.search(rf"^## `spleeter {command}`$(.*?)^## ", SPLEETER, re.M | re.S)[1]
        theirs = " ".join(line.split("|")[1] for line in section.splitlines() if line.startswith("|"))
        words = set(re.findall(r"--?[a-zA-Z_]+", theirs))
        assert not set(options.split()) - words, command
    section = SPLEETER.split("## The configuration")[1]
    for key in config.KEYS:
        assert f"`{key}`" in section or f"`{key}." in section, key


def test_every_flag_of_ours_on_that_page_is_there():
    rows = [line for line in SPLEETER.splitlines() if line.startswith("|")]
    ours = {flag for row in rows for flag in re.findall(r"(--[a-z][a-z-]+)", row.split("|")[2])}
    assert len(ours) > 5
    assert not ours - flags(cli._parser())


@pytest.mark.skipif(not BROWSER, reason="no chromium here")
def test_the_search_works_from_a_folder(site, tmp_path):
    page = f"{(site / 'index.html').as_uri()}?q=watchdog"
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=9000",
    ]
    done = subprocess.run([str(BROWSER), *options, "--dump-dom", page], capture_output=True, text=True, timeout=60)
    found = re.findall(r'<a href="([^"]+)" class="md-search-result__link"', done.stdout)
    assert any("configuration.html" in address for address in found), done.stderr


def test_every_promise_names_tests_that_exist():
    text = (REPOSITORY / "docs/reliability.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if re.match(r"\| [A-Z]", line)]
    assert len(rows) > 25
    for row in rows:
        proofs = re.findall(r"\[`(test_\w+)`\]\(\.\./(tests/[\w/]+\.py)\)", row)
        assert proofs, row
        for name, file in proofs:
            assert f"\ndef {name}(" in (REPOSITORY / file).read_text(encoding="utf-8"), f"{file}: {name}"


def test_what_the_python_api_lists_is_there():
    """mkdocstrings leaves out members that are gone without a word."""
    text = (REPOSITORY / "docs/api.md").read_text(encoding="utf-8")
    listed = re.findall(r"::: stemwise\.(\w+)\.(\w+)\n    options:\n      members: \[(.*)\]", text)
    assert len(listed) > 1
    for module, name, members in listed:
        found = getattr(importlib.import_module(f"stemwise.{module}"), name)
        assert [member for member in members.split(", ") if not hasattr(found, member)] == []
