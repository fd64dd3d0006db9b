"""Transcripts: every format is read, every mistake named with its line, words without times are placed."""

from __future__ import annotations

import contextlib
import functools
import json
from pathlib import Path
from typing import Any

import pytest
from py3langid.langid import LanguageIdentifier

from affectrace.errors import TranscriptError
from affectrace.media.transcript import (
    Transcript,
    Utterance,
    Word,
    identified,
    interpolate,
    join_words,
    read_transcript,
    split_words,
)


def read(tmp_path: Path, text: str | bytes, name: str = "talk.txt") -> Transcript:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_transcript(path)


def spans(transcript: Transcript) -> list[tuple[float, float, str]]:
    return [(u.start_s, u.end_s, u.text) for u in transcript.utterances]


SRT = """1
00:00:01,000 --> 00:00:02,500
I was <i>really</i> surprised

2
00:00:03,25 --> 00:01:00,000 X1:0 X2:10
{\\an8}by you &amp; me

and them
"""

VTT = """WEBVTT - a title
Kind: captions

STYLE
::cue { color: red }

NOTE a comment
over lines with --> in it? no

intro
00:01.000 --> 00:02.500 align:start position:10%
<v Anna>I was <b.loud>really</b> surprised</v>

01:00:03.250 --> 01:00:04.000
by you &lt;3&nbsp;me
"""


ASS = """[Script Info]
ScriptType: v4.00+

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Comment: 0,0:00:00.00,0:00:01.00,Default,,0,0,0,,not said
Dialogue: 0,0:00:01.00,0:00:02.50,Default,,0,0,0,,{\\i1}I was\\Nreally{\\i0} surprised
"""

TTML = """<?xml version="1.0" encoding="UTF-8"?>
<tt xmlns="http://www.w3.org/ns/ttml"><body><div>
<p begin="00:00:01.000" end="00:00:02.500">I was<br/>surprised</p><p begin="3.25s" end="60s">by you</p>
</div></body></tt>
"""


JSON: list[tuple[Any, list[tuple[float, float, str]]]] = [
    ({"segments": [{"start": 1, "end": 2.5, "text": " hi you "}]}, [(1, 2.5, "hi you")]),
    ([{"start": 0, "end": 1, "text": "a"}], [(0, 1, "a")]),
    ({"chunks": [{"timestamp": [0.5, 3.0], "text": "pipeline"}]}, [(0.5, 3, "pipeline")]),
    ({"chunks": [{"timestamp": [0.5, None], "text": "last"}]}, [(0.5, 0.5, "last")]),
    ({"transcription": [{"offsets": {"from": 500, "to": 1250}, "text": "cpp"}]}, [(0.5, 1.25, "cpp")]),
    (
        {"words": [{"word": w, "start": a, "end": b} for w, a, b in
                   (("So.", 0, 0.4), ("Now", 0.5, 0.8), ("then", 0.9, 1.2), ("later", 2, 2.3))]},
        [(0, 0.4, "So."), (0.5, 1.2, "Now then"), (2, 2.3, "later")],
    ),
    ({"segments": []}, []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[10.5s - 15.2s]: I was surprised\n\n[15.2s-16s]: yes", [(10.5, 15.2, "I was surprised"), (15.2, 16, "yes")]),
        ("[0 - 1]: a", [(0, 1, "a")]),
        ("[00:01.500 --> 00:04.000]  from the console", [(1.5, 4, "from the console")]),
        ("[01:00:01.500 - 3602.5s]: mixed", [(3601.5, 3602.5, "mixed")]),
        ("[5s - 6s]: later\n[1s - 2s]: earlier", [(1, 2, "earlier"), (5, 6, "later")]),
        ("[1s - 2s]:   \n[2s - 3s]: kept", [(2, 3, "kept")]),
        ("[1s - 1s]: no length", [(1, 1, "no length")]),
        (SRT, [(1, 2.5, "I was really surprised"), (3.25, 60, "by you & me and them")]),
        (SRT.replace("\n", "\r\n"), [(1, 2.5, "I was really surprised"), (3.25, 60, "by you & me and them")]),
        ("00:00:01.000 --> 00:00:02.000\nno numbers\n\n00:00:02.000 --> 00:00:03.000\n42",
         [(1, 2, "no numbers"), (2, 3, "42")]),
        ("WEBVTT\n \n00:01.000 --> 00:02.000\na\n \n2\n00:02.000 --> 00:03.000\nb", [(1, 2, "a"), (2, 3, "b")]),
        (VTT, [(1, 2.5, "I was really surprised"), (3603.25, 3604, "by you <3 me")]),
        ("WEBVTT\n00:01.000 --> 00:02.000\nno empty line", [(1, 2, "no empty line")]),
        (ASS, [(1, 2.5, "I was really surprised")]),
        (TTML, [(1, 2.5, "I was surprised"), (3.25, 60, "by you")]),
        ("WEBVTT", []),
        *((json.dumps(content), expected) for content, expected in JSON),
    ],
)  # fmt: skip
def test_formats(text: str, expected: list[tuple[float, float, str]], tmp_path: Path) -> None:
    found = read(tmp_path, text)
    assert spans(found) == expected
    if not expected:
        assert found.notes == ("the transcript holds no words",)


