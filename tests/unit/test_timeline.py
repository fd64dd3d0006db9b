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


def test_ntsc_rate_stays_exact() -> None:
    t = Timeline.regular(107_893, NTSC)  # one hour
    assert t.ticks[-1] * t.time_base == Fraction(107_892 * 1001, 30000)
    assert t.time_of(30) == 1.001
    assert t.end_tick * t.time_base == 107_893 / NTSC


def test_equal_times_on_two_clocks_are_equal_numbers() -> None:
    video, audio = Timeline.regular(1000, 25), Timeline.regular(2000, 50)
    assert np.array_equal(video.times, audio.times[::2])
    assert np.array_equal(audio.frames_at(video.times), np.arange(0, 2000, 2))


def test_start_may_be_negative_or_a_fraction() -> None:
    t = Timeline.regular(3, Fraction(24000, 1001), Fraction(-1001, 48000))
    assert t.ticks[0] * t.time_base == Fraction(-1001, 48000)
    assert t.frame_at(0.0) == 0


@pytest.mark.parametrize(
    ("ticks", "end", "message"),
    [
        ([0, 2, 2], 5, "frame 2 .* does not come after frame 1"),
        ([3, 1], 5, "frame 1 .* does not come after frame 0"),
        ([0, 1, 2], 2, "end .* must come after"),
        ([[0, 1]], 2, "one row of integers"),
        ([0.5, 1.5], 2, "one row of integers"),
    ],
)
def test_refuses(ticks: object, end: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Timeline(np.array(ticks), Fraction(1, 10), end)


def test_nobody_changes_it_from_outside() -> None:
    ticks = np.array([0, 1, 2])
    t = Timeline(ticks, Fraction(1), 3)
    ticks[0] = -5
    assert t.times.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="read-only"):
        t.times[0] = 1


@pytest.mark.parametrize(("t_s", "frame"), [(0.0, 0), (0.099, 0), (0.1, 1), (0.299, 2)])
def test_frame_at(t_s: float, frame: int) -> None:
    assert Timeline.regular(3, 10).frame_at(t_s) == frame


@pytest.mark.parametrize("t_s", [-0.001, 0.3, 10.0])
def test_frame_at_outside_says_where_frames_are(t_s: float) -> None:
    with pytest.raises(InputError, match=r"frames run from 0.0 to 0.3 s"):
        Timeline.regular(3, 10).frame_at(t_s)


def test_hold_end_keeps_the_last_frame() -> None:
    t = Timeline.regular(3, 10)
    assert t.frames_at([-1, 0.05, 9]).tolist() == [-1, 0, -1]
    assert t.frames_at([-1, 0.05, 9], hold_end=True).tolist() == [-1, 0, 2]


def test_variable_rate_is_kept() -> None:
    t = Timeline.from_times([0, 0.041667, 0.075, 0.116667])
    assert t.frame_at(0.05) == 1
    assert math.isclose(t.mean_rate_hz, 4 / t.duration_s)


def test_empty() -> None:
    t = Timeline.from_times([])
    assert len(t) == 0
    assert t.duration_s == 0
    assert math.isnan(t.mean_rate_hz)
    assert t.frames_at([0.0]).tolist() == [-1]
    assert Timeline.from_dict(t.to_dict()) == t
    assert len(t.resampled(10)) == 0


@given(timelines())
def test_json_round_trip_is_exact(t: Timeline) -> None:
    again = Timeline.from_dict(json.loads(json.dumps(t.to_dict())))
    assert again == t
    assert np.array_equal(again.times, t.times)


@given(timelines())
def test_frame_at_inverts_time_of(t: Timeline) -> None:
    assert np.array_equal(t.frames_at(t.times), np.arange(len(t)))


@given(timelines(), st.data())
def test_a_cut_keeps_times_and_its_end(t: Timeline, data: st.DataObject) -> None:
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


def test_equality_across_time_bases() -> None:
    a = Timeline(np.array([0, 2]), Fraction(1, 50), 4)
    b = Timeline(np.array([0, 1]), Fraction(1, 25), 2)
    assert a == b
    assert a != Timeline(np.array([0, 1]), Fraction(1, 25), 3)


@pytest.mark.parametrize("bad", [{}, {"first": 0, "steps": "x", "end": 1, "time_base": "1/0", "nominal_rate": None}])
def test_foreign_json_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(InputError, match="not a timeline"):
        Timeline.from_dict(bad)
