"""Video files as shown frames: PyAV's packets and frames on a repaired, exact clock, damage left out and counted."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from affectrace.errors import MediaError
from affectrace.media.probe import (
    UPRIGHT,
    MediaInfo,
    VideoInfo,
    decoded,
    opened,
    packets,
    picture_stream,
    sound_stream,
)
from affectrace.timeline import Timeline

_RESTART_S = 1.0  # a step back by more is a clock that started again, not a frame out of place
_FALLBACK_RATE = Fraction(25)  # for streams without stamps, durations and rate; always said in the notes
_HD_HEIGHT = 576  # above it, colours without a stated matrix are BT.709 (what players assume)
_WIDE = 3840  # from here on, decoder threads are few: each of them holds whole frames


class SoundSink(Protocol):
    """Where the sound of a video goes that is read for its pictures; called in the reader's thread."""

    def begin_sound(self, media: MediaInfo, stream: Any) -> None:
        """Before the first packet, and before the first picture is given out."""

    def add_sound(self, packet: Any) -> None:
        """The next packet of the sound, in the order of the file."""


Shown = tuple[int, Any]
"""A frame: the tick from which it is shown, and what makes its picture (None: it could not be decoded)."""


class AvReader:
    """A video file as frames in the order they are shown; `images.ImageReader` is the same of images.

    `shown` may be run again; `end_tick` and `notes` are complete once it is exhausted.
    """

    def __init__(self, media: MediaInfo) -> None:
        info = media.video
        if info is None:
            raise MediaError("holds sound but no pictures", where=media.path, hint="name a video")
        if info.unusable:
            raise MediaError(info.unusable[0], where=media.path, hint=info.unusable[1])
        self.media, self.info, self.path = media, info, media.path
        self.width, self.height = info.width, info.height
        self.time_base, self.nominal_rate = info.time_base, info.nominal_rate
        self.n_frames_estimate, self.duration_s_estimate = info.n_frames, info.duration_s
        self.origin = round(media.origin / info.time_base)
        self._converter: Any = None
        self.clock = _Clock(info, self.origin)
        self.end_tick = 0

    # ---- pictures

    def picture(self, payload: Any) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB, upright, square pixels."""
        if self._converter is None:
            self._converter = VideoReformatter()
        unstated_hd = payload.colorspace == 2 and payload.height > _HD_HEIGHT
        rgb = self._converter.reformat(
            payload,
            width=self.info.scaled[0],
            height=self.info.scaled[1],
            format="rgb24",
            src_colorspace=Colorspace.ITU709 if unstated_hd else None,
            threads=1,
        )
        return self.info.orientation.apply(rgb.to_ndarray())

    # ---- frames

    def shown(self, sound: SoundSink | None = None) -> Iterator[Shown]:
        """Frames in order of presentation; damaged ones come with payload None. Sound goes to `sound` on the way."""
        self.clock = clock = _Clock(self.info, self.origin)
        with opened(self.path) as container:
            stream = self._stream(container)
            _set_threads(stream)
            streams: list[Any] = [stream]
            heard = None if sound is None else sound_stream(container)
            if sound is not None and heard is not None:
                sound.begin_sound(self.media, heard)
                streams.append(heard)
            clock.by_packets = self.media.format == "avi"
            clock.reordered = bool(stream.codec_context.has_b_frames)
            for packet in packets(container, *streams):
                if sound is not None and packet.stream.index != stream.index:
                    sound.add_sound(packet)
                    continue
                clock.sent(packet)
                if packet.is_corrupt and not self.info.damaged:
                    continue  # cut off: decoding it would cost the good frames around it
                frames, error = decoded(packet)
                clock.damage += error
                for frame in frames:
                    yield from clock.received(frame)
        self.end_tick = clock.end()

    def scan(self) -> Timeline:
        """The clock from the packets' stamps alone; frames that cannot be decoded are part of it."""
        clock = _Clock(self.info, self.origin)
        with opened(self.path) as container:
            by_dts = self.media.format == "avi"
            shown = [p for p in packets(container, self._stream(container)) if p.size and not p.is_discard]
            stamps = [(p.dts if by_dts else p.pts, p.duration or 0) for p in shown]
        if self.info.unstamped:
            ticks = [clock.place(None, 0) for _ in stamps]
        else:
            known = sorted((stamp, duration) for stamp, duration in stamps if stamp is not None)
            ticks = [clock.place(stamp, duration) for stamp, duration in known]
        kept = np.array([tick for tick in ticks if tick is not None], np.int64)
        return Timeline(kept, self.time_base, clock.end(), self.nominal_rate)

    def _stream(self, container: InputContainer) -> VideoStream:
        stream = picture_stream(container)
        if stream is None:  # the file was replaced since it was looked at
            raise MediaError("holds no pictures any more", where=self.path, hint="start again")
        return stream

    def notes(self) -> list[str]:
        """What was odd in the last pass."""
        notes = []
        if self.info.orientation != UPRIGHT:
            notes.append(f"pictures {self.info.orientation} as the file asks")
        if self.info.scaled != self.info.stored:
            notes.append(
                f"pixels are not square: pictures widened from {self.info.stored[0]}x{self.info.stored[1]} "
                f"to {self.info.scaled[0]}x{self.info.scaled[1]}"
            )
        if self.origin:
            notes.append(f"times count from the file's first stamp ({float(self.origin * self.time_base):.3f} s)")
        return notes + self.clock.notes()


