"""Manifest: a data set's recordings, splits, folds and paths as JSON; and its table of problems."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from affectrace import config
from affectrace.errors import FormatError, InputError, listing
from affectrace.recording import PATHS, SPLITS, Recording, cell, readable, uncell
from affectrace.timeline import Timeline

FORMAT, VERSION = "affectrace.manifest", 1
FILE_NAME = "manifest.json"
AFF_WILD2 = "aff-wild2"
"""Name of a data set in the Aff-Wild2 layout, and of its label format."""
TRACES = "trace"
"""Label format of trace files."""
SYNTHETIC = "affectrace-synthetic"
"""Name of a data set made by `affectrace synth`."""
MEDIUM = "medium"
"""Column with the video of a recording: left and right person of one video stay together in folds."""
PROBLEMS_FILE = "problems.csv"
"""Table of problems beside a manifest, written by the import."""
PROBLEM_COLUMNS = ("file", "line", "what", "what was done", "attention")
_GENERATED = re.compile(r"synth_\d{4,}(_left|_right)?")  # ids given by `affectrace synth`


@dataclass(frozen=True)
class Problem:
    """Something odd in a data set.

    file: relative to the data set's folder. line: 1-based. what: the problem, with its count. done: how it was handled.
    attention: data is lost, or scores would be wrong.
    """

    file: str
    line: int | None
    what: str
    done: str
    attention: bool = False

    @property
    def cells(self) -> tuple[str, ...]:
        """Its row of the table."""
        line = "" if self.line is None else str(self.line)
        return (readable(self.file), line, readable(self.what), self.done, "needed" if self.attention else "")


def write_problems(problems: Iterable[Problem], path: Path) -> Path:
    """Write the table of problems as CSV, atomically (raises OutputError)."""
    sink = io.StringIO()
    csv.writer(sink, lineterminator="\n").writerows([PROBLEM_COLUMNS, *(map(cell, p.cells) for p in problems)])
    config.write_atomic(path, sink.getvalue())
    return path


def read_problems(path: Path) -> tuple[Problem, ...]:
    """Read what `write_problems` wrote (raises FormatError); a missing file has no problems."""
    if not path.is_file():
        return ()
    try:
        header, *rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8", errors="replace")))
        if tuple(header) != PROBLEM_COLUMNS:
            raise ValueError("different header")
        return tuple(
            Problem(file, int(line) if line else None, what, done, attention == "needed")
            for file, line, what, done, attention in (map(uncell, row) for row in rows)
        )
    except (ValueError, csv.Error) as error:
        raise FormatError(f"is not a table of problems ({error})", where=path, hint="remove it") from None


@dataclass(frozen=True)
class Manifest:
    """A data set.

    root: folder of relative paths in the file. recordings: ids unique. labels: format of the label files, TRACES or
    AFF_WILD2. n_frames: recording id -> frames on its clock, if counted. synthetic: made by `affectrace synth`. clocks:
    recording id -> clock of its video, if just scanned; not saved.
    """

    name: str
    root: Path
    recordings: tuple[Recording, ...]
    labels: str = TRACES
    n_frames: Mapping[str, int] = field(default_factory=dict)
    synthetic: bool = False
    clocks: Mapping[str, Timeline] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        ids = Counter(r.id for r in self.recordings)
        if twice := sorted(name for name, n in ids.items() if n > 1):
            raise InputError(f"ids that occur more than once: {listing(twice)}", where=self.name)
        if wrong := sorted(name for name, n in self.n_frames.items() if name not in ids or n < 0):
            raise InputError(f"frame counts of no recording, or negative: {', '.join(wrong)}", where=self.name)
        object.__setattr__(self, "root", Path(self.root))

    def __len__(self) -> int:
        return len(self.recordings)

    def __iter__(self) -> Iterator[Recording]:
        return iter(self.recordings)

    def __getitem__(self, recording_id: str) -> Recording:
        for recording in self.recordings:
            if recording.id == recording_id:
                return recording
        raise InputError(f"no recording '{recording_id}'", where=self.name)

    @property
    def is_aff_wild2(self) -> bool:
        """Whether it is taken for Aff-Wild2: that layout and name, and not synthetic."""
        return self.name == self.labels == AFF_WILD2 and not self.synthetic

    def of_split(self, split: str) -> tuple[Recording, ...]:
        """The recordings of "train", "validation" or "test" (raises InputError)."""
        if split not in SPLITS:
            raise InputError(f"unknown split '{split}'", hint=f"one of {', '.join(SPLITS)}")
        return tuple(r for r in self.recordings if r.split == split)

    def with_recordings(self, recordings: Sequence[Recording]) -> Manifest:
        """The same data set with other (or changed) recordings."""
        counts = {r.id: self.n_frames[r.id] for r in recordings if r.id in self.n_frames}
        return replace(self, recordings=tuple(recordings), n_frames=counts)

    def missing_files(self) -> tuple[tuple[str, str, Path], ...]:
        """(recording id, attribute, path) of every file that does not exist."""
        files = [(r.id, name, getattr(r, name)) for r in self.recordings for name in PATHS]
        return tuple((who, name, path) for who, name, path in files if path is not None and not path.exists())

    # ---- as a file

    def about(self) -> dict[str, Any]:
        """What checkpoints and scores record of their data: name, digest, and `synthetic` if it is."""
        return {"name": self.name, "digest": self.digest(), **self._mark()}

    def _mark(self) -> dict[str, Any]:
        return {"synthetic": True} if self.synthetic else {}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values without `root`; paths below it are relative."""
        head = {"format": FORMAT, "version": VERSION, "name": self.name, "labels": self.labels, **self._mark()}
        return {**head, "recordings": [self._entry(r) for r in self.recordings]}

    def _entry(self, recording: Recording) -> dict[str, Any]:
        values: dict[str, Any] = {"id": recording.id}
        values |= {n: _relative(p, self.root).as_posix() for n in PATHS if (p := getattr(recording, n)) is not None}
        values |= {k: v for k in ("subject", "split", "fold") if (v := getattr(recording, k)) is not None}
        if recording.person != "main":
            values["person"] = recording.person
        if recording.columns:
            values["columns"] = dict(sorted(recording.columns.items()))
        if recording.id in self.n_frames:
            values["n_frames"] = self.n_frames[recording.id]
        return values

    def digest(self) -> str:
        """sha256 of the content (64 hex digits), independent of where the data is."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def save(self, path: str | Path) -> Path:
        """Write as JSON, atomically; a `root` at or below the file's folder is stored relative to it."""
        path = Path(path)
        root = _relative(self.root.resolve(), path.parent.resolve()).as_posix()
        values = self.to_dict()
        values = {**{k: values[k] for k in ("format", "version", "name")}, "root": root, **values}
        text = json.dumps(values, indent=1, ensure_ascii=False)
        if any("\ud800" <= c <= "\udfff" for c in text):  # a path that is not UTF-8, kept as JSON escapes
            text = json.dumps(values, indent=1)
        config.write_atomic(path, text + "\n")
        return path

    @classmethod
    def load(cls, path: str | Path, *, check: bool = True) -> Manifest:
        """Read what `save` wrote; a folder stands for its `manifest.json`. check: that all files exist.

        Raises FormatError (all mistakes of the file together), InputError (missing files).
        """
        path = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
        try:
            values = config.read_json(path)
            if not isinstance(values, dict) or values.get("format") != FORMAT:
                raise FormatError("is not an affectrace manifest", hint="make one with `affectrace import`")
            if not isinstance(values.get("version"), int) or values["version"] > VERSION:
                what = f"is of manifest format {values.get('version')!r}, this version reads up to {VERSION}"
                raise FormatError(what, hint="upgrade affectrace")
            manifest = _build(values, path.parent)
        except InputError as error:
            hint = error.hint or "correct the named fields, or make it again"
            raise FormatError(error.what, where=path, hint=hint) from None
        if check and (missing := manifest.missing_files()):
            named = [f"{path} ({name} of {who})" for who, name, path in missing]
            raise InputError(
                f"missing files ({len(missing)}): {listing(named)}",
                where=manifest.name,
                hint="put them back, correct `root` in the manifest, or make the manifest again",
            )
        return manifest


