"""Speech in a recording: where it is (Silero VAD) and what is said (Whisper), both by faster-whisper.

Only stretches with speech reach Whisper, packed into windows of at most 28 s, so that silence costs nothing and nothing
is heard in it. Words are kept only where there is reason to believe them; what is left out is said with its reason.

What tiny.en makes of speech, measured once on 10 English voices (one recorded, nine synthetic) and on 18 recordings of
11 other languages (Russian recorded, the others synthetic; windows of 9 to 28 s): English gives a mean word probability
of .88 to .98, still .78 to .95 in noise of 5 dB SNR; other languages .31 to .70, or more (up to .76) with a text that
repeats itself. The limit is .75. All 18 were left out by it; at 0 dB SNR it leaves out English too, with few words
right. It is a safeguard, not a language identifier: the base model, where it is asked for, is one (.94 to 1.00 for the
right language of all but two crude French and Russian voices).
"""

from __future__ import annotations

import hashlib
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

Samples = NDArray[np.float32]

# Voice activity. Silero's own, but for pauses and padding (ours: its 0.1 s cuts inside words said slowly, its 0.03 s
# clips unvoiced onsets), and the longest stretch, which a window of Whisper's 30 s must hold.
WINDOW_S = 28.0
_ACTIVITY = {
    "threshold": 0.5,
    "neg_threshold": 0.35,
    "min_speech_duration_ms": 250,
    "min_silence_duration_ms": 300,
    "speech_pad_ms": 100,
    "max_speech_duration_s": WINDOW_S,
}
_PIECE = 120 * SAMPLE_RATE_HZ  # samples that go through the network together: bounded memory

# Recognition
OURS = {"tiny.en": "whisper-tiny.en", "base": "whisper-base"}  # sizes that come as pinned packages
PADDING_S = 0.2  # more of the silence around each stretch, for Whisper (ours: without it full stops are lost)
BEAM = 5  # Whisper's own
TOKENS_PER_S = 8  # nobody says more; ends loops early (ours)
LONGEST_ANSWER = 224  # tokens; half of Whisper's text context, as in its own decoding

# Belief
COMPRESSION_RATIO = 2.4  # text that compresses better repeats itself (Whisper); people do: believed up to the next
HARD_COMPRESSION_RATIO = 4.0  # where its words are as sure as WORD_PROBABILITY (ours)
AVG_LOGPROB = -1.0  # mean per token below which a window is not believed (Whisper)
WORD_PROBABILITY = 0.75  # mean of a recording, while the language is only supposed to be English (ours, measured above)
WINDOW_PROBABILITY = 0.45  # the same of one window, whatever is known (ours)
LANGUAGE_PROBABILITY = 0.5  # that an identified language needs to be believed (ours)
LANGUAGE_WINDOWS = 3  # listened to for the language, spread over the recording (ours)


# ---- voice activity


@dataclass(frozen=True)
class VoiceActivity:
    """Where somebody speaks: (start, end) seconds, in order, without overlap, at most 28 s each."""

    segments: tuple[tuple[float, float], ...]

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


def voice_activity(audio: Audio, *, progress: Progress = silent) -> VoiceActivity:
    """Find speech in 16 kHz sound."""
    _check_rate(audio, "voice activity")
    options, n = VadOptions(**_ACTIVITY), audio.samples.size
    found: list[tuple[float, float]] = []
    first = 0
    while first < n:
        last = min(first + _PIECE, n)
        segments = get_speech_timestamps(audio.samples[first:last], options)
        if last < n and len(segments) > 1:  # speech may go on beyond the piece: begin again before it
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
    return _hash(Path(str(package and package.origin)).parent / "assets" / "silero_vad_v6.onnx")


def _check_rate(audio: Audio, what: str) -> None:
    if audio.sample_rate_hz != SAMPLE_RATE_HZ:
        raise InputError(f"{what} needs {SAMPLE_RATE_HZ} Hz, got {audio.sample_rate_hz}", hint="resample first")


# ---- transcription


