"""Output folder of a batch: lock, record of all files written, protection of all others.

run.json            the files here and what made them: the latest run, and earlier ones whose files still exist
.run.journal        during a run: a line for each file, appended before the file is written
.affectrace.lock    held by the running process
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Required, TextIO

from typing_extensions import TypedDict

from affectrace import config as configs
from affectrace.errors import AffectraceError, OutputError
from affectrace.trace import Trace
from affectrace.trace_io import SUFFIXES, sidecar_path

RECORD, JOURNAL = "run.json", ".run.journal"
RUN = ("options", "versions", "failed")
"""Keys of an earlier run in the record."""


class _Run(TypedDict, total=False):
    """One run in run.json. recordings: recording -> files."""

    options: Any
    versions: Any
    failed: Any
    recordings: Required[dict[str, list[str]]]


class _Record(TypedDict, total=False):
    """run.json: the latest run, every file written, and earlier runs whose files exist."""

    options: Any
    versions: Any
    failed: Any
    recordings: dict[str, list[str]]
    written: Required[list[str]]
    earlier: list[_Run]


class OutFolder:
    """A context manager that locks the folder and writes run.json at the end.

    Raises:
        OutputError: the folder cannot be made or written, another run writes to it, or its run.json is not ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._run: dict[str, Any] = {}
        self._recordings: dict[str, list[str]] = {}
        self._earlier: list[dict[str, Any]] = []
        self._written: set[str] = set()
        self._journal: TextIO | None = None
        self._lock = configs.locked_folder(path, "run")

    def __enter__(self) -> OutFolder:
        with contextlib.ExitStack() as entered:
            entered.enter_context(self._lock)
            self._read_record()
            for part in self.path.glob(".*.part"):  # half-written by a killed run
                if part.name[1:].removesuffix(".part").rpartition(".")[0] in (*self._written, RECORD):
                    part.unlink(missing_ok=True)
            entered.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            if self._journal is not None:
                self._journal.close()
                if self.path.is_dir():
                    self._close()
        finally:
            self._lock.__exit__(*error)

    def begin(self, run: dict[str, Any]) -> None:
        """States this run's command, options and versions."""
        self._run = {**run, "failed": []}

    def end(self, failed: list[dict[str, str]]) -> None:
        """States what failed."""
        self._run["failed"] = failed

    def check(self, name: str) -> Path:
        """The path of a result (raises OutputError: a file that affectrace did not write has that name)."""
        path = self.path / name
        for one in (path, sidecar_path(path)) if path.suffix == ".csv" else (path,):
            if one.exists() and one.name not in self._written and not is_our_trace(path):
                raise _foreign(one)
        return path

    def claim(self, name: str, recording: str | None = None) -> Path:
        """As `check`; also records that the file is about to be written."""
        path = self.check(name)
        if self._journal is None:
            self._save()
            self._journal = (self.path / JOURNAL).open("a", encoding="utf-8")
        print(json.dumps([name, recording]), file=self._journal, flush=True)
        self._note(name, recording)
        return path

    def keep(self, recording: str) -> None:
        """Counts an earlier run's results as this run's, which asked for the same."""
        for name in [n for earlier in self._earlier for n in earlier["recordings"].get(recording, ())]:
            self._note(name, recording)

    def holds(self, name: str) -> bool:
        """Whether the folder has this file, written by affectrace."""
        return name in self._written and (self.path / name).exists()

    def earlier_traces(self) -> Iterator[Trace]:
        """Traces of the recordings of earlier runs, each person's from the first readable file."""
        for names in (names for earlier in self._earlier for names in earlier["recordings"].values()):
            seen: set[str] = set()
            for path in (self.path / n for n in names if Path(n).suffix in SUFFIXES):
                if path.stem not in seen:
                    with contextlib.suppress(AffectraceError):
                        yield Trace.load(path)
                        seen.add(path.stem)

    @property
    def is_writable(self) -> bool:
        """Whether a file can still be written here."""
        try:
            with tempfile.TemporaryFile(dir=self.path, prefix=".", suffix=".part"):
                return True
        except OSError:
            return False

    # ---- the record

    def _note(self, name: str, recording: str | None) -> None:
        self._written |= {name, sidecar_path(Path(name)).name} if name.endswith(".csv") else {name}
        if recording is not None:
            for earlier in self._earlier:
                earlier["recordings"].pop(recording, None)
            _add(self._recordings, recording, name)

    def _read_record(self) -> None:
        path, journal = self.path / RECORD, self.path / JOURNAL
        if path.exists():
            try:
                content = configs.from_dict(_Record, configs.read_json(path))
            except AffectraceError:
                raise _foreign(path) from None
            self._written = set(content["written"])
            latest = {**dict.fromkeys(RUN), **content, "recordings": content.get("recordings", {})}
            self._earlier = [*content.get("earlier", ()), {k: latest[k] for k in (*RUN, "recordings")}]
        if journal.exists():  # of a killed run
            for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, TypeError):  # the last line may be cut off
                    name, recording = json.loads(line)
                    self._written |= {name, sidecar_path(Path(name)).name}
                    if recording is not None and self._earlier:
                        _add(self._earlier[-1]["recordings"], recording, name)

    def _save(self) -> None:
        record = {**self._run, "recordings": self._recordings, "written": sorted(self._written)}
        if earlier := [e for e in self._earlier if e["recordings"]]:
            record["earlier"] = earlier
        configs.write_atomic(self.path / RECORD, json.dumps(record, indent=1) + "\n")

    def _close(self) -> None:
        """Replace the journal by a run.json of the files that exist; without any, by nothing."""
        there = {p.name for p in self.path.iterdir()}
        self._written &= there
        for recordings in (self._recordings, *(e["recordings"] for e in self._earlier)):
            for recording, names in list(recordings.items()):
                recordings[recording] = [n for n in names if n in there]
                if not recordings[recording]:
                    del recordings[recording]
        if self._written:
            self._save()
        else:
            (self.path / RECORD).unlink(missing_ok=True)
        (self.path / JOURNAL).unlink(missing_ok=True)


def is_our_trace(path: Path) -> bool:
    """Whether a file is a trace that affectrace wrote."""
    if path.suffix not in SUFFIXES or (path.suffix == ".csv" and not sidecar_path(path).is_file()):
        return False
    try:
        Trace.load(path)
    except AffectraceError:
        return False
    return True


def _add(recordings: dict[str, list[str]], recording: str, name: str) -> None:
    names = recordings.setdefault(recording, [])
    names += [name] if name not in names else []


def _foreign(path: Path) -> OutputError:
    what = "exists and was not written by affectrace; it is left as it is"
    return OutputError(what, where=path, hint="choose another folder with --out")
