"""Video sources: frames with presentation times from video files, image folders and single images.

`open_video` returns a `VideoSource`; its `frames()` decode in a background thread, a few frames ahead, in memory that
does not grow with the recording. Frames that cannot be decoded keep their place on the clock: `frames()` skips them,
so `index` may jump.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import InputError, MediaError
from affectrace.media.decode import Shown, VideoReader
from affectrace.media.images import ImageReader
from affectrace.media.probe import MediaInfo, probe
from affectrace.recording import is_images
from affectrace.timeline import Timeline

if TYPE_CHECKING:
    from affectrace.media.writer import VideoWriter

_AHEAD_BYTES = 48 << 20
_MOST_AHEAD = 16
_POLL_S = 0.05  # how often a full queue checks whether its consumer has stopped

T = TypeVar("T")


@dataclass(frozen=True)
class VideoFrame:
    """One picture. index: 0-based frame number on the source's timeline. image: (H, W, 3) uint8 RGB, upright."""

    index: int
    time_s: float
    image: NDArray[np.uint8]


class VideoSource:
    """Pictures on a clock; see `open_video`.

    width, height: upright pixels. time_base: seconds per tick of the source's own clock. nominal_rate: stated frames
    per second, None if unstated. n_frames_estimate: from the header, for progress only.
    """

    def __init__(self, path: Path, reader: VideoReader | ImageReader, fps: Fraction | None = None) -> None:
        self.path, self.fps = path, fps
        self.width, self.height = reader.width, reader.height
        self.time_base = reader.time_base
        self.nominal_rate, self.n_frames_estimate = reader.nominal_rate, reader.n_frames
        if fps is not None:
            seconds = reader.duration_s
            self.nominal_rate = fps
            self.n_frames_estimate = None if seconds is None else max(1, math.ceil(seconds * fps))
        self._reader = reader
        self._timeline: Timeline | None = None
        self._resampling: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know: turned, cut short, damaged, resampled. Complete after a full pass."""
        return (*self._reader.notes(), *self._resampling)

    @property
    def timeline(self) -> Timeline:
        """The clock of all frames: as the last full pass found it, else from the file's packets without decoding."""
        if self._timeline is not None:
            return self._timeline
        scanned = self._reader.scan()
        return scanned if self.fps is None else scanned.resampled(self.fps)

    def frames(self, sound: VideoWriter | None = None) -> Iterator[VideoFrame]:
        """Every frame that has a picture, in display order; each call starts from the beginning.

        sound: receives the file's sound while its pictures are read.
        """
        ahead = max(1, min(_MOST_AHEAD, _AHEAD_BYTES // max(1, self.width * self.height * 3)))
        return _in_background(self._pictures(sound), ahead, f"decode {self.path.name}")

    def _pictures(self, sound: VideoWriter | None) -> Iterator[VideoFrame]:
        reader, fps = self._reader, self.fps
        own: list[int] = []  # ticks of the source's own frames
        n_frames = n_decoded = 0
        last: Any = None
        image: NDArray[np.uint8] | None = None
        for time_s, payload in self._shown(reader.shown(sound), own):
            if payload is not last:  # resampling may show one frame several times
                image = None if payload is None else reader.picture(payload)
                last = payload
            if image is not None:
                yield VideoFrame(n_frames, time_s, image)
                n_decoded += 1
            n_frames += 1
        if not n_decoded:
            hint = "play the file to see whether it is damaged"
            raise MediaError("no frame can be decoded", where=self.path, hint=hint)
        clock = Timeline(np.array(own, np.int64), self.time_base, reader.end_tick, reader.nominal_rate)
        if fps is not None:
            self._resampling = [_resampling_note(clock, fps, n_frames)]
            clock = Timeline.regular(n_frames, fps, own[0] * self.time_base)
        self._timeline = clock

    def _shown(self, frames: Iterator[Shown], own: list[int]) -> Iterator[tuple[float, Any]]:
        """(seconds, payload) of every frame: the source's own, or the one shown at each step of a regular clock."""
        base, fps = self.time_base, self.fps
        n_steps, current = 0, None

        def steps_until(tick: int) -> Iterator[tuple[float, Any]]:
            nonlocal n_steps
            assert fps is not None
            first, n_steps = n_steps, math.ceil((tick - own[0]) * base * fps)
            for i in range(first, n_steps):
                yield float(own[0] * base + i / fps), current

        for tick, payload in frames:
            own.append(tick)
            if fps is None:
                yield tick * base.numerator / base.denominator, payload
            else:
                yield from steps_until(tick)
                current = payload
        if own and fps is not None:
            yield from steps_until(self._reader.end_tick)


def open_video(
    source: str | Path | MediaInfo,
    *,
    fps: Fraction | float | None = None,
    times: str | Path | Sequence[float] | None = None,
) -> VideoSource:
    """Open a video file, an image folder or a single image.

    Args:
        source: its path, or what `probe` found there.
        fps: frames per second to work at. For a video, the frame shown at each step of a regular clock is taken; for
            an image folder it is the images' own rate. None keeps every frame at its own time.
        times: for an image folder, the time of every image in seconds, or a file of them.
    """
    path = source.path if isinstance(source, MediaInfo) else Path(source)
    rate = None if fps is None else exact_rate(fps)
    if is_images(path):
        if path.is_dir() and rate is not None and times is not None:
            raise InputError("images have a rate or a file of times, not both", where=path, hint="leave out one")
        return VideoSource(path, ImageReader(path, rate, times))
    if times is not None:
        raise InputError("a video has its own times", where=path, hint="leave out the file of times")
    return VideoSource(path, VideoReader(probe(source)), rate)


def scan_timeline(source: str | Path | MediaInfo) -> Timeline:
    """The clock of a video's frames from its packets, without decoding; damaged frames are part of it."""
    return open_video(source).timeline


def exact_rate(fps: Fraction | float) -> Fraction:
    """29.97 means 30000/1001; other decimals mean what they say."""
    if not 0 < fps <= 1000:
        raise InputError(f"frames per second must lie between 0 and 1000, got {fps}")
    if isinstance(fps, Fraction | int):
        return Fraction(fps)
    broadcast = Fraction(round(fps) * 1000, 1001)
    return broadcast if broadcast and abs(float(broadcast) - fps) < 0.001 else Fraction(str(fps))


def _resampling_note(own: Timeline, fps: Fraction, n: int) -> str:
    steps = np.diff(own.ticks)
    varying = " (variable)" if steps.size and int(np.ptp(steps)) > max(1, 0.002 / own.time_base) else ""
    return (
        f"resampled from {own.mean_rate_hz:.5g}{varying} to {float(fps):.5g} fps: {len(own)} -> {n} frames, "
        "nearest earlier frame shown"
    )


def _in_background(items: Iterator[T], ahead: int, name: str) -> Iterator[T]:
    """The same items, made in a daemon thread up to `ahead` items early.

    An exception in the producer is raised here, after the items made before it. When the consumer stops early (break,
    exception, Ctrl-C, garbage collection) the producer is closed and its thread ends before this returns.
    """
    made: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(kind: str, value: Any = None) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                return made.put((kind, value), timeout=_POLL_S)

    def run() -> None:
        try:
            with contextlib.closing(items):  # type: ignore[type-var]
                for item in items:
                    put("item", item)
                    if stopped.is_set():
                        return
            put("end")
        except BaseException as error:  # crosses to the consumer's thread
            put("error", error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = made.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
            del value  # the consumer's reference is the last one
    finally:
        stopped.set()
        thread.join()
