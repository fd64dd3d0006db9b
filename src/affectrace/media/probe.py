"""Media probing: streams, orientation, rates and durations; one-line errors for unusable files.

`probe` opens a file, reads its header and decodes its first picture. The result is cached until the file changes, and
everything that reads media (pictures, sound, written copies, reports) starts from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from affectrace.errors import MediaError
from affectrace.media.images import LARGEST_PIXELS, image_files, image_size
from affectrace.recording import is_images

_NOT_MEDIA = frozenset({"tty", "bin", "xbin", "adf", "idf"})  # FFmpeg "decodes" any text file as a terminal session
_ARBITRARY_START = frozenset({"mpegts", "mpeg", "mpegtsraw"})  # clocks that start anywhere; players show them from zero
_FASTEST_RATE = 240  # a container's rate above this is its clock, not its pictures
_FLUSHES = 32
_STILL_CODECS = frozenset({"png", "apng", "mjpeg", "tiff", "webp"})  # PyAV frees the names of their side data twice

S = TypeVar("S", bound=Stream)


@dataclass(frozen=True)
class Orientation:
    """How a stored picture is shown: mirrored left to right first, then turned clockwise by quarter turns."""

    quarter_turns: int = 0
    mirrored: bool = False

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) as stored to (H', W', 3) upright, contiguous."""
        return np.ascontiguousarray(np.rot90(image[:, ::-1] if self.mirrored else image, -self.quarter_turns))

    def __str__(self) -> str:
        parts = ["mirrored"] if self.mirrored else []
        parts += [f"turned {self.quarter_turns * 90} degrees clockwise"] if self.quarter_turns else []
        return " and ".join(parts) or "upright"


UPRIGHT = Orientation()


@dataclass(frozen=True)
class AudioInfo:
    """The sound track as the container states it.

    duration_s: an estimate, None if unstated. bare: AAC without a header of its own, which cannot be copied into mp4.
    """

    codec: str
    sample_rate_hz: int
    channels: int
    duration_s: float | None
    bare: bool = False


@dataclass(frozen=True)
class VideoInfo:
    """The pictures, as stated by the container and found in the first one.

    width, height: pixels as shown, upright and square. stored, scaled: (width, height) in the file, and with square
    pixels before turning. time_base: seconds per tick, exact. first_s: when the first picture is shown.
    nominal_rate: stated frames per second, None if unstated. n_frames, duration_s: estimates. n_frames_stated: the
    container's own count, 0 if it has none. unstamped: frames have no times. damaged: no picture is intact.
    unusable: why no picture can be shown, "" if pictures can.
    """

    codec: str
    pixel_format: str | None = None
    width: int = 0
    height: int = 0
    stored: tuple[int, int] = (0, 0)
    scaled: tuple[int, int] = (0, 0)
    orientation: Orientation = UPRIGHT
    time_base: Fraction = Fraction(1, 90_000)
    first_s: float = 0.0
    nominal_rate: Fraction | None = None
    n_frames: int | None = None
    n_frames_stated: int = 0
    duration_s: float | None = None
    unstamped: bool = False
    damaged: bool = False
    unusable: str = ""


@dataclass(frozen=True)
class MediaInfo:
    """Contents of a media file or a folder of images.

    origin: seconds subtracted from every time stamp to get the recording's time. start_s: earliest time of any stream.
    duration_s: as stated, None if unstated. comment: the file's own metadata.
    """

    path: Path
    format: str
    video: VideoInfo | None = None
    audio: AudioInfo | None = None
    origin: Fraction = Fraction(0)
    start_s: float = 0.0
    duration_s: float | None = None
    comment: str = ""

    @cached_property
    def sha256(self) -> str:
        """Of the file's bytes, or of a folder's image names and bytes in order; computed once."""
        return file_sha256(self.path)

    @property
    def n_bytes(self) -> int:
        """Size of the file, or of all images of the folder."""
        return sum(p.stat().st_size for p in (image_files(self.path) if self.path.is_dir() else [self.path]))


def probe(source: str | Path | MediaInfo) -> MediaInfo:
    """Contents of a media file, an image or a folder of images (raises MediaError)."""
    if isinstance(source, MediaInfo):
        return source
    path = Path(source)
    if is_images(path):
        files = image_files(path) if path.is_dir() else [check_file(path)]
        width, height = image_size(files[0])
        video = VideoInfo(files[0].suffix.lower()[1:], width=width, height=height, n_frames=len(files))
        return MediaInfo(path, "images", video)
    state = check_file(path).stat()
    return _probe_file(path, (str(path.absolute()), state.st_ino, state.st_size, state.st_mtime_ns))


