"""Words and when they were said: transcripts and their files (MAVEN's lines, subtitles, Whisper's JSON).

The content of a file decides its form. Words without times of their own are placed by number of characters and marked.
"""

from __future__ import annotations

import html
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import pysubs2

from affectrace.errors import TranscriptError

FORMS = "lines like `[10.5s - 15.2s]: text`, SRT, WebVTT, ASS, TTML or Whisper JSON"
LARGEST = 200_000_000  # bytes; a day of speech with word times is a tenth of it
PAUSE_S = 0.8  # a pause this long ends an utterance (ours)
LONGEST_S = 15.0  # an utterance is cut at its longest pause beyond (ours)
# Scripts written without spaces: one character counts as a word, trailing punctuation stays with it
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f"
_UNSPACED_END, _UNSPACED_START = re.compile(rf"[{_UNSPACED}、。，！？：；…]$"), re.compile(rf"[{_UNSPACED}]")
_WORD = re.compile(rf"[{_UNSPACED}][、。，！？：；…]*|[^\s{_UNSPACED}]+")


@dataclass(frozen=True)
class Word:
    """One spoken word.

    start_s, end_s: seconds on the recording's clock. text: without surrounding space, punctuation kept.
    probability: the recogniser's own, None where it gave none.
    interpolated: the times were not measured but shared out inside the utterance by number of characters.
    """

    start_s: float
    end_s: float
    text: str
    probability: float | None = None
    interpolated: bool = False


@dataclass(frozen=True)
class Utterance:
    """A stretch of speech. start_s <= end_s; words in order of start, inside it unless the source says otherwise."""

    start_s: float
    end_s: float
    text: str
    words: tuple[Word, ...] = ()

    @classmethod
    def of(cls, start_s: float, end_s: float, text: str, words: Sequence[Word] = ()) -> Utterance:
        """An utterance whose words, where not given, have their times shared out by number of characters."""
        text = " ".join(text.split())
        return cls(start_s, end_s, text, tuple(words) or interpolate(start_s, end_s, split_words(text)))

    def clipped(self, start_s: float, end_s: float) -> Utterance:
        """Its part of a stretch. The text stays whole: half a sentence would mean something else."""
        words = tuple(
            replace(w, start_s=max(w.start_s, start_s), end_s=min(w.end_s, end_s))
            for w in self.words
            if w.start_s < end_s and w.end_s > start_s
        )
        return replace(self, start_s=max(self.start_s, start_s), end_s=min(self.end_s, end_s), words=words)


@dataclass(frozen=True)
class Transcript:
    """What is said in a recording.

    utterances: in order of start; those of several speakers may overlap.
    language: ISO 639-1 code, None where unknown. source: file and format, or the recogniser.
    notes: what a person should know (words left out and why, utterances outside the recording, ...).
    """

    utterances: tuple[Utterance, ...]
    language: str | None = None
    source: str = ""
    notes: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[Word, ...]:
        """All words, in order of utterances."""
        return tuple(w for u in self.utterances for w in u.words)

    def within(self, start_s: float, end_s: float, *, tolerance_s: float = 1.0) -> Transcript:
        """This transcript as far as it fits a recording from `start_s` to `end_s` seconds.

        What crosses the end by at most `tolerance_s` is shortened without a word; what lies outside is left out with
        a note.

        Raises:
            TranscriptError: more than half of the utterances lie outside: it belongs to another recording.
        """
        if not self.utterances:
            return self
        inside = [u for u in self.utterances if u.start_s < end_s and u.end_s > start_s]
        outside = len(self.utterances) - len(inside)
        last = max(u.end_s for u in self.utterances)
        if outside > len(self.utterances) / 2:
            raise TranscriptError(
                f"does not fit the recording: {outside} of {len(self.utterances)} utterances lie outside its "
                f"{end_s - start_s:.1f} s ({start_s:.1f} to {end_s:.1f} s; utterances run from "
                f"{self.utterances[0].start_s:.1f} to {last:.1f} s)",
                where=self.source or None,
                hint="check that it belongs to this recording and that its times are in the unit its format demands",
            )
        notes = self.notes
        if outside:
            notes += (f"{outside} utterances of the transcript lie outside the recording: left out",)
        elif last > end_s + tolerance_s:
            notes += (f"the transcript runs {last - end_s:.1f} s past the end of the recording: shortened",)
        return replace(self, utterances=tuple(u.clipped(start_s, end_s) for u in inside), notes=notes)


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
    """A transcript file.

    Raises:
        TranscriptError: missing, empty, not text, of no known form, or wrong in some line, which is named.
    """
    path = Path(path)
    text, notes = _text(path)
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "").strip()
    language = None
    if not first:
        raise TranscriptError("is empty", where=path, hint=f"expected {FORMS}; leave the option out to transcribe")
    if first[0] == "{" or (first[0] == "[" and not _LINE.fullmatch(first) and not first.startswith(_ASS)):
        form, (utterances, language) = "JSON", _read_json(text, path)
    elif first[0] == "[" and not first.startswith(_ASS):
        form, utterances = "lines", list(_read_lines(lines, path))
    elif first.startswith("WEBVTT") or any(_TIMING.fullmatch(line) for line in lines[:20]):
        form = "WebVTT" if first.startswith("WEBVTT") else "SRT"
        utterances = [_of_cue(cue) for cue in _unrolled(list(_cues(lines, path)))]
        if form == "WebVTT" and any(line.startswith("X-TIMESTAMP-MAP") for line in lines[:20]):
            notes.append("the transcript's X-TIMESTAMP-MAP is not applied: its times are taken as they stand")
    else:
        form, utterances = _read_subtitles(text, first, path)
    utterances = sorted((u for u in utterances if u.text), key=lambda u: (u.start_s, u.end_s))
    notes += [] if utterances else ["the transcript holds no words"]
    return Transcript(tuple(utterances), language, f"{path.name} ({form})", tuple(notes))


