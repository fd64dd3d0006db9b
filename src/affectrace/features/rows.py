"""Batched extraction of feature rows into memory-mapped scratch files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import OutputError

if TYPE_CHECKING:  # a feature store needs no face networks
    from affectrace.media.faces.pipeline import SeenFace

Array = NDArray[np.float32]
BLOCK = 4096  # rows moved at a time
IN_MEMORY = 1 << 22  # largest table kept in memory, numbers


class RowBatches:
    """Rows (n, width) of one network for one recording, in the order in which items were added.

    The order of summation in linear algebra depends on the shape of the operands. Every batch therefore has `size`
    items, the last one padded with zeros, so a row depends neither on the length of the recording nor on other
    recordings.

    run: (size, ...) to (size, D) or (size, rows, D). scratch: folder for the unnamed file that holds the rows.
    """

    def __init__(
        self, run: Callable[[NDArray[Any]], Array], width: int, size: int, *, scratch: Path | None = None
    ) -> None:
        self.run, self.width, self.size, self.scratch = run, width, size, scratch
        self.n_added = 0
        self._n_rows = 0
        self._waiting: list[tuple[NDArray[Any], slice]] = []
        self._file = _scratch_file(scratch)

    def add(self, item: NDArray[Any], keep: slice = slice(None)) -> None:
        """Add an item of the common shape. keep: which of its rows to store."""
        self.n_added += 1
        self._waiting.append((item.copy(), keep))
        if len(self._waiting) == self.size:
            self._flush()

    def rows(self, order: NDArray[np.int64] | None = None) -> Array:
        """(T, width): all rows, or those numbered `order` (T,), where -1 gives NaN. Call it after the last `add`."""
        self._flush()
        self._file.flush()
        stored: Array = np.zeros((0, self.width), np.float32)
        if self._n_rows:
            stored = np.asarray(np.memmap(self._file, np.float32, "r", shape=(self._n_rows, self.width)))
        if order is None:
            return stored
        table = _empty_table(len(order), self.width, self.scratch)
        for first in range(0, len(order), BLOCK):
            numbers, block = order[first : first + BLOCK], table[first : first + BLOCK]
            block[numbers < 0] = np.nan
            block[numbers >= 0] = stored[numbers[numbers >= 0]]
        return table

    def _flush(self) -> None:
        if not self._waiting:
            return
        items, keeps = zip(*self._waiting, strict=True)
        self._waiting.clear()
        batch = np.zeros((self.size, *items[0].shape), items[0].dtype)
        batch[: len(items)] = items
        for keep, answer in zip(keeps, self.run(batch), strict=False):
            rows = np.ascontiguousarray(np.atleast_2d(answer)[keep], np.float32)
            self._n_rows += len(rows)
            try:
                self._file.write(rows.data)
            except OSError as error:
                raise _unwritable(self.scratch, error) from None


class FaceInput(Protocol):
    """An extractor that measures faces."""

    def look(self, face: SeenFace) -> NDArray[Any]:
        """The network's input for a face of the current frame."""
        ...


class NumberedRows:
    """A face observer (media.faces.pipeline) that adds faces to `RowBatches` and measures only their row numbers."""

    width = 1

    def __init__(self, extractor: FaceInput, batches: RowBatches) -> None:
        self.look, self.batches = extractor.look, batches

    def measure(self, looks: NDArray[Any]) -> Array:
        """(n, 1) row numbers, exact in float32 up to 16 million faces per recording."""
        first = self.batches.n_added
        for look in looks:
            self.batches.add(look)
        return np.arange(first, self.batches.n_added, dtype=np.float32)[:, None]


def row_numbers(measured: Array) -> NDArray[np.int64]:
    """(T, 1) measured row numbers of one person, NaN without a face, to (T,) integers, -1 without a face."""
    return np.nan_to_num(measured[:, 0], nan=-1).astype(np.int64)


def finite_rows(values: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """(T,) whether all values of a row of (T, D) are finite; reads block by block."""
    finite = np.empty(len(values), bool)
    for first in range(0, len(values), BLOCK):
        finite[first : first + BLOCK] = np.isfinite(values[first : first + BLOCK]).all(axis=1)
    return finite


def _empty_table(n: int, width: int, scratch: Path | None) -> Array:
    """An uninitialized (n, width) table; if large, a memory map of an unnamed file."""
    if n * width <= IN_MEMORY:
        return np.empty((n, width), np.float32)
    return np.asarray(np.memmap(_scratch_file(scratch), np.float32, "w+", shape=(n, width)))


def _scratch_file(folder: Path | None) -> BinaryIO:
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=folder, prefix=".", suffix=".part")  # type: ignore[return-value]
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path | None, error: OSError) -> OutputError:
    what = f"cannot be written ({error.strerror or error})"
    return OutputError(what, where=folder or tempfile.gettempdir(), hint="choose a writable folder, or free some space")
