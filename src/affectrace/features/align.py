"""One modality's features onto another clock, most often the video's frames.

    hold    a frame shows the row that covers its start; a word stays until the next one
    mean    the mean of the rows that overlap the frame's span, weighted by how long they do
    linear  interpolation between the middles of rows, at the middle of the frame (MAVEN eq. 12)

Causal forms show only what was available at the frame's start: an audio row or a word at its end, a picture at its
start (or at times the caller states, where a network looked farther ahead). With until="end" they show what was
available by the frame's end, of what began before it: for rows whose value is known when they are over.

    hold    the newest available row
    mean    the mean of the rows that became available since the frame before; none: hold
    linear  from the newest row but one to the newest, over the time between their arrivals: a row late, but smooth

Rows of a signal (no `ends`) are shown to the end of the last one and not beyond; events (words, with `ends`) are held.
Rows that are not valid never enter a mean or an interpolation; a frame is valid where what it would hold is.
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
"""Modalities whose rows are known at their start: a picture is there when it is shown."""
_BLOCK = 128  # frames made at a time: what they are made of stays in the cache
_FEW = 8  # up to so many rows a frame are added one after the other, which is faster than reduceat

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Rows:
    """What alignment has to know of a table: when its T_m rows are, not what they hold.

    starts, ends: (T_m,) seconds. valid: (T_m,) bool. events: rows with ends of their own (words), not a signal's.
    """

    starts: Floats
    ends: Floats
    valid: Bools
    events: bool

    @classmethod
    def of(cls, timeline: Timeline, valid: Bools, ends: Floats | None) -> Rows:
        """The rows of a timeline; without `ends` each lasts until the next."""
        return cls(timeline.times, timeline.ends if ends is None else np.asarray(ends), valid, ends is not None)

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True, eq=False)
class Alignment:
    """Which rows each of T frames is made of, and how much of each.

    first: (T + 1,) frame i is made of rows[first[i]:first[i + 1]]. rows, weights: (N,). valid: (T,) bool, True exactly
    where a frame is made of anything.
    """

    first: Ints
    rows: Ints
    weights: Floats
    valid: Bools

    def __len__(self) -> int:
        return len(self.valid)

    def needed(self, frames: slice = slice(None)) -> slice:
        """The contiguous rows that some frames are made of."""
        lo, hi, _ = frames.indices(len(self))
        rows = self.rows[self.first[lo] : self.first[max(lo, hi)]]
        return slice(int(rows.min()), int(rows.max()) + 1) if rows.size else slice(0, 0)

    def apply(
        self, values: NDArray[np.floating[Any]], frames: slice = slice(None), offset: int = 0
    ) -> NDArray[np.float32]:
        """(n, D) float32 of some frames, 0 where not valid; row j of the table is values[j - offset]."""
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
    """Features on another clock of T frames: (T, D) float32. how, causal, until: see the module's first lines.

    available_s: (T_m,) seconds at which each row was available, which makes it causal; by default see `available`.
    """
    rows = Rows.of(features.timeline, features.valid, features.ends)
    if causal and available_s is None:
        available_s = available(rows, features.modality)
    plan = alignment(rows, clock, how, available_s=available_s, until=until)
    values = plan.apply(features.values)
    return Features(features.modality, clock, values, plan.valid, features.extractor, utterances=features.utterances)


def available(rows: Rows, modality: str) -> Floats:
    """(T_m,) seconds at which each row is available: its start for pictures, its end for the rest.

    That nothing came is known after a usual step, not at the end of a long gap: what was shown before is not held on.
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
    """Which rows each frame of `clock` is made of. available_s: see `available`; None: not causal.

    until: of a causal frame, whether it shows what was available at its start, or by its end.
    """
    if how not in get_args(How):
        raise UnknownNameError.of("alignment", how, get_args(How))
    n = len(clock)
    if not len(rows) or not n:
        return _mix(np.zeros(n, np.int64), np.zeros(n, np.int64), np.zeros(n), np.zeros(n, bool))
    known = rows.starts if available_s is None else available_s
    now, before, over = clock.times, 2 * clock.times[0] - clock.ends[0], known[-1] + (rows.ends[-1] - rows.starts[-1])
    if available_s is not None and until == "end":
        known = np.maximum(known, np.nextafter(rows.starts, np.inf))  # what begins with the next frame belongs to that
        now, before, over = clock.ends, clock.times[0], rows.ends[-1]
    order = np.argsort(known, kind="stable")
    arrived, newest = known[order], np.maximum.accumulate(order)
    k = np.searchsorted(arrived, now, side="right") - 1
    held = np.where(k >= 0, newest[np.maximum(k, 0)], 0).astype(np.int64)  # the newest row known at the frame's moment
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
    """Normalised means of pairs of frame and row, weighted; a frame that met no row, valid or not, holds."""
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
    """A frame of a signal is valid where it would hold a valid row, one of events wherever there is any."""
    known = np.flatnonzero(rows.valid)
    if rows.events:
        shown = np.full(len(clock), bool(len(known)))
    if not len(known):
        return _mix(np.zeros(len(clock), np.int64), np.zeros(len(clock), np.int64), np.zeros(len(clock)), shown)
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
    step = np.append(np.diff(arrived) > 0, True) & np.isfinite(arrived)  # of rows that arrive together the newest
    arrived, newest = arrived[step], newest[step]
    if not len(arrived):
        return _mix(np.zeros(len(now_s), np.int64), np.zeros(len(now_s), np.int64), np.zeros(len(now_s)), shown)
    k = np.searchsorted(arrived, now_s, side="right") - 1
    now, before = np.maximum(k, 0), np.maximum(k - 1, 0)
    width = arrived[now] - arrived[before]
    ramp = (width > 0) & rows.valid[newest[before]]
    share = np.where(ramp, (now_s - arrived[now]) / np.where(width > 0, width, 1), 1)
    return _mix(newest[before], newest[now], np.clip(share, 0, 1), shown)


def _mix(low: Ints, high: Ints, share: Floats, shown: Bools) -> Alignment:
    """low (1 - share) + high share where shown; a row without weight is left out."""
    use = np.stack([shown & (share < 1), shown & (share > 0)], axis=1)
    rows, weights = np.stack([low, high], axis=1), np.stack([1 - share, share], axis=1)
    return Alignment(np.append(0, np.cumsum(use.sum(axis=1))), rows[use], weights[use], shown)
