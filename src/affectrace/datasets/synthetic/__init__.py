"""Synthetic data sets with known valence and arousal: real media in the Aff-Wild2 layout."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from affectrace.datasets.synthetic.config import SynthConfig as SynthConfig
from affectrace.errors import optional_packages

if TYPE_CHECKING:
    from affectrace.datasets.synthetic.synthesis import SynthReport as SynthReport
    from affectrace.datasets.synthetic.synthesis import already_made as already_made
    from affectrace.datasets.synthetic.synthesis import left_behind as left_behind
    from affectrace.datasets.synthetic.synthesis import synthesize as synthesize


def __getattr__(name: str) -> Any:
    """Load the synthesis on first use: its configuration alone needs no numpy."""
    if name not in ("SynthReport", "already_made", "left_behind", "synthesize"):
        raise AttributeError(f"module 'affectrace.datasets.synthetic' has no attribute {name!r}")
    with optional_packages("synth"):
        return getattr(importlib.import_module("affectrace.datasets.synthetic.synthesis"), name)
