"""Valence and arousal are known or not each by itself: in traces, files, scores, losses, tables and means."""

from __future__ import annotations

import csv
import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from affectrace import Timeline, Trace, metrics, summary
from affectrace.errors import InputError
from affectrace.evaluate import compare, evaluate
from affectrace.features.base import ExtractorId, Features
from affectrace.inference.ensemble import mean_trace
from affectrace.losses import loss
from affectrace.sequences import Sequence
from affectrace.sequences.batches import collate
from affectrace.trace import NO_FACE
from affectrace.train.config import LossConfig

OTHER = {"valence": "arousal", "arousal": "valence"}


@st.composite
def traces(draw: Any, n: int | None = None) -> Trace:
    n = draw(st.integers(1, 40)) if n is None else n
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    valid = rng.random((n, 2)) < draw(st.sampled_from([0.2, 0.7, 1.0]))
    reason = np.where(valid.any(axis=1), "", NO_FACE)
    return Trace("r", Timeline.regular(n, 10), *rng.uniform(-1, 1, (2, n)), valid, reason, "m")


def only(trace: Trace, dimension: str) -> Trace:
    """The trace with one dimension of it unknown everywhere."""
    known = np.isfinite(getattr(trace, dimension))
    valid = np.stack([known & (d == dimension) for d in OTHER], axis=1)
    return replace(trace, valid=valid, reason=np.where(known, "", NO_FACE))


@settings(max_examples=60, deadline=None)
@given(traces(), st.sampled_from([".csv", ".parquet", ".json"]))
def test_files_keep_each_dimension(trace: Trace, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = trace.save(Path(folder) / f"t{suffix}")
        assert Trace.load(path) == trace
        if suffix == ".csv":
            rows = list(csv.DictReader(path.open(encoding="utf-8")))
            for name in OTHER:
                assert [bool(row[name]) for row in rows] == np.isfinite(getattr(trace, name)).tolist()
            assert [row["valid"] == "1" for row in rows] == trace.known.tolist()
            path.with_name(path.name + ".json").unlink()
            assert np.array_equal(Trace.load(path).valid, trace.valid)  # a table from elsewhere


def test_a_file_that_says_known_where_nothing_stands_is_refused(tmp_path: Path) -> None:
    path = Trace("r", Timeline.regular(1, 1), [0.5], [0.5], [True], [""], "m").save(tmp_path / "t.json")  # type: ignore[arg-type]
    content = json.loads(path.read_text())
    content["frames"]["valence"] = content["frames"]["arousal"] = [None]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError):
        Trace.load(path)


@settings(max_examples=60, deadline=None)
@given(traces(), st.sampled_from(["median", "mean", "exponential"]), st.sampled_from(["valence", "arousal"]))
def test_no_dimension_is_changed_by_what_is_known_of_the_other(trace: Trace, method: Any, dimension: str) -> None:
    alone = only(trace, dimension)
    for change in (
        lambda t: t.smooth(0.5, method),
        lambda t: t.resample(7),
        lambda t: t.resample(13, "linear"),
        lambda t: t.resample(3, "mean"),
        lambda t: mean_trace([t, t.smooth(1.0)], (2, 1)),
    ):
        a, b = change(trace), change(alone)
        np.testing.assert_array_equal(getattr(a, dimension), getattr(b, dimension))
        assert np.isnan(getattr(b, OTHER[dimension])).all()


@settings(max_examples=40, deadline=None)
@given(traces(n=30), traces(n=30), st.sampled_from(["valence", "arousal"]))
def test_scores_of_one_dimension_are_not_halved(labels: Trace, prediction: Trace, dimension: str) -> None:
    whole, alone = prediction.score(labels), prediction.score(only(labels, dimension))
    assert getattr(alone, dimension) == pytest.approx(getattr(whole, dimension), nan_ok=True)
    other = getattr(alone, OTHER[dimension])
    assert other.n == 0
    assert math.isnan(other.ccc)
    assert other.why_undefined == "no frames"
    assert alone.mean_ccc == pytest.approx(getattr(alone, dimension).ccc, nan_ok=True)
    flat = alone.to_dict()
    assert flat[f"n_{OTHER[dimension]}"] == 0
    assert flat["n"] == flat[f"n_{dimension}"] == getattr(alone, dimension).n


