"""Timeline: the presentation time of every frame. The only place where seconds become frame numbers.

Times are integers (ticks) of an exact time base, so 30000/1001 frames a second stays exact; seconds in float64 are
derived from them by one correctly rounded division, so equal times on two clocks are equal numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from affectrace.errors import InputError

NANOSECOND = Fraction(1, 1_000_000_000)
_EXACT = 2**53  # largest integer up to which float64 counts by ones


@dataclass(frozen=True, eq=False)
class Timeline:
    """When each of T frames is shown.

    ticks: (T,) int64, strictly increasing; frame i is shown from ticks[i] to ticks[i + 1] (the last one to end_tick).
    time_base: seconds a tick, exact.
    end_tick: when the last frame stops being shown; later than ticks[-1].
    nominal_rate: frames a second as the container states it, None where it states none. Nothing is computed from it.

    Raises:
        InputError: ticks not one-dimensional, not integers or not strictly increasing; end not after the last frame.
    """

    ticks: NDArray[np.int64]
    time_base: Fraction
    end_tick: int
    nominal_rate: Fraction | None = field(default=None)

    def __post_init__(self) -> None:
        given = np.asarray(self.ticks)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise InputError(f"ticks must be one row of integers, got {given.dtype} of shape {given.shape}")
        ticks = np.array(given, dtype=np.int64)  # a copy: nobody else can change it
        if not isinstance(self.time_base, Fraction) or self.time_base <= 0:
            raise InputError(f"time base must be a positive Fraction of a second, got {self.time_base!r}")
        if ticks.size:
            steps = np.diff(ticks)
            if steps.size and steps.min() <= 0:
                i = int(np.argmax(steps <= 0)) + 1
                raise InputError(
                    f"times must increase, but frame {i} (tick {ticks[i]}) does not come after frame {i - 1} "
                    f"(tick {ticks[i - 1]})",
                    hint="sort the rows by time and drop repeated ones",
                )
            if int(self.end_tick) <= int(ticks[-1]):
                raise InputError(f"end (tick {self.end_tick}) must come after the last frame (tick {ticks[-1]})")
            if max(abs(int(ticks[0])), abs(int(self.end_tick))) * self.time_base.numerator >= _EXACT:
                raise InputError("times too far from zero to be exact in float64", hint="use a coarser time base")
        ticks.flags.writeable = False
        object.__setattr__(self, "ticks", ticks)
        object.__setattr__(self, "end_tick", int(self.end_tick))

    # ---- making one

    @classmethod
    def regular(cls, n_frames: int, rate_hz: Fraction | int, start_s: Fraction | int = 0) -> Timeline:
        """`n_frames` frames at an exact rate from `start_s`."""
        rate, start = Fraction(rate_hz), Fraction(start_s)
        if rate <= 0:
            raise InputError(f"rate must be positive, got {rate_hz}")
        if n_frames < 0:
            raise InputError(f"number of frames must not be negative, got {n_frames}")
        base = Fraction(1, math.lcm(rate.numerator, start.denominator))
        step, first = int(1 / rate / base), int(start / base)
        ticks = first + step * np.arange(n_frames, dtype=np.int64)
        return cls(ticks, base, first + step * n_frames, rate)

    @classmethod
    def from_times(
        cls, times_s: ArrayLike, end_s: float | None = None, nominal_rate: Fraction | None = None
    ) -> Timeline:
        """Times given as decimal seconds, kept to the nanosecond (exact for up to nine decimals).

        Without `end_s` the last frame lasts as long as the median step (one second where there is a single frame).
        """
        times = np.asarray(times_s, dtype=np.float64)
        if times.ndim != 1 or not (np.abs(times) < _EXACT / 1e9).all():  # nor NaN
            raise InputError("times must be one row of finite seconds", hint="remove empty or non-numeric times")
        ticks = np.rint(times * 1e9).astype(np.int64)
        if end_s is not None:
            end = round(end_s * 1e9)
        elif ticks.size:
            end = int(ticks[-1]) + (int(np.median(np.diff(ticks))) if ticks.size > 1 else 10**9)
        else:
            end = 0
        return cls(ticks, NANOSECOND, end, nominal_rate)

    # ---- reading it

    def __len__(self) -> int:
        return int(self.ticks.size)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Timeline):
            return NotImplemented
        mine, theirs = self.time_base, other.time_base
        if len(self) != len(other) or self.end_tick * mine != other.end_tick * theirs:
            return False
        if mine == theirs:
            return bool(np.array_equal(self.ticks, other.ticks))
        return all(a * mine == b * theirs for a, b in zip(self.ticks.tolist(), other.ticks.tolist(), strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        rate = "" if self.nominal_rate is None else f", nominal {float(self.nominal_rate):g} Hz"
        return f"Timeline({len(self)} frames, {self.start_s:.3f} to {self.end_s:.3f} s{rate})"

    @cached_property
    def times(self) -> NDArray[np.float64]:
        """(T,) seconds, read-only."""
        times = (self.ticks * self.time_base.numerator).astype(np.float64) / self.time_base.denominator
        times.flags.writeable = False
        return times

    @property
    def start_s(self) -> float:
        """When the first frame is shown (the end, where there is no frame)."""
        return float(self.times[0]) if len(self) else self.end_s

    @property
    def end_s(self) -> float:
        """When the last frame stops being shown, in seconds."""
        return float(self.end_tick * self.time_base)

    @property
    def duration_s(self) -> float:
        """From the first frame's start to the last one's end, in seconds."""
        return float((self.end_tick - int(self.ticks[0])) * self.time_base) if len(self) else 0.0

    @property
    def mean_rate_hz(self) -> float:
        """Frames a second on average (NaN without frames)."""
        return len(self) / self.duration_s if len(self) else math.nan

    @cached_property
    def ends(self) -> NDArray[np.float64]:
        """(T,) seconds at which each frame stops being shown."""
        ends = np.append(self.times[1:], self.end_s)[: len(self)]
        ends.flags.writeable = False
        return ends

    def time_of(self, i: int) -> float:
        """Start of frame `i` (0-based) in seconds."""
        return float(self.times[i])

    def frame_at(self, t_s: float) -> int:
        """The frame shown at `t_s`.

        Raises:
            InputError: no frame is shown then.
        """
        i = int(self.frames_at(np.array([t_s]))[0])
        if i < 0:
            raise InputError(f"no frame is shown at {t_s} s; frames run from {self.start_s} to {self.end_s} s")
        return i

    def frames_at(self, times_s: ArrayLike, *, hold_end: bool = False) -> NDArray[np.int64]:
        """For each time the frame shown then, -1 where none is. `hold_end`: the last frame stays after its end."""
        times = np.asarray(times_s, dtype=np.float64)
        index = np.searchsorted(self.times, times, side="right").astype(np.int64) - 1
        if not hold_end:
            index[times >= self.end_s] = -1
        return index

    def frames_between(self, a_s: float, b_s: float) -> slice:
        """Frames that start in [a, b)."""
        lo, hi = np.searchsorted(self.times, [a_s, max(a_s, b_s)], side="left")
        return slice(int(lo), int(hi))

    # ---- deriving others

    def cut(self, frames: slice) -> Timeline:
        """The frames of a contiguous slice of frame numbers; its last frame ends where the next one began."""
        lo, hi, step = frames.indices(len(self))
        if step != 1:
            raise InputError(f"a cut must be contiguous, got step {step}")
        end = int(self.ticks[hi]) if hi < len(self) else self.end_tick
        return Timeline(self.ticks[lo : max(lo, hi)], self.time_base, end, self.nominal_rate)

    def slice(self, a_s: float, b_s: float) -> Timeline:
        """The frames that start in [a, b) seconds."""
        return self.cut(self.frames_between(a_s, b_s))

    def resampled(self, rate_hz: Fraction | int) -> Timeline:
        """A regular clock at `rate_hz` over the same span: first frame at this start, all frames before this end."""
        rate = Fraction(rate_hz)
        if rate <= 0:
            raise InputError(f"rate must be positive, got {rate_hz}")
        if not len(self):
            return Timeline.regular(0, rate)
        start = int(self.ticks[0]) * self.time_base
        n = math.ceil((self.end_tick * self.time_base - start) * rate)
        return Timeline.regular(n, rate, start)

    # ---- travelling

    def to_dict(self) -> dict[str, Any]:
        """Exact JSON form; runs of equal steps are written once."""
        steps = np.diff(self.ticks)
        borders = np.flatnonzero(np.diff(steps)) + 1
        runs = [(int(part[0]), int(part.size)) for part in np.split(steps, borders) if part.size]
        return {
            "time_base": str(self.time_base),
            "first": int(self.ticks[0]) if len(self) else None,
            "steps": [list(run) for run in runs],
            "end": self.end_tick,
            "nominal_rate": None if self.nominal_rate is None else str(self.nominal_rate),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Timeline:
        """Inverse of `to_dict` (raises InputError where the values do not describe a timeline)."""
        try:
            first, rate = values["first"], values["nominal_rate"]
            steps = _expand(values["steps"])
            ticks = np.zeros(0, np.int64) if first is None else np.concatenate([[first], first + np.cumsum(steps)])
            return cls(
                ticks.astype(np.int64),
                Fraction(values["time_base"]),
                int(values["end"]),
                None if rate is None else Fraction(rate),
            )
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise InputError(f"not a timeline ({type(error).__name__}: {error})") from None


def _expand(runs: Iterable[tuple[int, int]]) -> NDArray[np.int64]:
    parts = [np.full(int(count), int(step), np.int64) for step, count in runs]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


# ---- two clocks


def ranges(lo: NDArray[np.int64], hi: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(frame, place) for every place in [lo, hi) of each frame."""
    counts = np.maximum(hi - lo, 0)
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return np.repeat(np.arange(len(lo)), counts), np.arange(first[-1]) + np.repeat(lo - first[:-1], counts)


def overlaps(
    starts_s: NDArray[np.float64], ends_s: NDArray[np.float64], clock: Timeline
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Which rows lie in which frames, and how long: (frame, row, seconds above 0) of every such pair, frames in order.

    starts_s, ends_s: (N,) of rows in order of their starts; a row may end after a later one does.
    """
    lo = np.searchsorted(np.maximum.accumulate(ends_s), clock.times, side="right")
    hi = np.searchsorted(starts_s, clock.ends, side="left")
    frames, rows = ranges(lo, hi)
    seconds = np.minimum(ends_s[rows], clock.ends[frames]) - np.maximum(starts_s[rows], clock.times[frames])
    some = seconds > 0
    return frames[some], rows[some], seconds[some]