def _text(path: Path) -> tuple[str, list[str]]:
    """The file's text, and a note where its encoding was guessed."""
    try:
        if path.stat().st_size > LARGEST:
            raise TranscriptError("is too large for a transcript", where=path, hint=f"expected {FORMS}")
        raw = path.read_bytes()
    except FileNotFoundError:
        raise TranscriptError("no such file", where=path, hint="check the path of the transcript") from None
    except OSError as error:
        raise TranscriptError(f"cannot be read ({error.strerror})", where=path, hint="check the path") from None
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16", errors="replace"), []
    if b"\x00" in raw:
        raise TranscriptError("is not text", where=path, hint=f"expected {FORMS}")
    try:
        return raw.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace"), ["the transcript is not UTF-8 and was read as Windows-1252"]


def _fail(what: str, place: str, path: Path, hint: str = "correct or delete it") -> NoReturn:
    raise TranscriptError(what, where=f"{path}, {place}", hint=hint)


def _check(start_s: float, end_s: float, place: str, path: Path) -> None:
    if not (math.isfinite(start_s) and math.isfinite(end_s)):
        _fail("times must be finite", place, path)
    if start_s < 0:
        _fail(f"starts before zero ({start_s:g} s)", place, path)
    if end_s < start_s:
        _fail(f"ends ({end_s:g} s) before it starts ({start_s:g} s)", place, path)


# ---- lines and cues. Every pattern is matched in time that grows with the length of its line, not with its square.

_STAMP = r"(?:(\d{1,6}):)?(\d{1,2}):(\d{2})[.,](\d{1,3})"
_TIME = r"(?:\d{1,6}:)?\d{1,2}:\d{2}[.,]\d{1,3}|\d{1,12}(?:\.\d{1,12})?"
_LINE = re.compile(rf"\s*+\[\s*+({_TIME})\s*+s?\s*+(?:-->|-|–|—|to)\s*+({_TIME})\s*+s?\s*+\]\s*+:?\s*+(.*)")
_TIMING = re.compile(rf"\s*+({_TIME})\s*+-->\s*+({_TIME})(?:\s.*)?")
_ASS = ("[Script", "[V4")
_INLINE = re.compile(rf"<({_TIME})>")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>|</?\d[^<>]*>|\{\\[^{}]*\}")


def _seconds(text: str) -> float:
    """A clock time or a number of seconds."""
    match = re.fullmatch(_STAMP, text)
    if match is None:
        return float(text)
    hours, minutes, seconds, fraction = match.groups()
    return int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction.ljust(3, "0")) / 1000


