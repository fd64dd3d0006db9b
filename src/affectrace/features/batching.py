"""Batches of one shape, filled with whatever recording is at hand, and rows kept on disk until their file is written.

    looks, chunks of sound --Batcher: (size, ...) always--> network --RowFile--> one file a recording and extractor

Linear algebra chooses its order of summation by the shape of a product, so a picture alone and the same picture among
eight differ in the last digits. Here a batch always has `size` items, the last one filled up with zeros: then a row
depends on its own input alone, whoever stands beside it, and so not on what was done before an interruption.
`Batcher.independent` tries that on the machine; where it does not hold, the engine keeps recordings apart.
"""

from __future__ import annotations

import mmap
import tempfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import OutputError
from affectrace.media.faces.pipeline import Observer, SeenFace

Array = NDArray[np.float32]
BLOCK = 4096  # rows read at a time
_TICKETS = 1 << 20  # rows are counted in float32 exactly, as two numbers


class RowFile:
    """Rows (n, width) float32 in the order in which they were asked for, in a file without a name.

    n_asked, n_done: items given to a Batcher, and those that came back. error: what went wrong in their batch.
    """

    def __init__(self, folder: Path, width: int) -> None:
        self.width, self.n_asked, self.n_done = width, 0, 0
        self.error: Exception | None = None
        self._finite = array("b")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder, prefix=".", suffix=".part")  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise _unwritable(folder, error) from None
        self._folder = folder

    def __len__(self) -> int:
        return len(self._finite)

    @property
    def waiting(self) -> bool:
        """Whether something has not come back."""
        return self.n_done < self.n_asked

    @property
    def finite(self) -> NDArray[np.bool_]:
        """(n,) whether every number of a row is finite."""
        return np.array(self._finite, bool)

    def append(self, rows: Array) -> None:
        """One item's rows (raises OutputError: the disk is full)."""
        self.n_done += 1
        if self._file.closed:  # its recording failed meanwhile
            return
        self._finite.frombytes(np.isfinite(rows).all(axis=1).astype(np.int8).tobytes())
        try:
            self._file.write(np.ascontiguousarray(rows, np.float32).data)
        except OSError as error:
            raise _unwritable(self._folder, error) from None

    def read(self, order: NDArray[np.int64]) -> Iterator[Array]:
        """Pieces of the rows `order` (T,) names; -1 gives a row of NaN."""
        try:
            self._file.flush()
        except OSError as error:
            raise _unwritable(self._folder, error) from None
        stored: Array = np.zeros((0, self.width), np.float32)
        if len(self) and self.width:
            view = mmap.mmap(self._file.fileno(), len(self) * self.width * 4, access=mmap.ACCESS_READ)
            stored = np.frombuffer(view, np.float32).reshape(-1, self.width)
        for first in range(0, len(order), BLOCK):
            wanted = order[first : first + BLOCK]
            piece = np.full((len(wanted), self.width), np.nan, np.float32)
            piece[wanted >= 0] = stored[wanted[wanted >= 0]]
            yield piece

    def close(self) -> None:
        """Forget everything; rows that still come are dropped."""
        self._file.close()


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot be written ({error.strerror or error})", where=folder, hint="choose a writable folder with --out"
    )


@dataclass(frozen=True)
class _Item:
    value: NDArray[Any]
    rows: RowFile
    keep: slice | None  # of the network's answer (rows, D); None: the answer is one row (D,)


class Batcher:
    """One network, run on `size` items at a time whatever recording they are of.

    run: (size, ...) to (size, D), or (size, rows, D). shape: of the items that stand together; an item of another shape
    (sound shorter than a chunk) goes alone. None: all are of one shape.
    """

    def __init__(self, run: Callable[[NDArray[Any]], Array], size: int, shape: tuple[int, ...] | None = None) -> None:
        self.run, self.size, self.shape = run, size, shape
        self._waiting: list[_Item] = []
        self._independent: bool | None = True if size == 1 else None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, value: NDArray[Any], rows: RowFile, keep: slice | None = None) -> None:
        """One more item, whose rows go to `rows` when its batch is full (raises OutputError)."""
        rows.n_asked += 1
        item = _Item(value if value.base is None else value.copy(), rows, keep)
        if self.size == 1 or (self.shape is not None and value.shape != self.shape):
            self._work([item], 1)
            return
        self._waiting.append(item)
        if len(self._waiting) == self.size:
            self.flush()

    def flush(self) -> None:
        """Run what waits, filled up with zeros (raises OutputError)."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self._work(waiting, self.size)

    def _work(self, items: list[_Item], size: int) -> None:
        first = items[0].value
        batch = np.zeros((size, *first.shape), first.dtype)
        for i, item in enumerate(items):
            batch[i] = item.value
        try:
            answers = self.run(batch)
        except Exception as error:  # is told of each recording in it, and ends no other
            for item in items:
                item.rows.error = item.rows.error or error
                item.rows.n_done += 1
            return
        for item, answer in zip(items, answers, strict=False):
            item.rows.append(answer[None] if item.keep is None else answer[item.keep])

    @property
    def independent(self) -> bool:
        """Whether a row is the same bits beside other neighbours and in another place; tried once, with noise."""
        if self._independent is None:
            assert self._waiting, "the shape of an item is not known yet"
            like = self._waiting[0].value
            rng = np.random.default_rng(0)
            a, b = (_noise(rng, (self.size, *like.shape), like.dtype) for _ in range(2))
            moved = np.arange(0, self.size, 2)
            b[moved] = a[(moved + 1) % self.size]
            before, after = np.asarray(self.run(a)), np.asarray(self.run(b))
            self._independent = before[(moved + 1) % self.size].tobytes() == after[moved].tobytes()
        return self._independent


class Tickets:
    """An observer that hands looks to a batch shared with other recordings, and measures which row they will become."""

    width = 2

    def __init__(self, observer: Observer, batcher: Batcher, rows: RowFile) -> None:
        self.observer, self.batcher, self.rows, self.n = observer, batcher, rows, 0

    def look(self, face: SeenFace) -> NDArray[np.bool_]:
        self.batcher.add(self.observer.look(face), self.rows)
        return np.zeros(0, bool)

    def measure(self, looks: NDArray[np.bool_]) -> NDArray[np.float32]:
        numbers = np.arange(self.n, self.n + len(looks))
        self.n += len(looks)
        return np.stack(np.divmod(numbers, _TICKETS), axis=1).astype(np.float32)


def row_numbers(tickets: NDArray[np.float32]) -> NDArray[np.int64]:
    """(T, 2) tickets to (T,) row numbers; -1 where the face was not seen."""
    seen = np.isfinite(tickets).all(axis=1)
    numbers = np.full(len(tickets), -1)
    numbers[seen] = tickets[seen].astype(np.int64) @ np.array([_TICKETS, 1])
    return numbers


def _noise(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    if np.issubdtype(dtype, np.integer):
        return rng.integers(0, 256, shape).astype(dtype)
    return rng.normal(0, 0.3, shape).astype(dtype)
