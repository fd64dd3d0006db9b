"""Feature files: exact round trips, equal bytes, slices that read no more than themselves."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from affectrace.errors import FormatError, InputError
from affectrace.features.base import ExtractorId, Features
from affectrace.features.store import FeatureFile, FeatureStore, open_features, write
from affectrace.timeline import Timeline

EXTRACTOR = ExtractorId("net", "ab" * 32, {"size": 224, "mean": [0.5, 0.4, 0.3], "layer": None}, ("a", "b", "c"))


def features(n: int = 50, dtype: type = np.float32, *, words: bool = False) -> Features:
    rng = np.random.default_rng(0)
    ticks = np.cumsum(rng.integers(1, 9, n))
    timeline = Timeline(ticks, Fraction(1, 90_000), int(ticks[-1]) + 5 if n else 0, Fraction(30000, 1001))
    valid = rng.random(n) < 0.8
    values = rng.normal(size=(n, 3)).astype(dtype)
    values[~valid] = np.nan
    utterances = ((0.1 + 0.2, 1 / 3), (2.0, 7.0)) if words else ()
    return Features("text", timeline, values, valid, EXTRACTOR, timeline.times + 1e-5 if words else None, utterances)


@pytest.fixture
def file(tmp_path: Path) -> FeatureFile:
    return open_features(write(tmp_path / "a.safetensors", features(), "r", source_sha256="s"))


@pytest.mark.parametrize("n", [0, 1, 50])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("words", [False, True])
def test_round_trip(tmp_path: Path, n: int, dtype: type, words: bool) -> None:
    made = features(n, dtype, words=words)
    path = write(tmp_path / "f" / "r.safetensors", made, "r", source_sha256="cd", versions={"affectrace": "1"})
    file = pickle.loads(pickle.dumps(open_features(path)))
    again = file.features()
    assert (again.timeline, again.timeline.nominal_rate) == (made.timeline, made.timeline.nominal_rate)
    assert again.values.dtype == dtype
    assert np.array_equal(again.values, np.where(made.valid[:, None], made.values, 0))
    assert np.array_equal(again.valid, made.valid)
    assert np.array_equal(again.ends, made.ends) if words else again.ends is None
    assert again.utterances == made.utterances
    assert again.extractor == EXTRACTOR
    assert (file.modality, file.dim, len(file), file.recording_id) == ("text", 3, n, "r")
    assert (file.source_sha256, dict(file.versions)) == ("cd", {"affectrace": "1"})
    file.verify()


def test_equal_features_are_equal_bytes(tmp_path: Path) -> None:
    a = write(tmp_path / "a.safetensors", features(), "r", versions={"a": "1", "b": "2"})
    b = write(tmp_path / "b.safetensors", features(), "r", versions={"b": "2", "a": "1"})
    assert a.read_bytes() == b.read_bytes()


def test_files_are_plain_safetensors(tmp_path: Path) -> None:
    made = features(words=True)
    with safe_open(write(tmp_path / "a.safetensors", made, "r"), "np") as file:
        assert set(file.keys()) == {"values", "ticks", "valid", "ends"}
        assert np.array_equal(file.get_slice("values")[3:7][made.valid[3:7]], made.values[3:7][made.valid[3:7]])
        assert json.loads(file.metadata()["affectrace.features"])["extractor"]["name"] == "net"
        assert np.array_equal(file.get_tensor("ticks"), made.timeline.ticks)


@pytest.mark.parametrize("rows", [slice(None), slice(0, 0), slice(3, 9), slice(40, 99), slice(-4, None), slice(9, 3)])
def test_slices_read_as_those_of_an_array(file: FeatureFile, rows: slice) -> None:
    whole = file.read()
    assert file.read(rows).shape == whole[rows].shape
    assert np.array_equal(file.read(rows), whole[rows])
    with pytest.raises(InputError, match="contiguous, got step 2"):
        file.read(slice(0, 10, 2))


def test_float16_refuses_values_that_exceed_it(tmp_path: Path) -> None:
    made = features()
    file = open_features(write(tmp_path / "a.safetensors", made, "r", precision="float16"))
    assert file.dtype == np.float16
    assert np.allclose(file.read()[made.valid], made.values[made.valid], rtol=1e-3)
    big = np.full((2, 1), 1e5, np.float32)
    huge = Features("visual", Timeline.regular(2, 1), big, np.ones(2, bool), ExtractorId("x"))
    with pytest.raises(InputError, match="values up to 100000 do not fit float16"):
        write(tmp_path / "b.safetensors", huge, "r", precision="float16")
    write(tmp_path / "b.safetensors", replace(huge, valid=np.zeros(2, bool)), "r", precision="float16")


def test_a_window_reads_no_more_than_its_bytes(tmp_path: Path) -> None:
    n, dim = 20_000, 128
    values = np.random.default_rng(0).normal(size=(n, dim)).astype(np.float16)
    made = Features("visual", Timeline.regular(n, 30), values, np.ones(n, bool), ExtractorId("x"))
    file = open_features(write(tmp_path / "big.safetensors", made, "r"))
    file.read(slice(0, 10))
    tracemalloc.start()
    window = file.read(slice(7_000, 8_000))
    assert tracemalloc.get_traced_memory()[1] < 1000 * dim * 2 + 100_000
    tracemalloc.stop()
    np.testing.assert_array_equal(window, values[7_000:8_000])


def test_a_store_is_a_folder_of_extractors(tmp_path: Path) -> None:
    folder = FeatureStore(tmp_path / "features")
    folder.put(features(), "b")
    folder.put(features(), "a", precision="float16")
    assert sorted(p.relative_to(folder.root).as_posix() for p in folder.root.rglob("*.*")) == [
        "net/a.safetensors",
        "net/b.safetensors",
    ]
    assert folder.get("net", "a").dtype == np.float16
    assert folder.extractors == ("net",)
    assert FeatureStore(tmp_path / "none", beside=folder).get("net", "b").recording_id == "b"
    with pytest.raises(FormatError, match=r"c\.safetensors: 'c' has no net features; run `affectrace extract`"):
        folder.get("net", "c")
    folder.path("net", "a").rename(folder.path("net", "c"))
    with pytest.raises(FormatError, match="holds features of 'a'"):
        folder.get("net", "c")
    for bad in ("", "..", "a/b", "a\\b"):
        with pytest.raises(InputError, match="cannot name a feature file"):
            folder.path("net", bad)
