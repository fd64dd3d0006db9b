"""Video decoding with PyAV: frames in display order on a repaired, exact clock."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from affectrace.errors import MediaError
from affectrace.media.probe import UPRIGHT, MediaInfo, VideoInfo, decoded, opened, packets, picture_stream, sound_stream
from affectrace.timeline import Timeline

if TYPE_CHECKING:
    from affectrace.media.writer import VideoWriter

_RESTART_S = 1.0  # a backward step beyond is a clock that started again, not a frame out of place
_FALLBACK_RATE = Fraction(25)  # for streams without stamps, durations and rate; always reported in the notes
_HD_HEIGHT = 576  # above it, colours without a stated matrix are BT.709 (what players assume)
_WIDE = 3840  # from here on, decoder threads are few: each of them holds whole frames

Shown = tuple[int, Any]
"""The tick from which a frame is shown, and what its picture is made from (None: it could not be decoded)."""


class VideoReader:
    """Frames of a video file in display order; `images.ImageReader` has the same interface.

    `shown` may run several times; `end_tick` and `notes` are complete once it is exhausted.
    """

    def __init__(self, media: MediaInfo) -> None:
        if media.video is None:
            raise MediaError("holds sound but no pictures", where=media.path, hint="name a video")
        if media.video.unusable:
            raise MediaError(media.video.unusable, where=media.path)
        self.media, self.info, self.path = media, media.video, media.path
        self.width, self.height = self.info.width, self.info.height
        self.time_base, self.nominal_rate = self.info.time_base, self.info.nominal_rate
        self.n_frames, self.duration_s = self.info.n_frames, self.info.duration_s
        self.end_tick = 0
        self._clock = self._new_clock()
        self._converter: Any = VideoReformatter()

    def picture(self, frame: Any) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB, upright, square pixels."""
        unstated_hd = frame.colorspace == 2 and frame.height > _HD_HEIGHT
        rgb = self._converter.reformat(
            frame,
            width=self.info.scaled[0],
            height=self.info.scaled[1],
            format="rgb24",
            src_colorspace=Colorspace.ITU709 if unstated_hd else None,
            threads=1,
        )
        return self.info.orientation.apply(rgb.to_ndarray())

    def shown(self, sound: VideoWriter | None = None) -> Iterator[Shown]:
        """Frames in display order, damaged ones with None. sound: receives the sound track's packets on the way."""
        self._clock = clock = self._new_clock()
        with opened(self.path) as container:
            stream = self._stream(container)
            context = stream.codec_context
            stream.thread_type = "AUTO"
            context.thread_count = min(os.cpu_count() or 1, 4 if context.width >= _WIDE else 16)
            clock.reordered = bool(context.has_b_frames)
            streams: list[Any] = [stream]
            track = sound_stream(container)
            if sound is not None and track is not None:
                sound.begin_sound(self.media, track)
                streams.append(track)
            for packet in packets(container, *streams):
                if sound is not None and packet.stream.index != stream.index:
                    sound.add_sound(packet)
                    continue
                clock.sent(packet)
                if packet.is_corrupt and not self.info.damaged:
                    continue  # cut off: decoding it would cost the good frames around it
                frames, failed = decoded(packet)
                clock.damage += failed
                for frame in frames:
                    yield from clock.received(frame)
        self.end_tick = clock.end()

    def scan(self) -> Timeline:
        """The clock from the packets' stamps alone; frames that cannot be decoded are part of it."""
        clock = self._new_clock()
        with opened(self.path) as container:
            stamps = [
                (clock.stamp(packet), packet.duration or 0)
                for packet in packets(container, self._stream(container))
                if packet.size and not packet.is_discard
            ]
        if self.info.unstamped:
            stamps = [(None, 0)] * len(stamps)
        else:
            stamps = sorted((stamp, duration) for stamp, duration in stamps if stamp is not None)
        ticks = [clock.place(*stamp) for stamp in stamps]
        kept = np.array([tick for tick in ticks if tick is not None], np.int64)
        return Timeline(kept, self.time_base, clock.end(), self.nominal_rate)

    def notes(self) -> list[str]:
        """What was unusual in the last pass."""
        notes = []
        if self.info.orientation != UPRIGHT:
            notes.append(f"pictures {self.info.orientation} as the file asks")
        if self.info.scaled != self.info.stored:
            stored, scaled = ("{}x{}".format(*size) for size in (self.info.stored, self.info.scaled))
            notes.append(f"pixels are not square: pictures widened from {stored} to {scaled}")
        if self.media.origin:
            notes.append(f"times count from the file's first stamp ({float(self.media.origin):.3f} s)")
        return notes + self._clock.notes()

    def _stream(self, container: InputContainer) -> VideoStream:
        stream = picture_stream(container)
        if stream is None:
            raise MediaError("was replaced by a file without pictures", where=self.path, hint="start again")
        return stream

    def _new_clock(self) -> _Clock:
        return _Clock(self.info, round(self.media.origin / self.info.time_base), self.media.format == "avi")


