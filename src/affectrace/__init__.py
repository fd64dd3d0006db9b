"""affectrace: continuous emotion recognition. A recording in, valence and arousal for every frame out.

Expression is not felt emotion: a trace describes what is shown and heard, not what a person feels.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from affectrace.errors import AffectraceError
    from affectrace.evaluate import score
    from affectrace.features.extractor import Features
    from affectrace.hub import push
    from affectrace.predictor import load, predict
    from affectrace.recording import Recording
    from affectrace.sequences import Sequence
    from affectrace.summaries import summary
    from affectrace.timeline import Timeline
    from affectrace.trace import Trace

_PUBLIC = {
    "load": "affectrace.predictor",
    "push": "affectrace.hub",
    "predict": "affectrace.predictor",
    "score": "affectrace.evaluate",
    "summary": "affectrace.summaries",
    "Features": "affectrace.features.extractor",
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


def __getattr__(name: str) -> Any:
    """Load public names on first use: importing the package itself stays fast and pulls in nothing heavy."""
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'affectrace' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