def test_measured_words_are_kept(tmp_path: Path) -> None:
    words = [{"word": " Ask", "start": 1.0, "end": 1.2, "probability": 0.9}, {"word": " not", "start": 1.3, "end": 1.5}]
    found = read(tmp_path, json.dumps({"segments": [{"start": 1, "end": 2, "text": " Ask not", "words": words}]}))
    assert found.words == (Word(1.0, 1.2, "Ask", 0.9), Word(1.3, 1.5, "not"))


def test_whisperx_words_without_times_fill_the_gap(tmp_path: Path) -> None:
    timed = {"in": (1.0, 1.2), "we": (1.8, 2.0)}
    words = [
        {"word": word} | (dict(zip(("start", "end"), timed[word], strict=True)) if word in timed else {})
        for word in ("in", "1984", "24", "we", "7")
    ]
    segment = {"start": 1, "end": 3, "text": "in 1984 24 we 7", "words": words}
    found = read(tmp_path, json.dumps({"segments": [segment]})).words
    assert [(w.start_s, w.text, w.interpolated) for w in found] == [
        (1.0, "in", False), (1.2, "1984", True), (pytest.approx(1.6), "24", True), (1.8, "we", False), (2.0, "7", True)
    ]  # fmt: skip
    assert (found[2].end_s, found[4].end_s) == (1.8, 3)


def test_words_are_interpolated_by_characters_and_marked(tmp_path: Path) -> None:
    words = read(tmp_path, "[10s - 20s]: a bbb cccccc").words
    assert [(w.start_s, w.end_s, w.text) for w in words] == [(10, 11, "a"), (11, 14, "bbb"), (14, 20, "cccccc")]
    assert all(w.interpolated and w.probability is None for w in words)


@pytest.mark.timeout(5)  # linear: a fraction of a second
@pytest.mark.parametrize(
    "text",
    [
        "WEBVTT\n\n00:01.000 --> 00:02.000\n" + "<c." * 100_000,
        "WEBVTT\n\n00:01.000 --> 00:02.000\n" + "{\\" * 100_000,
        "[1s - 2s]: a\n[1" + " " * 100_000 + "x",
        "1\n00:00:01,000 --> 00:00:02,000\na\n00:00:01,000" + " " * 100_000 + "x --> 00",
        json.dumps({"words": [{"word": "a", "start": i, "end": i + 1} for i in range(20_000)]}),
    ],
    ids=["tags", "braces", "spaces in a line", "spaces in a time", "words without a pause"],
)
def test_small_files_take_no_long_time(text: str, tmp_path: Path) -> None:
    with contextlib.suppress(TranscriptError):
        assert read(tmp_path, text).utterances


def test_words_of_scripts_without_spaces() -> None:
    assert join_words(["Ask", "not,", "今", "日", "ok"]) == "Ask not, 今日 ok"
    assert split_words("Ask not, 今日は ok 你好，") == ["Ask", "not,", "今", "日", "は", "ok", "你", "好，"]
    assert split_words("  ") == []
    assert interpolate(0, 1, []) == ()


def test_times_inside_a_vtt_cue(tmp_path: Path) -> None:
    vtt = "WEBVTT\n\n00:01.000 --> 00:04.000\nOne<00:00:02.000><c> two</c><00:00:03.000><c> three four</c>\n"
    words = read(tmp_path, vtt, "a.vtt").words
    assert [(w.start_s, w.end_s, w.text) for w in words[:2]] == [(1, 2, "One"), (2, 3, "two")]
    assert [w.interpolated for w in words] == [False, False, True, True]
    assert (words[2].start_s, words[3].end_s) == (3, 4)


