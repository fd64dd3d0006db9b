"""Several raters of one recording: how well they agree. numpy only. (One trace made of all of them: gold_standard.py.)

    ICC    intraclass correlations, Shrout & Fleiss 1979 (Psychological Bulletin 86:420), all six forms
    alpha  Krippendorff's alpha for interval data (Krippendorff 2011, "Computing Krippendorff's alpha-reliability")
    CCC    mean concordance correlation over all pairs of raters

Frames of a recording are not independent of each other, so no confidence intervals from F distributions are given
here: resample whole recordings instead (`metrics.bootstrap`).
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
from affectrace.timeline import Timeline
from affectrace.trace import Trace

Array = NDArray[np.float64]
ICC_FORMS = ("1,1", "2,1", "3,1", "1,k", "2,k", "3,k")
DIMENSIONS = ("valence", "arousal")


def icc(ratings: ArrayLike) -> dict[str, float]:
    """All six intraclass correlations of (n targets, k raters); rows with a missing rating (NaN) are left out.

    "1,1", "1,k": raters drawn anew for each target. "2,1", "2,k": the same random raters, absolute agreement.
    "3,1", "3,k": these raters only, consistency. ",1" is one rater's reliability, ",k" that of their mean.
    NaN where undefined (fewer than two targets or raters, no variance).
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

    alpha = 1 - D_o / D_e; targets with fewer than two ratings do not count. NaN where undefined (nothing to compare, or
    every rating the same).
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
    """Mean CCC over all pairs of raters, each over the targets both rated; NaN where no pair has one."""
    table = np.asarray(ratings, dtype=np.float64)
    values = []
    for a, b in combinations(range(table.shape[1]), 2):
        both = np.isfinite(table[:, a]) & np.isfinite(table[:, b])
        values.append(metrics.ccc(table[both, a], table[both, b]))
    return metrics.mean_defined(values)[0]


@dataclass(frozen=True, eq=False)
class Panel:
    """What K raters said of one recording, on one clock.

    raters: K names. values: (T, K, 2) valence and arousal in [-1, 1], NaN where a rater said nothing.
    """

    recording_id: str
    timeline: Timeline
    raters: tuple[str, ...]
    values: Array

    @classmethod
    def of(cls, traces: Mapping[str, Trace]) -> Panel:
        """The traces of several raters (name -> trace, at least one) on the first one's clock.

        Raises:
            InputError: traces of different recordings.
        """
        first = next(iter(traces.values()))
        ids = sorted({t.recording_id for t in traces.values()})
        if len(ids) > 1:
            raise InputError(f"raters of different recordings: {', '.join(ids)}", hint="one panel for each recording")
        moved = [t if t.timeline == first.timeline else t.resample(first.timeline) for t in traces.values()]
        return cls(first.recording_id, first.timeline, tuple(traces), np.stack([t.values for t in moved], axis=1))

    def shifted(self, delays_s: Mapping[str, float]) -> Panel:
        """Each rater read `delays_s` seconds later: what was said at t + delay belongs to t. NaN past the ends."""
        moved = np.full_like(self.values, np.nan)
        for k, rater in enumerate(self.raters):
            index = self.timeline.frames_at(self.timeline.times + delays_s.get(rater, 0.0))
            moved[index >= 0, k] = self.values[index[index >= 0], k]
        return replace(self, values=moved)


def mean_of_raters(values: Array, weights: Array | None = None) -> Array:
    """(T, 2) (weighted) mean of (T, K, 2) over the raters that said something, NaN where none (of weight) did.

    weights: (K, 2).
    """
    known = np.isfinite(values)
    w = known * (1.0 if weights is None else weights)
    total = w.sum(axis=1)
    return np.asarray((np.where(known, values, 0.0) * w).sum(axis=1) / np.where(total > 0, total, np.nan))


def pooled(panels: Sequence[Panel]) -> tuple[tuple[str, ...], Array]:
    """Raters of all panels in order of name, and the (frames of all panels, raters, 2) values, NaN where missing."""
    raters = tuple(sorted({r for p in panels for r in p.raters}))
    tables = [np.full((len(p.timeline), len(raters), 2), np.nan) for p in panels]
    for table, panel in zip(tables, panels, strict=True):
        table[:, [raters.index(r) for r in panel.raters]] = panel.values
    return raters, np.concatenate(tables) if tables else np.zeros((0, 0, 2))


@dataclass(frozen=True)
class RaterAgreement:
    """How well raters agree on one dimension, over the pooled frames of all recordings.

    icc: form -> value, over the `n_complete` frames that every rater rated. alpha: Krippendorff's, over all.
    mean_ccc: mean over pairs of raters.
    """

    dimension: str
    n_raters: int
    n_frames: int
    n_complete: int
    icc: Mapping[str, float]
    alpha: float
    mean_ccc: float


def agreement(panels: Sequence[Panel]) -> tuple[RaterAgreement, RaterAgreement]:
    """Agreement on valence and on arousal (raises InputError: no panel)."""
    if not panels:
        raise InputError("no raters to compare", hint="give at least one recording with several raters")
    raters, values = pooled(panels)
    valence, arousal = (
        RaterAgreement(
            dimension,
            n_raters=len(raters),
            n_frames=len(table),
            n_complete=int(np.isfinite(table).all(axis=1).sum()),
            icc=icc(table),
            alpha=krippendorff_alpha(table),
            mean_ccc=mean_pairwise_ccc(table),
        )
        for dimension, table in zip(DIMENSIONS, np.moveaxis(values, 2, 0), strict=True)
    )
    return valence, arousal
