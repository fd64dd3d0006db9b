"""What a media file holds, looked at once; and one clear line where a file cannot be used.

`probe` opens a file, reads its header and decodes its first picture. Its answer is remembered until the file changes,
and everything that reads media (pictures, sound, written copies, reports) starts from it.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

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

_BLOCK = 1 << 20
_NOT_MEDIA = frozenset({"tty", "bin", "xbin", "adf", "idf"})  # FFmpeg "decodes" any text file as a terminal session
_RESTARTING_CLOCKS = ("mpegts", "mpeg", "mpegtsraw")  # stamps count from anywhere; players show them from zero
_FASTEST_RATE = 240  # a container's rate above this is its clock, not its pictures
_FLUSHES = 32
_PICTURE_CODECS = frozenset({"png", "apng", "mjpeg", "tiff", "webp"})  # PyAV frees their side data's names twice
_DAMAGED = "play the file to see whether it is damaged"


@dataclass(frozen=True)
class Orientation:
    """Mirror left-right first (`mirrored`), then turn clockwise by `quarter_turns` x 90 degrees."""

    quarter_turns: int = 0
    mirrored: bool = False

    @property
    def swaps_sides(self) -> bool:
        """Whether width and height change places."""
        return self.quarter_turns % 2 == 1

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) as stored to (H', W', 3) upright, contiguous."""
        if self.mirrored:
            image = image[:, ::-1]
        if self.quarter_turns:
            image = np.rot90(image, k=-self.quarter_turns)
        return np.ascontiguousarray(image)

    def __str__(self) -> str:
        parts = ["mirrored"] if self.mirrored else []
        parts += [f"turned {self.quarter_turns * 90} degrees clockwise"] if self.quarter_turns else []
        return " and ".join(parts) or "upright"


UPRIGHT = Orientation()


def from_display_matrix(raw: bytes) -> Orientation:
    """The orientation nearest to a display matrix (nine little-endian int32, FFmpeg's AV_FRAME_DATA_DISPLAYMATRIX).

    The matrix maps stored pixels (p, q) to shown (a p + c q, b p + d q) with q and the shown rows counted downwards.
    """
    if len(raw) < 36:
        return UPRIGHT
    a, b, _, c, d, _, _, _, _ = struct.unpack("<9i", raw[:36])
    if a * d - b * c == 0:
        return UPRIGHT
    mirrored = a * d - b * c < 0
    # A mirrored matrix is turn x diag(-1, 1): its first column belongs to the pixel axis that points left.
    p, q = (-a, -b) if mirrored else (a, b)
    return Orientation(round(np.degrees(np.arctan2(q, p)) / 90) % 4, mirrored)


@dataclass(frozen=True)
class AudioInfo:
    """The sound track as the container states it (its duration is an estimate).

    sample_rate_hz, channels: of the file. start_s: first sample on the recording's clock. duration_s: None if unstated.
    bare: AAC without a header of its own, which cannot be copied into mp4.
    """

    codec: str
    sample_rate_hz: int
    channels: int
    start_s: float
    duration_s: float | None
    bare: bool = False


