"""The zero-shot model on made features: what each modality adds, what is missing, and causality."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affectrace.features.base import Features
from affectrace.features.face import VOTES
from affectrace.models.zero_shot import CIRCUMPLEX, ZeroShot, ZeroShotConfig
from affectrace.sequences import Sequence
from affectrace.trace import NO_FACE, NO_SPEECH, Trace
from made_zero_shot import CLOCK, UTTERANCES, N, expressions, voice


def predicted(model: ZeroShot | None = None, **inputs: Features) -> Trace:
    return (model or ZeroShot()).predict(Sequence("r", CLOCK, inputs, config=ZeroShot.sequences))


@pytest.mark.parametrize("name", sorted(CIRCUMPLEX))
def test_a_certain_expression_lands_on_its_point(name: str) -> None:
    trace = predicted(expression=expressions(name))
    assert trace.valid.all()
    assert (trace.valence[-1], trace.arousal[-1]) == pytest.approx(CIRCUMPLEX[name], abs=1e-6)


def test_people_who_disagree_give_their_mean_and_spread() -> None:
    """Of ten people three see joy, three anger, two no expression, and two cannot tell."""
    votes = dict.fromkeys(VOTES, 0.0) | {"happy": 0.3, "angry": 0.3, "neutral": 0.2, "unknown": 0.2}
    trace = predicted(expression=expressions(np.tile(list(votes.values()), (N, 1))))
    voters = np.array([CIRCUMPLEX[name] for name in ["happy"] * 3 + ["angry"] * 3 + ["neutral"] * 2])
    assert (trace.valence[-1], trace.arousal[-1]) == pytest.approx(tuple(voters.mean(axis=0)), abs=1e-6)
    for i, name in enumerate(("valence", "arousal")):
        assert trace.extras[f"visual_{name}_sd"][-1] == pytest.approx(voters[:, i].std(), abs=1e-6)
    assert trace.extras["visual_weight"][-1] == pytest.approx(0.8)


def test_frames_without_a_face_are_invalid_whatever_is_said() -> None:
    ok = np.arange(N) < 50
    trace = predicted(expression=expressions("happy", ok), voice=voice(0.1, 0.5), utterances=UTTERANCES)
    assert np.array_equal(trace.known, ok)
    assert set(trace.reason[50:]) == {NO_FACE}
    assert np.isnan(trace.values[50:]).all()
    assert np.isfinite(trace.extras["audio_arousal"]).all()


def test_a_voice_without_words_is_estimated_where_it_speaks() -> None:
    speaks = np.arange(10) < 4
    trace = predicted(voice=voice(-0.3, 0.5, speaks))
    there = trace.timeline.times < 2 + ZeroShotConfig().hold_s  # and shortly after
    assert np.array_equal(trace.valid, np.stack([there, there], axis=1))
    assert (trace.valence[5], trace.arousal[5]) == pytest.approx((-0.3, 0.5), abs=1e-6)
    assert set(trace.reason[~there]) == {NO_SPEECH}


def test_silence_and_no_features_at_all_give_no_estimate() -> None:
    for trace in (predicted(voice=voice(0.1, 0.5, False)), predicted()):
        assert not trace.valid.any()
        assert set(trace.reason) == {NO_SPEECH}


def test_the_voice_fades_after_its_end_and_not_before_its_start() -> None:
    part = ZeroShot().audio(voice(0.1, np.arange(10) / 10, np.isin(np.arange(10), [2, 3])), CLOCK)
    assert np.isnan(part.arousal[CLOCK.frame_at(0.95)])
    assert part.arousal[[CLOCK.frame_at(t) for t in (1.0, 1.45, 1.5, 3.4)]] == pytest.approx([0.2, 0.2, 0.3, 0.3])
    assert part.confidence[CLOCK.frame_at(1.95)] == 1
    assert part.confidence[CLOCK.frame_at(2.75)] == pytest.approx(0.5)
    assert np.isnan(part.valence[CLOCK.frame_at(3.5)])


def test_words_fade_after_their_end_and_not_before_their_start() -> None:
    part = ZeroShot().text(UTTERANCES, CLOCK)
    assert np.isnan(part.valence[CLOCK.frame_at(0.95)])
    assert part.confidence[CLOCK.frame_at(1.5)] == pytest.approx(0.9)
    assert 0 < part.confidence[CLOCK.frame_at(3.0)] < 0.9
    assert np.isnan(part.valence[CLOCK.frame_at(3.6)])


def test_fusion_is_the_stated_weighted_mean() -> None:
    trace = predicted(ZeroShot(ZeroShotConfig(smoothing_s=1e-9)), expression=expressions("sad"), utterances=UTTERANCES)
    expected = (0.6 * 1.0 * -0.63 + 0.4 * 0.9 * 0.8) / (0.6 + 0.4 * 0.9)
    assert trace.valence[CLOCK.frame_at(1.5)] == pytest.approx(expected, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(5, 95), st.integers(0, 1000))
def test_of_a_face_the_future_changes_nothing(cut: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    p, seen = rng.dirichlet(np.ones(10), N), rng.random(N) > 0.2
    p2 = p.copy()
    p2[cut + 1 :] = np.eye(10)[0]
    whole, again = predicted(expression=expressions(p, seen)), predicted(expression=expressions(p2, seen))
    assert np.array_equal(whole.values[: cut + 1], again.values[: cut + 1], equal_nan=True)
