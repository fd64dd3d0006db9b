"""Streaming equals offline: any cuts, any gaps, any layer, to 1e-5 in float32."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from affectrace.models.fast import for_inference
from affectrace.models.inputs import LastSeen
from affectrace.models.layers import CausalConv1d, MambaBlock, TCNBlock


@st.composite
def cuts(draw: st.DrawFn, longest: int = 60) -> list[int]:
    lengths = draw(st.lists(st.integers(1, 25), min_size=1, max_size=12))
    ends = [0]
    for length in lengths:
        if ends[-1] + length <= longest:
            ends.append(ends[-1] + length)
    return ends if len(ends) > 1 else [0, 1]


def streamed(layer: Any, x: Tensor, ends: list[int], *more: Tensor) -> Tensor:
    state, ys = None, []
    for a, b in pairwise(ends):
        y, state = layer(x[:, a:b], *(m[:, a:b] for m in more), state)
        ys.append(y)
    return torch.cat(ys, 1)


@settings(max_examples=25, deadline=None)
@given(
    cuts(),
    st.sampled_from([(1, 1), (2, 1), (3, 4), (5, 2), (4, 8)]),
    st.booleans(),
    st.integers(0, 2**31),
)
@torch.no_grad()
def test_convolutions(ends: list[int], shape: tuple[int, int], folded: bool, seed: int) -> None:
    torch.manual_seed(seed)
    kernel, dilation = shape
    layer: nn.Module = CausalConv1d(3, 4, kernel, dilation, weight_norm=True)
    x = torch.randn(2, ends[-1], 3)
    whole, _ = layer(x)
    fast = for_inference(nn.ModuleList([layer]))[0] if folded else layer
    torch.testing.assert_close(streamed(fast, x, ends), whole, atol=1e-5, rtol=0)


@settings(max_examples=25, deadline=None)
@given(cuts(), st.integers(0, 2**31))
@torch.no_grad()
def test_blocks(ends: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    for layer in (TCNBlock(6, 4, 3, 2, 0.2), TCNBlock(6, 6, 4, 1, 0.0), MambaBlock(6, 3, 4, 2), MambaBlock(6, 1, 1, 1)):
        layer.eval()
        x = torch.randn(2, ends[-1], 6)
        torch.testing.assert_close(streamed(layer, x, ends), layer(x)[0], atol=1e-5, rtol=0)


@settings(max_examples=50, deadline=None)
@given(cuts(), st.sampled_from(["hold", "zero", "mask-token"]), st.integers(0, 2**31))
@torch.no_grad()
def test_missing_frames(ends: list[int], policy: Any, seed: int) -> None:
    torch.manual_seed(seed)
    layer = LastSeen(policy, 3)
    x, valid = torch.randn(2, ends[-1], 3), torch.rand(2, ends[-1], 1) > 0.6
    whole, _ = layer(x, valid)
    assert torch.equal(streamed(layer, x, ends, valid), whole)
    expected = x.clone()  # the definition, frame by frame
    for b in range(2):
        for t in range(ends[-1]):
            if not valid[b, t]:
                expected[b, t] = 0 if policy != "hold" or t == 0 else expected[b, t - 1]
    assert torch.equal(whole, expected)
