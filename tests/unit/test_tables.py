"""Anyone's tables as a data set: files, clocks, scales, which columns are features, raters, words; and studyforrest."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from affectrace import config
from affectrace.datasets import open_dataset, read_raters
from affectrace.datasets.gold_standard import GoldConfig, RaterReport
from affectrace.datasets.table_columns import DefaultColumns
from affectrace.datasets.table_schema import TableDescription
from affectrace.datasets.tables import Imported, import_tables, read_table
from affectrace.errors import ConfigError, FormatError, InputError
from affectrace.features.base import Features
from affectrace.features.store import FeatureStore
from affectrace.media.transcript import read_transcript
from affectrace.sequences import SequenceConfig, open_sequences
from affectrace.trace import Trace

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "tables"
NAN = float("nan")


def csv(path: Path, header: str, rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header + "\n" + rows.replace(" ", "\n") + "\n")
    return path


def described(**values: Any) -> TableDescription:
    return config.from_dict(TableDescription, {"name": "mine", **values})


def imported(folder: Path, **values: Any) -> Imported:
    return import_tables(described(**values), folder, folder / "out")


def stored(folder: Path, name: str, recording: str) -> Any:
    return FeatureStore(folder / "out" / "features").get(name, recording).features()


def label(folder: Path, recording: str) -> Trace:
    return Trace.load(folder / "out" / "labels" / f"{recording}.parquet")


def said(made: Imported) -> list[tuple[str, int | None, str, str]]:
    return [(p.file, p.line, p.what, p.done) for p in made.problems]


def same(found: Any, expected: Any) -> bool:
    return np.array_equal(np.asarray(found, float), np.asarray(expected, float), equal_nan=True)


# ---- files


def npz(**arrays: np.ndarray) -> Any:
    return lambda path: np.savez(path, **arrays)


def frame(**columns: Any) -> Any:
    return lambda path: pd.DataFrame(columns).to_parquet(path)


AB = {"a": [1, 3], "b": [2.5, 4]}


@pytest.mark.parametrize(
    ("name", "content", "decimal", "expected"),
    [
        ("t.csv", "a,b\n1,2.5\n3,4\n", ".", AB),
        ("t.csv", "\ufeffa;b\r\n1;2.5\r\n3;4\r\n", ".", AB),
        ("t.tsv", "a\tb\n1\t2.5\n3\t4\n", ".", AB),
        ("t.txt", "a b\n1 2.5\n3 4\n", ".", AB),
        ("t.csv", "a, b\n1, 2.5\n3, 4\n", ".", AB),
        ("t.csv", "a;b\n1;2,5\n3;4\n", ",", AB),
        ("t.parquet", frame(a=[1.5, None], b=[1, 2]), ".", {"a": [1.5, NAN], "b": [1, 2]}),
        ("t.npz", npz(t=np.arange(2), emb=np.ones((2, 2))), ".", {"t": [0, 1], "emb_0": [1, 1], "emb_1": [1, 1]}),
    ],
)
def test_files_in_their_dialects(tmp_path: Path, name: str, content: Any, decimal: str, expected: Any) -> None:
    (tmp_path / name).write_text(content) if isinstance(content, str) else content(tmp_path / name)
    found = read_table(tmp_path / name, decimal)
    assert list(found) == list(expected)
    assert same([found[c] for c in found], list(expected.values()))


def bomb(path: Path) -> None:
    """A file of some kilobytes that stands for gigabytes."""
    if path.suffix == ".npz":
        np.savez(path, a=np.zeros(2))
        packed = path.read_bytes()
        size = packed.index(b"PK\x01\x02") + 24  # of the unpacked array, as the archive states it
        path.write_bytes(packed[:size] + (2**31).to_bytes(4, "little") + packed[size + 4 :])
    else:
        parquet.write_table(pa.table({f"c{i}": pa.nulls(2**18) for i in range(600)}), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("t.csv", None),
        ("t.xlsx", lambda p: p.write_bytes(b"x")),
        ("t.csv", lambda p: p.write_bytes(b"")),
        ("t.parquet", lambda p: parquet.write_table(pa.table([[1], [2]], names=["a", "a"]), p)),
        ("t.csv", lambda p: p.write_text("a,b\n1,2\n1,2,3,4\n")),
        ("t.csv", lambda p: p.write_text("a,b\n1,2,3\n4,5,6\n")),  # which column is which?
        ("t.csv", lambda p: p.write_text("a,b\n1,2\n3,ä\n", encoding="latin-1")),
        ("t.csv", lambda p: p.write_text("a,b\n1,2\n3,ä\n", encoding="utf-16")),
        ("t.parquet", lambda p: p.write_bytes(b"no")),
        ("t.parquet", bomb),
        ("t.npz", bomb),
        ("t.npz", lambda p: p.write_bytes(b"PK\x03\x04")),
        ("t.npz", npz(a=np.zeros((2, 2, 2)))),
        ("t.npz", npz(a=np.zeros(2), b=np.zeros(3))),
        ("t.npz", npz(a=np.array([{"x": 1}], dtype=object))),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, name: str, write: Any) -> None:
    if write is not None:
        write(tmp_path / name)
    with pytest.raises(FormatError, match=name):
        read_table(tmp_path / name)


# ---- clocks


def test_features_and_labels_at_rates_of_their_own(tmp_path: Path) -> None:
    csv(tmp_path / "f/a.csv", "x,y", "1,2 3,4 5,6")
    csv(tmp_path / "l/a.csv", "valence,arousal", "0.5,-0.5 1,-1")
    made = imported(
        tmp_path,
        features=[{"path": "f/{id}.csv", "rate_hz": "30000/1001", "modality": "audio"}],
        labels={"path": "l/{id}.csv", "rate_hz": 2},
    )
    f = stored(tmp_path, "mine-audio", "a")
    assert f.values.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert f.timeline.nominal_rate == Fraction(30000, 1001)
    assert f.extractor.columns == ("x", "y")
    assert label(tmp_path, "a").values.tolist() == [[0.5, -0.5], [1, -1]]
    assert label(tmp_path, "a").timeline.times.tolist() == [0, 0.5]
    assert (made.problems, dict(made.manifest.n_frames)) == ((), {"a": 2})


def series(folder: Path, header: str, rows: str, **how: Any) -> tuple[Imported, Features]:
    """An import of one feature table with times."""
    csv(folder / "a.csv", header, rows)
    made = imported(folder, features=[{"path": "{id}.csv", "time": "t", "modality": "m", **how}])
    return made, stored(folder, "mine-m", "a")


def test_units_and_odd_rows(tmp_path: Path) -> None:
    made, f = series(tmp_path, "t,x", "0,1 500,2 ,3 2000,5 1000,4 1000,9 1500,", unit_s="1/1000")
    assert f.timeline.times.tolist() == [0, 0.5, 1, 1.5, 2]
    assert f.values[:, 0].tolist() == [1, 2, 4, 0, 5]
    assert f.valid.tolist() == [True, True, True, False, True]
    assert f.timeline.end_s == 2.5
    assert said(made) == [
        ("a.csv", 4, "rows without a time: 1", "left out"),
        ("a.csv", 6, "rows that go back in time: 1", "sorted by time"),
        ("a.csv", 7, "rows at the same time as the one before: 1", "left out"),
        ("a.csv", 8, "rows of a with an empty cell: 1", "not valid"),
    ]


def test_decimal_times_are_exact(tmp_path: Path) -> None:
    """Times written with up to nine decimals are the frames' exact times, whatever float64 makes of them."""
    written = [f"{k * 0.033366667:.9f}" for k in range(50)]
    clock = series(tmp_path, "t,x", " ".join(f"{t},1" for t in written))[1].timeline
    assert [Fraction(int(k)) * clock.time_base for k in clock.ticks] == [Fraction(t) for t in written]
    microseconds = " ".join(f"{round(Fraction(t) * 10**6)},1" for t in written)
    clock = series(tmp_path, "t,x", microseconds, unit_s="1/1000000")[1].timeline
    assert [k % 1000 for k in clock.ticks.tolist()] == [0] * 50


