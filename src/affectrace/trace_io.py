"""Trace files: CSV with a sidecar, Parquet, JSON; exact round trips."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray
from pydantic import ConfigDict, InstanceOf, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from affectrace.config import Count, Exact, write_atomic
from affectrace.errors import FormatError, InputError, optional_packages
from affectrace.recording import cell, uncell
from affectrace.timeline import Timeline
from affectrace.trace import NOT_LABELLED, Span, Trace

if TYPE_CHECKING:
    import pandas as pd

FORMAT, VERSION = "affectrace.trace", 1
# OpenFace's columns first, so that scripts written for its output read these files
LEADING = ("frame", "face_id", "timestamp", "confidence", "success")
COLUMNS = (*LEADING, "valence", "arousal", "valence_sd", "arousal_sd", "valid", "reason")
SUFFIXES = (".csv", ".parquet", ".json")
_MOST_LEVELS = 100  # of nested JSON: later readers recurse through it


def table_csv(frame: pd.DataFrame) -> str:
    """A table as CSV in which a spreadsheet takes no text for a formula."""
    texts = frame.select_dtypes(include=["object", "string"]).columns
    safe = {k: frame[k].map(lambda v: cell(v) if isinstance(v, str) else v) for k in texts}
    return str(frame.assign(**safe).to_csv(index=False, lineterminator="\n"))


def sidecar_path(path: Path) -> Path:
    """`talk.csv` -> `talk.csv.json`: the exact clock, spans and provenance, which a CSV cannot hold."""
    return path.with_name(path.name + ".json")


def to_frame(trace: Trace) -> pd.DataFrame:
    """One row a frame. `frame` counts from 1; `success` is 1 where a face was found; missing columns are NaN."""
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
    import pandas as pd  # 40 MB, after the recording is decoded

    return pd.DataFrame({**columns, **extras})


def write(trace: Trace, path: Path) -> Path:
    """Write by suffix; see `Trace.save`."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "recording_id": trace.recording_id,
        "person": trace.person,
        "source": trace.source,
        "timeline": trace.timeline.to_dict(),
        "extras": list(trace.extras),
        "spans": [{k: v for k, v in asdict(span).items() if v not in (None, "")} for span in trace.spans],
        "provenance": trace.provenance,
    }
    suffix = path.suffix.lower()
    if suffix == ".csv":
        frame = to_frame(trace)
        frame["success"] = frame["success"].astype("Int64")
        write_atomic(sidecar_path(path), json.dumps(header, indent=1, allow_nan=False) + "\n")
        write_atomic(path, table_csv(frame))
    elif suffix == ".parquet":
        pyarrow = load_pyarrow()
        table = pyarrow.Table.from_pandas(to_frame(trace), preserve_index=False)
        table = table.replace_schema_metadata({FORMAT: json.dumps(header)})
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(table, buffer, compression="zstd")
        write_atomic(path, buffer.getvalue())
    elif suffix == ".json":
        columns = {"valence": trace.valence, "arousal": trace.arousal, "valid": trace.known, "reason": trace.reason}
        frames = {k: [None if v != v else v for v in x.tolist()] for k, x in {**columns, **trace.extras}.items()}
        write_atomic(path, json.dumps({**header, "frames": frames}, allow_nan=False) + "\n")
    else:
        raise _unknown_format(path)
    return path


def load_pyarrow() -> Any:
    """pyarrow with its Parquet module (raises InputError: not installed)."""
    with optional_packages("Parquet"):
        import pyarrow.parquet
    return pyarrow


def _unknown_format(path: Path) -> FormatError:
    hint = "the suffix of a trace is .csv, .parquet or .json"
    return FormatError(f"'{path.suffix}' is not a trace format", where=path, hint=hint)


# ---- reading: the header is validated here, nowhere else


class _Clock(TypedDict):
    time_base: Annotated[Exact, Ge(Fraction(1, 10**18))]  # float64 holds it
    first: int | None
    steps: list[tuple[int, Count]]
    end: int
    nominal_rate: Exact | None


@with_config(ConfigDict(allow_inf_nan=False))
class _Header(TypedDict):
    format: Literal["affectrace.trace"]
    version: Annotated[int, Le(VERSION)]
    recording_id: InstanceOf[str]  # from a file name, which may not be UTF-8: pydantic's own check refuses surrogates
    person: str
    source: str
    timeline: _Clock
    extras: list[str]
    spans: list[Span]
    provenance: dict[str, Any]
    frames: NotRequired[dict[str, list[Any]]]  # columns, in .json only


_HEADER = TypeAdapter(_Header)


