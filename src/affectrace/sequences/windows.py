"""Putting what was computed on windows together again to one value a frame. numpy only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from affectrace.errors import InputError, UnknownNameError
from affectrace.sequences.config import WindowScheme as WindowScheme
from affectrace.sequences.config import by_utterance as by_utterance
from affectrace.timeline import Timeline
from affectrace.trace import Trace

NOT_COVERED = "not predicted"
"""Reason of frames that no window covers."""
OverlapWeighting = Literal["mean", "triangular", "context"]
"""How frames in several windows are weighted: alike; by the distance to the window's nearer end; or only the window in
which the frame has most frames before it (for causal models). In files "fade" stands for "triangular"."""


class OverlapAdd:
    """Windows of values put together to one value a frame; where all windows agree, exactly their value."""

    def __init__(self, n_frames: int, n_columns: int = 2, overlap_weighting: str = "mean") -> None:
        self.weighting = "triangular" if overlap_weighting == "fade" else overlap_weighting
        if self.weighting not in get_args(OverlapWeighting):
            raise UnknownNameError.of("overlap weighting", overlap_weighting, get_args(OverlapWeighting))
        self._value = np.zeros((n_frames, n_columns))
        self._weight = np.zeros((n_frames, 1))

    def add(self, frames: slice, values: ArrayLike) -> None:
        """Add a window: its frames and their (n, C) values.

        Raises:
            InputError: shapes do not fit, or frames beyond the recording.
        """
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
        """(T, C) values, NaN where no window lies, and (T,) whether one does."""
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
    """Windows of (n, 2) valence and arousal as a trace; frames that no window covers are not valid.

    Raises:
        InputError: shapes do not fit, or values outside [-1, 1].
    """
    joined = OverlapAdd(len(timeline), overlap_weighting=overlap_weighting)
    for frames, values in windows:
        joined.add(frames, values)
    joint, covered = joined.result()
    reason = np.where(covered, "", NOT_COVERED)
    return Trace(recording_id, timeline, joint[:, 0], joint[:, 1], covered, reason, source, person)
