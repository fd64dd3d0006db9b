"""Default feature columns of a table, and detection of features that nearly equal a label.

By default the features are all numeric columns except labels, times and row counters. This is decided over all
recordings of a table, so that every recording has the same columns. Columns named in a description are always taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from affectrace.datasets.table_schema import TIME
from affectrace.errors import listing
from affectrace.features.align import align
from affectrace.features.base import Features
from affectrace.metrics import DIMENSIONS
from affectrace.trace import Trace

if TYPE_CHECKING:
    import pandas as pd

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

COUNTER, NOT_EVERYWHERE, OPENFACE = "row counter", "not in every table", "OpenFace metadata"
OPENFACE_COLUMNS = ("frame", "face_id", "timestamp", "confidence", "success")
"""The first columns of OpenFace's tables (its wiki, "Output Format")."""
TIME_NAMES = re.compile(r"(time|timestamp|onset|offset|start|end)([ _]?[(\[]?(s|sec|secs|seconds|ms|us|ns)[)\]]?)?")
COUNTER_NAMES = re.compile(r"(frame|index|row)([ _]?(id|no|nr|number))?|unnamed: ?\d+|")
MIN_ROWS = 10
"""Least number of rows, over all recordings, from which a column is judged (ours)."""
NEARLY_A_LABEL = 0.99
"""Least |r| with a label, over all recordings, at which a feature is reported (ours)."""
_SHOWN = 8  # columns named per reason


class _Seen(NamedTuple):
    """A column in one recording: does it count rows, or increase linearly with time?"""

    is_numeric: bool
    n_rows: int = 0  # judged
    counts: bool = True
    slopes: tuple[float | None, ...] = ()  # own units per second; None: not linear in time


class DefaultColumns:
    """Chooses the feature columns of one table from the rows of all its recordings."""

    def __init__(self, own: Iterable[str], reserved: Mapping[str, str]) -> None:
        """own: the table's own time, end, duration and recording columns, never features and not reported."""
        self._own, self._reserved = set(own), reserved
        self._seen: dict[str, list[_Seen]] = {}
        self._counters: set[str] = set()  # columns that count the rows of the first file
        self._n_tables = 0

    def add(self, table: pd.DataFrame, index: Ints, times: Floats) -> None:
        """Rows of one recording: their positions in the file, in order of their times (seconds)."""
        numeric = {str(name) for name, cells in table.items() if cells.dtype.kind in "fiub"}
        if not self._n_tables and len(table) >= MIN_ROWS:
            every = np.arange(len(table))
            self._counters = {n for n in numeric if _counts(table[n].to_numpy(np.float64, na_value=np.nan), every)}
        self._n_tables += 1
        for name in table:
            seen = _judged(table[name].iloc[index], index, times) if name in numeric else _Seen(False)
            self._seen.setdefault(name, []).append(seen)

    def chosen(self, *, one_file: bool) -> tuple[tuple[str, ...], dict[str, str]]:
        """Feature columns in the first table's order; and those left out -> why. one_file: of all recordings."""
        why = {
            name: self._why_not(name, seen, one_file)
            for name, seen in self._seen.items()
            if name not in self._own and 2 * sum(s.is_numeric for s in seen) >= len(seen)
        }
        return tuple(n for n, w in why.items() if w is None), {n: w for n, w in why.items() if w is not None}

    def _why_not(self, name: str, seen: list[_Seen], one_file: bool) -> str | None:
        plain, judged = name.strip().lower(), sum(s.n_rows for s in seen) >= MIN_ROWS
        if plain in self._reserved:
            return self._reserved[plain]
        if name in OPENFACE_COLUMNS and set(OPENFACE_COLUMNS) - {"face_id"} <= self._seen.keys():
            return OPENFACE
        counts = (judged and all(s.counts for s in seen)) or (one_file and name in self._counters)
        if COUNTER_NAMES.fullmatch(plain) or counts:
            return COUNTER
        slopes = [slope for s in seen for slope in s.slopes]
        linear = [slope for slope in slopes if slope is not None]
        is_clock = judged and len(linear) == len(slopes) and max(linear) <= 1.01 * min(linear)
        if TIME_NAMES.fullmatch(plain) or is_clock:
            return TIME
        return NOT_EVERYWHERE if len(seen) < self._n_tables else None


