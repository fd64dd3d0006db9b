"""Zero-shot model: valence and arousal from face, voice and words, never trained on ratings of recordings over time.

Ours; no paper. We know of no network trained on such ratings whose weights may be included here, so three weaker but
stated sources are combined. docs/cards/zero-shot.md: what each was measured on.

    p (T, 10)    expression: share of people who would choose each, of FER+       features/face.py
    f (T, 2)     face: mean of these people's points on the circumplex            eq. (1)-(2)
    a (T, 2)     voice: EMO-DB head on the speech around the frame                models/voice_head.py
    w (T, 2)     words: EmoBank head on the utterance being spoken                models/text_head.py
    y (T, 2)     weighted mean of the available ones, causally smoothed           eq. (3)-(4)

Causality: face, fusion and smoothing use the past only. Voice and words are not causal: the voice uses some seconds of
the speech that follows (models/voice_head.py); the value of an utterance, known after its last word, holds from its
first.

Circumplex points: mean pleasure and arousal ratings of the terms in Russell & Mehrabian (1977), Evidence for a
three-factor theory of emotions, J. Research in Personality 11, 273-294. The point of contempt is ours, between angry
and disgusted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from affectrace import config as configs
from affectrace.config import Config, NotNegative, Positive, checked
from affectrace.features.base import Features
from affectrace.sequences import Sequence, SequenceConfig
from affectrace.timeline import Timeline
from affectrace.trace import NO_FACE, NO_SPEECH, NOT_ENGLISH, Trace, causal_smooth

Array = NDArray[np.float64]

# (pleasure, arousal) of the term, Russell & Mehrabian 1977; contempt: ours; neutral is the origin by definition
CIRCUMPLEX: Mapping[str, tuple[float, float]] = {
    "angry": (-0.51, 0.59),
    "disgust": (-0.60, 0.35),
    "fear": (-0.64, 0.60),
    "happy": (0.81, 0.51),
    "sad": (-0.63, -0.27),
    "surprise": (0.40, 0.67),
    "neutral": (0.0, 0.0),
    "contempt": (-0.55, 0.43),
}


@dataclass(frozen=True)
class ZeroShotConfig(Config):
    """Every number of the model: ours, set by judgement, not tuned.

    The weights are omega of eq. (3): faces tell valence better, voices arousal.
    """

    visual_weight_valence: NotNegative = 0.6
    text_weight_valence: NotNegative = 0.4
    audio_weight_valence: NotNegative = 0.2
    visual_weight_arousal: NotNegative = 0.4
    audio_weight_arousal: NotNegative = 0.4
    text_weight_arousal: NotNegative = 0.2
    hold_s: NotNegative = 1.5  # voice and words count this long after their end, confidence falling linearly to zero
    smoothing_s: Positive = 0.4  # tau of the causal exponential filter (4)


class Estimate(NamedTuple):
    """One modality's own estimate, each (T,): valence and arousal in [-1, 1], NaN = none; confidence in [0, 1].

    valence_sd, arousal_sd: standard deviation over the people who would judge it, where a modality estimates it.
    """

    valence: Array
    arousal: Array
    confidence: Array
    valence_sd: Array | None = None
    arousal_sd: Array | None = None


class ZeroShot:
    """The default model. Not trained on, and not validated against, valence-arousal annotations of recordings."""

    name = id = "zero-shot"
    causal = False  # because of voice and words
    streams: Mapping[str, str] = MappingProxyType(
        {"expression": "ferplus", "voice": "voice-emodb", "utterances": "words-emobank"}
    )
    """Stream -> extractor."""
    sequences = SequenceConfig(clock="native")

    def __init__(self, config: ZeroShotConfig | None = None) -> None:
        self.config = checked(config or ZeroShotConfig())

    def predict(self, sequence: Sequence) -> Trace:
        """Every frame of a recording; the modalities' own estimates and confidences are among the extras.

        Where faces were searched for, a frame without the person's face is invalid, whatever the other modalities give.
        """
        tables = {n: t if isinstance(t, Features) else t.features() for n, t in sequence.inputs.items()}
        given = {name: table for name, table in tables.items() if len(table.timeline)}
        timeline, c = sequence.timeline, self.config
        parts: dict[str, Estimate] = {}
        if "expression" in given:
            parts["visual"] = self.visual(given["expression"])
        if "voice" in given:
            parts["audio"] = self.audio(given["voice"], timeline)
        if "utterances" in given:
            parts["text"] = self.text(given["utterances"], timeline)
        omega_v = {"visual": c.visual_weight_valence, "audio": c.audio_weight_valence, "text": c.text_weight_valence}
        omega_a = {"visual": c.visual_weight_arousal, "audio": c.audio_weight_arousal, "text": c.text_weight_arousal}
        n = len(timeline)
        valence = _weighted([(p.valence, omega_v[m] * p.confidence) for m, p in parts.items()], n)  # (3)
        arousal = _weighted([(p.arousal, omega_a[m] * p.confidence) for m, p in parts.items()], n)
        missing = np.full(n, NO_SPEECH)
        if "utterances" in given:
            missing = np.where(_left_out(given["utterances"], timeline), NOT_ENGLISH, missing)
        reason = np.where(np.isfinite(valence) & np.isfinite(arousal), "", missing)
        if "expression" in given:
            reason = np.where(given["expression"].valid, reason, NO_FACE)
        valid = reason == ""
        valence, arousal = (causal_smooth(timeline.times, x, valid, c.smoothing_s) for x in (valence, arousal))  # (4)
        extras: dict[str, Array] = {}
        for m, part in parts.items():
            values = {"valence": part.valence, "arousal": part.arousal}
            extras |= {f"{m}_{d}": x for d, x in values.items() if np.isfinite(x).any()}
            spread = {"valence": part.valence_sd, "arousal": part.arousal_sd}
            extras |= {f"{m}_{d}_sd": x for d, x in spread.items() if x is not None}
            extras[f"{m}_weight"] = part.confidence
        name = sequence.recording_id
        return Trace(name, timeline, valence, arousal, valid, reason, source=self.id, extras=extras)

    def explained(self, opened: Callable[[SequenceConfig], Sequence], missing: NDArray[np.str_]) -> Trace:
        """`predict` on the recording as `opened` gives it; missing: (T,) reasons for frames without an estimate."""
        trace = self.predict(opened(self.sequences))
        own = trace.known | (missing == "") | (trace.reason == NOT_ENGLISH)
        return replace(trace, reason=np.where(own, trace.reason, missing))

    def described(self) -> dict[str, Any]:
        """The model, for a trace's provenance."""
        return {"name": self.name, "config": configs.to_dict(self.config)}

    def visual(self, expression: Features) -> Estimate:
        """(1) f = p C / sum p over the expressions with a point;  (2) sd = sqrt(p C^2 / sum p - f^2).

        Confidence: the share of people who see one of these expressions.
        """
        mean, sd, share = circumplex(expression.values.astype(np.float64), expression.extractor.columns)
        mean, sd = (np.where(expression.valid[:, None], x, np.nan) for x in (mean, sd))
        confidence = np.where(expression.valid, np.clip(share, 0, 1), 0.0)
        return Estimate(mean[:, 0], mean[:, 1], confidence, sd[:, 0], sd[:, 1])

    def audio(self, voice: Features, timeline: Timeline) -> Estimate:
        """The value of the voice in each frame, fading over `hold_s` after the end of speech."""
        rows, nothing = np.flatnonzero(voice.valid), np.full(len(timeline), np.nan)
        if not rows.size:
            return Estimate(nothing, nothing, np.zeros(len(timeline)))
        before = np.searchsorted(voice.timeline.times[rows], timeline.times, side="right") - 1
        row = rows[np.maximum(before, 0)]
        age = np.where(before >= 0, np.maximum(timeline.times - voice.timeline.ends[row], 0), np.inf)
        confidence = _fade(age, self.config.hold_s)
        valence, arousal = (
            np.where(confidence > 0, voice.column(name)[row], np.nan) for name in ("valence", "arousal")
        )
        return Estimate(valence, arousal, confidence)

    def text(self, utterances: Features, timeline: Timeline) -> Estimate:
        """The value of the utterance being spoken, fading over `hold_s` after its end."""
        valence, arousal, confidence = (np.full(len(timeline), x) for x in (np.nan, np.nan, 0.0))
        assert utterances.ends is not None
        spans = zip(utterances.timeline.times, utterances.ends, utterances.values, utterances.valid, strict=True)
        for start, end, row, known in spans:
            if not known:
                continue
            frames = timeline.frames_between(start, end + self.config.hold_s)
            late = np.maximum(timeline.times[frames] - end, 0)
            valence[frames], arousal[frames] = row[:2]
            confidence[frames] = _fade(late, self.config.hold_s) * row[2]
        return Estimate(valence, arousal, confidence)


