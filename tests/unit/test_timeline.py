"""Exact clocks: rates, cuts, resampling, JSON, and what is refused."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from affectrace.errors import InputError
from affectrace.timeline import Timeline

NTSC = Fraction(30000, 1001)


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    steps = draw(st.lists(st.integers(1, 5000), min_size=0, max_size=60))
    start = draw(st.integers(-100_000, 100_000))
    base = Fraction(1, draw(st.sampled_from([1, 25, 600, 90_000, 30_000])))
    ticks = start + np.concatenate([[0], np.cumsum(steps)]).astype(np.int64)
    return Timeline(ticks, base, int(ticks[-1]) + draw(st.integers(1, 5000)))


def test_rates_stay_exact() -> None:
    hour = Timeline.regular(107_893, NTSC)
    assert hour.ticks[-1] * hour.time_base == Fraction(107_892 * 1001, 30000)
    assert hour.times[30] == 1.001
    assert hour.end_tick * hour.time_base == 107_893 / NTSC
    late = Timeline.regular(3, Fraction(24000, 1001), Fraction(-1001, 48000))
    assert late.ticks[0] * late.time_base == Fraction(-1001, 48000)
    assert late.frame_at(0.0) == 0


def test_equal_times_on_two_clocks_are_equal_numbers() -> None:
    video, audio = Timeline.regular(1000, 25), Timeline.regular(2000, 50)
    assert np.array_equal(video.times, audio.times[::2])
    assert np.array_equal(audio.frames_at(video.times), np.arange(0, 2000, 2))
    assert Timeline(np.array([0, 2]), Fraction(1, 50), 4) == Timeline(np.array([0, 1]), Fraction(1, 25), 2)
    assert Timeline(np.array([0, 2]), Fraction(1, 50), 4) != Timeline(np.array([0, 1]), Fraction(1, 25), 3)


@pytest.mark.parametrize(
    ("ticks", "end", "message"),
    [
        ([0, 2, 2], 5, "frame 2 .* does not come after frame 1"),
        ([3, 1], 5, "frame 1 .* does not come after frame 0"),
        ([0, 1, 2], 2, "end .* must come after"),
        ([[0, 1]], 2, "one row of integers"),
        ([0.5, 1.5], 2, "one row of integers"),
        ([0, 2**60], 2**61, "too far from zero"),
    ],
)
def test_impossible_ticks_are_refused(ticks: object, end: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Timeline(np.array(ticks), Fraction(1, 10), end)


def test_frames_at_times() -> None:
    t = Timeline.regular(3, 10)
    assert t.frames_at([-0.001, 0.0, 0.099, 0.1, 0.299, 0.3, 10]).tolist() == [-1, 0, 0, 1, 2, -1, -1]
    with pytest.raises(InputError, match="frames run from 0.0 to 0.3 s"):
        t.frame_at(0.3)
    varying = Timeline.from_times([0, 0.041667, 0.075, 0.116667])
    assert varying.frame_at(0.05) == 1
    assert math.isclose(varying.mean_rate_hz, 4 / varying.duration_s)


def test_few_frames() -> None:
    assert Timeline.from_times([3.0]).end_s == 4.0
    empty = Timeline.from_times([])
    assert (len(empty), empty.duration_s, len(empty.resampled(10))) == (0, 0, 0)
    assert math.isnan(empty.mean_rate_hz)
    assert empty.frames_at([0.0]).tolist() == [-1]
    assert Timeline.from_dict(empty.to_dict()) == empty


@given(timelines(), st.data())
def test_times_survive_json_lookup_and_cuts(t: Timeline, data: st.DataObject) -> None:
    again = Timeline.from_dict(json.loads(json.dumps(t.to_dict())))
    assert again == t
    assert np.array_equal(again.times, t.times)
    assert np.array_equal(t.frames_at(t.times), np.arange(len(t)))
    lo = data.draw(st.integers(0, len(t) - 1))
    hi = data.draw(st.integers(lo + 1, len(t)))
    part = t.cut(slice(lo, hi))
    assert np.array_equal(part.times, t.times[lo:hi])
    assert part.end_s == (t.times[hi] if hi < len(t) else t.end_s)


@given(timelines(), st.sampled_from([Fraction(10), NTSC, Fraction(1, 3)]))
def test_resampled_clock_covers_the_span(t: Timeline, rate: Fraction) -> None:
    if t.duration_s * rate > 20_000:
        return
    new = t.resampled(rate)
    assert new.ticks[0] * new.time_base == int(t.ticks[0]) * t.time_base
    assert new.times[-1] < t.end_s <= new.end_s + 1e-12


@pytest.mark.parametrize("bad", [{}, {"first": 0, "steps": "x", "end": 1, "time_base": "1/0", "nominal_rate": None}])
def test_foreign_json_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(InputError, match="not a timeline"):
        Timeline.from_dict(bad)
