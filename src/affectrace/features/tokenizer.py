"""Tokenizer of text encoders, the names of their weights, and the clock of words; without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from affectrace.errors import WeightsError
from affectrace.timeline import Timeline

T = TypeVar("T")
REFETCH = "fetch the weights again with `affectrace weights fetch`"


class TextTokenizer:
    """A `tokenizer.json`. max_tokens: longest sequence, including the two special tokens."""

    def __init__(self, tokenizer: Tokenizer, *, max_tokens: int) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.start, self.end = tokenizer.encode("").ids  # [CLS] and [SEP], or <s> and </s>

    @classmethod
    def load(cls, folder: Path, *, max_tokens: int) -> TextTokenizer:
        """From a folder with `tokenizer.json` (raises WeightsError)."""
        path = folder / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust library raises bare Exception
            raise WeightsError(f"cannot be read as a tokenizer ({error})", where=path, hint=REFETCH) from None
        return cls(tokenizer, max_tokens=max_tokens)

    def words(self, words: Sequence[str]) -> tuple[list[int], NDArray[np.int64]]:
        """Token ids of a list of words, and the word index of each token; without special tokens or truncation."""
        encoding = self.tokenizer.encode(list(words), is_pretokenized=True, add_special_tokens=False)
        return encoding.ids, np.array(encoding.word_ids, dtype=np.int64)

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text with special tokens, truncated to `max_tokens`."""
        encodings = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [self.enclose(encoding.ids[: self.max_tokens - 2]) for encoding in encodings]

    def enclose(self, ids: Sequence[int]) -> list[int]:
        """Add the two special tokens."""
        return [self.start, *ids, self.end]

    @staticmethod
    def pad(rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Rows of ids as one (B, L) batch and its (B, L) mask, padded on the right with 0."""
        shape = len(rows), max(map(len, rows))
        ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = True
        return ids, mask


_RENAMED = (  # transformers' names -> ours
    ("encoder.layer.", "layers."),
    ("attention.self.", ""),
    ("attention.output.dense", "attended"),
    ("attention.output.LayerNorm", "attended_norm"),
    ("intermediate.dense", "up"),
    ("output.dense", "down"),
    ("output.LayerNorm", "norm"),
    ("embeddings.LayerNorm", "embeddings.norm"),
    ("_embeddings.weight", ".weight"),
)


def rename_state(state: Mapping[str, T]) -> dict[str, T]:
    """A state dict of transformers' BertModel or RobertaModel, bare or prefixed, under our names, without its heads."""
    renamed: dict[str, T] = {}
    for name, tensor in state.items():
        name = name.removeprefix("bert.").removeprefix("roberta.")
        if not name.startswith(("embeddings.", "encoder.layer.")) or name.endswith("position_ids"):
            continue
        for theirs, ours in _RENAMED:
            name = name.replace(theirs, ours)
        renamed[name] = tensor
    return renamed


def clock_of_spans(spans: Sequence[tuple[float, float]]) -> tuple[Timeline, NDArray[np.float64]]:
    """A timeline of (start, end) spans in seconds, sorted by start, and their ends.

    Spans that start together are placed a nanosecond apart.
    """
    starts, ends = np.array(spans, np.float64).T
    ticks = np.rint(starts * 1e9).astype(np.int64)
    order = np.arange(len(ticks))
    ticks = np.maximum.accumulate(ticks - order) + order
    ends = np.maximum(ends, (ticks + 1) * 1e-9)
    return Timeline.from_times(ticks * 1e-9, end_s=max(float(ends.max()), float(ticks[-1] + 1) * 1e-9)), ends
