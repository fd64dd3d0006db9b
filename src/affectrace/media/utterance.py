"""What was said and when: words, utterances, a transcript."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from affectrace.errors import TranscriptError

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

    def with_note(self, note: str) -> Transcript:
        """The same with one more note."""
        return replace(self, notes=(*self.notes, note))

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
        fitted = replace(self, utterances=tuple(_clipped(u, start_s, end_s) for u in inside))
        if outside:
            fitted = fitted.with_note(f"{outside} utterances of the transcript lie outside the recording: left out")
        elif last > end_s + tolerance_s:
            fitted = fitted.with_note(
                f"the transcript runs {last - end_s:.1f} s past the end of the recording: shortened"
            )
        return fitted


def _clipped(utterance: Utterance, start_s: float, end_s: float) -> Utterance:
    if utterance.start_s >= start_s and utterance.end_s <= end_s:
        return utterance
    words = tuple(
        replace(w, start_s=max(w.start_s, start_s), end_s=min(w.end_s, end_s))
        for w in utterance.words
        if w.start_s < end_s and w.end_s > start_s
    )
    # the text stays whole: half a sentence would mean something else
    return replace(utterance, start_s=max(utterance.start_s, start_s), end_s=min(utterance.end_s, end_s), words=words)


def split_words(text: str) -> list[str]:
    """Words of a text: by spaces, and by characters where a script has none."""
    return _WORD.findall(text)


def join_words(words: Iterable[str]) -> str:
    """A text from words: a space between two, except inside scripts that have none."""
    text = ""
    for word in words:
        glued = not text or (_UNSPACED_END.search(text) and _UNSPACED_START.match(word))
        text += word if glued else f" {word}"
    return text


def interpolate(start_s: float, end_s: float, words: Sequence[str]) -> tuple[Word, ...]:
    """Words placed one after the other from `start_s` to `end_s`, each as long as its share of characters."""
    total = sum(map(len, words))
    if not total:
        return ()
    placed, before = [], 0
    for text in words:
        a, b = before / total, (before + len(text)) / total
        placed.append(Word(_between(start_s, end_s, a), _between(start_s, end_s, b), text, interpolated=True))
        before += len(text)
    return tuple(placed)


def _between(start_s: float, end_s: float, share: float) -> float:
    return end_s if share >= 1 else start_s + share * (end_s - start_s)


def checked(start_s: float, end_s: float) -> str:
    """What is wrong with a span, "" where nothing is."""
    if not (math.isfinite(start_s) and math.isfinite(end_s)):
        return "times must be finite"
    if start_s < 0:
        return f"starts before zero ({start_s:g} s)"
    if end_s < start_s:
        return f"ends ({end_s:g} s) before it starts ({start_s:g} s)"
    return ""


def in_order(utterances: Iterable[Utterance]) -> tuple[Utterance, ...]:
    """Sorted by start, then end; those without text are dropped."""
    return tuple(sorted((u for u in utterances if u.text), key=lambda u: (u.start_s, u.end_s)))
