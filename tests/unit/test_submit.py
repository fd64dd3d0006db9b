"""The submission file and its checker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from affectrace.datasets.aff_wild2_files import Sample, read_sample
from affectrace.errors import FormatError, InputError
from affectrace.evaluate.submission import check_submission, write_submission
from affectrace.trace import Trace
from made_traces import trace

HEADER = "image_location,valence,arousal"
ASKED = ["b/00001.jpg", "b/00002.jpg", "a_left/00002.jpg", "a_left/00003.jpg", "a_left/00006.jpg", "b/00003.jpg"]


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    path = tmp_path / "CVPR_8th_ABAW_VA_test_set_sample.txt"
    path.write_text(HEADER + "\n" + "".join(f"{a},-5,-5\n" for a in ASKED))
    return read_sample(path)


def predicted(name: str, values: list[tuple[float, float] | None]) -> Trace:
    return trace(*np.array([v or (np.nan, np.nan) for v in values]).T, recording_id=name, rate=30)


TRACES = [
    predicted("a_left", [(0.1, 0.2), (-0.3, 0.25), None, (0.5, -0.5)]),
    predicted("b", [None, (0.75, -0.0000001), (1.0, -1.0), (0.9, 0.9)]),
    predicted("not asked for", [(0.0, 0.0)]),
]


def test_every_asked_frame_is_written_in_order_and_nothing_else(sample: Sample, tmp_path: Path) -> None:
    path = tmp_path / "predictions.txt"
    filled, repeated = write_submission(sample, TRACES, path)
    assert path.read_text().splitlines() == [
        HEADER,
        "b/00001.jpg,0.750000,0.000000",  # not valid, nothing before it: the first value there is
        "b/00002.jpg,0.750000,0.000000",
        "a_left/00002.jpg,-0.300000,0.250000",
        "a_left/00003.jpg,-0.300000,0.250000",  # not valid: the value before it
        "a_left/00006.jpg,0.500000,-0.500000",  # past the end: the last value
        "b/00003.jpg,1.000000,-1.000000",
    ]
    assert (filled, repeated) == ({"b": 1, "a_left": 1}, {"a_left": 1})
    assert check_submission(path, sample) == ()


def test_missing_trials_are_named_and_nothing_is_written(sample: Sample, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 of 2 trials have no prediction: b, a_left"):
        write_submission(sample, [predicted("b", [None])], tmp_path / "p.txt")
    assert not (tmp_path / "p.txt").exists()
    alone = [replace(t, valid=t.valid & np.array([True, False])) for t in TRACES]
    with pytest.raises(InputError, match="2 of 2 trials"):  # of valence only
        write_submission(sample, alone, tmp_path / "p.txt")
    with pytest.raises(InputError, match="predicted twice"):
        write_submission(sample, [TRACES[0], TRACES[0]], tmp_path / "p.txt")


GOOD = [f"{a},0.{i + 1}23,-0.{i + 1}45" for i, a in enumerate(ASKED)]


def changed(i: int, line: str) -> list[str]:
    return [line if k == i else row for k, row in enumerate(GOOD)]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([HEADER, *GOOD], []),
        (GOOD, ["header is not"]),
        ([HEADER], ["requested frame is missing (6x, first: b/00001.jpg)"]),
        ([HEADER, *GOOD[1:], GOOD[0]], ["rows are in another order than the sample's (1x, first: b/00002.jpg)"]),
        ([HEADER, *GOOD, GOOD[2]], ["frame written twice (1x, first: a_left/00002.jpg)"]),
        ([HEADER, *GOOD, "b/00004.jpg,0.1,0.1"], ["row that was not requested (1x, first: b/00004.jpg)"]),
        ([HEADER, *changed(1, "b/00002.jpg,nan,0.5")], ["value is NaN or infinite (1x, first: nan)"]),
        ([HEADER, *changed(1, "b/00002.jpg,-5,0.5")], ["value outside [-1, 1] (1x, first: -5)"]),
        ([HEADER, *changed(1, "b/00002.jpg,,0.5")], ["value that is not a number (1x, first: (empty))"]),
        ([HEADER, *changed(1, f"b/00002.jpg,1e{'9' * 5000},x")], ["value that is not a number (2x"]),
        ([HEADER, *changed(1, "b/00002.jpg,0.5")], ["row without three fields", "requested frame is missing"]),
        ([HEADER, *changed(1, "b/00002.jpg, 0.5,0.1")], ["blanks around a field"]),
        ([HEADER, *GOOD[:3], "", *GOOD[3:]], ["blank line"]),
        (
            [HEADER, *(f"{a},0.5,0.1{i}7" if a[0] == "b" else f"{a},0.{i}12,0.2{i}7" for i, a in enumerate(ASKED))],
            ["video whose valence never changes (1x, first: b)"],
        ),
        (
            [HEADER, *(f"{a},0.{i + 1},0.1{i}7" for i, a in enumerate(ASKED))],
            ["valence has at most 1 decimals"],
        ),
    ],
)
def test_the_checker_names_each_problem(sample: Sample, tmp_path: Path, lines: list[str], expected: list[str]) -> None:
    path = tmp_path / "p.txt"
    path.write_text("\n".join(lines) + "\n")
    found = [p.what for p in check_submission(path, sample)]
    assert len(found) == len(expected), found
    for what, start in zip(found, expected, strict=True):
        assert what.startswith(start), found


def test_all_problems_come_together_with_their_lines(sample: Sample, tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    rows = ["wrong header", *changed(0, "b/00001.jpg,1.5,0.2"), "x/00001.jpg,inf,0"]
    path.write_bytes("\r\n".join(rows).encode())
    assert [p.line for p in check_submission(path, sample)] == [1, 1, 8, 2, 8]


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00bad"])
def test_unreadable_files_are_refused(sample: Sample, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "p.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FormatError, match="cannot be read"):
        check_submission(path, sample)
