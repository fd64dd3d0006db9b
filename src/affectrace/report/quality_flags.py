"""What to know of a trace before trusting it: statistics, and data-quality checks with stated thresholds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from affectrace.trace import GAP, NO_SOUND, NOT_DECODED, Trace

Level = Literal["ok", "notice", "warning", "unknown"]


@dataclass(frozen=True)
class QualityConfig:
    """Thresholds of the checks. All ours, set by judgement and not fitted to any data; the report prints them.

    min_valid_share: share of time with an estimate below which to look closer; below `poor_valid_share`: a warning.
    max_gap_s: longest stretch without an estimate, seconds.
    min_face_px: median of the face box's shorter side, pixels of the recording; MediaPipe's mesh sees 192 x 192 px, so
        a face under a quarter of that is mostly interpolation.
    min_word_confidence: mean probability of the recognised words, as the recogniser gives it; also marks single words.
    max_step_change: a frame step is odd when it differs from the median step by more than this share.
    max_odd_steps: share of odd steps from which the frame rate counts as variable.
    min_rate_hz: frames a second below which quick expressions fall between frames.
    min_duration_s: recordings shorter than this end before running baselines settle, seconds.
    """

    min_valid_share: float = 0.90
    poor_valid_share: float = 0.50
    max_gap_s: float = 2.0
    min_face_px: float = 48.0
    min_word_confidence: float = 0.60
    max_step_change: float = 0.10
    max_odd_steps: float = 0.01
    min_rate_hz: float = 10.0
    min_duration_s: float = 5.0


@dataclass(frozen=True)
class Check:
    """One data-quality check.

    name: what was looked at. level: "ok", "notice" (look closer), "warning" (do not rely on it), "unknown" (not known).
    found: what was measured. criterion: when it is good. advice: what it means, empty where all is well.
    """

    name: str
    level: Level
    found: str
    criterion: str
    advice: str = ""


def quality(trace: Trace, config: QualityConfig | None = None, *, has_audio: bool | None = None) -> tuple[Check, ...]:
    """Check a trace; what it cannot tell is "unknown", never "ok".

    has_audio: whether the recording has a sound track, None where the recording is not at hand.
    """
    c = config or QualityConfig()
    checks = [*_time(trace, c), *_face(trace, c), _sound(trace, has_audio), *_words(trace, c), *_clock(trace, c)]
    said = [n for n in notes(trace) if any(w in n.lower() for w in _INCOMPLETE)]
    lost = int(np.isin(trace.reason, [GAP, NOT_DECODED]).sum())
    if said or lost:
        found = said[0] if said else f"{lost} frames not decoded"
        advice = "Only what could be read is in the trace."
        checks.append(Check("File complete", "warning", found, "whole file readable", advice))
    if len(trace) and trace.timeline.duration_s < c.min_duration_s:
        found, advice = f"{trace.timeline.duration_s:.2f} s", "Baselines of face and voice had little time to settle."
        checks.append(Check("Length", "notice", found, f"at least {c.min_duration_s:g} s", advice))
    return tuple(checks)


# what readers say of a file of which a part is missing (media/decode.py, media/audio.py)
_INCOMPLETE = ("truncat", "damaged", "ends early", "end early", "is intact", "readable part", "corrupt")


def notes(trace: Trace) -> tuple[str, ...]:
    """What the prediction noted about the recording."""
    found = trace.provenance.get("notes", ())
    return tuple(str(n) for n in (found if isinstance(found, list | tuple) else [found]))


def _time(trace: Trace, c: QualityConfig) -> Iterator[Check]:
    name, criterion = "Time with an estimate", f"at least {c.min_valid_share:.0%}"
    if not len(trace):
        yield Check(name, "warning", "no frames", criterion, "The recording gave no frames.")
        return
    shown = trace.timeline.ends - trace.timeline.times
    share, of_each = float(shown[trace.known].sum() / shown.sum()), shown @ trace.valid / shown.sum()
    found = f"{share:.1%}"
    if of_each[0] != of_each[1]:
        found += f" (valence {of_each[0]:.1%}, arousal {of_each[1]:.1%})"
    reasons, counts = np.unique(trace.reason[~trace.known], return_counts=True)
    why = ", ".join(str(r) for r in reasons[np.argsort(-counts)][:3])
    ok = share >= c.min_valid_share
    level: Level = "ok" if ok else "notice" if share >= c.poor_valid_share else "warning"
    advice = f"Missing: {why}." if why else ""
    yield Check(name, level, found, criterion, advice if ok else f"{advice} Means describe the rest only.")
    start, end = longest_gap(trace)
    found = "none" if end == start else f"{end - start:.2f} s, from {start:.2f} s"
    ok = end - start <= c.max_gap_s
    advice = "" if ok else "What was shown meanwhile is not known; do not draw a line across."
    yield Check("Longest gap", "ok" if ok else "notice", found, f"at most {c.max_gap_s:g} s", advice)


def longest_gap(trace: Trace) -> tuple[float, float]:
    """Start and end in seconds of the longest stretch of frames without an estimate (equal where there is none)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (~trace.known).astype(np.int8), [0]])))
    if not edges.size:
        return trace.timeline.start_s, trace.timeline.start_s
    starts, ends = trace.timeline.times[edges[::2]], trace.timeline.ends[edges[1::2] - 1]
    longest = int(np.argmax(ends - starts))
    return float(starts[longest]), float(ends[longest])


