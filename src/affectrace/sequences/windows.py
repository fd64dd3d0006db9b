"""Overlap-add: predictions of windows combined to one value per frame."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from affectrace.errors import InputError, UnknownNameError
from affectrace.timeline import Timeline
from affectrace.trace import Trace

NOT_COVERED = "not predicted"
"""Reason for frames without a window."""
OverlapWeighting = Literal["mean", "triangular", "context"]
"""Weights of a frame in several windows: equal; its distance to the nearer end of the window; or only the window with
the most frames before it (for causal models). "fade", in older files, is "triangular"."""


class OverlapAdd:
    """Weighted mean of overlapping windows; exactly their value where they agree."""

    def __init__(self, n_frames: int, n_columns: int = 2, overlap_weighting: str = "mean") -> None:
        self.weighting = "triangular" if overlap_weighting == "fade" else overlap_weighting
        if self.weighting not in get_args(OverlapWeighting):
            raise UnknownNameError.of("overlap weighting", overlap_weighting, get_args(OverlapWeighting))
        self._value = np.zeros((n_frames, n_columns))
        self._weight = np.zeros((n_frames, 1))

    def add(self, frames: slice, values: ArrayLike) -> None:
        """Add a window: its frames and their (n, C) values."""
        lo, hi = frames.start, frames.stop
        x = np.asarray(values, dtype=np.float64)
        if not 0 <= lo <= hi <= len(self._value) or x.shape != (hi - lo, self._value.shape[1]):
            raise InputError(f"values {x.shape} do not fit frames {lo} to {hi} of {len(self._value)}")
        value, weight = self._value[lo:hi], self._weight[lo:hi]
        place = np.arange(1, hi - lo + 1)[:, None]
        if self.weighting == "context":
            deeper = place > weight
            value[:] = np.where(deeper, x, value)
            weight[:] = np.maximum(weight, place)
            return
        own = np.minimum(place, place[::-1]) if self.weighting == "triangular" else np.ones_like(place)
        weight += own
        value += own / weight * (x - value)  # a running mean: equal values leave it exactly as it is

    def result(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """(T, C) values, NaN where no window is, and (T,) whether one is."""
        covered = self._weight[:, 0] > 0
        return np.where(covered[:, None], self._value, np.nan), covered


def to_trace(
    recording_id: str,
    timeline: Timeline,
    windows: Iterable[tuple[slice, ArrayLike]],
    *,
    source: str,
    person: str = "main",
    overlap_weighting: str = "mean",
) -> Trace:
    """Trace of windows of (n, 2) valence and arousal; frames without a window are invalid."""
    joined = OverlapAdd(len(timeline), overlap_weighting=overlap_weighting)
    for frames, values in windows:
        joined.add(frames, values)
    joint, covered = joined.result()
    reason = np.where(covered, "", NOT_COVERED)
    return Trace(recording_id, timeline, joint[:, 0], joint[:, 1], covered, reason, source, person)
