"""Fine-tuning of encoders on labelled recordings, and continued MAE pre-training."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from affectrace.errors import optional_packages
from affectrace.finetune.config import FinetuneConfig as FinetuneConfig

if TYPE_CHECKING:
    from affectrace.finetune.tuner import Finetuned as Finetuned
    from affectrace.finetune.tuner import finetune as finetune


def __getattr__(name: str) -> Any:
    """Load what tunes on first use: `finetune.config` alone costs little."""
    if name in ("Finetuned", "finetune"):
        with optional_packages("fine-tuning"):
            return getattr(importlib.import_module("affectrace.finetune.tuner"), name)
    raise AttributeError(f"module 'affectrace.finetune' has no attribute {name!r}")
