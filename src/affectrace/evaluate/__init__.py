"""Evaluation of predictions: pooled, per recording and per group, with bootstrap intervals.

    label traces + prediction traces --pair--> (T, 2), (T, 2), (T, 2) a recording --metrics--> Evaluation

The pooled score concatenates all frames (the ABAW challenge's way). Intervals resample whole recordings, since frames
of one are not independent. Labelled frames without a prediction are counted and named, never scored as a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

import numpy as np

from affectrace import metrics
from affectrace.errors import InputError
from affectrace.evaluate.smoothing import METHODS, WINDOWS_S, SmoothingMethod, smoothed
from affectrace.metrics import METRICS, Array, Interval, Pair, Scores
from affectrace.trace import Trace

N_DRAWS = 2000
"""Bootstrap resamples (our choice)."""
LEVEL = 0.95
"""Confidence of the intervals (our choice)."""


@dataclass(frozen=True, eq=False)
class Paired:
    """Predictions beside labels, recording by recording, on the labels' clocks.

    labels, predictions: recording id -> trace, the same ids in the same order.
    without_prediction: recording id -> labelled frames, of recordings without a prediction.
    without_labels: ids of predicted recordings without labels.
    """

    labels: Mapping[str, Trace]
    predictions: Mapping[str, Trace]
    without_prediction: Mapping[str, int] = field(default_factory=dict)
    without_labels: tuple[str, ...] = ()

    def pairs(self) -> dict[str, Pair]:
        """Recording id -> (prediction, labels, what counts: labelled and predicted), each (T, 2)."""
        both = ((name, self.predictions[name], labels) for name, labels in self.labels.items())
        return {name: (p.values, labels.values, labels.valid & p.valid) for name, p, labels in both}

    def missing(self) -> dict[str, int]:
        """Recording id -> labelled frames without a prediction; of predictions of one dimension in this one only."""
        both = ((name, self.predictions[name], labels) for name, labels in self.labels.items())
        some = np.any([p.valid.any(axis=0) for p in self.predictions.values()], axis=0)
        of = some if some.any() else ~some
        within = {name: int((labels.valid & ~p.valid & of).any(axis=1).sum()) for name, p, labels in both}
        return within | dict(self.without_prediction)


def pair(labels: Iterable[Trace], predictions: Iterable[Trace]) -> Paired:
    """Predictions beside labels by recording id; of several persons of a recording, the labels' person is taken."""
    truth: dict[str, Trace] = {}
    for trace in labels:
        if trace.recording_id in truth:
            raise InputError("labelled twice", where=trace.recording_id, hint="give every recording's labels once")
        truth[trace.recording_id] = trace
    found: dict[str, list[Trace]] = {}
    for trace in predictions:
        found.setdefault(trace.recording_id, []).append(trace)
    chosen = {name: _of_person(found[name], of.person) for name, of in truth.items() if name in found}
    if not chosen:
        a, b = (", ".join(sorted(names)[:3]) or "none" for names in (truth, found))
        raise InputError(
            f"labels and predictions share no recording (labels: {a}; predictions: {b})",
            hint="predict the recordings of this data set; they are matched by id",
        )
    clocks = {name: truth[name].timeline for name in chosen}
    return Paired(
        labels={name: truth[name] for name in chosen},
        predictions={k: t if t.timeline == clocks[k] else t.resample(clocks[k]) for k, t in chosen.items()},
        without_prediction={name: int(t.known.sum()) for name, t in truth.items() if name not in chosen},
        without_labels=tuple(sorted(set(found) - set(truth))),
    )


def _of_person(traces: Sequence[Trace], person: str) -> Trace:
    mine = [t for t in traces if len(traces) == 1 or t.person == person]
    if len(mine) != 1:
        persons = ", ".join(t.person for t in traces)
        raise InputError(
            f"has {len(traces)} predictions (persons {persons}), the labels are of person {person}",
            where=traces[0].recording_id,
            hint="give one prediction a recording",
        )
    return mine[0]


