"""One gold standard made of several raters of the same recordings. numpy only.

    mean  every rater counts the same
    EWE   the evaluator-weighted estimator (Grimm & Kroschel 2005, ASRU): raters weighted by their correlation with the
          mean of all

Raters answer late: a delay common to all is given, delays between them are estimated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from affectrace import metrics
from affectrace.config import Config
from affectrace.datasets.raters import DIMENSIONS, Array, Panel, mean_of_raters, pooled
from affectrace.errors import ConfigError, InputError
from affectrace.metrics import Agreement, Interval, Pair, Scores
from affectrace.trace import NOT_LABELLED, Trace


@dataclass(frozen=True)
class GoldConfig(Config):
    """How several raters become one."""

    method: Literal["mean", "ewe"] = "mean"  # every rater alike, or weighted (Grimm & Kroschel 2005)
    centre: bool = False  # give every rater the mean of all before averaging: raters differ in their zero
    delay_s: float = 0.0  # seconds raters answer late (2 to 4 are usual, Mariooryad & Busso 2015); 0: as they are
    align: bool = False  # move raters against each other first, each to where it correlates best with the others
    max_shift_s: float = 5.0  # farthest a rater is moved by `align`, seconds
    step_s: float = 0.1  # step of that search, seconds

    def __post_init__(self) -> None:
        if self.method not in ("mean", "ewe"):
            raise ConfigError(f"method: mean or ewe, got '{self.method}'", where="GoldConfig")
        if not (self.max_shift_s >= 0 and self.step_s > 0 and math.isfinite(self.delay_s)):
            raise ConfigError("delay_s, max_shift_s and step_s must be seconds, step_s above 0", where="GoldConfig")


def gold_standard(panels: Sequence[Panel], config: GoldConfig | None = None) -> tuple[Trace, ...]:
    """One trace a panel, made of all its raters. Weights and delays are estimated over all panels together.

    Frames without any rater are not valid. extras: `valence_sd`, `arousal_sd`, the raters' standard deviation (NaN
    with fewer than two); provenance: method, weights, delays.

    Raises:
        InputError: no panel, or no rater that correlates with the others (EWE).
    """
    config = config or GoldConfig()
    moved, delays = _prepared(panels, config)
    weights = {d: _weights(moved, d, config.method) for d in DIMENSIONS}
    provenance = {"gold_standard": config.method, "weights": weights, "delays_s": delays, "centred": config.centre}
    return tuple(_gold(p, weights, f"gold-{config.method}", provenance) for p in moved)


def _prepared(panels: Sequence[Panel], config: GoldConfig) -> tuple[list[Panel], dict[str, float]]:
    """Panels with every rater's delay (and zero) taken out, and the delays in seconds."""
    if not panels:
        raise InputError("no raters to combine", hint="give at least one recording with several raters")
    raters = sorted({r for p in panels for r in p.raters})
    relative = (
        relative_delays(panels, config.max_shift_s, config.step_s) if config.align else dict.fromkeys(raters, 0.0)
    )
    delays = {r: config.delay_s + d for r, d in relative.items()}
    moved = [p.shifted(delays) for p in panels] if any(delays.values()) else list(panels)
    return (_centred(moved) if config.centre else moved), delays


def _gold(panel: Panel, weights: Mapping[str, Mapping[str, float]], source: str, how: Mapping[str, object]) -> Trace:
    values, extras = {}, {}
    for d in DIMENSIONS:
        table = getattr(panel, d)
        values[d] = np.clip(mean_of_raters(table, np.array([weights[d][r] for r in panel.raters])), -1, 1)
        extras[f"{d}_sd"] = _sd(table)
    valid = np.stack([np.isfinite(values[d]) for d in DIMENSIONS], axis=1)
    return Trace(
        recording_id=panel.recording_id,
        timeline=panel.timeline,
        valence=values["valence"],
        arousal=values["arousal"],
        valid=valid,
        reason=np.where(valid.any(axis=1), "", NOT_LABELLED),
        source=source,
        extras={f"{d}_sd": np.where(valid[:, k], extras[f"{d}_sd"], np.nan) for k, d in enumerate(DIMENSIONS)},
        provenance=how,
    )


