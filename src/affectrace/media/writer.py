"""Video writing: H.264 at exact times, with copied or encoded sound; atomic."""

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
from av.audio.stream import AudioStream
from av.bitstream import BitStreamFilterContext
from av.packet import Packet
from numpy.typing import NDArray

from affectrace.config import publish_file
from affectrace.errors import InputError, OutputError
from affectrace.media.audio import Audio
from affectrace.media.probe import AudioInfo, MediaInfo, opened, packets, sound_stream

_COPIED = frozenset({"aac", "mp3", "mp3float", "opus"})  # what browsers play inside mp4; anything else becomes AAC
_FINEST = Fraction(1, 90_000)  # mp4 clocks are 32-bit: nanoseconds would overflow within seconds
_LEAD = Fraction(1, 2)  # seconds of sound written ahead of the pictures
_AAC_RATES = (48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000)
_BLOCK = 1024  # samples of an AAC frame


class VideoWriter:
    """An mp4 in the making, used in a `with` block: after an exception nothing is left.

    path: the final name; a temporary file beside it is renamed at the end. width, height: pixels of every image; odd
    sizes gain one repeated row or column (H.264 needs even ones). time_base: seconds per tick, exact. audio: its sound;
    `frames(sound=writer)` keeps the sound of the recording whose pictures are written. crf: x264 quality, 18 (near
    lossless) to 30. preset: x264 speed. comment: metadata.

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
        self.time_base = time_base
        self._base = max(time_base, _FINEST)
        self._held: tuple[NDArray[np.uint8], int] | None = None  # the last picture, until its duration is known
        self._step = 1
        self._end_tick: int | None = None
        self._sound: Any = None  # the stream of the sound
        self._encoder: _SoundEncoder | None = None
        self._clock_shift, self._last_dts = 0, -(2**63)
        self._waiting: deque[Any] = deque()  # packets or frames of another file's sound
        self._blocks: Iterator[Any] = iter(())
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # made now, since PyAV opens the file at the first packet only: too late to report an error
            handle, name = tempfile.mkstemp(prefix=f".{self.path.name}.", suffix=".part", dir=self.path.parent)
        except OSError as error:
            raise self._unwritable(error) from None
        os.close(handle)
        self._partial = Path(name)
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(self._partial.unlink, missing_ok=True)
            self._container = av.open(name, "w", format="mp4", options={"movflags": "faststart"})
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
                self._sound, self._blocks = _aac(self._container, audio.sample_rate_hz, "mono"), _blocks(audio)
            self._cleanup = cleanup.pop_all()

    def write(self, image: NDArray[np.uint8], tick: int) -> None:
        """One (H, W, 3) uint8 RGB picture, shown from `tick` until the next one."""
        at = round(tick * self.time_base / self._base)
        if self._held is not None:
            if at <= self._held[1]:
                raise InputError(f"pictures must come in order of time, tick {tick} does not", where=self.path)
            self._step = at - self._held[1]
            self._encode(*self._held, self._step)
        self._held = (image.copy(), at)

    def close(self, end_tick: int) -> None:
        """The last picture is shown until `end_tick`; without this call as long as the one before it."""
        self._end_tick = end_tick

    def begin_sound(self, media: MediaInfo, stream: AudioStream) -> None:
        """The sound of another file follows: copied if browsers play it in mp4, else encoded as AAC."""
        assert media.audio is not None
        if media.audio.codec in _COPIED and not media.audio.bare:
            self._sound = self._container.add_stream_from_template(stream)
            self._clock_shift = round(media.origin / Fraction(stream.time_base or 1))
        else:
            self._encoder = _SoundEncoder(self._container, media, media.audio)
            self._sound = self._encoder.stream

    def add_sound(self, packet: Packet[AudioStream]) -> None:
        """The next packet of that sound; called in the reader's thread."""
        if self._encoder is not None:
            self._waiting += self._encoder.frames(packet)
        elif packet.dts is not None and packet.pts is not None and self._last_dts < packet.dts <= packet.pts:
            self._last_dts = packet.dts  # stamps of a damaged file may run back, which mp4 cannot hold
            packet.dts -= self._clock_shift
            packet.pts -= self._clock_shift
            self._waiting.append(packet)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._cleanup:
            try:
                if kind is None:
                    self._finish()
            except OSError as failure:
                raise self._unwritable(failure) from None
            finally:
                with contextlib.suppress(Exception):  # a half-written file may refuse its trailer; it is removed anyway
                    self._container.close()

    def _finish(self) -> None:
        if self._held is None:
            raise OutputError("no picture was written", where=self.path)
        image, last = self._held
        end = last + self._step if self._end_tick is None else round(self._end_tick * self.time_base / self._base)
        self._encode(image, last, max(1, end - last))
        self._mux(self._stream.encode(None))
        self._mux_sound(None)
        self._container.close()
        publish_file(self._partial, self.path)

    def _unwritable(self, error: OSError) -> OutputError:
        what = f"cannot be written ({error.strerror or error})"
        return OutputError(what, where=self.path, hint="check folder, permissions and free space")

    def _encode(self, image: NDArray[np.uint8], at: int, duration: int) -> None:
        height, width = image.shape[:2]
        if height % 2 or width % 2:
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts, frame.time_base, frame.duration = at, self._base, duration
        try:
            self._mux(self._stream.encode(frame))
        except OSError as error:
            raise self._unwritable(error) from None

    def _mux(self, packets: list[Packet[Any]]) -> None:
        for packet in packets:
            if packet.dts is not None:
                self._mux_sound(packet.dts * Fraction(packet.time_base) + _LEAD)
            self._container.mux(packet)

    def _mux_sound(self, until_s: Fraction | None) -> None:
        """The writer's own sound up to `until_s`, and what was read of another file's; None: all of it, and its end."""
        while self._waiting:
            item = self._waiting.popleft()
            if isinstance(item, Packet):
                item.stream = self._sound
            self._container.mux(item if isinstance(item, Packet) else self._sound.encode(item))
        for frame in self._blocks:
            self._container.mux(self._sound.encode(frame))
            if until_s is not None and frame.pts * frame.time_base >= until_s:
                return
        if until_s is None and self._sound is not None and self._sound.codec_context.is_open:
            self._container.mux(self._sound.encode(None))


