"""Overlays: traces, circumplex and face boxes drawn on the video, sound and times kept."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from affectrace.overlay.config import OverlayConfig as OverlayConfig

if TYPE_CHECKING:
    from affectrace.overlay.drawing import is_our_overlay as is_our_overlay
    from affectrace.overlay.drawing import write_overlay as write_overlay


def __getattr__(name: str) -> Any:
    """Load the drawing on first use: the configuration alone needs no numpy."""
    if name in ("is_our_overlay", "write_overlay"):
        return getattr(importlib.import_module("affectrace.overlay.drawing"), name)
    raise AttributeError(f"module 'affectrace.overlay' has no attribute {name!r}")
