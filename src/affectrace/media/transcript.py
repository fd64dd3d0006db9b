"""Timed words and utterances from a file: MAVEN lines, SRT, WebVTT, Whisper JSON. The content decides its form."""

from __future__ import annotations

from pathlib import Path

from affectrace.errors import TranscriptError
from affectrace.media.transcript_cues import LINE, TIMING, read_lines, read_srt, read_vtt
from affectrace.media.transcript_json import read_json
from affectrace.media.utterance import Transcript, Utterance, Word, interpolate, split_words

__all__ = ["Transcript", "Utterance", "Word", "interpolate", "read_transcript", "split_words"]

FORMS = "lines like `[10.5s - 15.2s]: text`, SRT, WebVTT or Whisper JSON"
LARGEST = 200_000_000  # bytes; a day of speech with word times is a tenth of it


def read_transcript(path: str | Path) -> Transcript:
    """A transcript file. Words without times of their own are placed by number of characters and marked.

    Raises:
        TranscriptError: missing, empty, not text, of no known form, or wrong in some line, which is named.
    """
    path = Path(path)
    text, note = _text(path)
    if not text.strip():
        raise TranscriptError("is empty", where=path, hint=f"expected {FORMS}; leave the option out to transcribe")
    lines = text.splitlines()
    first = next(line for line in lines if line.strip())
    if first.startswith("WEBVTT"):
        found = read_vtt(lines, path)
    elif LINE.fullmatch(first):
        found = read_lines(lines, path)
    elif first.lstrip()[0] in "{[":
        found = read_json(text, path)
    elif any(TIMING.fullmatch(line) for line in lines[:20]):
        found = read_srt(lines, path)
    else:
        number = lines.index(first) + 1
        raise TranscriptError(
            f"is no transcript with times ({first.strip()[:60]!r})",
            where=f"{path}, line {number}",
            hint=f"expected {FORMS}",
        )
    if note:
        found = found.with_note(note)
    return found if found.utterances else found.with_note("the transcript holds no words")


def _text(path: Path) -> tuple[str, str]:
    """The file's text, and a note where its encoding was guessed."""
    try:
        if path.stat().st_size > LARGEST:
            raise TranscriptError("is too large for a transcript", where=path, hint=f"expected {FORMS}")
        raw = path.read_bytes()
    except FileNotFoundError:
        raise TranscriptError("no such file", where=path, hint="check the path of the transcript") from None
    except OSError as error:
        raise TranscriptError(f"cannot be read ({error.strerror})", where=path, hint="check the path") from None
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if raw.startswith(mark):
            return raw.decode(encoding, errors="replace"), ""
    if b"\x00" in raw:
        raise TranscriptError("is not text", where=path, hint=f"expected {FORMS}")
    try:
        return raw.decode("utf-8"), ""
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="replace"), "the transcript is not UTF-8 and was read as Windows-1252"