def test_tables_of_valence_alone() -> None:
    rng = np.random.default_rng(0)
    labels, predictions = [], []
    for name in "abc":
        truth = rng.uniform(-0.8, 0.8, (2, 50))
        ok = np.stack([np.ones(50, bool), np.zeros(50, bool)], axis=1)
        labels.append(Trace(name, Timeline.regular(50, 10), *truth, ok, np.full(50, ""), "labels"))
        seen = np.clip(truth + 0.1 * rng.normal(size=truth.shape), -1, 1)
        predictions.append(Trace(name, Timeline.regular(50, 10), *seen, ok | True, np.full(50, ""), "m"))
    found = evaluate(labels, predictions, n_draws=200)
    assert found.pooled.mean_ccc == found.pooled.valence.ccc > 0.9
    assert found.pooled.n_missing == 0
    assert found.intervals["mean_ccc"] == found.intervals["ccc_valence"]
    assert found.intervals["ccc_arousal"].n_units == 0
    assert f"{found.intervals['ccc_arousal']:.3f}" == "no interval"
    assert found.to_dict()["pooled"]["ccc_arousal"] is None
    compared = compare.compare(labels, {"a": predictions, "b": [t.smooth(1.0) for t in predictions]}, n_draws=200)
    assert compared.scores["a"].mean_ccc == compared.scores["a"].valence.ccc
    assert math.isnan(compared.differences[0].p["ccc_arousal"])
    row = summary(labels).iloc[0]
    assert row["valence_mean"] == pytest.approx(labels[0].valence.mean())
    assert row["share_valid"] == 1
    assert np.isnan([row["arousal_mean"], row["arousal_sd"], row["arousal_min"], row["q_excited"]]).all()


@settings(max_examples=40, deadline=None)
@given(traces(n=30), st.sampled_from(["valence", "arousal"]), st.sampled_from(["ccc", "mse", "mixture"]))
def test_the_loss_of_one_dimension_is_that_of_its_own(labels: Trace, dimension: str, kind: Any) -> None:
    """Compared with both dimensions being this one; a CCC loss is a sum, so it is twice that of one."""
    k = list(OTHER).index(dimension)
    torch.manual_seed(0)
    x = torch.randn(1, 30, 2, dtype=torch.float64, requires_grad=True)
    y = torch.from_numpy(np.nan_to_num(labels.values))[None]
    mask = torch.tensor(only(labels, dimension).valid)[None]
    value = loss(LossConfig(kind=kind), x, y, mask)
    value.backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert not x.grad[..., 1 - k].any()
    same = loss(LossConfig(kind=kind), *(z[..., [k, k]] for z in (x, y, mask)))
    assert float(value.detach()) == pytest.approx(float(same.detach()) / (2 if kind == "ccc" else 1), abs=1e-9)


def test_a_batch_carries_both_masks() -> None:
    valid = np.array([[True, False], [True, True], [False, False]])
    labels = Trace(
        "r",
        Timeline.regular(3, 1),
        [0.5, 0.25, 0.0],
        [0.5, 0.25, 0.0],
        valid,
        ["", "", NO_FACE],
        "labels",  # type: ignore[arg-type]
    )
    table = Features("visual", labels.timeline, np.zeros((3, 1), np.float32), np.ones(3, bool), ExtractorId("x"))
    sequence = Sequence("r", labels.timeline, {"visual": table}, labels)
    batch = collate([sequence.read()])
    assert batch.mask.tolist() == [valid.tolist()]
    assert batch.target.tolist() == [[[0.5, 0.0], [0.25, 0.25], [0.0, 0.0]]]
    assert sequence.n_labelled == 2


def test_both_masks_at_once_is_one_for_both() -> None:
    rng = np.random.default_rng(0)
    x, y, m = rng.uniform(-1, 1, (2, 20, 2))[0], rng.uniform(-1, 1, (20, 2)), rng.random(20) < 0.5
    assert metrics.score(x, y, m) == metrics.score(x, y, np.stack([m, m], axis=1))
