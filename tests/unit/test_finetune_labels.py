"""Labels of frames and spans: means, the most frequent class, what has none, and every way of naming expressions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from affectrace.datasets.manifest import Manifest
from affectrace.errors import FormatError, InputError
from affectrace.finetune.labels import Affect, Expressions, Track, by_number
from affectrace.recording import Recording
from affectrace.timeline import Timeline
from affectrace.trace import Trace

CLOCK = Timeline.regular(4, 2)  # 0, .5, 1, 1.5 s
TRACK = Track(CLOCK, np.array([[1.0], [2.0], [3.0], [4.0]], np.float32), np.array([[True], [True], [False], [True]]))


def test_means_over_spans() -> None:
    table = [
        (0.0, 0.5, 1.0),
        (0.1, 0.2, 1.0),
        (0.1, 0.6, 1.5),
        (0.6, 1.2, 2.0),  # the third frame does not count
        (1.0, 1.5, None),
        (0.0, 2.0, 7 / 3),
        (2.0, 3.0, None),  # past the end
        (-1.0, 0.0, None),
    ]
    starts, ends, values = zip(*table, strict=True)
    mean, mask = TRACK.on_spans(starts, ends)
    assert mask[:, 0].tolist() == [v is not None for v in values]
    assert mean[:, 0] == pytest.approx([v or 0 for v in values])
    assert TRACK.on_spans([], [])[0].shape == (0, 1)
    empty = Track(Timeline.regular(0, 1), np.zeros((0, 2), np.float32), np.zeros((0, 2), bool))
    assert not empty.on_spans([0.0], [1.0])[1].any()
    assert not empty.on_frames(CLOCK).valid.any()


def test_one_dimension_may_be_known_alone() -> None:
    valid = np.array([[True, True], [True, False], [False, False], [False, True]])
    track = Track(CLOCK, np.where(valid, [[1.0, 10.0], [2.0, 0], [0, 0], [0, 40.0]], 0).astype(np.float32), valid)
    mean, mask = track.on_spans([0.0, 0.5], [2.0, 1.5])
    assert mean.tolist() == [[1.5, 25.0], [2.0, 0.0]]
    assert mask.tolist() == [[True, True], [True, False]]


def test_labels_held_onto_other_frames() -> None:
    on = TRACK.on_frames(Timeline.regular(5, 4, 1))  # 1, 1.25, 1.5, 1.75, 2
    assert on.valid[:, 0].tolist() == [False, False, True, True, False]
    assert on.values[2:4, 0].tolist() == [4.0, 4.0]
    assert TRACK.on_frames(CLOCK) is TRACK


def test_affect_of_traces_and_of_rows(tmp_path: Path, faces: Manifest) -> None:
    valid = np.array([True, False])
    values = np.array([0.5, np.nan])
    reason = np.array(["", "not labelled"])
    trace = Trace("a", Timeline.regular(2, 10), values, -values, valid, reason, "labels")
    path = trace.save(tmp_path / "a.csv")
    recording = Recording("a", audio=tmp_path / "a.wav", labels=path)
    manifest = Manifest("m", tmp_path, (recording,))
    track = Affect(manifest).track(recording, lambda: pytest.fail("traces have their own clock"))
    assert track.valid.tolist() == [[True, True], [False, False]]
    assert track.values[0].tolist() == [0.5, -0.5]
    assert by_number(recording, Affect(manifest)) is None
    numbered = by_number(faces["r0"], Affect(faces))
    assert numbered is not None
    assert numbered.valid[:, 0].tolist() == [k % 10 != 0 for k in range(24)]
    unlabelled = Recording("x", audio=tmp_path / "a.wav")
    assert not Affect(manifest).track(unlabelled, lambda: CLOCK).valid.any()


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    columns = [{"mood": "good"}, {"mood": "bad"}, {}]
    made = (Recording(n, audio=tmp_path / f"{n}.wav", columns=c) for n, c in zip("abc", columns, strict=True))
    return Manifest("m", tmp_path, tuple(made))


def classes_of(track: Track) -> list[int]:
    return np.where(track.valid.any(1), track.values.argmax(1), -1).tolist()


def test_a_column(manifest: Manifest) -> None:
    labels = Expressions.of("column:mood", manifest)
    assert labels.classes == ("bad", "good")
    track = labels.track(manifest["a"], lambda: pytest.fail("needs no clock"))
    assert track.always
    assert track.on_spans([3.0], [4.0])[0].tolist() == [[0.0, 1.0]]
    assert not labels.track(manifest["c"], lambda: CLOCK).valid.any()


def test_a_folder_of_the_challenge(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "Train_Set").mkdir()
    (tmp_path / "Train_Set" / "a.txt").write_text("Neutral,Anger,Other\n0\n-1\n2\n2\n1\n\n")
    labels = Expressions.of(str(tmp_path), manifest)
    assert labels.classes == ("Neutral", "Anger", "Other")
    assert classes_of(labels.track(manifest["a"], lambda: CLOCK)) == [0, -1, 2, 2]  # a row more than frames
    numbered = by_number(manifest["a"], labels)
    assert numbered is not None
    assert classes_of(numbered) == [0, -1, 2, 2, 1]
    assert by_number(manifest["b"], labels) is None
    mean, _ = labels.track(manifest["a"], lambda: CLOCK).on_spans([0.0], [2.0])
    assert mean.argmax() == 2  # the most frequent


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("recording,label,frame\na,x,1\na,y,3\nb,x,1\n", [0, -1, 1, -1]),
        ("recording,label,start_s,end_s\na,x,0,1\na,y,0.9,1.2\nb,x,0,1\n", [0, 0, 1, -1]),
        ("recording,label\na,y\nb,x\n", [1]),
        ("recording,label,frame\na,x,1\na,,2\nb,y,1\n", [0, -1, -1, -1]),
    ],
)
def test_a_table(manifest: Manifest, tmp_path: Path, text: str, expected: list[int]) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    labels = Expressions.of(str(path), manifest)
    assert labels.classes == ("x", "y")
    assert classes_of(labels.track(manifest["a"], lambda: CLOCK)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("who,label\na,x\n", "lacks the columns recording and label"),
        ("", "lacks the columns"),
        ("recording,label,frame\na,x,one\n", "line 2: 'one' is not a number from 1"),
        ("recording,label,frame\na,x,0\n", "line 2: '0' is not a number from 1"),
        ("recording,label,frame\na,x,99999999999999999999\nb,y,1\n", "line 2: '99999999999999999999' is not a number"),
        ("recording,label,start_s,end_s\na,x,0,nan\nb,y,0,1\n", "line 2: 'nan' is not a number of seconds"),
        ("recording,label\na,x\n", "holds 1 class, at least two"),
        ("recording,label\nq,x\nr,y\n", "labels no recording of the data set"),
    ],
)
def test_tables_that_do_not_do(manifest: Manifest, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        Expressions.of(str(path), manifest)


def test_sources_that_do_not_do(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no recording has the column 'age'; columns: mood"):
        Expressions.of("column:age", manifest)
    with pytest.raises(InputError, match="no such file or folder of expression labels; give column:NAME"):
        Expressions.of("nowhere.csv", manifest)
    for text in ("Neutral,Anger\n7\n", "Neutral,Anger\nhappy\n", "Neutral,Anger\n\udcff\n", "A,B\n" + "9" * 5000):
        (tmp_path / "a.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(FormatError):
            Expressions.of(str(tmp_path), manifest)
