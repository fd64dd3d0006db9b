"""What judges who know the planted signal would score, so that a model's score can be read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affectrace.metrics import ccc

Array = NDArray[np.float64]

ORACLE = "an oracle (knows the signal and remembers)"
MEMORYLESS = "the best line through the current frame (knows the signal, forgets)"
FACE_ONLY = "the same where only seen faces count (their mean elsewhere)"


def oracle_scores(
    trials: Mapping[str, Mapping[str, Any]], face_shows: tuple[bool, bool] = (True, True)
) -> dict[str, dict[str, float]]:
    """CCC over all annotated frames of `trials` together.

    ORACLE: the leaky integral of the planted drive, before annotation noise and rounding. MEMORYLESS: a line through
    the drive of the same frame, fitted to these very frames. FACE_ONLY: that line where a face is seen, elsewhere its
    mean: what a frame-wise model of the face could reach at most; 0 for a dimension that the face does not show.
    face_shows: valence, arousal: whether the face shows it.
    """
    target = _stacked(trials, "target")
    valid = np.concatenate([trial["valid"] for trial in trials.values()])
    face = np.concatenate([trial["face"] for trial in trials.values()])
    exact, drives = _stacked(trials, "exact"), _stacked(trials, "drives")
    scores: dict[str, dict[str, float]] = {ORACLE: {}, MEMORYLESS: {}, FACE_ONLY: {}}
    for k, name in enumerate(("valence", "arousal")):
        truth = target[valid, k]
        slope, offset = _line(drives[valid, k], truth)
        line = slope * drives[valid, k] + offset
        seen = face[valid]
        level = float(line[seen].mean()) if seen.any() else 0.0
        scores[ORACLE][name] = ccc(exact[valid, k], truth)
        scores[MEMORYLESS][name] = ccc(line, truth)
        scores[FACE_ONLY][name] = ccc(np.where(seen, line, level), truth) if face_shows[k] else 0.0
    return scores


def _stacked(trials: Mapping[str, Mapping[str, Any]], key: str) -> Array:
    return np.concatenate([trial[key] for trial in trials.values()])


def _line(x: Array, y: Array) -> tuple[float, float]:
    """The line of the best CCC: the moments of y, at the correlation's sign."""
    if len(x) < 2 or x.std() == 0:
        return 0.0, float(y.mean()) if len(y) else 0.0
    slope = float(np.sign(np.cov(x, y)[0, 1]) * y.std() / x.std())
    return slope, float(y.mean() - slope * x.mean())