def test_a_gap_between_rows_is_not_bridged(tmp_path: Path) -> None:
    rows = "0,1 1,2 2,3 9,4 10,5"
    made, f = series(tmp_path, "t,x", rows)
    assert f.timeline.times.tolist() == [0, 1, 2, 3, 9, 10]
    assert f.valid.tolist() == [True, True, True, False, True, True]
    assert said(made)[0] == ("a.csv", 4, "gaps longer than 3 s between rows: 1", "not valid there")
    made, f = series(tmp_path, "t,x", rows, max_gap_s=8)
    assert (len(f.timeline), made.problems) == (5, ())


def test_rows_may_have_ends_of_their_own(tmp_path: Path) -> None:
    _, f = series(tmp_path, "t,dur,x", "0,0.5,1 2,0.25,2", duration="dur")
    assert (f.extractor.columns, f.ends.tolist()) == (("x",), [0.5, 2.25])  # type: ignore[union-attr]


def test_spans_of_a_shared_clock(tmp_path: Path) -> None:
    csv(tmp_path / "rate.csv", "valence,arousal", "0,0 0.1,0 0.2,0 0.3,0 0.4,0")
    csv(tmp_path / "times.csv", "t,x", "0,10 1.5,11 2.5,12 4,13 ,14")
    spans = [{"id": "one", "start_s": 0, "end_s": "2.25"}, {"id": "two", "start_s": "2.25", "end_s": 5}]
    made = imported(
        tmp_path,
        recordings=spans,
        features=[{"path": "times.csv", "time": "t", "shared": True, "modality": "m"}],
        labels={"path": "rate.csv", "rate_hz": 1, "shared": True},
    )
    assert label(tmp_path, "one").valence.tolist() == [0, 0.1, 0.2]
    assert label(tmp_path, "two").valence.tolist() == [0.3, 0.4]
    assert label(tmp_path, "two").timeline.times.tolist() == [0.75, 1.75]
    assert stored(tmp_path, "mine-m", "two").timeline.times.tolist() == [0.25, 1.75]
    assert stored(tmp_path, "mine-m", "two").values[:, 0].tolist() == [12, 13]
    assert said(made) == [("times.csv", 6, "rows without a time: 1", "left out")]  # once, for both


