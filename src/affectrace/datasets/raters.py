"""Ratings of several raters on one clock, and measures of their agreement. numpy only.

    ICC    intraclass correlations, Shrout & Fleiss 1979 (Psychological Bulletin 86:420), all six forms
    alpha  Krippendorff's alpha for interval data (Krippendorff 2011, "Computing Krippendorff's alpha-reliability")
    CCC    mean concordance correlation over all pairs of raters

No confidence intervals from F distributions: frames of a recording are not independent. Resample whole recordings
instead (`metrics.bootstrap`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from affectrace import metrics
from affectrace.errors import InputError
from affectrace.metrics import DIMENSIONS
from affectrace.timeline import Timeline
from affectrace.trace import Trace

Array = NDArray[np.float64]
ICC_FORMS = ("1,1", "2,1", "3,1", "1,k", "2,k", "3,k")


def icc(ratings: ArrayLike) -> dict[str, float]:
    """All six intraclass correlations of (n targets, k raters) without rows with a missing rating (NaN).

    "1,1", "1,k": different raters for each target. "2,1", "2,k": the same random raters, absolute agreement. "3,1",
    "3,k": fixed raters, consistency. ",1": reliability of one rater, ",k": of their mean. NaN where undefined (fewer
    than two targets or raters, no variance).
    """
    table = np.asarray(ratings, dtype=np.float64)
    x = table[np.isfinite(table).all(axis=1)]
    n, k = x.shape
    if n < 2 or k < 2:
        return dict.fromkeys(ICC_FORMS, math.nan)
    grand, of_target, of_rater = x.mean(), x.mean(axis=1), x.mean(axis=0)
    bms = k * ((of_target - grand) ** 2).sum() / (n - 1)  # between targets
    wms = ((x - of_target[:, None]) ** 2).sum() / (n * (k - 1))  # within targets
    jms = n * ((of_rater - grand) ** 2).sum() / (k - 1)  # between judges
    ems = ((x - of_target[:, None] - of_rater + grand) ** 2).sum() / ((n - 1) * (k - 1))  # residual
    with np.errstate(invalid="ignore", divide="ignore"):
        values = (
            (bms - wms) / (bms + (k - 1) * wms),
            (bms - ems) / (bms + (k - 1) * ems + k * (jms - ems) / n),
            (bms - ems) / (bms + (k - 1) * ems),
            (bms - wms) / bms,
            (bms - ems) / (bms + (jms - ems) / n),
            (bms - ems) / bms,
        )
    return {form: float(v) if np.isfinite(v) else math.nan for form, v in zip(ICC_FORMS, values, strict=True)}


def krippendorff_alpha(ratings: ArrayLike) -> float:
    """Krippendorff's alpha for interval data of (n targets, k raters), NaN = missing.

    alpha = 1 - D_o / D_e over targets with at least two ratings. NaN where undefined (none, or all ratings equal).
    """
    table = np.asarray(ratings, dtype=np.float64)
    known = np.isfinite(table)
    m = known.sum(axis=1)
    table, known, m = table[m >= 2], known[m >= 2], m[m >= 2]
    n = int(m.sum())
    if not n:
        return math.nan
    x = np.where(known, table - table[known].mean(), 0.0)
    within = np.where(known, (x - (x.sum(axis=1) / m)[:, None]) ** 2, 0.0).sum(axis=1)
    observed = (2 * m * within / (m - 1)).sum() / n  # sum over pairs of squared differences = 2 m sum of squares
    expected = 2 * (x[known] ** 2).sum() / (n - 1)
    return float(1 - observed / expected) if expected > 0 else math.nan


def mean_pairwise_ccc(ratings: ArrayLike) -> float:
    """Mean CCC over all pairs of raters, each over the targets both rated; NaN if no pair has one."""
    table = np.asarray(ratings, dtype=np.float64)
    values = []
    for a, b in combinations(range(table.shape[1]), 2):
        both = np.isfinite(table[:, a]) & np.isfinite(table[:, b])
        values.append(metrics.ccc(table[both, a], table[both, b]))
    return metrics.mean_defined(values)[0]


@dataclass(frozen=True, eq=False)
class Panel:
    """Ratings of one recording by K raters on one clock.

    values: (T, K, 2) valence and arousal in [-1, 1], NaN = not rated.
    """

    recording_id: str
    timeline: Timeline
    raters: tuple[str, ...]
    values: Array

    @classmethod
    def of(cls, traces: Mapping[str, Trace]) -> Panel:
        """Traces of several raters (name -> trace, at least one) of one recording, on the first one's clock."""
        first = next(iter(traces.values()))
        ids = sorted({t.recording_id for t in traces.values()})
        if len(ids) > 1:
            raise InputError(f"raters of different recordings: {', '.join(ids)}", hint="one panel for each recording")
        moved = [t if t.timeline == first.timeline else t.resample(first.timeline) for t in traces.values()]
        return cls(first.recording_id, first.timeline, tuple(traces), np.stack([t.values for t in moved], axis=1))

    def shifted(self, delays_s: Mapping[str, float]) -> Panel:
        """The panel with the raters' delays removed: what was said at t + delay belongs to t. NaN past the ends."""
        moved = [shifted(self.timeline, x, delays_s[r]) for r, x in zip(self.raters, self.values.swapaxes(0, 1))]
        return replace(self, values=np.stack(moved, axis=1))


