"""Fine-tuning targets: labels of frames and spans, and every source of expression classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from affectrace.datasets.manifest import Manifest
from affectrace.errors import InputError
from affectrace.finetune.labels import Affect, Expressions, Track
from affectrace.recording import Recording
from affectrace.timeline import Timeline
from made_traces import trace

CLOCK = Timeline.regular(4, 2)  # 0, .5, 1, 1.5 s
# the first dimension is unknown in the third frame, the second in the second and third
VALID = np.array([[True, True], [True, False], [False, False], [True, True]])
TRACK = Track(CLOCK, np.array([[1, 10], [2, 0], [3, 0], [4, 40]], np.float32), VALID)


def no_clock() -> Timeline:
    pytest.fail("needs no clock")


def test_spans_get_the_mean_of_the_valid_frames_they_overlap() -> None:
    table = [
        (0.0, 0.5, 1.0, 10.0),
        (0.1, 0.2, 1.0, 10.0),
        (0.1, 0.6, 1.5, 10.0),
        (0.6, 1.2, 2.0, None),
        (1.0, 1.5, None, None),
        (0.0, 2.0, 7 / 3, 25.0),
        (2.0, 3.0, None, None),  # past the end
        (-1.0, 0.0, None, None),
    ]
    starts, ends, *expected = zip(*table, strict=True)
    mean, mask = TRACK.on_spans(starts, ends)
    for k in (0, 1):
        assert mask[:, k].tolist() == [v is not None for v in expected[k]]
        assert mean[:, k] == pytest.approx([v or 0 for v in expected[k]])
    assert TRACK.on_spans([], [])[0].shape == (0, 2)
    empty = Track(Timeline.regular(0, 1), np.zeros((0, 2), np.float32), np.zeros((0, 2), bool))
    assert not empty.on_spans([0.0], [1.0])[1].any()
    assert not empty.at_times([0.0])[1].any()


def test_frames_get_labels_by_number_or_by_time() -> None:
    values, valid = TRACK.at_times([1.0, 1.25, 1.5, 1.75, 2.0])
    assert valid[:, 0].tolist() == [False, False, True, True, False]
    assert values[2:4, 0].tolist() == [4.0, 4.0]
    values, valid = TRACK.at_frames(np.array([3, 0, 4]))
    assert (values[:, 1].tolist(), valid[:, 1].tolist()) == ([40, 10, 0], [True, True, False])


def test_affect_of_traces_and_of_rows(tmp_path: Path, faces: Manifest) -> None:
    saved = trace([0.5, np.nan], [-0.5, np.nan], rate=10).save(tmp_path / "a.csv")
    recording = Recording("a", audio=tmp_path / "a.wav", labels=saved)
    manifest = Manifest("m", tmp_path, (recording,))
    track = Affect(manifest).track(recording, no_clock)
    assert track.valid.tolist() == [[True, True], [False, False]]
    assert track.values[0].tolist() == [0.5, -0.5]
    assert Affect(manifest).by_frame(recording) is None
    numbered = Affect(faces).by_frame(faces["r0"])
    assert numbered is not None
    assert numbered.valid[:, 0].tolist() == [k % 10 != 0 for k in range(24)]
    unlabelled = Recording("x", audio=tmp_path / "a.wav")
    assert not Affect(manifest).track(unlabelled, no_clock).valid.any()


# ---- expressions


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    columns = [{"mood": "good"}, {"mood": "bad"}, {}]
    made = (Recording(n, audio=tmp_path / f"{n}.wav", columns=c) for n, c in zip("abc", columns, strict=True))
    return Manifest("m", tmp_path, tuple(made))


def classes_of(track: Track | None) -> list[int]:
    assert track is not None
    return np.where(track.valid.any(1), track.values.argmax(1), -1).tolist()


def test_a_column(manifest: Manifest) -> None:
    labels = Expressions.of("column:mood", manifest)
    assert labels.classes == ("bad", "good")
    track = labels.by_frame(manifest["a"])
    assert track is not None
    assert track.at_frames(np.array([0, 10**9]))[0].tolist() == [[0, 1], [0, 1]]
    assert labels.track(manifest["a"], no_clock).on_spans([3.0], [4.0])[0].tolist() == [[0, 1]]
    assert not labels.track(manifest["c"], lambda: CLOCK).valid.any()


def test_a_folder_of_the_challenge(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "Train_Set").mkdir()
    (tmp_path / "Train_Set" / "a.txt").write_text("Neutral,Anger,Other\n0\n-1\n2\n2\n1\n\n")
    labels = Expressions.of(str(tmp_path), manifest)
    assert labels.classes == ("Neutral", "Anger", "Other")
    assert classes_of(labels.track(manifest["a"], lambda: CLOCK)) == [0, -1, 2, 2]  # a row more than frames
    assert classes_of(labels.by_frame(manifest["a"])) == [0, -1, 2, 2, 1]
    assert classes_of(labels.by_frame(manifest["b"])) == [-1]
    mean, _ = labels.track(manifest["a"], lambda: CLOCK).on_spans([0.0], [2.0])
    assert mean.argmax() == 2  # the most frequent


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("recording,label,frame\na,x,1\na,y,3\nb,x,1\n", [0, -1, 1, -1]),
        ("recording,label,start_s,end_s\na,x,0,1\na,y,0.9,1.2\nb,x,0,1\n", [0, 0, 1, -1]),
        ("recording,label\na,y\nb,x\nother,z\n", [1]),
        ("recording,label,frame\na,x,1\n\na,,2\nb,y,1\n", [0, -1, -1, -1]),
    ],
)
def test_a_table(manifest: Manifest, tmp_path: Path, text: str, expected: list[int]) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    labels = Expressions.of(str(path), manifest)
    assert labels.classes[:2] == ("x", "y")
    assert classes_of(labels.track(manifest["a"], lambda: CLOCK)) == expected
    assert (labels.by_frame(manifest["a"]) is None) == ("start_s" in text)


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("labels.csv", "who,label\na,x\n", "columns recording and label"),
        ("labels.csv", "", "cannot be read"),
        ("labels.csv", "recording,label\n\udcff,x\n", "cannot be read"),
        ("labels.csv", "recording,label,frame\na,x,1\n\na,y,one\n", "line 4: frame 'one'"),
        ("labels.csv", "recording,label,frame\na,x,0\n", "line 2: frame '0'"),
        ("labels.csv", f"recording,label,frame\na,x,{'9' * 20}\nb,y,1\n", "line 2: frame '9999"),
        ("labels.csv", "recording,label,start_s,end_s\na,x,0,nan\nb,y,0,1\n", "line 2: end_s 'nan'"),
        ("labels.csv", "recording,label\na,x\n", "1 class"),
        ("labels.csv", "recording,label\nq,x\nr,y\n", "no recording"),
        ("f/a.txt", "Neutral,Anger\n7\n", "'7'"),
        ("f/a.txt", "Neutral,Anger\nhappy\n", "'happy'"),
        ("f/a.txt", "Neutral,Anger\n1\n\n0\n", "line 3: ''"),
        ("f/a.txt", "Neutral,Anger\n\udcff\n", "cannot be read"),
        ("f/a.txt", "A,B\n" + "9" * 5000, "'9999"),
        ("nowhere.csv", None, "no such file or folder"),
    ],
)
def test_sources_with_mistakes(manifest: Manifest, tmp_path: Path, name: str, text: str | None, named: str) -> None:
    path = tmp_path / name
    if text is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=named):
        Expressions.of(str(path.parent if "/" in name else path), manifest)
    with pytest.raises(InputError, match="columns: mood"):
        Expressions.of("column:age", manifest)
