"""Ratings as marks (from here to there something was so) to a value for each step of a clock. numpy only."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affectrace.datasets.manifest import Problem
from affectrace.datasets.table_files import Columns, column, numbers, text_of
from affectrace.datasets.table_schema import Entry, MarkTable
from affectrace.timeline import Timeline


def marked(
    source: MarkTable, columns: Columns, entry: Entry, path: Path, shown: str
) -> tuple[Timeline, NDArray[np.float64], list[Problem]]:
    """A recording's clock, (T, 2) valence and arousal on it (NaN where nothing was said), and what was odd.

    shown: how problems call the file.

    Raises:
        FormatError: a column is missing.
    """
    start, end = (numbers(column(columns, name, path)) for name in (source.start, source.end))
    usable = np.isfinite(start) & np.isfinite(end) & (end >= start)
    problems = []
    if not usable.all():
        line = int(np.flatnonzero(~usable)[0]) + 2
        problems.append(Problem(shown, line, f"{int((~usable).sum())} marks without a span", "left out"))
    clock, first_s = _steps(source, entry, float(end[usable].max(initial=0.0)))
    values = np.full((len(clock), 2), np.nan)
    for d, name in enumerate((source.valence, source.arousal)):
        words = [text_of(v).strip() for v in column(columns, name, path).tolist()]
        unknown = sorted({w for w in words if w and w not in source.values})
        if unknown:
            what = f"marks in {name} that mean nothing: {', '.join(unknown)}"
            problems.append(Problem(shown, None, what, "left out"))
        level = np.array([source.values.get(w, np.nan) for w in words], dtype=np.float64)
        use = usable & np.isfinite(level)
        values[:, d] = _pooled(source, first_s + clock.times, start[use], end[use], level[use])
    return clock, values, problems


def _steps(source: MarkTable, entry: Entry, last_s: float) -> tuple[Timeline, float]:
    """A recording's clock of steps, and the time of its start on the marks' clock.

    Steps begin at multiples of the step on the marks' clock, so neighbouring recordings have each step once.
    """
    if not source.shared:
        return Timeline.regular(math.ceil(last_s * source.rate_hz), source.rate_hz), 0.0
    end = entry.end_s if entry.end_s is not None else Fraction(math.ceil(last_s))
    k = math.ceil(entry.start_s * source.rate_hz)
    n = max(0, math.ceil(end * source.rate_hz) - k)
    return Timeline.regular(n, source.rate_hz, k / source.rate_hz - entry.start_s), float(entry.start_s)


def _pooled(
    source: MarkTable,
    begins: NDArray[np.float64],
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    level: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(T,) of the marks that touch each step; a mark without length touches the step it lies in."""
    step = 1 / float(source.rate_hz)
    total, count = np.zeros(len(begins)), np.zeros(len(begins))
    for a, b, value in zip(start, end, level, strict=True):
        if not len(begins) or (a < begins[0] and b <= begins[0]):
            continue
        lo = int(np.searchsorted(begins, a - step, side="right"))
        hi = max(int(np.searchsorted(begins, b, side="left")), lo + 1)
        total[lo:hi] += value
        count[lo:hi] += 1
    mean = total / np.maximum(count, 1)
    pooled = np.sign(mean) if source.pool == "sign" else mean
    return np.where(count > 0, pooled, 0.0 if source.empty == "zero" else np.nan)
