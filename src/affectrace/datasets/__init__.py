"""Data sets: what is on disk, as recordings and label traces."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from affectrace.datasets.catalog import is_dataset as is_dataset
    from affectrace.datasets.catalog import open_dataset as open_dataset
    from affectrace.datasets.catalog import read_labels as read_labels
    from affectrace.datasets.catalog import read_raters as read_raters


def __getattr__(name: str) -> Any:
    """Load what reads data on first use: settings of a data set alone cost little."""
    if name in ("is_dataset", "open_dataset", "read_labels", "read_raters"):
        return getattr(importlib.import_module("affectrace.datasets.catalog"), name)
    raise AttributeError(f"module 'affectrace.datasets' has no attribute {name!r}")
