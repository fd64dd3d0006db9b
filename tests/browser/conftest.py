"""Chromium, for the pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


class Visit:
    """A page in a window of its own; records its requests (`asked`) and console messages (`said`)."""

    def __init__(self, browser: Any, path: Path, **window: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **window})
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.said: list[str] = []
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.page.on("console", lambda m: self.said.append(m.text))
        self.page.on("pageerror", lambda e: self.said.append(str(e)))
        self.page.on("dialog", lambda d: (self.said.append(f"dialog {d.message}"), d.dismiss()))
        self.page.goto(path.as_uri())
        self.until("!document.querySelector('#media') || document.querySelector('#media').readyState >= 2")
        self.page.wait_for_timeout(150)

    def until(self, condition: str) -> None:
        """Wait until a condition of the page holds (Playwright's own way needs eval, which the page forbids)."""
        for _ in range(200):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(25)
        raise AssertionError(f"never came true: {condition}")

    def at(self, share: float, y: float = 60) -> tuple[float, float]:
        """A place on the time lines: share of their width, pixels from their top."""
        box = self.page.locator("#touch").bounding_box()
        return box["x"] + share * box["width"], box["y"] + y

    def click(self, share: float, y: float = 60) -> None:
        self.page.mouse.click(*self.at(share, y))
        self.settle()

    def press(self, button: str) -> None:
        self.page.click(button)
        self.settle()

    def settle(self) -> None:
        """Wait until the page is redrawn."""
        self.page.wait_for_timeout(80)

    def media_time(self) -> float:
        return float(self.page.evaluate("document.querySelector('#media').currentTime"))

    def now(self) -> str:
        return str(self.page.inner_text("#time")).split("/")[0].strip()

    def picture(self, name: str) -> bytes:
        """A canvas's content, to tell whether it changed."""
        return bytes(self.page.evaluate(f"document.getElementById('{name}').toDataURL()"), "ascii")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, from AFFECTRACE_CHROMIUM or the path."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = os.environ.get("AFFECTRACE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium: install Debian's chromium, or name one in AFFECTRACE_CHROMIUM")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=ARGS)
        yield running
        running.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Visit]]:
    """Open a page. At the end it must have requested only itself and its own blobs, and logged nothing."""
    visits: list[tuple[Visit, bool]] = []

    def opened(path: Path, *, check: bool = True, **window: Any) -> Visit:
        visits.append((Visit(browser, path, **window), check))
        return visits[-1][0]

    yield opened
    for made, check in visits:
        made.context.close()
        if check:
            assert made.said == []
            outside = [url for url in made.asked if not url.startswith(("file:", "blob:", "data:"))]
            assert outside == []
