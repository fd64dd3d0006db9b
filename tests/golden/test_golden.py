"""Golden traces: small committed checkpoints say what they said when they were committed.

    python tests/golden/test_golden.py     writes checkpoints and traces anew, where a change of results is meant

A change in the scan, a layer, the format of checkpoints, or the way through windows and carried state shows here.
"""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from affectrace.features.base import ExtractorId, Features
from affectrace.inference.run import TrainedModel
from affectrace.models import checkpoint
from affectrace.sequences import Sequence
from affectrace.timeline import Timeline
from affectrace.trace import Trace

HERE = Path(__file__).parent
DIMS = {"visual": 6, "audio": 5, "text": 4}
MODELS: dict[str, dict[str, Any]] = {
    "mamba-va": {"input_dim": 6, "tcn_channels": (8, 8), "mamba_layers": 1, "head_width": 4},
    "gru": {"input_dim": 6, "width": 6},
    "maven": {"input_dims": (6, 5, 4)},
}
TOLERANCE = 1e-5  # of the 1 that valence and arousal reach; float32 on other processors


def recording(n_frames: int = 300) -> Sequence:
    """Features by formula: slow waves, a stretch without a face, sound at its own rate, a word a second."""
    video = Timeline.regular(n_frames, Fraction(30000, 1001))
    clocks = {"visual": video, "audio": Timeline.regular(500, Fraction(50)), "text": Timeline.regular(10, Fraction(1))}
    inputs = {}
    for k, (name, dim) in enumerate(DIMS.items()):
        times = clocks[name].times
        rates = 0.1 + 0.07 * np.arange(dim) + 0.01 * k
        values = np.sin(2 * np.pi * times[:, None] * rates + np.arange(dim)).astype(np.float32)
        valid = np.ones(len(times), bool)
        if name == "visual":
            valid[100:140] = False
        inputs[name] = Features(name, clocks[name], values, valid, ExtractorId("formula"))
    return Sequence("golden", video, inputs)


def predicted(name: str) -> Trace:
    return TrainedModel.load(HERE / name).predict(recording())


@pytest.mark.parametrize("name", MODELS)
def test_a_committed_checkpoint_says_what_it_said(name: str) -> None:
    now, then = predicted(name), Trace.load(HERE / name / "trace.csv")
    assert now.timeline == then.timeline
    np.testing.assert_array_equal(now.valid, then.valid)
    np.testing.assert_allclose(now.values, then.values, atol=TOLERANCE)
    assert now.values[now.known].std(axis=0).min() > 100 * TOLERANCE, "a trace that does not move proves nothing"


def write() -> None:
    for seed, (name, changes) in enumerate(MODELS.items()):
        torch.manual_seed(seed)
        checkpoint.save(checkpoint.create(name, "tiny", **changes), HERE / name, preset="tiny")
        predicted(name).save(HERE / name / "trace.csv")


if __name__ == "__main__":
    sys.exit(write())
