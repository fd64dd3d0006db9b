"""Features: one modality on its own clock, and the identity of what made them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import InputError
from affectrace.timeline import Timeline

MODALITIES = ("face", "visual", "voice", "words", "audio", "text", "physiology")
TABLE = "table"
"""Key of `preprocessing` that marks columns imported from a table."""
COMPUTE = "compute"
"""Key of `preprocessing` for the number format of a network's products, which changes the last digits only."""
_BLOCK = 4096  # rows checked at a time: values may be a map of a large file
_SHOWN = 6  # columns named in a message


@dataclass(frozen=True)
class ExtractorId:
    """What made a feature table: equal ids promise equal values for equal media.

    name: e.g. "swin-b". weights_sha256: hash of the weights file(s), "" where there are none.
    preprocessing: everything between media and network (size, mean, hop_s, layer, ...), plain JSON values.
    columns: names of the D columns where they have one.
    tuned_on: what `affectrace finetune` tuned the weights on, {"data": [...], "training": [ids], "validation": [ids]};
        {} for weights it did not tune; None where that was not recorded (older files). No part of the identity.
    """

    name: str
    weights_sha256: str = ""
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    tuned_on: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return self._identity() | ({} if self.tuned_on is None else {"tuned_on": dict(self.tuned_on)})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ExtractorId:
        """What `to_dict` gave (raises KeyError, TypeError, ValueError: it did not)."""
        tuned, how = values.get("tuned_on"), dict(values["preprocessing"])
        tuned = tuned if tuned is None else dict(tuned)
        return cls(values["name"], values["weights_sha256"], how, tuple(values["columns"]), tuned)

    def _identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weights_sha256": self.weights_sha256,
            "preprocessing": dict(self.preprocessing),
            "columns": list(self.columns),
        }

    @property
    def from_table(self) -> bool:
        """Whether these are somebody's own tables, imported, and not made here from media."""
        return TABLE in self.preprocessing

    def digest(self) -> str:
        """16 hex digits that change when anything in the identity does."""
        return hashlib.sha256(json.dumps(self._identity(), sort_keys=True).encode()).hexdigest()[:16]

    def __str__(self) -> str:
        """For messages: the name, and the start of the weights' hash where there are weights."""
        return f"{self.name} (weights {self.weights_sha256[:8]})" if self.weights_sha256 else self.name

    @property
    def is_known(self) -> bool:
        """Whether it tells more than a name: a table without weights, settings and columns could be anything."""
        return bool(self.weights_sha256 or self.preprocessing or self.columns)

    def difference(self, other: ExtractorId) -> str:
        """In what features made by `other` are not those of this extractor, in words; "" where they are.

        Imported tables are the same where their columns are. The number format of a network's products is no
        difference, and an extractor of which only the name is known (`is_known`) differs by that alone.
        """
        if not (self.from_table and other.from_table):
            if self.name != other.name:
                return "another extractor"
            if not (self.is_known and other.is_known):
                return ""
            if self.weights_sha256 != other.weights_sha256:
                return "other weights"
            mine, its = (json.loads(json.dumps({**e.preprocessing, COMPUTE: None})) for e in (self, other))
            if apart := [
                f"{k} {mine.get(k)} and {its.get(k)}" for k in sorted({*mine, *its}) if mine.get(k) != its.get(k)
            ]:
                return f"another preprocessing: {', '.join(apart)}"
        if self.columns == other.columns:
            return ""
        lacking = [c for c in self.columns if c not in other.columns][:_SHOWN]
        more = [c for c in other.columns if c not in self.columns][:_SHOWN]
        parts = [f"{word} {', '.join(names)}" for word, names in (("without", lacking), ("with", more)) if names]
        return "other columns: " + (", ".join(parts) or "the same in another order")


class Extractor(Protocol):
    """What all extractors have: who they are, the modality of their features, D."""

    @property
    def extractor(self) -> ExtractorId: ...

    @property
    def modality(self) -> str: ...

    @property
    def width(self) -> int: ...


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
        ends = valid if self.ends is None else np.asarray(self.ends)
        where = f"{self.modality} features ({self.extractor.name})"
        if values.dtype not in (np.float32, np.float16):
            values = values.astype(np.float32)
        if values.ndim != 2 or len(values) != n or valid.shape != (n,) or ends.shape != (n,):
            shapes = f"values {values.shape}, valid {valid.shape} and ends {ends.shape}"
            raise InputError(f"{shapes} do not fit {n} rows", where=where)
        if not all(np.isfinite(values[i : i + _BLOCK][valid[i : i + _BLOCK]]).all() for i in range(0, n, _BLOCK)):
            raise InputError("a valid row holds NaN or infinity", where=where, hint="mark such rows as not valid")
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


def nothing(extractor: Extractor) -> Features:
    """Features of a recording that lacks the modality: no rows."""
    values: NDArray[np.float32] = np.zeros((0, extractor.width), np.float32)
    ends = np.zeros(0) if extractor.modality == "text" else None
    return Features(extractor.modality, Timeline.regular(0, 1), values, np.zeros(0, bool), extractor.extractor, ends)
