"""Transcripts: timed words and utterances from MAVEN lines, subtitles and Whisper JSON.

The content of a file decides its format. Words without times of their own share their utterance's time by number of
characters and are marked. The language of a text is identified by py3langid (naive Bayes on byte n-grams, Lui & Baldwin
2011); its thresholds were measured on English and 15 other languages (docs/log.md).
"""

from __future__ import annotations

import html
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pysubs2

from affectrace.errors import TranscriptError

FORMATS = "lines like `[10.5s - 15.2s]: text`, SRT, WebVTT, ASS, TTML or Whisper JSON"
LARGEST = 200_000_000  # bytes; a day of speech with word times is a tenth of it
PAUSE_S = 0.8  # a pause this long ends an utterance (ours)
LONGEST_S = 15.0  # a longer utterance is cut at its longest pause (ours)
_LATEST_S = 1e9

# Language identification (ours, docs/log.md)
ENGLISH, NOT_ENGLISH = 0.5, 0.01  # a text is English from this probability of English, and is not below this one
TEXT_WORDS = 4  # least number of different words of a transcript; of shorter ones the language stays unknown
UTTERANCE_WORDS = 7  # likewise of an utterance whose language is identified by itself
MOST_TEXT = 100_000  # characters read of a transcript as a whole: 10 ms
# Scripts written without spaces: one character counts as a word, trailing punctuation stays with it
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f"
_UNSPACED_END, _UNSPACED_START = re.compile(rf"[{_UNSPACED}、。，！？：；…]$"), re.compile(rf"[{_UNSPACED}]")
_WORD = re.compile(rf"[{_UNSPACED}][、。，！？：；…]*|[^\s{_UNSPACED}]+")


@dataclass(frozen=True)
class Word:
    """One spoken word, without surrounding space, with its punctuation; times in seconds on the recording's clock.

    probability: the recognizer's, None if unknown. interpolated: its times were not measured but shared out inside the
    utterance by number of characters.
    """

    start_s: float
    end_s: float
    text: str
    probability: float | None = None
    interpolated: bool = False


@dataclass(frozen=True)
class Utterance:
    """A stretch of speech; its words in order of start, usually inside it.

    language: ISO 639-1 code if it was identified by itself, None: the transcript's.
    """

    start_s: float
    end_s: float
    text: str
    words: tuple[Word, ...] = ()
    language: str | None = None

    @classmethod
    def of(cls, start_s: float, end_s: float, text: str, words: Sequence[Word] = ()) -> Utterance:
        """An utterance with interpolated words unless they are given."""
        text = " ".join(text.split())
        return cls(start_s, end_s, text, tuple(words) or interpolate(start_s, end_s, split_words(text)))

    def clipped(self, start_s: float, end_s: float) -> Utterance:
        """The part inside a span. The text stays whole: half a sentence would mean something else."""
        words = tuple(
            replace(w, start_s=max(w.start_s, start_s), end_s=min(w.end_s, end_s))
            for w in self.words
            if w.start_s < end_s and w.end_s > start_s
        )
        return replace(self, start_s=max(self.start_s, start_s), end_s=min(self.end_s, end_s), words=words)


