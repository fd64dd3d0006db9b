"""Voice activity detection (Silero) and speech recognition (Whisper), both by faster-whisper.

Only stretches with speech reach Whisper, packed into windows of at most 28 s: silence costs nothing, and no words are
recognized in it. Words are kept only if they are plausible; what is left out is reported with its reason. Without a
stated language, tiny.en is doubted where its words are too uncertain for English (measured in docs/log.md): a
safeguard, not language identification, which the base model provides.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from faster_whisper import BatchedInferencePipeline, WhisperModel, available_models, download_model
from faster_whisper.vad import SpeechTimestampsMap, VadOptions, get_speech_timestamps
from numpy.typing import NDArray

from affectrace import weights
from affectrace.errors import InputError, UnknownNameError, WeightsError
from affectrace.media.audio import SAMPLE_RATE_HZ, Audio
from affectrace.media.transcript import Transcript, Word, group_words
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.weights.download import hash_once

Samples = NDArray[np.float32]

# Voice activity: Silero's own values, but for pauses and padding (ours: its 0.1 s cuts inside slow words, its 0.03 s
# clips unvoiced onsets), and the longest stretch, which one of Whisper's 30 s windows must hold.
WINDOW_S = 28.0
_ACTIVITY = {
    "threshold": 0.5,
    "neg_threshold": 0.35,
    "min_speech_duration_ms": 250,
    "min_silence_duration_ms": 300,
    "speech_pad_ms": 100,
    "max_speech_duration_s": WINDOW_S,
}
_PIECE = 120 * SAMPLE_RATE_HZ  # samples per run of the network: bounded memory

# Recognition
PACKAGES = {"tiny.en": "whisper-tiny.en", "base": "whisper-base"}  # sizes that come as pinned packages
PADDING_S = 0.2  # of silence around each stretch, for Whisper (ours: without it full stops are lost)
BEAM = 5  # Whisper's own
TOKENS_PER_S = 8  # more than any speech has; ends repetition loops early (ours)
MOST_TOKENS = 224  # half of Whisper's text context, as in its own decoding

# Plausibility
COMPRESSION_RATIO = 2.4  # text that compresses better repeats itself (Whisper); people do: plausible up to the next
HARD_COMPRESSION_RATIO = 4.0  # if its words are as certain as WORD_PROBABILITY (ours)
AVG_LOGPROB = -1.0  # least mean per token of a window (Whisper)
WORD_PROBABILITY = 0.75  # least mean of a recording whose language is only assumed (ours, docs/log.md)
SHORT_S, SHORT_WORD_PROBABILITY = 8.0, 0.65  # with less speech than this (ours, docs/log.md)
CLEAR_WORD_PROBABILITY = 0.85  # from this mean on an English-only model has heard English (ours, docs/log.md)
WINDOW_PROBABILITY = 0.45  # least mean of one window, in any language (ours)
LANGUAGE_PROBABILITY = 0.5  # least probability of an identified language (ours)
LANGUAGE_WINDOWS = 3  # used to identify the language, spread over the recording (ours)


# ---- voice activity


@dataclass(frozen=True)
class VoiceActivity:
    """Where somebody speaks: (start, end) in seconds, in order, without overlap, at most 28 s each."""

    segments: tuple[tuple[float, float], ...]

    def active(self, times_s: NDArray[np.float64]) -> NDArray[np.bool_]:
        """(T,) whether somebody speaks at each of (T,) times."""
        edges = np.array(self.segments, np.float64).ravel()
        return np.searchsorted(edges, times_s, side="right") % 2 == 1


def voice_activity(audio: Audio, *, progress: Progress = silent) -> VoiceActivity:
    """Speech in 16 kHz sound, at whatever level: the network is given the sound with a peak of 1."""
    _check_rate(audio)
    options, n = VadOptions(**_ACTIVITY), audio.samples.size
    peak = np.float32(max(audio.samples.max(), -audio.samples.min())) if n else np.float32(0)
    found: list[tuple[float, float]] = []
    first = 0
    while first < n:
        last = min(first + _PIECE, n)
        segments = get_speech_timestamps(audio.samples[first:last] / (peak or 1), options)
        if last < n and len(segments) > 1:  # speech may continue beyond the piece: begin again before it
            last = first + segments[-2]["end"]
            segments.pop()
        found += [((first + s["start"]) / SAMPLE_RATE_HZ, (first + s["end"]) / SAMPLE_RATE_HZ) for s in segments]
        first = last
        progress(ProgressEvent("finding speech", first / SAMPLE_RATE_HZ, n / SAMPLE_RATE_HZ, "s"))
    return VoiceActivity(tuple((audio.start_s + a, audio.start_s + b) for a, b in found))


@lru_cache(maxsize=1)
def activity_sha256() -> str:
    """Of the network of `voice_activity`, for the provenance of a result."""
    package = find_spec("faster_whisper")
    assert package is not None
    assert package.origin is not None
    return hash_once(Path(package.origin).parent / "assets" / "silero_vad_v6.onnx")


def _check_rate(audio: Audio) -> None:
    if audio.sample_rate_hz != SAMPLE_RATE_HZ:
        raise InputError(f"speech needs {SAMPLE_RATE_HZ} Hz, got {audio.sample_rate_hz}", hint="resample first")


# ---- transcription


@dataclass(frozen=True)
class WindowText:
    """What was recognized in one window, in Whisper's terms. Word times are seconds from the window's start."""

    words: tuple[Word, ...]
    avg_logprob: float
    compression_ratio: float

    @property
    def plausible(self) -> bool:
        """Whether there is no reason to doubt it."""
        probability = mean_probability(self.words)
        most = COMPRESSION_RATIO if probability < WORD_PROBABILITY else HARD_COMPRESSION_RATIO
        likely = self.avg_logprob >= AVG_LOGPROB and probability >= WINDOW_PROBABILITY
        return not self.words or (likely and self.compression_ratio <= most)


def mean_probability(words: Sequence[Word]) -> float:
    """Of recognized words, 0 without any."""
    return float(np.mean([w.probability or 0.0 for w in words])) if words else 0.0


@dataclass(frozen=True, eq=False)
class Recognizer:
    """A loaded model. name: in results. multilingual: not English alone."""

    name: str
    multilingual: bool
    _model: Any

    def languages(self, windows: Sequence[Samples]) -> dict[str, float]:
        """Probability of each language, averaged over windows (multilingual models only)."""
        total: dict[str, float] = {}
        for window in windows:
            for language, p in self._model.detect_language(window)[2]:
                total[language] = total.get(language, 0.0) + p / len(windows)
        return total

    def transcribe(self, window: Samples, language: str) -> WindowText:
        """Recognize up to 30 s of sound."""
        seconds = len(window) / SAMPLE_RATE_HZ
        segments = list(
            BatchedInferencePipeline(self._model).transcribe(
                window,
                language=language if self.multilingual else "en",
                beam_size=BEAM,
                temperature=[0.0],
                word_timestamps=True,
                vad_filter=False,
                clip_timestamps=[{"start": 0.0, "end": seconds}],
                batch_size=1,
                max_new_tokens=min(MOST_TOKENS, 16 + int(TOKENS_PER_S * seconds)),
            )[0]
        )
        words = [w for s in segments for w in s.words or () if w.word.strip()]
        return WindowText(
            tuple(Word(float(w.start), float(w.end), w.word.strip(), float(w.probability)) for w in words),
            segments[0].avg_logprob if segments else 0.0,  # of the window, the same in all its segments
            max((s.compression_ratio for s in segments), default=0.0),
        )


def transcribe(
    audio: Audio,
    *,
    model: str | Path = "tiny.en",
    language: str | None = None,
    activity: VoiceActivity | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> Transcript:
    """Words with times, grouped into utterances. Memory: the sound and little else.

    audio: 16 kHz. model: see `load_recognizer`. language: ISO 639-1 code; by default identified by a multilingual
    model, else English is assumed, and doubted: then the transcript's language is None. activity: from
    `voice_activity`, found here by default.

    Raises:
        InputError: another sample rate, or no such model. WeightsError: the model cannot be fetched.
    """
    _check_rate(audio)
    activity = activity if activity is not None else voice_activity(audio, progress=progress)
    if not activity.segments:
        return Transcript((), language, str(model), ("no speech was detected: no words",))
    code = None if language is None else language.lower().split("-")[0]
    recognizer = load_recognizer(model, threads=threads, progress=progress)
    if code not in (None, "en") and not recognizer.multilingual:
        why = f"the speech is stated to be '{code}' and {recognizer.name} recognizes English only"
        return _left_out(recognizer, code, why)
    windows = _windows(audio, activity)
    certain = code is not None
    if code is None and recognizer.multilingual:
        chosen = np.unique(np.linspace(0, len(windows) - 1, LANGUAGE_WINDOWS).round().astype(int))
        probabilities = recognizer.languages([_samples(audio, windows[i]) for i in chosen])
        code = max(probabilities, key=lambda name: probabilities[name])
        certain = probabilities[code] >= LANGUAGE_PROBABILITY
    chunks = [chunk for window in windows for chunk in window]
    total_s = sum(c["end"] - c["start"] for c in chunks) / SAMPLE_RATE_HZ
    clock = SpeechTimestampsMap(chunks, SAMPLE_RATE_HZ, time_precision=3)
    doubted_s, at_s, words, utterances = 0.0, 0.0, [], []
    for window in windows:
        progress(ProgressEvent("transcribing", at_s, total_s, "s"))
        samples = _samples(audio, window)
        text, seconds = recognizer.transcribe(samples, code or "en"), samples.size / SAMPLE_RATE_HZ
        if text.plausible:
            placed = [_placed(w, at_s, clock, chunks, audio.start_s) for w in text.words]
            words += placed
            utterances += group_words(placed)
        else:
            doubted_s += seconds
        at_s += seconds
    progress(ProgressEvent("transcribing", total_s, total_s, "s"))
    probability = mean_probability(words)
    least = SHORT_WORD_PROBABILITY if total_s < SHORT_S else WORD_PROBABILITY
    if not certain and (probability < least or doubted_s > total_s / 2):
        what = f"mean word probability {probability:.2f}" if words else "the text repeats itself or is unlikely"
        called = "English" if code in (None, "en") else f"'{code}'"
        why = f"the speech is not clearly {called} to {recognizer.name} ({what})"
        return _left_out(recognizer, None, why, "if it is English, say so with --language en")
    if code is None and probability >= CLEAR_WORD_PROBABILITY:
        code, certain = "en", True
    notes = [f"{doubted_s:.0f} s of speech could not be recognized: no words there"] if doubted_s else []
    if not utterances and not notes:
        notes = ["no words could be recognized in the speech"]
    spoken = tuple(sorted(utterances, key=lambda u: u.start_s))
    return Transcript(spoken, code if certain else None, recognizer.name, tuple(notes))


def _windows(audio: Audio, activity: VoiceActivity) -> list[list[dict[str, int]]]:
    """Stretches of speech in samples, with some of the silence around them, as many per window as it holds."""
    edges = [audio.start_s, *itertools.chain(*activity.segments), audio.end_s]
    windows: list[list[dict[str, int]]] = []
    filled = 0
    for before, start, end, after in zip(edges[0::2], edges[1::2], edges[2::2], edges[3::2], strict=False):
        a, b = max(start - PADDING_S, (before + start) / 2), min(end + PADDING_S, (end + after) / 2)
        first = max(0, round((a - audio.start_s) * SAMPLE_RATE_HZ))
        last = min(audio.samples.size, round((b - audio.start_s) * SAMPLE_RATE_HZ))
        if not windows or filled + last - first > WINDOW_S * SAMPLE_RATE_HZ:
            windows.append([])
            filled = 0
        windows[-1].append({"start": first, "end": last})
        filled += last - first
    return windows


def _samples(audio: Audio, window: Sequence[dict[str, int]]) -> Samples:
    return np.concatenate([audio.samples[c["start"] : c["end"]] for c in window])


def _left_out(recognizer: Recognizer, language: str | None, why: str, *hints: str) -> Transcript:
    if not recognizer.multilingual:
        hints = (*hints, "--asr-model base recognizes 99 languages")
    return Transcript((), language, recognizer.name, ("; ".join([f"words are left out: {why}", *hints]),))


def _placed(word: Word, window_s: float, clock: Any, chunks: Sequence[dict[str, int]], start_s: float) -> Word:
    """A word of the window that begins after `window_s` of speech, on the recording's clock, inside its stretch."""
    start, end = window_s + word.start_s, window_s + word.end_s
    i = clock.get_chunk_index((start + end) / 2)
    low, high = (chunks[i][side] / SAMPLE_RATE_HZ for side in ("start", "end"))
    start, end = (min(max(clock.get_original_time(t, i), low), high) + start_s for t in (start, end))
    return Word(start, max(start, end), word.text, word.probability)


