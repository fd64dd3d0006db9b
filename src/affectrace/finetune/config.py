"""Fine-tuning configuration, with the source of every default.

Mamba-VA   Liang et al. 2025, arXiv:2503.10104, section 3.1         MAE   He et al. 2022, arXiv:2111.06377
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

from affectrace.config import Config, Count, NotNegative, Positive, Share
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
    """Share of the area of a random crop; default: .7..1 (ours), mae: .2..1."""
    brightness: Share | None = None
    """Factor 1 +- this; default: .4 (ours), mae: 0."""
    contrast: Share | None = None
    """As brightness."""
    saturation: Share | None = None
    """As brightness."""
    erase: Share | None = None
    """Probability of erasing a rectangle; default: .25 (MAE's fine-tuning code), mae: 0."""

    def __post_init__(self) -> None:
        if self.crop_scale and self.crop_scale[0] > self.crop_scale[1]:
            raise ConfigError("the smaller number comes first", where="crop_scale")

    def of(self, objective: Objective) -> AugmentConfig:
        """With the defaults of an objective filled in. mae: crop and flip only (MAE, appendix A.1)."""
        mae = objective == "mae"
        colour = 0.0 if mae else 0.4
        defaults: dict[str, Any] = {"crop_scale": (0.2, 1.0) if mae else (0.7, 1.0), "erase": 0.0 if mae else 0.25}
        defaults |= {"brightness": colour, "contrast": colour, "saturation": colour}
        return replace(self, **{k: v for k, v in defaults.items() if getattr(self, k) is None})


@dataclass(frozen=True)
class ItemConfig(Config):
    """How recordings are cut into items. There is one prediction per row that `affectrace extract` would write."""

    every: Count = 1
    """Use every k-th frame, in training and validation (ours)."""
    fps: Annotated[float, Interval(gt=0, le=1000)] | None = None
    """Frame rate to work at, as in extract; crops without a video may need it."""
    chunk_s: Annotated[float, Interval(ge=0.1, le=600)] = 6.0
    """Length of an audio chunk in seconds (ours; extract: 24)."""
    window_tokens: Annotated[int, Interval(ge=8, le=512)] = 128
    """Length of a text window in sub-word tokens (ours; extract: 256)."""


@dataclass(frozen=True)
class FinetuneConfig(Config):
    """Fine-tuning settings. Defaults are Mamba-VA's where the paper states them (3.1), else MAE's, else ours."""

    objective: Objective = "va"
    """Valence and arousal, expression classes, or continued MAE pre-training."""
    freeze_patch_embedding: bool | None = None
    """Freeze the patch embedding, with positions and class token (3.1); default: yes, mae: no."""
    frozen_blocks: Annotated[int, Ge(0)] | None = None
    """Freeze the first k blocks (3.1: 16 of 24); default: two thirds of them, mae: none."""
    layer_decay: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Learning rate of block i is multiplied by this ^ (blocks + 1 - i) (MAE table 9: .75)."""
    gradient_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, more time."""
    loss: LossConfig = field(default_factory=lambda: LossConfig(kind="mixture", ccc_weight=1.0))
    """Loss of objective va; default: MSE + 1 - CCC."""
    label_smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Label smoothing of expression classes (MAE table 9)."""
    balance_classes: bool = False
    """Weight a class of n rows by 1 / n (ours)."""
    mask_ratio: Annotated[float, Interval(gt=0, lt=1)] = 0.75
    """Share of masked patches in mae (MAE section 4.1)."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    items: ItemConfig = field(default_factory=ItemConfig)
    image_mean: tuple[float, float, float] | None = None
    """Mean of R, G, B in 0..1; default: that of the weights."""
    image_std: tuple[Positive, Positive, Positive] | None = None
    """Deviation of R, G, B (authors of Mamba-VA: .471 .363 .333 and .220 .193 .180)."""
    epochs: Count = 10
    """Passes over the training items (ours; MAE table 9: 50)."""
    batch_size: Count = 64
    """Frames, audio chunks or text windows per step (ours)."""
    lr: Positive | None = None
    """Peak learning rate; default: 1e-3 x batch_size / 256 (MAE table 9), mae: 1.5e-4 x that (table 8)."""
    lr_min: NotNegative = 0.0
    """Learning rate at the end of the cosine (ours)."""
    warmup_epochs: NotNegative = 1.0
    """Epochs of linear warm-up from 0 (MAE: a tenth of the epochs)."""
    weight_decay: NotNegative = 0.05
    """Weight decay, except of biases, norms, tokens and positions (MAE tables 8, 9)."""
    clip_norm: Positive = 1.0
    """Largest gradient norm (ours)."""
    validations_per_epoch: Count = 1
    """Validations per epoch (ours)."""
    patience: Count | None = None
    """Stop after this many validations without a better one; none: never (ours)."""
    seed: int = 42
    """Seed of weights, batch order and augmentation."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Precision of matrix products; bf16-mixed keeps weights in float32."""
    accelerator: str = "auto"
    """Hardware: auto, cpu, cuda, ... (Lightning Fabric's names)."""
    threads: Count = 2
    """Threads that read and augment ahead."""

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
        """How many of an encoder's blocks are frozen (raises ConfigError: more than it has)."""
        k = self.frozen_blocks
        if k is None:
            return 0 if self.objective == "mae" else 2 * n_blocks // 3
        if k > n_blocks:
            raise ConfigError(f"must be 0 to {n_blocks} for this encoder, got {k}", where="frozen_blocks")
        return k

    def training(self) -> TrainConfig:
        """Schedule, precision and hardware in the terms of `train`: one cosine that ends with the last step."""
        shared = {f.name: getattr(self, f.name) for f in fields(TrainConfig) if hasattr(self, f.name)}
        after_warmup = max(self.epochs - self.warmup_epochs, 0.0) or 1.0
        cosine = {"lr": self.peak_lr, "restart_epochs": after_warmup * (1 + 1e-9)}
        return TrainConfig(**shared | cosine | {"standardise": False})