@dataclass(frozen=True, eq=False)
class Pool:
    """Recordings scored together.

    draws: `ccc_valence`, `ccc_arousal`, `mean_ccc` -> (n_draws,) bootstrap resamples; n_units: recordings in each.
    """

    scores: Scores
    draws: Mapping[str, Array]
    n_units: Mapping[str, int]

    @classmethod
    def of(cls, pairs: Iterable[Pair], n_draws: int, seed: int) -> Pool:
        """Score and resample."""
        each = list(pairs)
        draws = metrics.bootstrap_draws(each, n_draws=n_draws, seed=seed)
        return cls(metrics.score_pooled(each), draws, metrics.n_units(each))

    def intervals(self) -> dict[str, Interval]:
        """Interval of every CCC."""
        return {m: Interval.of(draws, self.n_units[m], LEVEL) for m, draws in self.draws.items()}

    def minus(self, other: Pool) -> tuple[dict[str, float], dict[str, Interval]]:
        """Differences of the CCCs and their intervals; paired where both were drawn with one seed."""
        mine, theirs = self.scores.to_dict(), other.scores.to_dict()
        n = {m: min(self.n_units[m], other.n_units[m]) for m in self.draws}
        intervals = {m: Interval.of(self.draws[m] - other.draws[m], n[m], LEVEL) for m in self.draws}
        return {m: mine[m] - theirs[m] for m in self.draws}, intervals


@dataclass(frozen=True)
class Group:
    """The recordings that share a value of a column.

    difference: CCCs of the group minus those of all other recordings, with `difference_intervals` from independent
    resamples of both; empty if there is no other recording.
    """

    name: str
    n_recordings: int
    scores: Scores
    intervals: Mapping[str, Interval]
    difference: Mapping[str, float] = field(default_factory=dict)
    difference_intervals: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True)
class SmoothingPoint:
    """Pooled CCCs after smoothing predictions. window_s: full width in seconds, 0 for none."""

    method: SmoothingMethod
    window_s: float
    ccc_valence: float
    ccc_arousal: float
    mean_ccc: float


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of predictions.

    pooled, intervals: over all frames. each: recording id -> its own scores. groups: by column. smoothing: the curve,
    if requested. without_prediction, without_labels: as in Paired.
    """

    pooled: Scores
    intervals: Mapping[str, Interval]
    each: Mapping[str, Scores]
    groups: tuple[Group, ...] = ()
    smoothing: tuple[SmoothingPoint, ...] = ()
    without_prediction: Mapping[str, int] = field(default_factory=dict)
    without_labels: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; undefined numbers are None, and left out of the means over recordings."""
        means, recordings = {}, {}
        for name in (f"{m}_{d}" for m in METRICS for d in ("valence", "arousal")):
            mean, n_defined = metrics.mean_defined([s.to_dict()[name] for s in self.each.values()])
            means[name] = {"mean": mean, "n_defined": n_defined, "n": len(self.each)}
        for name, s in self.each.items():
            why = {d: a.why_undefined for d, a in (("valence", s.valence), ("arousal", s.arousal)) if a.why_undefined}
            recordings[name] = s.to_dict() | {"why_undefined": why}
        groups = [
            {
                "group": g.name,
                "n_recordings": g.n_recordings,
                "scores": g.scores.to_dict(),
                "intervals": g.intervals,
                "minus_the_others": g.difference,
                "minus_the_others_intervals": g.difference_intervals,
            }
            for g in self.groups
        ]
        values = {
            "pooled": self.pooled.to_dict(),
            "intervals": self.intervals,
            "mean_of_recordings": means,
            "recordings": recordings,
            "groups": groups,
            "smoothing": self.smoothing,
            "without_prediction": self.without_prediction,
            "without_labels": self.without_labels,
        }
        return dict(plain(values))


