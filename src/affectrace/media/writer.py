"""Writing a video: H.264 pictures at exact times, sound copied or encoded, complete or not there at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.packet import Packet
from numpy.typing import NDArray

from affectrace.errors import InputError, OutputError
from affectrace.media.audio import Audio
from affectrace.media.probe import AudioInfo, MediaInfo, opened, packets, sound_stream

_COPIED = frozenset({"aac", "mp3", "mp3float", "opus"})  # what browsers play inside mp4; anything else becomes AAC
_FINEST = Fraction(1, 90_000)  # mp4 clocks are 32-bit: nanoseconds would overflow within seconds
_LEAD = Fraction(1, 2)  # seconds of sound written ahead of the pictures
_AAC_RATES = (48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000)
_AAC_FRAME = 1024


class VideoWriter:
    """An mp4 in the making. Use it in a `with` block: an exception inside leaves nothing behind.

    path: the file to be; written under a temporary name beside it, then renamed. width, height: pixels of every
    image; odd sizes gain one repeated row or column (H.264 needs even ones). time_base: seconds a tick, exact.
    audio: its sound. The sound of the recording whose pictures are written is kept by `frames(sound=writer)` instead.
    crf: x264 quality, 18 (near lossless) to 30. preset: x264 speed. comment: kept in the file.

    Raises:
        OutputError: the file cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        time_base: Fraction,
        *,
        audio: Audio | None = None,
        crf: int = 20,
        preset: str = "veryfast",
        comment: str = "",
    ) -> None:
        self.path = Path(path)
        self.width, self.height = width, height
        self.time_base = time_base
        self._base = max(time_base, _FINEST)
        self._partial = self.path  # until there is a temporary name
        self._held: tuple[NDArray[np.uint8], int] | None = None
        self._step = 1
        self._closed = False
        self._sound: Any = None  # the stream of the sound
        self._recoder: _Recoder | None = None
        self._copied, self._clock_shift, self._last_sound = False, 0, -(2**63)
        self._waiting: deque[Any] = deque()  # packets or frames of another file's sound
        self._own: Iterator[Any] = iter(())
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # made now, since PyAV opens the file at the first packet only: too late to say so in time
            handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", suffix=".part", dir=self.path.parent)
            os.close(handle)
            self._partial = Path(name)
            self._container = av.open(os.fspath(self._partial), "w", format="mp4", options={"movflags": "faststart"})
        except OSError as error:
            raise OutputError(
                f"cannot be written ({error.strerror or error})", where=self.path, hint="check folder and permissions"
            ) from None
        try:
            if comment:
                self._container.metadata["comment"] = comment
            self._stream = self._container.add_stream("libx264", rate=None)
            self._stream.width, self._stream.height = width + width % 2, height + height % 2
            self._stream.pix_fmt = "yuv420p"
            # No B-frames: the file then starts at its first tick without an edit list and keeps the last duration.
            self._stream.options = {"crf": str(crf), "preset": preset, "bf": "0"}
            context = self._stream.codec_context
            context.time_base = self._base
            context.flags |= av.codec.context.Flags.frame_duration
            if audio is not None:
                if audio.sample_rate_hz not in _AAC_RATES:
                    raise InputError(f"AAC has no rate {audio.sample_rate_hz}", hint="use 16000, 44100 or 48000")
                self._sound, self._own = _aac(self._container, audio.sample_rate_hz, "mono"), _blocks(audio)
        except BaseException:
            self.abort()
            raise

    # ---- use

    def write(self, image: NDArray[np.uint8], tick: int | None = None, *, time_s: float | None = None) -> None:
        """One (H, W, 3) uint8 RGB picture, shown from `tick` (or `time_s` seconds) until the next one."""
        seconds = tick * self.time_base if tick is not None else Fraction(time_s or 0.0)
        at = round(seconds / self._base)
        if self._held is not None:
            if at <= self._held[1]:
                raise InputError(f"pictures must come in order; {float(seconds):.6f} s repeats", where=self.path)
            self._step = at - self._held[1]
            self._encode(*self._held, self._step)
        self._held = (image.copy(), at)

    def begin_sound(self, media: MediaInfo, stream: AudioStream) -> None:
        """The sound of another file follows: kept as it is where browsers play it in mp4, else encoded as AAC."""
        assert media.audio is not None
        if media.audio.codec in _COPIED and not media.audio.bare:
            self._sound = self._container.add_stream_from_template(stream)
            self._copied, self._clock_shift = True, round(media.origin / Fraction(stream.time_base or 1))
        else:
            self._recoder = _Recoder(media, media.audio)
            self._sound = _aac(self._container, self._recoder.rate, self._recoder.layout)

    def add_sound(self, packet: Packet[AudioStream]) -> None:
        """The next packet of that sound, from whichever thread reads the file."""
        if self._recoder is not None:
            self._waiting += self._recoder.frames(packet)
        elif packet.dts is not None and packet.pts is not None and self._last_sound < packet.dts <= packet.pts:
            self._last_sound = packet.dts  # those of a damaged file may run back, which mp4 cannot hold
            packet.dts -= self._clock_shift
            packet.pts -= self._clock_shift
            self._waiting.append(packet)

    def close(self, end_tick: int | None = None) -> None:
        """Finish the file; the last picture is shown until `end_tick` (default: as long as the one before it)."""
        if self._closed:
            return
        try:
            if self._held is None:
                raise OutputError("no picture was written", where=self.path)
            last = self._held[1]
            end = last + self._step if end_tick is None else round(end_tick * self.time_base / self._base)
            self._encode(*self._held, max(1, end - last))
            self._mux(self._stream.encode(None))
            self._mux_sound(None)
            self._container.close()
            umask = os.umask(0)
            os.umask(umask)
            self._partial.chmod(0o666 & ~umask)
            self._partial.replace(self.path)
        except OSError as error:
            self.abort()
            raise self._unwritable(error) from None
        except BaseException:
            self.abort()
            raise
        self._shut()

    def abort(self) -> None:
        """Stop and leave nothing behind."""
        if self._closed:
            return
        with contextlib.suppress(Exception):  # a half-written file may refuse its trailer; it is removed all the same
            self._container.close()
        with contextlib.suppress(OSError):  # the error that led here is the one to tell
            self._partial.unlink(missing_ok=True)
        self._shut()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    # ---- inside

    def _shut(self) -> None:
        self._closed = True
        self._held = None

    def _encode(self, image: NDArray[np.uint8], at: int, duration: int) -> None:
        if image.shape[0] % 2 or image.shape[1] % 2:
            image = np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts, frame.time_base, frame.duration = at, self._base, duration
        try:
            self._mux(self._stream.encode(frame))
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> OutputError:
        return OutputError(
            f"cannot be written ({error.strerror or error})", where=self.path, hint="check space and permissions"
        )

    def _mux(self, packets: list[Packet[Any]]) -> None:
        for packet in packets:
            if packet.dts is not None:
                self._mux_sound(packet.dts * Fraction(packet.time_base) + _LEAD)
            self._container.mux(packet)

    def _mux_sound(self, until_s: Fraction | None) -> None:
        """Sound up to `until_s` of our own, and what has been read of another file's; None: all, and the end of it."""
        while self._waiting:
            item = self._waiting.popleft()
            if self._recoder is not None:
                self._container.mux(self._sound.encode(item))
            else:
                item.stream = self._sound
                self._container.mux(item)
        for frame in self._own:
            self._container.mux(self._sound.encode(frame))
            if until_s is not None and frame.pts * frame.time_base >= until_s:
                return
        if until_s is None and self._sound is not None and not self._copied:
            self._container.mux(self._sound.encode(None))


