"""What an overlay draws, prepared once and pasted per frame: text, dots, line strips and the circumplex.

Everything is drawn at `FINE` times its size and scaled down, which is how PIL's hard edges become smooth. Strips are
drawn in tiles on first use, so that a frame costs a few copies and an hour needs no more memory than a minute.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from affectrace.trace import Trace

Picture = NDArray[np.uint8]
Sprite = tuple[Picture, NDArray[np.float32]]  # (h, w, 3) and its (h, w, 1) opacity
Colour = tuple[int, int, int]

FINE = 3
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
TILE_PX = 512
KEPT_TILES = 6


@lru_cache(maxsize=16)
def font(size_px: int) -> Any:
    """The font PIL ships, at a size in pixels."""
    return ImageFont.load_default(size_px)


@lru_cache(maxsize=2048)
def words(text: str, size_px: int, colour: Colour, ground: Colour | None = None) -> Sprite:
    """Text as a (h, w, 3) picture and its (h, w, 1) opacity; with `ground` on a box of that colour."""
    left, top, right, bottom = font(size_px).getbbox(text)
    pad = 0 if ground is None else max(3, size_px // 3)
    size = (max(1, int(np.ceil(right - left))) + 2 * pad, max(1, int(np.ceil(bottom - top))) + 2 * pad)
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).text((pad - left, pad - top), text, 255, font(size_px))
    opacity: NDArray[np.float32] = (np.asarray(mask, dtype=np.float32)[..., None] / 255).astype(np.float32)
    if ground is None:
        return np.full((*opacity.shape[:2], 3), colour, np.uint8), opacity
    mixed = np.array(ground, np.float32) * (1 - opacity) + np.array(colour, np.float32) * opacity
    return np.rint(mixed).astype(np.uint8), np.full(opacity.shape, 0.82, np.float32)


@lru_cache(maxsize=64)
def dot(radius_px: int, colour: Colour, edge: Colour) -> Sprite:
    """A filled circle with an edge, as picture and opacity."""
    side = 2 * radius_px + 3
    big = Image.new("RGBA", (side * FINE, side * FINE), (*edge, 0))
    draw = ImageDraw.Draw(big)
    for r, fill in ((radius_px + 1, edge), (radius_px - 0.5, colour)):
        a, b = (side / 2 - r) * FINE, (side / 2 + r) * FINE
        draw.ellipse((a, a, b, b), fill=(*fill, 255))
    small = np.asarray(big.resize((side, side), Image.Resampling.LANCZOS))
    return small[..., :3].copy(), (small[..., 3:] / 255).astype(np.float32)


def paste(onto: Picture, sprite: Sprite, x: int, y: int) -> None:
    """Blend a sprite in place, its upper left corner at (x, y); what lies outside is left out."""
    picture, opacity = sprite
    top, left = max(0, -y), max(0, -x)
    bottom, right = min(picture.shape[0], onto.shape[0] - y), min(picture.shape[1], onto.shape[1] - x)
    if top >= bottom or left >= right:
        return
    part = onto[y + top : y + bottom, x + left : x + right]
    alpha = opacity[top:bottom, left:right]
    part[:] = np.rint(part * (1 - alpha) + picture[top:bottom, left:right] * alpha)


def centred(sprite: Sprite, x: float, y: float) -> tuple[int, int]:
    """Where a sprite's corner goes so that its middle is at (x, y)."""
    return round(x - sprite[0].shape[1] / 2), round(y - sprite[0].shape[0] / 2)


@dataclass(frozen=True)
class Line:
    """One line of a strip: its trace, which dimension, its colour."""

    trace: Trace
    dimension: str
    colour: Colour

    @property
    def values(self) -> NDArray[np.float64]:
        """(T,) values."""
        return np.asarray(getattr(self.trace, self.dimension))


