"""Table import: features, labels, ratings and words as described by a `TableDescription`.

Written to OUT; empty cells are marked invalid, not filled, and the scale of labels becomes [-1, 1]:

    manifest.json                             recordings
    features/<name>/<id>.safetensors
    labels/<id>.parquet                       traces; without labels the gold standard of the raters
    raters/<rater>/<id>.parquet, agreement.json
    transcripts/<id>.txt
    problems.csv                              everything odd
"""

from __future__ import annotations

import csv
import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from affectrace import config
from affectrace.datasets import manifest as manifests
from affectrace.datasets.catalog import AGREEMENT, RATERS, read_labels
from affectrace.datasets.folds import with_folds
from affectrace.datasets.gold_standard import RaterReport, gold_standard
from affectrace.datasets.manifest import Manifest, Problem
from affectrace.datasets.raters import Panel, shifted
from affectrace.datasets.table_columns import MIN_ROWS, OPENFACE_COLUMNS, DefaultColumns, listed, near_labels
from affectrace.datasets.table_schema import (
    LABEL,
    Entry,
    FeatureTable,
    LabelTable,
    MarkTable,
    Table,
    TableDescription,
    TimedTable,
    reserved,
    slug,
)
from affectrace.errors import FormatError, InputError, listing
from affectrace.features.base import TABLE, ExtractorId, Features
from affectrace.features.store import FEATURES, FeatureStore
from affectrace.media.probe import file_sha256
from affectrace.metrics import DIMENSIONS
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import Recording
from affectrace.timeline import Timeline
from affectrace.trace import NOT_LABELLED, Trace
from affectrace.trace_io import load_pyarrow

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

OUT_OF_SCALE = "outside the scale"
SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".npz")
_GAP_STEPS = 3.0  # a step longer than this many usual ones is a gap
_NANOSECOND = 1e-9  # resolution of times
_MAX_TIME_S = 9e6  # a Timeline in nanoseconds is exact up to here
_WIDE_SCALE = 8  # a scale at least as wide is suspicious where all labels lie between -1 and 1 (ours)
_REPEATED, _FEW_REPEATS = 0.4, 2  # a larger share and number of rows at the time of another is an error (ours)
_OUTSIDE, _FEW_OUTSIDE = 0.1, 2  # a larger share and number of different labels outside the scale is an error (ours)
_MAX_STEPS = 10_000_000  # of marks on one recording
_MAX_COMPRESSION = 500  # of files that unpack to more than a gigabyte


@dataclass(frozen=True, eq=False)
class Imported:
    """Result of an import.

    problems: everything odd. panels: the ratings, one panel per recording. raters: how well they agree. notes: the
    problems with feature columns, as lines to print.
    """

    manifest: Manifest
    problems: tuple[Problem, ...]
    panels: tuple[Panel, ...]
    raters: RaterReport
    notes: tuple[str, ...]


def import_tables(
    description: TableDescription,
    folder: str | Path,
    out: str | Path,
    *,
    n_folds: int = 0,
    progress: Progress = silent,
) -> Imported:
    """Import the tables below `folder` into a data set at `out`, with `n_folds` folds.

    A failed import leaves `out` as it was; a successful one replaces what an earlier import wrote there.

    Raises FormatError (a table is missing, unreadable, or lacks a column), InputError (nothing to import, or fewer
    groups of recordings than folds), OutputError.
    """
    reader, out = TableReader(description, Path(folder)), Path(out)
    entries = reader.entries()
    reader.choose_columns(entries, progress)
    parts = [f"{FEATURES}/{reader.name(source)}" for source in description.features]
    parts += ["labels", RATERS, AGREEMENT, "transcripts", manifests.PROBLEMS_FILE, manifests.FILE_NAME]
    with config.staged_folder(out, parts) as staged:
        made = _import(reader, entries, staged, n_folds, progress)
    return replace(made, manifest=Manifest.load(out))