def read(path: Path) -> Trace:
    """Read by suffix; see `Trace.load`."""
    readers = {".csv": _read_csv, ".parquet": _read_parquet, ".json": _read_json}
    if path.suffix.lower() not in readers:
        raise _unknown_format(path)
    try:
        return readers[path.suffix.lower()](path)
    except FormatError:
        raise
    except FileNotFoundError:
        raise FormatError("no such trace file", where=path, hint="check the path") from None
    except InputError as error:
        raise FormatError(error.what, where=path, hint=error.hint) from None
    except (LookupError, ValueError, TypeError, OverflowError, RecursionError, OSError) as error:
        why = f"{type(error).__name__}: {error}"
        raise FormatError(f"not a readable trace ({why})", where=path, hint="write it again") from None


def _header(text: bytes, path: Path) -> _Header:
    content = json.loads(text)
    if _deeper(content, _MOST_LEVELS):
        raise RecursionError("nested too deeply")
    try:
        return _HEADER.validate_python(content)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        why = f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}"
        hint = "give a file written by `affectrace predict`, of this version or an older one"
        raise FormatError(f"is not an affectrace trace ({why})", where=path, hint=hint) from None


def _deeper(content: Any, levels: int) -> bool:
    """Whether JSON is nested deeper than `levels`."""
    inside = content.values() if isinstance(content, dict) else content if isinstance(content, list) else ()
    return not levels or any(_deeper(value, levels - 1) for value in inside if isinstance(value, dict | list))


def _trace(header: _Header, columns: Mapping[str, Any]) -> Trace:
    clock, n = header["timeline"], len(columns["valid"])
    n_frames = (clock["first"] is not None) + sum(count for _, count in clock["steps"])
    if n_frames != n:  # before anything of that size is allocated
        raise InputError(f"the timeline has {n_frames} frames, the table {n}", hint="write it again")
    valence, arousal, known = (np.array(columns[name], np.float64) for name in ("valence", "arousal", "valid"))
    return Trace(
        recording_id=header["recording_id"],
        person=header["person"],
        source=header["source"],
        timeline=Timeline.from_dict(clock),
        valence=valence,
        arousal=arousal,
        valid=(known == 1)[:, None] & np.isfinite([valence, arousal]).T,  # a missing dimension is an empty cell
        reason=np.array([str(reason) for reason in columns["reason"]], dtype=np.str_),
        extras={name: np.array(columns[name], np.float64) for name in header["extras"]},
        spans=tuple(header["spans"]),
        provenance=header["provenance"],
    )


def _read_json(path: Path) -> Trace:
    header = _header(path.read_bytes(), path)
    return _trace(header, header["frames"])


def _read_parquet(path: Path) -> Trace:
    table = load_pyarrow().parquet.read_table(path)
    header = _header((table.schema.metadata or {}).get(FORMAT.encode(), b"{}"), path)
    return _trace(header, {name: table[name].to_numpy() for name in table.column_names})


def _read_csv(path: Path) -> Trace:
    import pandas as pd

    table = pd.read_csv(path, dtype=str, keep_default_na=False)  # pandas parses floats exactly from version 3.1 only
    columns: dict[str, NDArray[Any]] = {
        str(name): np.array([uncell(v) for v in table[name]], np.str_)
        if name in ("face_id", "reason")
        else np.array([float(v or "nan") for v in table[name]], np.float64)
        for name in table
    }
    side = sidecar_path(path)
    if side.is_file():
        return _trace(_header(side.read_bytes(), side), columns)
    return _foreign(path, columns)


def _foreign(path: Path, columns: Mapping[str, NDArray[Any]]) -> Trace:
    """A table from elsewhere with timestamp, valence, arousal: empty cells are invalid."""
    missing = [name for name in ("timestamp", "valence", "arousal") if name not in columns]
    if missing:
        hint = "name the columns as in docs/trace.md"
        raise FormatError(f"has no column {', '.join(missing)}", where=path, hint=hint)
    valid = np.isfinite([columns["valence"], columns["arousal"]]).T
    if "valid" in columns:
        valid &= columns["valid"][:, None] == 1
    return Trace(
        recording_id=path.stem,
        person=str(columns["face_id"][0]) if "face_id" in columns and len(valid) else "main",
        source="table",
        timeline=Timeline.from_times(columns["timestamp"]),
        valence=columns["valence"],
        arousal=columns["arousal"],
        valid=valid,
        reason=np.where(valid.any(axis=1), "", NOT_LABELLED),
        extras={k: x for k, x in columns.items() if k not in COLUMNS},
    )