def test_captions_that_roll_up_say_everything_once(tmp_path: Path) -> None:
    vtt = (
        "WEBVTT\nKind: captions\n\n"
        "00:00.000 --> 00:02.000 align:start\n \nso<00:00:00.500><c> it</c><00:00:01.000><c> begins</c>\n\n"
        "00:02.000 --> 00:02.010\nso it begins\n \n\n"
        "00:02.010 --> 00:04.000\nso it begins\nand<00:00:03.000><c> ends</c>\n"
    )
    assert [u.text for u in read(tmp_path, vtt).utterances] == ["so it begins", "and ends"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings(encoding: str, tmp_path: Path) -> None:
    found = read(tmp_path, "[1s - 2s]: schön".encode(encoding))
    assert spans(found) == [(1, 2, "schön")]
    assert bool(found.notes) == (encoding == "cp1252")


SEGMENT = '{"segments": [{"start": %s, "end": %s, "text": "a"}]}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        (b"\x00\x01\x02\x03", "is not text"),
        ("just some words\nand more", "line 1: is not a transcript with times"),
        ("9" * 5000 + ":00:01,000 --> 00:00:02,000\na", "line 1: is not a transcript"),
        ("[1s - 2s]: a\nb without time", r"line 2: expected `\[10\.5s - 15\.2s\]: text`, got 'b without"),
        ("[1s - 2s]: a\n\n[5s - 4s]: b", "line 3: times .* got 5 to 4 s"),
        ("1\n00:00:01,000 --> 00:00:02,000\na\n\n2\n00:00:03,000 --> soon\nb", "line 6: not a time .*'00:00:03,"),
        ("1\n00:00:05,000 --> 00:00:02,000\na", "line 2: times .* got 5 to 2 s"),
        ("junk\nand more\n00:00:05,000 --> 00:00:06,000\na", "line 1: expected a number or a time, got 'junk'"),
        (TTML.replace("</p>", "", 1), "is not TTML that can be read"),
        (TTML.replace("3.25s", "soon"), "is not TTML that can be read"),
        (ASS.replace("0:00:02.50", "0:00:00.50"), "cue 1: times .* got 1 to 0.5 s"),
        (SEGMENT[:-1] % (1, 2), "line 1 column"),
        ('{"a": 1}', "without a list of"),
        ('{"segments": [{"start": 1, "end": 2}]}', r"segments\[0\]: has no text"),
        (SEGMENT % ('"x"', 2), r"segments\[0\]: start and end must be seconds"),
        (SEGMENT % (-1, 2), r"segments\[0\]: times"),
        (SEGMENT % (1, "1e300"), r"segments\[0\]: times"),
        (SEGMENT % (1, "1" + "0" * 400), r"segments\[0\]: start and end must be seconds"),
        (SEGMENT % (1, "9" * 5000), "Exceeds the limit"),
        (SEGMENT.replace("}]", ', "words": [{"start": 2, "end": 1}]}]') % (1, 2), r"segments\[0\]\.words\[0\]: times"),
        (SEGMENT.replace("}]", ', "words": 3}]') % (1, 2), r"segments\[0\]\.words: must be a list"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_mistakes_are_named(text: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(TranscriptError, match=rf"talk\.txt: {message}|talk\.txt: .*{message}") as caught:
        read(tmp_path, text)
    assert caught.value.hint
    assert "\n" not in caught.value.one_line()


# ---- against the recording


def transcript(*times: tuple[float, float]) -> Transcript:
    return Transcript(tuple(Utterance.of(a, b, "one two") for a, b in times), source="t.srt")


def test_a_transcript_is_cut_to_the_recording() -> None:
    short = transcript((0, 1), (9, 10.5)).within(0, 10)
    assert short.utterances[-1].end_s == short.words[-1].end_s == 10
    assert short.notes == ()
    longer = transcript((0, 1), (9, 15)).within(0, 10)
    assert longer.notes == ("the transcript runs 5.0 s past the end of the recording: shortened",)
    found = transcript((0, 1), (5, 6), (20, 30)).within(0, 10)
    assert spans(found) == [(0, 1, "one two"), (5, 6, "one two")]
    assert found.notes == ("1 utterances of the transcript lie outside the recording: left out",)


@pytest.mark.parametrize("times", [[(20, 30)], [(0, 1), (20, 30), (40, 50)], [(10, 11)]])
def test_a_transcript_of_another_recording_is_refused(times: list[tuple[float, float]]) -> None:
    with pytest.raises(TranscriptError, match=r"t\.srt: does not fit the recording: \d of \d utterances lie outside"):
        transcript(*times).within(0, 10)


# ---- language

GERMAN = ["Gestern waren wir im Kino, und der Film war langweilig.", "Das ist schade.", "Ja, leider."]
LOADED = functools.cache(LanguageIdentifier.from_model_file)  # once for all cases
ENGLISH = ["Yesterday we went to the movies, and the film was boring.", "What a pity.", "Yeah, sadly."]


@pytest.mark.parametrize(
    ("texts", "languages"),
    [
        (ENGLISH, ["en", "en", "en"]),
        ([" ".join(t.lower().replace(",", "").rstrip(".") for t in ENGLISH)], ["en"]),
        (GERMAN, ["de", "de", "de"]),
        (["Ich weiß nicht, was ich sagen soll."], ["de"]),
        (["Hier, je suis allé au cinéma avec ma sœur."], ["fr"]),
        (["Ayer fui al cine con mi hermana."], ["es"]),
        (["Вчера я ходил с сестрой в кино."], ["ru"]),
        (["昨日、姉と映画に行きましたが、退屈でした。"], ["ja"]),
        ([*ENGLISH, GERMAN[0], *ENGLISH], ["en"] * 3 + ["de"] + ["en"] * 3),  # a long line in another language
        ([*GERMAN, ENGLISH[0], *GERMAN], ["de"] * 3 + ["en"] + ["de"] * 3),
        ([*ENGLISH, GERMAN[1]], ["en"] * 4),  # too short to be judged by itself
        (["Nein."], ["en"]),  # too short: English unless stated
        (["la la la la la la la la"], ["en"]),
        (["Ha ha!", "12 34"], ["en"] * 2),
        ([], []),
    ],
)
def test_languages_are_identified_from_the_text(
    texts: list[str], languages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LanguageIdentifier, "from_model_file", LOADED)
    found = identified(Transcript(tuple(Utterance.of(i, i + 1, text) for i, text in enumerate(texts))))
    assert [found.language_of(u) for u in found.utterances] == languages
