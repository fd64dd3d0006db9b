"""Mamba's initialization, and what for_inference may change. (tests/parity and property prove what layers compute.)"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from affectrace.errors import UnknownNameError
from affectrace.models.fast import FoldedConv1d, for_inference
from affectrace.models.inputs import LastSeen
from affectrace.models.layers import CausalConv1d, MambaBlock, TCNBlock


def test_mamba_starts_as_gu_and_dao_have_it() -> None:
    torch.manual_seed(0)
    block = MambaBlock(256, 8, 4, 1)
    torch.testing.assert_close(block.A_log.exp()[17], torch.arange(1.0, 9.0))
    assert bool((block.D == 1).all())
    steps = nn.functional.softplus(block.dt_proj.bias)
    assert steps.min() >= 1e-3 * 0.99
    assert steps.max() <= 0.1 * 1.01
    assert steps.log().mean().item() == pytest.approx((math.log(1e-3) + math.log(0.1)) / 2, abs=0.3)
    assert block.dt_rank == 16
    assert block.dt_proj.weight.abs().max() <= 0.25
    assert [tuple(p.shape) for p in (block.in_proj.weight, block.x_proj.weight)] == [(512, 256), (32, 256)]


@pytest.mark.parametrize("precision,tolerance", [("float32", 1e-6), ("bfloat16", 2e-2), ("int8", 3e-2)])
@pytest.mark.parametrize("frames", [1, 5, 40])
@torch.no_grad()
def test_folding_changes_rounding_only(precision: Any, tolerance: float, frames: int) -> None:
    torch.manual_seed(0)
    conv = CausalConv1d(64, 32, 5, 2, weight_norm=True)
    folded = FoldedConv1d(conv, precision)
    x, past = torch.randn(2, frames, 64), torch.randn(2, 8, 64)
    expected, state = conv(x, past)
    y, folded_state = folded(x, past)
    assert y.dtype == torch.float32
    assert (y - expected).abs().max() <= tolerance * expected.abs().max()
    assert torch.equal(folded_state, state)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@torch.no_grad()
def test_a_folded_frame_does_not_depend_on_its_neighbours_in_the_call(precision: Any) -> None:
    torch.manual_seed(0)
    folded = FoldedConv1d(CausalConv1d(64, 32, 5, 2, weight_norm=True), precision)
    x = torch.randn(2, 6, 64)
    louder = torch.cat([x[:, :3], 100 * x[:, 3:]], 1)
    torch.testing.assert_close(folded(louder)[0][:, :3], folded(x)[0][:, :3], atol=1e-6, rtol=0)


def test_for_inference_copies_and_leaves_the_original_alone() -> None:
    block = TCNBlock(6, 4, 3, 1, 0.5).train()
    before = {k: v.clone() for k, v in block.state_dict().items()}
    fast = for_inference(block, "int8")
    assert isinstance(fast.conv1, FoldedConv1d)
    assert not fast.training
    assert not any(p.requires_grad for p in fast.parameters())
    assert block.training
    assert all(torch.equal(v, before[k]) for k, v in block.state_dict().items())
    assert fast.conv1.taps.dtype == torch.int8
    with pytest.raises(UnknownNameError, match="did you mean 'float32'"):
        for_inference(block, "float3")  # type: ignore[arg-type]


@pytest.mark.parametrize("n_in,n_out,kernel", [(8, 2, 3), (1, 1, 1), (11, 5, 3), (32, 33, 2)])
@torch.no_grad()
def test_int8_takes_any_width_and_a_channel_of_zeros(n_in: int, n_out: int, kernel: int) -> None:
    torch.manual_seed(0)
    conv = CausalConv1d(n_in, n_out, kernel)
    conv.weight[-1] = 0
    x = torch.randn(3, 2, n_in)
    y, _ = FoldedConv1d(conv, "int8")(x)
    expected, _ = conv(x)
    assert torch.isfinite(y).all()
    assert (y - expected).abs().max() <= 3e-2 * expected.abs().max()


def test_states_do_not_keep_long_sequences_alive() -> None:
    conv = CausalConv1d(4, 4, 3, 2)
    _, state = conv(torch.randn(1, 10_000, 4))
    assert state.untyped_storage().nbytes() == 4 * 4 * 4
    _, held = LastSeen("hold", 4)(torch.randn(1, 10_000, 4), torch.ones(1, 10_000, 1, dtype=torch.bool))
    assert held is not None
    assert held.untyped_storage().nbytes() == 4 * 4
