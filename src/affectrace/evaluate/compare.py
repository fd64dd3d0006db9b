"""Model comparison and modality ablation on common frames, beside published results.

A score without a modality measures this network on the rest, which is less than a network trained on the rest could
reach; it means most for networks trained with modality dropout. The masking itself: inference/modalities.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from affectrace.datasets.manifest import Manifest
from affectrace.errors import InputError
from affectrace.evaluate import N_DRAWS, Pool, pair, plain
from affectrace.metrics import Array, Interval, Scores
from affectrace.trace import Trace

ALL_SUBSETS = 4
"""Up to this many modalities every subset is scored (15 at most); beyond: one, two, all but one, all (our choice)."""


@dataclass(frozen=True)
class Difference:
    """CCC of `a` minus that of `b`, with intervals from resampling the same recordings for both.

    p: two-sided bootstrap p-value that the sign is chance: 2 min((k + 1) / (n + 1)) over the k of n defined draws that
        are <= 0 and the k that are >= 0, at most 1 (Davison & Hinkley 1997, section 4.2: never 0, because the draws
        are finite). NaN below two recordings.
    """

    a: str
    b: str
    difference: Mapping[str, float]
    intervals: Mapping[str, Interval]
    p: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """Models on the frames all of them predict, and their differences.

    scores, intervals: by model, best mean CCC first (subsets of modalities: in their order).
    n_frames: labelled frames predicted by every model; n_left_out: all other labelled frames.
    n_recordings: predicted by every model; n_units: those of them with a frame that counts, which are resampled.
    """

    scores: Mapping[str, Scores]
    intervals: Mapping[str, Mapping[str, Interval]]
    differences: tuple[Difference, ...]
    n_recordings: int
    n_frames: int
    n_left_out: int
    n_units: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; undefined numbers are None."""
        models = [{"model": m, "scores": s.to_dict(), "intervals": self.intervals[m]} for m, s in self.scores.items()]
        rest = {k: v for k, v in vars(self).items() if k not in ("scores", "intervals")}
        return dict(plain({**rest, "models": models}))