def test_npz_arrays_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", emb=np.arange(6.0).reshape(3, 2), other=np.zeros(3))
    imported(tmp_path, features=[{"path": "{id}.npz", "rate_hz": 1, "modality": "n", "columns": ["emb"]}])
    assert stored(tmp_path, "mine-n", "a").extractor.columns == ("emb_0", "emb_1")


def test_one_table_of_all_recordings(tmp_path: Path) -> None:
    csv(tmp_path / "all.csv", "who,t,x,valence,arousal", "7,0,1,0,0 7,1,2,0,0 8,0,3,0.5,0.5 8,1,4,0.5,0.5")
    table = {"path": "all.csv", "time": "t", "recording": "who"}
    features = [{**table, "modality": "m", "columns": ["x"]}]
    made = imported(tmp_path, features=features, labels=table)
    assert [r.id for r in made.manifest] == ["7", "8"]
    assert stored(tmp_path, "mine-m", "8").values[:, 0].tolist() == [3, 4]
    assert label(tmp_path, "7").valence.tolist() == [0, 0]
    imported(tmp_path, recordings=[{"id": "x7", "columns": {"who": "7"}}, {"id": "8"}], features=features)
    assert stored(tmp_path, "mine-m", "x7").values[:, 0].tolist() == [1, 2]


@pytest.mark.parametrize("index", [[3, 2, 1, 0], [0, 0, 1, 1]])
def test_the_index_of_a_parquet_table_does_not_count(tmp_path: Path, index: list[int]) -> None:
    """pandas writes the index of a filtered, sorted or joined table."""
    rows = pd.DataFrame({"who": [*"aabb"], "t": [0, 1, 0, 1], "x": [1, 2, 3, 4]}, index)
    rows.to_parquet(tmp_path / "all.parquet")
    table = {"path": "all.parquet", "time": "t", "recording": "who", "modality": "m", "columns": ["x"]}
    imported(tmp_path, features=[table])
    assert [stored(tmp_path, "mine-m", r).values[:, 0].tolist() for r in "ab"] == [[1, 2], [3, 4]]


# ---- labels


@pytest.mark.parametrize(
    ("rows", "how", "expected", "reasons"),
    [
        ("1,9 5,5 9,3", {}, [[-1, 1], [0, 0], [1, -0.5]], ["", "", ""]),
        (
            "10,5 5, , 10,",
            {},
            [[NAN, 0], [0, NAN], [NAN, NAN], [NAN, NAN]],
            ["", "", "not labelled", "outside the scale"],
        ),
        ("5,-5 -5,-5 5,9", {"missing": [-5]}, [[0, NAN], [NAN, NAN], [0, 1]], ["", "not labelled", ""]),
    ],
)
def test_a_scale_becomes_minus_one_to_one_and_each_dimension_counts_by_itself(
    tmp_path: Path, rows: str, how: dict[str, Any], expected: list[list[float]], reasons: list[str]
) -> None:
    csv(tmp_path / "a.csv", "v,a", rows)
    labels = {"path": "{id}.csv", "rate_hz": 1, "valence": "v", "arousal": "a", "low": 1, "high": 9, **how}
    made = imported(tmp_path, labels=labels)
    trace = label(tmp_path, "a")
    assert same(trace.values, expected)
    assert trace.valid.tolist() == np.isfinite(expected).tolist()
    assert trace.reason.tolist() == reasons
    outside = [("a.csv", 2, "labels of a outside 1 to 9: 2", "not valid")] if "10" in rows else []
    assert said(made) == outside


@pytest.mark.parametrize("kind", ["labels", "rater files", "rater column"])
def test_a_table_may_have_one_of_the_two_dimensions(tmp_path: Path, kind: str) -> None:
    for r in ("r1", "r2"):
        csv(tmp_path / f"{r}/a.csv", "who,valence", f"{r},0.5 {r},-0.5 {r},0.25")
    table = {"rate_hz": 1, "path": "r1/{id}.csv"}
    given: dict[str, Any] = {
        "labels": {"labels": table},
        "rater files": {"raters": {"raters": ["r1", "r2"], "table": table | {"path": "{rater}/{id}.csv"}}},
        "rater column": {"raters": {"rater": "who", "table": table}},
    }[kind]
    made = imported(tmp_path, **given)
    assert label(tmp_path, "a").valid.all(axis=0).tolist() == [True, False]
    assert ("no column arousal", "not labelled") in [(p.what, p.done) for p in made.problems]
    assert len(read_raters(open_dataset(tmp_path / "out")[0])[0]) == len(made.panels)
    table["arousal"] = "excitement"  # a column that was named has to exist
    with pytest.raises(FormatError, match="has no column 'excitement'"):
        imported(tmp_path, labels=table)


