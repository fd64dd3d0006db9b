"""Transcripts written as lines and cues: MAVEN's `[10.5s - 15.2s]: text`, SubRip (SRT), WebVTT."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from affectrace.errors import TranscriptError
from affectrace.media.utterance import Transcript, Utterance, Word, checked, in_order, interpolate, split_words

CLOCK = r"(?:(\d+):)?(\d{1,2}):(\d{2})[.,](\d{1,3})"
_SECONDS, _ANY_CLOCK = r"\d+(?:\.\d+)?", r"(?:\d+:)?\d{1,2}:\d{2}[.,]\d{1,3}"
LINE = re.compile(
    rf"\s*\[\s*(?:(?P<a_s>{_SECONDS})\s*s?|(?P<a_c>{_ANY_CLOCK}))\s*(?:-->|-|–|—|to)"
    rf"\s*(?:(?P<b_s>{_SECONDS})\s*s?|(?P<b_c>{_ANY_CLOCK}))\s*\]\s*:?\s*(?P<text>.*)"
)
TIMING = re.compile(rf"\s*{CLOCK}\s*-->\s*{CLOCK}(?:\s+(.*))?\s*")
_INLINE = re.compile(rf"<{CLOCK}>")
_TAG = re.compile(r"</?[A-Za-z][^>]*>|</?\d[^>]*>|\{\\[^}]*\}")


def seconds(hours: str | None, minutes: str, secs: str, fraction: str) -> float:
    """A clock time in seconds; the fraction is decimal digits after the second."""
    whole = int(hours or 0) * 3600 + int(minutes) * 60 + int(secs)
    return whole + int(fraction.ljust(3, "0")) / 1000


def _clock(text: str) -> float:
    match = re.fullmatch(CLOCK, text)
    assert match is not None
    return seconds(*match.groups())  # type: ignore[arg-type]


def _fail(what: str, path: Path, line: int, hint: str) -> TranscriptError:
    return TranscriptError(what, where=f"{path}, line {line}", hint=hint)


# ---- lines with bracketed times


def read_lines(lines: Sequence[str], path: Path) -> Transcript:
    """Lines `[start - end]: text`, seconds or clock times; the form of MAVEN's transcripts and of Whisper's console."""
    utterances = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = LINE.fullmatch(line)
        if match is None:
            raise _fail(
                f"expected `[10.5s - 15.2s]: text`, got {line.strip()[:60]!r}", path, number, "mend or delete the line"
            )
        start, end = (float(match[f"{k}_s"]) if match[f"{k}_s"] else _clock(match[f"{k}_c"]) for k in "ab")
        if wrong := checked(start, end):
            raise _fail(wrong, path, number, "correct the times")
        utterances.append(Utterance.of(start, end, match["text"]))
    return Transcript(in_order(utterances), source=f"{path.name} (lines)")


# ---- cues


@dataclass(frozen=True)
class _Cue:
    line: int  # of its timing
    start_s: float
    end_s: float
    payload: tuple[str, ...]


def read_srt(lines: Sequence[str], path: Path) -> Transcript:
    """SubRip: number, `00:00:01,000 --> 00:00:02,500`, text. Blank lines inside a text are tolerated."""
    starts = [i for i, line in enumerate(lines) if "-->" in line]
    for i, line in enumerate(lines[: starts[0]] if starts else lines):
        if line.strip() and not line.strip().isdigit():
            raise _fail(f"expected a number or a time, got {line.strip()[:60]!r}", path, i + 1, "is this an SRT file?")
    cues = []
    for at, following in zip(starts, [*starts[1:], len(lines)], strict=True):
        payload = [text for line in lines[at + 1 : following] if (text := line.strip())]
        if following < len(lines) and payload and payload[-1].isdigit() and lines[following - 1].strip().isdigit():
            payload.pop()  # the number of the next cue
        cues.append(_cue(at, lines[at], payload, path))
    return Transcript(in_order(_utterances(cues)), source=f"{path.name} (SRT)")


def read_vtt(lines: Sequence[str], path: Path) -> Transcript:
    """WebVTT: cue settings, voices, classes and other tags are dropped; times inside a cue date its words."""
    cues, notes = [], []
    for first, block in _blocks(lines):
        head = block[0].strip()
        if head.startswith("WEBVTT"):
            if any(line.startswith("X-TIMESTAMP-MAP") for line in block):
                notes.append("the transcript's X-TIMESTAMP-MAP is not applied: its times are taken as they stand")
            at = next((i for i, line in enumerate(block) if "-->" in line), None)
            if at is None:
                continue
            raise _fail("a cue must be separated from the header by a blank line", path, first + at + 1, "add one")
        if re.match(r"(NOTE|STYLE|REGION)(\s|$)", head):
            continue
        at = next((i for i, line in enumerate(block[:2]) if "-->" in line), None)
        if at is None:
            raise _fail(f"expected a cue with a time, got {head[:60]!r}", path, first + 1, "mend or delete it")
        cues.append(_cue(first + at, block[at], [line.strip() for line in block[at + 1 :]], path))
    if any(_INLINE.search(line) for cue in cues for line in cue.payload):
        cues = _unrolled(cues)
    return Transcript(in_order(_utterances(cues)), source=f"{path.name} (WebVTT)", notes=tuple(notes))


def _blocks(lines: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Runs of lines between empty ones, with the index of the first.

    A line of spaces belongs to a cue (automatic captions have them) unless the next cue follows it.
    """
    block: list[str] = []
    for i, line in enumerate([*lines, ""]):
        if line.strip() or (line and block and not any("-->" in after for after in lines[i + 1 : i + 3])):
            block.append(line)
        elif block:
            yield i - len(block), block
            block = []