# ---- which model


def load_recognizer(model: str | Path, *, threads: int | None = None, progress: Progress = silent) -> Recognizer:
    """A recognizer; the last two stay loaded (raises as `check_model`, and WeightsError if it cannot be fetched).

    model: "tiny.en" or "base" (pinned packages), a folder with a CTranslate2 Whisper model, or a size that
    faster-whisper knows ("small", "large-v3", ...), taken from the Hub's cache or the Hub.
    """
    name = f"whisper-{model}" if str(model) in available_models() else str(model)
    return Recognizer(name, *_loaded(_folder(model, progress), threads))


def identity(model: str | Path) -> tuple[str, str]:
    """(name, sha256) of a model on this machine, for the provenance of a result."""
    if model in PACKAGES:
        name = PACKAGES[str(model)]
        return name, weights.sha256(name)
    return f"whisper: {model}", hash_once(_folder(model, silent) / "model.bin")


def check_model(model: str | Path) -> None:
    """Refuse an unknown name or an incomplete folder before any work; nothing is loaded or fetched."""
    folder = Path(model).expanduser()
    if model in PACKAGES:
        return
    if folder.is_dir():
        lacking = [f for f in ("model.bin", "config.json", "tokenizer.json") if not (folder / f).is_file()]
        if lacking:
            raise InputError(
                f"is not a CTranslate2 Whisper model: lacks {', '.join(lacking)}",
                where=folder,
                hint="convert one with ct2-transformers-converter --copy_files tokenizer.json preprocessor_config.json",
            )
    elif str(model) not in available_models():
        raise UnknownNameError.of("speech model or folder", str(model), available_models())


