"""Train and score the voice head (src/affectrace/models/voice_head.py) on EMO-DB.

    python training/voice_emodb.py train       writes src/affectrace/models/weights/voice_emodb.safetensors, and beside
                                               this script voice_emodb_speakers.safetensors: heads without one speaker
    python training/voice_emodb.py select      scores strengths with speaker, sentence and emotion left out together
    python training/voice_emodb.py evaluate    scores the heads without one speaker, as recorded and under each fault

EMO-DB (Burkhardt et al. 2005, CC0) is read from AFFECTRACE_REAL_DATA/emodb, by default ../shared/data beside the
repository. Half of its emotions are only at hand as copies cut to two seconds. So that the cut is not learned, every
utterance is read through windows of 1, 2 and 3 s of speech, and half of the weight is on copies with random rooms,
equalizers, noise, band limits and codecs.

Method: both halves of the head are functions of weighted sums over utterances (number, sum, sum of outer products), so
the head without any speaker, sentence or emotion is fitted from a part of the sums, in closed form.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import av
import numpy as np
from cyclopts import App, Parameter
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from scipy.linalg import cho_factor, cho_solve
from scipy.signal import butter, fftconvolve, sosfiltfilt
from scoring import (
    DATA,
    HIGH,
    LOW,
    POINTS,
    VOICES,
    Figure,
    Figures,
    Utterance,
    Voice,
    agreements,
    auc,
    bootstrapped,
    emodb,
    score_voice,
)

from affectrace import config as configs
from affectrace import metrics, weights
from affectrace.media.audio import SAMPLE_RATE_HZ, Audio, read_audio
from affectrace.media.speech import VoiceActivity, voice_activity
from affectrace.models.voice_head import HEAD_FILE, ROW_S, VoiceConfig, VoiceExtractor, VoiceHead
from affectrace.models.zero_shot import ZeroShot
from affectrace.timeline import Timeline

Array = NDArray[np.float64]
Samples = NDArray[np.float32]
SPEAKERS_FILE = Path(__file__).resolve().parent / "voice_emodb_speakers.safetensors"
EMOTIONS = ("anger", "boredom", "disgust", "fear", "joy", "neutral", "sadness")
CUT = ("boredom", "disgust", "fear")  # mostly at hand as copies of their first two seconds
POINT = np.array([POINTS[VOICES.get(name, name)] for name in EMOTIONS])  # (7, 2)


@dataclass(frozen=True)
class VoiceTraining:
    """Everything that decides the result. Strengths chosen by `select` (docs/cards/voice-emodb.md)."""

    seed: int = 0
    copies: int = 2  # augmented ones of each utterance
    clean_share: float = 0.5  # of an utterance's weight on the recording itself
    window_s: tuple[float, ...] = (1.0, 2.0, 3.0)  # of speech; the whole utterance and its first second besides
    class_ridge: float = 1.0  # added to the diagonal of the covariance within emotions, of standardized features
    linear_ridge: float = 0.3  # likewise, of the covariance


CHOSEN = VoiceTraining()


# ---- EMO-DB


@dataclass(frozen=True)
class Recording:
    """One utterance of EMO-DB. whole: not cut to two seconds."""

    samples: Samples
    speaker: str
    sentence: str
    emotion: str
    whole: bool


def read_recordings() -> list[Recording]:
    """All 535 utterances."""
    with (DATA / "emodb" / "emodb.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for row in rows:
        audio = read_audio(DATA / "emodb" / "flac" / f"{row['id']}.flac")
        assert audio is not None
        whole = row["audio"] == "whole"
        found.append(Recording(audio.samples, row["speaker"], row["sentence"], row["emotion"], whole))
    return found


# ---- faults of recordings: (n,) samples and a random generator to samples

Fault = Callable[[Samples, np.random.Generator], Samples]


def band(x: Samples, low_hz: float, high_hz: float) -> Samples:
    """Butterworth band pass, 24 dB per octave at both ends, without delay."""
    sos = butter(4, (low_hz, high_hz), "bandpass", fs=SAMPLE_RATE_HZ, output="sos")
    return np.asarray(sosfiltfilt(sos, x), np.float32)


def noisy(x: Samples, rng: np.random.Generator, snr_db: float, slope: float) -> Samples:
    """Noise with a power of 1 / f ** slope; the ratio counts the louder two thirds of the samples as speech."""
    hz = np.fft.rfftfreq(x.size, 1 / SAMPLE_RATE_HZ)
    spectrum = (rng.standard_normal(hz.size) + 1j * rng.standard_normal(hz.size)) / np.maximum(hz, 40) ** (slope / 2)
    noise = np.fft.irfft(spectrum, x.size)
    speech = np.sqrt(np.mean(np.sort(x.astype(float) ** 2)[x.size // 3 :]))
    return np.asarray(x + noise / noise.std() * speech * 10 ** (-snr_db / 20), np.float32)


def room(x: Samples, rng: np.random.Generator, rt60_s: float, direct_db: float) -> Samples:
    """Synthetic room: the direct sound, six early reflections, and a tail of decaying noise; same RMS as before.

    rt60_s: reverberation time. direct_db: level of the direct sound over that of the tail.
    """
    n = int(rt60_s * SAMPLE_RATE_HZ)
    tail = rng.standard_normal(n) * 10 ** (-3 * np.arange(n) / n)
    tail[:40] = 0
    sos = butter(1, rng.uniform(3000, 7000), fs=SAMPLE_RATE_HZ, output="sos")
    tail = sosfiltfilt(sos, tail)
    tail *= 10 ** (-direct_db / 20) / np.linalg.norm(tail)
    tail[rng.integers(30, 400, 6)] += rng.uniform(-0.4, 0.4, 6)
    tail[0] += 1
    y = fftconvolve(x, tail)[: x.size]
    return np.asarray(y * (np.std(x) / np.std(y)), np.float32)


def equalized(x: Samples, rng: np.random.Generator, most_db: float) -> Samples:
    """Random gains of up to `most_db` at seven frequencies."""
    gain_db = np.interp(
        np.fft.rfftfreq(x.size, 1 / SAMPLE_RATE_HZ),
        [0, 100, 300, 800, 2000, 4000, 8000],
        rng.uniform(-most_db, most_db, 7),
    )
    return np.asarray(np.fft.irfft(np.fft.rfft(x) * 10 ** (gain_db / 20), x.size), np.float32)


CODECS = {
    "mp3": ("mp3", "libmp3lame"),
    "opus": ("ogg", "libopus"),
    "aac": ("adts", "aac"),
    "mulaw": ("wav", "pcm_mulaw"),
}


def coded(x: Samples, codec: str, bits_per_s: int, rate_hz: int = SAMPLE_RATE_HZ) -> Samples:
    """Encoded and decoded again."""
    container, encoder = CODECS[codec]
    with av.open(file := io.BytesIO(), "w", format=container) as target:
        stream: Any = target.add_stream(encoder, rate=rate_hz, layout="mono")
        if bits_per_s:
            stream.bit_rate = bits_per_s
        resampler = av.AudioResampler(stream.format.name, "mono", rate_hz, frame_size=stream.codec_context.frame_size)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(x[None] * 0.9, np.float32), "flt", "mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE_HZ, 0
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            target.mux(stream.encode(part))
        target.mux(stream.encode(None))
    file.seek(0)
    resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE_HZ)
    parts = []
    with av.open(file) as source:
        for decoded in source.decode(audio=0):
            decoded.pts = None
            parts += resampler.resample(decoded)
    parts += resampler.resample(None)
    return np.concatenate([part.to_ndarray()[0] for part in parts]).astype(np.float32)


def random_fault(x: Samples, rng: np.random.Generator) -> Samples:
    """Some of: a room, an equalizer, noise, a band limit, a codec."""
    if rng.random() < 0.6:
        x = room(x, rng, rng.uniform(0.15, 0.9), rng.uniform(-2, 12))
    if rng.random() < 0.7:
        x = equalized(x, rng, rng.uniform(2, 9))
    if rng.random() < 0.8:
        x = noisy(x, rng, rng.uniform(5, 40), rng.choice([0, 1, 2]))
    kind = rng.random()
    if kind < 0.3:
        x = band(x, rng.uniform(100, 350), rng.uniform(3000, 4200))
    elif kind < 0.9:
        x = band(x, rng.uniform(20, 150), rng.uniform(4500, 7400))
    x = x / np.abs(x).max() * np.float32(rng.uniform(0.2, 1))
    codec, bits_per_s, rate_hz = [
        ("mp3", int(rng.choice([24, 32, 48])) * 1000, SAMPLE_RATE_HZ),
        ("opus", int(rng.choice([8, 12, 20])) * 1000, SAMPLE_RATE_HZ),
        ("aac", int(rng.choice([16, 24, 32])) * 1000, SAMPLE_RATE_HZ),
        ("mulaw", 0, 8000),
    ][rng.integers(4)]
    return coded(x, codec, bits_per_s, rate_hz) if rng.random() < 0.5 else x


FAULTS: Mapping[str, tuple[str, Fault]] = {
    "level": ("20 dB quieter, 16 bits", lambda x, rng: np.round(x * 3276.7).astype(np.float32) / 32767),
    "telephone": ("300 to 3400 Hz", lambda x, rng: band(x, 300, 3400)),
    "equalizer": ("random equalizer, up to 8 dB", lambda x, rng: equalized(x, rng, 8)),
    "white": ("white noise, 20 dB below speech", lambda x, rng: noisy(x, rng, 20, 0)),
    "pink10": ("pink noise, 10 dB below", lambda x, rng: noisy(x, rng, 10, 1)),
    "pink5": ("pink noise, 5 dB below", lambda x, rng: noisy(x, rng, 5, 1)),
    "room": ("room, reverberation time .4 s", lambda x, rng: room(x, rng, 0.4, 3)),
    "hall": ("hall, reverberation time .8 s", lambda x, rng: room(x, rng, 0.8, 0)),
    "mp3": ("MP3, 16 kbit/s", lambda x, rng: coded(x, "mp3", 16_000)),
    "opus": ("Opus, 8 kbit/s", lambda x, rng: coded(x, "opus", 8000)),
    "aac": ("AAC, 16 kbit/s", lambda x, rng: coded(x, "aac", 16_000)),
    "mulaw": ("mu-law at 8 kHz", lambda x, rng: coded(x, "mulaw", 0, 8000)),
}
"""Name -> what it is, and the fault; the values differ from those of training, their kinds do not."""


# ---- features of windows


class Windows(NamedTuple):
    """Means of encoder rows over windows of speech.

    z (n, 384); utterance (n,): its number; copy (n,): 0 is the recording; length_s (n,): 0 for all of the speech;
    first (n,): whether it is the first second of speech, encoded by itself; other windows are parts of the pieces.
    """

    z: NDArray[np.float32]
    utterance: NDArray[np.int64]
    copy: NDArray[np.int64]
    length_s: Array
    first: NDArray[np.bool_]


def make_windows(recordings: Sequence[Recording], config: VoiceTraining) -> Windows:
    """Every window of every recording and its augmented copies."""
    extractor, found = VoiceExtractor(without_head()), list[Windows]()
    for copy in range(config.copies + 1):
        found.append(copy_windows(extractor, recordings, copy, config))
        print(f"copy {copy} of {config.copies}: {len(found[-1].z)} windows", flush=True)
    return Windows(*(np.concatenate(column) for column in zip(*found, strict=True)))


def copy_windows(
    extractor: VoiceExtractor, recordings: Sequence[Recording], copy: int, config: VoiceTraining
) -> Windows:
    """The windows of one copy of each recording; copy 0: as recorded. Windows of a length lie side by side."""
    rows: list[tuple[NDArray[np.float32], int, int, float, bool]] = []
    for i, recording in enumerate(recordings):
        rng = np.random.default_rng([config.seed, copy, i])
        audio = Audio(random_fault(recording.samples, rng) if copy else recording.samples, SAMPLE_RATE_HZ)
        activity = voice_activity(audio)
        if not activity.segments:
            continue
        h = np.concatenate([piece.values for piece in extractor.encoded(audio, activity)])
        start = round(activity.segments[0][0] * SAMPLE_RATE_HZ)
        rows.append((h.mean(axis=0), i, copy, 0.0, False))
        rows.append((extractor.encode(audio.samples[start:][:SAMPLE_RATE_HZ]).mean(axis=0), i, copy, 1.0, True))
        for length_s in config.window_s:
            n = round(length_s / ROW_S)
            starts = np.linspace(0, len(h) - n, max(1, round(len(h) / n))).astype(int) if len(h) > n else []
            rows += [(h[a : a + n].mean(axis=0), i, copy, length_s, False) for a in starts]
    z, *columns = zip(*rows, strict=True)
    return Windows(np.stack(z), *(np.array(column) for column in columns))


def window_weights(windows: Windows, config: VoiceTraining) -> Array:
    """An utterance weighs 1: shared by its copies, in each by the lengths, in each by the windows."""
    length = np.where(windows.first, -1, windows.length_s)
    _, group, n = np.unique(
        np.column_stack([windows.utterance, windows.copy, length]), axis=0, return_inverse=True, return_counts=True
    )
    weight = 1 / n[group]
    copies = windows.utterance * (config.copies + 1) + windows.copy
    weight /= np.bincount(copies, weight)[copies]
    weight *= np.where(windows.copy == 0, config.clean_share, (1 - config.clean_share) / max(config.copies, 1))
    return np.asarray(weight / np.bincount(windows.utterance, weight)[windows.utterance])


# ---- the head, in closed form


class Sums(NamedTuple):
    """Of the weighted windows of one speaker, sentence and emotion each; k of them.

    who (k, 3): speaker, sentence, emotion. n (k,); m (k, D) of z; a (k, D, D) of its outer products.
    """

    who: NDArray[np.str_]
    n: Array
    m: Array
    a: NDArray[np.float32]


def sums(windows: Windows, recordings: Sequence[Recording], config: VoiceTraining) -> Sums:
    """All sums."""
    weight = window_weights(windows, config)
    who = np.array([(r.speaker, r.sentence, r.emotion) for r in recordings])
    cells, cell = np.unique(who[windows.utterance], axis=0, return_inverse=True)
    n, m, a = np.bincount(cell, weight), [], []
    for k in range(len(cells)):
        z, w = windows.z[cell == k].astype(np.float64), weight[cell == k, None]
        m.append((w * z).sum(axis=0))
        a.append(((w * z).T @ z).astype(np.float32))
    return Sums(cells, n, np.array(m), np.array(a))


def fit(found: Sums, keep: NDArray[np.bool_], config: VoiceTraining) -> dict[str, Array]:
    """The head's tensors from the sums to keep: equations (3) and (4) of the model."""
    emotion = np.array([EMOTIONS.index(e) for e in found.who[:, 2]])
    n = np.bincount(emotion[keep], found.n[keep], len(EMOTIONS))
    m = np.stack([found.m[keep & (emotion == k)].sum(axis=0) for k in range(len(EMOTIONS))])
    outer, total = np.tensordot(keep.astype(np.float32), found.a, 1).astype(np.float64), n.sum()
    centre = m.sum(axis=0) / total
    sd = np.sqrt(np.diag(outer) / total - centre**2)
    covariance = (outer / total - np.outer(centre, centre)) / np.outer(sd, sd)
    there = n > 0
    means = (m[there] / n[there, None] - centre) / sd  # of the emotions, standardized
    share = n[there] / total
    within = covariance - (means * share[:, None]).T @ means
    identity = np.eye(len(centre))
    u = cho_solve(cho_factor(within + config.class_ridge * identity), means.T).T
    classes, class_bias = np.zeros((len(n), len(centre))), np.full(len(n), -1e4)  # an emotion left out: never
    classes[there], class_bias[there] = u, -0.5 * (u * means).sum(axis=1)
    points = POINT[there] - share @ POINT[there]
    w = cho_solve(cho_factor(covariance + config.linear_ridge * identity), (means * share[:, None]).T @ points).T
    weight = np.concatenate([classes, w]) / sd
    neutral = EMOTIONS.index("neutral")  # lies at the origin; `select` leaves it out too
    linear_bias = -w @ ((m[neutral] / n[neutral] - centre) / sd) if there[neutral] else share @ POINT[there]
    bias = np.concatenate([class_bias, linear_bias]) - weight @ centre
    return {"weight": weight, "bias": bias, "points": POINT}


