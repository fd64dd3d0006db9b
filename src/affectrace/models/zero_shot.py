"""Zero-shot model: valence and arousal from face, voice and words, without affect-labelled training.

Ours; no paper. We know of no network trained on valence and arousal of faces, or on emotional speech, whose weights may
be included here, so three weaker but stated sources are combined. docs/cards/zero-shot.md: what each was measured on.

    p (T, 7)     expression probabilities, FER2013 classes                        features/face.py
    g (T, G)     mesh geometry, its deviation from the person's running baseline  features/face.py
    f (T, 2)     face: circumplex mean of p, scaled by how much the face moves    eq. (1)-(2)
    z (T_a, 3)   loudness, pitch, speaking rate against the speaker's baseline    eq. (3)
    a (T,)       voice: arousal only                                              eq. (4)
    w (T, 2)     words: EmoBank head on the utterance being spoken                models/text_head.py
    y (T, 2)     weighted mean of the available ones, causally smoothed           eq. (5)-(6)

Causality: face, fusion and smoothing use the past only; speech activity is known .35 s late (media/speech.py). Words
are not causal: the value of an utterance, known after its last word, holds from its first.

Circumplex points: mean pleasure and arousal ratings of the terms in Russell & Mehrabian (1977), Evidence for a
three-factor theory of emotions, J. Research in Personality 11, 273-294. Voice cues of arousal: Juslin & Scherer (2005),
Vocal expression of affect; louder, higher and faster speech is heard as more aroused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from affectrace import config as configs
from affectrace.config import Config, NotNegative, Positive, Share, checked
from affectrace.features.base import Features
from affectrace.sequences import Sequence, SequenceConfig
from affectrace.timeline import Timeline
from affectrace.trace import NO_FACE, NO_SPEECH, NOT_ENGLISH, Trace, causal_smooth

Array = NDArray[np.float64]

# (pleasure, arousal) of the term, Russell & Mehrabian 1977; neutral is the origin by definition
CIRCUMPLEX: Mapping[str, tuple[float, float]] = {
    "angry": (-0.51, 0.59),
    "disgust": (-0.60, 0.35),
    "fear": (-0.64, 0.60),
    "happy": (0.81, 0.51),
    "sad": (-0.63, -0.27),
    "surprise": (0.40, 0.67),
    "neutral": (0.0, 0.0),
}
NO_WORDS = "no words for valence"


@dataclass(frozen=True)
class ZeroShotConfig(Config):
    """Every number of the model: ours, set by judgement, not tuned.

    The weights are omega of eq. (5): faces tell valence better, voices arousal; a voice alone does not tell valence.
    """

    visual_weight_valence: NotNegative = 0.6
    text_weight_valence: NotNegative = 0.4
    visual_weight_arousal: NotNegative = 0.4
    audio_weight_arousal: NotNegative = 0.4
    text_weight_arousal: NotNegative = 0.2
    intensity_floor: Share = 0.5  # alpha in (2): the factor for a face at its own baseline
    baseline_s: Positive = 60.0  # time constant of the running baselines
    prior_s: Positive = 3.0  # seconds of evidence that the prior spread is worth
    loudness_sd_db: NotNegative = 6.0  # prior standard deviation within a speaker
    pitch_sd_st: NotNegative = 3.0  # likewise, semitones
    rate_sd_hz: NotNegative = 1.0  # likewise, syllables per second
    audio_gain: NotNegative = 0.5  # kappa in (4)
    audio_s: Positive = 0.5  # time constant of the voice's smoothing, about two syllables
    hold_s: NotNegative = 1.5  # voice and words count this long after their end, confidence falling linearly to zero
    smoothing_s: Positive = 0.4  # tau of the causal exponential filter (6)


class Estimate(NamedTuple):
    """One modality's own estimate, each (T,): valence and arousal in [-1, 1], NaN = none; confidence in [0, 1]."""

    valence: Array
    arousal: Array
    confidence: Array


