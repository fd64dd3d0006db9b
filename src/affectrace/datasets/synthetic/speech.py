"""Speech synthesis: words that follow one signal; pitch, loudness and rate that follow another.

The default voice is a glottal source through formant filters, with spelling read roughly as sounds. It is too crude for
speech recognition, so transcripts come with the recordings. espeak-ng can speak instead.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import wave
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, lfilter, resample_poly

from affectrace.datasets.synthetic.affect_signal import AffectSignal, Stretches
from affectrace.errors import InputError
from affectrace.media.transcript import Word

Array = NDArray[np.float64]

RATE_HZ = 16_000
_BLOCK = 80  # samples between updates of the filters (5 ms)
_SYLLABLE_S = 0.20  # at arousal 0; halves from -1 to 1
_PAUSE_S = (0.35, 0.8)
_WORDS = (3, 6)  # a sentence
_OCTAVES, _DECIBELS = 0.55, 9.0  # pitch and loudness over arousal from 0 to 1
_CALM_LEVEL = 0.12
_TRACT = 0.10  # formants over valence from 0 to 1, where the voice carries valence: smiling shortens the tract

# Formants in Hz (Peterson and Barney 1952, rounded).
_VOWELS = {
    "a": (730, 1090, 2440), "e": (530, 1840, 2480), "i": (280, 2250, 2900), "o": (570, 840, 2410),
    "u": (310, 870, 2250), "y": (280, 2100, 2800),
}  # fmt: skip
_VOICED = {
    "m": (250, 1100, 2100), "n": (250, 1500, 2500), "l": (360, 1100, 2600), "r": (330, 1100, 1600),
    "w": (300, 700, 2200), "j": (280, 2200, 2900), "b": (250, 900, 2200), "d": (250, 1600, 2500),
    "g": (250, 1900, 2300), "v": (280, 1200, 2300), "z": (280, 1600, 2500),
}  # fmt: skip
# Lower edge of the noise in Hz, strength
_NOISY = {
    "s": (5200, 1.0), "c": (4800, 0.9), "x": (4800, 0.9), "f": (3500, 0.5), "h": (1500, 0.35), "t": (4000, 0.8),
    "k": (2200, 0.7), "p": (1000, 0.6), "q": (2000, 0.6),
}  # fmt: skip
_STOPS = frozenset("ptkbdgq")

# (valence, arousal) of words, set by hand on a coarse grid, not from ratings.
_GRID: dict[tuple[float, float], str] = {
    (-1.0, 0.8): "horrible terrifying furious hateful murder panic disaster",
    (-0.9, 0.0): "awful disgusting miserable dreadful rotten cruel",
    (-0.9, -0.7): "hopeless depressed grief lonely worthless dead",
    (-0.5, 0.7): "angry annoying scary stressful alarming nasty",
    (-0.5, 0.0): "bad sad unpleasant broken wrong ugly",
    (-0.5, -0.7): "tired dull boring gloomy empty weak",
    (-0.1, 0.6): "busy loud sudden urgent nervous crowded",
    (0.0, 0.0): "table paper street number window garden",
    (0.0, -0.6): "slow grey plain silent still sleepy",
    (0.4, 0.7): "lively eager playful energetic bold quick",
    (0.5, 0.0): "good nice pleasant friendly useful pretty",
    (0.5, -0.7): "calm gentle restful quiet comfortable soft",
    (0.9, 0.8): "thrilling fantastic ecstatic triumphant amazing victory",
    (0.9, 0.0): "wonderful happy lovely delightful joyful beautiful",
    (0.9, -0.7): "peaceful blissful serene loving content heavenly",
}
_LINKS = ("it was", "and", "so", "then", "that is", "we saw", "such a", "very")  # without affect

WORDS: tuple[str, ...] = tuple(word for words in _GRID.values() for word in words.split())
PLACES: Array = np.array([place for place, words in _GRID.items() for _ in words.split()])


@dataclass(frozen=True)
class VocalTract:
    """One person's voice: pitch at arousal 0, factor of the formants."""

    pitch_hz: float
    scale: float


@dataclass(frozen=True)
class SpeakingStyle:
    """Which signals one person's speech follows.

    word_valence, word_arousal: choice of words (None: any arousal). voice_arousal: pitch, loudness, rate.
    voice_valence: brightness (None: constant).
    """

    word_valence: AffectSignal
    word_arousal: AffectSignal | None
    voice_arousal: AffectSignal
    voice_valence: AffectSignal | None

    def pace(self, time_s: float) -> float:
        """Factor of all durations: halves from arousal -1 to 1."""
        return float(2 ** (-0.5 * self.voice_arousal.drive_at(time_s)))


def draw_word(valence: float, arousal: float | None, rng: np.random.Generator) -> str:
    """A random word near (valence, arousal). arousal: None for any."""
    distance = ((PLACES[:, 0] - valence) / 0.2) ** 2
    if arousal is not None:
        distance = distance + ((PLACES[:, 1] - arousal) / 0.35) ** 2
    weight = np.exp(-0.5 * (distance - distance.min()))
    return WORDS[int(rng.choice(len(WORDS), p=weight / weight.sum()))]


