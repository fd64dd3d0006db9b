from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affectrace.features.base import ExtractorId, Features
from affectrace.models.zero_shot import CIRCUMPLEX, ZeroShot, ZeroShotConfig, running_z
from affectrace.timeline import Timeline
from affectrace.trace import NO_FACE, NO_SPEECH, Span

CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
FPS, N = 20, 100
CLOCK = Timeline.regular(N, FPS)


def faces(name: str, valid: np.ndarray | None = None, n: int = N) -> Features:
    p = np.zeros((n, 7), np.float32)
    p[:, CLASSES.index(name)] = 1
    ok = np.ones(n, bool) if valid is None else valid
    return Features("face", CLOCK.cut(slice(0, n)), p, ok, ExtractorId("fer", columns=CLASSES))


def sound(loudness: np.ndarray, pitch: np.ndarray | None = None, valid: np.ndarray | None = None) -> Features:
    n = len(loudness)
    pitch = np.full(n, 120.0) if pitch is None else pitch
    values = np.stack([loudness, pitch, np.full(n, 4.0)], axis=1).astype(np.float32)
    ok = np.ones(n, bool) if valid is None else valid
    clock = Timeline.regular(n, 100)
    return Features("voice", clock, values, ok, ExtractorId("prosody", columns=("loudness_db", "pitch_hz", "rate_hz")))


SAID = [Span("utterance", 1.0, 2.0, "lovely", valence=0.8, arousal=0.1, confidence=0.9)]


@pytest.mark.parametrize("name", sorted(CIRCUMPLEX))
def test_a_certain_expression_lands_on_its_point(name: str) -> None:
    estimate = ZeroShot().forward(CLOCK, expression=faces(name))
    assert estimate.valid.all()
    assert estimate.valence[-1] == pytest.approx(CIRCUMPLEX[name][0], abs=1e-6)
    assert estimate.arousal[-1] == pytest.approx(CIRCUMPLEX[name][1], abs=1e-6)


def test_missing_face_is_a_mask_with_a_reason_however_much_is_said() -> None:
    ok = np.arange(N) < 50
    estimate = ZeroShot().forward(
        CLOCK, expression=faces("happy", ok), prosody=sound(np.full(500, -20.0)), utterances=SAID
    )
    assert np.array_equal(estimate.valid, ok)
    assert set(estimate.reason[50:]) == {NO_FACE}
    assert np.isnan(estimate.valence[50:]).all()
    assert np.isfinite(estimate.parts["audio"].arousal).all()


def test_sound_alone_is_estimated_where_there_are_words() -> None:
    estimate = ZeroShot().forward(CLOCK, prosody=sound(np.full(500, -20.0)), utterances=SAID)
    assert estimate.valid[CLOCK.frame_at(1.5)]
    assert estimate.reason[0] == "no words for valence"
    assert estimate.valence[CLOCK.frame_at(1.9)] == pytest.approx(0.8)


def test_silence_says_so_and_nothing_gives_nothing() -> None:
    quiet = sound(np.full(500, -20.0), valid=np.zeros(500, bool))
    estimate = ZeroShot().forward(CLOCK, prosody=quiet, utterances=[])
    assert not estimate.valid.any()
    assert set(estimate.reason) == {NO_SPEECH}
    assert not ZeroShot().forward(CLOCK).valid.any()
    assert len(ZeroShot().forward(Timeline.regular(0, 25), expression=faces("sad", n=0)).valence) == 0


def test_louder_than_before_is_more_aroused() -> None:
    loud = np.where(np.arange(500) < 300, -30.0, -12.0)
    arousal = ZeroShot().audio(sound(loud), CLOCK).arousal
    assert arousal[40] == pytest.approx(0, abs=0.02)
    assert arousal[CLOCK.frame_at(4.5)] > 0.3
    softer = ZeroShot().audio(sound(-loud - 50), CLOCK).arousal
    assert softer[CLOCK.frame_at(4.5)] < -0.3


def test_words_fade_after_their_end_and_not_before_their_start() -> None:
    part = ZeroShot().text(SAID, CLOCK)
    assert np.isnan(part.valence[CLOCK.frame_at(0.95)])
    assert part.confidence[CLOCK.frame_at(1.5)] == 0.9
    assert 0 < part.confidence[CLOCK.frame_at(3.0)] < 0.9
    assert np.isnan(part.valence[CLOCK.frame_at(3.6)])


def test_fusion_is_the_stated_weighted_mean() -> None:
    model = ZeroShot(ZeroShotConfig(smoothing_s=1e-9))
    estimate = model.forward(CLOCK, expression=faces("sad"), utterances=SAID)
    i = CLOCK.frame_at(1.5)
    expected = (0.6 * 1.0 * -0.63 + 0.4 * 0.9 * 0.8) / (0.6 + 0.4 * 0.9)
    assert estimate.valence[i] == pytest.approx(expected, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(5, 95), st.integers(0, 1000))
def test_without_words_the_future_changes_nothing(cut: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(7), N).astype(np.float32)
    face = Features("face", CLOCK, p, rng.random(N) > 0.2, ExtractorId("fer", columns=CLASSES))
    loud = rng.normal(-25, 5, 500)
    whole = ZeroShot().forward(CLOCK, expression=face, prosody=sound(loud))
    loud2, p2 = loud.copy(), p.copy()
    loud2[cut * 100 // FPS + 1 :] = 0
    p2[cut + 1 :] = np.eye(7, dtype=np.float32)[0]
    changed = Features("face", CLOCK, p2, face.valid, face.extractor)
    again = ZeroShot().forward(CLOCK, expression=changed, prosody=sound(loud2))
    assert np.array_equal(whole.valence[: cut + 1], again.valence[: cut + 1], equal_nan=True)
    assert np.array_equal(whole.arousal[: cut + 1], again.arousal[: cut + 1], equal_nan=True)


def test_running_z_uses_the_past_only_and_the_prior_spread() -> None:
    c = ZeroShotConfig()
    x = np.r_[np.zeros(50), 6.0]
    z = running_z(np.arange(51) / 50, x, 6.0, c)
    assert (z[:50] == 0).all()
    assert 0.9 < z[50] < 1.3  # one prior SD above, the spread narrowed by one second of constancy
    assert np.isnan(running_z(np.arange(3.0), np.full(3, np.nan), 1.0, c)).all()