def _aac(container: Any, rate: int, layout: str) -> Any:
    if rate not in _AAC_RATES:
        raise InputError(f"AAC has no rate {rate}", hint="use 16000, 44100 or 48000")
    stream = container.add_stream("aac", rate=rate)
    stream.codec_context.layout = layout
    stream.codec_context.bit_rate = 64_000 if layout == "mono" else 128_000
    return stream


def _blocks(audio: Audio) -> Iterator[AudioFrame]:
    """Sound as frames of one AAC block each."""
    rate = audio.sample_rate_hz
    first = round(Fraction(audio.start_s) * rate)
    for start in range(0, audio.samples.size, _BLOCK):
        block = np.ascontiguousarray(audio.samples[start : start + _BLOCK])
        frame = AudioFrame.from_ndarray(block[None], "fltp", "mono")
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), first + start
        yield frame


class _SoundEncoder:
    """AAC of another file's sound, on one clock without holes from its first time stamp."""

    def __init__(self, container: Any, media: MediaInfo, info: AudioInfo) -> None:
        rate = info.sample_rate_hz if info.sample_rate_hz in _AAC_RATES else 48_000
        self.stream = _aac(container, rate, "mono" if info.channels == 1 else "stereo")
        self.origin = media.origin
        self.position = 0
        self.format: tuple[str, str, int] | None = None

    def frames(self, packet: Packet[AudioStream]) -> Iterator[AudioFrame]:
        """Frames of a packet, for `stream.encode`, which resamples them."""
        try:
            decoded: list[Any] = packet.decode()
        except (av.FFmpegError, OSError):
            return  # reported when the sound was read; here it leaves a hole
        for frame in decoded:
            form = (frame.format.name, frame.layout.name, frame.sample_rate)
            if self.format is None:
                self.format = form
                start = Fraction(frame.pts or 0) * Fraction(frame.time_base or 1) - self.origin
                self.position = round(start * frame.sample_rate)
            if form == self.format:
                frame.pts, frame.time_base = self.position, Fraction(1, frame.sample_rate)
                self.position += frame.samples
                yield frame


def write_sound(media: MediaInfo, path: Path) -> None:
    """The sound of a recording as AAC in mp4, on its own clock, as far as it can be read."""
    assert media.audio is not None
    with opened(media.path) as source, av.open(os.fspath(path), "w", format="mp4") as sink:
        encoder = _SoundEncoder(sink, media, media.audio)
        for packet in packets(source, sound_stream(source)):
            for frame in encoder.frames(packet):
                sink.mux(encoder.stream.encode(frame))
        sink.mux(encoder.stream.encode(None))


def as_avi(source: Path, target: Path, audio: Audio, rate: Fraction) -> None:
    """The pictures of an mp4 file at `rate` frames per second as AVI, with PCM sound."""
    hz = audio.sample_rate_hz
    samples = (audio.samples * 32767).astype(np.int16)
    with av.open(str(source)) as given, av.open(str(target), "w", format="avi") as out:
        stream = given.streams.video[0]
        film, track = out.add_stream_from_template(stream), out.add_stream("pcm_s16le", rate=hz)
        film.time_base = 1 / rate
        track.codec_context.layout = "mono"
        start_codes, written = BitStreamFilterContext("h264_mp4toannexb", stream), 0
        for packet in given.demux(stream):
            until = samples.size if packet.dts is None else int(packet.dts * packet.time_base * hz) + hz // 4
            for first in range(written, min(until, samples.size), _BLOCK):
                frame = av.AudioFrame.from_ndarray(samples[None, first : first + _BLOCK], "s16", "mono")
                frame.sample_rate, frame.time_base, frame.pts = hz, Fraction(1, hz), first
                out.mux(track.encode(frame))
                written = first + _BLOCK
            if packet.dts is not None:
                for changed in start_codes.filter(packet):
                    changed.stream = film
                    out.mux(changed)
        out.mux(track.encode(None))
