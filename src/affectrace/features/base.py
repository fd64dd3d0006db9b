"""Feature tables (`Features`) and the identity of what made them (`ExtractorId`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import InputError
from affectrace.timeline import Timeline

TABLE = "table"
"""Key of `preprocessing` that marks columns imported from a table."""
COMPUTE = "compute"
"""Key of `preprocessing` for the precision of a network's multiplications, which changes the last digits only."""
_BLOCK = 4096  # rows checked at a time: values may be a memory map of a large file
_SHOWN = 6  # columns named in a message


@dataclass(frozen=True)
class ExtractorId:
    """What made a feature table: equal ids promise equal values for equal media.

    name: e.g. "swin-b". weights_sha256: hash of the weights, "" if it has none.
    preprocessing: every setting between media and values (size, mean, hop_s, layer, ...), plain JSON values.
    columns: names of the D columns, if they have names.
    tuned_on: what `affectrace finetune` tuned the weights on, {"data": [...], "training": [ids], "validation": [ids]};
        {} for other weights, None if unknown (older files). Not part of the identity.
    """

    name: str
    weights_sha256: str = ""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    tuned_on: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = asdict(self) | {"columns": list(self.columns)}
        if self.tuned_on is None:
            del values["tuned_on"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExtractorId:
        """Inverse of `to_dict` (raises KeyError, TypeError, ValueError)."""
        tuned_on, preprocessing = values.get("tuned_on"), dict(values["preprocessing"])
        tuned_on = None if tuned_on is None else dict(tuned_on)
        return cls(values["name"], values["weights_sha256"], preprocessing, tuple(values["columns"]), tuned_on)

    def digest(self) -> str:
        """16 hex digits of the identity."""
        identity = replace(self, tuned_on=None).to_dict()
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.name} (weights {self.weights_sha256[:8]})" if self.weights_sha256 else self.name

    @property
    def from_table(self) -> bool:
        """Whether the features are imported columns of a table, not extracted from media."""
        return TABLE in self.preprocessing

    @property
    def is_known(self) -> bool:
        """Whether anything but the name is recorded."""
        return bool(self.weights_sha256 or self.preprocessing or self.columns)

    def difference(self, other: ExtractorId) -> str:
        """How features of `other` differ from this extractor's, for a message; "" if they are interchangeable.

        Imported tables are compared by their columns only, and extractors of which only the name is recorded by that.
        The precision of multiplications is ignored.
        """
        if not (self.from_table and other.from_table):
            if self.name != other.name:
                return "different extractors"
            if not (self.is_known and other.is_known):
                return ""
            if self.weights_sha256 != other.weights_sha256:
                return "different weights"
            a, b = (json.loads(json.dumps({**e.preprocessing, COMPUTE: None})) for e in (self, other))
            if changed := [f"{k} {a.get(k)} and {b.get(k)}" for k in sorted({*a, *b}) if a.get(k) != b.get(k)]:
                return f"different preprocessing: {', '.join(changed)}"
        if self.columns == other.columns:
            return ""
        missing = [c for c in self.columns if c not in other.columns][:_SHOWN]
        extra = [c for c in other.columns if c not in self.columns][:_SHOWN]
        parts = [f"{what} {', '.join(names)}" for what, names in (("missing", missing), ("extra", extra)) if names]
        return "different columns: " + (", ".join(parts) or "the same in a different order")


class Extractor(Protocol):
    """What every extractor has: its identity, the modality and the number of columns of its features."""

    extractor: ExtractorId
    modality: str
    width: int


@dataclass(frozen=True, eq=False)
class Features:
    """One modality of one recording on its own clock.

    modality: "visual", "face", "audio", "voice", "text", or a user's own name.
    timeline: T_m rows (video frames, 50 Hz audio, one row per word).
    values: (T_m, D_m) float32 or float16, read-only; invalid rows may hold anything.
    valid: (T_m,) bool.
    extractor: what made them.
    ends: (T_m,) end of each row in seconds, for events with pauses between them (words); None: the next row's start.
    utterances: (start, end) seconds of the utterances, if the extractor found them.

    Raises:
        InputError: shapes disagree, or a valid row is not finite.
    """

    modality: str
    timeline: Timeline
    values: NDArray[np.floating[Any]]
    valid: NDArray[np.bool_]
    extractor: ExtractorId
    ends: NDArray[np.float64] | None = None
    utterances: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        n, where = len(self.timeline), f"{self.modality} features ({self.extractor.name})"
        values, valid = np.asarray(self.values), np.asarray(self.valid, dtype=bool)
        if values.dtype not in (np.float32, np.float16):
            values = values.astype(np.float32)
        n_ends = n if self.ends is None else len(self.ends)
        if values.ndim != 2 or valid.ndim != 1 or not n == len(values) == len(valid) == n_ends:
            raise InputError(f"values {values.shape} and valid {valid.shape} do not fit {n} rows", where=where)
        blocks = (slice(first, first + _BLOCK) for first in range(0, n, _BLOCK))
        if not all(np.isfinite(values[rows][valid[rows]]).all() for rows in blocks):
            raise InputError("a valid row holds NaN or infinity", where=where, hint="mark such rows invalid")
        for name, array in (("values", values), ("valid", valid)):
            view = array.view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    @property
    def dim(self) -> int:
        """D_m."""
        return int(self.values.shape[1])

    def column(self, name: str) -> NDArray[np.float64]:
        """(T_m,) float64 of a named column, NaN in invalid rows (raises InputError: no such column)."""
        columns = self.extractor.columns
        if name not in columns:
            raise InputError(f"no column '{name}'", where=self.extractor.name, hint=f"columns: {', '.join(columns)}")
        return np.where(self.valid, self.values[:, columns.index(name)].astype(np.float64), np.nan)


def empty_features(extractor: Extractor) -> Features:
    """Features without rows, for a recording that lacks the modality."""
    values: NDArray[np.float32] = np.zeros((0, extractor.width), np.float32)
    ends = np.zeros(0) if extractor.modality == "text" else None
    return Features(extractor.modality, Timeline.regular(0, 1), values, np.zeros(0, bool), extractor.extractor, ends)
