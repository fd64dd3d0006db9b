"""Agreement metrics (CCC, PCC, RMSE, SAGR), pooled or per recording, with bootstrap intervals.

All moments are population (biased) moments, as in the ABAW challenge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from affectrace.errors import InputError

Array = NDArray[np.float64]
METRICS = ("ccc", "pcc", "rmse", "sagr")
DIMENSIONS = ("valence", "arousal")
FEW = 6
"""Below this many recordings intervals come with a warning (our choice); below two there are none."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of a prediction with a target on one dimension, over `n` frames.

    ccc: concordance correlation 2 cov / (var_x + var_y + (mean_x - mean_y)^2) (Lin 1989).
    pcc: Pearson correlation. rmse: root mean squared error. sagr: share of equal signs (zero counts as a sign).
    why_undefined: "no frames", "both constant", "prediction constant", ... where pcc is undefined, else "".
    """

    n: int
    ccc: float
    pcc: float
    rmse: float
    sagr: float
    why_undefined: str = ""


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval `low` to `high` at confidence `level`, from `n_draws` resamples of `n_units` recordings.

    n_units: recordings with a frame that counts; of two groups, the smaller one's.
    low, high: NaN below two units, and where every resample is undefined.
    """

    low: float
    high: float
    level: float
    n_units: int
    n_draws: int

    @classmethod
    def of(cls, draws: Array, n_units: int, level: float = 0.95) -> Interval:
        """The percentile interval of resampled values (n_draws,), undefined ones left out."""
        known = draws[np.isfinite(draws)]
        low = high = math.nan
        if n_units > 1 and known.size:
            low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2]).tolist()
        return cls(low, high, level, n_units, len(draws))

    def __format__(self, digits: str) -> str:
        """f"{interval:.3f}" is "0.100 to 0.250", or why there is none."""
        if math.isnan(self.low):
            return "no interval" if self.n_units < 2 else "undefined"
        return f"{self.low:{digits}} to {self.high:{digits}}"


def few_units(n: int, what: str = "intervals") -> str:
    """A warning about intervals (or `what` else is resampled) over `n` recordings; "" for `FEW` or more."""
    if n < 2:
        return f"one recording: no {what}, they take two or more to resample"
    return f"only {n} recordings: {what} over so few are rough and mostly too narrow" if n < FEW else ""


def ccc(prediction: ArrayLike, target: ArrayLike) -> float:
    """Concordance correlation coefficient; NaN without frames or if both are constant."""
    return agreement(prediction, target).ccc


def pcc(prediction: ArrayLike, target: ArrayLike) -> float:
    """Pearson correlation; NaN if either is constant."""
    return agreement(prediction, target).pcc


def agreement(prediction: ArrayLike, target: ArrayLike, mask: ArrayLike | None = None) -> Agreement:
    """All four measures of two (T,) traces over the frames where `mask` (T,) is true."""
    x, y = np.asarray(prediction, np.float64), np.asarray(target, np.float64)
    counts = np.ones(x.shape, bool) if mask is None else np.asarray(mask, bool)
    if x.ndim != 1 or not x.shape == y.shape == counts.shape:
        shapes = f"prediction {x.shape}, target {y.shape}, mask {counts.shape}"
        raise InputError(f"shapes differ: {shapes}", hint="bring both onto one clock first")
    x, y = x[counts], y[counts]
    if not np.isfinite([x, y]).all():
        raise InputError("a counted frame holds NaN or infinity", hint="mask missing frames; they are never numbers")
    if not x.size:
        return Agreement(0, math.nan, math.nan, math.nan, math.nan, "no frames")
    gap = x.mean() - y.mean()
    dx, dy = x - x.mean(), y - y.mean()
    var_x, var_y, cov = (dx * dx).mean(), (dy * dy).mean(), (dx * dy).mean()
    # by the range, not the variance: the rounded mean leaves a constant trace a variance above zero
    flat_x, flat_y = np.ptp(x) == 0, np.ptp(y) == 0
    if flat_x or flat_y:
        why = "both constant" if flat_x and flat_y else "prediction constant" if flat_x else "target constant"
        concordance, correlation = math.nan if flat_x and flat_y else 0.0, math.nan
    else:
        why, concordance = "", float(2 * cov / (var_x + var_y + gap**2))
        correlation = float(np.clip(cov / math.sqrt(var_x * var_y), -1, 1))
    return Agreement(
        n=int(x.size),
        ccc=concordance,
        pcc=correlation,
        rmse=float(np.sqrt(np.mean((x - y) ** 2))),
        sagr=float(np.mean(np.sign(x) == np.sign(y))),
        why_undefined=why,
    )


@dataclass(frozen=True)
class Scores:
    """Agreement on both dimensions. n_missing: labelled frames without a prediction, which are left out."""

    valence: Agreement
    arousal: Agreement
    n_missing: int = 0

    @property
    def mean_ccc(self) -> float:
        """(CCC_valence + CCC_arousal) / 2, the challenge's P; if one dimension has no frame, the other's CCC."""
        counted = [d.ccc for d in (self.valence, self.arousal) if d.n]
        return sum(counted) / len(counted) if counted else math.nan

    @property
    def n(self) -> int:
        """Frames that count, of the dimension that has more of them."""
        return max(self.valence.n, self.arousal.n)

    def to_dict(self) -> dict[str, float]:
        """Flat numbers: `ccc_valence`, `ccc_arousal`, `mean_ccc`, ..., `n`, `n_valence`, `n_arousal`, `n_missing`."""
        flat: dict[str, float] = {"mean_ccc": self.mean_ccc}
        for name in METRICS:
            flat[f"{name}_valence"] = getattr(self.valence, name)
            flat[f"{name}_arousal"] = getattr(self.arousal, name)
        counts = {"n": self.n, "n_valence": self.valence.n, "n_arousal": self.arousal.n, "n_missing": self.n_missing}
        return flat | counts