@dataclass(frozen=True)
class Transcript:
    """What is said in a recording: utterances in order of start; those of several speakers may overlap.

    language: ISO 639-1 code, None if unknown. source: file and format, or the recognizer. notes: for a user.
    """

    utterances: tuple[Utterance, ...]
    language: str | None = None
    source: str = ""
    notes: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[Word, ...]:
        """All words, in order of utterances."""
        return tuple(w for u in self.utterances for w in u.words)

    def language_of(self, utterance: Utterance) -> str:
        """Language of one of its utterances; English where it is unknown."""
        return utterance.language or self.language or "en"

    def within(self, start_s: float, end_s: float, *, tolerance_s: float = 1.0) -> Transcript:
        """The part that fits a recording from `start_s` to `end_s`; more than `tolerance_s` beyond it gives a note.

        Raises:
            TranscriptError: more than half of the utterances lie outside: it belongs to another recording.
        """
        if not self.utterances:
            return self
        inside = [u.clipped(start_s, end_s) for u in self.utterances if u.start_s < end_s and u.end_s > start_s]
        n_outside = len(self.utterances) - len(inside)
        last_s = max(u.end_s for u in self.utterances)
        if n_outside > len(self.utterances) / 2:
            raise TranscriptError(
                f"does not fit the recording: {n_outside} of {len(self.utterances)} utterances lie outside its "
                f"{start_s:.1f} to {end_s:.1f} s (they run from {self.utterances[0].start_s:.1f} to {last_s:.1f} s)",
                where=self.source or None,
                hint="check that it belongs to this recording and that its times are in the unit of its format",
            )
        notes = self.notes
        if n_outside:
            notes += (f"{n_outside} utterances of the transcript lie outside the recording: left out",)
        elif last_s > end_s + tolerance_s:
            notes += (f"the transcript runs {last_s - end_s:.1f} s past the end of the recording: shortened",)
        return replace(self, utterances=tuple(inside), notes=notes)


def identified(transcript: Transcript) -> Transcript:
    """The transcript with the language of its whole text, and of each utterance that is long enough by itself.

    Where several languages make the whole unclear, that of the most words; None if it is unclear all the same.
    """
    text = " ".join(u.text for u in transcript.utterances)[:MOST_TEXT]
    if _n_different_words(text) < TEXT_WORDS:
        return transcript
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)  # 75 MB, therefore not kept
    whole = _language(identifier, text)
    found = [
        _language(identifier, u.text) if _n_different_words(u.text) >= UTTERANCE_WORDS else None
        for u in transcript.utterances
    ]
    utterances = tuple(replace(u, language=code) for u, code in zip(transcript.utterances, found, strict=True))
    if whole is None:
        n_words = Counter(u.language for u in utterances if u.language for _ in u.words)
        whole = max(n_words, key=n_words.__getitem__, default=None)
    return replace(transcript, language=whole, utterances=utterances)


def _n_different_words(text: str) -> int:
    return len({word.lower() for word in split_words(text) if any(map(str.isalpha, word))})


def _language(identifier: Any, text: str) -> str | None:
    """ISO 639-1 code of a text, None if it is hardly English but may be."""
    likely = {code: p for code, p in identifier.rank(text) if len(code) == 2}  # no English creoles
    english = likely["en"] / sum(likely.values())
    if english >= ENGLISH:
        return "en"
    return max(likely, key=likely.__getitem__) if english < NOT_ENGLISH else None


def split_words(text: str) -> list[str]:
    """Words of a text: by spaces, and by characters where a script has none."""
    return _WORD.findall(text)


def join_words(words: Iterable[str]) -> str:
    """A text from words: a space between two, except inside scripts that have none."""
    text = ""
    for word in words:
        glued = not text or (_UNSPACED_END.search(text[-1:]) and _UNSPACED_START.match(word))
        text += word if glued else f" {word}"
    return text


def interpolate(start_s: float, end_s: float, words: Sequence[str]) -> tuple[Word, ...]:
    """Words placed one after the other from `start_s` to `end_s`, each as long as its share of characters."""
    ends = list(itertools.accumulate(map(len, words)))
    times = [start_s, *(start_s + n / ends[-1] * (end_s - start_s) for n in ends[:-1]), end_s]
    return tuple(Word(*span, text, interpolated=True) for span, text in zip(itertools.pairwise(times), words))


def group_words(words: Sequence[Word]) -> list[Utterance]:
    """Words as utterances: ended by . ! ?, by a pause, or cut at the longest pause when too long."""
    groups: list[list[Word]] = []
    for word in words:
        last = groups[-1][-1] if groups else None
        if last is None or last.text[-1] in ".!?。！？" or word.start_s - last.end_s >= PAUSE_S:
            groups.append([])
        groups[-1].append(word)
    return [
        Utterance(g[0].start_s, max(w.end_s for w in g), join_words(w.text for w in g), tuple(g))
        for group in groups
        for g in _cut(group)
    ]


