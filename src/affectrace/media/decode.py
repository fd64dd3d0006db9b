"""Video files as shown frames: PyAV's packets and frames on a repaired, exact clock, damage left out and counted."""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import MediaError
from affectrace.media import probe as files
from affectrace.media.orientation import Orientation, from_display_matrix
from affectrace.media.reading import Shown
from affectrace.timeline import Timeline

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_RESTART_S = 1.0  # a step back by more is a clock that started again, not a frame out of place
_FALLBACK_RATE = Fraction(25)  # for streams without stamps, durations and rate; always said in the notes
_HD_HEIGHT = 576  # above it, colours without a stated matrix are BT.709 (what players assume)
_FLUSHES = 32
_PICTURE_CODECS = frozenset({"png", "apng", "mjpeg", "tiff", "webp"})  # PyAV frees their side data's names twice
_WIDE = 3840  # from here on, decoder threads are few: each of them holds whole frames


class AvReader:
    """A video file as a `Reader`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with files.opened(path) as container:
            stream = _stream(container, path)
            self.time_base = Fraction(stream.time_base or Fraction(1, 90_000))
            self.nominal_rate = files.nominal_rate(stream)
            self.n_frames_estimate = files.promised_frames(container, stream)
            self.duration_s_estimate = files.promised_duration(container, stream)
            self.promised_count = int(stream.frames)
            self.container_format = container.format.name
            self.damaged_throughout = False
            self.origin = round(files.clock_origin(container) / self.time_base)
            first = self._first_frame(container, stream)
            self.rate_assumed = first.pts is None
            if self.nominal_rate is None and first.duration:
                self.nominal_rate = Fraction(1) / (first.duration * self.time_base)
            self.stored = (first.width, first.height)
            self.scaled = (_shown_width(stream.sample_aspect_ratio, first.width), first.height)  # asks the open file
            codec = stream.codec_context.name
        self.orientation = _orientation(first, codec)
        self.width, self.height = self.scaled[::-1] if self.orientation.swaps_sides else self.scaled
        self._converter: Any = None
        self.clock = _Clock(self)
        self.end_tick = 0

    def _first_frame(self, container: InputContainer, stream: VideoStream) -> VideoFrame:
        """The first intact picture; where there is none, the first one that can be decoded at all."""
        # One frame is wanted: no threads that each decode another one; and with slice threads FFmpeg flags no damage.
        stream.codec_context.thread_count = 1
        failed, damaged = 0, None
        for packet in _packets(container, stream):
            frames, error = _decode(packet)
            failed += error
            for frame in frames:
                if not frame.is_corrupt:
                    return frame
                damaged = damaged or frame
        if damaged is not None:
            self.damaged_throughout = True
            return damaged
        detail = "no frame can be decoded" if failed or self.n_frames_estimate else "the video track is empty"
        raise MediaError(detail, where=self.path, hint="play the file to see whether it is damaged")

    # ---- pictures

    def picture(self, payload: Any) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB, upright, square pixels."""
        from av.video.reformatter import Colorspace, VideoReformatter

        if self._converter is None:
            self._converter = VideoReformatter()
        unstated_hd = payload.colorspace == 2 and payload.height > _HD_HEIGHT
        rgb = self._converter.reformat(
            payload,
            width=self.scaled[0],
            height=self.scaled[1],
            format="rgb24",
            src_colorspace=Colorspace.ITU709 if unstated_hd else None,
            threads=1,
        )
        return self.orientation.apply(rgb.to_ndarray())

    # ---- frames

    def shown(self) -> Iterator[Shown]:
        """Frames in order of presentation; damaged ones come with payload None."""
        self.clock = clock = _Clock(self)
        with files.opened(self.path) as container:
            stream = _stream(container, self.path)
            _set_threads(stream)
            clock.by_packets = self.container_format == "avi"
            clock.reordered = bool(stream.codec_context.has_b_frames)
            for packet in _packets(container, stream):
                clock.sent(packet)
                if packet.is_corrupt and not self.damaged_throughout:
                    continue  # cut off: decoding it would cost the good frames around it
                frames, error = _decode(packet)
                clock.damage += error
                for frame in frames:
                    yield from clock.received(frame)
        self.end_tick = clock.end()

    def scan(self) -> Timeline:
        """The clock from the packets' stamps alone; frames that cannot be decoded are part of it."""
        clock = _Clock(self)
        with files.opened(self.path) as container:
            stream = _stream(container, self.path)
            by_dts = self.container_format == "avi"
            shown = [p for p in _packets(container, stream) if p.size and not p.is_discard]
            stamps = [(p.dts if by_dts else p.pts, p.duration or 0) for p in shown]
        if self.rate_assumed:
            ticks = [clock.place(None, 0) for _ in stamps]
        else:
            known = sorted((stamp, duration) for stamp, duration in stamps if stamp is not None)
            ticks = [clock.place(stamp, duration) for stamp, duration in known]
        kept = np.array([tick for tick in ticks if tick is not None], np.int64)
        return Timeline(kept, self.time_base, clock.end(), self.nominal_rate)

    def notes(self) -> list[str]:
        """What was odd in the last pass."""
        notes = []
        if self.orientation != Orientation():
            notes.append(f"pictures {self.orientation} as the file asks")
        if self.scaled != self.stored:
            notes.append(
                f"pixels are not square: pictures widened from {self.stored[0]}x{self.stored[1]} "
                f"to {self.scaled[0]}x{self.scaled[1]}"
            )
        if self.origin:
            notes.append(f"times count from the file's first stamp ({float(self.origin * self.time_base):.3f} s)")
        return notes + self.clock.notes()


