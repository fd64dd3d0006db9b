"""Writing a video: H.264 pictures at exact times, sound copied or encoded, complete or not there at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import InputError, OutputError
from affectrace.media import probe as files
from affectrace.media.audio import Audio

if TYPE_CHECKING:
    from av.packet import Packet

_COPIED = frozenset({"aac", "mp3", "mp3float", "opus"})  # what browsers play inside mp4; anything else becomes AAC
_FINEST = Fraction(1, 90_000)  # mp4 clocks are 32-bit: nanoseconds would overflow within seconds
_LEAD = Fraction(1, 2)  # seconds of sound written ahead of the pictures
_AAC_RATES = (48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000)
_AAC_FRAME = 1024


class VideoWriter:
    """An mp4 in the making. Use it in a `with` block: an exception inside leaves nothing behind.

    path: the file to be; written under a temporary name beside it, then renamed. width, height: pixels of every
    image; odd sizes gain one repeated row or column (H.264 needs even ones). time_base: seconds a tick, exact.
    audio_from: a recording whose sound is kept, on the same clock. audio: sound of our own instead.
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
        audio_from: str | Path | None = None,
        *,
        audio: Audio | None = None,
        crf: int = 20,
        preset: str = "veryfast",
        comment: str = "",
    ) -> None:
        import av

        if width <= 0 or height <= 0 or time_base <= 0:
            raise InputError(f"a video needs a size and a clock, got {width}x{height}, {time_base} s a tick")
        self.path = Path(path)
        self.width, self.height = width, height
        self.time_base = time_base
        self._base = max(time_base, _FINEST)
        self._partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self._held: tuple[NDArray[np.uint8], int] | None = None
        self._step = 1
        self._closed = False
        self._sound: _Sound | None = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._partial.touch()  # PyAV opens the file at the first packet only: too late to say so in time
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
                self._sound = _EncodedSound(self._container, audio)
            elif audio_from is not None:
                self._sound = _sound_of(self._container, Path(audio_from))
        except BaseException:
            self.abort()
            raise

    # ---- use

    def write(self, image: NDArray[np.uint8], tick: int | None = None, *, time_s: float | None = None) -> None:
        """One (H, W, 3) uint8 RGB picture, shown from `tick` (or `time_s` seconds) until the next one.

        Raises:
            InputError: another size, or a time that does not come after the one before.
        """
        if image.shape != (self.height, self.width, 3) or image.dtype != np.uint8:
            raise InputError(
                f"picture must be ({self.height}, {self.width}, 3) uint8, got {image.shape} {image.dtype}",
                where=self.path,
            )
        if (tick is None) == (time_s is None):
            raise InputError("a picture needs either a tick or a time", where=self.path)
        seconds = tick * self.time_base if tick is not None else Fraction(time_s or 0.0)
        at = round(seconds / self._base)
        if self._held is not None:
            if at <= self._held[1]:
                raise InputError(f"pictures must come in order; {float(seconds):.6f} s repeats", where=self.path)
            self._step = at - self._held[1]
            self._encode(*self._held, self._step)
        self._held = (image.copy(), at)

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
            if self._sound is not None:
                self._container.mux(list(self._sound.packets_until(None)))
            self._container.close()
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
        if self._sound is not None:
            self._sound.close()

    def _encode(self, image: NDArray[np.uint8], at: int, duration: int) -> None:
        import av

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
            if self._sound is not None and packet.dts is not None:
                until = packet.dts * Fraction(packet.time_base) + _LEAD
                self._container.mux(list(self._sound.packets_until(until)))
            self._container.mux(packet)


class _Sound:
    """Packets of a sound track in order, handed out as the pictures reach them."""

    def __init__(self) -> None:
        self._packets: Iterator[Packet[Any]] = iter(())
        self._next: Packet[Any] | None = None

    def packets_until(self, until: Fraction | None) -> Iterator[Packet[Any]]:
        """Packets that start before `until` seconds (None: all that are left)."""
        while True:
            packet = self._next or next(self._packets, None)
            self._next = None
            if packet is None:
                return
            if until is not None and packet.dts is not None and packet.dts * Fraction(packet.time_base) >= until:
                self._next = packet
                return
            yield packet

    def close(self) -> None:
        """Let go of the source."""
        close = getattr(self._packets, "close", None)
        if close is not None:
            close()


