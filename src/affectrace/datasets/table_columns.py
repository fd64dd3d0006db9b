"""Which columns of a table are features where nobody says so: numbers that are not labels, times or counts of rows.

Decided over all recordings of a table, so that every recording has the same columns. What a description names is taken,
whatever it is. A feature that is nearly a label is found afterwards, by its correlation with the labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affectrace.datasets.table_schema import LabelTable, MarkTable, TableDescription, TableSource
from affectrace.features.align import align
from affectrace.features.base import Features
from affectrace.trace import Trace

LABEL, TIME, COUNT, OWNER = "labels", "time", "counts rows", "whose row it is"
NOT_EVERYWHERE, OPENFACE = "not in every table", "OpenFace's own"
OPENFACE_COLUMNS = ("frame", "face_id", "timestamp", "confidence", "success")
"""The first columns of OpenFace's tables (its wiki, "Output Format"): when a face was found and how surely."""
TIME_NAMES = re.compile(r"(time|timestamp|onset|offset|start|end)([ _]?[(\[]?(s|sec|secs|seconds|ms|us|ns)[)\]]?)?")
COUNT_NAMES = re.compile(r"(frame|index|row)([ _]?(id|no|nr|number))?|unnamed: ?\d+|")
MIN_ROWS = 10
"""Rows of all recordings together from which a column's course says that it counts or keeps time (ours)."""
NEARLY_A_LABEL = 0.99
"""Least |r| with a label, over all recordings, at which a feature is told to be nearly that label (ours)."""
_SHOWN = 8  # columns named of each kind

Floats = NDArray[np.float64]


def reserved(description: TableDescription) -> dict[str, str]:
    """Name of a column that some table of the description uses as label, time or owner (in lower case) -> which."""
    names: dict[str | None, str] = {"valence": LABEL, "arousal": LABEL}  # also where nobody says what the labels are
    for source in description.sources:
        if isinstance(source, TableSource):
            names |= dict.fromkeys((source.time, source.end, source.duration), TIME) | {source.recording: OWNER}
        else:
            names |= dict.fromkeys((source.start, source.end), TIME)
    if description.words is not None:
        names |= dict.fromkeys((description.words.start, description.words.end), TIME)
    if description.raters is not None:
        names |= {description.raters.rater: OWNER}
    for source in description.sources:
        if isinstance(source, LabelTable | MarkTable):
            names |= dict.fromkeys((source.valence, source.arousal), LABEL)
    return {name.strip().lower(): why for name, why in names.items() if name is not None}


@dataclass
class _Course:
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
    """A table's columns, recording by recording; then which are features."""

    def __init__(self, own: Iterable[str], reserved: Mapping[str, str]) -> None:
        """own: the table's own time, end, duration and recording columns, left out without a word."""
        self._own, self._reserved = set(own), dict(reserved)
        self._courses: dict[str, _Course] = {}
        self._tables = 0

    def add(self, columns: Mapping[str, NDArray[Any]], index: NDArray[np.int64], times: Floats) -> None:
        """One recording's rows: where they stand in the table, in order of their times (seconds)."""
        self._tables += 1
        for name, values in columns.items():
            course = self._courses.setdefault(name, _Course())
            course.tables += 1
            if values.dtype.kind not in "fiub":
                continue
            course.numeric += 1
            if self._tables == 1:
                whole = values.astype(np.float64)
                course.counts_whole = len(whole) >= MIN_ROWS and _steps_by_one(whole, np.arange(len(whole)))
            x = values[index].astype(np.float64)
            known = np.isfinite(x)
            x, t, at = x[known], times[known], index[known]
            if len(x) < 3:
                continue
            course.rows += len(x)
            ranks = np.arange(len(x))
            in_file = np.argsort(at)
            course.counts &= _steps_by_one(x, at) or _steps_by_one(x, ranks) or _steps_by_one(x[in_file], ranks)
            slope = _slope(x, t)
            course.keeps_time &= slope is not None
            course.slopes += [] if slope is None else [slope]

    def chosen(self, *, shared: bool) -> tuple[tuple[str, ...], dict[str, str]]:
        """Names of the features, in the first table's order, and what was left out: column -> why.

        shared: all recordings are in one table.
        """
        names, left_out = [], {}
        openface = set(OPENFACE_COLUMNS) - {"face_id"} <= self._courses.keys()
        for name, course in self._courses.items():
            if name in self._own or 2 * course.numeric < course.tables:
                continue
            why = self._why_not(name, course, openface, shared)
            if why is None:
                names.append(name)
            else:
                left_out[name] = why
        return tuple(names), left_out

    def _why_not(self, name: str, course: _Course, openface: bool, shared: bool) -> str | None:
        plain = name.strip().lower()
        if plain in self._reserved:
            return self._reserved[plain]
        if openface and name in OPENFACE_COLUMNS:
            return OPENFACE
        judged = course.rows >= MIN_ROWS
        if COUNT_NAMES.fullmatch(plain) or (judged and course.counts) or (shared and course.counts_whole):
            return COUNT
        if TIME_NAMES.fullmatch(plain) or (judged and course.keeps_time and _alike(course.slopes)):
            return TIME
        return NOT_EVERYWHERE if course.tables < self._tables else None


