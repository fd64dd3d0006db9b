"""Alignment of features with another clock, usually that of the video frames.

    hold    a frame takes the row that covers its start; a word stays until the next one
    mean    the mean of the rows that overlap the frame, weighted by overlap
    linear  interpolation between the centres of rows, at the centre of the frame (MAVEN eq. 12)

Causal forms use only what was available at the frame's start: audio rows and words at their end, video frames at their
start (or at times given by the caller, for networks with lookahead). With until="end" they use what was available by
the frame's end and began before it.

    hold    the newest available row
    mean    the mean of the rows that became available since the previous frame; none: hold
    linear  from the second newest row to the newest, over the time between their arrivals: one row late, but smooth

Rows of a signal (no `ends`) are not held beyond the end of the last one; events (words, with `ends`) are. Invalid rows
never enter a mean or an interpolation; a frame is valid where the row it would hold is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import UnknownNameError
from affectrace.features.base import Features
from affectrace.timeline import Timeline, overlaps, ranges

How = Literal["hold", "mean", "linear"]
Until = Literal["start", "end"]
PICTURES = ("visual", "face")
"""Modalities whose rows are available at their start."""
_BLOCK = 128  # frames computed at a time, so that their rows stay in the processor's cache
_FEW = 8  # rows per frame up to which adding one by one is faster than reduceat

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Rows:
    """Times and validity of a table's T_m rows, without their values.

    starts, ends: (T_m,) seconds. valid: (T_m,) bool. events: rows have ends of their own (words); else a signal.
    """

    starts: Floats
    ends: Floats
    valid: Bools
    events: bool

    @classmethod
    def of(cls, timeline: Timeline, valid: Bools, ends: Floats | None) -> Rows:
        """The rows of a timeline; without `ends` each lasts until the next one."""
        return cls(timeline.times, timeline.ends if ends is None else np.asarray(ends), valid, ends is not None)

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True, eq=False)
class Alignment:
    """Each of T frames as a weighted sum of table rows: a sparse (T, T_m) matrix in CSR form.

    first: (T + 1,) frame i is the sum over rows[first[i]:first[i + 1]]. rows, weights: (N,). valid: (T,) bool, False
    for frames without rows.
    """

    first: Ints
    rows: Ints
    weights: Floats
    valid: Bools

    def __len__(self) -> int:
        return len(self.valid)

    def needed(self, frames: slice = slice(None)) -> slice:
        """The contiguous range of rows that some frames need."""
        lo, hi, _ = frames.indices(len(self))
        rows = self.rows[self.first[lo] : self.first[max(lo, hi)]]
        return slice(int(rows.min()), int(rows.max()) + 1) if rows.size else slice(0, 0)

    def apply(
        self, values: NDArray[np.floating[Any]], frames: slice = slice(None), offset: int = 0
    ) -> NDArray[np.float32]:
        """(n, D) float32 of some frames, 0 where invalid; row j of the table is values[j - offset]."""
        lo, hi, _ = frames.indices(len(self))
        out = np.zeros((max(0, hi - lo), values.shape[1]), np.float32)
        for a in range(lo, hi, _BLOCK):
            self._block(values, a, min(a + _BLOCK, hi), offset, out[a - lo :])
        return out

    def _block(self, values: NDArray[Any], a: int, b: int, offset: int, out: NDArray[np.float32]) -> None:
        first = self.first[a : b + 1] - self.first[a]
        rows = self.rows[self.first[a] : self.first[b]] - offset
        weights = self.weights[self.first[a] : self.first[b], None].astype(np.float32)
        counts = np.diff(first)
        some = np.flatnonzero(counts)
        if len(some) == len(rows) and (weights == 1).all():
            out[some] = values[rows]
        elif counts.max(initial=0) <= _FEW:  # the k-th row of every frame at once
            for k in range(counts.max(initial=0)):
                some = np.flatnonzero(counts > k)
                at = first[some] + k
                out[some] += values[rows[at]] * weights[at]
        else:
            out[some] = np.add.reduceat(values[rows] * weights, first[some], axis=0)


def align(
    features: Features,
    clock: Timeline,
    how: How = "hold",
    *,
    causal: bool = False,
    available_s: Floats | None = None,
    until: Until = "start",
) -> Features:
    """Features on another clock of T frames: (T, D) float32. how, causal, until: see the module docstring.

    available_s: (T_m,) seconds at which each row was available, implies causal; by default as `available` says.
    """
    rows = Rows.of(features.timeline, features.valid, features.ends)
    if causal and available_s is None:
        available_s = available(rows, features.modality)
    plan = alignment(rows, clock, how, available_s=available_s, until=until)
    values = plan.apply(features.values)
    return Features(features.modality, clock, values, plan.valid, features.extractor, utterances=features.utterances)


def available(rows: Rows, modality: str) -> Floats:
    """(T_m,) seconds at which each row is available: its start for visual modalities, its end for others.

    A gap is noticed after a median step, not at its end, so that the row before it is not held for too long.
    """
    if modality in PICTURES:
        return rows.starts
    if rows.events or len(rows) < 2:
        return rows.ends
    usual = float(np.median(np.diff(rows.starts)))
    return np.where(rows.valid, rows.ends, np.minimum(rows.ends, rows.starts + usual))


def alignment(
    rows: Rows, clock: Timeline, how: How = "hold", *, available_s: Floats | None = None, until: Until = "start"
) -> Alignment:
    """The alignment of rows with the frames of `clock`. available_s: see `available`; None: not causal.

    until: whether a causal frame uses what was available at its start, or by its end.
    """
    if how not in get_args(How):
        raise UnknownNameError.of("alignment", how, get_args(How))
    n = len(clock)
    if not len(rows) or not n:
        return _empty(n)
    known = rows.starts if available_s is None else available_s
    now, before, over = clock.times, 2 * clock.times[0] - clock.ends[0], known[-1] + (rows.ends[-1] - rows.starts[-1])
    if available_s is not None and until == "end":
        known = np.maximum(known, np.nextafter(rows.starts, np.inf))  # not rows of the next frame
        now, before, over = clock.ends, clock.times[0], rows.ends[-1]
    order = np.argsort(known, kind="stable")
    arrived, newest = known[order], np.maximum.accumulate(order)
    k = np.searchsorted(arrived, now, side="right") - 1
    held = np.where(k >= 0, newest[np.maximum(k, 0)], 0).astype(np.int64)  # the newest row by then
    shown = (k >= 0) & rows.valid[held]
    if not rows.events:  # a signal is over when its last row is
        shown &= (held != len(rows) - 1) | (clock.times < over)
    if how == "hold":
        return _mix(held, held, np.zeros(n), shown)
    if how == "linear":
        if available_s is None:
            return _between_middles(rows, clock, shown)
        return _between_arrivals(rows, arrived, newest, now, shown)
    if available_s is None:
        frames, index, weights = overlaps(rows.starts, rows.ends, clock)
    else:
        first = np.searchsorted(arrived, np.concatenate([[before], now[:-1]]), side="right")
        frames, place = ranges(first, k + 1)
        index, weights = order[place], np.ones(len(place))
    return _mean(frames, index, weights, rows.valid, held, shown)


def _mean(frames: Ints, index: Ints, weights: Floats, valid: Bools, held: Ints, shown: Bools) -> Alignment:
    """Weighted means from pairs of frame and row; a frame without any row, valid or not, holds."""
    met = np.zeros(len(shown), bool)
    met[frames] = True
    holds, keep = np.flatnonzero(shown & ~met), valid[index]
    frames = np.concatenate([frames[keep], holds])
    order = np.argsort(frames, kind="stable")
    rows = np.concatenate([index[keep], held[holds]])[order]
    weights = np.concatenate([weights[keep], np.ones(len(holds))])[order]
    frames = frames[order]
    total = np.bincount(frames, weights, minlength=len(shown))
    counts = np.bincount(frames, minlength=len(shown))
    return Alignment(np.append(0, np.cumsum(counts)), rows, weights / total[frames], counts > 0)


def _between_middles(rows: Rows, clock: Timeline, shown: Bools) -> Alignment:
    """Frames of a signal are valid where they would hold a valid row, frames of events everywhere."""
    known = np.flatnonzero(rows.valid)
    if not len(known):
        return _empty(len(clock))
    shown = np.ones(len(clock), bool) if rows.events else shown
    middles = (rows.starts + rows.ends)[known] / 2
    order = np.argsort(middles, kind="stable")
    known, middles = known[order], middles[order]
    at = (clock.times + clock.ends) / 2
    after = np.searchsorted(middles, at, side="right")
    low, high = np.maximum(after - 1, 0), np.minimum(after, len(known) - 1)
    width = middles[high] - middles[low]
    share = np.where(width > 0, (at - middles[low]) / np.where(width > 0, width, 1), 0)
    return _mix(known[low], known[high], np.clip(share, 0, 1), shown)


def _between_arrivals(rows: Rows, arrived: Floats, newest: Ints, now_s: Floats, shown: Bools) -> Alignment:
    step = np.append(np.diff(arrived) > 0, True) & np.isfinite(arrived)  # the newest of rows that arrive together
    arrived, newest = arrived[step], newest[step]
    if not len(arrived):
        return _empty(len(now_s))
    k = np.searchsorted(arrived, now_s, side="right") - 1
    now, before = np.maximum(k, 0), np.maximum(k - 1, 0)
    width = arrived[now] - arrived[before]
    ramp = (width > 0) & rows.valid[newest[before]]
    share = np.where(ramp, (now_s - arrived[now]) / np.where(width > 0, width, 1), 1)
    return _mix(newest[before], newest[now], np.clip(share, 0, 1), shown)


def _mix(low: Ints, high: Ints, share: Floats, shown: Bools) -> Alignment:
    """low (1 - share) + high share where shown, without rows of weight 0."""
    use = np.stack([shown & (share < 1), shown & (share > 0)], axis=1)
    rows, weights = np.stack([low, high], axis=1), np.stack([1 - share, share], axis=1)
    return Alignment(np.append(0, np.cumsum(use.sum(axis=1))), rows[use], weights[use], shown)


def _empty(n: int) -> Alignment:
    return Alignment(np.zeros(n + 1, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(n, bool))