class _Clock:
    """Stamps as they come, to strictly increasing ticks; counts what had to be mended."""

    def __init__(self, reader: AvReader) -> None:
        self.reader = reader
        rate = reader.nominal_rate or _FALLBACK_RATE
        self.step = max(1, round(1 / rate / reader.time_base))
        self.by_packets = self.reordered = False
        self.pending: list[int] = []
        self.offset = -reader.origin
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
        if (frame.width, frame.height) != self.reader.stored and self.resized is None:
            self.resized = f"{frame.width}x{frame.height} from frame {self.n_frames}"
        self.damage += frame.is_corrupt
        unusable = frame.is_corrupt and not self.reader.damaged_throughout
        tick = self.place(stamp, frame.duration or 0)
        if tick is not None:
            self.n_frames += 1
            self.lost += unusable
            yield Shown(tick, None if unusable else frame)

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
                yield Shown(tick, None)

    def place(self, stamp: int | None, duration: int) -> int | None:
        """The tick of the next frame in order; None where its stamp repeats or runs back, so that it is never shown."""
        if stamp is None:
            self.assumed += 1
            tick = 0 if self.last is None else self.last + (self.last_duration or self.step)
        else:
            tick = stamp + self.offset
            if self.last is not None and tick <= self.last:
                if (self.last - tick) * self.reader.time_base <= _RESTART_S:
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
        r, notes = self.reader, []
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
        if r.damaged_throughout:
            notes.append("no frame is intact: they are used as far as they can be decoded, with pieces that are wrong")
        if self.lost:
            notes.append(f"{self.lost} damaged frame{'s' * (self.lost != 1)} left out")
        if self.resized:
            notes.append(f"the picture size changes (to {self.resized}): scaled to {r.stored[0]}x{r.stored[1]}")
        return notes + self._cut_short()

    def _cut_short(self) -> list[str]:
        r = self.reader
        if self.last is None:
            return []
        if r.promised_count:
            if self.n_packets < r.promised_count:
                decoded = self.n_frames - self.lost
                return [f"file ends early: decoded {decoded} frames, container promised {r.promised_count}"]
            return []
        promised = r.duration_s_estimate
        reached = float(self.end() * r.time_base)
        if promised is not None and r.n_frames_estimate and reached < promised - max(1.0, 0.02 * promised):
            return [
                f"pictures end early: decoded {self.n_frames - self.lost} frames up to {reached:.2f} s, "
                f"container promised {promised:.2f} s"
            ]
        return []


# ---- PyAV, one step each


def _stream(container: InputContainer, path: Path) -> VideoStream:
    stream = files.picture_stream(container)
    if stream is None:
        what = "holds sound but no pictures" if container.streams.audio else "holds neither pictures nor sound"
        raise MediaError(what, where=path, hint="name a video")
    if stream.codec_context is None:
        raise MediaError("the video's coding is unknown", where=path, hint="convert it to H.264 first")
    return stream


def _set_threads(stream: VideoStream) -> None:
    context = stream.codec_context
    stream.thread_type = "AUTO"
    context.thread_count = min(os.cpu_count() or 1, 4 if context.width >= _WIDE else 16)


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    """Packets of the stream to the end of what can be read, then the empty packet that flushes the decoder."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (av.FFmpegError, OSError):  # the readable part was given; the shortfall shows in the counts
            return
        yield packet


def _decode(packet: Packet[VideoStream]) -> tuple[list[VideoFrame], bool]:
    """The frames a packet brings, and whether it was damaged."""
    import av

    try:
        return packet.decode(), False
    except (av.FFmpegError, OSError):
        if packet.size:
            return [], True
    for _ in range(_FLUSHES):  # an error inside a decoder thread surfaces here: what comes after it is still there
        try:
            return packet.stream.codec_context.decode(None), True
        except av.EOFError:
            break
        except (av.FFmpegError, OSError):
            continue
    return [], True


def _orientation(frame: VideoFrame, codec: str) -> Orientation:
    turned = Orientation(round(-frame.rotation / 90) % 4)
    if codec in _PICTURE_CODECS:
        return turned
    try:
        raw: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV refuses all side data where it does not know one kind; the angle it still tells
        return turned
    return Orientation() if raw is None else from_display_matrix(bytes(raw))


def _shown_width(aspect: Fraction | None, width: int) -> int:
    """Width in square pixels."""
    if not aspect or aspect <= 0 or not Fraction(1, 4) <= aspect <= 4:
        return width
    return round(width * aspect)