@dataclass(frozen=True)
class _File(config.Config):
    """A manifest file without paths and frame counts of recordings."""

    format: str
    version: int
    name: str
    root: Path
    recordings: tuple[Recording, ...]
    labels: str = TRACES
    synthetic: bool = False


def _build(values: dict[str, Any], folder: Path) -> Manifest:
    entries, counts, paths = values.get("recordings"), dict[str, Any](), list[dict[str, Any]]()
    if isinstance(entries, list) and all(isinstance(e, dict) for e in entries):
        counts = {str(e.get("id")): e["n_frames"] for e in entries if e.get("n_frames") is not None}
        paths = [{k: Path(v) for k, v in e.items() if k in PATHS and isinstance(v, str)} for e in entries]
        # paths are set apart because they need not be valid text
        apart = [{*own, "n_frames"} for own in paths]
        others = [{k: v for k, v in e.items() if k not in a} for e, a in zip(entries, apart, strict=True)]
        values = {**values, "recordings": others}
    file = config.from_dict(_File, values)
    if odd := [name for name, n in counts.items() if type(n) is not int]:
        raise InputError(f"n_frames of {listing(odd)}: expected a whole number")
    root = folder / file.root
    recordings = tuple(
        replace(recording, **{name: root / path for name, path in own.items()})
        for recording, own in zip(file.recordings, paths, strict=True)
    )
    synthetic = file.synthetic or is_generated(r.id for r in recordings)
    name = SYNTHETIC if synthetic and file.name == AFF_WILD2 else file.name
    return Manifest(name, root, recordings, file.labels, counts, synthetic)


def data_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """Data of a run, from run.json or `extra` of a checkpoint's config.json; {} if not recorded.

    Older runs on recordings of `affectrace synth` did not record `synthetic`; it is inferred from their ids.
    """
    data, ids = about.get("data"), about.get("recordings")
    found = dict(data) if isinstance(data, Mapping) else {"name": str(data)} if data else {}
    parts = ids.values() if isinstance(ids, Mapping) else ()
    listed = [str(i) for part in parts if isinstance(part, list | tuple) for i in part]
    if found.get("name") == AFF_WILD2 and is_generated(listed):
        found |= {"name": SYNTHETIC, "synthetic": True}
    return found


def is_generated(recording_ids: Iterable[str]) -> bool:
    """Whether all of these ids (at least one) are given by `affectrace synth`."""
    ids = list(recording_ids)
    return bool(ids) and all(_GENERATED.fullmatch(i) for i in ids)


def shown(path: Path, root: Path) -> str:
    """A path as problems show it: relative to the data set's folder if below it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _relative(path: Path, folder: Path) -> Path:
    for p, f in ((path, folder), (path.absolute(), folder.absolute())):
        if p.is_relative_to(f):
            return p.relative_to(f)
    return path.absolute()
