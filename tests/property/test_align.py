"""Alignment on random clocks: against its definition frame by frame, and no look into the future."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from affectrace.features.align import Rows, align, alignment, available
from affectrace.features.base import ExtractorId, Features
from affectrace.timeline import Timeline

HOW = st.sampled_from(["hold", "mean", "linear"])
UNTIL = st.sampled_from(["start", "end"])


@st.composite
def clocks(draw: Any, least: int = 1, most: int = 12) -> Timeline:
    """Any clock: variable steps, several time bases, starts before and after 0."""
    base = draw(st.sampled_from([Fraction(1, 30), Fraction(1001, 30000), Fraction(1, 50), Fraction(1, 1000)]))
    steps = draw(st.lists(st.integers(1, 40), min_size=least, max_size=most))
    start = draw(st.integers(-60, 60))
    ticks = start + np.cumsum([0, *steps[:-1]]) if steps else np.zeros(0, np.int64)
    return Timeline(ticks.astype(np.int64), base, int(ticks[-1]) + steps[-1] if steps else 0)


@st.composite
def tables(draw: Any, *, events: bool | None = None, modality: str | None = None) -> Features:
    """Features on a random clock; invalid rows hold NaN, which must come out nowhere."""
    timeline = draw(clocks())
    n = len(timeline)
    valid = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    values = np.random.default_rng(draw(st.integers(0, 99))).normal(size=(n, 2)).astype(np.float32)
    values[~valid] = np.nan
    ends = None
    if draw(st.booleans()) if events is None else events:
        spans = draw(st.lists(st.floats(0, 3, allow_nan=False), min_size=n, max_size=n))
        ends = timeline.times + np.array(spans)
    name = modality or draw(st.sampled_from(["visual", "voice", "words"]))
    return Features(name, timeline, values, valid, ExtractorId("x"), ends)


def rows_of(f: Features) -> Rows:
    return Rows.of(f.timeline, f.valid, f.ends)


def newest(f: Features, known: np.ndarray, now: float, start: float, over: float) -> int | None:
    """The last row known by `now`, None where it may not be shown: a signal is `over` when the frame starts."""
    rows = rows_of(f)
    there = [j for j in range(len(rows)) if known[j] <= now]
    if not there:
        return None
    j = max(there)
    gone = not rows.events and j == len(rows) - 1 and start >= over
    return None if gone or not rows.valid[j] else j


def weighted(f: Features, parts: list[tuple[int, float]]) -> np.ndarray:
    total = sum(w for _, w in parts)
    return np.sum([f.values[j].astype(np.float64) * w / total for j, w in parts], axis=0)


def slow(f: Features, clock: Timeline, how: str, causal: bool, until: str) -> list[np.ndarray | None]:
    """The definition, one frame at a time."""
    rows = rows_of(f)
    known = available(rows, f.modality) if causal else rows.starts
    over = known[-1] + (rows.ends[-1] - rows.starts[-1])
    at_end = causal and until == "end"
    if at_end:
        known = np.array([max(k, np.nextafter(s, np.inf)) for k, s in zip(known, rows.starts, strict=True)])
        over = rows.ends[-1]
    out: list[np.ndarray | None] = []
    for i in range(len(clock)):
        a, b = clock.times[i], clock.ends[i]
        now = b if at_end else a
        held = newest(f, known, now, a, over)
        hold = None if held is None else f.values[held].astype(np.float64)
        if how == "hold":
            out.append(hold)
        elif how == "mean":
            if causal:
                before = a if at_end else clock.times[i - 1] if i else 2 * a - b
                parts = [(j, 1.0) for j in range(len(rows)) if before < known[j] <= now]
            else:
                spans = [(j, min(b, rows.ends[j]) - max(a, rows.starts[j])) for j in range(len(rows))]
                parts = [(j, w) for j, w in spans if w > 0]
            usable = [(j, w) for j, w in parts if rows.valid[j]]
            out.append(weighted(f, usable) if usable else None if parts else hold)
        elif not causal:
            middles = (rows.starts + rows.ends) / 2
            usable = sorted((middles[j], j) for j in range(len(rows)) if rows.valid[j])
            if not usable or (held is None and not rows.events):
                out.append(None)
                continue
            xs = [x for x, _ in usable]
            ys = np.array([f.values[j] for _, j in usable], np.float64)
            order = np.unique(xs, return_index=True)[1] if len(set(xs)) == len(xs) else None
            if order is None:  # rows with one middle: the last of them to the left, the first to the right
                out.append(_between_ties(xs, ys, (a + b) / 2))
            else:
                out.append(np.array([np.interp((a + b) / 2, xs, ys[:, d]) for d in range(2)]))
        elif held is None:
            out.append(None)
        else:
            arrivals = sorted({known[j] for j in range(len(rows)) if known[j] <= now})
            last = max(j for j in range(len(rows)) if known[j] <= arrivals[-1])
            assert last == held
            share, low = 1.0, held
            if len(arrivals) > 1:
                low = max(j for j in range(len(rows)) if known[j] <= arrivals[-2])
                if rows.valid[low]:
                    share = min(1.0, (now - arrivals[-1]) / (arrivals[-1] - arrivals[-2]))
                else:
                    low = held
            out.append(f.values[low].astype(np.float64) * (1 - share) + f.values[held].astype(np.float64) * share)
    return out


def _between_ties(xs: list[float], ys: np.ndarray, x: float) -> np.ndarray:
    k = int(np.searchsorted(xs, x, side="right"))
    low, high = max(k - 1, 0), min(k, len(xs) - 1)
    width = xs[high] - xs[low]
    share = float(np.clip((x - xs[low]) / width, 0, 1)) if width > 0 else 0.0
    return ys[low] * (1 - share) + ys[high] * share


@settings(max_examples=120, deadline=None)
@given(tables(), clocks(least=0), HOW, st.booleans(), UNTIL)
def test_alignment_is_what_its_definition_says(
    f: Features, clock: Timeline, how: Any, causal: bool, until: Any
) -> None:
    made = align(f, clock, how, causal=causal, until=until)
    expected = slow(f, clock, how, causal, until)
    assert made.timeline == clock
    assert made.values.dtype == np.float32
    assert made.valid.tolist() == [e is not None for e in expected]
    for row, e in zip(made.values, expected, strict=True):
        assert np.allclose(row, 0 if e is None else e, rtol=1e-5, atol=1e-6)


@settings(max_examples=120, deadline=None)
@given(tables(), clocks(), HOW, st.booleans(), UNTIL, st.integers(0, 2**32 - 1))
def test_causal_forms_never_show_what_was_not_available(
    f: Features, clock: Timeline, how: Any, bursts: bool, until: Any, seed: int
) -> None:
    """Everything that arrives after a frame's start (of a lasting row: its end, or begins there) is changed, values and
    validity: the frame stays as it was.
    """
    rng = np.random.default_rng(seed)
    rows = rows_of(f)
    known = available(rows, f.modality)
    if bursts:  # a network that looks ahead gives several rows at once, in any order
        known = rows.starts + rng.choice([0.0, 0.5, 2.0], len(rows))
    before = align(f, clock, how, causal=True, available_s=known, until=until)
    for i in range(len(clock)):
        later = known > clock.times[i]
        if until == "end":
            later = (known > clock.ends[i]) | (rows.starts >= clock.ends[i])
        values, valid = f.values.copy(), f.valid.copy()
        valid[later] = rng.random(int(later.sum())) < 0.5
        values[later] = rng.normal(size=(int(later.sum()), 2))
        other = Features(f.modality, f.timeline, values, valid, f.extractor, f.ends)
        after = align(other, clock, how, causal=True, available_s=known, until=until)
        assert np.array_equal(after.values[: i + 1], before.values[: i + 1])
        assert np.array_equal(after.valid[: i + 1], before.valid[: i + 1])


@settings(max_examples=50, deadline=None)
@given(tables(), clocks(least=2), HOW, UNTIL, st.data())
def test_a_causal_frame_does_not_depend_on_later_frames(
    f: Features, clock: Timeline, how: Any, until: Any, data: Any
) -> None:
    k = data.draw(st.integers(1, len(clock) - 1))
    whole = align(f, clock, how, causal=True, until=until)
    part = align(f, clock.cut(slice(0, k)), how, causal=True, until=until)
    assert np.array_equal(part.values, whole.values[:k])
    assert np.array_equal(part.valid, whole.valid[:k])


@settings(max_examples=100, deadline=None)
@given(tables(events=False), st.sampled_from(["now", "seen by its end", "picture"]), HOW)
def test_a_table_on_its_own_clock_stays_as_it_is(f: Features, form: str, how: Any) -> None:
    """As it is, and causal: each row shown by its end, or a picture at its start."""
    if form != "now" and how == "linear":
        how = "hold"
    if form == "picture":
        f = replace(f, modality="visual")
    made = align(f, f.timeline, how, causal=form != "now", until="end" if form == "seen by its end" else "start")
    assert made.valid[f.valid].all()
    assert form == "seen by its end" or np.array_equal(made.valid, f.valid)
    assert np.array_equal(made.values[f.valid], f.values[f.valid])


@settings(max_examples=80, deadline=None)
@given(tables(), clocks(), HOW, st.booleans(), st.data())
def test_a_window_needs_its_rows_only(f: Features, clock: Timeline, how: Any, causal: bool, data: Any) -> None:
    """What lazy reading relies on: the needed rows alone give the window of the whole."""
    a = data.draw(st.integers(0, len(clock)))
    b = data.draw(st.integers(a, len(clock)))
    rows = rows_of(f)
    plan = alignment(rows, clock, how, available_s=available(rows, f.modality) if causal else None)
    need = plan.needed(slice(a, b))
    part = plan.apply(f.values[need], slice(a, b), offset=need.start)
    assert np.array_equal(part, plan.apply(f.values)[a:b])
    assert (plan.valid == (np.diff(plan.first) > 0)).all()