def test_an_utterance_ends_at_its_own_end(tmp_path: Path) -> None:
    """Pauses are not labelled, an overlapping utterance is cut and reported, the last one does not go on."""
    rows = "0,2,0.5,10 3,4.5,0.25,20 4,6,0.75,30 6,7,1,40"
    csv(tmp_path / "a.csv", "start,end,valence,x", rows)
    table = {"path": "{id}.csv", "time": "start", "end": "end"}
    made = imported(tmp_path, labels=table, features=[{**table, "modality": "m", "columns": ["x"]}])
    trace = label(tmp_path, "a")
    assert trace.timeline.times.tolist() == [0, 2, 3, 4, 6]
    assert trace.timeline.end_s == 7
    assert same(trace.valence, [0.5, NAN, 0.25, 0.75, 1])
    assert ("a.csv", 3, "rows of a that overlap the next one: 1", "end where that begins") in said(made)
    causal, store = SequenceConfig(causal=True), FeatureStore(tmp_path / "out" / "features")
    (sequence,) = open_sequences(made.manifest, made.manifest, store, {"m": "mine-m"}, causal)
    piece = sequence.read()
    assert piece.inputs["m"][:, 0].tolist() == [10, 10, 10, 25, 40]  # the second ends within the third
    assert piece.mask[:, 0].tolist() == [True, False, True, True, True]


def test_a_label_of_a_whole_recording(tmp_path: Path) -> None:
    for name, n in (("a", 3), ("b", 5), ("c", 4)):
        csv(tmp_path / f"f/{name}.csv", "t,x", " ".join(f"{i},{i}" for i in range(n)))
    csv(tmp_path / "said.csv", "id,valence,who", "a,0.5,ann b,-0.5,bo")
    labels = {"path": "said.csv", "recording": "id"}
    features = [{"path": "f/{id}.csv", "time": "t", "columns": ["x"]}]
    made = imported(tmp_path, subject="who", labels=labels, features=features)
    assert [r.subject for r in made.manifest] == ["ann", "bo", None]
    assert made.manifest["c"].labels is None
    b = label(tmp_path, "b")
    assert (len(b), b.timeline.end_s, b.valence.tolist()) == (1, 5, [-0.5])
    streams, causal = {"features": "mine-features"}, SequenceConfig(causal=True)
    sequences = open_sequences(made.manifest, made.manifest, FeatureStore(tmp_path / "out/features"), streams, causal)
    assert [len(s) for s in sequences] == [1, 1, 4]
    assert sequences[1].read().inputs["features"].tolist() == [[2]]
    with pytest.raises(FormatError, match=r"how long a lasts is unknown; list it"):
        imported(tmp_path, labels=labels)


def test_a_delay_of_labels_without_raters(tmp_path: Path) -> None:
    csv(tmp_path / "a.csv", "valence", "0 0.25 0.5 0.75")
    labels = {"path": "{id}.csv", "rate_hz": 2, "arousal": None}
    assert imported(tmp_path, labels=labels, gold={"delay_s": 1.0}).problems == ()
    assert same(label(tmp_path, "a").valence, [0.5, 0.75, NAN, NAN])
    with pytest.raises(ConfigError, match="without raters only delay_s"):
        described(labels=labels, gold={"method": "ewe"})


def test_rows_marked_as_not_valid(tmp_path: Path) -> None:
    made, f = series(tmp_path, "t,x,ok", "0,5,1 1,0,0 2,7,1", valid="ok")
    assert (f.extractor.columns, f.valid.tolist()) == (("x",), [True, False, True])
    assert said(made)[-1] == ("a.csv", 3, "rows of a with ok 0: 1", "not valid")


# ---- default feature columns

N = 40


def sensors(seed: int, **more: Any) -> dict[str, Any]:
    """Columns of one recording: seconds, heart rate, valence, arousal, and others."""
    rng = np.random.default_rng(seed)
    hr, labels = rng.normal(70, 5, N).round(2), rng.uniform(-1, 1, (2, N)).round(3)
    return {"seconds": np.arange(N) / 10, "hr": hr, "valence": labels[0], "arousal": labels[1], **more}


def default(*recordings: dict[str, Any], one_file: bool = False) -> tuple[tuple[str, ...], dict[str, str]]:
    """Default feature columns, and those left out besides labels."""
    found = DefaultColumns(["seconds"], {"valence": "labels", "arousal": "labels"})
    for frame in map(pd.DataFrame, recordings):
        found.add(frame, np.arange(len(frame)), frame["seconds"].to_numpy())
    columns, left_out = found.chosen(one_file=one_file)
    return columns, {name: why for name, why in left_out.items() if why != "labels"}


SECONDS = {"path": "{id}.csv", "time": "seconds"}


def imported_sensors(folder: Path, tables: dict[str, dict[str, Any]], **how: Any) -> tuple[Imported, tuple[str, ...]]:
    """An import, and the columns of its features."""
    for name, columns in tables.items():
        pd.DataFrame(columns).to_csv(folder / f"{name}.csv", index=False)
    made = imported(folder, **{"features": [{"modality": "sensors", **SECONDS}], "labels": SECONDS} | how)
    return made, stored(folder, "mine-sensors", made.manifest.recordings[0].id).extractor.columns


@pytest.mark.parametrize(
    ("columns", "expected", "note", "needed"),
    [
        ([], ("hr",), "index (row counter); valence, arousal (labels): not used as features unless", False),
        (["index", "hr", "valence"], None, "valence named as features, but they are labels: kept;", True),
    ],
)
def test_labels_in_the_feature_file(
    tmp_path: Path, columns: list[str], expected: tuple[str, ...] | None, note: str, needed: bool
) -> None:
    tables = {n: {"index": np.arange(N)} | sensors(i) for i, n in enumerate("ab")}
    made, found = imported_sensors(tmp_path, tables, features=[{"modality": "sensors", "columns": columns, **SECONDS}])
    assert found == (expected or tuple(columns))
    assert made.notes[0].startswith(f"sensors: {note}")
    assert [(p.file, p.attention) for p in made.problems] == [("{id}.csv", needed)]