def without_head() -> VoiceHead:
    """A head of zeros, for an extractor of encoder rows."""
    tensors = {"weight": np.zeros((9, 384)), "bias": np.zeros(9), "points": POINT}
    return VoiceHead(tensors, about(CHOSEN))


def about(config: VoiceTraining, **residuals: tuple[float, ...]) -> VoiceConfig:
    """The metadata of a head."""
    encoder = VoiceExtractor.encoder
    return VoiceConfig(
        encoder=encoder,
        encoder_sha256=weights.sha256(encoder),
        corpus="EMO-DB (Burkhardt et al. 2005), 535 utterances, 173 of them cut to 2 s",
        licence="CC0-1.0",
        training=configs.to_dict(config),
        **residuals,
    )


# ---- commands


def train(config: Annotated[VoiceTraining, Parameter(name="*")] = CHOSEN, features: Path | None = None) -> None:
    """Fit the head on all speakers and without each one (some five minutes on one free core).

    Args:
        features: file (.npz) that keeps the features of all windows; read if it exists.
    """
    recordings = read_recordings()
    windows = _windows(recordings, config, features)
    found = sums(windows, recordings, config)
    speakers = sorted(set(found.who[:, 0]))
    heads = {s: fit(found, found.who[:, 0] != s, config) for s in speakers}
    tensors = {f"{s}.{name}": x.astype(np.float32) for s, head in heads.items() for name, x in head.items()}
    configs.write_atomic(SPEAKERS_FILE, save(tensors, HEAD_FILE.metadata(about(config))))
    final = {name: x.astype(np.float32) for name, x in fit(found, np.ones(len(found.n), bool), config).items()}
    metadata = HEAD_FILE.metadata(about(config, **residuals(heads, windows, recordings, config)))
    configs.write_atomic(HEAD_FILE.shipped, save(final, metadata))
    print(f"wrote {HEAD_FILE.shipped} and {SPEAKERS_FILE}")


