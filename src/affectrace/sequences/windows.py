"""Cutting a recording's frames into windows, and putting what was computed on them together again. numpy only.

ours           windows of `size` frames every `stride`; every frame covered, the last window kept, shorter
Mamba-VA       the same with 1000/800 (official split) or 300/200 (folds 1 to 5); its formula, floor(n/s) + 1 segments
               from frame (i - 1) s + 1, but for the last segment where s divides n: it would be empty
its code       drops the last, partial window in training (partial="drop"), and predicts on disjoint windows of 500
MAVEN          a window an utterance: from the end of the one before to its own end; ours keeps the tail after the
               last one (its code: tail="drop") and cuts what is too long for attention
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from affectrace.config import Config
from affectrace.errors import ConfigError, InputError, UnknownNameError
from affectrace.timeline import Timeline
from affectrace.trace import Trace

NOT_COVERED = "not predicted"
"""Reason of frames that no window covers."""
OverlapWeighting = Literal["mean", "triangular", "context"]
"""How frames in several windows are weighted: alike; by the distance to the window's nearer end; or only the window in
which the frame has most frames before it (for causal models). In files "fade" stands for "triangular"."""


@dataclass(frozen=True)
class WindowScheme(Config):
    """How the frames of a recording are cut."""

    size: int | None = 1000  # w, frames a window (Mamba-VA's fold 0); None: the whole recording (or utterance)
    stride: int | None = 800  # s, frames from start to start (Mamba-VA's fold 0); None: size
    partial: Literal["keep", "drop"] = "keep"  # windows shorter than size at the end (drop: Mamba-VA's code)
    utterances: bool = False  # cut at the ends of utterances first (MAVEN section III-A)
    tail: Literal["keep", "drop"] = "keep"  # frames after the last utterance (drop: MAVEN's code)

    def __post_init__(self) -> None:
        size, stride = self.size, self.stride
        wrong = []
        if size is None and stride is not None:
            wrong.append("stride: the whole recording has none")
        if (size is not None and size < 1) or (stride is not None and stride < 1):
            wrong.append("size and stride: must be at least 1")
        elif size is not None and stride is not None and stride > size:
            wrong.append(f"stride: {stride} frames from start to start would leave out frames of windows of {size}")
        for name in ("partial", "tail"):
            if getattr(self, name) not in ("keep", "drop"):
                wrong.append(f"{name}: keep or drop")
        if wrong:
            raise ConfigError("; ".join(wrong), where="WindowScheme", hint="give size >= stride >= 1")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Windows from SIZE:STRIDE in frames, as `--windows` takes them (raises InputError, ConfigError)."""
        size, colon, stride = text.partition(":")
        if not (colon and size.isdecimal() and stride.isdecimal()):
            raise InputError(
                f"'{text}' is not SIZE:STRIDE", where="--windows", hint="give frames, for instance 1000:500"
            )
        return cls(int(size), int(stride))

    @classmethod
    def mamba_va(cls, fold: int = 0) -> Self:
        """The paper's: 1000/800 for the official split, 300/200 for folds 1 to 5; every frame covered."""
        return cls(1000, 800) if fold == 0 else cls(300, 200)

    @classmethod
    def maven(cls, max_frames: int | None = None, overlap: int = 0) -> Self:
        """A window an utterance, the tail kept; longer ones in pieces of `max_frames` that share `overlap`."""
        stride = None if max_frames is None else max_frames - overlap
        return cls(size=max_frames, stride=stride, utterances=True)

    def cut(self, timeline: Timeline, utterance_ends_s: ArrayLike = ()) -> list[slice]:
        """Windows as slices of frame numbers, in order; none is empty.

        utterance_ends_s: seconds, in any order; used with `utterances` only. Without any the recording is one segment.
        """
        segments = [slice(0, len(timeline))]
        if self.utterances:
            segments = by_utterance(timeline, utterance_ends_s, keep_tail=self.tail == "keep")
        return [window for segment in segments for window in self._within(segment)]

    def _within(self, segment: slice) -> list[slice]:
        n = segment.stop - segment.start
        size = max(n, 1) if self.size is None else self.size
        stride = self.stride or size
        last = n if self.partial == "keep" or self.size is None else n - size + 1
        starts = range(segment.start, segment.start + max(last, 0), stride)
        return [slice(a, min(a + size, segment.stop)) for a in starts]


def by_utterance(timeline: Timeline, ends_s: ArrayLike, *, keep_tail: bool = True) -> list[slice]:
    """Segments of frames: k runs from the end of utterance k - 1 to the end of utterance k (MAVEN section III-A).

    A frame belongs to the segment its start lies in; segments without a frame are left out.
    """
    ends = np.unique(np.asarray(ends_s, dtype=np.float64))
    if not len(ends):
        return [slice(0, len(timeline))] if len(timeline) else []
    borders = [0, *(timeline.frames_between(-math.inf, e).stop for e in ends)]
    if keep_tail:
        borders.append(len(timeline))
    return [slice(a, b) for a, b in itertools.pairwise(borders) if b > a]


# ---- and back


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
