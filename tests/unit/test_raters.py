"""Agreement of raters against published tables, and gold standards whose right answer is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from affectrace.datasets.gold_standard import GoldConfig, ewe_weights, gold_standard, human_row, relative_delays
from affectrace.datasets.raters import (
    ICC_FORMS,
    Panel,
    agreement,
    icc,
    krippendorff_alpha,
    mean_pairwise_ccc,
)
from affectrace.errors import InputError
from affectrace.metrics import ccc
from affectrace.timeline import Timeline
from made_traces import trace

# Shrout & Fleiss 1979, table 2: six targets, four judges
SHROUT_FLEISS = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]

# Krippendorff 2011, example C: four observers, twelve units, missing values
N = math.nan
KRIPPENDORFF = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
        [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
    ]
).T


def test_icc_equals_shrout_and_fleiss() -> None:
    values = icc([*SHROUT_FLEISS, [1, N, 9, 9]])  # their table 4; a target that one did not rate is left out
    assert {k: round(v, 2) for k, v in values.items()} == {
        "1,1": 0.17,
        "2,1": 0.29,
        "3,1": 0.71,
        "1,k": 0.44,
        "2,k": 0.62,
        "3,k": 0.91,
    }


def test_what_is_undefined_is_nan() -> None:
    for table in (np.zeros((0, 3)), np.zeros((5, 1)), [[1, 2]], np.ones((4, 3)), [[N, 1], [1, N]]):
        assert all(math.isnan(v) for v in icc(table).values())
        assert tuple(icc(table)) == ICC_FORMS
    for table in (np.zeros((0, 2)), [[1, N], [N, 2]], np.ones((3, 3))):
        assert math.isnan(krippendorff_alpha(table))
    for table in (np.zeros((5, 1)), [[1, N], [N, 1]]):
        assert math.isnan(mean_pairwise_ccc(table))


def test_alpha_equals_krippendorffs_example() -> None:
    assert krippendorff_alpha(KRIPPENDORFF) == pytest.approx(0.849, abs=5e-4)


# ---- panels

RATE = 10
TRUTH = np.sin(np.arange(600) / 37) * 0.6 + np.sin(np.arange(600) / 11) * 0.2


def panel(columns: Mapping[str, np.ndarray], name: str = "r") -> Panel:
    table = np.stack(list(columns.values()), axis=1)
    return Panel(name, Timeline.regular(len(table), RATE), tuple(columns), np.stack([table, -table], axis=2))


def late(seconds: float, values: np.ndarray = TRUTH) -> np.ndarray:
    """What a rater says who answers late (or early)."""
    k = round(seconds * RATE)
    padded = np.concatenate([np.full(max(k, 0), N), values, np.full(max(-k, 0), N)])
    return padded[: len(values)] if k >= 0 else padded[-len(values) :]


def test_a_panel_brings_traces_onto_one_clock() -> None:
    first, second = (trace([x] * n, [-x] * n, rate=rate) for rate, n, x in ((10, 40, 0.5), (5, 15, 0.1)))
    both = Panel.of({"a": first, "b": second})  # the second ends at 3 of 4 s
    assert both.raters == ("a", "b")
    assert both.values[:30, 1].tolist() == [[0.1, -0.1]] * 30
    assert np.isnan(both.values[30:, 1]).all()
    with pytest.raises(InputError, match="different recordings: other, r"):
        Panel.of({"a": first, "b": replace(first, recording_id="other")})


def test_agreement_is_pooled_over_recordings_by_rater() -> None:
    first = panel({"a": TRUTH, "b": TRUTH + 0.1}, "r1")
    second = panel({"b": TRUTH * 0.5, "a": TRUTH * 0.4, "c": TRUTH}, "r2")
    valence, arousal = agreement([first, second])
    assert (valence.n_raters, valence.n_frames, valence.n_complete) == (3, 1200, 600)
    table = np.full((1200, 3), N)
    table[:600, 0], table[:600, 1] = TRUTH, TRUTH + 0.1
    table[600:] = np.stack([TRUTH * 0.4, TRUTH * 0.5, TRUTH], axis=1)
    assert valence.icc == icc(table)
    assert valence.alpha == krippendorff_alpha(table)
    pairs = [ccc(table[:, 0], table[:, 1]), *(ccc(table[600:, k], TRUTH) for k in (0, 1))]
    assert valence.mean_ccc == pytest.approx(np.mean(pairs))
    assert arousal.dimension == "arousal"


def test_the_human_row_is_each_rater_against_the_others() -> None:
    a, b, c = TRUTH, TRUTH * 0.5, TRUTH + 0.2
    row = human_row([panel({"a": a, "b": b, "c": c})])
    assert row.each["a"].valence.ccc == pytest.approx(ccc(a, np.clip((b + c) / 2, -1, 1)))
    assert row.pooled.valence.ccc == pytest.approx(np.mean([s.valence.ccc for s in row.each.values()]))
    assert row.to_dict()["ccc_valence"] == row.pooled.valence.ccc
    assert f"{row.intervals['mean_ccc']:.3f}" == "no interval"  # one recording cannot be resampled
    with pytest.raises(InputError, match="needs several raters, got 1"):
        human_row([panel({"a": a})])


def test_the_human_row_undoes_delays_and_does_not_weigh_the_one_who_is_scored() -> None:
    slow = {"a": TRUTH, "b": late(1.0), "c": late(2.0)}
    plain = human_row([panel(slow)])
    aligned = human_row([panel(slow)], GoldConfig(align=True, max_shift_s=3.0, step_s=0.5))
    assert aligned.pooled.valence.ccc > 0.98 > plain.pooled.valence.ccc
    noise = np.random.default_rng(3).uniform(-1, 1, len(TRUTH))
    row = human_row([panel({"good": TRUTH, "fine": TRUTH * 0.9, "odd": noise})], GoldConfig(method="ewe"))
    weights = ewe_weights(("fine", "odd"), np.stack([TRUTH * 0.9, noise], axis=1))
    gold = (weights["fine"] * TRUTH * 0.9 + weights["odd"] * noise) / (weights["fine"] + weights["odd"])
    assert row.each["good"].valence.ccc == pytest.approx(ccc(TRUTH, gold))


# ---- gold standards


def test_the_mean_counts_who_said_something() -> None:
    a, b = TRUTH.copy(), TRUTH * 0.5
    a[:10] = N
    b[:5] = N
    (gold,) = gold_standard([panel({"a": a, "b": b})])
    assert gold.known.tolist() == [False] * 5 + [True] * 595
    assert gold.reason[0] == "not labelled"
    assert np.allclose(gold.valence[5:10], b[5:10])
    assert np.allclose(gold.valence[10:], (a + b)[10:] / 2)
    assert np.allclose(gold.extras["valence_sd"][10:], np.abs(a - b)[10:] / math.sqrt(2))
    assert np.isnan(gold.extras["valence_sd"][5:10]).all()
    assert gold.source == "gold-mean"


def test_ewe_weighs_raters_by_their_correlation_with_the_mean() -> None:
    rng = np.random.default_rng(0)
    table = np.stack([TRUTH, TRUTH + 0.1 * rng.normal(size=600), rng.normal(size=600) * 0.3, -TRUTH * 0.2], axis=1)
    mean = table.mean(axis=1)
    weights = ewe_weights("abcd", table)
    for i, name in enumerate("abc"):
        assert weights[name] == pytest.approx(np.corrcoef(table[:, i], mean)[0, 1])
    assert weights["d"] == 0  # against the others: left out, not turned round
    clipped = np.clip(table, -1, 1)
    (gold,) = gold_standard([panel(dict(zip("abcd", clipped.T, strict=True)))], GoldConfig("ewe"))
    w = gold.provenance["weights"]["valence"]
    assert np.allclose(gold.valence, clipped @ np.array(list(w.values())) / sum(w.values()))
    assert ccc(gold.valence, TRUTH) > ccc(clipped.mean(axis=1), TRUTH)
    with pytest.raises(InputError, match="no rater correlates"):
        ewe_weights("ab", np.ones((5, 2)))


def test_a_common_delay_moves_all_raters_back() -> None:
    (gold,) = gold_standard([panel({"a": late(2), "b": late(2)})], GoldConfig(delay_s=2))
    assert gold.known.tolist() == [True] * 580 + [False] * 20
    assert np.allclose(gold.valence[:580], TRUTH[:580])


def test_delays_between_raters_are_found_and_taken_out() -> None:
    made = panel({"a": late(0.4), "b": late(1.5), "c": late(-0.7), "d": late(0.4)})
    assert relative_delays([made], max_shift_s=3) == pytest.approx({"a": 0, "b": 1.1, "c": -1.1, "d": 0}, abs=0.1001)
    (gold,) = gold_standard([made], GoldConfig(align=True, delay_s=0.4, max_shift_s=3))
    plain = gold_standard([made])[0]
    inside = slice(30, 560)
    assert ccc(gold.valence[inside], TRUTH[inside]) > 0.999 > ccc(plain.valence[inside], TRUTH[inside])
    assert gold.provenance["delays_s"]["b"] == pytest.approx(1.5, abs=0.1001)


def test_a_dimension_that_nobody_rated_is_not_labelled() -> None:
    made = panel({"a": TRUTH, "b": TRUTH * 0.9, "c": TRUTH * 0.5})
    made = replace(made, values=np.where([True, False], made.values, N))
    for config in (GoldConfig(), GoldConfig("ewe", centre=True, align=True, max_shift_s=1.0, step_s=0.5)):
        (gold,) = gold_standard([made], config)
        assert gold.valid.all(axis=0).tolist() == [True, False]
        assert gold.known.all()
        row = human_row([made], config, n_draws=20)
        assert row.pooled.valence.ccc > 0.7
        assert row.pooled.arousal.n == 0


def test_centring_takes_out_each_raters_zero() -> None:
    a, b = TRUTH * 0.5 + 0.3, TRUTH * 0.5 - 0.1
    b[:300] = N  # a mean over who is there would jump by 0.2 at frame 300
    (gold,) = gold_standard([panel({"a": a, "b": b})], GoldConfig(centre=True))
    half = TRUTH * 0.5
    step = (gold.valence - half)[300] - (gold.valence - half)[299]
    assert abs(step) < 0.06
    plain = gold_standard([panel({"a": a, "b": b})])[0].valence - half
    assert plain[300] - plain[299] == pytest.approx(-0.2)
