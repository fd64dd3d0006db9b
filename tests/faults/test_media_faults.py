"""Broken recordings: what can be read is read and the rest is reported; what cannot is one clear line."""

from __future__ import annotations

import gc
import http.server
import os
import re
import struct
import threading
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageCms

import made_media as made
import made_traces
from affectrace.errors import MediaError
from affectrace.media.audio import read_audio
from affectrace.media.video import open_video
from affectrace.report.quality_flags import quality

RNG = np.random.default_rng(7)
NOISE = [np.kron(RNG.integers(0, 255, (12, 16, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8)) for _ in range(90)]


def noisy(path: Path, n: int = 90, **more: object) -> Path:
    """Pictures that compress badly, a key frame every 15: damage hits pictures, not headers."""
    return made.write_video(path, range(n), size=(128, 96), images=NOISE[:n], options={"g": "15"}, **more)  # type: ignore[arg-type]


def damaged(path: Path, share: float, n: int | None = None) -> Path:
    """The file with `n` bytes of noise at a share of its length; None: without what follows."""
    data = bytearray(path.read_bytes())
    at = int(len(data) * share)
    data[at : None if n is None else at + n] = b"" if n is None else RNG.bytes(n)
    path.write_bytes(data)
    return path


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def flags(*notes: str) -> set[tuple[str, str]]:
    """Quality flags of a trace with these notes; the report finds them by the wording of notes."""
    trace = made_traces.trace([0.1] * 200, provenance={"notes": list(notes)})
    return {(check.name, check.level) for check in quality(trace)}


# ---- one clear line


def only_header(path: Path) -> Path:
    return written(path, noisy(path, movflags="faststart").read_bytes().split(b"mdat")[0] + b"mdat")


def playlist(path: Path, server: str = "127.0.0.1:9") -> Path:
    return written(path, f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:9,\nhttp://{server}/a.ts\n#EXT-X-ENDLIST\n")


def device(path: Path) -> Path:
    path.symlink_to("/dev/zero")
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def bare_folder(path: Path) -> Path:
    path.mkdir()
    return written(path / "notes.txt", "nothing to see").parent


def unknown_codec(path: Path) -> Path:
    made.write_video(path, range(3), sound=made.tone(1, 16_000))
    return written(path, path.read_bytes().replace(b"avc1", b"zzzz"))


def vast_image(path: Path) -> Path:
    """67 bytes whose header states 15,000 x 15,000 pixels: twice the limit, and less than PIL refuses by itself."""
    Image.new("L", (1, 1)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", 15_000, 15_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return written(path, bytes(data))


LETTER = "Dear reader,\nthis is no film.\n" * 50
SUBTITLES = "1\n00:00:00,000 --> 00:00:01,000\nHello\n\n"
NO_MEDIA = "not a media file that can be read; check what the file really is"
UNUSABLE: list[tuple[str, Callable[[Path], Path], str]] = [
    ("gone.mp4", lambda p: p, "no such file; check the path"),
    ("empty.mp4", lambda p: written(p, ""), "the file is empty; copy or record it again"),
    ("letter.mp4", lambda p: written(p, LETTER), NO_MEDIA),
    ("noise.mkv", lambda p: written(p, RNG.bytes(20_000)), NO_MEDIA),
    ("cut.mp4", lambda p: damaged(noisy(p), 0.6), "the recording has no index (moov): it was cut off"),
    ("zero.mp4", device, "a folder, a device or a pipe, not a file; save the recording as a file first"),
    ("pipe.mp4", pipe, "a folder, a device or a pipe, not a file"),
    ("list.m3u8", playlist, NO_MEDIA),
    ("letter.txt", lambda p: written(p, LETTER), "not a media file"),
    ("words.srt", lambda p: written(p, SUBTITLES), "holds neither pictures nor sound; name a video"),
]
NO_PICTURES: list[tuple[str, Callable[[Path], Path], str]] = [
    ("header.mp4", only_header, "no frame can be decoded; play the file"),
    ("odd.mp4", unknown_codec, "the video's codec is unknown; convert it to H.264 first"),
    ("bare", bare_folder, "the folder holds no images; known suffixes: .bmp"),
    ("photo.jpg", lambda p: written(p, b"\xff\xd8\xff\xe0 not a photo"), "not an image that can be read; check"),
    ("gone.png", lambda p: p, "not an image that can be read (No such file or directory)"),
    ("vast.png", vast_image, "the image has more than 120 million pixels; make it smaller"),
]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("call", "name", "make", "message"),
    [(open_video, *row) for row in UNUSABLE + NO_PICTURES] + [(read_audio, *row) for row in UNUSABLE],
)
def test_unusable_input_is_one_line(
    tmp_path: Path, call: Callable[[Path], object], name: str, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(MediaError) as caught:
        call(make(tmp_path / name))
    line = caught.value.one_line()
    assert line.startswith(f"{tmp_path / name}: {message}"), line
    assert "\n" not in line


def test_a_playlist_reaches_no_network(tmp_path: Path) -> None:
    """A file that names a web address is not followed, even if a server answers there."""
    asked: list[str] = []
    film = made.write_video(tmp_path / "a.ts", range(30)).read_bytes()

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(film)))
            self.end_headers()
            self.wfile.write(film)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        path = playlist(tmp_path / "list.m3u8", f"127.0.0.1:{server.server_port}")
        with pytest.raises(MediaError, match="not a media file that can be read"):
            open_video(path)
        server.shutdown()
    assert asked == []


# ---- the readable part


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("a.mp4", r"file ends early: decoded (\d+) frames, container promised 90"),
        ("a.mkv", r"pictures end early: decoded (\d+) frames up to 1\.\d+ s, container promised 3\.00 s"),
        ("a.avi", r"file ends early: decoded (\d+) frames, container promised 90"),
    ],
)
def test_a_cut_file_is_read_as_far_as_possible(tmp_path: Path, name: str, note: str) -> None:
    source = open_video(damaged(noisy(tmp_path / name, movflags="faststart" if name == "a.mp4" else ""), 0.6))
    frames = list(source.frames())
    said = re.fullmatch(note, source.notes[-1])
    assert said, source.notes
    assert int(said[1]) == len(frames)
    assert ("File complete", "warning") in flags(*source.notes)
    assert 40 <= len(frames) <= 65
    for i in range(40):
        assert np.abs(frames[i].image.astype(int) - NOISE[i]).mean() < 20


