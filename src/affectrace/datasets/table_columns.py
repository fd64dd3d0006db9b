"""Which columns of a table are features where none are named; and features that are nearly a label.

Features are columns of numbers that are not labels, times or counts of rows, decided over all recordings of a table, so
that every recording has the same columns. What a description names is taken, whatever it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from affectrace.datasets.raters import DIMENSIONS
from affectrace.datasets.table_schema import TIME
from affectrace.features.align import align
from affectrace.features.base import Features
from affectrace.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

COUNT, NOT_EVERYWHERE, OPENFACE = "counts rows", "not in every table", "OpenFace's own"
OPENFACE_COLUMNS = ("frame", "face_id", "timestamp", "confidence", "success")
"""The first columns of OpenFace's tables (its wiki, "Output Format"): when a face was found and how surely."""
TIME_NAMES = re.compile(r"(time|timestamp|onset|offset|start|end)([ _]?[(\[]?(s|sec|secs|seconds|ms|us|ns)[)\]]?)?")
COUNT_NAMES = re.compile(r"(frame|index|row)([ _]?(id|no|nr|number))?|unnamed: ?\d+|")
MIN_ROWS = 10
"""Rows of all recordings together from which a column is judged to count or keep time (ours)."""
NEARLY_A_LABEL = 0.99
"""Least |r| with a label, over all recordings, at which a feature is told to be nearly that label (ours)."""
_SHOWN = 8  # columns named of each kind


@dataclass
class _Column:
    """What is known of a column so far. tables: in which it is, and in which it holds numbers. rows: that were judged.

    counts, keeps_time: whether it did in every recording; slopes: of its time, a unit of its own a second.
    """

    tables: int = 0
    numeric: int = 0
    rows: int = 0
    counts: bool = True
    counts_whole: bool = False
    keeps_time: bool = True
    slopes: list[float] = field(default_factory=list)


class DefaultColumns:
    """The columns of a table, recording by recording; then which are features."""

    def __init__(self, own: Iterable[str], taken: Mapping[str, str]) -> None:
        """own: the table's own time, end, duration and recording columns, which are left out and not listed."""
        self._own, self._taken = set(own), taken
        self._columns: dict[str, _Column] = {}
        self._tables = 0

    def add(self, frame: pd.DataFrame, index: Ints, times: Floats) -> None:
        """One recording's rows: where they are in the table, in order of their times (seconds)."""
        self._tables += 1
        for name, cells in frame.items():
            known = self._columns.setdefault(str(name), _Column())
            known.tables += 1
            if cells.dtype.kind not in "fiub":
                continue
            known.numeric += 1
            if self._tables == 1:
                whole = cells.to_numpy(np.float64, na_value=np.nan)
                known.counts_whole = len(whole) >= MIN_ROWS and _steps_by_one(whole, np.arange(len(whole)))
            x = cells.iloc[index].to_numpy(np.float64, na_value=np.nan)
            finite = np.isfinite(x)
            x, t, at = x[finite], times[finite], index[finite]
            if len(x) < 3:
                continue
            known.rows += len(x)
            ranks, in_file = np.arange(len(x)), np.argsort(at)
            known.counts &= _steps_by_one(x, at) or _steps_by_one(x, ranks) or _steps_by_one(x[in_file], ranks)
            slope = _slope(x, t)
            known.keeps_time &= slope is not None
            known.slopes += [] if slope is None else [slope]

    def chosen(self, *, shared: bool) -> tuple[tuple[str, ...], dict[str, str]]:
        """Names of the features, in the first table's order, and what was left out: column -> why.

        shared: all recordings are in one table.
        """
        listed = {n: c for n, c in self._columns.items() if n not in self._own and 2 * c.numeric >= c.tables}
        openface = set(OPENFACE_COLUMNS) - {"face_id"} <= self._columns.keys()
        why = {name: self._why_not(name, known, openface, shared) for name, known in listed.items()}
        return tuple(n for n, w in why.items() if w is None), {n: w for n, w in why.items() if w is not None}

    def _why_not(self, name: str, known: _Column, openface: bool, shared: bool) -> str | None:
        plain, judged = name.strip().lower(), known.rows >= MIN_ROWS
        if plain in self._taken:
            return self._taken[plain]
        if openface and name in OPENFACE_COLUMNS:
            return OPENFACE
        if COUNT_NAMES.fullmatch(plain) or (judged and known.counts) or (shared and known.counts_whole):
            return COUNT
        alike = judged and known.keeps_time and max(known.slopes) <= 1.01 * min(known.slopes)
        if TIME_NAMES.fullmatch(plain) or alike:
            return TIME
        return NOT_EVERYWHERE if known.tables < self._tables else None


