"""The recording inside a report: embedded as it is, as a small preview, or referenced beside the page."""

from __future__ import annotations

import base64
import os
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import numpy as np

from affectrace.errors import AffectraceError, InputError, MediaError
from affectrace.progress import Progress, ProgressEvent, silent

if TYPE_CHECKING:
    import av.container

Embed = bool | Literal["auto"]
IMAGE_FOLDER_NOTE = "image folder"

# what the browsers of today all play, by file ending: (mime type, video codecs, audio codecs)
PLAYABLE: dict[str, tuple[str, frozenset[str], frozenset[str]]] = {
    ".mp4": ("video/mp4", frozenset({"h264", "av1", "vp9"}), frozenset({"aac", "mp3", "opus", "flac"})),
    ".m4v": ("video/mp4", frozenset({"h264"}), frozenset({"aac", "mp3"})),
    ".webm": ("video/webm", frozenset({"vp8", "vp9", "av1"}), frozenset({"opus", "vorbis"})),
    ".m4a": ("audio/mp4", frozenset(), frozenset({"aac"})),
    ".mp3": ("audio/mpeg", frozenset(), frozenset({"mp3"})),
    ".flac": ("audio/flac", frozenset(), frozenset({"flac"})),
    ".wav": ("audio/wav", frozenset(), frozenset({"pcm_s16le", "pcm_u8"})),
    ".ogg": ("audio/ogg", frozenset(), frozenset({"vorbis", "opus"})),
    ".opus": ("audio/ogg", frozenset(), frozenset({"opus"})),
}
EIGHT_BIT = ("yuv420p", "yuvj420p")  # other pixel formats of H.264 play in some browsers only


@dataclass(frozen=True)
class EmbedConfig:
    """How large a page may become.

    limit_bytes: largest medium to embed, bytes (ours: mail and browsers still cope with a page of this size).
    preview_height_px, preview_video_bps, preview_audio_bps: the preview made of what browsers do not play or of what is
        too large (ours: a face filling a quarter of 360 lines is still 90 px high).
    """

    limit_bytes: int = 40_000_000
    preview_height_px: int = 360
    preview_video_bps: int = 450_000
    preview_audio_bps: int = 64_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value <= 0:
                raise InputError(f"must be positive, got {value}", where=f"EmbedConfig.{name}")


@dataclass(frozen=True)
class Probe:
    """What a container says, and where its times begin.

    kind: "video" or "audio". width, height: upright pixels (0 for audio). start_s: earliest time of any stream, which a
    browser calls 0. first_frame_s: time of the first video frame. playable: whether browsers play it as it is.
    """

    kind: Literal["video", "audio"]
    width: int
    height: int
    start_s: float
    first_frame_s: float | None
    duration_s: float
    has_audio: bool
    mime: str
    playable: bool


@dataclass(frozen=True)
class Medium:
    """A recording as the page uses it.

    payload: data URI, None where the page refers to `href`, a relative address. note: said on the page.
    """

    kind: Literal["video", "audio", "none"]
    name: str = ""
    mime: str = ""
    payload: str | None = None
    href: str | None = None
    width: int = 0
    height: int = 0
    start_s: float = 0.0
    first_frame_s: float | None = None
    has_audio: bool | None = None
    note: str = ""


NO_MEDIUM = Medium("none", note="The recording itself is not part of this page; the trace plays without it.")


def probe(path: Path) -> Probe:
    """Look into a recording.

    Raises:
        MediaError: not readable as video or sound.
    """
    import av

    try:
        with av.open(str(path)) as container:
            return _probe(container, path)
    except (av.FFmpegError, OSError, StopIteration, IndexError) as error:
        raise MediaError(
            f"cannot be read ({error})", where=path, hint="check that it is a video or sound file"
        ) from None


