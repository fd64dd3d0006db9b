"""Default feature columns of a table, and features that nearly equal a label.

By default the features are all numeric columns except labels, times and row counters. This is decided over all
recordings of a table, so that every recording has the same columns. Columns named in a description are always taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

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


@dataclass
class _Column:
    """What is known of a column after some recordings: a counter or a clock in all of them?"""

    n_tables: int = 0
    n_numeric: int = 0  # tables in which it holds numbers
    n_rows: int = 0
    counts: bool = True
    counts_whole: bool = False  # over the whole first file
    slopes: list[float | None] = field(default_factory=list)  # own units per second; None: not linear in time


class DefaultColumns:
    """Chooses the feature columns of one table from the rows of all its recordings."""

    def __init__(self, own: Iterable[str], reserved: Mapping[str, str]) -> None:
        """own: the table's own time, end, duration and recording columns, never features and not reported."""
        self._own, self._reserved = set(own), reserved
        self._columns: dict[str, _Column] = {}
        self._n_tables = 0

    def add(self, table: pd.DataFrame, index: Ints, times: Floats) -> None:
        """Rows of one recording: their positions in the file, in order of their times (seconds)."""
        self._n_tables += 1
        for name, cells in table.items():
            column = self._columns.setdefault(str(name), _Column())
            column.n_tables += 1
            if cells.dtype.kind not in "fiub":
                continue
            column.n_numeric += 1
            if self._n_tables == 1:
                whole = cells.to_numpy(np.float64, na_value=np.nan)
                column.counts_whole = len(whole) >= MIN_ROWS and _counts(whole, np.arange(len(whole)))
            x = cells.iloc[index].to_numpy(np.float64, na_value=np.nan)
            known = np.isfinite(x)
            x, t, rows = x[known], times[known], index[known]
            if len(x) >= 3:
                ranks, by_row = np.arange(len(x)), np.argsort(rows)
                column.n_rows += len(x)
                column.counts &= _counts(x, rows) or _counts(x, ranks) or _counts(x[by_row], ranks)
                column.slopes.append(_slope(x, t))

    def chosen(self, *, one_file: bool) -> tuple[tuple[str, ...], dict[str, str]]:
        """Feature columns in the first table's order; and those left out -> why. one_file: of all recordings."""
        numeric = {n: c for n, c in self._columns.items() if n not in self._own and 2 * c.n_numeric >= c.n_tables}
        why = {name: self._why_not(name, column, one_file) for name, column in numeric.items()}
        return tuple(n for n, w in why.items() if w is None), {n: w for n, w in why.items() if w is not None}

    def _why_not(self, name: str, column: _Column, one_file: bool) -> str | None:
        plain, judged = name.strip().lower(), column.n_rows >= MIN_ROWS
        if plain in self._reserved:
            return self._reserved[plain]
        if name in OPENFACE_COLUMNS and set(OPENFACE_COLUMNS) - {"face_id"} <= self._columns.keys():
            return OPENFACE
        if COUNTER_NAMES.fullmatch(plain) or (judged and column.counts) or (one_file and column.counts_whole):
            return COUNTER
        slopes = [s for s in column.slopes if s is not None]
        is_clock = judged and len(slopes) == len(column.slopes) and max(slopes) <= 1.01 * min(slopes)
        if TIME_NAMES.fullmatch(plain) or is_clock:
            return TIME
        return NOT_EVERYWHERE if column.n_tables < self._n_tables else None


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
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        texts.append(f"{', '.join(names[:_SHOWN])}{more} ({why})")
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
    """Pearson's r of a label with each of D columns, updated in blocks (Chan, Golub & LeVeque 1979)."""

    def __init__(self) -> None:
        self.n = 0
        self._mean = self._products = self._squares = np.zeros(1)  # of the label and every column

    def add(self, x: Floats) -> None:
        """(n, 1 + D) rows: the label, then the columns."""
        if not len(x):
            return
        mean, total = x.mean(axis=0), self.n + len(x)
        x = x - mean
        step, weight = mean - self._mean, self.n * len(x) / total
        self._products = self._products + x[:, 0] @ x + step[0] * step * weight
        self._squares = self._squares + np.einsum("nd,nd->d", x, x) + step**2 * weight
        self._mean = self._mean + step * (len(x) / total)
        self.n = total

    @property
    def r(self) -> Floats:
        """(D,), 0 for a constant column."""
        scale = np.sqrt(self._squares[0] * self._squares)
        return np.where(scale > 0, self._products / np.where(scale > 0, scale, 1), 0)[1:]