def check_file(path: str | Path) -> Path:
    """The path of a regular file that is readable and not empty (raises MediaError)."""
    path = Path(path)
    try:
        state = path.stat()
    except FileNotFoundError:
        raise MediaError("no such file", where=path, hint="check the path") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    if not stat.S_ISREG(state.st_mode):
        what = "a folder, a device or a pipe, not a file"
        raise MediaError(what, where=path, hint="save the recording as a file first")
    if state.st_size == 0:
        raise MediaError("the file is empty", where=path, hint="copy or record it again")
    if not os.access(path, os.R_OK):
        raise _unreadable(path, PermissionError())
    return path


def _unreadable(path: Path, error: OSError) -> MediaError:
    why = f" ({error.strerror})" if error.strerror else ""
    return MediaError(f"the file cannot be read{why}", where=path, hint="check its permissions and the disk")


def file_sha256(path: Path) -> str:
    """Of a file's bytes, or of a folder's image names, sizes and bytes in order (raises MediaError)."""
    digest = hashlib.sha256()
    for file in image_files(path) if path.is_dir() else [check_file(path)]:
        try:
            if path.is_dir():
                digest.update(file.name.encode() + b"\0" + str(file.stat().st_size).encode() + b"\0")
            with file.open("rb") as stream:
                hashlib.file_digest(stream, lambda: digest)
        except OSError as error:
            raise _unreadable(file, error) from None
    return digest.hexdigest()


# ---- opened files


@contextlib.contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    """The file as a PyAV container, closed afterwards (raises MediaError)."""
    path = check_file(path)
    try:
        # Only local files: a playlist inside a file reaches neither the network nor another protocol.
        container = av.open(os.fspath(path), options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError):
        what, hint = "not a media file that can be read", "check what the file really is"
        with path.open("rb") as file:
            if file.read(8)[4:] in (b"ftyp", b"wide", b"mdat"):
                what = "the recording has no index (moov): it was cut off before the end, or is damaged"
                hint = "copy it again from the camera, or repair it with a tool such as untrunc"
        raise MediaError(what, where=path, hint=hint) from None
    with container:
        if container.format.name in _NOT_MEDIA:
            raise MediaError("not a media file", where=path, hint="check what the file really is")
        yield container


def picture_stream(container: InputContainer) -> VideoStream | None:
    """The video stream to show; cover pictures do not count."""
    return _default([s for s in container.streams.video if not s.disposition & Disposition.attached_pic])


def sound_stream(container: InputContainer) -> AudioStream | None:
    """The audio stream to decode."""
    return _default([s for s in container.streams.audio if s.codec_context is not None])


def _default(streams: list[S]) -> S | None:
    """The stream marked as default, else the first."""
    return next((s for s in streams if s.disposition & Disposition.default), streams[0] if streams else None)


def packets(
    container: InputContainer, *streams: Any, on_error: Callable[[], None] = lambda: None
) -> Iterator[Packet[Any]]:
    """Packets of the streams, then the empty ones that flush the decoders, as far as the file can be read.

    on_error: called if reading ends with an error; a shortfall also shows in the counts.
    """
    demuxed = container.demux(*streams)
    while True:
        try:
            yield next(demuxed)
        except StopIteration:
            return
        except IndexError:  # a stream that begins in the middle of a damaged file, which PyAV does not know
            demuxed = container.demux(*streams)
        except (av.FFmpegError, OSError):
            return on_error()


def decoded(packet: Packet[VideoStream]) -> tuple[list[VideoFrame], bool]:
    """The pictures of a packet, and whether decoding failed."""
    try:
        return packet.decode(), False
    except (av.FFmpegError, OSError):
        if packet.size:
            return [], True
    for _ in range(_FLUSHES):  # an error inside a decoder thread surfaces at the flush: frames after it still come
        with contextlib.suppress(av.FFmpegError, OSError):
            return packet.stream.codec_context.decode(None), True
    return [], True


# ---- the contents of a file


@lru_cache(maxsize=256)
def _probe_file(path: Path, state: tuple[Any, ...]) -> MediaInfo:
    """state: changes with the file."""
    with opened(path) as container:
        origin, pictures, sound = _origin(container), picture_stream(container), sound_stream(container)
        if pictures is None and sound is None:
            raise MediaError("holds neither pictures nor sound", where=path, hint="name a video or a sound file")
        video = None if pictures is None else _video_info(container, pictures, origin)
        return MediaInfo(
            path,
            container.format.name,
            video,
            None if sound is None else _audio_info(container, sound),
            origin,
            start_s=float(Fraction(container.start_time or 0, av.time_base) - origin),
            duration_s=_duration(container) or (video.duration_s if video else None),
            comment=container.metadata.get("comment", ""),
        )


