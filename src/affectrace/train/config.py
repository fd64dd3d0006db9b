"""Training configuration, and recipes: settings of both papers and of their authors' code.

mamba-va          authors (by fold) | paper
maven             paper-38 | paper-42 | seed-a | seed-b | authors
frame-regressor   none | challenge: the defaults on resnet-50 features
other models      none: the defaults (Mamba-VA, section 4.2)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

from affectrace.config import Config, Count, NotNegative, Positive, Seed
from affectrace.errors import ConfigError, UnknownNameError
from affectrace.sequences.config import WindowScheme

Selection = Literal["inner", "last", "scored"]
"""Which checkpoint is scored: the best on an inner split of the training recordings, the last one, or the best on the
scored recordings themselves."""


def describe_selection(selection: Selection, n_validation: int) -> str:
    """How a checkpoint was selected, for tables and model cards. n_validation: recordings of the inner split."""
    if selection == "inner":
        return f"the best on {n_validation} training recording{'s' * (n_validation != 1)} kept apart"
    return {"last": "the last one", "scored": "the best on the scored recordings"}[selection]


@dataclass(frozen=True)
class LossConfig(Config):
    """The training loss. Defaults are Mamba-VA's."""

    kind: Literal["ccc", "mse", "mixture"] = "ccc"
    """ccc: Mamba-VA, section 4.2; mse: MAVEN, eq. (32); mixture: MSE + CCC loss, from MAVEN's authors' code."""
    per: Literal["batch", "sequence"] = "batch"
    """Compute the CCC over all frames of the batch (authors of Mamba-VA), or per sequence."""
    valence_weight: NotNegative = 1.0
    """Weight of valence, w_v."""
    arousal_weight: NotNegative = 1.0
    """Weight of arousal, w_a."""
    ccc_weight: NotNegative = 0.1
    """Weight of the CCC loss in the mixture, lambda (authors of MAVEN)."""
    detach_ccc: bool = False
    """Stop the gradient of the CCC term in the mixture (the effect of MAVEN's authors' code)."""

    def __post_init__(self) -> None:
        if self.valence_weight + self.arousal_weight == 0:
            raise ConfigError("one of the two must be positive", where="valence_weight, arousal_weight")


