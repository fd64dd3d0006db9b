"""Writing feature files: whole or not at all, equal bytes for equal features, in memory of a few rows."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from affectrace.config import atomic_file
from affectrace.errors import InputError
from affectrace.features.base import ExtractorId, Features
from affectrace.timeline import Timeline

FORMAT, VERSION = "affectrace.features", 1
CODES = {"F16": np.float16, "F32": np.float32, "I64": np.int64, "BOOL": np.bool_, "F64": np.float64}
BLOCK = 4096  # rows written at a time
Precision = Literal["float16", "float32"]


def write(
    path: str | Path,
    features: Features,
    recording_id: str,
    *,
    precision: Precision | None = None,
    source_sha256: str = "",
    versions: Mapping[str, str] | None = None,
) -> Path:
    """Write features to a file: under a temporary name, flushed, renamed. Equal arguments give equal bytes.

    precision: of the values on disk; None keeps theirs.

    Raises:
        InputError: a value of a valid row is beyond float16. OutputError: not writable.
    """

    def values() -> Iterator[NDArray[np.floating[Any]]]:
        for first in range(0, len(features.valid), BLOCK):
            yield features.values[first : first + BLOCK]

    table = Table(
        features.modality,
        features.extractor,
        features.timeline,
        features.valid,
        features.dim,
        features.ends,
        features.utterances,
    )
    own: Precision = "float16" if features.values.dtype == np.float16 else "float32"
    return write_table(
        path, table, values(), recording_id, precision=precision or own, source_sha256=source_sha256, versions=versions
    )


@dataclass(frozen=True, eq=False)
class Table:
    """Features without their values, as in `Features`. dim: D."""

    modality: str
    extractor: ExtractorId
    timeline: Timeline
    valid: NDArray[np.bool_]
    dim: int
    ends: NDArray[np.float64] | None = None
    utterances: tuple[tuple[float, float], ...] = ()


def write_table(
    path: str | Path,
    table: Table,
    values: Iterable[NDArray[np.floating[Any]]],
    recording_id: str,
    *,
    precision: Precision = "float32",
    source_sha256: str = "",
    versions: Mapping[str, str] | None = None,
) -> Path:
    """`write`, of values that come in pieces of some rows: memory does not grow with their number.

    Raises:
        InputError: the pieces are not (T, D), or a value of a valid row is NaN, infinite or beyond `precision`.
        OutputError: not writable.
    """
    n = len(table.timeline)
    tensors: dict[str, NDArray[Any] | tuple[int, int]] = {"values": (n, table.dim), "ticks": table.timeline.ticks}
    if table.ends is not None:
        tensors["ends"] = np.asarray(table.ends, np.float64)
    tensors["valid"] = np.asarray(table.valid, bool)
    kinds = {k: np.dtype(precision if isinstance(t, tuple) else t.dtype) for k, t in tensors.items()}
    order = sorted(tensors, key=lambda k: (-kinds[k].itemsize, k))  # widest first, so that all are aligned
    layout = {k: (kinds[k], t if isinstance(t, tuple) else t.shape) for k in order for t in (tensors[k],)}
    header: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "recording_id": recording_id,
        "modality": table.modality,
        "extractor": table.extractor.to_dict(),
        "time_base": str(table.timeline.time_base),
        "end": table.timeline.end_tick,
        "nominal_rate": None if (rate := table.timeline.nominal_rate) is None else str(rate),
        "source_sha256": source_sha256,
        "versions": dict(versions or {}),
        "data_sha256": "0" * 64,
    }
    if table.utterances:
        header["utterances_s"] = [[start, end] for start, end in table.utterances]
    digest = hashlib.sha256()
    with atomic_file(Path(path)) as file:
        file.write(_header_bytes(layout, header))
        for name in order:
            tensor = tensors[name]
            parts = _fitted(values, table, precision, recording_id) if isinstance(tensor, tuple) else (tensor,)
            for part in parts:
                data = np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
                digest.update(data)
                file.write(data)
        file.seek(0)  # the header is as long with the hash as without
        file.write(_header_bytes(layout, {**header, "data_sha256": digest.hexdigest()}))
    return Path(path)


def _fitted(
    values: Iterable[NDArray[np.floating[Any]]], table: Table, precision: Precision, recording_id: str
) -> Iterator[NDArray[np.floating[Any]]]:
    """The pieces as they lie in the file: rows that are not valid are 0."""
    at = 0
    for piece in values:
        valid = table.valid[at : at + len(piece)]
        if piece.ndim != 2 or piece.shape[1] != table.dim or len(valid) != len(piece):
            raise InputError(f"values {piece.shape} do not fit ({len(table.valid)}, {table.dim})", where=recording_id)
        piece = np.where(valid[:, None], piece, piece.dtype.type(0))
        largest = float(np.abs(piece).max(initial=0.0))
        if not math.isfinite(largest):
            raise InputError("a valid row holds NaN or infinity", where=recording_id)
        if largest > float(np.finfo(precision).max):
            raise InputError(
                f"values up to {largest:g} do not fit {precision}", where=recording_id, hint="store them as float32"
            )
        at += len(piece)
        yield piece.astype(precision, copy=False)
    if at != len(table.valid):
        raise InputError(f"{at} rows of values do not fit {len(table.valid)}", where=recording_id)


def _header_bytes(layout: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], header: Mapping[str, Any]) -> bytes:
    """Length and JSON of the safetensors format. Not its library: its order of metadata is not fixed."""
    codes = {np.dtype(t): code for code, t in CODES.items()}
    entries: dict[str, Any] = {"__metadata__": {FORMAT: json.dumps(header, sort_keys=True, allow_nan=False)}}
    at = 0
    for name, (kind, shape) in layout.items():
        end = at + kind.itemsize * math.prod(shape)
        entries[name] = {"dtype": codes[kind], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
