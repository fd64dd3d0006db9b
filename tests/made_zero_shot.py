"""Features that the zero-shot model reads: expressions, a voice and utterances of five seconds."""

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


def voice(valence: float, arousal: np.ndarray | float, valid: np.ndarray | bool = True) -> Features:
    """Ten rows of half a second."""
    rows = np.stack([np.broadcast_to(x, 10) for x in (valence, arousal, 3.0)], axis=1).astype(np.float32)
    extractor = ExtractorId("voice-emodb", columns=("valence", "arousal", "speech_s"))
    return Features("voice", Timeline.regular(10, 2), rows, np.broadcast_to(valid, 10), extractor)
