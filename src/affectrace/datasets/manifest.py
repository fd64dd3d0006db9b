"""A data set as one file: recordings with split and fold, where their files lie, and a table of what was odd in it."""

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
from affectrace.errors import ConfigError, FormatError, InputError
from affectrace.recording import PATHS, SPLITS, Recording, cell, readable, uncell

FORMAT, VERSION = "affectrace.manifest", 1
FILE_NAME = "manifest.json"
AFF_WILD2 = "aff-wild2"
"""Name of a data set in the layout of Aff-Wild2, and of its label format."""
TRACES = "trace"
"""Label format of our own files."""
MEDIUM = "medium"
"""Column that names the video a recording was taken from: left and right of one stay together in folds."""
PROBLEMS_FILE = "problems.csv"
"""The table of problems beside a manifest, as the import wrote it."""
PROBLEM_COLUMNS = ("file", "line", "what", "what was done", "attention")
SYNTHETIC = "affectrace-synthetic"
"""Name of a data set that `affectrace synth` made."""
_GENERATED = re.compile(r"synth_\d{4,}(_left|_right)?")  # ids that `affectrace synth` gives
_SHOWN = 10  # missing files named in one message


@dataclass(frozen=True)
class Problem:
    """One thing that was odd in a data set.

    file: relative to the data set's folder. line: 1-based, None where it is not about a line.
    what: what is odd, with its count. done: what was done about it.
    attention: somebody has to look at it: data is lost, or scores would be wrong. Known oddities that are handled
        need none.
    """

    file: str
    line: int | None
    what: str
    done: str
    attention: bool = False

    @property
    def cells(self) -> tuple[str, ...]:
        """One text for each of PROBLEM_COLUMNS."""
        line = "" if self.line is None else str(self.line)
        return (readable(self.file), line, readable(self.what), self.done, "needed" if self.attention else "")


def write_problems(problems: Iterable[Problem], path: Path) -> Path:
    """Write the table of problems as CSV, atomically (raises OutputError)."""
    sink = io.StringIO()
    csv.writer(sink, lineterminator="\n").writerows([PROBLEM_COLUMNS, *(map(cell, p.cells) for p in problems)])
    config.write_atomic(path, sink.getvalue())
    return path


def read_problems(path: Path) -> tuple[Problem, ...]:
    """What `write_problems` wrote; nothing where there is no such file (raises FormatError: another file)."""
    if not path.is_file():
        return ()
    try:
        header, *rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8", errors="replace")))
        if tuple(header) != PROBLEM_COLUMNS:
            raise ValueError("its header is another")
        return tuple(
            Problem(file, int(line) if line else None, what, done, attention == "needed")
            for file, line, what, done, attention in (map(uncell, row) for row in rows)
        )
    except (ValueError, csv.Error) as error:
        raise FormatError(f"is no table of problems ({error})", where=path, hint="remove it") from None