def _probe(container: av.container.InputContainer, path: Path) -> Probe:
    videos = [s for s in container.streams.video if not s.disposition & 1024]  # 1024: a cover picture, no video
    audio = container.streams.audio[0] if container.streams.audio else None
    if not videos and audio is None:
        raise MediaError("holds neither pictures nor sound", where=path, hint="give a video or a sound file")
    start = 0.0 if container.start_time is None else container.start_time / 1_000_000
    duration = 0.0 if container.duration is None else container.duration / 1_000_000
    mime, video_codecs, audio_codecs = PLAYABLE.get(path.suffix.lower(), ("", frozenset(), frozenset()))
    sound_plays = audio is None or audio.codec_context.name.removesuffix("float") in audio_codecs
    if not videos:
        playable = bool(mime) and sound_plays
        return Probe("audio", 0, 0, start, None, duration, True, mime or "audio/mp4", playable)
    stream = videos[0]
    frame = next(container.decode(stream))
    turned = getattr(frame, "rotation", 0) % 180 != 0
    width, height = (frame.height, frame.width) if turned else (frame.width, frame.height)
    playable = stream.codec_context.name in video_codecs and stream.codec_context.pix_fmt in EIGHT_BIT and sound_plays
    first = None if frame.time is None else float(frame.time)
    return Probe("video", width, height, start, first, duration, audio is not None, mime, playable)


def prepare(
    path: Path | None,
    page: Path,
    *,
    embed: Embed = "auto",
    config: EmbedConfig | None = None,
    progress: Progress = silent,
) -> Medium:
    """The medium of a page.

    path: the recording, None where there is none. page: where the page will be written; references are relative to it.
    embed: "auto": as it is while small and playable, else a preview while that is small, else beside the page; True:
        always inside; False: always beside.

    Raises:
        MediaError: not readable as video or sound.
    """
    c = config or EmbedConfig()
    if path is None:
        return NO_MEDIUM
    path = Path(path)
    if path.is_dir() or path.suffix.lower() in _IMAGES:
        return Medium("none", path.name, note=f"{path.name} holds pictures; the trace plays without them.")
    if not path.is_file():
        raise MediaError("no such recording", where=path, hint="give its place with --video, or leave it out")
    seen = probe(path)
    known: dict[str, Any] = {
        "name": path.name,
        "width": seen.width,
        "height": seen.height,
        "has_audio": seen.has_audio,
    }
    size = path.stat().st_size
    if embed is not False and seen.playable and (size <= c.limit_bytes or embed is True):
        return Medium(
            seen.kind,
            **known,
            mime=seen.mime,
            payload=_data_uri(seen.mime, path.read_bytes()),
            start_s=seen.start_s,
            first_frame_s=seen.first_frame_s,
            note=f"{path.name} is embedded as it is ({_megabytes(size)}).",
        )
    bits = seen.duration_s * ((c.preview_video_bps if seen.kind == "video" else 0) + c.preview_audio_bps)
    if embed is True or (embed == "auto" and bits / 8 <= c.limit_bytes):
        return _preview(path, seen, known, c, progress)
    plays = "" if seen.playable else " Not every browser plays its format."
    return Medium(
        seen.kind,
        **known,
        mime=seen.mime,
        href=relative_address(path, page),
        start_s=seen.start_s,
        first_frame_s=seen.first_frame_s,
        note=f"{path.name} ({_megabytes(size)}) is not inside this page but read from beside it: keep both together."
        + plays,
    )


_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


def relative_address(path: Path, page: Path) -> str:
    """The relative URL of a file as seen from a page (an absolute file: URL across Windows drives)."""
    try:
        relative = Path(os.path.relpath(Path(path).resolve(), Path(page).resolve().parent)).as_posix()
    except ValueError:
        return Path(path).resolve().as_uri()
    address = quote(os.fsencode(relative))
    return address if address.startswith(".") else f"./{address}"  # a colon in a name must not read as a scheme


def _data_uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def _megabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:.1f} MB"


# ---- previews


def _preview(path: Path, seen: Probe, known: dict[str, Any], c: EmbedConfig, progress: Progress) -> Medium:
    """A small MP4 (H.264, AAC) that begins at time 0 with whatever begins first."""
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "preview.mp4"
        try:
            transcode(path, small, seen, c, progress)
        except AffectraceError:
            raise
        except (OSError, ValueError) as error:  # PyAV's errors are both
            raise MediaError(
                f"no preview could be made ({error})", where=path, hint="write the report without it: --no-video"
            ) from None
        content = small.read_bytes()
    mime = "video/mp4" if seen.kind == "video" else "audio/mp4"
    return Medium(
        seen.kind,
        **known,
        mime=mime,
        payload=_data_uri(mime, content),
        start_s=seen.start_s,
        first_frame_s=seen.first_frame_s,
        note=f"A preview of {path.name} is embedded ({_megabytes(len(content))} of {_megabytes(path.stat().st_size)}); "
        "estimates were made from the original.",
    )


