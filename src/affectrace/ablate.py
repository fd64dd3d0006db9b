"""What a model says without some of its modalities: masked out, never replaced by numbers; nothing is trained again.

    TrainedModel --without--> the same with streams not valid --predict--> traces --ablation--> a row a subset
                 --with_shares--> a trace with share_<modality>: what each contributed, second by second

A score without a modality says what this network makes of the rest, which is less than what a network trained on the
rest alone could; it means most for one trained with modality dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from affectrace import metrics
from affectrace.errors import InputError, UnknownNameError
from affectrace.evaluate import N_DRAWS, interval_of, intervals_dict, pair, plain
from affectrace.metrics import Interval, Pair, Scores
from affectrace.models.shares import per_second, relative
from affectrace.models_run import TrainedModel
from affectrace.sequences import Sequence
from affectrace.trace import Trace

ALL_SUBSETS = 4
"""Up to so many modalities every subset is scored (15 at most); beyond: alone, in pairs, all but one, all (ours)."""
SHARE = "share_"
"""Prefix of the trace's extras that hold shares."""


class Hidden(nn.Module):
    """A model that never sees some streams: all their rows are not valid, whatever it is given.

    Everything else (configuration, clock, state) is the model's own, so it runs wherever the model does.
    """

    def __init__(self, model: nn.Module, streams: Iterable[str]) -> None:
        super().__init__()
        self.model, self.streams = model, frozenset(streams)
        for name in ("name", "causal", "clock", "config"):
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        valid: Mapping[str, Tensor] | None = None,
        times: Mapping[str, Tensor] | None = None,
        state: Any = None,
    ) -> Any:
        """As the model's own."""
        gone = {
            m: torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
            for m, x in inputs.items()
            if m in self.streams
        }
        return self.model(inputs, {**(valid or {}), **gone}, times, state)


def modalities_of(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Modality -> the streams that belong to it ("visual" may be two, a Swin's and a BEiT's).

    Raises:
        InputError: the model reads one modality, so that nothing is left without it.
    """
    config: Any = model.config
    entrance = getattr(config, "entrance", None)
    groups = {m: (m,) for m in config.streams} if entrance is None else entrance.groups
    if len(groups) < 2:
        name = getattr(model, "name", "the model")
        raise InputError(
            f"{name} reads one modality ({', '.join(groups)}): nothing is left without it",
            hint="ablations and shares need a model that reads several, such as maven",
        )
    return {m: tuple(streams) for m, streams in groups.items()}


def without(model: TrainedModel, drop: Several[str]) -> TrainedModel:
    """The model with these modalities masked out; its id says so.

    Raises:
        InputError: the model reads one modality, or all of its modalities are dropped.
        UnknownNameError: it has no such modality.
    """
    if not drop:
        return model
    groups = modalities_of(model.model)
    for name in drop:
        if name not in groups:
            raise UnknownNameError.of("modality", name, tuple(groups))
    if set(drop) == set(groups):
        raise InputError(f"all modalities are dropped ({', '.join(groups)})", hint="leave at least one")
    hidden = [stream for name in dict.fromkeys(drop) for stream in groups[name]]
    return replace(model, model=Hidden(model.model, hidden), id=f"{model.id} without {', '.join(dict.fromkeys(drop))}")


# ---- scores of every subset


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
    n_frames = int(sum(mask.sum() for mask in common.values()))
    if not n_frames:
        raise InputError("no labelled frame is predicted with every subset of the modalities")
    cut = {some: [(p[r][0], p[r][1], common[r]) for r in names] for some, p in pairs.items()}
    whole = cut[tuple(modalities)]
    best, best_draws = metrics.score_pooled(whole).to_dict(), metrics.bootstrap_draws(whole, n_draws=n_draws, seed=seed)
    rows = []
    for some in kept:
        scores = metrics.score_pooled(cut[some])
        draws = metrics.bootstrap_draws(cut[some], n_draws=n_draws, seed=seed)
        rows.append(
            Subset(
                some,
                scores,
                {m: interval_of(d, len(names)) for m, d in draws.items()},
                {m: best[m] - scores.to_dict()[m] for m in draws},
                {m: interval_of(best_draws[m] - d, len(names)) for m, d in draws.items()},
            )
        )
    return Ablation(tuple(modalities), tuple(rows), len(names), n_frames)


# ---- shares


def with_shares(model: TrainedModel, sequence: Sequence) -> Trace:
    """The model's trace with `share_<modality>` among its extras: mean share over each second, on every frame of it.

    A modality's share of a frame is |y - y without it| over the sum of these (models/shares.py): one more run for each.

    Raises:
        InputError: the model reads one modality.
    """
    trace = model.predict(sequence)
    change: dict[str, Tensor] = {}
    for name in modalities_of(model.model):
        other = without(model, [name]).predict(sequence)
        apart = np.linalg.norm(np.nan_to_num(other.values - trace.values), axis=1)
        change[name] = torch.from_numpy(apart)
    seconds, means = per_second(relative(change), torch.from_numpy(np.array(trace.timeline.times)))
    index = np.searchsorted(seconds.numpy(), np.floor(trace.timeline.times))
    extras: dict[str, NDArray[np.float64]] = {
        f"{SHARE}{name}": np.where(trace.valid, share.numpy()[index], np.nan) if len(trace) else np.zeros(0)
        for name, share in means.items()
    }
    return replace(trace, extras={**trace.extras, **extras})
