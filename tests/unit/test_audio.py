"""Sound on the pictures' clock: any file, one channel, right start, holes reported."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

import made_media as made
from affectrace.media.audio import Audio, read_audio
from affectrace.media.probe import probe


def read(path: Path, *rate_hz: int) -> Audio:
    audio = read_audio(path, *rate_hz)
    assert audio is not None
    return audio


def loudest_hz(samples: np.ndarray) -> float:
    """At 16 kHz."""
    return float(np.argmax(np.abs(np.fft.rfft(samples * np.hanning(samples.size)))) * 16_000 / samples.size)


@pytest.mark.parametrize(
    ("name", "codec", "rate_hz", "channels", "sample_format"),
    [
        ("a.wav", "pcm_s16le", 16_000, 1, ""),
        ("a.wav", "pcm_u8", 8_000, 1, ""),
        ("a.wav", "pcm_f32le", 48_000, 2, ""),
        ("a.flac", "flac", 44_100, 2, "s32"),  # 24 bits in FLAC
        ("a.mp3", "libmp3lame", 44_100, 2, ""),
        ("a.m4a", "aac", 48_000, 1, ""),
        ("a.ogg", "libopus", 48_000, 2, ""),
        ("a.mkv", "pcm_s24le", 22_050, 1, ""),
    ],
)
def test_any_codec_gives_the_same_sound(
    tmp_path: Path, name: str, codec: str, rate_hz: int, channels: int, sample_format: str
) -> None:
    samples = np.repeat(made.tone(2, rate_hz), channels, 0)
    audio = read(made.write_sound(tmp_path / name, samples, rate_hz, codec, sample_format=sample_format))
    assert (audio.sample_rate_hz, audio.notes, audio.gaps, audio.silent) == (16_000, (), (), False)
    assert audio.duration_s == pytest.approx(2, abs=0.06)  # lossy codecs pad to whole blocks
    middle = audio.samples[8000:24000]
    assert loudest_hz(middle) == pytest.approx(440, abs=1.5)
    rms = float(np.sqrt(np.mean(middle**2)))
    assert rms == pytest.approx(0.5 / np.sqrt(2), abs=0.02)  # full scale is kept, channels are averaged
    assert not audio.samples.flags.writeable


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100])
def test_length_and_place_survive_resampling(tmp_path: Path, rate_hz: int) -> None:
    click = np.zeros((1, rate_hz), np.float32)
    click[0, rate_hz // 2] = 0.9
    audio = read(made.write_sound(tmp_path / "a.wav", click, rate_hz, "pcm_f32le"))
    assert audio.samples.size == 16_000
    assert abs(int(np.argmax(audio.samples)) - 8_000) <= 1


def test_surround_is_mixed_down(tmp_path: Path) -> None:
    channels = np.zeros((6, 48_000), np.float32)
    channels[2] = made.tone(1, 48_000)  # the centre: where speech is
    channels[3] = 0.9  # the subwoofer: not heard in one channel
    audio = read(made.write_sound(tmp_path / "a.wav", channels, 48_000, "pcm_f32le", layout="5.1"))
    assert loudest_hz(audio.samples) == pytest.approx(440, abs=1.5)
    assert abs(float(audio.samples.mean())) < 1e-3


def test_a_late_track_starts_late(tmp_path: Path) -> None:
    audio = read(made.write_video(tmp_path / "a.mkv", range(60), sound=made.tone(1, 16_000), sound_start=12_000))
    silence = int(np.argmax(np.abs(audio.samples) > 0.1)) / 16_000  # AAC's own lead-in
    assert audio.start_s + silence == pytest.approx(0.75, abs=0.07)


def test_encoder_delay_is_removed(tmp_path: Path) -> None:
    """A click stays where it was through AAC in mp4, whose first 1024 samples are the encoder's own."""
    click = np.zeros((1, 48_000), np.float32)
    click[0, 24_000:24_020] = 0.9
    audio = read(made.write_video(tmp_path / "a.mp4", range(30), sound=click, sound_rate_hz=48_000), 48_000)
    assert audio.start_s == 0.0
    assert int(np.argmax(np.abs(audio.samples))) == pytest.approx(24_010, abs=15)


def test_holes_are_silent_and_reported(tmp_path: Path) -> None:
    audio = read(made.write_seconds(tmp_path / "a.mkv", (0, 1, 4)))
    assert audio.gaps == ((2.0, 4.0),)
    assert audio.notes == ("1 gap in the sound (2.00 s, first at 2.00 s) taken as silence",)
    assert audio.samples.size == 5 * 16_000
    assert not audio.samples[2 * 16_000 + 50 : 4 * 16_000 - 50].any()
    assert np.abs(audio.samples[4 * 16_000 :]).max() > 0.4


def test_no_track_and_an_empty_track(tmp_path: Path) -> None:
    path = made.write_video(tmp_path / "a.mp4", range(3))
    assert read_audio(path) is probe(path).audio is read_audio(tmp_path) is None
    with av.open(str(tmp_path / "a.wav"), "w") as out:
        out.add_stream("pcm_s16le", rate=16_000)
        out.start_encoding()
    audio = read(tmp_path / "a.wav")
    assert (audio.samples.size, audio.notes, audio.silent) == (0, ("the sound track is empty",), True)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "seconds", "start_s", "silent"),
    [
        ("jfk.flac", 11.0, 0.0, False),
        ("WolfgangLanger_Pexels.mp4", 19.69, 0.0, True),
        ("face_noface.mov", 3.966, 107164 / 44100, False),
        ("single_face.mp4", 2.4185, 0.0, False),
    ],
)
def test_real_clips(clips: Path, name: str, seconds: float, start_s: float, silent: bool) -> None:
    audio = read(clips / name)
    assert (audio.start_s, audio.silent) == (start_s, silent)
    assert audio.duration_s == pytest.approx(seconds, abs=0.002)