ODD = np.random.default_rng(0).permutation(N)
UP = np.cumsum(np.random.default_rng(0).integers(1, 5, N))


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("q7", np.arange(N), "row counter"),
        ("q7", np.arange(N) + 1.0, "row counter"),
        ("q7", np.arange(N) / 10 * 1000 + 1.6e12, "time"),  # milliseconds since 1970
        ("q7", (np.arange(N) / 10).round(1) + np.where(np.arange(N) % 2, 0.003, 0), "time"),  # rounded otherwise
        *((n, ODD, "time") for n in ("time", "Timestamp (ms)", "onset_s")),
        *((n, ODD, "row counter") for n in ("frame_id", "Unnamed: 0")),
        *((n, UP, None) for n in ("frame_mean", "endpoint", "index_finger")),
    ],
)
def test_counters_and_times_are_known_by_name_or_values(name: str, values: Any, why: str | None) -> None:
    columns, left_out = default(*(sensors(i, **{name: values}) for i in (0, 1)))
    assert columns == (("hr",) if why else ("hr", name))
    assert left_out == ({name: why} if why else {})


def test_columns_are_the_same_in_all_recordings() -> None:
    """A column that counts in one recording only is a feature in all; one that some tables lack is in none."""
    varied = sensors(9)["hr"]
    tables = sensors(0, steps=np.arange(N)), sensors(1, steps=varied, extra=varied), sensors(2, steps=varied)
    assert default(*tables) == (("hr", "steps"), {"extra": "not in every table"})


