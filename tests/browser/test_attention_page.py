"""Attention maps and shares in a real browser: drawn, pointed at, clicked, and they follow the cursor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from affectrace.inference.attention_maps import AttentionMaps, Window, Word
from affectrace.report import write_report
from report_examples import example_trace

pytestmark = pytest.mark.browser
INK = """(id) => {
  const canvas = document.querySelector(id);
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const seen = new Set();
  for (let i = 0; i < data.length; i += 4) if (data[i + 3]) seen.add(data.slice(i, i + 3).join());
  return seen.size;
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with two windows; the face looks at the word that is said, and nowhere else."""
    trace = example_trace()
    shares = {"share_visual": 0.2, "share_audio": 0.3, "share_text": 0.5}
    trace = replace(trace, extras={**trace.extras, **{k: np.full(len(trace), x) for k, x in shares.items()}})
    windows = []
    for start in (0.0, 10.0):
        starts = {m: start + np.arange(n) * 10 / n for m, n in (("visual", 40), ("audio", 80), ("text", 10))}
        ends = {m: x + 10 / len(x) for m, x in starts.items()}
        weights = {
            (m, n): np.full((2, len(starts[m]), len(starts[n])), 1 / len(starts[n]))
            for m in starts for n in starts if m != n
        }  # fmt: skip
        weights["visual", "text"] = np.repeat(np.eye(10), 4, axis=0)[None].repeat(2, 0)
        valid = {m: np.ones(len(x), bool) for m, x in starts.items()}
        windows.append(Window(start, start + 10, starts, ends, valid, weights))
    words = tuple(Word(f"word{i}", i, i + 0.9) for i in range(20))
    out = tmp_path_factory.mktemp("report") / "report.html"
    write_report(trace, out, attention={"interview": AttentionMaps("interview", "maven", tuple(windows), words)})
    return out


@pytest.fixture
def page(visit: Callable[..., Any], report: Path) -> Any:
    """The report in a tab of its own: what another test chose, or read of a canvas, is not there."""
    return visit(report).page


def test_six_maps_and_the_lane_of_shares_are_drawn(page: Any) -> None:
    assert page.locator("#maps figure").count() == 6
    assert page.locator("#maps figcaption").nth(1).inner_text().startswith("face looks at words")
    assert page.locator("#maps .scale").nth(1).inner_text() == "up to 10.0×"
    assert page.evaluate(INK, "#maps figure:nth-child(2) canvas") > 3
    assert page.evaluate(INK, "#c-share") == 3
    assert page.locator("#share-names").inner_text().split() == ["words", "voice", "face"]


def test_pointing_at_a_cell_names_the_word_and_a_click_goes_there(page: Any) -> None:
    page.locator("#maps .map").nth(1).scroll_into_view_if_needed()
    box = page.locator("#maps .map").nth(1).bounding_box()
    width, height = box["width"] - 64, box["height"] - 62
    x, y = box["x"] + 62 + 0.745 * width, box["y"] + 4 + 0.745 * height
    page.mouse.move(x, y)
    tip = page.locator("#maps .tip").nth(1)
    assert "“word7”" in tip.inner_text()
    assert "10.00 times as much as evenly" in tip.inner_text()
    page.mouse.move(x, box["y"] + 4 + 0.2 * height)
    assert "0.00 times" in tip.inner_text()
    page.mouse.click(x, y)
    assert page.locator("#time").inner_text().startswith("0:07.4")


def test_maps_follow_the_cursor_from_window_to_window(page: Any) -> None:
    page.locator("#touch").click(position={"x": 10, "y": 40})
    assert "1 of 2" in page.locator("#window-name").inner_text()
    box = page.locator("#touch").bounding_box()
    page.locator("#touch").click(position={"x": 0.8 * box["width"], "y": 40})
    assert "2 of 2" in page.locator("#window-name").inner_text()
    page.locator("#window-before").click()
    assert "1 of 2" in page.locator("#window-name").inner_text()
    assert page.locator("#time").inner_text().startswith("0:00.0")
    page.locator("#attention .goto").first.click()


def test_heads_can_be_chosen(page: Any) -> None:
    assert page.locator("#heads option").all_inner_texts() == ["mean", "head 1", "head 2"]
    page.locator("#heads").select_option("1")
    assert page.evaluate(INK, "#maps figure:nth-child(2) canvas") > 3
    page.locator("#heads").select_option("0")
