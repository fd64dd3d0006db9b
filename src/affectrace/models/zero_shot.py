"""Zero-shot: valence and arousal from face, voice and words without any valence-arousal training on faces or voices.

Ours; no paper. No package holds a network trained on valence-arousal faces or on emotional speech, so three weaker but
stated sources are combined. The card, docs/cards/zero-shot.md, says what each was measured on and what was not.

    p (T, 7)     expression probabilities, FER2013 classes                        features/face.py
    g (T, G)     mesh geometry, its deviation from the person's running baseline   features/face.py
    f (T, 2)     face: circumplex mean of p, scaled by how much the face moves     eq. (1)-(2)
    z (T_a, 3)   loudness, pitch, speaking rate against the speaker's baseline     eq. (3)
    a (T,)       voice: arousal only                                               eq. (4)
    w (T, 2)     words: EmoBank head on the utterance being said                   models/text_head.py
    y (T, 2)     weighted mean of what is there, causally smoothed                 eq. (5)-(6)

Causality: face, fusion and smoothing use the past only; where somebody speaks is known .35 s late
(media/speech.py). Words are not causal: an utterance's value holds from its first word, though it is known
after its last.

Where the circumplex points come from: Russell & Mehrabian (1977), Evidence for a three-factor theory of emotions,
J. Research in Personality 11, 273-294, mean pleasure and arousal ratings of the terms. Voice cues of arousal: Juslin &
Scherer (2005), Vocal expression of affect; louder, higher and faster speech is heard as more aroused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affectrace import config as configs
from affectrace.config import Config, NotNegative, Positive, Share, checked
from affectrace.features.base import Features
from affectrace.sequences import Sequence, SequenceConfig
from affectrace.timeline import Timeline
from affectrace.trace import NO_FACE, NO_SPEECH, Span, Trace, causal_smooth

Array = NDArray[np.float64]
MODALITIES = ("visual", "audio", "text")

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
    """Every number of the model: ours, set beforehand by judgement, tuned on nothing.

    The weights are omega of eq. (5): faces speak for valence, voices for arousal; a voice says nothing of valence.
    """

    visual_weight_valence: NotNegative = 0.6
    text_weight_valence: NotNegative = 0.4
    visual_weight_arousal: NotNegative = 0.4
    audio_weight_arousal: NotNegative = 0.4
    text_weight_arousal: NotNegative = 0.2
    intensity_floor: Share = 0.5  # alpha in (2): share of its circumplex point that a face at its own baseline keeps
    baseline_s: Positive = 60.0  # time constant of the running baselines
    prior_s: Positive = 3.0  # of prior evidence in a baseline's spread
    loudness_sd_db: NotNegative = 6.0  # prior spread within a speaker
    pitch_sd_st: NotNegative = 3.0  # likewise, semitones
    rate_sd_hz: NotNegative = 1.0  # likewise, syllables a second
    audio_gain: NotNegative = 0.5  # kappa: how fast (4) saturates
    audio_s: Positive = 0.5  # time constant of its smoothing, about two syllables: a single sound says little
    hold_s: NotNegative = 1.5  # how long voice and words outlast their end, confidence falling linearly to zero
    smoothing_s: Positive = 0.4  # tau of the causal exponential filter (6)


@dataclass(frozen=True)
class ModalityEstimate:
    """One modality's own estimate on the output clock.

    valence, arousal: (T,) in [-1, 1], NaN where this modality says nothing. confidence: (T,) in [0, 1].
    """

    valence: Array
    arousal: Array
    confidence: Array


@dataclass(frozen=True)
class Estimate:
    """valence, arousal (T,), NaN where not valid; valid (T,); reason (T,); the modalities' own estimates."""

    valence: Array
    arousal: Array
    valid: NDArray[np.bool_]
    reason: NDArray[np.str_]
    parts: Mapping[str, ModalityEstimate]