def test_a_counter_over_one_table_of_short_recordings(tmp_path: Path) -> None:
    table = sensors(0, n=np.arange(N) + 1, who=np.repeat(np.arange(N // 2), 2), seconds=np.arange(N) % 2)
    source = {"path": "all.csv", "time": "seconds", "recording": "who"}
    features = [{"modality": "sensors", **source}]
    made, columns = imported_sensors(tmp_path, {"all": table}, features=features, labels=source)
    assert (len(made.manifest), columns) == (N // 2, ("hr",))


def test_metadata_of_openface_are_not_features() -> None:
    metadata = {"frame": np.arange(N) + 1, "face_id": 0, "timestamp": (np.arange(N) / 30).round(3), "success": 1}
    confidence = {"confidence": np.random.default_rng(0).uniform(0.9, 1, N)}
    columns, left_out = default(sensors(0, **metadata, **confidence))
    assert columns == ("hr",)
    assert set(left_out.values()) == {"OpenFace metadata"}
    assert default(sensors(0, **confidence))[0] == ("hr", "confidence")  # a person's own rating


def test_features_that_nearly_equal_a_label_are_reported(tmp_path: Path) -> None:
    tables = {n: sensors(i) for i, n in enumerate("abc")}
    noise = np.random.default_rng(3).normal(size=(3, N))
    for columns, e in zip(tables.values(), noise, strict=True):
        columns["score"] = 50 - 20 * columns["arousal"] + 0.8 * e  # |r| about .998
        columns["like"] = columns["valence"] + 0.2 * e  # .95
    whole = np.corrcoef(*(np.concatenate([t[k] for t in tables.values()]) for k in ("score", "arousal")))[0, 1]
    made, found = imported_sensors(tmp_path, tables)
    assert found == ("hr", "score", "like")
    (_, note) = made.notes
    assert note.startswith(f"sensors: score nearly equals the labels' arousal (r {whole:.3f}, 120 rows): kept;")
    assert made.problems[-1].attention
    few = {n: {k: v[:3] for k, v in tables["a"].items()} for n in "abc"}  # nine rows are too few
    assert len(imported_sensors(tmp_path, few)[0].notes) == 1


# ---- raters, words


def test_raters_in_files_become_a_gold_standard(tmp_path: Path) -> None:
    for rater, level in (("r1", 0.2), ("r2", 0.6)):
        csv(tmp_path / f"{rater}/a.csv", "valence,arousal", f"{level},0 -{level},0.1 {level},0.2")
    table = {"path": "{rater}/{id}.csv", "rate_hz": 1}
    made = imported(tmp_path, raters={"raters": ["r1", "r2"], "table": table}, gold={"delay_s": 1.0})
    assert np.allclose(label(tmp_path, "a").valence[:2], [-0.4, 0.4])
    assert Trace.load(tmp_path / "out/raters/r2/a.parquet").valence.tolist() == [0.6, -0.6, 0.6]
    panels, gold = read_raters(made.manifest)
    assert gold == GoldConfig(delay_s=1.0)
    assert RaterReport.of(panels, gold).to_dict() == made.raters.to_dict()
    (tmp_path / "out/agreement.json").write_text('{"gold": {"method": "best"}}')
    with pytest.raises(FormatError, match="agreement.json"):
        read_raters(made.manifest)
    assert read_raters(made.manifest, []) == ((), GoldConfig())


def test_raters_in_a_column(tmp_path: Path) -> None:
    csv(tmp_path / "a.csv", "who,t,valence,arousal", "x,0,0,0 x,1,0.5,0 y,0,1,0 y,1,0.5,0 y,1,0.7,0")
    made = imported(tmp_path, raters={"rater": "who", "table": {"path": "{id}.csv", "time": "t"}})
    assert made.panels[0].raters == ("x", "y")
    assert label(tmp_path, "a").valence.tolist() == [0.5, 0.5]
    assert said(made) == [("a.csv", 6, "rows at the same time as the one before: 1", "left out")]


def marked(tmp_path: Path, spans: list[dict[str, Any]], rows: str, **how: Any) -> Imported:
    csv(tmp_path / "r.csv", "start,end,valence,arousal", rows)
    marks = {"path": "{rater}.csv", "values": {"POS": 1, "NEG": -1, "HIGH": 1, "LOW": -1}, "rate_hz": 1, **how}
    return imported(tmp_path, recordings=spans, raters={"raters": ["r"], "marks": marks})


MARKS = "0.5,2,POS,HIGH 1,1,NEG,HIGH 3,4.2,NEG,? 9,8,POS,LOW"


@pytest.mark.parametrize(
    ("how", "valence", "arousal"),
    [
        ({}, [1, 0, 0, -1, -1, 0], [1, 1, 0, 0, 0, 0]),
        ({"empty": "missing"}, [1, 0, NAN, -1, -1, NAN], [1, 1, NAN, NAN, NAN, NAN]),
        ({"values": {"POS": 0.5, "NEG": -1, "HIGH": 1}, "pool": "sign"}, [1, -1, 0, -1, -1, 0], [1, 1, 0, 0, 0, 0]),
    ],
)
def test_marks_count_in_every_step_they_touch(
    tmp_path: Path, how: dict[str, Any], valence: list[float], arousal: list[float]
) -> None:
    made = marked(tmp_path, [{"id": "a", "end_s": 6}], MARKS, **how)
    assert same(made.panels[0].values[:, 0].T, [valence, arousal])
    assert said(made)[0] == ("r.csv", 5, "marks without a span: 1", "left out")
    assert "unknown marks in arousal: ?" in said(made)[1][2]


def test_marks_are_shared_between_recordings_without_overlap(tmp_path: Path) -> None:
    whole = marked(tmp_path, [{"id": "a", "end_s": 6}], MARKS).panels[0].values
    spans = [
        {"id": "a", "end_s": "1.08"},
        {"id": "b", "start_s": "1.08", "end_s": "3.5"},
        {"id": "c", "start_s": "3.5", "end_s": 6},
    ]
    parts = marked(tmp_path, spans, MARKS).panels
    assert np.array_equal(np.concatenate([p.values for p in parts]), whole)
    assert parts[1].timeline.times.tolist() == pytest.approx([0.92, 1.92])


def test_marks_in_tenths_cancel_exactly_and_end_with_their_last(tmp_path: Path) -> None:
    """Three of +.1 and one of -.3 are nothing, not a rounding error that has a sign; 1.1 s at 10 Hz are 11 steps."""
    rows = "0,1.1,A,A 0,1.1,A,A 0,1.1,A,A 0,1.1,B,B"
    made = marked(tmp_path, [{"id": "a"}], rows, values={"A": 0.25, "B": -0.75}, pool="sign", rate_hz=10, shared=False)
    assert made.panels[0].values.shape == (11, 1, 2)
    assert not made.panels[0].values.any()


def test_words_become_a_transcript(tmp_path: Path) -> None:
    (tmp_path / "said.csv").write_text('start,end,text\n0,1,"Hello, you"\n2.5,3,  \n3,4,Again\n4,4,nothing\n')
    csv(tmp_path / "l.csv", "valence,arousal", "0,0 0,0 0,0 0,0 0,0 0,0")
    made = imported(
        tmp_path,
        recordings=[{"id": "a", "end_s": 2}, {"id": "b", "start_s": 2, "end_s": "3.5"}, {"id": "c", "start_s": 4}],
        labels={"path": "l.csv", "rate_hz": 1, "shared": True},
        words={"path": "said.csv", "shared": True},
    )
    a, b = (read_transcript(made.manifest[n].transcript) for n in "ab")  # type: ignore[arg-type]
    assert [(u.start_s, u.end_s, u.text) for u in a.utterances] == [(0, 1, "Hello, you")]
    assert [(u.start_s, u.end_s, u.text) for u in b.utterances] == [(1, 1.5, "Again")]
    assert made.manifest["c"].transcript is None


# ---- descriptions


T = {"path": "a.csv", "time": "t"}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, "give features, labels or raters"),
        ({"features": [T, T | {"rate_hz": 1}]}, r"features\[1\]: give either time"),
        ({"features": [T | {"path": "/a.csv"}]}, "path: .*'/a.csv'"),
        ({"features": [T | {"path": "../a.csv"}]}, "path"),
        ({"features": [T | {"end": "e", "duration": "d"}]}, "end or duration"),
        ({"features": [{"path": "a.csv", "rate_hz": "1e999999999"}]}, "rate_hz"),  # a gigabyte of digits
        ({"features": [T | {"path": "{id}.csv", "recording": "who"}]}, "recording column"),
        ({"features": [T | {"modality": m} for m in ("skin 1", "skin-1")]}, "a modality occurs twice"),
        ({"raters": {"raters": ["A/B", "A-B"], "table": T | {"path": "{rater}"}}}, "a rater occurs twice"),
        ({"labels": T | {"low": 1, "high": 1}}, "labels: low"),
        ({"labels": T | {"shared": True}}, "recordings"),
        ({"raters": {}}, "raters: give either table or marks"),
        ({"labels": T, "gold": {"max_shift_s": 1e9}}, "max_shift_s"),
        ({"raters": {"table": T}}, "raters: list `raters`"),
        ({"raters": {"raters": ["a"], "marks": {"path": "{rater}", "values": {"P": 2}}}}, "values"),
        ({"labels": T, "recordings": [{"id": "a"}, {"id": "a"}]}, r"an id occurs twice \(a\)"),
        ({"labels": T, "recordings": [{"id": "a", "end_s": 0}]}, r"recordings\[0\]"),
        ({"labels": T | {"time": 3}, "what": 1}, "labels.time.*; what"),
    ],
)
def test_invalid_descriptions(values: Mapping[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        described(**values)


@pytest.mark.parametrize(
    "content", ["", "{", "[" * 100_000, '{"name": ' + "1" * 5000 + "}", r'{"name": "\ud800", "labels": {"path": "a"}}']
)
def test_files_that_are_no_descriptions(tmp_path: Path, content: str) -> None:
    (tmp_path / "d.json").write_text(content)
    with pytest.raises(ConfigError, match=r"d\.json"):
        TableDescription.load(tmp_path / "d.json")


def test_decimals_without_quotes_are_exact() -> None:
    made = described(recordings=[{"id": "a", "start_s": 1752.08}], labels={"path": "a.csv", "rate_hz": 29.97})
    assert made.recordings[0].start_s == Fraction("1752.08")
    assert made.labels is not None
    assert made.labels.rate_hz == Fraction("29.97")


def test_tables_that_are_missing_are_named_together(tmp_path: Path) -> None:
    csv(tmp_path / "f/a.csv", "x", "1")
    entries = [{"id": n} for n in "abc"]
    features = [{"path": "f/{id}.csv", "rate_hz": 1, "modality": "m"}]
    with pytest.raises(FormatError, match=r"\(2\): f/b.csv, f/c.csv"):
        imported(tmp_path, recordings=entries, features=features)
    assert not (tmp_path / "out").exists()
    made = imported(tmp_path, recordings=entries[:1], features=features, labels={"path": "l/{id}.csv", "rate_hz": 1})
    assert made.manifest["a"].labels is None
    assert said(made) == [("l/a.csv", None, "no labels of a", "kept without labels")]


ONE = {"path": "{id}.csv", "time": "t"}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"features": [ONE | {"time": "seconds"}]}, "'seconds'; it has t, x, name"),
        ({"features": [ONE | {"columns": ["y"]}]}, "'y'"),
        ({"features": [ONE | {"columns": ["x"], "unit_s": "1e30"}]}, "too far"),
        ({"features": [{"path": "{id}.csv", "rate_hz": 1, "start_s": "1e30"}]}, "a.csv"),
        ({"features": [{"path": "b.csv", "time": "t"}]}, "no numeric column besides times"),
        ({"recordings": [], "features": [ONE | {"path": "none/{id}.csv"}]}, "no recordings found"),
        ({"recordings": [{"id": "a/b"}], "labels": {"path": "a.csv", "rate_hz": 1}}, "a/b"),
    ],
)
def test_tables_that_do_not_fit_their_description(tmp_path: Path, values: dict[str, Any], named: str) -> None:
    csv(tmp_path / "a.csv", "t,x,name", "2,1,z 3,1,z")
    csv(tmp_path / "b.csv", "t,name", "2,z 3,z")
    with pytest.raises(InputError, match=named):
        imported(tmp_path, **{"recordings": [{"id": "a"}]} | values)
    assert not (tmp_path / "out").exists()