def _import(reader: TableReader, entries: tuple[Entry, ...], out: Path, n_folds: int, progress: Progress) -> Imported:
    description = reader.description
    store, recordings, n_frames, panels = FeatureStore(out / FEATURES), list[Recording](), dict[str, int](), []

    def save(labels: Trace) -> None:
        labels.save(out / "labels" / f"{labels.recording_id}.parquet")
        n_frames[labels.recording_id] = len(labels)

    for i, entry in enumerate(entries):
        progress(ProgressEvent("importing tables", i, len(entries), "recordings"))
        for source in description.features:
            store.put(reader.features(source, entry), entry.id, source_sha256=reader.sha256(reader.path(source, entry)))
        if (labels := reader.labels(entry)) is not None:
            save(labels)
        if description.raters is not None:
            panels.append(reader.panel(entry))
        words, transcript = reader.words(entry), out / "transcripts" / f"{entry.id}.txt"
        if words:
            config.write_atomic(transcript, words)
        has_labels = labels is not None or (description.labels is None and description.raters is not None)
        recordings.append(
            Recording(
                entry.id,
                labels=out / "labels" / f"{entry.id}.parquet" if has_labels else None,
                transcript=transcript if words else None,
                subject=reader.subject(entry),
                split=entry.split,
                fold=entry.fold,
                columns=entry.columns,
            )
        )
    if description.labels is None and panels:
        for gold in gold_standard(panels, description.gold):
            save(gold)
    raters = RaterReport.of(panels, description.gold)
    if panels:
        _write_ratings(panels, raters, description, out)
    synthetic = manifests.is_generated(e.id for e in entries)
    manifest = Manifest(description.name, out, tuple(recordings), manifests.TRACES, n_frames, synthetic)
    if description.subject is not None and all(r.subject is None for r in recordings):
        what = f"no table has a column '{description.subject}' of subjects"
        raise FormatError(what, where=reader.folder, hint="correct `subject`, or leave it out")
    manifest = with_folds(manifest, n_folds) if n_folds else manifest
    reader.report_near_labels(manifest, store)
    manifests.write_problems(reader.problems, out / manifests.PROBLEMS_FILE)
    manifest.save(out / manifests.FILE_NAME)
    progress(ProgressEvent("importing tables", len(entries), len(entries), "recordings"))
    return Imported(manifest, tuple(reader.problems), tuple(panels), raters, tuple(reader.notes))


def _write_ratings(panels: Iterable[Panel], raters: RaterReport, description: TableDescription, out: Path) -> None:
    for panel in panels:
        for k, rater in enumerate(panel.raters):
            trace = _trace(panel.recording_id, panel.timeline, panel.values[:, k], f"rater {rater}")
            trace.save(out / RATERS / slug(rater) / f"{panel.recording_id}.parquet")
    report = {"gold": asdict(description.gold), **raters.to_dict()}
    config.write_atomic(out / AGREEMENT, json.dumps(report, indent=1, allow_nan=False) + "\n")


def _trace(name: str, clock: Timeline, values: Floats, source: str) -> Trace:
    """Trace of (T, 2) values; NaN is not labelled, in one dimension or both."""
    valid = np.isfinite(values)
    return Trace(name, clock, values[:, 0], values[:, 1], valid, np.where(valid.any(axis=1), "", NOT_LABELLED), source)


# ---- files


