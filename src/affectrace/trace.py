"""Trace: valence, arousal and validity over time, for labels and predictions alike."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from affectrace import metrics
from affectrace.errors import InputError, UnknownNameError, optional_packages
from affectrace.timeline import Timeline, overlaps

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from pandas.api.typing import Rolling

NO_FACE = "no face"
NO_PERSON = "person not seen yet"
NO_SPEECH = "no speech"
NO_SOUND = "no sound"
NOT_ENGLISH = "words not in English"
NOT_DECODED = "not decoded"
NOT_LABELLED = "not labelled"
GAP = "gap in the source"

KNOWN_SHARE = 0.5
"""Smallest valid share of a new frame's duration for which its mean is valid (our choice)."""

Smoothing = Literal["median", "mean", "exponential"]
FillRule = Literal["hold", "linear", "mean"]


@dataclass(frozen=True)
class Span:
    """An annotated interval of a trace.

    kind: "word", "utterance", "speech" or "flag"; start_s, end_s: seconds on the trace's clock.
    valence, arousal, confidence: a model's estimate for this interval alone, None if there is none.
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

    timeline: T frames.
    valence, arousal: (T,) float64 in [-1, 1]; NaN on invalid frames.
    valid: (T, 2) bool, for valence and arousal separately; (T,) applies to both.
    reason: (T,) str, why neither dimension of a frame is valid; "" on frames where one is (`known`).
    source: "labels", or the id of the model.
    extras: name -> (T,) float64 on the same clock, NaN where missing: `valence_sd`, `arousal_sd`, `confidence`,
        `face_x`, `face_y`, `face_w`, `face_h` (pixels of the upright frame), `visual_valence`, `text_arousal`, ...
    spans: words, utterances, speech and quality flags, sorted by start.
    provenance: model, weights hashes, versions, options, input; plain JSON values.
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
        valid, reason = np.array(self.valid, bool), np.array(self.reason, np.str_)
        if valid.ndim == 1:
            valid = np.stack([valid, valid], axis=1)
        values = {name: np.array(getattr(self, name), np.float64) for name in ("valence", "arousal")}
        extras = {name: np.array(x, np.float64) for name, x in self.extras.items()}
        for name, array in {**values, **extras, "reason": reason, "valid": valid}.items():
            if array.shape != ((n, 2) if name == "valid" else (n,)):
                raise InputError(f"{name} has shape {array.shape}, the timeline {n} frames", where=self.recording_id)
        for (name, array), known in zip(values.items(), valid.T, strict=True):
            bad = np.flatnonzero(known & ~(np.abs(array) <= 1))
            if bad.size:
                raise InputError(
                    f"{name} of valid frame {bad[0]} is {array[bad[0]]}, outside [-1, 1] ({bad.size} such frames)",
                    where=self.recording_id,
                    hint="rescale to [-1, 1], or mark the frames as invalid",
                )
            array[~known] = np.nan
        if ((reason == "") != valid.any(axis=1)).any():
            raise InputError("every invalid frame, and no other, needs a reason", where=self.recording_id)
        for array in (*values.values(), *extras.values(), valid, reason):
            array.flags.writeable = False
        spans = tuple(sorted(self.spans, key=lambda s: (s.start_s, s.end_s)))
        checked = {**values, "valid": valid, "reason": reason, "extras": extras, "spans": spans}
        for name, value in {**checked, "provenance": dict(self.provenance)}.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.timeline)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Trace):
            return NotImplemented
        plain = ("recording_id", "timeline", "source", "person", "spans", "provenance")
        return (
            all(getattr(self, name) == getattr(other, name) for name in plain)
            and np.array_equal(self.values, other.values, equal_nan=True)
            and np.array_equal(self.reason, other.reason)
            and list(self.extras) == list(other.extras)
            and all(np.array_equal(self.extras[k], other.extras[k], equal_nan=True) for k in self.extras)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Trace({self.recording_id!r}, {self.timeline!r}, {self.known.mean() if len(self) else 0:.0%} valid)"

    @property
    def values(self) -> NDArray[np.float64]:
        """(T, 2) valence and arousal."""
        return np.stack([self.valence, self.arousal], axis=1)

    @property
    def known(self) -> NDArray[np.bool_]:
        """(T,) frames on which valence or arousal is valid: the column `valid` of trace files."""
        return np.asarray(self.valid.any(axis=1))

    # ---- other clocks, other forms

    def smooth(self, window_s: float, method: Smoothing = "median") -> Trace:
        """Smooth valence and arousal over their valid frames; validity does not change.

        window_s: seconds. "median" and "mean": full width of the centred window; "exponential": time constant of the
            causal filter.
        """
        if method not in get_args(Smoothing):
            raise UnknownNameError.of("smoothing", str(method), get_args(Smoothing))
        if not (isinstance(window_s, numbers.Real) and 0 < window_s < math.inf):
            hint = 'for instance smooth(0.5, "median")'
            raise InputError(f"smoothing takes a positive number of seconds, got {window_s!r}", hint=hint)

        def smoothed(x: NDArray[np.float64]) -> NDArray[np.float64]:
            if method == "exponential":
                return causal_smooth(self.timeline.times, x, np.isfinite(x), window_s)
            window = rolling(self.timeline.times, x, window_s)
            y = window.median() if method == "median" else window.mean()
            return np.where(np.isfinite(x), np.clip(y, -1, 1), np.nan)

        return replace(self, valence=smoothed(self.valence), arousal=smoothed(self.arousal))

    def resample(self, clock: Timeline | Fraction | int, how: FillRule = "hold") -> Trace:
        """This trace on another clock.

        clock: a Timeline, or a rate in Hz over the same span.
        how: "hold" the frame shown at each new time; "linear" between valid neighbours; "mean" over the valid frames
            inside each new frame, weighted by duration. A mean is valid where valid frames cover at least `KNOWN_SHARE`
            of the new frame; elsewhere the reason is that of the longest invalid part, `GAP` outside the trace. Extras
            follow the same rules over their finite values.
        """
        if how not in get_args(FillRule):
            raise UnknownNameError.of("resampling", str(how), get_args(FillRule))
        target = clock if isinstance(clock, Timeline) else self.timeline.resampled(clock)
        if how == "mean":
            return self._resample_mean(target)
        at = self.timeline.frames_at(target.times)  # -1 outside the trace: the row appended below

        def moved(x: NDArray[np.float64]) -> NDArray[np.float64]:
            known, out = np.isfinite(x), np.append(x, np.nan)[at]
            if how == "linear" and known.any():
                between = np.interp(target.times, self.timeline.times[known], x[known])
                out = np.where(np.isfinite(out) & known[np.minimum(at + 1, len(self) - 1)], between, out)
            return out

        valid = np.append(self.valid, [[False, False]], axis=0)[at]
        return self._on(target, moved, valid, np.append(self.reason, GAP)[at])

    def _resample_mean(self, target: Timeline) -> Trace:
        frames, rows, seconds = overlaps(self.timeline.times, self.timeline.ends, target)
        span = target.ends - target.times

        def total(x: NDArray[Any]) -> NDArray[np.float64]:
            """(target frames,) sums of x, (T,), weighted by duration."""
            return np.bincount(frames, seconds * x[rows], minlength=len(target)).astype(np.float64)

        def mean(x: NDArray[np.float64]) -> NDArray[np.float64]:
            known = np.isfinite(x)
            covered = total(known)
            enough = (covered > 0) & (covered >= KNOWN_SHARE * span * (1 - 1e-9))  # tolerates rounded durations
            return np.where(enough, total(np.where(known, x, 0.0)) / np.where(enough, covered, 1.0), np.nan)

        valid = np.isfinite([mean(self.valence), mean(self.arousal)]).T
        reasons = [GAP, *sorted(set(self.reason.tolist()) - {"", GAP})]
        invalid_s = np.stack([total(self.reason == reason) for reason in reasons])
        invalid_s[0] += span - total(np.ones(len(self)))  # outside the trace
        reason = np.where(valid.any(axis=1), "", np.array(reasons)[invalid_s.argmax(axis=0)])
        return self._on(target, mean, valid, reason)

    def _on(
        self,
        clock: Timeline,
        moved: Callable[[NDArray[np.float64]], NDArray[np.float64]],
        valid: NDArray[np.bool_],
        reason: NDArray[np.str_],
    ) -> Trace:
        """This trace on `clock`, every column mapped by `moved`."""
        return replace(
            self,
            timeline=clock,
            valence=np.clip(moved(self.valence), -1, 1),
            arousal=np.clip(moved(self.arousal), -1, 1),
            valid=valid,
            reason=reason,
            extras={name: moved(x) for name, x in self.extras.items()},
        )

    def score(self, labels: Trace) -> metrics.Scores:
        """Agreement with `labels` on their clock; labelled frames that are invalid here only count in `n_missing`."""
        mine = self if self.timeline == labels.timeline else self.resample(labels.timeline)
        scores = metrics.score(mine.values, labels.values, mine.valid & labels.valid)
        return replace(scores, n_missing=int((labels.valid & ~mine.valid).any(axis=1).sum()))

    def to_pandas(self) -> pd.DataFrame:
        """One row a frame, columns as in the CSV (OpenFace's names first)."""
        from affectrace.trace_io import to_frame

        return to_frame(self)

    def plot(self) -> go.Figure:
        """Both dimensions over time, with gaps on invalid frames, as an interactive figure."""
        with optional_packages("Trace.plot"):
            import plotly.graph_objects as go

        figure = go.Figure()
        for name, colour in (("valence", "#0072B2"), ("arousal", "#D55E00")):
            figure.add_scatter(x=self.timeline.times, y=getattr(self, name), name=name, line={"color": colour})
        title = f"{self.recording_id} ({self.person})"
        y_axis = {"range": [-1.05, 1.05], "title": "valence, arousal"}
        return figure.update_layout(title=title, xaxis_title="time (s)", yaxis=y_axis, template="plotly_white")

    # ---- files

    def save(self, path: str | Path) -> Path:
        """Write as .csv (with a sidecar for the exact clock and provenance), .parquet or .json; atomic."""
        from affectrace.trace_io import write

        return write(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read what `save` wrote (raises FormatError); a CSV without a sidecar takes its clock from its timestamps."""
        from affectrace.trace_io import read

        return read(Path(path))


def rolling(times: NDArray[np.float64], x: NDArray[np.float64], window_s: float) -> Rolling:
    """Centred windows of `window_s` seconds, both ends included, to the nanosecond; NaN is left out."""
    import pandas as pd  # 70 MB that training does not need

    clock = pd.TimedeltaIndex(np.rint(times * 1e9).astype("timedelta64[ns]"))
    return pd.Series(x, clock).rolling(pd.Timedelta(round(window_s * 1e9)), center=True, closed="both", min_periods=1)


def causal_smooth(
    times: NDArray[np.float64], x: NDArray[np.float64], valid: NDArray[np.bool_], tau_s: float
) -> NDArray[np.float64]:
    """Causal exponential filter over the valid frames, for any and for varying frame rates; NaN on invalid ones.

    y_t = y_s + (1 - exp(-(t - s) / tau)) (x_t - y_s) with s the valid frame before t.
    """
    out, last, last_t = np.full(x.shape, np.nan), 0.0, -np.inf
    for i in np.flatnonzero(valid):
        last += -np.expm1(-(times[i] - last_t) / tau_s) * (x[i] - last)
        last_t, out[i] = times[i], last
    return np.clip(out, -1, 1)