class _Clock:
    """Stamps as they come, to strictly increasing ticks; counts what had to be mended."""

    def __init__(self, info: VideoInfo, origin: int) -> None:
        self.info = info
        rate = info.nominal_rate or _FALLBACK_RATE
        self.step = max(1, round(1 / rate / info.time_base))
        self.by_packets = self.reordered = False
        self.pending: list[int] = []
        self.offset = -origin
        self.last: int | None = None
        self.last_duration = 0
        self.last_step = 0
        self.n_frames = self.n_packets = self.n_hidden = 0
        self.hidden_from: int | None = None
        self.damage = self.lost = self.assumed = self.repeated = self.restarts = 0
        self.resized: str | None = None

    def sent(self, packet: Packet[VideoStream]) -> None:
        """A packet goes to the decoder."""
        if not packet.size:
            return
        self.n_packets += 1
        self.damage += packet.is_corrupt
        stamp = packet.dts if self.by_packets else packet.pts
        if packet.is_discard:
            self.n_hidden += 1
            if stamp is not None:
                self.hidden_from = stamp if self.hidden_from is None else min(stamp, self.hidden_from)
        elif stamp is not None:
            heapq.heappush(self.pending, stamp)

    def received(self, frame: VideoFrame) -> Iterator[Shown]:
        """A frame comes back: what is shown up to and with it."""
        stamp = frame.pts
        if self.by_packets:
            stamp = self._decoding_stamp(frame)
        elif stamp is not None:
            yield from self._lost_before(stamp, interlaced=frame.interlaced_frame)
        if (frame.width, frame.height) != self.info.stored and self.resized is None:
            self.resized = f"{frame.width}x{frame.height} from frame {self.n_frames}"
        self.damage += frame.is_corrupt
        unusable = frame.is_corrupt and not self.info.damaged
        tick = self.place(stamp, frame.duration or 0)
        if tick is not None:
            self.n_frames += 1
            self.lost += unusable
            yield tick, None if unusable else frame

    def _decoding_stamp(self, frame: VideoFrame) -> int | None:
        """AVI keeps decoding times only: without reordering they are right, with it the n-th picture has the n-th."""
        if not self.reordered and frame.dts is not None:
            self.pending = [stamp for stamp in self.pending if stamp > frame.dts]
            return frame.dts
        return heapq.heappop(self.pending) if self.pending else None

    def _lost_before(self, stamp: int, interlaced: bool) -> Iterator[Shown]:
        """Packets that went in before `stamp` and gave no frame, where there is damage to explain it."""
        missing = []
        while self.pending and self.pending[0] < stamp:
            missing.append(heapq.heappop(self.pending))
        known = bool(self.pending) and self.pending[0] == stamp
        while self.pending and self.pending[0] == stamp:
            heapq.heappop(self.pending)
        if not (known and self.damage and self.last is not None and not interlaced):
            return
        for pts in missing:
            tick = self.place(pts, 0)
            if tick is not None:
                self.n_frames += 1
                self.lost += 1
                yield tick, None

    def place(self, stamp: int | None, duration: int) -> int | None:
        """The tick of the next frame in order; None where its stamp repeats or runs back, so that it is never shown."""
        if stamp is None:
            self.assumed += 1
            tick = 0 if self.last is None else self.last + (self.last_duration or self.step)
        else:
            tick = stamp + self.offset
            if self.last is not None and tick <= self.last:
                if (self.last - tick) * self.info.time_base <= _RESTART_S:
                    self.repeated += 1
                    return None
                self.restarts += 1
                restarted = self.last + (self.last_duration or self.step)
                self.offset += restarted - tick
                tick = restarted
        self.last_step = 0 if self.last is None else tick - self.last
        self.last, self.last_duration = tick, duration
        return tick

    def end(self) -> int:
        """When the last frame stops being shown."""
        return 0 if self.last is None else self.last + (self.last_duration or self.last_step or self.step)

    def notes(self) -> list[str]:
        """One clause for each kind of thing mended."""
        r, notes = self.info, []
        if self.n_hidden:
            seconds = "" if self.hidden_from is None else f" (from {float(self.hidden_from * r.time_base):.3f} s)"
            notes.append(f"{self.n_hidden} frames that the file's edit list hides{seconds} are left out")
        if self.assumed:
            rate = r.nominal_rate or _FALLBACK_RATE
            what = "the stream has" if self.assumed == self.n_frames else f"{self.assumed} frames have"
            notes.append(f"{what} no time stamps: placed at {float(rate):g} frames a second")
        if self.repeated:
            notes.append(f"{self.repeated} frames with repeated or backward time stamps are left out")
        if self.restarts:
            notes.append(f"the clock starts again {self.restarts} times: continued from the frame before")
        if r.damaged:
            notes.append("no frame is intact: they are used as far as they can be decoded, with pieces that are wrong")
        if self.lost:
            notes.append(f"{self.lost} damaged frame{'s' * (self.lost != 1)} left out")
        if self.resized:
            notes.append(f"the picture size changes (to {self.resized}): scaled to {r.stored[0]}x{r.stored[1]}")
        return notes + self._cut_short()

    def _cut_short(self) -> list[str]:
        r = self.info
        if self.last is None:
            return []
        if r.n_frames_stated:
            if self.n_packets < r.n_frames_stated:
                decoded = self.n_frames - self.lost
                return [f"file ends early: decoded {decoded} frames, container promised {r.n_frames_stated}"]
            return []
        promised = r.duration_s
        reached = float(self.end() * r.time_base)
        if promised is not None and r.n_frames and reached < promised - max(1.0, 0.02 * promised):
            return [
                f"pictures end early: decoded {self.n_frames - self.lost} frames up to {reached:.2f} s, "
                f"container promised {promised:.2f} s"
            ]
        return []


def _set_threads(stream: VideoStream) -> None:
    context = stream.codec_context
    stream.thread_type = "AUTO"
    context.thread_count = min(os.cpu_count() or 1, 4 if context.width >= _WIDE else 16)