def test_damage_in_the_middle_is_a_gap(tmp_path: Path) -> None:
    source = open_video(damaged(noisy(tmp_path / "a.mp4"), 0.5, 1500))
    frames = list(source.frames())
    lost = 90 - len(frames)
    assert 1 <= lost < 15
    assert len(source.timeline) == 90
    assert source.notes == (f"{lost} damaged frame{'s' * (lost != 1)} left out",)
    assert ("File complete", "warning") in flags(*source.notes)
    for f in frames[:30] + frames[-10:]:  # numbers stay true on both sides of the gap
        assert np.abs(f.image.astype(int) - NOISE[f.index]).mean() < 20


def test_if_no_frame_is_intact_what_can_be_decoded_is_used(tmp_path: Path) -> None:
    """Damage in every picture's own bytes, lengths and headers spared."""
    path = noisy(tmp_path / "a.mp4", 30)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            if packet.size and packet.pos is not None:
                middle = packet.pos + packet.size // 2
                data[middle : middle + packet.size // 3] = b"\xff" * (packet.size // 3)
    source = open_video(written(path, bytes(data)))
    assert len(list(source.frames())) > 20
    assert source.notes[0] == "no frame is intact: damaged ones are used as far as they can be decoded"


@pytest.mark.parametrize(("name", "kind"), [("a.mp4", "JPEG"), ("a.mkv", "TIFF"), ("a.mov", "PNG"), ("a.avi", "WEBP")])
def test_a_photograph_under_a_videos_name_is_one_frame(tmp_path: Path, name: str, kind: str) -> None:
    """With the side data of photographs: turned by EXIF, with a named colour profile (whose name PyAV would free twice,
    which ends the process at the next garbage collection)."""
    halves = np.array([[[250, 10, 10]], [[10, 10, 250]]], np.uint8)
    picture = Image.fromarray(np.kron(halves, np.ones((40, 60, 1), np.uint8)))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees: what is above goes to the right
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture.save(tmp_path / name, format=kind, exif=exif, icc_profile=profile)
    for _ in range(3):
        (frame,) = open_video(tmp_path / name).frames()
        gc.collect()
    if kind == "JPEG":
        assert frame.image.shape == (60, 80, 3)
        assert frame.image[30, 70, 0] > 200 > 60 > frame.image[30, 10, 0]


def test_a_changing_picture_size_is_scaled(tmp_path: Path) -> None:
    a = made.write_video(tmp_path / "a.ts", range(10), size=(64, 48))
    b = made.write_video(tmp_path / "b.ts", range(10, 20), size=(128, 96), options={"bf": "0"})
    source = open_video(written(tmp_path / "joined.ts", a.read_bytes() + b.read_bytes()))
    assert {frame.image.shape for frame in source.frames()} == {(48, 64, 3)}
    assert any(note.startswith("the picture size changes (to 128x96 from frame 10)") for note in source.notes)


def test_a_clock_that_starts_again_goes_on(tmp_path: Path) -> None:
    part = made.write_video(tmp_path / "a.ts", range(60))
    source = open_video(written(tmp_path / "joined.ts", part.read_bytes() * 2))
    assert len(list(source.frames())) == len(source.timeline) == 120
    assert np.allclose(np.diff(source.timeline.times), 1 / 30, atol=0.05)


def test_a_stream_that_begins_in_the_middle(tmp_path: Path) -> None:
    data = bytearray(made.write_video(tmp_path / "a.ts", range(40)).read_bytes())
    starts = [at for at in range(0, len(data), 188) if data[at + 1 : at + 3] == b"\x41\x00"]  # of pictures
    data[starts[-1] + 2] = 0x8F
    assert len(list(open_video(written(tmp_path / "a.ts", bytes(data))).frames())) == 39


def test_one_broken_image_of_a_folder(tmp_path: Path) -> None:
    for i in range(3):
        Image.fromarray(made.numbered_picture(i)).save(tmp_path / f"{i}.png")
    damaged(tmp_path / "1.png", 0.5)
    source = open_video(tmp_path, fps=Fraction(25))
    assert [f.index for f in source.frames()] == [0, 2]
    assert source.notes == ("1 images cannot be read and are left out (first: 1.png)",)


def test_a_deleted_file_is_an_error_in_the_consumer(tmp_path: Path) -> None:
    source = open_video(made.write_video(tmp_path / "a.mp4", range(3)))
    source.path.unlink()
    with pytest.raises(MediaError, match="no such file"):
        list(source.frames())


# ---- sound


@pytest.mark.parametrize(("name", "codec"), [("a.wav", "pcm_s16le"), ("a.flac", "flac"), ("a.mp3", "libmp3lame")])
def test_cut_sound_is_read_as_far_as_possible(tmp_path: Path, name: str, codec: str) -> None:
    audio = read_audio(damaged(made.write_sound(tmp_path / name, made.tone(10, 16_000), 16_000, codec), 0.5))
    assert audio is not None
    assert audio.duration_s == pytest.approx(5, abs=0.7)
    assert np.abs(audio.samples[:48_000]).max() > 0.4
    if name == "a.flac":  # wav and mp3 promise nothing that FFmpeg believes
        assert re.search(r"sound ends early: decoded \d\.\d+ s, container promised 10\.00 s|damaged", audio.notes[0])
        assert ("File complete", "warning") in flags(*audio.notes)


def test_a_silent_sound_track_is_flagged(tmp_path: Path) -> None:
    audio = read_audio(made.write_sound(tmp_path / "a.wav", 0 * made.tone(2, 16_000), 16_000, "pcm_s16le"))
    assert audio is not None
    assert ("Sound", "notice") in flags(*audio.notes)
    assert ("Sound", "unknown") in flags()


def wav(path: Path, rate_hz: int, channels: int, codec: int = 1) -> Path:
    """32 kB of sound with this header."""
    head = struct.pack("<HHIIHH", codec, channels, rate_hz, rate_hz * channels * 2, channels * 2, 16)
    parts = (b"fmt ", head), (b"data", bytes(32_000))
    chunks = b"".join(name + struct.pack("<I", len(body)) + body for name, body in parts)
    return written(path, b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: wav(f / "a.wav", 1, 1), "sample rate is 1 Hz, at least 1000"),
        (lambda f: wav(f / "a.wav", 16_000, 255), "255 channels at 16000 Hz cannot be converted"),
        (lambda f: wav(f / "a.wav", 16_000, 1, codec=0x9999), "holds neither pictures nor sound"),
        (lambda f: made.write_seconds(f / "a.mkv", (0, 100_000)), "holes of 27.8 hours, more than there is sound; cut"),
    ],
)
def test_a_small_sound_file_costs_little(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(MediaError) as caught:
        read_audio(make(tmp_path))
    assert message in caught.value.one_line()
