"""Gold standards of several raters (mean, EWE), and inter-rater agreement as a score.

    mean  every rater counts the same
    EWE   evaluator-weighted estimator (Grimm & Kroschel 2005, ASRU): raters weighted by their correlation with the
          mean of all

Raters respond with a delay: one common to all is given, delays between raters are estimated.
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
    Array,
    Panel,
    RaterAgreement,
    agreement,
    mean_of_raters,
    same_raters,
    shifted,
)
from affectrace.errors import ConfigError, InputError
from affectrace.metrics import DIMENSIONS, Agreement, Interval, Pair, Scores
from affectrace.trace import NOT_LABELLED, Trace

_MAX_STEPS = 10_000  # delays tried per rater


@dataclass(frozen=True)
class GoldConfig(Config):
    """How raters are combined."""

    method: Literal["mean", "ewe"] = "mean"  # unweighted, or weighted by agreement (Grimm & Kroschel 2005)
    centre: bool = False  # shift every rater to the mean of all before averaging
    delay_s: float = 0.0  # response delay common to all raters (usually 2 to 4, Mariooryad & Busso 2015)
    align: bool = False  # estimate delays between raters first: each where it correlates best with the others
    max_shift_s: NotNegative = 5.0  # largest delay tried by `align`
    step_s: Positive = 0.1  # step of that search

    def __post_init__(self) -> None:
        if not self.max_shift_s <= _MAX_STEPS * self.step_s:
            raise ConfigError(f"at most {_MAX_STEPS} times step_s", where="max_shift_s")


def gold_standard(panels: Sequence[Panel], config: GoldConfig | None = None) -> tuple[Trace, ...]:
    """One trace per panel. Weights and delays are estimated over all panels together.

    A dimension is valid where any rater (of nonzero weight) rated it. extras: `valence_sd`, `arousal_sd`, standard
    deviation of the raters (NaN with fewer than two). provenance: method, weights, delays. Raises InputError: no panel,
    or no rater that correlates with the mean (EWE).
    """
    config = checked(config or GoldConfig())
    moved, delays = _prepared(panels, config)
    weights = _weights(moved, config.method)
    named = {d: dict(zip(delays, w, strict=True)) for d, w in zip(DIMENSIONS, weights.T.tolist(), strict=True)}
    how = {"gold_standard": config.method, "weights": named, "delays_s": delays, "centred": config.centre}
    traces = []
    for panel in moved:
        values = np.clip(mean_of_raters(panel.values, weights), -1, 1)
        valid = np.isfinite(values)
        n = np.isfinite(panel.values).sum(axis=1)
        squares = np.nansum((panel.values - mean_of_raters(panel.values)[:, None]) ** 2, axis=1)
        sd = np.where(valid & (n > 1), np.sqrt(squares / np.maximum(n - 1, 1)), np.nan)
        traces.append(
            Trace(
                panel.recording_id,
                panel.timeline,
                values[:, 0],
                values[:, 1],
                valid,
                np.where(valid.any(axis=1), "", NOT_LABELLED),
                source=f"gold-{config.method}",
                extras={f"{d}_sd": x for d, x in zip(DIMENSIONS, sd.T, strict=True)},
                provenance=how,
            )
        )
    return tuple(traces)


def _prepared(panels: Sequence[Panel], config: GoldConfig) -> tuple[list[Panel], dict[str, float]]:
    """Panels of the same raters without their delays (and offsets); and the delays in seconds."""
    if not panels:
        raise InputError("no raters to combine", hint="give at least one recording with several raters")
    panels = same_raters(panels)
    delays = dict.fromkeys(panels[0].raters, 0.0)
    if config.align:
        delays = relative_delays(panels, config.max_shift_s, config.step_s)
    delays = {r: config.delay_s + d for r, d in delays.items()}
    if any(delays.values()):
        panels = [p.shifted(delays) for p in panels]
    if config.centre:
        means = mean_of_raters(np.concatenate([p.values for p in panels]).swapaxes(0, 1))  # (raters, 2)
        offsets = means - mean_of_raters(means[None])
        panels = [replace(p, values=p.values - offsets) for p in panels]
    return panels, delays


def _weights(panels: Sequence[Panel], method: str) -> Array:
    """(raters, 2) weights."""
    raters, values = panels[0].raters, np.concatenate([p.values for p in panels])
    if method == "mean":
        return np.ones((len(raters), 2))
    return np.stack([list(ewe_weights(raters, values[..., d]).values()) for d in (0, 1)], axis=1)


def ewe_weights(raters: Iterable[str], table: ArrayLike) -> dict[str, float]:
    """Weight of each rater: correlation with the mean of all (Grimm & Kroschel 2005, eq. 3), at least 0.

    table: (T, K) of one dimension, NaN = missing. Raises InputError: no rater has a positive weight.
    """
    x = np.asarray(table, dtype=np.float64)
    if not np.isfinite(x).any():  # unrated dimension
        return dict.fromkeys(raters, 1.0)
    mean = mean_of_raters(x[..., None])[:, 0]
    found = {rater: max(0.0, _correlation(x[:, i], mean)) for i, rater in enumerate(raters)}
    if not any(found.values()):
        raise InputError("no rater correlates with the mean of all", hint="use the plain mean, or check the ratings")
    return found


def _correlation(x: Array, y: Array) -> float:
    both = np.isfinite(x) & np.isfinite(y)
    r = metrics.pcc(x[both], y[both])
    return 0.0 if math.isnan(r) else r


def relative_delays(panels: Sequence[Panel], max_shift_s: float = 5.0, step_s: float = 0.1) -> dict[str, float]:
    """Seconds each rater lags behind the median rater (negative: ahead).

    Each rater in turn is moved to the delay with the best correlation with the mean of the others, both dimensions
    together, until none moves (at most ten rounds). A delay common to all cannot be estimated; see `delay_s`.
    """
    panels, steps = same_raters(panels), round(max_shift_s / step_s)
    grid = sorted((k * step_s for k in range(-steps, steps + 1)), key=abs)  # among equals the smallest delay wins
    delays = dict.fromkeys(panels[0].raters, 0.0)
    for _ in range(10):
        before = dict(delays)
        for k, rater in enumerate(delays):
            rest = np.concatenate([mean_of_raters(_without(p.shifted(delays), k).values) for p in panels])
            fits = []
            for delay_s in grid:
                own = np.concatenate([shifted(p.timeline, p.values[:, k], delay_s) for p in panels])
                fits.append(sum(_correlation(own[:, d], rest[:, d]) for d in (0, 1)))
            delays[rater] = grid[int(np.argmax(fits))]
        if delays == before:
            break
    median = float(np.median(list(delays.values())))
    return {r: round(d - median, 9) for r, d in delays.items()}


def _without(panel: Panel, k: int) -> Panel:
    """The panel as if rater k had rated nothing."""
    values = panel.values.copy()
    values[:, k] = np.nan
    return replace(panel, values=values)


# ---- one rater against the others


@dataclass(frozen=True)
class HumanRow:
    """Scores of one rater against the gold standard of the others: what a model can be compared with.

    each: rater -> scores over the pooled frames rated by this rater and others. pooled: means over raters of each
    defined measure; `n` is the mean number of frames. recordings: recording id -> the same within the recording.
    intervals: of `ccc_valence`, `ccc_arousal`, `mean_ccc` of `pooled`, by resampling recordings.
    """

    each: Mapping[str, Scores]
    pooled: Scores
    recordings: Mapping[str, Scores]
    intervals: Mapping[str, Interval]

    def to_dict(self) -> dict[str, float]:
        """Numbers of `pooled` (`ccc_valence`, `ccc_arousal`, `mean_ccc`, `pcc_valence`, ...), and `n_raters`."""
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
    """Score each rater, as a model would be, against the gold standard of the others.

    Delays and offsets (`config`) are removed from all raters first, including the one scored; EWE weights come from the
    others alone. The same seed draws the same recordings as `metrics.bootstrap`, so intervals can be compared with a
    model's. Raises InputError: fewer than two raters, or no rater that correlates with the others (EWE).
    """
    config = config or GoldConfig()
    raters = sorted({r for p in panels for r in p.raters})
    if len(raters) < 2:
        raise InputError(f"needs several raters, got {len(raters)}", hint="give at least two")
    moved, _ = _prepared(panels, config)
    pairs = {rater: _against_others(moved, k, config.method) for k, rater in enumerate(raters)}
    each = {rater: metrics.score_pooled(list(of.values())) for rater, of in pairs.items()}
    within = {
        p.recording_id: _mean_scores([metrics.score(*pairs[r][p.recording_id]) for r in p.raters]) for p in panels
    }
    intervals = _intervals([list(of.values()) for of in pairs.values()], n_draws, level, seed)
    return HumanRow(each, _mean_scores(list(each.values())), within, intervals)


def _mean_scores(scores: Sequence[Scores]) -> Scores:
    """Mean of each measure where defined; `n` is the mean number of frames, rounded."""
    means = []
    for of in ([getattr(s, d) for s in scores] for d in DIMENSIONS):
        values = {m: metrics.mean_defined([getattr(a, m) for a in of])[0] for m in metrics.METRICS}
        why = "" if any(not a.why_undefined for a in of) else ", ".join(sorted({a.why_undefined for a in of}))
        means.append(Agreement(round(sum(a.n for a in of) / max(len(of), 1)), **values, why_undefined=why))
    return Scores(means[0], means[1])


def _against_others(panels: Sequence[Panel], k: int, method: str) -> dict[str, Pair]:
    """Recording id -> (values of rater k, gold standard of the others, frames rated by both), each (T, 2)."""
    rest = [_without(p, k) for p in panels]
    weights = _weights(rest, method)
    found = {}
    for panel, others in zip(panels, rest, strict=True):
        own, gold = panel.values[:, k], np.clip(mean_of_raters(others.values, weights), -1, 1)
        found[panel.recording_id] = (own, gold, np.isfinite(own) & np.isfinite(gold))
    return found


def _intervals(raters: Sequence[list[Pair]], n_draws: int, level: float, seed: int) -> dict[str, Interval]:
    """Intervals of the means over raters; the same recordings are drawn for every rater."""
    draws = [metrics.bootstrap_draws(pairs, n_draws=n_draws, seed=seed) for pairs in raters]
    n_units = sum(any(bool(np.any(of[i][2])) for of in raters) for i in range(len(raters[0])))
    found = {}
    for name in draws[0]:
        table = np.stack([d[name] for d in draws])
        found[name] = Interval.of(mean_of_raters(table.T[..., None])[:, 0], n_units, level)
    return found


@dataclass(frozen=True)
class RaterReport:
    """Agreement on valence and on arousal, and one rater against the others; empty without raters."""

    agreement: tuple[RaterAgreement, ...] = ()
    human: HumanRow | None = None

    @classmethod
    def of(cls, panels: Sequence[Panel], config: GoldConfig) -> RaterReport:
        """Report on the panels of a data set (maybe none)."""
        if not panels:
            return cls()
        several = len({r for p in panels for r in p.raters}) > 1
        return cls(agreement(panels), human_row(panels, config) if several else None)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, None for an undefined number."""
        human = {} if self.human is None else self.human.to_dict()
        return {"agreement": [_plain(asdict(a)) for a in self.agreement], "one_against_the_others": _plain(human)}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _plain(v) if isinstance(v, dict) else None if v != v else v for k, v in values.items()}