def plan_speech(style: SpeakingStyle, seconds: float, turns: Stretches, rng: np.random.Generator) -> list[list[Word]]:
    """Sentences within `turns`, each word drawn by the signals at its own time."""
    sentences: list[list[Word]] = []
    for start, end in turns:
        at = start + rng.uniform(0.1, 0.5)
        while at < end - 1.0:
            sentence, at = _sentence(style, at, end, rng)
            if not sentence:
                break
            sentences.append(sentence)
            at += rng.uniform(*_PAUSE_S) * style.pace(at)
    return sentences


def _sentence(style: SpeakingStyle, at: float, end: float, rng: np.random.Generator) -> tuple[list[Word], float]:
    words: list[Word] = []
    for _ in range(int(rng.integers(_WORDS[0], _WORDS[1] + 1))):
        arousal = None if style.word_arousal is None else float(style.word_arousal.drive_at(at))
        chosen = draw_word(float(style.word_valence.drive_at(at)), arousal, rng)
        link = [_LINKS[int(rng.integers(len(_LINKS)))]] if rng.random() < 0.3 else []
        for text in [*link, chosen]:
            syllable = _SYLLABLE_S * style.pace(at)
            length = sum(syllable * part for _, part in _sounds(text))
            if at + length > end:
                return words, at
            words.append(Word(at, at + length, text))
            at += length + 0.25 * syllable
    return words, at


def _sounds(text: str) -> list[tuple[str, float]]:
    """Letters, repetitions removed, and their durations in syllables."""
    letters = re.sub(r"(.)\1", r"\1", re.sub(r"[^a-z]", "", text.lower()))
    return [(letter, 0.55 if letter in _VOWELS else 0.16 if letter in _STOPS else 0.22) for letter in letters]


def speak(
    sentences: list[list[Word]],
    style: SpeakingStyle,
    tract: VocalTract,
    seconds: float,
    voice: str,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], list[list[Word]]]:
    """(seconds * RATE_HZ,) float32, and the sentences as spoken (espeak sets its own pace within a word)."""
    if voice == "espeak":
        return _speak_with_espeak(sentences, style, tract, seconds)
    n = round(seconds * RATE_HZ)
    if not sentences:
        return np.zeros(n, np.float32), sentences
    times = np.arange(n) / RATE_HZ
    voiced, noisy, formants, hiss = _tracks(sentences, style, n)
    arousal = style.voice_arousal.drive_at(times)
    pitch = np.maximum(tract.pitch_hz * 2 ** (_OCTAVES * arousal), 40.0)
    pitch *= 1 + 0.01 * np.sin(2 * np.pi * 5.3 * times)
    source = _glottal(pitch, rng) * voiced + 0.03 * rng.standard_normal(n) * voiced
    bright = np.zeros(n) if style.voice_valence is None else style.voice_valence.drive_at(times)
    spoken = _through_formants(source, formants * (tract.scale * (1 + _TRACT * bright))[:, None])
    peak = float(np.quantile(np.abs(spoken), 0.999)) or 1.0
    breath = _high_passed(rng.standard_normal(n), hiss) * noisy
    mixed = (spoken / peak + 0.12 * breath) * _CALM_LEVEL * 10 ** (_DECIBELS / 20 * arousal)
    return np.clip(mixed, -1, 1).astype(np.float32), sentences


