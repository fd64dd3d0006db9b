from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from affectrace import metrics
from affectrace.errors import InputError

RNG = np.random.default_rng(3)
X, Y = RNG.normal(size=200), RNG.normal(size=200) * 0.5 + 0.2


def test_against_textbook() -> None:
    a = metrics.agreement(X, Y)
    ccc = 2 * np.cov(X, Y, bias=True)[0, 1] / (X.var() + Y.var() + (X.mean() - Y.mean()) ** 2)
    assert a.ccc == pytest.approx(ccc, abs=1e-12)
    assert a.pcc == pytest.approx(np.corrcoef(X, Y)[0, 1], abs=1e-12)
    assert a.rmse == pytest.approx(np.sqrt(((X - Y) ** 2).mean()))
    assert a.sagr == pytest.approx(np.mean((X > 0) == (Y > 0)))
    # means 2 and 3, variances 2/3, covariance 2/3: 2 * 2/3 / (4/3 + 1) = 4/7
    assert metrics.ccc([1, 2, 3], [2, 3, 4]) == pytest.approx(4 / 7)


@pytest.mark.parametrize(
    ("x", "y", "ccc", "why"),
    [
        ([0.1] * 3, [0.1] * 3, math.nan, "both constant"),
        ([0.1] * 3, [0.4] * 3, math.nan, "both constant"),
        ([0.1] * 3, [0.1, 0.2, 0.3], 0.0, "prediction constant"),
        ([0.1, 0.2, 0.3], [0.1] * 3, 0.0, "target constant"),
        ([], [], math.nan, "no frames"),
    ],
)
def test_undefined_has_a_reason(x: list[float], y: list[float], ccc: float, why: str) -> None:
    a = metrics.agreement(x, y)
    assert a.ccc == pytest.approx(ccc, nan_ok=True)
    assert math.isnan(a.pcc)
    assert a.why_undefined == why


def test_masked_frames_are_left_out_and_unmasked_nan_is_refused() -> None:
    x, y, mask = np.append(X, np.nan), np.append(Y, -5.0), np.append(np.ones(200, bool), False)
    assert metrics.agreement(x, y, mask) == metrics.agreement(X, Y)
    for arguments in ((x, y), (X, y), (X, Y, mask)):
        with pytest.raises(InputError):
            metrics.agreement(*arguments)


@given(st.integers(0, 2**32 - 1), st.floats(-3, 3), st.floats(0.1, 3))
def test_ccc_is_symmetric_bounded_and_shift_sensitive(seed: int, shift: float, scale: float) -> None:
    x = np.random.default_rng(seed).normal(size=40)
    y = x * scale + shift
    c = metrics.ccc(x, y)
    assert c == pytest.approx(metrics.ccc(y, x))
    assert -1 <= c <= 1
    assert c <= metrics.ccc(x, x * scale + x.mean() * (1 - scale)) + 1e-9


def pairs_of(n: int) -> list[metrics.Pair]:
    rng = np.random.default_rng(1)
    out = []
    for i in range(n):
        t = rng.normal(size=(30 + i, 2)) * 0.2 + rng.normal(size=2) * 0.2
        out.append((t * 0.8 + 0.1 + rng.normal(size=t.shape) * 0.1, t, rng.random(len(t)) > 0.1))
    return out


def test_bootstrap_of_sums_equals_scoring_the_drawn_recordings() -> None:
    pairs = pairs_of(4)
    drawn = np.random.default_rng(9).multinomial(4, np.full(4, 0.25), size=5)
    direct = [metrics.score_pooled([p for p, k in zip(pairs, row, strict=True) for _ in range(k)]) for row in drawn]
    fast = metrics.bootstrap_draws(pairs, n_draws=5, seed=9)
    assert np.allclose(fast["ccc_valence"], [s.valence.ccc for s in direct], atol=1e-10)
    assert np.allclose(fast["mean_ccc"], [s.mean_ccc for s in direct], atol=1e-10)


@pytest.mark.parametrize(
    ("n", "shown", "warned"), [(1, "no interval", True), (2, "0.100 to 0.900", True), (6, "0.100 to 0.900", False)]
)
def test_intervals_over_few_recordings_come_with_a_warning(n: int, shown: str, warned: bool) -> None:
    draws = np.append(np.linspace(0, 1, 1001), math.nan)
    assert f"{metrics.Interval.of(draws, n, 0.8):.3f}" == shown
    assert bool(metrics.few_units(n)) == warned
    assert f"{metrics.Interval.of(np.full(3, math.nan), 7):.3f}" == "undefined"


def test_a_recording_in_which_no_frame_counts_is_not_resampled() -> None:
    (x, y, mask), *_ = pairs = pairs_of(2)
    assert metrics.bootstrap(pairs, n_draws=50)["mean_ccc"].n_units == 2
    nothing = metrics.bootstrap([(x, y, mask), (x, y, np.zeros_like(mask))], n_draws=50)["mean_ccc"]
    assert nothing.n_units == 1
    assert math.isnan(nothing.low)
