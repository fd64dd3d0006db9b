"""Comparison of extractors: when two are interchangeable, and what is reported when they are not."""

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
)
from affectrace.inference.run import TrainedModel, sequence_config
from affectrace.models import checkpoint
from affectrace.sequences import Sequence
from affectrace.timeline import Timeline

A = ExtractorId("mae-vit-l", "aa" * 32, {"side": 224, "compute": "float32"}, tuned_on={})
B = replace(A, weights_sha256="bb" * 32)
OLDER = ExtractorId("mae-vit-l")  # only the name is recorded
TABLE = ExtractorId("study-sensors", "", {"table": {"path": "{id}.csv"}}, ("hr", "eda"))
TUNED = replace(A, tuned_on={"data": [{"name": "d"}], "training": ["a"], "validation": ["b"]})


@pytest.mark.parametrize(
    ("mine", "other", "difference"),
    [
        (A, A, ""),
        (A, replace(A, preprocessing={"side": 224, "compute": "bfloat16"}), ""),
        (A, TUNED, ""),
        (A, OLDER, ""),
        (A, B, "different weights"),
        (A, replace(A, name="swin-b"), "different extractors"),
        (A, replace(A, preprocessing={"side": 96}), "different preprocessing: side 224 and 96"),
        (A, replace(A, columns=("x",)), "different columns: extra x"),
        # imported tables are compared by their columns
        (TABLE, replace(TABLE, name="pilot-sensors", preprocessing={"table": {"path": "x/{id}.csv"}}), ""),
        (TABLE, replace(TABLE, columns=("hr", "temp")), "different columns: missing eda, extra temp"),
        (TABLE, replace(TABLE, columns=("eda", "hr")), "different columns: the same in a different order"),
        (TABLE, A, "different extractors"),
    ],
)
def test_difference_of_two_extractors(mine: ExtractorId, other: ExtractorId, difference: str) -> None:
    assert mine.difference(other) == difference


def test_tuning_data_are_stored_but_not_part_of_the_identity() -> None:
    assert ExtractorId.from_dict(TUNED.to_dict()) == pickle.loads(pickle.dumps(TUNED)) == TUNED
    assert TUNED.digest() == A.digest() == replace(A, tuned_on=None).digest()
    older = {k: v for k, v in A.to_dict().items() if k != "tuned_on"}
    assert ExtractorId.from_dict(older).tuned_on is None
    assert seen_in_tuning({"visual": TUNED, "audio": A}, ["a", "b", "c"]) == {"visual": ("a",)}
    assert seen_in_tuning({"visual": TUNED}, ["a", "b", "c"], "validation") == {"visual": ("b",)}
    assert seen_in_tuning({"visual": replace(A, tuned_on=None)}, ["a"]) == {}
    more = replace(A, tuned_on={"data": [{"name": "d"}, {"name": "e"}], "training": ["c"], "validation": []})
    union = {"data": [{"name": "d"}, {"name": "e"}], "training": ["a", "c"], "validation": ["b"]}
    assert one_of([replace(A, tuned_on=None), TUNED, more, A]).tuned_on == union
    assert one_of([A, replace(A, tuned_on=None)]).tuned_on is None
    assert one_of([A, A]).tuned_on == {}


@pytest.mark.parametrize("damaged", [{"visual": {"name": "x"}}, ["visual"], {"visual": 3}])
def test_a_damaged_checkpoint_is_refused(damaged: Any) -> None:
    with pytest.raises(FormatError, match=r"config.json: 'extractors' is damaged"):
        extractors_of_training({"extractors": damaged})


def test_several_extractors_of_one_stream_are_named() -> None:
    (line,) = made_by_several({"visual": {"r1": A, "r2": A, "r3": B}, "audio": {"r1": TABLE, "r2": TABLE}})
    assert line == (
        "'visual' has features of different extractors: mae-vit-l (weights aaaaaaaa) in 2 recordings (first: r1), "
        "mae-vit-l (weights bbbbbbbb) in 1 recording (first: r3); different weights"
    )
    for order in ([A, OLDER, B], [OLDER, A, B], [B, A, OLDER]):
        assert len(made_by_several({"visual": dict(zip("xyz", order, strict=True))})) == 1
    assert made_by_several({"visual": {"x": OLDER, "y": A}}) == []


@pytest.mark.parametrize(
    ("kept", "found", "line"),
    [
        (A, A, None),
        (A, B, "was made by mae-vit-l (weights aaaaaaaa) in training and by mae-vit-l (weights bbbbbbbb) here"),
        (A.digest(), A, None),
        (A.digest(), replace(A, preprocessing={**A.preprocessing, "compute": "bfloat16"}), None),
        (A.digest(), B, "made with other weights or preprocessing in training than by mae-vit-l (weights bb"),
        (TABLE.digest(), replace(TABLE, preprocessing={"table": {"path": "y.csv"}}), None),
        (TABLE, replace(TABLE, columns=("hr",)), "here: different columns: missing eda"),
    ],
)
def test_features_are_compared_with_those_of_training(kept: Any, found: ExtractorId, line: str | None) -> None:
    lines = not_as_trained({"visual": kept}, {"visual": found})
    assert (lines == []) if line is None else (line in lines[0])


@pytest.mark.parametrize(
    ("name", "named"), [("mae-vit-l", "mae-vit-l=WEIGHTS"), ("ferplus", "ferplus"), ("mesh-geometry", "mesh-geometry")]
)
def test_the_command_that_makes_the_features_names_weights_only_where_they_are_a_choice(name: str, named: str) -> None:
    assert f"--features {named} --out" in how_to_make({"visual": ExtractorId(name, "cc" * 32)})


def test_a_trained_model_refuses_features_of_other_weights() -> None:
    clock = Timeline.regular(30, 25)
    network = checkpoint.create("gru", "tiny", input_dim=12)
    about = {"extractors": {"visual": A.to_dict()}}
    model = TrainedModel(
        model=network,
        id="gru@1",
        statistics=None,
        scheme=None,
        features={"visual": "mae-vit-l"},
        sequences=sequence_config(network),
        about=about,
    )
    table = Features("visual", clock, np.zeros((30, 12), np.float32), np.ones(30, bool), B)
    sequence = Sequence("r", clock, {"visual": table}, config=model.sequences)
    with pytest.raises(InputError, match=r"gru@1: 'visual' was made by .*aaaa.* in training and by .*bbbb.* here"):
        model.predict(sequence)
    assert replace(model, strict=False).predict(sequence).valid.all()
