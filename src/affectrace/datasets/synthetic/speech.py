"""What a synthetic person says and how it sounds: words by one course, pitch, loudness and rate by another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from affectrace.datasets.synthetic.affect_signal import Course
from affectrace.datasets.synthetic.vocabulary import draw_link, draw_word
from affectrace.datasets.synthetic.voice import RATE_HZ, Sound, espeak, render_voice, sounds_of

Array = NDArray[np.float64]

_SYLLABLE_S = 0.20  # at calm arousal; halves from -1 to 1 of arousal
_PAUSE_S = (0.35, 0.8)
_WORDS = (3, 6)  # a sentence
_OCTAVES, _DECIBELS = 0.55, 9.0  # pitch and loudness over arousal from 0 to 1
_CALM_LEVEL = 0.12
_TRACT = 0.10  # formants over valence from 0 to 1, where the voice carries valence: smiling shortens the tract


@dataclass(frozen=True)
class Manner:
    """What the courses of one person's speech are.

    word_valence: picks the words. word_arousal: picks them too (None: any). voice_arousal: pitch, loudness, rate.
    voice_valence: brightness (None: constant).
    """

    word_valence: Course
    word_arousal: Course | None
    voice_arousal: Course
    voice_valence: Course | None


@dataclass(frozen=True)
class Spoken:
    """A word and when it is said."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Throat:
    """One person's voice: pitch at calm, formant factor."""

    pitch_hz: float
    tract: float


def plan_speech(
    manner: Manner, seconds: float, turns: tuple[tuple[float, float], ...], rng: np.random.Generator
) -> list[list[Spoken]]:
    """Sentences of words within `turns` (s), each word drawn by the courses at its own time."""
    sentences: list[list[Spoken]] = []
    for start, end in turns:
        at = start + rng.uniform(0.1, 0.5)
        while at < end - 1.0:
            sentence, at = _sentence(manner, at, end, rng)
            if not sentence:
                break
            sentences.append(sentence)
            at += rng.uniform(*_PAUSE_S) * 2 ** (-0.5 * float(manner.voice_arousal.drive_at(at)))
    return sentences


def _sentence(manner: Manner, at: float, end: float, rng: np.random.Generator) -> tuple[list[Spoken], float]:
    words: list[Spoken] = []
    for _ in range(int(rng.integers(_WORDS[0], _WORDS[1] + 1))):
        arousal = None if manner.word_arousal is None else float(manner.word_arousal.drive_at(at))
        chosen = draw_word(float(manner.word_valence.drive_at(at)), arousal, rng)
        for text in ([draw_link(rng)] if rng.random() < 0.3 else []) + [chosen]:
            syllable = _SYLLABLE_S * 2 ** (-0.5 * float(manner.voice_arousal.drive_at(at)))
            length = sum(sound.length_s for sound in sounds_of(text, at, syllable))
            if at + length > end:
                return words, at
            words.append(Spoken(text, at, at + length))
            at += length + 0.25 * syllable
    return words, at


def say(
    sentences: list[list[Spoken]],
    manner: Manner,
    throat: Throat,
    seconds: float,
    voice: str,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], list[list[Spoken]]]:
    """(seconds * RATE_HZ,) float32 and the sentences as they came out (espeak keeps its own pace within a word)."""
    if voice == "espeak":
        return _espeak(sentences, manner, throat, seconds)
    sounds: list[Sound] = []
    for sentence in sentences:
        for word in sentence:
            syllable = _SYLLABLE_S * 2 ** (-0.5 * float(manner.voice_arousal.drive_at(word.start_s)))
            sounds += sounds_of(word.text, word.start_s, syllable)

    def pitch(times: Array) -> Array:
        return np.asarray(throat.pitch_hz * 2 ** (_OCTAVES * manner.voice_arousal.drive_at(times)))

    def level(times: Array) -> Array:
        return np.asarray(_CALM_LEVEL * 10 ** (_DECIBELS / 20 * manner.voice_arousal.drive_at(times)))

    def tract(times: Array) -> Array:
        valence = np.zeros_like(times) if manner.voice_valence is None else manner.voice_valence.drive_at(times)
        return throat.tract * (1 + _TRACT * valence)

    return render_voice(sounds, seconds, pitch, level, rng, tract), sentences


def _espeak(
    sentences: list[list[Spoken]], manner: Manner, throat: Throat, seconds: float
) -> tuple[NDArray[np.float32], list[list[Spoken]]]:
    sound = np.zeros(round(seconds * RATE_HZ), np.float32)
    said: list[list[Spoken]] = []
    free = 0.0
    for sentence in sentences:
        kept: list[Spoken] = []
        for word in sentence:
            start = max(word.start_s, free)
            arousal = float(manner.voice_arousal.drive_at(start))
            wave = espeak(word.text, throat.pitch_hz * 2 ** (_OCTAVES * arousal), 160 * 2 ** (0.5 * arousal))
            first = round(start * RATE_HZ)
            if not wave.size or first + wave.size > sound.size:
                continue
            sound[first : first + wave.size] += wave * np.float32(_CALM_LEVEL * 10 ** (_DECIBELS / 20 * arousal))
            free = start + wave.size / RATE_HZ
            kept.append(Spoken(word.text, start, free))
        if kept:
            said.append(kept)
    return np.clip(sound, -1, 1), said


def transcript_lines(sentences: list[list[Spoken]]) -> str:
    """`[10.5s - 15.2s]: text`, a line a sentence."""
    lines = [
        f"[{sentence[0].start_s:.2f}s - {sentence[-1].end_s:.2f}s]: {' '.join(word.text for word in sentence)}"
        for sentence in sentences
    ]
    return "\n".join([*lines, ""]) if lines else ""


def loudness(sound: NDArray[np.float32], times_s: Array) -> Array:
    """(T,) 0 to 1: how loud it is around each time, against the loudest."""
    window = round(0.04 * RATE_HZ)
    power = np.sqrt(np.convolve(sound.astype(np.float64) ** 2, np.ones(window) / window, "same"))
    at = np.clip(np.rint(times_s * RATE_HZ).astype(int), 0, max(sound.size - 1, 0))
    peak = float(power.max()) if power.size else 0.0
    return power[at] / peak if peak > 0 else np.zeros(len(at))