def residuals(
    heads: Mapping[str, Mapping[str, Array]], windows: Windows, recordings: Sequence[Recording], config: VoiceTraining
) -> dict[str, tuple[float, ...]]:
    """Standard deviation of the error on left-out speakers, by length of the window, over all copies."""
    speaker = np.array([r.speaker for r in recordings])[windows.utterance]
    truth = np.array([POINT[EMOTIONS.index(r.emotion)] for r in recordings])[windows.utterance]
    error = np.full((len(speaker), 2), np.nan)
    for s, head in heads.items():
        error[speaker == s] = VoiceHead(head, about(config)).predict(windows.z[speaker == s]) - truth[speaker == s]
    weight = window_weights(windows, config)
    sd = []
    for length_s in config.window_s:
        rows = (windows.length_s == length_s) & ~windows.first
        sd.append(np.sqrt(np.average(error[rows] ** 2, axis=0, weights=weight[rows])))
    valence, arousal = (tuple(round(float(x), 3) for x in column) for column in np.array(sd).T)
    return {"residual_s": config.window_s, "residual_valence": valence, "residual_arousal": arousal}


def select(config: Annotated[VoiceTraining, Parameter(name="*")] = CHOSEN, features: Path | None = None) -> None:
    """Score a setting on recordings whose speaker, sentence and emotion were all left out, and without the emotion.

    Args:
        features: as of `train`.
    """
    recordings = read_recordings()
    windows = _windows(recordings, config, features)
    found = sums(windows, recordings, config)
    who = np.array([(r.speaker, r.sentence, r.emotion) for r in recordings])
    rows = (windows.length_s == 0) & (windows.copy == 0)
    z, who = windows.z[rows], who[windows.utterance[rows]]
    for name, parts in (("speaker and sentence", 2), ("speaker, sentence and emotion", 3)):
        values = np.empty((len(who), 2))
        for cell in np.unique(found.who[:, :parts], axis=0):
            keep = (found.who[:, :parts] != cell).all(axis=1)
            here = (who[:, :parts] == cell).all(axis=1)
            values[here] = VoiceHead(fit(found, keep, config), about(config)).predict(z[here])
        truth = np.array([POINT[EMOTIONS.index(e)] for e in who[:, 2]])
        either, high = np.isin(who[:, 2], HIGH + LOW), np.isin(who[:, 2], HIGH)
        r, ccc = ([f(values[:, i], truth[:, i]) for i in range(2)] for f in (metrics.pcc, metrics.ccc))
        print(
            f"{name}: AUC {auc(values[either, 1], high[either]):.4f}, r {r[0]:.3f} {r[1]:.3f}, CCC {ccc[0]:.3f} "
            f"{ccc[1]:.3f} (valence, arousal)"
        )
    _cut_only(found, windows, recordings, config)


