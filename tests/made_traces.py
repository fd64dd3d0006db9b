"""Traces of given values."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from affectrace.timeline import Timeline
from affectrace.trace import NO_FACE, Trace


def trace(
    valence: ArrayLike,
    arousal: ArrayLike | None = None,
    *,
    timeline: Timeline | None = None,
    rate: Fraction | int = 25,
    reason: str = NO_FACE,
    recording_id: str = "r",
    source: str = "m",
    **more: Any,
) -> Trace:
    """NaN marks invalid frames; arousal equals valence by default."""
    v = np.array(valence, float)
    a = v if arousal is None else np.array(arousal, float)
    valid = np.isfinite(v)
    clock = Timeline.regular(len(v), rate) if timeline is None else timeline
    return Trace(recording_id, clock, v, a, valid, np.where(valid, "", reason), source, **more)


def made_trace(
    values: ArrayLike, valid: ArrayLike | None = None, *, name: str = "r", why: str = NO_FACE, **more: Any
) -> Trace:
    """A trace of (T, 2) values; `why` is the reason of invalid frames."""
    known = True if valid is None else np.asarray(valid, bool)[:, None]
    valence, arousal = np.where(known, np.asarray(values, float), np.nan).T
    return trace(valence, arousal, recording_id=name, reason=why, **more)
