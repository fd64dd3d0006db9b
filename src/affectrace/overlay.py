"""Overlay: the video with its trace drawn under it and the face box on it; sound and presentation times are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Interval

from affectrace.config import Config, Positive, checked
from affectrace.errors import ConfigError, InputError, MediaError
from affectrace.media.probe import probe
from affectrace.media.video import VideoFrame, VideoSource, open_video
from affectrace.media.writer import VideoWriter
from affectrace.overlay_drawing import (
    AROUSAL,
    GROUND,
    INK,
    PERSONS,
    SOFT,
    VALENCE,
    Colour,
    Line,
    Picture,
    Plane,
    Strip,
    centred,
    dot,
    paste,
    words,
)
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.trace import Trace

DIMENSIONS = ("valence", "arousal")
OUTSIDE = "outside the trace"
COMMENT = "overlay made by affectrace"  # in the file, so that it is known to be ours


@dataclass(frozen=True)
class OverlayConfig(Config):
    """How the overlay looks. All numbers ours.

    history_s: seconds of the past that the lines show, now at their right edge. tail_s: of the circumplex dot.
    panel: "below" adds the panel under the picture, so that nothing is hidden; "over" lays it on the picture's lower
        part. panel_share: its height as a share of the picture's. panel_opacity: of a panel laid over.
    min_side_px, max_side_px: smaller pictures are enlarged until their shorter side has this size (text stays
        readable), larger ones reduced to this longer side.
    crf: x264 quality, 18 (near lossless) to 30.
    """

    history_s: Positive = 8.0
    tail_s: Positive = 2.0
    panel: Literal["below", "over"] = "below"
    panel_share: Annotated[float, Interval(ge=0.1, le=1)] = 0.42
    panel_opacity: Annotated[float, Interval(gt=0, le=1)] = 0.78
    min_side_px: Annotated[int, Ge(16)] = 360
    max_side_px: int = 1920
    crf: Annotated[int, Interval(ge=0, le=51)] = 20

    def __post_init__(self) -> None:
        if self.min_side_px > self.max_side_px:
            raise ConfigError("must not be above max_side_px", where="min_side_px")


def write_overlay(
    traces: Trace | Sequence[Trace],
    video: str | Path,
    out: str | Path,
    *,
    config: OverlayConfig | None = None,
    progress: Progress = silent,
) -> Path:
    """Write `video` with its trace drawn: lines of the last seconds, circumplex, values, face box, why values miss.

    traces: of one recording, one a person; the first one's values are spelled out.
    video: the recording; an image folder is shown at the trace's times.
    out: an .mp4; complete or not there at all. Every frame keeps its own time; sound is copied, or encoded as AAC.

    Raises:
        InputError: no traces, or of several recordings. MediaError: no pictures, or not readable.
        OutputError: `out` cannot be written.
    """
    given = [traces] if isinstance(traces, Trace) else list(traces)
    video, out, config = Path(video), Path(out), checked(config or OverlayConfig())
    if not given:
        raise InputError("nothing to draw: no traces", hint="give at least one trace")
    ids = sorted({t.recording_id for t in given})
    if len(ids) > 1:
        raise InputError(f"traces are of several recordings ({', '.join(ids)})", hint="make one overlay for each")
    if out.exists() and video.exists() and out.resolve() == video.resolve():
        raise InputError("the overlay would replace its own recording", where=out, hint="name another file with --out")
    source = _opened(given[0], video)
    base = source.time_base  # the recording's own ticks, so that times stay exact
    drawing = Drawing(given, source.width, source.height, config)
    with VideoWriter(out, drawing.width, drawing.height, base, crf=config.crf, comment=COMMENT) as writer:
        for frame in source.frames(sound=writer):
            writer.write(drawing.frame(frame), round(Fraction(frame.time_s) / base))
            progress(ProgressEvent("overlay", frame.index + 1, source.n_frames_estimate, "frames", video.name))
        clock = source.timeline
        writer.close(round(clock.end_tick * clock.time_base / base))
    progress(ProgressEvent("overlay", len(clock), len(clock), "frames", video.name))
    return out


def is_our_overlay(path: Path) -> bool:
    """Whether a file is an overlay that was made here."""
    try:
        return probe(path).comment == COMMENT
    except MediaError:
        return False


def _opened(trace: Trace, video: Path) -> VideoSource:
    if video.is_dir():
        return open_video(video, times=trace.timeline.times.tolist())
    if not probe(video).has_video:
        raise MediaError("has no pictures to draw on", where=video, hint="use `affectrace report` for sound alone")
    return open_video(video)


class Drawing:
    """Frames with everything drawn on; `width`, `height` in pixels."""

    def __init__(self, traces: Sequence[Trace], width: int, height: int, config: OverlayConfig) -> None:
        self.traces, self.config = tuple(traces), config
        self.scale = _scale(width, height, config)
        self.width, picture_height = (_even(n * self.scale) for n in (width, height))
        self.picture_size = (self.width, picture_height)
        self.panel_height = _even(min(picture_height, max(120, config.panel_share * min(picture_height, self.width))))
        self.height = picture_height + (self.panel_height if config.panel == "below" else 0)
        several = len(traces) > 1
        self.colours: tuple[Colour, ...] = tuple(PERSONS[i % len(PERSONS)] for i in range(len(traces)))
        self.text_px = max(11, round(self.panel_height * 0.085))
        self.value_px = round(self.text_px * 1.75)
        self.pad = round(self.text_px * 0.7)
        self.gutter = round(self.text_px * 6.2)
        self.plane = Plane(
            self.traces, self.colours if several else (INK,), self.panel_height - self.pad, config.tail_s
        )
        self.strip_width = max(40, self.width - self.gutter - self.plane.side - 2 * self.pad)
        self.row_height = (self.panel_height - 3 * self.pad) // 2
        start = min((t.timeline.start_s for t in traces), default=0.0)
        dimension_colours = dict(zip(DIMENSIONS, (VALENCE, AROUSAL), strict=True))
        self.strips = {
            name: Strip(
                [
                    Line(t, name, c if several else dimension_colours[name])
                    for t, c in zip(self.traces, self.colours, strict=True)
                ],
                self.row_height,
                self.strip_width / config.history_s,
                start,
            )
            for name in DIMENSIONS
        }
        self._ground = self._panel_ground()

    # ---- a frame

    def frame(self, frame: VideoFrame) -> Picture:
        """(height, width, 3): one frame with its boxes and panel."""
        canvas = np.empty((self.height, self.width, 3), np.uint8)
        picture = canvas[: self.picture_size[1]]
        picture[:] = _resized(frame.image, self.picture_size)
        t = frame.time_s
        now = [int(trace.timeline.frames_at([t])[0]) for trace in self.traces]
        for trace, i, colour in zip(self.traces, now, self.colours, strict=True):
            self._box(picture, trace, i, colour)
        self._note(picture, self.traces[0], now[0])
        panel = self._panel(t, now)
        if self.config.panel == "below":
            canvas[self.picture_size[1] :] = panel
        else:
            part = canvas[-self.panel_height :]
            alpha = self.config.panel_opacity
            part[:] = np.rint(part * (1 - alpha) + panel * alpha)
        return canvas

    def _box(self, picture: Picture, trace: Trace, i: int, colour: Colour) -> None:
        names = ("face_x", "face_y", "face_w", "face_h")
        if i < 0 or not all(n in trace.extras for n in names):
            return
        x, y, w, h = (float(trace.extras[n][i]) * self.scale for n in names)
        if not all(map(math.isfinite, (x, y, w, h))):
            return
        line = max(2, round(self.picture_size[1] / 240))
        inner = colour if len(self.traces) > 1 else INK
        _rectangle(picture, (x - 1, y - 1, x + w + 1, y + h + 1), line + 2, (0, 0, 0))
        _rectangle(picture, (x, y, x + w, y + h), line, inner)
        if len(self.traces) > 1:
            label = words(f"person {trace.person}", self.text_px, colour, GROUND)
            paste(picture, label, round(x), round(y) - label[0].shape[0] - 2)

    def _note(self, picture: Picture, trace: Trace, i: int) -> None:
        """Why there is no value now."""
        reason = OUTSIDE if i < 0 else str(trace.reason[i])
        if reason:
            size = max(self.text_px, round(self.picture_size[1] * 0.042))
            paste(picture, words(reason, size, INK, GROUND), self.pad, self.pad)

    # ---- the panel

    def _panel_ground(self) -> Picture:
        ground = np.full((self.panel_height, self.width, 3), GROUND, np.uint8)
        for row, name in enumerate(DIMENSIONS):
            paste(ground, words(name, self.text_px, SOFT), self.pad, self._row_top(row) + self.pad // 2)
        return ground

    def _row_top(self, row: int) -> int:
        return self.pad + row * (self.row_height + self.pad)

    def _panel(self, t: float, now: Sequence[int]) -> Picture:
        panel = self._ground.copy()
        right = self.gutter + self.strip_width
        for row, name in enumerate(DIMENSIONS):
            top, strip = self._row_top(row), self.strips[name]
            panel[top : top + self.row_height, self.gutter : right] = strip.window(t, self.strip_width)
            for line, i in reversed(list(zip(strip.lines, now, strict=True))):
                if i >= 0 and np.isfinite(line.values[i]):
                    sprite = dot(max(3, self.row_height // 18), line.colour, INK)
                    paste(panel, sprite, *centred(sprite, right - 1, top + strip.y(float(line.values[i]))))
            self._values(panel, top, strip, now)
        side = self.plane.side
        panel[self.pad // 2 : self.pad // 2 + side, self.width - side - self.pad // 2 : self.width - self.pad // 2] = (
            self.plane.drawn(t)
        )
        return panel

    def _values(self, panel: Picture, top: int, strip: Strip, now: Sequence[int]) -> None:
        size = self.value_px if len(strip.lines) == 1 else round(self.text_px * 1.15)
        y = top + self.pad // 2 + round(self.text_px * 1.35)
        for line, i in zip(strip.lines, now, strict=True):
            if y + size > top + self.row_height + self.pad:  # more persons than there is room for
                return
            known = i >= 0 and bool(np.isfinite(line.values[i]))
            text = f"{line.values[i]:+.2f}" if known else "n/a"  # the font has no typographic minus or dash
            paste(panel, words(text, size, line.colour), self.pad, y)
            y += round(size * 1.2)


def _scale(width: int, height: int, config: OverlayConfig) -> float:
    if width <= 0 or height <= 0:
        raise InputError(f"pictures have no size ({width}x{height})")
    scale = max(1.0, config.min_side_px / min(width, height))
    return min(scale, config.max_side_px / max(width, height))


def _even(n: float) -> int:
    return max(2, 2 * round(n / 2))


def _resized(image: Picture, size: tuple[int, int]) -> Picture:
    import av

    if (image.shape[1], image.shape[0]) == size:
        return image
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return np.asarray(frame.reformat(*size, format="rgb24").to_ndarray(), np.uint8)


def _rectangle(picture: Picture, corners: tuple[float, float, float, float], line: int, colour: Colour) -> None:
    """A rectangle's outline, `line` pixels inwards; what lies outside the picture is left out."""
    height, width = picture.shape[:2]
    x0, y0, x1, y1 = (round(v) for v in corners)

    def fill(top: int, bottom: int, left: int, right: int) -> None:
        picture[max(0, top) : max(0, min(bottom, height)), max(0, left) : max(0, min(right, width))] = colour

    fill(y0, y0 + line, x0, x1)
    fill(y1 - line, y1, x0, x1)
    fill(y0, y1, x0, x0 + line)
    fill(y0, y1, x1 - line, x1)
