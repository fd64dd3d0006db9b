"""Descriptive statistics of traces: mean, spread, range, time in each quadrant; one row a trace, or one a condition."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from affectrace.errors import InputError
from affectrace.trace import Trace

# (sign of valence, sign of arousal) of each quadrant; zero counts as positive
QUADRANTS: Mapping[str, tuple[int, int]] = {
    "distressed": (-1, 1),
    "excited": (1, 1),
    "low": (-1, -1),
    "calm": (1, -1),
}
DIMENSIONS = ("valence", "arousal")


@dataclass(frozen=True)
class TraceSummary:
    """Descriptive statistics of what is known, every frame weighted by how long it is shown (NaN without any).

    share_valid: of the time, known in either dimension. mean, sd (population), low, high: by dimension, over what is
    known of it. quadrants: share in each of the time for which both are known, by name.
    """

    n_frames: int
    duration_s: float
    share_valid: float
    mean: Mapping[str, float]
    sd: Mapping[str, float]
    low: Mapping[str, float]
    high: Mapping[str, float]
    quadrants: Mapping[str, float]

    @classmethod
    def of(cls, traces: Trace | Sequence[Trace]) -> TraceSummary:
        """Of a trace, or of the frames of several together."""
        several = [traces] if isinstance(traces, Trace) else list(traces)
        shown = np.concatenate([t.timeline.ends - t.timeline.times for t in several])
        every, valid = np.concatenate([t.values for t in several]), np.concatenate([t.valid for t in several])
        known, both = np.asarray(valid.any(axis=1)), np.asarray(valid.all(axis=1))
        values = {d: (every[valid[:, k], k], shown[valid[:, k]]) for k, d in enumerate(DIMENSIONS)}
        mean = {d: _mean(x, weight) for d, (x, weight) in values.items()}
        positive = every[both] >= 0
        return cls(
            n_frames=len(known),
            duration_s=float(shown.sum()),
            share_valid=float(shown[known].sum() / shown.sum()) if shown.size else math.nan,
            mean=mean,
            sd={d: math.sqrt(_mean((x - mean[d]) ** 2, weight)) for d, (x, weight) in values.items()},
            low={d: float(x.min()) if x.size else math.nan for d, (x, _) in values.items()},
            high={d: float(x.max()) if x.size else math.nan for d, (x, _) in values.items()},
            quadrants={
                name: _mean((positive == (v > 0, a > 0)).all(axis=1), shown[both]) for name, (v, a) in QUADRANTS.items()
            },
        )

    def row(self) -> dict[str, float]:
        """Flat, named as the columns of `summary`."""
        flat: dict[str, float] = {
            "n_frames": self.n_frames,
            "duration_s": self.duration_s,
            "share_valid": self.share_valid,
        }
        for name in self.mean:
            low, high = self.low[name], self.high[name]
            flat |= {f"{name}_mean": self.mean[name], f"{name}_sd": self.sd[name]}
            flat |= {f"{name}_min": low, f"{name}_max": high, f"{name}_range": high - low}
        return flat | {f"q_{name}": share for name, share in self.quadrants.items()}


def _mean(x: NDArray[Any], weight: NDArray[np.float64]) -> float:
    return float(np.average(x, weights=weight)) if x.size else math.nan


def read_conditions(path: Path) -> dict[str, str]:
    """Recording -> condition from a CSV with those two columns (raises InputError: unreadable, or without them)."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        return {row["recording"]: row["condition"] or "" for row in rows}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read ({error})", where=path, hint="give a CSV file") from None
    except KeyError as error:
        raise InputError(f"has no column {error}", where=path, hint="name the columns recording,condition") from None


def summary(
    traces: Trace | Iterable[Trace], *, by: Mapping[str, str] | Callable[[Trace], str] | None = None
) -> pd.DataFrame:
    """Descriptive statistics: one row a trace, or one a condition.

    by: recording id -> condition (or a function of the trace). A condition's row pools what is known of its
        recordings, weighting every frame by how long it is shown.

    Columns: n_frames, duration_s, share_valid (of time); for valence and arousal mean and sd (weighted by time), min,
    max, range; and the share in each quadrant of the time for which both are known: q_distressed (-,+), q_excited
    (+,+), q_low (-,-), q_calm (+,-); zero counts as positive.

    Raises:
        InputError: no traces, or one without a condition.
    """
    given = [traces] if isinstance(traces, Trace) else list(traces)
    if not given:
        raise InputError("nothing to summarise: no traces")
    if by is None:
        rows = [{"recording": t.recording_id, "person": t.person, **TraceSummary.of(t).row()} for t in given]
        return pd.DataFrame(rows)
    groups: dict[str, list[Trace]] = {}
    for trace in given:
        if callable(by):
            condition = by(trace)
        elif trace.recording_id in by:
            condition = by[trace.recording_id]
        else:
            raise InputError("has no condition", where=trace.recording_id, hint="add it to the table of conditions")
        groups.setdefault(condition, []).append(trace)
    return pd.DataFrame(
        [{"condition": c, "n_recordings": len(ts), **TraceSummary.of(ts).row()} for c, ts in sorted(groups.items())]
    )
