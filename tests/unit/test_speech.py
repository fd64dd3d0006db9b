"""Speech: voice activity against the network frame by frame, windows, belief, and real words from real sound."""

from __future__ import annotations

import itertools
import re
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from affectrace import weights
from affectrace.errors import InputError, UnknownNameError, WeightsError
from affectrace.media import recogniser as recognition
from affectrace.media import speech
from affectrace.media.audio import Audio, read_audio
from affectrace.media.recogniser import Heard, load_recogniser
from affectrace.media.speech import ActivityConfig, SpeechConfig, VoiceActivity, transcribe, voice_activity
from affectrace.media.utterance import Word, join_words
from affectrace.media.voice_activity import segments_of
from affectrace.progress import ProgressEvent
from affectrace.timeline import Timeline

RATE = 16_000
SPEECH = Path(__file__).resolve().parent.parent / "data" / "speech"
JFK = "and so my fellow americans ask not what your country can do for you ask what you can do for your country"


def plain(words: Sequence[Word]) -> str:
    return " ".join(re.sub(r"[^a-z]", "", w.text.lower()) for w in words)


def need(*names: str) -> None:
    for name in names:
        try:
            weights.directory(name)
        except WeightsError as error:
            pytest.skip(f"{name} cannot be fetched here: {error}")


# ---- segments


def probabilities(text: str) -> np.ndarray:
    return np.array([{"#": 0.9, "~": 0.4, ".": 0.1}[c] for c in text], np.float32)


@pytest.mark.parametrize(
    ("text", "config", "expected"),
    [
        ("", ActivityConfig(), []),
        ("......", ActivityConfig(), []),
        ("~~~~~~", ActivityConfig(), []),  # never reaches the onset
        ("..##..", ActivityConfig(min_speech_s=0, padding_s=0), [(2, 4)]),
        ("..##~~..", ActivityConfig(min_speech_s=0, padding_s=0), [(2, 6)]),  # hysteresis
        ("..#..", ActivityConfig(min_speech_s=1.5, padding_s=0), []),
        ("#.#....#", ActivityConfig(min_speech_s=0, min_pause_s=1.5, padding_s=0), [(0, 3), (7, 8)]),
        ("..##..", ActivityConfig(min_speech_s=0, padding_s=0.5), [(1.5, 4.5)]),
        ("####", ActivityConfig(min_speech_s=0, padding_s=9), [(0, 4)]),  # not past the recording
        ("#..#", ActivityConfig(min_speech_s=0, min_pause_s=0, padding_s=9), [(0, 2), (2, 4)]),  # not into the next
    ],
)
def test_segments(text: str, config: ActivityConfig, expected: list[tuple[float, float]]) -> None:
    times = np.arange(len(text), dtype=np.float64)
    assert list(segments_of(probabilities(text), times, float(len(text)), config)) == expected


@pytest.mark.parametrize("bad", [{"onset": 0.3}, {"offset": 0}, {"onset": 1}, {"padding_s": -1}])
def test_activity_config_is_checked(bad: dict[str, float]) -> None:
    with pytest.raises(InputError):
        ActivityConfig(**bad)


def test_active_at_times() -> None:
    activity = VoiceActivity(Timeline.regular(0, 31), np.zeros(0, np.float32), ((1.0, 2.0), (3.0, 4.0)))
    times = np.array([0.5, 1.0, 1.99, 2.0, 3.5, 4.0, 9.0])
    assert activity.active(times).tolist() == [False, True, True, False, True, False, False]
    assert activity.speech_s == 2
    nobody = VoiceActivity(Timeline.regular(0, 31), np.zeros(0, np.float32), ())
    assert not nobody.active(times).any()


def test_other_rates_are_refused() -> None:
    audio = Audio(np.zeros(100, np.float32), 8000)
    with pytest.raises(InputError, match="needs 16000 Hz, got 8000"):
        voice_activity(audio)
    with pytest.raises(InputError, match="needs 16000 Hz, got 8000"):
        transcribe(audio)


def test_no_sound_at_all() -> None:
    activity = voice_activity(Audio(np.zeros(0, np.float32), RATE, 2.0))
    assert (len(activity.timeline), activity.segments) == (0, ())


# ---- windows, with a recogniser of our own making


def sound(seconds: float, start_s: float = 0.0) -> Audio:
    return Audio(np.zeros(round(seconds * RATE), np.float32), RATE, start_s)


