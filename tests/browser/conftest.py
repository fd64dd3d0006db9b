"""One Chromium, and one report with everything on it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from affectrace.inference.attention_maps import AttentionMaps, AttentionWindow
from affectrace.media.transcript import Word
from affectrace.report import write_report
from affectrace.trace import Span
from page_visit import Visit, grey_video
from report_examples import example_trace

ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="session")
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
    """Open a page; at the end it must have requested only itself and its own blobs, and logged nothing."""
    visits: list[Visit] = []

    def opened(path: Path, **window: Any) -> Visit:
        visits.append(Visit(browser, path, **window))
        return visits[-1]

    yield opened
    for made in visits:
        made.context.close()
        assert made.said == []
        assert [url for url in made.asked if not url.startswith(("file:", "blob:", "data:"))] == []


@pytest.fixture
def opened(visit: Callable[..., Visit], report: Path) -> Visit:
    """The report with everything on it."""
    return visit(report)


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video, two persons, words, layers, a flag, shares, and attention maps of two windows.

    The face attends to the word that is spoken, and to nothing else.
    """
    folder = tmp_path_factory.mktemp("report")
    timeline = grey_video(folder / "talk.mp4")
    said = (
        Span("utterance", 0.2, 1.4, "ask not what", 0.6, 0.1),
        Span("word", 0.2, 0.5, "ask", confidence=0.9),
        Span("word", 0.6, 0.9, "not", confidence=0.3),
        Span("word", 1.0, 1.4, "what", confidence=0.9),
        Span("flag", 0.4, 0.8, "head turned away"),
    )
    made: dict[str, Any] = {"timeline": timeline, "size": (160, 120), "spans": said}
    provenance = {"model": {"name": "zero-shot"}, "notes": ["sound is quiet"]}
    first = example_trace(gaps=((1.5, 1.8),), sd=True, provenance=provenance, **made)
    shares = {f"share_{m}": np.full(len(first), x) for m, x in (("visual", 0.2), ("audio", 0.3), ("text", 0.5))}
    first = replace(first, extras={**first.extras, **shares})
    second = example_trace(gaps=((0.0, 0.5),), seed=50, person="1", **made)
    windows = []
    for start in (0.0, 1.0):
        starts = {m: start + np.arange(n) / n for m, n in (("visual", 40), ("audio", 80), ("text", 10))}
        ends = {m: x + 1 / len(x) for m, x in starts.items()}
        pairs = [(m, n) for m in starts for n in starts if m != n]
        weights = {(m, n): np.full((2, len(starts[m]), len(starts[n])), 1 / len(starts[n])) for m, n in pairs}
        weights["visual", "text"] = np.repeat(np.eye(10), 4, axis=0)[None].repeat(2, 0)
        valid = {m: np.ones(len(x), bool) for m, x in starts.items()}
        windows.append(AttentionWindow(start, start + 1, starts, ends, valid, weights))
    words = tuple(Word(i / 10, i / 10 + 0.09, f"word{i}") for i in range(20))
    maps = {"interview": AttentionMaps("interview", "maven", tuple(windows), words)}
    return write_report(
        [first, second], folder / "talk.html", videos={"interview": folder / "talk.mp4"}, attention=maps
    )
