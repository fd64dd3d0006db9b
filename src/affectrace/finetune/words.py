"""Words with labels, in the windows a text encoder reads them in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from affectrace.features.text import Tokens, token_windows
from affectrace.finetune.data import Array, Bools, Ints, Items, Sample
from affectrace.finetune.labels import Labels, frames_of
from affectrace.recording import Recording


@dataclass(frozen=True, eq=False)
class WordWindow:
    """Token ids between the special ones, the row of each (-1: only context), and the words' targets."""

    ids: tuple[int, ...]
    row_of: Ints
    first_word: int
    target: Array
    mask: Bools


class Words(Items):
    """Windows of words."""

    def __init__(self, recordings: Sequence[str], windows: Sequence[Sequence[WordWindow]], tokens: Tokens) -> None:
        self.windows, self.tokens = [w for own in windows for w in own], tokens
        of = np.repeat(np.arange(len(windows)), [len(own) for own in windows])
        super().__init__(recordings, of, np.array([w.first_word for w in self.windows], np.int64))

    def read(self, item: int, rng: np.random.Generator | None) -> Sample:
        window = self.windows[item]
        return Sample(window, window.target, window.mask)

    def collate(self, samples: Sequence[Any]) -> dict[str, Any]:
        ids, mask = self.tokens.pad([self.tokens.enclose(w.ids) for w in samples])
        row_of = torch.full(ids.shape, -1)
        for i, w in enumerate(samples):
            row_of[i, 1 : 1 + len(w.ids)] = torch.from_numpy(w.row_of)
        return {"ids": ids, "mask": mask, "row_of": row_of, "n_rows": max(len(w.mask) for w in samples)}

    def totals(self) -> Array:
        return np.asarray(np.sum([w.target[w.mask].sum(0) for w in self.windows], axis=0), np.float32)


def word_windows(recording: Recording, labels: Labels, tokens: Tokens, window_tokens: int) -> list[WordWindow]:
    """A recording's words that have a label, in the windows the text encoder reads them in."""
    from affectrace.media.transcript import read_transcript

    assert recording.transcript is not None
    words = sorted(read_transcript(recording.transcript).words, key=lambda w: (w.start_s, w.end_s))
    if not words:
        return []
    track = labels.track(recording, lambda: frames_of(recording))
    starts, ends = (np.array([getattr(w, k) for w in words]) for k in ("start_s", "end_s"))
    target, mask = track.on_spans(starts, np.maximum(ends, starts + 1e-6))
    ids, word_of = tokens.words([w.text for w in words])
    found = []
    for first, read, last in token_windows(len(ids), min(window_tokens, tokens.max_tokens) - 2):
        mine = np.unique(word_of[read])
        if not len(mine) or not mask[mine].any():
            continue
        row_of = np.full(last - first, -1, np.int64)
        row_of[read.start - first : read.stop - first] = np.searchsorted(mine, word_of[read])
        found.append(
            WordWindow(tuple(ids[first:last]), row_of[: len(ids[first:last])], int(mine[0]), target[mine], mask[mine])
        )
    return found
