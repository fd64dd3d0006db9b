"""Alignment on small clocks with expected values worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from affectrace.errors import UnknownNameError
from affectrace.features.align import How, align
from affectrace.features.base import ExtractorId, Features
from affectrace.models.inputs import onto_frames
from affectrace.timeline import Timeline

N = None


def signal(values: list[float], rate: int = 1, start: int = 0, modality: str = "voice") -> Features:
    n = len(values)
    table = np.array(values, np.float32).reshape(n, 1)
    return Features(modality, Timeline.regular(n, rate, start), table, np.isfinite(table[:, 0]), ExtractorId("x"))


def words(spans: list[tuple[float, float]]) -> Features:
    """Word k has the value k + 1."""
    n = len(spans)
    timeline = Timeline.from_times([a for a, _ in spans])
    values = np.arange(1, n + 1, dtype=np.float32).reshape(n, 1)
    return Features("words", timeline, values, np.ones(n, bool), ExtractorId("x"), np.array([b for _, b in spans]))


def shown(f: Features) -> list[float | None]:
    return [round(float(v), 4) if ok else N for v, ok in zip(f.values[:, 0], f.valid, strict=True)]


HALVES = Timeline.regular(8, 2)  # 0, .5, ... 3.5 s
NAN = float("nan")


def test_utterances_are_kept() -> None:
    heard = replace(signal([1, 2, 3]), utterances=((0.5, 2.0),))
    assert align(heard, Timeline.regular(6, 2), "hold").utterances == ((0.5, 2.0),)


SPOKEN = words([(0.2, 0.6), (1.0, 1.9), (2.1, 2.4)])
SLOW, FAST, SECONDS = signal([1, 2, 4]), signal([1, 2, 3, 4, 5, 6], rate=2), Timeline.regular(3, 1)
VIDEO = signal([1, 2, 3], modality="visual")  # available at the start of rows, words at their end


@pytest.mark.parametrize(
    ("features", "clock", "how", "causal", "expected"),
    [
        (SLOW, HALVES, "hold", False, [1, 1, 2, 2, 4, 4, N, N]),
        (SLOW, HALVES, "mean", False, [1, 1, 2, 2, 4, 4, N, N]),
        (SLOW, HALVES, "linear", False, [1, 1.25, 1.75, 2.5, 3.5, 4, N, N]),
        (SLOW, HALVES, "hold", True, [N, N, 1, 1, 2, 2, 4, 4]),
        (SLOW, HALVES, "mean", True, [N, N, 1, 1, 2, 2, 4, 4]),
        (SLOW, HALVES, "linear", True, [N, N, 1, 1, 1, 1.5, 2, 3]),
        (FAST, SECONDS, "hold", False, [1, 3, 5]),
        (FAST, SECONDS, "mean", False, [1.5, 3.5, 5.5]),
        (FAST, SECONDS, "linear", False, [1.5, 3.5, 5.5]),
        (FAST, SECONDS, "hold", True, [N, 2, 4]),
        (FAST, SECONDS, "mean", True, [N, 1.5, 3.5]),
        (FAST, SECONDS, "linear", True, [N, 1, 3]),
        (SPOKEN, HALVES, "hold", False, [N, 1, 2, 2, 2, 3, 3, 3]),
        (SPOKEN, HALVES, "hold", True, [N, N, 1, 1, 2, 3, 3, 3]),
        (SPOKEN, HALVES, "mean", False, [1, 1, 2, 2, 3, 3, 3, 3]),
        (SPOKEN, HALVES, "mean", True, [N, N, 1, 1, 2, 3, 3, 3]),
        (VIDEO, SECONDS, "hold", True, [1, 2, 3]),
        (VIDEO, SECONDS, "mean", True, [1, 2, 3]),
        (signal([1, NAN, 3, NAN, NAN, NAN], rate=2), SECONDS, "mean", False, [1, 3, N]),
        (signal([7, 8], start=1), Timeline.regular(5, 1), "hold", False, [N, 7, 8, N, N]),
    ],
)
def test_small_clocks(
    features: Features, clock: Timeline, how: How, causal: bool, expected: list[float | None]
) -> None:
    assert shown(align(features, clock, how, causal=causal)) == expected


def test_a_gap_is_noticed_after_a_median_step() -> None:
    clock = Timeline.from_times([0, 1, 2, 3, 7, 8], end_s=9)
    valid = np.array([True, True, True, False, True, True])
    f = Features("physiology", clock, np.arange(6.0)[:, None], valid, ExtractorId("x"))
    made = align(f, Timeline.regular(11, 1), "hold", causal=True)
    assert shown(made) == [N, 0, 1, 2, N, N, N, N, 4, 5, N]


def test_interpolation_is_mavens_equation_12() -> None:
    """Equation 12 as the network does it on its native clock, given the middles of words and frames."""
    middles = torch.tensor(((SPOKEN.timeline.times + SPOKEN.ends) / 2)[None])
    frames = torch.tensor(((HALVES.times + HALVES.ends) / 2)[None])
    theirs = onto_frames(torch.tensor(SPOKEN.values[None].copy()), None, middles, frames)[0].numpy()
    made = align(SPOKEN, HALVES, "linear")
    assert made.valid.all()
    assert np.allclose(made.values, theirs, atol=1e-6)


@pytest.mark.parametrize("how", ["hold", "mean", "linear"])
@pytest.mark.parametrize("causal", [False, True])
def test_empty_tables_and_clocks(how: How, causal: bool) -> None:
    none = align(signal([]), HALVES, how, causal=causal)
    assert shown(none) == [N] * 8
    assert align(SPOKEN, Timeline.regular(0, 1), how, causal=causal).values.shape == (0, 1)
    unseen = align(signal([NAN, NAN]), HALVES, how, causal=causal)
    assert shown(unseen) == [N] * 8


@pytest.mark.parametrize("rate", [8, 9, 100])
def test_means_of_few_and_many_rows(rate: int) -> None:
    values = np.random.default_rng(0).normal(size=(rate * 200, 1))
    values[:: 7 if rate > 7 else 4] = NAN
    made = align(signal(list(values[:, 0]), rate=rate), Timeline.regular(200, 1), "mean")  # several blocks of frames
    assert np.allclose(made.values[:, 0], np.nanmean(values.reshape(200, rate), axis=1), atol=1e-6)


def test_an_unknown_form_suggests_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="unknown alignment 'liner'; did you mean 'linear'"):
        align(SPOKEN, HALVES, "liner")  # type: ignore[arg-type]
