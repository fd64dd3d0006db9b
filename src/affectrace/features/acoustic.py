"""Features of a voice: loudness, pitch, voicing, speaking rate, spectral centre. numpy only, no network.

    x (n,)   16 kHz sound  --frames of 50 ms every 10 ms-->  (T, 800)
    loudness_db   level of the middle 25 ms in dB of full scale (a full-scale sine is -3.01 dB)
    pitch_hz      autocorrelation of the windowed frame over that of its window (Boersma 1993, eq. 9), best lag with
                  an octave cost, parabola through its peak
    voicing       height of that peak, 0 to 1
    rate_hz       syllable nuclei a second of speech (after de Jong & Wempe 2009: peaks of intensity with dips of 2 dB
                  on both sides, on voiced frames), over the last `rate_window_s`
    centroid_hz   centre of mass of the power spectrum

A row is valid where somebody speaks and the frame is voiced. Rows use at most 25 ms of sound after their own end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import InputError
from affectrace.features.extractor import ExtractorId, Features
from affectrace.media.audio import Audio
from affectrace.media.voice_activity import VoiceActivity
from affectrace.timeline import Timeline

Array = NDArray[np.float32]
PROSODY = ("loudness_db", "pitch_hz", "voicing", "rate_hz", "centroid_hz")
BLOCK = 1000  # frames worked on at a time: memory does not grow with the sound
FLOOR_DB = -100.0  # level below which a frame is digital silence


@dataclass(frozen=True)
class ProsodyConfig:
    """Numbers of the analysis.

    hop_s: step, seconds. window_s: pitch window, three periods of the lowest pitch (Boersma 1993). level_s: loudness
        window (a common choice).
    min_pitch_hz, max_pitch_hz: range of speaking voices, shouting included (ours).
    pitch_band_hz: what pitch is looked for in; above it a peak is too sharp for its samples (ours).
    min_voicing: least peak of a voiced frame (Praat: 0.45). octave_cost: preference for higher candidates (Praat:
        0.01).
    dip_db: depth of the dip that separates syllables (de Jong & Wempe: 2 dB). rate_window_s: over which syllables are
        counted, seconds; min_speech_s: least speech a rate is divided by, seconds (ours).
    """

    hop_s: float = 0.01
    window_s: float = 0.05
    level_s: float = 0.025
    min_pitch_hz: float = 60.0
    max_pitch_hz: float = 500.0
    pitch_band_hz: float = 2000.0
    min_voicing: float = 0.45
    octave_cost: float = 0.01
    dip_db: float = 2.0
    rate_window_s: float = 2.0
    min_speech_s: float = 0.5

    def __post_init__(self) -> None:
        if min(asdict(self).values()) <= 0:
            raise InputError("every number must be positive", where="ProsodyConfig")
        if not self.min_pitch_hz < self.max_pitch_hz or self.window_s * self.min_pitch_hz < 2:
            raise InputError("the window must hold two periods of the lowest pitch", where="ProsodyConfig")


def prosody(audio: Audio, activity: VoiceActivity | None = None, config: ProsodyConfig | None = None) -> Features:
    """Prosody of a recording.

    audio: mono. activity: where somebody speaks (`voice_activity`); None: everywhere.

    Returns:
        Features "voice", (T, 5) in the order of PROSODY, every `hop_s`; valid where speech is voiced.
    """
    c = config or ProsodyConfig()
    rate = audio.sample_rate_hz
    hop = round(c.hop_s * rate)
    n = audio.samples.size // hop
    start = Fraction(round(audio.start_s * rate), rate)
    clock = Timeline.regular(n, Fraction(rate, hop), start)
    measured = [_frames_of(block, rate, c) for block in _blocks(audio.samples, n, hop, round(c.window_s * rate))]
    level, pitch, voicing, centroid = (
        np.concatenate([m[i] for m in measured]) if measured else np.zeros(0, np.float32) for i in range(4)
    )
    speaking = np.ones(n, bool) if activity is None else activity.active(clock.times)
    valid = speaking & (voicing >= c.min_voicing) & (level > FLOOR_DB)
    syllables = speaking_rate(level, valid, speaking, c)
    values = np.stack([level, pitch, voicing, syllables, centroid], axis=1).astype(np.float32)
    return Features("voice", clock, values, valid, ExtractorId("prosody", "", asdict(c), PROSODY))


def _blocks(samples: Array, n: int, hop: int, window: int) -> Iterator[Array]:
    """(up to BLOCK, window) frames, each centred on its own hop; silence before the start and after the end."""
    before = (window - hop) // 2
    for first in range(0, n, BLOCK):
        last = min(first + BLOCK, n)
        begin, length = first * hop - before, (last - first - 1) * hop + window
        stretch = np.zeros(length, np.float32)
        there = samples[max(begin, 0) : begin + length]
        at = max(-begin, 0)
        stretch[at : at + there.size] = there
        yield np.lib.stride_tricks.sliding_window_view(stretch, window)[::hop]


def _frames_of(frames: Array, rate: int, c: ProsodyConfig) -> tuple[Array, Array, Array, Array]:
    """Level (dB), pitch (Hz), voicing and spectral centre (Hz) of (F, W) frames."""
    width = frames.shape[1]
    inner = round(c.level_s * rate)
    middle = frames[:, (width - inner) // 2 :][:, :inner].astype(np.float64)
    power = np.mean(middle**2, axis=1)
    level = np.maximum(10 * np.log10(np.maximum(power, 1e-12)), FLOOR_DB).astype(np.float32)
    window = np.hanning(width + 2)[1:-1].astype(np.float32)
    x = (frames - frames.mean(axis=1, keepdims=True)) * window
    size = 1 << (2 * width - 1).bit_length()
    spectrum = np.abs(np.fft.rfft(x, size)) ** 2
    hz = np.fft.rfftfreq(size, 1 / rate)
    centroid = (spectrum @ hz / np.maximum(spectrum.sum(axis=1), 1e-12)).astype(np.float32)
    pitch, voicing = _pitch(spectrum * (hz < c.pitch_band_hz), window, size, rate, c)
    return level, pitch, voicing, centroid


def _pitch(spectrum: Array, window: Array, size: int, rate: int, c: ProsodyConfig) -> tuple[Array, Array]:
    """Best lag of the normalised autocorrelation r_x(lag) / r_w(lag) among its peaks in the range of pitch."""
    r = np.fft.irfft(spectrum, size)
    r_window = np.fft.irfft(np.abs(np.fft.rfft(window, size)) ** 2, size)
    lo, hi = int(rate / c.max_pitch_hz), int(np.ceil(rate / c.min_pitch_hz)) + 1
    shape = r_window[: hi + 1] / r_window[0]
    r = r[:, : hi + 1] / np.maximum(r[:, :1], 1e-12) / shape
    lags = np.arange(lo, hi)
    here, left, right = r[:, lo:hi], r[:, lo - 1 : hi - 1], r[:, lo + 1 : hi + 1]
    is_peak = (here >= left) & (here > right)
    bend = left - 2 * here + right
    shift = np.where(is_peak, 0.5 * (left - right) / np.where(bend < 0, bend, -1), 0)
    height = np.minimum(here - 0.25 * (left - right) * shift, 1)  # of the parabola through the three
    score = np.where(is_peak, height - c.octave_cost * np.log2(c.min_pitch_hz * lags / rate), -np.inf)
    best, row = score.argmax(axis=1), np.arange(len(r))
    found = np.isfinite(score[row, best])
    pitch = np.where(found, rate / (lags[best] + shift[row, best]), 0)
    voicing = np.where(found, np.clip(height[row, best], 0, 1), 0)
    return pitch.astype(np.float32), voicing.astype(np.float32)


def speaking_rate(level_db: Array, voiced: NDArray[np.bool_], speaking: NDArray[np.bool_], c: ProsodyConfig) -> Array:
    """(T,) syllables a second of speech over the last `rate_window_s`. A syllable counts once its dip has been heard.

    level_db: (T,) of frames every `hop_s`. voiced, speaking: (T,).
    """
    n = len(level_db)
    nuclei = np.zeros(n)
    smooth = np.convolve(level_db, np.ones(5) / 5, "same") if n >= 5 else np.asarray(level_db, np.float64)
    valley, peak, peak_voiced = np.inf, -np.inf, False
    for i, (now, is_voiced) in enumerate(zip(smooth.tolist(), voiced.tolist(), strict=True)):
        if peak == -np.inf:  # falling, or rising from a valley
            valley = min(valley, now)
            if now >= valley + c.dip_db:
                peak, peak_voiced = now, is_voiced
        elif now > peak:
            peak, peak_voiced = now, is_voiced or peak_voiced
        elif now <= peak - c.dip_db:
            nuclei[i] = peak_voiced
            valley, peak, peak_voiced = now, -np.inf, False
    width = max(1, round(c.rate_window_s / c.hop_s))
    count, spoken = (_last(x, width) for x in (nuclei, speaking.astype(np.float64)))
    return np.asarray(count / np.maximum(spoken * c.hop_s, c.min_speech_s), np.float32)


def _last(x: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Sum of each value and the width - 1 before it."""
    total = np.concatenate([[0.0], np.cumsum(x)])
    index = np.arange(len(x))
    return np.asarray(total[index + 1] - total[np.maximum(index + 1 - width, 0)])
