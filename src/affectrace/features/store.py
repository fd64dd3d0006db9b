"""Feature files: one safetensors file a recording and extractor, read slice by slice without loading the rest.

    values  (T, D) float16 or float32; rows that are not valid are 0 in the file and mean nothing
    ticks   (T,) int64, start of each row in ticks of the header's time base
    valid   (T,) bool
    ends    (T,) float64 seconds, only where rows end before the next one starts (words)

The header is one JSON value under the metadata key `affectrace.features`: recording, modality, extractor (name,
weights hash, preprocessing, columns), clock, hash of the source, versions, hash of the data, and where words were read
`utterances_s`, the [start, end] seconds of what is said. It holds no clock time and no path, so the same features are
the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from affectrace.config import atomic_file
from affectrace.errors import FormatError, InputError
from affectrace.features.base import ExtractorId, Features
from affectrace.features.rows import BLOCK
from affectrace.timeline import Timeline

FORMAT, VERSION = "affectrace.features", 1
SUFFIX = ".safetensors"
Precision = Literal["float16", "float32"]
_CODES = {np.dtype(np.float16): "F16", np.dtype(np.float32): "F32", np.dtype(np.int64): "I64"}
_CODES |= {np.dtype(np.float64): "F64", np.dtype(np.bool_): "BOOL"}
_AGAIN = "extract it again"
_OURS = "name a file written by `affectrace extract`"


@dataclass(frozen=True)
class Header:
    """What a feature file says of itself.

    recording_id, modality, extractor: as in Features. source_sha256: hash of the media it was made from, "" if unknown.
    versions: package -> version of what made it. data_sha256: hash of the tensors' bytes as they lie in the file.
    utterances: as in Features; () in files that tell none.
    """

    recording_id: str
    modality: str
    extractor: ExtractorId
    source_sha256: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    data_sha256: str = ""
    utterances: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, eq=False)
class FeatureFile:
    """An opened feature file: header and clock in memory, values on disk. Pickles without its values.

    Like `Features` it has modality, extractor, timeline, valid, ends, utterances and dim; `read` gives the values of
    some rows. dtype: float16 or float32. start: of the values, in bytes from the start of the file.
    """

    path: Path
    header: Header
    timeline: Timeline
    valid: NDArray[np.bool_]
    ends: NDArray[np.float64] | None
    dim: int
    dtype: np.dtype[Any]
    start: int

    def __len__(self) -> int:
        return len(self.timeline)

    def __repr__(self) -> str:
        return f"FeatureFile({str(self.path)!r}, {len(self)} x {self.dim} {self.dtype})"

    @property
    def modality(self) -> str:
        """As in Features."""
        return self.header.modality

    @property
    def extractor(self) -> ExtractorId:
        """What made it."""
        return self.header.extractor

    @property
    def utterances(self) -> tuple[tuple[float, float], ...]:
        """As in Features."""
        return self.header.utterances

    def read(self, rows: slice | None = None) -> NDArray[np.floating[Any]]:
        """(n, D) values of a contiguous slice of rows (all by default), a private map of their bytes.

        Raises:
            FormatError: the file went away or was cut since it was opened. InputError: the slice has a step.
        """
        lo, hi, step = (rows or slice(None)).indices(len(self))
        if step != 1:
            raise InputError(f"rows must be contiguous, got step {step}", where=self.path)
        shape = (max(0, hi - lo), self.dim)
        if 0 in shape:
            return np.zeros(shape, self.dtype)
        start, n = self.start + lo * self.dim * self.dtype.itemsize, shape[0] * shape[1]
        before = start % mmap.ALLOCATIONGRANULARITY
        try:
            with self.path.open("rb", buffering=0) as file:
                size = before + n * self.dtype.itemsize
                window = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY, offset=start - before)
        except (OSError, ValueError) as error:
            raise _unreadable(self.path, error) from None
        return np.frombuffer(window, self.dtype, n, before).reshape(shape)

    def features(self, rows: slice | None = None) -> Features:
        """Some rows (all by default) with their clock, in memory."""
        part = rows or slice(None)
        ends = None if self.ends is None else self.ends[part]
        timeline = self.timeline if rows is None else self.timeline.cut(part)
        return Features(
            self.modality, timeline, self.read(part), self.valid[part], self.extractor, ends, self.utterances
        )

    def matches(self, extractor: ExtractorId, source_sha256: str = "") -> bool:
        """Whether this is what `extractor` would make again (of a source with that hash, where given)."""
        same = not source_sha256 or self.header.source_sha256 == source_sha256
        return same and self.extractor.digest() == extractor.digest()

    def verify(self) -> None:
        """Read everything and compare it with the hash in the header (raises FormatError: it was changed)."""
        with self.path.open("rb") as file:
            _layout(file)
            if hashlib.file_digest(file, "sha256").hexdigest() != self.header.data_sha256:
                raise FormatError("is damaged: its data do not fit its hash", where=self.path, hint=_AGAIN)


def _layout(file: BinaryIO) -> tuple[Any, int]:
    """safetensors' own header, and where the data begin; the file stands there afterwards."""
    n = int.from_bytes(file.read(8), "little")
    return json.loads(file.read(n)), 8 + n


