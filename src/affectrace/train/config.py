"""How a model is trained: every number with its source; the settings of both papers and of their authors' code.

    mamba-va   authors (by fold) | paper
    maven      paper-38 | paper-42 | seed-a | seed-b | authors
    frame-regressor  challenge: the defaults under its name, on features of resnet-50
    others     none: the defaults, which are Mamba-VA's (section 4.2)

A recipe also names fields of the model that belong to it (dropout).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, get_args

from affectrace.errors import ConfigError, UnknownNameError
from affectrace.losses import LossConfig
from affectrace.sequences.windows import WindowScheme

Schedule = Literal["cosine", "plateau", "constant"]
Precision = Literal["32-true", "bf16-mixed"]
Selection = Literal["inner", "last", "scored"]
"""Which checkpoint of a run is taken: the best on training recordings kept apart (an inner split), the last one, or the
best on the recordings that are scored."""


def describe_selection(selection: Selection, n_validation: int) -> str:
    """How a checkpoint was selected, in words for tables and cards. n_validation: recordings kept apart."""
    if selection == "inner":
        return f"the best on {n_validation} training recording{'s' * (n_validation != 1)} kept apart"
    return {"last": "the last one", "scored": "the best on the scored recordings"}[selection]


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. Defaults are Mamba-VA's for the official split.

    "4.2" is that section of Mamba-VA's paper, "authors" its authors' code, "ours" neither.
    """

    epochs: int = 50  # passes over the training windows (4.2)
    batch_size: int = 16  # windows a step, over all devices together (authors)
    window: WindowScheme = field(default_factory=WindowScheme.mamba_va)  # how recordings are cut: 1000/800 (authors)
    loss: LossConfig = field(default_factory=LossConfig)  # what is minimised: CCC (4.2)
    optimizer: Literal["adamw", "adam"] = "adamw"  # decoupled weight decay (4.2), or in the gradient (MAVEN)
    lr: float = 3e-4  # highest learning rate (4.2; authors in folds 1-5: 3e-5)
    eps: float = 1e-7  # added to the optimiser's denominator (authors)
    weight_decay: float = 1e-3  # (4.2; authors in fold 0: 1e-2)
    schedule: Schedule = "cosine"  # of lr after the warm-up (authors); plateau: falls when validation stands still
    plateau_factor: float = 0.1  # lr times this at a plateau (MAVEN, arXiv IV-B)
    plateau_patience: int = 5  # epochs without a better validation CCC before lr falls at the next (MAVEN, arXiv IV-B)
    warmup_epochs: float = 5.0  # epochs in which lr rises from 0 (4.2)
    restart_epochs: float | None = None  # T_0 of the cosine, epochs; None: epochs - warmup_epochs + 1 (authors)
    lr_min: float = 0.0  # lowest learning rate of cosine and plateau (authors)
    clip_norm: float = 1.0  # largest norm of the gradient (authors; MAVEN, arXiv IV-B)
    validations_per_epoch: int = 4  # (authors)
    patience: int | None = None  # stop after so many validations without a better CCC; None: never (ours)
    standardise: bool = True  # features by mean and deviation of the training set (ours; authors: not)
    seed: int = 42  # of weights, order and dropout (authors)
    precision: Precision = "32-true"  # of products; bf16-mixed keeps weights in float32 (ours)
    accelerator: str = "auto"  # what to train on: auto, cpu, cuda, ... (Lightning Fabric's names)
    devices: int = 1  # processes, each with a GPU where there are any
    strategy: str = "auto"  # how processes work together: ddp where devices > 1 (Lightning Fabric's names)
    threads: int = 2  # threads of a process that read windows ahead

    def __post_init__(self) -> None:
        restart = self.restart_epochs
        wrong = [
            message
            for broken, message in (
                (self.epochs < 1, "epochs: at least 1"),
                (self.batch_size < 1, "batch_size: at least 1"),
                (not 0 < self.lr < math.inf, "lr: must be positive"),
                (self.eps <= 0, "eps: must be positive"),
                (self.weight_decay < 0, "weight_decay: must not be negative"),
                (not 0 <= self.lr_min <= self.lr, "lr_min: between 0 and lr"),
                (self.optimizer not in ("adamw", "adam"), "optimizer: adamw or adam"),
                (self.schedule not in get_args(Schedule), f"schedule: one of {', '.join(get_args(Schedule))}"),
                (self.precision not in get_args(Precision), f"precision: one of {', '.join(get_args(Precision))}"),
                (not 0 < self.plateau_factor < 1, "plateau_factor: must lie in (0, 1)"),
                (self.plateau_patience < 0, "plateau_patience: must not be negative"),
                (self.warmup_epochs < 0, "warmup_epochs: must not be negative"),
                (restart is not None and restart <= 0, "restart_epochs: must be positive, or null"),
                (self.clip_norm <= 0, "clip_norm: must be positive"),
                (self.validations_per_epoch < 1, "validations_per_epoch: at least 1"),
                (self.patience is not None and self.patience < 1, "patience: at least 1, or null"),
                (self.devices < 1 or self.threads < 1, "devices and threads: at least 1"),
            )
            if broken
        ]
        if wrong:
            raise ConfigError("; ".join(wrong), where="TrainConfig", hint="see `affectrace train --help`")

    @classmethod
    def mamba_va(cls, fold: int = 0, **changes: Any) -> Self:
        """The settings of a fold in the Mamba-VA authors' code: 0 is the official split."""
        official: dict[str, Any] = {"lr": 3e-4, "weight_decay": 1e-2}
        others: dict[str, Any] = {"lr": 3e-5, "weight_decay": 1e-3}
        values = (official if fold == 0 else others) | {"window": WindowScheme.mamba_va(fold)}
        return cls(**values | changes)

    @classmethod
    def maven(cls, recipe: str = "paper-38", **changes: Any) -> Self:
        """One of MAVEN's recipes; a window an utterance. What a text leaves open is taken from the next one named.

        Raises:
            UnknownNameError: no such recipe.
        """
        base: dict[str, Any] = {
            "epochs": 200,  # (4.2)
            "batch_size": 16,  # (4.2), arXiv IV-A
            "window": WindowScheme.maven(750, 50),  # ours: an utterance of more than 30 s (at 25 fps) in pieces
            "loss": LossConfig(kind="mse"),  # (32)
            "eps": 1e-8,  # torch's own
            "validations_per_epoch": 1,  # ours
            "warmup_epochs": 0.0,
            "schedule": "constant",  # neither section of the published version names one
            "clip_norm": 1.0,  # arXiv IV-B
        }
        plateau = {"optimizer": "adam", "lr": 1e-3, "weight_decay": 1e-4, "schedule": "plateau"}
        own: dict[str, dict[str, Any]] = {
            "paper-38": {"optimizer": "adamw", "lr": 1e-4, "weight_decay": 1e-2},
            "paper-42": {"optimizer": "adam", "lr": 1e-4, "weight_decay": 1e-3},  # lr: (3.8)
            "seed-a": {
                "optimizer": "adam",
                "lr": 1e-4,
                "weight_decay": 1e-2,
                "schedule": "cosine",
                "warmup_epochs": 10.0,
                "precision": "bf16-mixed",
            },
            "seed-b": plateau,
            "authors": plateau | {"loss": LossConfig(kind="mixture", ccc_weight=0.1, detach_ccc=True)},
        }
        if recipe not in own:
            raise UnknownNameError.of("recipe of maven", recipe, own)
        return cls(**base | own[recipe] | changes)

    def lr_at(self, epoch: float) -> float:
        """Learning rate after `epoch` (fractional) epochs; with a plateau schedule, before the first fall."""
        if epoch < self.warmup_epochs:
            return self.lr * epoch / self.warmup_epochs
        if self.schedule != "cosine":
            return self.lr
        period = self.restart_epochs or max(self.epochs - self.warmup_epochs, 0) + 1
        within = math.fmod(epoch - self.warmup_epochs, period) / period
        return self.lr_min + (self.lr - self.lr_min) * (1 + math.cos(math.pi * within)) / 2


