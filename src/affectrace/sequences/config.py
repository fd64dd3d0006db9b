"""Window schemes of both papers and of their authors' code. Does not import numpy.

default        windows of `size` frames every `stride`; every frame is covered, the last window is shorter
Mamba-VA       the same with 1000/800 (official split) or 300/200 (folds 1 to 5): floor(n/s) + 1 segments from frame
               (i - 1) s + 1, except the last segment if s divides n, which would be empty
its code       drops the last, partial window in training, and predicts on disjoint windows of 500
MAVEN          a window per utterance, from the end of the previous one to its own; here the tail after the last one
               is kept, and windows too long for attention are split
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

from affectrace.config import Config, Count
from affectrace.errors import ConfigError, InputError

if TYPE_CHECKING:
    from affectrace.timeline import Timeline


@dataclass(frozen=True)
class WindowScheme(Config):
    """How a recording is cut into windows of frames."""

    size: Count | None = 1000
    """Frames per window, w (Mamba-VA, fold 0); none: the whole recording or utterance."""
    stride: Count | None = 800
    """Frames between starts of windows, s (Mamba-VA, fold 0); none: size."""
    partial: Literal["keep", "drop"] = "keep"
    """Keep or drop the last, shorter window (drop: Mamba-VA's code)."""
    utterances: bool = False
    """Cut at the ends of utterances first (MAVEN, section III-A)."""
    tail: Literal["keep", "drop"] = "keep"
    """Keep or drop frames after the last utterance (drop: MAVEN's code)."""

    def __post_init__(self) -> None:
        if self.size is None and self.stride is not None:
            raise ConfigError("a window of the whole recording has no stride", where="stride")
        if self.size is not None and self.stride is not None and self.stride > self.size:
            raise ConfigError(f"must not be greater than size ({self.size}): frames would be skipped", where="stride")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Scheme from SIZE:STRIDE in frames, the syntax of `--windows`."""
        size, _, stride = text.partition(":")
        if not all(re.fullmatch(r"[1-9]\d{0,8}", part) for part in (size, stride)):
            raise InputError(f"'{text}' is not SIZE:STRIDE", where="--windows", hint="give frames, such as 1000:500")
        return cls(int(size), int(stride))

    @classmethod
    def mamba_va(cls, fold: int = 0) -> Self:
        """1000/800 for the official split, 300/200 for folds 1 to 5 (Mamba-VA), every frame covered."""
        return cls(1000, 800) if fold == 0 else cls(300, 200)

    @classmethod
    def maven(cls, max_frames: int | None = None, overlap: int = 0) -> Self:
        """A window per utterance; longer ones in pieces of `max_frames` that overlap by `overlap` frames."""
        stride = None if max_frames is None else max_frames - overlap
        return cls(size=max_frames, stride=stride, utterances=True)

    def cut(self, timeline: Timeline, utterance_ends_s: Iterable[float] = ()) -> list[slice]:
        """Windows as slices of frame numbers, in order, none empty. utterance_ends_s: only used with `utterances`."""
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
    """Segment k: frames that start from the end of utterance k - 1 to that of k (MAVEN section III-A), if any."""
    ends = sorted({float(end) for end in ends_s})
    if not ends:
        return [slice(0, len(timeline))] if len(timeline) else []
    borders = [0, *(timeline.frames_between(-math.inf, e).stop for e in ends)]
    if keep_tail:
        borders.append(len(timeline))
    return [slice(a, b) for a, b in itertools.pairwise(borders) if b > a]