def speaking(audio: Audio, *segments: tuple[float, float]) -> VoiceActivity:
    n = -(-audio.samples.size // 512)
    timeline = Timeline.regular(n, Fraction(RATE, 512), Fraction(audio.start_s))
    probability = np.full(n, 0.9, np.float32)
    return VoiceActivity(timeline, probability, segments)


@dataclass
class Listener:
    """Hears one word a second, `certainty` sure, and remembers what it was given."""

    multilingual: bool = False
    certainty: float = 0.9
    loops: float = 1.0
    log_probability: float = -0.2
    known: dict[str, float] = field(default_factory=lambda: {"en": 1.0})
    name: str = "whisper-fake"
    heard: list[tuple[int, str]] = field(default_factory=list)

    def hear(self, windows: Sequence[Any], language: str) -> list[Heard]:
        found = []
        for window in windows:
            self.heard.append((len(window), language))
            words = [Word(i + 0.25, i + 0.75, f"w{i}", self.certainty) for i in range(len(window) // RATE)]
            found.append(Heard(tuple(words), self.log_probability, self.loops))
        return found

    def languages(self, windows: Sequence[Any]) -> dict[str, float]:
        return self.known


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Listener:
    one = Listener()
    monkeypatch.setattr(speech, "load_recogniser", lambda *_, **__: one)
    missing = weights.Status("whisper-base", "missing", None, 0)
    monkeypatch.setattr(weights, "status", lambda _: missing)
    return one


def test_silence_costs_nothing_and_times_come_back(listener: Listener) -> None:
    audio = sound(100, start_s=5.0)
    found = transcribe(audio, activity=speaking(audio, (10, 12), (50, 53), (90, 94)))
    padded = 2.4 + 3.4 + 4.4
    assert listener.heard == [(round(padded * RATE), "en")]  # one window for all
    starts = [w.start_s for w in found.words]
    assert starts == pytest.approx([10.05, 11.05, 49.8, 50.65, 51.65, 52.65, 90.25, 91.25, 92.25, 93.25])
    assert [round(u.start_s) for u in found.utterances] == [10, 50, 90]  # no utterance spans a long silence
    assert found.notes == ()


def test_a_long_speech_is_cut_where_it_is_least_likely(listener: Listener) -> None:
    audio = sound(70)
    activity = speaking(audio, (0, 70))
    probability = activity.probability.copy()
    probability[round(20 / 0.032)] = 0.2
    activity = VoiceActivity(activity.timeline, probability, activity.segments)
    found = transcribe(audio, activity=activity)
    lengths = [n / RATE for n, _ in listener.heard]
    assert sum(lengths) == pytest.approx(70)
    assert max(lengths) <= 28
    assert lengths[0] == pytest.approx(20, abs=0.05)
    starts = [w.start_s for w in found.words]
    assert starts == sorted(starts)
    assert starts[-1] > 68


def test_progress_is_in_seconds_of_speech(listener: Listener) -> None:
    events: list[ProgressEvent] = []
    audio = sound(200)
    transcribe(audio, activity=speaking(audio, (0, 20), (50, 70), (100, 120)), progress=events.append)
    assert {e.stage for e in events} == {"transcribing"}
    assert [e.done for e in events] == pytest.approx([0, 20.2, 40.6, 61.0], abs=0.21)
    assert events[-1].done == events[-1].total


# ---- language and belief


def test_nothing_spoken(listener: Listener) -> None:
    found = transcribe(sound(10), activity=speaking(sound(10)))
    assert (found.utterances, found.notes) == ((), ("no speech is heard: no words",))
    assert listener.heard == []


@pytest.mark.parametrize(
    ("hears", "language", "kept", "note"),
    [
        ({}, None, True, ""),
        ({"certainty": 0.6}, None, False, "not clearly English to whisper-fake (mean word probability 0.60)"),
        ({"certainty": 0.6}, "en", True, ""),  # stated: believed
        ({"certainty": 0.6}, "en-GB", True, ""),
        ({"certainty": 0.3}, "en", False, "10 s of speech were not understood"),
        ({"loops": 2.6}, None, True, ""),  # people do repeat themselves
        ({"loops": 2.6, "certainty": 0.7}, None, False, "repeats itself or is unlikely"),
        ({"loops": 9.0}, None, False, "repeats itself or is unlikely"),
        ({"loops": 9.0}, "en", False, "10 s of speech were not understood"),
        ({"log_probability": -1.5}, None, False, "repeats itself or is unlikely"),
        ({}, "de", False, "said to be 'de' and whisper-fake knows only English; --asr-model base"),
        ({"multilingual": True, "known": {"de": 0.9, "en": 0.1}}, None, True, ""),
        ({"multilingual": True}, "de", True, ""),
        ({"multilingual": True, "known": {"de": 0.3}, "certainty": 0.5}, None, False, "not clearly 'de'"),
    ],
)
def test_belief(hears: dict[str, Any], language: str | None, kept: bool, note: str, listener: Listener) -> None:
    for name, value in hears.items():
        setattr(listener, name, value)
    audio = sound(10)
    found = transcribe(audio, language=language, activity=speaking(audio, (0, 10)))
    assert bool(found.utterances) is kept
    assert note in " ".join(found.notes)
    assert bool(found.notes) is bool(note)


@pytest.mark.parametrize(
    ("known", "kept", "note"),
    [
        ({"en": 0.9, "de": 0.1}, True, ""),
        (
            {"de": 0.9, "en": 0.1},
            False,
            "sounds like 'de' (0.90) and whisper-fake knows only English; if it is English",
        ),
        ({"de": 0.4, "en": 0.35}, False, "not clearly English"),  # undecided: the certainty decides
    ],
)
def test_language_is_asked_of_the_base_model_where_it_is(
    known: dict[str, float], kept: bool, note: str, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Listener(multilingual=True, known=known)
    listener.certainty = 0.6
    here = weights.Status("whisper-base", "cached", Path("x"), 1)
    monkeypatch.setattr(weights, "status", lambda _: here)
    monkeypatch.setattr(speech, "load_recogniser", lambda model, **_: base if model == "base" else listener)
    audio = sound(10)
    found = transcribe(audio, activity=speaking(audio, (0, 10)))
    assert bool(found.utterances) is kept
    assert note in " ".join(found.notes)
    assert base.heard == []


def test_one_bad_window_does_not_spoil_the_others(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    real = listener.hear

    def second_loops(windows: Sequence[Any], language: str) -> list[Heard]:
        found = real(windows, language)
        return [Heard(h.words, -0.1, 12.0) for h in found] if len(listener.heard) == 2 else found

    listener.hear = second_loops  # type: ignore[method-assign]
    audio = sound(90)
    found = transcribe(audio, activity=speaking(audio, (0, 20), (30, 50), (60, 80)))
    assert {int(w.start_s // 30) for w in found.words} == {0, 2}
    assert found.notes == ("20 s of speech were not understood: no words there",)


# ---- grouping


def words(*timed: tuple[float, float, str]) -> list[Word]:
    return [Word(a, b, t, 0.9) for a, b, t in timed]


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
    groups = speech.grouped(words(*given), SpeechConfig())
    assert [u.text for u in groups] == expected
    for u in groups:
        assert (u.start_s, u.end_s) == (u.words[0].start_s, u.words[-1].end_s)


def test_words_join_with_spaces_only_where_scripts_have_them() -> None:
    assert join_words(["Ask", "not,", "今", "日", "ok"]) == "Ask not, 今日 ok"
    assert join_words([]) == ""


# ---- which model


def test_unknown_model_suggests_one() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'small.en'"):
        load_recogniser("smal.en")


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lacks model\.bin, config\.json, tokenizer\.json"):
        load_recogniser(tmp_path)


def test_folder_with_a_damaged_model(tmp_path: Path) -> None:
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match="is not a Whisper model that loads"):
        load_recogniser(tmp_path)


def test_size_that_cannot_be_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    faster_whisper = pytest.importorskip("faster_whisper")

    def fail(*_: object, **__: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(faster_whisper, "download_model", fail)
    with pytest.raises(WeightsError, match=r"speech model 'small'.*no route.*use 'base' or 'tiny\.en'"):
        load_recogniser("small")


def test_identity_of_models(tmp_path: Path) -> None:
    assert recognition.identity("tiny.en") == ("whisper-tiny.en", weights.sha256("whisper-tiny.en"))
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (tmp_path / name).write_text("x")
    name, digest = recognition.identity(tmp_path)
    assert str(tmp_path) in name
    assert digest == "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"


# ---- the real networks


@pytest.mark.weights
def test_activity_equals_the_network_frame_by_frame() -> None:
    """Reference: the op15 member, one call a frame, with the context as Silero's own wrapper keeps it."""
    need("silero-vad")
    import onnxruntime as ort

    audio = read_audio(SPEECH / "german.ogg")
    assert audio is not None
    found = voice_activity(audio)
    session = ort.InferenceSession(str(weights.directory("silero-vad") / "silero_vad_16k_op15.onnx"))
    padded = np.concatenate([audio.samples, np.zeros(-audio.samples.size % 512, np.float32)])
    state, context, expected = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32), []
    for frame in padded.reshape(-1, 512):
        fed = np.concatenate([context, frame])[None]
        p, state = session.run(None, {"input": fed, "state": state, "sr": np.array(RATE)})
        context = frame[-64:]
        expected.append(p[0, 0])
    np.testing.assert_allclose(found.probability, expected, atol=1e-6)
    assert len(found.timeline) == len(expected)
    assert found.timeline.time_of(1) == 0.032 + audio.start_s


@pytest.mark.weights
def test_activity_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    need("silero-vad")
    audio = read_audio(SPEECH / "english.ogg")
    assert audio is not None
    whole = voice_activity(audio)
    monkeypatch.setattr("affectrace.media.voice_activity.BLOCK", 7)
    np.testing.assert_allclose(voice_activity(audio).probability, whole.probability, atol=1e-6)


@pytest.mark.weights
@pytest.mark.parametrize("kind", ["silence", "noise", "tone", "music"])
def test_what_is_not_speech_has_no_words(kind: str) -> None:
    need("silero-vad")
    t = np.arange(8 * RATE) / RATE
    chord = sum(np.sin(2 * np.pi * f * t) for f in (220, 277.2, 329.6)) * (np.sin(2 * np.pi * 2 * t) > 0)
    samples = {
        "silence": 0 * t,
        "noise": np.random.default_rng(0).normal(0, 0.1, t.size),
        "tone": 0.3 * np.sin(2 * np.pi * 220 * t),
        "music": 0.1 * chord,
    }[kind]
    audio = Audio(samples.astype(np.float32), RATE)
    assert voice_activity(audio).segments == ()
    assert transcribe(audio).notes == ("no speech is heard: no words",)


@pytest.mark.weights
@pytest.mark.real
def test_a_recorded_speech(clips: Path) -> None:
    need("silero-vad", "whisper-tiny.en")
    audio = read_audio(clips / "jfk.flac")
    assert audio is not None
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
def test_english_is_heard() -> None:
    need("silero-vad", "whisper-tiny.en")
    audio = read_audio(SPEECH / "english.ogg")
    assert audio is not None
    late = Audio(audio.samples, RATE, 100.0)
    found = transcribe(late)
    assert found.language == "en"
    heard = plain(found.words)
    for word in ("weather", "future", "city", "nobody", "sun"):
        assert word in heard
    assert 100 <= found.words[0].start_s < found.words[-1].end_s <= late.end_s


@pytest.mark.weights
def test_nothing_here_touches_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    need("silero-vad", "whisper-tiny.en")
    recognition._loaded.cache_clear()

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("touched the network")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setattr(subprocess, "Popen", forbidden)
    audio = read_audio(SPEECH / "english.ogg")
    assert audio is not None
    assert transcribe(audio).words


@pytest.mark.weights
@pytest.mark.parametrize("language", ["german", "spanish"])
def test_other_languages_are_left_out_with_the_reason(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With tiny.en alone, whatever else is in this machine's cache."""
    need("silero-vad", "whisper-tiny.en")
    audio = read_audio(SPEECH / f"{language}.ogg")
    assert audio is not None
    real = weights.status
    missing = weights.Status("whisper-base", "missing", None, 0)
    monkeypatch.setattr(weights, "status", lambda n: missing if n == "whisper-base" else real(n))
    found = transcribe(audio)
    assert found.utterances == ()
    assert "words are left out: the speech is not clearly English to whisper-tiny.en" in found.notes[0]


@pytest.mark.weights
@pytest.mark.slow
def test_base_model_names_the_language_and_writes_it() -> None:
    need("silero-vad", "whisper-tiny.en", "whisper-base")
    audio = read_audio(SPEECH / "german.ogg")
    assert audio is not None
    assert "sounds like 'de'" in transcribe(audio).notes[0]
    found = transcribe(audio, model="base")
    assert found.language == "de"
    assert "stadt" in plain(found.words)
