"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import affectrace  # noqa: F401  (before any test module imports onnxruntime, which then reports nothing)

# Two cores, and several libraries with thread pools of their own: waiting threads must not spin.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The shared data folder (AFFECTRACE_REAL_DATA, or ../shared/data beside the repository)."""
    folder = Path(os.environ.get("AFFECTRACE_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set AFFECTRACE_REAL_DATA")
    return folder


@pytest.fixture(scope="session")
def clips(real_data: Path) -> Path:
    """The folder of real clips."""
    return real_data / "clips"
