"""Feature normalization by mean and deviation over the training set, fitted in one pass."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from affectrace.config import write_atomic
from affectrace.errors import FormatError, InputError
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.sequences import Sequence, common_widths

FORMAT = "affectrace.statistics"
FILE_NAME = "statistics.safetensors"
_CHUNK = 4096  # rows in memory at a time


class RunningMoments:
    """Mean and variance of D columns in blocks, float64 (Chan, Golub & LeVeque 1979)."""

    def __init__(self, dim: int) -> None:
        self.n = 0
        self.mean = np.zeros(dim)
        self._squares = np.zeros(dim)

    def add(self, rows: NDArray[np.floating[Any]]) -> None:
        """Add (n, D) rows."""
        n = len(rows)
        if not n:
            return
        x = rows.astype(np.float64)
        mean = x.mean(axis=0)
        x -= mean
        step, total = mean - self.mean, self.n + n
        self._squares += np.einsum("nd,nd->d", x, x) + step**2 * (self.n * n / total)
        self.mean = self.mean + step * (n / total)
        self.n = total

    @property
    def deviation(self) -> NDArray[np.float64]:
        """(D,) population standard deviation."""
        return np.sqrt(self._squares / max(self.n, 1))


@dataclass(frozen=True, eq=False)
class FeatureNormalizer:
    """(x - mean) / deviation for each stream; stored with the model.

    mean, deviation: stream -> (D,) float32, deviation 1 for a constant column. n: stream -> number of rows.
    recordings: ids of the training recordings.
    """

    mean: Mapping[str, NDArray[np.float32]]
    deviation: Mapping[str, NDArray[np.float32]]
    n: Mapping[str, int]
    recordings: tuple[str, ...]

    @classmethod
    def fit(cls, sequences: Iterable[Sequence], *, progress: Progress = silent) -> FeatureNormalizer:
        """Fit to the rows with data of the training sequences, as the model sees them (raises InputError: none)."""
        given = list(sequences)
        dims = common_widths((s.recording_id, {m: stream.dim for m, stream in s.streams.items()}) for s in given)
        moments = {name: RunningMoments(dim) for name, dim in dims.items()}
        for i, sequence in enumerate(given):
            progress(ProgressEvent("measuring features", i, len(given), "recordings", sequence.recording_id))
            for name, stream in sequence.streams.items():
                for a in range(0, len(stream.valid), _CHUNK):
                    rows = slice(a, min(a + _CHUNK, len(stream.valid)))
                    if stream.filled[rows].any():
                        moments[name].add(stream.read(rows)[stream.filled[rows]])
        progress(ProgressEvent("measuring features", len(given), len(given), "recordings"))
        if not moments or (empty := sorted(name for name, running in moments.items() if not running.n)):
            what = f"no valid row of {', '.join(empty)}" if moments else "no sequences"
            raise InputError(f"nothing to fit the normalization to: {what}", hint="give the training recordings")
        deviation = {m: np.where(r.deviation > 1e-6 * np.abs(r.mean), r.deviation, 1.0) for m, r in moments.items()}
        return cls(
            mean={m: r.mean.astype(np.float32) for m, r in moments.items()},
            deviation={m: d.astype(np.float32) for m, d in deviation.items()},
            n={m: r.n for m, r in moments.items()},
            recordings=tuple(sorted({s.recording_id for s in given})),
        )

    def save(self, path: Path) -> Path:
        """Write as safetensors, atomically; a folder gets `statistics.safetensors` (raises OutputError)."""
        path = path / FILE_NAME if path.is_dir() else path
        parts = {"deviation": self.deviation, "mean": self.mean}
        arrays = {f"{stream}.{part}": of[stream] for stream in sorted(self.mean) for part, of in parts.items()}
        header = json.dumps({"n": dict(self.n), "recordings": list(self.recordings)}, sort_keys=True)
        write_atomic(path, save(arrays, metadata={FORMAT: header}))
        return path

    @classmethod
    def load(cls, path: Path) -> FeatureNormalizer:
        """Read what `save` wrote (raises FormatError)."""
        path = path / FILE_NAME if path.is_dir() else path
        if not path.is_file():
            raise FormatError("no such statistics file", where=path, hint="it is written beside the model")
        try:
            with safe_open(path, "np") as file:
                header = json.loads((file.metadata() or {})[FORMAT])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            parts = {part: {s: arrays[f"{s}.{part}"] for s in header["n"]} for part in ("mean", "deviation")}
            return cls(parts["mean"], parts["deviation"], header["n"], tuple(header["recordings"]))
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
            raise FormatError(f"is not a statistics file ({error})", where=path, hint="train again") from None
