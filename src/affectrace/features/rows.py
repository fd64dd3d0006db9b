"""Rows of features while they are made: batches of one shape in, a table on disk out; memory does not grow."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from affectrace.errors import OutputError
from affectrace.media.faces.pipeline import SeenFace

Array = NDArray[np.float32]
BLOCK = 4096  # rows moved at a time
IN_MEMORY = 1 << 22  # numbers up to which a table is kept in memory


class RowBatches:
    """The rows (n, width) that one network gives for one recording, in the order in which items were added.

    Linear algebra chooses its order of summation by the shape of a product. Here a batch always has `size` items, the
    last one filled up with zeros, so a row does not depend on how long the recording is or what else is extracted.

    run: (size, ...) to (size, D), or (size, rows, D). shape: of the items that stand together; an item of another shape
    (sound shorter than a chunk) goes alone; None: all are of one shape. scratch: folder where the rows lie, in a file
    without a name.
    """

    def __init__(
        self,
        run: Callable[[NDArray[Any]], Array],
        width: int,
        size: int,
        *,
        shape: tuple[int, ...] | None = None,
        scratch: Path | None = None,
    ) -> None:
        self.run, self.width, self.size, self.shape, self.scratch = run, width, size, shape, scratch
        self.n_added = 0
        self._n_rows = 0
        self._waiting: list[tuple[NDArray[Any], slice | None]] = []
        self._file = _scratch_file(scratch)

    def add(self, item: NDArray[Any], keep: slice | None = None) -> None:
        """One more item. keep: which rows of its answer count; None: the answer is one row."""
        self.n_added += 1
        alone = self.shape is not None and item.shape != self.shape
        if alone:
            self._flush()
        self._waiting.append((item if item.base is None else item.copy(), keep))
        if alone or len(self._waiting) == self.size:
            self._flush(1 if alone else self.size)

    def rows(self, order: NDArray[np.int64] | None = None) -> Array:
        """(T, width), after the last item: all rows, or those `order` (T,) names; -1 gives a row of NaN."""
        self._flush()
        self._file.flush()
        stored: Array = np.zeros((0, self.width), np.float32)
        if self._n_rows and self.width:
            stored = np.asarray(np.memmap(self._file, np.float32, "r", shape=(self._n_rows, self.width)))
        if order is None:
            return stored
        table = empty_table(len(order), self.width, np.float32, self.scratch)
        for first in range(0, len(order), BLOCK):
            wanted = order[first : first + BLOCK]
            piece = table[first : first + BLOCK]
            piece[wanted < 0] = np.nan
            piece[wanted >= 0] = stored[wanted[wanted >= 0]]
        return table

    def _flush(self, size: int | None = None) -> None:
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        first = waiting[0][0]
        batch = np.zeros((size or self.size, *first.shape), first.dtype)
        for i, (item, _) in enumerate(waiting):
            batch[i] = item
        for (_, keep), answer in zip(waiting, self.run(batch), strict=False):
            rows = answer[None] if keep is None else answer[keep]
            self._n_rows += len(rows)
            try:
                self._file.write(np.ascontiguousarray(rows, np.float32).data)
            except OSError as error:
                raise _unwritable(self.scratch, error) from None


class LooksAtFaces(Protocol):
    """What measures faces: what it needs of the passing frame."""

    def look(self, face: SeenFace) -> NDArray[Any]: ...


class NumberedRows:
    """An observer of faces (media.faces.pipeline) that adds looks to a RowBatches and gives their running numbers."""

    width = 1

    def __init__(self, extractor: LooksAtFaces, batches: RowBatches) -> None:
        self.extractor, self.batches = extractor, batches

    def look(self, face: SeenFace) -> NDArray[Any]:
        return self.extractor.look(face)

    def measure(self, looks: NDArray[Any]) -> Array:
        """(n, 1) numbers, exact in float32 up to 16 million faces a recording."""
        first = self.batches.n_added
        for look in looks:
            self.batches.add(look)
        return np.arange(first, self.batches.n_added, dtype=np.float32)[:, None]


def row_numbers(numbers: Array) -> NDArray[np.int64]:
    """(T, 1) numbers of one person's looks to (T,) row numbers; -1 where the face was not seen."""
    seen = np.isfinite(numbers[:, 0])
    return np.where(seen, np.where(seen, numbers[:, 0], 0).astype(np.int64), -1)


def finite_rows(values: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """(T,) whether every number of a row is finite; (T, D) is read piece by piece."""
    found = np.empty(len(values), bool)
    for first in range(0, len(values), BLOCK):
        found[first : first + BLOCK] = np.isfinite(values[first : first + BLOCK]).all(axis=1)
    return found


def empty_table(n: int, width: int, dtype: DTypeLike, scratch: Path | None) -> NDArray[Any]:
    """(n, width) to be filled; a map of a file without a name where it is large."""
    if n * width <= IN_MEMORY:
        return np.empty((n, width), dtype)
    return np.asarray(np.memmap(_scratch_file(scratch), dtype, "w+", shape=(n, width)))


def _scratch_file(folder: Path | None) -> BinaryIO:
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=folder, prefix=".", suffix=".part")  # type: ignore[return-value]
    except OSError as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path | None, error: OSError) -> OutputError:
    return OutputError(
        f"cannot be written ({error.strerror or error})",
        where=folder or tempfile.gettempdir(),
        hint="choose a writable folder with --out, or free some space",
    )
