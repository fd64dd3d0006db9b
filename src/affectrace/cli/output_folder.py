"""The folder a batch writes to: what was written is noted in run.json, and no other file is ever replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from affectrace import config as configs
from affectrace.errors import AffectraceError, OutputError
from affectrace.trace import Trace
from affectrace.trace_io import SUFFIXES, sidecar_path

RECORD = "run.json"


class OutFolder:
    """Where results go.

    Raises:
        OutputError: the folder cannot be made or written, or holds a run.json of somebody else's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_new = not path.exists()
        self._written: set[str] = set()
        self._probe()
        record = path / RECORD
        if record.exists():
            try:
                content = configs.read_json(record)
                self._written = set(content["written"])
            except (AffectraceError, KeyError, TypeError):
                raise self._foreign(record) from None

    def _probe(self) -> None:
        probe = self.path / ".affectrace-writable"
        try:
            configs.write_atomic(probe, "")
            probe.unlink()
        except OutputError as error:
            raise OutputError(error.what, where=self.path, hint=error.hint) from None

    @property
    def is_writable(self) -> bool:
        """Whether a file can still be written here."""
        try:
            self._probe()
        except OutputError:
            return False
        return True

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

    def claim(self, name: str) -> Path:
        """`check`, and note that the result is about to be written."""
        path = self.check(name)
        self._written.add(name)
        if path.suffix == ".csv":
            self._written.add(sidecar_path(path).name)
        return path

    def record(self, run: dict[str, Any]) -> None:
        """Write run.json: what was run, and what was written."""
        names = sorted(n for n in self._written if (self.path / n).exists())
        configs.write_atomic(self.path / RECORD, json.dumps({**run, "written": names}, indent=1) + "\n")

    def leave_as_found(self) -> None:
        """After a run that came to nothing: no empty folder stays where there was none."""
        if self.is_new and not any(self.path.iterdir()):
            self.path.rmdir()

    def _foreign(self, path: Path) -> OutputError:
        return OutputError(
            "exists and was not written by affectrace; it is left as it is",
            where=path,
            hint="choose another folder with --out",
        )


def is_our_trace(path: Path) -> bool:
    """Whether a file is a trace that affectrace wrote."""
    if path.suffix not in SUFFIXES:
        return False
    try:
        Trace.load(path)
    except AffectraceError:
        return False
    return path.suffix != ".csv" or sidecar_path(path).is_file()
