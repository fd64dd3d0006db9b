"""Small traces on a regular clock."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from affectrace.timeline import Timeline
from affectrace.trace import NO_FACE, Trace


def made_trace(
    values: ArrayLike,
    valid: ArrayLike | None = None,
    *,
    name: str = "r",
    rate: Fraction | int = 25,
    why: str = NO_FACE,
    **more: Any,
) -> Trace:
    """A trace of (T, 2) values, NaN on invalid frames, whose reason is `why`."""
    values = np.asarray(values, float)
    known = np.ones(len(values), bool) if valid is None else np.asarray(valid, bool)
    valence, arousal = np.where(known[:, None], values, np.nan).T
    reason = np.where(known, "", why)
    more = {"source": "m", **more}
    return Trace(name, Timeline.regular(len(values), rate), valence, arousal, known, reason, **more)