def _folder(model: str | Path, progress: Progress) -> Path:
    """Of a model that is named as in `load_recognizer`."""
    if model in PACKAGES:
        return weights.directory(PACKAGES[str(model)], progress=progress)
    check_model(model)
    folder = Path(model).expanduser()
    return folder if folder.is_dir() else _from_hub(str(model), progress)


def _from_hub(size: str, progress: Progress) -> Path:
    why = ""
    for in_cache in (True, False):
        if not in_cache:
            progress(ProgressEvent("downloading", 0, None, "bytes", f"whisper-{size}"))
        try:
            return Path(download_model(size, local_files_only=in_cache))
        except Exception as error:  # any of the Hub client's
            why = f"{type(error).__name__}: {str(error)[:200]}"
    raise WeightsError(
        f"speech model '{size}' is not in the Hub's cache and cannot be downloaded ({why})",
        hint="use 'base' or 'tiny.en', which come as packages, or name a folder that holds the model",
    )


@lru_cache(maxsize=2)
def _loaded(folder: Path, threads: int | None) -> tuple[bool, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_gpu = ctranslate2.get_cuda_device_count() > 0
    try:
        model = WhisperModel(
            str(folder),
            device="cuda" if on_gpu else "cpu",
            compute_type="float16" if on_gpu else "int8",  # 1.4 times as fast as float32 on 2 cores, same words
            cpu_threads=threads or cores,
            local_files_only=True,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"is not a Whisper model that loads ({str(error).splitlines()[0]})",
            where=folder,
            hint="name a folder converted with ct2-transformers-converter, or a size like 'base'",
        ) from None
    return bool(model.model.is_multilingual), model
