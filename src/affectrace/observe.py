"""One pass over a recording: its clock, its people, its sound and its words, as features on their own clocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from affectrace.errors import InputError
from affectrace.features.extractor import Features
from affectrace.media.face import FaceTrack
from affectrace.media.transcript import Transcript
from affectrace.recording import Recording
from affectrace.timeline import Timeline

MODALITIES = ("face", "voice", "words")


@dataclass(frozen=True)
class ObserveConfig:
    """What to look for in a recording.

    person: whose face: "main" (most seen), "all", "left", "right", or a track number.
    fps: frames a second to work at; None keeps every frame at its own time.
    times: file with one time in seconds a line, for image folders.
    hop_s: clock of sound without pictures, seconds a step.
    modalities: any of face, voice, words. Without "face" a video is treated as its sound.
    transcript: timed words from a file instead of speech recognition.
    asr_model: "tiny.en" (bundled), "base" (multilingual), a faster-whisper size, or a folder.
    language: ISO 639-1 code of the speech; None: identified where a multilingual model is there, English otherwise.
    """

    person: str = "main"
    fps: Fraction | None = None
    times: Path | None = None
    hop_s: float = 0.04
    modalities: tuple[str, ...] = MODALITIES
    transcript: Path | None = None
    asr_model: str = "tiny.en"
    language: str | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.modalities) - set(MODALITIES))
        if unknown or not self.modalities:
            raise InputError(
                f"modalities must be some of {', '.join(MODALITIES)}, got {', '.join(self.modalities) or 'none'}"
            )
        if not 0.001 <= self.hop_s <= 10:
            raise InputError(f"hop_s must lie between 0.001 and 10 seconds, got {self.hop_s}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise InputError(f"fps must lie between 0 and 1000, got {float(self.fps):g}")


@dataclass(frozen=True)
class Observation:
    """What was seen and heard in one recording.

    timeline: the output clock. tracks: everybody seen whom `person` asks for (empty: nobody, or no pictures).
    pictures: whether faces were looked for. expression, geometry: by person, (T, D) on `timeline`.
    prosody: on its own clock, None without sound. transcript: None where words were not asked for.
    notes: what a person should know of this recording (resampled, truncated, silent, words left out and why).
    source: name, sha256, bytes, what the container says.
    """

    recording: Recording
    timeline: Timeline
    pictures: bool
    tracks: tuple[FaceTrack, ...] = ()
    expression: Mapping[str, Features] = field(default_factory=dict)
    geometry: Mapping[str, Features] = field(default_factory=dict)
    prosody: Features | None = None
    transcript: Transcript | None = None
    notes: tuple[str, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)
