"""Recordings without transcripts: what `extract` recognizes cuts them in training as `predict` cuts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import affectrace
import made_media as made
from affectrace import config as configs
from affectrace.datasets.manifest import Manifest
from affectrace.features import registry
from affectrace.features.config import ExtractConfig
from affectrace.features.extract import extract_recording
from affectrace.features.store import FeatureStore
from affectrace.features.text import WordExtractor
from affectrace.inference.run import TrainedModel, sized
from affectrace.media.speech import VoiceActivity
from affectrace.media.transcript import Transcript, Utterance
from affectrace.models import checkpoint
from affectrace.recording import Recording
from affectrace.sequences import open_sequence
from affectrace.sequences.config import WindowScheme
from affectrace.trace import Trace

SPOKEN = Transcript(
    (
        Utterance.of(0.31, 1.2, "well, hello there"),
        Utterance.of(1.9, 3.77, "how have you been all this time?"),
        Utterance.of(3.9, 5.1, "tell me everything"),
    )
)


class Letters(WordExtractor):
    """A word encoder whose vector is the word's length."""

    def __init__(self) -> None:
        encoder, tokens = SimpleNamespace(config=SimpleNamespace(hidden_size=1)), SimpleNamespace(max_tokens=8)
        super().__init__("minilm-l6", encoder, tokens)  # type: ignore[arg-type]

    def embed(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return np.array([[len(w)] for w in words], np.float32), np.ones(len(words), bool)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recognizer that hears `SPOKEN` in any sound."""

    def activity(*_: object, **__: object) -> VoiceActivity:
        return VoiceActivity(((0.0, 6.0),))

    monkeypatch.setattr("affectrace.media.speech.voice_activity", activity)
    monkeypatch.setattr("affectrace.media.speech.transcribe", lambda *_, **__: SPOKEN)


@pytest.mark.usefixtures("heard")
def test_training_cuts_where_predict_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).normal(0, 0.2, (1, 6 * 16_000)).astype(np.float32)
    sound = made.write_sound(tmp_path / "a.wav", noise, 16_000, "pcm_s16le")
    words: Any = Letters()
    store, config = FeatureStore(tmp_path / "f"), ExtractConfig(device="cpu")
    assert extract_recording(Recording("a", audio=sound), [words], store, config).error == ""

    torch.manual_seed(0)
    streams, scheme = {"said": "minilm-l6"}, WindowScheme.maven()
    about = {"features": streams, "training": {"window": configs.to_dict(scheme)}}
    checkpoint.save(sized("maven", "tiny", {"said": 1}), tmp_path / "maven", extra=about)
    monkeypatch.setattr(registry, "load_one", lambda *_, **__: words)
    trace = affectrace.load(tmp_path / "maven", device="cpu").predict(sound, modalities=("words",))
    assert isinstance(trace, Trace)

    n = len(trace)
    labels = Trace("a", trace.timeline, np.zeros(n), np.zeros(n), np.ones(n, bool), np.full(n, ""), "labels")
    manifest = Manifest("m", tmp_path, (Recording("a", audio=sound, labels=labels.save(tmp_path / "a.csv")),))
    trained = TrainedModel.load(tmp_path / "maven")
    training = open_sequence(manifest["a"], manifest, store, streams, trained.sequences)
    assert training.timeline == trace.timeline
    spoken = tuple((u.start_s, u.end_s) for u in SPOKEN.utterances)
    assert training.utterances == spoken == tuple((s.start_s, s.end_s) for s in trace.spans if s.kind == "utterance")
    assert [w.stop for w in training.windows(scheme)] == [30, 95, 128, 150]
    same, blind = trained.predict(training), trained.predict(replace(training, utterances=()))
    assert trace.valid.any()
    np.testing.assert_array_equal(trace.values[trace.valid], same.values[trace.valid])
    assert np.abs(trace.values - blind.values)[trace.valid].max() > 1e-3  # it is the windows that make it so