@dataclass(frozen=True)
class VideoInfo:
    """The pictures, as the container states them and the first one shows them.

    width, height: pixels as shown, upright and square. stored, scaled: (width, height) in the file, and with square
    pixels before turning. time_base: seconds a tick, exact. first_s: when the first picture is shown.
    nominal_rate: frames a second as stated, None where not. n_frames, duration_s: estimates. n_frames_stated: the
    container's own count, 0 where it keeps none. unstamped: frames have no times. damaged: no picture is intact.
    unusable: (what, hint) why nothing can be shown, None where it can.
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
    unusable: tuple[str, str] | None = None


@dataclass(frozen=True)
class MediaInfo:
    """What a file, or a folder of images, holds.

    origin: seconds to take from every stamp of the file to get the recording's time. start_s: earliest time of any
    stream. duration_s: as stated, None where it is not. comment: kept in the file by whoever wrote it.
    """

    path: Path
    format: str
    video: VideoInfo | None = None
    audio: AudioInfo | None = None
    origin: Fraction = Fraction(0)
    start_s: float = 0.0
    duration_s: float | None = None
    comment: str = ""

    @property
    def has_video(self) -> bool:
        """Whether there are pictures."""
        return self.video is not None

    @property
    def has_audio(self) -> bool:
        """Whether there is sound."""
        return self.audio is not None

    @cached_property
    def sha256(self) -> str:
        """Of the file's bytes, or of a folder's image names and bytes in order; read once, in constant memory."""
        return file_sha256(self.path)

    @property
    def n_bytes(self) -> int:
        """Size of the file, or of all images of the folder."""
        return sum(p.stat().st_size for p in (image_files(self.path) if self.path.is_dir() else [self.path]))


def probe(source: str | Path | MediaInfo) -> MediaInfo:
    """What a media file, image or folder of images holds. A file is opened once for as long as it does not change.

    Raises:
        MediaError: not there, unreadable, or neither pictures nor sound inside.
    """
    if isinstance(source, MediaInfo):
        return source
    path = Path(source)
    if is_images(path):
        return _probe_images(path)
    state = check_file(path).stat()
    return _probe_file(path, (str(path.absolute()), state.st_ino, state.st_size, state.st_mtime_ns))


def check_file(path: str | Path) -> Path:
    """The path of a file that exists, can be read and is not empty."""
    path = Path(path)
    try:
        if path.is_dir():
            raise MediaError("a folder, not a file", where=path, hint="name a media file")
        if not path.exists():
            raise MediaError("no such file", where=path, hint="check the path")
        if not path.is_file():
            raise MediaError("a device or a pipe, not a file", where=path, hint="save the recording as a file first")
        if path.stat().st_size == 0:
            raise MediaError("the file is empty", where=path, hint="copy or record it again")
    except OSError as error:
        raise _unreadable(path, error) from None
    if not os.access(path, os.R_OK):
        raise MediaError("the file cannot be read", where=path, hint="check its permissions")
    return path


def _unreadable(path: Path, error: OSError) -> MediaError:
    if isinstance(error, PermissionError):
        return MediaError("the file cannot be read", where=path, hint="check its permissions")
    return MediaError(f"the file cannot be read ({error.strerror})", where=path, hint="check the disk")


def file_sha256(path: Path) -> str:
    """Of any file's bytes, or of a folder's image names and bytes in order (raises MediaError)."""
    digest, folder = hashlib.sha256(), path.is_dir()
    for file in image_files(path) if folder else [check_file(path)]:
        if folder:
            digest.update(file.name.encode() + b"\0" + str(file.stat().st_size).encode() + b"\0")
        try:
            with file.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
        except OSError as error:
            raise _unreadable(file, error) from None
    return digest.hexdigest()


# ---- opening


@contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    """The file as a PyAV container, closed afterwards."""
    path = check_file(path)
    try:
        # Only local files: a playlist inside a file reaches neither the network nor another protocol.
        container = av.open(
            os.fspath(path), mode="r", options={"protocol_whitelist": "file"}, metadata_errors="replace"
        )
    except PermissionError as error:
        raise _unreadable(path, error) from None
    except (av.FFmpegError, OSError, ValueError):
        raise _not_openable(path) from None
    with container:
        if container.format.name in _NOT_MEDIA:
            raise MediaError("not a media file", where=path, hint="check what the file really is")
        yield container


def _not_openable(path: Path) -> MediaError:
    if _lacks_index(path):
        return MediaError(
            "the recording was cut off before its index (moov) was written",
            where=path,
            hint="copy it again from the camera, or repair it with a tool such as untrunc",
        )
    return MediaError("not a media file that can be read", where=path, hint="check what the file really is")


def _lacks_index(path: Path) -> bool:
    """Whether this is an mp4 or mov whose boxes hold no moov."""
    with path.open("rb") as stream:
        size, at = path.stat().st_size, 0
        while at + 8 <= size:
            stream.seek(at)
            head = stream.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            if at == 0 and kind not in (b"ftyp", b"wide", b"mdat"):
                return False
            if kind == b"moov":
                return False
            if length == 1:  # a 64-bit length follows
                length = int.from_bytes(head[8:16], "big")
            if length < 8:
                return True
            at += length
    return at > 0  # a file too short for one box is no mp4 at all


def picture_stream(container: InputContainer) -> VideoStream | None:
    """The video stream to show: the default one, else the first; cover pictures do not count."""
    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    defaults = [s for s in streams if s.disposition & Disposition.default]
    return (defaults or streams or [None])[0]  # type: ignore[list-item]


def sound_stream(container: InputContainer) -> AudioStream | None:
    """The audio stream to hear: the default one, else the first."""
    streams = [s for s in container.streams.audio if s.codec_context is not None]
    defaults = [s for s in streams if s.disposition & Disposition.default]
    return (defaults or streams or [None])[0]  # type: ignore[list-item]


def packets(
    container: InputContainer, *streams: Any, failed: Callable[[], None] | None = None
) -> Iterator[Packet[Any]]:
    """Packets of the streams, then the empty ones that flush the decoders, as far as the file can be read.

    failed: called where it ends with an error; what is there was given, and the shortfall shows in the counts.
    """
    given = container.demux(*streams)
    while True:
        try:
            packet = next(given)
        except StopIteration:
            return
        except IndexError:  # a stream that begins in the middle of a damaged file, which PyAV does not know
            given = container.demux(*streams)
            continue
        except (av.FFmpegError, OSError):
            if failed is not None:
                failed()
            return
        yield packet


def decoded(packet: Packet[VideoStream]) -> tuple[list[VideoFrame], bool]:
    """The pictures a packet brings, and whether it was damaged."""
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


# ---- looking


def _probe_images(path: Path) -> MediaInfo:
    files = image_files(path) if path.is_dir() else [check_file(path)]
    width, height = image_size(files[0])
    return MediaInfo(
        path, "images", VideoInfo(files[0].suffix.lower()[1:], width=width, height=height, n_frames=len(files))
    )


@lru_cache(maxsize=256)
def _probe_file(path: Path, state: tuple[Any, ...]) -> MediaInfo:
    with opened(path) as container:
        origin, whole = _origin(container), container.duration or 0
        audio, stream = _audio_info(container, origin), picture_stream(container)
        if stream is None and audio is None:
            raise MediaError("holds neither pictures nor sound", where=path, hint="name a video or a sound file")
        video = None if stream is None else _video_info(container, stream, origin)
        return MediaInfo(
            path,
            container.format.name,
            video,
            audio,
            origin,
            start_s=float(Fraction(container.start_time or 0, 1_000_000) - origin),
            duration_s=whole / 1e6 if whole > 0 else video.duration_s if video else None,
            comment=container.metadata.get("comment", ""),
        )


def _origin(container: InputContainer) -> Fraction:
    """The first stamp of formats whose clock starts anywhere, else 0."""
    if container.format.name not in _RESTARTING_CLOCKS:
        return Fraction(0)
    starts = [_seconds(s.start_time, s) for s in container.streams if s.type in ("video", "audio")]
    return min((s for s in starts if s is not None), default=Fraction(0))


def _seconds(ticks: int | None, stream: Stream) -> Fraction | None:
    return None if ticks is None or stream.time_base is None else ticks * Fraction(stream.time_base)


def _duration(container: InputContainer, stream: Stream) -> float | None:
    """Seconds the container promises for a stream (or for the whole file)."""
    own, whole = _seconds(stream.duration, stream) or 0, container.duration or 0
    return float(own) if own > 0 else whole / 1e6 if whole > 0 else None


def _audio_info(container: InputContainer, origin: Fraction) -> AudioInfo | None:
    stream = sound_stream(container)
    if stream is None:
        return None
    context = stream.codec_context
    return AudioInfo(
        codec=context.name,
        sample_rate_hz=context.sample_rate,
        channels=context.channels,
        start_s=float((_seconds(stream.start_time, stream) or Fraction(0)) - origin),
        duration_s=_duration(container, stream),
        bare=context.name == "aac" and not context.extradata,
    )


def _video_info(container: InputContainer, stream: VideoStream, origin: Fraction) -> VideoInfo:
    if stream.codec_context is None:
        return VideoInfo("unknown", unusable=("the video's coding is unknown", "convert it to H.264 first"))
    codec, duration = stream.codec_context.name, _duration(container, stream)
    width, height = _square_width(stream.sample_aspect_ratio, stream.codec_context.width), stream.codec_context.height
    if width * height > LARGEST_PIXELS:
        what = f"its pictures are too large ({width} x {height} pixels, at most {LARGEST_PIXELS // 10**6} million)"
        return VideoInfo(codec, unusable=(what, "make them smaller"))
    base, rate = Fraction(stream.time_base or Fraction(1, 90_000)), _nominal_rate(stream)
    n_stated = int(stream.frames)
    n_frames = n_stated or (None if duration is None or rate is None else max(1, round(duration * rate)))
    first, failed = _first_picture(container, stream)
    if first is None:
        what = "no frame can be decoded" if failed or n_frames else "the video track is empty"
        return VideoInfo(codec, n_frames=n_frames, duration_s=duration, unusable=(what, _DAMAGED))
    if rate is None and first.duration:
        rate = Fraction(1) / (first.duration * base)
    stored = (first.width, first.height)
    scaled = (_square_width(stream.sample_aspect_ratio, first.width), first.height)
    orientation = _orientation(first, codec)
    width, height = scaled[::-1] if orientation.swaps_sides else scaled
    return VideoInfo(
        codec=codec,
        pixel_format=stream.codec_context.pix_fmt,
        width=width,
        height=height,
        stored=stored,
        scaled=scaled,
        orientation=orientation,
        time_base=base,
        first_s=0.0 if first.pts is None else float(first.pts * base - origin),
        nominal_rate=rate,
        n_frames=n_frames,
        n_frames_stated=n_stated,
        duration_s=duration,
        unstamped=first.pts is None,
        damaged=first.is_corrupt,
    )


def _nominal_rate(stream: VideoStream) -> Fraction | None:
    stated = (stream.guessed_rate, stream.average_rate)
    return next((Fraction(rate) for rate in stated if rate is not None and 0 < rate <= _FASTEST_RATE), None)


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
    turned = Orientation(round(-frame.rotation / 90) % 4)
    if codec in _PICTURE_CODECS:
        return turned
    try:
        raw: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV refuses all side data where it does not know one kind; the angle it still tells
        return turned
    return UPRIGHT if raw is None else from_display_matrix(bytes(raw))


def _square_width(aspect: Fraction | None, width: int) -> int:
    """Width in square pixels."""
    if not aspect or aspect <= 0 or not Fraction(1, 4) <= aspect <= 4:
        return width
    return round(width * aspect)
