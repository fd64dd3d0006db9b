"""Traces as files: CSV with a sidecar, Parquet, JSON. Every way back is exact."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, InstanceOf, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from affectrace.config import write_atomic
from affectrace.errors import FormatError, InputError
from affectrace.recording import cell, uncell
from affectrace.timeline import Timeline
from affectrace.trace import NOT_LABELLED, Span, Trace

FORMAT, VERSION = "affectrace.trace", 1
# the first columns are OpenFace's, so that scripts written for its output read ours
LEADING = ("frame", "face_id", "timestamp", "confidence", "success")
COLUMNS = (*LEADING, "valence", "arousal", "valence_sd", "arousal_sd", "valid", "reason")
SUFFIXES = (".csv", ".parquet", ".json")
_TEXTS = ("reason", "face_id")


def table_csv(frame: pd.DataFrame) -> str:
    """A table as CSV that spreadsheets take for what it is."""
    texts = frame.select_dtypes(include=["object", "string"]).columns
    safe = {k: frame[k].map(lambda v: cell(v) if isinstance(v, str) else v) for k in texts}
    return str(frame.assign(**safe).to_csv(index=False, lineterminator="\n"))


def sidecar_path(path: Path) -> Path:
    """`talk.csv` -> `talk.csv.json`: the clock and provenance a CSV cannot hold."""
    return path.with_name(path.name + ".json")


def to_frame(trace: Trace) -> pd.DataFrame:
    """One row a frame. `frame` counts from 1; `success` is 1 where a face was found; unknown columns are NaN."""
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


def _about(trace: Trace) -> dict[str, Any]:
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


def write(trace: Trace, path: Path) -> Path:
    """Write by suffix; see `Trace.save`."""
    suffix = path.suffix.lower()
    if suffix == ".csv":
        frame = to_frame(trace)
        frame["success"] = frame["success"].astype("Int64")
        write_atomic(sidecar_path(path), json.dumps(_about(trace), indent=1, allow_nan=False) + "\n")
        write_atomic(path, table_csv(frame))
    elif suffix == ".parquet":
        table = pa.Table.from_pandas(to_frame(trace), preserve_index=False)
        sink = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({FORMAT: json.dumps(_about(trace))}), sink, compression="zstd")
        write_atomic(path, sink.getvalue())
    elif suffix == ".json":
        names = {"valence": trace.valence, "arousal": trace.arousal, "valid": trace.known, "reason": trace.reason}
        columns = {k: _plain(v) for k, v in {**names, **trace.extras}.items()}
        write_atomic(path, json.dumps({**_about(trace), "frames": columns}, allow_nan=False) + "\n")
    else:
        raise InputError(
            f"cannot tell the format from '{path.suffix}'", where=path, hint="end the name in .csv, .parquet or .json"
        )
    return path


def _plain(values: NDArray[Any]) -> list[Any]:
    if values.dtype.kind == "f":
        return [None if math.isnan(v) else v for v in values.tolist()]
    return values.tolist()


# ---- reading: what a file's JSON holds is checked here, so that nobody else has to

_Rate = Annotated[str, Field(pattern=r"^\d{1,18}(/\d{1,18})?$")]
_Tick = Annotated[int, Field(ge=-(2**62), le=2**62)]
_Run = Annotated[list[_Tick], Field(min_length=2, max_length=2)]


class _Clock(TypedDict):
    time_base: _Rate
    first: _Tick | None
    steps: list[_Run]
    end: _Tick
    nominal_rate: _Rate | None


@with_config(ConfigDict(allow_inf_nan=False))
class _File(TypedDict):
    format: Literal["affectrace.trace"]
    version: Annotated[int, Field(le=VERSION)]
    recording_id: InstanceOf[str]  # of a file name, so it may hold bytes that are no UTF-8
    person: str
    source: str
    timeline: _Clock
    extras: list[str]
    spans: list[Span]
    provenance: dict[str, Any]
    frames: NotRequired[dict[str, list[Any]]]  # of a .json; in a sidecar and in Parquet's metadata there is none


_FILE = TypeAdapter(_File)


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
        if isinstance(error, FormatError):
            raise
        raise FormatError(error.what, where=path, hint=error.hint) from None
    except (LookupError, ValueError, TypeError, OverflowError, OSError) as error:
        raise FormatError(
            f"not a readable trace ({type(error).__name__}: {error})", where=path, hint="write it again"
        ) from None


def _header(text: bytes, path: Path) -> _File:
    try:
        content = json.loads(text)
        if _deep(content, 100):
            raise RecursionError
        return _FILE.validate_python(content)
    except RecursionError:
        raise FormatError("not a readable trace (nested too deep)", where=path, hint="write it again") from None
    except ValidationError as error:
        wrong = {".".join(map(str, e["loc"])): e["msg"] for e in error.errors(include_url=False)}
    if "format" in wrong:
        raise FormatError("is not an affectrace trace", where=path, hint="give a file written by `affectrace predict`")
    if "version" in wrong:
        raise FormatError(
            f"is of a trace format that this version does not read, it reads up to {VERSION}",
            where=path,
            hint="upgrade affectrace",
        )
    where, what = next(iter(wrong.items()))
    raise FormatError(f"not a readable trace ({where}: {what})", where=path, hint="write it again")


def _deep(content: Any, levels: int) -> bool:
    """Whether JSON is nested beyond so many levels: what reads it later goes through it by recursion."""
    inside = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return not levels or any(_deep(value, levels - 1) for value in inside if isinstance(value, dict | list))


def _build(header: _File, columns: Mapping[str, Any]) -> Trace:
    clock, n = header["timeline"], len(columns["valid"])
    told = (clock["first"] is not None) + sum(count for _, count in clock["steps"])
    if told != n or any(count < 1 for _, count in clock["steps"]):  # before anything of that size is made
        raise InputError(f"the timeline tells of {told} frames, the table has {n}", hint="write it again")

    def floats(name: str) -> NDArray[np.float64]:
        return np.array([np.nan if v is None else v for v in columns[name]], np.float64)

    values = np.stack([floats("valence"), floats("arousal")], axis=1)
    known = np.asarray(columns["valid"]).astype(bool)
    return Trace(
        recording_id=header["recording_id"],
        person=header["person"],
        source=header["source"],
        timeline=Timeline.from_dict(clock),
        valence=values[:, 0],
        arousal=values[:, 1],
        valid=known[:, None] & ~np.isnan(values),  # a dimension that is not known is an empty cell
        reason=np.array([str(reason) for reason in columns["reason"]], dtype=np.str_),
        extras={name: floats(name) for name in header["extras"]},
        spans=tuple(header["spans"]),
        provenance=header["provenance"],
    )


def _read_json(path: Path) -> Trace:
    header = _header(path.read_bytes(), path)
    return _build(header, header["frames"])


def _read_parquet(path: Path) -> Trace:
    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise FormatError(f"is not readable Parquet ({error})", where=path, hint="write it again") from None
    header = _header((table.schema.metadata or {}).get(FORMAT.encode(), b"{}"), path)
    return _build(header, {name: table[name].to_numpy() for name in table.column_names})


def _read_csv(path: Path) -> Trace:
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)  # text: Python's own float() is exact
    columns: dict[str, NDArray[Any]] = {
        str(name): np.array([uncell(v) for v in frame[name]], dtype=np.str_)
        if name in _TEXTS
        else np.array([float(v) if v else math.nan for v in frame[name]])
        for name in frame.columns
    }
    side = sidecar_path(path)
    if side.is_file():
        return _build(_header(side.read_bytes(), side), columns)
    return _foreign_csv(path, columns)


def _foreign_csv(path: Path, columns: Mapping[str, NDArray[Any]]) -> Trace:
    """A table of timestamp, valence, arousal from elsewhere: empty cells are not valid."""
    missing = [name for name in ("timestamp", "valence", "arousal") if name not in columns]
    if missing:
        raise FormatError(
            f"has no column {', '.join(missing)}", where=path, hint="name the columns as in docs/trace.md"
        )
    values = np.stack([columns["valence"], columns["arousal"]], axis=1)
    valid = np.isfinite(values)
    if "valid" in columns:
        valid &= columns["valid"][:, None] == 1
    return Trace(
        recording_id=path.stem,
        person=str(columns["face_id"][0]) if "face_id" in columns and len(valid) else "main",
        source="table",
        timeline=Timeline.from_times(columns["timestamp"]),
        valence=values[:, 0],
        arousal=values[:, 1],
        valid=valid,
        reason=np.where(valid.any(axis=1), "", NOT_LABELLED),
        extras={k: v for k, v in columns.items() if k not in COLUMNS},
    )
