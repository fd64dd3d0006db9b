"""Whose voice it is, without networks: the analysis is made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import affectrace
import made_media as made
from affectrace.errors import InputError, MediaError
from affectrace.features.config import AnalysisConfig
from affectrace.features.pipeline import RecordingAnalysis
from affectrace.inference import predictor
from affectrace.media.faces.pipeline import FaceTrack
from affectrace.media.transcript import Transcript, Utterance
from affectrace.recording import Recording
from affectrace.trace import NO_FACE
from made_zero_shot import CLOCK, UTTERANCES, expressions, voice


def track(person: int, n_seen: int) -> FaceTrack:
    seen = np.arange(100) < n_seen
    box = np.where(seen[:, None], np.float32([10, 10, 60, 60]), np.float32(np.nan))
    points = np.where(seen[:, None, None], np.ones((100, 4, 2), np.float32), np.float32(np.nan))
    return FaceTrack(person, CLOCK, box, points, seen.astype(np.float32), seen, np.where(seen, "", NO_FACE))


def analysis(*tracks: FaceTrack) -> RecordingAnalysis:
    return RecordingAnalysis(
        Recording("r", video=Path("r.mp4")),
        CLOCK,
        has_pictures=True,
        faces=tracks,
        of_faces={t.person: {"expression": expressions("happy", t.valid)} for t in tracks},
        shared={"voice": voice(0.1, 0.5), "utterances": UTTERANCES},
        speech=((1.0, 2.0),),
        transcript=Transcript((Utterance(1.0, 2.0, "lovely"),), "en"),
    )


def test_of_several_people_the_one_seen_longest_has_the_voice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "analyze_recording", lambda *_, **__: analysis(track(0, 40), track(1, 90)))
    monkeypatch.setattr(predictor, "input_identity", lambda _: {})
    monkeypatch.setattr(predictor, "has_pictures", lambda _: True)
    model = affectrace.load()
    model.streams = {}
    other, speaker = model.traces(Recording("r", video=Path("r.mp4")), AnalysisConfig())
    assert (other.person, speaker.person) == ("0", "1")
    assert [(s.kind, s.text) for s in speaker.spans] == [("speech", ""), ("utterance", "lovely")]
    assert speaker.spans[1].valence == pytest.approx(0.8)
    assert np.isfinite(speaker.extras["audio_arousal"]).any()
    assert np.isfinite(speaker.extras["text_valence"]).any()
    assert other.spans == ()
    assert not any(name.startswith(("audio_", "text_")) for name in other.extras)
    assert "attributed to person 1, who is seen longest" in " ".join(other.provenance["notes"])
    assert not any("seen longest" in note for note in speaker.provenance["notes"])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"persn": "all"}, "persn: unknown field (did you mean 'person'?)"),
        ({"fps": "fast"}, "fps: expected a number"),
        ({"modalities": ["sight"]}, "modalities[0]: "),
    ],
)
def test_a_mistake_in_an_option_is_told_by_its_name(tmp_path: Path, options: dict[str, object], told: str) -> None:
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        affectrace.predict(tmp_path / "a.wav", **options)  # type: ignore[arg-type]
    assert told in str(caught.value)


def test_sound_is_refused_where_pictures_alone_are_asked_for(tmp_path: Path) -> None:
    sound = made.write_sound(tmp_path / "a.wav", made.tone(0.2, 16_000), 16_000, "pcm_s16le")
    with pytest.raises(MediaError, match=r"a\.wav: holds no pictures; add audio and text"):
        affectrace.predict(sound, modalities=["visual"])
