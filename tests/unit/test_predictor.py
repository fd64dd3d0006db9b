"""Whose voice it is, without networks: what was observed is made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from affectrace.features.base import ExtractorId, Features
from affectrace.features.pipeline import Observation, ObserveConfig
from affectrace.inference import predictor
from affectrace.media.faces.tracks import FaceTrack
from affectrace.models.zero_shot import ZeroShot
from affectrace.progress import silent
from affectrace.recording import Recording
from affectrace.timeline import Timeline
from affectrace.trace import NO_FACE, Span

CLOCK = Timeline.regular(100, 20)
CLASSES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
WORDS = (Span("utterance", 1.0, 2.0, "lovely", valence=0.8, arousal=0.1, confidence=0.9),)


def track(person: int, n_seen: int) -> FaceTrack:
    seen = np.arange(100) < n_seen
    box = np.where(seen[:, None], np.float32([10, 10, 60, 60]), np.float32(np.nan))
    points = np.where(seen[:, None, None], np.ones((100, 4, 2), np.float32), np.float32(np.nan))
    return FaceTrack(person, CLOCK, box, points, seen.astype(np.float32), seen, np.where(seen, "", NO_FACE))


def observation(*tracks: FaceTrack) -> Observation:
    loud = np.tile(np.float32([60, 120, 4]), (500, 1))
    names = ("loudness_db", "pitch_hz", "rate_hz")
    voice = Features("voice", Timeline.regular(500, 100), loud, np.ones(500, bool), ExtractorId("p", columns=names))
    happy = np.tile(np.float32([0, 0, 0, 1, 0, 0, 0]), (100, 1))
    faces = {
        str(t.person): Features("face", CLOCK, happy, t.valid, ExtractorId("fer", columns=CLASSES)) for t in tracks
    }
    return Observation(
        Recording("r", video=Path("r.mp4")),
        CLOCK,
        pictures=True,
        tracks=tracks,
        expression=faces,
        prosody=voice,
        speech=((1.0, 2.0),),
    )


def test_of_several_people_the_one_seen_longest_has_the_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "observe", lambda *_, **__: observation(track(0, 40), track(1, 90)))
    monkeypatch.setattr(predictor.Predictor, "_value", lambda *_: WORDS)
    made = predictor.Predictor(ZeroShot()).traces(Recording("r", video=Path("r.mp4")), ObserveConfig(), progress=silent)
    other, speaker = made
    assert (other.person, speaker.person) == ("0", "1")
    assert speaker.spans == WORDS
    assert "voice_arousal" in speaker.extras
    assert other.spans == ()
    assert not any(name.startswith(("voice_arousal", "words_")) and np.nansum(v) for name, v in other.extras.items())
    assert "taken to be those of person 1, who is seen longest" in " ".join(other.provenance["notes"])
    assert not any("seen longest" in note for note in speaker.provenance["notes"])