def _origin(container: InputContainer) -> Fraction:
    """The first time stamp in formats whose clock starts anywhere, else 0."""
    if container.format.name not in _ARBITRARY_START:
        return Fraction(0)
    streams = [s for s in container.streams if s.type in ("video", "audio")]
    starts = [s.start_time * Fraction(s.time_base) for s in streams if s.start_time is not None and s.time_base]
    return min(starts, default=Fraction(0))


def _duration(container: InputContainer, stream: Stream | None = None) -> float | None:
    """Stated seconds of a stream, else of the file."""
    if stream is not None and stream.duration and stream.duration > 0 and stream.time_base:
        return float(stream.duration * Fraction(stream.time_base))
    return container.duration / av.time_base if container.duration and container.duration > 0 else None


def _audio_info(container: InputContainer, stream: AudioStream) -> AudioInfo:
    context = stream.codec_context
    bare = context.name == "aac" and not context.extradata
    return AudioInfo(context.name, context.sample_rate, context.channels, _duration(container, stream), bare)


def _video_info(container: InputContainer, stream: VideoStream, origin: Fraction) -> VideoInfo:
    context, duration = stream.codec_context, _duration(container, stream)
    if context is None:
        return VideoInfo("unknown", unusable="the video's codec is unknown; convert it to H.264 first")
    width, height = _square_pixels(stream, context.width), context.height
    if width * height > LARGEST_PIXELS:
        limit = f"at most {LARGEST_PIXELS // 10**6} million"
        return VideoInfo(context.name, unusable=f"its pictures are too large ({width} x {height} pixels, {limit})")
    base = Fraction(stream.time_base or Fraction(1, 90_000))
    stated = (stream.guessed_rate, stream.average_rate)
    rate = next((Fraction(r) for r in stated if r is not None and 0 < r <= _FASTEST_RATE), None)
    n_frames = stream.frames or (None if duration is None or rate is None else max(1, round(duration * rate)))
    first, failed = _first_picture(container, stream)
    if first is None:
        what = "no frame can be decoded" if failed or n_frames else "the video track is empty"
        hint = "play the file to see whether it is damaged"
        return VideoInfo(context.name, n_frames=n_frames, duration_s=duration, unusable=f"{what}; {hint}")
    if rate is None and first.duration:
        rate = 1 / (first.duration * base)
    scaled = (_square_pixels(stream, first.width), first.height)
    orientation = _orientation(first, context.name)
    width, height = scaled[::-1] if orientation.quarter_turns % 2 else scaled
    return VideoInfo(
        codec=context.name,
        pixel_format=context.pix_fmt,
        width=width,
        height=height,
        stored=(first.width, first.height),
        scaled=scaled,
        orientation=orientation,
        time_base=base,
        first_s=0.0 if first.pts is None else float(first.pts * base - origin),
        nominal_rate=rate,
        n_frames=n_frames,
        n_frames_stated=stream.frames,
        duration_s=duration,
        unstamped=first.pts is None,
        damaged=first.is_corrupt,
    )


def _first_picture(container: InputContainer, stream: VideoStream) -> tuple[VideoFrame | None, bool]:
    """The first intact picture, else the first that can be decoded at all; and whether decoding failed before it."""
    # One frame is wanted: no threads that each decode another one; and with slice threads FFmpeg flags no damage.
    stream.codec_context.thread_count = 1
    failed, damaged = False, None
    for packet in packets(container, stream):
        frames, error = decoded(packet)
        failed |= error
        for frame in frames:
            if not frame.is_corrupt:
                return frame, failed
            damaged = damaged or frame
    return damaged, failed


def _orientation(frame: VideoFrame, codec: str) -> Orientation:
    """From the frame's display matrix (nine little-endian int32, FFmpeg's AV_FRAME_DATA_DISPLAYMATRIX)."""
    mirrored = False
    if codec not in _STILL_CODECS:
        with contextlib.suppress(ValueError):  # PyAV refuses all side data if one kind is unknown to it
            raw: Any = frame.side_data.get("DISPLAYMATRIX")
            a, b, _, c, d = (1, 0, 0, 0, 1) if raw is None else struct.unpack("<5i", bytes(raw)[:20])
            if a * d == b * c:
                return UPRIGHT
            mirrored = a * d < b * c
    # PyAV's angle is that of the first row's image, which mirroring turns round
    return Orientation((round(-frame.rotation / 90) + 2 * mirrored) % 4, mirrored)


def _square_pixels(stream: VideoStream, width: int) -> int:
    """Width in square pixels; aspect ratios beyond 1:4 are not believed."""
    aspect = stream.sample_aspect_ratio
    return round(width * aspect) if aspect and Fraction(1, 4) <= aspect <= 4 else width
