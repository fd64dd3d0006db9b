"""Training settings: the papers' and the authors' numbers, by recipe and fold; mistakes all together."""

from __future__ import annotations

from typing import Any

import pytest

from affectrace.models import checkpoint
from affectrace.sequences.config import WindowScheme
from affectrace.train.config import TrainConfig, recipe, recipes

UTTERANCES = WindowScheme.maven(750, 50)
CASES: list[tuple[str, str, int, tuple[Any, ...], dict[str, Any]]] = [
    # optimizer, rate, weight decay, schedule, window, loss; fields of the model
    ("mamba-va", "authors", 0, ("adamw", 3e-4, 1e-2, "cosine", WindowScheme(1000, 800), "ccc"), {"dropout": 0.3}),
    ("mamba-va", "authors", 4, ("adamw", 3e-5, 1e-3, "cosine", WindowScheme(300, 200), "ccc"), {"dropout": 0.2}),
    ("mamba-va", "paper", 4, ("adamw", 3e-4, 1e-3, "cosine", WindowScheme(300, 200), "ccc"), {"dropout": 0.3}),
    ("maven", "paper-38", 0, ("adamw", 1e-4, 1e-2, "constant", UTTERANCES, "mse"), {"head_dropout": (0.2, 0.2)}),
    ("maven", "paper-42", 0, ("adam", 1e-4, 1e-3, "constant", UTTERANCES, "mse"), {}),
    (
        "maven",
        "seed-a",
        0,
        ("adam", 1e-4, 1e-2, "cosine", UTTERANCES, "mse"),
        {"head_dropout": (0.2, 0.2), "dropout": 0.2},
    ),
    ("maven", "seed-b", 3, ("adam", 1e-3, 1e-4, "plateau", UTTERANCES, "mse"), {}),
    ("maven", "authors", 0, ("adam", 1e-3, 1e-4, "plateau", UTTERANCES, "mixture"), {"head_dropout": (0.5, 0.3)}),
    ("maven", "none", 0, ("adamw", 3e-4, 1e-3, "cosine", WindowScheme(1000, 800), "ccc"), {}),
    ("gru", "none", 3, ("adamw", 3e-4, 1e-3, "cosine", WindowScheme(1000, 800), "ccc"), {}),
]


@pytest.mark.parametrize(("model", "name", "fold", "expected", "fields"), CASES)
def test_recipes(model: str, name: str, fold: int, expected: tuple[Any, ...], fields: dict[str, Any]) -> None:
    found = recipe(model, name, fold=fold)
    c = found.training
    assert (c.optimizer, c.lr, c.weight_decay, c.schedule, c.window, c.loss.kind) == expected
    assert (c.epochs, c.batch_size) == (200 if c.window.utterances else 50, 16)
    assert c.loss.detach_ccc == (c.loss.kind == "mixture")
    assert found.model == fields
    assert set(fields) <= set(checkpoint.entry(model).config_class().__dataclass_fields__)
    assert recipe(model, fold=fold) == recipes(model, fold)[0]


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
