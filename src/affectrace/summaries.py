"""Descriptive statistics of traces: mean, SD, range, time per quadrant; by trace or condition."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import InputError
from affectrace.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

# (valence, arousal is positive) of each quadrant; zero counts as positive
QUADRANTS = {"distressed": (False, True), "excited": (True, True), "low": (False, False), "calm": (True, False)}


def describe(*traces: Trace) -> dict[str, float]:
    """Statistics of the frames of all `traces` together, by the columns of `summary`; NaN where nothing is valid."""
    shown_s = np.concatenate([t.timeline.ends - t.timeline.times for t in traces])
    values, valid = np.concatenate([t.values for t in traces]), np.concatenate([t.valid for t in traces])

    def mean(x: NDArray[Any], of: NDArray[np.bool_]) -> float:
        """Mean over the frames `of` of x, (frames,), weighted by how long they are shown."""
        return float(np.average(x[of], weights=shown_s[of])) if of.any() else math.nan

    known, both = np.asarray(valid.any(axis=1)), np.asarray(valid.all(axis=1))
    found = {
        "n_frames": len(valid),
        "duration_s": float(shown_s.sum()),
        "share_valid": mean(known, np.ones(len(known), bool)),
    }
    for name, x, of in zip(("valence", "arousal"), values.T, valid.T, strict=True):
        found[f"{name}_mean"] = average = mean(x, of)
        found[f"{name}_sd"] = math.sqrt(mean((x - average) ** 2, of))
        low, high = (float(x[of].min()), float(x[of].max())) if of.any() else (math.nan, math.nan)
        found |= {f"{name}_min": low, f"{name}_max": high, f"{name}_range": high - low}
    for name, signs in QUADRANTS.items():
        found[f"q_{name}"] = mean(((values >= 0) == signs).all(axis=1), both)
    return found


def read_conditions(path: Path) -> dict[str, str]:
    """Recording -> condition from a CSV with those two columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return {row["recording"]: row["condition"] or "" for row in csv.DictReader(file)}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot be read ({error})", where=path, hint="give a CSV file") from None
    except KeyError as error:
        raise InputError(f"has no column {error}", where=path, hint="name the columns recording,condition") from None


def summary(traces: Trace | Iterable[Trace], *, by: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Descriptive statistics: one row a trace, or one a condition.

    by: recording id -> condition; a condition's row pools the frames of its recordings.

    Columns: n_frames, duration_s, share_valid (of time); for valence and arousal mean, sd (population), min, max,
    range; share of the time with both valid spent in each quadrant: q_distressed (-,+), q_excited (+,+), q_low (-,-),
    q_calm (+,-). Means, SDs and shares weight every frame by how long it is shown.
    """
    import pandas as pd

    given = [traces] if isinstance(traces, Trace) else list(traces)
    if not given:
        raise InputError("nothing to summarize: no traces")
    if by is None:
        return pd.DataFrame([{"recording": t.recording_id, "person": t.person, **describe(t)} for t in given])
    groups: dict[str, list[Trace]] = {}
    for trace in given:
        if trace.recording_id not in by:
            raise InputError("has no condition", where=trace.recording_id, hint="add it to the table of conditions")
        groups.setdefault(by[trace.recording_id], []).append(trace)
    rows = [{"condition": name, "n_recordings": len(own), **describe(*own)} for name, own in sorted(groups.items())]
    return pd.DataFrame(rows)
