"""Rows while they are made: batches of one shape, and a table that lies on disk."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from affectrace.errors import OutputError
from affectrace.features.base import ExtractorId, Features
from affectrace.features.rows import NumberedRows, RowBatches, finite_rows, row_numbers
from affectrace.features.store import FeatureStore
from affectrace.timeline import Timeline


class Sums:
    """A network: (B, k) to (B, 2), the sum of an item and one more. Remembers the batches it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        self.seen.append(batch.shape)
        total = batch.sum(axis=1, dtype=np.float32)
        return np.stack([total, total + 1], axis=1)


def test_batches_have_one_shape(tmp_path: Path) -> None:
    network = Sums()
    batches = RowBatches(network, 2, 4, scratch=tmp_path)
    for k in range(5):
        batches.add(np.array([k, 1.0], np.float32))
    np.testing.assert_array_equal(batches.rows()[:, 0], [1, 2, 3, 4, 5])
    assert network.seen == [(4, 2), (4, 2)]
    found = batches.rows(np.array([4, -1, 0]))
    np.testing.assert_array_equal(found[:, 1], [6, np.nan, 2])
    assert finite_rows(found).tolist() == [True, False, True]
    assert not list(tmp_path.iterdir())  # the file has no name


def test_an_item_of_another_shape_goes_alone_and_keeps_its_place() -> None:
    network = Sums()
    batches = RowBatches(lambda x: network(x)[:, None].repeat(3, 1), 2, 2, shape=(4,))
    batches.add(np.ones(4, np.float32), slice(0, 1))
    batches.add(np.ones(3, np.float32), slice(1, 3))
    batches.add(np.ones(4, np.float32), slice(0, 1))
    np.testing.assert_array_equal(batches.rows()[:, 0], [4, 3, 3, 4])
    assert network.seen == [(2, 4), (1, 3), (2, 4)]


def test_looks_find_their_rows() -> None:
    batches = RowBatches(Sums(), 2, 4)
    observer = NumberedRows(type("E", (), {"look": staticmethod(lambda face: face)})(), batches)
    first = observer.measure(np.ones((3, 2), np.float32))
    second = observer.measure(np.full((2, 2), 5, np.float32))
    track = np.concatenate([second[1:], np.full((1, 1), np.nan, np.float32), first[:1]])
    np.testing.assert_array_equal(row_numbers(track), [4, -1, 0])
    np.testing.assert_array_equal(batches.rows(row_numbers(track))[:, 0], [10, np.nan, 2])


def test_nothing_was_added() -> None:
    assert RowBatches(Sums(), 2, 4).rows().shape == (0, 2)
    assert np.isnan(RowBatches(Sums(), 2, 4).rows(np.array([-1, -1]))).all()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        RowBatches(Sums(), 2, 4, scratch=tmp_path / "file")


def test_a_long_recording_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    """60,000 x 256 float32 are 61 MB; a piece of 4096 rows is 4 MB, and a few of them are in hand at once."""
    rng = np.random.default_rng(0)
    peaks = []
    for n in (20_000, 60_000):
        tracemalloc.start()
        batches = RowBatches(lambda x: x, 256, 100, scratch=tmp_path)
        expected = 0.0
        for _ in range(n // 100):
            for item in (some := rng.normal(size=(100, 256)).astype(np.float32)):
                batches.add(item)
            expected += float(some[0, 0])
        values = batches.rows(np.arange(n))
        table = Features("visual", Timeline.regular(n, 25), values, finite_rows(values), ExtractorId("net"))
        FeatureStore(tmp_path).put(table, "r")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        found = FeatureStore(tmp_path).get("net", "r")
        found.verify()
        assert float(found.read()[::100, 0].sum(dtype=np.float64)) == pytest.approx(expected, abs=1e-3)
    assert peaks[1] < 1.3 * peaks[0] < 35e6
