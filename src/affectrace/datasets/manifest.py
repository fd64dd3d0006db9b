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
from types import MappingProxyType
from typing import Any

from affectrace import config
from affectrace.errors import ConfigError, FormatError, InputError
from affectrace.recording import PATHS, SPLITS, Recording

FORMAT, VERSION = "affectrace.manifest", 1
FILE_NAME = "manifest.json"
AFF_WILD2 = "aff-wild2"
"""Name of a data set in the layout of Aff-Wild2, and of its label format."""
MEDIUM = "medium"
"""Column that names the video a recording was taken from: left and right of one stay together in folds."""
PROBLEMS_FILE = "problems.csv"
"""The table of problems beside a manifest, as the import wrote it."""
SYNTHETIC = "affectrace-synthetic"
"""Name of a data set that `affectrace synth` made."""
_GENERATED = re.compile(r"synth_\d{4,}(_left|_right)?")  # ids that `affectrace synth` gives
_COLUMNS = ("file", "line", "what", "what was done", "attention")
_SHOWN = 10  # missing files named in one message


@dataclass(frozen=True)
class Problem:
    """One thing that was odd in a data set.

    file: as it lies below the data set's folder. line: 1-based, None where it is not about a line.
    what: what is odd, with its count. done: what was done about it.
    attention: whether somebody has to look at it: something is lost, or scores would be wrong. Oddities that a data
    set is known for, and that are handled, are no such thing.
    """

    file: str
    line: int | None
    what: str
    done: str
    attention: bool = False


