"""Traces as files: CSV with a sidecar, Parquet, JSON. Every way back is exact."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from affectrace.config import write_atomic
from affectrace.errors import FormatError, InputError
from affectrace.timeline import Timeline
from affectrace.trace import NOT_LABELLED, Span, Trace

if TYPE_CHECKING:
    import pandas as pd

FORMAT, VERSION = "affectrace.trace", 1
# the first columns are OpenFace's, so that scripts written for its output read ours
LEADING = ("frame", "face_id", "timestamp", "confidence", "success")
COLUMNS = (*LEADING, "valence", "arousal", "valence_sd", "arousal_sd", "valid", "reason")
SUFFIXES = (".csv", ".parquet", ".json")


def sidecar_path(path: Path) -> Path:
    """`talk.csv` -> `talk.csv.json`: the clock and provenance a CSV cannot hold."""
    return path.with_name(path.name + ".json")


def to_frame(trace: Trace) -> pd.DataFrame:
    """One row a frame. `frame` counts from 1; `success` is 1 where a face was found; unknown columns are NaN."""
    import pandas as pd

    n, extras = len(trace), dict(trace.extras)
    empty = np.full(n, np.nan)
    columns: dict[str, Any] = {
        "frame": np.arange(1, n + 1),
        "face_id": np.full(n, trace.person, dtype=object),
        "timestamp": trace.timeline.times,
        "confidence": extras.pop("confidence", empty),
        "success": np.isfinite(extras["face_x"]).astype(float) if "face_x" in extras else empty,
        "valence": trace.valence,
        "arousal": trace.arousal,
        "valence_sd": extras.pop("valence_sd", empty),
        "arousal_sd": extras.pop("arousal_sd", empty),
        "valid": trace.known.astype(int),
        "reason": trace.reason.astype(object),
    }
    return pd.DataFrame({**columns, **extras})


def _header(trace: Trace) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "recording_id": trace.recording_id,
        "person": trace.person,
        "source": trace.source,
        "timeline": trace.timeline.to_dict(),
        "extras": list(trace.extras),
        "spans": [{k: v for k, v in dataclasses.asdict(s).items() if v not in (None, "")} for s in trace.spans],
        "provenance": dict(trace.provenance),
    }


def _columns(trace: Trace) -> dict[str, NDArray[Any]]:
    return {
        "valence": trace.valence,
        "arousal": trace.arousal,
        "valid": trace.known,
        "reason": trace.reason,
        **trace.extras,
    }


def write(trace: Trace, path: Path) -> Path:
    """Write by suffix; see `Trace.save`."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        frame = to_frame(trace)
        frame["success"] = frame["success"].astype("Int64")
        write_atomic(sidecar_path(path), json.dumps(_header(trace), indent=1, allow_nan=False) + "\n")
        write_atomic(path, frame.to_csv(index=False, lineterminator="\n"))
    elif suffix == ".parquet":
        write_atomic(path, _parquet_bytes(trace))
    elif suffix == ".json":
        columns = {k: _plain(v) for k, v in _columns(trace).items()}
        write_atomic(path, json.dumps({**_header(trace), "frames": columns}, allow_nan=False) + "\n")
    else:
        raise InputError(
            f"cannot tell the format from '{path.suffix}'", where=path, hint="end the name in .csv, .parquet or .json"
        )
    return path


def _plain(values: NDArray[Any]) -> list[Any]:
    if values.dtype.kind == "f":
        return [None if math.isnan(v) else v for v in values.tolist()]
    return values.tolist()


