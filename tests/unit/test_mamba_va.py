"""Mamba-VA: the paper's sizes, its presets, and live use."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from affectrace.models.fast import for_inference
from affectrace.models.layers import MambaBlock
from affectrace.models.mamba_va import MambaVA, MambaVAConfig


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_papers_sizes() -> None:
    with torch.device("meta"):
        model = MambaVA(MambaVAConfig.paper(mamba_init="mamba"))
    assert count(model) == 67_155_086  # "67.2 M"
    assert count(model.tcn) == 66_203_148  # "66.2 M"
    assert [b.conv1.dilation for b in model.tcn] == [1, 2, 4, 8]
    assert [b.downsample is None for b in model.tcn] == [True, False, False, False]


def test_the_authors_initialization() -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"input_dim": 16, "tcn_channels": (256,), "kernel_size": 3, "mamba_layers": 1}
    block = MambaVA(MambaVAConfig.released(**sizes)).mamba[0].block
    assert isinstance(block, MambaBlock)
    for weight, std in (
        (block.A_log, 0.01),
        (block.dt_proj.weight, 0.02),
        (block.dt_proj.bias, 0.02),
        (block.conv1d.weight, (256 * 4) ** -0.5),  # Kaiming, fan out of a (256, 1, 4) kernel
        (block.out_proj.weight, (2 / 512) ** 0.5),  # Xavier
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.1)
    assert bool((block.conv1d.bias == 0).all())
    assert bool((block.D == 1).all())


def state_bytes(state: Any) -> int:
    return sum(x.nbytes for x in tree_leaves(state) if x is not None)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@torch.no_grad()
def test_for_inference_streams_what_it_gives_at_once(precision: Any) -> None:
    torch.manual_seed(0)
    model = MambaVA(MambaVAConfig.tiny()).eval()
    fast = for_inference(model, precision)
    x = torch.randn(1, 30, 32)
    truth, _ = model({"visual": x})
    state, ys, sizes = None, [], set()
    for t in range(30):
        y, state = fast({"visual": x[:, t : t + 1]}, state=state)
        ys.append(y)
        sizes.add(state_bytes(state))
    assert len(sizes) == 1  # the state's bytes are constant from the first frame on
    change = (torch.cat(ys, 1) - truth).abs().max().item()
    assert change <= {"float32": 1e-5, "bfloat16": 0.05, "int8": 0.05}[precision]
    assert (change > 1e-5) == (precision != "float32")
