"""The report without a browser: packed data, quality checks, escaping, media decisions, files."""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

import made_media as made
from affectrace.media.video import scan_timeline
from affectrace.report import MINUS, media, report_page, write_report, write_summary
from affectrace.report.media import Medium, prepare
from affectrace.report.payload import MISSING, pack, page_data, script_json
from affectrace.report.quality_flags import quality
from affectrace.summaries import summary
from affectrace.timeline import Timeline
from affectrace.trace import NOT_DECODED, Span, Trace
from made_traces import trace

NAN = math.nan
make = partial(trace, source="zero-shot")


def video(path: Path, *, n: int = 12, size: tuple[int, int] = (96, 64), first: int = 0) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (n, size[1], size[0], 3), np.uint8)
    return made.write_video(path, range(first, first + 24 * n, 24), Fraction(1, 600), size=size, images=noise)


# ---- numbers


def unpacked(packed: dict[str, Any]) -> np.ndarray:
    q = np.frombuffer(base64.b64decode(packed["q"]), "<i2")
    return np.where(q == MISSING, np.nan, q * packed["scale"] / 32767)


@pytest.mark.parametrize(
    "values",
    [[], [0.0], [1.0, -1.0, 0.5], [math.nan, 0.25], [math.nan], [1e-9, 2e-9], [640.5, 12.25], [-3.0, math.nan, 3.0]],
)
def test_packing_keeps_values_to_a_part_of_their_range_and_gaps_exactly(values: list[float]) -> None:
    x = np.array(values, float)
    back = unpacked(pack(x))
    assert (np.isnan(back) == np.isnan(x)).all()
    largest = np.nanmax(np.abs(x)) if np.isfinite(x).any() else 1.0
    assert np.allclose(back, x, atol=(largest or 1) / 60_000, equal_nan=True)


def test_the_face_box_is_a_share_of_the_upright_picture() -> None:
    trace = make([0.1, math.nan], extras={f"face_{k}": [v, math.nan] for k, v in zip("xywh", (32, 16, 64, 32))})
    medium = Medium("video", width=128, height=64)
    box = page_data([trace], ["main"], medium)["traces"][0]["box"]
    assert [unpacked(part)[0] for part in box] == pytest.approx([0.25, 0.25, 0.5, 0.5], abs=1e-4)
    assert all(math.isnan(unpacked(part)[1]) for part in box)


def test_statistics_weigh_frames_by_how_long_they_are_shown() -> None:
    clock = Timeline(np.array([0, 1, 4, 5]), Fraction(1), 6)  # 1, 3, 1, 1 seconds
    s = summary(make([0.5, -0.5, NAN, 0.0], [0.2, 0.4, NAN, -0.4], timeline=clock)).iloc[0]
    assert s["share_valid"] == pytest.approx(5 / 6)
    assert s["valence_mean"] == pytest.approx((0.5 - 1.5 + 0) / 5)
    assert s["arousal_mean"] == pytest.approx((0.2 + 1.2 - 0.4) / 5)
    assert s["valence_sd"] == pytest.approx(math.sqrt((0.49 + 3 * 0.09 + 0.04) / 5))
    assert (s["valence_min"], s["valence_max"], s["valence_range"]) == (-0.5, 0.5, 1.0)
    assert s[["q_distressed", "q_excited", "q_low", "q_calm"]].tolist() == pytest.approx([0.6, 0.2, 0.0, 0.2])


# ---- quality


FACE = {"face_x": [1.0] * 200, "face_w": [60.0] * 200, "face_h": [80.0] * 200}
VOICE = {"audio_valence": [0.1] * 200}
SMALL = {**FACE, "face_w": [20.0] * 200}


def words(*confidence: float) -> tuple[Span, ...]:
    return tuple(Span("word", i, i + 0.5, "w", confidence=c) for i, c in enumerate(confidence))