def read_table(path: Path, decimal: str = ".") -> pd.DataFrame:
    """A table file (raises FormatError). A two-dimensional NPZ array `x` becomes columns x_0, x_1, ..."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise FormatError(f"'{suffix}' is not a table format", where=path, hint=f"known: {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FormatError("no such table", where=path, hint="check the paths in the description")
    try:
        read = {".npz": _read_npz, ".parquet": _read_parquet}.get(suffix)
        frame = _read_text(path, decimal) if read is None else read(path)
    except (ValueError, OSError, KeyError, EOFError, BadZipFile) as error:
        text = " ".join(str(error).split())
        raise FormatError(f"cannot be read as a table ({text})", where=path, hint="check its contents") from None
    frame.columns = frame.columns.map(str)
    if not frame.columns.is_unique:
        twice = frame.columns[frame.columns.duplicated()][0]
        raise FormatError(f"two columns are called '{twice}'", where=path, hint="rename one of them")
    return frame


def _read_text(path: Path, decimal: str) -> pd.DataFrame:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        head = file.readline()
    separator = max((",", "\t", ";", " "), key=lambda s: (head.count(s), s == ","))
    names = next(csv.reader([head], delimiter=separator, skipinitialspace=True), [])
    if twice := [name for i, name in enumerate(names) if name and name in names[:i]]:
        raise FormatError(f"line 1: two columns are called '{twice[0]}'", where=path, hint="rename one of them")
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # rows with more cells than the header
        try:
            return pd.read_csv(
                path, sep=separator, decimal=decimal, skipinitialspace=True, encoding="utf-8-sig", index_col=False
            )
        except UnicodeDecodeError:
            with path.open("rb") as raw:
                line = next(i for i, text in enumerate(raw, 1) if "\ufffd" in text.decode(errors="replace"))
            hint = "save it as UTF-8 (in a spreadsheet: CSV UTF-8)"
            raise FormatError(f"line {line} is not UTF-8", where=path, hint=hint) from None
        except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
            with path.open(encoding="utf-8-sig", newline="") as file:
                rows = csv.reader(file, delimiter=separator, skipinitialspace=True)
                longer = ((rows.line_num, len(row)) for row in rows if len(row) > len(names))
                line, n = next(longer, (0, 0))
            if not line:
                raise ValueError(error) from None
            what = f"line {line} has {n} cells, the header {len(names)}"
            hint = f"quote cells that contain '{separator}', or separate the columns by another sign"
            raise FormatError(what, where=path, hint=hint) from None


def _check_size(path: Path, n_bytes: int) -> None:
    """Refuse a small file that unpacks to gigabytes."""
    if n_bytes > max(2**30, _MAX_COMPRESSION * path.stat().st_size):
        raise ValueError(f"it would take {n_bytes / 2**30:.0f} GB of memory")


def _read_parquet(path: Path) -> pd.DataFrame:
    about = load_pyarrow().parquet.read_metadata(path)
    _check_size(path, 8 * about.num_rows * about.num_columns)
    return pd.read_parquet(path).reset_index(drop=True)  # rows are addressed by position


def _read_npz(path: Path) -> pd.DataFrame:
    with ZipFile(path) as packed:
        _check_size(path, sum(part.file_size for part in packed.infolist()))
    columns: dict[str, NDArray[Any]] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name, array in arrays.items():
            if array.ndim not in (1, 2):
                raise ValueError(f"array '{name}' has {array.ndim} dimensions")
            columns |= {name: array} if array.ndim == 1 else {f"{name}_{i}": x for i, x in enumerate(array.T)}
    return pd.DataFrame(columns)


class TableFile:
    """A table in memory, its columns by name."""

    def __init__(self, path: Path, decimal: str = ".") -> None:
        self.path, self.frame = path, read_table(path, decimal)
        self.numbers = cache(self._numbers)
        self.texts = cache(self._texts)
        self.rows_by_text = cache(self._rows_by_text)

    def __len__(self) -> int:
        return len(self.frame)

    def line(self, rows: Iterable[int]) -> str:
        """The line of the first of some rows, after the header."""
        return f"line {min(rows) + 2}"

    def check_decimals(self, name: str) -> None:
        """Refuse a column of numbers with decimal commas that were read as text (raises FormatError)."""
        cells = self.frame[name].dropna()
        if cells.dtype.kind not in "iufb" and len(cells):
            texts = cells.astype(str)
            commas = texts.str.fullmatch(r"\s*[-+]?\d*,\d+\s*")
            if 2 * commas.sum() > len(commas):
                at = commas.index[commas]
                raise FormatError(
                    f"{self.line(at)}: {name} is '{texts[at[0]]}', with a decimal comma",
                    where=self.path,
                    hint='set "decimal": "," in the description of the table, or --decimal=,',
                )

    def column(self, name: str) -> pd.Series:
        """A column as read (raises FormatError)."""
        if name not in self.frame:
            raise FormatError(f"has no column '{name}'", where=self.path, hint=f"it has {', '.join(self.frame)}")
        return self.frame[name]

    def _numbers(self, name: str) -> Floats:
        """A column as float64, NaN for what is not a number."""
        found = numbers(self.column(name))
        self.check_decimals(name)
        return found

    def _texts(self, name: str) -> pd.Series:
        """A column as text: whole numbers without a decimal point, empty cells as ""."""

        def text(value: object) -> str:
            return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

        return self.column(name).astype(object).map(text, na_action="ignore").fillna("")

    def _rows_by_text(self, name: str) -> dict[str, Ints]:
        """Text in a column -> rows with it: one pass for all recordings of a table."""
        texts = self.texts(name)
        return dict(pd.Series(range(len(texts))).groupby(texts).indices)


def numbers(values: pd.Series) -> Floats:
    """Values as float64, NaN for what is not a number."""
    try:
        found = pd.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    except TypeError:  # lists in cells
        found = np.full(len(values), np.nan)
    return np.full(len(values), np.nan) if values.dtype.kind in "mM" else found


# ---- recordings


@dataclass(frozen=True, eq=False)
class RecordingRows:
    """Rows of one recording in a table.

    timeline: T rows. index: (T,) positions in the table, -1 for a row inserted into a gap. ends: (T,) seconds; None:
    each row lasts until the next one.
    """

    timeline: Timeline
    index: Ints
    ends: Floats | None = None


class TableReader:
    """Reads the tables of a description; `problems` and `notes` (see Imported) accumulate."""

    def __init__(self, description: TableDescription, folder: Path) -> None:
        self.description, self.folder = description, folder
        self.problems: dict[Problem, None] = {}
        self.notes: list[str] = []
        self._columns: dict[str, tuple[str, ...]] = {}  # modality -> feature columns
        raters = () if description.raters is None else description.raters.raters
        # enough for the tables that several recordings share; those of one recording are dropped
        self._open = lru_cache(len(description.ratings_and_features) + len(raters) + 1)(TableFile)
        self.sha256 = cache(file_sha256)

    def _problem(self, path: Path, what: str, done: str, line: int | None = None) -> None:
        """Note a problem, once: one table may serve many recordings."""
        self.problems[Problem(manifests.shown(path, self.folder), line, what, done)] = None

    def _column_problem(self, source: FeatureTable, what: str, done: str, *, attention: bool = True) -> None:
        """Note a problem with feature columns, which is also printed."""
        self.problems[Problem(source.path, None, f"{source.modality}: {what}", done, attention)] = None
        self.notes.append(f"{source.modality}: {what}: {done}")

    def entries(self) -> tuple[Entry, ...]:
        """The recordings of the description, or those found in its tables; all their files but labels exist."""
        found = self.description.recordings or tuple(Entry(name) for name in self._found())
        if not found:
            hint = "put {id} into a path, or list recordings"
            raise InputError("no recordings found", where=self.description.name, hint=hint)
        for entry in found:
            Recording(entry.id)  # refuses what cannot be an id
        paths = dict.fromkeys(path for entry in found for path in self._required(entry))
        if missing := [manifests.shown(p, self.folder) for p in paths if not p.is_file()]:
            raise FormatError(
                f"missing tables ({len(missing)}): {listing(missing)}",
                where=self.folder,
                hint="check the paths in the description, or leave these recordings out",
            )
        return found

    def _found(self) -> Iterable[str]:
        raters = () if self.description.raters is None else self.description.raters.raters
        sources = [s for s in self.description.ratings_and_features if isinstance(s, TimedTable)]
        for source in sources:
            if "{id}" in source.path:
                return _ids(self.folder, source.path.replace("{rater}", "".join(raters[:1])))
        for source in sources:
            if source.recording is not None:
                names = self._open(self.folder / source.path, source.decimal).texts(source.recording)
                return [name for name in names.unique() if name]
        return ()

    def _required(self, entry: Entry) -> Iterator[Path]:
        words, raters = self.description.words, self.description.raters
        yield from (self.path(source, entry) for source in self.description.features)
        if words is not None:
            yield self.path(words, entry)
        if raters is not None:
            yield from (self.path(raters.source, entry, rater) for rater in raters.raters or ("",))

    def path(self, source: Table, entry: Entry, rater: str = "") -> Path:
        """The file of a table for a recording (and rater)."""
        text = source.path
        for name, value in {**entry.columns, "id": entry.id, "rater": rater}.items():
            text = text.replace(f"{{{name}}}", value)
        return self.folder / text

    def subject(self, entry: Entry) -> str | None:
        """The subject of a recording, as listed or from the column of subjects (raises FormatError: several)."""
        name = self.description.subject
        if name is None or entry.subject is not None:
            return entry.subject
        for source in self.description.ratings_and_features:
            if not isinstance(source, TimedTable) or not (path := self.path(source, entry)).is_file():
                continue
            table = self._table(source, entry)
            texts = table.texts(name).iloc[_rows_of(source, entry, table)] if name in table.frame else pd.Series()
            found = [text for text in texts.unique() if text]
            if len(found) > 1:
                line = table.line(texts.index[texts == found[1]])
                what = f"{line}: {entry.id} has the subjects {listing(found)}"
                raise FormatError(what, where=path, hint="a recording has one subject; name another column")
            if found:
                return str(found[0])
        return None

    def _table(self, source: Table, entry: Entry, rater: str = "") -> TableFile:
        return self._open(self.path(source, entry, rater), source.decimal)

    # ---- rows on a clock

    def rows(self, source: TimedTable, entry: Entry, table: TableFile, index: Ints | None = None) -> RecordingRows:
        """A recording's rows (index: some of them) and their times (raises FormatError)."""
        index = _rows_of(source, entry, table) if index is None else index
        try:
            if source.rate_hz is not None:
                return _at_rate(source, source.rate_hz, entry, index)
            if source.time is None:
                return self._whole(entry, table, index)
            return self._at_times(source, entry, table, index)
        except FormatError:
            raise
        except (InputError, OverflowError) as error:
            hint = "check rate_hz, start_s and unit_s in the description"
            raise FormatError(f"times of rows cannot be represented ({error})", where=table.path, hint=hint) from None

    def _whole(self, entry: Entry, table: TableFile, index: Ints) -> RecordingRows:
        """The row of a recording, which lasts as long as its features."""
        if len(index) > 1:
            what = f"line {index[1] + 2}: {entry.id} has {len(index)} rows, without times"
            raise FormatError(
                what, where=table.path, hint="keep one row for each recording, or name the column of times"
            )
        if entry.end_s is not None:
            return RecordingRows(Timeline.regular(1, 1 / (entry.end_s - entry.start_s)), index)
        ends = [0.0]
        for source in self.description.features:
            rows = self.rows(source, entry, self._table(source, entry))
            ends += [rows.timeline.end_s if rows.ends is None else float(rows.ends.max(initial=0))]
        if max(ends) <= 0:
            hint = "list it in `recordings` with end_s, or give tables of features"
            raise FormatError(f"how long {entry.id} lasts is unknown", where=table.path, hint=hint)
        return RecordingRows(Timeline.from_times([0.0], end_s=max(ends)), index)

    def _until_ends(self, entry: Entry, table: TableFile, rows: RecordingRows) -> RecordingRows:
        """Rows that end at their own ends: an empty row fills each pause, and a row that overlaps the next is cut."""
        if rows.ends is None or not len(rows.index):
            return rows
        starts, index = rows.timeline.times, rows.index
        following = np.append(starts[1:], math.inf)
        overlap = np.flatnonzero(rows.ends > following + _NANOSECOND)
        if overlap.size:
            what = f"rows of {entry.id} that overlap the next one: {overlap.size}"
            self._problem(table.path, what, "end where that begins", int(index[overlap].min()) + 2)
        ends = np.minimum(rows.ends, following)
        pause = np.flatnonzero(ends[:-1] < following[:-1] - _NANOSECOND)
        clock = Timeline.from_times(np.insert(starts, pause + 1, ends[pause]), end_s=float(ends[-1]))
        return RecordingRows(clock, np.insert(index, pause + 1, -1))

    def _at_times(self, source: TimedTable, entry: Entry, table: TableFile, index: Ints) -> RecordingRows:
        def seconds(name: str) -> Floats:
            return table.numbers(name)[index] * float(source.unit_s)

        def note(rows: pd.DataFrame, what: str, done: str) -> None:
            if len(rows):  # line: of the first such row, after the header
                self._problem(table.path, f"{what}: {len(rows)}", done, int(rows.index.min()) + 2)

        assert source.time is not None
        times, (start, stop) = seconds(source.time), _span(source, entry)
        if source.shared:  # before anything else: a table may hold thousands of recordings
            outside = (times < start) | (times >= stop)
            times, index = times[~outside] - start, index[~outside]
        rows = pd.DataFrame({"start": times}, index=index)
        has_ends = source.end is not None or source.duration is not None
        if source.end is not None:
            rows["end"] = seconds(source.end) - start
        elif source.duration is not None:
            rows["end"] = rows.start + seconds(source.duration)
        timed = rows[np.isfinite(rows).all(axis=1)]
        if len(rows) and timed.empty:
            first = table.column(source.time).iloc[index[0]]
            hint = "give seconds, or numbers in units of unit_s, counted from the start of the recording"
            what = f"{table.line(index)}: no row has a time ({source.time} is {first!r})"
            raise FormatError(what, where=table.path, hint=hint)
        note(rows.drop(timed.index), "rows without a time", "left out")
        if has_ends:
            backwards = timed.end <= timed.start
            note(timed[backwards], "rows that end before they begin", "left out")
            timed = timed[~backwards]
        farthest = float(timed.start.abs().max())
        if farthest > _MAX_TIME_S:
            raise InputError(f"{farthest:g} s is too far from zero")
        steps = timed.start.diff()
        back = steps[steps < 0]
        if len(back) and -back.min() > _GAP_STEPS * steps[steps > 0].median():
            row = int(back.idxmin())
            before, after = timed.start.loc[:row].iloc[-2:]
            what = f"{table.line([row])}: time goes back from {before:g} to {after:g} s"
            hint = "sort the rows by time; or, if these are several recordings, split them or name their column"
            raise FormatError(what, where=table.path, hint=f"{hint} (recording)")
        note(timed.loc[back.index], "rows that go back in time", "sorted by time")
        ordered = timed.sort_values("start", kind="stable")
        repeated = (ordered.start * 1e9).round().diff() <= 0
        if repeated.sum() > max(_FEW_REPEATS, _REPEATED * len(ordered)) and not _is_openface(table.frame):
            what = f"{table.line(ordered.index[repeated])}: {int(repeated.sum())} rows repeat the time of another"
            hint = "two recordings or raters in one table? split it, or name the column that tells them apart"
            raise FormatError(what, where=table.path, hint=hint)
        note(ordered[repeated], "rows at the same time as the one before", "left out")
        rows = ordered[~repeated]
        times, index = rows.start.to_numpy(), rows.index.to_numpy()
        if has_ends or len(times) < 3:
            return RecordingRows(Timeline.from_times(times), index, rows.end.to_numpy() if has_ends else None)
        # a row lasts until the next one; in a gap an empty row begins a usual step after the last one
        steps = np.diff(times)
        usual = float(np.median(steps))
        longest = max(_GAP_STEPS * usual if source.max_gap_s is None else source.max_gap_s, usual * 1.001)
        before = np.flatnonzero(steps > longest)
        note(rows.iloc[before], f"gaps longer than {longest:g} s between rows", "not valid there")
        filled = np.insert(times, before + 1, times[before] + usual)
        clock = Timeline.from_times(filled, end_s=float(times[-1]) + usual)
        return RecordingRows(clock, np.insert(index, before + 1, -1))

    def _values(self, source: TimedTable, table: TableFile, name: str, rows: RecordingRows) -> Floats:
        """(T,) of a column, NaN for empty cells, `missing` numbers and text."""
        known = rows.index >= 0
        cells = table.column(name).iloc[rows.index[known]]
        found = numbers(cells)
        text = cells[np.isnan(found)].map(lambda v: isinstance(v, str) and bool(v.strip()))
        if text.any():
            table.check_decimals(name)
            first = int(text.index[text.argmax()])
            what = f"values of {name} that are not numbers: {int(text.sum())} (first: {cells[first]!r})"
            self._problem(table.path, what, "not valid", first + 2)
        values = np.full(len(known), np.nan)
        values[known] = np.where(np.isin(found, source.missing), np.nan, found)
        return values

    # ---- features

    def choose_columns(self, entries: tuple[Entry, ...], progress: Progress = silent) -> None:
        """Choose the columns of feature tables for which the description names none (raises InputError: none left)."""
        names = reserved(self.description)
        for source in self.description.features:
            if source.columns:
                if labels := self._named_labels(source):
                    done = "kept; scores of a model that reads them mean nothing"
                    self._column_problem(source, f"{', '.join(labels)} named as features, but they are labels", done)
                continue
            own = [getattr(source, n) for n in ("time", "end", "duration", "recording", "valid") if getattr(source, n)]
            columns = DefaultColumns(own, names)
            for i, entry in enumerate(entries):
                progress(ProgressEvent("reading columns", i, len(entries), "recordings"))
                table = self._table(source, entry)
                for name in table.frame:
                    if name not in own:
                        table.check_decimals(name)
                rows = self.rows(source, entry, table)
                known = rows.index >= 0
                columns.add(table.frame, rows.index[known], rows.timeline.times[known])
            chosen, left_out = columns.chosen(one_file="{id}" not in source.path)
            if left_out:
                done = "not used as features unless `columns` in a description names them"
                self._column_problem(source, listed(left_out), done, attention=False)
            if not chosen:
                what = "has no numeric column besides times, labels and row counters"
                raise InputError(what, where=self.path(source, entries[0]), hint="name the columns")
            self._columns[source.modality] = chosen

    def _named_labels(self, source: FeatureTable) -> list[str]:
        """Feature columns named in the description that are labels in the same file."""
        labels, names = self.description.labels, reserved(self.description)
        same_file = labels is not None and labels.path == source.path
        return sorted(c for c in source.columns if same_file and names.get(c.strip().lower()) == LABEL)

    def report_near_labels(self, manifest: Manifest, store: FeatureStore) -> None:
        """Warn of feature columns that nearly equal a label."""
        labelled = [r for r in manifest if r.labels is not None]
        for source in self.description.features:
            tables = [store.get(self.name(source), r.id) for r in labelled]
            pairs = ((t.features(), read_labels(manifest, r)) for t, r in zip(tables, labelled, strict=True))
            for d, (dimension, r, n) in near_labels(pairs).items():
                name = tables[0].extractor.columns[d]
                if name not in self._named_labels(source):
                    what = f"{name} nearly equals the labels' {dimension} (r {r:.3f}, {n} rows)"
                    self._column_problem(source, what, "kept; leave it out if it was derived from the labels")

    def name(self, source: FeatureTable) -> str:
        """Name of the features of a table."""
        return slug(f"{self.description.name}-{source.modality}")

    def features(self, source: FeatureTable, entry: Entry) -> Features:
        """One modality of one recording."""
        table = self._table(source, entry)
        rows = self.rows(source, entry, table)
        names = _expanded(table, source.columns or self._columns[source.modality])
        values = np.stack([self._values(source, table, name, rows) for name in names], axis=1)
        marked = source.valid or ("success" if _is_openface(table.frame) else None)
        there = rows.index >= 0
        filled = np.asarray(np.isfinite(values).all(axis=1))
        valid = filled if marked is None else filled & ~(self._values(source, table, marked, rows) == 0)
        if not len(valid):
            self._problem(table.path, f"no row of {entry.id}", "not valid")
        for bad, what in ((there & ~filled, "an empty cell"), (there & filled & ~valid, f"{marked} 0")):
            if bad.any():
                what = f"rows of {entry.id} with {what}: {int(bad.sum())}"
                self._problem(table.path, what, "not valid", int(rows.index[bad].min()) + 2)
        extractor = ExtractorId(self.name(source), "", {TABLE: config.to_dict(source)}, tuple(names))
        known = np.where(valid[:, None], values, 0).astype(np.float32)
        return Features(source.modality, rows.timeline, known, valid, extractor, rows.ends)

    # ---- labels and ratings

    def labels(self, entry: Entry) -> Trace | None:
        """Labels of a recording; None without a table of them."""
        source = self.description.labels
        if source is None:
            return None
        path = self.path(source, entry)
        table = self._table(source, entry) if path.is_file() else None
        if table is None or not len(_rows_of(source, entry, table)):
            self._problem(path, f"no labels of {entry.id}", "kept without labels")
            return None
        delay_s = 0.0 if self.description.raters else self.description.gold.delay_s
        return self._labels(source, entry, table, delay_s=delay_s)

    def _labels(
        self, source: LabelTable, entry: Entry, table: TableFile, index: Ints | None = None, delay_s: float = 0.0
    ) -> Trace:
        rows = self._until_ends(entry, table, self.rows(source, entry, table, index))
        values = np.full((len(rows.index), 2), np.nan)
        for d, name in self._dimensions(source, table):
            values[:, d] = self._values(source, table, name, rows)
            self._check_scale(source, entry, table, name, values[:, d], rows.index)
        scaled = (values - (source.low + source.high) / 2) / ((source.high - source.low) / 2)
        outside = np.abs(scaled) > 1
        if delay_s:
            scaled = shifted(rows.timeline, scaled, delay_s)
        trace = _trace(entry.id, rows.timeline, np.where(np.abs(scaled) > 1, np.nan, scaled), "labels")
        if not outside.any():
            return trace
        any_outside = outside.any(axis=1)
        what = f"labels of {entry.id} outside {source.low:g} to {source.high:g}: {int(any_outside.sum())}"
        self._problem(table.path, what, "not valid", int(rows.index[any_outside].min()) + 2)
        return replace(trace, reason=np.where(any_outside & (trace.reason != ""), OUT_OF_SCALE, trace.reason))

    def _check_scale(
        self, source: LabelTable, entry: Entry, table: TableFile, name: str, values: Floats, index: Ints
    ) -> None:
        """Refuse a column of another scale than stated (raises FormatError), or note that it may have another."""
        known, scale = values[np.isfinite(values)], f"{source.low:g} to {source.high:g}"
        outside = (values < source.low) | (values > source.high)
        if outside.sum() > _OUTSIDE * len(known) and len(np.unique(values[outside])) > _FEW_OUTSIDE:
            first = int(np.flatnonzero(outside)[0])
            what = f"line {index[first] + 2}: {name} is {values[first]:g}, outside {scale}, as are {outside.sum()} of "
            hint = "give the ends of the scale (low, high); rows of another scale need a table of their own"
            raise FormatError(f"{what}{len(known)} labels of {entry.id}", where=table.path, hint=hint)
        unit = np.abs(known) <= 1
        if source.high - source.low >= _WIDE_SCALE and len(known) >= MIN_ROWS and unit.all() and (known % 1).any():
            what = f"{name} of {entry.id} lies between {known.min():g} and {known.max():g}, the scale is {scale}"
            done = "kept; rescale these rows if they have another scale"
            problem = Problem(
                manifests.shown(table.path, self.folder), int(index[index >= 0].min()) + 2, what, done, True
            )
            self.problems[problem] = None

    def _dimensions(self, source: LabelTable | MarkTable, table: TableFile) -> list[tuple[int, str]]:
        """(0, valence column), (1, arousal column); one of them may be absent if it has its default name."""
        names = (source.valence, source.arousal)
        optional = any(name in table.frame for name in names)
        for name in (n for n in names if n is not None):
            if name not in DIMENSIONS or not optional:
                table.column(name)  # has to be there
            elif name not in table.frame:
                self._problem(table.path, f"no column {name}", "not labelled")
        return [(d, name) for d, name in enumerate(names) if name is not None and name in table.frame]

    def panel(self, entry: Entry) -> Panel:
        """All ratings of one recording, on the clock of the first rater."""
        raters = self.description.raters
        assert raters is not None
        source = raters.source
        if isinstance(source, MarkTable):
            return Panel.of({r: self._marked(source, entry, r) for r in raters.raters})
        if raters.rater is None:
            return Panel.of({r: self._labels(source, entry, self._table(source, entry, r)) for r in raters.raters})
        table = self._table(source, entry)
        index = _rows_of(source, entry, table)
        who = table.texts(raters.rater).to_numpy()[index]
        traces = {r: self._labels(source, entry, table, index[who == r]) for r in dict.fromkeys(who.tolist())}
        return Panel.of({r: trace for r, trace in traces.items() if len(trace)} or traces)

    def _marked(self, source: MarkTable, entry: Entry, rater: str) -> Trace:
        """Marked spans of one rater as one value per step of a clock."""
        table = self._table(source, entry, rater)
        start, end = table.numbers(source.start), table.numbers(source.end)
        usable = np.isfinite(start) & np.isfinite(end) & (end >= start)
        if not usable.all():
            line = int(np.argmin(usable)) + 2
            self._problem(table.path, f"marks without a span: {int((~usable).sum())}", "left out", line)
        clock, first_s = _steps(source, entry, table.path, float(end[usable].max(initial=0.0)))
        values = np.full((len(clock), 2), np.nan)
        for d, name in self._dimensions(source, table):
            marks = table.texts(name).str.strip()
            if unknown := sorted(set(marks) - set(source.values) - {""}):
                self._problem(table.path, f"unknown marks in {name}: {', '.join(unknown)}", "left out")
            level = marks.map(source.values).to_numpy(np.float64)
            use = usable & np.isfinite(level)
            values[:, d] = _pooled(source, first_s + clock.times, start[use], end[use], level[use])
        return _trace(entry.id, clock, values, f"rater {rater}")

    # ---- words

    def words(self, entry: Entry) -> str:
        """Transcript of one recording, lines `[10.5s - 15.2s]: text`; "" without words."""
        source = self.description.words
        if source is None:
            return ""
        table, (first, stop) = self._table(source, entry), _span(source, entry)
        start, end = (table.numbers(name) * float(source.unit_s) for name in (source.start, source.end))
        inside = (first <= start) & (start < stop) & (end > start)
        return "".join(
            f"[{a - first:.3f}s - {min(b, stop) - first:.3f}s]: {' '.join(text.split())}\n"
            for a, b, text in zip(start[inside], end[inside], table.texts(source.text)[inside], strict=True)
            if text.strip()
        )


