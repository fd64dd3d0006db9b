"""Media of a report: embedded as is, as a small preview, or referenced beside the page."""

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


LIMIT_BYTES = 40_000_000  # largest medium to embed (our choice: mail and browsers still cope with such a page)
PREVIEW_SIDE_PX = 360  # shorter side of a preview (our choice: a face filling a quarter of it is still 90 px high)
PREVIEW_CRF = 28  # its x264 quality (our choice)
PREVIEW_VIDEO_BPS = 450_000  # a generous estimate of its bit rate (measured on talking heads)
PREVIEW_AUDIO_BPS = 128_000


@dataclass(frozen=True)
class Medium:
    """A recording as the page uses it.

    zero_s: recording time at which the player's clock reads 0. Players differ, so the page checks it by the first
        frame's time, first_frame_s. payload: data URI, None if the page refers to `href`, a relative address.
    note: shown on the page.
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
    path: Path, page: Path, *, embed: Embed = "auto", timeline: Timeline | None = None, progress: Progress = silent
) -> Medium:
    """The medium of a page.

    page: where the page will be written; references are relative to it.
    embed: "auto": as it is if small and playable, else a preview if that is small, else beside the page; True: always
        inside; False: always beside. timeline: when each image of an image folder is shown.
    """
    if is_images(path):
        return _images(path, timeline, embed, progress)
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
    if embed is not False and plays and (size <= LIMIT_BYTES or embed is True):
        note = f"{path.name} is embedded as it is ({_megabytes(size)})."
        return replace(medium, payload=_data_uri(medium.mime, path.read_bytes()), note=note)
    bits = (seen.duration_s or 0.0) * ((PREVIEW_VIDEO_BPS if seen.video else 0) + PREVIEW_AUDIO_BPS)
    if embed is True or (embed == "auto" and bits / 8 <= LIMIT_BYTES):
        content, zero_s = _preview(open_video(seen) if seen.video else seen, progress)
        if embed is True or len(content) <= LIMIT_BYTES:
            mime, sizes = f"{kind}/mp4", f"{_megabytes(len(content))} of {_megabytes(size)}"
            note = f"A preview of {path.name} is embedded ({sizes}); estimates were made from the original."
            return replace(medium, mime=mime, payload=_data_uri(mime, content), zero_s=zero_s, note=note)
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


def _images(path: Path, timeline: Timeline | None, embed: Embed, progress: Progress) -> Medium:
    """Images as a small video, if the trace has a time for each."""
    if embed is False or timeline is None or not len(timeline):
        return Medium("none", path.name, note=f"The images of {path.name} are not part of this page.")
    try:
        source = open_video(path, times=timeline.times.tolist() if path.is_dir() else None)
        content, zero_s = _preview(source, progress)
    except InputError as error:  # the trace has another number of frames
        return Medium("none", path.name, note=f"The images are not part of this page ({error.what}).")
    return Medium(
        "video",
        path.name,
        "video/mp4",
        payload=_data_uri("video/mp4", content),
        width=source.width,
        height=source.height,
        zero_s=zero_s,
        first_frame_s=timeline.start_s,
        has_audio=False,
        note=f"The images of {path.name} are embedded as a small video ({_megabytes(len(content))}).",
    )


def _preview(source: VideoSource | MediaInfo, progress: Progress) -> tuple[bytes, float]:
    """A small video at the source's own times, or its sound as AAC; and the recording time of the player's 0."""
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "preview.mp4"
        if isinstance(source, MediaInfo):
            write_sound(source, small)
        else:
            _write_small(source, small, progress)
        return small.read_bytes(), _player_zero(probe(small).start_s)


def _write_small(source: VideoSource, path: Path, progress: Progress) -> None:
    scale = min(1.0, PREVIEW_SIDE_PX / min(source.height, source.width))
    width, height = (max(2, round(n * scale / 2) * 2) for n in (source.width, source.height))
    base, last = Fraction(1, 90_000), None
    with VideoWriter(path, width, height, base, crf=PREVIEW_CRF) as writer:
        for frame in source.frames(sound=writer):
            tick = round(frame.time_s / base)
            if last is not None and tick <= last:  # closer than the preview's clock resolves
                continue
            last = tick
            image = av.VideoFrame.from_ndarray(frame.image, format="rgb24").reformat(width, height)
            writer.write(np.asarray(image.to_ndarray(), np.uint8), tick)
            progress(ProgressEvent("preview", frame.index + 1, source.n_frames_estimate, "frames", source.path.name))