def _cut(words: list[Word]) -> Iterator[list[Word]]:
    """Pieces of at most LONGEST_S, cut at the longest pause; among equal ones at the one nearest the middle."""
    waiting = [words]
    while waiting:
        words = waiting.pop()
        if len(words) < 2 or words[-1].end_s - words[0].start_s <= LONGEST_S:
            yield words
            continue
        pauses = [round(b.start_s - a.end_s, 2) for a, b in itertools.pairwise(words)]
        at = max(range(1, len(words)), key=lambda i: (pauses[i - 1], -abs(i - len(words) / 2)))
        waiting += [words[at:], words[:at]]


# ---- files


def read_transcript(path: str | Path) -> Transcript:
    """A transcript file (raises TranscriptError with the line or entry that is wrong)."""
    path = Path(path)
    text, notes = _text(path)
    try:
        form, utterances, language = _parse(text)
    except RecursionError:
        raise TranscriptError("is nested too deeply", where=path, hint=f"expected {FORMATS}") from None
    except ValueError as error:
        raise TranscriptError(str(error), where=path, hint=f"correct it; expected {FORMATS}") from None
    utterances = sorted((u for u in utterances if u.text), key=lambda u: (u.start_s, u.end_s))
    if form == "WebVTT" and "\nX-TIMESTAMP-MAP" in text[:2000]:
        notes.append("the transcript's X-TIMESTAMP-MAP is ignored: its times are taken as they are")
    if not utterances:
        notes.append("the transcript holds no words")
    return Transcript(tuple(utterances), language, f"{path.name} ({form})", tuple(notes))


def _text(path: Path) -> tuple[str, list[str]]:
    """The file's text, and a note if its encoding was guessed."""
    try:
        if path.stat().st_size > LARGEST:
            raise TranscriptError("is too large for a transcript", where=path, hint=f"expected {FORMATS}")
        raw = path.read_bytes()
    except OSError as error:
        raise TranscriptError(f"cannot be read ({error.strerror})", where=path, hint="check the path") from None
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16", errors="replace"), []
    if not raw.strip() or b"\x00" in raw:
        what = "is not text" if raw.strip() else "is empty"
        raise TranscriptError(what, where=path, hint=f"expected {FORMATS}; leave the option out to transcribe")
    try:
        return raw.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace"), ["the transcript is not UTF-8 and was read as Windows-1252"]


def _parse(text: str) -> tuple[str, list[Utterance], str | None]:
    """Format, utterances and language (raises ValueError)."""
    lines = text.splitlines()
    first = next((line.strip() for line in lines if line.strip()), "")
    if first.startswith(("[Script", "[V4")):
        return "ASS", _read_subtitles(text, "ass"), None
    if first.startswith("{") or (first.startswith("[") and not _LINE.fullmatch(first)):
        return "JSON", *_read_json(json.loads(text))
    if first.startswith("["):
        return "lines", list(_read_lines(lines)), None
    if first.startswith("<"):
        return "TTML", _read_subtitles(text, "ttml"), None
    if first.startswith("WEBVTT") or any(_TIMING.fullmatch(line) for line in lines[:20]):
        form = "WebVTT" if first.startswith("WEBVTT") else "SRT"
        return form, [_cue_utterance(*cue) for cue in _unrolled(_cues(lines))], None
    raise ValueError(f"line 1: is not a transcript with times ({first[:60]!r})")


def _span(start_s: float, end_s: float, place: str) -> tuple[float, float]:
    if not 0 <= start_s <= end_s <= _LATEST_S:  # nor NaN
        raise ValueError(f"{place}: times must be finite, not negative and in order, got {start_s:g} to {end_s:g} s")
    return start_s, end_s


# ---- lines and cues. Every pattern is matched in time linear in the length of its line, not quadratic.