def circumplex(p: Array, columns: Iterable[str]) -> tuple[Array, Array, Array]:
    """Mean (T, 2) and standard deviation (T, 2) of valence and arousal over people who choose expressions.

    p: (T, D) share of people by column; columns without a point are left out. Third: (T,) share of those with one.
    """
    points = {i: CIRCUMPLEX[name] for i, name in enumerate(columns) if name in CIRCUMPLEX}
    p, c = p[:, list(points)], np.array(list(points.values()))
    share = p.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = p / share[:, None]
        mean = p @ c
        sd = np.sqrt(np.maximum(p @ c**2 - mean**2, 0))
    return mean, sd, share


def _left_out(utterances: Features, timeline: Timeline) -> NDArray[np.bool_]:
    """(T,) whether an utterance without a value, for it is not in English, is spoken."""
    inside = np.zeros(len(timeline), np.bool_)
    assert utterances.ends is not None
    for start, end, known in zip(utterances.timeline.times, utterances.ends, utterances.valid, strict=True):
        inside[timeline.frames_between(start, end)] |= not known
    return inside


def _fade(age: Array, hold_s: float) -> Array:
    """1 at age 0, falling linearly to 0 at `hold_s`."""
    return np.clip(1 - age / hold_s, 0, 1) if hold_s else (age == 0).astype(float)


def _weighted(parts: Iterable[tuple[Array, Array]], n: int) -> Array:
    """(3) y = sum omega_m c_m x_m / sum omega_m c_m over the modalities with an estimate; NaN where there is none."""
    total, mass = np.zeros(n), np.zeros(n)
    for x, weight in parts:
        weight = np.where(np.isfinite(x), weight, 0)
        total += weight * np.nan_to_num(x)
        mass += weight
    return np.divide(total, mass, out=np.full(n, np.nan), where=mass > 0)
