"""What tuning minimises, and what it is judged by.

va          MSE + (1 - mean CCC) over the rows of the batch       pooled CCC of the validation recordings
expression  cross-entropy                                         macro F1 over the classes that occur
mae         squared error of hidden patches                       the same, on hidden patches that stay the same
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from affectrace import losses, metrics
from affectrace.finetune.config import FinetuneConfig
from affectrace.finetune.data import ItemBatch, Items
from affectrace.finetune.encoder import Encoder
from affectrace.finetune.mae import MaskedAutoencoder, masking_noise
from affectrace.finetune.network import TunedEncoder
from affectrace.train.config import LossConfig
from affectrace.train.log import VALIDATION_COLUMNS

_TRAINING, _VALIDATION = 0, 1  # kinds of masks, so that no training mask is a validation mask


class Objective(Protocol):
    """A network with its loss and its scores.

    score: name of the number in a validation's row that decides what is best; better: 1
    where more is better, -1 where less is. columns: of validations.csv.
    """

    score: str
    better: int
    columns: Sequence[str]

    @property
    def network(self) -> nn.Module:
        """What is trained."""
        ...

    def loss(self, run: Any, batch: ItemBatch, step: int) -> Tensor:
        """Of a batch on the device; run: the network as the devices wrap it."""
        ...

    def judge(self, run: Any, batches: Iterable[ItemBatch], items: Items) -> dict[str, float]:
        """Scores over batches on the device that hold all validation items in their order."""
        ...

    def head(self) -> dict[str, Tensor]:
        """The state dict of what lies on top of the encoder and is no part of it."""
        ...


def objective_of(config: FinetuneConfig, encoder: Encoder, training: Items, classes: Sequence[str]) -> Objective:
    """The configured objective (raises InputError where the encoder cannot have it). classes: of expression."""
    if config.objective == "mae":
        return Reconstruction(MaskedAutoencoder(encoder, config.mask_ratio), config.seed)
    if config.objective == "expression":
        weights = None
        if config.balance_classes:
            counts = torch.from_numpy(training.totals())
            seen = counts > 0
            weights = torch.where(seen, 1 / counts.clamp_min(1), 0)
            weights = weights / weights[seen].mean()
        return Classification(TunedEncoder(encoder, len(classes)), tuple(classes), config.label_smoothing, weights)
    return Regression(TunedEncoder(encoder, 2), config.loss)


@dataclass(eq=False)
class Regression:
    """Valence and arousal."""

    network: TunedEncoder
    how: LossConfig
    score: str = "mean_ccc"
    better: int = 1
    columns: Sequence[str] = VALIDATION_COLUMNS

    def loss(self, run: Any, batch: ItemBatch, step: int) -> Tensor:
        return losses.loss(self.how, run(batch.inputs).float(), batch.target, batch.mask)

    def judge(self, run: Any, batches: Iterable[ItemBatch], items: Items) -> dict[str, float]:
        pairs = [
            (p.astype(np.float64).clip(-1, 1), y.astype(np.float64), np.ones(len(p), bool))
            for p, y in _rows(run, batches)
        ]
        return metrics.score_pooled(pairs).to_dict()

    def head(self) -> dict[str, Tensor]:
        return self.network.head.state_dict()


@dataclass(eq=False)
class Classification:
    """Classes of expression. weights: (K,) of each class in the loss."""

    network: TunedEncoder
    classes: tuple[str, ...]
    smoothing: float
    weights: Tensor | None = None
    score: str = "macro_f1"
    better: int = 1
    columns: Sequence[str] = ("step", "epoch", "macro_f1", "accuracy", "n")

    def loss(self, run: Any, batch: ItemBatch, step: int) -> Tensor:
        logits, target = run(batch.inputs).float()[batch.mask], batch.target[batch.mask].argmax(-1)
        weights = None if self.weights is None else self.weights.to(logits.device)
        return F.cross_entropy(logits, target, weights, label_smoothing=self.smoothing)

    def judge(self, run: Any, batches: Iterable[ItemBatch], items: Items) -> dict[str, float]:
        found = list(_rows(run, batches))
        predicted = np.concatenate([p.argmax(1) for p, _ in found])
        true = np.concatenate([y.argmax(1) for _, y in found])
        f1 = f1_of_classes(predicted, true, len(self.classes))
        each = {f"f1_{name}": float(v) for name, v in zip(self.classes, f1, strict=True)}
        accuracy = float((predicted == true).mean())
        return {"macro_f1": float(np.nanmean(f1)), "accuracy": accuracy, "n": len(true), **each}

    def head(self) -> dict[str, Tensor]:
        return self.network.head.state_dict()


@dataclass(eq=False)
class Reconstruction:
    """MAE's pixels."""

    network: MaskedAutoencoder
    seed: int
    score: str = "reconstruction_loss"
    better: int = -1
    columns: Sequence[str] = ("step", "epoch", "reconstruction_loss", "n")

    def loss(self, run: Any, batch: ItemBatch, step: int) -> Tensor:
        value: Tensor = run(batch.inputs["pixels"], self._noise(batch, (self.seed, _TRAINING, step)))[0]
        return value.float()

    def judge(self, run: Any, batches: Iterable[ItemBatch], items: Items) -> dict[str, float]:
        total = 0.0
        for batch in batches:
            noise = self._noise(batch, (self.seed, _VALIDATION, batch.items[0]))
            total += float(run(batch.inputs["pixels"], noise)[0]) * len(batch.items)
        return {"reconstruction_loss": total / len(items), "n": len(items)}

    def head(self) -> dict[str, Tensor]:
        return {}

    def _noise(self, batch: ItemBatch, seed: tuple[int, ...]) -> Tensor:
        pixels: Tensor = batch.inputs["pixels"]
        return masking_noise(len(pixels), self.network.n_patches, seed).to(pixels.device)


def f1_of_classes(predicted: NDArray[np.integer], true: NDArray[np.integer], n_classes: int) -> NDArray[np.float64]:
    """(K,) F1 of each class, NaN of one that occurs nowhere: 2 TP / (2 TP + FP + FN)."""
    confusion = np.zeros((n_classes, n_classes), np.int64)
    np.add.at(confusion, (true, predicted), 1)
    hits, total = np.diag(confusion), confusion.sum(0) + confusion.sum(1)
    return np.where(total > 0, 2 * hits / np.maximum(total, 1), math.nan)


def _rows(run: Any, batches: Iterable[ItemBatch]) -> Iterable[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """(n, K) predictions and targets of the rows that count, a batch at a time."""
    for batch in batches:
        predicted = run(batch.inputs).float()
        yield predicted[batch.mask].cpu().numpy(), batch.target[batch.mask].cpu().numpy()
