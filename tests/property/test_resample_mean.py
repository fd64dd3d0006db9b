"""Means over a new clock's frames: against the definition in exact fractions, on any two clocks."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from affectrace.timeline import Timeline
from affectrace.trace import GAP, KNOWN_SHARE, NO_FACE, NO_SPEECH, Trace

BASES = [Fraction(1, 25), Fraction(1001, 30000), Fraction(1, 90000) * 900, Fraction(1, 1000)]


@st.composite
def clocks(draw: Any, most: int = 14) -> Timeline:
    """Any clock: variable steps, several time bases (30000/1001 among them), starts before and after 0."""
    base = draw(st.sampled_from(BASES))
    steps = draw(st.lists(st.integers(1, 60), min_size=1, max_size=most))
    ticks = draw(st.integers(-40, 40)) + np.cumsum([0, *steps])
    return Timeline(ticks[:-1], base, int(ticks[-1]))


@st.composite
def traces(draw: Any, clock: Timeline | None = None) -> Trace:
    timeline = clock or draw(clocks())
    n = len(timeline)
    reason = np.array(draw(st.lists(st.sampled_from(["", "", NO_FACE, NO_SPEECH, GAP]), min_size=n, max_size=n)))
    valid = np.array([draw(st.sampled_from([(True, True), (True, False), (False, True)])) for _ in range(n)])
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    values = rng.uniform(-1, 1, (2, n))
    extra = np.where(rng.random(n) < 0.6, rng.normal(100, 50, n), np.nan)  # known where it likes
    return Trace("r", timeline, *values, valid & (reason == "")[:, None], reason, "labels", extras={"face_x": extra})


def edges(clock: Timeline) -> list[Fraction]:
    return [Fraction(int(t)) * clock.time_base for t in [*clock.ticks, clock.end_tick]]


def slow(trace: Trace, target: Timeline) -> list[tuple[list[float | None], Counter[str]]]:
    """(means of valence, arousal, extra, time of each reason) of every new frame; None where too little is known."""
    own, new, out = edges(trace.timeline), edges(target), []
    for a, b in pairwise(new):
        parts = [(i, min(b, own[i + 1]) - max(a, own[i])) for i in range(len(trace))]
        parts = [(i, w) for i, w in parts if w > 0]
        lost: Counter[str] = Counter()
        for i, w in parts:
            lost[str(trace.reason[i])] += w  # type: ignore[assignment]
        lost[GAP] += (b - a) - sum((w for _, w in parts), Fraction(0))  # type: ignore[assignment]
        means = []
        for x in (trace.valence, trace.arousal, trace.extras["face_x"]):
            known = [(float(x[i]), w) for i, w in parts if np.isfinite(x[i])]
            time = sum((w for _, w in known), Fraction(0))
            means.append(
                sum(v * float(w) for v, w in known) / float(time)
                if time and time >= Fraction(KNOWN_SHARE) * (b - a)
                else None
            )
        out.append((means, lost))
    return out


@settings(max_examples=200, deadline=None)
@given(traces(), clocks())
def test_a_mean_is_what_its_definition_says(trace: Trace, target: Timeline) -> None:
    made = trace.resample(target, "mean")
    for i, (means, lost) in enumerate(slow(trace, target)):
        assert made.valid[i].tolist() == [mean is not None for mean in means[:2]]
        if not made.known[i]:
            del lost[""]
            assert lost[made.reason[i]] == max(lost.values())
        for mean, x in zip(means, (made.valence, made.arousal, made.extras["face_x"]), strict=True):
            assert np.isfinite(x[i]) == (mean is not None)
            assert mean is None or abs(x[i] - mean) < 1e-9


@settings(max_examples=50, deadline=None)
@given(traces())
def test_a_clock_of_its_own_changes_nothing(trace: Trace) -> None:
    made = trace.resample(trace.timeline, "mean")
    assert made.reason.tolist() == trace.reason.tolist()
    assert np.allclose(made.values, trace.values, rtol=0, atol=1e-14, equal_nan=True)
