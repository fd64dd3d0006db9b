"""Where somebody speaks: Silero VAD through onnxruntime, without torch.

The network sees 32 ms (512 samples at 16 kHz) with the 4 ms (64 samples) before them and carries an LSTM state. The
member `silero_vad_16k_sequence.onnx` runs a whole stretch in one call, with the numbers of frame-by-frame use.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affectrace import weights
from affectrace.errors import InputError
from affectrace.media.audio import Audio
from affectrace.media.faces.detection import onnx_session
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.timeline import Timeline

SAMPLE_RATE_HZ = 16_000
FRAME = 512  # samples a frame
CONTEXT = 64  # samples of the frame before that the network sees again
STATE = 128  # LSTM width
BLOCK = 2048  # frames a call (65 s): bounded memory

Interval = tuple[float, float]


@dataclass(frozen=True)
class ActivityConfig:
    """How probabilities become segments.

    onset: probability at which speech begins. offset: below this it may end (Silero's 0.5 and 0.5 - 0.15).
    min_speech_s: shorter bursts are dropped, seconds (Silero: 0.25). min_pause_s: shorter pauses are bridged (ours;
        Silero's 0.1 cuts inside words said slowly). padding_s: added on both sides (ours; Silero's 0.03 clips
        unvoiced onsets).
    """

    onset: float = 0.5
    offset: float = 0.35
    min_speech_s: float = 0.25
    min_pause_s: float = 0.3
    padding_s: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.offset <= self.onset < 1:
            raise InputError(f"0 < offset <= onset < 1 is needed, got {self.offset} and {self.onset}")
        if min(self.min_speech_s, self.min_pause_s, self.padding_s) < 0:
            raise InputError("durations must not be negative")


@dataclass(frozen=True, eq=False)
class VoiceActivity:
    """Where somebody speaks.

    timeline: T frames of 32 ms. probability: (T,) float32 of speech. segments: (start, end) seconds, in order, apart.
    """

    timeline: Timeline
    probability: NDArray[np.float32]
    segments: tuple[Interval, ...]

    @property
    def speech_s(self) -> float:
        """Seconds of speech."""
        return sum(end - start for start, end in self.segments)

    def active(self, times_s: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether somebody speaks at each of the times."""
        inside = np.zeros(len(times_s), bool)
        if self.segments:
            starts, ends = np.array(self.segments).T
            at = np.searchsorted(starts, times_s, side="right") - 1
            inside = (at >= 0) & (times_s < ends[np.maximum(at, 0)])
        return inside


def voice_activity(audio: Audio, *, config: ActivityConfig | None = None, progress: Progress = silent) -> VoiceActivity:
    """Find speech in 16 kHz sound.

    Raises:
        InputError: another sample rate.
        WeightsError: the network is not here and cannot be fetched.
    """
    config = config or ActivityConfig()
    if audio.sample_rate_hz != SAMPLE_RATE_HZ:
        raise InputError(f"voice activity needs {SAMPLE_RATE_HZ} Hz, got {audio.sample_rate_hz}", hint="resample first")
    n_frames = -(-audio.samples.size // FRAME)
    start = Fraction(round(audio.start_s * SAMPLE_RATE_HZ), SAMPLE_RATE_HZ)
    timeline = Timeline.regular(n_frames, Fraction(SAMPLE_RATE_HZ, FRAME), start)
    if not n_frames:
        return VoiceActivity(timeline, np.zeros(0, np.float32), ())
    session = _session(weights.directory("silero-vad", progress=progress) / "silero_vad_16k_sequence.onnx")
    probability = np.empty(n_frames, np.float32)
    state: tuple[Any, Any] = (np.zeros((1, 1, STATE), np.float32),) * 2
    for first in range(0, n_frames, BLOCK):
        rows = _rows(audio.samples, first, min(first + BLOCK, n_frames))
        found, *state_now = session.run(None, {"input": rows, "h": state[0], "c": state[1]})
        state = (state_now[0], state_now[1])
        probability[first : first + len(rows)] = found
        progress(ProgressEvent("finding speech", min(first + BLOCK, n_frames) * FRAME / SAMPLE_RATE_HZ,
                               n_frames * FRAME / SAMPLE_RATE_HZ, "s"))  # fmt: skip
    probability.flags.writeable = False
    return VoiceActivity(timeline, probability, segments_of(probability, timeline.times, audio.end_s, config))


@lru_cache(maxsize=1)
def _session(path: Path) -> Any:
    return onnx_session(path)


def _rows(samples: NDArray[np.float32], first: int, last: int) -> NDArray[np.float32]:
    """(last - first, 576): each frame after the end of the one before; silence before the start and after the end."""
    begin = first * FRAME - CONTEXT
    length = (last - first) * FRAME + CONTEXT
    stretch = np.zeros(length, np.float32)
    there = samples[max(begin, 0) : begin + length]
    at = max(-begin, 0)
    stretch[at : at + there.size] = there
    return np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(stretch, FRAME + CONTEXT)[::FRAME])


def segments_of(
    probability: NDArray[np.floating[Any]], times: NDArray[np.float64], end_s: float, config: ActivityConfig
) -> tuple[Interval, ...]:
    """Stretches of speech: begun at `onset`, ended below `offset`; bridged, filtered, padded (in this order)."""
    speaking = _hysteresis(probability, config.onset, config.offset)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], speaking, [False])).astype(np.int8)))
    bounds = np.append(times, end_s)
    raw = [(float(bounds[a]), float(min(bounds[b], end_s))) for a, b in edges.reshape(-1, 2)]
    bridged: list[Interval] = []
    for start, end in raw:
        if bridged and start - bridged[-1][1] < config.min_pause_s:
            bridged[-1] = (bridged[-1][0], end)
        else:
            bridged.append((start, end))
    long = [(a, b) for a, b in bridged if b - a >= config.min_speech_s]
    first = float(bounds[0])
    padded: list[Interval] = []
    for i, (start, end) in enumerate(long):
        before = long[i - 1][1] if i else first - config.padding_s
        after = long[i + 1][0] if i + 1 < len(long) else end_s + config.padding_s
        padded.append(
            (
                max(first, start - config.padding_s, (before + start) / 2),
                min(end_s, end + config.padding_s, (end + after) / 2),
            )
        )
    return tuple(padded)


def _hysteresis(p: NDArray[np.floating[Any]], onset: float, offset: float) -> NDArray[np.bool_]:
    """True from a value at or above `onset` until one below `offset`."""
    change = np.where(p >= onset, 1, np.where(p < offset, 0, -1))
    last = np.maximum.accumulate(np.where(change >= 0, np.arange(len(p)), -1))
    return np.asarray((last >= 0) & (change[np.maximum(last, 0)] == 1))
