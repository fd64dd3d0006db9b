"""How an encoder is tuned: every number with its source.

Mamba-VA   Liang et al. 2025, arXiv:2503.10104, section 3.1         MAE   He et al. 2022, arXiv:2111.06377
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from affectrace.errors import ConfigError
from affectrace.losses import LossConfig
from affectrace.train.config import TrainConfig

Objective = Literal["va", "expression", "mae"]
HINT = "see `affectrace finetune --help`"


@dataclass(frozen=True)
class AugmentConfig:
    """What is changed at random in a training picture. Each change is drawn from (seed, epoch, picture).

    Fields that are null depend on the objective: see `of`.
    """

    flip: float = 0.5  # probability of mirroring left and right (MAE's code)
    crop_scale: tuple[float, float] | None = None  # share of the area that is cut out; null: .7..1 (ours), mae: .2..1
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # width by height of the cut (Szegedy et al. 2015, section 6)
    brightness: float | None = None  # factor 1 +- this; null: .4 (ours), mae: 0
    contrast: float | None = None  # likewise
    saturation: float | None = None  # likewise
    erase: float | None = None  # probability of erasing a rectangle; null: .25 (MAE's fine-tuning code), mae: 0
    erase_scale: tuple[float, float] = (0.02, 1 / 3)  # share of the area erased (MAE's code, as timm has it)
    erase_ratio: tuple[float, float] = (0.3, 10 / 3)  # height by width of what is erased (likewise)

    def __post_init__(self) -> None:
        scale = self.crop_scale or (1.0, 1.0)
        ranges = (scale, self.crop_ratio, self.erase_scale, self.erase_ratio)
        wrong = [
            message
            for broken, message in (
                (not 0 <= self.flip <= 1 or not 0 <= (self.erase or 0) <= 1, "flip and erase: between 0 and 1"),
                (
                    any(not 0 < a <= b for a, b in ranges),
                    "crop_scale, crop_ratio, erase_scale, erase_ratio: two positive numbers, the smaller first",
                ),
                (scale[1] > 1 or self.erase_scale[1] >= 1, "crop_scale and erase_scale: at most the whole picture"),
                (any(not 0 <= (v or 0) <= 1 for v in self._colours()), "brightness, contrast, saturation: 0 to 1"),
            )
            if broken
        ]
        if wrong:
            raise ConfigError("; ".join(wrong), where="AugmentConfig", hint=HINT)

    def _colours(self) -> tuple[float | None, ...]:
        return self.brightness, self.contrast, self.saturation

    @classmethod
    def none(cls) -> AugmentConfig:
        """Nothing is changed."""
        return cls(0.0, (1.0, 1.0), (1.0, 1.0), 0.0, 0.0, 0.0, 0.0)

    def of(self, objective: Objective) -> AugmentConfig:
        """With nothing left open. mae: cuts and mirroring alone, as MAE's pre-training has it (appendix A.1)."""
        mae = objective == "mae"
        chosen = {
            "crop_scale": (0.2, 1.0) if mae else (0.7, 1.0),
            "brightness": 0.0 if mae else 0.4,
            "contrast": 0.0 if mae else 0.4,
            "saturation": 0.0 if mae else 0.4,
            "erase": 0.0 if mae else 0.25,
        }
        return replace(self, **{k: v for k, v in chosen.items() if getattr(self, k) is None})  # type: ignore[arg-type]


@dataclass(frozen=True)
class ItemConfig:
    """What recordings are cut into. One prediction a row that `affectrace extract` would write."""

    every: int = 1  # every k-th frame, counted from the first, in training and validation (ours)
    fps: float | None = None  # frames a second to work at, as in extract; crops without a video may need it
    chunk_s: float = 6.0  # sound that goes through the network at once, seconds (ours; extract: 24)
    window_tokens: int = 128  # words that go through the network at once, in sub-word tokens (ours; extract: 256)

    def __post_init__(self) -> None:
        wrong = [
            message
            for broken, message in (
                (self.every < 1, "every: at least 1"),
                (self.fps is not None and not 0 < self.fps <= 1000, "fps: between 0 and 1000, or null"),
                (not 0.1 <= self.chunk_s <= 600, "chunk_s: between 0.1 and 600"),
                (not 8 <= self.window_tokens <= 512, "window_tokens: between 8 and 512"),
            )
            if broken
        ]
        if wrong:
            raise ConfigError("; ".join(wrong), where="ItemConfig", hint=HINT)


