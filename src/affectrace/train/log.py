"""What training writes down as it goes: log.jsonl, steps.csv, validations.csv, and TensorBoard where it is installed.

Rows hold no clock time, so a run that was killed and resumed leaves the files of one that was not.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from affectrace.config import write_atomic

STEP, VALIDATION = "step", "validation"
STEP_COLUMNS = ("step", "epoch", "loss", "lr", "grad_norm")
VALIDATION_COLUMNS = ("step", "epoch", "mean_ccc", "ccc_valence", "ccc_arousal", "rmse_valence", "rmse_arousal")


class Log:
    """Rows of a run in a folder; what lies after step `from_step` (of a run that was killed) is dropped first.

    validation: columns of validations.csv.
    """

    def __init__(self, folder: Path, from_step: int = 0, *, validation: Sequence[str] = VALIDATION_COLUMNS) -> None:
        self._tables = {STEP: ("steps.csv", STEP_COLUMNS), VALIDATION: ("validations.csv", tuple(validation))}
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "log.jsonl"
        kept = [row for row in read_log(folder) if row["step"] <= from_step]
        write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        for event, (name, columns) in self._tables.items():
            lines = [_line(columns)] + [_line([r.get(c, "") for c in columns]) for r in kept if r["event"] == event]
            write_atomic(folder / name, "".join(lines))
        self._json = self.path.open("a", encoding="utf-8")
        self._csv = {event: (folder / name).open("a", encoding="utf-8") for event, (name, _) in self._tables.items()}
        self._board = _board(folder, from_step)

    def add(self, event: str, row: Mapping[str, Any]) -> None:
        """A row of kind STEP or VALIDATION; it is on disk when this returns."""
        plain = {k: None if isinstance(v, float) and v != v else v for k, v in row.items()}
        self._json.write(json.dumps({"event": event, **plain}) + "\n")
        self._csv[event].write(_line([plain.get(c, "") for c in self._tables[event][1]]))
        for file in (self._json, self._csv[event]):
            file.flush()
        if self._board is not None:
            for name, value in plain.items():
                if name not in ("step", "epoch") and isinstance(value, (int, float)):
                    self._board.add_scalar(f"{event}/{name}", value, plain["step"])

    def close(self) -> None:
        """Close all files."""
        for file in (self._json, *self._csv.values()):
            file.close()
        if self._board is not None:
            self._board.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Rows of log.jsonl; a last line cut off by a kill is left out."""
    path = folder / "log.jsonl"
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _line(values: Any) -> str:
    sink = io.StringIO()
    csv.writer(sink, lineterminator="\n").writerow(["" if v is None else v for v in values])
    return sink.getvalue()


def _board(folder: Path, from_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1)
