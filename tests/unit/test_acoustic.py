"""Prosody of synthetic sounds with known pitch, level and rate."""

from __future__ import annotations

import numpy as np
import pytest

from affectrace.features.prosody import PROSODY, prosody
from affectrace.media.audio import Audio
from affectrace.media.speech import VoiceActivity

RATE = 16_000


def sound(samples: np.ndarray, start_s: float = 0.0) -> Audio:
    return Audio(samples.astype(np.float32), RATE, start_s)


def sine(hz: float, seconds: float = 1.0, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)


def saw(hz: float, seconds: float = 1.0) -> np.ndarray:
    return 0.5 * (2 * ((hz * np.arange(round(seconds * RATE)) / RATE) % 1) - 1)


@pytest.mark.parametrize("make", [sine, saw])
@pytest.mark.parametrize("hz", [75.0, 110.0, 123.4, 220.0, 333.3, 450.0])
def test_pitch_within_one_percent(make: object, hz: float) -> None:
    features = prosody(sound(make(hz)))  # type: ignore[operator]
    pitch = features.column("pitch_hz")[5:-5]
    assert np.isfinite(pitch).all()
    assert np.abs(pitch / hz - 1).max() < 0.01


@pytest.mark.parametrize(("level", "db"), [(1.0, -3.0103), (0.1, -23.0103)])
def test_level_of_a_sine_is_exact(level: float, db: float) -> None:
    assert prosody(sound(sine(200, level=level))).column("loudness_db")[10:-10] == pytest.approx(db, abs=0.01)


def test_silence_and_noise_are_not_voiced() -> None:
    assert not prosody(sound(np.zeros(RATE))).valid.any()
    noise = np.random.default_rng(0).normal(size=RATE) * 0.1
    assert prosody(sound(noise)).valid.mean() < 0.05


def test_a_hum_far_below_the_voice_is_not_voiced() -> None:
    hum, voice = sine(100, 2.0, 0.005), saw(150, 2.0)
    features = prosody(sound(np.concatenate([hum, voice, hum])))
    assert features.valid[:195].all()  # nothing louder has been heard yet
    assert features.valid[205:395].all()
    assert not features.valid[410:].any()
    long_after = prosody(sound(np.concatenate([voice, np.zeros(12 * RATE), hum])))
    assert long_after.valid[-150:].all()  # the voice is forgotten


def test_the_future_changes_nothing() -> None:
    a, b = saw(120, 3.0), saw(120, 3.0)
    b[RATE * 2 :] = sine(333, 1.0)
    first, second = prosody(sound(a)), prosody(sound(b))
    before = 200 - 3  # rows that end 25 ms before the change
    assert np.array_equal(first.values[:before], second.values[:before])
    assert not np.array_equal(first.values[200:], second.values[200:])


def test_only_speech_counts() -> None:
    activity = VoiceActivity(((0.25, 0.5),))
    features = prosody(sound(sine(150)), activity)
    inside = (features.timeline.times >= 0.25) & (features.timeline.times < 0.5)
    assert np.array_equal(features.valid, inside)


@pytest.mark.parametrize("n", [0, 1, 160, 800])
def test_short_sounds(n: int) -> None:
    assert prosody(sound(np.ones(n) * 0.1)).values.shape == (n // 160, len(PROSODY))


def test_it_keeps_its_clock_and_its_blocks_do_not_show() -> None:
    whole = prosody(sound(saw(120, 12.0), start_s=0.5))
    assert whole.timeline.start_s == 0.5
    assert len(whole.timeline) == 1200
    assert np.allclose(whole.values[990:1010], prosody(sound(saw(120, 12.0)[: RATE * 11])).values[990:1010])


def test_syllables_of_a_beating_voice() -> None:
    seconds, per_s = 6, 4.0
    t = np.arange(seconds * RATE) / RATE
    voice = saw(130, seconds) * (0.05 + 0.95 * np.sin(np.pi * per_s * t) ** 2)
    rate = prosody(sound(voice)).column("rate_hz")
    assert np.nanmean(rate[300:]) == pytest.approx(per_s, rel=0.06)
