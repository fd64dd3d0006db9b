"""Training settings: the papers' and the authors' numbers, by recipe and fold; mistakes all together."""

from __future__ import annotations

from typing import Any

import pytest

from affectrace.models import checkpoint
from affectrace.sequences.config import WindowScheme
from affectrace.train.config import TrainConfig, recipe, recipes

CASES: list[tuple[str, str | None, int, dict[str, Any], dict[str, Any]]] = [
    ("mamba-va", None, 0, {"lr": 3e-4, "weight_decay": 1e-2, "epochs": 50, "batch_size": 16}, {"dropout": 0.3}),
    ("mamba-va", "authors", 4, {"lr": 3e-5, "weight_decay": 1e-3, "eps": 1e-7}, {"dropout": 0.2}),
    ("mamba-va", "paper", 4, {"lr": 3e-4, "weight_decay": 1e-3, "warmup_epochs": 5.0}, {"dropout": 0.3}),
    ("maven", None, 0, {"optimizer": "adamw", "lr": 1e-4, "weight_decay": 1e-2}, {"head_dropout": (0.2, 0.2)}),
    ("maven", "paper-42", 0, {"optimizer": "adam", "batch_size": 16, "weight_decay": 1e-3, "epochs": 200}, {}),
    (
        "maven",
        "seed-a",
        0,
        {"optimizer": "adam", "lr": 1e-4, "weight_decay": 1e-2, "warmup_epochs": 10.0, "schedule": "cosine"}
        | {"precision": "bf16-mixed"},
        {"head_dropout": (0.2, 0.2), "dropout": 0.2},
    ),
    (
        "maven",
        "seed-b",
        3,
        {"optimizer": "adam", "lr": 1e-3, "weight_decay": 1e-4, "schedule": "plateau", "plateau_factor": 0.1}
        | {"plateau_patience": 5, "clip_norm": 1.0},
        {},
    ),
    ("maven", "authors", 0, {"lr": 1e-3, "weight_decay": 1e-4}, {"head_dropout": (0.5, 0.3)}),
    ("gru", None, 3, {"lr": 3e-4, "weight_decay": 1e-3, "window": WindowScheme.mamba_va(0)}, {}),
    ("maven", "none", 0, {"lr": 3e-4, "optimizer": "adamw"}, {}),
]


@pytest.mark.parametrize(("model", "name", "fold", "expected", "fields"), CASES)
def test_recipes(model: str, name: str | None, fold: int, expected: dict[str, Any], fields: dict[str, Any]) -> None:
    found = recipe(model, name, fold=fold)
    assert {k: getattr(found.training, k) for k in expected} == expected
    assert found.model == fields
    known = checkpoint.entry(model).config_class().__dataclass_fields__
    assert set(fields) <= set(known)


def test_windows_and_losses_of_the_recipes() -> None:
    assert recipe("mamba-va", fold=0).training.window == WindowScheme(1000, 800)
    assert recipe("mamba-va", "paper", fold=2).training.window == WindowScheme(300, 200)
    for found in recipes("maven")[:-1]:
        assert found.training.window.utterances
        assert found.training.loss.kind == ("mixture" if found.name == "authors" else "mse")
        assert found.training.loss.detach_ccc == (found.name == "authors")
    assert recipe("maven", "authors").training.loss.ccc_weight == 0.1


def test_learning_rate_warms_up_falls_and_restarts() -> None:
    c = TrainConfig(epochs=50)
    assert c.lr_at(2.5) == pytest.approx(1.5e-4)
    assert c.lr_at(5) == pytest.approx(3e-4)
    assert c.lr_at(5 + 23) == pytest.approx(1.5e-4)
    assert 0 < c.lr_at(50) < 1e-6
    r = TrainConfig(epochs=50, restart_epochs=10, lr_min=1e-6)
    assert r.lr_at(14.999999) == pytest.approx(1e-6, rel=1e-3)
    assert r.lr_at(15) == pytest.approx(3e-4)
    assert TrainConfig(schedule="constant").lr_at(30) == 3e-4
    assert TrainConfig(schedule="plateau").lr_at(30) == 3e-4
    assert TrainConfig(schedule="plateau").lr_at(1) == pytest.approx(6e-5)
