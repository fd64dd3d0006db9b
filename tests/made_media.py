"""Small media files made on the spot: pictures that know their number, on any clock, in any coding."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from affectrace.recording import Recording

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "example.mp4"
FORMATS = {".avi": "avi", ".mkv": "matroska", ".mov": "mov", ".mp4": "mp4", ".ts": "mpegts", ".webm": "webm"}


def numbered_picture(i: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A picture whose six bars, black or white, spell `i` in binary."""
    image = np.full((height, width, 3), 128, np.uint8)
    for bit in range(6):
        image[:, bit * width // 6 : (bit + 1) * width // 6] = 255 * (i >> bit & 1)
    return image


def number_in(image: np.ndarray) -> int:
    """Inverse of `numbered_picture`."""
    width = image.shape[1]
    bars = [image[:, (2 * bit + 1) * width // 12].mean() > 127 for bit in range(6)]
    return sum(1 << bit for bit, white in enumerate(bars) if white)


def write_video(
    path: Path,
    ticks: Sequence[int],
    time_base: Fraction = Fraction(1, 30),
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (64, 48),
    options: dict[str, str] | None = None,
    movflags: str = "",
    matrix: Sequence[int] | None = None,
    turn: tuple[int, bool] | None = None,
    aspect: Fraction | None = None,
    sound: np.ndarray | None = None,
    sound_rate_hz: int = 16_000,
    sound_start: int = 0,
    sound_codec: str = "aac",
    images: Sequence[np.ndarray] | None = None,
) -> Path:
    """Pictures 0, 1, 2, ... at `ticks`, with `sound` (channels, n) float32 where given."""
    muxer = {"movflags": movflags} if movflags else {}
    with av.open(str(path), "w", format=FORMATS[path.suffix], options=muxer) as out:
        stream = out.add_stream(codec, rate=None, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = time_base
        if list(ticks) == list(range(len(ticks))):
            stream.codec_context.framerate = 1 / time_base
        if turn is not None:
            stream.set_display_rotation(turn[0], hflip=turn[1])
        if matrix is not None:
            stream.set_display_matrix(matrix)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        track = None
        if sound is not None:
            track = out.add_stream(sound_codec, rate=sound_rate_hz)
            track.codec_context.layout = "mono" if len(sound) == 1 else "stereo"
        for i, tick in enumerate(ticks):
            image = numbered_picture(i, *size) if images is None else images[i]
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = tick, time_base
            out.mux(stream.encode(frame))
        if track is not None:
            _encode_sound(out, track, sound, sound_rate_hz, sound_start)
        out.mux(stream.encode(None))
    return path


def write_images(folder: Path, names: Sequence[str]) -> Path:
    """Pictures 0, 1, 2, ... as PNG files of these names in a new folder."""
    folder.mkdir()
    for i, name in enumerate(names):
        Image.fromarray(numbered_picture(i)).save(folder / f"{name}.png")
    return folder


def crops_and_sound(folder: Path, k: int, n_crops: int, n_samples: int, without: int = -1) -> Recording:
    """Recording `r<k>` of noise: face crops of 24 x 24 pixels, one of them (0-based) left out, and a sound."""
    crops, rng = folder / f"crops{k}", np.random.default_rng(k)
    crops.mkdir()
    for i in range(n_crops):
        if i != without:
            Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(crops / f"{i + 1:05d}.png")
    noise = rng.normal(0, 0.2, (1, n_samples)).astype(np.float32)
    return Recording(f"r{k}", crops=crops, audio=write_sound(folder / f"sound{k}.wav", noise, 16_000, "pcm_s16le"))


def write_sound(
    path: Path, samples: np.ndarray, rate_hz: int, codec: str, layout: str = "", sample_format: str = ""
) -> Path:
    """Samples (channels, n) float32 as a sound file of the suffix's format."""
    with av.open(str(path), "w") as out:
        track = out.add_stream(codec, rate=rate_hz)
        track.codec_context.layout = layout or ("mono" if len(samples) == 1 else "stereo")
        if sample_format:
            track.codec_context.format = sample_format
        _encode_sound(out, track, samples, rate_hz, 0)
    return path


def write_seconds(path: Path, starts: Sequence[int]) -> Path:
    """A second of tone from each of the starts; between them nothing was recorded."""
    with av.open(str(path), "w") as out:
        track = out.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for start in starts:
            frame = av.AudioFrame.from_ndarray((tone(1, 16_000) * 32767).astype(np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = 16_000, start * 16_000
            out.mux(track.encode(frame))
        out.mux(track.encode(None))
    return path


def _encode_sound(out, track, samples: np.ndarray, rate_hz: int, start: int) -> None:  # type: ignore[no-untyped-def]
    block = 1024
    resampler = av.AudioResampler(track.codec_context.format.name, track.codec_context.layout.name, rate_hz)
    for first in range(0, samples.shape[1], block):
        piece = np.ascontiguousarray(samples[:, first : first + block], np.float32)
        frame = av.AudioFrame.from_ndarray(piece, "fltp", track.codec_context.layout.name)
        frame.sample_rate, frame.time_base, frame.pts = rate_hz, Fraction(1, rate_hz), start + first
        for converted in resampler.resample(frame):
            out.mux(track.encode(converted))
    out.mux(track.encode(None))


def tone(seconds: float, rate_hz: int, hz: float = 440.0, level: float = 0.5) -> np.ndarray:
    """(1, n) float32 sine."""
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)[None]


def example_excerpt(path: Path, start_s: int, end_s: int) -> Path:
    """Seconds `start_s` (a key frame: 0, 10 or 20) to `end_s` of the example recording, its streams copied."""
    with av.open(str(EXAMPLE)) as whole, av.open(str(path), "w") as out:
        streams = {s.index: out.add_stream_from_template(s) for s in whole.streams}
        for packet in whole.demux():
            if packet.pts is not None and start_s <= packet.pts * packet.time_base < end_s:
                shift = round(start_s / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = streams[packet.stream.index]
                out.mux(packet)
    return path
