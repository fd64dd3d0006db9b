"""An encoder with a head: a prediction for every row that `affectrace extract` would write.

pictures (B, 3, S, S) --> (B, 1, D)      sound [(W,), ...] --> (B, R, D)      words (B, L) --> (B, R, D)
rows (B, R, D) --linear--> (B, R, K)     valence and arousal, or one logit a class
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from affectrace.finetune.encoder import Encoder

HEAD_STD = 0.01  # of the head's first weights: it begins near a constant (MAE's linear probe)


class TunedEncoder(nn.Module):
    """An encoder and a linear head on its rows. width: K."""

    def __init__(self, encoder: Encoder, width: int) -> None:
        super().__init__()
        self.modality = encoder.modality
        self.encoder = encoder.module
        self.head = nn.Linear(encoder.width, width)
        nn.init.normal_(self.head.weight, std=HEAD_STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: dict[str, Any]) -> Tensor:
        """(B, R, K); rows past an item's own hold anything. inputs: as its kind of items collates them."""
        predicted: Tensor = self.head(self.rows(inputs))
        return predicted

    def rows(self, inputs: dict[str, Any]) -> Tensor:
        """(B, R, D): the features."""
        if self.modality == "visual":
            pictures: Tensor = self.encoder(inputs["pixels"])
            return pictures[:, None]
        if self.modality == "audio":
            return self._sound(inputs["samples"], inputs["keep"])
        return word_means(self.encoder(inputs["ids"], inputs["mask"]), inputs["row_of"], inputs["n_rows"])

    def _sound(self, samples: Sequence[Tensor], keep: Sequence[tuple[int, int]]) -> Tensor:
        """Chunks of one length go together: padding would change attention and normalisation."""
        alike: dict[int, list[int]] = defaultdict(list)
        for i, x in enumerate(samples):
            alike[len(x)].append(i)
        found: dict[int, Tensor] = {}
        for places in alike.values():
            rows = self.encoder(torch.stack([samples[i] for i in places]))
            found |= dict(zip(places, rows, strict=True))
        kept = [found[i][slice(*keep[i])] for i in range(len(samples))]
        return nn.utils.rnn.pad_sequence(kept, batch_first=True)


def word_means(vectors: Tensor, row_of: Tensor, n_rows: int) -> Tensor:
    """(B, L, D) token vectors to (B, n_rows, D): the mean of each word's tokens; row_of (B, L), -1: of no word."""
    b, _, d = vectors.shape
    at = torch.where(row_of < 0, n_rows, row_of)  # a row more, thrown away
    total = vectors.new_zeros(b, n_rows + 1, d).scatter_add(1, at[..., None].expand_as(vectors), vectors)
    count = vectors.new_zeros(b, n_rows + 1).scatter_add(1, at, torch.ones_like(at, dtype=vectors.dtype))
    return (total / count.clamp_min(1)[..., None])[:, :n_rows]
