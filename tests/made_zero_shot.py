"""Features that the zero-shot model reads: expressions, prosody and utterances of five seconds."""

from __future__ import annotations

import numpy as np

from affectrace.features.base import ExtractorId, Features
from affectrace.features.face import VOTES
from affectrace.timeline import Timeline

FPS, N = 20, 100
CLOCK = Timeline.regular(N, FPS)
ALL = np.ones(N, bool)
UTTERANCES = Features(  # one, from 1 to 2 s
    "text",
    Timeline.from_times([1.0], 2.0),
    np.float32([[0.8, 0.1, 0.9]]),
    np.ones(1, bool),
    ExtractorId("words-emobank", columns=("valence", "arousal", "confidence")),
    ends=np.array([2.0]),
)


def expressions(p: np.ndarray | str, valid: np.ndarray = ALL) -> Features:
    """One expression in all frames, or (100, 10) probabilities."""
    rows = np.tile(np.eye(len(VOTES))[VOTES.index(p)], (N, 1)) if isinstance(p, str) else p
    return Features("face", CLOCK, rows.astype(np.float32), valid, ExtractorId("ferplus", columns=VOTES))


def prosody(loudness_db: np.ndarray, valid: bool = True) -> Features:
    """Rows at 100 Hz; pitch and rate constant."""
    n = len(loudness_db)
    values = np.stack([loudness_db, np.full(n, 120.0), np.full(n, 4.0)], axis=1).astype(np.float32)
    extractor = ExtractorId("prosody", columns=("loudness_db", "pitch_hz", "rate_hz"))
    return Features("voice", Timeline.regular(n, 100), values, np.full(n, valid), extractor)