_STAMP = r"(?:(\d{1,6}):)?(\d{1,2}):(\d{2})[.,](\d{1,3})"
_TIME = r"(?:\d{1,6}:)?\d{1,2}:\d{2}[.,]\d{1,3}|\d{1,12}(?:\.\d{1,12})?"
_LINE = re.compile(rf"\s*+\[\s*+({_TIME})\s*+s?\s*+(?:-->|-|–|—|to)\s*+({_TIME})\s*+s?\s*+\]\s*+:?\s*+(.*)")
_TIMING = re.compile(rf"\s*+({_TIME})\s*+-->\s*+({_TIME})(?:\s.*)?")
_COMMENT = re.compile(r"(NOTE|STYLE|REGION|WEBVTT)(\s|$)")
_INLINE = re.compile(rf"<({_TIME})>")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>|</?\d[^<>]*>|\{\\[^{}]*\}")
Cue = tuple[float, float, list[str]]
"""Start and end in seconds, lines of text."""


def _seconds(text: str) -> float:
    """A clock time or a number of seconds."""
    match = re.fullmatch(_STAMP, text)
    if match is None:
        return float(text)
    hours, minutes, seconds, fraction = match.groups()
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction.ljust(3, "0")) / 1000


def _read_lines(lines: Sequence[str]) -> Iterator[Utterance]:
    """Lines `[start - end]: text` in seconds or clock times, as in MAVEN's transcripts and Whisper's console."""
    for number, line in enumerate(lines, 1):
        if match := _LINE.fullmatch(line):
            yield Utterance.of(*_span(_seconds(match[1]), _seconds(match[2]), f"line {number}"), match[3])
        elif line.strip():
            raise ValueError(f"line {number}: expected `[10.5s - 15.2s]: text`, got {line.strip()[:60]!r}")


def _cues(lines: Sequence[str]) -> list[Cue]:
    """Cues of SRT and WebVTT. Numbers, names, comments and styles are dropped; a text may contain empty lines."""
    cues: list[Cue] = []
    comment, block_starts = False, True
    for number, line in enumerate(map(str.strip, lines), 1):
        timing = _TIMING.fullmatch(line)
        if block_starts:
            comment = _COMMENT.match(line) is not None
        if timing is not None:
            cues.append((*_span(_seconds(timing[1]), _seconds(timing[2]), f"line {number}"), []))
            comment = False
        elif line and not comment:
            if "-->" in line:
                raise ValueError(f"line {number}: not a time like 00:00:01,000 --> 00:00:02,500: {line[:60]!r}")
            named = block_starts or line.isdigit()
            if not (named and "-->" in "".join(lines[number : number + 1])):  # else the next cue's number or name
                if not cues:
                    raise ValueError(f"line {number}: expected a number or a time, got {line[:60]!r}")
                cues[-1][2].append(line)
        block_starts = not line
    return cues


def _unrolled(cues: list[Cue]) -> Iterator[Cue]:
    """Captions that roll up (YouTube's) repeat the line above in the next cue; each line is kept once."""
    rolling = any(_INLINE.search(line) for _, _, lines in cues for line in lines)
    above = ""
    for start_s, end_s, lines in cues:
        if rolling:
            lines = [line for line in lines if _plain(line)]
            if lines and _plain(lines[0]) == above and not _INLINE.search(lines[0]):
                lines = lines[1:]
            above = _plain(lines[-1]) if lines else above
        yield start_s, end_s, lines


def _cue_utterance(start_s: float, end_s: float, lines: Sequence[str]) -> Utterance:
    """Words between times inside a cue, `One <00:00:01.500>two`, have those; several between two times share them."""
    text, words = " ".join(lines), []
    parts = _INLINE.split(text)  # text, time, text, time, text ...
    if len(parts) > 1:
        times = [start_s, *(min(max(_seconds(t), start_s), end_s) for t in parts[1::2]), end_s]
        for part, (start, end) in zip(parts[::2], itertools.pairwise(times), strict=True):
            inside = interpolate(start, max(start, end), split_words(_plain(part)))
            words += [replace(w, interpolated=len(inside) > 1) for w in inside]
    return Utterance.of(start_s, end_s, _plain(text), words)


def _plain(text: str) -> str:
    """Without tags, entities decoded, spaces collapsed."""
    return " ".join(html.unescape(_TAG.sub("", text)).replace("\u200e", "").replace("\u200f", "").split())