class ZeroShot:
    """The default model. Not trained on, and not validated against, valence-arousal annotations of faces or voices."""

    name = id = "zero-shot"
    causal = False  # because of the words
    streams: Mapping[str, str] = MappingProxyType(
        {"expression": "fer", "geometry": "mesh-geometry", "prosody": "prosody", "utterances": "words-emobank"}
    )
    """What it reads -> extractor."""
    sequences = SequenceConfig(clock="native")

    def __init__(self, config: ZeroShotConfig | None = None) -> None:
        self.config = checked(config or ZeroShotConfig())

    def predict(self, sequence: Sequence) -> Trace:
        """Every frame of a recording; the modalities' own estimates and confidences are among the extras."""
        tables = {n: t if isinstance(t, Features) else t.features() for n, t in sequence.inputs.items()}
        given = {name: table for name, table in tables.items() if len(table.timeline)}
        estimate = self.forward(
            sequence.timeline,
            expression=given.get("expression"),
            geometry=given.get("geometry"),
            prosody=given.get("prosody"),
            utterances=_spans(given["utterances"]) if "utterances" in given else None,
        )
        extras: dict[str, Array] = {}
        for name, part in estimate.parts.items():
            values = {"valence": part.valence, "arousal": part.arousal}
            extras |= {f"{name}_{d}": x for d, x in values.items() if np.isfinite(x).any()}
            extras[f"{name}_weight"] = part.confidence
        return Trace(
            sequence.recording_id,
            sequence.timeline,
            estimate.valence,
            estimate.arousal,
            estimate.valid,
            estimate.reason,
            source=self.id,
            extras=extras,
        )

    def explained(self, opened: Callable[[SequenceConfig], Sequence], missing: NDArray[np.str_]) -> Trace:
        """`predict`, of the recording as `opened` brings it; missing: (T,) why frames without an estimate have none."""
        trace = self.predict(opened(self.sequences))
        return replace(trace, reason=np.where(trace.known | (missing == ""), trace.reason, missing))

    def described(self) -> dict[str, Any]:
        """The model for a trace's provenance."""
        return {"name": self.name, "config": configs.to_dict(self.config)}

    def forward(
        self,
        timeline: Timeline,
        *,
        expression: Features | None = None,
        geometry: Features | None = None,
        prosody: Features | None = None,
        utterances: Iterable[Span] | None = None,
    ) -> Estimate:
        """Estimate every frame of `timeline`.

        expression, geometry: (T, 7) and (T, G) on `timeline`; given whenever faces were looked for. A frame without
            the face is then not valid, however much is said in it: the trace is of a person who is seen.
        prosody: columns loudness_db, pitch_hz, rate_hz on its own clock. utterances: spans with valence and arousal.
        """
        parts: dict[str, ModalityEstimate] = {}
        if expression is not None:
            parts["visual"] = self.visual(expression, geometry)
        if prosody is not None:
            parts["audio"] = self.audio(prosody, timeline)
        if utterances is not None:
            parts["text"] = self.text(utterances, timeline)
        n, c = len(timeline), self.config
        of_valence = {"visual": c.visual_weight_valence, "text": c.text_weight_valence}
        of_arousal = {
            "visual": c.visual_weight_arousal,
            "audio": c.audio_weight_arousal,
            "text": c.text_weight_arousal,
        }
        valence = _weighted([(p.valence, of_valence[m] * p.confidence) for m, p in parts.items() if m in of_valence], n)
        arousal = _weighted([(p.arousal, of_arousal[m] * p.confidence) for m, p in parts.items()], n)
        missing = np.where(np.isfinite(arousal), NO_WORDS, NO_SPEECH)
        reason = np.where(np.isfinite(valence) & np.isfinite(arousal), "", missing)
        if expression is not None:
            reason = np.where(expression.valid, reason, NO_FACE)
        valid = reason == ""
        valence, arousal = (causal_smooth(timeline.times, x, valid, c.smoothing_s) for x in (valence, arousal))  # (6)
        return Estimate(valence, arousal, valid, reason, parts)

    def visual(self, expression: Features, geometry: Features | None) -> ModalityEstimate:
        """(1) m = p C;  (2) f = m (alpha + (1 - alpha) tanh |d|), d: geometry's deviation from the baseline in SDs."""
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
        return ModalityEstimate(face[:, 0], face[:, 1], np.clip(confidence, 0, 1))

    def audio(self, prosody: Features, timeline: Timeline) -> ModalityEstimate:
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
        return ModalityEstimate(np.full(len(timeline), np.nan), value, confidence)

    def text(self, utterances: Iterable[Span], timeline: Timeline) -> ModalityEstimate:
        """The value of the utterance being said, fading over `hold_s` after its end."""
        valence, arousal, confidence = (np.full(len(timeline), x) for x in (np.nan, np.nan, 0.0))
        for span in sorted(utterances, key=lambda s: s.start_s):
            if span.valence is None or span.arousal is None:
                continue
            frames = timeline.frames_between(span.start_s, span.end_s + self.config.hold_s)
            late = np.maximum(timeline.times[frames] - span.end_s, 0)
            fade = 1 - late / self.config.hold_s if self.config.hold_s else (late == 0).astype(float)
            valence[frames], arousal[frames] = span.valence, span.arousal
            confidence[frames] = np.clip(fade, 0, 1) * (1.0 if span.confidence is None else span.confidence)
        return ModalityEstimate(valence, arousal, confidence)


