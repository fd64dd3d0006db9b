"""How recordings are cut into windows. Loads no numpy.

ours           windows of `size` frames every `stride`; every frame covered, the last window kept, shorter
Mamba-VA       the same with 1000/800 (official split) or 300/200 (folds 1 to 5); its formula, floor(n/s) + 1 segments
               from frame (i - 1) s + 1, but for the last segment where s divides n: it would be empty
its code       drops the last, partial window in training, and predicts on disjoint windows of 500
MAVEN          a window an utterance: from the end of the one before to its own end; ours keeps the tail after the
               last one and cuts what is too long for attention
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from affectrace.config import Config, Count
from affectrace.errors import ConfigError, InputError

if TYPE_CHECKING:
    from affectrace.timeline import Timeline


@dataclass(frozen=True)
class WindowScheme(Config):
    """How the frames of a recording are cut."""

    size: Count | None = 1000
    """w, frames a window (Mamba-VA's fold 0); none: the whole recording (or utterance)."""
    stride: Count | None = 800
    """s, frames from start to start (Mamba-VA's fold 0); none: size."""
    partial: Literal["keep", "drop"] = "keep"
    """Windows shorter than size at the end (drop: Mamba-VA's code)."""
    utterances: bool = False
    """Cut at the ends of utterances first (MAVEN section III-A)."""
    tail: Literal["keep", "drop"] = "keep"
    """Frames after the last utterance (drop: MAVEN's code)."""

    def __post_init__(self) -> None:
        if self.size is None and self.stride is not None:
            raise ConfigError("stride: the whole recording has none", hint="give size >= stride")
        if self.size is not None and self.stride is not None and self.stride > self.size:
            what = f"{self.stride} frames from start to start would leave out frames of windows of {self.size}"
            raise ConfigError(what, where="stride", hint="give size >= stride")

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

    def cut(self, timeline: Timeline, utterance_ends_s: Iterable[float] = ()) -> list[slice]:
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


def by_utterance(timeline: Timeline, ends_s: Iterable[float], *, keep_tail: bool = True) -> list[slice]:
    """Segments of frames: k runs from the end of utterance k - 1 to the end of utterance k (MAVEN section III-A).

    A frame belongs to the segment its start lies in; segments without a frame are left out.
    """
    ends = sorted({float(end) for end in ends_s})
    if not ends:
        return [slice(0, len(timeline))] if len(timeline) else []
    borders = [0, *(timeline.frames_between(-math.inf, e).stop for e in ends)]
    if keep_tail:
        borders.append(len(timeline))
    return [slice(a, b) for a, b in itertools.pairwise(borders) if b > a]
