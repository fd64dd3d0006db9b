"""Windows: both papers' schemes and their authors' codes, and values put together again."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from affectrace.errors import InputError, UnknownNameError
from affectrace.sequences.config import WindowScheme, by_utterance
from affectrace.sequences.windows import NOT_COVERED, OverlapAdd, to_trace
from affectrace.timeline import Timeline


def cut(scheme: WindowScheme, n: int, ends: Any = ()) -> list[tuple[int, int]]:
    return [(w.start, w.stop) for w in scheme.cut(Timeline.regular(n, 10), ends)]


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (0, []),
        (1, [(0, 1)]),
        (800, [(0, 800)]),
        (801, [(0, 801), (800, 801)]),
        (1000, [(0, 1000), (800, 1000)]),
        (1001, [(0, 1000), (800, 1001)]),
        (2500, [(0, 1000), (800, 1800), (1600, 2500), (2400, 2500)]),
    ],
)
def test_mamba_va_windows_are_the_papers_formula(n: int, expected: list[tuple[int, int]]) -> None:
    assert cut(WindowScheme.mamba_va(), n) == expected  # floor(n / 800) + 1 segments
    assert WindowScheme.mamba_va() == WindowScheme()


# 10 frames a second; utterances end at 1.05, 2.0 and 2.0 s of 3 s
ENDS = [2.0, 1.05, 2.0]
DROPPING = WindowScheme(300, 200, partial="drop")  # folds 1 to 5 in the code of Mamba-VA's authors
MAVEN = WindowScheme.maven()


@pytest.mark.parametrize(
    ("scheme", "n", "ends", "expected"),
    [
        (WindowScheme.mamba_va(1), 301, (), [(0, 300), (200, 301)]),
        (DROPPING, 299, (), []),
        (DROPPING, 499, (), [(0, 300)]),
        (DROPPING, 500, (), [(0, 300), (200, 500)]),
        (WindowScheme(500, 500), 1200, (), [(0, 500), (500, 1000), (1000, 1200)]),
        (WindowScheme(None, None), 7, (), [(0, 7)]),
        (WindowScheme(None, None), 0, (), []),
        (MAVEN, 30, ENDS, [(0, 11), (11, 20), (20, 30)]),
        (WindowScheme(None, None, utterances=True, tail="drop"), 30, ENDS, [(0, 11), (11, 20)]),
        (WindowScheme.maven(max_frames=5, overlap=1), 12, [0.6], [(0, 5), (4, 6), (6, 11), (10, 12)]),
        *((MAVEN, 30, ends, [(0, 30)]) for ends in ([], [3.0], [99.0], [-1.0], [0.0, 3.0])),
        (MAVEN, 30, [1.0, 1.01, 1.02], [(0, 10), (10, 11), (11, 30)]),
    ],
)
def test_schemes(scheme: WindowScheme, n: int, ends: Any, expected: list[tuple[int, int]]) -> None:
    assert cut(scheme, n, ends) == expected


def test_utterances_follow_the_times_of_frames() -> None:
    odd = Timeline(np.array([0, 1, 10, 11, 30]), Fraction(1, 10), 31)
    assert by_utterance(odd, [1.0]) == [slice(0, 2), slice(2, 5)]
    assert by_utterance(Timeline.regular(0, 1), [1.0]) == []


# ---- and back

TWO = ((slice(0, 3), [[0], [0], [0]]), (slice(1, 4), [[1], [1], [1]]))
LONGER = ((slice(0, 3), [[1], [1], [1]]), (slice(1, 5), [[2], [2], [2], [2]]))


@pytest.mark.parametrize(
    ("weighting", "windows", "expected"),
    [
        ("mean", TWO, [0, 0.5, 0.5, 1, np.nan]),
        ("triangular", TWO, [0, 1 / 3, 2 / 3, 1, np.nan]),  # weights 1 2 1
        ("fade", TWO, [0, 1 / 3, 2 / 3, 1, np.nan]),  # the name in older files
        ("context", LONGER, [1, 1, 1, 2, 2]),
        ("context", LONGER[::-1], [1, 1, 1, 2, 2]),
    ],
)
def test_windows_are_put_together(weighting: str, windows: Any, expected: list[float]) -> None:
    joined = OverlapAdd(5, 1, weighting)
    for frames, values in windows:
        joined.add(frames, values)
    values, covered = joined.result()
    assert np.allclose(values[:, 0], expected, equal_nan=True)
    assert covered.tolist() == np.isfinite(expected).tolist()


def test_windows_that_do_not_fit() -> None:
    joined = OverlapAdd(5)
    for frames, shape in ((slice(0, 3), (2, 2)), (slice(3, 6), (3, 2)), (slice(0, 2), (2,))):
        with pytest.raises(InputError, match="do not fit frames"):
            joined.add(frames, np.zeros(shape))
    with pytest.raises(UnknownNameError, match="did you mean 'mean'"):
        OverlapAdd(5, 2, "means")


def test_a_trace_of_windows_says_what_was_not_covered() -> None:
    clock = Timeline.regular(5, 25)
    trace = to_trace("r", clock, [(slice(1, 3), [[0.1, 0.2], [0.3, 0.4]])], source="model", person="left")
    assert trace.known.tolist() == [False, True, True, False, False]
    assert trace.reason.tolist() == [NOT_COVERED, "", "", NOT_COVERED, NOT_COVERED]
    assert trace.values[1:3].tolist() == [[0.1, 0.2], [0.3, 0.4]]
    assert (trace.timeline, trace.source, trace.person) == (clock, "model", "left")
    assert len(to_trace("r", Timeline.regular(0, 1), [], source="model")) == 0