def test_a_mark_of_some_bytes_does_not_make_steps_for_a_century(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="4000000000 steps"):
        marked(tmp_path, [{"id": "a", "end_s": 4e9}], MARKS)


def test_names_that_are_no_text_are_told_before_anything_is_written(tmp_path: Path) -> None:
    csv(tmp_path / os.fsdecode(b"\xff.csv"), "valence,arousal", "0,0")
    with pytest.raises(InputError, match="is not text; rename the file"):
        imported(tmp_path, labels={"path": "{id}.csv", "rate_hz": 1})
    assert not (tmp_path / "out").exists()


# ---- what is committed, and what is real


@pytest.mark.real
def test_studyforrest_with_its_nine_raters(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "studyforrest"
    if not folder.is_dir():
        pytest.skip(f"studyforrest not found in {real_data}")
    made = import_tables(TableDescription.load(EXAMPLES / "studyforrest.json"), folder, tmp_path)
    assert (made.problems, len(made.manifest), sum(made.manifest.n_frames.values())) == ((), 8, 7085)
    valence, _ = made.raters.agreement
    assert (valence.n_raters, valence.n_complete) == (9, 7085)
    assert made.raters.human is not None  # the figures that models are compared with
    assert made.raters.human.pooled.valence.ccc == pytest.approx(0.693, abs=5e-4)
    assert made.raters.human.pooled.arousal.ccc == pytest.approx(0.477, abs=5e-4)

    # the published labels are the mean of these raters
    derived = pd.read_csv(folder / "DERIVED_aligned_1hz.csv")
    gold = np.concatenate([p.values.mean(axis=1) for p in made.panels])
    for d, name in enumerate(("valence", "arousal")):
        assert np.corrcoef(gold[:, d], derived[name])[0, 1] > 0.98
    manifest, _ = open_dataset(tmp_path)
    sequences = open_sequences(manifest, manifest, FeatureStore(tmp_path / "features"), {"audio": "studyforrest-audio"})
    labels = np.concatenate([s.read().target for s in sequences])
    assert np.allclose(labels, derived[["valence", "arousal"]].to_numpy(), atol=1e-6)


# ---- bad input: file, line and remedy; what was there before stays

GOOD = "t,x,valence\n" + "".join(f"{i},{i % 3},{i % 9 + 1}\n" for i in range(20))


def changed(line: int, text: str) -> bytes:
    """The good table with another line, counted from 1."""
    lines = GOOD.splitlines()
    lines[line - 1] = text
    return ("\n".join(lines) + "\n").encode()


@pytest.mark.parametrize(
    ("content", "how", "line", "remedy"),
    [
        (changed(5, "3,0,4,9"), {}, 5, "quote cells that contain ','"),
        (changed(1, "t,x,x"), {}, 1, "rename one of them"),
        (GOOD.encode() + GOOD.encode().split(b"\n", 1)[1], {}, 22, "split them or name their column"),
        (changed(8, "1,0,4"), {}, 8, "sort the rows by time"),
        (
            "".join(f"{x}\n{x}\n" for x in GOOD.splitlines()).replace("t,x,valence\n", "", 1).encode(),
            {},
            3,
            "name the column",
        ),
        (
            b"id,valence\na,2\nb,2\na,3\n",
            {"time": None, "recording": "id", "end_s": 9},
            4,
            "one row for each recording",
        ),
        (GOOD.replace(",", ";").replace("\n", ",5\n").replace("valence,5", "valence").encode(), {}, 2, "--decimal=,"),
        (changed(4, "2,ü,3").decode().encode("latin-1"), {}, 4, "save it as UTF-8"),
        (GOOD.encode("utf-16"), {}, 1, "save it as UTF-8"),
        (GOOD.replace(",9\n", ",90\n").replace(",8\n", ",80\n").replace(",7\n", ",70\n").encode(), {}, 8, "low, high"),
        (GOOD.replace("\n", ":00\n").replace("valence:00", "valence").encode(), {"time": "valence"}, 2, "give seconds"),
    ],
    ids=lambda x: str(x)[:20] if isinstance(x, str | bytes) else None,
)
def test_bad_tables_name_line_and_remedy_and_change_nothing(
    tmp_path: Path, content: bytes, how: dict[str, Any], line: int, remedy: str
) -> None:
    """An import that fails leaves neither files of its own nor changes what was there."""
    (tmp_path / "good").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "good/a.csv").write_text(GOOD)
    (tmp_path / "bad/a.csv").write_bytes(content)
    end_s = how.pop("end_s", None)
    table = {"path": "{id}.csv", "time": "t"} | how
    if "recording" in table:
        table["path"] = "a.csv"
    values: dict[str, Any] = {"labels": {**table, "low": 1, "high": 9}}
    if end_s is not None:
        values["recordings"] = [{"id": n, "end_s": end_s} for n in "ab"]
    good = described(labels={"path": "{id}.csv", "time": "t", "low": 1, "high": 9})
    import_tables(good, tmp_path / "good", tmp_path / "out")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for out in ("out", "new"):
        with pytest.raises(FormatError, match=rf"a\.csv: line {line}\b.*{re.escape(remedy)}"):
            import_tables(described(**values), tmp_path / "bad", tmp_path / out)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_labels_that_fill_a_corner_of_their_scale_need_attention(tmp_path: Path) -> None:
    csv(tmp_path / "a.csv", "valence", " ".join(f"{i / 10}" for i in range(11)))
    made = imported(tmp_path, labels={"path": "{id}.csv", "rate_hz": 1, "low": 0, "high": 100, "arousal": None})
    assert [(p.line, p.what, p.attention) for p in made.problems] == [
        (2, "valence of a lies between 0 and 1, the scale is 0 to 100", True)
    ]


def test_a_new_import_replaces_an_earlier_one_and_keeps_other_features(tmp_path: Path) -> None:
    csv(tmp_path / "a.csv", "t,valence,x,who", "0,0.5,1,r 1,0.5,2,r")
    features = [{"path": "{id}.csv", "time": "t", "modality": "m"}]
    raters: dict[str, Any] = {"rater": "who", "table": {"path": "{id}.csv", "time": "t"}}
    imported(tmp_path, features=features, raters=raters)
    other = tmp_path / "out/features/minilm-l6/a.safetensors"
    other.parent.mkdir()
    other.write_text("extracted")
    made = imported(tmp_path, features=features, labels=raters["table"])
    assert other.read_text() == "extracted"
    assert read_raters(made.manifest) == ((), GoldConfig())
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
