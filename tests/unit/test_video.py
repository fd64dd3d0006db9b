"""Frames at their real times: every container and codec, any clock, turned upright, resampled, without leaks."""

from __future__ import annotations

import gc
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

import made_media as made
from affectrace.errors import InputError, MediaError
from affectrace.media.audio import read_audio
from affectrace.media.decode import _Clock
from affectrace.media.probe import VideoInfo, probe
from affectrace.media.video import VideoSource, open_video, scan_timeline
from affectrace.overlay import write_overlay
from affectrace.report.media import prepare
from affectrace.timeline import Timeline
from made_traces import trace

VARIABLE = [3 * n for n in (0, 1, 2, 5, 6, 9, 15, 16, 17, 30)], Fraction(1, 90)  # thirtieths of a second


def numbers(source: VideoSource) -> list[int]:
    return [made.number_in(frame.image) for frame in source.frames()]


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", {}),
        ("a.mov", "libx265", {}),
        ("a.mkv", "libx264", {}),
        ("a.webm", "libvpx-vp9", {}),
        ("a.mp4", "libsvtav1", {"preset": "8"}),
        ("a.avi", "mpeg4", {}),
        ("a.avi", "libx264", {}),  # B-frames in AVI: the container keeps decoding times only
        ("a.avi", "libx264", {"bf": "0"}),
        ("a.ts", "libx264", {}),
    ],
)
def test_every_frame_comes_once_in_order_at_its_time(tmp_path: Path, name: str, codec: str, options: dict) -> None:
    source = open_video(made.write_video(tmp_path / name, range(24), codec=codec, options=options))
    frames = [(f.index, made.number_in(f.image), f.time_s) for f in source.frames()]
    assert [f[0] for f in frames] == [f[1] for f in frames] == list(range(24))
    assert np.allclose([f[2] for f in frames], np.arange(24) / 30, atol=0.0006)  # Matroska counts milliseconds
    assert source.timeline.end_s == pytest.approx(24 / 30, abs=0.012)
    assert (source.width, source.height) == (64, 48)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
def test_variable_rate_keeps_its_own_times(tmp_path: Path, name: str) -> None:
    source = open_video(made.write_video(tmp_path / name, *VARIABLE))
    scanned = source.timeline
    assert numbers(source) == list(range(10))
    assert np.allclose(source.timeline.times, np.array(VARIABLE[0]) / 90, atol=0.0006)
    assert scanned == source.timeline


def test_a_stream_without_stamps_has_its_stated_rate(tmp_path: Path) -> None:
    path = made.write_video(tmp_path / "a.mp4", range(24), options={"bf": "0"})
    with av.open(str(path)) as given, av.open(str(tmp_path / "a.h264"), "w", format="h264") as out:
        raw = out.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.size:
                packet.stream = raw
                out.mux(packet)
    source = open_video(tmp_path / "a.h264")
    scanned = source.timeline
    assert numbers(source) == list(range(24))
    assert source.timeline == scanned == Timeline.regular(24, 30)
    assert source.notes == ("the stream has no time stamps: placed at 30 frames per second",)


@pytest.mark.parametrize(
    ("stamps", "ticks", "note"),
    [
        ([-6, -3, 0, 3], [-6, -3, 0, 3], ""),  # a negative start is kept
        ([0, 3, 3, 2, 6], [0, 3, 6], "2 frames with repeated or backward time stamps are left out"),
        ([0, None, 6, None], [0, 3, 6, 9], "2 frames have no time stamps: placed at 30 frames per second"),
        ([900, 903, 0, 3], [900, 903, 906, 909], "the clock starts again 1 times"),
        ([], [], ""),
    ],
)
def test_stamps_are_repaired_with_a_note(stamps: list[int | None], ticks: list[int], note: str) -> None:
    clock = _Clock(VideoInfo("h264", time_base=Fraction(1, 90), nominal_rate=Fraction(30)), 0)
    placed = [clock.place(stamp, 0) for stamp in stamps]
    assert [t for t in placed if t is not None] == ticks
    assert clock.end() == (ticks[-1] + 3 if ticks else 0)
    assert note in " ".join(clock.notes())
    assert bool(note) == bool(clock.notes())


