"""Training of temporal models: single runs and cross-validation."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from affectrace.errors import optional_packages
from affectrace.train.config import TrainConfig as TrainConfig

if TYPE_CHECKING:
    from affectrace.train.trainer import Trained as Trained
    from affectrace.train.trainer import train as train


def __getattr__(name: str) -> Any:
    """Load what trains on first use: `train.config` alone costs little."""
    if name in ("Trained", "train"):
        with optional_packages("training"):
            return getattr(importlib.import_module("affectrace.train.trainer"), name)
    raise AttributeError(f"module 'affectrace.train' has no attribute {name!r}")
