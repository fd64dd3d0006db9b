"""Written videos: times exact, sound in place, the file whole or not there."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import made_media as made
from affectrace.errors import InputError, OutputError
from affectrace.media.audio import Audio, read_audio
from affectrace.media.video import open_video
from affectrace.media.writer import VideoWriter


def write(path: Path, ticks: list[int], base: Fraction, end: int, audio: Audio | None = None, odd: int = 0) -> Path:
    with VideoWriter(path, 64 - odd, 48 - odd, base, audio=audio) as writer:
        for i, tick in enumerate(ticks):
            writer.write(made.numbered_picture(i, 64 - odd, 48 - odd), tick)
        writer.close(end)
    return path


def rewritten(source: Path, path: Path) -> Path:
    """The pictures of a recording written again, with its sound."""
    film = open_video(source)
    with VideoWriter(path, film.width, film.height, film.time_base) as writer:
        for frame in film.frames(sound=writer):
            writer.write(frame.image, round(frame.time_s / film.time_base))
    return path


@pytest.mark.parametrize(
    ("ticks", "base", "end", "odd"),
    [
        (list(range(24)), Fraction(1, 25), 24, 0),
        ([1001 * i for i in range(24)], Fraction(1, 24000), 1001 * 24, 0),
        ([0, 1, 2, 5, 6, 9, 15], Fraction(1, 30), 21, 0),  # variable, and a long last frame
        ([0], Fraction(1, 25), 1, 0),
        ([0, 1, 2], Fraction(1, 25), 3, 1),  # odd sizes gain a row and a column
    ],
)
def test_times_come_back_exactly(tmp_path: Path, ticks: list[int], base: Fraction, end: int, odd: int) -> None:
    source = open_video(write(tmp_path / "a.mp4", ticks, base, end, odd=odd))
    assert (source.width, source.height) == (64, 48)
    assert [made.number_in(f.image) for f in source.frames()] == list(range(len(ticks)))
    own = source.timeline
    assert [int(t) * own.time_base for t in own.ticks] == [t * base for t in ticks]
    assert own.end_tick * own.time_base == end * base


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("aac", ".mp4"), ("libmp3lame", ".mp4"), ("pcm_s16le", ".mkv"), ("libmp3lame", ".ts"), ("aac", ".ts")],
)
def test_the_sound_of_a_recording_is_kept_in_place(tmp_path: Path, codec: str, suffix: str) -> None:
    click = 0.01 * made.tone(2, 48_000)
    click[0, 48_000:48_200] = 0.9
    source = made.write_video(tmp_path / f"in{suffix}", range(60), sound=click, sound_rate_hz=48_000, sound_codec=codec)
    peaks = []
    for path in (source, rewritten(source, tmp_path / "out.mp4")):
        audio = read_audio(path)
        assert audio is not None
        peaks.append(audio.start_s + int(np.argmax(np.abs(audio.samples))) / 16_000)
    assert peaks[1] == pytest.approx(peaks[0], abs=0.004)
    assert peaks[0] == pytest.approx(1.002, abs=0.03 if suffix == ".ts" else 0.004)  # TS states no encoder delay


def test_sound_whose_clock_runs_back_is_kept_as_far_as_it_increases(tmp_path: Path) -> None:
    sound = {"sound": made.tone(2, 48_000), "sound_rate_hz": 48_000, "sound_codec": "libmp3lame"}
    part = made.write_video(tmp_path / "a.ts", range(60), **sound)
    (tmp_path / "joined.ts").write_bytes(part.read_bytes() * 2)
    source = open_video(rewritten(tmp_path / "joined.ts", tmp_path / "out.mp4"))
    assert len(list(source.frames())) == 120
    assert read_audio(tmp_path / "out.mp4") is not None


def test_own_sound(tmp_path: Path) -> None:
    samples = made.tone(2, 16_000)[0] * np.repeat([1, 0], 16_000).astype(np.float32)
    path = write(tmp_path / "a.mp4", list(range(60)), Fraction(1, 30), 60, audio=Audio(samples, 16_000))
    audio = read_audio(path)
    assert audio is not None
    n = min(audio.samples.size, samples.size)
    assert audio.duration_s == pytest.approx(2, abs=0.1)
    assert np.corrcoef(audio.samples[:n], samples[:n])[0, 1] > 0.99
    with pytest.raises(InputError, match="AAC has no rate"):
        write(tmp_path / "b.mp4", [0], Fraction(1, 30), 1, audio=Audio(samples, 12_345))
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, InputError])
def test_a_failure_leaves_the_older_file(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"older")
    with pytest.raises(failure), VideoWriter(path, 64, 48, Fraction(1, 25)) as writer:  # noqa: PT012
        for i in range(80):
            writer.write(made.numbered_picture(i), i)
        assert sorted(p.suffix for p in tmp_path.iterdir()) == [".mp4", ".part"]
        if failure is KeyboardInterrupt:
            raise KeyboardInterrupt
        writer.write(made.numbered_picture(0), 79)  # out of order
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.mp4", b"older")]


def test_an_unwritable_name_is_an_error_before_the_first_picture(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written .*; check folder"):
        VideoWriter(tmp_path / f"{'x' * 250}.mp4", 64, 48, Fraction(1, 25))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full (Linux)")
def test_a_disk_that_fills_up_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = tmp_path / ".a.mp4.part"
    part.symlink_to("/dev/full")
    monkeypatch.setattr("tempfile.mkstemp", lambda **_: (os.open(part, os.O_WRONLY), str(part)))
    noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
    with (  # noqa: PT012 - which picture no longer fits depends on the device
        pytest.raises(OutputError, match="a.mp4: cannot be written .No space left on device"),
        VideoWriter(tmp_path / "a.mp4", 320, 240, Fraction(1, 25)) as writer,
    ):
        for i in range(200):
            writer.write(np.roll(noise, i * 7), i)
        pytest.fail("the disk was full long before the end")
    assert list(tmp_path.iterdir()) == []
