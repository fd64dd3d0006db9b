"""Transcripts as JSON: Whisper, faster-whisper, WhisperX, whisper.cpp, transformers pipelines, the OpenAI API."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from affectrace.errors import TranscriptError
from affectrace.media.transcript_cues import CLOCK, seconds
from affectrace.media.utterance import Transcript, Utterance, Word, checked, in_order, interpolate, join_words

PAUSE_S = 0.7  # a bare list of words is cut into utterances at pauses this long, or after . ! ? (ours)
LANGUAGES = {  # names that Whisper's verbose output uses instead of codes; the others are kept as they are
    **{"english": "en", "german": "de", "french": "fr", "spanish": "es", "italian": "it", "portuguese": "pt"},
    **{"dutch": "nl", "polish": "pl", "russian": "ru", "chinese": "zh", "japanese": "ja", "korean": "ko"},
}


def read_json(text: str, path: Path) -> Transcript:
    """Segments with start, end and text, and words inside them where the file has them.

    Raises:
        TranscriptError: not JSON (with line and column), not a known form, or a wrong entry (with its place).
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise TranscriptError(
            f"is not JSON ({error.msg}, column {error.colno})",
            where=f"{path}, line {error.lineno}",
            hint="write it again; it may be cut off",
        ) from None
    name, segments = _segments(content, path)
    if name == "words":
        utterances = _grouped([w for i, s in enumerate(segments) if (w := _word(s, f"words[{i}]", path)) is not None])
    else:
        utterances = [_utterance(s, f"{name}[{i}]", path) for i, s in enumerate(segments)]
    language = content.get("language") if isinstance(content, Mapping) else None
    if language is None and isinstance(content, Mapping) and isinstance(content.get("result"), Mapping):
        language = content["result"].get("language")  # whisper.cpp
    if isinstance(language, str):
        language = LANGUAGES.get(language.lower(), language.lower())
    return Transcript(in_order(utterances), language if isinstance(language, str) else None, f"{path.name} (JSON)")


def _segments(content: Any, path: Path) -> tuple[str, Sequence[Any]]:
    if isinstance(content, list):
        return "segments", content
    if isinstance(content, Mapping):
        for name in ("segments", "transcription", "chunks", "words", "word_segments"):
            if isinstance(content.get(name), list):
                return ("words" if name == "word_segments" else name), content[name]
    raise TranscriptError(
        "is JSON without a list of segments",
        where=path,
        hint='a list of {"start": seconds, "end": seconds, "text": ...}, alone or under "segments", is expected',
    )


def _utterance(entry: Any, place: str, path: Path) -> Utterance:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("text"), str):
        raise _fail("has no text", place, path)
    start, end = _times(entry, place, path)
    given = entry.get("words") or []
    if not isinstance(given, list):
        raise _fail("words must be a list", place, path)
    words = [
        (str(w.get("word", w.get("text", ""))).strip(), _word(w, f"{place}.words[{k}]", path))
        for k, w in enumerate(given)
        if isinstance(w, Mapping)
    ]
    return Utterance.of(start, end, entry["text"], _filled([w for w in words if w[0]], start, end))


def _times(entry: Mapping[str, Any], place: str, path: Path) -> tuple[float, float]:
    start, end = entry.get("start"), entry.get("end")
    if isinstance(entry.get("timestamp"), list) and len(entry["timestamp"]) == 2:  # transformers
        start, end = entry["timestamp"]
        end = start if end is None else end
    elif isinstance(entry.get("offsets"), Mapping):  # whisper.cpp, milliseconds
        start, end = (_thousandth(entry["offsets"].get(k)) for k in ("from", "to"))
    elif isinstance(entry.get("timestamps"), Mapping):
        start, end = (_clock(entry["timestamps"].get(k)) for k in ("from", "to"))
    if not _number(start) or not _number(end):
        raise _fail("start and end must be seconds", place, path)
    assert start is not None
    assert end is not None
    if wrong := checked(float(start), float(end)):
        raise _fail(wrong, place, path)
    return float(start), float(end)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _thousandth(value: Any) -> float | None:
    return value / 1000 if _number(value) else None


def _clock(value: Any) -> float | None:
    match = re.fullmatch(CLOCK, value) if isinstance(value, str) else None
    return None if match is None else seconds(*match.groups())  # type: ignore[arg-type]


def _word(entry: Any, place: str, path: Path) -> Word | None:
    """A word with its times; None where the file gives it none (WhisperX: digits)."""
    if not isinstance(entry, Mapping):
        raise _fail("must be an object", place, path)
    text = str(entry.get("word", entry.get("text", ""))).strip()
    if "start" not in entry and "end" not in entry and "timestamp" not in entry:
        return None
    start, end = _times(entry, place, path)
    sure = entry.get("probability", entry.get("score"))
    return Word(start, end, text, float(sure) if _number(sure) and sure is not None else None)


def _filled(words: Sequence[tuple[str, Word | None]], start_s: float, end_s: float) -> list[Word]:
    """Words without times share the gap between their timed neighbours."""
    done: list[Word] = []
    i = 0
    while i < len(words):
        timed = words[i][1]
        if timed is not None:
            done.append(timed)
            i += 1
            continue
        until = next((k for k in range(i, len(words)) if words[k][1] is not None), len(words))
        after = words[until][1] if until < len(words) else None
        gap_start = done[-1].end_s if done else start_s
        gap_end = max(gap_start, after.start_s if after is not None else end_s)
        done += interpolate(gap_start, gap_end, [text for text, _ in words[i:until]])
        i = until
    return done


def _grouped(words: Sequence[Word]) -> list[Utterance]:
    """A bare list of words as utterances."""
    groups: list[list[Word]] = []
    for word in sorted((w for w in words if w.text), key=lambda w: w.start_s):
        last = groups[-1][-1] if groups else None
        if last is None or word.start_s - last.end_s >= PAUSE_S or last.text[-1] in ".!?。！？":
            groups.append([])
        groups[-1].append(word)
    return [Utterance.of(g[0].start_s, max(w.end_s for w in g), join_words(w.text for w in g), g) for g in groups]


def _fail(what: str, place: str, path: Path) -> TranscriptError:
    return TranscriptError(what, where=f"{path}, {place}", hint="correct or delete this entry")