class Strip:
    """The lines of one dimension over the whole recording, drawn tile by tile; `window` cuts out what is shown.

    height: pixels for -1 to 1, margins included. px_per_s: scale. start_s: time of pixel 0.
    """

    def __init__(self, lines: Sequence[Line], height: int, px_per_s: float, start_s: float) -> None:
        self.lines, self.height, self.px_per_s, self.start_s = tuple(lines), height, px_per_s, start_s
        self.pad = max(3, height // 12)
        self._tiles: OrderedDict[int, Picture] = OrderedDict()

    def y(self, value: float) -> float:
        """Row of a value in [-1, 1]."""
        return self.pad + (1 - value) / 2 * (self.height - 2 * self.pad)

    def window(self, until_s: float, width: int) -> Picture:
        """(height, width, 3): the `width` pixels that end at `until_s`."""
        last = round((until_s - self.start_s) * self.px_per_s)
        out = np.empty((self.height, width, 3), np.uint8)
        at = last - width
        while at < last:
            k, offset = divmod(at, TILE_PX)
            n = min(TILE_PX - offset, last - at)
            place = at - (last - width)
            out[:, place : place + n] = self._tile(k)[:, offset : offset + n]
            at += n
        return out

    def _tile(self, k: int) -> Picture:
        if k not in self._tiles:
            self._tiles[k] = self._drawn(k * TILE_PX)
            while len(self._tiles) > KEPT_TILES:
                self._tiles.popitem(last=False)
        return self._tiles[k]

    def _drawn(self, first_px: int) -> Picture:
        margin = 8  # a line that leaves the tile is drawn a little beyond its edge
        width = TILE_PX + 2 * margin
        big = Image.new("RGB", (width * FINE, self.height * FINE), GROUND)
        draw = ImageDraw.Draw(big)
        from_s = self.start_s + (first_px - margin) / self.px_per_s
        to_s = from_s + width / self.px_per_s

        def x(t: float) -> float:
            return (t - from_s) * self.px_per_s * FINE

        if len(self.lines) == 1:
            self._gaps(draw, x, from_s, to_s)
        for value in (-1, -0.5, 0, 0.5, 1):
            row = self.y(value) * FINE
            draw.line((0, row, width * FINE, row), ZERO if value == 0 else GRID, FINE if value == 0 else FINE - 1)
        for second in range(int(np.ceil(from_s)), int(to_s) + 1):
            draw.line((x(second), self.y(0) * FINE - 2 * FINE, x(second), self.y(0) * FINE + 2 * FINE), ZERO, FINE)
        for line in self.lines[::-1]:  # the first one on top
            self._line(draw, x, line, from_s, to_s)
        small = big.resize((width, self.height), Image.Resampling.BOX)
        return np.asarray(small)[:, margin:-margin].copy()

    def _gaps(self, draw: ImageDraw.ImageDraw, x: Any, from_s: float, to_s: float) -> None:
        trace = self.lines[0].trace
        frames = _around(trace, from_s, to_s)
        for i in np.flatnonzero(~trace.known[frames]) + frames.start:
            a, b = x(trace.timeline.times[i]), x(trace.timeline.ends[i])
            draw.rectangle((a, 0, b, self.height * FINE), HATCH)

    def _line(self, draw: ImageDraw.ImageDraw, x: Any, line: Line, from_s: float, to_s: float) -> None:
        trace, values = line.trace, line.values
        frames = _around(trace, from_s, to_s)
        piece: list[tuple[float, float]] = []
        width = round(2.2 * FINE * max(1.0, self.height / 90))
        for i in range(frames.start, frames.stop + 1):
            if i < frames.stop and np.isfinite(values[i]):
                piece.append((x(trace.timeline.times[i]), self.y(values[i]) * FINE))
                continue
            if piece:  # the last frame of a piece is shown until its end
                piece.append((x(trace.timeline.ends[i - 1]), piece[-1][1]))
                draw.line(piece, line.colour, width, joint="curve")
                piece = []


def _around(trace: Trace, from_s: float, to_s: float) -> slice:
    """Frames shown between two times, and one more on either side."""
    inside = trace.timeline.frames_between(from_s, to_s)
    return slice(max(0, inside.start - 2), min(len(trace), inside.stop + 1))


class Plane:
    """The circumplex with a dot and a short tail for each trace."""

    def __init__(self, traces: Sequence[Trace], colours: Sequence[Colour], side: int, tail_s: float) -> None:
        self.traces, self.colours, self.side, self.tail_s = tuple(traces), tuple(colours), side, tail_s
        self.text_px = max(9, round(side * 0.075))
        self.pad = round(self.text_px * 1.5)
        self._fine = self._ground()

    def _ground(self) -> Image.Image:
        n = self.side * FINE
        big = Image.new("RGB", (n, n), GROUND)
        draw = ImageDraw.Draw(big)
        a, b, m = self.pad * FINE, n - self.pad * FINE, n / 2
        draw.rectangle((a, a, b, b), outline=GRID, width=FINE)
        draw.ellipse((a, a, b, b), outline=ZERO, width=FINE)
        draw.line((a, m, b, m), ZERO, FINE)
        draw.line((m, a, m, b), ZERO, FINE)
        big_font = font(self.text_px * FINE)
        draw.text((m, a / 2), "arousal", SOFT, big_font, anchor="mm")
        turned = Image.new("L", (n, self.pad * FINE))
        ImageDraw.Draw(turned).text((m, self.pad * FINE / 2), "valence", 255, big_font, anchor="mm")
        turned = turned.rotate(-90, expand=True)
        big.paste(Image.new("RGB", turned.size, SOFT), (n - self.pad * FINE, 0), turned)
        return big

    def _at(self, valence: float, arousal: float) -> tuple[float, float]:
        inner = self.side - 2 * self.pad
        return self.pad + (valence + 1) / 2 * inner, self.pad + (1 - arousal) / 2 * inner

    def drawn(self, t: float) -> Picture:
        """(side, side, 3) at time t."""
        big = self._fine.copy()
        draw = ImageDraw.Draw(big)
        dots = []
        for trace, colour in zip(self.traces, self.colours, strict=True):
            now = int(trace.timeline.frames_at([t])[0])
            self._tail(draw, trace, colour, t)
            if now >= 0 and trace.valid[now].all():
                dots.append((self._at(float(trace.valence[now]), float(trace.arousal[now])), colour))
        small = np.asarray(big.reduce(FINE)).copy()
        for place, colour in dots[::-1]:
            sprite = dot(max(3, self.side // 28), colour, INK)
            paste(small, sprite, *centred(sprite, *place))
        return small

    def _tail(self, draw: ImageDraw.ImageDraw, trace: Trace, colour: Colour, t: float) -> None:
        frames = trace.timeline.frames_between(t - self.tail_s, np.nextafter(t, np.inf))
        last: tuple[float, float] | None = None
        for i in range(frames.start, frames.stop, max(1, (frames.stop - frames.start) // 90)):
            if not trace.valid[i].all():
                last = None
                continue
            x, y = self._at(float(trace.valence[i]), float(trace.arousal[i]))
            here = (x * FINE, y * FINE)
            if last is not None:
                young = 1 - min(1.0, (t - float(trace.timeline.times[i])) / self.tail_s)
                mixed = tuple(round(g + (c - g) * young) for g, c in zip(GROUND, colour, strict=True))
                draw.line((*last, *here), mixed, round(FINE * (0.8 + 1.6 * young)))
            last = here
