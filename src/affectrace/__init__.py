"""affectrace: continuous emotion recognition. A recording in, valence and arousal for every frame out.

Expression is not felt emotion: a trace describes what is shown and heard, not what a person feels.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from affectrace.errors import AffectraceError
    from affectrace.evaluate import score
    from affectrace.features.base import Features
    from affectrace.inference.predictor import load, predict
    from affectrace.models.publish import push
    from affectrace.recording import Recording
    from affectrace.sequences import Sequence
    from affectrace.summaries import summary
    from affectrace.timeline import Timeline
    from affectrace.trace import Trace

_PUBLIC = {
    "load": "affectrace.inference.predictor",
    "push": "affectrace.models.publish",
    "predict": "affectrace.inference.predictor",
    "score": "affectrace.evaluate",
    "summary": "affectrace.summaries",
    "Features": "affectrace.features.base",
    "Recording": "affectrace.recording",
    "Sequence": "affectrace.sequences",
    "Timeline": "affectrace.timeline",
    "Trace": "affectrace.trace",
    "AffectraceError": "affectrace.errors",
}
__all__ = [
    "AffectraceError",
    "Features",
    "Recording",
    "Sequence",
    "Timeline",
    "Trace",
    "load",
    "predict",
    "push",
    "score",
    "summary",
]

NO_TELEMETRY = {  # environment variable: value that disables a library's telemetry
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime (1.29 and later), to Microsoft; read at its import, not later
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface-hub: torch's version and more, with each request
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray, to its makers
}


def _disable_telemetry() -> None:
    """Set NO_TELEMETRY for this process and its children, before any other module; warns if it is too late."""
    accepted = os.environ.get("ORT_DISABLE_TELEMETRY", "").lower() in ("1", "true", "yes", "on")
    os.environ.update(NO_TELEMETRY)
    if "onnxruntime" in sys.modules and not accepted:
        warnings.warn(
            "onnxruntime was imported before affectrace, so its telemetry cannot be switched off any more: it may "
            "report to Microsoft from this process; import affectrace first, or set ORT_DISABLE_TELEMETRY=1",
            stacklevel=3,
        )


_disable_telemetry()


def __getattr__(name: str) -> Any:
    """Load public names on first use, so that importing the package stays fast."""
    if name in _PUBLIC:
        from affectrace.errors import optional_packages

        with optional_packages(f"affectrace.{name}"):
            return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'affectrace' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
