"""Feature files: exact round trips, equal bytes, slices that touch no more than themselves."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from affectrace.errors import FormatError, InputError
from affectrace.features.base import ExtractorId, Features
from affectrace.features.store import FeatureStore, open_features, write
from affectrace.timeline import Timeline

EXTRACTOR = ExtractorId("net", "ab" * 32, {"size": 224, "mean": [0.5, 0.4, 0.3], "layer": None}, ("a", "b", "c"))


def features(n: int = 50, dim: int = 3, dtype: type = np.float32, *, words: bool = False, seed: int = 0) -> Features:
    rng = np.random.default_rng(seed)
    ticks = np.cumsum(rng.integers(1, 9, n))
    timeline = Timeline(ticks, Fraction(1, 90_000), int(ticks[-1]) + 5 if n else 0, Fraction(30000, 1001))
    valid = rng.random(n) < 0.8
    values = rng.normal(size=(n, dim)).astype(dtype)
    values[~valid] = np.nan
    ends = timeline.times + 1e-5 if words else None
    return Features("visual", timeline, values, valid, EXTRACTOR, ends)


@pytest.mark.parametrize("n", [0, 1, 50])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("words", [False, True])
def test_what_is_written_is_read(tmp_path: Path, n: int, dtype: type, words: bool) -> None:
    made = features(n, dtype=dtype, words=words)
    path = write(tmp_path / "f" / "r.safetensors", made, "r", source_sha256="cd", versions={"affectrace": "1"})
    file = open_features(path)
    again = file.features()
    assert again.timeline == made.timeline
    assert again.timeline.nominal_rate == made.timeline.nominal_rate
    assert again.values.dtype == dtype
    assert np.array_equal(again.values[made.valid], made.values[made.valid])
    assert np.array_equal(again.valid, made.valid)
    assert np.array_equal(again.ends, made.ends) if words else again.ends is None
    assert again.extractor.digest() == EXTRACTOR.digest()
    assert (file.modality, file.dim, len(file)) == ("visual", 3, n)
    assert (file.header.recording_id, file.header.source_sha256) == ("r", "cd")
    assert dict(file.header.versions) == {"affectrace": "1"}
    file.verify()


def test_rows_that_are_not_valid_leave_nothing_behind(tmp_path: Path) -> None:
    made = features()
    stored = load_file(write(tmp_path / "a.safetensors", made, "r"))["values"]
    assert (stored[~made.valid] == 0).all()


def test_utterances_are_kept_and_a_file_without_them_opens(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.safetensors", features(words=True), "r")
    assert b"utterances" not in plain.read_bytes()
    assert open_features(plain).utterances == open_features(plain).features().utterances == ()
    spans = ((0.1 + 0.2, 1 / 3), (2.0, 7.0))
    file = open_features(write(tmp_path / "b.safetensors", replace(features(words=True), utterances=spans), "r"))
    assert file.utterances == spans
    assert file.features(slice(0, 2)).utterances == spans
    assert pickle.loads(pickle.dumps(file)).utterances == spans
    file.verify()
    with pytest.raises(InputError, match="utterances have times that are no numbers; check the transcript"):
        replace(features(), utterances=((0.0, math.nan),))


def test_utterances_that_are_no_pairs_are_a_damaged_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", replace(features(), utterances=((1.25, 2.5),)), "r")
    path.write_bytes(path.read_bytes().replace(b"[[1.25, 2.5]]", b"[[1.25     ]]"))
    with pytest.raises(FormatError, match="has a damaged header"):
        open_features(path)


def test_equal_features_are_equal_bytes(tmp_path: Path) -> None:
    first = write(tmp_path / "a.safetensors", features(), "r", versions={"a": "1", "b": "2"}).read_bytes()
    code = (
        "import sys; sys.path[:0] = ['tests/unit']; from test_store import features, write\n"
        f"write({str(tmp_path / 'b.safetensors')!r}, features(), 'r', versions={{'b': '2', 'a': '1'}})"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env={"PYTHONHASHSEED": "7"})
    assert (tmp_path / "b.safetensors").read_bytes() == first


def test_the_safetensors_library_reads_our_files(tmp_path: Path) -> None:
    made = features(words=True)
    path = write(tmp_path / "a.safetensors", made, "r")
    with safe_open(path, "np") as file:
        assert set(file.keys()) == {"values", "ticks", "valid", "ends"}
        assert np.array_equal(file.get_slice("values")[3:7][made.valid[3:7]], made.values[3:7][made.valid[3:7]])
        assert json.loads(file.metadata()["affectrace.features"])["extractor"]["name"] == "net"
        assert np.array_equal(file.get_tensor("ticks"), made.timeline.ticks)


@pytest.mark.parametrize(
    "rows", [slice(None), slice(0, 0), slice(3, 9), slice(40, 99), slice(-4, None), slice(9, 3), slice(60, 70)]
)
def test_any_slice_reads_as_an_array_does(tmp_path: Path, rows: slice) -> None:
    file = open_features(write(tmp_path / "a.safetensors", features(), "r"))
    whole = file.read()
    assert np.array_equal(file.read(rows), whole[rows])
    assert file.read(rows).shape == whole[rows].shape
    part = file.features(rows)
    assert np.array_equal(part.timeline.ticks, file.timeline.ticks[rows])


def test_slices_with_a_step_are_refused(tmp_path: Path) -> None:
    file = open_features(write(tmp_path / "a.safetensors", features(), "r"))
    with pytest.raises(InputError, match="contiguous, got step 2"):
        file.read(slice(0, 10, 2))


def test_writing_into_what_was_read_changes_no_file(tmp_path: Path) -> None:
    file = open_features(write(tmp_path / "a.safetensors", features(), "r"))
    before = file.read().copy()
    file.read()[:] = 7
    assert np.array_equal(file.read(), before)
    file.verify()


def test_float16_halves_the_values_and_refuses_what_does_not_fit(tmp_path: Path) -> None:
    made = features()
    file = open_features(write(tmp_path / "a.safetensors", made, "r", precision="float16"))
    assert file.dtype == np.float16
    assert np.allclose(file.read()[made.valid], made.values[made.valid], rtol=1e-3)
    big = np.full((2, 1), 1e5, np.float32)
    huge = Features("visual", Timeline.regular(2, 1), big, np.ones(2, bool), ExtractorId("x"))
    with pytest.raises(InputError, match="values up to 100000 do not fit float16; store them as float32"):
        write(tmp_path / "b.safetensors", huge, "r", precision="float16")
    unseen = Features("visual", Timeline.regular(2, 1), big, np.zeros(2, bool), ExtractorId("x"))
    write(tmp_path / "b.safetensors", unseen, "r", precision="float16")


# ---- a window costs its bytes


def test_a_window_reads_no_more_than_its_bytes(tmp_path: Path) -> None:
    n, dim = 20_000, 512
    values = np.random.default_rng(0).normal(size=(n, dim)).astype(np.float16)
    made = Features("visual", Timeline.regular(n, 30), values, np.ones(n, bool), ExtractorId("x"))
    file = open_features(write(tmp_path / "big.safetensors", made, "r"))
    file.read(slice(0, 10))
    tracemalloc.start()
    window = file.read(slice(7_000, 8_000))
    assert tracemalloc.get_traced_memory()[1] < 1000 * dim * 2 + 100_000
    tracemalloc.stop()
    np.testing.assert_array_equal(window, values[7_000:8_000])


# ---- identity


def test_matches_asks_for_extractor_and_source(tmp_path: Path) -> None:
    file = open_features(write(tmp_path / "a.safetensors", features(), "r", source_sha256="s"))
    assert file.matches(EXTRACTOR)
    assert file.matches(EXTRACTOR, "s")
    assert not file.matches(EXTRACTOR, "other")
    assert not file.matches(ExtractorId("net", "cd" * 32, EXTRACTOR.preprocessing, EXTRACTOR.columns))
    changed = {**EXTRACTOR.preprocessing, "size": 192}
    assert not file.matches(ExtractorId("net", EXTRACTOR.weights_sha256, changed, EXTRACTOR.columns))


def test_an_opened_file_travels_between_processes(tmp_path: Path) -> None:
    file = open_features(write(tmp_path / "a.safetensors", features(), "r"))
    again = pickle.loads(pickle.dumps(file))
    assert np.array_equal(again.read(), file.read())
    assert again.header == file.header


def test_a_store_is_a_folder_of_extractors(tmp_path: Path) -> None:
    folder = FeatureStore(tmp_path / "features")
    assert list(folder.files()) == []
    folder.put(features(), "b")
    folder.put(features(), "a", precision="float16")
    assert [p.relative_to(folder.root).as_posix() for p in folder.files()] == ["net/a.safetensors", "net/b.safetensors"]
    assert folder.get("net", "a").dtype == np.float16
    assert folder.extractors == ("net",)
    with pytest.raises(FormatError, match=r"c\.safetensors: 'c' has no net features; run `affectrace extract`"):
        folder.get("net", "c")
    folder.path("net", "a").rename(folder.path("net", "c"))
    with pytest.raises(FormatError, match="holds features of 'a'"):
        folder.get("net", "c")
    for bad in ("", "..", "a/b", "a\\b"):
        with pytest.raises(InputError, match="cannot name a feature file"):
            folder.path("net", bad)


def test_a_time_base_stays_exact(tmp_path: Path) -> None:
    timeline = Timeline.regular(1_000_000, Fraction(30000, 1001))
    made = Features("visual", timeline, np.zeros((1_000_000, 1)), np.ones(1_000_000, bool), ExtractorId("x"))
    again = open_features(write(tmp_path / "a.safetensors", made, "r")).timeline
    assert again == timeline
    assert again.time_of(999_999) == float(999_999 * Fraction(1001, 30000))
    assert not math.isclose(again.time_of(999_999), 999_999 / 29.97, rel_tol=1e-9)
