"""Configuration of overlays (`affectrace overlay`). Loads no numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from affectrace.config import Config, Positive, Share
from affectrace.errors import ConfigError


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
