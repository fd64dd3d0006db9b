"""Fine-tuning items: reading on demand, batching, and an order that depends on (seed, epoch) only.

    images    an item is a face crop (face_crops.py)        one row
    audio     an item is a chunk of `chunk_s`               a row every 20 ms, as the encoder gives them
    text      an item is a window of `window_tokens`        a row per word

Every row is one that `affectrace extract` would write; its target is the label over the row's own span.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from affectrace.config import atomic_file, write_atomic
from affectrace.features.audio import ChunkGrid, chunks
from affectrace.features.text import token_windows
from affectrace.features.tokenizer import TextTokenizer
from affectrace.finetune.labels import Array, Bools, Ints, Labels, video_clock
from affectrace.media.audio import SAMPLE_RATE_HZ, read_audio
from affectrace.media.transcript import read_transcript
from affectrace.progress import Progress
from affectrace.recording import Recording
from affectrace.sequences.batches import read_ahead

Sample = tuple[Any, Array, Bools]
"""One item: its input (collated by the kind of items), target (R, K) float32, and mask (R, K)."""


@dataclass(frozen=True, eq=False)
class ItemBatch:
    """B items. inputs: of the encoder. target: (B, R, K), 0 where mask (B, R, K) is False. items: their numbers."""

    inputs: dict[str, Any]
    target: Tensor
    mask: Tensor
    items: tuple[int, ...]


class Items:
    """Items of several recordings. Subclasses define how one is read and how several are collated.

    recordings: ids. recording_of: (N,) index of each item's recording. starts: (N,) its first frame, sample or word.
    totals: (K,) sums of the valid targets: of classes, how often each occurs.
    """

    def __init__(self, recordings: Sequence[str], recording_of: Ints, starts: Ints, totals: Array) -> None:
        self.recordings, self.recording_of, self.starts, self.totals = tuple(recordings), recording_of, starts, totals

    def __len__(self) -> int:
        return len(self.starts)

    def names(self, items: Sequence[int]) -> list[dict[str, Any]]:
        """Recording and start of items, as plain values."""
        return [{"recording": self.recordings[self.recording_of[i]], "at": int(self.starts[i])} for i in items]

    def read(self, item: int, rng: np.random.Generator | None) -> Sample:
        """One item. rng: of random augmentation, None for none."""
        raise NotImplementedError

    def collate(self, inputs: Sequence[Any]) -> dict[str, Any]:
        """Inputs of several items as the encoder takes them."""
        raise NotImplementedError

    def batch(self, items: Sequence[int], seed: tuple[int, int] | None = None) -> ItemBatch:
        """A batch of items. seed: (seed, epoch) of the augmentation; None: no augmentation."""
        samples = [self.read(i, None if seed is None else np.random.default_rng([*seed, i])) for i in items]
        shape = len(samples), max(len(mask) for *_, mask in samples), samples[0][1].shape[1]
        target, mask = np.zeros(shape, np.float32), np.zeros(shape, bool)
        for i, (_, own, counts) in enumerate(samples):
            mask[i, : len(counts)] = counts
            target[i, : len(counts)][counts] = own[counts]
        inputs = self.collate([inputs for inputs, *_ in samples])
        return ItemBatch(inputs, torch.from_numpy(target), torch.from_numpy(mask), tuple(int(i) for i in items))

    def in_order(self, batch_size: int, threads: int) -> Iterator[ItemBatch]:
        """All items in their order, not augmented."""
        groups = [range(a, min(a + batch_size, len(self))) for a in range(0, len(self), batch_size)]
        return read_ahead(self.batch, groups, threads=threads)

    def shuffled(self, batch_size: int, seed: int, epoch: int, start: int, threads: int) -> Iterator[ItemBatch]:
        """The augmented batches of an epoch from number `start` on."""
        order = np.random.default_rng([seed, epoch]).permutation(len(self))
        groups = [order[a : a + batch_size].tolist() for a in range(start * batch_size, len(order), batch_size)]
        return read_ahead(lambda group: self.batch(group, (seed, epoch)), groups, threads=threads)


@dataclass(frozen=True, eq=False)
class SpanItem:
    """An audio chunk or text window. start: first sample or word. source: what `read` needs. target, mask: (R, K)."""

    start: int
    source: Any
    target: Array
    mask: Bools


class SpanItems(Items):
    """Audio chunks or text windows of several recordings."""

    def __init__(self, recordings: Sequence[str], pieces: Sequence[Sequence[SpanItem]]) -> None:
        self.pieces = [p for own in pieces for p in own]
        of = np.repeat(np.arange(len(pieces)), [len(own) for own in pieces])
        totals = np.sum([np.where(p.mask, p.target, 0).sum(0) for p in self.pieces], axis=0)
        super().__init__(recordings, of, np.array([p.start for p in self.pieces], np.int64), np.asarray(totals))


class AudioChunks(SpanItems):
    """Audio chunks, read from the memory-mapped samples of their recording."""

    def read(self, item: int, rng: np.random.Generator | None) -> Sample:
        piece = self.pieces[item]
        path, chunk = piece.source
        samples = np.array(np.load(path, mmap_mode="r")[chunk.start : chunk.stop])
        return (torch.from_numpy(samples), chunk.keep), piece.target, piece.mask

    def collate(self, inputs: Sequence[Any]) -> dict[str, Any]:
        return {"samples": [x for x, _ in inputs], "keep": [(k.start, k.stop) for _, k in inputs]}


class TextWindows(SpanItems):
    """Text windows: token ids between the special ones, and the row of each (-1: context only)."""

    def __init__(self, recordings: Sequence[str], pieces: Sequence[Sequence[SpanItem]], tokens: TextTokenizer) -> None:
        super().__init__(recordings, pieces)
        self.tokens = tokens

    def read(self, item: int, rng: np.random.Generator | None) -> Sample:
        piece = self.pieces[item]
        return (*piece.source, len(piece.mask)), piece.target, piece.mask

    def collate(self, inputs: Sequence[Any]) -> dict[str, Any]:
        ids, mask = map(torch.from_numpy, self.tokens.pad([self.tokens.enclose(own) for own, _, _ in inputs]))
        row_of = torch.full(ids.shape, -1)
        for i, (own, rows, _) in enumerate(inputs):
            row_of[i, 1 : 1 + len(own)] = torch.from_numpy(rows)
        return {"ids": ids, "mask": mask, "row_of": row_of, "n_rows": max(n for *_, n in inputs)}


def audio_chunks(
    recording: Recording, labels: Labels, encoder: Any, chunk_s: float, store: Path, progress: Progress
) -> list[SpanItem] | None:
    """The labelled audio chunks of a recording; None if it has no audio."""
    source = recording.audio or recording.video
    decoded = None if source is None else decoded_audio(source, store, progress)
    if decoded is None:
        return None
    path, start_s, gaps = decoded
    grid = encoder.grid if encoder.window is not None else ChunkGrid(chunk_s, 0.0)
    n = len(np.load(path, mmap_mode="r"))
    hop_s = encoder.stride / SAMPLE_RATE_HZ
    track = labels.track(recording, lambda: video_clock(recording))
    found = []
    for chunk in chunks(n, grid, stride=encoder.stride, field=encoder.field, window=encoder.window):
        starts = start_s + (chunk.first + np.arange(chunk.keep.stop - chunk.keep.start)) * hop_s
        target, mask = track.on_spans(starts, starts + hop_s)
        for a, b in gaps:
            mask &= ~((starts >= a) & (starts + hop_s <= b))[:, None]
        if mask.any():
            found.append(SpanItem(chunk.start, (path, chunk), target, mask))
    return found


def media_key(path: Path, *settings: Any) -> str:
    """Digest of a file's path, size and modification time, and of settings."""
    at = path.stat()
    text = json.dumps([str(path.resolve()), at.st_size, at.st_mtime_ns, *settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def decoded_audio(
    source: Path, store: Path, progress: Progress
) -> tuple[Path, float, list[tuple[float, float]]] | None:
    """16 kHz samples of a file, decoded once into `store`, with start and gaps in seconds; None: no audio."""
    path, about = (store / f"{source.stem}-{media_key(source)}{suffix}" for suffix in (".npy", ".json"))
    if not about.is_file():  # written last
        audio = read_audio(source, SAMPLE_RATE_HZ, progress=progress)
        if audio is None or not audio.samples.size:
            return None
        with atomic_file(path) as file:
            np.save(file, audio.samples)
        write_atomic(about, json.dumps({"start_s": audio.start_s, "gaps": audio.gaps}))
    known = json.loads(about.read_text(encoding="utf-8"))
    return path, known["start_s"], known["gaps"]


def text_windows(
    recording: Recording, labels: Labels, tokens: TextTokenizer, window_tokens: int
) -> list[SpanItem] | None:
    """The text windows of a recording with a labelled word; None if it has no transcript."""
    if recording.transcript is None:
        return None
    words = sorted(read_transcript(recording.transcript).words, key=lambda w: (w.start_s, w.end_s))
    if not words:
        return []
    track = labels.track(recording, lambda: video_clock(recording))
    starts, ends = (np.array([getattr(w, k) for w in words]) for k in ("start_s", "end_s"))
    target, mask = track.on_spans(starts, np.maximum(ends, starts + 1e-6))
    ids, word_of = tokens.words([w.text for w in words])
    found = []
    for first, read, last in token_windows(len(ids), min(window_tokens, tokens.max_tokens) - 2):
        mine = np.unique(word_of[read])
        if len(mine) and mask[mine].any():
            row_of = np.full(last - first, -1, np.int64)
            row_of[read.start - first : read.stop - first] = np.searchsorted(mine, word_of[read])
            own = tuple(ids[first:last])
            found.append(SpanItem(int(mine[0]), (own, row_of[: len(own)]), target[mine], mask[mine]))
    return found