def transcode(path: Path, out: Path, seen: Probe, config: EmbedConfig, progress: Progress = silent) -> None:
    """Write a small MP4 of `path` with the same presentation times, counted from `seen.start_s`; upright."""
    import av

    with av.open(str(path)) as source, av.open(str(out), "w", options={"movflags": "+faststart"}) as sink:
        outputs: dict[int, Any] = {}
        if seen.kind == "video":
            stream = next(s for s in source.streams.video if not s.disposition & 1024)
            outputs[stream.index] = _VideoOut(sink, stream, seen, config)
        if seen.has_audio:
            outputs[source.streams.audio[0].index] = _AudioOut(sink, source.streams.audio[0], seen, config)
        for packet in source.demux([source.streams[i] for i in outputs]):
            try:
                frames = packet.decode()
            except av.InvalidDataError:  # a damaged packet: the preview goes on with what can be read
                continue
            for frame in frames:
                outputs[packet.stream.index].add(frame)
            if packet.pts is not None and packet.time_base is not None and seen.duration_s:
                done = min(float(packet.pts * packet.time_base) - seen.start_s, seen.duration_s)
                progress(ProgressEvent("preview", max(done, 0.0), seen.duration_s, "s", path.name))
        for output in outputs.values():
            output.finish()
    progress(ProgressEvent("preview", seen.duration_s, seen.duration_s or None, "s", path.name))


class _VideoOut:
    TICKS = 90_000  # a second; divides all common frame rates

    def __init__(self, sink: Any, stream: Any, seen: Probe, config: EmbedConfig) -> None:
        scale = min(1.0, config.preview_height_px / min(seen.height, seen.width))
        self.width, self.height = (max(2, round(n * scale / 2) * 2) for n in (seen.width, seen.height))
        self.start, self.last, self.sink = seen.start_s, -1, sink
        self.stream = sink.add_stream("libx264", rate=stream.average_rate or 25)
        self.stream.width, self.stream.height, self.stream.pix_fmt = self.width, self.height, "yuv420p"
        self.stream.time_base = self.stream.codec_context.time_base = Fraction(1, self.TICKS)
        self.stream.bit_rate = config.preview_video_bps
        self.stream.options = {
            "preset": "veryfast",
            "maxrate": str(config.preview_video_bps),
            "bufsize": str(2 * config.preview_video_bps),
            "g": "48",  # a key frame every two seconds or so: quick seeking
        }

    def add(self, frame: Any) -> None:
        import av

        if frame.time is None:
            return
        turned = getattr(frame, "rotation", 0) % 360
        if turned:
            upright = np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), k=round(turned / 90)))
            small = av.VideoFrame.from_ndarray(upright, format="rgb24")
            small = small.reformat(self.width, self.height, "yuv420p")
        else:
            small = frame.reformat(self.width, self.height, "yuv420p")
        small.pts = max(self.last + 1, round((frame.time - self.start) * self.TICKS))
        small.time_base = Fraction(1, self.TICKS)
        small.pict_type = 0
        self.last = small.pts
        self.sink.mux(self.stream.encode(small))

    def finish(self) -> None:
        self.sink.mux(self.stream.encode(None))


class _AudioOut:
    RATE = 44_100

    def __init__(self, sink: Any, stream: Any, seen: Probe, config: EmbedConfig) -> None:
        import av

        self.sink, self.start = sink, seen.start_s
        self.shift: float | None = None  # when the sound begins, seconds after the start
        self.stream = sink.add_stream("aac", rate=self.RATE)
        self.stream.bit_rate = config.preview_audio_bps
        self.resampler = av.AudioResampler(format="fltp", layout="stereo", rate=self.RATE)

    def add(self, frame: Any) -> None:
        if self.shift is None:
            self.shift = 0.0 if frame.time is None else frame.time - self.start
        frame.pts = None  # counted on by the resampler; the beginning is put right below
        self._mux(self.resampler.resample(frame))

    def _mux(self, frames: list[Any]) -> None:
        for frame in frames:
            if frame.pts is not None:
                frame.pts += round((self.shift or 0.0) * self.RATE)
            self.sink.mux(self.stream.encode(frame))

    def finish(self) -> None:
        self._mux(self.resampler.resample(None))
        self.sink.mux(self.stream.encode(None))