@dataclass(frozen=True)
class TrainingSetup:
    """What is trained on what: the options that `train` and `crossval` share."""

    model: str = "mamba-va"
    """Model name."""
    data: Path = Path()
    """Data set: manifest.json, its folder, or the Aff-Wild2 layout."""
    features: tuple[str, ...] = ()
    """Extractors whose features are read, as NAME or STREAM=NAME (visual=mae-vit-l audio=hubert-base)."""
    store: Path = Path("features")
    """Folder that `affectrace extract` wrote."""
    accept_features: bool = False
    """Use features that several extractors made, or whose encoder was tuned on held-out recordings; the result and the
    model card say so."""
    preset: str = "paper"
    """Sizes of the model: paper, tiny, ..."""
    recipe: str | None = None
    """Where training settings come from. mamba-va: authors (default; lr, weight decay, dropout and windows by fold) or
    paper. maven: paper-38 (default), paper-42, seed-a, seed-b, authors. none: the defaults below. Every setting given
    on the command line or in --config wins over the recipe."""
    set: tuple[str, ...] = ()
    """Fields of the model's configuration, as FIELD=VALUE (dropout=0.2)."""
    missing: Literal["mask", "hold", "zero"] = "mask"
    """Frames without features: left to the model, the last one repeated, or zeros."""
    beit: str | None = None
    """maven: pretrained BEiT whose blocks its encoders start from (a folder, or user/model@commit); else random."""
    licence: str = "other"
    """Licence of the trained weights, for the model card (a Hub identifier, such as cc-by-nc-4.0)."""
    training: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True)