@dataclass(frozen=True)
class TrainConfig(Config):
    """Training settings. Defaults are Mamba-VA's for the official split.

    "4.2": section 4.2 of the Mamba-VA paper; "authors": its authors' code; "ours": our choice.
    """

    epochs: Count = 50
    """Passes over the training windows (4.2)."""
    batch_size: Count = 16
    """Windows per step, summed over all devices (authors)."""
    window: WindowScheme = field(default_factory=WindowScheme.mamba_va)
    """Training windows: 1000/800 frames (authors)."""
    loss: LossConfig = field(default_factory=LossConfig)
    """CCC (4.2)."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    """adamw: decoupled weight decay (4.2); adam: L2 penalty (MAVEN)."""
    lr: Positive = 3e-4
    """Peak learning rate (4.2; authors in folds 1-5: 3e-5)."""
    eps: Positive = 1e-7
    """Epsilon of the optimizer (authors)."""
    weight_decay: NotNegative = 1e-3
    """Weight decay (4.2; authors in fold 0: 1e-2)."""
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    """Learning rate schedule after warm-up (authors); plateau: reduce it when the validation CCC stops improving."""
    plateau_factor: Annotated[float, Interval(gt=0, lt=1)] = 0.1
    """plateau: factor of each reduction (MAVEN, arXiv IV-B)."""
    plateau_patience: Annotated[int, Ge(0)] = 5
    """plateau: epochs without improvement before a reduction (MAVEN, arXiv IV-B)."""
    warmup_epochs: NotNegative = 5.0
    """Epochs of linear warm-up from 0 (4.2)."""
    restart_epochs: Positive | None = None
    """cosine: period T_0 in epochs; none: epochs - warmup_epochs + 1 (authors)."""
    lr_min: NotNegative = 0.0
    """Minimum learning rate of cosine and plateau (authors)."""
    clip_norm: Positive = 1.0
    """Gradient clipping: maximum norm (authors; MAVEN, arXiv IV-B)."""
    validations_per_epoch: Count = 4
    """Validations per epoch (authors)."""
    patience: Count | None = None
    """Stop after this many validations without improvement; none: never (ours)."""
    standardise: bool = True
    """Standardise features by the mean and standard deviation of the training set (ours; authors: no)."""
    seed: Seed = 42
    """Seed of weights, batch order and dropout (authors)."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """Precision of matrix products; bf16-mixed keeps weights in float32 (ours)."""
    accelerator: str = "auto"
    """Hardware: auto, cpu, cuda, ... (Lightning Fabric's names)."""
    devices: Count = 1
    """Number of processes, each with its own GPU if available."""
    strategy: str = "auto"
    """Distributed strategy; auto: ddp if devices > 1 (Lightning Fabric's names)."""
    threads: Count = 2
    """Data-loading threads per process."""

    def __post_init__(self) -> None:
        if 0 < self.lr < self.lr_min:
            raise ConfigError("must not be above lr", where="lr_min")

    def lr_at(self, epoch: float) -> float:
        """Learning rate after `epoch` (fractional) epochs; with a plateau schedule, before the first reduction."""
        if epoch < self.warmup_epochs:
            return self.lr * epoch / self.warmup_epochs
        if self.schedule != "cosine":
            return self.lr
        period = self.restart_epochs or max(self.epochs - self.warmup_epochs, 0) + 1
        within = math.fmod(epoch - self.warmup_epochs, period) / period
        return self.lr_min + (self.lr - self.lr_min) * (1 + math.cos(math.pi * within)) / 2


@dataclass(frozen=True, kw_only=True)
class TrainingSetup:
    """Options shared by `train` and `crossval`: model, data and settings."""

    model: str = "mamba-va"
    """Model: mamba-va, maven, gru, tcn-transformer or frame-regressor."""
    data: Path = Path()
    """Data set: manifest.json, its folder, or an Aff-Wild2 tree."""
    features: tuple[str, ...] = ()
    """Input features, as EXTRACTOR or STREAM=EXTRACTOR (visual=mae-vit-l audio=hubert-base)."""
    store: Path | None = None
    """Folder of feature files. Default: the folder features of the data set, then that of the working folder."""
    accept_features: bool = False
    """Allow features of several extractors in one stream, or of an encoder tuned on held-out recordings; results and
    model card are marked."""
    preset: str = "paper"
    """Preset of the model configuration: paper, tiny, ..."""
    recipe: str | None = None
    """Set of published training settings. mamba-va: authors (default; lr, weight decay, dropout and windows by fold),
    paper. maven: paper-38 (default), paper-42, seed-a, seed-b, authors. frame-regressor: challenge. none: the defaults
    shown here. Options given on the command line or in --config override the recipe."""
    set: tuple[str, ...] = ()
    """Override fields of the model configuration: FIELD=VALUE (dropout=0.2)."""
    missing: Literal["mask", "hold", "zero"] = "mask"
    """Frames without features: mask them, hold the last valid row, or fill with zeros."""
    beit: str | None = None
    """maven: pretrained BEiT to initialize the encoder blocks (a folder, or user/model@COMMIT). Default: random."""
    licence: str = "other"
    """Licence of the trained weights, for the model card (Hub identifier, such as cc-by-nc-4.0)."""
    training: TrainConfig = field(default_factory=TrainConfig)


# ---- recipes


@dataclass(frozen=True)
class Recipe:
    """Published settings with their source. model: fields of the model configuration."""

    name: str
    source: str
    training: TrainConfig = field(default_factory=TrainConfig)
    model: Mapping[str, Any] = field(default_factory=dict)


def recipe(model: str, name: str | None = None, *, fold: int = 0) -> Recipe:
    """Recipe of a model by name; None: its default (raises UnknownNameError). Those of Mamba-VA depend on the fold."""
    known = {r.name: r for r in recipes(model, fold)}
    name = name or next(iter(known))
    if name not in known:
        raise UnknownNameError.of(f"recipe of {model}", name, known)
    return known[name]


def recipes(model: str, fold: int = 0) -> tuple[Recipe, ...]:
    """All recipes of a model, its default first."""
    none = Recipe("none", "defaults")
    if model == "mamba-va":
        return *_mamba_va_recipes(fold), none
    if model == "maven":
        return *_maven_recipes(), none
    if model == "frame-regressor":
        source = "the ABAW challenge's baseline, Kollias 2022 (arXiv:2202.10659), on resnet-50; trained by defaults"
        return none, Recipe("challenge", source)
    return (none,)


def _mamba_va_recipes(fold: int) -> tuple[Recipe, ...]:
    window, official = WindowScheme.mamba_va(fold), fold == 0
    authors = TrainConfig(window=window, lr=3e-4 if official else 3e-5, weight_decay=1e-2 if official else 1e-3)
    return (
        Recipe("authors", f"the authors' code, fold {fold}", authors, {"dropout": 0.3 if official else 0.2}),
        Recipe("paper", "arXiv:2503.10104, section 4.2", TrainConfig(window=window), {"dropout": 0.3}),
    )


def _maven_recipes() -> tuple[Recipe, ...]:
    """Settings missing in one source come from the next one in the list. A window is an utterance."""
    common: dict[str, Any] = {
        "epochs": 200,  # (4.2)
        "batch_size": 16,  # (4.2), arXiv IV-A
        "window": WindowScheme.maven(750, 50),  # ours: splits utterances of more than 30 s (at 25 fps)
        "loss": LossConfig(kind="mse"),  # (32)
        "eps": 1e-8,  # torch's default
        "validations_per_epoch": 1,  # ours
        "warmup_epochs": 0.0,
        "schedule": "constant",  # neither section of the published version names one
        "clip_norm": 1.0,  # arXiv IV-B
    }
    adam = common | {"optimizer": "adam", "lr": 1e-4}  # lr: (3.8)
    cosine = {"weight_decay": 1e-2, "schedule": "cosine", "warmup_epochs": 10.0, "precision": "bf16-mixed"}
    plateau = adam | {"lr": 1e-3, "weight_decay": 1e-4, "schedule": "plateau"}
    mixture = LossConfig(kind="mixture", ccc_weight=0.1, detach_ccc=True)
    head = {"head_dropout": (0.2, 0.2)}  # (3.8): .2 after each layer of the predictor
    return (
        Recipe(
            "paper-38",
            "CVPR 2025 workshops version, section 3.8",
            TrainConfig(**common | {"optimizer": "adamw", "lr": 1e-4, "weight_decay": 1e-2}),
            head,
        ),
        Recipe("paper-42", "CVPR 2025 workshops version, section 4.2", TrainConfig(**adam | {"weight_decay": 1e-3})),
        # "a dropout rate of 0.2", location not stated: used everywhere
        Recipe("seed-a", "arXiv:2503.12623, section IV-A", TrainConfig(**adam | cosine), head | {"dropout": 0.2}),
        Recipe("seed-b", "arXiv:2503.12623, section IV-B", TrainConfig(**plateau)),
        Recipe(
            "authors", "the authors' code", TrainConfig(**plateau | {"loss": mixture}), {"head_dropout": (0.5, 0.3)}
        ),
    )