def _read_subtitles(text: str, form: str) -> list[Utterance]:
    """ASS, SSA and TTML."""
    try:
        events = pysubs2.SSAFile.from_string(text, format_=form).events
    except Exception as error:  # damaged files raise anything in the parsers
        what = f"is not {form.upper()} that can be read ({type(error).__name__}: {str(error)[:100]})"
        raise ValueError(what) from None
    spoken = [event for event in events if not event.is_comment and not event.is_drawing]
    return [
        Utterance.of(*_span(e.start / 1000, e.end / 1000, f"cue {i}"), _plain(e.plaintext))
        for i, e in enumerate(spoken, 1)
    ]


# ---- JSON: Whisper, faster-whisper, WhisperX, whisper.cpp, transformers pipelines, the OpenAI API

_LISTS = ("segments", "transcription", "chunks", "words", "word_segments")
_LANGUAGE_CODES = {  # names that Whisper's verbose output uses instead of codes; others are kept
    **{"english": "en", "german": "de", "french": "fr", "spanish": "es", "italian": "it", "portuguese": "pt"},
    **{"dutch": "nl", "polish": "pl", "russian": "ru", "chinese": "zh", "japanese": "ja", "korean": "ko"},
}


def _read_json(content: Any) -> tuple[list[Utterance], str | None]:
    """Segments with start, end and text, and the words inside them if there are any; or words alone."""
    about = content if isinstance(content, Mapping) else {"segments": content}
    name = next((n for n in _LISTS if isinstance(about.get(n), list)), None)
    if name is None:
        what = 'is JSON without a list of {"start": seconds, "end": seconds, "text": ...}, alone or under "segments"'
        raise ValueError(what)
    if name in ("words", "word_segments"):
        words = _json_words(about[name], 0.0, 0.0, name)
        utterances = group_words(sorted(words, key=lambda w: w.start_s))
    else:
        utterances = [_json_utterance(entry, f"{name}[{i}]") for i, entry in enumerate(about[name])]
    whisper_cpp = about.get("result")
    language = about.get("language", whisper_cpp.get("language") if isinstance(whisper_cpp, Mapping) else None)
    return utterances, _LANGUAGE_CODES.get(language.lower(), language.lower()) if isinstance(language, str) else None


def _json_utterance(entry: Any, place: str) -> Utterance:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("text"), str):
        raise ValueError(f"{place}: has no text")
    start_s, end_s = _json_span(entry, place)
    words = _json_words(entry.get("words") or [], start_s, end_s, f"{place}.words")
    return Utterance.of(start_s, end_s, entry["text"], words)


def _json_words(entries: Any, start_s: float, end_s: float, place: str) -> list[Word]:
    """Words with their times; those without (WhisperX: digits) share the gap between their neighbours."""
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError(f"{place}: must be a list of objects")
    words: list[Word] = []
    untimed: list[str] = []
    for i, entry in enumerate([*entries, {"start": end_s, "end": end_s}]):  # the last one ends the last gap
        text = str(entry.get("word", entry.get("text", ""))).strip()
        if not {"start", "end", "timestamp"} & set(entry):
            untimed += [text] if text else []
            continue
        start, end = _json_span(entry, f"{place}[{i}]")
        after_s = words[-1].end_s if words else start_s
        words += interpolate(after_s, max(after_s, start), untimed)
        untimed = []
        probability = entry.get("probability", entry.get("score"))
        if text:
            words.append(Word(start, end, text, float(probability) if isinstance(probability, int | float) else None))
    return words


def _json_span(entry: Mapping[str, Any], place: str) -> tuple[float, float]:
    """Seconds of an entry with start and end, `timestamp` (transformers) or `offsets` in ms (whisper.cpp)."""
    try:
        if "offsets" in entry:
            start, end = (entry["offsets"][side] / 1000 for side in ("from", "to"))
        elif "timestamp" in entry:
            start, end = entry["timestamp"]
            end = start if end is None else end
        else:
            start, end = entry["start"], entry["end"]
        start_s, end_s = float(start), float(end)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise ValueError(f"{place}: start and end must be seconds") from None
    return _span(start_s, end_s, place)