@dataclass(frozen=True)
class Heard:
    """What was recognised in one window, as Whisper names it. Word times are seconds from the window's start."""

    words: tuple[Word, ...]
    avg_logprob: float
    compression_ratio: float

    @property
    def probability(self) -> float:
        """Mean of the words, 0 where there is none."""
        return float(np.mean([w.probability or 0.0 for w in self.words])) if self.words else 0.0

    @property
    def plausible(self) -> bool:
        """Whether there is no reason to doubt it."""
        most = COMPRESSION_RATIO if self.probability < WORD_PROBABILITY else HARD_COMPRESSION_RATIO
        likely = self.avg_logprob >= AVG_LOGPROB and self.probability >= WINDOW_PROBABILITY
        return not self.words or (likely and self.compression_ratio <= most)


@dataclass(frozen=True, eq=False)
class Recogniser:
    """A loaded model. name: as results name it. multilingual: knows more than English."""

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

    def transcribe(self, window: Samples, language: str) -> Heard:
        """Recognise up to 30 s of sound."""
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
                max_new_tokens=min(LONGEST_ANSWER, 16 + int(TOKENS_PER_S * seconds)),
            )[0]
        )
        words = [w for s in segments for w in s.words or () if w.word.strip()]
        return Heard(
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
    """Words with times, grouped into utterances.

    audio: 16 kHz. model: see `load_recogniser`. language: ISO 639-1 code; None: identified with the model where it is
    multilingual, else supposed to be English and doubted. What else lies in the cache changes nothing.
    activity: from `voice_activity`; found here when not given. Memory: the sound and little else.

    Raises:
        InputError: another sample rate, or no such model. WeightsError: the model cannot be fetched.
    """
    _check_rate(audio, "transcription")
    activity = activity if activity is not None else voice_activity(audio, progress=progress)
    if not activity.segments:
        return Transcript((), language, str(model), ("no speech is heard: no words",))
    code = None if language is None else language.lower().split("-")[0]
    recogniser = load_recogniser(model, threads=threads, progress=progress)
    if code not in (None, "en") and not recogniser.multilingual:
        why = f"the speech is said to be '{code}' and {recogniser.name} knows only English"
        return _left_out(recogniser, code, why, doubt=False)
    windows = _windows(audio, activity)
    sure = code is not None
    if code is None and recogniser.multilingual:
        chosen = np.unique(np.linspace(0, len(windows) - 1, min(LANGUAGE_WINDOWS, len(windows))).round().astype(int))
        found = recogniser.languages([_sound(audio, windows[i]) for i in chosen])
        code = max(found, key=lambda name: found[name])
        sure = found[code] >= LANGUAGE_PROBABILITY
    chunks = [chunk for window in windows for chunk in window]
    total = sum(c["end"] - c["start"] for c in chunks) / SAMPLE_RATE_HZ
    clock = SpeechTimestampsMap(chunks, SAMPLE_RATE_HZ, time_precision=3)
    doubted, at, words, utterances = 0.0, 0.0, [], []
    for window in windows:
        progress(ProgressEvent("transcribing", at, total, "s"))
        sound = _sound(audio, window)
        heard, seconds = recogniser.transcribe(sound, code or "en"), sound.size / SAMPLE_RATE_HZ
        if heard.plausible:
            placed = [_placed(w, at, clock, chunks, audio.start_s) for w in heard.words]
            words += placed
            utterances += group_words(placed)
        else:
            doubted += seconds
        at += seconds
    progress(ProgressEvent("transcribing", total, total, "s"))
    probability = float(np.mean([w.probability for w in words])) if words else 0.0
    if not sure and (probability < WORD_PROBABILITY or doubted > total / 2):
        what = f"mean word probability {probability:.2f}" if words else "what is heard repeats itself or is unlikely"
        called = "English" if code in (None, "en") else f"'{code}'"
        return _left_out(recogniser, None, f"the speech is not clearly {called} to {recogniser.name} ({what})")
    notes = [f"{doubted:.0f} s of speech were not understood: no words there"] if doubted else []
    if not utterances and not notes:
        notes = ["no words were understood in the speech"]
    return Transcript(tuple(sorted(utterances, key=lambda u: u.start_s)), code or "en", recogniser.name, tuple(notes))


def _windows(audio: Audio, activity: VoiceActivity) -> list[list[dict[str, int]]]:
    """Stretches of speech in samples, with some of the silence around them, as many in a window as it holds."""
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


def _sound(audio: Audio, window: Sequence[dict[str, int]]) -> Samples:
    return np.concatenate([audio.samples[c["start"] : c["end"]] for c in window])


def _left_out(recogniser: Recogniser, language: str | None, why: str, *, doubt: bool = True) -> Transcript:
    ways = ["if it is English, say so with --language en"] if doubt else []
    ways += [] if recogniser.multilingual else ["--asr-model base knows 99 languages"]
    return Transcript((), language, recogniser.name, ("; ".join([f"words are left out: {why}", *ways]),))


def _placed(word: Word, window_s: float, clock: Any, chunks: Sequence[dict[str, int]], start_s: float) -> Word:
    """A word of the window that begins after `window_s` of speech, on the recording's clock, inside its stretch."""
    start, end = window_s + word.start_s, window_s + word.end_s
    i = clock.get_chunk_index((start + end) / 2)
    low, high = (chunks[i][side] / SAMPLE_RATE_HZ for side in ("start", "end"))
    start, end = (min(max(clock.get_original_time(t, i), low), high) + start_s for t in (start, end))
    return Word(start, max(start, end), word.text, word.probability)


# ---- which model


def load_recogniser(model: str | Path, *, threads: int | None = None, progress: Progress = silent) -> Recogniser:
    """Load a recogniser; the last two stay loaded.

    model: "tiny.en" or "base" (pinned packages), a folder with a CTranslate2 Whisper model, or a size that
        faster-whisper knows ("small", "large-v3", ...), taken from the Hub's cache or the Hub.

    Raises:
        UnknownNameError: none of these. InputError: a folder that holds no such model.
        WeightsError: cannot be fetched.
    """
    folder = _folder(str(model), progress)
    name = f"whisper-{model}" if str(model) in OURS or str(model) in _sizes() else str(model)
    return Recogniser(name, *_loaded(folder, threads))


def identity(model: str | Path) -> tuple[str, str]:
    """(name, sha256) of a model that is here, for the provenance of a result."""
    name = OURS.get(str(model), str(model))
    if name in OURS.values():
        return name, weights.sha256(name)
    return f"whisper: {model}", _hash(_folder(str(model), silent) / "model.bin")


def check_model(model: str | Path) -> None:
    """Whether there is such a model, before any work (raises as `load_recogniser`); loads and fetches nothing."""
    if OURS.get(str(model), str(model)) not in OURS.values():
        _users_folder(str(model))


@lru_cache(maxsize=4)
def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def _folder(model: str, progress: Progress) -> Path:
    name = OURS.get(model, model)
    if name in OURS.values():
        return weights.directory(name, progress=progress)
    return _users_folder(model) or _from_hub(model, progress)


def _users_folder(model: str) -> Path | None:
    """A folder that the user named; None where a size was named."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        lacking = [f for f in ("model.bin", "config.json", "tokenizer.json") if not (folder / f).is_file()]
        if lacking:
            raise InputError(
                f"is not a CTranslate2 Whisper model: lacks {', '.join(lacking)}",
                where=folder,
                hint="convert one with ct2-transformers-converter --copy_files tokenizer.json preprocessor_config.json",
            )
        return folder
    if model not in _sizes():
        raise UnknownNameError.of("speech model or folder", model, {*OURS, *_sizes()})
    return None


def _sizes() -> list[str]:
    return list(available_models())


def _from_hub(size: str, progress: Progress) -> Path:
    try:
        return Path(download_model(size, local_files_only=True))
    except Exception:  # any of the Hub client's errors: not in its cache
        progress(ProgressEvent("downloading", 0, None, "bytes", f"whisper-{size}"))
    try:
        return Path(download_model(size))
    except Exception as error:  # likewise: it is not here
        said = str(error).strip().splitlines()
        raise WeightsError(
            f"speech model '{size}' is not in the Hub's cache and cannot be downloaded "
            f"({type(error).__name__}: {said[0] if said else ''})",
            hint="use 'base' or 'tiny.en', which come as packages, or name a folder that holds the model",
        ) from None
