"""Anyone's tables as a data set: features, labels, several raters and words, described by one small JSON.

`import_tables` reads them (twice where columns are not named) and writes what everything else here reads: feature
files, label traces, transcripts, a manifest, a table of problems. Rows that hold nothing are marked, not filled; values
of a scale become [-1, 1].

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
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affectrace import config
from affectrace.datasets.catalog import AGREEMENT, RATERS, TRACES, read_labels
from affectrace.datasets.gold_standard import GoldConfig, HumanRow, gold_standard, human_row
from affectrace.datasets.manifest import FILE_NAME, PROBLEMS_FILE, Manifest, Problem, is_generated, write_problems
from affectrace.datasets.marks import marked
from affectrace.datasets.raters import Panel, RaterAgreement, agreement
from affectrace.datasets.table_columns import LABEL, DefaultColumns, LabelCorrelations, reserved, told
from affectrace.datasets.table_files import Columns, column, numbers, pick, read_columns, rows_of, text_of
from affectrace.datasets.table_schema import (
    Entry,
    FeatureTable,
    LabelTable,
    MarkTable,
    RaterTables,
    TableDescription,
    TableSource,
    WordTable,
)
from affectrace.errors import FormatError, InputError
from affectrace.features.base import TABLE, ExtractorId, Features
from affectrace.features.store import FeatureStore
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import Recording
from affectrace.timeline import Timeline
from affectrace.trace import NOT_LABELLED, Trace

OUT_OF_SCALE = "outside the scale"


@dataclass(frozen=True, eq=False)
class Imported:
    """What came of an import.

    manifest: as written to OUT/manifest.json. problems: everything odd. panels: the raters, a panel a recording.
    agreement: of the raters on valence and arousal. human: one rater against the gold standard of the others.
    notes: which columns are no features and which should perhaps be none, a line each; they are among the problems.
    """

    manifest: Manifest
    problems: tuple[Problem, ...]
    panels: tuple[Panel, ...] = ()
    agreement: tuple[RaterAgreement, ...] = ()
    human: HumanRow | None = None
    notes: tuple[str, ...] = ()


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
        labels = None if description.labels is None else tables.labels_or_none(description.labels, entry)
        if description.raters is not None:
            panels.append(tables.panel(description.raters, entry))
        if labels is not None:
            labels.save(out / "labels" / f"{entry.id}.parquet")
            n_frames[entry.id] = len(labels)
        words = None if description.words is None else tables.transcript(description.words, entry)
        transcript = None
        if words:
            transcript = out / "transcripts" / f"{entry.id}.txt"
            config.write_atomic(transcript, words)
        path = out / "labels" / f"{entry.id}.parquet"
        has = labels is not None or description.raters is not None
        recordings.append(_recording(entry, path if has else None, transcript))
    found: tuple[RaterAgreement, ...] = ()
    human: HumanRow | None = None
    if panels:
        if description.labels is None:
            for gold in gold_standard(panels, description.gold):
                gold.save(out / "labels" / f"{gold.recording_id}.parquet")
                n_frames[gold.recording_id] = len(gold)
        found, human = _compare(panels, description.gold, out)
    made = is_generated(r.id for r in recordings)
    manifest = Manifest(description.name, out, tuple(recordings), TRACES, n_frames, synthetic=made)
    tables.find_near_labels(manifest, store)
    write_problems(tables.problems, out / PROBLEMS_FILE)
    manifest.save(out / FILE_NAME)
    progress(ProgressEvent("importing tables", len(entries), len(entries), "recordings"))
    return Imported(manifest, tuple(tables.problems), tuple(panels), found, human, tuple(tables.notes))


def _recording(entry: Entry, labels: Path | None, transcript: Path | None) -> Recording:
    return Recording(
        entry.id,
        labels=labels,
        transcript=transcript,
        subject=entry.subject,
        split=entry.split,
        fold=entry.fold,
        columns=entry.columns,
    )


def _compare(panels: list[Panel], gold: GoldConfig, out: Path) -> tuple[tuple[RaterAgreement, ...], HumanRow | None]:
    """Agreement, written to agreement.json with how the gold standard is made; NaN becomes null."""
    found = agreement(panels)
    human = human_row(panels, gold) if found[0].n_raters > 1 else None
    for panel in panels:
        for k, rater in enumerate(panel.raters):
            values = np.stack([panel.valence[:, k], panel.arousal[:, k]], axis=1)
            trace = labels_of(panel.recording_id, panel.timeline, values, f"rater {rater}")
            trace.save(out / RATERS / _slug(rater) / f"{panel.recording_id}.parquet")
    report = {
        "gold": asdict(gold),
        "agreement": [asdict(a) for a in found],
        "one_against_the_others": {} if human is None else human.to_dict(),
    }
    text = json.dumps(_no_nan(report), indent=1, allow_nan=False) + "\n"
    config.write_atomic(out / AGREEMENT, text)
    return found, human


def _no_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _no_nan(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_no_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def labels_of(name: str, clock: Timeline, values: NDArray[np.float64], source: str) -> Trace:
    """A trace of (T, 2) values; what is NaN is not labelled, one dimension or both."""
    valid = np.isfinite(values)
    valence, arousal = values.T
    return Trace(name, clock, valence, arousal, valid, np.where(valid.any(axis=1), "", NOT_LABELLED), source)


class Tables:
    """The tables of a description; `problems` and `notes` (see Imported) grow while they are read."""

    def __init__(self, description: TableDescription, folder: Path) -> None:
        self.description, self.folder = description, folder
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self._names: dict[str, tuple[str, ...]] = {}
        self._labels_named: dict[str, set[str]] = {}
        self._shared: dict[Path, Columns] = {}
        self._own: tuple[Path, Columns] | None = None
        self._hashes: dict[Path, str] = {}

    # ---- which recordings

    def entries(self) -> tuple[Entry, ...]:
        """The recordings listed, or found.

        Raises:
            InputError: none.
        """
        found = self.description.recordings or tuple(Entry(name) for name in self._found())
        if not found:
            raise InputError(
                "no recordings found", where=self.description.name, hint="put {id} into a path, or list recordings"
            )
        return found

    def _found(self) -> list[str]:
        sources = [s for s in self.description.sources if isinstance(s, TableSource)]
        for source in sources:
            if "{id}" in source.path:
                first_rater = self.description.raters.raters[:1] if self.description.raters is not None else ()
                pattern = source.path.replace("{rater}", first_rater[0] if first_rater else "*")
                return _ids(self.folder, pattern)
        for source in sources:
            if source.recording is not None:
                values = column(self.columns(source, self.folder / source.path), source.recording, self.folder)
                return list(dict.fromkeys(text_of(v) for v in values.tolist() if not _nothing(v)))
        return []

    def check_files(self, entries: tuple[Entry, ...]) -> None:
        """See that all tables but labels are there.

        Raises:
            FormatError: some are not; the message names the first ten.
        """
        description = self.description
        paths: dict[Path, None] = {}
        for entry in entries:
            paths |= dict.fromkeys(self.path(s, entry) for s in description.features)
            if description.words is not None:
                paths[self.path(description.words, entry)] = None
            if (raters := description.raters) is not None and (table := raters.table or raters.marks) is not None:
                paths |= dict.fromkeys(self.path(table, entry, r) for r in raters.raters or ("",))
        missing = [self.shown(p) for p in paths if not p.is_file()]
        if missing:
            more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
            raise FormatError(
                f"{len(missing)} tables are missing: {', '.join(missing[:10])}{more}",
                where=self.folder,
                hint="check the paths in the description, or leave these recordings out",
            )

    # ---- which columns

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
            found = DefaultColumns(own, taken)
            for i, entry in enumerate(entries):
                progress(ProgressEvent("reading columns", i, len(entries), "recordings"))
                path = self.path(source, entry)
                columns = self.columns(source, path)
                rows = rows_of(source, columns, entry, path, self.shown(path))
                there = rows.index >= 0
                found.add(columns, rows.index[there], rows.timeline.times[there])
            names, left_out = found.chosen(shared="{id}" not in source.path)
            if left_out:
                done = "no features, unless `columns` in a description names them"
                self._note(Problem(source.path, None, f"{source.modality}: {told(left_out)}", done))
            if not names:
                raise InputError(
                    "has no column of numbers besides times, labels and counts of rows",
                    where=self.path(source, entries[0]),
                    hint="name the columns",
                )
            self._names[source.modality] = names

    def _warn_of_labels(self, source: FeatureTable, taken: Mapping[str, str]) -> None:
        """Columns named as features that are the labels of the same file."""
        labels = self.description.labels
        if labels is None or labels.path != source.path:
            return
        named = {c for c in source.columns if taken.get(c.strip().lower()) == LABEL}
        self._labels_named[source.modality] = named
        if named:
            what = f"{source.modality}: {', '.join(sorted(named))} named as features, and they are the labels"
            self._note(Problem(source.path, None, what, "kept; scores of a model that reads them mean nothing", True))

    def find_near_labels(self, manifest: Manifest, store: FeatureStore) -> None:
        """Warn of every feature column that is nearly a label."""
        for source in self.description.features:
            found = LabelCorrelations()
            names: tuple[str, ...] = ()
            for recording in manifest:
                if recording.labels is not None:
                    features = store.get(self._slug(source), recording.id).features()
                    names = features.extractor.columns
                    found.add(features, read_labels(manifest, recording))
            for d, dimension, r in found.near():
                if names[d] in self._labels_named.get(source.modality, ()):
                    continue
                what = f"{source.modality}: {names[d]} is nearly the labels' {dimension} (r {r:.3f}, {found.n} rows)"
                self._note(Problem(source.path, None, what, "kept; leave it out if it was made of the labels", True))

    def _note(self, problem: Problem) -> None:
        self.problems.append(problem)
        self.notes.append(f"{problem.what}: {problem.done}")

    # ---- reading

    def path(self, source: TableSource | MarkTable | WordTable, entry: Entry, rater: str = "") -> Path:
        """The file of a table for a recording (and rater)."""
        names = {**entry.columns, "id": entry.id, "rater": rater}
        text = source.path
        for name, value in names.items():
            text = text.replace(f"{{{name}}}", value)
        return self.folder / text

    def columns(self, source: TableSource | MarkTable | WordTable, path: Path) -> Columns:
        """A file's columns; a table of many recordings is kept, of those a recording has to itself the last one."""
        decimal = getattr(source, "decimal", ".")
        if "{id}" not in source.path:
            if path not in self._shared:
                self._shared[path] = read_columns(path, decimal)
            return self._shared[path]
        if self._own is None or self._own[0] != path:
            self._own = (path, read_columns(path, decimal))
        return self._own[1]

    def sha256(self, path: Path) -> str:
        """Hash of a table's bytes."""
        if path not in self._hashes:
            with path.open("rb") as file:
                self._hashes[path] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._hashes[path]

    def shown(self, path: Path) -> str:
        """A file as problems call it."""
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else str(path)

    def features(self, source: FeatureTable, entry: Entry) -> Features:
        """One modality of one recording; its columns as named, or as `choose_columns` settled them."""
        path = self.path(source, entry)
        columns = self.columns(source, path)
        rows = rows_of(source, columns, entry, path, self.shown(path))
        self.problems += rows.problems
        names = pick(columns, source.columns, path) if source.columns else list(self._names[source.modality])
        values = np.full((len(rows.timeline), len(names)), np.nan)
        there = rows.index >= 0
        for d, name in enumerate(names):
            values[there, d] = self._numbers(source, columns, name, rows.index[there], path)
        valid = np.isfinite(values).all(axis=1)
        if (n := int((there & ~valid).sum())) or not len(valid):
            what = f"{n} rows of {entry.id} with nothing in some column" if n else f"no row of {entry.id}"
            self.problems.append(Problem(self.shown(path), None, what, "not valid"))
        return Features(
            source.modality,
            rows.timeline,
            np.where(valid[:, None], values, 0).astype(np.float32),
            valid,
            self._extractor(source, names),
            rows.ends,
        )

    def _extractor(self, source: FeatureTable, names: list[str]) -> ExtractorId:
        how = config.to_dict(source)
        return ExtractorId(self._slug(source), "", {TABLE: how}, tuple(names))

    def _slug(self, source: FeatureTable) -> str:
        return _slug(f"{self.description.name}-{source.modality}")

    def _numbers(
        self, source: TableSource, columns: Columns, name: str, index: NDArray[np.int64], path: Path
    ) -> NDArray[np.float64]:
        """A column's values at some rows, NaN where it says nothing; text in a column of numbers is a problem."""
        raw = column(columns, name, path)
        values = numbers(raw)[index]
        odd = [v for v in raw[index][np.isnan(values)].tolist() if isinstance(v, str) and v.strip()]
        if odd:
            what = f"{len(odd)} values of {name} that are no numbers (first: {odd[0]!r})"
            self.problems.append(Problem(self.shown(path), None, what, "not valid"))
        return np.where(np.isin(values, source.missing), np.nan, values)

    # ---- labels

    def labels_or_none(self, source: LabelTable, entry: Entry) -> Trace | None:
        """The labels of a recording, None (and a problem) where it has no table of them."""
        path = self.path(source, entry)
        if path.is_file():
            return self.labels(source, entry)
        self.problems.append(Problem(self.shown(path), None, f"no labels of {entry.id}", "kept without labels"))
        return None

    def labels(self, source: LabelTable, entry: Entry) -> Trace:
        """The labels of one recording."""
        path = self.path(source, entry)
        columns = self.columns(source, path)
        return self._labels(source, columns, entry, path)

    def _labels(self, source: LabelTable, columns: Columns, entry: Entry, path: Path) -> Trace:
        rows = rows_of(source, columns, entry, path, self.shown(path))
        self.problems += rows.problems
        there = rows.index >= 0
        middle, half = (source.low + source.high) / 2, (source.high - source.low) / 2
        scaled = np.full((len(rows.timeline), 2), np.nan)
        for d, name in enumerate((source.valence, source.arousal)):
            raw = self._numbers(source, columns, name, rows.index[there], path)
            scaled[there, d] = (raw - middle) / half
        outside = (np.abs(scaled) > 1).any(axis=1)
        trace = labels_of(entry.id, rows.timeline, np.where(outside[:, None], np.nan, scaled), "labels")
        if not outside.any():
            return trace
        what = f"{int(outside.sum())} labels of {entry.id} outside {source.low:g} to {source.high:g}"
        self.problems.append(Problem(self.shown(path), None, what, "not valid"))
        return replace(trace, reason=np.where(outside, OUT_OF_SCALE, trace.reason))

    def panel(self, source: RaterTables, entry: Entry) -> Panel:
        """What the raters said of one recording, on the first one's clock."""
        if source.marks is not None:
            return Panel.of({r: self._marked(source.marks, entry, r) for r in source.raters})
        assert source.table is not None
        if source.rater is None:
            tables = {r: self.path(source.table, entry, r) for r in source.raters}
            return Panel.of(
                {r: self._labels(source.table, self.columns(source.table, p), entry, p) for r, p in tables.items()}
            )
        path = self.path(source.table, entry)
        columns = self.columns(source.table, path)
        who = np.array([text_of(v) for v in column(columns, source.rater, path).tolist()], dtype=object)
        before, traces = len(self.problems), {}
        for rater in dict.fromkeys(who.tolist()):
            trace = self._labels(source.table, {k: v[who == rater] for k, v in columns.items()}, entry, path)
            if len(trace):
                traces[rater] = trace
        self.problems[before:] = [replace(p, line=None) for p in self.problems[before:]]  # lines of a part of the table
        return Panel.of(traces)

    def _marked(self, source: MarkTable, entry: Entry, rater: str) -> Trace:
        path = self.path(source, entry, rater)
        clock, values, problems = marked(source, self.columns(source, path), entry, path, self.shown(path))
        self.problems += [p for p in problems if p not in self.problems]  # one table of marks serves many recordings
        return labels_of(entry.id, clock, values, f"rater {rater}")

    # ---- words

    def transcript(self, source: WordTable, entry: Entry) -> str:
        """Lines `[10.5s - 15.2s]: text` of one recording, "" where nothing is said."""
        path = self.path(source, entry)
        columns = self.columns(source, path)
        start, end = (numbers(column(columns, name, path)) for name in (source.start, source.end))
        offset = float(entry.start_s) if source.shared else 0.0
        stop = math.inf if entry.end_s is None or not source.shared else float(entry.end_s)
        lines = []
        for a, b, text in zip(start, end, column(columns, source.text, path).tolist(), strict=True):
            said = " ".join(text_of(text).split())
            if said and not _nothing(text) and offset <= a < stop and b > a:
                lines.append(f"[{a - offset:.3f}s - {min(b, stop) - offset:.3f}s]: {said}\n")
        return "".join(lines)


def _ids(folder: Path, pattern: str) -> list[str]:
    """What {id} stands for in the files that are there, in order."""
    text = re.escape(pattern).replace(r"\{id\}", "(?P<id>[^/]+)", 1).replace(r"\{id\}", "(?P=id)")
    regex = re.compile(re.sub(r"\\\{\w+\\\}", "[^/]+", text))
    names = (p.relative_to(folder).as_posix() for p in sorted(folder.glob(re.sub(r"\{\w+\}", "*", pattern))))
    return [match["id"] for name in names if (match := regex.fullmatch(name))]


def _nothing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or value == ""


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "table"