def _cut_only(found: Sums, windows: Windows, recordings: Sequence[Recording], config: VoiceTraining) -> None:
    """Score a head for which boredom, disgust and fear were always cut on whole utterances of these emotions."""
    with_whole = {r.speaker for r in recordings if r.whole and r.emotion in CUT}
    head = VoiceHead(fit(found, ~np.isin(found.who[:, 0], list(with_whole)), config), about(config))
    rows = (windows.length_s == 0) & (windows.copy == 0)
    for emotion in CUT:
        z = [
            z
            for z, i in zip(windows.z[rows], windows.utterance[rows], strict=True)
            if recordings[i].whole and recordings[i].emotion == emotion
        ]
        mean = head.predict(np.array(z)).mean(axis=0)
        print(f"{len(z)} whole utterances of {emotion}, which training has only cut: {mean[0]:.2f} {mean[1]:.2f}")


def _windows(recordings: Sequence[Recording], config: VoiceTraining, features: Path | None) -> Windows:
    if features is not None and features.exists():
        with np.load(features) as file:
            return Windows(**file)
    windows = make_windows(recordings, config)
    if features is not None:
        np.savez(features, **windows._asdict())
    return windows


@lru_cache
def voice_without(speaker: str) -> Voice:
    """The voice part of `predict` with the head that was fitted without a speaker."""
    tensors = load_file(SPEAKERS_FILE)
    head = VoiceHead({name: tensors[f"{speaker}.{name}"] for name in ("weight", "bias", "points")}, about(CHOSEN))
    extractor, model = VoiceExtractor(head), ZeroShot()

    def voice(samples: Samples, sample_rate_hz: int) -> Array:
        audio = Audio(samples, sample_rate_hz)
        activity = VoiceActivity(()) if audio.silent else voice_activity(audio)
        clock = Timeline.regular(max(1, samples.size * 10 // sample_rate_hz), 10)
        part = model.audio(extractor(audio, activity), clock)
        return np.stack([part.valence, part.arousal], axis=1)

    return voice


def evaluate(faults: tuple[str, ...] = tuple(FAULTS)) -> None:
    """Score the heads without one speaker on the whole utterances, with 95 % intervals over speakers.

    Args:
        faults: names of FAULTS to score besides.
    """
    utterances = emodb()
    _print("as recorded", score_voice(voice_without, utterances))
    for name in faults:
        what, fault = FAULTS[name]
        _print(what, score_under(fault, utterances))


def score_under(fault: Fault, utterances: Sequence[Utterance]) -> Figures:
    """Agreement with the acted emotion over whole utterances with a fault, and means of neutral ones."""
    traces = [
        voice_without(u.speaker)(fault(u.samples, np.random.default_rng([i])), u.sample_rate_hz)
        for i, u in enumerate(utterances)
    ]
    heard = np.array([np.isfinite(trace).any() for trace in traces])
    values = np.array([np.nanmean(trace, axis=0) for trace, ok in zip(traces, heard, strict=True) if ok])
    emotion, speaker = (np.array([getattr(u, name) for u in utterances])[heard] for name in ("emotion", "speaker"))
    rows, neutral = np.isin(emotion, HIGH + LOW), emotion == "neutral"
    truth = np.array([POINT[EMOTIONS.index(e)] for e in emotion])
    return {
        "found": Figure(float(heard.mean()), len(heard)),
        "auc": bootstrapped(auc, values[rows, 1], np.isin(emotion[rows], HIGH), units=speaker[rows]),
        **agreements("voice", values, truth, speaker),
        "neutral_valence": bootstrapped(np.mean, values[neutral, 0], units=speaker[neutral]),
        "neutral_arousal": bootstrapped(np.mean, values[neutral, 1], units=speaker[neutral]),
    }


def _print(what: str, found: Figures) -> None:
    print(what)
    for key, figure in found.items():
        interval = "" if figure.low is None else f" [{figure.low:.3f}, {figure.high:.3f}]"
        print(f"  {key:28}{figure.value:8.4f}{interval}  n {figure.n}", flush=True)


if __name__ == "__main__":
    app = App()
    app.command(train)
    app.command(select)
    app.command(evaluate)
    app()