def _read_lines(lines: Sequence[str], path: Path) -> Iterator[Utterance]:
    """Lines `[start - end]: text`, seconds or clock times; the form of MAVEN's transcripts and of Whisper's console."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            _fail(f"expected `[10.5s - 15.2s]: text`, got {line.strip()[:60]!r}", f"line {number}", path)
        start, end = _seconds(match[1]), _seconds(match[2])
        _check(start, end, f"line {number}", path)
        yield Utterance.of(start, end, match[3])


@dataclass(frozen=True)
class _Cue:
    start_s: float
    end_s: float
    lines: list[str]


def _cues(lines: Sequence[str], path: Path) -> Iterator[_Cue]:
    """Cues of SRT and WebVTT. Numbers, names, comments and styles are dropped; a text may hold empty lines."""
    cue, comment = None, False
    for number, line in enumerate(lines, 1):
        after_empty = number == 1 or not lines[number - 2].strip()
        if after_empty:
            comment = bool(re.match(r"(NOTE|STYLE|REGION|WEBVTT)(\s|$)", line))
        if "-->" in line and not (comment and not _TIMING.fullmatch(line)):
            match = _TIMING.fullmatch(line)
            if match is None:
                _fail(
                    f"not a time: {line.strip()[:60]!r}", f"line {number}", path, "write 00:00:01,000 --> 00:00:02,500"
                )
            start, end = _seconds(match[1]), _seconds(match[2])
            _check(start, end, f"line {number}", path)
            if cue is not None:
                yield cue
            cue, comment = _Cue(start, end, []), False
        elif not comment:
            name = (after_empty or line.strip().isdigit()) and "-->" in "".join(lines[number : number + 1])
            if name or not line.strip():
                continue
            if cue is None:
                _fail(f"expected a number or a time, got {line.strip()[:60]!r}", f"line {number}", path)
            cue.lines.append(line.strip())
    if cue is not None:
        yield cue


def _unrolled(cues: list[_Cue]) -> list[_Cue]:
    """Captions that roll up (YouTube's) repeat the line above in the next cue; each is kept where it is new."""
    if not any(_INLINE.search(line) for cue in cues for line in cue.lines):
        return cues
    kept, shown = [], ""
    for cue in cues:
        lines = [line for line in cue.lines if _plain(line)]
        if lines and _plain(lines[0]) == shown and not _INLINE.search(lines[0]):
            lines = lines[1:]
        if lines:
            kept.append(replace(cue, lines=lines))
            shown = _plain(lines[-1])
    return kept


def _of_cue(cue: _Cue) -> Utterance:
    """Words between times inside a cue, `One <00:00:01.500>two`, have those; several between two times share them."""
    text, words = " ".join(cue.lines), []
    parts = _INLINE.split(text)  # text, time, text, time, text ...
    if len(parts) > 1:
        times = [cue.start_s, *(min(max(_seconds(t), cue.start_s), cue.end_s) for t in parts[1::2]), cue.end_s]
        for part, start, end in zip(parts[::2], times, times[1:], strict=False):
            inside = interpolate(start, max(start, end), split_words(_plain(part)))
            words += [replace(w, interpolated=len(inside) > 1) for w in inside]
    return Utterance.of(cue.start_s, cue.end_s, _plain(text), words)


def _plain(text: str) -> str:
    """Without tags, entities decoded, spaces collapsed."""
    return " ".join(html.unescape(_TAG.sub("", text)).replace("\u200e", "").replace("\u200f", "").split())


def _read_subtitles(text: str, first: str, path: Path) -> tuple[str, list[Utterance]]:
    """ASS, SSA and TTML."""
    form = {"[": "ass", "<": "ttml"}.get(first[0])
    if form is None:
        _fail(f"is no transcript with times ({first[:60]!r})", "line 1", path, f"expected {FORMS}")
    try:
        events = pysubs2.SSAFile.from_string(text, format_=form).events
    except Exception as error:  # whatever the parser of a damaged file comes to
        raise TranscriptError(
            f"is no {form.upper()} that can be read ({type(error).__name__}: {str(error)[:100]})",
            where=path,
            hint=f"expected {FORMS}",
        ) from None
    utterances = []
    for i, event in enumerate(e for e in events if not e.is_comment and not e.is_drawing):
        _check(event.start / 1000, event.end / 1000, f"cue {i + 1}", path)
        utterances.append(Utterance.of(event.start / 1000, event.end / 1000, _plain(event.plaintext)))
    return form.upper(), utterances


# ---- JSON: Whisper, faster-whisper, WhisperX, whisper.cpp, transformers pipelines, the OpenAI API

LANGUAGES = {  # names that Whisper's verbose output uses instead of codes; the others are kept as they are
    **{"english": "en", "german": "de", "french": "fr", "spanish": "es", "italian": "it", "portuguese": "pt"},
    **{"dutch": "nl", "polish": "pl", "russian": "ru", "chinese": "zh", "japanese": "ja", "korean": "ko"},
}
_Times = tuple[float, float]


def _read_json(text: str, path: Path) -> tuple[list[Utterance], str | None]:
    """Segments with start, end and text, and words inside them where the file has them; or words alone."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        what = f"is not JSON ({error.msg}, column {error.colno})"
        _fail(what, f"line {error.lineno}", path, "write it again; it may be cut off")
    except (RecursionError, ValueError):  # ValueError: a number of thousands of digits
        raise TranscriptError("is no transcript: too deep, or with endless numbers", where=path, hint=FORMS) from None
    about = content if isinstance(content, Mapping) else {"segments": content}
    names = ("segments", "transcription", "chunks", "words", "word_segments")
    name = next((n for n in names if isinstance(about.get(n), list)), None)
    if name is None:
        hint = 'a list of {"start": seconds, "end": seconds, "text": ...}, alone or under "segments", is expected'
        raise TranscriptError("is JSON without a list of segments", where=path, hint=hint)
    entries = [(f"{name}[{i}]", entry) for i, entry in enumerate(about[name])]
    if name in ("words", "word_segments"):
        words = _json_words(entries, 0.0, 0.0, path)
        utterances = group_words(sorted((w for w in words if w.text), key=lambda w: w.start_s))
    else:
        utterances = [_json_utterance(entry, place, path) for place, entry in entries]
    whisper_cpp = about.get("result")
    language = about.get("language", whisper_cpp.get("language") if isinstance(whisper_cpp, Mapping) else None)
    return utterances, LANGUAGES.get(language.lower(), language.lower()) if isinstance(language, str) else None


def _json_utterance(entry: Any, place: str, path: Path) -> Utterance:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("text"), str):
        _fail("has no text", place, path)
    times = _json_times(entry, place, path)
    words = entry.get("words") or []
    if not isinstance(words, list):
        _fail("words must be a list", place, path)
    timed = _json_words([(f"{place}.words[{k}]", w) for k, w in enumerate(words)], *times, path)
    return Utterance.of(*times, entry["text"], timed)


def _json_words(entries: Sequence[tuple[str, Any]], start_s: float, end_s: float, path: Path) -> list[Word]:
    """Words with their times; those without (WhisperX: digits) share the gap between their neighbours."""
    words: list[Word] = []
    waiting: list[str] = []

    def place_waiting(until_s: float) -> None:
        after_s = words[-1].end_s if words else start_s
        words.extend(interpolate(after_s, max(after_s, until_s), waiting))
        waiting.clear()

    for place, entry in entries:
        if not isinstance(entry, Mapping):
            _fail("must be an object", place, path)
        text = str(entry.get("word", entry.get("text", ""))).strip()
        if not text:
            continue
        if not {"start", "end", "timestamp"} & set(entry):
            waiting.append(text)
            continue
        start, end = _json_times(entry, place, path)
        place_waiting(start)
        words.append(Word(start, end, text, _number(entry.get("probability", entry.get("score")))))
    place_waiting(end_s)
    return words


def _json_times(entry: Mapping[str, Any], place: str, path: Path) -> _Times:
    pair = entry.get("timestamp")
    start, end = _number(entry.get("start")), _number(entry.get("end"))
    if isinstance(pair, list) and len(pair) == 2:  # transformers
        start, end = _number(pair[0]), _number(pair[0] if pair[1] is None else pair[1])
    elif isinstance(given := entry.get("offsets", entry.get("timestamps")), Mapping):  # whisper.cpp: ms, or a clock
        start, end = (_number(given.get(side), scale=0.001) for side in ("from", "to"))
    if start is None or end is None:
        _fail("start and end must be seconds", place, path)
    _check(start, end, place, path)
    return start, end


def _number(value: Any, scale: float = 1.0) -> float | None:
    """A number times `scale`, or a clock time in seconds."""
    if isinstance(value, str) and re.fullmatch(_STAMP, value):
        return _seconds(value)
    known = isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) > 1e12
    return value * scale if known else None
