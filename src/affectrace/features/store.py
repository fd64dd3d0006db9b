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
import math
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import FormatError, InputError
from affectrace.features.base import ExtractorId, Features
from affectrace.features.store_write import CODES, FORMAT, VERSION, Table, write_table
from affectrace.features.store_write import Precision as Precision
from affectrace.features.store_write import write as write
from affectrace.timeline import Timeline

SUFFIX = ".safetensors"
_LARGEST_HEADER = 100_000_000  # bytes; the format's own limit
_AGAIN = "extract it again"


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "versions", MappingProxyType(dict(self.versions)))

    def __reduce__(self) -> tuple[object, ...]:  # a mapping proxy does not pickle
        mine = (self.recording_id, self.modality, self.extractor, self.source_sha256)
        return (Header, (*mine, dict(self.versions), self.data_sha256, self.utterances))


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in the file."""

    dtype: type
    shape: tuple[int, ...]
    start: int  # byte in the file

    @property
    def row_bytes(self) -> int:
        return int(np.dtype(self.dtype).itemsize) * math.prod(self.shape[1:])

    @property
    def n_bytes(self) -> int:
        return int(np.dtype(self.dtype).itemsize) * math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class FeatureFile:
    """An opened feature file: header and clock in memory, values on disk. Pickles as its path and header.

    Like `Features` it has modality, extractor, timeline, valid, ends, utterances and dim; `read` gives the values of
    some rows.
    """

    path: Path
    header: Header
    timeline: Timeline
    valid: NDArray[np.bool_]
    ends: NDArray[np.float64] | None
    place: _Place

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

    @property
    def dim(self) -> int:
        """D."""
        return self.place.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """float16 or float32."""
        return np.dtype(self.place.dtype)

    def read(self, rows: slice | None = None) -> NDArray[np.floating[Any]]:
        """(n, D) values of a contiguous slice of rows (all by default) in the file's precision.

        The array is a private memory map of these rows' bytes: nothing else of the file is touched, the map goes when
        the array does, and writing into it changes no file.

        Raises:
            FormatError: the file went away or was cut since it was opened. InputError: the slice has a step.
        """
        lo, hi, step = (rows or slice(None)).indices(len(self))
        if step != 1:
            raise InputError(f"rows must be contiguous, got step {step}", where=self.path)
        n = max(0, hi - lo)
        if n == 0 or self.place.row_bytes == 0:
            return np.zeros((n, self.dim), self.dtype)
        start = self.place.start + lo * self.place.row_bytes
        before = start % mmap.ALLOCATIONGRANULARITY
        length = before + n * self.place.row_bytes
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < start + length - before:
                    raise FormatError("was cut short since it was opened", where=self.path, hint=_AGAIN)
                window = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=start - before)
        except OSError as error:
            raise FormatError(f"cannot be read ({error.strerror or error})", where=self.path, hint=_AGAIN) from None
        return np.frombuffer(window, self.dtype, n * self.dim, before).reshape(n, self.dim)

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
        """Read everything and compare it with the hash in the header.

        Raises:
            FormatError: it was changed since it was written.
        """
        with self.path.open("rb") as file:
            n = int.from_bytes(file.read(8), "little")
            file.seek(8 + n)
            if hashlib.file_digest(file, "sha256").hexdigest() != self.header.data_sha256:
                raise FormatError("is damaged: its data do not fit its hash", where=self.path, hint=_AGAIN)


def open_features(path: str | Path) -> FeatureFile:
    """Open a feature file: its header and clock are read and checked, its values are not.

    Raises:
        FormatError: missing, half written, foreign or of a later version; the message names the file.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            entries, start = _entries(file.read(8), file, size, path)
            header, clock = _checked(entries, path)
            places = _places(entries, start, size, path)
            ticks, valid = _whole(file, places["ticks"]), _whole(file, places["valid"])
            ends = _whole(file, places["ends"]) if "ends" in places else None
    except OSError as error:
        raise FormatError(f"cannot be read ({error.strerror or error})", where=path, hint=_AGAIN) from None
    try:
        rate = clock["nominal_rate"]
        timeline = Timeline(
            ticks, Fraction(clock["time_base"]), int(clock["end"]), None if rate is None else Fraction(rate)
        )
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"has no usable clock ({error})", where=path, hint=_AGAIN) from None
    for array in (valid, ends):
        if array is not None:
            array.flags.writeable = False
    return FeatureFile(path, header, timeline, valid, ends, places["values"])


def _entries(head: bytes, file: Any, size: int, path: Path) -> tuple[dict[str, Any], int]:
    """The safetensors header and where the data begin."""
    n = int.from_bytes(head, "little")
    if len(head) < 8 or n > min(_LARGEST_HEADER, size - 8):
        raise FormatError("is not a safetensors file, or is cut off in its header", where=path, hint=_AGAIN)
    try:
        entries = json.loads(file.read(n))
    except ValueError:
        entries = None
    if not isinstance(entries, dict):
        raise FormatError("is not a safetensors file", where=path, hint="name a file written by `affectrace extract`")
    return entries, 8 + n


def _checked(entries: Mapping[str, Any], path: Path) -> tuple[Header, Mapping[str, Any]]:
    metadata = entries.get("__metadata__")
    text = metadata.get(FORMAT) if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise FormatError(
            "is not an affectrace feature file", where=path, hint="name a file written by `affectrace extract`"
        )
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


def _places(entries: Mapping[str, Any], start: int, size: int, path: Path) -> dict[str, _Place]:
    places, at = {}, start
    try:
        for name, entry in sorted(
            ((k, v) for k, v in entries.items() if k != "__metadata__"), key=lambda e: e[1]["data_offsets"][0]
        ):
            place = _Place(CODES[entry["dtype"]], tuple(map(int, entry["shape"])), start + entry["data_offsets"][0])
            end = at + place.n_bytes
            if place.start != at or min(place.shape, default=0) < 0 or entry["data_offsets"][1] + start != end:
                raise ValueError(f"tensor '{name}' lies elsewhere than its shape says")
            places[name], at = place, end
        n = places["ticks"].shape[0]
        wanted = {"ticks": ((n,), np.int64), "valid": ((n,), np.bool_), "ends": ((n,), np.float64)}
        for name, (shape, dtype) in wanted.items():
            if name in places and (places[name].shape, places[name].dtype) != (shape, dtype):
                raise ValueError(f"tensor '{name}' has shape {places[name].shape}")
        values = places["values"]
        if len(values.shape) != 2 or values.shape[0] != n or values.dtype not in (np.float16, np.float32):
            raise ValueError(f"values have shape {values.shape}, the clock has {n} rows")
        if "valid" not in places:
            raise KeyError("valid")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise FormatError(f"is not laid out as a feature file ({error})", where=path, hint=_AGAIN) from None
    if size != at:
        what = f"is cut off: {size} of {at} bytes are there" if size < at else f"has {size - at} bytes too many"
        raise FormatError(what, where=path, hint=_AGAIN)
    return places


def _whole(file: Any, place: _Place) -> NDArray[Any]:
    file.seek(place.start)
    return np.frombuffer(bytearray(file.read(place.n_bytes)), place.dtype).reshape(place.shape)


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

    def put_table(
        self, table: Table, values: Iterable[NDArray[np.floating[Any]]], recording_id: str, **how: Any
    ) -> Path:
        """`put`, of values that come in pieces; `how` as in `write_table`."""
        return write_table(self.path(table.extractor.name, recording_id), table, values, recording_id, **how)

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
