"""Anyone's tables as a data set: features, labels, several raters and words, described by one small JSON.

`import_tables` reads them (twice where columns are not named) and writes what everything else here reads: feature
files, label traces, transcripts, a manifest, a table of problems. Empty cells are marked, not filled; values of a scale
become [-1, 1].

    OUT/manifest.json              recordings
    OUT/features/<name>/<id>.safetensors
    OUT/labels/<id>.parquet        traces; with raters and no labels of their own, the gold standard
    OUT/raters/<rater>/<id>.parquet, OUT/agreement.json
    OUT/transcripts/<id>.txt
    OUT/problems.csv
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyarrow import parquet

from affectrace import config
from affectrace.datasets.catalog import AGREEMENT, RATERS, read_labels
from affectrace.datasets.gold_standard import RaterReport, gold_standard
from affectrace.datasets.manifest import (
    FILE_NAME,
    PROBLEMS_FILE,
    TRACES,
    Manifest,
    Problem,
    is_generated,
    shown,
    write_problems,
)
from affectrace.datasets.raters import DIMENSIONS, Panel
from affectrace.datasets.table_columns import DefaultColumns, listed, near_labels
from affectrace.datasets.table_schema import (
    LABEL,
    Entry,
    FeatureTable,
    LabelTable,
    MarkTable,
    RaterTables,
    TableDescription,
    TableSource,
    WordTable,
    reserved,
    slug,
)
from affectrace.errors import FormatError, InputError
from affectrace.features.base import TABLE, ExtractorId, Features
from affectrace.features.store import FeatureStore
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import Recording
from affectrace.timeline import Timeline
from affectrace.trace import NOT_LABELLED, Trace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

OUT_OF_SCALE = "outside the scale"
SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".npz")
_USUAL_STEPS = 3.0  # a step longer than so many usual ones is a gap
_FARTHEST_S = 9e6  # farthest time from zero: a Timeline counts nanoseconds exactly up to here
_MOST_STEPS = 10_000_000  # of marks on one recording
_MOST_PACKED = 500  # bytes of values for each byte of a file above a gigabyte of them: more is no measurement


@dataclass(frozen=True, eq=False)
class Imported:
    """What came of an import.

    manifest: as written to OUT/manifest.json. problems: everything odd. panels: the raters, a panel a recording.
    raters: how well they agree. notes: the problems that are about columns of features, as lines to be shown.
    """

    manifest: Manifest
    problems: tuple[Problem, ...]
    panels: tuple[Panel, ...]
    raters: RaterReport
    notes: tuple[str, ...]


def import_tables(
    description: TableDescription, folder: str | Path, out: str | Path, *, progress: Progress = silent
) -> Imported:
    """Read the tables that lie below `folder` and write a data set to `out`.

    Raises:
        FormatError: a table is missing, cannot be read, or lacks a column. InputError: nothing to import.
        OutputError: `out` cannot be written.
    """
    tables, out = Tables(description, Path(folder)), Path(out)
    entries = tables.entries()
    tables.check_files(entries)
    tables.choose_columns(entries, progress)
    store, recordings, n_frames, panels = FeatureStore(out / "features"), list[Recording](), dict[str, int](), []
    for i, entry in enumerate(entries):
        progress(ProgressEvent("importing tables", i, len(entries), "recordings"))
        for source in description.features:
            store.put(tables.features(source, entry), entry.id, source_sha256=tables.sha256(tables.path(source, entry)))
        labels = None if description.labels is None else tables.labels(description.labels, entry)
        if labels is not None:
            labels.save(out / "labels" / f"{entry.id}.parquet")
            n_frames[entry.id] = len(labels)
        if description.raters is not None:
            panels.append(tables.panel(description.raters, entry))
        words = "" if description.words is None else tables.transcript(description.words, entry)
        if words:
            config.write_atomic(out / "transcripts" / f"{entry.id}.txt", words)
        labelled = labels is not None or description.raters is not None
        recordings.append(
            Recording(
                entry.id,
                labels=out / "labels" / f"{entry.id}.parquet" if labelled else None,
                transcript=out / "transcripts" / f"{entry.id}.txt" if words else None,
                subject=entry.subject,
                split=entry.split,
                fold=entry.fold,
                columns=entry.columns,
            )
        )
    if panels and description.labels is None:
        for gold in gold_standard(panels, description.gold):
            gold.save(out / "labels" / f"{gold.recording_id}.parquet")
            n_frames[gold.recording_id] = len(gold)
    raters = RaterReport.of(panels, description.gold)
    if panels:
        _write_raters(panels, raters, description, out)
    made = is_generated(r.id for r in recordings)
    manifest = Manifest(description.name, out, tuple(recordings), TRACES, n_frames, synthetic=made)
    tables.find_near_labels(manifest, store)
    write_problems(tables.problems, out / PROBLEMS_FILE)
    manifest.save(out / FILE_NAME)
    progress(ProgressEvent("importing tables", len(entries), len(entries), "recordings"))
    return Imported(manifest, tuple(tables.problems), tuple(panels), raters, tuple(tables.notes))


def _write_raters(panels: Iterable[Panel], raters: RaterReport, description: TableDescription, out: Path) -> None:
    """Each rater's traces; and agreement.json: how well they agree, and how the gold standard is made."""
    for panel in panels:
        for k, rater in enumerate(panel.raters):
            trace = labels_of(panel.recording_id, panel.timeline, panel.values[:, k], f"rater {rater}")
            trace.save(out / RATERS / slug(rater) / f"{panel.recording_id}.parquet")
    report = {"gold": asdict(description.gold), **raters.to_dict()}
    config.write_atomic(out / AGREEMENT, json.dumps(report, indent=1, allow_nan=False) + "\n")