def shifted(timeline: Timeline, values: Array, delay_s: float) -> Array:
    """(T, 2) values of `delay_s` later, NaN past the ends."""
    index = timeline.frames_at(timeline.times + delay_s)
    return np.append(values, np.full((1, 2), np.nan), axis=0)[index]  # index -1: the row appended


def mean_of_raters(values: Array, weights: Array | None = None) -> Array:
    """(T, 2) mean of (T, K, 2) over the raters that rated, weighted by (K, 2); NaN where none (of weight) did."""
    known = np.isfinite(values)
    w = known * (1.0 if weights is None else weights)
    total = w.sum(axis=1)
    return np.asarray((np.where(known, values, 0.0) * w).sum(axis=1) / np.where(total > 0, total, np.nan))


def same_raters(panels: Sequence[Panel]) -> list[Panel]:
    """The panels with the raters of all of them, sorted by name; NaN where one did not rate a recording."""
    raters = tuple(sorted({r for p in panels for r in p.raters}))
    found = []
    for panel in panels:
        values = np.full((len(panel.timeline), len(raters), 2), np.nan)
        values[:, [raters.index(r) for r in panel.raters]] = panel.values
        found.append(replace(panel, raters=raters, values=values))
    return found


@dataclass(frozen=True)
class RaterAgreement:
    """Agreement on one dimension over the pooled frames of all recordings.

    icc: form -> value, over the `n_complete` frames rated by all. alpha: Krippendorff's. mean_ccc: over all pairs.
    """

    dimension: str
    n_raters: int
    n_frames: int
    n_complete: int
    icc: Mapping[str, float]
    alpha: float
    mean_ccc: float


def agreement(panels: Sequence[Panel]) -> tuple[RaterAgreement, ...]:
    """Agreement on valence and on arousal, where they were rated (raises InputError: no panel)."""
    if not panels:
        raise InputError("no raters to compare", hint="give at least one recording with several raters")
    panels = same_raters(panels)
    values = np.concatenate([p.values for p in panels])
    return tuple(
        RaterAgreement(
            dimension,
            n_raters=len(panels[0].raters),
            n_frames=len(table),
            n_complete=int(np.isfinite(table).all(axis=1).sum()),
            icc=icc(table),
            alpha=krippendorff_alpha(table),
            mean_ccc=mean_pairwise_ccc(table),
        )
        for dimension, table in zip(DIMENSIONS, np.moveaxis(values, 2, 0), strict=True)
        if np.isfinite(table).any()
    )
