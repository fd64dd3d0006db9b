"""Speech in a recording: where it is (voice activity) and what is said (transcription with word times).

Only stretches with speech reach the recogniser, packed into windows of at most 28 s, so that silence costs nothing and
nothing is heard in it. Words are kept only where there is reason to believe them; what is left out is said with its
reason.

What tiny.en makes of speech, measured once on 10 English voices (one recorded, nine synthetic) and on 18 recordings of
11 other languages (Russian recorded, the others synthetic; windows of 9 to 28 s): English gives a mean word probability
of .88 to .98, still .78 to .95 in noise of 5 dB SNR; other languages .31 to .70, or more (up to .76) with a text that
repeats itself. The limit is .75. All 18 were left out, by the limit alone and with the multilingual base model present;
at 0 dB SNR the limit leaves out English too, with few words right. It is a safeguard, not a language identifier: the
base model is one (.94 to 1.00 for the right language of all but two crude French and Russian voices).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affectrace import weights
from affectrace.errors import InputError
from affectrace.media.audio import Audio
from affectrace.media.recogniser import BATCH, MULTILINGUAL, Heard, Recogniser, identity, load_recogniser
from affectrace.media.utterance import Transcript, Utterance, Word, join_words
from affectrace.media.voice_activity import (
    SAMPLE_RATE_HZ,
    ActivityConfig,
    VoiceActivity,
    voice_activity,
)
from affectrace.progress import Progress, ProgressEvent, silent

__all__ = ["ActivityConfig", "SpeechConfig", "VoiceActivity", "identity", "transcribe", "voice_activity"]


@dataclass(frozen=True)
class SpeechConfig:
    """How words are recognised, believed and grouped.

    window_s: most sound a window holds, seconds (Whisper hears 30). padding_s: sound kept around each stretch of
        speech, seconds (ours).
    loops: a window whose text compresses better than this repeats itself (Whisper: 2.4) and is not believed unless
        its words are as certain as `certainty`: people do repeat themselves. Beyond `hard_loops` it never is (ours).
    log_probability: mean per token below which a window is not believed (Whisper: -1.0).
    certainty: mean word probability of a recording below which nothing is believed while the language is only
        supposed to be English (ours, measured, see above). window_certainty: the same for one window (ours).
    language_probability: another language must be at least this probable to be believed, English `english_probability`
        to be beyond doubt (ours).
    language_windows: windows listened to for the language, spread over the recording (ours).
    pause_s: a pause this long ends an utterance. longest_s: an utterance is cut at its longest pause beyond (ours).
    """

    window_s: float = 28.0
    padding_s: float = 0.2
    loops: float = 2.4
    hard_loops: float = 4.0
    log_probability: float = -1.0
    certainty: float = 0.75
    window_certainty: float = 0.45
    language_probability: float = 0.5
    english_probability: float = 0.7
    language_windows: int = 3
    pause_s: float = 0.8
    longest_s: float = 15.0


@dataclass(frozen=True)
class _Piece:
    """A stretch of the recording inside a window: samples [start, end) of the recording, at `at` in the window."""

    start: int
    end: int
    at: int


def transcribe(
    audio: Audio,
    *,
    model: str | Path = "tiny.en",
    language: str | None = None,
    activity: VoiceActivity | None = None,
    config: SpeechConfig | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> Transcript:
    """Words with times, grouped into utterances.

    audio: 16 kHz. model: see `recogniser.load_recogniser`. language: ISO 639-1 code; None: identified with the model
    where it is multilingual, with the base model where that is here, else supposed to be English and doubted.
    activity: from `voice_activity`; found here when not given. Memory: the sound and little else.

    Raises:
        InputError: another sample rate, or no such model. WeightsError: the model cannot be fetched.
    """
    config = config or SpeechConfig()
    if audio.sample_rate_hz != SAMPLE_RATE_HZ:
        raise InputError(f"transcription needs {SAMPLE_RATE_HZ} Hz, got {audio.sample_rate_hz}", hint="resample first")
    activity = activity if activity is not None else voice_activity(audio, progress=progress)
    if not activity.segments:
        return Transcript((), language, str(model), ("no speech is heard: no words",))
    code = None if language is None else language.lower().split("-")[0]
    recogniser = load_recogniser(model, threads=threads, progress=progress)
    if code not in (None, "en") and not recogniser.multilingual:
        why = f"the speech is said to be '{code}' and {recogniser.name} knows only English"
        return _left_out(recogniser, code, why, doubt=False)
    windows = _windows(audio, activity, config)
    sure = code is not None
    if code is None:
        code, sure, why_not = _language(recogniser, audio, windows, config, progress)
        if why_not:
            return _left_out(recogniser, code, why_not)
    heard = list(_hear(recogniser, audio, windows, code or "en", progress))
    return _believed(recogniser, code or "en", sure, windows, heard, audio, config)


def _left_out(recogniser: Recogniser, language: str | None, why: str, *, doubt: bool = True) -> Transcript:
    ways = ["if it is English, say so with --language en"] if doubt else []
    ways += [] if recogniser.multilingual else ["--asr-model base knows 99 languages"]
    return Transcript((), language, recogniser.name, ("; ".join([f"words are left out: {why}", *ways]),))


# ---- windows


def _windows(audio: Audio, activity: VoiceActivity, config: SpeechConfig) -> list[list[_Piece]]:
    """Speech packed into windows: whole stretches, silence between them dropped."""
    most = int(config.window_s * SAMPLE_RATE_HZ)
    windows: list[list[_Piece]] = []
    filled = most
    for start, end in _stretches(audio, activity, config):
        if filled + end - start > most:
            windows.append([])
            filled = 0
        windows[-1].append(_Piece(start, end, filled))
        filled += end - start
    return windows


def _stretches(audio: Audio, activity: VoiceActivity, config: SpeechConfig) -> Iterator[tuple[int, int]]:
    """Sample ranges of speech, padded without overlap; one longer than a window is cut where speech is least likely."""
    most, padding = int(config.window_s * SAMPLE_RATE_HZ), config.padding_s
    before = audio.start_s
    for i, (start, end) in enumerate(activity.segments):
        after = activity.segments[i + 1][0] if i + 1 < len(activity.segments) else audio.end_s
        a = max(start - padding, (before + start) / 2) - audio.start_s
        b = min(end + padding, (end + after) / 2) - audio.start_s
        first, last = max(0, round(a * SAMPLE_RATE_HZ)), min(audio.samples.size, round(b * SAMPLE_RATE_HZ))
        while last - first > most:
            cut = _quietest(activity, audio, first + most // 2, first + most)
            yield first, cut
            first = cut
        yield first, last
        before = end


def _quietest(activity: VoiceActivity, audio: Audio, first: int, last: int) -> int:
    """The sample in [first, last) where speech is least likely."""
    hop = SAMPLE_RATE_HZ // 1000 * 32
    frames = activity.probability[first // hop : last // hop]
    return (first // hop + int(np.argmin(frames))) * hop + hop // 2 if frames.size else last


def _sound(audio: Audio, window: Sequence[_Piece]) -> NDArray[np.float32]:
    return np.concatenate([audio.samples[p.start : p.end] for p in window])


# ---- language


def _language(
    recogniser: Recogniser, audio: Audio, windows: Sequence[list[_Piece]], config: SpeechConfig, progress: Progress
) -> tuple[str | None, bool, str]:
    """(code, sure, why nothing should be heard): with a multilingual model; without one English is supposed."""
    if recogniser.multilingual:
        listener = recogniser
    elif weights.status(MULTILINGUAL).state != "missing":
        listener = load_recogniser("base", progress=progress)
    else:
        return "en", False, ""
    chosen = np.unique(np.linspace(0, len(windows) - 1, min(config.language_windows, len(windows))).round().astype(int))
    found = listener.languages([_sound(audio, windows[i]) for i in chosen])
    code, p = max(found.items(), key=lambda item: item[1])
    if recogniser.multilingual:
        return code, p >= config.language_probability, ""
    if found.get("en", 0.0) >= config.english_probability:
        return "en", True, ""
    if code != "en" and p >= config.language_probability:
        return code, True, f"the speech sounds like '{code}' ({p:.2f}) and {recogniser.name} knows only English"
    return "en", False, ""


# ---- hearing and believing


def _hear(
    recogniser: Recogniser, audio: Audio, windows: Sequence[list[_Piece]], language: str, progress: Progress
) -> Iterator[Heard]:
    total = sum(p.end - p.start for w in windows for p in w) / SAMPLE_RATE_HZ
    done = 0.0
    for first in range(0, len(windows), BATCH):
        some = windows[first : first + BATCH]
        progress(ProgressEvent("transcribing", done, total, "s"))
        yield from recogniser.hear([_sound(audio, w) for w in some], language)
        done += sum(p.end - p.start for w in some for p in w) / SAMPLE_RATE_HZ
    progress(ProgressEvent("transcribing", total, total, "s"))


def _believed(
    recogniser: Recogniser,
    language: str,
    sure: bool,
    windows: Sequence[list[_Piece]],
    heard: Sequence[Heard],
    audio: Audio,
    config: SpeechConfig,
) -> Transcript:
    """Utterances from the windows that can be believed; the others are left out and said."""
    lengths = [sum(p.end - p.start for p in w) / SAMPLE_RATE_HZ for w in windows]
    good = [_plausible(h, config) for h in heard]
    doubted = sum(length for length, ok in zip(lengths, good, strict=True) if not ok)
    words = [w.probability or 0.0 for h, ok in zip(heard, good, strict=True) if ok for w in h.words]
    certainty = float(np.mean(words)) if words else 0.0
    if not sure and (certainty < config.certainty or doubted > sum(lengths) / 2):
        what = "what is heard repeats itself or is unlikely" if not words else f"mean word probability {certainty:.2f}"
        return _left_out(
            recogniser, None, f"the speech is not clearly {_called(language)} to {recogniser.name} ({what})"
        )
    notes = [f"{doubted:.0f} s of speech were not understood: no words there"] if doubted else []
    utterances = []
    for window, found, ok in zip(windows, heard, good, strict=True):
        if ok:
            placed = [_placed(w, window, audio) for w in found.words]
            utterances += grouped([w for w in placed if w is not None], config)
    if not utterances and not notes:
        notes = ["no words were understood in the speech"]
    return Transcript(tuple(sorted(utterances, key=lambda u: u.start_s)), language, recogniser.name, tuple(notes))


def _called(language: str) -> str:
    return "English" if language == "en" else f"'{language}'"


def _plausible(heard: Heard, config: SpeechConfig) -> bool:
    if not heard.words:
        return True
    if heard.loops > config.hard_loops or (heard.loops > config.loops and heard.certainty < config.certainty):
        return False
    return heard.log_probability >= config.log_probability and heard.certainty >= config.window_certainty


def _placed(word: Word, window: Sequence[_Piece], audio: Audio) -> Word | None:
    """A word of a window on the recording's clock, kept inside the stretch that holds its middle."""
    middle = (word.start_s + word.end_s) / 2 * SAMPLE_RATE_HZ
    piece = next((p for p in reversed(window) if middle >= p.at), window[0])
    shift = (piece.start - piece.at) / SAMPLE_RATE_HZ
    low, high = piece.start / SAMPLE_RATE_HZ, piece.end / SAMPLE_RATE_HZ
    start = min(max(word.start_s + shift, low), high)
    end = min(max(word.end_s + shift, start), high)
    return replace(word, start_s=audio.start_s + start, end_s=audio.start_s + end)


def grouped(words: Sequence[Word], config: SpeechConfig) -> list[Utterance]:
    """Words as utterances: ended by . ! ?, by a pause, or cut at the longest pause when too long."""
    groups: list[list[Word]] = []
    for word in words:
        last = groups[-1][-1] if groups else None
        if last is None or last.text[-1] in ".!?。！？" or word.start_s - last.end_s >= config.pause_s:
            groups.append([])
        groups[-1].append(word)
    return [
        Utterance(g[0].start_s, max(w.end_s for w in g), join_words(w.text for w in g), tuple(g))
        for group in groups
        for g in _cut(group, config.longest_s)
    ]


def _cut(words: list[Word], longest_s: float) -> Iterator[list[Word]]:
    if len(words) < 2 or words[-1].end_s - words[0].start_s <= longest_s:
        yield words
        return
    pauses = [b.start_s - a.end_s for a, b in itertools.pairwise(words)]
    # the longest pause; among equal ones the one nearest the middle
    middle = len(words) / 2
    at = max(range(1, len(words)), key=lambda i: (round(pauses[i - 1], 2), -abs(i - middle)))
    yield from _cut(words[:at], longest_s)
    yield from _cut(words[at:], longest_s)
