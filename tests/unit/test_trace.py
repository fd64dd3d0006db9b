from __future__ import annotations

import json
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from affectrace.errors import FormatError, InputError
from affectrace.timeline import Timeline
from affectrace.trace import NO_FACE, Span, Trace
from affectrace.trace_io import COLUMNS, sidecar_path


def make(n: int = 40, rate: Fraction | int = Fraction(30000, 1001), seed: int = 0, **changes: object) -> Trace:
    rng = np.random.default_rng(seed)
    valid = rng.random(n) > 0.2
    values: dict[str, object] = {
        "recording_id": "talk",
        "timeline": Timeline.regular(n, rate),
        "valence": np.tanh(rng.normal(size=n)),
        "arousal": np.tanh(rng.normal(size=n)),
        "valid": valid,
        "reason": np.where(valid, "", NO_FACE),
        "source": "zero-shot",
        "extras": {"confidence": rng.random(n), "face_x": np.where(valid, 10.5, np.nan), "face_valence": rng.random(n)},
        "spans": (Span("word", 0.5, 0.7, "b"), Span("utterance", 0.0, 1.0, "a, “b”", 0.25, -0.5, 0.9)),
        "provenance": {"model": {"name": "zero-shot"}, "notes": ["x"]},
    }
    return Trace(**{**values, **changes})  # type: ignore[arg-type]


def whole(n: int, rate: Fraction | int = 10, **changes: object) -> Trace:
    """A trace that is valid everywhere."""
    return make(n, rate, **{"valid": np.ones(n, bool), "reason": np.full(n, ""), "extras": {}, **changes})


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json"])
@pytest.mark.parametrize("n", [0, 1, 40])
def test_round_trip_is_exact(tmp_path: Path, suffix: str, n: int) -> None:
    trace = make(n)
    assert Trace.load(trace.save(tmp_path / f"t{suffix}")) == trace


def test_csv_has_openface_columns_first_and_leaves_unknown_ones_empty(tmp_path: Path) -> None:
    path = make(3, valid=[True, False, True], reason=["", NO_FACE, ""], extras={}).save(tmp_path / "t.csv")
    rows = path.read_text().splitlines()
    assert rows[0].split(",")[: len(COLUMNS)] == list(COLUMNS)
    assert rows[1].startswith("1,main,0.0,,,")
    first = dict(zip(rows[0].split(","), rows[1].split(","), strict=True))
    assert first["valence_sd"] == ""
    second = dict(zip(rows[0].split(","), rows[2].split(","), strict=True))
    assert (second["valence"], second["valid"], second["reason"]) == ("", "0", NO_FACE)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{}", "is not an affectrace trace"),
        ("a.json", "{", "not a readable trace"),
        ("a.json", '{"format": "affectrace.trace", "version": 99}', "version"),
        ("a.json", '{"format": "affectrace.trace", "version": 1}', "is not an affectrace trace"),
        ("a.parquet", "text", "not a readable trace"),
        ("a.txt", "text", "not a trace format"),
        ("a.csv", "time,valence\n0,1\n", "has no column timestamp, arousal"),
        ("a.csv", "", "not a readable trace"),
    ],
)
def test_foreign_files_are_refused_by_name(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(FormatError, match=message) as caught:
        Trace.load(path)
    assert str(path) in str(caught.value)


def changed(path: Path, key: str, value: object) -> Path:
    """A trace's JSON with one thing in it another: `key` is a path of names."""
    content = json.loads(make(3).save(path).read_text())
    *way, last = key.split(".")
    at = content
    for name in way:
        at = at[name]
    at[last] = "@"
    path.write_text(json.dumps(content).replace('"@"', value if isinstance(value, str) else json.dumps(value)))
    return path


WRONG = [
    ("recording_id", 5),
    ("timeline", []),
    ("timeline.time_base", '"1e400000000"'),
    ("timeline.time_base", '"1/' + "9" * 4000 + '"'),
    ("timeline.steps", [[1, 4_000_000]]),
    ("timeline.steps", [[1, -400_000_000], [1, 400_000_002]]),
    ("timeline.end", 10**30),
    ("timeline.end", "9" * 5000),
    ("extras", ["missing"]),
    ("spans", '[{"kind": "word", "start_s": 0, "end_s": 1e999}]'),
    ("provenance", "[" * 100_000 + "]" * 100_000),
    ("provenance", '{"a": ' * 300 + "1" + "}" * 300),
]
WRONG_FRAMES = [("frames.valid", ["a", {}, []]), ("frames.valence", ["a", {}, []]), ("frames.reason", [1, 2, 3])]


@pytest.mark.parametrize(
    ("suffix", "key", "value"),
    [(".json", *wrong) for wrong in WRONG + WRONG_FRAMES] + [(".csv", *wrong) for wrong in WRONG],
)
def test_wrong_types_and_sizes_are_refused_without_using_memory(
    tmp_path: Path, suffix: str, key: str, value: object
) -> None:
    path = changed(tmp_path / "t.json", key, value)
    if suffix == ".csv":  # the same header in a sidecar
        path.rename(sidecar_path(make(3).save(tmp_path / "t.csv")))
        path = tmp_path / "t.csv"
    tracemalloc.start()
    with pytest.raises(FormatError) as caught:
        Trace.load(path)
    assert tracemalloc.get_traced_memory()[1] < 2e7
    tracemalloc.stop()
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["=HYPERLINK(1)", "+1", "-1", "@a", "\tx", "'=x", "''-x", "'quoted'", "a=b", "\udc80"])
def test_a_name_is_no_formula_in_a_spreadsheet_and_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    trace = make(
        2,
        recording_id=name,
        person=name.encode("utf-8", "replace").decode(),
        valid=[False] * 2,
        reason=[name.strip("\udc80") or "x"] * 2,
    )
    path = trace.save(tmp_path / "t.csv")
    assert Trace.load(path) == trace
    shown = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert not shown.map(lambda text: text.startswith(("=", "+", "@", "\t"))).to_numpy().any()
    sidecar_path(path).unlink()
    assert Trace.load(path).person == trace.person


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"valence": np.full(40, 1.5)}, "outside"),
        ({"valence": np.full(40, np.nan)}, "outside"),
        ({"arousal": np.zeros(3)}, "arousal has shape"),
        ({"reason": np.full(40, "")}, "needs a reason"),
        ({"extras": {"confidence": np.zeros(2)}}, "confidence has shape"),
    ],
)
def test_refuses(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**changes)