@pytest.mark.parametrize("fps", [10, 29.97, Fraction(24000, 1001), 60])
def test_resampling_shows_the_frame_of_the_moment(tmp_path: Path, fps: float) -> None:
    path = made.write_video(tmp_path / "a.mp4", *VARIABLE)
    own, source = open_video(path).timeline, open_video(path, fps=fps)
    shown = numbers(source)
    assert source.timeline == own.resampled(Fraction(30000, 1001) if fps == 29.97 else fps)
    assert shown == own.frames_at(source.timeline.times + 1e-9).tolist()
    assert f"{len(own)} -> {len(shown)} frames" in source.notes[-1]
    assert "(variable)" in source.notes[-1]
    assert open_video(path, fps=12.5).nominal_rate == Fraction(25, 2)


# ---- geometry and colour

CORNERS = np.zeros((48, 64, 3), np.uint8)
CORNERS[:24, :32], CORNERS[:24, 32:], CORNERS[24:, :32], CORNERS[24:, 32:] = (
    [250, 0, 0],
    [0, 250, 0],
    [0, 0, 250],
    [250] * 3,
)


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_pictures_are_shown_upright(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    images = [CORNERS] * 3
    path = made.write_video(tmp_path / "a.mp4", range(3), turn=(degrees, mirrored), images=images, options={"qp": "10"})
    wanted = np.rot90(CORNERS, degrees // 90)  # counter-clockwise, then mirrored
    wanted = wanted[:, ::-1] if mirrored else wanted
    source = open_video(path)
    image = next(source.frames()).image
    assert image.shape == wanted.shape == (source.height, source.width, 3)
    assert np.abs(image[::8, ::8].astype(int) - wanted[::8, ::8]).mean() < 12
    assert bool(source.notes) == (degrees != 0 or mirrored)


def test_pixels_become_square(tmp_path: Path) -> None:
    source = open_video(made.write_video(tmp_path / "a.mp4", range(3), aspect=Fraction(4, 3)))
    assert next(source.frames()).image.shape == (source.height, source.width, 3) == (48, 85, 3)
    assert "widened from 64x48 to 85x48" in source.notes[0]


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 30, 40)])
@pytest.mark.parametrize("full_range", [False, True])
def test_colours_survive(tmp_path: Path, colour: tuple[int, int, int], full_range: bool) -> None:
    image = np.full((48, 64, 3), colour, np.uint8)
    options = {"qp": "1"} | ({"x264-params": "fullrange=on"} if full_range else {})
    path = made.write_video(tmp_path / "a.mp4", range(2), images=[image] * 2, options=options)
    found = next(open_video(path).frames()).image
    if full_range:  # the writer's pixels are limited range; declared as full they must look as a player shows them
        luma = np.array([0.299, 0.587, 0.114])
        assert found[20, 30] @ luma == pytest.approx(16 + 0.859 * (colour @ luma), abs=3)
    else:
        assert np.abs(found.astype(int) - image).max() <= 4


# ---- images


