"""Overlay drawing: face boxes, trace lines, circumplex, reasons for missing values.

Lines are drawn in tiles on first use, so that a frame costs a few copies and an hour needs no more memory than a
minute. Lines and dots are drawn at FINE times their size and reduced, because Pillow draws hard edges.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from affectrace.config import checked
from affectrace.errors import InputError, MediaError
from affectrace.media.probe import probe
from affectrace.media.video import VideoFrame, open_video
from affectrace.media.writer import VideoWriter
from affectrace.overlay.config import OverlayConfig
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.trace import Trace

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

OUTSIDE = "outside the trace"
COMMENT = "overlay made by affectrace"  # written into the file, so that `is_our_overlay` recognizes it

FINE = 3
TILE_PX = 512
GROUND: Colour = (18, 21, 26)
GRID: Colour = (50, 57, 67)
ZERO: Colour = (84, 92, 104)
SOFT: Colour = (163, 171, 182)
INK: Colour = (236, 238, 241)
HATCH: Colour = (38, 43, 50)
# light tints of Okabe and Ito's colour-blind safe colours, for a dark ground
VALENCE: Colour = (88, 176, 245)
AROUSAL: Colour = (255, 145, 82)
PERSONS: tuple[Colour, ...] = ((88, 176, 245), (240, 180, 60), (62, 203, 152), (226, 143, 196), (240, 228, 66))


def write_overlay(
    traces: Trace | Sequence[Trace],
    video: str | Path,
    out: str | Path,
    *,
    config: OverlayConfig | None = None,
    progress: Progress = silent,
) -> Path:
    """Write `video` with its traces drawn: lines of the last seconds, circumplex, values, face boxes, missing values.

    traces: of one recording, one for each person. video: an image folder is shown at the trace's times.
    out: an .mp4, written whole or not at all. Every frame keeps its own time; sound is copied, or encoded as AAC.
    """
    given = [traces] if isinstance(traces, Trace) else list(traces)
    video, out, config = Path(video), Path(out), checked(config or OverlayConfig())
    ids = sorted({t.recording_id for t in given})
    if len(ids) != 1:
        raise InputError(f"traces of one recording expected, got {', '.join(ids) or 'none'}", hint="one overlay each")
    if out.resolve() == video.resolve():
        raise InputError("the overlay would replace its own recording", where=out, hint="name another file with --out")
    media = probe(video)
    if media.video is None:
        raise MediaError("has no pictures to draw on", where=video, hint="use `affectrace report` for sound alone")
    source = open_video(media, times=given[0].timeline.times.tolist() if video.is_dir() else None)
    base = source.time_base  # the recording's own ticks keep times exact
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
    """Whether `write_overlay` made a file."""
    try:
        return probe(path).comment == COMMENT
    except MediaError:
        return False


class Drawing:
    """Frames with everything drawn on them; `width`, `height` in pixels."""

    def __init__(self, traces: Sequence[Trace], width: int, height: int, config: OverlayConfig) -> None:
        self.traces, self.config, several = tuple(traces), config, len(traces) > 1
        self.scale = max(1.0, config.min_side_px / min(width, height))
        self.scale = min(self.scale, config.max_side_px / max(width, height))
        self.width, picture_height = (_even(n * self.scale) for n in (width, height))
        self.picture_size = (self.width, picture_height)
        self.panel_height = _even(min(picture_height, max(120, config.panel_share * min(picture_height, self.width))))
        self.height = picture_height + (self.panel_height if config.panel == "below" else 0)
        self.colours = tuple(PERSONS[i % len(PERSONS)] for i in range(len(traces))) if several else (INK,)
        self.text_px = max(11, round(self.panel_height * 0.085))
        self.pad = round(self.text_px * 0.7)
        self.gutter = round(self.text_px * 6.2)
        self.plane = Plane(self.traces, self.colours, self.panel_height - self.pad, config.tail_s)
        self.strip_width = max(40, self.width - self.gutter - self.plane.side - 2 * self.pad)
        self.row_height = (self.panel_height - 3 * self.pad) // 2
        self.row_tops = (self.pad, 2 * self.pad + self.row_height)
        self._ground = np.full((self.panel_height, self.width, 3), GROUND, np.uint8)
        start_s = min(t.timeline.start_s for t in traces)
        self.strips = []
        for top, name, colour in zip(self.row_tops, ("valence", "arousal"), (VALENCE, AROUSAL), strict=True):
            _paste(self._ground, _label(name, self.text_px, SOFT, pad=0), self.pad, top + self.pad // 2)
            colours = self.colours if several else (colour,)
            lines = [Line(t, getattr(t, name), c) for t, c in zip(traces, colours, strict=True)]
            self.strips.append(Strip(lines, self.row_height, self.strip_width / config.history_s, start_s))

    def frame(self, frame: VideoFrame) -> Picture:
        """(height, width, 3): one frame with its boxes and panel."""
        canvas = np.empty((self.height, self.width, 3), np.uint8)
        picture = canvas[: self.picture_size[1]]
        picture[:] = _resized(frame.image, self.picture_size)
        now = [int(trace.timeline.frames_at([frame.time_s])[0]) for trace in self.traces]
        for trace, i, colour in zip(self.traces, now, self.colours, strict=True):
            self._draw_box(picture, trace, i, colour)
        y, note_px = self.pad, max(self.text_px, round(len(picture) * 0.042))
        for note in self.notes(now):
            y += 2 + _paste(picture, _label(note, note_px, INK, pad=note_px // 3), self.pad, y)
        panel = self._panel(frame.time_s, now)
        part, opacity = canvas[-self.panel_height :], self.config.panel_opacity
        part[:] = panel if self.config.panel == "below" else np.rint(part * (1 - opacity) + panel * opacity)
        return canvas

    def notes(self, now: Sequence[int]) -> list[str]:
        """Why values are missing at the traces' frames `now` (-1: outside): once if for all alike, else by person."""
        reasons = [OUTSIDE if i < 0 else str(trace.reason[i]) for trace, i in zip(self.traces, now, strict=True)]
        if len(set(reasons)) == 1:
            return reasons[:1] if reasons[0] else []
        return [f"person {t.person}: {reason}" for t, reason in zip(self.traces, reasons, strict=True) if reason]

    def _draw_box(self, picture: Picture, trace: Trace, i: int, colour: Colour) -> None:
        names = ("face_x", "face_y", "face_w", "face_h")
        if i < 0 or not all(n in trace.extras for n in names):
            return
        x, y, w, h = (float(trace.extras[n][i]) * self.scale for n in names)
        if not math.isfinite(x + y + w + h):
            return
        line = max(2, round(len(picture) / 240))
        _rectangle(picture, (x - 1, y - 1, x + w + 1, y + h + 1), line + 2, (0, 0, 0))
        _rectangle(picture, (x, y, x + w, y + h), line, colour)
        if len(self.traces) > 1:
            label = _label(f"person {trace.person}", self.text_px, colour, pad=self.text_px // 3)
            _paste(picture, label, round(x), round(y) - len(label) - 2)

    def _panel(self, t: float, now: Sequence[int]) -> Picture:
        panel = self._ground.copy()
        size = round(self.text_px * (1.15 if len(self.traces) > 1 else 1.75))
        end = self.gutter + self.strip_width
        for top, strip in zip(self.row_tops, self.strips, strict=True):
            panel[top : top + self.row_height, self.gutter : end] = strip.window(t, self.strip_width)
            values = [float(line.values[i]) if i >= 0 else math.nan for line, i in zip(strip.lines, now, strict=True)]
            shown = [*zip(values, strip.lines, strict=True)]
            for value, line in reversed(shown):
                if math.isfinite(value):
                    _paste_dot(panel, end - 1, top + strip.y(value), max(3, self.row_height // 18), line.colour)
            y = top + self.pad // 2 + round(self.text_px * 1.35)
            for value, line in shown:
                if y + size > top + self.row_height + self.pad:  # more persons than fit
                    break
                text = f"{value:+.2f}" if math.isfinite(value) else "n/a"  # the font has no typographic minus or dash
                _paste(panel, _label(text, size, line.colour, pad=0), self.pad, y)
                y += round(size * 1.2)
        side, half = self.plane.side, self.pad // 2
        panel[half : half + side, self.width - side - half : self.width - half] = self.plane.draw(t)
        return panel


class Line(NamedTuple):
    """One line of a strip: its trace, (T,) values (NaN if missing), its colour."""

    trace: Trace
    values: NDArray[np.float64]
    colour: Colour


class Strip:
    """The lines of one dimension over the whole recording, drawn tile by tile.

    height: pixels for -1 to 1, margins included. px_per_s: scale. start_s: time of pixel 0.
    """

    def __init__(self, lines: Sequence[Line], height: int, px_per_s: float, start_s: float) -> None:
        self.lines, self.height, self.px_per_s, self.start_s = tuple(lines), height, px_per_s, start_s
        self.pad = max(3, height // 12)
        self.tile = lru_cache(maxsize=6)(self._draw_tile)

    def y(self, value: float) -> float:
        """Row of a value in [-1, 1]."""
        return self.pad + (1 - value) / 2 * (self.height - 2 * self.pad)

    def window(self, until_s: float, width: int) -> Picture:
        """(height, width, 3): the `width` pixels that end at `until_s`."""
        left = round((until_s - self.start_s) * self.px_per_s) - width
        first, end = left // TILE_PX, (left + width - 1) // TILE_PX + 1
        tiles = np.concatenate([self.tile(k) for k in range(first, end)], axis=1)
        return tiles[:, left - first * TILE_PX :][:, :width]

    def _draw_tile(self, k: int) -> Picture:
        margin = 8  # lines that leave the tile are drawn a little beyond its edge
        width = TILE_PX + 2 * margin
        big = Image.new("RGB", (width * FINE, self.height * FINE), GROUND)
        draw = ImageDraw.Draw(big)
        from_s = self.start_s + (k * TILE_PX - margin) / self.px_per_s
        to_s = from_s + width / self.px_per_s

        def x(t: float) -> float:
            return (t - from_s) * self.px_per_s * FINE

        if len(self.lines) == 1:
            trace = self.lines[0].trace
            frames = _frames_around(trace, from_s, to_s)
            for i in np.flatnonzero(~trace.known[frames]) + frames.start:
                draw.rectangle((x(trace.timeline.times[i]), 0, x(trace.timeline.ends[i]), self.height * FINE), HATCH)
        for value in (-1, -0.5, 0, 0.5, 1):
            row = self.y(value) * FINE
            draw.line((0, row, width * FINE, row), ZERO if value == 0 else GRID, FINE if value == 0 else FINE - 1)
        zero = self.y(0) * FINE
        for second in range(math.ceil(from_s), int(to_s) + 1):
            draw.line((x(second), zero - 2 * FINE, x(second), zero + 2 * FINE), ZERO, FINE)
        line_width = round(2.2 * FINE * max(1.0, self.height / 90))
        for line in self.lines[::-1]:  # the first one on top
            clock = line.trace.timeline
            for piece in _known_pieces(line.values, _frames_around(line.trace, from_s, to_s)):
                points = [(x(clock.times[i]), self.y(line.values[i]) * FINE) for i in piece]
                points.append((x(clock.ends[piece[-1]]), points[-1][1]))  # the last frame is shown until its end
                draw.line(points, line.colour, line_width, joint="curve")
        return np.asarray(big.reduce(FINE))[:, margin:-margin].copy()


def _frames_around(trace: Trace, from_s: float, to_s: float) -> slice:
    """Frames shown between two times, and one more on either side."""
    inside = trace.timeline.frames_between(from_s, to_s)
    return slice(max(0, inside.start - 2), min(len(trace), inside.stop + 1))


def _known_pieces(values: NDArray[np.float64], frames: slice) -> Iterator[NDArray[np.int64]]:
    """Runs of frames with finite values."""
    known = np.flatnonzero(np.isfinite(values[frames])) + frames.start
    return (piece for piece in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1) if piece.size)


class Plane:
    """The circumplex with a dot and a short tail for each trace, `side` pixels square."""

    def __init__(self, traces: Sequence[Trace], colours: Sequence[Colour], side: int, tail_s: float) -> None:
        self.traces, self.colours, self.side, self.tail_s = tuple(traces), tuple(colours), side, tail_s
        text_px = max(9, round(side * 0.075))
        self.pad = round(text_px * 1.5)
        n, font = side * FINE, _font(text_px * FINE)
        self._ground = Image.new("RGB", (n, n), GROUND)
        draw = ImageDraw.Draw(self._ground)
        a, b, m = self.pad * FINE, n - self.pad * FINE, n / 2
        draw.rectangle((a, a, b, b), outline=GRID, width=FINE)
        draw.ellipse((a, a, b, b), outline=ZERO, width=FINE)
        draw.line((a, m, b, m), ZERO, FINE)
        draw.line((m, a, m, b), ZERO, FINE)
        draw.text((m, a / 2), "arousal", SOFT, font, anchor="mm")
        across = Image.new("RGB", (n, a), GROUND)
        ImageDraw.Draw(across).text((m, a / 2), "valence", SOFT, font, anchor="mm")
        self._ground.paste(across.rotate(-90, expand=True), (b, 0))

    def at(self, valence: float, arousal: float) -> tuple[float, float]:
        """x, y in pixels."""
        inner = self.side - 2 * self.pad
        return self.pad + (valence + 1) / 2 * inner, self.pad + (1 - arousal) / 2 * inner

    def draw(self, t: float) -> Picture:
        """(side, side, 3) at time t."""
        big = self._ground.copy()
        draw = ImageDraw.Draw(big)
        for trace, colour in zip(self.traces, self.colours, strict=True):
            self._draw_tail(draw, trace, colour, t)
        small = np.array(big.reduce(FINE))
        for trace, colour in reversed([*zip(self.traces, self.colours, strict=True)]):
            now = int(trace.timeline.frames_at([t])[0])
            if now >= 0 and trace.valid[now].all():
                x, y = self.at(float(trace.valence[now]), float(trace.arousal[now]))
                _paste_dot(small, x, y, max(3, self.side // 28), colour)
        return small

    def _draw_tail(self, draw: ImageDraw.ImageDraw, trace: Trace, colour: Colour, t: float) -> None:
        frames = trace.timeline.frames_between(t - self.tail_s, np.nextafter(t, np.inf))
        last: tuple[float, float] | None = None
        for i in range(frames.start, frames.stop, max(1, (frames.stop - frames.start) // 90)):
            if not trace.valid[i].all():
                last = None
                continue
            x, y = self.at(float(trace.valence[i]), float(trace.arousal[i]))
            here = (x * FINE, y * FINE)
            if last is not None:
                young = 1 - min(1.0, (t - float(trace.timeline.times[i])) / self.tail_s)
                mixed = tuple(round(g + (c - g) * young) for g, c in zip(GROUND, colour, strict=True))
                draw.line((*last, *here), mixed, round(FINE * (0.8 + 1.6 * young)))
            last = here


@lru_cache(maxsize=16)
def _font(size_px: int) -> Any:
    """Pillow's own font, at a size in pixels."""
    return ImageFont.load_default(size_px)


@lru_cache(maxsize=1024)
def _label(text: str, size_px: int, colour: Colour, pad: int) -> Picture:
    """Text on a box of the ground's colour."""
    right, bottom = _font(size_px).getbbox(text, anchor="lt")[2:]
    box = Image.new("RGB", (math.ceil(right) + 2 * pad, math.ceil(bottom) + 2 * pad), GROUND)
    ImageDraw.Draw(box).text((pad, pad), text, colour, _font(size_px), anchor="lt")
    return np.asarray(box)


def _paste(onto: Picture, label: Picture, x: int, y: int) -> int:
    """Copy a label in place, its upper left corner at (x, y) or at the nearest edge; returns its height."""
    part = onto[max(0, y) :, max(0, x) :][: len(label), : label.shape[1]]
    part[:] = label[: part.shape[0], : part.shape[1]]
    return len(label)


def _rectangle(picture: Picture, corners: tuple[float, float, float, float], line: int, colour: Colour) -> None:
    """A rectangle's outline, `line` pixels inwards, clipped to the picture."""
    x0, y0, x1, y1 = (round(v) for v in corners)
    edges = ((y0, y0 + line, x0, x1), (y1 - line, y1, x0, x1), (y0, y1, x0, x0 + line), (y0, y1, x1 - line, x1))
    for top, bottom, left, right in edges:
        picture[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = colour


@lru_cache(maxsize=64)
def _dot(radius_px: int, colour: Colour) -> NDArray[np.float32]:
    """(side, side, 4) RGBA: a filled circle with a light edge."""
    side = (2 * radius_px + 3) * FINE
    big = Image.new("RGBA", (side, side), (*INK, 0))
    draw = ImageDraw.Draw(big)
    for r, fill in (((radius_px + 1) * FINE, INK), ((radius_px - 0.5) * FINE, colour)):
        draw.ellipse((side / 2 - r, side / 2 - r, side / 2 + r, side / 2 + r), (*fill, 255))
    return np.asarray(big.reduce(FINE), np.float32)


def _paste_dot(onto: Picture, x: float, y: float, radius_px: int, colour: Colour) -> None:
    dot = _dot(radius_px, colour)
    top, left = max(0, round(y - len(dot) / 2)), max(0, round(x - len(dot) / 2))
    part = onto[top : top + len(dot), left : left + len(dot)]
    dot = dot[: part.shape[0], : part.shape[1]]
    part[:] = np.rint(part + (dot[..., :3] - part) * dot[..., 3:] / 255)


def _even(n: float) -> int:
    return max(2, 2 * round(n / 2))


def _resized(image: Picture, size: tuple[int, int]) -> Picture:
    if (image.shape[1], image.shape[0]) == size:
        return image
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    return np.asarray(frame.reformat(*size, format="rgb24").to_ndarray(), np.uint8)
