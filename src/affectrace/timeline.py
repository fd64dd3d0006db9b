"""Timeline: exact presentation times of frames. Only here do seconds become frame numbers.

Times are integers (ticks) of an exact time base, so 30000/1001 frames per second stay exact; seconds in float64 are
computed from them by one correctly rounded division, so equal times on two clocks are equal numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
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
    """When each of T frames is shown (raises InputError for impossible times).

    ticks: (T,) int64, strictly increasing; frame i is shown from ticks[i] to ticks[i + 1], the last one to end_tick.
    time_base: seconds per tick, exact. nominal_rate: frames per second as stated by the container, None if unstated;
    nothing is computed from it.
    """

    ticks: NDArray[np.int64]
    time_base: Fraction
    end_tick: int
    nominal_rate: Fraction | None = None

    def __post_init__(self) -> None:
        given = np.asarray(self.ticks)
        if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
            raise InputError(f"ticks must be one row of integers, got {given.dtype} of shape {given.shape}")
        if self.time_base <= 0:
            raise InputError(f"time base must be a positive fraction of a second, got {self.time_base}")
        ticks = np.array(given, dtype=np.int64)  # a copy: nobody else can change it
        if ticks.size:
            backward = np.flatnonzero(np.diff(ticks) <= 0)
            if backward.size:
                i = int(backward[0]) + 1
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

    # ---- construction

    @classmethod
    def regular(cls, n_frames: int, rate_hz: Fraction | int, start_s: Fraction | int = 0) -> Timeline:
        """`n_frames` frames at an exact rate from `start_s`."""
        rate, start = Fraction(rate_hz), Fraction(start_s)
        if rate <= 0 or n_frames < 0:
            raise InputError(f"a timeline needs a rate > 0 and a frame count >= 0, got {rate_hz} and {n_frames}")
        base = Fraction(1, math.lcm(rate.numerator, start.denominator))
        step, first = int(1 / rate / base), int(start / base)
        ticks = first + step * np.arange(n_frames, dtype=np.int64)
        return cls(ticks, base, first + step * n_frames, rate)

    @classmethod
    def from_times(
        cls, times_s: ArrayLike, end_s: float | None = None, nominal_rate: Fraction | None = None
    ) -> Timeline:
        """Times given as decimal seconds, kept to the nanosecond (exact for up to nine decimals).

        Without `end_s` the last frame lasts as long as the median step, or one second if there is a single frame.
        """
        times = np.asarray(times_s, dtype=np.float64)
        if times.ndim != 1 or not (np.abs(times) < _EXACT / 1e9).all():  # nor NaN
            hint = "remove empty or non-numeric times; count from the recording's start, not from a date"
            raise InputError(f"times must be one row of finite seconds below {_EXACT / 1e9:.0f}", hint=hint)
        ticks = np.rint(times * 1e9).astype(np.int64)
        if end_s is not None:
            end = round(end_s * 1e9)
        elif ticks.size > 1:
            end = int(ticks[-1]) + int(np.median(np.diff(ticks)))
        else:
            end = int(ticks[-1]) + 10**9 if ticks.size else 0
        return cls(ticks, NANOSECOND, end, nominal_rate)

    # ---- times and frames

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
        """(T,) seconds from which each frame is shown, read-only."""
        times = (self.ticks * self.time_base.numerator).astype(np.float64) / self.time_base.denominator
        times.flags.writeable = False
        return times

    @cached_property
    def ends(self) -> NDArray[np.float64]:
        """(T,) seconds at which each frame stops being shown, read-only."""
        ends = np.append(self.times[1:], self.end_s)[: len(self)]
        ends.flags.writeable = False
        return ends

    @property
    def start_s(self) -> float:
        """Start of the first frame in seconds (the end if there is no frame)."""
        return float(self.times[0]) if len(self) else self.end_s

    @property
    def end_s(self) -> float:
        """End of the last frame in seconds."""
        return float(self.end_tick * self.time_base)

    @property
    def duration_s(self) -> float:
        """From the first frame's start to the last one's end, in seconds."""
        return float((self.end_tick - int(self.ticks[0])) * self.time_base) if len(self) else 0.0

    @property
    def mean_rate_hz(self) -> float:
        """Frames per second on average (NaN without frames)."""
        return len(self) / self.duration_s if len(self) else math.nan

    def frame_at(self, time_s: float) -> int:
        """The frame shown at a time (raises InputError outside)."""
        i = int(self.frames_at([time_s])[0])
        if i < 0:
            raise InputError(f"no frame is shown at {time_s} s; frames run from {self.start_s} to {self.end_s} s")
        return i

    def frames_at(self, times_s: ArrayLike) -> NDArray[np.int64]:
        """The frame shown at each time, -1 for none."""
        times = np.asarray(times_s, dtype=np.float64)
        index = np.searchsorted(self.times, times, side="right").astype(np.int64) - 1
        index[times >= self.end_s] = -1
        return index

    def frames_between(self, start_s: float, end_s: float) -> slice:
        """Frames that start in [start_s, end_s)."""
        lo, hi = np.searchsorted(self.times, [start_s, max(start_s, end_s)], side="left")
        return slice(int(lo), int(hi))

    # ---- derived clocks

    def cut(self, frames: slice) -> Timeline:
        """The frames of a contiguous slice of frame numbers; its last frame ends where the next one began."""
        lo, hi, step = frames.indices(len(self))
        if step != 1:
            raise InputError(f"a cut must be contiguous, got step {step}")
        end = int(self.ticks[hi]) if hi < len(self) else self.end_tick
        return Timeline(self.ticks[lo : max(lo, hi)], self.time_base, end, self.nominal_rate)

    def resampled(self, rate_hz: Fraction | int) -> Timeline:
        """A regular clock over the same span: first frame at this start, all frames before this end."""
        if not len(self):
            return Timeline.regular(0, rate_hz)
        start = int(self.ticks[0]) * self.time_base
        n = math.ceil((self.end_tick * self.time_base - start) * Fraction(rate_hz))
        return Timeline.regular(n, rate_hz, start)

    # ---- JSON

    def to_dict(self) -> dict[str, Any]:
        """Exact JSON form; runs of equal steps are written once."""
        steps = np.diff(self.ticks)
        runs = np.split(steps, np.flatnonzero(np.diff(steps)) + 1)
        return {
            "time_base": str(self.time_base),
            "first": int(self.ticks[0]) if len(self) else None,
            "steps": [[int(run[0]), int(run.size)] for run in runs if run.size],
            "end": self.end_tick,
            "nominal_rate": None if self.nominal_rate is None else str(self.nominal_rate),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Timeline:
        """Inverse of `to_dict` (raises InputError)."""
        try:
            first, rate = values["first"], values["nominal_rate"]
            steps = [np.full(int(count), int(step), np.int64) for step, count in values["steps"]]
            ticks = np.zeros(0) if first is None else np.cumsum(np.concatenate([[first], *steps]))
            base, nominal = Fraction(values["time_base"]), None if rate is None else Fraction(rate)
            return cls(ticks.astype(np.int64), base, int(values["end"]), nominal)
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise InputError(f"not a timeline ({type(error).__name__}: {error})") from None


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
