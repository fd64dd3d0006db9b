"""Which columns of one's own tables are features: never labels, times or counts of rows unless they are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from affectrace import config
from affectrace.datasets.table_schema import TableDescription, describe
from affectrace.datasets.tables import OPENFACE_COLUMNS, Imported, import_tables
from affectrace.features.store import FeatureStore

N = 40


def sensors(seed: int, **more: Any) -> dict[str, Any]:
    """Columns of one recording: seconds, heart rate, and what else is asked for."""
    rng = np.random.default_rng(seed)
    return {"seconds": np.arange(N) / 10, "hr": rng.normal(70, 5, N).round(2), **more}


def ratings(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng([seed, 1])
    return {"valence": rng.uniform(-1, 1, N).round(3), "arousal": rng.uniform(-1, 1, N).round(3)}


def written(folder: Path, tables: dict[str, dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, columns in tables.items():
        pd.DataFrame(columns).to_csv(folder / f"{name}.csv", index=False)
    return folder


def flagged(folder: Path) -> Imported:
    """`import FOLDER --features sensors={id}.csv --labels {id}.csv --time seconds`."""
    how = describe("mine", ["sensors={id}.csv"], "{id}.csv", time="seconds")
    return import_tables(how, folder, folder / "out")


def columns_of(made: Imported, folder: Path, name: str = "mine-sensors") -> list[tuple[str, ...]]:
    store = FeatureStore(folder / "out" / "features")
    return [store.get(name, r.id).extractor.columns for r in made.manifest]


def test_labels_in_the_feature_file_are_no_features(tmp_path: Path) -> None:
    folder = written(tmp_path, {n: {"index": np.arange(N)} | sensors(i) | ratings(i) for i, n in enumerate("ab")})
    made = flagged(folder)
    assert columns_of(made, folder) == [("hr",), ("hr",)]
    told = "sensors: index (counts rows); valence, arousal (labels)"
    done = "no features, unless `columns` in a description names them"
    assert made.notes == (f"{told}: {done}",)
    assert [(p.file, p.what, p.done, p.attention) for p in made.problems] == [("{id}.csv", told, done, False)]


def test_a_column_called_as_the_labels_is_none_in_any_file(tmp_path: Path) -> None:
    for i, n in enumerate("ab"):
        written(tmp_path / "s", {n: sensors(i) | {"Pleasure ": ratings(i + 5)["valence"]}})
        written(tmp_path / "l", {n: {"seconds": sensors(0)["seconds"]} | ratings(i)})
    labels = {"path": "l/{id}.csv", "time": "seconds", "valence": "pleasure", "arousal": "arousal"}
    for n in "ab":
        frame = pd.read_csv(tmp_path / "l" / f"{n}.csv").rename(columns={"valence": "pleasure"})
        frame.to_csv(tmp_path / "l" / f"{n}.csv", index=False)
    features = [{"modality": "sensors", "path": "s/{id}.csv", "time": "seconds"}]
    description = config.from_dict(TableDescription, {"name": "mine", "features": features, "labels": labels})
    made = import_tables(description, tmp_path, tmp_path / "out")
    assert columns_of(made, tmp_path) == [("hr",), ("hr",)]


def test_what_raters_marks_and_words_use_is_no_feature(tmp_path: Path) -> None:
    spans = {"begin": np.arange(N) / 10, "stop": np.arange(N) / 10 + 0.1, "joy": ratings(0)["valence"]}
    written(tmp_path, {"all": sensors(0) | spans | {"who": np.arange(N) % 2, "said": 3, "heat": ratings(0)["arousal"]}})
    rater = {"path": "all.csv", "time": "seconds", "valence": "joy", "arousal": "heat"}
    description = config.from_dict(
        TableDescription,
        {
            "name": "mine",
            "recordings": [{"id": "a"}],
            "features": [{"modality": "sensors", "path": "all.csv", "time": "seconds"}],
            "raters": {"rater": "who", "table": rater},
            "words": {"path": "all.csv", "start": "begin", "end": "stop", "text": "said"},
        },
    )
    made = import_tables(description, tmp_path, tmp_path / "out")
    assert columns_of(made, tmp_path) == [("hr", "said")]
    assert made.notes[0].startswith(
        "sensors: begin, stop (time); joy, heat (labels); who (whose row it is): no features"
    )


@pytest.mark.parametrize(
    ("column", "why"),
    [
        (np.arange(N), "counts rows"),
        (np.arange(N) + 1.0, "counts rows"),
        (np.arange(N) / 10 * 1000 + 1.6e12, "time"),  # milliseconds since 1970
        ((np.arange(N) / 10).round(1) + np.where(np.arange(N) % 2, 0.003, 0), "time"),  # rounded otherwise
    ],
)
def test_what_counts_or_keeps_time_is_known_by_its_course(tmp_path: Path, column: Any, why: str) -> None:
    folder = written(tmp_path, {n: sensors(i, q7=column) | ratings(i) for i, n in enumerate("ab")})
    made = flagged(folder)
    assert columns_of(made, folder) == [("hr",), ("hr",)]
    assert f"q7 ({why})" in made.notes[0]


@pytest.mark.parametrize("name", ["time", "Timestamp (ms)", "frame", "frame_id", "row", "Unnamed: 0", "onset_s"])
def test_well_known_names_are_enough(tmp_path: Path, name: str) -> None:
    odd = np.random.default_rng(0).permutation(N)
    folder = written(tmp_path, {"a": sensors(0, **{name: odd}) | ratings(0)})
    assert columns_of(flagged(folder), folder) == [("hr",)]


@pytest.mark.parametrize("name", ["pulse", "frame_mean", "endpoint", "timing", "index_finger", "rows"])
def test_what_only_looks_like_it_is_a_feature(tmp_path: Path, name: str) -> None:
    going_up = np.cumsum(np.random.default_rng(0).integers(1, 5, N))
    folder = written(tmp_path, {"a": sensors(0, **{name: going_up}) | ratings(0)})
    assert columns_of(flagged(folder), folder) == [("hr", name)]


def test_columns_are_the_same_in_all_recordings(tmp_path: Path) -> None:
    """A column that counts in one recording only is a feature in all; one that some tables lack is in none."""
    tables = {n: sensors(i, steps=ratings(i + 9)["valence"]) | ratings(i) for i, n in enumerate("abc")}
    tables["a"]["steps"] = np.arange(N)
    tables["b"]["extra"] = tables["b"]["hr"]
    folder = written(tmp_path, tables)
    made = flagged(folder)
    assert columns_of(made, folder) == [("hr", "steps")] * 3
    assert "extra (not in every table)" in made.notes[0]


def test_a_count_over_one_table_of_all_recordings(tmp_path: Path) -> None:
    """Recordings of one and two rows each say nothing alone: the whole table counts."""
    who = np.repeat(np.arange(N // 2), 2)
    table = sensors(0, n=np.arange(N) + 1, who=who) | ratings(0)
    table["seconds"] = np.arange(N) % 2
    written(tmp_path, {"all": table})
    source = {"path": "all.csv", "time": "seconds", "recording": "who"}
    values = {"name": "mine", "features": [{"modality": "sensors", **source}], "labels": source}
    made = import_tables(config.from_dict(TableDescription, values), tmp_path, tmp_path / "out")
    assert len(made.manifest) == N // 2
    assert columns_of(made, tmp_path) == [("hr",)] * (N // 2)


def test_openface_tables_give_what_the_face_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = {
        "frame": np.arange(N) + 1,
        "face_id": 0,
        "timestamp": (np.arange(N) / 30).round(3),
        "confidence": rng.uniform(0.9, 1, N),
        "success": 1,
        "AU12_r": rng.uniform(0, 5, N),
    }
    written(tmp_path, {"a": table})
    how = describe("mine", ["sensors={id}.csv"], time="timestamp")
    made = import_tables(how, tmp_path, tmp_path / "out")
    assert columns_of(made, tmp_path) == [("AU12_r",)]
    own = ", ".join(c for c in OPENFACE_COLUMNS if c != "timestamp")
    assert made.notes[0].startswith(f"sensors: {own} (OpenFace's own): no features")
    written(tmp_path, {"a": sensors(0, confidence=table["confidence"])})  # said by a person, say
    made = import_tables(describe("mine", ["sensors={id}.csv"], time="seconds"), tmp_path, tmp_path / "out")
    assert columns_of(made, tmp_path) == [("hr", "confidence")]


def test_what_is_named_is_taken_and_labels_are_warned_of(tmp_path: Path) -> None:
    folder = written(tmp_path, {n: {"index": np.arange(N)} | sensors(i) | ratings(i) for i, n in enumerate("ab")})
    source = {"path": "{id}.csv", "time": "seconds"}
    features = [{"modality": "sensors", "columns": ["index", "hr", "valence"], **source}]
    values = {"name": "mine", "features": features, "labels": source}
    made = import_tables(config.from_dict(TableDescription, values), folder, folder / "out")
    assert columns_of(made, folder) == [("index", "hr", "valence")] * 2
    assert made.notes == (
        "sensors: valence named as features, and they are the labels: kept; scores of a model that reads them mean "
        "nothing",
    )
    assert [p.attention for p in made.problems] == [True]


def test_a_feature_that_is_nearly_a_label_is_told(tmp_path: Path) -> None:
    tables = {n: sensors(i) | ratings(i) for i, n in enumerate("abc")}
    noise = np.random.default_rng(3).normal(size=(3, N))
    for columns, e in zip(tables.values(), noise, strict=True):
        columns["score"] = 50 - 20 * columns["arousal"] + 0.8 * e  # |r| about .998
        columns["like"] = columns["valence"] + 0.2 * e  # .95
    folder = written(tmp_path, tables)
    made = flagged(folder)
    assert columns_of(made, folder)[0] == ("hr", "score", "like")
    assert len(made.notes) == 2
    assert made.notes[1].startswith("sensors: score is nearly the labels' arousal (r -0.99")
    assert made.notes[1].endswith("120 rows): kept; leave it out if it was made of the labels")
    assert made.problems[-1].attention
    whole = np.corrcoef(*(np.concatenate([t[k] for t in tables.values()]) for k in ("score", "arousal")))[0, 1]
    assert f"(r {whole:.3f}, " in made.notes[1]


def test_nine_rows_are_too_few_to_be_nearly_anything(tmp_path: Path) -> None:
    table = {k: v[:9] for k, v in (sensors(0) | ratings(0)).items()}
    folder = written(tmp_path, {"a": table | {"copy": table["valence"]}})
    assert len(flagged(folder).notes) == 1
