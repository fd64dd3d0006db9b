"""Scoring: pooled and per recording, missing predictions, groups, smoothing, paired comparison, published figures."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.signal import wiener as scipy_wiener

import made_traces
from affectrace import metrics
from affectrace.datasets.manifest import Manifest
from affectrace.errors import InputError
from affectrace.evaluate import best_smoothing, evaluate, pair, score
from affectrace.evaluate.compare import (
    MAMBA_VA_TABLE_1,
    MAMBA_VA_TABLE_2,
    MAVEN_TABLE_2,
    compare,
    published,
    published_folds,
    published_modalities,
)
from affectrace.evaluate.smoothing import parse_smoothing, smoothed, wiener
from affectrace.timeline import Timeline
from affectrace.trace import Trace

RATE = Fraction(25)


def trace(name: str, values: np.ndarray, *, valid: Any = True, **more: Any) -> Trace:
    return made_traces.trace(*np.where(valid, values.T, np.nan), rate=RATE, recording_id=name, **more)


def course(seed: int, n: int = 200) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(np.cumsum(rng.normal(0, 0.05, (n, 2)), axis=0), -1, 1)


def noisy(values: np.ndarray, seed: int, sd: float) -> np.ndarray:
    return np.clip(values + np.random.default_rng(seed).normal(0, sd, values.shape), -1, 1)


LABELS = [trace(f"r{i}", course(i)) for i in range(6)]
GOOD = [trace(t.recording_id, noisy(t.values, 10 + i, 0.05)) for i, t in enumerate(LABELS)]
POOR = [trace(t.recording_id, noisy(t.values, 20 + i, 0.5)) for i, t in enumerate(LABELS)]


def test_pooled_is_the_score_of_all_frames_put_together() -> None:
    found = evaluate(LABELS, GOOD, n_draws=200)
    x, y = (np.concatenate([t.values for t in side]) for side in (GOOD, LABELS))
    assert found.pooled.valence.ccc == pytest.approx(metrics.ccc(x[:, 0], y[:, 0]))
    assert found.pooled.arousal.rmse == pytest.approx(metrics.agreement(x[:, 1], y[:, 1]).rmse)
    assert found.each["r3"].arousal.ccc == pytest.approx(metrics.ccc(GOOD[3].arousal, LABELS[3].arousal))
    interval = found.intervals["mean_ccc"]
    assert interval.low <= found.pooled.mean_ccc <= interval.high
    assert (interval.n_units, interval.n_draws) == (6, 200)


def test_score_takes_traces_and_lists_of_them() -> None:
    assert score(GOOD, LABELS) == evaluate(LABELS, GOOD, n_draws=10).pooled
    assert score(trace("other", GOOD[0].values), LABELS[0]) == score(GOOD[:1], LABELS[:1])
    assert score(GOOD[:4], LABELS).n_missing == 400


def test_frames_without_prediction_are_left_out_and_counted() -> None:
    seen = np.ones(200, bool)
    seen[50:80] = False
    labelled = np.ones(200, bool)
    labelled[70:90] = False
    labels = [trace("a", course(1), valid=labelled), trace("b", course(2))]
    prediction = trace("a", course(1), valid=seen)
    found = evaluate(labels, [prediction, trace("elsewhere", course(3))], n_draws=50)
    assert found.pooled.valence.n == int((seen & labelled).sum())
    assert found.pooled.n_missing == 20 + 200
    assert found.each["a"].n_missing == 20
    assert dict(found.without_prediction) == {"b": 200}
    assert found.without_labels == ("elsewhere",)


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([], [], "share no recording"),
        (LABELS[:1], [], "labels: r0; predictions: none"),
        ([LABELS[0], LABELS[0]], GOOD, "labelled twice"),
        (LABELS[:1], [GOOD[0], trace("r0", course(0), person="left"), GOOD[0]], "has 3 predictions"),
        (
            [trace("a", course(1), valid=np.arange(200) < 100)],
            [trace("a", course(1), valid=np.arange(200) >= 100)],
            "no frame is both labelled and predicted",
        ),
    ],
)
def test_what_cannot_be_paired_is_refused(labels: list[Trace], predictions: list[Trace], message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(labels, predictions)


def test_undefined_scores_are_counted_not_averaged() -> None:
    flat = np.full((200, 2), 0.25)
    found = evaluate([LABELS[0], trace("c", flat)], [GOOD[0], trace("c", flat)], n_draws=50)
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    mean = values["mean_of_recordings"]["ccc_valence"]
    assert mean == {"mean": pytest.approx(found.each["r0"].valence.ccc), "n_defined": 1, "n": 2}
    assert values["recordings"]["c"]["ccc_valence"] is None
    assert values["recordings"]["c"]["why_undefined"]["valence"] == "both constant"


def test_groups_show_where_a_model_is_worse() -> None:
    mixed = [*GOOD[:3], *POOR[3:]]
    by = {t.recording_id: "day" if i < 3 else "night" for i, t in enumerate(LABELS)}
    day, night = evaluate(LABELS, mixed, by=by, n_draws=300).groups
    assert (day.name, day.n_recordings) == ("day", 3)
    assert day.difference["mean_ccc"] == pytest.approx(day.scores.mean_ccc - night.scores.mean_ccc)
    assert day.difference_intervals["mean_ccc"].low > 0
    assert night.difference_intervals["mean_ccc"].high < 0
    (alone,) = evaluate(LABELS, mixed, by=dict.fromkeys(by, "all"), n_draws=20).groups
    assert not alone.difference


def test_smoothing_helps_a_noisy_prediction_and_the_best_is_found() -> None:
    points = evaluate(LABELS, POOR, smoothing=True, windows_s=(0.2, 0.5), n_draws=20).smoothing
    assert [(p.method, p.window_s) for p in points[:2]] == [("none", 0.0), ("median", 0.2)]
    assert {p.method for p in points} == {"none", "median", "mean", "wiener"}
    best = best_smoothing(points)
    assert best.method != "none"
    assert best.mean_ccc > points[0].mean_ccc + 0.05


def test_wiener_equals_scipys() -> None:
    x = noisy(course(5), 1, 0.2)[:, 0]
    ours = wiener(Timeline.regular(200, RATE).times, x, window_s=8 / 25 + 0.001)
    theirs = scipy_wiener(x, 9)
    inner = slice(8, -8)  # at the ends theirs takes zeros into the window, and with them another noise
    assert np.abs(ours[inner] - theirs[inner]).max() < 0.02
    assert np.corrcoef(ours[inner], theirs[inner])[0, 1] > 0.999


def test_smoothing_fills_no_gap_and_takes_empty_traces() -> None:
    seen = np.arange(200) % 7 > 1
    assert np.array_equal(smoothed(trace("a", course(1), valid=seen), "wiener", 1.0).known, seen)
    assert smoothed(LABELS[0], "none", 0.0) is LABELS[0]
    assert len(smoothed(trace("a", np.zeros((0, 2))), "wiener", 1.0)) == 0


def test_smoothing_as_text() -> None:
    assert (parse_smoothing("none"), parse_smoothing("wiener:2")) == (("none", 0.0), ("wiener", 2.0))
    for text in ("", "gauss:1", "median", "mean:0", "mean:nan", "mean:-1", "mean:inf"):
        with pytest.raises(InputError):
            parse_smoothing(text)


def test_models_are_compared_on_the_frames_all_predict() -> None:
    seen = np.arange(200) >= 40
    partial = [trace(t.recording_id, t.values, valid=seen) for t in GOOD]
    found = compare(LABELS, {"poor": POOR, "partial": partial}, n_draws=300)
    assert (found.n_recordings, found.n_frames, found.n_left_out) == (6, 6 * 160, 6 * 40)
    assert list(found.scores) == ["partial", "poor"]
    (apart,) = found.differences
    assert (apart.a, apart.b) == ("partial", "poor")
    assert apart.intervals["mean_ccc"].low > 0
    assert apart.p["mean_ccc"] < 0.05
    x = np.concatenate([t.values[seen] for t in POOR])
    y = np.concatenate([t.values[seen] for t in LABELS])
    assert found.scores["poor"].valence.ccc == pytest.approx(metrics.ccc(x[:, 0], y[:, 0]))


@pytest.mark.parametrize("n_draws", [1, 9, 200])
def test_p_values_count_the_draws_and_are_never_zero(n_draws: int) -> None:
    (apart,) = compare(LABELS, {"good": GOOD, "poor": POOR}, n_draws=n_draws).differences
    both = [pair(LABELS, traces).pairs().values() for traces in (GOOD, POOR)]
    drawn = [metrics.bootstrap_draws(list(pairs), n_draws=n_draws)["mean_ccc"] for pairs in both]
    assert (drawn[0] > drawn[1]).all()
    assert apart.p["mean_ccc"] == pytest.approx(min(1, 2 * (0 + 1) / (n_draws + 1)))


def test_of_one_recording_there_is_no_interval_and_no_p_value() -> None:
    blind = trace("r1", GOOD[1].values, valid=np.zeros(200, bool))
    for labels, good in ((LABELS[:1], GOOD[:1]), (LABELS[:2], [GOOD[0], blind])):  # of the second no frame counts
        found = compare(labels, {"good": good, "poor": POOR[: len(labels)]}, n_draws=50)
        assert found.n_units == 1
        values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert set(values["differences"][0]["p"].values()) == {None}
        for some in (*values["differences"], *values["models"]):
            assert {(i["low"], i["high"]) for i in some["intervals"].values()} == {(None, None)}
        assert f"{evaluate(labels, good, n_draws=50).intervals['mean_ccc']:.3f}" == "no interval"


AFF_WILD2 = Manifest("aff-wild2", Path(), (), "aff-wild2")


def test_published_figures_belong_to_aff_wild2_its_own_sets_and_their_model() -> None:
    assert [p.name for p in published(AFF_WILD2, "validation")] == ["Mamba-VA fold 0", "baseline (ResNet-50)"]
    assert published(AFF_WILD2, "test") == MAMBA_VA_TABLE_2
    assert published(AFF_WILD2, "train") == published(AFF_WILD2, "validation", 2) == ()
    every = published_folds(AFF_WILD2, "mamba-va", range(6))
    assert every[0] == MAMBA_VA_TABLE_1[0]
    assert every["mean"].mean_ccc == pytest.approx(np.mean([0.4517, 0.4836, 0.4322, 0.4378, 0.4790]))
    assert set(published_folds(AFF_WILD2, "mamba-va", (0, 1, 2))) == {0}
    assert published_folds(AFF_WILD2, "mamba-va", (1,)) == published_folds(AFF_WILD2, "maven", range(6)) == {}
    three = ("visual", "audio", "text")
    assert published_modalities(AFF_WILD2, "maven", three) == MAVEN_TABLE_2
    assert published_modalities(AFF_WILD2, "maven", ("visual", "text")) == ()
    assert published_modalities(AFF_WILD2, "gru", three) == ()
