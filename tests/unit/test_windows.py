"""Windows: both papers' schemes and their authors' codes, and values put together again."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from affectrace.errors import ConfigError, InputError, UnknownNameError
from affectrace.sequences.windows import NOT_COVERED, OverlapAdd, WindowScheme, by_utterance, covered_frames, to_trace
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
        (1600, [(0, 1000), (800, 1600)]),
        (2500, [(0, 1000), (800, 1800), (1600, 2500), (2400, 2500)]),
    ],
)
def test_mamba_va_windows_are_the_papers_formula(n: int, expected: list[tuple[int, int]]) -> None:
    windows = cut(WindowScheme.mamba_va(), n)
    assert windows == expected
    w, s = 1000, 800
    formula = [((i - 1) * s, min((i - 1) * s + w, n)) for i in range(1, n // s + 2)]  # floor(n / s) + 1 segments
    assert windows == [(a, b) for a, b in formula if b > a]


def test_mamba_va_folds_have_their_own_sizes() -> None:
    assert (WindowScheme.mamba_va(0).size, WindowScheme.mamba_va(0).stride) == (1000, 800)
    for fold in range(1, 6):
        assert (WindowScheme.mamba_va(fold).size, WindowScheme.mamba_va(fold).stride) == (300, 200)
    assert WindowScheme.mamba_va() == WindowScheme()


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (0, []),
        (299, []),
        (300, [(0, 300)]),
        (499, [(0, 300)]),
        (500, [(0, 300), (200, 500)]),
        (699, [(0, 300), (200, 500)]),
    ],
)
def test_the_authors_splitter_drops_the_partial_window(n: int, expected: list[tuple[int, int]]) -> None:
    assert cut(WindowScheme.mamba_va_released(1), n) == expected


def test_the_authors_predict_on_disjoint_windows() -> None:
    assert cut(WindowScheme.mamba_va_inference(), 1200) == [(0, 500), (500, 1000), (1000, 1200)]
    assert cut(WindowScheme.mamba_va_inference(), 1000) == [(0, 500), (500, 1000)]


def test_the_whole_recording() -> None:
    assert cut(WindowScheme.whole(), 7) == [(0, 7)]
    assert cut(WindowScheme.whole(), 0) == []


# 10 frames a second; utterances end at 1.05, 2.0 and 2.0 s of 3 s
ENDS = [2.0, 1.05, 2.0]


def test_maven_segments_run_from_end_to_end_and_keep_the_tail() -> None:
    assert cut(WindowScheme.maven(), 30, ENDS) == [(0, 11), (11, 20), (20, 30)]
    assert cut(WindowScheme.maven_released(), 30, ENDS) == [(0, 11), (11, 20)]
    assert cut(WindowScheme.maven(max_frames=5, overlap=1), 12, [0.6]) == [(0, 5), (4, 6), (6, 11), (10, 12)]


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([], [(0, 30)]),
        ([3.0], [(0, 30)]),
        ([99.0], [(0, 30)]),
        ([-1.0], [(0, 30)]),
        ([0.0, 3.0], [(0, 30)]),
        ([1.0, 1.01, 1.02], [(0, 10), (10, 11), (11, 30)]),
    ],
)
def test_utterances_that_end_anywhere(ends: list[float], expected: list[tuple[int, int]]) -> None:
    assert cut(WindowScheme.maven(), 30, ends) == expected


def test_utterances_follow_the_times_of_frames() -> None:
    odd = Timeline(np.array([0, 1, 10, 11, 30]), Fraction(1, 10), 31)
    assert by_utterance(odd, [1.0]) == [slice(0, 2), slice(2, 5)]
    assert by_utterance(Timeline.regular(0, 1), [1.0]) == []
    with pytest.raises(InputError, match="no numbers"):
        by_utterance(odd, [float("nan")])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 10, "stride": 11}, "would leave out frames"),
        ({"size": 0, "stride": 1}, "must be at least 1"),
        ({"size": 5, "stride": 0}, "must be at least 1"),
        ({"size": None, "stride": 5}, "the whole recording has none"),
        ({"partial": "maybe"}, "partial: keep or drop"),
        ({"tail": ""}, "tail: keep or drop"),
    ],
)
def test_schemes_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WindowScheme(**values)


# ---- and back


def test_a_frame_gets_the_mean_of_its_windows() -> None:
    joined = OverlapAdd(5, 1)
    joined.add(slice(0, 3), [[1], [1], [1]])
    joined.add(slice(1, 4), [[3], [3], [3]])
    values, covered = joined.result()
    assert values[:4, 0].tolist() == [1, 2, 2, 3]
    assert np.isnan(values[4, 0])
    assert covered.tolist() == [True] * 4 + [False]


def test_fading_weighs_the_middle_of_a_window() -> None:
    joined = OverlapAdd(4, 1, "fade")
    joined.add(slice(0, 3), [[0], [0], [0]])  # weights 1 2 1
    joined.add(slice(1, 4), [[1], [1], [1]])
    assert np.allclose(joined.result()[0][:, 0], [0, 1 / 3, 2 / 3, 1])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_context_takes_the_window_that_has_seen_most(order: tuple[int, int]) -> None:
    windows = [(slice(0, 3), [[1], [1], [1]]), (slice(1, 5), [[2], [2], [2], [2]])]
    joined = OverlapAdd(5, 1, "context")
    for i in order:
        joined.add(*windows[i])
    assert joined.result()[0][:, 0].tolist() == [1, 1, 1, 2, 2]


def test_windows_that_do_not_fit() -> None:
    joined = OverlapAdd(5)
    for frames, values in (
        (slice(0, 3), np.zeros((2, 2))),
        (slice(3, 6), np.zeros((3, 2))),
        (slice(0, 2), np.zeros(2)),
    ):
        with pytest.raises(InputError, match="do not fit frames"):
            joined.add(frames, values)
    with pytest.raises(UnknownNameError, match="did you mean 'mean'"):
        OverlapAdd(5, 2, "means")  # type: ignore[arg-type]


def test_a_trace_of_windows_says_what_was_not_covered() -> None:
    clock = Timeline.regular(5, 25)
    trace = to_trace("r", clock, [(slice(1, 3), [[0.1, 0.2], [0.3, 0.4]])], source="model", person="left")
    assert trace.known.tolist() == [False, True, True, False, False]
    assert trace.reason.tolist() == [NOT_COVERED, "", "", NOT_COVERED, NOT_COVERED]
    assert trace.values[1:3].tolist() == [[0.1, 0.2], [0.3, 0.4]]
    assert (trace.timeline, trace.source, trace.person) == (clock, "model", "left")
    assert len(to_trace("r", Timeline.regular(0, 1), [], source="model")) == 0


def test_covered_frames() -> None:
    assert covered_frames([slice(1, 3)], 4).tolist() == [False, True, True, False]