def _steps_by_one(x: Floats, places: Ints) -> bool:
    """Whether whole numbers go up by one with every place."""
    return bool(np.isfinite(x).all() and (x == np.rint(x)).all() and (np.diff(x) == np.diff(places)).all())


def _slope(x: Floats, t: Floats) -> float | None:
    """What a column that goes up with time in a straight line, to within half a usual step, gains a second."""
    if not (np.diff(x) > 0).all():
        return None
    slope = float((x[-1] - x[0]) / (t[-1] - t[0]))
    off = np.abs(x - x[0] - slope * (t - t[0])).max()
    return slope if off <= 0.5 * slope * float(np.median(np.diff(t))) else None


def listed(left_out: Mapping[str, str]) -> str:
    """`index (counts rows); valence, arousal (labels)`."""
    of: dict[str, list[str]] = {}
    for name, why in left_out.items():
        of.setdefault(why, []).append(name)
    more = {why: f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "" for why, names in of.items()}
    return "; ".join(f"{', '.join(names[:_SHOWN])}{more[why]} ({why})" for why, names in of.items())


class _Correlations:
    """Correlation of a label with every feature column, recording by recording (Chan, Golub & LeVeque 1979)."""

    def __init__(self) -> None:
        self.n = 0
        self._mean = self._products = self._squares = np.zeros(1)  # of the label and of every column

    def add(self, label: Floats, features: NDArray[np.floating[Any]]) -> None:
        """(n,) and (n, D) of one recording."""
        if not len(label):
            return
        x = np.column_stack([label, features]).astype(np.float64)
        mean, total = x.mean(axis=0), self.n + len(x)
        x -= mean
        step, weight = mean - self._mean, self.n * len(x) / total
        self._products = self._products + x[:, 0] @ x + step[0] * step * weight
        self._squares = self._squares + np.einsum("nd,nd->d", x, x) + step**2 * weight
        self._mean = self._mean + step * (len(x) / total)
        self.n = total

    @property
    def r(self) -> Floats:
        """(D,)."""
        scale = np.sqrt(self._squares[0] * self._squares)
        return np.where(scale > 0, self._products / np.where(scale > 0, scale, 1), 0)[1:]


def near_labels(parts: Iterable[tuple[Features, Trace]]) -> dict[int, tuple[str, float, int]]:
    """Column -> (dimension, r, rows) of those at NEARLY_A_LABEL or beyond, over the features and labels of recordings.

    Features are averaged over the labels' rows.
    """
    found = _Correlations(), _Correlations()
    for features, labels in parts:
        held = align(features, labels.timeline, "mean")
        for of, label, known in zip(found, labels.values.T, labels.valid.T, strict=True):
            both = held.valid & known
            of.add(label[both], held.values[both])
    near: dict[int, tuple[str, float, int]] = {}
    for dimension, of in zip(DIMENSIONS, found, strict=True):
        for d in np.flatnonzero(np.abs(of.r) >= NEARLY_A_LABEL).tolist() if of.n >= MIN_ROWS else ():
            near.setdefault(d, (dimension, float(of.r[d]), of.n))
    return near
