"""Frames with their presentation times, from video files, image folders and single images.

`open_video` gives a `VideoSource`; its `frames()` decode in a thread of their own, a few frames ahead, in memory that
does not grow with the recording. Frames that cannot be decoded have a place on the clock and no picture: `frames()`
leaves them out, so `index` may jump, and `decoded` is False there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import InputError, MediaError
from affectrace.media.background import in_background
from affectrace.media.decode import AvReader
from affectrace.media.images import ImageReader
from affectrace.media.probe import MediaInfo, probe
from affectrace.media.reading import Reader, Shown, SoundSink
from affectrace.recording import is_images
from affectrace.timeline import Timeline

_AHEAD_BYTES = 48 << 20
_MOST_AHEAD = 16


@dataclass(frozen=True)
class VideoFrame:
    """One picture and when it is shown.

    index: 0-based place on the source's timeline. time_s: start in seconds. image: (H, W, 3) uint8 RGB, upright.
    """

    index: int
    time_s: float
    image: NDArray[np.uint8]


class VideoSource:
    """Pictures on a clock; see `open_video`.

    width, height: upright pixels. time_base: seconds a tick of the source's own clock. nominal_rate: frames a second as
    stated (None: not stated). n_frames_estimate, duration_s_estimate: from the header, for progress only.
    """

    def __init__(self, path: Path, reader: Reader, fps: Fraction | None) -> None:
        self.path = path
        self.fps = fps
        self.width, self.height = reader.width, reader.height
        self.nominal_rate = reader.nominal_rate if fps is None else fps
        self.duration_s_estimate = reader.duration_s_estimate
        self.time_base = reader.time_base
        self.n_frames_estimate = _resampled_count(reader, fps)
        self._reader = reader
        self._passed: tuple[Timeline, NDArray[np.bool_]] | None = None
        self._resampling: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know: turned, cut short, damaged, resampled. Complete after a full pass."""
        return (*self._reader.notes(), *self._resampling)

    @property
    def timeline(self) -> Timeline:
        """The clock of all frames: as the last full pass found it, else from the file's packets without decoding."""
        if self._passed is not None:
            return self._passed[0]
        scanned = self._reader.scan()
        return scanned if self.fps is None else scanned.resampled(self.fps)

    @property
    def decoded(self) -> NDArray[np.bool_]:
        """(T,) whether each frame has a picture, as the last full pass found it.

        Raises:
            InputError: no full pass was made.
        """
        if self._passed is None:
            raise InputError("frames were not decoded yet", where=self.path, hint="run through frames() first")
        return self._passed[1]

    def frames(self, sound: SoundSink | None = None) -> Iterator[VideoFrame]:
        """Every frame that has a picture, in order of presentation; each call starts from the beginning.

        sound: takes the file's sound while its pictures are read, as a `VideoWriter` does.

        Raises:
            MediaError: the file became unreadable, or no frame can be decoded.
        """
        size = self.width * self.height * 3
        ahead = max(1, min(_MOST_AHEAD, _AHEAD_BYTES // max(1, size)))
        return in_background(lambda: self._decode(sound), ahead, f"decode {self.path.name}")

    def _decode(self, sound: SoundSink | None) -> Iterator[VideoFrame]:
        log = _PassLog()
        source = log.count(self._reader.shown(sound))
        base = self._reader.time_base
        if self.fps is not None:
            first, source = _peek(source)
            start = Fraction(0) if first is None else first.tick * base
            base = Timeline.regular(0, self.fps, start).time_base
            source = _hold(source, self._reader, self.fps, base)
        ticks: list[int] = []
        decoded = bytearray()
        held: tuple[object, NDArray[np.uint8] | None] = (None, None)
        for shown in source:
            if shown.payload is None:
                image = None
            elif shown.payload is held[0]:
                image = held[1]
            else:
                image = self._reader.picture(shown.payload)
                held = (shown.payload, image) if self.fps is not None else held
            ticks.append(shown.tick)
            decoded.append(image is not None)
            if image is not None:
                yield VideoFrame(len(ticks) - 1, shown.tick * base.numerator / base.denominator, image)
        self._finish(np.array(ticks, np.int64), base, np.frombuffer(bytes(decoded), np.bool_), log)

    def _finish(self, ticks: NDArray[np.int64], base: Fraction, decoded: NDArray[np.bool_], log: _PassLog) -> None:
        if not decoded.any():
            raise MediaError(
                "no frame can be decoded", where=self.path, hint="play the file to see whether it is damaged"
            )
        if self.fps is None:
            end = self._reader.end_tick
        else:
            end = int(ticks[-1]) + round(1 / self.fps / base)
            self._resampling = (log.resampled(self.fps, len(ticks), self._reader.time_base, self._reader.end_tick),)
        self._passed = (Timeline(ticks, base, end, self.nominal_rate), decoded)


def open_video(
    source: str | Path | MediaInfo,
    *,
    fps: Fraction | float | None = None,
    times: str | Path | Sequence[float] | None = None,
    numbered: bool = False,
) -> VideoSource:
    """Open a video file, an image folder or a single image.

    Args:
        source: its path, or what `probe` found there.
        fps: frames a second to work at. Of a video, the frame shown at each step of a regular clock is taken; for
            image folders it is the images' own rate. None keeps every frame at its own time.
        times: for image folders, seconds of every image, or a file of them.
        numbered: for image folders, file names are 1-based frame numbers; absent ones are frames without a picture.

    Raises:
        MediaError: not there, not readable, or without pictures.
        InputError: options that do not fit the source.
    """
    path = source.path if isinstance(source, MediaInfo) else Path(source)
    rate = None if fps is None else _exact_rate(fps)
    if is_images(path):
        if path.is_dir() and rate is not None and times is not None:
            raise InputError("images take a rate or a file of times, not both", where=path)
        return VideoSource(path, ImageReader(path, rate, times, numbered), None)
    if times is not None or numbered:
        raise InputError("a video has its own times", where=path, hint="leave out the file of times")
    return VideoSource(path, AvReader(probe(source)), rate)


def scan_timeline(source: str | Path | MediaInfo) -> Timeline:
    """The clock of a video's frames from its packets, without decoding (fast; damaged frames are part of it).

    Raises:
        MediaError: not there, not readable, or without pictures.
    """
    return open_video(source).timeline


def _exact_rate(fps: Fraction | float) -> Fraction:
    """29.97 means 30000/1001; other decimals mean what they say."""
    if not math.isfinite(fps) or not 0 < fps <= 1000:
        raise InputError(f"frames a second must lie between 0 and 1000, got {fps}")
    if isinstance(fps, Fraction | int):
        return Fraction(fps)
    broadcast = Fraction(round(fps) * 1000, 1001)
    if round(fps) and abs(float(broadcast) - fps) < 0.001:
        return broadcast
    return Fraction(str(fps))


def _resampled_count(reader: Reader, fps: Fraction | None) -> int | None:
    if fps is None:
        return reader.n_frames_estimate
    return None if reader.duration_s_estimate is None else max(1, math.ceil(reader.duration_s_estimate * fps))


class _PassLog:
    """What one pass over the source's own frames saw: for the note on resampling."""

    def __init__(self) -> None:
        self.n = 0
        self.first = self.last = 0
        self.steps: tuple[int, int] | None = None

    def count(self, source: Iterator[Shown]) -> Iterator[Shown]:
        """The same frames, counted."""
        for shown in source:
            if self.n:
                step = shown.tick - self.last
                low, high = self.steps or (step, step)
                self.steps = (min(low, step), max(high, step))
            else:
                self.first = shown.tick
            self.n += 1
            self.last = shown.tick
            yield shown

    def resampled(self, fps: Fraction, n: int, base: Fraction, end: int) -> str:
        """The note."""
        mean = self.n / float((end - self.first) * base)
        low, high = self.steps or (0, 0)
        varying = " (variable)" if high - low > max(1, 0.002 / base) else ""
        return (
            f"resampled from {mean:.5g}{varying} to {float(fps):.5g} fps: {self.n} -> {n} frames, "
            "nearest earlier frame shown"
        )


def _peek(source: Iterator[Shown]) -> tuple[Shown | None, Iterator[Shown]]:
    first = next(source, None)

    def again() -> Iterator[Shown]:
        if first is not None:
            yield first
            yield from source

    return first, again()


def _hold(source: Iterator[Shown], reader: Reader, fps: Fraction, base: Fraction) -> Iterator[Shown]:
    """The frame shown at each step of a regular clock from the first frame's start, in ticks of `base`."""
    step = round(1 / fps / base)
    current = next(source, None)
    if current is None:
        return
    start, done = current.tick, 0
    first_tick = int(start * reader.time_base / base)

    def until(tick: int) -> range:
        """Steps not given yet that come before `tick` of the reader's clock."""
        return range(done, math.ceil((tick - start) * reader.time_base * fps))

    for following in source:
        for i in until(following.tick):
            yield Shown(first_tick + i * step, current.payload)
            done = i + 1
        current = following
    for i in until(reader.end_tick):
        yield Shown(first_tick + i * step, current.payload)
