"""Trace: valence, arousal and validity over time. Labels and predictions are both traces."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.core.window.rolling import Rolling

from affectrace import metrics
from affectrace.errors import InputError
from affectrace.timeline import Timeline, overlaps

if TYPE_CHECKING:
    import plotly.graph_objects as go

NO_FACE = "no face"
NO_PERSON = "person not seen yet"
NO_SPEECH = "no speech"
NO_SOUND = "no sound"
NOT_DECODED = "not decoded"
NOT_LABELLED = "not labelled"
GAP = "gap in the source"

KNOWN_SHARE = 0.5
"""Least share of a new frame's time that must be known for its mean to count (ours)."""

Smoothing = Literal["median", "mean", "exponential"]
FillRule = Literal["hold", "linear", "mean"]


@dataclass(frozen=True)
class Span:
    """Something said or noticed over a stretch of time.

    kind: "word", "utterance", "speech" or "flag"; start_s, end_s: seconds on the trace's clock.
    valence, arousal, confidence: what a model made of this stretch alone, None where nothing.
    """

    kind: str
    start_s: float
    end_s: float
    text: str = ""
    valence: float | None = None
    arousal: float | None = None
    confidence: float | None = None


@dataclass(frozen=True, eq=False)
class Trace:
    """Valence and arousal of one person for every frame.

    recording_id, person: whose.
    timeline: T frames.
    valence, arousal: (T,) float64 in [-1, 1]; NaN exactly where not valid.
    valid: (T, 2) bool, of valence and of arousal: one may be known without the other. Given as (T,) it is of both.
    reason: (T,) str, why neither dimension of a frame is known; "" exactly where one is (`known`).
    source: "labels", or the id of the model that made it.
    extras: name -> (T,) float64 on the same clock, NaN where missing: `valence_sd`, `arousal_sd`, `confidence`,
        `face_x`, `face_y`, `face_w`, `face_h` (pixels of the upright frame), `visual_valence`, `text_arousal`, ...
    spans: words, utterances and quality flags, in order of start.
    provenance: how it was made (model, weights hashes, versions, options, input), plain JSON values.

    Raises:
        InputError: shapes differ, a valid frame is not finite or outside [-1, 1], or reasons disagree with validity.
    """

    recording_id: str
    timeline: Timeline
    valence: NDArray[np.float64]
    arousal: NDArray[np.float64]
    valid: NDArray[np.bool_]
    reason: NDArray[np.str_]
    source: str
    person: str = "main"
    extras: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    spans: tuple[Span, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.timeline)
        valid = np.array(self.valid, bool)
        if valid.ndim == 1:
            valid = np.stack([valid, valid], axis=1)
        if valid.shape != (n, 2):
            raise InputError(f"valid has shape {valid.shape}, the timeline {n} frames", where=self.recording_id)
        for name, counts in zip(("valence", "arousal"), valid.T, strict=True):
            values = _frozen(getattr(self, name), np.float64, n, name, self.recording_id)
            bad = np.flatnonzero(counts & ~(np.abs(values) <= 1))
            if bad.size:
                i = int(bad[0])
                raise InputError(
                    f"{name} of valid frame {i} is {values[i]}, outside [-1, 1] ({bad.size} such frames)",
                    where=self.recording_id,
                    hint="rescale to [-1, 1], or mark the frames as not valid",
                )
            if not np.isnan(values[~counts]).all():
                values = _readonly(np.where(counts, values, np.nan))
            object.__setattr__(self, name, values)
        reason = _readonly(np.array(self.reason, dtype=np.str_))
        if reason.shape != (n,) or ((reason == "") != valid.any(axis=1)).any():
            raise InputError("every frame that is not valid, and no other, needs a reason", where=self.recording_id)
        extras = {k: _frozen(v, np.float64, n, k, self.recording_id) for k, v in self.extras.items()}
        object.__setattr__(self, "valid", _readonly(valid))
        object.__setattr__(self, "reason", reason)
        object.__setattr__(self, "extras", MappingProxyType(extras))
        object.__setattr__(self, "spans", tuple(sorted(self.spans, key=lambda s: (s.start_s, s.end_s))))
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    def __len__(self) -> int:
        return len(self.timeline)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Trace):
            return NotImplemented
        plain = ("recording_id", "timeline", "source", "person", "spans", "provenance")
        return (
            all(getattr(self, k) == getattr(other, k) for k in plain)
            and np.array_equal(self.values, other.values, equal_nan=True)
            and np.array_equal(self.reason, other.reason)
            and list(self.extras) == list(other.extras)
            and all(np.array_equal(self.extras[k], other.extras[k], equal_nan=True) for k in self.extras)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Trace({self.recording_id!r}, {self.timeline!r}, {self.known.mean() if len(self) else 0:.0%} valid)"

    def __reduce__(self) -> tuple[object, ...]:  # mapping proxies do not pickle; process pools do
        values = {k: getattr(self, k) for k in self.__dataclass_fields__}
        return (Trace, tuple((values | {"extras": dict(self.extras), "provenance": dict(self.provenance)}).values()))

    @property
    def values(self) -> NDArray[np.float64]:
        """(T, 2) valence and arousal."""
        return np.stack([self.valence, self.arousal], axis=1)

    @property
    def known(self) -> NDArray[np.bool_]:
        """(T,) frames on which valence or arousal is valid: the column `valid` of files."""
        return np.asarray(self.valid.any(axis=1))

    # ---- other clocks, other forms

    def smooth(self, window_s: float, method: Smoothing = "median") -> Trace:
        """Smooth valence and arousal over the valid frames; what is not valid stays so and is never bridged into.

        window_s: "median" and "mean": full width of the centred window (by time, so variable rates are right);
            "exponential": time constant of the causal filter. Seconds.
        """
        if not (isinstance(window_s, numbers.Real) and 0 < window_s < math.inf):
            hint = 'for instance smooth(0.5, "median")'
            raise InputError(f"smoothing takes a positive number of seconds, got {window_s!r}", hint=hint)
        if method not in get_args(Smoothing):
            raise InputError(f"unknown smoothing '{method}'", hint=f"use one of {', '.join(get_args(Smoothing))}")

        def make(x: NDArray[np.float64]) -> NDArray[np.float64]:
            if method == "exponential":
                return causal_smooth(self.timeline.times, x, np.isfinite(x), window_s)
            window = rolling(self.timeline.times, x, window_s)
            smooth = window.median() if method == "median" else window.mean()
            return np.where(np.isfinite(x), np.clip(smooth, -1, 1), np.nan)

        return replace(self, valence=make(self.valence), arousal=make(self.arousal))

    def resample(self, clock: Timeline | Fraction | int, how: FillRule = "hold") -> Trace:
        """This trace on another clock.

        clock: a Timeline, or a rate in Hz over the same span.
        how: "hold" the frame shown then; "linear" between valid neighbours; "mean" of the valid frames that lie in the
            new one, weighted by how long they do. A mean is valid where valid frames cover at least half of the new
            frame's time (`KNOWN_SHARE`); elsewhere the reason is the one of most of the time that is not valid, and
            time outside the trace is a gap. An extra is known by the same rule, over the frames where it is finite.
        """
        if how not in get_args(FillRule):
            raise InputError(f"unknown resampling '{how}'", hint=f"use one of {', '.join(get_args(FillRule))}")
        target = clock if isinstance(clock, Timeline) else self.timeline.resampled(clock)
        if how == "mean":
            return self._means(target)
        at = self.timeline.frames_at(target.times)  # -1 outside, where the row added at the end is

        def move(x: NDArray[np.float64]) -> NDArray[np.float64]:
            known, out = np.isfinite(x), np.append(x, np.nan)[at]
            if how == "linear" and known.any():
                between = np.interp(target.times, self.timeline.times[known], x[known])
                out = np.where(np.isfinite(out) & known[np.minimum(at + 1, len(self) - 1)], between, out)
            return out

        return replace(
            self,
            timeline=target,
            valence=move(self.valence),
            arousal=move(self.arousal),
            valid=np.append(self.valid, [[False, False]], axis=0)[at],
            reason=np.append(self.reason, GAP)[at],
            extras={k: move(x) for k, x in self.extras.items()},
        )

    def _means(self, target: Timeline) -> Trace:
        """`resample` by means."""
        frames, rows, seconds = overlaps(self.timeline.times, self.timeline.ends, target)
        span = target.ends - target.times

        def time(which: NDArray[np.float64] | NDArray[np.bool_]) -> NDArray[np.float64]:
            return np.bincount(frames, seconds * which[rows], minlength=len(target)).astype(np.float64)

        def mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
            known = np.isfinite(x)
            covered = time(known)
            enough = (covered > 0) & (covered >= KNOWN_SHARE * span * (1 - 1e-9))  # of equal times, rounded
            return np.where(enough, time(np.where(known, x, 0.0)) / np.where(enough, covered, 1.0), np.nan)

        valence, arousal = (np.clip(mean(x), -1, 1) for x in (self.valence, self.arousal))
        valid = np.isfinite([valence, arousal]).T
        why = [GAP, *sorted(set(self.reason.tolist()) - {"", GAP})]
        lost = np.stack([time(self.reason == name) for name in why])
        lost[0] += span - time(np.ones(len(self), bool))  # outside the trace
        return replace(
            self,
            timeline=target,
            valence=valence,
            arousal=arousal,
            valid=valid,
            reason=np.where(valid.any(axis=1), "", np.array(why)[lost.argmax(axis=0)]),
            extras={k: mean(x) for k, x in self.extras.items()},
        )

    def score(self, labels: Trace) -> metrics.Scores:
        """Agreement of this trace with `labels`, on the labels' frames (this trace held onto their clock).

        What is labelled but not valid here is left out, and its frames are counted in `n_missing`.
        """
        mine = self if self.timeline == labels.timeline else self.resample(labels.timeline)
        both = mine.valid & labels.valid
        scores = metrics.score(mine.values, labels.values, both)
        return replace(scores, n_missing=int((labels.valid & ~mine.valid).any(axis=1).sum()))

    def to_pandas(self) -> pd.DataFrame:
        """One row a frame, columns as in the CSV (OpenFace's names first)."""
        from affectrace.trace_io import to_frame

        return to_frame(self)

    def plot(self) -> go.Figure:
        """Both dimensions over time, gaps where not valid, as an interactive figure."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for name, colour in (("valence", "#0072B2"), ("arousal", "#D55E00")):
            figure.add_scatter(
                x=self.timeline.times, y=getattr(self, name), name=name, line={"color": colour}, connectgaps=False
            )
        figure.update_layout(
            title=f"{self.recording_id} ({self.person})",
            xaxis_title="time (s)",
            yaxis={"range": [-1.05, 1.05], "title": "valence, arousal"},
            template="plotly_white",
        )
        return figure

    # ---- files

    def save(self, path: str | Path) -> Path:
        """Write as .csv (with a sidecar that keeps the exact clock and provenance), .parquet or .json; atomic."""
        from affectrace.trace_io import write

        return write(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read what `save` wrote (raises FormatError); a CSV without its sidecar has its timestamps as clock."""
        from affectrace.trace_io import read

        return read(Path(path))


def _readonly(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array


def _frozen(values: object, dtype: Any, n: int, name: str, where: str) -> NDArray[Any]:
    array = np.array(values, dtype=dtype)
    if array.shape != (n,):
        raise InputError(f"{name} has shape {array.shape}, the timeline {n} frames", where=where)
    return _readonly(array)


def rolling(times: NDArray[np.float64], x: NDArray[np.float64], window_s: float) -> Rolling:
    """Centred windows by time, both ends in them (to the nanosecond); what is NaN takes no part."""
    clock = pd.TimedeltaIndex(np.rint(times * 1e9).astype("timedelta64[ns]"))
    return pd.Series(x, clock).rolling(pd.Timedelta(round(window_s * 1e9)), center=True, closed="both", min_periods=1)


def causal_smooth(
    times: NDArray[np.float64], x: NDArray[np.float64], valid: NDArray[np.bool_], tau_s: float
) -> NDArray[np.float64]:
    """Causal exponential filter over the valid frames, right at any and at varying frame rates.

    y_t = y_s + (1 - exp(-(t - s) / tau)) (x_t - y_s) with s the valid frame before t; NaN where not valid.
    """
    out, last, last_t = np.full(x.shape, np.nan), 0.0, -np.inf
    for i in np.flatnonzero(valid):
        last += -np.expm1(-(times[i] - last_t) / tau_s) * (x[i] - last)
        last_t, out[i] = times[i], last
    return np.clip(out, -1, 1)