def labels_of(name: str, clock: Timeline, values: Floats, source: str) -> Trace:
    """A trace of (T, 2) values; what is NaN is not labelled, one dimension or both."""
    valid = np.isfinite(values)
    return Trace(name, clock, values[:, 0], values[:, 1], valid, np.where(valid.any(axis=1), "", NOT_LABELLED), source)


# ---- files


def read_table(path: Path, decimal: str = ".") -> pd.DataFrame:
    """A table file; a two-dimensional NPZ array `x` gives columns x_0, x_1, ...

    Raises:
        FormatError: missing, another kind of file, or unreadable.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise FormatError(f"'{suffix}' is not a kind of table", where=path, hint=f"known: {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FormatError("no such table", where=path, hint="check the paths in the description")
    try:
        if suffix == ".npz":
            frame = _npz(path)
        elif suffix == ".parquet":
            frame = _parquet(path)
        else:
            with warnings.catch_warnings():  # rows with more cells than the header: which column is which?
                warnings.simplefilter("error", pd.errors.ParserWarning)
                sep, code = _separator(path), "utf-8-sig"
                frame = pd.read_csv(
                    path, sep=sep, decimal=decimal, skipinitialspace=True, encoding=code, index_col=False
                )
        frame.columns = frame.columns.map(str)
        if not frame.columns.is_unique:
            raise ValueError("a column's name occurs twice")
    except (ValueError, OSError, KeyError, EOFError, BadZipFile, pd.errors.ParserWarning) as error:
        text = " ".join(str(error).split())
        raise FormatError(f"cannot be read as a table ({text})", where=path, hint="open it and look") from None
    return frame


def _separator(path: Path) -> str:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        head = file.readline()
    return max((",", "\t", ";", " "), key=lambda s: (head.count(s), s == ","))


def _check_size(path: Path, n_bytes: int) -> None:
    """A few kilobytes may stand for gigabytes of one value repeated."""
    if n_bytes > max(2**30, _MOST_PACKED * path.stat().st_size):
        raise ValueError(f"it would take {n_bytes / 2**30:.0f} GB of memory")


def _parquet(path: Path) -> pd.DataFrame:
    about = parquet.read_metadata(path)
    _check_size(path, 8 * about.num_rows * about.num_columns)
    return pd.read_parquet(path)


def _npz(path: Path) -> pd.DataFrame:
    with ZipFile(path) as packed:
        _check_size(path, sum(part.file_size for part in packed.infolist()))
    columns: dict[str, NDArray[Any]] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            array = arrays[name]
            if array.ndim not in (1, 2):
                raise ValueError(f"array '{name}' has {array.ndim} dimensions")
            columns |= {name: array} if array.ndim == 1 else {f"{name}_{i}": x for i, x in enumerate(array.T)}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"arrays differ in length: {lengths}")
    return pd.DataFrame(columns)


def column(frame: pd.DataFrame, name: str, path: Path) -> pd.Series:
    """A column by name (raises FormatError naming those there are)."""
    if name not in frame:
        raise FormatError(f"has no column '{name}'", where=path, hint=f"it has {', '.join(frame)}")
    return frame[name]


def numbers(values: pd.Series) -> Floats:
    """A column as float64; what is not a number is NaN."""
    if values.dtype.kind in "mM":
        return np.full(len(values), np.nan)
    try:
        return pd.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    except TypeError:  # lists in cells
        return np.full(len(values), np.nan)


# ---- rows on a clock


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one recording on its clock.

    timeline: T rows. index: (T,) row of the table, -1 where a gap was put in. ends: (T,) seconds, or None.
    """

    timeline: Timeline
    index: Ints
    ends: Floats | None = None