def test_folders_take_a_rate_or_times_not_both(folder: Path) -> None:
    with pytest.raises(InputError, match="not both"):
        open_video(folder, fps=25, times=[0, 0.1, 0.2, 0.3])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = made.write_images(tmp_path / "shots", ["f1", "f2", "f10", "f11"])
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_folders_are_in_natural_order(folder: Path) -> None:
    source = open_video(folder, fps=25)
    assert numbers(source) == [0, 1, 2, 3]
    assert source.timeline == Timeline.regular(4, 25)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0\n0.04\n0.1\n0.2\n", ""),
        ("time_s\n0\n0.04\n0.1\n0.2\n\n", ""),
        ("frame,timestamp\n1,0\n2,0.04\n3,.1\n4,0.2\n", ""),
        ("", "0 times for 4 images"),
        ("0\n1\nthree\n4\n", "times.csv: the file of times cannot be read .*'three'"),
        ("time_s\n" + "1" * 200_000, "the file of times cannot be read"),
        ("0\n1\n1e300\nnan\n", "finite"),
        ("a,b\n1,2\n", "no column is named time_s"),
        ("0\n2\n1\n3\n", "times must increase"),
    ],
)
def test_folders_take_a_file_of_times(folder: Path, tmp_path: Path, text: str, message: str) -> None:
    times = tmp_path / "times.csv"
    times.write_text(text)
    if message:
        with pytest.raises(InputError, match=message):
            open_video(folder, times=times)
    else:
        assert np.allclose([f.time_s for f in open_video(folder, times=times).frames()], [0, 0.04, 0.1, 0.2])


# ---- the decoding thread and the number of openings


def test_the_thread_ends_with_its_consumer(tmp_path: Path) -> None:
    path = made.write_video(tmp_path / "long.mp4", range(300))

    def threads() -> set[str]:
        return {t.name for t in threading.enumerate() if t.name.startswith("decode")}

    for stop in ("break", "exception", "forgotten"):
        frames = open_video(path).frames()
        next(frames)
        assert threads() == {"decode long.mp4"}
        if stop == "exception":
            with pytest.raises(KeyboardInterrupt):
                frames.throw(KeyboardInterrupt)
        elif stop == "break":
            frames.close()
        else:
            del frames
            gc.collect()
        assert threads() == set()


def test_a_file_is_probed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probed, shown, heard and drawn on: one opening each, and none for the report."""
    path = made.write_video(tmp_path / "a.mp4", range(10), sound=made.tone(1, 16_000))
    opened, really = [], av.open
    monkeypatch.setattr(av, "open", lambda file, *a, **k: opened.append(str(file)) or really(file, *a, **k))
    assert probe(path).video is not None
    clock = numbers(source := open_video(path)) and source.timeline
    assert read_audio(path) is not None
    assert prepare(path, tmp_path / "page.html").payload
    write_overlay(trace(np.zeros(len(clock)), timeline=clock), path, tmp_path / "o.mp4")
    assert opened.count(str(path)) == 4
    made.write_video(path, range(3))
    assert probe(path).audio is None  # another file of its name is probed again


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as out:
        track = out.add_stream("libmp3lame", rate=44_100)
        cover = out.add_stream("png", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "rgb24"
        out.mux(cover.encode(av.VideoFrame.from_ndarray(CORNERS, format="rgb24")))
        made._encode_sound(out, track, np.repeat(made.tone(1, 44_100), 2, 0), 44_100, 0)
    info = probe(path)
    assert info.video is None
    assert info.audio is not None
    with pytest.raises(MediaError, match="sound but no pictures"):
        open_video(path)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "n", "end", "rate", "notes"),
    [
        ("single_face.mp4", 72, 2.4, 30, 0),
        ("WolfgangLanger_Pexels.mp4", 472, 472 * 1001 / 24000, Fraction(24000, 1001), 0),
        ("face_noface.mov", 169, 98335 / 15360, 30, 0),
        ("no_face.mp4", 95, 49336 / 12288, 24, 1),
    ],
)
def test_real_clips(clips: Path, name: str, n: int, end: float, rate: Fraction, notes: int) -> None:
    source = open_video(clips / name)
    scanned = scan_timeline(clips / name)
    assert [f.index for f in source.frames()] == list(range(n))
    assert source.timeline == scanned
    assert (scanned.start_s, scanned.end_s, scanned.nominal_rate) == (0.0, end, rate)
    assert source.notes == ("3 frames that the file's edit list hides (from -0.125 s) are left out",) * notes
