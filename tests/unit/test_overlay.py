"""The overlay: times and sound kept, boxes where the face is, lines that never show the future, faults."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import made_media as made
from affectrace.errors import InputError, MediaError, OutputError
from affectrace.media.audio import read_audio
from affectrace.media.probe import probe
from affectrace.media.video import VideoFrame, open_video, scan_timeline
from affectrace.overlay import OverlayConfig, write_overlay
from affectrace.overlay.drawing import INK, VALENCE, Drawing, Line, Plane, Strip
from affectrace.progress import ProgressEvent
from affectrace.timeline import Timeline
from affectrace.trace import Trace
from made_traces import trace
from report_examples import example_trace

SIZE = (160, 120)
TICK = Fraction(1, 90_000)


def film(path: Path, *, start_s: float = 0.0, **sound: Any) -> Timeline:
    """A video of 20 frames at a variable rate."""
    steps = [3000, 3750] * 10
    ticks = [round(start_s / TICK) + sum(steps[:i]) for i in range(20)]
    return scan_timeline(made.write_video(path, ticks, TICK, size=SIZE, **sound))


def example(clock: Timeline, **more: object) -> Trace:
    return example_trace(clock, size=SIZE, spans=(), **{"gaps": (), **more})  # type: ignore[arg-type]


def constant(valence: float, arousal: float, n: int = 50) -> Trace:
    return trace([valence] * n, [arousal] * n, rate=10)


def drawn(traces: list[Trace], time_s: float, size: tuple[int, int] = SIZE, **config: object) -> np.ndarray:
    """A black frame at a time, with everything drawn on."""
    drawing = Drawing(traces, *size, OverlayConfig(**config))
    return drawing.frame(VideoFrame(0, time_s, np.zeros((size[1], size[0], 3), np.uint8)))


# ---- files


@pytest.mark.parametrize("start_s, panel, height", [(0.0, "below", 360 + 152), (0.5, "over", 360)])
def test_every_frame_keeps_its_own_time(tmp_path: Path, start_s: float, panel: str, height: int) -> None:
    clock = film(tmp_path / "v.mp4", start_s=start_s)
    seen: list[ProgressEvent] = []
    config = OverlayConfig(panel=panel)  # type: ignore[arg-type]
    out = write_overlay(example(clock), tmp_path / "v.mp4", tmp_path / "o.mp4", config=config, progress=seen.append)
    source = open_video(out)
    assert source.timeline == clock
    assert (source.width, source.height) == (480, height)  # enlarged until text can be read
    assert (seen[-1].done, seen[-1].total) == (20, 20)
    assert {p.name for p in tmp_path.iterdir()} == {"v.mp4", "o.mp4"}


def test_sound_is_kept_at_its_place(tmp_path: Path) -> None:
    clock = film(tmp_path / "v.mp4", sound=made.tone(0.5, 48_000), sound_rate_hz=48_000, sound_start=9600)
    write_overlay(example(clock), tmp_path / "v.mp4", tmp_path / "o.mp4")
    before, after = (read_audio(tmp_path / name) for name in ("v.mp4", "o.mp4"))
    assert after.start_s == pytest.approx(before.start_s, abs=1e-3)
    assert np.array_equal(after.samples, before.samples)  # copied, not encoded again
    film(tmp_path / "mute.mp4")
    write_overlay([example(clock)] * 2, tmp_path / "mute.mp4", tmp_path / "m.mp4")
    assert probe(tmp_path / "m.mp4").audio is None


def test_images_are_shown_at_the_trace_s_times(tmp_path: Path) -> None:
    made.write_images(tmp_path / "images", "0123")
    clock = Timeline.from_times([0.0, 0.1, 0.3, 0.7], 1.0)
    write_overlay(example(clock), tmp_path / "images", tmp_path / "o.mp4")
    assert scan_timeline(tmp_path / "o.mp4").times == pytest.approx(clock.times, abs=1e-4)


def test_a_mistake_leaves_nothing(tmp_path: Path) -> None:
    trace = example(film(tmp_path / "v.mp4"))
    (tmp_path / "file").write_text("x")
    made.write_sound(tmp_path / "sound.wav", made.tone(0.1, 16_000), 16_000, "pcm_s16le")
    for kind, traces, video, out in (
        (InputError, [], "v.mp4", "o.mp4"),
        (InputError, [trace, replace(trace, recording_id="other")], "v.mp4", "o.mp4"),
        (InputError, trace, "v.mp4", "v.mp4"),
        (MediaError, trace, "gone.mp4", "o.mp4"),
        (MediaError, trace, "sound.wav", "o.mp4"),
        (OutputError, trace, "v.mp4", "file/o.mp4"),
    ):
        with pytest.raises(kind):
            write_overlay(traces, tmp_path / video, tmp_path / out)
    assert {p.name for p in tmp_path.iterdir()} == {"v.mp4", "file", "sound.wav"}


# ---- pictures


@pytest.mark.parametrize("width, height, scale", [(640, 400, 1.0), (320, 200, 1.8)])
def test_the_box_is_drawn_around_the_face(width: int, height: int, scale: float) -> None:
    clock = Timeline.regular(4, 25)
    x, y, w, h = width * 0.2, height * 0.3, width * 0.3, height * 0.4
    box = {"face_x": x, "face_y": y, "face_w": w, "face_h": h}
    trace = replace(example(clock), extras={k: np.array([v, v, np.nan, v]) for k, v in box.items()})
    shown = round(height * scale)
    picture = drawn([trace], 0.0, (width, height))[:shown]
    lit = np.argwhere((picture == INK).all(axis=2))
    assert lit.min(axis=0) == pytest.approx([y * scale, x * scale], abs=2)
    assert lit.max(axis=0) == pytest.approx([(y + h) * scale, (x + w) * scale], abs=2)
    rows, columns = (slice(round(a * scale) + 8, round((a + n) * scale) - 8) for a, n in ((y, h), (x, w)))
    assert not picture[rows, columns].any()  # the face itself is left alone
    assert not (drawn([trace], 0.08, (width, height))[:shown] == INK).all(axis=2).any()


def test_missing_values_are_explained_by_person() -> None:
    trace = example_trace(Timeline.regular(10, 10), size=(640, 400), gaps=((0.5, 0.8),), spans=())
    corner = (slice(0, 40), slice(0, 120))
    noted = [bool(drawn([trace], t, (640, 400))[corner].any()) for t in (0.2, 0.6, 5.0)]
    assert noted == [False, True, True]  # the last one is beyond the trace's end
    whole = {"valence": np.zeros(10), "arousal": np.zeros(10), "valid": np.ones(10, bool), "reason": np.full(10, "")}
    other = replace(trace, person="1", **whole)  # type: ignore[arg-type]
    drawing = Drawing([trace, other], 640, 400, OverlayConfig())
    notes = [drawing.notes(now) for now in ([0, 0], [6, 6], [-1, 0], [-1, -1])]
    assert notes == [[], ["person 0: no face"], ["person 0: outside the trace"], ["outside the trace"]]
    assert len(set(drawing.colours)) == 2
    assert (drawn([trace, other], 0.04, (640, 400))[:400] == drawing.colours[1]).all(axis=2).any()


def test_a_window_is_the_same_however_the_tiles_fall() -> None:
    trace = example(Timeline.regular(600, 10))
    here = Strip([Line(trace, trace.arousal, VALENCE)], 60, 50.0, 0.0)
    shifted = Strip([Line(trace, trace.arousal, VALENCE)], 60, 50.0, -3.0)  # the same time lies elsewhere in its tile
    for until in (2.0, 10.24, 20.0, 59.0):
        a, b = here.window(until, 300).astype(int), shifted.window(until, 300).astype(int)
        assert np.abs(a - b).mean(axis=(0, 2)).max() < 3  # a line that misses a column makes 5; rounding makes 2


def test_the_line_stands_at_its_value() -> None:
    trace = constant(0.5, 0.5)
    strip = Strip([Line(trace, trace.valence, VALENCE)], 100, 40.0, 0.0)
    column = strip.window(4.0, 40)[:, 20].astype(int)
    nearest = np.abs(column - np.array(VALENCE)).sum(axis=1).argmin()
    assert nearest == pytest.approx(strip.y(0.5), abs=1)
    for until_s in (-1.0, 5.0 + 41 / 40.0):  # before the trace and after its end
        empty = strip.window(until_s, 40)[:, 20].astype(int)
        assert not (np.abs(empty - np.array(VALENCE)).sum(axis=1) < 30).any()


def test_the_dot_is_where_the_trace_is() -> None:
    plane = Plane([constant(0.8, -0.6, 10)], [VALENCE], 200, 2.0)
    with_dot, without = plane.draw(0.5).astype(int), plane.draw(50.0).astype(int)
    y, x = np.argwhere(np.abs(with_dot - without).sum(axis=2) > 60).mean(axis=0)
    assert (x, y) == pytest.approx(plane.at(0.8, -0.6), abs=2)
    assert x > 100
    assert y > 100


@pytest.mark.parametrize("n", [0, 2])
@pytest.mark.parametrize("size", [(64, 64), (1000, 90), (90, 1000), (2000, 1000), (401, 303)])
def test_any_size_is_drawn(size: tuple[int, int], n: int) -> None:
    trace = example_trace(Timeline.regular(n, 25), size=size, gaps=(), spans=())
    height, width = drawn([trace], 0.04, size).shape[:2]
    assert width <= 1920 + 1
    assert width % 2 == height % 2 == 0
