"""One gold standard made of several raters of the same recordings. numpy only.

    mean  every rater counts the same
    EWE   the evaluator-weighted estimator (Grimm & Kroschel 2005, ASRU): raters weighted by their correlation with the
          mean of all

Raters answer late: a delay common to all is given, delays between them are estimated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from affectrace import metrics
from affectrace.config import Config, NotNegative, Positive, checked
from affectrace.datasets.raters import (
    DIMENSIONS,
    Array,
    Panel,
    RaterAgreement,
    agreement,
    mean_of_raters,
    pooled,
)
from affectrace.errors import ConfigError, InputError
from affectrace.metrics import Agreement, Interval, Pair, Scores
from affectrace.trace import NOT_LABELLED, Trace

_MOST_STEPS = 10_000  # delays tried for each rater: a search of more takes hours


@dataclass(frozen=True)
class GoldConfig(Config):
    """How several raters become one."""

    method: Literal["mean", "ewe"] = "mean"  # every rater alike, or weighted (Grimm & Kroschel 2005)
    centre: bool = False  # give every rater the mean of all before averaging: raters differ in their zero
    delay_s: float = 0.0  # seconds raters answer late (2 to 4 are usual, Mariooryad & Busso 2015); 0: as they are
    align: bool = False  # move raters against each other first, each to where it correlates best with the others
    max_shift_s: NotNegative = 5.0  # farthest a rater is moved by `align`, seconds
    step_s: Positive = 0.1  # step of that search, seconds

    def __post_init__(self) -> None:
        if not self.max_shift_s <= _MOST_STEPS * self.step_s:
            raise ConfigError(f"at most {_MOST_STEPS} times step_s", where="max_shift_s")


def gold_standard(panels: Sequence[Panel], config: GoldConfig | None = None) -> tuple[Trace, ...]:
    """One trace a panel, made of all its raters. Weights and delays are estimated over all panels together.

    A dimension is valid where some rater (of weight) rated it. extras: `valence_sd`, `arousal_sd`, the raters' standard
    deviation (NaN with fewer than two); provenance: method, weights, delays.

    Raises:
        InputError: no panel, or no rater that correlates with the others (EWE).
    """
    config = checked(config or GoldConfig())
    moved, delays = _prepared(panels, config)
    raters, weights = _weights(moved, config.method)
    named = {d: dict(zip(raters, w, strict=True)) for d, w in zip(DIMENSIONS, weights.T.tolist(), strict=True)}
    how = {"gold_standard": config.method, "weights": named, "delays_s": delays, "centred": config.centre}
    traces = []
    for panel in moved:
        values = _mean(panel, raters, weights)
        valid = np.isfinite(values)
        reason = np.where(valid.any(axis=1), "", NOT_LABELLED)
        n = np.isfinite(panel.values).sum(axis=1)
        apart = np.nansum((panel.values - mean_of_raters(panel.values)[:, None]) ** 2, axis=1)
        sd = np.where(valid & (n > 1), np.sqrt(apart / np.maximum(n - 1, 1)), np.nan)
        extras = {f"{d}_sd": x for d, x in zip(DIMENSIONS, sd.T, strict=True)}
        trace = Trace(
            panel.recording_id, panel.timeline, values[:, 0], values[:, 1], valid, reason, f"gold-{config.method}"
        )
        traces.append(replace(trace, extras=extras, provenance=how))
    return tuple(traces)


def _prepared(panels: Sequence[Panel], config: GoldConfig) -> tuple[list[Panel], dict[str, float]]:
    """Panels with every rater's delay (and zero) taken out, and the delays in seconds."""
    if not panels:
        raise InputError("no raters to combine", hint="give at least one recording with several raters")
    delays = dict.fromkeys(sorted({r for p in panels for r in p.raters}), 0.0)
    if config.align:
        delays = relative_delays(panels, config.max_shift_s, config.step_s)
    delays = {r: config.delay_s + d for r, d in delays.items()}
    moved = [p.shifted(delays) for p in panels] if any(delays.values()) else list(panels)
    return (_centred(moved) if config.centre else moved), delays


def _mean(panel: Panel, raters: Sequence[str], weights: Array) -> Array:
    """(T, 2) weighted mean of a panel's raters; weights: (raters, 2)."""
    own = weights[[raters.index(r) for r in panel.raters]]
    return np.clip(mean_of_raters(panel.values, own), -1, 1)


