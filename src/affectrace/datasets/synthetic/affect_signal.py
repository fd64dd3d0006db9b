"""Courses of valence and arousal that are known exactly: what is shown, and the label that follows it with a memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RATE_HZ = 200  # courses are worked out at this rate and read in between
_BAND_HZ = (0.03, 0.22)  # how fast valence and arousal change
_WAVES = 5
_REACH = 1.3  # of the sum before it is squashed: most of -1 to 1 is visited


@dataclass(frozen=True, eq=False)
class Course:
    """One dimension over time.

    drive: (n,) at RATE_HZ, what face, voice and words show, in (-1, 1). label: (n,) the leaky integral of the drive.
    """

    drive: Array
    label: Array

    def drive_at(self, times_s: Array | float) -> Array:
        """The drive at any times (the ends hold)."""
        return np.asarray(np.interp(times_s, np.arange(self.drive.size) / RATE_HZ, self.drive))

    def label_at(self, times_s: Array | float) -> Array:
        """The label at any times: of what was shown before and at that time."""
        return np.asarray(np.interp(times_s, np.arange(self.label.size) / RATE_HZ, self.label))


def draw_course(
    seconds: float, tau_s: float, rng: np.random.Generator, frozen: tuple[tuple[float, float], ...] = ()
) -> Course:
    """A smooth random course: sines of random rate and phase, squashed; its label by `leaky`.

    frozen: stretches (s) in which the drive rests at the value it had when they began.
    """
    n = round(seconds * RATE_HZ) + 1
    times = np.arange(n) / RATE_HZ
    rates = np.exp(rng.uniform(np.log(_BAND_HZ[0]), np.log(_BAND_HZ[1]), _WAVES))
    phases, sizes = rng.uniform(0, 2 * np.pi, _WAVES), rng.uniform(0.5, 1.0, _WAVES)
    waves = np.sin(2 * np.pi * rates[:, None] * times + phases[:, None])
    drive = np.tanh(_REACH * (sizes @ waves) / np.sqrt((sizes**2).sum() / 2) / np.sqrt(2) + rng.normal(0, 0.15))
    for start, end in frozen:
        first, last = round(start * RATE_HZ), min(round(end * RATE_HZ), n)
        if first < last:
            drive[first:last] = drive[first]
    return Course(drive, leaky(drive, tau_s))


def leaky(drive: Array, tau_s: float) -> Array:
    """y' = (x - y) / tau with y(0) = x(0): the label remembers about `tau_s` seconds. tau_s = 0: no memory."""
    if tau_s <= 0:
        return drive.copy()
    keep = float(np.exp(-1 / (RATE_HZ * tau_s)))
    label = np.empty_like(drive)
    value = float(drive[0])
    for i, x in enumerate(drive.tolist()):
        value = x + (value - x) * keep
        label[i] = value
    return label