def problems_csv(problems: Iterable[Problem]) -> str:
    """The table `file,line,what,what was done,attention` as CSV text; the last says "needed" or nothing."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for p in problems:
        line = "" if p.line is None else p.line
        writer.writerow((p.file, line, p.what, p.done, "needed" if p.attention else ""))
    return sink.getvalue()


def write_problems(problems: Iterable[Problem], path: Path) -> Path:
    """Write the table of problems as CSV, atomically (raises OutputError)."""
    config.write_atomic(path, problems_csv(problems))
    return path


def read_problems(path: Path) -> tuple[Problem, ...]:
    """What `write_problems` wrote; none where there is no such file.

    Raises:
        FormatError: another file.
    """
    if not path.is_file():
        return ()
    rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8", errors="replace")))
    try:
        if tuple(next(rows, ())) != _COLUMNS:
            raise ValueError("its header is another")
        return tuple(
            Problem(file, int(line) if line else None, what, done, attention == "needed")
            for file, line, what, done, attention in rows
        )
    except ValueError as error:
        raise FormatError(f"is no table of problems ({error})", where=path, hint="remove it") from None


@dataclass(frozen=True)
class Manifest:
    """A data set: its recordings and where their files lie.

    name: of the data set. root: folder below which its files lie; files elsewhere keep their whole path.
    recordings: in a fixed order, ids unique.
    labels: how the label files are written: "trace" (our own files) or "aff-wild2"; see `catalog.read_labels`.
    n_frames: recording id -> frames on its clock, where counted.
    synthetic: whether `affectrace synth` made the recordings: they show no people, and no score of them is one of
        people. Files written before there was this field are known by the ids of their recordings.

    Raises:
        InputError: an id twice, or frame counts of recordings that are not there.
    """

    name: str
    root: Path
    recordings: tuple[Recording, ...]
    labels: str = "trace"
    n_frames: Mapping[str, int] = field(default_factory=dict)
    synthetic: bool = False

    def __post_init__(self) -> None:
        twice = sorted(name for name, n in Counter(r.id for r in self.recordings).items() if n > 1)
        if twice:
            raise InputError(f"{len(twice)} ids stand twice: {', '.join(twice[:_SHOWN])}", where=self.name)
        unknown = sorted(set(self.n_frames) - {r.id for r in self.recordings})
        negative = sorted(name for name, n in self.n_frames.items() if n < 0)
        if unknown or negative:
            raise InputError(f"frame counts that fit no recording: {', '.join(unknown + negative)}", where=self.name)
        object.__setattr__(self, "root", Path(self.root))
        object.__setattr__(self, "recordings", tuple(self.recordings))
        object.__setattr__(self, "n_frames", MappingProxyType(dict(self.n_frames)))

    def __len__(self) -> int:
        return len(self.recordings)

    def __iter__(self) -> Iterator[Recording]:
        return iter(self.recordings)

    def __getitem__(self, recording_id: str) -> Recording:
        for recording in self.recordings:
            if recording.id == recording_id:
                return recording
        raise InputError(f"no recording '{recording_id}'", where=self.name)

    def __reduce__(self) -> tuple[object, ...]:  # a mapping proxy does not pickle
        return (Manifest, (self.name, self.root, self.recordings, self.labels, dict(self.n_frames), self.synthetic))

    @property
    def is_aff_wild2(self) -> bool:
        """Whether it is taken for Aff-Wild2: it lies in that layout under that name, and was not generated."""
        return self.name == self.labels == AFF_WILD2 and not self.synthetic

    def of_split(self, split: str) -> tuple[Recording, ...]:
        """The recordings of "train", "validation" or "test" (raises InputError)."""
        if split not in SPLITS:
            raise InputError(f"unknown split '{split}'", hint=f"one of {', '.join(SPLITS)}")
        return tuple(r for r in self.recordings if r.split == split)

    def with_recordings(self, recordings: Sequence[Recording]) -> Manifest:
        """The same data set with other (or changed) recordings."""
        kept = {r.id for r in recordings}
        return replace(
            self, recordings=tuple(recordings), n_frames={k: n for k, n in self.n_frames.items() if k in kept}
        )

    def missing_files(self) -> tuple[tuple[str, str, Path], ...]:
        """(recording id, what it is, path) of every file that is not there."""
        return tuple(
            (recording.id, name, path)
            for recording in self.recordings
            for name in PATHS
            if (path := getattr(recording, name)) is not None and not path.exists()
        )

    def check_files(self) -> None:
        """See that every file is there.

        Raises:
            InputError: some are not; the message counts them and names the first ten.
        """
        missing = self.missing_files()
        if missing:
            named = ", ".join(f"{path} ({name} of {who})" for who, name, path in missing[:_SHOWN])
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            raise InputError(
                f"{len(missing)} files are missing: {named}{more}",
                where=self.name,
                hint="put them back, correct `root` in the manifest, or make the manifest again",
            )

    # ---- travelling

    def about(self) -> dict[str, Any]:
        """What a checkpoint or a score keeps of its data: name, digest, and `synthetic` (True) where it is."""
        made = {"synthetic": True} if self.synthetic else {}
        return {"name": self.name, "digest": self.digest(), **made}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, paths relative to `root` where they lie below it; `root` itself is not in it."""
        made = {"synthetic": True} if self.synthetic else {}
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "labels": self.labels,
            **made,
            "recordings": [self._entry(r) for r in self.recordings],
        }

    def _entry(self, recording: Recording) -> dict[str, Any]:
        values: dict[str, Any] = {"id": recording.id}
        for name in PATHS:
            path = getattr(recording, name)
            if path is not None:
                values[name] = _relative(path, self.root).as_posix()
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
        config.write_atomic(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n")
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
            raise FormatError("is not an affectrace manifest", where=path, hint="make one with `affectrace extract`")
        if not isinstance(values.get("version"), int) or values["version"] > VERSION:
            raise FormatError(
                f"is of manifest format {values.get('version')!r}, this version reads up to {VERSION}",
                where=path,
                hint="upgrade affectrace",
            )
        try:
            manifest = _build(config.from_dict(_File, values), path.parent)
        except InputError as error:
            raise FormatError(error.what, where=path, hint="mend the named fields, or make it again") from None
        if check:
            manifest.check_files()
        return manifest


@dataclass(frozen=True)
class _Entry:
    """One recording as the file has it."""

    id: str
    video: Path | None = None
    audio: Path | None = None
    transcript: Path | None = None
    labels: Path | None = None
    crops: Path | None = None
    subject: str | None = None
    person: str = "main"
    split: str | None = None
    fold: int | None = None
    columns: dict[str, str] = field(default_factory=dict)
    n_frames: int | None = None

    def __post_init__(self) -> None:
        self.recording(Path())  # its own checks, so that each mistake is reported with its place

    def recording(self, root: Path) -> Recording:
        """The recording, its paths below `root`."""
        values = {k: v for k in self.__dataclass_fields__ if (v := getattr(self, k)) is not None and k != "n_frames"}
        return Recording(**{k: root / v if k in PATHS else v for k, v in values.items()})


@dataclass(frozen=True)
class _File:
    format: str
    version: int
    name: str
    root: Path
    recordings: list[_Entry]
    labels: str = "trace"
    synthetic: bool = False


def data_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a run kept of its data (`about`: run.json, or `extra` of a checkpoint's config.json); {} where nothing.

    A run on recordings of `affectrace synth` that was started before `synthetic` was kept is known by their ids.
    """
    data, ids = about.get("data"), about.get("recordings")
    found = dict(data) if isinstance(data, Mapping) else {"name": str(data)} if data else {}
    parts = ids.values() if isinstance(ids, Mapping) else ()
    listed = [str(i) for part in parts if isinstance(part, list | tuple) for i in part]
    if found.get("name") == AFF_WILD2 and is_generated(listed):
        found |= {"name": SYNTHETIC, "synthetic": True}
    return found


def is_generated(recording_ids: Iterable[str]) -> bool:
    """Whether these (and there are some) bear the names that `affectrace synth` gives, and no others."""
    ids = list(recording_ids)
    return bool(ids) and all(_GENERATED.fullmatch(i) for i in ids)


def _build(file: _File, folder: Path) -> Manifest:
    root = folder / file.root
    synthetic = file.synthetic or is_generated(entry.id for entry in file.recordings)
    return Manifest(
        name=SYNTHETIC if synthetic and file.name == AFF_WILD2 else file.name,
        root=root,
        recordings=tuple(entry.recording(root) for entry in file.recordings),
        labels=file.labels,
        n_frames={entry.id: entry.n_frames for entry in file.recordings if entry.n_frames is not None},
        synthetic=synthetic,
    )


def _relative(path: Path, folder: Path) -> Path:
    for p, f in ((path, folder), (path.absolute(), folder.absolute())):
        if p.is_relative_to(f):
            return p.relative_to(f)
    return path.absolute()