def _tracks(sentences: list[list[Word]], style: SpeakingStyle, n: int) -> tuple[Array, Array, Array, Array]:
    """(n,) voicing, (n,) noise, (n, 3) formants in Hz, (n,) lower edge of the noise in Hz."""
    voiced, noisy = np.zeros(n), np.zeros(n)
    formants, hiss = np.tile([500.0, 1500.0, 2500.0], (n, 1)), np.full(n, 3000.0)
    for word in (word for sentence in sentences for word in sentence):
        syllable, at = _SYLLABLE_S * style.pace(word.start_s), word.start_s
        for letter, length in _sounds(word.text):
            a, b = round(at * RATE_HZ), round((at + syllable * length) * RATE_HZ)
            at += syllable * length
            shape = _VOWELS.get(letter) or _VOICED.get(letter)
            if shape is not None:
                voiced[a:b] = 1.0 if letter in _VOWELS else 0.1 if letter in _STOPS else 0.45
                formants[a:b] = shape
            if letter in _NOISY:
                hiss[a:b], strength = _NOISY[letter]
                noisy[a + (2 * (b - a)) // 3 if letter in _STOPS else a : b] = strength  # a stop: silence, then a burst
    fade = np.hanning(2 * round(0.012 * RATE_HZ) + 1)
    voiced, noisy = (np.convolve(track, fade / fade.sum(), "same") for track in (voiced, noisy))
    glide = np.ones(round(0.03 * RATE_HZ)) / round(0.03 * RATE_HZ)
    padded = np.pad(formants, ((glide.size, glide.size), (0, 0)), mode="edge")
    moved = np.stack([np.convolve(column, glide, "same") for column in padded.T], 1)[glide.size : -glide.size]
    return voiced, noisy, moved, hiss


def _glottal(pitch_hz: Array, rng: np.random.Generator) -> Array:
    """Derivative of the glottal flow: a slow rise and a sharp fall in every period, with a little jitter."""
    jitter = 1 + 0.012 * np.repeat(rng.standard_normal(pitch_hz.size // 160 + 1), 160)[: pitch_hz.size]
    phase = np.cumsum(pitch_hz * jitter / RATE_HZ) % 1.0
    opening = np.where(phase < 0.6, np.sin(np.pi * phase / 0.6) * np.cos(np.pi * phase / 1.2), 0.0)
    return np.diff(opening, prepend=0.0) * 8


def _through_formants(source: Array, formants: Array) -> Array:
    """A cascade of resonators, updated every block (Klatt 1980)."""
    out = source
    for k, width_hz in enumerate((80.0, 110.0, 160.0)):
        states, parts = np.zeros(2), []
        radius = np.exp(-np.pi * width_hz / RATE_HZ)
        for start in range(0, out.size, _BLOCK):
            a1 = -2 * radius * np.cos(2 * np.pi * min(formants[start, k], 0.45 * RATE_HZ) / RATE_HZ)
            a2 = radius**2
            part, states = lfilter([1 + a1 + a2], [1, a1, a2], out[start : start + _BLOCK], zi=states)
            parts.append(part)
        out = np.concatenate(parts)
    return out


def _high_passed(noise: Array, edge_hz: Array) -> Array:
    """Noise above an edge that takes only a few values."""
    out = np.zeros_like(noise)
    for edge in np.unique(edge_hz):
        out[edge_hz == edge] = lfilter(*butter(2, edge / (RATE_HZ / 2), "high"), noise)[edge_hz == edge]
    return out


def espeak_path() -> str:
    """The espeak-ng program."""
    path = shutil.which("espeak-ng")
    if path is None:
        raise InputError("espeak-ng is not installed", hint="install it, or use the built-in voice")
    return path


def _speak_with_espeak(
    sentences: list[list[Word]], style: SpeakingStyle, tract: VocalTract, seconds: float
) -> tuple[NDArray[np.float32], list[list[Word]]]:
    sound = np.zeros(round(seconds * RATE_HZ), np.float32)
    said: list[list[Word]] = []
    free = 0.0
    for sentence in sentences:
        kept: list[Word] = []
        for word in sentence:
            start = max(word.start_s, free)
            arousal = float(style.voice_arousal.drive_at(start))
            piece = _espeak(word.text, tract.pitch_hz * 2 ** (_OCTAVES * arousal), 160 * 2 ** (0.5 * arousal))
            first = round(start * RATE_HZ)
            if not piece.size or first + piece.size > sound.size:
                continue
            sound[first : first + piece.size] += piece * np.float32(_CALM_LEVEL * 10 ** (_DECIBELS / 20 * arousal))
            free = start + piece.size / RATE_HZ
            kept.append(Word(start, free, word.text))
        if kept:
            said.append(kept)
    return np.clip(sound, -1, 1), said


def _espeak(text: str, pitch_hz: float, words_a_minute: float) -> NDArray[np.float32]:
    """(n,) float32 at RATE_HZ, peak 1, silence trimmed."""
    pitch = int(np.clip(round(50 + 50 * np.log2(pitch_hz / 140)), 0, 99))
    command = [espeak_path(), "-v", "en-us", "--stdout", "-p", f"{pitch}", "-s", f"{int(words_a_minute)}", text]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode or len(done.stdout) < 44:
        raise InputError("espeak-ng failed", where=done.stderr.decode(errors="replace").strip()[:200] or None)
    with wave.open(io.BytesIO(done.stdout)) as file:
        rate, data = file.getframerate(), np.frombuffer(file.readframes(10**9), "<i2").astype(np.float64)
    loud = np.flatnonzero(np.abs(data) > 300)
    if not loud.size:
        return np.zeros(0, np.float32)
    heard = resample_poly(data[loud[0] : loud[-1] + 1], RATE_HZ, rate)
    return np.asarray(heard / np.abs(heard).max(), np.float32)


def transcript_lines(sentences: list[list[Word]]) -> str:
    """One line `[10.5s - 15.2s]: text` a sentence."""
    return "".join(
        f"[{sentence[0].start_s:.2f}s - {sentence[-1].end_s:.2f}s]: {' '.join(word.text for word in sentence)}\n"
        for sentence in sentences
    )


def loudness(sound: NDArray[np.float32], times_s: Array) -> Array:
    """(T,) RMS around each time, relative to the loudest."""
    window = round(0.04 * RATE_HZ)
    power = np.sqrt(np.convolve(sound.astype(np.float64) ** 2, np.ones(window) / window, "same"))
    at = np.clip(np.rint(times_s * RATE_HZ).astype(int), 0, sound.size - 1)
    return power[at] / (power.max() or 1.0)
