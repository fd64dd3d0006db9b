"""A model without some of its modalities: masks, ablation by subsets, shares."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from affectrace.config import Config
from affectrace.errors import InputError
from affectrace.evaluate.compare import ablation, ablation_dict
from affectrace.features.base import ExtractorId, Features
from affectrace.inference.modalities import mask_modalities, modalities_of, with_shares
from affectrace.inference.run import TrainedModel, sequence_config
from affectrace.models import checkpoint
from affectrace.models.base import AffectModel
from affectrace.models.maven import Maven, MavenConfig
from affectrace.sequences import Sequence
from affectrace.sequences.config import WindowScheme
from affectrace.timeline import Timeline
from affectrace.trace import Trace
from made_traces import trace

CLOCK = Timeline.regular(25, Fraction(10))


def recording(name: str = "a", seed: int = 0, clock: str = "frame") -> Sequence:
    """Valence is half the second stream, arousal half the third; the first tells nothing."""
    x = {m: np.random.default_rng([seed, i]).uniform(-1, 1, (25, 4)) for i, m in enumerate(("visual", "audio", "text"))}
    inputs = {m: Features(m, CLOCK, v.astype(np.float32), np.ones(25, bool), ExtractorId(m)) for m, v in x.items()}
    labels = trace(x["audio"][:, 0] / 2, x["text"][:, 0] / 2, rate=10, recording_id=name)
    return Sequence(name, CLOCK, inputs, labels, config=sequence_config(Sum(clock)))


@dataclass(frozen=True)
class SumConfig(Config):
    streams: ClassVar = {"visual": 4, "audio": 4, "text": 4}


class Sum(AffectModel):
    """Valence from the first column of audio, arousal from that of text, as far as they are valid."""

    name, causal = "sum", False

    def __init__(self, clock: str = "frame") -> None:
        super().__init__(SumConfig())
        self.clock, self.none = clock, nn.Parameter(torch.zeros(1))

    def forward(self, inputs, valid=None, times=None, state=None):  # type: ignore[no-untyped-def]
        seen = {m: x[..., :1].masked_fill(~valid[m][..., None], 0) for m, x in inputs.items()}
        return torch.cat((seen["audio"] / 2, seen["text"] / 2), dim=-1) + self.none, state


def trained(model: nn.Module) -> TrainedModel:
    return TrainedModel(
        model=model.eval(),
        id="sum-0000",
        statistics=None,
        scheme=WindowScheme(10, 8),
        features={},
        sequences=sequence_config(model),
        about={},
    )


def test_what_cannot_be_dropped_is_refused() -> None:
    model, one = trained(Sum()), trained(checkpoint.create("gru", "tiny", modality="visual", input_dim=4))
    for given, dropped in ((model, ["audoi"]), (model, ["audio", "text", "visual"]), (one, ["visual"])):
        with pytest.raises(InputError):
            mask_modalities(given, dropped)
    with pytest.raises(InputError, match="reads one modality"):
        with_shares(one, recording())


def test_ablation_finds_what_each_modality_carries() -> None:
    model, sequences = trained(Sum()), [recording(f"r{i}", i) for i in range(5)]
    labels = [s.labels for s in sequences if s.labels is not None]

    def predict(dropped: tuple[str, ...]) -> list[Trace]:
        return [mask_modalities(model, dropped).predict(s) for s in sequences]

    found = ablation(labels, predict, ("visual", "audio", "text"), n_draws=50)
    lost = {d.b: d for d in found.differences}
    assert (found.n_recordings, found.n_frames) == (5, 125)
    assert found.scores["visual + audio + text"].mean_ccc == pytest.approx(1, abs=1e-5)
    assert found.scores["audio"].valence.ccc == pytest.approx(1, abs=1e-5)
    assert found.scores["audio"].arousal.ccc == pytest.approx(0, abs=1e-5)
    assert lost["text"].difference["ccc_valence"] == pytest.approx(1, abs=1e-5)
    assert lost["audio + text"].difference["mean_ccc"] == pytest.approx(0, abs=1e-5)
    assert lost["visual + audio"].intervals["ccc_arousal"].low == pytest.approx(1, abs=1e-5)
    assert found.intervals["audio"]["ccc_valence"].high == pytest.approx(1, abs=1e-5)
    plain = ablation_dict(found)
    assert plain["subsets"][-1]["kept"] == plain["modalities"] == ["visual", "audio", "text"]


def test_shares_are_per_second_extras_of_the_trace() -> None:
    trace = with_shares(trained(Sum()), recording())
    shares = {m: trace.extras[f"share_{m}"] for m in ("visual", "audio", "text")}
    assert np.abs(shares["visual"]).max() == 0
    np.testing.assert_allclose(shares["audio"] + shares["text"], 1, atol=1e-6)
    for second in (slice(0, 10), slice(10, 20), slice(20, 25)):
        assert len(set(shares["audio"][second].tolist())) == 1
        size = {m: np.abs(trace.valence if m == "audio" else trace.arousal)[second] for m in ("audio", "text")}
        each = size["audio"] / (size["audio"] + size["text"])
        assert shares["audio"][second][0] == pytest.approx(each.mean(), abs=1e-5)


def test_both_visual_streams_of_maven_are_one_modality() -> None:
    maven = Maven(MavenConfig.tiny(visual="both"))
    assert modalities_of(maven) == {"visual": ("visual", "visual_beit"), "audio": ("audio",), "text": ("text",)}
