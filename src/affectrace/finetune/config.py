"""Fine-tuning configuration, with the source of every default.

Mamba-VA   Liang et al. 2025, arXiv:2503.10104, section 3.1         MAE   He et al. 2022, arXiv:2111.06377
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

from affectrace.config import Config, Count, NotNegative, Positive, Seed, Share
from affectrace.errors import ConfigError
from affectrace.train.config import LossConfig, TrainConfig

Area = Annotated[float, Interval(gt=0, le=1)]
Objective = Literal["va", "expression", "mae"]


@dataclass(frozen=True)
class AugmentConfig(Config):
    """Random augmentation of training images, drawn from (seed, epoch, item). Defaults depend on the objective."""

    flip: Share = 0.5
    """Probability of a horizontal flip (MAE's code)."""
    crop_scale: tuple[Area, Area] | None = None
    """Range of the area fraction of random crops. Default: .7 to 1 (ours), mae: .2 to 1."""
    brightness: Share | None = None
    """Brightness jitter: factor 1 +- this. Default: .4 (ours), mae: 0."""
    contrast: Share | None = None
    """Contrast jitter, as brightness."""
    saturation: Share | None = None
    """Saturation jitter, as brightness."""
    erase: Share | None = None
    """Probability of random erasing. Default: .25 (MAE's fine-tuning code), mae: 0."""

    def __post_init__(self) -> None:
        if self.crop_scale and self.crop_scale[0] > self.crop_scale[1]:
            raise ConfigError("the lower end comes first", where="crop_scale")

    def of(self, objective: Objective) -> AugmentConfig:
        """With the defaults of an objective filled in. mae: crop and flip only (MAE, appendix A.1)."""
        mae = objective == "mae"
        colour = 0.0 if mae else 0.4
        defaults: dict[str, Any] = {"crop_scale": (0.2, 1.0) if mae else (0.7, 1.0), "erase": 0.0 if mae else 0.25}
        defaults |= {"brightness": colour, "contrast": colour, "saturation": colour}
        return replace(self, **{k: v for k, v in defaults.items() if getattr(self, k) is None})


@dataclass(frozen=True)
class ItemConfig(Config):
    """How recordings are cut into items. There is one prediction per feature row of `affectrace extract`."""

    every: Count = 1
    """Use every k-th frame, in training and validation (ours)."""
    fps: Annotated[float, Interval(gt=0, le=1000)] | None = None
    """Frame rate, as in extract; needed for crops without a video if labels have times."""
    chunk_s: Annotated[float, Interval(ge=0.1, le=600)] = 6.0
    """Length of an audio chunk in seconds (ours; extract: 24)."""
    window_tokens: Annotated[int, Interval(ge=8, le=512)] = 128
    """Length of a text window in sub-word tokens (ours; extract: 256)."""


@dataclass(frozen=True)
class FinetuneConfig(Config):
    """Fine-tuning settings. Defaults: Mamba-VA (section 3.1) if stated there, else MAE, else our choice ("ours")."""

    objective: Objective = "va"
    """va: valence and arousal; expression: expression classes; mae: continued MAE pre-training."""
    freeze_patch_embedding: bool | None = None
    """Freeze the patch embedding, positions and class token (3.1). Default: yes, mae: no."""
    frozen_blocks: Annotated[int, Ge(0)] | None = None
    """Number of leading blocks to freeze (3.1: 16 of 24). Default: two thirds, mae: none."""
    layer_decay: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Layer-wise decay: block i of N learns at lr * decay^(N + 1 - i) (MAE table 9: .75)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    loss: LossConfig = field(default_factory=lambda: LossConfig(kind="mixture", ccc_weight=1.0))
    """Loss of objective va; default: MSE + 1 - CCC."""
    label_smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Label smoothing of expression classes (MAE table 9)."""
    balance_classes: bool = False
    """Weight each class by the inverse of its frequency (ours)."""
    mask_ratio: Annotated[float, Interval(gt=0, lt=1)] = 0.75
    """mae: fraction of masked patches (MAE section 4.1)."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    items: ItemConfig = field(default_factory=ItemConfig)
    image_mean: tuple[float, float, float] | None = None
    """Mean of R, G, B, in 0 to 1. Default: that of the weights."""
    image_std: tuple[Positive, Positive, Positive] | None = None
    """Standard deviation of R, G, B (authors of Mamba-VA: mean .471 .363 .333, deviation .220 .193 .180)."""
    epochs: Count = 10
    """Passes over the training items (ours; MAE table 9: 50)."""
    batch_size: Count = 64
    """Frames, audio chunks or text windows per step (ours)."""
    lr: Positive | None = None
    """Peak learning rate. Default: 1e-3 x batch_size / 256 (MAE table 9), mae: 1.5e-4 x batch_size / 256 (table 8)."""
    lr_min: NotNegative = 0.0
    """Learning rate at the end of the cosine (ours)."""
    warmup_epochs: NotNegative = 1.0
    """Epochs of linear warm-up from 0 (MAE: a tenth of the epochs)."""
    weight_decay: NotNegative = 0.05
    """Weight decay; not applied to biases, norms, tokens and positions (MAE tables 8, 9)."""
    clip_norm: Positive = 1.0
    """Gradient clipping: maximum norm (ours)."""
    validations_per_epoch: Count = 1
    """Validations per epoch (ours)."""
    patience: Count | None = None
    """Stop after this many validations without improvement; none: never (ours)."""
    seed: Seed = 42
    """Seed of weights, batch order and augmentation."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Precision of matrix products; bf16-mixed keeps weights in float32."""
    accelerator: str = "auto"
    """Hardware: auto, cpu, cuda, ... (Lightning Fabric's names)."""
    threads: Count = 2
    """Data-loading and augmentation threads."""

    def __post_init__(self) -> None:
        if 0 < self.peak_lr < self.lr_min:
            raise ConfigError("must not be above lr", where="lr_min")

    @property
    def peak_lr(self) -> float:
        """Highest learning rate."""
        base = 1.5e-4 if self.objective == "mae" else 1e-3
        return self.lr if self.lr is not None else base * self.batch_size / 256

    @property
    def betas(self) -> tuple[float, float]:
        """Betas of AdamW (MAE tables 8, 9)."""
        return 0.9, 0.95 if self.objective == "mae" else 0.999

    @property
    def freezes_patch_embedding(self) -> bool:
        """Whether everything before the first block is frozen."""
        chosen = self.freeze_patch_embedding
        return self.objective != "mae" if chosen is None else chosen

    def n_frozen(self, n_blocks: int) -> int:
        """Number of frozen blocks of an encoder with `n_blocks` (raises ConfigError: too many)."""
        k = self.frozen_blocks
        if k is None:
            return 0 if self.objective == "mae" else 2 * n_blocks // 3
        if k > n_blocks:
            raise ConfigError(f"must be 0 to {n_blocks} for this encoder, got {k}", where="frozen_blocks")
        return k

    def training(self) -> TrainConfig:
        """Schedule, precision and hardware as a `TrainConfig`: one cosine that ends with the last step."""
        shared = {f.name: getattr(self, f.name) for f in fields(TrainConfig) if hasattr(self, f.name)}
        after_warmup = max(self.epochs - self.warmup_epochs, 0.0) or 1.0
        cosine = {"lr": self.peak_lr, "restart_epochs": after_warmup * (1 + 1e-9)}
        return TrainConfig(**shared | cosine | {"standardise": False})
