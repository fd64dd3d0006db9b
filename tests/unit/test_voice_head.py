"""The voice head: golden values, windows, validity, independence of the level, and its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import affectrace
import made_media as made
from affectrace import weights
from affectrace.errors import FormatError, WeightsError
from affectrace.media.audio import SAMPLE_RATE_HZ, Audio, read_audio
from affectrace.media.speech import VoiceActivity, voice_activity
from affectrace.models.voice_head import HEAD_FILE, SpeechRows, VoiceExtractor, VoiceHead, pieces
from affectrace.timeline import Timeline
from affectrace.trace import NO_SPEECH, Trace
from near import assert_near

GOLDEN = [(0.0836, -0.05118), (-0.20107, -0.14345), (-0.12706, -0.02226)]  # valence, arousal of the shipped head
SPEECH = Path(__file__).parents[1] / "data" / "speech"


@pytest.fixture(scope="module")
def head() -> VoiceHead:
    return VoiceHead.load()


def features(n: int) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 0.2, (n, 384)).astype(np.float32)


def test_golden_values(head: VoiceHead) -> None:
    np.testing.assert_allclose(head.predict(features(3)), GOLDEN, atol=1e-4)


def test_a_row_is_the_head_on_the_mean_of_the_speech_around_it(head: VoiceHead) -> None:
    times, values = 2 + 0.02 * np.arange(300), features(300)  # 2 to 8 s
    cut = [SpeechRows(times[rows], values[rows]) for rows in (slice(0, 120), slice(120, 300))]
    clock = Timeline.regular(20, 2)
    found, valid = head.rows(cut, clock)
    assert valid.tolist() == [4 <= i < 16 for i in range(20)]
    near = (times >= 5.25 - 1.5) & (times < 5.25 + 1.5)
    assert_near(found[10], [*head.predict(values[near].mean(axis=0, keepdims=True))[0], 3.0])
    assert found[4, 2] == pytest.approx(1.76)  # at the start of speech only what follows


def test_no_speech_gives_no_rows(head: VoiceHead) -> None:
    values, valid = head.rows([], Timeline.regular(4, 2))
    assert values.shape == (4, 3)
    assert not valid.any()


def test_pieces_cover_the_speech_and_are_no_longer_than_asked() -> None:
    audio = Audio(np.arange(20 * SAMPLE_RATE_HZ, dtype=np.float32), SAMPLE_RATE_HZ, start_s=1.0)
    found = list(pieces(audio, VoiceActivity(((1.5, 3.0), (5.0, 18.0))), 6.0))
    assert [(round(start, 2), len(x) / SAMPLE_RATE_HZ) for start, x in found] == [
        (1.5, 1.5),
        (5.0, pytest.approx(4.34, abs=0.02)),
        (9.34, pytest.approx(4.34, abs=0.02)),
        (13.66, pytest.approx(4.34, abs=0.02)),
    ]
    assert all(x[0] == round((start - 1) * SAMPLE_RATE_HZ) for start, x in found)


@pytest.mark.weights
def test_a_quiet_recording_has_the_values_of_a_loud_one() -> None:
    audio = read_audio(made.EXAMPLE)
    assert audio is not None
    extractor = VoiceExtractor()
    quiet = replace(audio, samples=audio.samples * np.float32(0.003))
    a, b = (extractor(x, voice_activity(x)) for x in (audio, quiet))
    assert a.valid.mean() > 0.5
    assert np.array_equal(a.valid, b.valid)
    assert np.abs(a.values[a.valid, :2] - b.values[a.valid, :2]).max() < 0.02


@pytest.mark.weights
def test_a_voice_in_any_language_is_estimated_where_it_speaks() -> None:
    trace = affectrace.predict(SPEECH / "german.ogg", modalities=["audio"])
    assert isinstance(trace, Trace)
    assert trace.valid.mean() > 0.6
    assert set(trace.reason[~trace.known]) <= {NO_SPEECH}
    assert trace.provenance["weights"].keys() >= {"voice-emodb", "whisper-tiny.en", "silero-vad"}


@pytest.mark.parametrize("content", [b"", HEAD_FILE.shipped.read_bytes()[:2000], b"words"])
def test_a_damaged_or_foreign_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(
        content if content != b"words" else HEAD_FILE.shipped.with_name("words_emobank.safetensors").read_bytes()
    )
    with pytest.raises(FormatError, match="x.safetensors"):
        VoiceHead.load(path)


def test_a_head_of_another_encoder_is_refused(head: VoiceHead) -> None:
    assert head.config.encoder_sha256 == weights.sha256("whisper-tiny.en")
    other = VoiceHead(
        {"weight": head.weight, "bias": head.bias, "points": head.points},
        replace(head.config, encoder_sha256="0" * 64),
    )
    with pytest.raises(WeightsError, match="another whisper-tiny.en"):
        VoiceExtractor(other)