@dataclass(frozen=True)
class Manifest:
    """A data set: its recordings and where their files lie.

    name: of the data set. root: folder that paths in the file are relative to; files elsewhere keep their whole path.
    recordings: in a fixed order, ids unique.
    labels: format of the label files: "trace" (our own) or "aff-wild2"; see `datasets.read_labels`.
    n_frames: recording id -> frames on its clock, where counted.
    synthetic: `affectrace synth` made the recordings: they show no people, and scores say nothing of people. Files
        written before there was this field are recognised by the ids of their recordings.
    """

    name: str
    root: Path
    recordings: tuple[Recording, ...]
    labels: str = TRACES
    n_frames: Mapping[str, int] = field(default_factory=dict)
    synthetic: bool = False

    def __post_init__(self) -> None:
        ids = Counter(r.id for r in self.recordings)
        twice = sorted(name for name, n in ids.items() if n > 1)
        if twice:
            raise InputError(f"ids that occur more than once: {', '.join(twice[:_SHOWN])}", where=self.name)
        wrong = sorted(name for name, n in self.n_frames.items() if name not in ids or n < 0)
        if wrong:
            raise InputError(f"frame counts that fit no recording: {', '.join(wrong)}", where=self.name)
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
        """Whether it is taken for Aff-Wild2: in that layout, under that name, and not generated."""
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
        """(recording id, what it is, path) of every file that is not there."""
        return tuple(
            (recording.id, name, path)
            for recording in self.recordings
            for name in PATHS
            if (path := getattr(recording, name)) is not None and not path.exists()
        )

    # ---- as a file

    def about(self) -> dict[str, Any]:
        """What a checkpoint or a score keeps of its data: name, digest, and `synthetic` (True) where it is."""
        made = {"synthetic": True} if self.synthetic else {}
        return {"name": self.name, "digest": self.digest(), **made}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, paths relative to `root` where they lie below it; `root` itself is not in it."""
        made = {"synthetic": True} if self.synthetic else {}
        head = {"format": FORMAT, "version": VERSION, "name": self.name, "labels": self.labels, **made}
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
        """sha256 of the content (64 hex digits): the same wherever the data lies, another when anything changes."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def save(self, path: str | Path) -> Path:
        """Write as JSON, atomically; `root` is stored relative to the file where it lies at or below its folder.

        Raises:
            OutputError: not writable.
        """
        path = Path(path)
        root = _relative(self.root.resolve(), path.parent.resolve()).as_posix()
        values = self.to_dict()
        values = {**{k: values[k] for k in ("format", "version", "name")}, "root": root, **values}
        text = json.dumps(values, indent=1, ensure_ascii=False)
        if any("\ud800" <= c <= "\udfff" for c in text):  # a path that is not UTF-8: kept by JSON's own escapes
            text = json.dumps(values, indent=1)
        config.write_atomic(path, text + "\n")
        return path

    @classmethod
    def load(cls, path: str | Path, *, check: bool = True) -> Manifest:
        """Read what `save` wrote; a folder stands for the `manifest.json` in it.

        check: see that every file is there.

        Raises:
            FormatError: missing, foreign, damaged or of a later version; all mistakes together.
            InputError: files are missing (with `check`).
        """
        path = Path(path)
        path = path / FILE_NAME if path.is_dir() else path
        try:
            values = config.read_json(path)
        except ConfigError as error:
            raise FormatError(error.what, where=path, hint=error.hint) from None
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise FormatError("is not an affectrace manifest", where=path, hint="make one with `affectrace import`")
        if not isinstance(values.get("version"), int) or values["version"] > VERSION:
            raise FormatError(
                f"is of manifest format {values.get('version')!r}, this version reads up to {VERSION}",
                where=path,
                hint="upgrade affectrace",
            )
        try:
            manifest = _build(values, path.parent)
        except InputError as error:
            raise FormatError(error.what, where=path, hint="correct the named fields, or make it again") from None
        if check and (missing := manifest.missing_files()):
            named = ", ".join(f"{path} ({name} of {who})" for who, name, path in missing[:_SHOWN])
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            raise InputError(
                f"missing files ({len(missing)}): {named}{more}",
                where=manifest.name,
                hint="put them back, correct `root` in the manifest, or make the manifest again",
            )
        return manifest


@dataclass(frozen=True)
class _File(config.Config):
    """A manifest as its file has it, but for the frame counts."""

    format: str
    version: int
    name: str
    root: Path
    recordings: tuple[Recording, ...]
    labels: str = TRACES
    synthetic: bool = False


def _build(values: dict[str, Any], folder: Path) -> Manifest:
    entries, counts, files = values.get("recordings"), dict[str, Any](), list[dict[str, Any]]()
    if isinstance(entries, list) and all(isinstance(e, dict) for e in entries):
        counts = {str(e.get("id")): e["n_frames"] for e in entries if e.get("n_frames") is not None}
        files = [{k: Path(v) for k, v in e.items() if k in PATHS and isinstance(v, str)} for e in entries]
        apart = [{*own, "n_frames"} for own in files]  # names of files need not be text
        others = [{k: v for k, v in e.items() if k not in a} for e, a in zip(entries, apart, strict=True)]
        values = {**values, "recordings": others}
    file = config.from_dict(_File, values)
    if odd := [name for name, n in counts.items() if type(n) is not int]:
        raise InputError(f"n_frames of {', '.join(odd[:_SHOWN])}: expected a whole number")
    root = folder / file.root
    recordings = tuple(
        replace(recording, **{name: root / path for name, path in own.items()})
        for recording, own in zip(file.recordings, files, strict=True)
    )
    synthetic = file.synthetic or is_generated(r.id for r in file.recordings)
    name = SYNTHETIC if synthetic and file.name == AFF_WILD2 else file.name
    return Manifest(name, root, recordings, file.labels, counts, synthetic)


def data_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a run kept of its data (`about`: run.json, or `extra` of a checkpoint's config.json); {} where nothing.

    A run on recordings of `affectrace synth` that was started before `synthetic` was kept is recognised by their ids.
    """
    data, ids = about.get("data"), about.get("recordings")
    found = dict(data) if isinstance(data, Mapping) else {"name": str(data)} if data else {}
    parts = ids.values() if isinstance(ids, Mapping) else ()
    listed = [str(i) for part in parts if isinstance(part, list | tuple) for i in part]
    if found.get("name") == AFF_WILD2 and is_generated(listed):
        found |= {"name": SYNTHETIC, "synthetic": True}
    return found


def is_generated(recording_ids: Iterable[str]) -> bool:
    """Whether all of these (at least one) are names that `affectrace synth` gives."""
    ids = list(recording_ids)
    return bool(ids) and all(_GENERATED.fullmatch(i) for i in ids)


def shown(path: Path, root: Path) -> str:
    """A path as problems show it: relative to the data set's folder where it lies below it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _relative(path: Path, folder: Path) -> Path:
    for p, f in ((path, folder), (path.absolute(), folder.absolute())):
        if p.is_relative_to(f):
            return p.relative_to(f)
    return path.absolute()