def as_avi(source: Path, target: Path, audio: Audio, rate: Fraction) -> None:
    """The pictures of an mp4 file, `rate` a second, in the older container, with plain samples beside them."""
    import av
    from av.bitstream import BitStreamFilterContext

    hz, block = audio.sample_rate_hz, 1024
    samples = (audio.samples * 32767).astype(np.int16)
    with av.open(str(source)) as given, av.open(str(target), "w", format="avi") as out:
        stream = given.streams.video[0]
        film, track = out.add_stream_from_template(stream), out.add_stream("pcm_s16le", rate=hz)
        film.time_base = 1 / rate
        track.codec_context.layout = "mono"
        start_codes, written = BitStreamFilterContext("h264_mp4toannexb", stream), 0
        for packet in given.demux(stream):
            until = samples.size if packet.dts is None else int(packet.dts * packet.time_base * hz) + hz // 4
            for first in range(written, min(until, samples.size), block):
                frame = av.AudioFrame.from_ndarray(samples[None, first : first + block], "s16", "mono")
                frame.sample_rate, frame.time_base, frame.pts = hz, Fraction(1, hz), first
                out.mux(track.encode(frame))
                written = first + block
            if packet.dts is not None:
                for changed in start_codes.filter(packet):
                    changed.stream = film
                    out.mux(changed)
        out.mux(track.encode(None))


