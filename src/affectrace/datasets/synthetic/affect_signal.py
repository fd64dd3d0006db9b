"""Ground-truth valence and arousal signals, and the scores of oracle predictors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affectrace.metrics import ccc

Array = NDArray[np.float64]
Stretches = tuple[tuple[float, float], ...]  # from, until in seconds

RATE_HZ = 200  # signals are computed at this rate and interpolated
_BAND_HZ = (0.03, 0.22)  # how fast valence and arousal change
_WAVES = 5
_REACH = 1.3  # gain before tanh: most of -1 to 1 is visited

ORACLE = "an oracle (knows the signal and remembers)"
MEMORYLESS = "the best line through the current frame (knows the signal, forgets)"
FACE_ONLY = "the same where only seen faces count (their mean elsewhere)"


@dataclass(frozen=True, eq=False)
class AffectSignal:
    """One dimension over time.

    drive: (n,) at RATE_HZ in (-1, 1), shown by face, voice and words. label: (n,) its leaky integral.
    """

    drive: Array
    label: Array

    def drive_at(self, times_s: Array | float) -> Array:
        """The drive at any times, held at the ends."""
        return read_at(self.drive, times_s)


def read_at(values: Array, times_s: Array | float) -> Array:
    """Values at RATE_HZ, linearly interpolated."""
    return np.asarray(np.interp(times_s, np.arange(values.size) / RATE_HZ, values))


def draw_signal(seconds: float, tau_s: float, rng: np.random.Generator, frozen: Stretches = ()) -> AffectSignal:
    """A smooth random signal: tanh of sines of random rate and phase; its label by `leaky`.

    frozen: stretches in which the drive keeps its first value.
    """
    n = round(seconds * RATE_HZ) + 1
    times = np.arange(n) / RATE_HZ
    rates = np.exp(rng.uniform(np.log(_BAND_HZ[0]), np.log(_BAND_HZ[1]), _WAVES))
    phases, sizes = rng.uniform(0, 2 * np.pi, _WAVES), rng.uniform(0.5, 1.0, _WAVES)
    waves = np.sin(2 * np.pi * rates[:, None] * times + phases[:, None])
    drive = np.tanh(_REACH * (sizes @ waves) / np.sqrt((sizes**2).sum() / 2) / np.sqrt(2) + rng.normal(0, 0.15))
    for start, end in frozen:
        drive[round(start * RATE_HZ) : round(end * RATE_HZ)] = drive[round(start * RATE_HZ)]
    return AffectSignal(drive, leaky(drive, tau_s))


def leaky(drive: Array, tau_s: float) -> Array:
    """y' = (x - y) / tau with y(0) = x(0). tau_s = 0: y = x."""
    from scipy.signal import lfilter

    keep = np.exp(-1 / (RATE_HZ * tau_s)) if tau_s > 0 else 0.0
    return np.asarray(lfilter([1 - keep], [1, -keep], drive, zi=[keep * drive[0]])[0])


def oracle_scores(
    trials: Iterable[Mapping[str, Any]], face_shows: tuple[bool, bool] = (True, True)
) -> dict[str, dict[str, float]]:
    """CCC over all annotated frames of `trials` together, by oracle and dimension.

    ORACLE: the leaky integral of the planted drive, before annotation noise and rounding. MEMORYLESS: a line through
    the drive of the same frame, fitted to these very frames. FACE_ONLY: that line where a face is seen, elsewhere its
    mean: the best a frame-wise model of the face could reach; 0 for a dimension that the face does not show.
    face_shows: valence, arousal.
    """
    target, exact, drives, seen = (
        np.concatenate([trial[key][trial["valid"]] for trial in trials])
        for key in ("target", "exact", "drives", "face")
    )
    scores: dict[str, dict[str, float]] = {ORACLE: {}, MEMORYLESS: {}, FACE_ONLY: {}}
    for k, name in enumerate(("valence", "arousal")):
        x, truth = drives[:, k], target[:, k]
        spread = x.std() or np.inf
        # the line of the best CCC has the moments of the truth, at the correlation's sign
        line = truth.mean() + np.sign(np.cov(x, truth)[0, 1]) * truth.std() / spread * (x - x.mean())
        face = np.where(seen, line, line[seen].mean() if seen.any() else 0.0)
        scores[ORACLE][name] = ccc(exact[:, k], truth)
        scores[MEMORYLESS][name] = ccc(line, truth)
        scores[FACE_ONLY][name] = ccc(face, truth) if face_shows[k] else 0.0
    return scores
