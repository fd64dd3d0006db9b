"""Data sets: manifests, labels, ratings, folds, imports and checks."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from affectrace.datasets.catalog import is_dataset as is_dataset
    from affectrace.datasets.catalog import open_dataset as open_dataset
    from affectrace.datasets.catalog import read_labels as read_labels
    from affectrace.datasets.catalog import read_raters as read_raters


def __getattr__(name: str) -> Any:
    """Import on first use: configurations alone stay cheap."""
    if name in ("is_dataset", "open_dataset", "read_labels", "read_raters"):
        return getattr(importlib.import_module("affectrace.datasets.catalog"), name)
    raise AttributeError(f"module 'affectrace.datasets' has no attribute {name!r}")