def compare(
    labels: Iterable[Trace],
    predictions: Mapping[str, Iterable[Trace]],
    *,
    minus: str | None = None,
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> Comparison:
    """Compare models on the frames that are labelled and predicted by all of them.

    predictions: model name -> its traces. minus: the model from which every other is subtracted, in the order given;
    None: every pair, best first.
    """
    if len(predictions) < 2 and minus is None:
        raise InputError(f"{len(predictions)} model to compare", hint="give at least two folders of predictions")
    truth = list(labels)
    pairs = {name: pair(truth, traces).pairs() for name, traces in predictions.items()}
    shared = [t.recording_id for t in truth if all(t.recording_id in p for p in pairs.values())]
    common = {r: np.logical_and.reduce([p[r][2] for p in pairs.values()]) for r in shared}
    n_frames = int(sum(m.any(axis=1).sum() for m in common.values()))
    if not n_frames:
        raise InputError("no labelled frame is predicted by all models", hint="predict the same recordings with each")
    pools = {name: Pool.of([(p[r][0], p[r][1], common[r]) for r in shared], n_draws, seed) for name, p in pairs.items()}
    order = list(pools)
    if minus is None:
        order.sort(key=lambda name: -np.nan_to_num(pools[name].scores.mean_ccc, nan=-2.0))
    asked = combinations(order, 2) if minus is None else ((minus, name) for name in order)
    return Comparison(
        scores={name: pools[name].scores for name in order},
        intervals={name: pools[name].intervals() for name in order},
        differences=tuple(Difference(a, b, *pools[a].minus(pools[b]), _p(pools[a], pools[b])) for a, b in asked),
        n_recordings=len(shared),
        n_frames=n_frames,
        n_left_out=int(sum(t.known.sum() for t in truth)) - n_frames,
        n_units=pools[order[0]].n_units["mean_ccc"],
    )


def _p(a: Pool, b: Pool) -> dict[str, float]:
    return {m: _p_value(a.draws[m] - b.draws[m]) if a.n_units[m] > 1 else math.nan for m in a.draws}


def _p_value(draws: Array) -> float:
    known = draws[np.isfinite(draws)]
    k = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return min(1.0, 2 * (k + 1) / (known.size + 1)) if known.size else math.nan


# ---- one model, some of its modalities masked out


def subsets_of(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """Subsets of modalities to keep: each alone, each pair, ..., all."""
    n = len(modalities)
    sizes = range(1, n + 1) if n <= ALL_SUBSETS else (1, 2, n - 1, n)
    return [kept for size in sizes for kept in combinations(modalities, size)]


def ablation(
    labels: Iterable[Trace],
    predict: Callable[[tuple[str, ...]], Iterable[Trace]],
    modalities: Sequence[str],
    *,
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> Comparison:
    """A model with each subset of its modalities, by names such as "audio + text"; differences: all minus this one.

    predict: masked modalities -> the traces of the same recordings.
    """
    made = {" + ".join(kept): predict(tuple(m for m in modalities if m not in kept)) for kept in subsets_of(modalities)}
    return compare(labels, made, minus=" + ".join(modalities), n_draws=n_draws, seed=seed)


def ablation_dict(found: Comparison) -> dict[str, Any]:
    """An ablation as plain JSON values."""
    subsets = [
        {
            "kept": name.split(" + "),
            "scores": s.to_dict(),
            "intervals": found.intervals[name],
            "all_minus_this": lost.difference,
            "all_minus_this_intervals": lost.intervals,
        }
        for (name, s), lost in zip(found.scores.items(), found.differences, strict=True)
    ]
    counts = {"n_recordings": found.n_recordings, "n_frames": found.n_frames}
    return dict(plain({"modalities": subsets[-1]["kept"], **counts, "subsets": subsets}))


# ---- published figures, beside the data they belong to


@dataclass(frozen=True)
class Published:
    """A published score. data: what it was measured on. source: paper and table."""

    name: str
    ccc_valence: float
    ccc_arousal: float
    mean_ccc: float
    data: str
    source: str


def _table(data: str, source: str, *rows: tuple[str, float, float, float]) -> tuple[Published, ...]:
    return tuple(Published(*row, data, source) for row in rows)


MAMBA_VA_TABLE_1 = _table(
    "Aff-Wild2 validation (8th ABAW); fold 0 is the official split, folds 1-5 are cross-validation",
    "arXiv:2503.10104, Table 1",
    ("Mamba-VA fold 0", 0.5454, 0.3848, 0.4651),
    ("Mamba-VA fold 1", 0.5423, 0.3612, 0.4517),
    ("Mamba-VA fold 2", 0.5362, 0.4310, 0.4836),
    ("Mamba-VA fold 3", 0.5231, 0.3413, 0.4322),
    ("Mamba-VA fold 4", 0.5216, 0.3540, 0.4378),
    ("Mamba-VA fold 5", 0.5305, 0.4275, 0.4790),
    ("baseline (ResNet-50)", 0.2400, 0.2000, 0.2200),
)
MAMBA_VA_TABLE_2 = _table(
    "Aff-Wild2 test set (8th ABAW)",
    "arXiv:2503.10104, Table 2",
    ("USTC-IAT-United", 0.577, 0.623, 0.600),
    ("DeepAVER-CRIM", 0.561, 0.620, 0.590),
    ("CtyunAI", 0.546, 0.611, 0.578),
    ("HSEmotion", 0.494, 0.551, 0.522),
    ("AIWELL-UOC", 0.468, 0.492, 0.480),
    ("Mamba-VA (Charon)", 0.504, 0.412, 0.458),
    ("CAS-MAIS", 0.327, 0.304, 0.316),
    ("baseline (ResNet-50)", 0.211, 0.191, 0.201),
)
MAVEN_TABLE_2 = _table(
    "Aff-Wild2 (8th ABAW; the paper does not say which set)",
    "MAVEN, CVPR 2025 workshops, Table 2",
    ("visual", 0.1048, 0.2459, 0.17535),
    ("audio", 0.1283, 0.0683, 0.0983),
    ("text", 0.0019, 0.0006, 0.00125),
    ("visual + audio + text", 0.3068, 0.3054, 0.3061),
)
"""Single modalities and all three, as published; the means of the single ones are computed here."""


def published(manifest: Manifest, split: str, fold: int = 0) -> tuple[Published, ...]:
    """Published figures for the scored recordings: Aff-Wild2's own validation or test set; () for all others.

    Which recordings are in folds 1 to 5 of Mamba-VA's Table 1 is not published, so no fold has figures.
    """
    if not manifest.is_aff_wild2 or fold:
        return ()
    return {"validation": (MAMBA_VA_TABLE_1[0], MAMBA_VA_TABLE_1[-1]), "test": MAMBA_VA_TABLE_2}.get(split, ())


def published_folds(manifest: Manifest, model: str, folds: Iterable[int]) -> dict[int | str, Published]:
    """Mamba-VA's Table 1 for its own cross-validation on Aff-Wild2: 0, and "mean" of folds 1 to 5; {} for all others.

    Only the mean of the five is comparable, because which recordings the paper's folds hold out is not published.
    """
    if not manifest.is_aff_wild2 or model != "mamba-va":
        return {}
    asked, (official, *others) = set(folds), MAMBA_VA_TABLE_1[:6]
    v, a, m = (float(np.mean([getattr(p, n) for p in others])) for n in ("ccc_valence", "ccc_arousal", "mean_ccc"))
    mean = Published("Mamba-VA folds 1 to 5", v, a, m, official.data, official.source)
    found: dict[int | str, Published] = {0: official} if 0 in asked else {}
    return found | ({"mean": mean} if asked - {0} == {1, 2, 3, 4, 5} else {})


def published_modalities(manifest: Manifest, model: str, modalities: tuple[str, ...]) -> tuple[Published, ...]:
    """MAVEN's Table 2 for a MAVEN with the same modalities on Aff-Wild2; () for all others."""
    same = model == "maven" and modalities == ("visual", "audio", "text")
    return MAVEN_TABLE_2 if manifest.is_aff_wild2 and same else ()
