"""Opening media files: what is inside, and one clear line where a file cannot be used."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from affectrace.errors import MediaError
from affectrace.media.images import IMAGE_SUFFIXES, image_files, image_size

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.stream import Stream
    from av.video.stream import VideoStream

_BLOCK = 1 << 20
_NOT_MEDIA = frozenset({"tty", "bin", "xbin", "adf", "idf"})  # FFmpeg "decodes" any text file as a terminal session
_RESTARTING_CLOCKS = ("mpegts", "mpeg", "mpegtsraw")  # stamps count from anywhere; players show them from zero
_FASTEST_RATE = 240  # a container's rate above this is its clock, not its pictures


@dataclass(frozen=True)
class AudioInfo:
    """The sound track as the container states it (its duration is an estimate).

    sample_rate_hz, channels: of the file. start_s: first sample on the recording's clock. duration_s: None if unstated.
    """

    codec: str
    sample_rate_hz: int
    channels: int
    layout: str
    start_s: float
    duration_s: float | None


@dataclass(frozen=True)
class MediaInfo:
    """What a file or folder holds, read from its header alone (counts and durations are estimates).

    width, height: pixels as stored, before turning upright; None without pictures.
    nominal_rate: frames a second as stated; None where the container states none.
    """

    format: str
    has_video: bool
    has_audio: bool
    duration_s: float | None
    video_codec: str | None = None
    width: int | None = None
    height: int | None = None
    nominal_rate: Fraction | None = None
    n_frames: int | None = None
    audio: AudioInfo | None = None


def check_file(path: str | Path) -> Path:
    """The path of a file that exists, can be read and is not empty.

    Raises:
        MediaError: it is not so.
    """
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
        with path.open("rb"):
            pass
    except PermissionError:
        raise MediaError("the file cannot be read", where=path, hint="check its permissions") from None
    except OSError as error:
        raise MediaError(f"the file cannot be read ({error.strerror})", where=path, hint="check the disk") from None
    return path


@contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    """The file as a PyAV container, closed afterwards.

    Raises:
        MediaError: not there, empty, unreadable, or nothing that holds pictures or sound.
    """
    import av

    path = check_file(path)
    try:
        # Only local files: a playlist inside a file reaches neither the network nor another protocol.
        container = av.open(
            os.fspath(path), mode="r", options={"protocol_whitelist": "file"}, metadata_errors="replace"
        )
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
    from av.stream import Disposition

    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    defaults = [s for s in streams if s.disposition & Disposition.default]
    return (defaults or streams or [None])[0]  # type: ignore[list-item]


def sound_stream(container: InputContainer) -> AudioStream | None:
    """The audio stream to hear: the default one, else the first."""
    from av.stream import Disposition

    streams = [s for s in container.streams.audio if s.codec_context is not None]
    defaults = [s for s in streams if s.disposition & Disposition.default]
    return (defaults or streams or [None])[0]  # type: ignore[list-item]


def clock_origin(container: InputContainer) -> Fraction:
    """Seconds to subtract from every stamp: the first stamp of formats whose clock starts anywhere, else 0."""
    if container.format.name not in _RESTARTING_CLOCKS:
        return Fraction(0)
    starts = [_seconds(s.start_time, s) for s in container.streams if s.type in ("video", "audio")]
    return min((s for s in starts if s is not None), default=Fraction(0))


def nominal_rate(stream: VideoStream) -> Fraction | None:
    """Frames a second as the container states it."""
    for rate in (stream.guessed_rate, stream.average_rate):
        if rate is not None and 0 < rate <= _FASTEST_RATE:
            return Fraction(rate)
    return None


def promised_duration(container: InputContainer, stream: Stream) -> float | None:
    """Seconds the container promises for a stream (or for the whole file)."""
    own = _seconds(stream.duration, stream)
    if own is not None and own > 0:
        return float(own)
    whole = container.duration
    return whole / 1e6 if whole and whole > 0 else None


def promised_frames(container: InputContainer, stream: VideoStream) -> int | None:
    """Frames the container promises: its count, else duration times rate. Never more than an estimate."""
    if stream.frames > 0:
        return int(stream.frames)
    duration, rate = promised_duration(container, stream), nominal_rate(stream)
    return None if duration is None or rate is None else max(1, round(duration * rate))


def _seconds(ticks: int | None, stream: Stream) -> Fraction | None:
    return None if ticks is None or stream.time_base is None else ticks * Fraction(stream.time_base)


def sound_info(container: InputContainer) -> AudioInfo | None:
    """The sound track of an open container, None where there is none."""
    stream = sound_stream(container)
    if stream is None:
        return None
    start = _seconds(stream.start_time, stream) or Fraction(0)
    return AudioInfo(
        codec=stream.codec_context.name,
        sample_rate_hz=stream.codec_context.sample_rate,
        channels=stream.codec_context.channels,
        layout=stream.codec_context.layout.name,
        start_s=float(start - clock_origin(container)),
        duration_s=promised_duration(container, stream),
    )


def describe(path: str | Path) -> MediaInfo:
    """What a media file, image or folder of images holds, from headers alone.

    Raises:
        MediaError: not there, unreadable, or neither pictures nor sound inside.
    """
    path = Path(path)
    if path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES:
        files = image_files(path) if path.is_dir() else [check_file(path)]
        width, height = image_size(files[0])
        return MediaInfo("images", True, False, None, files[0].suffix.lower()[1:], width, height, None, len(files))
    with opened(path) as container:
        video, audio = picture_stream(container), sound_info(container)
        if video is None and audio is None:
            raise MediaError("holds neither pictures nor sound", where=path, hint="name a video or a sound file")
        whole = container.duration
        info = MediaInfo(
            format=container.format.name,
            has_video=video is not None,
            has_audio=audio is not None,
            duration_s=whole / 1e6 if whole and whole > 0 else None,
            audio=audio,
        )
        if video is None:
            return info
        return replace(
            info,
            duration_s=info.duration_s or promised_duration(container, video),
            video_codec=video.codec_context.name,
            width=video.codec_context.width,
            height=video.codec_context.height,
            nominal_rate=nominal_rate(video),
            n_frames=promised_frames(container, video),
        )


def input_sha256(path: str | Path) -> str:
    """sha256 of a file's bytes, or of a folder's image names and bytes in order; constant memory.

    Raises:
        MediaError: not there or unreadable.
    """
    path = Path(path)
    digest = hashlib.sha256()
    folder = path.is_dir()
    for file in image_files(path) if folder else [check_file(path)]:
        if folder:
            digest.update(file.name.encode() + b"\0" + str(file.stat().st_size).encode() + b"\0")
        try:
            with file.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
        except OSError as error:
            raise MediaError(f"the file cannot be read ({error.strerror})", where=file) from None
    return digest.hexdigest()