def evaluate(
    labels: Iterable[Trace],
    predictions: Iterable[Trace],
    *,
    by: Mapping[str, str] | None = None,
    smoothing: bool = False,
    windows_s: Sequence[float] = WINDOWS_S,
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> Evaluation:
    """Score predictions.

    by: recording id -> group; recordings without one form the group "". smoothing: add the smoothing curve over
    `windows_s` (full widths in seconds). n_draws, seed: of the bootstrap.
    """
    both = pair(labels, predictions)
    pairs, pooled = both.pairs(), _pooled(both)
    missing = both.missing()
    return Evaluation(
        pooled=pooled,
        intervals=Pool.of(pairs.values(), n_draws, seed).intervals(),
        each={name: replace(metrics.score(*of), n_missing=missing[name]) for name, of in pairs.items()},
        groups=() if by is None else _groups(pairs, by, n_draws, seed),
        smoothing=_smoothing_curve(both, windows_s) if smoothing else (),
        without_prediction=both.without_prediction,
        without_labels=both.without_labels,
    )


def score(predictions: Trace | Iterable[Trace], labels: Trace | Iterable[Trace]) -> Scores:
    """Agreement over all frames of all recordings together, the ABAW challenge's way; `evaluate` gives more.

    Traces are matched by recording id; one trace against one trace needs no common id.
    """
    if isinstance(predictions, Trace) and isinstance(labels, Trace):
        predictions = replace(predictions, recording_id=labels.recording_id)
    found, truth = ((t,) if isinstance(t, Trace) else tuple(t) for t in (predictions, labels))
    return _pooled(pair(truth, found))


def _pooled(both: Paired) -> Scores:
    found = metrics.score_pooled(list(both.pairs().values()))
    if not found.n:
        hint = "check that labels and predictions share a clock"
        raise InputError("no frame is both labelled and predicted", hint=hint)
    return replace(found, n_missing=sum(both.missing().values()))


def _groups(pairs: Mapping[str, Pair], by: Mapping[str, str], n_draws: int, seed: int) -> tuple[Group, ...]:
    found = []
    for k, name in enumerate(sorted({by.get(recording, "") for recording in pairs})):
        inside = [of for recording, of in pairs.items() if by.get(recording, "") == name]
        outside = [of for recording, of in pairs.items() if by.get(recording, "") != name]
        pool = Pool.of(inside, n_draws, seed + 2 * k)
        apart = pool.minus(Pool.of(outside, n_draws, seed + 2 * k + 1)) if outside else ({}, {})
        found.append(Group(name, len(inside), pool.scores, pool.intervals(), *apart))
    return tuple(found)


def _smoothing_curve(both: Paired, windows_s: Sequence[float]) -> tuple[SmoothingPoint, ...]:
    """Pooled CCCs for every method and window, without smoothing first."""
    tried: list[tuple[SmoothingMethod, float]] = [("none", 0.0)]
    tried += [(method, w) for method in METHODS if method != "none" for w in windows_s]
    points = []
    for method, window_s in tried:
        made = {name: smoothed(t, method, window_s) for name, t in both.predictions.items()}
        scores = metrics.score_pooled(list(replace(both, predictions=made).pairs().values()))
        points.append(SmoothingPoint(method, window_s, scores.valence.ccc, scores.arousal.ccc, scores.mean_ccc))
    return tuple(points)


def best_smoothing(points: Sequence[SmoothingPoint]) -> SmoothingPoint:
    """The point of highest mean CCC, to be chosen on validation data; of equal ones the first (less smoothing)."""
    defined = [p for p in points if p.mean_ccc == p.mean_ccc]
    if not defined:
        raise InputError("no point of the smoothing curve has a defined CCC", hint="check the predictions")
    return max(defined, key=lambda p: p.mean_ccc)


def plain(value: Any) -> Any:
    """Plain JSON values, recursively: dataclasses as objects, NaN as None."""
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and value != value else value