class _CopiedSound(_Sound):
    """Packets of another file as they are."""

    def __init__(self, container: Any, path: Path) -> None:
        super().__init__()
        self._stream: Any = None
        self._packets = self._copies(container, path)
        self._next = next(self._packets, None)  # adds the stream before the header is written

    def _copies(self, container: Any, path: Path) -> Iterator[Packet[Any]]:
        with files.opened(path) as source:
            original = files.sound_stream(source)
            assert original is not None
            self._stream = container.add_stream_from_template(original)
            shift = round(files.clock_origin(source) / Fraction(original.time_base or 1))
            for packet in _packets(source, original):
                if packet.dts is None or packet.pts is None:
                    continue
                packet.dts -= shift
                packet.pts -= shift
                packet.stream = self._stream
                yield packet


class _EncodedSound(_Sound):
    """Samples of ours as AAC."""

    def __init__(self, container: Any, audio: Audio) -> None:
        super().__init__()
        rate = audio.sample_rate_hz
        if rate not in _AAC_RATES:
            raise InputError(f"AAC has no sample rate {rate}", hint="use 16000, 44100 or 48000")
        self._stream = _aac(container, rate, "mono")
        self._packets = self._encoded(audio)

    def _encoded(self, audio: Audio) -> Iterator[Packet[Any]]:
        from av.audio.frame import AudioFrame

        rate = audio.sample_rate_hz
        first = round(Fraction(audio.start_s) * rate)
        for start in range(0, audio.samples.size, _AAC_FRAME):
            block = np.ascontiguousarray(audio.samples[start : start + _AAC_FRAME])
            frame = AudioFrame.from_ndarray(block[None], "fltp", "mono")
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), first + start
            yield from self._stream.encode(frame)
        yield from self._stream.encode(None)


class _RecodedSound(_Sound):
    """Sound of another file, decoded and encoded as AAC."""

    def __init__(self, container: Any, path: Path) -> None:
        super().__init__()
        with files.opened(path) as source:
            original = files.sound_stream(source)
            assert original is not None
            rate = original.codec_context.sample_rate
            self._rate = rate if rate in _AAC_RATES else 48_000
            self._layout = "mono" if original.codec_context.channels == 1 else "stereo"
        self._stream = _aac(container, self._rate, self._layout)
        self._packets = self._recoded(path)

    def _recoded(self, path: Path) -> Iterator[Packet[Any]]:
        import av
        from av.audio.resampler import AudioResampler

        with files.opened(path) as source:
            original = files.sound_stream(source)
            assert original is not None
            origin = files.clock_origin(source)
            resampler = AudioResampler("fltp", self._layout, self._rate, frame_size=_AAC_FRAME)
            position: int | None = None
            for packet in _packets(source, original):
                try:
                    frames: list[Any] = packet.decode()
                except (av.FFmpegError, OSError):
                    continue  # said when the sound was read; here it leaves a hole
                for frame in [*frames, *([None] if not packet.size else [])]:
                    if frame is not None and position is None:
                        start = Fraction(frame.pts or 0) * Fraction(frame.time_base or 1) - origin
                        position = round(start * self._rate)
                    if frame is not None:
                        frame.pts = None
                    for out in resampler.resample(frame):
                        out.pts, out.time_base = position, Fraction(1, self._rate)
                        position = (position or 0) + out.samples
                        yield from self._stream.encode(out)
        yield from self._stream.encode(None)


def _sound_of(container: Any, path: Path) -> _Sound | None:
    with files.opened(path) as source:
        stream = files.sound_stream(source)
        if stream is None:
            return None
        raw = stream.codec_context.name == "aac" and not stream.codec_context.extradata
        copied = stream.codec_context.name in _COPIED and not raw
    return _CopiedSound(container, path) if copied else _RecodedSound(container, path)


def _aac(container: Any, rate: int, layout: str) -> Any:
    stream = container.add_stream("aac", rate=rate)
    stream.codec_context.layout = layout
    stream.codec_context.bit_rate = 64_000 if layout == "mono" else 128_000
    return stream


def _packets(source: Any, stream: Any) -> Iterator[Packet[Any]]:
    import av

    packets = source.demux(stream)
    while True:
        try:
            yield next(packets)
        except (StopIteration, av.FFmpegError, OSError):
            return
