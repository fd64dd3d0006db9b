"""The report in a real browser: seeking, layers, words, persons, zoom, print; and that it asks no network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from affectrace.media.audio import Audio
from affectrace.media.writer import VideoWriter
from affectrace.report import report_page, write_report, write_summary
from affectrace.report.media import prepare
from affectrace.timeline import Timeline
from affectrace.trace import Span, Trace
from report_examples import SAID, example_trace, spoken

pytestmark = pytest.mark.browser
Open = Callable[..., Any]
TICK = Fraction(1, 90_000)
N_FRAMES, DARKEST, STEP = 60, 20, 3  # frame i of the made videos is all of grey DARKEST + STEP i

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


def shown_frame(visit: Any) -> int:
    """Which frame of a made video the player shows, by its grey."""
    visit.until("!document.querySelector('#media').seeking")
    visit.page.wait_for_timeout(120)
    grey = visit.page.evaluate(
        "(() => { const c = document.createElement('canvas'), g = c.getContext('2d');"
        "g.drawImage(document.querySelector('#media'), 0, 0); return g.getImageData(60, 60, 1, 1).data[0]; })()"
    )
    return round((grey - DARKEST) / STEP)


def grey_video(path: Path, *, start_s: float = 0.0, audio: Audio | None = None) -> Timeline:
    """A variable-rate video whose frames can be told apart, from `start_s`."""
    steps = np.where(np.arange(N_FRAMES - 1) % 2, 3750, 3000)
    ticks = round(start_s / TICK) + np.concatenate([[0], np.cumsum(steps)])
    with VideoWriter(path, 160, 120, TICK, audio=audio, crf=8) as writer:
        for i, tick in enumerate(ticks):
            writer.write(np.full((120, 160, 3), DARKEST + STEP * i, np.uint8), int(tick))
        writer.close(int(ticks[-1]) + 3000)
    return Timeline(ticks, TICK, int(ticks[-1]) + 3000)


@pytest.fixture(scope="module")
def two_people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a video, two persons, words and layers."""
    video = tmp_path_factory.mktemp("report") / "talk.mp4"
    timeline = grey_video(video)
    said = (
        Span("utterance", 0.2, 1.4, "ask not what", 0.6, 0.1),
        Span("word", 0.2, 0.5, "ask", confidence=0.9),
        Span("word", 0.6, 0.9, "not", confidence=0.3),
        Span("word", 1.0, 1.4, "what", confidence=0.9),
        Span("flag", 0.4, 0.8, "head turned away"),
    )
    provenance = {"model": {"name": "zero-shot"}, "notes": ["sound is quiet"]}
    traces = [
        example_trace(timeline, size=(160, 120), gaps=((1.5, 1.8),), spans=said, sd=True, provenance=provenance),
        example_trace(timeline, size=(160, 120), gaps=((0.0, 0.5),), spans=said, seed=50, person="1"),
    ]
    return write_report(traces, video.with_suffix(".html"), videos={"interview": video})


@pytest.fixture
def opened(visit: Open, two_people: Path) -> Any:
    return visit(two_people)


@pytest.mark.parametrize("start_s, sound_s", [(0.0, None), (0.5, None), (0.5, 0.0), (0.0, 0.4)])
def test_a_click_on_the_lines_shows_the_frame_of_that_time(
    visit: Open, tmp_path: Path, start_s: float, sound_s: float | None
) -> None:
    tone = 0.1 * np.sin(np.arange(96_000) / 20).astype(np.float32)
    audio = None if sound_s is None else Audio(tone, 48_000, sound_s, ())
    timeline = grey_video(tmp_path / "grey.mp4", start_s=start_s, audio=audio)
    trace = example_trace(timeline, gaps=(), spans=())
    open_page = visit(write_report(trace, tmp_path / "page.html", videos={"interview": tmp_path / "grey.mp4"}))
    for frame in (0, 20, 41, 59):
        middle = (timeline.times[frame] + timeline.ends[frame]) / 2
        open_page.click((middle - timeline.start_s) / timeline.duration_s)
        assert shown_frame(open_page) == frame
        assert float(open_page.now().removeprefix("0:")) == pytest.approx(middle, abs=0.02)


def test_a_player_that_counts_otherwise_is_asked_by_its_first_frame(visit: Open, tmp_path: Path) -> None:
    timeline = grey_video(tmp_path / "grey.mp4")
    medium = replace(prepare(tmp_path / "grey.mp4", tmp_path / "page.html"), zero_s=0.3)  # what no player does
    page = tmp_path / "page.html"
    page.write_text(report_page([example_trace(timeline, gaps=(), spans=())], medium), "utf-8")
    opened = visit(page)
    opened.click((timeline.times[30] + timeline.ends[30]) / 2 / timeline.duration_s)
    assert shown_frame(opened) == 30