def _face(trace: Trace, c: QualityConfig) -> Iterator[Check]:
    if "face_x" not in trace.extras:
        return
    name, criterion = "Face size", f"median of the shorter side at least {c.min_face_px:g} px"
    has_size = {"face_w", "face_h"} <= set(trace.extras)
    shorter = np.minimum(trace.extras["face_w"], trace.extras["face_h"]) if has_size else trace.extras["face_x"]
    if not np.isfinite(shorter).any():
        yield Check(name, "warning", "no face found", criterion, "Nobody's face was seen in this recording.")
    elif not has_size:
        yield Check(name, "unknown", "not recorded", criterion)
    else:
        side = float(np.nanmedian(shorter))
        ok = side >= c.min_face_px
        advice = "" if ok else "Small faces lose the details that expressions are read from."
        yield Check(name, "ok" if ok else "notice", f"{side:.0f} px", criterion, advice)


def _sound(trace: Trace, has_audio: bool | None) -> Check:
    name, criterion = "Sound", "voice heard"
    said = " ".join(notes(trace)).lower()
    heard = [x for k, x in trace.extras.items() if k.startswith(("audio_", "voice_")) and not k.endswith("_weight")]
    if any(np.isfinite(x).any() for x in heard) or any(s.kind in ("speech", "word") for s in trace.spans):
        return Check(name, "ok", "voice heard", criterion)
    if has_audio is False or "no audio" in said or "no sound" in said or (trace.reason == NO_SOUND).any():
        return Check(name, "notice", "no sound track", criterion, "Arousal rests on the face alone.")
    if "silent" in said:
        return Check(name, "notice", "silent", criterion, "The sound track is there but silent.")
    if "speech" in said or "voice" in said or heard:
        return Check(name, "notice", "no voice heard", criterion, "Neither voice nor words take part in the estimate.")
    return Check(name, "unknown", "not stated in the trace", criterion)


def _words(trace: Trace, c: QualityConfig) -> Iterator[Check]:
    sure = [s.confidence for s in trace.spans if s.kind == "word" and s.confidence is not None]
    if not sure:
        return
    mean, low = float(np.mean(sure)), sum(x < c.min_word_confidence for x in sure)
    ok = mean >= c.min_word_confidence
    advice = "" if ok else "Words, and valence drawn from them, may be wrong; give a transcript with --transcript."
    found = f"{mean:.0%} on average; {low} of {len(sure)} words below {c.min_word_confidence:.0%}"
    criterion = f"average at least {c.min_word_confidence:.0%}"
    yield Check("Word confidence", "ok" if ok else "notice", found, criterion, advice)


def _clock(trace: Trace, c: QualityConfig) -> Iterator[Check]:
    if len(trace) < 3:
        return
    steps = np.diff(trace.timeline.times)
    median, rate = float(np.median(steps)), trace.timeline.mean_rate_hz
    odd = float(np.mean(np.abs(steps - median) > c.max_step_change * median))
    criterion = f"steady (odd steps at most {c.max_odd_steps:.0%}), at least {c.min_rate_hz:g} Hz"
    if odd > c.max_odd_steps:
        found = f"variable: {steps.min() * 1e3:.0f} to {steps.max() * 1e3:.0f} ms a frame, {rate:.2f} Hz on average"
        advice = "Handled: every frame keeps its own time. Tools that assume a fixed rate will drift."
        yield Check("Frame rate", "notice", found, criterion, advice)
    elif rate < c.min_rate_hz:
        yield Check("Frame rate", "notice", f"{rate:.2f} Hz", criterion, "Quick expressions fall between frames.")
    else:
        yield Check("Frame rate", "ok", f"{rate:.2f} Hz, steady", criterion)
