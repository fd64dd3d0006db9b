"""A voice of our own: a glottal source through formant filters, spelling read roughly as sounds.

Pitch, loudness and rate are functions of time, so that they can follow a course. It sounds like a robot and is not
meant for speech recognition: transcripts come with the recordings.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import InputError

Array = NDArray[np.float64]

RATE_HZ = 16_000
_BLOCK = 80  # samples for which the filters stand still (5 ms)
_FADE_S = 0.012

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
_NOISY = {
    "s": (5200, 1.0), "c": (4800, 0.9), "x": (4800, 0.9), "f": (3500, 0.5), "h": (1500, 0.35), "t": (4000, 0.8),
    "k": (2200, 0.7), "p": (1000, 0.6), "q": (2000, 0.6),
}  # fmt: skip
_STOPS = frozenset("ptkbdgq")


@dataclass(frozen=True)
class Sound:
    """One letter sounded: from `start_s` for `length_s`."""

    letter: str
    start_s: float
    length_s: float


def sounds_of(word: str, start_s: float, syllable_s: float) -> list[Sound]:
    """The sounds of a word, one after another; a vowel takes 0.55 syllables, a consonant 0.22 (stops 0.16)."""
    found, at = [], start_s
    for letter in re.sub(r"(.)\1", r"\1", re.sub(r"[^a-z]", "", word.lower())):
        length = syllable_s * (0.55 if letter in _VOWELS else 0.16 if letter in _STOPS else 0.22)
        found.append(Sound(letter, at, length))
        at += length
    return found


def render_voice(
    sounds: Sequence[Sound],
    seconds: float,
    pitch_hz: Callable[[Array], Array],
    level: Callable[[Array], Array],
    rng: np.random.Generator,
    tract: Callable[[Array], Array] | float = 1.0,
) -> NDArray[np.float32]:
    """(seconds * RATE_HZ,) float32: sounds with pitch (Hz), level (peak of a vowel) and formant factor over time."""
    n = round(seconds * RATE_HZ)
    times = np.arange(n) / RATE_HZ
    if not sounds:
        return np.zeros(n, np.float32)
    voiced, noisy, formants, hiss = _tracks(sounds, n)
    pitch = np.maximum(pitch_hz(times), 40.0) * (1 + 0.01 * np.sin(2 * np.pi * 5.3 * times))
    loud = level(times)
    source = _glottal(pitch, rng) * voiced + 0.03 * rng.standard_normal(n) * voiced
    scale = tract(times) if callable(tract) else np.full(n, float(tract))
    spoken = _through_formants(source, formants * scale[:, None])
    peak = float(np.quantile(np.abs(spoken), 0.999)) or 1.0
    breath = _high_passed(rng.standard_normal(n), hiss) * noisy
    mixed = (spoken / peak + 0.12 * breath) * loud
    return np.asarray(np.clip(mixed, -1, 1), np.float32)


def _tracks(sounds: Sequence[Sound], n: int) -> tuple[Array, Array, Array, Array]:
    """How voiced, how noisy, which formants and which edge of the noise, at every sample."""
    voiced, noisy = np.zeros(n), np.zeros(n)
    formants, hiss = np.tile([500.0, 1500.0, 2500.0], (n, 1)), np.full(n, 3000.0)
    for sound in sounds:
        a, b = round(sound.start_s * RATE_HZ), min(round((sound.start_s + sound.length_s) * RATE_HZ), n)
        if a >= b:
            continue
        shape = _VOWELS.get(sound.letter) or _VOICED.get(sound.letter)
        if shape is not None:
            voiced[a:b] = 1.0 if sound.letter in _VOWELS else 0.1 if sound.letter in _STOPS else 0.45
            formants[a:b] = shape
        if sound.letter in _NOISY:
            edge, strength = _NOISY[sound.letter]
            first = a + (2 * (b - a)) // 3 if sound.letter in _STOPS else a  # a stop is silence, then a burst
            noisy[first:b], hiss[a:b] = strength, edge
    fade = np.hanning(2 * round(_FADE_S * RATE_HZ) + 1)
    fade /= fade.sum()
    smooth = [np.convolve(track, fade, "same") for track in (voiced, noisy)]
    glide = np.ones(round(0.03 * RATE_HZ)) / round(0.03 * RATE_HZ)
    padded = np.pad(formants, ((glide.size, glide.size), (0, 0)), mode="edge")
    moved = np.stack([np.convolve(column, glide, "same") for column in padded.T], 1)[glide.size : -glide.size]
    return smooth[0], smooth[1], moved, hiss


def _glottal(pitch_hz: Array, rng: np.random.Generator) -> Array:
    """Flow derivative: a slow rise and a sharp fall once a period, with a little jitter."""
    jitter = 1 + 0.012 * np.repeat(rng.standard_normal(pitch_hz.size // 160 + 1), 160)[: pitch_hz.size]
    phase = np.cumsum(pitch_hz * jitter / RATE_HZ) % 1.0
    opening = np.where(phase < 0.6, np.sin(np.pi * phase / 0.6) * np.cos(np.pi * phase / 1.2), 0.0)
    return np.diff(opening, prepend=0.0) * 8


def _through_formants(source: Array, formants: Array) -> Array:
    """A cascade of resonators whose centres move every block (Klatt 1980)."""
    from scipy.signal import lfilter

    out = source
    for k, width_hz in enumerate((80.0, 110.0, 160.0)):
        states, parts = np.zeros(2), []
        radius = np.exp(-np.pi * width_hz / RATE_HZ)
        for start in range(0, out.size, _BLOCK):
            angle = 2 * np.pi * min(formants[start, k], 0.45 * RATE_HZ) / RATE_HZ
            a1, a2 = -2 * radius * np.cos(angle), radius**2
            part, states = lfilter([1 + a1 + a2], [1, a1, a2], out[start : start + _BLOCK], zi=states)
            parts.append(part)
        out = np.concatenate(parts)
    return out


def _high_passed(noise: Array, edge_hz: Array) -> Array:
    """Noise above an edge that jumps between a few values."""
    from scipy.signal import butter, lfilter

    out = np.zeros_like(noise)
    for edge in np.unique(edge_hz):
        b, a = butter(2, min(edge, 0.45 * RATE_HZ) / (RATE_HZ / 2), "high")
        here = edge_hz == edge
        out[here] = lfilter(b, a, noise)[here]
    return out


# ---- espeak-ng, where it is installed


def espeak_path() -> str:
    """The espeak-ng program.

    Raises:
        InputError: it is not installed.
    """
    path = shutil.which("espeak-ng")
    if path is None:
        raise InputError("espeak-ng is not installed", hint="install it, or use the built-in voice")
    return path


def espeak(text: str, pitch_hz: float, words_a_minute: float, voice: str = "en-us") -> NDArray[np.float32]:
    """(n,) float32 at RATE_HZ, peak 1, silence at both ends cut off."""
    pitch = int(np.clip(round(50 + 50 * np.log2(pitch_hz / 140)), 0, 99))
    command = [
        espeak_path(),
        "-v",
        voice,
        "--stdout",
        "-p",
        str(pitch),
        "-s",
        str(int(np.clip(words_a_minute, 80, 400))),
    ]
    done = subprocess.run([*command, text], capture_output=True, check=False)
    if done.returncode or len(done.stdout) < 44:
        raise InputError("espeak-ng failed", where=done.stderr.decode(errors="replace").strip()[:200] or None)
    return _from_wav(done.stdout)


def _from_wav(wav: bytes) -> NDArray[np.float32]:
    from scipy.signal import resample_poly

    rate = int.from_bytes(wav[24:28], "little")
    start = wav.index(b"data") + 8
    data = np.frombuffer(wav[start : start + (len(wav) - start) // 2 * 2], "<i2").astype(np.float64)
    loud = np.flatnonzero(np.abs(data) > 300)
    data = data[loud[0] : loud[-1] + 1] if loud.size else data[:0]
    if not data.size:
        return np.zeros(0, np.float32)
    heard = resample_poly(data, RATE_HZ, rate)
    return np.asarray(heard / np.abs(heard).max(), np.float32)
