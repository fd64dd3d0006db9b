"""Training batches of windows: padded, masked, shuffled by (seed, epoch), read ahead by threads.

A position is (epoch, batch): starting there gives the batches an uninterrupted run would have given.
"""

from __future__ import annotations

from collections import abc, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import InputError
from affectrace.sequences import FRAME, Piece, Sequence, common_widths
from affectrace.sequences.config import WindowScheme
from affectrace.sequences.normalization import FeatureNormalizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

G = TypeVar("G")
B = TypeVar("B")


@dataclass(frozen=True)
class Window:
    """Frames start to stop of a recording."""

    recording_id: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class Batch:
    """B windows, padded at the end to the longest.

    inputs: modality -> (B, T_m, D_m) float32, 0 where invalid. valid: modality -> (B, T_m) bool, False in padding;
        FRAME -> (B, T), False = padding. times: the same keys -> float64 seconds; in padding the last row's.
    target: (B, T, 2) float32, valence and arousal, 0 where mask is False. mask: (B, T, 2) bool, True = labelled.
    """

    inputs: Mapping[str, Tensor]
    valid: Mapping[str, Tensor]
    times: Mapping[str, Tensor]
    target: Tensor
    mask: Tensor
    windows: tuple[Window, ...]

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def n_frames(self) -> int:
        """Number of frames without padding."""
        return sum(len(w) for w in self.windows)

    def to(self, device: str | torch.device, *, non_blocking: bool = False) -> Batch:
        """The batch on another device."""

        def moved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: t.to(device, non_blocking=non_blocking) for name, t in tensors.items()}

        labels = moved({"target": self.target, "mask": self.mask})
        return Batch(moved(self.inputs), moved(self.valid), moved(self.times), **labels, windows=self.windows)


def collate(
    pieces: abc.Sequence[Piece],
    *,
    dims: Mapping[str, int] | None = None,
    statistics: FeatureNormalizer | None = None,
) -> Batch:
    """Pieces as one batch (raises InputError: none, or different widths).

    dims: modality -> D_m, also of modalities that no piece has. statistics: standardize with these; rows without data
    stay 0.
    """
    import torch

    if not pieces:
        raise InputError("no windows for a batch")
    widths = common_widths(((p.recording_id, {m: x.shape[1] for m, x in p.inputs.items()}) for p in pieces), dims)
    b = len(pieces)
    n_rows = {m: max((len(p.inputs[m]) for p in pieces if m in p.inputs), default=0) for m in widths}
    n_rows[FRAME] = max(len(p) for p in pieces)
    if all(len(p.inputs[m]) == len(p) for p in pieces for m in p.inputs):
        n_rows = dict.fromkeys(n_rows, n_rows[FRAME])  # on the frame clock also of missing modalities
    inputs = {m: torch.zeros(b, n_rows[m], d) for m, d in widths.items()}
    valid = {m: np.zeros((b, n), bool) for m, n in n_rows.items()}
    times = {m: np.zeros((b, n)) for m, n in n_rows.items()}
    target, mask = np.zeros((b, n_rows[FRAME], 2), np.float32), np.zeros((b, n_rows[FRAME], 2), bool)
    for i, piece in enumerate(pieces):
        n = len(piece)
        valid[FRAME][i, :n] = True
        target[i, :n], mask[i, :n] = piece.target, piece.mask
        _fill(times[FRAME][i], piece.times[FRAME])
        for m in widths:
            if m in piece.inputs:
                _put(inputs[m][i], piece.inputs[m], piece.filled[m], m, statistics)
                valid[m][i, : len(piece.valid[m])] = piece.valid[m]
            _fill(times[m][i], piece.times.get(m, piece.times[FRAME][: n_rows[m]]))
    return Batch(
        inputs,
        {m: torch.from_numpy(v) for m, v in valid.items()},
        {m: torch.from_numpy(t) for m, t in times.items()},
        torch.from_numpy(target),
        torch.from_numpy(mask),
        tuple(Window(p.recording_id, p.frames.start, p.frames.stop) for p in pieces),
    )


def _put(
    out: Tensor,
    values: NDArray[np.floating[Any]],
    filled: NDArray[np.bool_],
    modality: str,
    statistics: FeatureNormalizer | None,
) -> None:
    """Copy one window into the batch and standardize it; torch converts float16 several times as fast as numpy."""
    import torch

    if not len(values):
        return
    rows = out[: len(values)]
    rows.copy_(torch.from_numpy(values if values.flags.writeable else values.copy()))
    if statistics is None:
        return
    if modality not in statistics.mean:
        fitted = ", ".join(statistics.mean)
        raise InputError(f"no normalization of '{modality}', only of {fitted}", hint="train on the same features")
    mean, deviation = (torch.tensor(part[modality]) for part in (statistics.mean, statistics.deviation))
    rows.sub_(mean).div_(deviation)
    if not filled.all():
        rows[torch.from_numpy(~filled)] = 0.0


def _fill(row: NDArray[np.float64], times: NDArray[np.float64]) -> None:
    row[: len(times)] = times
    if len(times):
        row[len(times) :] = times[-1]


def read_ahead(make: Callable[[G], B], groups: Iterable[G], *, threads: int = 2, ahead: int = 4) -> Iterator[B]:
    """make(group) of every group, in order, computed by threads at most `ahead` groups early."""
    pending: deque[Future[B]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="batches")
    try:
        for group in groups:
            pending.append(pool.submit(make, group))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Batches:
    """Batches of the windows of many sequences (raises InputError: widths differ between recordings).

    batch_size: windows per batch, over all processes together. rank, world_size: index and number of processes, each of
    which gets every world_size-th window of a batch; one that would get none repeats a window with nothing labelled, so
    that all make equally many steps. statistics: standardize with these. threads: that read ahead.
    """

    def __init__(
        self,
        sequences: abc.Sequence[Sequence],
        scheme: WindowScheme,
        *,
        batch_size: int = 16,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        statistics: FeatureNormalizer | None = None,
        threads: int = 2,
    ) -> None:
        self.windows = [(sequence, frames) for sequence in sequences for frames in sequence.windows(scheme)]
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.statistics, self.threads = statistics, threads
        dims = ((s.recording_id, {m: stream.dim for m, stream in s.streams.items()}) for s in sequences)
        self.dims = common_widths(dims)

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-len(self.windows) // self.batch_size)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.windows))
        groups = [order[a : a + self.batch_size] for a in range(start * self.batch_size, len(order), self.batch_size)]
        return read_ahead(self._batch, groups, threads=self.threads)

    def _batch(self, group: NDArray[np.int64]) -> Batch:
        mine = group[self.rank :: self.world_size]
        windows = [self.windows[i] for i in (mine if len(mine) else group[:1])]
        pieces = [sequence.read(frames) for sequence, frames in windows]
        if not len(mine):
            pieces = [replace(p, mask=np.zeros_like(p.mask), target=np.zeros_like(p.target)) for p in pieces]
        return collate(pieces, dims=self.dims, statistics=self.statistics)
