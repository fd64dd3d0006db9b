"""Fine-tuning objectives (regression, classification, MAE): networks, losses, validation scores.

    va          MSE + (1 - mean CCC) over the rows of the batch     pooled CCC of the validation recordings
    expression  cross-entropy                                       macro F1 over the classes that occur
    mae         squared error of masked patches                     the same, under fixed masks

    images (B, 3, S, S) --> (B, 1, D)      audio [(W,), ...] --> (B, R, D)      tokens (B, L) --> (B, R, D)
    rows (B, R, D) --linear--> (B, R, K)   valence and arousal, or one logit per class
    mae: pixels --patches, a quarter kept--> encoder --mask tokens--> decoder (8 x 512) --> (B, L, p * p * 3)

MAE is He et al. 2022, arXiv:2111.06377, sections 3 and 4.1: the loss is the mean over masked patches of the squared
error to the patch's pixels, normalized to mean 0 and variance 1. The network is transformers' ViTMAEForPreTraining. Its
decoder is read from the weights, or starts at random: encoders are mostly published without one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn

from affectrace import losses, metrics
from affectrace.errors import WeightsError
from affectrace.features.image import mae_state
from affectrace.features.runtime import pretrained, read_tensors
from affectrace.finetune.config import FinetuneConfig
from affectrace.finetune.data import ItemBatch, Items
from affectrace.finetune.encoder import Encoder
from affectrace.train.config import LossConfig
from affectrace.train.loop import VALIDATION_COLUMNS
from affectrace.weights.hub import Place

HEAD_STD = 0.01  # of the head's initial weights: it starts near a constant (MAE's linear probe)
_TRAINING, _VALIDATION = 0, 1  # seeds of masks, so that no training mask is a validation mask


class Objective:
    """A network with its loss and its scores; `run` below is the network as Fabric wraps it.

    score: the number that selects the best checkpoint; sign: -1 if lower is better. columns: of validations.csv.
    """

    score, sign = "mean_ccc", 1
    columns: Sequence[str] = VALIDATION_COLUMNS
    network: Any

    def loss(self, run: Any, batch: ItemBatch, step: int) -> Tensor:
        """The loss of a batch."""
        raise NotImplementedError

    def evaluate(self, run: Any, batches: Iterable[ItemBatch]) -> dict[str, float]:
        """Scores over all validation items, in their order."""
        raise NotImplementedError

    def head(self) -> dict[str, Tensor]:
        """The state dict of the head, which is not part of the encoder."""
        state: dict[str, Tensor] = self.network.head.state_dict()
        return state


def objective_of(config: FinetuneConfig, encoder: Encoder, training: Items, classes: Sequence[str]) -> Objective:
    """The configured objective. classes: expression classes."""
    if config.objective == "mae":
        return Reconstruction(encoder, config.mask_ratio, config.seed)
    if config.objective == "expression":
        weights = None
        if config.balance_classes:
            counts = torch.from_numpy(training.totals)
            seen = counts > 0
            weights = torch.where(seen, 1 / counts.clamp_min(1), 0).float()
            weights = weights / weights[seen].mean()
        return Classification(encoder, classes, config.label_smoothing, weights)
    return Regression(encoder, config.loss)


class Regression(Objective):
    """Valence and arousal."""

    def __init__(self, encoder: Encoder, how: LossConfig) -> None:
        self.network, self.how = TunedEncoder(encoder, 2), how

    def loss(self, run: Any, batch: ItemBatch, step: int) -> Tensor:
        return losses.loss(self.how, run(batch.inputs).float(), batch.target, batch.mask)

    def evaluate(self, run: Any, batches: Iterable[ItemBatch]) -> dict[str, float]:
        pairs = [(p.astype(np.float64).clip(-1, 1), y.astype(np.float64), mask) for p, y, mask in _rows(run, batches)]
        return metrics.score_pooled(pairs).to_dict()


class Classification(Objective):
    """Expression classes. weights: (K,) class weights of the loss."""

    score, columns = "macro_f1", ("step", "epoch", "macro_f1", "accuracy", "n")

    def __init__(self, encoder: Encoder, classes: Sequence[str], smoothing: float, weights: Tensor | None) -> None:
        self.network, self.classes = TunedEncoder(encoder, len(classes)), tuple(classes)
        self.smoothing, self.weights = smoothing, weights

    def loss(self, run: Any, batch: ItemBatch, step: int) -> Tensor:
        counts = batch.mask.any(-1)
        logits, target = run(batch.inputs).float()[counts], batch.target[counts].argmax(-1)
        weights = None if self.weights is None else self.weights.to(logits.device)
        return F.cross_entropy(logits, target, weights, label_smoothing=self.smoothing)

    def evaluate(self, run: Any, batches: Iterable[ItemBatch]) -> dict[str, float]:
        found = list(_rows(run, batches))
        predicted = np.concatenate([p.argmax(1) for p, _, _ in found])
        true = np.concatenate([y.argmax(1) for _, y, _ in found])
        f1 = f1_of_classes(predicted, true, len(self.classes))
        each = {f"f1_{name}": float(v) for name, v in zip(self.classes, f1, strict=True)}
        accuracy = float((predicted == true).mean())
        return {"macro_f1": float(np.nanmean(f1)), "accuracy": accuracy, "n": len(true), **each}


class Reconstruction(Objective):
    """Masked patches (MAE)."""

    score, sign, columns = "reconstruction_loss", -1, ("step", "epoch", "reconstruction_loss", "n")

    def __init__(self, encoder: Encoder, mask_ratio: float, seed: int) -> None:
        self.network, self.seed = MaskedAutoencoder(encoder, mask_ratio), seed

    def loss(self, run: Any, batch: ItemBatch, step: int) -> Tensor:
        value: Tensor = run(batch.inputs["pixels"], self._noise(batch, (self.seed, _TRAINING, step)))[0]
        return value.float()

    def evaluate(self, run: Any, batches: Iterable[ItemBatch]) -> dict[str, float]:
        total, n = 0.0, 0
        for batch in batches:
            noise = self._noise(batch, (self.seed, _VALIDATION, batch.items[0]))
            total += float(run(batch.inputs["pixels"], noise)[0]) * len(batch.items)
            n += len(batch.items)
        return {"reconstruction_loss": total / n, "n": n}

    def head(self) -> dict[str, Tensor]:
        return {}

    def _noise(self, batch: ItemBatch, seed: tuple[int, ...]) -> Tensor:
        pixels: Tensor = batch.inputs["pixels"]
        return masking_noise(len(pixels), self.network.n_patches, seed).to(pixels.device)


def f1_of_classes(predicted: NDArray[np.integer], true: NDArray[np.integer], n_classes: int) -> NDArray[np.float64]:
    """(K,) F1 per class, 2 TP / (2 TP + FP + FN); NaN for a class that never occurs."""
    confusion = np.zeros((n_classes, n_classes), np.int64)
    np.add.at(confusion, (true, predicted), 1)
    hits, total = np.diag(confusion), confusion.sum(0) + confusion.sum(1)
    return np.where(total > 0, 2 * hits / np.maximum(total, 1), math.nan)


def _rows(run: Any, batches: Iterable[ItemBatch]) -> Iterable[tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]]:
    """(n, K) predictions, targets and masks of the valid rows, one batch at a time."""
    for batch in batches:
        predicted, counts = run(batch.inputs).float(), batch.mask.any(-1)
        predicted, target, mask = (x[counts].cpu().numpy() for x in (predicted, batch.target, batch.mask))
        yield predicted, target, mask


# ---- an encoder with a head


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
        """(B, R, K), arbitrary past an item's own rows. inputs: as `Items.collate` returns them."""
        predicted: Tensor = self.head(self.rows(inputs))
        return predicted

    def rows(self, inputs: dict[str, Any]) -> Tensor:
        """(B, R, D) features."""
        if self.modality == "visual":
            images: Tensor = self.encoder(inputs["pixels"])
            return images[:, None]
        if self.modality == "audio":
            return self._audio(inputs["samples"], inputs["keep"])
        return word_means(self.encoder(inputs["ids"], inputs["mask"]), inputs["row_of"], inputs["n_rows"])

    def _audio(self, samples: Sequence[Tensor], keep: Sequence[tuple[int, int]]) -> Tensor:
        """Chunks are batched by length: padding would change attention and normalization."""
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
    at = torch.where(row_of < 0, n_rows, row_of)  # an extra row, dropped below
    total = vectors.new_zeros(b, n_rows + 1, d).scatter_add(1, at[..., None].expand_as(vectors), vectors)
    count = vectors.new_zeros(b, n_rows + 1).scatter_add(1, at, torch.ones_like(at, dtype=vectors.dtype))
    return (total / count.clamp_min(1)[..., None])[:, :n_rows]


