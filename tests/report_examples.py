"""Traces made for the report's and overlay's tests: known curves with gaps, layers, words and persons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from affectrace.timeline import Timeline
from affectrace.trace import NO_FACE, Span, Trace

SAID = (
    (0.6, 3.4, "And so my fellow Americans", 0.22, 0.35),
    (3.8, 7.9, "ask not what your country can do for you", -0.46, 0.31),
    (8.2, 11.4, "ask what you can do for your country.", 0.55, 0.42),
    (12.6, 15.0, "That is what I came here to say,", 0.08, -0.12),
    (15.3, 18.8, "and I am glad that you have listened.", 0.71, 0.24),
)


def wave(times: np.ndarray, seed: int, slow: float = 9.0) -> np.ndarray:
    """A smooth curve in (-1, 1) with slow and quick parts."""
    rng = np.random.default_rng(seed)
    total = np.zeros(len(times))
    for period, size in ((slow, 0.5), (slow / 2.7, 0.28), (slow / 7, 0.12), (slow / 19, 0.035)):
        total += size * np.sin(2 * np.pi * (times / period + rng.uniform()))
    return np.tanh(total)


def spoken(shift_s: float = 0.0) -> tuple[Span, ...]:
    """Utterances with their words and the stretches of speech."""
    spans = []
    for start, end, text, valence, arousal in SAID:
        a, b = start + shift_s, end + shift_s
        spans += [Span("utterance", a, b, text, valence, arousal, 0.83), Span("speech", a - 0.1, b + 0.1)]
        words = text.split()
        edges = np.linspace(a, b, len(words) + 1)
        spans += [
            Span("word", float(edges[i]), float(edges[i + 1] - 0.04), word, confidence=0.45 if word == "glad" else 0.9)
            for i, word in enumerate(words)
        ]
    return tuple(spans)


def example_trace(
    timeline: Timeline | None = None,
    *,
    seed: int = 3,
    recording_id: str = "interview",
    person: str = "0",
    size: tuple[int, int] = (640, 360),
    gaps: tuple[tuple[float, float], ...] = ((9.4, 10.3), (16.0, 16.15)),
    sd: bool = False,
    spans: tuple[Span, ...] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Trace:
    """A trace as `predict` makes it: three layers, a face box, words, gaps without a face."""
    timeline = timeline if timeline is not None else Timeline.regular(472, 24)
    t = timeline.times
    missing = np.zeros(len(t), bool)
    for a, b in gaps:
        missing |= (t >= a) & (t < b)
    v, a = wave(t, seed), wave(t, seed + 100, 7.0)
    heard = np.zeros(len(t), bool)
    words_v = np.full(len(t), np.nan)
    said = spoken() if spans is None else spans
    for span in said:
        inside = timeline.frames_between(span.start_s, span.end_s)
        if span.kind == "utterance" and span.valence is not None:
            words_v[inside] = span.valence
        elif span.kind == "speech":
            heard[inside] = True

    def seen(x: np.ndarray) -> np.ndarray:
        return np.where(missing, np.nan, x)

    extras = {
        "confidence": seen(0.9 + 0.05 * wave(t, 5)),
        "face_x": seen(size[0] * (0.38 + 0.02 * wave(t, 6))),
        "face_y": seen(size[1] * (0.18 + 0.02 * wave(t, 7))),
        "face_w": seen(np.full(len(t), size[0] * 0.24)),
        "face_h": seen(np.full(len(t), size[1] * 0.5)),
        "face_valence": seen(np.clip(v * 0.8 + 0.12 * wave(t, seed + 7, 2.0), -1, 1)),
        "face_arousal": seen(np.clip(a * 0.7 + 0.1 * wave(t, seed + 8, 2.0), -1, 1)),
        "voice_arousal": np.where(heard, np.clip(a * 1.1 + 0.15 * wave(t, seed + 9, 1.4), -1, 1), np.nan),
        "words_valence": words_v,
    }
    if sd:
        extras["valence_sd"] = seen(0.12 + 0.05 * wave(t, 11))
        extras["arousal_sd"] = seen(0.10 + 0.04 * wave(t, 12))
    return Trace(
        recording_id=recording_id,
        person=person,
        timeline=timeline,
        valence=seen(v),
        arousal=seen(a),
        valid=~missing,
        reason=np.where(missing, NO_FACE, ""),
        source="zero-shot",
        extras=extras,
        spans=said,
        provenance=provenance
        or {
            "model": {"name": "zero-shot", "config": {"smoothing_s": 0.4}},
            "weights": {"fer": "0c1f" * 16, "minilm-l6": "ab12" * 16},
            "versions": {"affectrace": "0.1.0", "numpy": "2.4.6"},
            "options": {"person": "all", "fps": None, "language": "en"},
            "input": {"name": "interview.mp4", "sha256": "9f86" * 16, "bytes": 1632292},
            "notes": [],
        },
    )