class _Clock:
    """Time stamps to strictly increasing ticks; counts what was repaired.

    by_dts: stamps are the packets' decoding times, the only ones that AVI has.
    """

    def __init__(self, info: VideoInfo, origin: int, by_dts: bool = False) -> None:
        self.info, self.by_dts = info, by_dts
        self.rate = info.nominal_rate or _FALLBACK_RATE
        self.step = max(1, round(1 / self.rate / info.time_base))
        self.reordered = False  # display order differs from decoding order
        self.pending: list[int] = []  # heap: stamps of packets whose frames have not come back yet
        self.offset = -origin
        self.last: int | None = None
        self.last_duration = self.last_step = 0
        self.hidden_from: int | None = None
        self.n_frames = self.n_packets = self.n_hidden = 0
        self.damage = self.lost = self.assumed = self.repeated = self.restarts = 0
        self.resized: str | None = None

    def stamp(self, packet: Packet[VideoStream]) -> int | None:
        """The time stamp that counts."""
        return packet.dts if self.by_dts else packet.pts

    def sent(self, packet: Packet[VideoStream]) -> None:
        """A packet goes to the decoder."""
        if not packet.size:
            return
        self.n_packets += 1
        self.damage += packet.is_corrupt
        stamp = self.stamp(packet)
        if packet.is_discard:
            self.n_hidden += 1
            if stamp is not None:
                self.hidden_from = stamp if self.hidden_from is None else min(stamp, self.hidden_from)
        elif stamp is not None:
            heapq.heappush(self.pending, stamp)

    def received(self, frame: VideoFrame) -> Iterator[Shown]:
        """A frame comes back: what is shown up to and with it."""
        stamp = frame.pts
        if self.by_dts:
            stamp = self._decoding_stamp(frame)
        elif stamp is not None:
            for lost in self._lost_before(stamp, interlaced=frame.interlaced_frame):
                yield from self._placed(lost, 0, None)
        if (frame.width, frame.height) != self.info.stored and self.resized is None:
            self.resized = f"{frame.width}x{frame.height} from frame {self.n_frames}"
        self.damage += frame.is_corrupt
        unusable = frame.is_corrupt and not self.info.damaged
        yield from self._placed(stamp, frame.duration or 0, None if unusable else frame)

    def _placed(self, stamp: int | None, duration: int, frame: VideoFrame | None) -> Iterator[Shown]:
        tick = self.place(stamp, duration)
        if tick is not None:
            self.n_frames += 1
            self.lost += frame is None
            yield tick, frame

    def _decoding_stamp(self, frame: VideoFrame) -> int | None:
        """AVI: without reordering decoding times are right, with it the n-th picture shown has the n-th of them."""
        if not self.reordered and frame.dts is not None:
            self.pending = [stamp for stamp in self.pending if stamp > frame.dts]
            return frame.dts
        return heapq.heappop(self.pending) if self.pending else None

    def _lost_before(self, stamp: int, interlaced: bool) -> list[int]:
        """Stamps of packets before `stamp` that gave no frame, if there is damage to explain it."""
        missing = []
        while self.pending and self.pending[0] < stamp:
            missing.append(heapq.heappop(self.pending))
        known = bool(self.pending) and self.pending[0] == stamp
        while self.pending and self.pending[0] == stamp:
            heapq.heappop(self.pending)
        return missing if known and self.damage and self.last is not None and not interlaced else []

    def place(self, stamp: int | None, duration: int) -> int | None:
        """The tick of the next frame in order; None for one whose stamp repeats or runs back, which is never shown."""
        following = 0 if self.last is None else self.last + (self.last_duration or self.step)
        if stamp is None:
            self.assumed += 1
            tick = following
        else:
            tick = stamp + self.offset
            if self.last is not None and tick <= self.last:
                if (self.last - tick) * self.info.time_base <= _RESTART_S:
                    self.repeated += 1
                    return None
                self.restarts += 1
                self.offset += following - tick
                tick = following
        self.last_step = 0 if self.last is None else tick - self.last
        self.last, self.last_duration = tick, duration
        return tick

    def end(self) -> int:
        """When the last frame stops being shown."""
        return 0 if self.last is None else self.last + (self.last_duration or self.last_step or self.step)

    def notes(self) -> list[str]:
        """One clause for each kind of repair."""
        info, notes = self.info, []
        if self.n_hidden:
            start = "" if self.hidden_from is None else f" (from {float(self.hidden_from * info.time_base):.3f} s)"
            notes.append(f"{self.n_hidden} frames that the file's edit list hides{start} are left out")
        if self.assumed:
            what = "the stream has" if self.assumed == self.n_frames else f"{self.assumed} frames have"
            notes.append(f"{what} no time stamps: placed at {float(self.rate):g} frames per second")
        if self.repeated:
            notes.append(f"{self.repeated} frames with repeated or backward time stamps are left out")
        if self.restarts:
            notes.append(f"the clock starts again {self.restarts} times: continued from the frame before")
        if info.damaged:
            notes.append("no frame is intact: damaged ones are used as far as they can be decoded")
        if self.lost:
            notes.append(f"{self.lost} damaged frame{'s' * (self.lost != 1)} left out")
        if self.resized:
            notes.append(f"the picture size changes (to {self.resized}): scaled to {info.stored[0]}x{info.stored[1]}")
        intact, end_s = self.n_frames - self.lost, float(self.end() * info.time_base)
        promised_s = info.duration_s or 0.0
        early = info.n_frames is not None and end_s < promised_s - max(1.0, 0.02 * promised_s)
        if self.last is not None and self.n_packets < info.n_frames_stated:
            notes.append(f"file ends early: decoded {intact} frames, container promised {info.n_frames_stated}")
        elif self.last is not None and early and not info.n_frames_stated:
            decoded = f"decoded {intact} frames up to {end_s:.2f} s"
            notes.append(f"pictures end early: {decoded}, container promised {promised_s:.2f} s")
        return notes
