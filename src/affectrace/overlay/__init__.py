"""Overlay: the video with its trace drawn under it and face boxes on it; sound and presentation times are kept."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Interval

from affectrace.config import Config, Positive, Share
from affectrace.errors import ConfigError

if TYPE_CHECKING:
    from affectrace.overlay.drawing import is_our_overlay as is_our_overlay
    from affectrace.overlay.drawing import write_overlay as write_overlay


@dataclass(frozen=True)
class OverlayConfig(Config):
    """How an overlay is drawn. All defaults are our choice."""

    panel: Literal["below", "over"] = "below"
    """Lines and circumplex below the picture, or over its lower part."""
    history_s: Positive = 8.0
    """How much of the past the lines show, seconds."""
    tail_s: Positive = 2.0
    """How much of the past the circumplex shows, seconds."""
    panel_share: Annotated[float, Interval(ge=0.1, le=1)] = 0.42
    """Height of the panel, as a share of the picture's."""
    panel_opacity: Share = 0.78
    """Opacity of a panel over the picture."""
    min_side_px: Annotated[int, Ge(16)] = 360
    """Shorter side up to which small pictures are enlarged, so that text is readable, pixels."""
    max_side_px: int = 1920
    """Longer side to which large pictures are reduced, pixels."""
    crf: Annotated[int, Interval(ge=0, le=51)] = 20
    """Quality of the video: 18 (near lossless) to 30 (small)."""

    def __post_init__(self) -> None:
        if self.min_side_px > self.max_side_px:
            raise ConfigError("must not be above max_side_px", where="min_side_px")


def __getattr__(name: str) -> Any:
    """Load the drawing on first use: the configuration alone needs no numpy."""
    if name in ("is_our_overlay", "write_overlay"):
        return getattr(importlib.import_module("affectrace.overlay.drawing"), name)
    raise AttributeError(f"module 'affectrace.overlay' has no attribute {name!r}")