def _ids(folder: Path, pattern: str) -> list[str]:
    """What {id} stands for in the names of existing files, in order."""
    regex = re.compile(re.escape(pattern).replace(r"\{id\}", "(?P<id>[^/]+)", 1).replace(r"\{id\}", "(?P=id)"))
    names = (p.relative_to(folder).as_posix() for p in sorted(folder.glob(pattern.replace("{id}", "*"))))
    return [match["id"] for name in names if (match := regex.fullmatch(name))]


def _is_openface(frame: pd.DataFrame) -> bool:
    """Whether a table has the first columns of OpenFace's."""
    return set(OPENFACE_COLUMNS) - {"face_id"} <= set(frame)


def _expanded(table: TableFile, names: Iterable[str]) -> list[str]:
    """Names of columns; that of a two-dimensional NPZ array stands for all its columns."""
    found: list[str] = []
    for name in names:
        parts = [c for c in table.frame if re.fullmatch(rf"{re.escape(name)}_\d+", c)]
        found += parts if parts and name not in table.frame else [table.column(name).name]
    return found


def _span(source: Table, entry: Entry) -> tuple[float, float]:
    """Start and end of a recording in the seconds of a table."""
    if not source.shared:
        return 0.0, math.inf
    return float(entry.start_s), math.inf if entry.end_s is None else float(entry.end_s)


