"""The report in a real browser: seeking, layers, words, persons, zoom, attention maps, print; and no requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from affectrace.media.audio import Audio
from affectrace.report import report_page, write_report, write_summary
from affectrace.report.media import prepare
from affectrace.timeline import Timeline
from affectrace.trace import Span, Trace
from page_visit import Visit, grey_video
from report_examples import SAID, example_trace, spoken

pytestmark = pytest.mark.browser
Open = Callable[..., Visit]
DURATION = "document.querySelector('#touch').getAttribute('aria-valuemax')"

CONTRASTS = """() => {
  const rgba = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const over = ([r, g, b, a], below) => [r, g, b].map((x, i) => x * a + below[i] * (1 - a));
  const linear = (x) => (x / 255 <= .03928 ? x / 255 / 12.92 : ((x / 255 + .055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const ground = (node) => {
    const own = node ? rgba(getComputedStyle(node).backgroundColor) : [255, 255, 255, 1];
    return own[3] === 1 ? own.slice(0, 3) : over(own, ground(node.parentElement));
  };
  const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement, style = getComputedStyle(node);
    const text = walk.currentNode.textContent.trim();
    if (!text || !node.checkVisibility() || node.closest(".unseen, script, style, .skip")) continue;
    const below = ground(node), both = [light(over(rgba(style.color), below)), light(below)];
    const ratio = (Math.max(...both) + .05) / (Math.min(...both) + .05), size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) found.push(`${node.className || node.tagName}: ${text} ${ratio.toFixed(2)}`);
  }
  return found;
}"""
"""Texts whose contrast with what lies behind them is below WCAG AA: what axe's `color-contrast` asks."""


# ---- time


@pytest.mark.parametrize("start_s, sound_s", [(0.5, None), (0.5, 0.0), (0.0, 0.4)])
def test_a_click_on_the_lines_shows_the_frame_of_that_time(
    visit: Open, tmp_path: Path, start_s: float, sound_s: float | None
) -> None:
    tone = 0.1 * np.sin(np.arange(96_000) / 20).astype(np.float32)
    audio = None if sound_s is None else Audio(tone, 48_000, sound_s, ())
    timeline = grey_video(tmp_path / "grey.mp4", start_s=start_s, audio=audio)
    trace = example_trace(timeline, gaps=(), spans=())
    page = visit(write_report(trace, tmp_path / "page.html", videos={"interview": tmp_path / "grey.mp4"}))
    for frame in (0, 20, 59):
        middle = (timeline.times[frame] + timeline.ends[frame]) / 2
        page.click((middle - timeline.start_s) / timeline.duration_s)
        assert page.shown_frame() == frame
        assert float(page.now().removeprefix("0:")) == pytest.approx(middle, abs=0.02)


def test_a_player_that_counts_from_elsewhere_is_corrected_by_its_first_frame(visit: Open, tmp_path: Path) -> None:
    timeline = grey_video(tmp_path / "grey.mp4")
    medium = replace(prepare(tmp_path / "grey.mp4", tmp_path / "page.html"), zero_s=0.3)  # what no player does
    (tmp_path / "page.html").write_text(report_page([example_trace(timeline, gaps=(), spans=())], medium), "utf-8")
    page = visit(tmp_path / "page.html")
    page.click((timeline.times[30] + timeline.ends[30]) / 2 / timeline.duration_s)
    assert page.shown_frame() == 30


def test_keys_step_and_play_and_dragging_scrubs(opened: Visit) -> None:
    keyboard, mouse = opened.page.keyboard, opened.page.mouse
    opened.click(0.5)
    before = opened.shown_frame()
    keyboard.press(".")
    assert opened.shown_frame() == before + 1
    keyboard.press(",")
    keyboard.press(",")
    assert opened.shown_frame() == before - 1
    at = opened.media_time()
    keyboard.press("ArrowLeft")
    assert opened.media_time() == pytest.approx(max(0, at - 1), abs=1e-3)
    keyboard.press("Home")
    assert opened.media_time() == 0
    keyboard.press(" ")
    opened.until("document.querySelector('#media').currentTime > 0.2")
    assert opened.page.get_attribute("#play", "aria-label") == "Pause"
    cursor = opened.page.evaluate("document.querySelector('#cursor').style.transform")
    opened.until(f"document.querySelector('#cursor').style.transform != '{cursor}'")
    keyboard.press(" ")
    assert opened.page.evaluate("document.querySelector('#media').paused")
    mouse.move(*opened.at(0.2))
    mouse.down()
    mouse.move(*opened.at(0.6), steps=4)
    mouse.up()
    assert opened.media_time() == pytest.approx(0.6 * float(opened.page.evaluate(DURATION)), abs=0.02)
    assert "valence" in opened.page.get_attribute("#touch", "aria-valuetext")


def test_zoom_and_overview(opened: Visit) -> None:
    mouse, width = opened.page.mouse, "document.getElementById('brush').getBoundingClientRect().width"
    whole = opened.page.evaluate(width)
    assert opened.page.is_disabled("#zoom-out")
    opened.press("#zoom-in")
    half = opened.page.evaluate(width)
    assert half == pytest.approx(whole / 2, abs=2)
    box = opened.page.locator("#overview").bounding_box()
    mouse.move(box["x"] + 20, box["y"] + 20)
    mouse.down()
    mouse.move(box["x"] + 20 + box["width"] / 4, box["y"] + 20, steps=3)
    mouse.up()
    opened.settle()
    left = opened.page.evaluate("document.getElementById('brush').offsetLeft")
    assert left == pytest.approx(box["width"] / 4, abs=3)
    mouse.wheel(0, -300)
    opened.until(f"{width} < {half}")
    opened.press("#zoom-all")
    assert opened.page.evaluate(width) == pytest.approx(whole, abs=1)


# ---- what is shown


def test_layers_switch_on_and_off(opened: Visit) -> None:
    names = opened.page.eval_on_selector_all("#layers .chip", "all => all.map((c) => c.dataset.layer)")
    assert names == ["face", "words", "sd", "Person 1"]  # nobody spoke, so the voice says nothing
    for name in ("face", "sd", "Person 1"):
        button = opened.page.locator(f"#layers [data-layer='{name}']")
        pressed, drawn = button.get_attribute("aria-pressed"), opened.picture("c-valence")
        opened.press(f"#layers [data-layer='{name}']")
        assert button.get_attribute("aria-pressed") != pressed
        assert opened.picture("c-valence") != drawn
        opened.press(f"#layers [data-layer='{name}']")
        assert opened.picture("c-valence") == drawn, name


def test_a_word_seeks_and_the_current_one_is_marked(opened: Visit) -> None:
    opened.press("#utterances .w:text-is('what')")
    assert opened.media_time() == pytest.approx(1.0, abs=1e-3)
    assert opened.page.inner_text("#utterances .w.now") == "what"
    assert opened.page.inner_text("#wordnow") == "what"
    assert opened.page.locator("#utterances .unsure").inner_text() == "not"
    row, touch = (opened.page.locator(name).bounding_box() for name in ("#c-words", "#touch"))
    opened.click(0.75 / float(opened.page.evaluate(DURATION)), row["y"] - touch["y"] + 10)
    assert opened.media_time() == pytest.approx(0.6, abs=1e-3)  # the word's own start, not the place of the click
    tint = opened.page.eval_on_selector("#utterances p", "p => p.style.background")
    assert tint.startswith("rgba(27, 120, 90")


def test_another_person_is_shown(opened: Visit) -> None:
    opened.click(0.1)
    first, facts = opened.page.inner_text("#now-valence"), opened.page.inner_text("#facts")
    opened.page.check("#people input >> nth=1", force=True)
    opened.settle()
    assert first != "–"
    assert opened.page.inner_text("#now-valence") == "–"
    assert opened.page.inner_text("#sub-valence") == "no face"
    assert opened.page.inner_text("#facts") != facts
    assert opened.page.locator("section.quality:visible").count() == 1


def test_hovering_reads_out_values_and_reasons(opened: Visit) -> None:
    for share, text in (
        (0.5, "estimate"),
        (1.6 / float(opened.page.evaluate(DURATION)), "No estimate: no face"),
        (0.25, "head turned away"),
    ):
        opened.page.mouse.move(*opened.at(share))
        assert text in opened.page.inner_text("#tip")
    opened.page.mouse.move(2, 2)
    assert not opened.page.is_visible("#tip")


def test_on_paper_text_is_dark_and_everything_is_unfolded(visit: Open, report: Path) -> None:
    opened = visit(report, color_scheme="dark")
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    assert opened.page.evaluate(ground) == "rgb(15, 18, 22)"
    opened.press("#zoom-in")
    opened.page.emulate_media(media="print")
    opened.until("document.querySelector('#provenance details').open")
    assert opened.page.evaluate(ground) == "rgb(255, 255, 255)"
    assert opened.page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(0, 0, 0)"
    assert not opened.page.is_visible("#player")
    assert not opened.page.is_visible("#cursor")
    assert opened.page.locator("#people label:visible").all_inner_texts() == ["Person 0"]
    assert opened.page.is_disabled("#zoom-all")  # the whole recording is drawn
    opened.page.emulate_media(media="screen")
    opened.until("!document.querySelector('#provenance details').open")
    assert not opened.page.is_disabled("#zoom-all")


def test_where_one_dimension_is_unknown_the_other_is_drawn(visit: Open, tmp_path: Path) -> None:
    whole = example_trace()
    alone = replace(whole, valid=whole.valid & np.array([True, False]))
    pages = [visit(write_report(t, tmp_path / f"{k}.html")) for k, t in enumerate((whole, alone))]
    valence, arousal = ([page.picture(f"c-{name}") for page in pages] for name in ("valence", "arousal"))
    assert valence[0] == valence[1]
    assert arousal[0] != arousal[1]
    said = [pages[1].page.inner_text(f"#{part}") for part in ("now-valence", "now-arousal", "sub-arousal")]
    assert said[0] != "–"
    assert said[1:] == ["–", "not known"]


@pytest.mark.parametrize("n", [0, 1])
def test_hardly_any_frames(visit: Open, tmp_path: Path, n: int) -> None:
    values = np.full(n, 0.25)
    trace = Trace("short", Timeline.regular(n, 25), values, values, np.ones(n, bool), np.full(n, ""), "zero-shot")
    opened = visit(write_report(trace, tmp_path / "page.html"))
    opened.click(0.4)
    assert opened.page.inner_text("#now-valence") == ("+0.25" if n else "–")


def test_an_hour_draws(visit: Open, tmp_path: Path) -> None:
    said = tuple(s for k in range(170) for s in spoken(20.0 * k))
    hour = example_trace(Timeline.regular(108_000, 30), gaps=((600, 700),), spans=said, sd=True)
    page = write_report(hour, tmp_path / "hour.html")
    assert page.stat().st_size < 6_000_000
    opened = visit(page)
    drawn = opened.picture("c-arousal")
    opened.click(0.5)
    assert opened.now().startswith(("29:5", "30:0"))
    for _ in range(6):
        opened.press("#zoom-in")
    assert opened.picture("c-arousal") != drawn
    assert opened.page.locator("#utterances li").count() == 170 * len(SAID)


# ---- safety and access


def test_hostile_names_and_words_stay_text(visit: Open, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{data}}"
    trace = example_trace(
        Timeline.regular(100, 25),
        recording_id=evil.replace("/", "|"),
        person=evil,
        spans=(Span("utterance", 0, 2, evil, 0.1, 0.1), Span("word", 0.5, 1, evil), Span("flag", 0, 3, evil)),
        provenance={evil: [evil, {"a": evil}], "notes": [evil]},
    )
    opened = visit(write_report([trace, replace(trace, person="0")], tmp_path / "e.html"))
    assert opened.page.inner_text("h1") == trace.recording_id
    assert evil in opened.page.inner_text("#utterances")
    opened.page.mouse.move(*opened.at(0.1))
    assert evil in opened.page.inner_text("#tip")
    assert opened.page.locator("img").count() == 0


def test_a_recording_that_cannot_be_played_is_reported(browser: object, visit: Open, tmp_path: Path) -> None:
    video = tmp_path / "grey.mp4"
    trace = example_trace(grey_video(video), gaps=(), spans=())
    page = write_report(trace, tmp_path / "page.html", videos={"interview": video}, embed_video=False)
    beside = visit(page)
    beside.click(0.5)
    assert beside.media_time() == pytest.approx(trace.timeline.duration_s / 2, abs=0.01)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    lost = Visit(browser, page.rename(moved / "page.html"))
    lost.until("!document.querySelector('#media')")
    assert "keep both files together" in lost.page.inner_text("#media-message").lower()
    lost.click(0.5)
    assert lost.now().startswith("0:01")
    lost.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_its_ground(visit: Open, report: Path, tmp_path: Path, scheme: str) -> None:
    trace = example_trace()
    nowhere = replace(trace, recording_id="none", valid=trace.valid & False, reason=np.full(len(trace), "no face"))
    for path in (report, write_summary([trace, nowhere], tmp_path / "all.html")):
        assert visit(path, color_scheme=scheme).page.evaluate(CONTRASTS) == []


def test_a_phone_shows_everything(visit: Open, report: Path, tmp_path: Path) -> None:
    phone = {"viewport": {"width": 400, "height": 800}}
    opened = visit(report, **phone)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 400
    order = [opened.page.locator(s).bounding_box()["y"] for s in ("#player", "#lines", "#plane")]
    assert order == sorted(order)
    opened = visit(write_summary([example_trace()], tmp_path / "all.html"), **phone)
    for cell in ("Valence mean", "Arousal mean", "With an estimate", "Flags"):
        box = opened.page.locator(f'tbody [data-label="{cell}"]').bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 400
    opened.page.locator("thead button").first.click()  # still sorted by its heads
    assert opened.page.locator("thead [aria-sort]").count() == 1


@pytest.mark.parametrize("n_s, width", [(30, 400), (12 * 60, 400), (3 * 3600, 400), (3 * 3600, 1280)])
def test_the_player_s_buttons_stay_in_one_row(visit: Open, tmp_path: Path, n_s: int, width: int) -> None:
    n, part = n_s * 2, np.full(n_s * 2, 0.25)
    box = {f"face_{k}": part * 100 for k in "xywh"}
    trace = Trace("r", Timeline.regular(n, 2), part, part, part == part, np.full(n, ""), "m", extras=box)
    opened = visit(write_report(trace, tmp_path / "page.html"), viewport={"width": width, "height": 800})
    opened.page.evaluate("for (const id of ['mute', 'box-toggle']) document.getElementById(id).hidden = false")
    rows = [opened.page.locator(name).bounding_box() for name in ("#play", "#time", "#box-toggle", "#mute", "#speed")]
    middles = [row["y"] + row["height"] / 2 for row in rows]
    assert max(middles) - min(middles) < 6


def test_the_summary_sorts_and_leads_to_pages(visit: Open, tmp_path: Path) -> None:
    clock = Timeline.regular(48, 24)
    ids = ["b <i>", "a", "c"]
    traces = [example_trace(clock, recording_id=x, seed=i, gaps=((0, 0.2 * i),), spans=()) for i, x in enumerate(ids)]
    opened = visit(write_report(traces, tmp_path / "all.html"))
    for head, order in (
        (None, ids),
        ("Recording", sorted(ids)),
        ("With an estimate", ["c", "a", "b <i>"]),
        ("With an estimate", ["b <i>", "a", "c"]),
    ):
        if head:
            opened.page.click(f"th button:text-is('{head}')")
        assert opened.page.locator("tbody td.title").all_text_contents() == order
    assert opened.page.get_attribute("th[aria-sort]", "aria-sort") == "descending"
    opened.page.click("td.title a >> nth=0")
    opened.page.wait_for_selector("#lines")
    assert opened.page.inner_text("h1") == "b <i>"
    opened.page.click("a.back")
    assert opened.page.locator("tbody tr").count() == 3


# ---- attention maps


def test_six_maps_and_the_lane_of_shares_are_drawn(opened: Visit) -> None:
    assert opened.page.locator("#maps figure").count() == 6
    assert opened.page.locator("#maps figcaption").nth(1).inner_text().startswith("face attends to words")
    assert opened.page.locator("#maps .scale").nth(1).inner_text() == "up to 10.0×"
    assert opened.colours("#maps figure:nth-child(2) canvas") > 3
    assert opened.colours("#c-share") == 3
    assert opened.page.locator("#share-names").inner_text().split() == ["words", "voice", "face"]
    assert opened.page.locator("#heads option").all_inner_texts() == ["mean", "head 1", "head 2"]
    opened.page.locator("#heads").select_option("1")
    assert opened.colours("#maps figure:nth-child(1) canvas") > 0


def test_pointing_at_a_cell_names_the_word_and_a_click_goes_there(opened: Visit) -> None:
    opened.page.locator("#maps .map").nth(1).scroll_into_view_if_needed()
    box = opened.page.locator("#maps .map").nth(1).bounding_box()
    width, height = box["width"] - 64, box["height"] - 62
    x, y = box["x"] + 62 + 0.745 * width, box["y"] + 4 + 0.745 * height
    opened.page.mouse.move(x, y)
    tip = opened.page.locator("#maps .tip").nth(1)
    assert "“word7”" in tip.inner_text()
    assert "10.00 times even attention" in tip.inner_text()
    opened.page.mouse.move(x, box["y"] + 4 + 0.2 * height)
    assert "0.00 times" in tip.inner_text()
    opened.page.mouse.click(x, y)
    assert opened.now().startswith("0:00.7")


def test_maps_follow_the_cursor_from_window_to_window(opened: Visit) -> None:
    for share, window in ((0.02, "1 of 2"), (0.8, "2 of 2")):
        opened.click(share, 40)
        assert window in opened.page.locator("#window-name").inner_text()
    opened.press("#window-before")
    assert "1 of 2" in opened.page.locator("#window-name").inner_text()
    assert opened.now().startswith("0:00.0")
    opened.page.locator("#attention .goto").first.click()
