"""Ensembles: weighted means of valid values on one clock."""

from __future__ import annotations

import numpy as np
import pytest

from affectrace.errors import InputError
from affectrace.inference.ensemble import Ensemble, mean_trace
from made_traces import trace

NAN = np.nan


def test_a_frame_is_the_weighted_mean_of_what_is_there() -> None:
    one = trace([0.5, 0.5, NAN, NAN], [0.0, 0.0, NAN, NAN], source="a")
    two = trace([-0.5, NAN, 0.2, NAN], [0.4, NAN, 0.4, NAN], source="b")
    found = mean_trace([one, two], (3, 1))
    assert found.valence[:3] == pytest.approx([0.25, 0.5, 0.2])
    assert found.arousal[:3] == pytest.approx([0.1, 0.0, 0.4])
    assert found.known.tolist() == [True, True, True, False]
    assert np.isnan(found.values[3]).all()
    assert found.reason.tolist() == ["", "", "", "no face"]
    assert found.source == "a+b"
    assert mean_trace([one, two], (0, 1)).known.tolist() == [True, False, True, False]  # of weight 0 nothing counts


def test_clocks_that_differ_are_brought_onto_the_first() -> None:
    found = mean_trace([trace([0.0, 0.0, 0.0, 0.0], [0.0] * 4), trace([0.4] * 8, [0.2] * 8, rate=50)])
    assert len(found) == 4
    assert found.valence == pytest.approx([0.2] * 4)


@pytest.mark.parametrize("other", [{"recording_id": "s"}, {"person": "left"}])
def test_traces_of_several_recordings_or_persons_have_no_mean(other: dict[str, str]) -> None:
    with pytest.raises(InputError, match="several recordings or persons"):
        mean_trace([trace([0.1], [0.1]), trace([0.1], [0.1], **other)])


@pytest.mark.parametrize(
    ("members", "weights"), [(0, ()), (1, (1, 2)), (1, (-1.0,)), (2, (0.0, 0.0)), (2, (1.0, np.nan)), (1, (np.inf,))]
)
def test_weights_that_are_not_one_for_each_model(members: int, weights: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=f"weights for {members} models"):
        Ensemble((None,) * members, weights)  # type: ignore[arg-type]