def test_keys_play_and_step(opened: Any) -> None:
    opened.click(0.5)
    before = shown_frame(opened)
    opened.page.keyboard.press(".")
    assert shown_frame(opened) == before + 1
    opened.page.keyboard.press(",")
    opened.page.keyboard.press(",")
    assert shown_frame(opened) == before - 1
    at = opened.media_time()
    opened.page.keyboard.press("ArrowLeft")
    assert opened.media_time() == pytest.approx(max(0, at - 1), abs=1e-3)
    opened.page.keyboard.press("Home")
    assert opened.media_time() == 0
    opened.page.keyboard.press(" ")
    opened.until("document.querySelector('#media').currentTime > 0.3")
    assert opened.page.get_attribute("#play", "aria-label") == "Pause"
    cursor = opened.page.evaluate("document.querySelector('#cursor').style.transform")
    opened.page.wait_for_timeout(200)
    assert opened.page.evaluate("document.querySelector('#cursor').style.transform") != cursor
    opened.page.keyboard.press(" ")
    assert opened.page.evaluate("document.querySelector('#media').paused")


def test_dragging_scrubs_and_the_slider_says_where(opened: Any) -> None:
    opened.page.mouse.move(*opened.at(0.2))
    opened.page.mouse.down()
    opened.page.mouse.move(*opened.at(0.6), steps=4)
    opened.page.mouse.up()
    touch = opened.page.locator("#touch")
    assert opened.media_time() == pytest.approx(0.6 * float(touch.get_attribute("aria-valuemax")), abs=0.02)
    assert "valence" in touch.get_attribute("aria-valuetext")


def test_layers_switch_on_and_off(opened: Any) -> None:
    names = opened.page.eval_on_selector_all("#layers .chip", "all => all.map((c) => c.dataset.layer)")
    assert names == ["face", "words", "sd", "Person 1"]  # nobody spoke, so the voice says nothing
    for name in ("face", "sd", "Person 1"):
        button = opened.page.locator(f"#layers [data-layer='{name}']")
        pressed, drawn = button.get_attribute("aria-pressed"), opened.picture("c-valence")
        button.click()
        opened.settle()
        assert button.get_attribute("aria-pressed") != pressed
        assert opened.picture("c-valence") != drawn
        button.click()
        opened.settle()
        assert opened.picture("c-valence") == drawn, name


def test_a_word_seeks_and_the_current_one_is_marked(opened: Any) -> None:
    opened.page.click("#utterances .w:text-is('what')")
    assert opened.media_time() == pytest.approx(1.0, abs=1e-3)
    assert opened.page.inner_text("#utterances .w.now") == "what"
    assert opened.page.inner_text("#wordnow") == "what"
    assert opened.page.locator("#utterances .unsure").inner_text() == "not"
    row = opened.page.locator("#c-words").bounding_box()
    touch = opened.page.locator("#touch").bounding_box()
    opened.click(0.75 / float(opened.page.get_attribute("#touch", "aria-valuemax")), row["y"] - touch["y"] + 10)
    assert opened.media_time() == pytest.approx(0.6, abs=1e-3)  # the word's own start, not the place of the click
    tint = opened.page.eval_on_selector("#utterances p", "p => p.style.background")
    assert tint.startswith("rgba(27, 120, 90")


def test_another_person_is_shown(opened: Any) -> None:
    opened.click(0.1)
    first = opened.page.inner_text("#now-valence")
    facts = opened.page.inner_text("#facts")
    opened.page.check("#people input >> nth=1", force=True)
    opened.settle()
    assert first not in ("–", opened.page.inner_text("#now-valence"))
    assert opened.page.inner_text("#now-valence") == "–"
    assert opened.page.inner_text("#sub-valence") == "no face"
    assert opened.page.inner_text("#facts") != facts
    assert opened.page.locator("section.quality:visible").count() == 1


def test_hovering_reads_out_values_and_reasons(opened: Any) -> None:
    opened.page.mouse.move(*opened.at(0.5))
    assert "estimate" in opened.page.inner_text("#tip")
    opened.page.mouse.move(*opened.at(1.6 / float(opened.page.get_attribute("#touch", "aria-valuemax"))))
    assert "No estimate: no face" in opened.page.inner_text("#tip")
    opened.page.mouse.move(*opened.at(0.25))
    assert "head turned away" in opened.page.inner_text("#tip")
    opened.page.mouse.move(2, 2)
    assert not opened.page.is_visible("#tip")


