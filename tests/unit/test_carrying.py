"""Carried state against windows: equal where a window starts with the recording, told by how much lies before."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from affectrace import metrics
from affectrace.errors import InputError
from affectrace.features.base import ExtractorId, Features
from affectrace.inference.carrying import compare_ways
from affectrace.inference.run import TrainedModel, predict_sequence
from affectrace.models import checkpoint
from affectrace.sequences import Sequence, SequenceConfig
from affectrace.sequences.config import WindowScheme
from affectrace.timeline import Timeline
from affectrace.trace import Trace


def sequence(i: int, n: int, labelled: bool = True) -> Sequence:
    rng, clock = np.random.default_rng(i), Timeline.regular(n, 25)
    x = rng.normal(0, 1, (n, 12)).astype(np.float32)
    table = Features("visual", clock, x, np.ones(n, bool), ExtractorId("x"))
    y, valid = rng.uniform(-1, 1, (n, 2)), np.arange(n) % 7 > 0
    v, a = (np.where(valid, y[:, d], np.nan) for d in (0, 1))
    truth = Trace(f"r{i}", clock, v, a, valid, np.where(valid, "", "not labelled"), "labels")
    return Sequence(f"r{i}", clock, {"visual": table}, truth if labelled else None)


def trained(name: str = "gru", size: int | None = 40) -> TrainedModel:
    torch.manual_seed(1)
    model = checkpoint.create(name, "tiny", input_dim=12).eval()
    about = {"training": {"window": {"size": size}}}
    return TrainedModel(model, "m@1", None, None, {"visual": "x"}, SequenceConfig(), about)


def test_both_ways_are_scored_whole_and_by_what_lies_before() -> None:
    model, sequences, scheme = trained(), [sequence(0, 130), sequence(1, 25)], WindowScheme(40, 20)
    found = compare_ways(model, sequences, scheme)
    assert [(s.first, s.last) for s in found.stretches] == [(0, 10), (10, 20), (20, 40), (40, 80), (80, None)]
    assert [s.n_frames for s in found.stretches] == [20, 20, 25, 40, 50]
    assert found.whole.n_frames == sum(s.n_frames for s in found.stretches) == 155
    assert found.whole.n == sum(s.n for s in found.stretches)
    assert (found.trained_frames, found.n_recordings) == (40, 2)
    carried = [predict_sequence(model.model, s).values for s in sequences]
    windows = [predict_sequence(model.model, s, scheme=scheme).values for s in sequences]
    apart = np.abs(np.concatenate(carried) - np.concatenate(windows))
    assert found.whole.apart == pytest.approx(tuple(apart.mean(axis=0)))
    assert found.largest == pytest.approx(tuple(apart.max(axis=0)))
    last = np.abs(carried[0][80:] - windows[0][80:]).mean(axis=0)
    assert found.stretches[-1].apart == pytest.approx(tuple(last))
    assert found.stretches[0].apart == pytest.approx((0, 0), abs=1e-6)  # only the window that starts with it
    assert found.stretches[3].apart[0] > 1e-4
    labels = sequences[0].labels
    assert labels is not None
    expected = metrics.score(carried[0][80:], np.nan_to_num(labels.values[80:]), labels.valid[80:])
    assert found.stretches[-1].carried.mean_ccc == pytest.approx(expected.mean_ccc)
    plain = found.to_dict()
    assert plain["stretches"][-1]["carried"]["mean_ccc"] == pytest.approx(expected.mean_ccc)
    assert (plain["size"], plain["stride"]) == (40, 20)


def test_one_window_is_the_same_as_carrying() -> None:
    found = compare_ways(trained("mamba-va"), [sequence(2, 60)], WindowScheme(None, None))
    assert max(found.largest) < 1e-5


def test_without_labels_there_is_only_the_distance() -> None:
    found = compare_ways(trained(), [sequence(3, 60, labelled=False)], WindowScheme(20, 10))
    assert found.whole.n == 0
    assert found.to_dict()["whole"]["carried"]["mean_ccc"] is None
    assert found.whole.apart[0] > 0


@pytest.mark.parametrize(
    ("name", "sequences", "message"),
    [("tcn-transformer", [sequence(0, 30)], "is not causal"), ("gru", [], "no frames"), ("gru", [0], "no frames")],
)
def test_what_has_no_two_ways(name: str, sequences: list[Any], message: str) -> None:
    given = [sequence(0, 0) if s == 0 else s for s in sequences]
    with pytest.raises(InputError, match=message):
        compare_ways(trained(name), given)
