"""Voice head: valence and arousal of a voice, from an early layer of Whisper's encoder.

Encoder Radford et al. 2022 (Whisper tiny.en), labels EMO-DB (Burkhardt et al. 2005). The head is the mean of a linear
discriminant analysis and a ridge regression (Hastie et al. 2009, The Elements of Statistical Learning, 4.3, 3.4).
Trained by training/voice_emodb.py; scores and limits in docs/cards/voice-emodb.md.

    p (80, 2 T)   mel power spectrogram of a piece of speech of at most 6 s, every 10 ms    features/whisper.py
    m (80, 2 T)   max(log10 p, max log10 p - 8) - log10 mean p: independent of the level    (1)
    h (T, 384)    second encoder layer of (m + 5) / 4, layer norm, every 20 ms              features/whisper.py
    z (384,)      mean of h over the speech within 1.5 s of the middle of a row             (2)
    q (7,)        softmax(U z + u): probability of each acted emotion                       (3)
    y (2,)        clip((q C + W z + w) / 2, -1, 1): valence, arousal; C: the points         (4)

A piece is encoded and leveled by itself, so a row uses at most 1.5 s + 6 s of what follows it. No words are read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from affectrace import weights
from affectrace.config import Config
from affectrace.errors import WeightsError
from affectrace.features.base import ExtractorId, Features
from affectrace.features.whisper import STRIDE, WhisperLayers
from affectrace.media.audio import SAMPLE_RATE_HZ, Audio
from affectrace.media.speech import VoiceActivity
from affectrace.models.head_file import HeadFile
from affectrace.progress import Progress, silent
from affectrace.timeline import Timeline
from affectrace.weights.download import sha256_of

Array = NDArray[np.float64]
COLUMNS = ("valence", "arousal", "speech_s")
ROW_S = STRIDE / SAMPLE_RATE_HZ
_TENSORS = ("weight", "bias", "points")


@dataclass(frozen=True)
class VoiceConfig(Config):
    """Metadata of a voice head file.

    encoder, encoder_sha256, layer: the network and the layer that the head reads; it fits no other.
    corpus, licence: of the labels; the licence covers this file. training: the complete training configuration.
    hop_s: step of the rows. window_s: of the mean in (2). piece_s: longest piece that is encoded at once.
    least_speech_s: of a row; with less it is invalid (half of Silero's shortest stretch).
    residual_s, residual_valence, residual_arousal: seconds of speech, and the standard deviation of the error on
        that much speech of speakers who were left out of the training.
    """

    encoder: str
    encoder_sha256: str
    corpus: str
    licence: str
    layer: int = 2
    hop_s: float = 0.5
    window_s: float = 3.0
    piece_s: float = 6.0
    least_speech_s: float = 0.12
    residual_s: tuple[float, ...] = ()
    residual_valence: tuple[float, ...] = ()
    residual_arousal: tuple[float, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)


HEAD_FILE = HeadFile("voice_emodb", "affectrace-voice-1", VoiceConfig, _TENSORS)


class SpeechRows(NamedTuple):
    """Encoder rows of speech: times (n,) of their middles in seconds, increasing; values (n, D)."""

    times: NDArray[np.floating[Any]]
    values: NDArray[np.floating[Any]]


class VoiceHead:
    """Encoder rows in, valence and arousal out: equations (2) to (4)."""

    def __init__(self, tensors: Mapping[str, NDArray[np.floating[Any]]], config: VoiceConfig, sha256: str = "") -> None:
        """tensors: weight (7 + 2, D), U over W; bias (7 + 2,), u over w; points (7, 2), C. sha256: of their file."""
        self.weight, self.bias, self.points = (np.asarray(tensors[name], np.float64) for name in _TENSORS)
        self.config, self.sha256 = config, sha256

    @classmethod
    def load(cls, path: Path | None = None) -> VoiceHead:
        """A head file, by default the shipped one (raises FormatError)."""
        path = HEAD_FILE.shipped if path is None else path
        config, tensors = HEAD_FILE.read(path)
        return cls(tensors, config, sha256_of(path))

    def predict(self, z: NDArray[np.floating[Any]]) -> Array:
        """(n, D) means of encoder rows to (n, 2) valence and arousal."""
        return self._values(z @ self.weight.T)

    def rows(self, pieces: Iterable[SpeechRows], clock: Timeline) -> tuple[Array, NDArray[np.bool_]]:
        """(T, 3) valence, arousal and seconds of speech in the window of each step, and which steps are valid."""
        times: list[NDArray[np.floating[Any]]] = [np.zeros(0)]
        products = [np.zeros((1, len(self.bias)))]
        for piece in pieces:
            times.append(piece.times)
            products.append(piece.values @ self.weight.T)  # before the mean of (2), to keep nine numbers a row
        at, total = np.concatenate(times), np.cumsum(np.concatenate(products), axis=0)
        middle, half = (clock.times + clock.ends) / 2, self.config.window_s / 2
        first, last = np.searchsorted(at, [middle - half, middle + half])
        n = last - first
        mean = (total[last] - total[first]) / np.maximum(n, 1)[:, None]
        n_inside = np.subtract(*np.searchsorted(at, [clock.ends, clock.times]))
        return np.column_stack([self._values(mean), n * ROW_S]), n_inside * ROW_S >= self.config.least_speech_s

    def _values(self, products: Array) -> Array:
        scores, linear = np.split(products + self.bias, [len(self.points)], axis=1)
        q = np.exp(scores - scores.max(axis=1, keepdims=True))
        q /= q.sum(axis=1, keepdims=True)  # (3)
        return np.clip((q @ self.points + linear) / 2, -1, 1)  # (4)


class VoiceExtractor:
    """`voice-emodb` during speech. modality: "voice". The encoder is loaded when it is needed."""

    modality, width, encoder = "voice", len(COLUMNS), "whisper-tiny.en"

    def __init__(self, head: VoiceHead | None = None, progress: Progress = silent) -> None:
        """head: the shipped one by default."""
        self.head, self.progress = head or VoiceHead.load(), progress
        self._encoder: WhisperLayers | None = None
        c, sha256 = self.head.config, weights.sha256(self.encoder)
        if (c.encoder, c.encoder_sha256) != (self.encoder, sha256):
            raise WeightsError(f"the voice head was trained on another {c.encoder}", hint="install the package again")
        settings: dict[str, Any] = {"hop_s": c.hop_s, "window_s": c.window_s, "piece_s": c.piece_s, "layer": c.layer}
        settings |= {"encoder": self.encoder, "encoder_sha256": sha256}
        self.extractor = ExtractorId("voice-emodb", self.head.sha256, settings, COLUMNS)

    def __call__(self, audio: Audio, activity: VoiceActivity) -> Features:
        """(T, 3) every `hop_s` from the start of the sound, valid in speech."""
        c = self.head.config
        hop = Fraction(str(c.hop_s))
        n = -(-Fraction(audio.samples.size, audio.sample_rate_hz) // hop)
        start = Fraction(round(audio.start_s * audio.sample_rate_hz), audio.sample_rate_hz)
        clock = Timeline.regular(int(n), 1 / hop, start)
        values, valid = self.head.rows(self.encoded(audio, activity), clock)
        self._encoder = None  # 97 MB while words are recognized, against 0.1 s to load it again
        return Features(self.modality, clock, values.astype(np.float32), valid, self.extractor)

    def encoded(self, audio: Audio, activity: VoiceActivity) -> Iterator[SpeechRows]:
        """Rows of the second encoder layer, one piece of speech after another."""
        for start, samples in pieces(audio, activity, self.head.config.piece_s):
            values = self.encode(samples)
            yield SpeechRows(start + ROW_S * (np.arange(len(values)) + 0.5), values)

    def encode(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n,) samples at 16 kHz to (n / 320, D) rows of the encoder, at one level."""
        if self._encoder is None:
            folder = weights.directory(self.encoder, progress=self.progress)
            self._encoder = WhisperLayers(folder, self.head.config.layer, padded=False)
        peak = np.abs(samples).max() or 1  # above the floor of the logarithm
        return self._encoder.encode(leveled(self._encoder.log_mel(samples / peak))[None])[0]


def pieces(audio: Audio, activity: VoiceActivity, longest_s: float) -> Iterator[tuple[float, NDArray[np.float32]]]:
    """Start in seconds and samples of equal pieces of each stretch of speech, whole encoder rows."""
    for start_s, end_s in activity.segments:
        first, last = (round((t - audio.start_s) * audio.sample_rate_hz) for t in (start_s, end_s))
        n_rows = (min(last, audio.samples.size) - first) // STRIDE
        n_pieces = math.ceil(n_rows * ROW_S / longest_s)
        edges = first + STRIDE * np.linspace(0, n_rows, n_pieces + 1).round().astype(int)
        for a, b in itertools.pairwise(edges.tolist()):
            yield audio.start_s + a / audio.sample_rate_hz, audio.samples[a:b]


def leveled(log_mel: NDArray[np.float32]) -> NDArray[np.float32]:
    """(1): Whisper's log-mel spectrogram, (log10 p + 4) / 4, with a mean power of 10."""
    power = np.power(10.0, 4 * log_mel - 4)
    return log_mel + np.float32((1 - np.log10(power.mean())) / 4)
