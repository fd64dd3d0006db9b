"""Data-quality checks of a trace, with stated thresholds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from affectrace.trace import GAP, NO_SOUND, NOT_DECODED, NOT_ENGLISH, Trace

Level = Literal["ok", "notice", "warning", "unknown"]

# Thresholds: judgements, not fitted to any data; the report prints them.
MIN_VALID_SHARE = 0.90  # of the time; below POOR_VALID_SHARE: a warning
POOR_VALID_SHARE = 0.50
MAX_GAP_S = 2.0
MIN_FACE_PX = 48.0  # MediaPipe's mesh reads 192 x 192 px: a face below a quarter of that is mostly interpolation
MIN_WORD_CONFIDENCE = 0.60  # mean probability of the recognized words; also marks single words
VOICE_LANGUAGE = "de"  # of the recordings that models/voice_head.py was trained on
MAX_STEP_CHANGE = 0.10  # a frame step is odd if it differs from the median step by a larger share
MAX_ODD_STEPS = 0.01  # share of odd steps above which the frame rate counts as variable
MIN_RATE_HZ = 10.0  # below, quick expressions fall between frames
MIN_DURATION_S = 5.0  # the time running baselines take to settle

# what media/decode.py and media/audio.py note about a file of which a part is missing
_INCOMPLETE = ("truncat", "damaged", "ends early", "end early", "is intact", "readable part", "corrupt")


@dataclass(frozen=True)
class QualityCheck:
    """One data-quality check.

    level: "ok", "notice" (look closer), "warning" (do not rely on it) or "unknown".
    found: the measurement. criterion: when it is ok. advice: the consequence, "" if ok.
    """

    name: str
    level: Level
    found: str
    criterion: str
    advice: str = ""


def quality(trace: Trace, *, has_audio: bool | None = None) -> tuple[QualityCheck, ...]:
    """All checks of a trace. has_audio: whether the recording has sound, None if the recording is not available."""
    found = [*_estimate(trace), *_face(trace), _sound(trace, has_audio), *_voice(trace), *_words(trace)]
    found += _frame_rate(trace)
    return (*found, *_completeness(trace))


def notes(trace: Trace) -> tuple[str, ...]:
    """The prediction's notes on the recording."""
    found = trace.provenance.get("notes", ())
    return tuple(str(n) for n in (found if isinstance(found, list | tuple) else [found]))


def _check(name: str, ok: bool, found: str, criterion: str, advice: str, level: Level = "notice") -> QualityCheck:
    return QualityCheck(name, "ok" if ok else level, found, criterion, "" if ok else advice)


def _estimate(trace: Trace) -> Iterator[QualityCheck]:
    name, criterion = "Time with an estimate", f"at least {MIN_VALID_SHARE:.0%}"
    if not len(trace):
        yield QualityCheck(name, "warning", "no frames", criterion, "The recording gave no frames.")
        return
    shown_s = trace.timeline.ends - trace.timeline.times
    share = float(shown_s[trace.known].sum() / shown_s.sum())
    valence, arousal = shown_s @ trace.valid / shown_s.sum()
    each = f" (valence {valence:.1%}, arousal {arousal:.1%})" if valence != arousal else ""
    reasons, counts = np.unique(trace.reason[~trace.known], return_counts=True)
    missing = f"; missing: {', '.join(reasons[np.argsort(-counts)][:3])}" if reasons.size else ""
    level: Level = "notice" if share >= POOR_VALID_SHARE else "warning"
    found, advice = f"{share:.1%}{each}{missing}", "Means describe the rest only."
    yield _check(name, share >= MIN_VALID_SHARE, found, criterion, advice, level)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (~trace.known).astype(np.int8), [0]])))
    starts, ends = trace.timeline.times[edges[::2]], trace.timeline.ends[edges[1::2] - 1]
    longest = int(np.argmax(ends - starts)) if edges.size else 0
    gap_s = float(ends[longest] - starts[longest]) if edges.size else 0.0
    found = f"{gap_s:.2f} s, from {starts[longest]:.2f} s" if gap_s else "none"
    advice = "What was shown in the gap is unknown; do not interpolate across it."
    yield _check("Longest gap", gap_s <= MAX_GAP_S, found, f"at most {MAX_GAP_S:g} s", advice)


def _face(trace: Trace) -> Iterator[QualityCheck]:
    if "face_x" not in trace.extras:
        return
    name, criterion = "Face size", f"median of the shorter side at least {MIN_FACE_PX:g} px"
    width, height = (trace.extras.get(k, np.full(len(trace), np.nan)) for k in ("face_w", "face_h"))
    if not np.isfinite(trace.extras["face_x"]).any():
        yield QualityCheck(
            name, "warning", "no face found", criterion, "The recording shows no face that could be found."
        )
    elif not np.isfinite(width + height).any():
        yield QualityCheck(name, "unknown", "not recorded", criterion)
    else:
        side = float(np.nanmedian(np.minimum(width, height)))
        advice = "Small faces lose the details that expressions are read from."
        yield _check(name, side >= MIN_FACE_PX, f"{side:.0f} px", criterion, advice)