def _judged(cells: pd.Series, index: Ints, times: Floats) -> _Seen:
    x = cells.to_numpy(np.float64, na_value=np.nan)
    known = np.isfinite(x)
    x, t, rows = x[known], times[known], index[known]
    if len(x) < 3:
        return _Seen(True)
    ranks = np.arange(len(x))
    counts = _counts(x, rows) or _counts(x, ranks) or _counts(x[np.argsort(rows)], ranks)
    return _Seen(True, len(x), counts, (_slope(x, t),))


def _counts(x: Floats, rows: Ints) -> bool:
    """Whether x are whole numbers that increase by one per row."""
    return bool(np.isfinite(x).all() and (x == np.rint(x)).all() and (np.diff(x) == np.diff(rows)).all())


def _slope(x: Floats, t: Floats) -> float | None:
    """Units per second of a column that increases linearly with time, to within half a usual step; None otherwise."""
    if not (np.diff(x) > 0).all():
        return None
    slope = float((x[-1] - x[0]) / (t[-1] - t[0]))
    off = np.abs(x - x[0] - slope * (t - t[0])).max()
    return slope if off <= 0.5 * slope * float(np.median(np.diff(t))) else None


def listed(left_out: Mapping[str, str]) -> str:
    """`index (row counter); valence, arousal (labels)`."""
    texts = []
    for why in dict.fromkeys(left_out.values()):
        names = [name for name, reason in left_out.items() if reason == why]
        texts.append(f"{listing(names, _SHOWN)} ({why})")
    return "; ".join(texts)


def near_labels(recordings: Iterable[tuple[Features, Trace]]) -> dict[int, tuple[str, float, int]]:
    """Feature column -> (dimension, r, rows) where |r| >= NEARLY_A_LABEL over all rows of features and labels.

    Features are averaged over the rows of the labels.
    """
    found = {dimension: _Correlation() for dimension in DIMENSIONS}
    for features, labels in recordings:
        held = align(features, labels.timeline, "mean")
        for correlation, label, valid in zip(found.values(), labels.values.T, labels.valid.T, strict=True):
            both = held.valid & valid
            correlation.add(np.column_stack([label[both], held.values[both]]))
    near: dict[int, tuple[str, float, int]] = {}
    for dimension, correlation in found.items():
        if correlation.n >= MIN_ROWS:
            for d in np.flatnonzero(np.abs(correlation.r) >= NEARLY_A_LABEL).tolist():
                near.setdefault(d, (dimension, float(correlation.r[d]), correlation.n))
    return near


class _Correlation:
    """Pearson's r of a label with each of D columns, from sums over blocks of rows."""

    def __init__(self) -> None:
        self.n, self._first = 0, np.zeros(0)
        self._sums = self._products = self._squares = np.zeros(1)  # (1 + D,) of the rows minus the first one

    def add(self, x: Floats) -> None:
        """(n, 1 + D) rows: the label, then the columns."""
        if not len(x):
            return
        self._first = self._first if self.n else x[0]
        x = x - self._first
        self.n += len(x)
        self._sums = self._sums + x.sum(axis=0)
        self._products = self._products + x[:, 0] @ x
        self._squares = self._squares + np.einsum("nd,nd->d", x, x)

    @property
    def r(self) -> Floats:
        """(D,), 0 for a constant column."""
        covariance = self._products - self._sums[0] * self._sums / self.n
        variance = self._squares - self._sums**2 / self.n
        scale = np.sqrt(np.maximum(variance[0] * variance, 0))
        return np.where(scale > 0, covariance / np.where(scale > 0, scale, 1), 0)[1:]
