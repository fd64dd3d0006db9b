"""Rows under construction: batches of one shape, and a table on disk."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from affectrace.errors import OutputError
from affectrace.features.base import ExtractorId, Features
from affectrace.features.rows import RowBatches, finite_rows
from affectrace.features.store import FeatureStore
from affectrace.timeline import Timeline


def sums(batch: np.ndarray) -> np.ndarray:
    """A network: (B, k) to (B, 2), the sum of an item and the same plus one."""
    total = batch.sum(axis=1, dtype=np.float32)
    return np.stack([total, total + 1], axis=1)


def test_batches_have_one_shape(tmp_path: Path) -> None:
    seen = list[tuple[int, ...]]()
    batches = RowBatches(lambda x: seen.append(x.shape) or sums(x), 2, 4, scratch=tmp_path)  # type: ignore[func-returns-value]
    for k in range(5):
        batches.add(np.array([k, 1.0], np.float32))
    np.testing.assert_array_equal(batches.rows()[:, 0], [1, 2, 3, 4, 5])
    assert seen == [(4, 2), (4, 2)]
    found = batches.rows(np.array([4, -1, 0]))
    np.testing.assert_array_equal(found[:, 1], [6, np.nan, 2])
    assert finite_rows(found).tolist() == [True, False, True]
    assert not list(tmp_path.iterdir())  # the file has no name


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        RowBatches(sums, 2, 4, scratch=tmp_path / "file")


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    """20,000 x 1024 float32 are 82 MB; a block of 4096 rows is 17 MB, of which few are held at once."""
    n, some = 20_000, np.random.default_rng(0).normal(size=(100, 1024)).astype(np.float32)
    tracemalloc.start()
    batches = RowBatches(lambda x: x, 1024, 4, scratch=tmp_path)
    for _ in range(n // 100):
        batches.add(some)
    values = batches.rows(np.arange(n))
    table = Features("visual", Timeline.regular(n, 25), values, finite_rows(values), ExtractorId("net"))
    FeatureStore(tmp_path).put(table, "r")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(FeatureStore(tmp_path).get("net", "r").read()[-100:], some)
    assert peak < 60e6