def open_features(path: str | Path) -> FeatureFile:
    """Open a feature file: its header and clock are read and checked, its values are not.

    Raises:
        FormatError: missing, half written, foreign or of a later version; the message names the file.
    """
    path = Path(path)
    try:
        with safe_open(path, "numpy") as file:
            text = (file.metadata() or {}).get(FORMAT)
            if text is None:
                raise FormatError("is not an affectrace feature file", where=path, hint=_OURS)
            header, clock = _header(text, path)
            small = {name: file.get_tensor(name) for name in file.keys() if name != "values"}  # noqa: SIM118
            values = file.get_slice("values")
            shape, dtype = tuple(values.get_shape()), {"F16": "float16", "F32": "float32"}.get(values.get_dtype(), "")
        with path.open("rb") as raw:  # the library does not tell where values lie, and copies every window
            layout, start = _layout(raw)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from None
    ticks, valid, ends = (small.get(name) for name in ("ticks", "valid", "ends"))
    n = -1 if ticks is None else len(ticks)
    kinds = ((ticks, np.int64), (valid, np.bool_), (ends, np.float64))
    fits = all(t is None or (t.shape == (n,) and t.dtype == kind) for t, kind in kinds)
    if not fits or ticks is None or valid is None or len(shape) != 2 or shape[0] != n or not dtype:
        raise FormatError("is not laid out as a feature file", where=path, hint=_AGAIN)
    try:
        rate = clock["nominal_rate"]
        timeline = Timeline(
            ticks, Fraction(clock["time_base"]), int(clock["end"]), None if rate is None else Fraction(rate)
        )
    except (InputError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise FormatError(f"has no usable clock ({error})", where=path, hint=_AGAIN) from None
    for array in (valid, ends):
        if array is not None:
            array.flags.writeable = False
    return FeatureFile(
        path, header, timeline, valid, ends, shape[1], np.dtype(dtype), start + layout["values"]["data_offsets"][0]
    )


def _unreadable(path: Path, error: Exception) -> FormatError:
    if isinstance(error, OSError) and error.strerror:
        return FormatError(f"cannot be read ({error.strerror})", where=path, hint=_AGAIN)
    if not path.exists():
        return FormatError("cannot be read (No such file or directory)", where=path, hint=_AGAIN)
    return FormatError(f"is cut off, or is not a safetensors file ({error})", where=path, hint=_AGAIN)


def _header(text: str, path: Path) -> tuple[Header, Mapping[str, Any]]:
    try:
        found = json.loads(text)
        if found["version"] > VERSION:
            raise FormatError(
                f"is of feature format {found['version']}, this version reads up to {VERSION}",
                where=path,
                hint="upgrade affectrace",
            )
        extractor = ExtractorId.from_dict(found["extractor"])
        names = ("recording_id", "modality", "source_sha256", "versions", "data_sha256")
        utterances = tuple((float(start), float(end)) for start, end in found.get("utterances_s", ()))
        header = Header(extractor=extractor, utterances=utterances, **{name: found[name] for name in names})
    except FormatError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"has a damaged header ({type(error).__name__}: {error})", where=path, hint=_AGAIN) from None
    return header, found


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

    precision: of the values on disk; None keeps theirs. Values are written a block at a time, which the library cannot.

    Raises:
        InputError: a value of a valid row is beyond float16. OutputError: not writable.
    """
    path, clock = Path(path), features.timeline
    dtype = np.dtype(precision or features.values.dtype)
    tensors: dict[str, NDArray[Any]] = {"ticks": clock.ticks}  # widest first, so that all are aligned
    if features.ends is not None:
        tensors["ends"] = np.asarray(features.ends, np.float64)
    tensors |= {"values": features.values, "valid": features.valid}
    header: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "recording_id": recording_id,
        "modality": features.modality,
        "extractor": features.extractor.to_dict(),
        "time_base": str(clock.time_base),
        "end": clock.end_tick,
        "nominal_rate": None if clock.nominal_rate is None else str(clock.nominal_rate),
        "source_sha256": source_sha256,
        "versions": dict(versions or {}),
        "data_sha256": "0" * 64,
    }
    if features.utterances:
        header["utterances_s"] = [[start, end] for start, end in features.utterances]
    layout, at = dict[str, Any](), 0
    for name, tensor in tensors.items():
        kind = dtype if name == "values" else tensor.dtype
        end = at + tensor.size * kind.itemsize
        layout[name] = {"dtype": _CODES[kind], "shape": tensor.shape, "data_offsets": [at, end]}
        at = end
    digest = hashlib.sha256()
    with atomic_file(path) as file:
        file.write(_head(header, layout))
        for name, tensor in tensors.items():
            for part in _fitted(features, dtype, recording_id) if name == "values" else [tensor]:
                digest.update(data := np.ascontiguousarray(part).data)
                file.write(data)
        file.seek(0)  # as long with the hash as without
        file.write(_head({**header, "data_sha256": digest.hexdigest()}, layout))
    return path


def _head(header: dict[str, Any], layout: dict[str, Any]) -> bytes:
    """What stands before the data of a safetensors file."""
    metadata = {FORMAT: json.dumps(header, sort_keys=True, allow_nan=False)}
    text = json.dumps({"__metadata__": metadata, **layout}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _fitted(features: Features, dtype: np.dtype[Any], recording_id: str) -> Iterator[NDArray[np.floating[Any]]]:
    """Blocks of the values as they lie in the file: rows that are not valid are 0."""
    for first in range(0, len(features.valid), BLOCK):
        part = slice(first, first + BLOCK)
        values = np.where(features.valid[part, None], features.values[part], features.values.dtype.type(0))
        with np.errstate(over="ignore"):
            fitted = values.astype(dtype, copy=False)
        if fitted is not values and not np.isfinite(fitted).all():
            raise InputError(
                f"values up to {np.abs(values).max():g} do not fit {dtype}",
                where=recording_id,
                hint="store them as float32",
            )
        yield fitted


class FeatureStore:
    """A folder of feature files: `<root>/<extractor>/<recording>.safetensors`.

    beside: where the features of extractors are read that have no folder here.
    """

    def __init__(self, root: str | Path, beside: FeatureStore | None = None) -> None:
        self.root, self.beside = Path(root), beside

    def path(self, extractor: str, recording_id: str) -> Path:
        """Where the features of a recording lie (raises InputError: a name that would lead out of the folder)."""
        for name in (extractor, recording_id):
            if not name or name in (".", "..") or any(c in name for c in "/\\\0"):
                raise InputError(f"{name!r} cannot name a feature file", hint="use a name without path separators")
        return self.root / extractor / f"{recording_id}{SUFFIX}"

    def put(self, features: Features, recording_id: str, **how: Any) -> Path:
        """Write features under their extractor's name; `how` as in `write`."""
        return write(self.path(features.extractor.name, recording_id), features, recording_id, **how)

    def get(self, extractor: str, recording_id: str) -> FeatureFile:
        """Open the features of a recording.

        Raises:
            FormatError: missing, half written, foreign, or another recording's.
        """
        path = self.path(extractor, recording_id)
        if self.beside is not None and not path.parent.is_dir():
            return self.beside.get(extractor, recording_id)
        if not path.is_file():
            raise FormatError(
                f"'{recording_id}' has no {extractor} features", where=path, hint="run `affectrace extract`"
            )
        found = open_features(path)
        if found.header.recording_id != recording_id:
            raise FormatError(f"holds features of '{found.header.recording_id}'", where=path, hint=_AGAIN)
        return found

    @cached_property
    def extractors(self) -> tuple[str, ...]:
        """Names of the extractors that left files here, as found when first asked."""
        return tuple(sorted({p.parent.name for p in self.files()}))

    def files(self) -> Iterator[Path]:
        """All feature files, in order of name; half-written ones under temporary names are not among them."""
        yield from sorted(p for p in self.root.glob(f"*/*{SUFFIX}") if not p.name.startswith("."))