def test_median_takes_an_outlier_out_and_mean_spreads_it() -> None:
    trace = whole(11, valence=np.arange(11) == 5)
    assert trace.smooth(0.3, "median").valence.max() == 0
    assert trace.smooth(0.3, "mean").valence[4:7] == pytest.approx([1 / 3] * 3)


def test_exponential_smoothing_is_causal_and_rate_independent() -> None:
    slow, fast = (whole(4 * r, r, valence=np.arange(4 * r) >= 2 * r).smooth(1, "exponential") for r in (10, 100))
    assert (slow.valence[:20] == 0).all()
    assert (slow.valence[29], fast.valence[299]) == pytest.approx([1 - np.exp(-1)] * 2, abs=1e-6)


@pytest.mark.parametrize("arguments", [("median",), (0,), (float("nan"),), (1, "gauss")])
def test_smoothing_refuses(arguments: tuple[object, ...]) -> None:
    with pytest.raises(InputError):
        make().smooth(*arguments)  # type: ignore[arg-type]


def test_resampling_holds_or_interpolates_between_valid_neighbours() -> None:
    ok, v = np.array([True, True, False, True]), np.array([0.0, 0.4, 0.0, 0.8])
    trace = make(4, 10, valence=v, arousal=v, valid=ok, reason=np.where(ok, "", NO_FACE), extras={"confidence": v})
    held = trace.resample(Timeline.regular(10, 20))
    assert held.known.tolist() == [True] * 4 + [False] * 2 + [True] * 2 + [False] * 2
    assert (held.reason[4], held.reason[8]) == (NO_FACE, "gap in the source")
    assert (held.valence[3], held.extras["confidence"][3]) == (0.4, 0.4)
    linear = trace.resample(20, "linear")
    assert linear.valence[[1, 3]] == pytest.approx([0.2, 0.4])  # the second is held: the next frame is invalid


def test_to_pandas_and_plot() -> None:
    assert list(make().to_pandas().columns)[:11] == list(COLUMNS)
    figure = make().plot()
    assert [d.name for d in figure.data] == ["valence", "arousal"]
