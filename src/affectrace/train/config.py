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
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Interval

from affectrace.config import Config, Count, NotNegative, Positive
from affectrace.errors import ConfigError, UnknownNameError
from affectrace.sequences.config import WindowScheme

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
class LossConfig(Config):
    """What training minimises. Defaults are Mamba-VA's."""

    kind: Literal["ccc", "mse", "mixture"] = "ccc"
    """Mamba-VA section 4.2; MAVEN: mse (32), or the mixture in its authors' code."""
    per: Literal["batch", "sequence"] = "batch"
    """Frames CCC is taken over: the whole batch (authors of Mamba-VA), or each sequence."""
    valence_weight: NotNegative = 1.0
    """Weight of valence, w_v."""
    arousal_weight: NotNegative = 1.0
    """Weight of arousal, w_a."""
    ccc_weight: NotNegative = 0.1
    """Lambda of the mixture (authors of MAVEN)."""
    detach_ccc: bool = False
    """The mixture's CCC part without gradient (what MAVEN's authors' code comes to)."""

    def __post_init__(self) -> None:
        if self.valence_weight + self.arousal_weight == 0:
            raise ConfigError("one of the two must be positive", where="valence_weight, arousal_weight")


@dataclass(frozen=True)
class TrainConfig(Config):
    """How a model is trained. Defaults are Mamba-VA's for the official split.

    "4.2" is that section of Mamba-VA's paper, "authors" its authors' code, "ours" neither.
    """

    epochs: Count = 50
    """Passes over the training windows (4.2)."""
    batch_size: Count = 16
    """Windows a step, over all devices together (authors)."""
    window: WindowScheme = field(default_factory=WindowScheme.mamba_va)
    """How recordings are cut: 1000/800 (authors)."""
    loss: LossConfig = field(default_factory=LossConfig)
    """What is minimised: CCC (4.2)."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    """Weight decay decoupled (4.2), or in the gradient (MAVEN)."""
    lr: Positive = 3e-4
    """Highest learning rate (4.2; authors in folds 1-5: 3e-5)."""
    eps: Positive = 1e-7
    """Added to the optimiser's denominator (authors)."""
    weight_decay: NotNegative = 1e-3
    """Weight decay (4.2; authors in fold 0: 1e-2)."""
    schedule: Schedule = "cosine"
    """Of the rate after the warm-up (authors); plateau: falls when validation stands still."""
    plateau_factor: Annotated[float, Interval(gt=0, lt=1)] = 0.1
    """The rate times this at a plateau (MAVEN, arXiv IV-B)."""
    plateau_patience: Annotated[int, Ge(0)] = 5
    """Epochs without a better validation CCC before the rate falls at the next (MAVEN, arXiv IV-B)."""
    warmup_epochs: NotNegative = 5.0
    """Epochs in which the rate rises from 0 (4.2)."""
    restart_epochs: Positive | None = None
    """T_0 of the cosine, epochs; none: epochs - warmup_epochs + 1 (authors)."""
    lr_min: NotNegative = 0.0
    """Lowest learning rate of cosine and plateau (authors)."""
    clip_norm: Positive = 1.0
    """Largest norm of the gradient (authors; MAVEN, arXiv IV-B)."""
    validations_per_epoch: Count = 4
    """Validations an epoch (authors)."""
    patience: Count | None = None
    """Stop after so many validations without a better CCC; none: never (ours)."""
    standardise: bool = True
    """Standardise features by mean and deviation of the training set (ours; authors: not)."""
    seed: int = 42
    """Seed of weights, order and dropout (authors)."""
    precision: Precision = "32-true"
    """Precision of products; bf16-mixed keeps weights in float32 (ours)."""
    accelerator: str = "auto"
    """What to train on: auto, cpu, cuda, ... (Lightning Fabric's names)."""
    devices: Count = 1
    """Processes, each with a GPU where there are any."""
    strategy: str = "auto"
    """How processes work together: ddp where devices > 1 (Lightning Fabric's names)."""
    threads: Count = 2
    """Threads of a process that read windows ahead."""

    def __post_init__(self) -> None:
        if 0 < self.lr < self.lr_min:
            raise ConfigError("must not be above lr", where="lr_min")

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


@dataclass(frozen=True, kw_only=True)
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
