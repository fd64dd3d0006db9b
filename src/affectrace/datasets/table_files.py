"""Table files as columns, and rows as values on a clock: CSV, TSV, Parquet, NPZ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from affectrace.datasets.manifest import Problem
from affectrace.datasets.table_schema import Entry, TableSource
from affectrace.errors import FormatError
from affectrace.timeline import Timeline

SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".npz")
_USUAL_STEPS = 3.0  # a step longer than so many usual ones is a gap

Columns = Mapping[str, NDArray[Any]]


def read_columns(path: Path, decimal: str = ".") -> dict[str, NDArray[Any]]:
    """Columns of a table by name, texts as objects; a two-dimensional NPZ array `x` gives x_0, x_1, ...

    Raises:
        FormatError: missing, another kind of file, or unreadable.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise FormatError(f"'{suffix}' is no kind of table", where=path, hint=f"known: {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FormatError("no such table", where=path, hint="check the paths in the description")
    try:
        if suffix == ".npz":
            return _npz(path)
        import pandas as pd

        if suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(
                path, sep=_separator(path), decimal=decimal, skipinitialspace=True, encoding="utf-8-sig"
            )
    except (ValueError, OSError, KeyError, EOFError, BadZipFile) as error:  # parsing errors are ValueErrors
        text = " ".join(str(error).split())
        raise FormatError(f"is no table that can be read ({text})", where=path, hint="open it and look") from None
    return {str(name): frame[name].to_numpy() for name in frame.columns}


def _separator(path: Path) -> str:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        head = file.readline()
    return max((",", "\t", ";", " "), key=lambda s: (head.count(s), s == ","))


def _npz(path: Path) -> dict[str, NDArray[Any]]:
    columns: dict[str, NDArray[Any]] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            array = arrays[name]
            if array.ndim == 2:
                columns |= {f"{name}_{i}": array[:, i] for i in range(array.shape[1])}
            elif array.ndim == 1:
                columns[name] = array
            else:
                raise ValueError(f"array '{name}' has {array.ndim} dimensions")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"arrays differ in length: {lengths}")
    return columns


def column(columns: Columns, name: str, path: Path) -> NDArray[Any]:
    """A column by name (raises FormatError naming those there are)."""
    if name not in columns:
        raise FormatError(f"has no column '{name}'", where=path, hint=f"it has {', '.join(columns)}")
    return columns[name]


def numbers(values: NDArray[Any]) -> NDArray[np.float64]:
    """A column as float64; what is no number is NaN."""
    if values.dtype.kind in "fiub":
        return values.astype(np.float64)
    out = np.full(len(values), np.nan)
    for i, value in enumerate(values.tolist()):
        try:
            out[i] = float(value)
        except (TypeError, ValueError):
            continue
    return out


def text_of(value: Any) -> str:
    """A cell as text: whole numbers without a point, nothing as ""."""
    if isinstance(value, float):
        return "" if math.isnan(value) else str(int(value)) if value.is_integer() else str(value)
    return "" if value is None else str(value)


@dataclass(frozen=True, eq=False)
class TimedRows:
    """Rows of one recording on its clock.

    timeline: T rows. index: (T,) row of the table, -1 where a gap was put in. ends: (T,) seconds, or None.
    problems: what was odd.
    """

    timeline: Timeline
    index: NDArray[np.int64]
    ends: NDArray[np.float64] | None
    problems: tuple[Problem, ...]


def rows_of(source: TableSource, columns: Columns, entry: Entry, path: Path, shown: str) -> TimedRows:
    """Which rows are a recording's, and when.

    shown: how problems call the file.

    Raises:
        FormatError: a column is missing, or no row has a time.
    """
    n = len(next(iter(columns.values()))) if columns else 0
    mine = np.arange(n)
    if source.recording is not None:
        owners = np.array([text_of(v) for v in column(columns, source.recording, path).tolist()], dtype=object)
        mine = np.flatnonzero((owners == entry.id) | (owners == entry.columns.get(source.recording, entry.id)))
    if source.rate_hz is not None:
        return _at_rate(source, entry, mine)
    return _at_times(source, columns, entry, mine, path, shown)


