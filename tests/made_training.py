"""Small recordings whose features show their labels, and small models and settings to train on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from affectrace.features.base import ExtractorId, Features
from affectrace.models import checkpoint
from affectrace.sequences import Sequence
from affectrace.sequences.config import WindowScheme
from affectrace.timeline import Timeline
from affectrace.trace import Trace
from affectrace.train import TrainConfig
from affectrace.train.loop import read_log

DIMS = {"visual": 12, "audio": 8, "text": 8}
FIELDS: dict[str, dict[str, Any]] = {
    "mamba-va": {"input_dim": 12},
    "gru": {"input_dim": 12, "width": 8},
    "tcn-transformer": {"input_dim": 12},
    "frame-regressor": {"input_dim": 12},
    "maven": {},
}


def sequence(name: str, seed: int, n: int = 90) -> Sequence:
    """Smooth labels, features that show them under noise, some frames without features."""
    rng, mix = np.random.default_rng(seed), np.random.default_rng(0)
    clock = Timeline.regular(n, 25)
    labels = 0.7 * np.sin(np.arange(n)[:, None] / 12 + rng.uniform(0, 6, 2))
    inputs = {}
    for m, d in DIMS.items():
        x = labels @ mix.normal(0, 1, (2, d)) + 3 + rng.normal(0, 0.3, (n, d))
        inputs[m] = Features(m, clock, x.astype(np.float32), rng.random(n) > 0.1, ExtractorId(m))
    valid = np.arange(n) >= 5
    values = np.where(valid[:, None], labels, np.nan)
    reason = np.where(valid, "", "not labelled")
    return Sequence(name, clock, inputs, Trace(name, clock, values[:, 0], values[:, 1], valid, reason, "labels"))


TRAINING = [sequence(f"t{i}", i) for i in range(4)]
VALIDATION = [sequence(f"v{i}", 50 + i) for i in range(2)]


def config(**changes: Any) -> TrainConfig:
    """Four steps and two validations an epoch."""
    values: dict[str, Any] = {
        "epochs": 1,
        "batch_size": 3,
        "window": WindowScheme(40, 30),
        "lr": 5e-3,
        "warmup_epochs": 0.5,
        "validations_per_epoch": 2,
        "accelerator": "cpu",
    }
    return TrainConfig(**values | changes)


def model(name: str, **fields: Any) -> Any:
    """A new model, the same every time."""
    torch.manual_seed(7)
    return checkpoint.create(name, "tiny", **FIELDS[name] | fields)


def rows(out: Path, event: str) -> list[dict[str, Any]]:
    """Rows of a log of one kind: "step" or "validation"."""
    return [r for r in read_log(out) if r["event"] == event]
