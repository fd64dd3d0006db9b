"""Features: one modality on its own clock, and the identity of what made them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import InputError
from affectrace.timeline import Timeline

MODALITIES = ("face", "visual", "voice", "words", "audio", "text", "physiology")


@dataclass(frozen=True)
class ExtractorId:
    """What made a feature table: equal ids promise equal values for equal media.

    name: e.g. "fer-mini-xception". weights_sha256: hash of the weights file(s), "" where there are none.
    preprocessing: everything between media and network (size, mean, hop_s, layer, ...), plain JSON values.
    columns: names of the D columns where they have one.
    """

    name: str
    weights_sha256: str = ""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "preprocessing", MappingProxyType(dict(self.preprocessing)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "weights_sha256": self.weights_sha256,
            "preprocessing": dict(self.preprocessing),
            "columns": list(self.columns),
        }

    @property
    def from_table(self) -> bool:
        """Whether these are somebody's own tables, imported, and not made here from media."""
        return "table" in self.preprocessing

    def digest(self) -> str:
        """16 hex digits that change when anything in the identity does."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def __reduce__(self) -> tuple[object, ...]:
        return (ExtractorId, (self.name, self.weights_sha256, dict(self.preprocessing), self.columns))


@dataclass(frozen=True, eq=False)
class Features:
    """One modality of one recording on its own clock.

    modality: one of MODALITIES, or a name of the user's own.
    timeline: T_m rows (video frames, 50 Hz audio, one row a word).
    values: (T_m, D_m) float32 (or float16 as stored); rows that are not valid hold anything and are never read.
    valid: (T_m,) bool.
    extractor: what made them.
    ends: (T_m,) seconds at which each row's content ends, where that is not the next row's start (words with pauses
        between them); None: each row lasts until the next.
    utterances: (start, end) seconds of what the recording says, where these were found on the way; () where not.

    Raises:
        InputError: shapes disagree, or a valid row or an utterance's time is not finite.
    """

    modality: str
    timeline: Timeline
    values: NDArray[np.floating[Any]]
    valid: NDArray[np.bool_]
    extractor: ExtractorId
    ends: NDArray[np.float64] | None = None
    utterances: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        n = len(self.timeline)
        values, valid = np.asarray(self.values), np.asarray(self.valid, dtype=bool)
        where = f"{self.modality} features ({self.extractor.name})"
        if values.dtype not in (np.float32, np.float16):
            values = values.astype(np.float32)
        if values.ndim != 2 or len(values) != n or valid.shape != (n,):
            raise InputError(f"values {values.shape} and valid {valid.shape} do not fit {n} rows", where=where)
        if not np.isfinite(values[valid]).all():
            raise InputError("a valid row holds NaN or infinity", where=where, hint="mark such rows as not valid")
        if self.ends is not None and np.asarray(self.ends).shape != (n,):
            raise InputError(f"ends {np.asarray(self.ends).shape} do not fit {n} rows", where=where)
        utterances = tuple((float(start), float(end)) for start, end in self.utterances)
        if not np.isfinite(utterances).all():
            raise InputError("utterances have times that are no numbers", where=where, hint="check the transcript")
        object.__setattr__(self, "utterances", utterances)
        for name, array in (("values", values), ("valid", valid)):
            view = array.view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    @property
    def dim(self) -> int:
        """D_m."""
        return int(self.values.shape[1])

    def column(self, name: str) -> NDArray[np.float64]:
        """(T_m,) float64 of a named column, NaN where not valid."""
        if name not in self.extractor.columns:
            raise InputError(f"no column '{name}'", where=self.extractor.name, hint=f"has {self.extractor.columns}")
        values = self.values[:, self.extractor.columns.index(name)].astype(np.float64)
        return np.where(self.valid, values, np.nan)
