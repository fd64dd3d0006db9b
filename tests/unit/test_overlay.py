"""The overlay: times and sound kept, boxes where the face is, lines that never show the future, faults."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from affectrace.errors import InputError, MediaError, OutputError
from affectrace.media.audio import Audio, read_audio
from affectrace.media.probe import probe
from affectrace.media.video import VideoFrame, open_video, scan_timeline
from affectrace.media.writer import VideoWriter
from affectrace.overlay import Drawing, OverlayConfig, write_overlay
from affectrace.overlay_drawing import GROUND, INK, VALENCE, Line, Plane, Strip, dot, paste, words
from affectrace.progress import ProgressEvent
from affectrace.timeline import Timeline
from affectrace.trace import Trace
from report_examples import example_trace

SIZE = (160, 120)
TICK = Fraction(1, 90_000)


def film(path: Path, *, start_s: float = 0.0, n: int = 20, audio: Audio | None = None) -> Timeline:
    """A black variable-rate video."""
    ticks = round(start_s / TICK) + np.concatenate([[0], np.cumsum(np.where(np.arange(n - 1) % 2, 3750, 3000))])
    with VideoWriter(path, *SIZE, TICK, audio=audio) as writer:
        for tick in ticks:
            writer.write(np.zeros((SIZE[1], SIZE[0], 3), np.uint8), int(tick))
        writer.close(int(ticks[-1]) + 3000)
    return Timeline(ticks, TICK, int(ticks[-1]) + 3000)


def example(clock: Timeline, **more: object) -> Trace:
    return example_trace(clock, size=SIZE, spans=(), **{"gaps": (), **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("start_s", [0.0, 0.5])
@pytest.mark.parametrize("panel, height", [("below", 360 + 152), ("over", 360)])
def test_every_frame_keeps_its_own_time(tmp_path: Path, start_s: float, panel: str, height: int) -> None:
    clock = film(tmp_path / "v.mp4", start_s=start_s)
    seen: list[ProgressEvent] = []
    config = OverlayConfig(panel=panel)  # type: ignore[arg-type]
    out = write_overlay(example(clock), tmp_path / "v.mp4", tmp_path / "o.mp4", config=config, progress=seen.append)
    source = open_video(out)
    assert sum(1 for _ in source.frames()) == 20
    assert source.timeline == clock
    assert (source.width, source.height) == (480, height)  # enlarged until text can be read
    assert (seen[-1].done, seen[-1].total) == (20, 20)
    assert {p.name for p in tmp_path.iterdir()} == {"v.mp4", "o.mp4"}


def test_sound_is_kept_at_its_place(tmp_path: Path) -> None:
    tone = (0.4 * np.sin(np.arange(24_000) * 0.1)).astype(np.float32)
    clock = film(tmp_path / "v.mp4", audio=Audio(tone, 48_000, 0.2, ()))
    write_overlay(example(clock), tmp_path / "v.mp4", tmp_path / "o.mp4")
    before, after = (read_audio(tmp_path / name) for name in ("v.mp4", "o.mp4"))
    assert after.start_s == pytest.approx(before.start_s, abs=1e-3)
    assert np.array_equal(after.samples, before.samples)  # copied, not encoded again
    film(tmp_path / "mute.mp4")
    write_overlay(example(clock), tmp_path / "mute.mp4", tmp_path / "m.mp4")
    assert not probe(tmp_path / "m.mp4").has_audio


def frame(clock: Timeline, i: int, size: tuple[int, int] = SIZE) -> VideoFrame:
    return VideoFrame(i, clock.time_of(i), np.zeros((size[1], size[0], 3), np.uint8))


@pytest.mark.parametrize("width, height, scale", [(640, 400, 1.0), (320, 200, 1.8)])
def test_the_box_is_drawn_around_the_face(width: int, height: int, scale: float) -> None:
    clock = Timeline.regular(4, 25)
    x, y, w, h = width * 0.2, height * 0.3, width * 0.3, height * 0.4
    box = {"face_x": x, "face_y": y, "face_w": w, "face_h": h}
    extras = {k: np.array([v, v, np.nan, v]) for k, v in box.items()}
    drawing = Drawing([replace(example(clock), extras=extras)], width, height, OverlayConfig())
    shown = drawing.picture_size[1]
    picture = drawing.frame(frame(clock, 0, (width, height)))[:shown]
    lit = np.argwhere((picture == INK).all(axis=2))
    assert lit.min(axis=0) == pytest.approx([y * scale, x * scale], abs=2)
    assert lit.max(axis=0) == pytest.approx([(y + h) * scale, (x + w) * scale], abs=2)
    inside = picture[
        round(y * scale) + 8 : round((y + h) * scale) - 8, round(x * scale) + 8 : round((x + w) * scale) - 8
    ]
    assert not inside.any()  # the face itself is left alone
    assert not (drawing.frame(frame(clock, 2, (width, height)))[:shown] == INK).all(axis=2).any()


def test_a_missing_face_is_said_on_the_picture() -> None:
    clock = Timeline.regular(10, 10)
    trace = example_trace(clock, size=(640, 400), gaps=((0.5, 0.8),), spans=())
    drawing = Drawing([trace], 640, 400, OverlayConfig())
    corner = (slice(0, 40), slice(0, 120))
    assert not drawing.frame(frame(clock, 2, (640, 400)))[corner].any()
    assert drawing.frame(frame(clock, 6, (640, 400)))[corner].any()
    late = VideoFrame(11, 5.0, np.zeros((400, 640, 3), np.uint8))
    assert drawing.frame(late)[corner].any()  # beyond the trace's end


def test_lines_show_the_past_alone() -> None:
    clock = Timeline.regular(100, 10)
    trace = example(clock)
    other = np.where(clock.times > 4.0, -trace.valence, trace.valence)
    strips = [Strip([Line(t, "valence", VALENCE)], 80, 40.0, 0.0) for t in (trace, replace(trace, valence=other))]
    assert np.array_equal(*(s.window(3.8, 120) for s in strips))
    assert not np.array_equal(*(s.window(6.0, 120) for s in strips))


def test_a_window_is_the_same_however_the_tiles_fall() -> None:
    clock = Timeline.regular(600, 10)
    trace = example(clock)
    here = Strip([Line(trace, "arousal", VALENCE)], 60, 50.0, 0.0)
    shifted = Strip([Line(trace, "arousal", VALENCE)], 60, 50.0, -3.0)  # the same time lies elsewhere in its tile
    for until in (2.0, 10.24, 20.0, 59.0):
        a, b = here.window(until, 300).astype(int), shifted.window(until, 300).astype(int)
        assert np.abs(a - b).mean(axis=(0, 2)).max() < 3  # a line that misses a column makes 5; rounding makes 2
    for _ in range(3):
        for until in np.arange(1.0, 60.0, 0.7):
            here.window(float(until), 300)
    assert len(here._tiles) <= 6


def test_the_line_stands_at_its_value() -> None:
    clock = Timeline.regular(50, 10)
    value = np.full(50, 0.5)
    trace = Trace("r", clock, value, value, np.ones(50, bool), np.full(50, ""), "m")
    strip = Strip([Line(trace, "valence", VALENCE)], 100, 40.0, 0.0)
    column = strip.window(4.0, 40)[:, 20].astype(int)
    nearest = np.abs(column - np.array(VALENCE)).sum(axis=1).argmin()
    assert nearest == pytest.approx(strip.y(0.5), abs=1)
    before = strip.window(-1.0, 40)[:, 20]
    assert not (np.abs(before.astype(int) - np.array(VALENCE)).sum(axis=1) < 30).any()


def test_the_dot_is_where_the_trace_is() -> None:
    clock = Timeline.regular(10, 10)
    v, a = np.full(10, 0.8), np.full(10, -0.6)
    trace = Trace("r", clock, v, a, np.ones(10, bool), np.full(10, ""), "m")
    plane = Plane([trace], [VALENCE], 200, 2.0)
    with_dot, without = plane.drawn(0.5).astype(int), plane.drawn(50.0).astype(int)
    changed = np.argwhere(np.abs(with_dot - without).sum(axis=2) > 60).mean(axis=0)
    x, y = plane._at(0.8, -0.6)
    assert changed == pytest.approx([y, x], abs=2)
    assert x > 100
    assert y > 100


def test_several_persons_have_their_own_boxes_and_colours(tmp_path: Path) -> None:
    clock = film(tmp_path / "v.mp4", n=3)
    people = [example(clock, person=str(i), seed=i) for i in range(3)]
    drawing = Drawing(people, *SIZE, OverlayConfig())
    assert len(set(drawing.colours)) == 3
    picture = drawing.frame(frame(clock, 1))[:360]
    assert (picture == drawing.colours[2]).all(axis=2).any()
    assert write_overlay(people, tmp_path / "v.mp4", tmp_path / "o.mp4").is_file()


def test_images_are_shown_at_the_trace_s_times(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.new("RGB", (64, 48), (60 * i, 0, 0)).save(tmp_path / "images" / f"{i}.png")
    clock = Timeline.from_times([0.0, 0.1, 0.3, 0.7], 1.0)
    write_overlay(example(clock), tmp_path / "images", tmp_path / "o.mp4")
    assert scan_timeline(tmp_path / "o.mp4").times == pytest.approx(clock.times, abs=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (1000, 90), (90, 1000), (3840, 2160), (401, 303)])
def test_any_size_is_drawn(size: tuple[int, int]) -> None:
    clock = Timeline.regular(2, 25)
    drawing = Drawing([example_trace(clock, size=size, gaps=(), spans=())], *size, OverlayConfig())
    drawn = drawing.frame(frame(clock, 1, size))
    assert drawn.shape == (drawing.height, drawing.width, 3)
    assert max(drawing.picture_size) <= 1920 + 1
    assert drawing.width % 2 == drawing.height % 2 == 0


@pytest.mark.parametrize("n", [0, 1])
def test_hardly_any_frames_in_the_trace(n: int) -> None:
    trace = example(Timeline.regular(n, 25))
    assert (
        Drawing([trace], 640, 360, OverlayConfig()).frame(VideoFrame(0, 0.0, np.zeros((360, 640, 3), np.uint8))).any()
    )


def test_mistakes_cost_one_line_and_leave_nothing(tmp_path: Path) -> None:
    clock = film(tmp_path / "v.mp4")
    trace = example(clock)
    out = tmp_path / "o.mp4"
    with pytest.raises(InputError, match="nothing to draw: no traces"):
        write_overlay([], tmp_path / "v.mp4", out)
    with pytest.raises(InputError, match=r"several recordings \(interview, other\); make one overlay for each"):
        write_overlay([trace, replace(trace, recording_id="other")], tmp_path / "v.mp4", out)
    with pytest.raises(InputError, match="would replace its own recording"):
        write_overlay(trace, tmp_path / "v.mp4", tmp_path / "v.mp4")
    with pytest.raises(MediaError, match="no such file"):
        write_overlay(trace, tmp_path / "gone.mp4", out)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        write_overlay(trace, tmp_path / "v.mp4", tmp_path / "file" / "o.mp4")

    def stop(event: ProgressEvent) -> None:
        if event.done > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_overlay(trace, tmp_path / "v.mp4", out, progress=stop)
    assert {p.name for p in tmp_path.iterdir()} == {"v.mp4", "file"}


@pytest.mark.real
def test_sound_alone_has_nothing_to_draw_on(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"jfk\.flac: has no pictures to draw on; use `affectrace report`"):
        write_overlay(example(Timeline.regular(3, 25)), clips / "jfk.flac", tmp_path / "o.mp4")


@pytest.mark.real
def test_a_real_clip_of_variable_rate(clips: Path, tmp_path: Path) -> None:
    clock = scan_timeline(clips / "face_noface.mov")
    out = write_overlay(example_trace(clock, spans=()), clips / "face_noface.mov", tmp_path / "o.mp4")
    assert scan_timeline(out) == clock
    assert probe(out).has_audio


def test_sprites_are_cut_at_the_edges() -> None:
    canvas = np.zeros((20, 20, 3), np.uint8)
    for x, y in ((-4, -4), (17, 17), (50, 3), (-50, 3)):
        paste(canvas, dot(5, VALENCE, INK), x, y)
    assert canvas.any()
    assert words("no face", 14, INK, GROUND)[0].shape[1] > words("no", 14, INK, GROUND)[0].shape[1]
