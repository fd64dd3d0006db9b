"""Score predictions against labels: pooled and per recording, with intervals, by group, and after smoothing.

    label traces + prediction traces --pair--> (T, 2), (T, 2), (T, 2) a recording --metrics--> Evaluation

The pooled score concatenates all frames (the ABAW challenge's way). Intervals resample whole recordings, since frames
of one are not independent. Labelled frames without a prediction are counted and named, never scored as a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affectrace import metrics
from affectrace.errors import InputError
from affectrace.evaluate.smoothing import METHODS, WINDOWS_S, SmoothingMethod, smoothed
from affectrace.metrics import METRICS, Interval, Pair, Scores
from affectrace.trace import Trace

N_DRAWS = 2000
"""Bootstrap resamples (ours)."""
LEVEL = 0.95
"""Share of resamples inside an interval (ours)."""


@dataclass(frozen=True, eq=False)
class Paired:
    """Predictions beside labels, recording by recording, on the labels' clocks.

    labels, predictions: recording id -> trace, the same ids in the same order; predictions are held onto label clocks.
    without_prediction: recording id -> labelled frames, of recordings nothing was predicted for.
    without_labels: ids that were predicted but have no labels.
    """

    labels: Mapping[str, Trace]
    predictions: Mapping[str, Trace]
    without_prediction: Mapping[str, int] = field(default_factory=dict)
    without_labels: tuple[str, ...] = ()

    def pairs(self) -> dict[str, Pair]:
        """Recording id -> (prediction, labels, what counts: labelled and predicted), each (T, 2)."""
        found: dict[str, Pair] = {}
        for name, labels in self.labels.items():
            prediction = self.predictions[name]
            found[name] = (prediction.values, labels.values, labels.valid & prediction.valid)
        return found

    @property
    def n_missing(self) -> int:
        """Frames labelled with what is not predicted, those of recordings without any prediction among them."""
        within = sum(_missing(t, self.predictions[name].valid) for name, t in self.labels.items())
        return within + sum(self.without_prediction.values())


def _missing(labels: Trace, predicted: NDArray[np.bool_]) -> int:
    """Frames of which something is labelled that is not predicted, (T, 2)."""
    return int((labels.valid & ~predicted).any(axis=1).sum())


def pair(labels: Iterable[Trace], predictions: Iterable[Trace]) -> Paired:
    """Predictions beside labels by recording id; of several persons of a recording the labels' person is taken.

    Raises InputError: no recording in common, an id labelled twice, or two predictions that cannot be told apart.
    """
    truth: dict[str, Trace] = {}
    for trace in labels:
        if trace.recording_id in truth:
            raise InputError("labelled twice", where=trace.recording_id, hint="give every recording's labels once")
        truth[trace.recording_id] = trace
    found: dict[str, list[Trace]] = {}
    for trace in predictions:
        found.setdefault(trace.recording_id, []).append(trace)
    chosen = {name: _of_person(found[name], truth[name].person) for name in truth if name in found}
    if not chosen:
        a, b = (", ".join(sorted(names)[:3]) or "none" for names in (truth, found))
        raise InputError(
            f"labels and predictions share no recording (labels: {a}; predictions: {b})",
            hint="predict the recordings of this data set; they are matched by id",
        )
    return Paired(
        labels={name: truth[name] for name in chosen},
        predictions={
            name: t if t.timeline == truth[name].timeline else t.resample(truth[name].timeline)
            for name, t in chosen.items()
        },
        without_prediction={name: int(t.known.sum()) for name, t in truth.items() if name not in chosen},
        without_labels=tuple(sorted(set(found) - set(truth))),
    )


def _of_person(traces: Sequence[Trace], person: str) -> Trace:
    if len(traces) == 1:
        return traces[0]
    mine = [t for t in traces if t.person == person]
    if len(mine) != 1:
        persons = ", ".join(t.person for t in traces)
        raise InputError(
            f"has {len(traces)} predictions (persons {persons}), the labels are of person {person}",
            where=traces[0].recording_id,
            hint="give one prediction a recording",
        )
    return mine[0]


@dataclass(frozen=True)
class Group:
    """The recordings that share a value of a column.

    scores, intervals: of its frames. difference: CCCs of the group minus those of all other recordings, with
    `difference_intervals` from independent resamples of both; empty where there is no other recording.
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
    """What a set of predictions scores.

    pooled, intervals: over all frames. each: recording id -> its own scores. mean_each: mean over the recordings on
    which a measure is defined, and `n_defined` how many those are. groups: by column. smoothing: the curve, if asked.
    without_prediction, without_labels: as in Paired.
    """

    pooled: Scores
    intervals: Mapping[str, Interval]
    each: Mapping[str, Scores]
    groups: tuple[Group, ...] = ()
    smoothing: tuple[SmoothingPoint, ...] = ()
    without_prediction: Mapping[str, int] = field(default_factory=dict)
    without_labels: tuple[str, ...] = ()

    def mean_each(self) -> dict[str, tuple[float, int]]:
        """`ccc_valence`, ... -> mean over recordings on which it is defined, and how many those are."""
        return {
            f"{m}_{d}": metrics.mean_defined([getattr(getattr(s, d), m) for s in self.each.values()])
            for m in METRICS
            for d in ("valence", "arousal")
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; undefined numbers are None."""
        n, means = len(self.each), self.mean_each()
        why = {
            name: {d: w for d in ("valence", "arousal") if (w := getattr(s, d).why_undefined)}
            for name, s in self.each.items()
        }
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
            "mean_of_recordings": {k: {"mean": v, "n_defined": m, "n": n} for k, (v, m) in means.items()},
            "recordings": {name: s.to_dict() | {"why_undefined": why[name]} for name, s in self.each.items()},
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
    """Score predictions (raises InputError: nothing in common, or no frame that counts).

    by: recording id -> group; recordings without one form the group "". smoothing: add the smoothing curve over
    `windows_s` (full widths in seconds). n_draws, seed: of the bootstrap.
    """
    both = pair(labels, predictions)
    pairs = both.pairs()
    pooled = _pooled(both)
    each = {
        name: replace(s, n_missing=_missing(both.labels[name], pairs[name][2]))
        for name, s in ((name, metrics.score(*pair)) for name, pair in pairs.items())
    }
    return Evaluation(
        pooled=pooled,
        intervals=metrics.bootstrap(list(pairs.values()), n_draws=n_draws, level=LEVEL, seed=seed),
        each=each,
        groups=() if by is None else group_scores(pairs, by, n_draws=n_draws, seed=seed),
        smoothing=smoothing_curve(both, windows_s) if smoothing else (),
        without_prediction=both.without_prediction,
        without_labels=both.without_labels,
    )


def score(predictions: Trace | Iterable[Trace], labels: Trace | Iterable[Trace]) -> Scores:
    """Agreement over all frames of all recordings together, the ABAW challenge's way; `evaluate` gives more.

    Traces are matched by recording id (raises InputError: none in common). A trace against a trace needs no common id.
    """
    if isinstance(predictions, Trace) and isinstance(labels, Trace):
        predictions = replace(predictions, recording_id=labels.recording_id)
    one, truth = ((t,) if isinstance(t, Trace) else tuple(t) for t in (predictions, labels))
    both = pair(truth, one)
    return _pooled(both)


def _pooled(both: Paired) -> Scores:
    found = metrics.score_pooled(list(both.pairs().values()))
    if not found.n:
        hint = "check that labels and predictions share a clock"
        raise InputError("no frame is both labelled and predicted", hint=hint)
    return replace(found, n_missing=both.n_missing)


def group_scores(
    pairs: Mapping[str, Pair], by: Mapping[str, str], *, n_draws: int = N_DRAWS, seed: int = 0
) -> tuple[Group, ...]:
    """Scores of every group, and its difference to all other recordings, with intervals."""
    members: dict[str, list[str]] = {}
    for name in pairs:
        members.setdefault(by.get(name, ""), []).append(name)
    found = []
    for k, (group, names) in enumerate(sorted(members.items())):
        inside = [pairs[n] for n in names]
        outside = [pair for n, pair in pairs.items() if by.get(n, "") != group]
        scores = metrics.score_pooled(inside)
        mine = metrics.bootstrap_draws(inside, n_draws=n_draws, seed=seed + 2 * k)
        difference: dict[str, float] = {}
        between: dict[str, Interval] = {}
        if outside:
            rest = metrics.score_pooled(outside)
            theirs = metrics.bootstrap_draws(outside, n_draws=n_draws, seed=seed + 2 * k + 1)
            difference = {m: scores.to_dict()[m] - rest.to_dict()[m] for m in mine}
            n_inside, n_outside = metrics.n_units(inside), metrics.n_units(outside)
            between = {m: Interval.of(mine[m] - theirs[m], min(n_inside[m], n_outside[m]), LEVEL) for m in mine}
        intervals = {m: Interval.of(d, metrics.n_units(inside)[m], LEVEL) for m, d in mine.items()}
        found.append(Group(group, len(names), scores, intervals, difference, between))
    return tuple(found)


def smoothing_curve(both: Paired, windows_s: Sequence[float] = WINDOWS_S) -> tuple[SmoothingPoint, ...]:
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
    """The point of highest mean CCC, to be chosen on validation data; of equals the earlier (less smoothing)."""
    defined = [p for p in points if p.mean_ccc == p.mean_ccc]
    if not defined:
        raise InputError("no point of the smoothing curve has a defined CCC", hint="check the predictions")
    return max(defined, key=lambda p: p.mean_ccc)


def plain(value: Any) -> Any:
    """Values for JSON, all the way down: dataclasses as objects, numbers that are not defined as None."""
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and value != value else value
