"""Written videos: times exact, sound in place, the file whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import made_media as made
from affectrace.errors import InputError, OutputError
from affectrace.media.audio import Audio, read_audio
from affectrace.media.video import open_video
from affectrace.media.writer import VideoWriter


def write(path: Path, ticks: list[int], base: Fraction, end: int | None = None, **more: object) -> Path:
    with VideoWriter(path, 64, 48, base, **more) as writer:  # type: ignore[arg-type]
        for i, tick in enumerate(ticks):
            writer.write(made.numbered_picture(i), tick)
        writer.close(end)
    return path


def rewritten(source: Path, path: Path) -> Path:
    """The pictures of a recording written again, with its sound."""
    film = open_video(source)
    with VideoWriter(path, film.width, film.height, film.time_base) as writer:
        for frame in film.frames(sound=writer):
            writer.write(frame.image, time_s=frame.time_s)
    return path


def write_all(path: Path, images: Iterable[np.ndarray]) -> None:
    with VideoWriter(path, 64, 48, Fraction(1, 25)) as writer:
        for i, image in enumerate(images):
            writer.write(image, i)


@pytest.mark.parametrize(
    "ticks, base, end",
    [
        (list(range(24)), Fraction(1, 25), 24),
        ([1001 * i for i in range(24)], Fraction(1, 24000), 1001 * 24),
        ([0, 1, 2, 5, 6, 9, 15], Fraction(1, 30), 21),  # variable, and a long last frame
        ([0], Fraction(1, 25), 1),
    ],
)
def test_times_come_back_exactly(tmp_path: Path, ticks: list[int], base: Fraction, end: int) -> None:
    source = open_video(write(tmp_path / "a.mp4", ticks, base, end))
    assert [made.number_in(f.image) for f in source.frames()] == list(range(len(ticks)))
    own = source.timeline
    assert [int(t) * own.time_base for t in own.ticks] == [t * base for t in ticks]
    assert own.end_tick * own.time_base == end * base


def test_odd_sizes_gain_a_line(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", 63, 47, Fraction(1, 25)) as writer:
        for i in range(3):
            writer.write(made.numbered_picture(i, 63, 47), i)
    source = open_video(tmp_path / "a.mp4")
    assert (source.width, source.height) == (64, 48)
    assert [made.number_in(f.image) for f in source.frames()] == [0, 1, 2]


@pytest.mark.parametrize(
    "codec, suffix",
    [("aac", ".mp4"), ("libmp3lame", ".mp4"), ("pcm_s16le", ".mkv"), ("libmp3lame", ".ts"), ("aac", ".ts")],
)
def test_the_sound_of_a_recording_is_kept_in_place(tmp_path: Path, codec: str, suffix: str) -> None:
    click = 0.01 * made.tone(2, 48_000)
    click[0, 48_000:48_200] = 0.9
    source = made.write_video(tmp_path / f"in{suffix}", range(60), sound=click, sound_rate_hz=48_000, sound_codec=codec)
    before = read_audio(source)
    after = read_audio(rewritten(source, tmp_path / "out.mp4"))
    assert before is not None
    assert after is not None
    peak = [a.start_s + int(np.argmax(np.abs(a.samples))) / 16_000 for a in (before, after)]
    assert peak[1] == pytest.approx(peak[0], abs=0.004)
    assert peak[0] == pytest.approx(1.002, abs=0.03 if suffix == ".ts" else 0.004)  # TS cannot tell a coder's delay


def test_sound_whose_clock_runs_back_is_kept_as_far_as_it_goes_on(tmp_path: Path) -> None:
    part = made.write_video(
        tmp_path / "a.ts", range(60), sound=made.tone(2, 48_000), sound_rate_hz=48_000, sound_codec="libmp3lame"
    )
    (tmp_path / "joined.ts").write_bytes(part.read_bytes() * 2)
    source = open_video(rewritten(tmp_path / "joined.ts", tmp_path / "out.mp4"))
    assert len(list(source.frames())) == 120
    assert read_audio(tmp_path / "out.mp4") is not None


def test_sound_of_ones_own(tmp_path: Path) -> None:
    samples = made.tone(2, 16_000)[0] * np.repeat([1, 0], 16_000).astype(np.float32)
    path = write(tmp_path / "a.mp4", list(range(60)), Fraction(1, 30), audio=Audio(samples, 16_000))
    audio = read_audio(path)
    assert audio is not None
    n = min(audio.samples.size, samples.size)
    assert audio.duration_s == pytest.approx(2, abs=0.1)
    assert np.corrcoef(audio.samples[:n], samples[:n])[0, 1] > 0.99


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    def images():  # type: ignore[no-untyped-def]
        for i in range(80):
            yield made.numbered_picture(i)
        assert [p.suffix for p in tmp_path.iterdir()] == [".part"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_all(tmp_path / "a.mp4", images())
    assert list(tmp_path.iterdir()) == []


def test_an_older_file_survives_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"older")
    with pytest.raises(InputError, match="must come in order"):
        write(path, [5, 5], Fraction(1, 25))
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a.mp4", b"older")]


def test_a_name_that_cannot_be_written_is_said_before_the_first_picture(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written .*; check folder and permissions"):
        VideoWriter(tmp_path / f"{'x' * 250}.mp4", 64, 48, Fraction(1, 25))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full (Linux)")
def test_a_disk_that_fills_up_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = tmp_path / ".a.mp4.part"
    part.symlink_to("/dev/full")
    monkeypatch.setattr("tempfile.mkstemp", lambda **_: (os.open(part, os.O_WRONLY), str(part)))
    noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
    with (  # noqa: PT012 - which picture no longer fits depends on the device
        pytest.raises(OutputError, match="a.mp4: cannot be written .No space left on device.*; check space"),
        VideoWriter(tmp_path / "a.mp4", 320, 240, Fraction(1, 25)) as writer,
    ):
        for i in range(200):
            writer.write(np.roll(noise, i * 7), tick=i)
        pytest.fail("the disk was full long before the end")
    assert list(tmp_path.iterdir()) == []