@pytest.mark.parametrize(
    "name, trace, expected",
    [
        ("Time with an estimate", make([0.1] * 200), "ok"),
        ("Time with an estimate", make([0.1] * 170 + [NAN] * 30), "notice"),
        ("Time with an estimate", make([0.1] * 60 + [NAN] * 140), "warning"),
        ("Time with an estimate", make([]), "warning"),
        ("Longest gap", make([0.1] * 150 + [NAN] * 50), "ok"),
        ("Longest gap", make([0.1] * 148 + [NAN] * 52), "notice"),
        ("Face size", make([0.1] * 200, extras=FACE), "ok"),
        ("Face size", make([0.1] * 200, extras=SMALL), "notice"),
        ("Face size", make([NAN] * 200, extras={k: [NAN] * 200 for k in FACE}), "warning"),
        ("Sound", make([0.1] * 200), "unknown"),
        ("Sound", make([0.1] * 200, extras={"voice_arousal": [0.1] * 200}), "ok"),
        ("Sound", make([0.1] * 200, extras={"voice_arousal": [NAN] * 200}), "notice"),
        ("Sound", make([0.1] * 200, extras={"voice_weight": [0.0] * 200}), "unknown"),
        ("Sound", make([0.1] * 200, provenance={"notes": ["the sound track is silent"]}), "notice"),
        ("Language of the voice", make([0.1] * 200, extras=VOICE, provenance={"language": "de"}), "ok"),
        ("Language of the voice", make([0.1] * 200, extras=VOICE, provenance={"language": None}), "notice"),
        ("Language of the voice", make([0.1] * 200, provenance={"language": None}), None),
        ("Word confidence", make([0.1] * 200, spans=words(0.9, 0.8)), "ok"),
        ("Word confidence", make([0.1] * 200, spans=words(0.5, 0.4)), "notice"),
        ("Frame rate", make([0.1] * 200), "ok"),
        ("Frame rate", make([0.1] * 50, timeline=Timeline.regular(50, 5)), "notice"),
        ("Frame rate", make([0.1] * 50, timeline=Timeline.from_times(np.cumsum([1 / 24, 1 / 30] * 25))), "notice"),
        ("File complete", make([0.1] * 200, provenance={"notes": ["truncated after 8 s"]}), "warning"),
        ("File complete", make([0.1] * 199 + [NAN], reason=NOT_DECODED), "warning"),
        ("File complete", make([0.1] * 200, provenance={"notes": ["nearest earlier frame shown"]}), None),
        ("Length", make([0.1] * 100), "notice"),
    ],
)
def test_quality_checks(name: str, trace: Trace, expected: str | None) -> None:
    assert {c.name: c.level for c in quality(trace)}.get(name) == expected


# ---- text

HOSTILE = ["</script><script>alert(1)</script>", "<!--", "]]>", "{{data}}", "a & b \u2028", "<img onerror=x>", "\ud800"]


def tags(path: Path) -> list[str]:
    return re.findall(r"<(/?script|img|iframe)[\s>]", path.read_text("utf-8"))


@pytest.mark.parametrize("word", HOSTILE)
def test_no_text_ends_a_script_or_opens_an_element(word: str, tmp_path: Path) -> None:
    assert json.loads(script_json([word])) == [word]
    assert not re.search(r"[<>&\u2028]", script_json([word]))
    spans = (Span("utterance", 0, 1, word), Span("flag", 0, 1, word))
    provenance = {word: {word: [word]}, "notes": [word]}
    evil = make([0.1] * 4, recording_id=word, person=word, spans=spans, provenance=provenance)
    assert tags(write_report(evil, tmp_path / "e.html")) == tags(write_report(make([0.1] * 4), tmp_path / "p.html"))
    summary_page = write_summary([evil], tmp_path / "s.html", pages={(word, word): "x.html"})
    assert tags(summary_page) == ["script", "/script"]


def test_sparklines_break_at_gaps(tmp_path: Path) -> None:
    broken = [0.1] * 100 + [NAN] * 100 + [0.2] * 100
    whole = make([0.1] * 300)
    known = np.stack([np.isfinite(broken), np.ones(300, bool)], axis=1)
    traces = [whole, make(broken), replace(whole, valid=known), make([NAN] * 3), make([])]
    rows = write_summary(traces, tmp_path / "s.html").read_text().split("<tbody>")[1].split("</tr>")[:5]
    drawn = ["".join(re.findall(r'class="[va]" d="([^"]*)"', row)) for row in rows]
    assert [paths.count("M") for paths in drawn] == [2, 4, 3, 0, 0]
    assert "no estimate anywhere" in rows[3]