def _steps_by_one(x: Floats, places: NDArray[np.int64]) -> bool:
    """Whether whole numbers go up by one with every place."""
    return bool(np.isfinite(x).all() and (x == np.rint(x)).all() and (np.diff(x) == np.diff(places)).all())


def _slope(x: Floats, t: Floats) -> float | None:
    """What a column that goes up with time in a straight line, to within half a usual step, gains a second."""
    if not (np.diff(x) > 0).all():
        return None
    slope = float((x[-1] - x[0]) / (t[-1] - t[0]))
    off = np.abs(x - x[0] - slope * (t - t[0])).max()
    return slope if off <= 0.5 * slope * float(np.median(np.diff(t))) else None


def _alike(slopes: list[float]) -> bool:
    return max(slopes) <= 1.01 * min(slopes)


def told(left_out: Mapping[str, str]) -> str:
    """`index (counts rows); valence, arousal (labels)`."""
    of: dict[str, list[str]] = {}
    for name, why in left_out.items():
        of.setdefault(why, []).append(name)
    more = {why: f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "" for why, names in of.items()}
    return "; ".join(f"{', '.join(names[:_SHOWN])}{more[why]} ({why})" for why, names in of.items())


class LabelCorrelations:
    """Correlation of every feature column with valence and arousal, recording by recording; float64, merged by Chan."""

    def __init__(self) -> None:
        self.n = 0
        self._mean: Floats = np.zeros(0)
        self._products: Floats = np.zeros((0, 0))

    def add(self, features: Features, labels: Trace) -> None:
        """One recording; features are averaged over the labels' rows."""
        held = align(features, labels.timeline, "mean")
        both = held.valid & labels.valid.all(axis=1)
        x = np.concatenate([labels.values[both], held.values[both]], axis=1)
        if not len(x):
            return
        if not self.n:
            self._mean, self._products = np.zeros(x.shape[1]), np.zeros((2, x.shape[1]))
            self._squares = np.zeros(x.shape[1])
        mean, total = x.mean(axis=0), self.n + len(x)
        x -= mean
        step, weight = mean - self._mean, self.n * len(x) / total
        self._products += x[:, :2].T @ x + np.outer(step[:2], step) * weight
        self._squares += np.einsum("nd,nd->d", x, x) + step**2 * weight
        self._mean = self._mean + step * (len(x) / total)
        self.n = total

    def near(self) -> list[tuple[int, str, float]]:
        """(column, valence or arousal, r) of those at NEARLY_A_LABEL or beyond, each column once."""
        if self.n < MIN_ROWS:
            return []
        scale = np.sqrt(np.outer(self._squares[:2], self._squares))
        r = np.where(scale > 0, self._products / np.where(scale > 0, scale, 1), 0)[:, 2:]
        best = np.abs(r).argmax(axis=0)
        found = np.flatnonzero(np.abs(r).max(axis=0, initial=0) >= NEARLY_A_LABEL)
        return [(int(d), ("valence", "arousal")[best[d]], float(r[best[d], d])) for d in found]