class Recipe:
    """Settings that belong together. model: fields of the model's configuration. source: where they stand."""

    training: TrainConfig
    model: Mapping[str, Any]
    source: str


NONE = "none"
RECIPES: dict[str, tuple[str, ...]] = {
    "mamba-va": ("authors", "paper"),
    "maven": ("paper-38", "paper-42", "seed-a", "seed-b", "authors"),
    "frame-regressor": (NONE, "challenge"),
}
"""Model -> its recipes, the one that is taken by default first. Models that are not named here have none."""


def recipe_name(model: str, name: str | None = None) -> str:
    """The recipe that is meant: the one named, else the model's own default, else "none"."""
    return name or next(iter(RECIPES.get(model, ())), NONE)


def recipe(model: str, name: str | None = None, *, fold: int = 0) -> Recipe:
    """The settings of a recipe.

    Args:
        model: name in the registry. name: one of RECIPES[model], "none", or None for the model's own default.
        fold: Mamba-VA's differ between the official split (0) and the others.

    Raises:
        UnknownNameError: the model has no such recipe.
    """
    known, name = RECIPES.get(model, ()), recipe_name(model, name)
    if name == NONE:
        return Recipe(TrainConfig(), {}, "defaults")
    if name not in known:
        raise UnknownNameError.of(f"recipe of {model}", name, tuple(dict.fromkeys((*known, NONE))))
    if model == "mamba-va":
        dropout = 0.3 if fold == 0 or name == "paper" else 0.2  # (4.2) | authors' folds 1-5
        training = TrainConfig.mamba_va(fold) if name == "authors" else TrainConfig(window=WindowScheme.mamba_va(fold))
        where = "arXiv:2503.10104, section 4.2" if name == "paper" else f"the authors' code, fold {fold}"
        return Recipe(training, {"dropout": dropout}, where)
    if model == "frame-regressor":
        where = "the ABAW challenge's baseline, Kollias 2022 (arXiv:2202.10659), on resnet-50; trained by defaults"
        return Recipe(TrainConfig(), {}, where)
    fields: dict[str, dict[str, Any]] = {
        "paper-38": {"head_dropout": (0.2, 0.2)},  # (3.8): .2 after each layer of the predictor
        "seed-a": {"head_dropout": (0.2, 0.2), "dropout": 0.2},  # "a dropout rate of 0.2", without a place: both
        "authors": {"head_dropout": (0.5, 0.3)},
    }
    return Recipe(TrainConfig.maven(name), fields.get(name, {}), _MAVEN_SOURCES[name])


_MAVEN_SOURCES = {
    "paper-38": "CVPR 2025 workshops version, section 3.8",
    "paper-42": "CVPR 2025 workshops version, section 4.2",
    "seed-a": "arXiv:2503.12623, section IV-A",
    "seed-b": "arXiv:2503.12623, section IV-B",
    "authors": "the authors' code",
}