# ---- pages


def test_a_page_is_one_file_that_names_no_other_place(tmp_path: Path) -> None:
    videos = {"r": video(tmp_path / "v.mp4")}
    page = write_report(make([0.1] * 12), tmp_path / "page.html", videos=videos).read_text("utf-8")
    outside = set(re.findall(r"""https?://[\w.-]+|["'(]//[\w.-]+""", page))
    assert outside <= {"http://www.w3.org"}  # a name space, never fetched
    assert not re.search(r"<(?:link|script|img|iframe)[^>]+(?:src|href)=\"(?!data:)", page)
    assert "default-src 'none'" in page


def test_the_page_says_what_the_estimates_are_not() -> None:
    zero_shot, labels = (report_page([replace(make([0.1]), source=x)]) for x in ("zero-shot", "labels"))
    assert "not what is felt" in zero_shot
    assert "has not been validated" in zero_shot
    assert "given by annotators" in labels


VALIDATION = {"mean_ccc": 0.375, "ccc_valence": 0.412, "ccc_arousal": -0.337, "n": 3120, "n_recordings": 12, "step": 80}


def trained_page(**model: Any) -> str:
    whole = {"name": "gru", "checkpoint": "gru@1f3a", "data": {"name": "a<b", "fold": 2}, "validation": VALIDATION}
    return report_page([replace(make([0.1]), source="gru@1f3a", provenance={"model": whole | model})])


def test_a_trained_models_page_shows_its_scores_if_known() -> None:
    page = trained_page(validation=VALIDATION | {"chosen": True})
    assert "over 12 recordings of a&lt;b, held out in fold 2 (3120 labelled frames)" in page
    assert f"of gru@1f3a with the labels was +0.41 for valence and {MINUS}0.34 for arousal, +0.38 on average" in page
    assert "The checkpoint was chosen on these recordings, which flatters it." in page
    member = {"name": "gru", "checkpoint": "gru@1", "data": {"name": "x"}, "validation": VALIDATION}
    page = trained_page(mean_of=[member, member | {"checkpoint": "gru@2"}])
    assert "It is the mean of 2 models; the mean itself was not scored." in page
    assert page.count("At its validation") == 2
    for unknown in (None, "0.9", VALIDATION | {"n": None}, VALIDATION | {"mean_ccc": "high"}):
        page = trained_page(validation=unknown)
        assert "At its validation" not in page


ODD = [-1e308, 10**400, True, None, "x", [[]], {}, {"a": [{"b": None}]}, [1, "x", {"model": []}]]


@pytest.mark.parametrize("value", ODD, ids=lambda v: str(v)[:12])
def test_whatever_provenance_holds_makes_a_page(value: Any, tmp_path: Path) -> None:
    deep: Any = value
    for _ in range(40):
        deep = {"deeper": deep}
    odd = dict.fromkeys(("model", "notes", "input", "options", "features"), value) | {"deep": deep}
    inner = {"data": value, "checkpoint": value, "mean_of": value}
    scored = {"validation": VALIDATION | {"n": value, "chosen": value}, "data": {"name": value, "fold": value}}
    options = {"transcript": value, "times": value}
    for model in (inner, inner | scored, scored | {"validation": VALIDATION}):
        nested = {"model": model, "options": options, "input": {"path": value}, "notes": [value]}
        traces = [replace(make([0.1]), source="gru@1f3a", provenance=p) for p in (odd, nested)]
        assert "How this was made" in report_page(traces)
        write_summary(traces, tmp_path / "s.html")


def test_persons_and_sources_are_told_apart() -> None:
    a = make([0.1], person="0")
    for others, names in (
        ([replace(a, person="1")], ["Person 0", "Person 1"]),
        ([replace(a, source="labels")], ["0 · zero-shot", "0 · labels"]),
        ([a], ["Person 0 (1)", "Person 0 (2)"]),
    ):
        assert re.findall(r'<input type="radio"[^>]*>([^<]*)<', report_page([a, *others])) == names


