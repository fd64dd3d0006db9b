"""Frames with their presentation times, from video files, image folders and single images.

`open_video` gives a `VideoSource`; its `frames()` decode in a thread of their own, a few frames ahead, in memory that
does not grow with the recording. Frames that cannot be decoded have a place on the clock and no picture: `frames()`
leaves them out, so `index` may jump, and `decoded` is False there.
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
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import InputError, MediaError
from affectrace.media.decode import AvReader, Shown, SoundSink
from affectrace.media.images import ImageReader
from affectrace.media.probe import MediaInfo, probe
from affectrace.recording import is_images
from affectrace.timeline import Timeline

_AHEAD_BYTES = 48 << 20
_MOST_AHEAD = 16
_LOOK_S = 0.05  # how often a full queue is looked at for a consumer that has gone

T = TypeVar("T")


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

    def __init__(self, path: Path, reader: AvReader | ImageReader, fps: Fraction | None) -> None:
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
        """(T,) whether each frame has a picture, as the last full pass found it."""
        if self._passed is None:
            raise InputError("frames were not decoded yet", where=self.path, hint="run through frames() first")
        return self._passed[1]

    def frames(self, sound: SoundSink | None = None) -> Iterator[VideoFrame]:
        """Every frame that has a picture, in order of presentation; each call starts from the beginning.

        sound: takes the file's sound while its pictures are read, as a `VideoWriter` does.
        """
        size = self.width * self.height * 3
        ahead = max(1, min(_MOST_AHEAD, _AHEAD_BYTES // max(1, size)))
        return _in_background(self._pictures(sound), ahead, f"decode {self.path.name}")

    def _pictures(self, sound: SoundSink | None) -> Iterator[VideoFrame]:
        reader, base = self._reader, self._reader.time_base
        own: list[int] = []  # ticks of the source's own frames
        decoded = bytearray()
        held: tuple[Any, NDArray[np.uint8] | None] = (None, None)
        for time_s, payload in self._shown(reader.shown(sound), own):
            if payload is None or payload is not held[0]:
                held = (payload, None if payload is None else reader.picture(payload))
            decoded.append(held[1] is not None)
            if held[1] is not None:
                yield VideoFrame(len(decoded) - 1, time_s, held[1])
        if not any(decoded):
            hint = "play the file to see whether it is damaged"
            raise MediaError("no frame can be decoded", where=self.path, hint=hint)
        clock = Timeline(np.array(own, np.int64), base, reader.end_tick, self.nominal_rate)
        if self.fps is not None:
            self._resampling = (_resampled_note(clock, self.fps, len(decoded)),)
            clock = Timeline.regular(len(decoded), self.fps, own[0] * base)
        self._passed = (clock, np.frombuffer(bytes(decoded), np.bool_))

    def _shown(self, source: Iterator[Shown], own: list[int]) -> Iterator[tuple[float, Any]]:
        """Seconds and payload of every frame: the source's own, or what it shows at each step of a regular clock."""
        base, fps = self._reader.time_base, self.fps
        if fps is None:
            for tick, payload in source:
                own.append(tick)
                yield tick * base.numerator / base.denominator, payload
            return
        done, current = 0, None

        def steps(until: int) -> Iterator[tuple[float, Any]]:
            """Those not given yet that come before `until` of the source's clock."""
            nonlocal done
            for i in range(done, math.ceil((until - own[0]) * base * fps)):
                done = i + 1
                yield float(own[0] * base + i / fps), current

        for tick, payload in source:
            if own:
                yield from steps(tick)
            own.append(tick)
            current = payload
        if own:
            yield from steps(self._reader.end_tick)


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


def _resampled_count(reader: AvReader | ImageReader, fps: Fraction | None) -> int | None:
    if fps is None:
        return reader.n_frames_estimate
    return None if reader.duration_s_estimate is None else max(1, math.ceil(reader.duration_s_estimate * fps))


def _resampled_note(own: Timeline, fps: Fraction, n: int) -> str:
    steps = np.diff(own.ticks)
    varying = " (variable)" if steps.size and int(np.ptp(steps)) > max(1, 0.002 / own.time_base) else ""
    return (
        f"resampled from {own.mean_rate_hz:.5g}{varying} to {float(fps):.5g} fps: {len(own)} -> {n} frames, "
        "nearest earlier frame shown"
    )


def _in_background(made: Iterator[T], ahead: int, name: str) -> Iterator[T]:
    """The same items, made in a daemon thread at most `ahead` items early.

    An exception in the producer is raised here, after the items made before it. When the consumer stops early (break,
    exception, Ctrl-C, garbage collection) the producer is closed and its thread ends before this returns.
    """
    items: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def put(kind: str, value: Any = None) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                return items.put((kind, value), timeout=_LOOK_S)

    def run() -> None:
        try:
            with contextlib.closing(made):  # type: ignore[type-var]
                for item in made:
                    put("item", item)
                    if stop.is_set():
                        return
            put("end")
        except BaseException as error:  # crosses to the consumer's thread
            put("error", error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = items.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
            del value  # the consumer's reference is the last one
    finally:
        stop.set()
        thread.join()
