"""How an encoder is tuned: every number with its source.

Mamba-VA   Liang et al. 2025, arXiv:2503.10104, section 3.1         MAE   He et al. 2022, arXiv:2111.06377
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from affectrace.config import Config, Count, NotNegative, Positive, Share
from affectrace.errors import ConfigError
from affectrace.train.config import LossConfig, TrainConfig

Scale = tuple[Annotated[float, Interval(gt=0, le=1)], Annotated[float, Interval(gt=0, le=1)]]
Ratio = tuple[Positive, Positive]
Objective = Literal["va", "expression", "mae"]


@dataclass(frozen=True)
class AugmentConfig(Config):
    """What is changed at random in a training picture. Each change is drawn from (seed, epoch, picture).

    Fields that are null depend on the objective: see `of`.
    """

    flip: Share = 0.5
    """Probability of mirroring left and right (MAE's code)."""
    crop_scale: Scale | None = None
    """Share of the area that is cut out; none: .7..1 (ours), mae: .2..1."""
    crop_ratio: Ratio = (3 / 4, 4 / 3)
    """Width by height of the cut (Szegedy et al. 2015, section 6)."""
    brightness: Share | None = None
    """Factor 1 +- this; none: .4 (ours), mae: 0."""
    contrast: Share | None = None
    """As brightness."""
    saturation: Share | None = None
    """As brightness."""
    erase: Share | None = None
    """Probability of erasing a rectangle; none: .25 (MAE's fine-tuning code), mae: 0."""
    erase_scale: Scale = (0.02, 1 / 3)
    """Share of the area erased (MAE's code, as timm has it)."""
    erase_ratio: Ratio = (0.3, 10 / 3)
    """Height by width of what is erased (likewise)."""

    def __post_init__(self) -> None:
        for name in ("crop_scale", "crop_ratio", "erase_scale", "erase_ratio"):
            low, high = getattr(self, name) or (1.0, 1.0)
            if low > high:
                raise ConfigError(f"two numbers, the smaller first, got {low:g} and {high:g}", where=name)
        if self.erase_scale[1] >= 1:
            raise ConfigError("must be below the whole picture", where="erase_scale")

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
class ItemConfig(Config):
    """What recordings are cut into. One prediction a row that `affectrace extract` would write."""

    every: Count = 1
    """Every k-th frame, counted from the first, in training and validation (ours)."""
    fps: Annotated[float, Interval(gt=0, le=1000)] | None = None
    """Frames a second to work at, as in extract; crops without a video may need it."""
    chunk_s: Annotated[float, Interval(ge=0.1, le=600)] = 6.0
    """Sound that goes through the network at once, seconds (ours; extract: 24)."""
    window_tokens: Annotated[int, Interval(ge=8, le=512)] = 128
    """Words that go through the network at once, in sub-word tokens (ours; extract: 256)."""


@dataclass(frozen=True)
class FinetuneConfig(Config):
    """How an encoder is tuned. Defaults are Mamba-VA's where the paper states them (3.1), else MAE's, else ours."""

    objective: Objective = "va"
    """Valence and arousal, classes of expression, or going on with MAE's pre-training."""
    freeze_patch_embedding: bool | None = None
    """Keep the patch embedding as it is, with positions and class token (3.1); none: yes, in mae no."""
    frozen_blocks: Annotated[int, Ge(0)] | None = None
    """Keep the first k blocks as they are (3.1: 16 of 24); none: two thirds of them, in mae none."""
    layer_decay: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """The rate of block i is times this ^ (blocks + 1 - i) (MAE table 9: .75); 1: all alike."""
    gradient_checkpointing: bool = False
    """Blocks are computed again on the way back: less memory, more time."""
    loss: LossConfig = field(default_factory=lambda: LossConfig(kind="mixture", ccc_weight=1.0))
    """What objective va minimises: by default MSE + 1 - CCC."""
    label_smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Label smoothing of expression classes (MAE table 9)."""
    balance_classes: bool = False
    """Weigh a class of n rows by 1 / n (ours)."""
    mask_ratio: Annotated[float, Interval(gt=0, lt=1)] = 0.75
    """Share of patches that MAE does not see (MAE section 4.1)."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    items: ItemConfig = field(default_factory=ItemConfig)
    image_mean: tuple[float, float, float] | None = None
    """Mean of R, G, B in 0..1; none: as the weights came with."""
    image_std: tuple[Positive, Positive, Positive] | None = None
    """Deviation of R, G, B (authors of Mamba-VA: .471 .363 .333 and .220 .193 .180)."""
    epochs: Count = 10
    """Passes over the training rows (ours; MAE table 9: 50)."""
    batch_size: Count = 64
    """Frames, chunks or word windows a step (ours)."""
    lr: Positive | None = None
    """Highest learning rate; none: 1e-3 x batch_size / 256 (MAE table 9), in mae 1.5e-4 x that (table 8)."""
    lr_min: NotNegative = 0.0
    """Learning rate at the end of the cosine (ours)."""
    warmup_epochs: NotNegative = 1.0
    """Epochs in which the rate rises from 0 (MAE: a tenth of the epochs)."""
    beta2: Annotated[float, Interval(gt=0, lt=1)] | None = None
    """Second beta of AdamW; none: .999, in mae .95 (MAE tables 8, 9)."""
    weight_decay: NotNegative = 0.05
    """Weight decay, not of biases, norms, tokens, positions (MAE tables 8, 9)."""
    clip_norm: Positive = 1.0
    """Largest norm of the gradient (ours)."""
    validations_per_epoch: Count = 1
    """Validations an epoch (ours)."""
    patience: Count | None = None
    """Stop after so many validations without a better one; none: never (ours)."""
    seed: int = 42
    """Seed of weights, order and augmentation."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Precision of products; bf16-mixed keeps weights in float32."""
    accelerator: str = "auto"
    """What to tune on: auto, cpu, cuda, ... (Lightning Fabric's names)."""
    threads: Count = 2
    """Threads that read and augment ahead."""

    def __post_init__(self) -> None:
        if 0 < self.highest_lr < self.lr_min:
            raise ConfigError("must not be above lr", where="lr_min")

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