def test_zoom_and_overview(opened: Any) -> None:
    width = "document.getElementById('brush').getBoundingClientRect().width"
    whole = opened.page.evaluate(width)
    assert opened.page.is_disabled("#zoom-out")
    opened.press("#zoom-in")
    half = opened.page.evaluate(width)
    assert half == pytest.approx(whole / 2, abs=2)
    box = opened.page.locator("#overview").bounding_box()
    opened.page.mouse.move(box["x"] + 20, box["y"] + 20)
    opened.page.mouse.down()
    opened.page.mouse.move(box["x"] + 20 + box["width"] / 4, box["y"] + 20, steps=3)
    opened.page.mouse.up()
    opened.settle()
    left = opened.page.evaluate("document.getElementById('brush').offsetLeft")
    assert left == pytest.approx(box["width"] / 4, abs=3)
    opened.page.mouse.wheel(0, -300)
    opened.settle()
    assert opened.page.evaluate(width) < half
    opened.press("#zoom-all")
    assert opened.page.evaluate(width) == pytest.approx(whole, abs=1)


def test_on_paper_text_is_dark_and_everything_is_unfolded(visit: Open, two_people: Path) -> None:
    opened = visit(two_people, color_scheme="dark")
    body = "getComputedStyle(document.documentElement).backgroundColor"
    assert opened.page.evaluate(body) == "rgb(15, 18, 22)"
    opened.page.click("#zoom-in")
    opened.page.emulate_media(media="print")
    opened.page.wait_for_timeout(200)
    assert opened.page.evaluate(body) == "rgb(255, 255, 255)"
    assert opened.page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(0, 0, 0)"
    assert not opened.page.is_visible("#player")
    assert not opened.page.is_visible("#cursor")
    assert opened.page.locator("#people label:visible").all_inner_texts() == ["Person 0"]
    assert opened.page.evaluate("document.querySelector('#provenance details').open")
    assert opened.page.is_disabled("#zoom-all")  # the whole recording is drawn
    opened.page.emulate_media(media="screen")
    opened.page.wait_for_timeout(200)
    assert not opened.page.evaluate("document.querySelector('#provenance details').open")
    assert not opened.page.is_disabled("#zoom-all")


def test_fits_a_phone(visit: Open, two_people: Path) -> None:
    opened = visit(two_people, viewport={"width": 400, "height": 800})
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 400
    order = [opened.page.locator(s).bounding_box()["y"] for s in ("#player", "#lines", "#plane")]
    assert order == sorted(order)


def test_hostile_names_and_words_stay_text(visit: Open, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{data}}"
    trace = example_trace(
        Timeline.regular(100, 25),
        recording_id=evil.replace("/", "|"),
        person=evil,
        spans=(Span("utterance", 0, 2, evil, 0.1, 0.1), Span("word", 0.5, 1, evil), Span("flag", 0, 3, evil)),
        provenance={evil: [evil, {"a": evil}], "notes": [evil]},
    )
    opened = visit(
        write_report([trace, example_trace(trace.timeline, recording_id=trace.recording_id)], tmp_path / "e.html")
    )
    assert opened.page.inner_text("h1") == trace.recording_id
    assert evil in opened.page.inner_text("#utterances")
    opened.page.mouse.move(*opened.at(0.1))
    assert evil in opened.page.inner_text("#tip")
    assert opened.page.locator("img").count() == 0


def test_a_recording_that_cannot_be_played_is_said(visit: Open, tmp_path: Path) -> None:
    video = tmp_path / "grey.mp4"
    trace = example_trace(grey_video(video), gaps=(), spans=())
    page = write_report(trace, tmp_path / "page.html", videos={"interview": video}, embed_video=False)
    beside = visit(page)
    beside.click(0.5)
    assert beside.media_time() == pytest.approx(trace.timeline.duration_s / 2, abs=0.01)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    lost = visit(page.rename(moved / "page.html"), check=False)
    lost.until("!document.querySelector('#media')")
    assert "keep both files together" in lost.page.inner_text("#media-message").lower()
    lost.click(0.5)
    assert lost.now().startswith("0:01")


@pytest.mark.parametrize("n", [0, 1])
def test_hardly_any_frames(visit: Open, tmp_path: Path, n: int) -> None:
    values = np.full(n, 0.25)
    trace = Trace("short", Timeline.regular(n, 25), values, values, np.ones(n, bool), np.full(n, ""), "zero-shot")
    opened = visit(write_report(trace, tmp_path / "page.html"))
    opened.click(0.4)
    assert opened.page.inner_text("#now-valence") == ("+0.25" if n else "–")


