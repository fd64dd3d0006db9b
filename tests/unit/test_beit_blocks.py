"""BEiT blocks against transformers' own; pretrained ones in both namings, whole or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from affectrace.errors import WeightsError
from affectrace.models.attention import Tokens
from affectrace.models.beit import BeitBlocks, read_beit
from authors_maven import old_names


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    """A small BEiT of transformers with random weights everywhere."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    model = transformers.BeitModel(
        transformers.BeitConfig(
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=96,
            image_size=32,
            patch_size=16,
            attn_implementation="eager",
        )
    )
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    from transformers.models.beit.modeling_beit import BeitLayer

    return [m for m in model.modules() if isinstance(m, BeitLayer)]


@pytest.mark.parametrize("prefix", ["", "beit."])
@pytest.mark.parametrize("names", [dict, old_names], ids=["transformers 5", "transformers 4"])
def test_a_pretrained_beit_gives_the_same_sequence(
    theirs: torch.nn.Module, names: Any, prefix: str, tmp_path: Path
) -> None:
    torch.save({prefix + n: x for n, x in names(theirs.state_dict()).items()}, tmp_path / "pytorch_model.bin")
    ours = BeitBlocks(3, 24, 2, 96)
    unused = ours.load(read_beit(tmp_path), where=tmp_path)
    assert unused
    assert not any("layernorm_before" in name or "mlp" in name for name in unused)
    x = torch.randn(2, 7, 24)
    expected = x
    with torch.no_grad():
        for layer in layers(theirs):
            expected = layer(expected)
        assert float((ours(Tokens(x)) - expected).abs().max()) < 1e-5


def test_read_beit_refuses_what_is_not_one(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read as a weights file"):
        read_beit(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "swin"}')
    with pytest.raises(WeightsError, match="holds a swin model, not BEiT"):
        read_beit(tmp_path)
