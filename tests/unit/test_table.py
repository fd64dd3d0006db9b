"""Anyone's tables as a data set: files, clocks, scales, several raters, words; and studyforrest as it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from affectrace import config
from affectrace.datasets import open_dataset, read_raters
from affectrace.datasets.gold_standard import GoldConfig, human_row
from affectrace.datasets.manifest import Problem
from affectrace.datasets.table_schema import TableDescription, describe
from affectrace.datasets.tables import Imported, import_tables, read_table
from affectrace.errors import ConfigError, FormatError, InputError
from affectrace.features.store import FeatureStore
from affectrace.media.transcript import read_transcript
from affectrace.progress import ProgressEvent
from affectrace.sequences import SequenceConfig, open_sequences
from affectrace.trace import Trace

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "tables"


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


def said(problems: tuple[Problem, ...]) -> list[tuple[str, int | None, str, str]]:
    return [(p.file, p.line, p.what, p.done) for p in problems]


# ---- files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "a,b\n1,2.5\n3,4\n"),
        ("t.csv", "\ufeffa;b\r\n1;2.5\r\n3;4\r\n"),
        ("t.tsv", "a\tb\n1\t2.5\n3\t4\n"),
        ("t.txt", "a b\n1 2.5\n3 4\n"),
        ("t.csv", "a, b\n1, 2.5\n3, 4\n"),
    ],
)
def test_text_tables_in_their_dialects(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert {k: v.tolist() for k, v in read_table(tmp_path / name).items()} == {"a": [1, 3], "b": [2.5, 4]}


def test_decimal_commas_parquet_and_npz(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a;b\n1,5;2\n")
    assert read_table(tmp_path / "t.csv", decimal=",")["a"].tolist() == [1.5]
    pd.DataFrame({"a": [1.5, None], "b": ["x", "y"]}).to_parquet(tmp_path / "t.parquet")
    assert np.isnan(read_table(tmp_path / "t.parquet")["a"][1])
    np.savez(tmp_path / "t.npz", t=np.arange(3), emb=np.ones((3, 2)))
    assert list(read_table(tmp_path / "t.npz")) == ["t", "emb_0", "emb_1"]


def npz(**arrays: np.ndarray) -> Any:
    return lambda path: np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("t.csv", None, "no such table"),
        ("t.xlsx", lambda p: p.write_bytes(b"x"), "'.xlsx' is not a kind of table"),
        ("t.csv", lambda p: p.write_bytes(b""), "cannot be read as a table"),
        ("t.csv", lambda p: p.write_text("a,b\n1,2\n1,2,3,4\n"), "cannot be read as a table"),
        ("t.parquet", lambda p: p.write_bytes(b"no"), "cannot be read as a table"),
        ("t.npz", lambda p: p.write_bytes(b"PK\x03\x04"), "cannot be read as a table"),
        ("t.npz", lambda p: p.write_bytes(b""), "cannot be read as a table"),
        ("t.npz", npz(a=np.zeros((2, 2, 2))), "array 'a' has 3 dimensions"),
        ("t.npz", npz(a=np.zeros(2), b=np.zeros(3)), "arrays differ in length"),
        ("t.npz", npz(a=np.array([{"x": 1}], dtype=object)), "cannot be read as a table"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, name: str, write: Any, message: str) -> None:
    if write is not None:
        write(tmp_path / name)
    with pytest.raises(FormatError, match=message) as caught:
        read_table(tmp_path / name)
    assert name in str(caught.value)


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
    assert made.problems == ()
    assert dict(made.manifest.n_frames) == {"a": 2}


def test_times_units_and_odd_rows(tmp_path: Path) -> None:
    csv(tmp_path / "a.csv", "ms,x", "0,1 500,2 ,3 2000,5 1000,4 1000,9 1500,")
    made = imported(
        tmp_path, features=[{"path": "{id}.csv", "time": "ms", "unit_s": "1/1000", "modality": "m", "missing": [-5]}]
    )
    f = stored(tmp_path, "mine-m", "a")
    assert f.timeline.times.tolist() == [0, 0.5, 1, 1.5, 2]
    assert f.values[:, 0].tolist() == [1, 2, 4, 0, 5]
    assert f.valid.tolist() == [True, True, True, False, True]
    assert f.timeline.end_s == 2.5
    assert said(made.problems) == [
        ("a.csv", 4, "rows without a time: 1", "left out"),
        ("a.csv", 6, "rows that go back in time: 1", "sorted by time"),
        ("a.csv", 7, "rows at the same time as the one before: 1", "left out"),
        ("a.csv", None, "rows of a with an empty cell: 1", "not valid"),
    ]


def test_a_gap_between_rows_is_not_bridged(tmp_path: Path) -> None:
    csv(tmp_path / "a.csv", "t,x", "0,1 1,2 2,3 9,4 10,5")
    made = imported(tmp_path, features=[{"path": "{id}.csv", "time": "t", "modality": "m"}])
    f = stored(tmp_path, "mine-m", "a")
    assert f.timeline.times.tolist() == [0, 1, 2, 3, 9, 10]
    assert f.valid.tolist() == [True, True, True, False, True, True]
    assert said(made.problems)[0] == ("a.csv", 4, "gaps longer than 3 s between rows: 1", "not valid there")
    wide = imported(tmp_path, features=[{"path": "{id}.csv", "time": "t", "modality": "m", "max_gap_s": 8}])
    assert len(stored(tmp_path, "mine-m", "a").timeline) == 5
    assert wide.problems == ()


def test_numbers_that_stand_for_nothing(tmp_path: Path) -> None:
    csv(tmp_path / "a.csv", "x,valence,arousal", "1,0,0 -5,-5,0.5 9999,0.2,-5 x,0.1,0.1")
    made = imported(
        tmp_path,
        features=[{"path": "{id}.csv", "rate_hz": 1, "modality": "m", "columns": ["x"], "missing": [-5, 9999]}],
        labels={"path": "{id}.csv", "rate_hz": 1, "missing": [-5]},
    )
    assert stored(tmp_path, "mine-m", "a").valid.tolist() == [True, False, False, False]
    assert label(tmp_path, "a").valid.tolist() == [[True, True], [False, True], [True, False], [True, True]]
    assert said(made.problems) == [
        ("a.csv", None, "values of x that are not numbers: 1 (first: 'x')", "not valid"),
        ("a.csv", None, "rows of a with an empty cell: 3", "not valid"),
    ]


def test_a_scale_becomes_minus_one_to_one(tmp_path: Path) -> None:
    csv(tmp_path / "a.csv", "v,a", "1,9 5,5 9,3 10,5 5, 10,")
    made = imported(
        tmp_path, labels={"path": "{id}.csv", "rate_hz": 1, "valence": "v", "arousal": "a", "low": 1, "high": 9}
    )
    trace = label(tmp_path, "a")
    assert trace.values[:3].tolist() == [[-1, 1], [0, 0], [1, -0.5]]
    assert trace.valid[3:].tolist() == [[False, True], [True, False], [False, False]]
    assert trace.reason.tolist() == ["", "", "", "", "", "outside the scale"]
    assert said(made.problems) == [("a.csv", None, "labels of a outside 1 to 9: 2", "not valid")]


def test_one_table_of_all_recordings(tmp_path: Path) -> None:
    csv(tmp_path / "all.csv", "who,t,x,valence,arousal", "7,0,1,0,0 7,1,2,0,0 8,0,3,0.5,0.5 8,1,4,0.5,0.5")
    table = {"path": "all.csv", "time": "t", "recording": "who"}
    made = imported(tmp_path, features=[{**table, "modality": "m", "columns": ["x"]}], labels=table)
    assert [r.id for r in made.manifest] == ["7", "8"]
    assert stored(tmp_path, "mine-m", "8").values[:, 0].tolist() == [3, 4]
    assert label(tmp_path, "7").valence.tolist() == [0, 0]
    named = [{"id": "x7", "columns": {"who": "7"}}, {"id": "8"}]
    imported(tmp_path, recordings=named, features=[{**table, "modality": "m", "columns": ["x"]}])
    assert stored(tmp_path, "mine-m", "x7").values[:, 0].tolist() == [1, 2]


def test_spans_of_a_shared_clock(tmp_path: Path) -> None:
    csv(tmp_path / "rate.csv", "valence,arousal", "0,0 0.1,0 0.2,0 0.3,0 0.4,0")
    csv(tmp_path / "times.csv", "t,x", "0,10 1.5,11 2.5,12 4,13")
    spans = [{"id": "one", "start_s": 0, "end_s": "2.25"}, {"id": "two", "start_s": "2.25", "end_s": 5}]
    imported(
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


def test_rows_with_ends_of_their_own(tmp_path: Path) -> None:
    csv(tmp_path / "a.csv", "on,dur,x", "0,0.5,1 2,0.25,2")
    imported(tmp_path, features=[{"path": "{id}.csv", "time": "on", "duration": "dur", "modality": "m"}])
    f = stored(tmp_path, "mine-m", "a")
    assert f.ends.tolist() == [0.5, 2.25]
    assert f.extractor.columns == ("x",)


def test_an_npz_array_is_asked_for_by_its_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", emb=np.arange(6.0).reshape(3, 2), other=np.zeros(3))
    imported(tmp_path, features=[{"path": "{id}.npz", "rate_hz": 1, "modality": "m", "columns": ["emb"]}])
    assert stored(tmp_path, "mine-m", "a").extractor.columns == ("emb_0", "emb_1")


# ---- raters, words


def test_raters_in_files_become_a_gold_standard(tmp_path: Path) -> None:
    for rater, level in (("r1", 0.2), ("r2", 0.6)):
        csv(tmp_path / f"{rater}/a.csv", "valence,arousal", f"{level},0 -{level},0.1 {level},0.2")
    table = {"path": "{rater}/{id}.csv", "rate_hz": 1}
    made = imported(tmp_path, raters={"raters": ["r1", "r2"], "table": table}, gold={"method": "mean"})
    assert [r.id for r in made.manifest] == ["a"]
    assert np.allclose(label(tmp_path, "a").valence, [0.4, -0.4, 0.4])
    assert Trace.load(tmp_path / "out/raters/r2/a.parquet").valence.tolist() == [0.6, -0.6, 0.6]
    report = json.loads((tmp_path / "out/agreement.json").read_text())
    assert report["agreement"][0]["n_raters"] == 2
    assert report["agreement"][1]["mean_ccc"] == pytest.approx(1)
    assert made.raters.human is not None
    assert report["one_against_the_others"]["ccc_valence"] == pytest.approx(made.raters.human.pooled.valence.ccc)
    panels, gold = read_raters(made.manifest)
    assert gold == GoldConfig()
    assert human_row(panels, gold).to_dict() == made.raters.human.to_dict()
    (tmp_path / "out/agreement.json").write_text('{"gold": {"method": "best"}}')
    with pytest.raises(FormatError, match="agreement.json: method: .*; import the tables"):
        read_raters(made.manifest)
    assert read_raters(made.manifest, []) == ((), GoldConfig())


def test_raters_in_a_column(tmp_path: Path) -> None:
    csv(tmp_path / "a.csv", "who,t,valence,arousal", "x,0,0,0 x,1,0.5,0 y,0,1,0 y,1,0.5,0 y,1,0.7,0")
    table = {"path": "{id}.csv", "time": "t"}
    made = imported(tmp_path, raters={"rater": "who", "table": table})
    assert made.panels[0].raters == ("x", "y")
    assert label(tmp_path, "a").valence.tolist() == [0.5, 0.5]
    assert said(made.problems) == [("a.csv", 6, "rows at the same time as the one before: 1", "left out")]


MARKS = {"path": "{rater}.csv", "values": {"POS": 1, "NEG": -1, "HIGH": 1, "LOW": -1}, "rate_hz": 1}


def marked(tmp_path: Path, spans: list[dict[str, Any]], **how: Any) -> Imported:
    rows = "0.5,2,POS,HIGH 1,1,NEG,HIGH 3,4.2,NEG,? 9,8,POS,LOW"
    csv(tmp_path / "r.csv", "start,end,valence,arousal", rows)
    return imported(tmp_path, recordings=spans, raters={"raters": ["r"], "marks": {**MARKS, **how}})


@pytest.mark.parametrize(
    ("how", "valence", "arousal"),
    [
        ({}, [1, 0, 0, -1, -1, 0], [1, 1, 0, 0, 0, 0]),
        ({"empty": "missing"}, [1, 0, None, -1, -1, None], [1, 1, None, None, None, None]),
        ({"values": {"POS": 0.5, "NEG": -1, "HIGH": 1}, "pool": "sign"}, [1, -1, 0, -1, -1, 0], [1, 1, 0, 0, 0, 0]),
    ],
)
def test_marks_count_in_every_step_they_touch(
    tmp_path: Path, how: dict[str, Any], valence: list[float | None], arousal: list[float | None]
) -> None:
    made = marked(tmp_path, [{"id": "a", "end_s": 6}], **how)
    panel = made.panels[0]
    for found, expected in ((panel.values[..., 0], valence), (panel.values[..., 1], arousal)):
        assert [None if np.isnan(v) else v for v in found[:, 0]] == expected
    assert said(made.problems)[0] == ("r.csv", 5, "marks without a span: 1", "left out")
    assert "marks in arousal that mean nothing: ?" in said(made.problems)[1][2]


def test_marks_are_shared_between_recordings_without_overlap(tmp_path: Path) -> None:
    whole = marked(tmp_path, [{"id": "a", "end_s": 6}]).panels[0].values[:, 0, 0].tolist()
    spans = [
        {"id": "a", "end_s": "1.08"},
        {"id": "b", "start_s": "1.08", "end_s": "3.5"},
        {"id": "c", "start_s": "3.5", "end_s": 6},
    ]
    parts = marked(tmp_path, spans).panels
    assert [v for p in parts for v in p.values[:, 0, 0].tolist()] == whole
    assert parts[1].timeline.times.tolist() == pytest.approx([0.92, 1.92])


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


def test_a_few_flags_describe_the_usual_case(tmp_path: Path) -> None:
    csv(tmp_path / "eda/p1.csv", "time_s,eda", "0,1 1,2")
    csv(tmp_path / "va/p1.csv", "time_s,valence,arousal", "0,0,5 1,10,5")
    how = describe("lab", ["physiology=eda/{id}.csv"], "va/{id}.csv", time="time_s", low=0, high=10)
    made = import_tables(how, tmp_path, tmp_path / "out")
    assert label(tmp_path, "p1").values.tolist() == [[-1, 0], [1, 0]]
    assert stored(tmp_path, "lab-physiology", "p1").modality == "physiology"
    assert made.problems == ()
    rates = describe("lab", ["m={id}.csv"], "l/{id}.csv", rate_hz=Fraction(50), label_rate_hz=Fraction(10))
    assert rates.labels is not None
    assert (rates.features[0].rate_hz, rates.labels.rate_hz) == (50, 10)
    with pytest.raises(ConfigError, match="features without a modality: eda.csv"):
        describe("lab", ["eda.csv"], time="t")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give features, labels or raters"),
        ({"features": [{"path": "a.csv"}]}, r"features\[0\]: give either time \(a column\) or rate_hz"),
        ({"features": [{"path": "a.csv", "time": "t", "rate_hz": 1}]}, "give either time"),
        ({"features": [{"path": "/a.csv", "time": "t"}]}, "name a file below the description's folder, got '/a.csv'"),
        ({"features": [{"path": "../a.csv", "time": "t"}]}, "name a file below"),
        ({"features": [{"path": "a.csv", "time": "t", "end": "e", "duration": "d"}]}, "end or duration, not both"),
        ({"features": [{"path": "a.csv", "rate_hz": 1, "end": "e"}]}, "no end of their own"),
        ({"features": [{"path": "a.csv", "rate_hz": 0}]}, "rate_hz: must be positive"),
        ({"features": [{"path": "{id}.csv", "time": "t", "recording": "who"}]}, "needs no recording column"),
        ({"features": [{"path": "a.csv", "time": "t", "decimal": ""}]}, "decimal: one sign"),
        ({"features": [{"path": "a", "time": "t"}, {"path": "b", "time": "t"}]}, "a modality occurs twice"),
        ({"labels": {"path": "a.csv", "time": "t", "low": 1, "high": 1}}, "labels: low must lie below high"),
        ({"labels": {"path": "a.csv", "time": "t", "shared": True}}, "tables on a shared clock need them"),
        ({"raters": {}}, "raters: give either table or marks"),
        ({"raters": {"table": {"path": "a.csv", "time": "t"}}}, "raters: name them in `raters`"),
        ({"raters": {"raters": ["a"], "marks": {"path": "{rater}"}}}, "say what each word means"),
        ({"raters": {"raters": ["a"], "marks": {"path": "{rater}", "values": {"P": 2}}}}, "from -1 to 1"),
        ({"labels": {"path": "a", "time": "t"}, "recordings": [{"id": "a", "split": "dev"}]}, "one of train"),
        ({"labels": {"path": "a", "time": "t"}, "recordings": [{"id": "a", "end_s": 0}]}, "end_s must come after"),
        ({"labels": {"path": "a", "time": "t"}, "what": 1}, "what: unknown field"),
        ({"labels": {"path": "a", "time": 3}}, "labels.time: .*got 3"),
    ],
)
def test_descriptions_that_cannot_be(values: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        described(**values)


def test_decimals_without_quotes_mean_what_they_say() -> None:
    made = described(
        recordings=[{"id": "a", "start_s": 1752.08, "end_s": 2612.16}],
        labels={"path": "a.csv", "rate_hz": 29.97, "shared": True},
    )
    assert made.recordings[0].start_s == Fraction("1752.08")
    assert made.labels is not None
    assert made.labels.rate_hz == Fraction("29.97")


def test_tables_that_are_missing_are_named_together(tmp_path: Path) -> None:
    csv(tmp_path / "f/a.csv", "x", "1")
    entries = [{"id": n} for n in "abc"]
    features = [{"path": "f/{id}.csv", "rate_hz": 1, "modality": "m"}]
    with pytest.raises(FormatError, match=r"missing tables \(2\): f/b.csv, f/c.csv; check the paths"):
        imported(tmp_path, recordings=entries, features=features)
    assert not (tmp_path / "out").exists()
    made = imported(tmp_path, recordings=entries[:1], features=features, labels={"path": "l/{id}.csv", "rate_hz": 1})
    assert made.manifest["a"].labels is None
    assert said(made.problems) == [("l/a.csv", None, "no labels of a", "kept without labels")]


def test_columns_that_are_missing_and_tables_without_rows(tmp_path: Path) -> None:
    csv(tmp_path / "a.csv", "t,x,name", "0,1,z")
    for feature, message in (
        ({"time": "seconds"}, "has no column 'seconds'; it has t, x, name"),
        ({"time": "t", "columns": ["y"]}, "has no column 'y'"),
        ({"time": "t", "recording": "who", "path": "a.csv"}, "has no column 'who'"),
        ({"time": "x", "columns": ["t"], "recording": "name", "path": "a.csv"}, None),
    ):
        values = {"recordings": [{"id": "a"}], "features": [{"path": "{id}.csv", "modality": "m", **feature}]}
        if message is None:
            made = imported(tmp_path, **values)
            assert said(made.problems) == [("a.csv", None, "no row of a", "not valid")]
        else:
            with pytest.raises(FormatError, match=message):
                imported(tmp_path, **values)
    with pytest.raises(InputError, match="no recordings found"):
        imported(tmp_path, features=[{"path": "none/{id}.csv", "time": "t", "modality": "m"}])


def test_a_table_without_numbers_has_no_features(tmp_path: Path) -> None:
    csv(tmp_path / "a.csv", "t,name", "0,z")
    with pytest.raises(InputError, match="has no column of numbers besides times"):
        imported(tmp_path, features=[{"path": "{id}.csv", "time": "t", "modality": "m"}])


# ---- what is committed, and what is real


def test_the_example_of_physiological_signals(tmp_path: Path) -> None:
    events: list[ProgressEvent] = []
    description = TableDescription.load(EXAMPLES / "physiology.json")
    made = import_tables(description, EXAMPLES, tmp_path, progress=events.append)
    assert [p.what for p in made.problems] == [
        "gaps longer than 0.75 s between rows: 1",
        "rows of p01_a with an empty cell: 10",
    ]
    assert (events[0].done, events[-1].done, events[-1].total) == (0, 3, 3)
    manifest, _ = open_dataset(tmp_path)
    assert manifest.digest() == made.manifest.digest()
    assert manifest["p02_a"].split == "validation"
    store, streams = FeatureStore(tmp_path / "features"), {"physiology": "physiology-example-physiology"}
    first = open_sequences(manifest, manifest, store, streams, SequenceConfig(causal=True))[0]
    piece = first.read()
    assert piece.inputs["physiology"].shape == (120, 2)  # ratings are at 2 Hz
    assert piece.mask.all()
    assert not piece.valid["physiology"][62:69].any()  # nothing was sent from 30 to 35 s
    assert piece.valid["physiology"].sum() > 100


def test_an_import_made_twice_is_the_same_bytes(tmp_path: Path) -> None:
    description = TableDescription.load(EXAMPLES / "physiology.json")
    for out in ("one", "two"):
        import_tables(description, EXAMPLES, tmp_path / out)
    for path in sorted(p for p in (tmp_path / "one").rglob("*") if p.suffix in (".safetensors", ".json", ".csv")):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


@pytest.mark.real
def test_studyforrest_with_its_nine_raters(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "studyforrest"
    if not folder.is_dir():
        pytest.skip(f"studyforrest not found in {real_data}")
    made = import_tables(TableDescription.load(EXAMPLES / "studyforrest.json"), folder, tmp_path)
    assert made.problems == ()
    assert len(made.manifest) == 8
    assert sum(made.manifest.n_frames.values()) == 7085
    valence, arousal = made.raters.agreement
    assert (valence.n_raters, valence.n_complete) == (9, 7085)
    # one human against the mean of the others: the figures that models are compared with
    assert made.raters.human is not None
    assert made.raters.human.pooled.valence.ccc == pytest.approx(0.693, abs=5e-4)
    assert made.raters.human.pooled.arousal.ccc == pytest.approx(0.477, abs=5e-4)
    assert arousal.alpha < valence.alpha < valence.icc["2,k"]
    assert valence.alpha == pytest.approx(valence.icc["1,1"], abs=1e-3)  # without missing ratings they agree

    # the published labels are these raters' mean, and ours of the 25 Hz features is the aligned table's
    derived = pd.read_csv(folder / "DERIVED_aligned_1hz.csv")
    gold = np.concatenate([p.values.mean(axis=1) for p in made.panels])
    for d, name in enumerate(("valence", "arousal")):
        assert np.corrcoef(gold[:, d], derived[name])[0, 1] > 0.98
    manifest, _ = open_dataset(tmp_path)
    store = FeatureStore(tmp_path / "features")
    streams = {"audio": "studyforrest-audio", "visual": "studyforrest-visual"}
    sequences = open_sequences(manifest, manifest, store, streams)
    labels = np.concatenate([s.read().target for s in sequences])
    assert np.allclose(labels, derived[["valence", "arousal"]].to_numpy(), atol=1e-6)
    rms = sequences[0].read().inputs["audio"][:, 0]
    assert np.allclose(rms, derived["rms_mean"].to_numpy()[: len(rms)], atol=1e-6)
    starts = [float(entry.start_s) for entry in TableDescription.load(EXAMPLES / "studyforrest.json").recordings]
    for start, sequence in zip(starts, sequences, strict=True):
        rows = slice(int(np.ceil(start)), int(np.ceil(start)) + len(sequence))
        brightness = sequence.read().inputs["visual"][:, 0]
        assert np.corrcoef(brightness, derived["brmean_mean"].to_numpy()[rows])[0, 1] > 0.99
    assert read_transcript(manifest["run-1"].transcript).utterances  # type: ignore[arg-type]