def test_an_hour_draws(visit: Open, tmp_path: Path) -> None:
    hour = example_trace(
        Timeline.regular(108_000, 30),
        gaps=((600, 700),),
        spans=tuple(s for k in range(170) for s in spoken(20.0 * k)),
        sd=True,
    )
    page = write_report(hour, tmp_path / "hour.html")
    assert page.stat().st_size < 6_000_000
    opened = visit(page)
    drawn = opened.picture("c-arousal")
    opened.click(0.5)
    assert opened.now().startswith(("29:5", "30:0"))
    for _ in range(6):
        opened.page.click("#zoom-in")
    opened.page.wait_for_timeout(120)
    assert opened.picture("c-arousal") != drawn
    assert opened.page.locator("#utterances li").count() == 170 * len(SAID)


def test_the_summary_sorts_and_leads_to_pages(visit: Open, tmp_path: Path) -> None:
    clock = Timeline.regular(48, 24)
    ids = ["b <i>", "a", "c"]
    traces = [example_trace(clock, recording_id=x, seed=i, gaps=((0, 0.2 * i),), spans=()) for i, x in enumerate(ids)]
    opened = visit(write_report(traces, tmp_path / "all.html"))
    names = lambda: opened.page.eval_on_selector_all("tbody td.title", "all => all.map((c) => c.textContent)")  # noqa: E731
    assert names() == ids
    opened.page.click("th button:text-is('Recording')")
    assert names() == sorted(ids)
    opened.page.click("th button:text-is('With an estimate')")
    assert names() == ["c", "a", "b <i>"]
    opened.page.click("th button:text-is('With an estimate')")
    assert names() == ["b <i>", "a", "c"]
    assert opened.page.get_attribute("th[aria-sort]", "aria-sort") == "descending"
    opened.page.click("td.title a >> nth=0")
    opened.page.wait_for_selector("#lines")
    assert opened.page.inner_text("h1") == "b <i>"
    opened.page.click("a.back")
    assert opened.page.locator("tbody tr").count() == 3


def test_every_text_stands_out_from_its_ground(visit: Open, tmp_path: Path) -> None:
    trace = example_trace()
    nowhere = replace(trace, recording_id="none", valid=trace.valid & False, reason=np.full(len(trace), "no face"))
    for page in (
        write_report([trace, example_trace(person="1", seed=9)], tmp_path / "one.html"),
        write_summary([trace, nowhere], tmp_path / "all.html"),
    ):
        opened = visit(page)
        for scheme in ("light", "dark"):
            opened.page.emulate_media(color_scheme=scheme)
            assert opened.page.evaluate(CONTRASTS) == [], scheme


def test_a_narrow_summary_shows_means_and_flags(visit: Open, tmp_path: Path) -> None:
    page = visit(write_summary([example_trace()], tmp_path / "all.html"), viewport={"width": 400, "height": 800}).page
    for cell in ("Valence mean", "Arousal mean", "With an estimate", "Flags"):
        box = page.locator(f'tbody [data-label="{cell}"]').bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 400
    page.locator("thead button").first.click()  # still sorted by its heads
    assert page.locator("thead [aria-sort]").count() == 1


@pytest.mark.parametrize("n_s", [30, 12 * 60, 3 * 3600])
def test_the_player_s_buttons_stay_in_one_row(visit: Open, tmp_path: Path, n_s: int) -> None:
    n, part = n_s * 2, np.full(n_s * 2, 0.25)
    box = {f"face_{k}": part * 100 for k in "xywh"}
    trace = Trace("r", Timeline.regular(n, 2), part, part, part == part, np.full(n, ""), "m", extras=box)
    page = visit(write_report(trace, tmp_path / "page.html")).page
    page.evaluate("for (const id of ['mute', 'box-toggle']) document.getElementById(id).hidden = false")
    for width in (400, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        rows = [page.locator(name).bounding_box() for name in ("#play", "#time", "#box-toggle", "#mute", "#speed")]
        middles = [row["y"] + row["height"] / 2 for row in rows]
        assert max(middles) - min(middles) < 6


def test_where_one_dimension_is_not_known_the_other_is_drawn(visit: Open, tmp_path: Path) -> None:
    whole = example_trace()
    alone = replace(whole, valid=whole.valid & np.array([True, False]))
    pages = [visit(write_report(trace, tmp_path / f"{i}.html")) for i, trace in enumerate((whole, alone))]
    valence, arousal = ([page.picture(f"c-{name}") for page in pages] for name in ("valence", "arousal"))
    assert valence[0] == valence[1]
    assert arousal[0] != arousal[1]
    said = [pages[1].page.inner_text(f"#{part}") for part in ("now-valence", "now-arousal", "sub-arousal")]
    assert said[0] != "–"
    assert said[1:] == ["–", "not known"]