def _cue(index: int, timing: str, payload: Sequence[str], path: Path) -> _Cue:
    match = TIMING.fullmatch(timing)
    if match is None:
        hint = "write it as 00:00:01,000 --> 00:00:02,500"
        raise _fail(f"not a time: {timing.strip()[:60]!r}", path, index + 1, hint)
    fields = match.groups()
    start, end = seconds(*fields[0:4]), seconds(*fields[4:8])
    if wrong := checked(start, end):
        raise _fail(wrong, path, index + 1, "correct the times")
    return _Cue(index + 1, start, end, tuple(payload))


def _unrolled(cues: Sequence[_Cue]) -> list[_Cue]:
    """Captions that roll up repeat the line above in the next cue; each line is kept where it first appears."""
    kept, shown = [], ""
    for cue in cues:
        lines = [line for line in cue.payload if _plain(line)]
        if lines and _plain(lines[0]) == shown and not _INLINE.search(lines[0]):
            lines = lines[1:]
        if lines:
            kept.append(_Cue(cue.line, cue.start_s, cue.end_s, tuple(lines)))
            shown = _plain(lines[-1])
    return kept


def _utterances(cues: Sequence[_Cue]) -> Iterator[Utterance]:
    for cue in cues:
        payload = " ".join(cue.payload)
        text = _plain(payload)
        words = _dated_words(cue, payload) if _INLINE.search(payload) else ()
        yield Utterance.of(cue.start_s, cue.end_s, text, words)


def _dated_words(cue: _Cue, payload: str) -> tuple[Word, ...]:
    """Words between the times inside a cue: `One <00:00:01.500>two`. Several between two times share them."""
    parts = _INLINE.split(payload)  # text, 4 fields, text, 4 fields, text ...
    times = [cue.start_s, *(seconds(*parts[i : i + 4]) for i in range(1, len(parts), 5)), cue.end_s]
    times = [min(max(t, cue.start_s), cue.end_s) for t in times]
    words: list[Word] = []
    for text, start, end in zip(parts[0::5], times[:-1], times[1:], strict=True):
        inside = split_words(_plain(text))
        placed = interpolate(start, max(start, end), inside)
        words += [Word(w.start_s, w.end_s, w.text, interpolated=len(inside) > 1) for w in placed]
    return tuple(words)


def _plain(text: str) -> str:
    """Without tags, entities decoded, spaces collapsed."""
    return " ".join(html.unescape(_TAG.sub("", text)).replace("\u200e", "").replace("\u200f", "").split())
