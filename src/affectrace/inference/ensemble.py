"""Several trained models as one: each predicts a recording by itself, the traces are averaged.

    checkpoint 1 --its own features, windows, statistics--> trace 1  \\
    ...                                                               > mean, weighted; a frame counts where any does
    checkpoint n ------------------------------------------> trace n /
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from affectrace.errors import InputError
from affectrace.inference.run import TrainedModel
from affectrace.sequences import Sequence
from affectrace.sequences.windows import NOT_COVERED
from affectrace.trace import Trace


@dataclass(frozen=True)
class Ensemble:
    """Trained models and what each counts; weights need not add up to 1 (raises InputError: they do not fit)."""

    members: tuple[TrainedModel, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        weights = self.weights or (1.0,) * len(self.members)
        _check(len(self.members), weights)
        object.__setattr__(self, "weights", tuple(float(w) for w in weights))

    @classmethod
    def load(
        cls, folders: abc.Sequence[str | Path], weights: abc.Sequence[float] = (), *, device: str = "cpu"
    ) -> Ensemble:
        """Read checkpoint folders (raises FormatError, ConfigError, InputError)."""
        if weights:
            _check(len(folders), weights)
        return cls(tuple(TrainedModel.load(Path(f), device=device) for f in folders), tuple(weights))

    @property
    def id(self) -> str:
        """Trace.source: the member's own, or all of them."""
        return self.members[0].id if len(self.members) == 1 else "+".join(m.id for m in self.members)

    def predict(self, opened: Callable[[TrainedModel], Sequence]) -> Trace:
        """Valence and arousal of every frame of a recording, which `opened` gives as a member reads it."""
        traces = [member.predict(opened(member)) for member in self.members]
        return mean_trace(traces, self.weights, source=self.id)


def mean_trace(traces: abc.Sequence[Trace], weights: abc.Sequence[float] = (), *, source: str | None = None) -> Trace:
    """Traces of one recording as their weighted mean, on the first one's clock (raises InputError: they do not fit).

    In every frame the mean of a dimension is over the traces that know it there; a frame of which none knows either
    keeps the first one's reason.
    """
    weights = tuple(weights) or (1.0,) * len(traces)
    _check(len(traces), weights)
    first = traces[0]
    if len({(t.recording_id, t.person) for t in traces}) > 1:
        raise InputError(
            "traces of several recordings or persons cannot be averaged", hint="give one trace a model of each"
        )
    on_clock = [t if t.timeline == first.timeline else t.resample(first.timeline) for t in traces]
    if len(on_clock) == 1:
        return replace(first, source=source or first.source)
    counts = np.stack([float(w) * t.valid for w, t in zip(weights, on_clock, strict=True)])  # (M, T, 2)
    total = counts.sum(axis=0)
    valid = np.asarray(total > 0)
    shares = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    values = np.stack([np.where(t.valid, t.values, 0) for t in on_clock])
    mean = np.clip(np.einsum("mtd,mtd->td", shares, values), -1, 1)
    mean[~valid] = np.nan
    return Trace(
        recording_id=first.recording_id,
        person=first.person,
        timeline=first.timeline,
        valence=mean[:, 0],
        arousal=mean[:, 1],
        valid=valid,
        reason=np.where(valid.any(axis=1), "", np.where(first.known, NOT_COVERED, first.reason)),
        source=source or "+".join(t.source for t in traces),
    )


def _check(n: int, weights: abc.Sequence[float]) -> None:
    if not n:
        raise InputError("an ensemble of no models", hint="give at least one checkpoint folder")
    if len(weights) != n or not all(np.isfinite(w) and w >= 0 for w in weights) or not sum(weights):
        raise InputError(
            f"{len(weights)} weights for {n} models: {', '.join(f'{w:g}' for w in weights)}",
            where="weights",
            hint="give one a model, none negative, not all 0",
        )
