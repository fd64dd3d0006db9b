"""The recording inside a report: embedded as it is, as a small preview, or referenced beside the page."""

from __future__ import annotations

import base64
import os
import tempfile
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import av
import numpy as np
from numpy.typing import NDArray

from affectrace.errors import InputError
from affectrace.media.probe import MediaInfo, probe
from affectrace.media.video import VideoSource, open_video
from affectrace.media.writer import VideoWriter, write_sound
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import is_images
from affectrace.timeline import Timeline

Embed = bool | Literal["auto"]

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
    preview_side_px: shorter side of the preview made of what browsers do not play, or of what is too large (ours: a
        face filling a quarter of 360 lines is still 90 px high). preview_crf: its x264 quality (ours).
    preview_video_bps: what such a preview comes to, to tell beforehand whether one will fit (ours: measured on talking
        heads, generously). preview_audio_bps: the same of its sound.
    """

    limit_bytes: int = 40_000_000
    preview_side_px: int = 360
    preview_crf: int = 28
    preview_video_bps: int = 450_000
    preview_audio_bps: int = 128_000


@dataclass(frozen=True)
class Medium:
    """A recording as the page uses it.

    zero_s: recording time at which the player's clock reads 0 (players differ: the page asks them again by the first
    frame's time, first_frame_s). payload: data URI, None where the page refers to `href`, a relative address.
    note: said on the page.
    """

    kind: Literal["video", "audio", "none"]
    name: str = ""
    mime: str = ""
    payload: str | None = None
    href: str | None = None
    width: int = 0
    height: int = 0
    zero_s: float = 0.0
    first_frame_s: float | None = None
    has_audio: bool | None = None
    note: str = ""


NO_MEDIUM = Medium("none", note="The recording itself is not part of this page; the trace plays without it.")


def playable(media: MediaInfo) -> bool:
    """Whether browsers play a file as it is."""
    _, video_codecs, audio_codecs = PLAYABLE.get(media.path.suffix.lower(), ("", frozenset(), frozenset()))
    video, audio = media.video, media.audio
    if audio is not None and audio.codec.removesuffix("float") not in audio_codecs:
        return False
    return video is None or (video.codec in video_codecs and video.pixel_format in EIGHT_BIT)


def prepare(
    path: Path,
    page: Path,
    *,
    embed: Embed = "auto",
    config: EmbedConfig | None = None,
    timeline: Timeline | None = None,
    progress: Progress = silent,
) -> Medium:
    """The medium of a page.

    path: the recording. page: where the page will be written; references are relative to it.
    embed: "auto": as it is while small and playable, else a preview while that is small, else beside the page; True:
        always inside; False: always beside. timeline: when each picture of an image folder is shown.

    Raises:
        MediaError: not readable as video or sound.
    """
    c = config or EmbedConfig()
    path = Path(path)
    if is_images(path):
        return _pictures(path, timeline, embed, c, progress)
    seen = probe(path)
    kind: Literal["video", "audio"] = "video" if seen.video else "audio"
    size, plays = path.stat().st_size, playable(seen)
    medium = Medium(
        kind,
        path.name,
        PLAYABLE.get(path.suffix.lower(), ("audio/mp4" if kind == "audio" else "",))[0],
        width=seen.video.width if seen.video else 0,
        height=seen.video.height if seen.video else 0,
        zero_s=_player_zero(seen.start_s),
        first_frame_s=seen.video.first_s if seen.video else None,
        has_audio=seen.audio is not None,
    )
    if embed is not False and plays and (size <= c.limit_bytes or embed is True):
        note = f"{path.name} is embedded as it is ({_megabytes(size)})."
        return replace(medium, payload=_data_uri(medium.mime, path.read_bytes()), note=note)
    bits = (seen.duration_s or 0.0) * ((c.preview_video_bps if seen.video else 0) + c.preview_audio_bps)
    if embed is True or (embed == "auto" and bits / 8 <= c.limit_bytes):
        content, zero = _film(open_video(seen), c, progress) if seen.video else _sound(seen)
        if embed is True or len(content) <= c.limit_bytes:
            mime = f"{kind}/mp4"
            note = f"A preview of {path.name} is embedded ({_megabytes(len(content))} of {_megabytes(size)}); "
            note += "estimates were made from the original."
            return replace(medium, mime=mime, payload=_data_uri(mime, content), zero_s=zero, note=note)
    note = f"{path.name} ({_megabytes(size)}) is not inside this page but read from beside it: keep both together."
    note += "" if plays else " Not every browser plays its format."
    return replace(medium, href=relative_address(path, page), note=note)


def relative_address(path: Path, page: Path) -> str:
    """The relative URL of a file as seen from a page (an absolute file: URL across Windows drives)."""
    try:
        relative = Path(os.path.relpath(Path(path).resolve(), Path(page).resolve().parent)).as_posix()
    except ValueError:
        return Path(path).resolve().as_uri()
    address = quote(os.fsencode(relative))
    return address if address.startswith(".") else f"./{address}"  # a colon in a name must not read as a scheme


def _player_zero(start_s: float) -> float:
    """Browsers leave a late start where it is and shift an early one to 0 (seen in Chromium 156)."""
    return min(start_s, 0.0)


def _data_uri(mime: str, content: bytes) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"


def _megabytes(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:.1f} MB"


# ---- previews


def _pictures(path: Path, timeline: Timeline | None, embed: Embed, c: EmbedConfig, progress: Progress) -> Medium:
    """Images as a small film; without the times of all of them the page does without."""
    if embed is False or timeline is None or not len(timeline):
        return Medium("none", path.name, note=f"The images of {path.name} are not part of this page.")
    try:
        source = open_video(path, times=timeline.times.tolist() if path.is_dir() else None)
        content, zero = _film(source, c, progress)
    except InputError as error:  # another number of images than the trace has frames: said, not guessed
        return Medium("none", path.name, note=f"The images are not part of this page ({error.what}).")
    return Medium(
        "video",
        path.name,
        "video/mp4",
        payload=_data_uri("video/mp4", content),
        width=source.width,
        height=source.height,
        zero_s=zero,
        first_frame_s=timeline.start_s,
        has_audio=False,
        note=f"The images of {path.name} are embedded as a small film ({_megabytes(len(content))}).",
    )


def _film(source: VideoSource, config: EmbedConfig, progress: Progress) -> tuple[bytes, float]:
    """A small video at the source's own times, and the time a player calls 0."""
    scale = min(1.0, config.preview_side_px / min(source.height, source.width))
    width, height = (max(2, round(n * scale / 2) * 2) for n in (source.width, source.height))
    base = Fraction(1, 90_000)
    total = source.n_frames_estimate
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "preview.mp4"
        with VideoWriter(small, width, height, base, crf=config.preview_crf) as writer:
            last = None
            for frame in source.frames(sound=writer):
                tick = round(frame.time_s / base)
                if last is not None and tick <= last:  # closer than the preview's clock can tell
                    continue
                last = tick
                writer.write(_resized(frame.image, width, height), tick)
                progress(ProgressEvent("preview", frame.index + 1, total, "frames", source.path.name))
        return small.read_bytes(), _player_zero(probe(small).start_s)


def _resized(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    if image.shape[:2] == (height, width):
        return image
    frame = av.VideoFrame.from_ndarray(image, format="rgb24")
    return np.asarray(frame.reformat(width, height, "rgb24").to_ndarray(), dtype=np.uint8)


def _sound(seen: MediaInfo) -> tuple[bytes, float]:
    """The sound as AAC, and the time a player calls 0."""
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "preview.m4a"
        write_sound(seen, small)
        return small.read_bytes(), _player_zero(probe(small).start_s)
