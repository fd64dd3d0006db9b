"""How well a model scores without some of its modalities: they are masked out, nothing is trained again.

A score without a modality says what this network makes of the rest, which is less than what a network trained on the
rest alone could; it means most for one trained with modality dropout. The masking itself: modalities.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from affectrace import metrics
from affectrace.errors import InputError
from affectrace.evaluate import LEVEL, N_DRAWS, intervals_dict, pair, plain
from affectrace.metrics import Interval, Pair, Scores
from affectrace.trace import Trace

ALL_SUBSETS = 4
"""Up to so many modalities every subset is scored (15 at most); beyond: alone, in pairs, all but one, all (ours)."""


@dataclass(frozen=True)
class Subset:
    """What the model scores with some of its modalities.

    kept: the others are masked out. scores, intervals: over frames every subset predicts. lost: CCCs with all
    modalities minus those of this subset, with intervals from resampling the same recordings for both.
    """

    kept: tuple[str, ...]
    scores: Scores
    intervals: Mapping[str, Interval]
    lost: Mapping[str, float]
    lost_intervals: Mapping[str, Interval]


@dataclass(frozen=True)
class Ablation:
    """Every subset, the single modalities first and all of them last; the frames are the same in each row."""

    modalities: tuple[str, ...]
    subsets: tuple[Subset, ...]
    n_recordings: int
    n_frames: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; undefined numbers are None."""
        return {
            "modalities": list(self.modalities),
            "n_recordings": self.n_recordings,
            "n_frames": self.n_frames,
            "subsets": [
                {
                    "kept": list(s.kept),
                    "scores": plain(s.scores.to_dict()),
                    "intervals": intervals_dict(s.intervals),
                    "all_minus_this": plain(s.lost),
                    "all_minus_this_intervals": intervals_dict(s.lost_intervals),
                }
                for s in self.subsets
            ],
        }


def subsets_of(modalities: Several[str]) -> list[tuple[str, ...]]:
    """Which modalities are kept: each alone, each pair, ..., all."""
    n = len(modalities)
    sizes = range(1, n + 1) if n <= ALL_SUBSETS else (1, 2, n - 1, n)
    return [kept for size in sizes for kept in combinations(modalities, size)]


def ablation(
    labels: Iterable[Trace],
    predict: Callable[[tuple[str, ...]], Iterable[Trace]],
    modalities: Several[str],
    *,
    n_draws: int = N_DRAWS,
    seed: int = 0,
) -> Ablation:
    """Score a model with each subset of its modalities.

    Args:
        predict: dropped modalities -> the traces of the same recordings.
        n_draws, seed: of the bootstrap.

    Raises:
        InputError: no frame is labelled and predicted with every subset.
    """
    truth, kept = list(labels), subsets_of(modalities)
    pairs: dict[tuple[str, ...], dict[str, Pair]] = {}
    for some in kept:
        pairs[some] = pair(truth, predict(tuple(m for m in modalities if m not in some))).pairs()
    names = [t.recording_id for t in truth if all(t.recording_id in p for p in pairs.values())]
    common = {r: np.logical_and.reduce([p[r][2] for p in pairs.values()]) for r in names}
    n_frames = int(sum(mask.any(axis=1).sum() for mask in common.values()))
    if not n_frames:
        raise InputError("no labelled frame is predicted with every subset of the modalities")
    cut = {some: [(p[r][0], p[r][1], common[r]) for r in names] for some, p in pairs.items()}
    whole = cut[tuple(modalities)]
    n_units = metrics.n_units(whole)
    best, best_draws = metrics.score_pooled(whole).to_dict(), metrics.bootstrap_draws(whole, n_draws=n_draws, seed=seed)
    rows = []
    for some in kept:
        scores = metrics.score_pooled(cut[some])
        draws = metrics.bootstrap_draws(cut[some], n_draws=n_draws, seed=seed)
        rows.append(
            Subset(
                some,
                scores,
                {m: Interval.of(d, n_units[m], LEVEL) for m, d in draws.items()},
                {m: best[m] - scores.to_dict()[m] for m in draws},
                {m: Interval.of(best_draws[m] - d, n_units[m], LEVEL) for m, d in draws.items()},
            )
        )
    return Ablation(tuple(modalities), tuple(rows), len(names), n_frames)