def _rows_of(source: TimedTable, entry: Entry, table: TableFile) -> Ints:
    """Positions of a recording's rows in a table."""
    if source.recording is None:
        return np.arange(len(table))
    rows = table.rows_by_text(source.recording)
    names = {entry.id, entry.columns.get(source.recording, entry.id)}
    return np.sort(np.concatenate([np.zeros(0, np.int64), *(rows[n] for n in names if n in rows)]))


def _at_rate(source: TimedTable, rate: Fraction, entry: Entry, index: Ints) -> RecordingRows:
    whole = Timeline.regular(len(index), rate, source.start_s)
    if not source.shared:
        return RecordingRows(whole, index)
    rows = whole.frames_between(*_span(source, entry))
    first = source.start_s + rows.start / rate - entry.start_s
    return RecordingRows(Timeline.regular(rows.stop - rows.start, rate, first), index[rows])


def _steps(source: MarkTable, entry: Entry, path: Path, last_s: float) -> tuple[Timeline, float]:
    """A recording's clock of steps, and when it starts on the clock of the marks.

    Steps begin at multiples of the step on the marks' clock: neighbouring recordings share none.
    """
    rate, start, first, n = source.rate_hz, Fraction(0), 0, math.ceil(last_s * source.rate_hz)
    if source.shared:
        start, end = entry.start_s, math.ceil(last_s) if entry.end_s is None else entry.end_s
        first = math.ceil(start * rate)
        n = max(0, math.ceil(end * rate) - first)
    if n > _MAX_STEPS:
        hint = "check the times of marks, rate_hz, and end_s of the recordings"
        raise FormatError(f"{entry.id} would have {n} steps, the limit is {_MAX_STEPS}", where=path, hint=hint)
    return Timeline.regular(n, rate, first / rate - start), float(start)


def _pooled(source: MarkTable, begins: Floats, start: Floats, end: Floats, level: Floats) -> Floats:
    """(T,) pooled level of the marks that touch each step; a mark of length 0 touches the step it lies in."""
    n, step = len(begins), 1 / float(source.rate_hz)
    inside = (start >= begins[0]) | (end > begins[0]) if n else np.zeros(len(start), bool)
    lo = np.searchsorted(begins, start[inside] - step, side="right")
    hi = np.maximum(np.searchsorted(begins, end[inside], side="left"), lo + 1)
    total, count = np.zeros(n), np.zeros(n)
    for value in np.unique(level):  # counts of marks are exact, sums of their values are not
        same = level[inside] == value
        touching = np.cumsum(np.bincount(lo[same], minlength=n + 2) - np.bincount(hi[same], minlength=n + 2))[:n]
        total += value * touching
        count += touching
    mean = total / np.maximum(count, 1)
    pooled = np.sign(mean) if source.pool == "sign" else mean
    return np.where(count > 0, pooled, 0.0 if source.empty == "zero" else np.nan)