Pair = tuple[Array, Array, NDArray[np.bool_]]
"""Prediction (T, 2), target (T, 2), and a mask of what counts: (T, 2), or (T,) for both dimensions."""


def score(prediction: ArrayLike, target: ArrayLike, mask: ArrayLike | None = None) -> Scores:
    """Scores of a (T, 2) prediction (valence, arousal) against a target where `mask`, (T, 2) or (T,), is true."""
    p, t = np.asarray(prediction, np.float64), np.asarray(target, np.float64)
    if p.shape[1:] != (2,) or p.shape != t.shape:
        raise InputError(f"expected (T, 2) valence and arousal twice, got {p.shape} and {t.shape}")
    m = _both(np.ones(p.shape, bool) if mask is None else mask)
    return Scores(agreement(p[:, 0], t[:, 0], m[:, 0]), agreement(p[:, 1], t[:, 1], m[:, 1]))


def _both(mask: ArrayLike) -> NDArray[np.bool_]:
    """(T, 2) from a mask that may be (T,)."""
    m = np.asarray(mask, bool)
    return np.stack([m, m], axis=1) if m.ndim == 1 else m


def score_pooled(pairs: Sequence[Pair]) -> Scores:
    """Scores over all frames of all recordings, concatenated (the challenge's way)."""
    if not pairs:
        raise InputError("nothing to score: no recordings")
    p, t, m = zip(*((p, t, _both(m)) for p, t, m in pairs), strict=True)
    return score(np.concatenate(p), np.concatenate(t), np.concatenate(m))


def mean_defined(values: Sequence[float]) -> tuple[float, int]:
    """Mean of the values that are not NaN, and how many there are."""
    defined = [v for v in values if not math.isnan(v)]
    return (float(np.mean(defined)) if defined else math.nan), len(defined)


def bootstrap(pairs: Sequence[Pair], *, n_draws: int = 2000, level: float = 0.95, seed: int = 0) -> dict[str, Interval]:
    """Percentile intervals of the pooled `ccc_valence`, `ccc_arousal` and `mean_ccc`.

    Whole recordings are resampled, because frames of one recording are not independent.
    """
    draws, n = bootstrap_draws(pairs, n_draws=n_draws, seed=seed), n_units(pairs)
    return {name: Interval.of(values, n[name], level) for name, values in draws.items()}


def n_units(pairs: Sequence[Pair]) -> dict[str, int]:
    """How many recordings a bootstrap of each CCC resamples: those with a frame that counts."""
    some = np.array([_both(mask).any(axis=0) for _, _, mask in pairs]).reshape(-1, 2)
    valence, arousal = some.sum(axis=0).tolist()
    return {"ccc_valence": valence, "ccc_arousal": arousal, "mean_ccc": int(some.any(axis=1).sum())}


def bootstrap_draws(pairs: Sequence[Pair], *, n_draws: int = 2000, seed: int = 0) -> dict[str, Array]:
    """(n_draws,) resampled pooled CCCs; the same seed draws the same recordings, so two models can be paired."""
    if not pairs:
        raise InputError("nothing to resample: no recordings")
    rng = np.random.default_rng(seed)
    times_drawn = rng.multinomial(len(pairs), np.full(len(pairs), 1 / len(pairs)), size=n_draws).astype(np.float64)
    valence, arousal = (_ccc_of_sums(times_drawn @ _sums(pairs, d)) for d in (0, 1))
    n = n_units(pairs)
    mean = valence if not n["ccc_arousal"] else arousal if not n["ccc_valence"] else (valence + arousal) / 2
    return {"ccc_valence": valence, "ccc_arousal": arousal, "mean_ccc": mean}


def _sums(pairs: Sequence[Pair], d: int) -> Array:
    """(recordings, 6) n, sums and sums of products of dimension d, around the target's mean for precision."""
    kept = [(np.asarray(p)[_both(m)[:, d], d], np.asarray(t)[_both(m)[:, d], d]) for p, t, m in pairs]
    targets = np.concatenate([y for _, y in kept])
    centre = targets.mean(dtype=np.float64) if targets.size else 0.0
    rows = []
    for x, y in ((x.astype(np.float64) - centre, y.astype(np.float64) - centre) for x, y in kept):
        rows.append([x.size, x.sum(), y.sum(), x @ x, y @ y, x @ y])
    return np.array(rows)


def _ccc_of_sums(sums: Array) -> Array:
    n, sx, sy, sxx, syy, sxy = sums.T
    with np.errstate(invalid="ignore", divide="ignore"):
        mx, my = sx / n, sy / n
        return np.asarray(2 * (sxy / n - mx * my) / (sxx / n - mx**2 + syy / n - my**2 + (mx - my) ** 2))
