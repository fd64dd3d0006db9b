"""Items: what an encoder is tuned on, read when it is wanted, in batches and in an order that (seed, epoch) decides.

    pictures   one item a face crop that counts             one row
    sound      one item a chunk of `chunk_s`                a row every 20 ms, as the encoder gives them
    words      one item a window of `window_tokens`         a row a word

Every row is one that `affectrace extract` would write; its target is the label over the row's own span.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from affectrace.sequences.batches import read_ahead

Array = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Note = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Sample:
    """One item, read. inputs: what its kind collates. target: (R, K) float32. mask: (R,) True = counts."""

    inputs: Any
    target: Array
    mask: Bools


@dataclass(frozen=True, eq=False)
class ItemBatch:
    """B items. inputs: of the encoder. target: (B, R, K), 0 where mask (B, R) is False. items: their numbers."""

    inputs: dict[str, Any]
    target: Tensor
    mask: Tensor
    items: tuple[int, ...]


class Items:
    """Items of several recordings; a kind says how one is read and how several are put together.

    recordings: ids. of: (N,) recording of each item. number: (N,) frame, sample or word at which it starts.
    """

    def __init__(self, recordings: Sequence[str], of: Ints, number: Ints) -> None:
        self.recordings, self.of, self.number = tuple(recordings), of, number

    def __len__(self) -> int:
        return len(self.of)

    def names(self, items: Sequence[int]) -> list[dict[str, Any]]:
        """Which they are, as plain values."""
        return [{"recording": self.recordings[self.of[i]], "at": int(self.number[i])} for i in items]

    def read(self, item: int, rng: np.random.Generator | None) -> Sample:
        """One item; rng: for changes at random, None where there are to be none."""
        raise NotImplementedError

    def collate(self, samples: Sequence[Any]) -> dict[str, Any]:
        """Inputs of several as those of the encoder."""
        raise NotImplementedError

    def totals(self) -> Array:
        """(K,) sums of the targets that count: of classes, how often each occurs."""
        raise NotImplementedError

    def batch(self, items: Sequence[int], seed: tuple[int, int] | None = None) -> ItemBatch:
        """Some items together. seed: (seed, epoch) that decides changes at random; None: nothing is changed."""
        samples = [self.read(i, None if seed is None else np.random.default_rng([*seed, i])) for i in items]
        rows = max(len(s.mask) for s in samples)
        target = np.zeros((len(samples), rows, samples[0].target.shape[1]), np.float32)
        mask = np.zeros((len(samples), rows), bool)
        for i, s in enumerate(samples):
            mask[i, : len(s.mask)] = s.mask
            target[i, : len(s.mask)][s.mask] = s.target[s.mask]
        inputs = self.collate([s.inputs for s in samples])
        return ItemBatch(inputs, torch.from_numpy(target), torch.from_numpy(mask), tuple(int(i) for i in items))

    def in_order(self, batch_size: int, threads: int) -> Iterator[ItemBatch]:
        """All of them as they stand, unchanged."""
        groups = [range(a, min(a + batch_size, len(self))) for a in range(0, len(self), batch_size)]
        return read_ahead(self.batch, groups, threads=threads)

    def shuffled(self, batch_size: int, seed: int, epoch: int, start: int, threads: int) -> Iterator[ItemBatch]:
        """The batches of an epoch from number `start` on, as an uninterrupted run gives them, changed at random."""
        order = np.random.default_rng([seed, epoch]).permutation(len(self))
        groups = [order[a : a + batch_size].tolist() for a in range(start * batch_size, len(order), batch_size)]
        return read_ahead(lambda group: self.batch(group, (seed, epoch)), groups, threads=threads)