def _weights(panels: Sequence[Panel], method: str) -> tuple[tuple[str, ...], Array]:
    """Raters of all panels, and (raters, 2) weights."""
    raters, values = pooled(panels)
    if method == "mean":
        return raters, np.ones((len(raters), 2))
    return raters, np.stack([list(ewe_weights(raters, values[..., d]).values()) for d in (0, 1)], axis=1)


def ewe_weights(raters: Iterable[str], table: ArrayLike) -> dict[str, float]:
    """Weight of each rater: correlation with the mean of all (Grimm & Kroschel 2005, eq. 3), 0 where below 0.

    table: (T, K) of one dimension, NaN = missing.

    Raises:
        InputError: no rater has a positive weight.
    """
    x = np.asarray(table, dtype=np.float64)
    if not np.isfinite(x).any():  # a dimension that nobody rated
        return dict.fromkeys(raters, 1.0)
    mean = mean_of_raters(x[..., None])[:, 0]
    found = {rater: max(0.0, _correlation(x[:, i], mean)) for i, rater in enumerate(raters)}
    if not any(found.values()):
        raise InputError("no rater correlates with the mean of all", hint="use the plain mean, or look at the ratings")
    return found


def _correlation(x: Array, y: Array) -> float:
    both = np.isfinite(x) & np.isfinite(y)
    r = metrics.pcc(x[both], y[both])
    return 0.0 if math.isnan(r) else r


def _centred(panels: Sequence[Panel]) -> list[Panel]:
    raters, values = pooled(panels)
    means = mean_of_raters(np.swapaxes(values, 0, 1))  # (raters, 2), over all frames
    known = np.isfinite(means)
    shift = np.where(known, means, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1) - means
    return [replace(p, values=p.values + shift[[raters.index(r) for r in p.raters]]) for p in panels]


def relative_delays(panels: Sequence[Panel], max_shift_s: float = 5.0, step_s: float = 0.1) -> dict[str, float]:
    """Seconds each rater lags behind the panel's median rater (negative: ahead).

    Each rater is moved to where it correlates best with the mean of the others as they stand, both dimensions
    together, until nobody moves (at most ten rounds). Delays common to all cannot be seen; that is `delay_s`.
    """
    raters = sorted({r for p in panels for r in p.raters})
    steps = round(max_shift_s / step_s)
    grid = sorted((k * step_s for k in range(-steps, steps + 1)), key=abs)  # of equals the smallest move wins
    delays = dict.fromkeys(raters, 0.0)
    for _ in range(10):
        before = dict(delays)
        for rater in raters:
            others = [mean_of_raters(_without(p.shifted(delays), rater).values) for p in panels]
            fits = [_fit(panels, rater, delay, others) for delay in grid]
            delays[rater] = grid[int(np.argmax(fits))]
        if delays == before:
            break
    middle = float(np.median(list(delays.values()))) if delays else 0.0
    return {r: round(d - middle, 9) for r, d in delays.items()}


def _without(panel: Panel, rater: str) -> Panel:
    keep = [i for i, r in enumerate(panel.raters) if r != rater]
    return replace(panel, raters=tuple(panel.raters[i] for i in keep), values=panel.values[:, keep])


def _fit(panels: Sequence[Panel], rater: str, delay_s: float, others: Sequence[Array]) -> float:
    """Sum over dimensions of a rater's correlation with the others, when read `delay_s` later."""
    own, rest = [], []
    for panel, mean in zip(panels, others, strict=True):
        if rater in panel.raters:
            index = panel.timeline.frames_at(panel.timeline.times + delay_s)
            values = panel.values[:, panel.raters.index(rater)]
            own.append(np.where(index[:, None] >= 0, values[np.maximum(index, 0)], np.nan))
            rest.append(mean)
    x, y = np.concatenate(own), np.concatenate(rest)
    return sum(_correlation(x[:, d], y[:, d]) for d in (0, 1))


# ---- one rater against the others: what a model may hope for


@dataclass(frozen=True)
class HumanRow:
    """What one rater scores against the gold standard of the others.

    each: rater -> scores over the pooled frames that this rater and others rated.
    pooled: means over raters of each measure, undefined ones left out; `n` is the mean number of frames.
    recordings: recording id -> the same within that recording. intervals: of `ccc_valence`, `ccc_arousal`, `mean_ccc`
    of `pooled`, from resampled recordings.
    """

    each: Mapping[str, Scores]
    pooled: Scores
    recordings: Mapping[str, Scores]
    intervals: Mapping[str, Interval]

    def to_dict(self) -> dict[str, float]:
        """Flat numbers of `pooled`: `ccc_valence`, `ccc_arousal`, `mean_ccc`, `pcc_valence`, ..., and `n_raters`."""
        values = self.pooled.to_dict()
        return {k: values[k] for k in values if not k.startswith("n")} | {"n_raters": len(self.each)}