class Tables:
    """The tables of a description; `problems` and `notes` (see Imported) grow while they are read."""

    def __init__(self, description: TableDescription, folder: Path) -> None:
        self.description, self.folder = description, folder
        self.problems: dict[Problem, None] = {}
        self.notes: list[str] = []
        self._names: dict[str, tuple[str, ...]] = {}
        self._label_columns: dict[str, set[str]] = {}
        self.sha256 = cache(_sha256)
        raters = () if description.raters is None else description.raters.raters
        n = len(description.sources) + len(raters) + 1  # tables of all recordings stay, those of one make room
        self._read = lru_cache(n)(read_table)
        self._texts = lru_cache(2 * n)(self._texts_of)
        self._owners = lru_cache(n)(self._owners_of)

    def _note(
        self, path: Path | str, what: str, done: str, line: int | None = None, *, attention: bool = False
    ) -> None:
        """Note what was odd, once (one table serves many recordings)."""
        if isinstance(path, Path):
            path = shown(path, self.folder)
        self.problems[Problem(path, line, what, done, attention)] = None

    # ---- which recordings

    def entries(self) -> tuple[Entry, ...]:
        """The recordings listed, or found.

        Raises:
            InputError: none, or a file whose name cannot be an id.
        """
        found = self.description.recordings or tuple(Entry(name) for name in self._found())
        if not found:
            raise InputError(
                "no recordings found", where=self.description.name, hint="put {id} into a path, or list recordings"
            )
        for entry in found:
            Recording(entry.id)  # before anything is written
        return found

    def _found(self) -> list[str]:
        sources = [s for s in self.description.sources if isinstance(s, TableSource)]
        for source in sources:
            if "{id}" in source.path:
                first_rater = self.description.raters.raters[:1] if self.description.raters is not None else ()
                return _ids(self.folder, source.path.replace("{rater}", first_rater[0] if first_rater else "*"))
        for source in sources:
            if source.recording is not None:
                path = self.folder / source.path
                return [name for name in dict.fromkeys(self._texts(path, source.decimal, source.recording)) if name]
        return []

    def check_files(self, entries: Iterable[Entry]) -> None:
        """See that all tables but labels are there (raises FormatError naming the first ten that are not)."""
        description, raters = self.description, self.description.raters
        paths: dict[Path, None] = {}
        for entry in entries:
            paths |= dict.fromkeys(self.path(s, entry) for s in description.features)
            if description.words is not None:
                paths[self.path(description.words, entry)] = None
            if raters is not None and (table := raters.table or raters.marks) is not None:
                paths |= dict.fromkeys(self.path(table, entry, r) for r in raters.raters or ("",))
        missing = [shown(p, self.folder) for p in paths if not p.is_file()]
        if missing:
            more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
            raise FormatError(
                f"missing tables ({len(missing)}): {', '.join(missing[:10])}{more}",
                where=self.folder,
                hint="check the paths in the description, or leave these recordings out",
            )

    # ---- reading

    def path(self, source: TableSource | MarkTable | WordTable, entry: Entry, rater: str = "") -> Path:
        """The file of a table for a recording (and rater)."""
        text = source.path
        for name, value in {**entry.columns, "id": entry.id, "rater": rater}.items():
            text = text.replace(f"{{{name}}}", value)
        return self.folder / text

    def frame(self, source: TableSource | MarkTable | WordTable, path: Path) -> pd.DataFrame:
        """A file's rows."""
        return self._read(path, getattr(source, "decimal", "."))

    def _texts_of(self, path: Path, decimal: str, name: str) -> NDArray[np.object_]:
        """A column as texts: whole numbers without a point, empty cells as ""."""
        cells = column(self._read(path, decimal), name, path)
        texts = [str(int(v)) if isinstance(v, float) and v.is_integer() else str(v) for v in cells.tolist()]
        return np.where(cells.notna(), np.array(texts, dtype=object), "")

    def _owners_of(self, path: Path, decimal: str, name: str) -> Mapping[str, Ints]:
        """Text in a column -> the rows that have it."""
        texts = self._texts(path, decimal, name)
        return pd.Series(range(len(texts))).groupby(texts).indices

    def _mine(self, source: TableSource, entry: Entry, path: Path) -> Ints:
        """Which rows of a table are a recording's."""
        if source.recording is None:
            return np.arange(len(self.frame(source, path)))
        owners = self._owners(path, source.decimal, source.recording)
        names = {entry.id, entry.columns.get(source.recording, entry.id)}
        return np.sort(np.concatenate([np.zeros(0, np.int64), *(owners[n] for n in names if n in owners)]))

    def rows(self, source: TableSource, entry: Entry, path: Path, mine: Ints | None = None) -> Rows:
        """Which rows are a recording's (`mine` where it is known), and when.

        Raises:
            FormatError: a column is missing, or times that cannot be.
        """
        mine = self._mine(source, entry, path) if mine is None else mine
        try:
            if source.rate_hz is not None:
                return _at_rate(source, source.rate_hz, entry, mine)
            return self._at_times(source, entry, path, mine)
        except FormatError:
            raise
        except (InputError, OverflowError) as error:
            hint = "check rate_hz, start_s and unit_s in the description"
            raise FormatError(f"its rows have no times that can be ({error})", where=path, hint=hint) from None

    def _at_times(self, source: TableSource, entry: Entry, path: Path, mine: Ints) -> Rows:
        def count(rows: pd.DataFrame, what: str, done: str) -> None:
            if len(rows):  # one problem for all of a kind; a row's line is its place after the header
                self._note(path, f"{what}: {len(rows)}", done, int(rows.index.min()) + 2)

        def seconds(name: str) -> Floats:
            return numbers(column(frame, name, path).iloc[mine]) * float(source.unit_s)

        frame = self.frame(source, path)
        assert source.time is not None
        times = ends = seconds(source.time)
        if source.end is not None:
            ends = seconds(source.end)
        elif source.duration is not None:
            ends = times + seconds(source.duration)
        rows = pd.DataFrame({"time": times, "end": ends}, index=mine)
        timed = rows[np.isfinite(rows).all(axis=1)]
        count(rows.drop(timed.index), "rows without a time", "left out")
        if source.shared:
            start, stop = float(entry.start_s), math.inf if entry.end_s is None else float(entry.end_s)
            timed = timed[(timed.time >= start) & (timed.time < stop)] - start
        if (timed.time.abs() > _FARTHEST_S).any():
            far, hint = float(timed.time.abs().max()), "give unit_s, or times from the recording's start"
            raise FormatError(f"a time of {far:g} s is too far from zero", where=path, hint=hint)
        count(timed[timed.time.diff() < 0], "rows that go back in time", "sorted by time")
        ordered = timed.sort_values("time", kind="stable")
        repeated = (ordered.time * 1e9).round().diff() <= 0
        count(ordered[repeated], "rows at the same time as the one before", "left out")
        rows = ordered[~repeated]
        times, index = rows.time.to_numpy(), rows.index.to_numpy()
        if source.end is not None or source.duration is not None:
            return Rows(Timeline.from_times(times), index, rows.end.to_numpy())
        if len(times) < 3:
            return Rows(Timeline.from_times(times), index)
        # a row lasts until the next one; where that is too long a row without data is put in after a usual step
        steps = np.diff(times)
        usual = float(np.median(steps))
        longest = max(_USUAL_STEPS * usual if source.max_gap_s is None else source.max_gap_s, usual * 1.001)
        after = np.flatnonzero(steps > longest)
        count(rows.iloc[after], f"gaps longer than {longest:g} s between rows", "not valid there")
        filled = np.insert(times, after + 1, times[after] + usual)
        clock = Timeline.from_times(filled, end_s=float(times[-1]) + usual)
        return Rows(clock, np.insert(index, after + 1, -1))

    def _values(self, source: TableSource, path: Path, names: Iterable[str], rows: Rows) -> Floats:
        """(T, D) of some columns, NaN where a cell is empty; text in a column of numbers is a problem."""
        frame, there = self.frame(source, path), rows.index >= 0
        names = list(names)
        values = np.full((len(rows.index), len(names)), np.nan)
        for d, name in enumerate(names):
            cells = column(frame, name, path).iloc[rows.index[there]]
            found = numbers(cells)
            odd = [v for v in cells[np.isnan(found)].tolist() if isinstance(v, str) and v.strip()]
            if odd:
                self._note(path, f"values of {name} that are not numbers: {len(odd)} (first: {odd[0]!r})", "not valid")
            values[there, d] = np.where(np.isin(found, source.missing), np.nan, found)
        return values

    # ---- features

    def choose_columns(self, entries: tuple[Entry, ...], progress: Progress = silent) -> None:
        """Settle the columns of every feature table whose description names none, over all its recordings.

        Raises:
            FormatError: a table cannot be read. InputError: nothing is left in one.
        """
        taken = reserved(self.description)
        for source in self.description.features:
            if source.columns:
                self._warn_of_labels(source, taken)
                continue
            own = {n for n in (source.time, source.end, source.duration, source.recording) if n is not None}
            chosen = DefaultColumns(own, taken)
            for i, entry in enumerate(entries):
                progress(ProgressEvent("reading columns", i, len(entries), "recordings"))
                path = self.path(source, entry)
                rows = self.rows(source, entry, path)
                there = rows.index >= 0
                chosen.add(self.frame(source, path), rows.index[there], rows.timeline.times[there])
            names, left_out = chosen.chosen(shared="{id}" not in source.path)
            if left_out:
                done = "no features, unless `columns` in a description names them"
                self._tell(source, listed(left_out), done)
            if not names:
                raise InputError(
                    "has no column of numbers besides times, labels and counts of rows",
                    where=self.path(source, entries[0]),
                    hint="name the columns",
                )
            self._names[source.modality] = names

    def _tell(self, source: FeatureTable, what: str, done: str, *, attention: bool = False) -> None:
        """A problem with columns of features, which is shown as well."""
        self._note(source.path, f"{source.modality}: {what}", done, attention=attention)
        self.notes.append(f"{source.modality}: {what}: {done}")

    def _warn_of_labels(self, source: FeatureTable, taken: Mapping[str, str]) -> None:
        """Columns named as features that are the labels of the same file."""
        labels = self.description.labels
        if labels is None or labels.path != source.path:
            return
        named = {c for c in source.columns if taken.get(c.strip().lower()) == LABEL}
        self._label_columns[source.modality] = named
        if named:
            done = "kept; scores of a model that reads them mean nothing"
            names = ", ".join(sorted(named))
            self._tell(source, f"{names} named as features, and they are the labels", done, attention=True)

    def find_near_labels(self, manifest: Manifest, store: FeatureStore) -> None:
        """Warn of every feature column that is nearly a label."""
        labelled = [r for r in manifest if r.labels is not None]
        for source in self.description.features:
            tables = [store.get(self._slug(source), r.id) for r in labelled]
            pairs = ((t.features(), read_labels(manifest, r)) for t, r in zip(tables, labelled, strict=True))
            for d, (dimension, r, n) in near_labels(pairs).items():
                name = tables[0].extractor.columns[d]
                if name not in self._label_columns.get(source.modality, ()):
                    what = f"{name} is nearly the labels' {dimension} (r {r:.3f}, {n} rows)"
                    self._tell(source, what, "kept; leave it out if it was made of the labels", attention=True)

    def features(self, source: FeatureTable, entry: Entry) -> Features:
        """One modality of one recording; its columns as named, or as `choose_columns` settled them."""
        path = self.path(source, entry)
        rows = self.rows(source, entry, path)
        names = _pick(self.frame(source, path), source.columns or self._names[source.modality], path)
        values = self._values(source, path, names, rows)
        valid = np.asarray(np.isfinite(values).all(axis=1))
        if not len(valid):
            self._note(path, f"no row of {entry.id}", "not valid")
        elif n := int(((rows.index >= 0) & ~valid).sum()):
            self._note(path, f"rows of {entry.id} with an empty cell: {n}", "not valid")
        extractor = ExtractorId(self._slug(source), "", {TABLE: config.to_dict(source)}, tuple(names))
        known = np.where(valid[:, None], values, 0).astype(np.float32)
        return Features(source.modality, rows.timeline, known, valid, extractor, rows.ends)

    def _slug(self, source: FeatureTable) -> str:
        return slug(f"{self.description.name}-{source.modality}")

    # ---- labels

    def labels(self, source: LabelTable, entry: Entry) -> Trace | None:
        """The labels of a recording, None (and a problem) where it has no table of them."""
        path = self.path(source, entry)
        if path.is_file():
            return self._labels(source, entry, path)
        self._note(path, f"no labels of {entry.id}", "kept without labels")
        return None

    def _labels(self, source: LabelTable, entry: Entry, path: Path, mine: Ints | None = None) -> Trace:
        rows = self.rows(source, entry, path, mine)
        values = np.full((len(rows.index), 2), np.nan)
        for d, name in self._dimensions(source, path):
            values[:, d] = self._values(source, path, [name], rows)[:, 0]
        scaled = (values - (source.low + source.high) / 2) / ((source.high - source.low) / 2)
        outside = np.abs(scaled) > 1
        trace = labels_of(entry.id, rows.timeline, np.where(outside, np.nan, scaled), "labels")
        if not outside.any():
            return trace
        what = f"labels of {entry.id} outside {source.low:g} to {source.high:g}: {int(outside.any(axis=1).sum())}"
        self._note(path, what, "not valid")
        return replace(trace, reason=np.where(outside.any(axis=1) & (trace.reason != ""), OUT_OF_SCALE, trace.reason))

    def _dimensions(self, source: LabelTable | MarkTable, path: Path) -> list[tuple[int, str]]:
        """(0, column of valence), (1, column of arousal): the other may lack where it has its usual name."""
        frame, names = self.frame(source, path), (source.valence, source.arousal)
        if not any(n in frame for n in names) or any(n not in frame and n not in DIMENSIONS for n in names):
            for name in names:
                column(frame, name, path)
        for name in names:
            if name not in frame:
                self._note(path, f"no column {name}", "not labelled")
        return [(d, name) for d, name in enumerate(names) if name in frame]

    def panel(self, source: RaterTables, entry: Entry) -> Panel:
        """What the raters said of one recording, on the first one's clock."""
        if source.marks is not None:
            return Panel.of({r: self._marked(source.marks, entry, r) for r in source.raters})
        table = source.table
        assert table is not None
        if source.rater is None:
            return Panel.of({r: self._labels(table, entry, self.path(table, entry, r)) for r in source.raters})
        path = self.path(table, entry)
        mine = self._mine(table, entry, path)
        who = self._texts(path, table.decimal, source.rater)[mine]
        traces = {r: self._labels(table, entry, path, mine[who == r]) for r in dict.fromkeys(who.tolist())}
        return Panel.of({r: t for r, t in traces.items() if len(t)} or traces)

    def _marked(self, source: MarkTable, entry: Entry, rater: str) -> Trace:
        """One rater's marks (from here to there something was so) as a value for each step of a clock."""
        path = self.path(source, entry, rater)
        frame = self.frame(source, path)
        start, end = (numbers(column(frame, name, path)) for name in (source.start, source.end))
        usable = np.isfinite(start) & np.isfinite(end) & (end >= start)
        if not usable.all():
            line = int(np.flatnonzero(~usable)[0]) + 2
            self._note(path, f"marks without a span: {int((~usable).sum())}", "left out", line)
        clock, first_s = _steps(source, entry, path, float(end[usable].max(initial=0.0)))
        values = np.full((len(clock), 2), np.nan)
        for d, name in self._dimensions(source, path):
            words = [w.strip() for w in self._texts(path, ".", name)]
            if unknown := sorted(set(words) - set(source.values) - {""}):
                self._note(path, f"marks in {name} that mean nothing: {', '.join(unknown)}", "left out")
            level = np.array([source.values.get(w, np.nan) for w in words], dtype=np.float64)
            use = usable & np.isfinite(level)
            values[:, d] = _pooled(source, first_s + clock.times, start[use], end[use], level[use])
        return labels_of(entry.id, clock, values, f"rater {rater}")

    # ---- words

    def transcript(self, source: WordTable, entry: Entry) -> str:
        """Lines `[10.5s - 15.2s]: text` of one recording, "" where nothing is said."""
        path = self.path(source, entry)
        frame = self.frame(source, path)
        start, end = (numbers(column(frame, name, path)) for name in (source.start, source.end))
        offset = float(entry.start_s) if source.shared else 0.0
        stop = math.inf if entry.end_s is None or not source.shared else float(entry.end_s)
        here = (offset <= start) & (start < stop) & (end > start)
        said = self._texts(path, ".", source.text)[here]
        return "".join(
            f"[{a - offset:.3f}s - {min(b, stop) - offset:.3f}s]: {' '.join(text.split())}\n"
            for a, b, text in zip(start[here], end[here], said, strict=True)
            if text.strip()
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ids(folder: Path, pattern: str) -> list[str]:
    """What {id} stands for in the files that are there, in order."""
    text = re.escape(pattern).replace(r"\{id\}", "(?P<id>[^/]+)", 1).replace(r"\{id\}", "(?P=id)")
    regex = re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", text))
    names = (p.relative_to(folder).as_posix() for p in sorted(folder.glob(re.sub(r"\{\w+\}", "*", pattern))))
    return [match["id"] for name in names if (match := regex.fullmatch(name))]


def _pick(frame: pd.DataFrame, wanted: Iterable[str], path: Path) -> list[str]:
    """Names of the columns wanted, an NPZ array by its name (raises FormatError: one is missing)."""
    found: list[str] = []
    for name in wanted:
        parts = [c for c in frame if c.startswith(f"{name}_") and c.removeprefix(f"{name}_").isdecimal()]
        found += [name] if name in frame or not parts else parts
        column(frame, found[-1], path)
    return found


def _at_rate(source: TableSource, rate: Fraction, entry: Entry, mine: Ints) -> Rows:
    whole = Timeline.regular(len(mine), rate, source.start_s)
    if not source.shared:
        return Rows(whole, mine)
    rows = whole.frames_between(float(entry.start_s), whole.end_s if entry.end_s is None else float(entry.end_s))
    first = source.start_s + rows.start / rate - entry.start_s
    return Rows(Timeline.regular(rows.stop - rows.start, rate, first), mine[rows])


def _steps(source: MarkTable, entry: Entry, path: Path, last_s: float) -> tuple[Timeline, float]:
    """A recording's clock of steps, and the time of its start on the marks' clock.

    Steps begin at multiples of the step on the marks' clock, so neighbouring recordings have each step once.
    """
    rate, start, first, n = source.rate_hz, Fraction(0), 0, math.ceil(last_s * source.rate_hz)
    if source.shared:
        start, end = entry.start_s, math.ceil(last_s) if entry.end_s is None else entry.end_s
        first = math.ceil(start * rate)
        n = max(0, math.ceil(end * rate) - first)
    if n > _MOST_STEPS:
        hint = "check the times of marks, rate_hz, and the recordings' end_s"
        raise FormatError(f"{entry.id} would have {n} steps, at most {_MOST_STEPS} are read", where=path, hint=hint)
    return Timeline.regular(n, rate, first / rate - start), float(start)


def _pooled(source: MarkTable, begins: Floats, start: Floats, end: Floats, level: Floats) -> Floats:
    """(T,) of the marks that touch each step; a mark without length touches the step it lies in."""
    n, step = len(begins), 1 / float(source.rate_hz)
    here = (start >= begins[0]) | (end > begins[0]) if n else np.zeros(len(start), bool)
    lo = np.searchsorted(begins, start[here] - step, side="right")
    hi = np.maximum(np.searchsorted(begins, end[here], side="left"), lo + 1)
    total, count = np.zeros(n), np.zeros(n)
    for value in np.unique(level):  # whole numbers of marks are exact where sums of values are not
        same = level[here] == value
        touched = np.cumsum(np.bincount(lo[same], minlength=n + 2) - np.bincount(hi[same], minlength=n + 2))[:n]
        total += value * touched
        count += touched
    mean = total / np.maximum(count, 1)
    pooled = np.sign(mean) if source.pool == "sign" else mean
    return np.where(count > 0, pooled, 0.0 if source.empty == "zero" else np.nan)