def _at_rate(source: TableSource, entry: Entry, mine: NDArray[np.int64]) -> TimedRows:
    rate = source.rate_hz
    assert rate is not None
    whole = Timeline.regular(len(mine), rate, source.start_s)
    if not source.shared:
        return TimedRows(whole, mine, None, ())
    end = whole.end_s if entry.end_s is None else float(entry.end_s)
    rows = whole.frames_between(float(entry.start_s), end)
    first = source.start_s + rows.start / rate - entry.start_s
    return TimedRows(Timeline.regular(rows.stop - rows.start, rate, first), mine[rows], None, ())


def _at_times(
    source: TableSource, columns: Columns, entry: Entry, mine: NDArray[np.int64], path: Path, shown: str
) -> TimedRows:
    assert source.time is not None
    unit, problems = float(source.unit_s), list[Problem]()
    times = numbers(column(columns, source.time, path))[mine] * unit
    ends = None
    if source.end is not None:
        ends = numbers(column(columns, source.end, path))[mine] * unit
    elif source.duration is not None:
        ends = times + numbers(column(columns, source.duration, path))[mine] * unit
    if source.shared:
        stop = np.inf if entry.end_s is None else float(entry.end_s)
        here = (times >= float(entry.start_s)) & (times < stop)
        problems += _count(shown, mine[~np.isfinite(times)], "rows without a time", "left out")
        mine, times, ends = mine[here], times[here] - float(entry.start_s), None if ends is None else ends[here]
        ends = None if ends is None else ends - float(entry.start_s)
    keep = np.isfinite(times) & (True if ends is None else np.isfinite(ends))
    if not source.shared:
        problems += _count(shown, mine[~keep], "rows without a time", "left out")
    mine, times, ends = mine[keep], times[keep], None if ends is None else ends[keep]
    order = np.argsort(times, kind="stable")
    if (np.diff(times) < 0).any():
        problems += _count(shown, mine[1:][np.diff(times) < 0], "rows that go back in time", "sorted by time")
    mine, times, ends = mine[order], times[order], None if ends is None else ends[order]
    repeated = np.concatenate([[False], np.diff(np.rint(times * 1e9)) <= 0]) if len(times) else np.zeros(0, bool)
    problems += _count(shown, mine[repeated], "rows at the same time as the one before", "left out")
    mine, times, ends = mine[~repeated], times[~repeated], None if ends is None else ends[~repeated]
    if ends is not None:
        return TimedRows(Timeline.from_times(times), mine, ends, tuple(problems))
    return _with_gaps(source, mine, times, tuple(problems), shown)


def _with_gaps(
    source: TableSource, mine: NDArray[np.int64], times: NDArray[np.float64], problems: tuple[Problem, ...], shown: str
) -> TimedRows:
    """A row lasts until the next one; where that is too long a row without data is put in after a usual step."""
    if len(times) < 3:
        return TimedRows(Timeline.from_times(times), mine, None, problems)
    steps = np.diff(times)
    usual = float(np.median(steps))
    longest = _USUAL_STEPS * usual if source.max_gap_s is None else source.max_gap_s
    after = np.flatnonzero(steps > max(longest, usual * 1.001))
    problems += tuple(
        _count(shown, mine[after], f"gaps longer than {max(longest, usual):g} s between rows", "not valid there")
    )
    places = after + 1
    return TimedRows(
        Timeline.from_times(np.insert(times, places, times[after] + usual), end_s=float(times[-1]) + usual),
        np.insert(mine, places, -1),
        None,
        problems,
    )


def _count(shown: str, rows: NDArray[np.int64], what: str, done: str) -> list[Problem]:
    """One problem for all of a kind; a row's line is its place after the header."""
    return [Problem(shown, int(rows.min()) + 2, f"{len(rows)} {what}", done)] if len(rows) else []


def pick(columns: Columns, wanted: tuple[str, ...], path: Path) -> list[str]:
    """Names of the columns wanted; an NPZ array by its name.

    Raises:
        FormatError: one is missing.
    """
    found: list[str] = []
    for name in wanted:
        parts = [c for c in columns if c.startswith(f"{name}_") and c.removeprefix(f"{name}_").isdecimal()]
        found += [name] if name in columns or not parts else parts
        column(columns, found[-1], path)
    return found
