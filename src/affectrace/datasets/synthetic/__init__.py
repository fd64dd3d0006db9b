"""Recordings with known valence and arousal: a complete tree in the Aff-Wild2 layout, with real media."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from affectrace.datasets.synthetic.config import SynthConfig as SynthConfig

if TYPE_CHECKING:
    from affectrace.datasets.synthetic.synthesis import SynthReport as SynthReport
    from affectrace.datasets.synthetic.synthesis import synthesise as synthesise


def __getattr__(name: str) -> Any:
    """Load what makes recordings on first use: the settings alone cost little."""
    if name in ("SynthReport", "synthesise"):
        return getattr(importlib.import_module("affectrace.datasets.synthetic.synthesis"), name)
    raise AttributeError(f"module 'affectrace.datasets.synthetic' has no attribute {name!r}")