def _blocks(audio: Audio) -> Iterator[AudioFrame]:
    """Sound as frames of the size AAC takes."""
    rate = audio.sample_rate_hz
    first = round(Fraction(audio.start_s) * rate)
    for start in range(0, audio.samples.size, _AAC_FRAME):
        block = np.ascontiguousarray(audio.samples[start : start + _AAC_FRAME])
        frame = AudioFrame.from_ndarray(block[None], "fltp", "mono")
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), first + start
        yield frame


class _Recoder:
    """Packets of another file's sound as frames for AAC: one clock without holes from its first stamp on."""

    def __init__(self, media: MediaInfo, info: AudioInfo) -> None:
        self.origin = media.origin
        self.rate = info.sample_rate_hz if info.sample_rate_hz in _AAC_RATES else 48_000
        self.layout = "mono" if info.channels == 1 else "stereo"
        self.resampler = AudioResampler("fltp", self.layout, self.rate, frame_size=_AAC_FRAME)
        self.position: int | None = None

    def frames(self, packet: Packet[AudioStream]) -> Iterator[AudioFrame]:
        """What a packet adds."""
        try:
            decoded: list[Any] = packet.decode()
        except (av.FFmpegError, OSError):
            return  # said when the sound was read; here it leaves a hole
        for frame in [*decoded, *([None] if not packet.size else [])]:
            if frame is not None and self.position is None:
                start = Fraction(frame.pts or 0) * Fraction(frame.time_base or 1) - self.origin
                self.position = round(start * self.rate)
            if frame is not None:
                frame.pts = None
            for out in self.resampler.resample(frame):
                out.pts, out.time_base = self.position, Fraction(1, self.rate)
                self.position = (self.position or 0) + out.samples
                yield out


def write_sound(media: MediaInfo, path: Path) -> None:
    """The sound of a recording as AAC in mp4, on its own clock, as far as it can be read."""
    import av

    assert media.audio is not None
    recoder = _Recoder(media, media.audio)
    with opened(media.path) as source, av.open(os.fspath(path), "w", format="mp4") as sink:
        stream = _aac(sink, recoder.rate, recoder.layout)
        for packet in packets(source, sound_stream(source)):
            for frame in recoder.frames(packet):
                sink.mux(stream.encode(frame))
        sink.mux(stream.encode(None))


def _aac(container: Any, rate: int, layout: str) -> Any:
    stream = container.add_stream("aac", rate=rate)
    stream.codec_context.layout = layout
    stream.codec_context.bit_rate = 64_000 if layout == "mono" else 128_000
    return stream
