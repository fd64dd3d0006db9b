"""Model inputs: features, validity and labels on one clock, cut into windows and batches."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from affectrace.sequences.sequence import FRAME as FRAME
    from affectrace.sequences.sequence import Piece as Piece
    from affectrace.sequences.sequence import Sequence as Sequence
    from affectrace.sequences.sequence import SequenceConfig as SequenceConfig
    from affectrace.sequences.sequence import common_widths as common_widths
    from affectrace.sequences.sequence import extractors_of as extractors_of
    from affectrace.sequences.sequence import label_clock as label_clock
    from affectrace.sequences.sequence import labelled_coverage as labelled_coverage
    from affectrace.sequences.sequence import labelled_dimensions as labelled_dimensions
    from affectrace.sequences.sequence import open_sequence as open_sequence
    from affectrace.sequences.sequence import open_sequences as open_sequences

_LAZY = {"FRAME", "Piece", "Sequence", "SequenceConfig", "common_widths", "extractors_of"}
_LAZY |= {"label_clock", "labelled_coverage", "labelled_dimensions", "open_sequence", "open_sequences"}


def __getattr__(name: str) -> Any:
    """Import on first use: `sequences.config` alone stays cheap."""
    if name in _LAZY:
        return getattr(importlib.import_module("affectrace.sequences.sequence"), name)
    raise AttributeError(f"module 'affectrace.sequences' has no attribute {name!r}")
