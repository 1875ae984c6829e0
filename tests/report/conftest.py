"""A browser, and pages in it that may neither complain nor ask a network for anything."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright import sync_api as playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# Of a module: while Playwright is there, nothing else in this thread may run an event loop of asyncio.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium as the system has it."""
    if CHROMIUM is None:
        pytest.skip("no chromium: sudo apt-get install chromium")
    with playwright.sync_playwright() as started:
        sandbox = [] if os.getuid() else ["--no-sandbox"]  # which root cannot have
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield chromium
        chromium.close()


class Tab:
    """A page that is open, and what it had to complain about."""

    def __init__(self, page: Any, path: Path) -> None:
        self.page, self.problems, self.requests = page, [], []
        page.on("console", lambda message: self.problems.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (self.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(path.as_uri())


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Tab]]:
    """Opens a file, with options of a browser's context; fails the test on any complaint and any request elsewhere."""
    opened: list[Tab] = []

    def open(path: Path, script: str = "", **options: Any) -> Tab:
        context = browser.new_context(**options)
        context.set_default_timeout(15_000)
        if script:
            context.add_init_script(script)
        opened.append(Tab(context.new_page(), path))
        return opened[-1]

    yield open
    for tab in opened:
        tab.page.context.close()
    assert [problem for tab in opened for problem in tab.problems] == []
    assert [url for tab in opened for url in tab.requests if not url.startswith(("file:", "data:image/"))] == []
