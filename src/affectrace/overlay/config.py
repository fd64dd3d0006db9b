"""Configuration of overlays (`affectrace overlay`). Does not import numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from affectrace.config import Config, Positive, Share
from affectrace.errors import ConfigError


@dataclass(frozen=True)
class OverlayConfig(Config):
    """Layout and encoding of an overlay. All defaults are our choice."""

    panel: Literal["below", "over"] = "below"
    """Panel with traces and circumplex: below the image, or over its lower part."""
    history_s: Positive = 8.0
    """Length of the trace lines, in seconds."""
    tail_s: Positive = 2.0
    """Length of the trail in the circumplex, in seconds."""
    panel_share: Annotated[float, Interval(ge=0.1, le=1)] = 0.42
    """Height of the panel, as a fraction of the image height."""
    panel_opacity: Share = 0.78
    """Opacity of a panel over the image."""
    min_side_px: Annotated[int, Ge(16)] = 360
    """Enlarge smaller images until their shorter side has this many pixels, so that text is readable."""
    max_side_px: int = 1920
    """Shrink larger images until their longer side has this many pixels."""
    crf: Annotated[int, Interval(ge=0, le=51)] = 20
    """Constant rate factor of H.264: 18 (near lossless) to 30 (small file)."""

    def __post_init__(self) -> None:
        if self.min_side_px > self.max_side_px:
            raise ConfigError("must not be above max_side_px", where="min_side_px")