def _sound(trace: Trace, has_audio: bool | None) -> QualityCheck:
    name, criterion = "Sound", "voice heard"
    said = " ".join(notes(trace)).lower()
    heard = [x for k, x in trace.extras.items() if k.startswith(("audio_", "voice_")) and not k.endswith("_weight")]
    if any(np.isfinite(x).any() for x in heard) or any(s.kind in ("speech", "word") for s in trace.spans):
        return QualityCheck(name, "ok", "voice heard", criterion)
    if has_audio is False or "no audio" in said or "no sound" in said or (trace.reason == NO_SOUND).any():
        return QualityCheck(name, "notice", "no sound track", criterion, "Arousal rests on the face alone.")
    if "silent" in said:
        return QualityCheck(name, "notice", "silent", criterion, "There is a sound track, but it is silent.")
    if "speech" in said or "voice" in said or heard:
        return QualityCheck(name, "notice", "no voice heard", criterion, "The estimate uses neither voice nor words.")
    return QualityCheck(name, "unknown", "not stated in the trace", criterion)


def _voice(trace: Trace) -> Iterator[QualityCheck]:
    if not np.isfinite(trace.extras.get("audio_valence", np.nan)).any() or "language" not in trace.provenance:
        return
    language = trace.provenance["language"]
    advice = "Voices were learned from German speech; in other languages their values are less certain."
    found = str(language or "not identified")
    yield _check("Language of the voice", language == VOICE_LANGUAGE, found, VOICE_LANGUAGE, advice)


def _words(trace: Trace) -> Iterator[QualityCheck]:
    for note in notes(trace):
        if note.startswith(NOT_ENGLISH):
            found = note.removeprefix(f"{NOT_ENGLISH}: ").split(";")[0]
            advice = "Their text is shown; valence and arousal are not estimated from it."
            yield QualityCheck("Language of the words", "notice", found, "English", advice)
    sure = [s.confidence for s in trace.spans if s.kind == "word" and s.confidence is not None]
    if not sure:
        return
    mean, low = float(np.mean(sure)), sum(x < MIN_WORD_CONFIDENCE for x in sure)
    found = f"{mean:.0%} on average; {low} of {len(sure)} words below {MIN_WORD_CONFIDENCE:.0%}"
    advice = "Words, and valence drawn from them, may be wrong; give a transcript with --transcript."
    criterion = f"average at least {MIN_WORD_CONFIDENCE:.0%}"
    yield _check("Word confidence", mean >= MIN_WORD_CONFIDENCE, found, criterion, advice)


def _frame_rate(trace: Trace) -> Iterator[QualityCheck]:
    if len(trace) < 3:
        return
    steps_s, rate = np.diff(trace.timeline.times), trace.timeline.mean_rate_hz
    median = float(np.median(steps_s))
    criterion = f"steady (odd steps at most {MAX_ODD_STEPS:.0%}), at least {MIN_RATE_HZ:g} Hz"
    if np.mean(np.abs(steps_s - median) > MAX_STEP_CHANGE * median) > MAX_ODD_STEPS:
        found = f"variable: {steps_s.min() * 1e3:.0f} to {steps_s.max() * 1e3:.0f} ms a frame, {rate:.2f} Hz on average"
        advice = "Handled: every frame keeps its own time. Tools that assume a fixed rate will drift."
        yield QualityCheck("Frame rate", "notice", found, criterion, advice)
    else:
        advice = "Quick expressions fall between frames."
        yield _check("Frame rate", rate >= MIN_RATE_HZ, f"{rate:.2f} Hz, steady", criterion, advice)


def _completeness(trace: Trace) -> Iterator[QualityCheck]:
    said = [note for note in notes(trace) if any(word in note.lower() for word in _INCOMPLETE)]
    lost = int(np.isin(trace.reason, [GAP, NOT_DECODED]).sum())
    if said or lost:
        found = said[0] if said else f"{lost} frames not decoded"
        advice = "The trace holds only what could be read."
        yield QualityCheck("File complete", "warning", found, "whole file readable", advice)
    if len(trace) and trace.timeline.duration_s < MIN_DURATION_S:
        found, advice = f"{trace.timeline.duration_s:.2f} s", "Baselines of face and voice had little time to settle."
        yield QualityCheck("Length", "notice", found, f"at least {MIN_DURATION_S:g} s", advice)
