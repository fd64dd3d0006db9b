"""Shares of a model whose parts are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from affectrace.inference.shares import modality_share, per_second
from affectrace.models.maven import Maven, MavenConfig


class Sum(nn.Module):
    """3 x the voice on valence, 4 x the words on arousal; the face does nothing."""

    def forward(self, inputs, valid, times):  # type: ignore[no-untyped-def]
        x = {m: v.masked_fill(~valid[m][..., None], 0) if m in valid else v for m, v in inputs.items()}
        return torch.cat((3 * x["audio"], 4 * x["text"]), dim=-1) + 0 * x["visual"], None


def test_modality_share_finds_the_parts() -> None:
    audio = torch.tensor([[[1.0], [1.0], [0.0], [0.0]]])
    text = torch.tensor([[[0.0], [0.75], [1.0], [0.0]]])
    shares = modality_share(Sum().train(), {"visual": torch.randn(1, 4, 1), "audio": audio, "text": text})
    assert shares["audio"][0].tolist() == pytest.approx([1, 0.5, 0, 0])
    assert shares["text"][0].tolist() == pytest.approx([0, 0.5, 1, 0])
    assert shares["visual"][0].tolist() == [0, 0, 0, 0]


def test_modality_share_of_maven_sums_to_one_and_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    model = Maven(MavenConfig.tiny(visual="both")).train()
    inputs = {m: torch.randn(2, 9, w) for m, w in model.config.streams.items()}
    groups = {"visual": ("visual", "visual_beit"), "audio": ("audio",), "text": ("text",)}
    shares = modality_share(model, inputs, {"text": torch.zeros(2, 9, dtype=torch.bool)}, groups=groups)
    assert model.training
    assert list(shares) == ["visual", "audio", "text"]
    assert torch.allclose(sum(shares.values()), torch.ones(2, 9))
    assert float(shares["text"].abs().max()) == 0
    assert float(shares["visual"].min()) > 0


def test_per_second() -> None:
    times = torch.tensor([0.0, 0.5, 1.2, 4.0, 4.9])
    seconds, shares = per_second({"audio": torch.tensor([0.0, 1.0, 0.25, 1.0, 0.0])}, times)
    assert seconds.tolist() == [0, 1, 4]
    assert shares["audio"].tolist() == [0.5, 0.25, 0.5]
    assert len(per_second({"audio": torch.empty(0)}, torch.empty(0))[0]) == 0