def _sd(table: Array) -> Array:
    known = np.isfinite(table)
    n = known.sum(axis=1)
    centred = np.where(known, table - mean_of_raters(table)[:, None], 0.0)
    return np.asarray(np.where(n > 1, np.sqrt((centred**2).sum(axis=1) / np.maximum(n - 1, 1)), np.nan))


def _weights(panels: Sequence[Panel], dimension: str, method: str) -> dict[str, float]:
    raters, table = pooled(panels, dimension)
    return ewe_weights(raters, table) if method == "ewe" else dict.fromkeys(raters, 1.0)


def ewe_weights(raters: Iterable[str], table: ArrayLike) -> dict[str, float]:
    """Weight of each rater: correlation with the mean of all (Grimm & Kroschel 2005, eq. 3), 0 where below 0.

    table: (T, K), NaN = missing.

    Raises:
        InputError: no rater has a positive weight.
    """
    x = np.asarray(table, dtype=np.float64)
    mean = mean_of_raters(x)
    found = {rater: max(0.0, _correlation(x[:, i], mean)) for i, rater in enumerate(raters)}
    if not any(found.values()):
        raise InputError("no rater correlates with the mean of all", hint="use the plain mean, or look at the ratings")
    return found


def _correlation(x: Array, y: Array) -> float:
    both = np.isfinite(x) & np.isfinite(y)
    r = metrics.pcc(x[both], y[both])
    return 0.0 if math.isnan(r) else r


def _centred(panels: Sequence[Panel]) -> list[Panel]:
    shifts: dict[str, dict[str, float]] = {}
    for d in DIMENSIONS:
        raters, table = pooled(panels, d)
        means = np.array([_mean_of(table[:, i]) for i in range(len(raters))])
        shifts[d] = dict(zip(raters, np.nanmean(means) - means, strict=True))

    def move(panel: Panel, dimension: str) -> Array:
        return np.asarray(getattr(panel, dimension) + np.array([shifts[dimension][r] for r in panel.raters]))

    return [replace(p, valence=move(p, "valence"), arousal=move(p, "arousal")) for p in panels]


def _mean_of(x: Array) -> float:
    known = x[np.isfinite(x)]
    return float(known.mean()) if known.size else math.nan


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
            others = [_others(p.shifted(delays), rater) for p in panels]
            delays[rater] = max(grid, key=lambda d, r=rater, o=others: _fit(panels, r, d, o))  # type: ignore[misc]
        if delays == before:
            break
    middle = float(np.median(list(delays.values()))) if delays else 0.0
    return {r: round(d - middle, 9) for r, d in delays.items()}


def _others(panel: Panel, rater: str) -> dict[str, Array]:
    keep = np.array([r != rater for r in panel.raters])
    return {d: mean_of_raters(getattr(panel, d)[:, keep]) for d in DIMENSIONS}


