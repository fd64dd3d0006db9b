"""Speech: where it is, windows, plausibility, and real words from real sound."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from affectrace import weights
from affectrace.errors import InputError, UnknownNameError, WeightsError
from affectrace.media import speech
from affectrace.media.audio import Audio, read_audio
from affectrace.media.speech import VoiceActivity, WindowText, load_recognizer, transcribe, voice_activity
from affectrace.media.transcript import Word, group_words
from affectrace.progress import ProgressEvent

RATE = 16_000
SPEECH = Path(__file__).resolve().parent.parent / "data" / "speech"
JFK = "and so my fellow americans ask not what your country can do for you ask what you can do for your country"


def plain(words: Sequence[Word]) -> str:
    return " ".join(re.sub(r"[^a-z]", "", w.text.lower()) for w in words)


def read(name: str | Path) -> Audio:
    audio = read_audio(SPEECH / name)
    assert audio is not None
    return audio


def need(name: str) -> None:
    try:
        weights.directory(name)
    except WeightsError as error:
        pytest.skip(f"{name} cannot be fetched here: {error}")


# ---- voice activity


@pytest.mark.real
def test_speech_is_where_it_was_found_before(clips: Path) -> None:
    """Silero 6.2.3 run frame by frame, its own way to make segments."""
    found = voice_activity(read(clips / "jfk.flac")).segments
    assert np.array(found) == pytest.approx(
        np.array([(0.252, 2.34), (3.196, 4.516), (5.308, 7.748), (8.092, 10.692)]), abs=0.1
    )


@pytest.mark.parametrize("gain", [0.003, 1.9])
def test_speech_is_found_at_any_level(gain: float) -> None:
    audio = read("german.ogg")
    other = Audio(audio.samples * np.float32(gain), RATE)
    assert voice_activity(other).segments == voice_activity(audio).segments


def test_activity_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    once = read("english.ogg")
    audio = Audio(np.tile(once.samples, 12), RATE, 5.0)
    whole = voice_activity(audio)
    assert max(end - start for start, end in whole.segments) <= speech.WINDOW_S
    monkeypatch.setattr(speech, "_PIECE", 40 * RATE)
    events: list[ProgressEvent] = []
    pieces = voice_activity(audio, progress=events.append)
    times = np.arange(5, audio.end_s, 0.01)
    assert np.mean(whole.active(times) == pieces.active(times)) > 0.99
    assert len(events) > 2
    assert events[-1].done == events[-1].total == pytest.approx(audio.duration_s)


@pytest.mark.parametrize("kind", ["silence", "noise", "music"])
def test_sound_without_speech_has_no_words(kind: str) -> None:
    t = np.arange(8 * RATE) / RATE
    chord = sum(np.sin(2 * np.pi * f * t) for f in (220, 277.2, 329.6)) * (np.sin(2 * np.pi * 2 * t) > 0)
    noise = np.random.default_rng(0).normal(0, 0.1, t.size)
    audio = Audio({"silence": 0 * t, "noise": noise, "music": 0.1 * chord}[kind].astype(np.float32), RATE)
    assert voice_activity(audio).segments == ()
    assert transcribe(audio).notes == ("no speech was detected: no words",)


# ---- windows and plausibility, with a fake recognizer


def sound(seconds: float, start_s: float = 0.0) -> Audio:
    return Audio(np.zeros(round(seconds * RATE), np.float32), RATE, start_s)


@dataclass
class Fake:
    """Recognizes one word per second with some probability, and keeps what it was given."""

    multilingual: bool = False
    probability: float = 0.9
    compression_ratio: float = 1.0
    avg_logprob: float = -0.2
    known: dict[str, float] = field(default_factory=lambda: {"en": 1.0})
    loops_in: int | None = None
    name: str = "whisper-fake"
    given: list[tuple[int, str]] = field(default_factory=list)

    def transcribe(self, window: Any, language: str) -> WindowText:
        self.given.append((len(window), language))
        words = [Word(i + 0.25, i + 0.75, f"w{i}", self.probability) for i in range(len(window) // RATE)]
        ratio = 12.0 if len(self.given) == self.loops_in else self.compression_ratio
        return WindowText(tuple(words), self.avg_logprob, ratio)

    def languages(self, windows: Sequence[Any]) -> dict[str, float]:
        return self.known


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    one = Fake()
    monkeypatch.setattr(speech, "load_recognizer", lambda *_, **__: one)
    return one


def test_silence_costs_nothing_and_times_come_back(fake: Fake) -> None:
    found = transcribe(sound(100, start_s=5.0), activity=VoiceActivity(((10, 12), (50, 53), (90, 94))))
    padded = 2.4 + 3.4 + 4.4
    assert fake.given == [(round(padded * RATE), "en")]  # one window for all
    starts = [w.start_s for w in found.words]
    assert starts == pytest.approx([10.05, 11.05, 49.8, 50.65, 51.65, 52.65, 90.25, 91.25, 92.25, 93.25], abs=0.001)
    assert [round(u.start_s) for u in found.utterances] == [10, 50, 90]  # no utterance spans a long silence
    assert found.notes == ()


@pytest.mark.parametrize(
    ("hears", "language", "kept", "note"),
    [
        ({}, None, True, ""),
        ({"probability": 0.6}, None, False, "not clearly English to whisper-fake (mean word probability 0.60)"),
        ({"probability": 0.6}, "en", True, ""),  # stated: believed
        ({"probability": 0.6}, "en-GB", True, ""),
        ({"probability": 0.3}, "en", False, "10 s of speech could not be recognized"),
        ({"compression_ratio": 2.6}, None, True, ""),  # people do repeat themselves
        ({"compression_ratio": 2.6, "probability": 0.7}, None, False, "the text repeats itself or is unlikely"),
        ({"compression_ratio": 9.0}, None, False, "the text repeats itself or is unlikely"),
        ({"compression_ratio": 9.0}, "en", False, "10 s of speech could not be recognized"),
        ({"avg_logprob": -1.5}, None, False, "the text repeats itself or is unlikely"),
        ({}, "de", False, "stated to be 'de' and whisper-fake recognizes English only; --asr-model base"),
        ({"multilingual": True, "known": {"de": 0.9, "en": 0.1}}, None, True, ""),
        ({"multilingual": True}, "de", True, ""),
        ({"multilingual": True, "known": {"de": 0.3}, "probability": 0.5}, None, False, "not clearly 'de'"),
    ],
)
def test_plausibility(hears: dict[str, Any], language: str | None, kept: bool, note: str, fake: Fake) -> None:
    for name, value in hears.items():
        setattr(fake, name, value)
    found = transcribe(sound(10), language=language, activity=VoiceActivity(((0, 10),)))
    assert bool(found.utterances) is kept
    assert note in " ".join(found.notes)
    assert bool(found.notes) is bool(note)


@pytest.mark.parametrize(("seconds", "kept"), [(6, True), (10, False)])
def test_short_speech_may_be_less_certain(seconds: int, kept: bool, fake: Fake) -> None:
    """A three-second clip of the example has a mean word probability of .69."""
    fake.probability = 0.69
    found = transcribe(sound(seconds), activity=VoiceActivity(((0, seconds),)))
    assert bool(found.utterances) is kept


def test_one_bad_window_does_not_spoil_the_others(fake: Fake) -> None:
    fake.loops_in = 2
    found = transcribe(sound(90), activity=VoiceActivity(((0, 20), (30, 50), (60, 80))))
    assert {int(w.start_s // 30) for w in found.words} == {0, 2}
    assert found.notes == ("20 s of speech could not be recognized: no words there",)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        ([(0, 1, "One"), (1, 2, "two.")], ["One two."]),
        ([(0, 1, "One."), (1, 2, "Two?"), (2, 3, "Three")], ["One.", "Two?", "Three"]),
        ([(0, 1, "One"), (1.7, 2, "two"), (3, 4, "three")], ["One two", "three"]),
        ([(0, 9, "a"), (9.1, 12, "b"), (12.5, 16, "c"), (16.1, 18, "d")], ["a b", "c d"]),  # over 15 s
        ([(0, 1, "今"), (1, 2, "日")], ["今日"]),
    ],
)
def test_grouping(given: list[tuple[float, float, str]], expected: list[str]) -> None:
    groups = group_words([Word(a, b, text, 0.9) for a, b, text in given])
    assert [u.text for u in groups] == expected
    for u in groups:
        assert (u.start_s, u.end_s) == (u.words[0].start_s, u.words[-1].end_s)


# ---- which model


@pytest.mark.parametrize(
    ("model", "files", "kind", "message"),
    [
        ("smal.en", (), UnknownNameError, "did you mean 'small.en'"),
        ("", (), InputError, "lacks model.bin, config.json, tokenizer.json"),
        ("", ("model.bin", "config.json", "tokenizer.json"), InputError, "is not a Whisper model that loads"),
        ("small", (), WeightsError, "speech model 'small' is not in the Hub's cache"),
    ],
)
def test_unusable_models(
    model: str, files: Sequence[str], kind: type[Exception], message: str, tmp_path: Path, monkeypatch: Any
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr("affectrace.media.speech.download_model", fail)
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(kind, match=message):
        load_recognizer(model or tmp_path)


# ---- real words


@pytest.mark.weights
@pytest.mark.real
def test_a_recorded_speech(clips: Path) -> None:
    need("whisper-tiny.en")
    audio = read(clips / "jfk.flac")
    found = transcribe(audio, language="en")
    assert plain(found.words) == JFK
    times = [(w.start_s, w.end_s) for w in found.words]
    assert all(0 <= a <= b <= audio.duration_s for a, b in times)
    assert all(later[0] >= earlier[0] for earlier, later in itertools.pairwise(times))
    by_word = {w.text.strip(".").lower(): w for w in found.words[:7]}
    assert by_word["ask"].start_s == pytest.approx(3.3, abs=0.4)  # after the first long pause, heard at 3.2 to 3.4 s
    last = found.utterances[-1].text  # after a full stop or a comma: the network's digits, and so the processor, decide
    assert last.lower().endswith("ask what you can do for your country.")


@pytest.mark.weights
@pytest.mark.slow
def test_base_model_names_the_language_and_writes_it() -> None:
    need("whisper-base")
    audio = read("german.ogg")
    found = transcribe(audio, model="base")
    assert found.language == "de"
    assert "stadt" in plain(found.words)