def _spans(utterances: Features) -> Iterator[Span]:
    """Rows (valence, arousal, confidence) as spans; invalid rows are left out."""
    assert utterances.ends is not None
    times = zip(utterances.timeline.times, utterances.ends, strict=True)
    for (start, end), row, ok in zip(times, utterances.values, utterances.valid, strict=True):
        if ok:
            v, a, confidence = (float(x) for x in row)
            yield Span("utterance", float(start), float(end), "", valence=v, arousal=a, confidence=confidence)


# Prior spread within a person of the expressive columns of features/face.py, in distances of the eyes' centres
# (eye_open: in widths of the eye); head angles are not expressions and are left out. Ours.
GEOMETRY_SD: Mapping[str, float] = {
    "mouth_open": 0.08,
    "mouth_width": 0.08,
    "corner_lift": 0.06,
    "eye_open": 0.06,
    "brow_raise": 0.05,
    "brow_gap": 0.04,
}


def running_z(times: Array, x: Array, prior_sd: float, config: ZeroShotConfig) -> Array:
    """Deviation of each value from the mean of the past in SDs of the past, with exponential forgetting. Causal.

    The spread starts at `prior_sd`, worth `prior_s` seconds of evidence; the mean starts at the first value.
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
    """For each time the latest known row at or before it, and how fresh it is: 1 now, 0 after `hold_s`."""
    rows = np.flatnonzero(known)
    if not rows.size:
        return np.zeros(len(at), np.int64), np.zeros(len(at))
    which = np.searchsorted(times[rows], at, side="right") - 1
    age = np.where(which >= 0, at - times[rows[np.maximum(which, 0)]], np.inf)
    fade = np.clip(1 - age / hold_s, 0, 1) if hold_s else (age == 0).astype(float)
    return rows[np.maximum(which, 0)], fade


def _weighted(parts: Iterable[tuple[Array, Array]], n: int) -> Array:
    """(5) y = sum omega_m c_m x_m / sum omega_m c_m over the modalities that say something; NaN where none does."""
    total, mass = np.zeros(n), np.zeros(n)
    for x, weight in parts:
        weight = np.where(np.isfinite(x), weight, 0)
        total += weight * np.nan_to_num(x)
        mass += weight
    return np.divide(total, mass, out=np.full(n, np.nan), where=mass > 0)