def test_several_recordings_make_a_summary_and_a_page_each(tmp_path: Path) -> None:
    ids = ["a b", "ä#1", "a_b", "..x"]
    out = write_report([make([0.1] * 3, recording_id=x) for x in ids], tmp_path / "all.html")
    links = re.findall(r'<a href="([^"]+)"><bdi>', out.read_text("utf-8"))
    assert len(set(links)) == 4
    for link, recording_id in zip(links, ids, strict=True):
        page = (out.parent / unquote(link)).read_text("utf-8")
        assert f"<bdi>{recording_id}</bdi>" in page
        assert 'href="../all.html"' in page


# ---- media


def test_large_files_become_previews_or_stay_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = video(tmp_path / "v 1#.mp4", size=(640, 480), n=6)
    monkeypatch.setattr(media, "PREVIEW_SIDE_PX", 48)
    monkeypatch.setattr(media, "LIMIT_BYTES", path.stat().st_size // 2)
    preview = prepare(path, tmp_path / "page.html")
    assert preview.payload
    assert len(preview.payload) < path.stat().st_size
    assert (preview.width, preview.height) == (640, 480)  # of the original: face boxes are shares of it
    assert "preview" in preview.note
    monkeypatch.setattr(media, "LIMIT_BYTES", 100)
    beside = prepare(path, tmp_path / "sub" / "page.html")
    assert (beside.payload, beside.href) == (None, "../v%201%23.mp4")
    assert "keep both together" in beside.note
    whole = prepare(path, tmp_path / "page.html", embed=True)
    assert whole.payload
    assert base64.b64decode(whole.payload.split(",")[1]) == path.read_bytes()
    assert prepare(path, tmp_path / "page.html", embed=False).href == "./v%201%23.mp4"


def test_what_browsers_do_not_play_is_shown_at_its_own_times(tmp_path: Path) -> None:
    path = video(tmp_path / "v.mp4", first=300)
    film = path.rename(tmp_path / "v.mkv")  # the name says what a browser will make of it
    medium = prepare(film, tmp_path / "page.html")
    assert medium.payload
    (tmp_path / "preview.mp4").write_bytes(base64.b64decode(medium.payload.split(",")[1]))
    assert scan_timeline(tmp_path / "preview.mp4").times == pytest.approx(scan_timeline(film).times, abs=1e-4)
    assert medium.first_frame_s == pytest.approx(0.5)


def test_image_folders_become_a_video_if_the_trace_fits(tmp_path: Path) -> None:
    folder = made.write_images(tmp_path / "images", "01234")
    medium = prepare(folder, tmp_path / "page.html", timeline=Timeline.regular(5, 10))
    assert medium.kind == "video"
    assert medium.payload
    other = prepare(folder, tmp_path / "page.html", timeline=Timeline.regular(7, 10))
    assert (other.kind, other.payload) == ("none", None)
    assert "not part of this page" in other.note


def test_sound_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = made.write_sound(tmp_path / "tone.wav", made.tone(1, 16_000), 16_000, "pcm_s16le")
    medium = prepare(path, tmp_path / "page.html")
    assert (medium.kind, medium.mime, medium.has_audio, medium.first_frame_s) == ("audio", "audio/wav", True, None)
    monkeypatch.setattr(media, "LIMIT_BYTES", 20_000)
    smaller = prepare(path, tmp_path / "page.html")
    assert smaller.mime == "audio/mp4"
    assert smaller.payload


def test_a_page_that_is_passed_on_names_no_folder_of_the_machine() -> None:
    made = {
        "input": {"name": "talk.mp4", "path": "/home/ann/private/talk.mp4", "sha256": "0" * 64},
        "options": {"transcript": "/home/ann/private/talk.srt", "person": "main"},
    }
    page = report_page([make([0.1] * 10, provenance=made)])
    assert "private" not in page
    assert "talk.mp4" in page
    assert "talk.srt" in page