# ---- MAE


class MaskedAutoencoder(nn.Module):
    """An encoder in ViTMAEForPreTraining. has_decoder: whether its decoder was in the weights."""

    def __init__(self, encoder: Encoder, mask_ratio: float) -> None:
        """Raises WeightsError for a decoder of another size."""
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

        super().__init__()
        sizes = encoder.network.config.to_dict() | {"mask_ratio": mask_ratio, "norm_pix_loss": True}
        self.network = ViTMAEForPreTraining(ViTMAEConfig(**sizes))
        decoder, found = self.network.decoder, decoder_state(encoder.place)
        self.has_decoder = bool(found)
        if found:
            try:
                decoder.load_state_dict(found)
            except RuntimeError as error:
                said = str(error).splitlines()
                raise WeightsError(
                    f"holds a decoder of another size ({said[1].strip() if len(said) > 1 else said[0]})",
                    where=encoder.place.path,
                    hint="put config.json with its decoder_ sizes beside the weights",
                ) from None
        encoder.groups = replace(encoder.groups, fixed=(*encoder.groups.fixed, decoder.decoder_pos_embed))  # sines
        encoder.network.config.mask_ratio = mask_ratio
        self.network.vit = encoder.network

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, and the (B, L) mask (1: masked). noise: (B, L); patches with the smallest values are kept."""
        made = self.network(pixels, noise=noise)
        return made.loss, made.mask

    @property
    def n_patches(self) -> int:
        """L, patches per image."""
        return int(self.network.vit.embeddings.patch_embeddings.num_patches)


def masking_noise(n: int, n_patches: int, seed: tuple[int, ...]) -> Tensor:
    """(n, n_patches) uniform numbers that decide which patches are masked."""
    return torch.from_numpy(np.random.default_rng(seed).random((n, n_patches), np.float32))


def decoder_state(place: Place) -> dict[str, Tensor]:
    """The decoder in an encoder's weights, in transformers' names; {} without one (raises WeightsError: unreadable)."""
    from transformers import ViTMAEForPreTraining

    files = [place.path] if place.path.is_file() else sorted(place.path.glob("*.pth"))
    if files:
        return _of_repository(read_tensors(files[0], WeightsError))
    names: set[str] = set()
    for path in place.path.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names |= set(file.keys())
    for path in () if names else place.path.glob("pytorch_model*.bin"):  # read by `pretrained` without safetensors
        names |= set(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    if not any(name.startswith("decoder.") for name in names):
        return {}
    whole: Any = pretrained(ViTMAEForPreTraining, place.path)  # maps the names of older versions
    return dict(whole.decoder.state_dict())


def _of_repository(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """From a checkpoint of the MAE repository (models_mae.py: decoder_blocks.N.attn.qkv, ...)."""
    if "decoder_blocks.0.norm1.weight" not in state:
        return {}
    blocks = {k.removeprefix("decoder_"): v for k, v in state.items() if k.startswith("decoder_blocks.")}
    made = {f"decoder_{k}": v for k, v in mae_state(blocks, where="decoder").items()}
    renamed = {"embed": "decoder_embed", "pred": "decoder_pred", "pos_embed": "decoder_pos_embed"}
    for name, tensor in state.items():
        part, _, kind = name.removeprefix("decoder_").partition(".")
        if name.startswith("decoder_") and part in renamed:
            made[".".join(filter(None, (renamed[part], kind)))] = tensor
        elif name.startswith("decoder_norm."):
            made[name] = tensor
    return made | {"mask_token": state["mask_token"]}