def human_row(
    panels: Sequence[Panel],
    config: GoldConfig | None = None,
    *,
    n_draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> HumanRow:
    """Each rater scored, as a model would be, against the gold standard made of the others.

    Delays and zeros (`config`) are taken out of all raters first, including the one who is scored; EWE weights come
    from the others alone. The same seed draws the same recordings as `metrics.bootstrap` for as many recordings, so
    the row can be compared with a model's.

    Args:
        panels: one a recording, such as `datasets.read_raters` gives for the recordings that are scored.

    Raises:
        InputError: fewer than two raters, or EWE without a rater that correlates with the others.
    """
    config = config or GoldConfig()
    raters = sorted({r for p in panels for r in p.raters})
    if len(raters) < 2:
        raise InputError(f"nobody to compare with (raters: {len(raters)})", hint="give at least two")
    moved, _ = _prepared(panels, config)
    pairs = {rater: _against_others(moved, rater, config.method) for rater in raters}
    each = {rater: metrics.score_pooled(list(of.values())) for rater, of in pairs.items()}
    within = {p.recording_id: _mean_scores([metrics.score(*pairs[r][p.recording_id]) for r in p.raters]) for p in moved}
    intervals = _intervals([list(of.values()) for of in pairs.values()], n_draws, level, seed)
    return HumanRow(each, _mean_scores(list(each.values())), within, intervals)


def _mean_scores(scores: Sequence[Scores]) -> Scores:
    """Means of each measure over those that define it; `n` is the mean number of frames, rounded."""
    means = []
    for of in ([getattr(s, d) for s in scores] for d in DIMENSIONS):
        values = {m: metrics.mean_defined([getattr(a, m) for a in of])[0] for m in metrics.METRICS}
        why = "" if any(not a.why_undefined for a in of) else ", ".join(sorted({a.why_undefined for a in of}))
        means.append(Agreement(round(sum(a.n for a in of) / max(len(of), 1)), **values, why_undefined=why))
    return Scores(means[0], means[1])


def _against_others(panels: Sequence[Panel], rater: str, method: str) -> dict[str, Pair]:
    """Recording id -> (the rater's own values, the others' gold standard, what both rated), each (T, 2)."""
    rest = [_without(p, rater) for p in panels]
    raters, weights = _weights(rest, method)
    found = {}
    for panel, others in zip(panels, rest, strict=True):
        nothing = np.full((len(panel.timeline), 2), np.nan)
        own = panel.values[:, panel.raters.index(rater)] if rater in panel.raters else nothing
        gold = _mean(others, raters, weights) if others.raters else nothing
        found[panel.recording_id] = (own, gold, np.isfinite(own) & np.isfinite(gold))
    return found


def _intervals(raters: Sequence[list[Pair]], n_draws: int, level: float, seed: int) -> dict[str, Interval]:
    """Of the means over raters; every rater is resampled at the same recordings."""
    draws = [metrics.bootstrap_draws(pairs, n_draws=n_draws, seed=seed) for pairs in raters]
    # a recording that one rater alone has is resampled like any other
    n_units = sum(any(bool(np.any(of[i][2])) for of in raters) for i in range(len(raters[0])))
    found = {}
    for name in draws[0]:
        table = np.stack([d[name] for d in draws])
        found[name] = Interval.of(mean_of_raters(table.T[..., None])[:, 0], n_units, level)
    return found


# ---- both, as a report


@dataclass(frozen=True)
class RaterReport:
    """How well raters agree on valence and on arousal, and one rater against the others; empty without raters."""

    agreement: tuple[RaterAgreement, ...] = ()
    human: HumanRow | None = None

    @classmethod
    def of(cls, panels: Sequence[Panel], config: GoldConfig) -> RaterReport:
        """Of the panels of a data set (there may be none)."""
        if not panels:
            return cls()
        found = agreement(panels)
        return cls(found, human_row(panels, config) if found[0].n_raters > 1 else None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, None where a number is undefined."""
        human = {} if self.human is None else self.human.to_dict()
        return {"agreement": [_plain(asdict(a)) for a in self.agreement], "one_against_the_others": _plain(human)}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _plain(v) if isinstance(v, dict) else None if v != v else v for k, v in values.items()}