@dataclass(frozen=True)
class FinetuneConfig:
    """How an encoder is tuned. Defaults are Mamba-VA's where the paper states them (3.1), else MAE's, else ours."""

    objective: Objective = "va"  # valence and arousal, classes of expression, or going on with MAE's pre-training
    freeze_patch_embedding: bool | None = None  # with positions and class token (3.1); null: yes, in mae no
    frozen_blocks: int | None = None  # first k blocks (3.1: 16 of 24); null: two thirds of them, in mae none
    layer_decay: float = 1.0  # lr of block i is times this ^ (blocks + 1 - i) (MAE table 9: .75); 1: all alike
    gradient_checkpointing: bool = False  # blocks are computed again on the way back: less memory, more time
    loss: LossConfig = field(default_factory=lambda: LossConfig(kind="mixture", ccc_weight=1.0))  # va: MSE + 1 - CCC
    label_smoothing: float = 0.1  # of expression classes (MAE table 9)
    balance_classes: bool = False  # weigh a class of n rows by 1 / n (ours)
    mask_ratio: float = 0.75  # share of patches that MAE does not see (MAE section 4.1)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    items: ItemConfig = field(default_factory=ItemConfig)
    image_mean: tuple[float, float, float] | None = None  # of R, G, B in 0..1; null: as the weights came with
    image_std: tuple[float, float, float] | None = None  # authors of Mamba-VA: .471 .363 .333 and .220 .193 .180
    epochs: int = 10  # (ours; MAE table 9: 50)
    batch_size: int = 64  # frames, chunks or word windows a step (ours)
    lr: float | None = None  # highest; null: 1e-3 x batch_size / 256 (MAE table 9), in mae 1.5e-4 x that (table 8)
    lr_min: float = 0.0  # at the end of the cosine (ours)
    warmup_epochs: float = 1.0  # linear from 0 (MAE: a tenth of the epochs)
    beta2: float | None = None  # of AdamW; null: .999, in mae .95 (MAE tables 8, 9)
    weight_decay: float = 0.05  # not of biases, norms, tokens, positions (MAE tables 8, 9)
    clip_norm: float = 1.0  # gradient norm (ours)
    validations_per_epoch: int = 1  # (ours)
    patience: int | None = None  # stop after so many validations without a better one; null: never (ours)
    seed: int = 42
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    accelerator: str = "auto"  # Lightning Fabric's: cpu, cuda, ...
    threads: int = 2  # that read and augment ahead

    def __post_init__(self) -> None:
        wrong = [
            message
            for broken, message in (
                (self.objective not in get_args(Objective), f"objective: one of {', '.join(get_args(Objective))}"),
                (self.frozen_blocks is not None and self.frozen_blocks < 0, "frozen_blocks: zero or more, or null"),
                (not 0 < self.layer_decay <= 1, "layer_decay: above 0, at most 1"),
                (not 0 < self.mask_ratio < 1, "mask_ratio: between 0 and 1"),
                (not 0 <= self.label_smoothing < 1, "label_smoothing: at least 0, below 1"),
                (self.image_std is not None and min(self.image_std) <= 0, "image_std: positive"),
                (self.epochs < 1 or self.batch_size < 1, "epochs and batch_size: at least 1"),
                (self.lr is not None and not 0 < self.lr < math.inf, "lr: must be positive, or null"),
                (not 0 <= self.lr_min <= self.highest_lr, "lr_min: between 0 and lr"),
                (self.warmup_epochs < 0, "warmup_epochs: must not be negative"),
                (self.beta2 is not None and not 0 < self.beta2 < 1, "beta2: between 0 and 1, or null"),
                (self.weight_decay < 0 or self.clip_norm <= 0, "weight_decay: not negative; clip_norm: positive"),
                (self.validations_per_epoch < 1, "validations_per_epoch: at least 1"),
                (self.patience is not None and self.patience < 1, "patience: at least 1, or null"),
                (self.threads < 1, "threads: at least 1"),
            )
            if broken
        ]
        if wrong:
            raise ConfigError("; ".join(wrong), where="FinetuneConfig", hint=HINT)

    @property
    def highest_lr(self) -> float:
        """Highest learning rate."""
        base = 1.5e-4 if self.objective == "mae" else 1e-3
        return self.lr if self.lr is not None else base * self.batch_size / 256

    @property
    def betas(self) -> tuple[float, float]:
        """Of AdamW."""
        return 0.9, self.beta2 if self.beta2 is not None else 0.95 if self.objective == "mae" else 0.999

    def frozen(self, n_blocks: int) -> int:
        """How many of an encoder's blocks stay as they are.

        Raises:
            ConfigError: more than there are.
        """
        k = self.frozen_blocks
        if k is None:
            return 0 if self.objective == "mae" else 2 * n_blocks // 3
        if k > n_blocks:
            raise ConfigError(
                f"frozen_blocks is {k}, the encoder has {n_blocks} blocks",
                where="FinetuneConfig",
                hint=f"use 0 to {n_blocks}",
            )
        return k

    @property
    def freezes_patch_embedding(self) -> bool:
        """Whether all that comes before the first block stays as it is."""
        chosen = self.freeze_patch_embedding
        return self.objective != "mae" if chosen is None else chosen

    def training(self) -> TrainConfig:
        """The learning rate over time, precision and devices, as `train` understands them."""
        after = max(self.epochs - self.warmup_epochs, 0.0) or 1.0
        return TrainConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.highest_lr,
            lr_min=self.lr_min,
            warmup_epochs=self.warmup_epochs,
            restart_epochs=after * (1 + 1e-9),  # one cosine that reaches its end with the last step
            clip_norm=self.clip_norm,
            weight_decay=self.weight_decay,
            validations_per_epoch=self.validations_per_epoch,
            patience=self.patience,
            standardise=False,
            seed=self.seed,
            precision=self.precision,
            accelerator=self.accelerator,
            threads=self.threads,
        )
