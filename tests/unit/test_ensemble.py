"""Ensembles: weighted means of valid values on one clock."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from affectrace.errors import InputError
from affectrace.features.base import ExtractorId, Features
from affectrace.inference.ensemble import Ensemble, mean_trace
from affectrace.models import checkpoint
from affectrace.sequences import Sequence
from affectrace.timeline import Timeline
from affectrace.trace import Trace


def trace(valence: Any, arousal: Any, valid: Any = None, rate: int = 25, **changes: Any) -> Trace:
    n = len(valence)
    valid = np.ones(n, bool) if valid is None else np.array(valid, bool)
    v, a = (np.where(valid, x, np.nan) for x in (np.array(valence, float), np.array(arousal, float)))
    reason = np.where(valid, "", "no face")
    values: dict[str, Any] = {"recording_id": "r", "person": "main", "source": "m"} | changes
    return Trace(timeline=Timeline.regular(n, rate), valence=v, arousal=a, valid=valid, reason=reason, **values)


def test_a_frame_is_the_weighted_mean_of_what_is_there() -> None:
    one = trace([0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0], [1, 1, 0, 0], source="a")
    two = trace([-0.5, 0.1, 0.2, 0.3], [0.4, 0.4, 0.4, 0.4], [1, 0, 1, 0], source="b")
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


def test_models_that_read_different_features(tmp_path: Path) -> None:
    """A causal one and one that takes windows, of two streams; the same as averaging by hand."""
    clock, rng = Timeline.regular(50, 25), np.random.default_rng(0)
    tables = {
        m: Features(m, clock, rng.normal(0, 1, (50, d)).astype(np.float32), np.ones(50, bool), ExtractorId(m))
        for m, d in (("visual", 12), ("audio", 8))
    }
    plan = [("gru", "visual", 12, ["a", "b"]), ("tcn-transformer", "audio", 8, ["c"])]
    for i, (name, stream, dim, trained_on) in enumerate(plan):
        torch.manual_seed(i)
        about = {"features": {stream: stream}, "recordings": {"training": trained_on}}
        model = checkpoint.create(name, "tiny", modality=stream, input_dim=dim)
        checkpoint.save(model, tmp_path / name, preset="tiny", extra=about)
    ensemble = Ensemble.load([tmp_path / "gru", tmp_path / "tcn-transformer"], (1, 3))

    def opened(member: Any) -> Sequence:
        return Sequence("r", clock, {s: tables[s] for s in member.features}, config=member.sequences)

    found = ensemble.predict(opened)
    one, two = (m.predict(opened(m)) for m in ensemble.members)
    assert found.values == pytest.approx((one.values + 3 * two.values) / 4)
    assert np.abs(one.values - two.values).max() > 1e-3
    assert found.source == f"{ensemble.members[0].id}+{ensemble.members[1].id}"
