"""The folder a batch writes to: one run at a time, what it wrote is on record, and no other file is ever replaced.

run.json            what made the files here: the latest run, and earlier ones whose files are still there
.run.journal        while a run is under way: a line for each file, appended before the file is written
.affectrace.lock    held by the run that writes here
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from affectrace import config as configs
from affectrace.errors import AffectraceError, OutputError
from affectrace.trace import Trace
from affectrace.trace_io import SUFFIXES, sidecar_path

RECORD, JOURNAL = "run.json", ".run.journal"
RUN = ("options", "versions", "failed")
"""Keys of a run in the record."""


class OutFolder:
    """Where results go; a context manager that holds the folder's lock and leaves run.json behind.

    Raises:
        OutputError: the folder cannot be made or written, another run writes there, or it holds a run.json of somebody
            else's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: dict[str, None] = {}
        self._run: dict[str, Any] = {}
        self._recordings: dict[str, list[str]] = {}
        self._earlier: list[dict[str, Any]] = []
        self._journal: TextIO | None = None
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> OutFolder:
        with contextlib.ExitStack() as entered:
            entered.enter_context(configs.locked_folder(self.path, "run"))
            self._read_record()
            self._remove_parts()
            self._exit = entered.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._journal is not None and self.path.is_dir():
                self._close(self._journal)
        finally:
            self._exit.close()

    # ---- names

    def check(self, name: str) -> Path:
        """The path of a result, which is absent or ours.

        Raises:
            OutputError: a file of the user's own has that name.
        """
        path = self.path / name
        for one in (path, sidecar_path(path)) if path.suffix == ".csv" else (path,):
            if one.exists() and one.name not in self._written and not is_our_trace(path):
                raise self._foreign(one)
        return path

    def claim(self, name: str, recording: str | None = None) -> Path:
        """`check`, and put on record that the result is about to be written."""
        path = self.check(name)
        if self._journal is None:
            self._save()
            self._journal = (self.path / JOURNAL).open("a", encoding="utf-8")
        print(json.dumps([name, recording]), file=self._journal, flush=True)
        self._note(name, recording)
        return path

    def _note(self, name: str, recording: str | None) -> None:
        self._written[name] = None
        if name.endswith(".csv"):
            self._written[sidecar_path(Path(name)).name] = None
        if recording is not None:
            for earlier in self._earlier:
                earlier["recordings"].pop(recording, None)
            mine = self._recordings.setdefault(recording, [])
            mine += [name] if name not in mine else []

    def keep(self, recording: str) -> None:
        """Results of an earlier run count as this one's: it asked for the same."""
        names = [n for earlier in self._earlier for n in earlier["recordings"].get(recording, ())]
        for name in names:
            self._note(name, recording)

    # ---- the record

    def begin(self, run: dict[str, Any]) -> None:
        """What this run is: command, options, versions."""
        self._run = {**run, "failed": []}

    def end(self, failed: list[dict[str, str]]) -> None:
        """What it came to."""
        self._run["failed"] = failed

    def earlier_traces(self) -> Iterator[Trace]:
        """Traces of recordings that other runs left here, each from the first file that can be read."""
        for earlier in self._earlier:
            for names in earlier["recordings"].values():
                yield from _traces(self.path / n for n in names if Path(n).suffix in SUFFIXES)

    def holds(self, name: str) -> bool:
        """Whether a file of ours is there."""
        return name in self._written and (self.path / name).exists()

    def _read_record(self) -> None:
        path = self.path / RECORD
        if path.exists():
            try:
                content = configs.read_json(path)
                self._written = dict.fromkeys(str(name) for name in content["written"])
                if not all(isinstance(name, str) for name in content["written"]):
                    raise TypeError
                self._earlier = [*content.get("earlier", ()), {k: content.get(k) for k in RUN}]
                self._earlier[-1]["recordings"] = dict(content.get("recordings", {}))
            except (AffectraceError, KeyError, TypeError, ValueError):
                raise self._foreign(path) from None
        journal = self.path / JOURNAL
        if journal.exists():  # a run was killed: what it had begun to write is ours
            for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError, TypeError):  # the last line may be half there
                    name, recording = json.loads(line)
                    self._written[str(name)] = None
                    self._written[sidecar_path(Path(name)).name] = None
                    if recording is not None and self._earlier:
                        self._earlier[-1]["recordings"].setdefault(recording, []).append(name)

    def _save(self) -> None:
        earlier = [e for e in self._earlier if e["recordings"]]
        record = {**self._run, "recordings": self._recordings, "written": list(self._written)}
        text = json.dumps({**record, **({"earlier": earlier} if earlier else {})}, indent=1)
        configs.write_atomic(self.path / RECORD, text + "\n")

    def _close(self, journal: TextIO) -> None:
        """Write run.json of what is there, and end the journal; what came to nothing leaves neither."""
        journal.close()
        there = {p.name for p in self.path.iterdir()}
        self._written = dict.fromkeys(sorted(self._written.keys() & there))
        for run in ({"recordings": self._recordings}, *self._earlier):
            found = {recording: [n for n in names if n in there] for recording, names in run["recordings"].items()}
            run["recordings"].clear()
            run["recordings"].update({recording: names for recording, names in found.items() if names})
        if self._written:
            self._save()
        else:
            (self.path / RECORD).unlink(missing_ok=True)
        (self.path / JOURNAL).unlink(missing_ok=True)

    def _remove_parts(self) -> None:
        """What a killed run of ours left half-written; a name of its own is random, the file's is on record."""
        for part in self.path.glob(".*.part"):
            if part.name[1:].removesuffix(".part").rpartition(".")[0] in (*self._written, RECORD):
                part.unlink(missing_ok=True)

    # ---- the folder

    @property
    def is_writable(self) -> bool:
        """Whether a file can still be written here."""
        try:
            with tempfile.TemporaryFile(dir=self.path, prefix=".", suffix=".part"):
                return True
        except OSError:
            return False

    def _foreign(self, path: Path) -> OutputError:
        return OutputError(
            "exists and was not written by affectrace; it is left as it is",
            where=path,
            hint="choose another folder with --out",
        )


def _traces(paths: Iterator[Path]) -> Iterator[Trace]:
    """Of one recording: all persons, each in one format."""
    seen: set[str] = set()
    for path in paths:
        if path.stem not in seen:
            with contextlib.suppress(AffectraceError):
                yield Trace.load(path)
                seen.add(path.stem)


def is_our_trace(path: Path) -> bool:
    """Whether a file is a trace that affectrace wrote."""
    if path.suffix not in SUFFIXES:
        return False
    try:
        Trace.load(path)
    except AffectraceError:
        return False
    return path.suffix != ".csv" or sidecar_path(path).is_file()
