"""Feature files: one safetensors file per recording and extractor, read in slices.

    values  (T, D) float16 or float32, 0 in invalid rows
    ticks   (T,) int64, start of each row in units of the time base
    valid   (T,) bool
    ends    (T,) float64 seconds, only if rows end before the next one starts (words)

The metadata key `affectrace.features` is one JSON object: recording, modality, extractor (name, weights hash,
preprocessing, columns), time base, hash of the source, package versions, hash of the data, and `utterances_s`, the
[start, end] seconds of what is said. It contains neither dates nor paths, so equal features give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from affectrace.config import atomic_file, is_huge
from affectrace.errors import FormatError, InputError
from affectrace.features.base import ExtractorId, Features
from affectrace.features.rows import BLOCK
from affectrace.timeline import Timeline

FORMAT, VERSION = "affectrace.features", 1
SUFFIX = ".safetensors"
FEATURES = "features"
"""Folder of feature files, in an imported data set and by default."""
Precision = Literal["float16", "float32"]
_DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "I64": np.int64, "BOOL": np.bool_}
_CODES: dict[Any, str] = {np.dtype(kind): code for code, kind in _DTYPES.items()}
_AGAIN = "extract it again"


@dataclass(frozen=True, eq=False)
class FeatureFile:
    """An opened feature file: `Features` whose values stay on disk. Can be pickled.

    dtype: float16 or float32. offset: of the values from the start of the file, bytes.
    source_sha256: hash of the media it was made from, "" if unknown. versions: package -> version of what made it.
    data_sha256: hash of all tensors as stored. Other fields as in `Features`.
    """

    path: Path
    recording_id: str
    modality: str
    timeline: Timeline
    valid: NDArray[np.bool_]
    extractor: ExtractorId
    ends: NDArray[np.float64] | None
    utterances: tuple[tuple[float, float], ...]
    dim: int
    dtype: np.dtype[Any]
    offset: int
    source_sha256: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    data_sha256: str = ""

    def __len__(self) -> int:
        return len(self.timeline)

    def read(self, rows: slice | None = None) -> NDArray[np.floating[Any]]:
        """(n, D) values of contiguous rows (all by default), mapped copy-on-write.

        Raises:
            FormatError: the file was removed or truncated after it was opened.
        """
        first, last, step = (rows or slice(None)).indices(len(self))
        shape = (max(0, last - first), self.dim)
        if step != 1:
            raise InputError(f"rows must be contiguous, got step {step}", where=self.path)
        if 0 in shape:
            return np.zeros(shape, self.dtype)
        offset = self.offset + first * self.dim * self.dtype.itemsize
        try:
            return np.asarray(np.memmap(self.path, self.dtype, "c", offset, shape))
        except (OSError, ValueError) as error:
            raise _unreadable(self.path, error) from None

    def features(self) -> Features:
        """All rows as `Features`."""
        return Features(
            self.modality, self.timeline, self.read(), self.valid, self.extractor, self.ends, self.utterances
        )

    def verify(self) -> None:
        """Compare the data with the hash in the header (raises FormatError)."""
        with self.path.open("rb") as file:
            file.seek(8 + int.from_bytes(file.read(8), "little"))
            if hashlib.file_digest(file, "sha256").hexdigest() != self.data_sha256:
                raise FormatError("is damaged: its data do not match their hash", where=self.path, hint=_AGAIN)


def open_features(path: str | Path) -> FeatureFile:
    """Open a feature file: header and clock are read and checked, values are not.

    Raises:
        FormatError: missing, truncated, not a feature file, or of a later version.
    """
    path = Path(path)
    try:
        with safe_open(path, "numpy") as file:  # checks that tensors fill the file exactly
            header = (file.metadata() or {}).get(FORMAT)
            if header is None:
                hint = "name a file written by `affectrace extract`"
                raise FormatError("is not an affectrace feature file", where=path, hint=hint)
            tensors = {name: file.get_tensor(name) for name in file.keys() if name != "values"}  # noqa: SIM118
            values = file.get_slice("values")
            shape, code = values.get_shape(), values.get_dtype()
        with path.open("rb") as raw:  # safetensors does not say where values lie, and copies every slice
            size = int.from_bytes(raw.read(8), "little")
            offset = 8 + size + json.loads(raw.read(size))["values"]["data_offsets"][0]
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from None
    try:
        about = json.loads(header)
        if about["version"] > VERSION:
            what = f"is of feature format {about['version']}, this version reads up to {VERSION}"
            raise FormatError(what, where=path, hint="upgrade affectrace")
        ticks, valid, ends = tensors["ticks"], tensors["valid"], tensors.get("ends")
        kinds = {"ticks": np.int64, "valid": np.bool_, "ends": np.float64}
        rows_fit = all(t.dtype == kinds[name] and t.shape == (len(ticks),) for name, t in tensors.items())
        if not rows_fit or len(shape) != 2 or shape[0] != len(ticks) or code not in ("F16", "F32"):
            raise ValueError("tensors of unexpected types or sizes")
        rate = about["nominal_rate"]
        timeline = Timeline(
            ticks, _fraction(about["time_base"]), int(about["end"]), None if rate is None else _fraction(rate)
        )
        utterances = tuple((float(start), float(end)) for start, end in about.get("utterances_s", ()))
        extractor = ExtractorId.from_dict(about["extractor"])
        named = {name: about[name] for name in ("recording_id", "modality", "source_sha256", "versions", "data_sha256")}
    except FormatError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        what = f"has a damaged header ({type(error).__name__}: {error})"
        raise FormatError(what, where=path, hint=_AGAIN) from None
    valid.flags.writeable = False
    return FeatureFile(
        path=path,
        timeline=timeline,
        valid=valid,
        extractor=extractor,
        ends=ends,
        utterances=utterances,
        dim=shape[1],
        dtype=np.dtype(_DTYPES[code]),
        offset=offset,
        **named,
    )


def _fraction(text: str) -> Fraction:
    if len(text) > 40 or is_huge(text):  # would take gigabytes of digits, or more than float64 holds
        raise ValueError("a number is out of range")
    return Fraction(text)


def _unreadable(path: Path, error: Exception) -> FormatError:
    if isinstance(error, OSError) or not path.exists():
        what = f"cannot be read ({getattr(error, 'strerror', None) or 'No such file or directory'})"
    else:
        what = f"is truncated, or not a safetensors file ({error})"
    return FormatError(what, where=path, hint=_AGAIN)


def write(
    path: str | Path,
    features: Features,
    recording_id: str,
    *,
    precision: Precision | None = None,
    source_sha256: str = "",
    versions: Mapping[str, str] | None = None,
) -> Path:
    """Write features to a file, atomically and block by block. Equal arguments give equal bytes.

    precision: of the stored values; None keeps theirs.

    Raises:
        InputError: a value of a valid row exceeds float16. OutputError: not writable.
    """
    path, clock = Path(path), features.timeline
    dtype = np.dtype(precision or features.values.dtype)
    tensors: dict[str, NDArray[Any]] = {"ticks": clock.ticks}  # widest type first, so that all are aligned
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
    layout, begin = dict[str, Any](), 0
    for name, tensor in tensors.items():
        stored = dtype if name == "values" else tensor.dtype
        end = begin + tensor.size * stored.itemsize
        layout[name] = {"dtype": _CODES[stored], "shape": tensor.shape, "data_offsets": [begin, end]}
        begin = end
    digest = hashlib.sha256()
    with atomic_file(path) as file:
        file.write(_safetensors_header(header, layout))
        for name, tensor in tensors.items():
            for block in _stored_values(features, dtype, recording_id) if name == "values" else [tensor]:
                digest.update(data := np.ascontiguousarray(block).data)
                file.write(data)
        file.seek(0)  # the header with the hash is as long as without
        file.write(_safetensors_header({**header, "data_sha256": digest.hexdigest()}, layout))
    return path


def _safetensors_header(header: dict[str, Any], layout: dict[str, Any]) -> bytes:
    metadata = {FORMAT: json.dumps(header, sort_keys=True, allow_nan=False)}
    text = json.dumps({"__metadata__": metadata, **layout}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _stored_values(features: Features, dtype: np.dtype[Any], recording_id: str) -> Iterator[NDArray[np.floating[Any]]]:
    """Blocks of values as stored, with invalid rows set to 0."""
    for first in range(0, len(features.valid), BLOCK):
        rows = slice(first, first + BLOCK)
        values = np.where(features.valid[rows, None], features.values[rows], features.values.dtype.type(0))
        with np.errstate(over="ignore"):
            stored = values.astype(dtype, copy=False)
        if not np.isfinite(stored).all():
            what = f"values up to {np.abs(values).max():g} do not fit {dtype}"
            raise InputError(what, where=recording_id, hint="store them as float32")
        yield stored


class FeatureStore:
    """A folder of feature files: `<root>/<extractor>/<recording>.safetensors`.

    beside: another store for extractors that have no folder in this one.
    """

    def __init__(self, root: str | Path, beside: FeatureStore | None = None) -> None:
        self.root, self.beside = Path(root), beside

    @classmethod
    def of(cls, given: Path | None, data: Path) -> FeatureStore:
        """The store named by the user; without one the data set's own `features`, then `features` in this folder."""
        if given is not None:
            return cls(given)
        own, here = data / FEATURES, cls(FEATURES)
        return cls(own, beside=here) if own.is_dir() else here

    def path(self, extractor: str, recording_id: str) -> Path:
        """The file of a recording (raises InputError: a name that would lead out of the folder)."""
        for name in (extractor, recording_id):
            if not name or name in (".", "..") or any(c in name for c in "/\\\0"):
                raise InputError(f"{name!r} cannot name a feature file", hint="use a name without path separators")
        return self.root / extractor / f"{recording_id}{SUFFIX}"

    def put(self, features: Features, recording_id: str, **how: Any) -> Path:
        """Write features under their extractor's name; `how` as in `write`."""
        return write(self.path(features.extractor.name, recording_id), features, recording_id, **how)

    def get(self, extractor: str, recording_id: str) -> FeatureFile:
        """Open the features of a recording (raises FormatError, also if they are another recording's)."""
        path = self.path(extractor, recording_id)
        if self.beside is not None and not path.parent.is_dir() and extractor in self.beside.extractors:
            return self.beside.get(extractor, recording_id)
        if not path.is_file():
            hint = "run `affectrace extract`, or name the folder of feature files with --store"
            if self.extractors and extractor not in self.extractors:
                hint = f"there are {', '.join(self.extractors)}; name one of these or another --store, or extract them"
            raise FormatError(f"'{recording_id}' has no {extractor} features", where=path, hint=hint)
        found = open_features(path)
        if found.recording_id != recording_id:
            raise FormatError(f"holds features of '{found.recording_id}'", where=path, hint=_AGAIN)
        return found

    @cached_property
    def extractors(self) -> tuple[str, ...]:
        """Names of the extractors with files in this folder or that beside, as found when first asked."""
        more = () if self.beside is None else self.beside.extractors
        return tuple(sorted({*more, *(p.parent.name for p in self.root.glob(f"*/[!.]*{SUFFIX}"))}))