class ZeroShot:
    """The default model. Not trained on, and not validated against, valence-arousal annotations of faces or voices."""

    name = id = "zero-shot"
    causal = False  # because of the words
    streams: Mapping[str, str] = MappingProxyType(
        {"expression": "fer", "geometry": "mesh-geometry", "prosody": "prosody", "utterances": "words-emobank"}
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
            parts["visual"] = self.visual(given["expression"], given.get("geometry"))
        if "prosody" in given:
            parts["audio"] = self.audio(given["prosody"], timeline)
        if "utterances" in given:
            parts["text"] = self.text(given["utterances"], timeline)
        omega_v = {"visual": c.visual_weight_valence, "audio": 0.0, "text": c.text_weight_valence}
        omega_a = {"visual": c.visual_weight_arousal, "audio": c.audio_weight_arousal, "text": c.text_weight_arousal}
        n = len(timeline)
        valence = _weighted([(p.valence, omega_v[m] * p.confidence) for m, p in parts.items()], n)  # (5)
        arousal = _weighted([(p.arousal, omega_a[m] * p.confidence) for m, p in parts.items()], n)
        missing = np.where(np.isfinite(arousal), NO_WORDS, NO_SPEECH)
        if "utterances" in given:
            missing = np.where(_left_out(given["utterances"], timeline), NOT_ENGLISH, missing)
        reason = np.where(np.isfinite(valence) & np.isfinite(arousal), "", missing)
        if "expression" in given:
            reason = np.where(given["expression"].valid, reason, NO_FACE)
        valid = reason == ""
        valence, arousal = (causal_smooth(timeline.times, x, valid, c.smoothing_s) for x in (valence, arousal))  # (6)
        extras: dict[str, Array] = {}
        for m, part in parts.items():
            values = {"valence": part.valence, "arousal": part.arousal}
            extras |= {f"{m}_{d}": x for d, x in values.items() if np.isfinite(x).any()}
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

    def visual(self, expression: Features, geometry: Features | None) -> Estimate:
        """(1) m = p C;  (2) f = m (alpha + (1 - alpha) tanh |d|), d: deviation of the geometry in SDs."""
        points = np.array([CIRCUMPLEX[name] for name in expression.extractor.columns])
        p = expression.values.astype(np.float64)
        mean = p @ points  # (1)
        alpha = self.config.intensity_floor
        intensity = np.ones(len(mean))
        if geometry is not None:
            times = geometry.timeline.times
            z = [running_z(times, geometry.column(name), sd, self.config) for name, sd in GEOMETRY_SD.items()]
            moved = np.sqrt(np.mean(np.square(z), axis=0))
            intensity = alpha + (1 - alpha) * np.tanh(np.nan_to_num(moved))
        face = np.where(expression.valid[:, None], mean * intensity[:, None], np.nan)  # (2)
        confidence = np.where(expression.valid, p.max(axis=1), 0.0)
        return Estimate(face[:, 0], face[:, 1], np.clip(confidence, 0, 1))

    def audio(self, prosody: Features, timeline: Timeline) -> Estimate:
        """(3) z = (x - running mean) / running SD;  (4) a = tanh(kappa mean z), causally smoothed."""
        c, times = self.config, prosody.timeline.times
        with np.errstate(divide="ignore", invalid="ignore"):
            pitch_st = 12 * np.log2(prosody.column("pitch_hz") / 100.0)
        cues = (
            (prosody.column("loudness_db"), c.loudness_sd_db),
            (np.where(np.isfinite(pitch_st), pitch_st, np.nan), c.pitch_sd_st),
            (prosody.column("rate_hz"), c.rate_sd_hz),
        )
        z = np.stack([running_z(times, x, sd, c) for x, sd in cues])  # (3)
        there = np.isfinite(z)
        n_cues = there.sum(axis=0)
        mean = np.where(there, z, 0).sum(axis=0) / np.maximum(n_cues, 1)
        arousal = np.where(n_cues > 0, np.tanh(c.audio_gain * mean), np.nan)
        arousal = causal_smooth(times, arousal, np.isfinite(arousal), c.audio_s)  # (4)
        row, fade = _latest(times, np.isfinite(arousal), timeline.times, c.hold_s)
        value = np.where(fade > 0, arousal[row] if len(arousal) else np.nan, np.nan)
        confidence = fade * (n_cues[row] / len(cues) if len(n_cues) else 0.0)
        return Estimate(np.full(len(timeline), np.nan), value, confidence)

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


def _left_out(utterances: Features, timeline: Timeline) -> NDArray[np.bool_]:
    """(T,) whether an utterance without a value, for it is not in English, is spoken."""
    inside = np.zeros(len(timeline), np.bool_)
    assert utterances.ends is not None
    for start, end, known in zip(utterances.timeline.times, utterances.ends, utterances.valid, strict=True):
        inside[timeline.frames_between(start, end)] |= not known
    return inside


# Prior standard deviation within a person of the expressive columns of features/face.py, in interocular distances
# (eye_open: in widths of the eye). Ours; head angles are left out, they are not expressions.
GEOMETRY_SD: Mapping[str, float] = {
    "mouth_open": 0.08,
    "mouth_width": 0.08,
    "corner_lift": 0.06,
    "eye_open": 0.06,
    "brow_raise": 0.05,
    "brow_gap": 0.04,
}


def running_z(times: Array, x: Array, prior_sd: float, config: ZeroShotConfig) -> Array:
    """Z-score of each value against the past, with exponential forgetting. Causal.

    The deviation starts at `prior_sd`, worth `prior_s` seconds of evidence; the mean starts at the first value.
    """
    out = np.full(x.shape, np.nan)
    known = np.flatnonzero(np.isfinite(x))
    if not known.size:
        return out
    mean, evidence = float(x[known[0]]), 0.0
    scatter = prior_sd**2 * config.prior_s
    last_t = float(times[known[0]])
    for i in known:
        t, value = float(times[i]), float(x[i])
        step = min(max(t - last_t, 1e-3), config.prior_s)  # a gap is not evidence
        keep = math.exp(-(t - last_t) / config.baseline_s)
        evidence *= keep
        scatter = config.prior_s * prior_sd**2 + keep * (scatter - config.prior_s * prior_sd**2)
        out[i] = (value - mean) / math.sqrt(scatter / (config.prior_s + evidence))
        evidence += step
        gain = step / (config.prior_s + evidence)
        scatter += step * (value - mean) ** 2 * (1 - gain)
        mean += gain * (value - mean)
        last_t = t
    return out


def _latest(times: Array, known: NDArray[np.bool_], at: Array, hold_s: float) -> tuple[NDArray[np.int64], Array]:
    """For each time the latest known row at or before it, and its freshness: 1 now, 0 after `hold_s`."""
    rows = np.flatnonzero(known)
    if not rows.size:
        return np.zeros(len(at), np.int64), np.zeros(len(at))
    which = np.searchsorted(times[rows], at, side="right") - 1
    age = np.where(which >= 0, at - times[rows[np.maximum(which, 0)]], np.inf)
    return rows[np.maximum(which, 0)], _fade(age, hold_s)


def _fade(age: Array, hold_s: float) -> Array:
    """1 at age 0, falling linearly to 0 at `hold_s`."""
    return np.clip(1 - age / hold_s, 0, 1) if hold_s else (age == 0).astype(float)


def _weighted(parts: Iterable[tuple[Array, Array]], n: int) -> Array:
    """(5) y = sum omega_m c_m x_m / sum omega_m c_m over the modalities with an estimate; NaN where there is none."""
    total, mass = np.zeros(n), np.zeros(n)
    for x, weight in parts:
        weight = np.where(np.isfinite(x), weight, 0)
        total += weight * np.nan_to_num(x)
        mass += weight
    return np.divide(total, mass, out=np.full(n, np.nan), where=mass > 0)