def _parquet_bytes(trace: Trace) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    frame = to_frame(trace)
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(
        {FORMAT: json.dumps(_header(trace))}
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def read(path: Path) -> Trace:
    """Read by suffix; see `Trace.load`."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise FormatError(
            f"'{path.suffix}' is not a trace format", where=path, hint="give a .csv, .parquet or .json trace"
        )
    if not path.is_file():
        raise FormatError("no such trace file", where=path, hint="check the path")
    try:
        return {".csv": _read_csv, ".parquet": _read_parquet, ".json": _read_json}[suffix](path)
    except InputError as error:
        if error.where == str(path):
            raise
        raise FormatError(error.what, where=path, hint=error.hint) from None
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise FormatError(
            f"not a readable trace ({type(error).__name__}: {error})", where=path, hint="write it again"
        ) from None


def _checked(header: Any, path: Path) -> Mapping[str, Any]:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise FormatError("is not an affectrace trace", where=path, hint="give a file written by `affectrace predict`")
    if header["version"] > VERSION:
        raise FormatError(
            f"is of trace format {header['version']}, this version reads up to {VERSION}",
            where=path,
            hint="upgrade affectrace",
        )
    return header


def _build(header: Mapping[str, Any], columns: Mapping[str, Any]) -> Trace:
    def floats(name: str) -> NDArray[np.float64]:
        values = columns[name]
        return np.array(
            [np.nan if v is None else v for v in values] if isinstance(values, list) else values, np.float64
        )

    values = np.stack([floats("valence"), floats("arousal")], axis=1)
    known = np.asarray(columns["valid"]).astype(bool)
    return Trace(
        recording_id=header["recording_id"],
        person=header["person"],
        source=header["source"],
        timeline=Timeline.from_dict(header["timeline"]),
        valence=values[:, 0],
        arousal=values[:, 1],
        valid=known[:, None] & ~np.isnan(values),  # a dimension that is not known is an empty cell
        reason=np.array(list(columns["reason"]), dtype=np.str_),
        extras={name: floats(name) for name in header["extras"]},
        spans=tuple(Span(**values) for values in header["spans"]),
        provenance=header["provenance"],
    )


def _read_json(path: Path) -> Trace:
    content = json.loads(path.read_text(encoding="utf-8"))
    return _build(_checked(content, path), content["frames"])


def _read_parquet(path: Path) -> Trace:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise FormatError(f"is not readable Parquet ({error})", where=path, hint="write it again") from None
    raw = (table.schema.metadata or {}).get(FORMAT.encode())
    header = _checked(json.loads(raw) if raw else None, path)
    return _build(header, {name: table[name].to_numpy() for name in table.column_names})


def _read_csv(path: Path) -> Trace:
    import pandas as pd

    frame = pd.read_csv(path, dtype=str, keep_default_na=False)  # text: Python's own float() is exact
    texts = ("reason", "face_id")
    columns = {
        str(name): np.array(frame[name].tolist(), dtype=np.str_)
        if name in texts
        else np.array([float(v) if v else math.nan for v in frame[name]])
        for name in frame.columns
    }
    side = sidecar_path(path)
    if side.is_file():
        return _build(_checked(json.loads(side.read_text(encoding="utf-8")), side), columns)
    return _foreign_csv(path, columns)


def _foreign_csv(path: Path, columns: Mapping[str, NDArray[Any]]) -> Trace:
    """A table of timestamp, valence, arousal from elsewhere: empty cells are not valid."""
    missing = [name for name in ("timestamp", "valence", "arousal") if name not in columns]
    if missing:
        raise FormatError(
            f"has no column {', '.join(missing)}", where=path, hint="name the columns as in docs/trace.md"
        )
    values = np.stack([np.asarray(columns[k], np.float64) for k in ("valence", "arousal")], axis=1)
    valid = np.isfinite(values)
    if "valid" in columns:
        valid &= np.asarray(columns["valid"], np.float64)[:, None] == 1
    extras = {k: np.asarray(v, np.float64) for k, v in columns.items() if k not in COLUMNS and k != "reason"}
    return Trace(
        recording_id=path.stem,
        person=str(columns["face_id"][0]) if "face_id" in columns and len(valid) else "main",
        source="table",
        timeline=Timeline.from_times(columns["timestamp"]),
        valence=values[:, 0],
        arousal=values[:, 1],
        valid=valid,
        reason=np.where(valid.any(axis=1), "", NOT_LABELLED),
        extras=extras,
    )