def _fit(panels: Sequence[Panel], rater: str, delay_s: float, others: Sequence[Mapping[str, Array]]) -> float:
    total = 0.0
    for d in DIMENSIONS:
        pairs = []
        for panel, rest in zip(panels, others, strict=True):
            if rater in panel.raters:
                index = panel.timeline.frames_at(panel.timeline.times + delay_s)
                own = getattr(panel, d)[:, panel.raters.index(rater)]
                pairs.append((np.where(index >= 0, own[np.maximum(index, 0)], np.nan), rest[d]))
        if pairs:
            x, y = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
            total += _correlation(x, y)
    return total


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

    Delays and zeros (`config`) are taken out of all raters first, the one who is scored among them; EWE weights come
    from the others alone. The same seed draws the same recordings as `metrics.bootstrap` for as many recordings, so
    the row stands beside a model's.

    Args:
        panels: one a recording, such as `catalog.read_panels` gives for the recordings that are scored.

    Raises:
        InputError: fewer than two raters, or EWE without a rater that correlates with the others.
    """
    config = config or GoldConfig()
    raters = sorted({r for p in panels for r in p.raters})
    if len(raters) < 2:
        raise InputError(f"{len(raters)} raters: none to compare with", hint="give at least two")
    moved, _ = _prepared(panels, config)
    pairs = {rater: _against_others(moved, rater, config.method) for rater in raters}
    each = {rater: metrics.score_pooled(list(of.values())) for rater, of in pairs.items()}
    within = {p.recording_id: mean_scores([metrics.score(*pairs[r][p.recording_id]) for r in p.raters]) for p in moved}
    intervals = _intervals([list(of.values()) for of in pairs.values()], n_draws, level, seed)
    return HumanRow(each, mean_scores(list(each.values())), within, intervals)


def mean_scores(scores: Sequence[Scores]) -> Scores:
    """Means of each measure over those that define it; `n` is the mean number of frames, rounded."""
    valence, arousal = (_mean_agreement([getattr(s, d) for s in scores]) for d in DIMENSIONS)
    return Scores(valence, arousal)


def _mean_agreement(of: Sequence[Agreement]) -> Agreement:
    means = {m: metrics.mean_defined([getattr(a, m) for a in of])[0] for m in metrics.METRICS}
    why = "" if any(not a.why_undefined for a in of) else ", ".join(sorted({a.why_undefined for a in of}))
    return Agreement(round(sum(a.n for a in of) / max(len(of), 1)), **means, why_undefined=why)


def _against_others(panels: Sequence[Panel], rater: str, method: str) -> dict[str, Pair]:
    """Recording id -> (the rater's own (T, 2), the others' gold standard (T, 2), what both speak of), each (T, 2)."""
    rest = [_without(p, rater) for p in panels]
    weights = {d: _weights(rest, d, method) for d in DIMENSIONS}
    found = {}
    for panel, others in zip(panels, rest, strict=True):
        own = np.full((len(panel.timeline), 2), np.nan)
        gold = np.full((len(panel.timeline), 2), np.nan)
        for k, d in enumerate(DIMENSIONS):
            if rater in panel.raters:
                own[:, k] = getattr(panel, d)[:, panel.raters.index(rater)]
            if others.raters:
                gold[:, k] = mean_of_raters(getattr(others, d), np.array([weights[d][r] for r in others.raters]))
        both = np.isfinite(own) & np.isfinite(gold)
        found[panel.recording_id] = (own, np.clip(gold, -1, 1), both)
    return found


def _without(panel: Panel, rater: str) -> Panel:
    keep = [i for i, r in enumerate(panel.raters) if r != rater]
    return replace(
        panel,
        raters=tuple(panel.raters[i] for i in keep),
        valence=panel.valence[:, keep],
        arousal=panel.arousal[:, keep],
    )


def _intervals(raters: Sequence[list[Pair]], n_draws: int, level: float, seed: int) -> dict[str, Interval]:
    """Of the means over raters; every rater is resampled at the same recordings."""
    draws = [metrics.bootstrap_draws(pairs, n_draws=n_draws, seed=seed) for pairs in raters]
    # a recording that one rater alone has is resampled like any other
    n_units = sum(any(bool(np.any(of[i][2])) for of in raters) for i in range(len(raters[0])))
    found = {}
    for name in draws[0]:
        table = np.stack([d[name] for d in draws])
        known = np.isfinite(table)
        total, n = np.where(known, table, 0).sum(axis=0), known.sum(axis=0)
        means = np.divide(total, n, out=np.full(len(total), np.nan), where=n > 0)
        found[name] = Interval.of(means, n_units, level)
    return found
