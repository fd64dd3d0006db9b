"""Batches of one shape across recordings, and rows that wait on disk."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from affectrace.errors import InputError, OutputError
from affectrace.features.base import ExtractorId
from affectrace.features.batching import Batcher, RowFile, Tickets, row_numbers
from affectrace.features.store import open_features
from affectrace.features.store_write import Table, write_table
from affectrace.media.faces.pipeline import SeenFace
from affectrace.timeline import Timeline


class Sums:
    """A network: (B, k) to (B, 2), the sum of an item and one more. Remembers the batches it saw."""

    def __init__(self, *, leaks: bool = False) -> None:
        self.seen: list[tuple[int, ...]] = []
        self.leaks = leaks

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        self.seen.append(batch.shape)
        total = batch.sum(axis=1, dtype=np.float32)
        if self.leaks:
            total = total + np.float32(1e-7) * total.mean()
        return np.stack([total, total + 1], axis=1)


def values(rows: RowFile) -> list[float]:
    order = np.arange(len(rows))
    return [float(v) for piece in rows.read(order) for v in piece[:, 0]]


def test_batches_have_one_shape_and_rows_go_to_their_recordings(tmp_path: Path) -> None:
    network = Sums()
    batcher = Batcher(network, 4)
    a, b = RowFile(tmp_path, 2), RowFile(tmp_path, 2)
    for k in range(5):
        batcher.add(np.array([k, 1.0], np.float32), a)
    assert (len(a), a.waiting, len(batcher)) == (4, True, 1)
    for k in range(2):
        batcher.add(np.array([10 * k, 0.0], np.float32), b)
    batcher.flush()
    batcher.flush()  # nothing waits
    assert network.seen == [(4, 2), (4, 2)]
    assert values(a) == [1, 2, 3, 4, 5]
    assert values(b) == [0, 10]
    assert not a.waiting
    assert not b.waiting


def test_another_shape_goes_alone(tmp_path: Path) -> None:
    network = Sums()
    batcher, rows = Batcher(lambda x: network(x)[:, None].repeat(3, 1), 2, (4,)), RowFile(tmp_path, 2)
    batcher.add(np.ones(3, np.float32), rows, slice(1, 3))
    assert (network.seen, len(rows), len(batcher)) == ([(1, 3)], 2, 0)
    batcher.add(np.ones(4, np.float32), rows, slice(0, 1))
    batcher.flush()
    assert network.seen[1:] == [(2, 4)]
    assert values(rows) == [3, 3, 4]


def test_rows_in_any_order_and_rows_that_are_missing(tmp_path: Path) -> None:
    rows = RowFile(tmp_path / "new folder", 3)
    rows.append(np.array([[1, 2, 3], [4, np.inf, 6]], np.float32))
    assert rows.finite.tolist() == [True, False]
    (piece,) = rows.read(np.array([1, -1, 0, 0]))
    np.testing.assert_array_equal(piece, [[4, np.inf, 6], [np.nan] * 3, [1, 2, 3], [1, 2, 3]])
    assert list(rows.read(np.zeros(0, np.int64))) == []
    assert [len(p) for p in rows.read(np.zeros(5000, np.int64))] == [4096, 904]
    (nothing,) = RowFile(tmp_path, 3).read(np.array([-1]))
    assert np.isnan(nothing).all()
    assert not list((tmp_path / "new folder").iterdir())  # the file has no name
    rows.close()
    rows.append(np.zeros((1, 3), np.float32))  # of a recording that failed: dropped
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        RowFile(tmp_path / "file", 3)


def test_a_long_recording_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    """30,000 x 256 float32 are 31 MB; a piece of 4096 rows is 4 MB, and three or four of them are in hand at once."""
    rng = np.random.default_rng(0)
    peaks = []
    for n in (10_000, 30_000):
        tracemalloc.start()
        rows = RowFile(tmp_path, 256)
        expected = 0.0
        for _ in range(n // 100):
            some = rng.normal(size=(100, 256)).astype(np.float32)
            expected += float(some[0, 0])
            rows.append(some)
        table = Table("visual", ExtractorId("net"), Timeline.regular(n, 25), np.ones(n, bool), 256)
        path = write_table(tmp_path / "r.safetensors", table, rows.read(np.arange(n)), "r")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        found = open_features(path)
        found.verify()
        assert float(found.read()[::100, 0].sum(dtype=np.float64)) == pytest.approx(expected)
    assert peaks[1] < 1.2 * peaks[0] < 25e6


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([np.ones((2, 3))], "2 rows of values do not fit 3"),
        ([np.ones((2, 3)), np.ones((2, 3))], r"values \(2, 3\) do not fit \(3, 3\)"),
        ([np.ones((3, 2))], r"values \(3, 2\) do not fit \(3, 3\)"),
        ([np.full((3, 3), np.nan)], "a valid row holds NaN or infinity"),
        ([np.full((3, 3), 70_000.0)], "values up to 70000 do not fit float16; store them as float32"),
    ],
)
def test_pieces_that_do_not_fit_leave_no_file(tmp_path: Path, pieces: list[np.ndarray], message: str) -> None:
    table = Table("visual", ExtractorId("net"), Timeline.regular(3, 25), np.ones(3, bool), 3)
    with pytest.raises(InputError, match=f"r: {message}"):
        write_table(tmp_path / "r.safetensors", table, pieces, "r", precision="float16")
    assert not list(tmp_path.iterdir())


def test_an_error_is_told_to_every_recording_of_the_batch(tmp_path: Path) -> None:
    def broken(batch: np.ndarray) -> np.ndarray:
        raise RuntimeError("out of memory")

    batcher = Batcher(broken, 2)
    a, b, c = (RowFile(tmp_path, 2) for _ in range(3))
    for rows in (a, b, c):
        batcher.add(np.zeros(2, np.float32), rows)
    assert str(a.error) == str(b.error) == "out of memory"
    assert c.error is None
    assert not a.waiting
    assert c.waiting


@pytest.mark.parametrize("leaks", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_rows_that_depend_on_neighbours_are_found_out(tmp_path: Path, leaks: bool, dtype: type) -> None:
    network = Sums(leaks=leaks)
    batcher, rows = Batcher(network, 4), RowFile(tmp_path, 2)
    batcher.add(np.ones(3, dtype), rows)
    assert batcher.independent is not leaks
    assert batcher.independent is not leaks
    assert network.seen == [(4, 3)] * 2  # tried once
    assert Batcher(network, 1).independent


class Box:
    width = 1

    def look(self, face: SeenFace) -> np.ndarray:
        return face.box

    def measure(self, looks: np.ndarray) -> np.ndarray:
        return looks[:, :1]


def test_tickets_find_their_rows(tmp_path: Path) -> None:
    rows = RowFile(tmp_path, 1)
    tickets = Tickets(Box(), Batcher(Box().measure, 2), rows)
    face = SeenFace(np.zeros((2, 2, 3), np.uint8), 0, 0.0, np.array([7.0, 0, 0, 0]), np.zeros((4, 2)), None)
    looks = np.stack([tickets.look(face) for _ in range(3)])
    assert values(rows) == [7, 7]
    tickets.n = far = (1 << 24) + 1  # beyond what one float32 counts
    measured = tickets.measure(looks)
    assert measured.dtype == np.float32
    assert row_numbers(measured).tolist() == [far, far + 1, far + 2]
    assert row_numbers(np.full((2, 2), np.nan, np.float32)).tolist() == [-1, -1]
