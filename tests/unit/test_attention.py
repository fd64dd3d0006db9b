"""Fast attention against its reference, values and gradients; masks; memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from affectrace.models.attention import (
    AdditiveAttention,
    MultiHeadAttention,
    TimeRotary,
    Tokens,
    attend,
    attention_weights,
    geometric_periods,
    sinusoids,
)
from affectrace.models.ops.additive_attention import additive_attention, additive_attention_ref

MASKS = {
    "all valid": None,
    "some": torch.tensor([[1, 0, 1, 1, 0, 1, 1], [0, 0, 0, 1, 0, 0, 0]]).bool(),
    "one sample has none": torch.tensor([[0] * 7, [1, 1, 0, 1, 1, 1, 1]]).bool(),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("valid", MASKS.values(), ids=MASKS.keys())
def test_attend_equals_its_weights_times_the_values(valid: Tensor | None) -> None:
    x = [random(2, 3, n, 4, seed=i).requires_grad_() for i, n in enumerate((5, 7, 7))]
    fast, weights = attend(*x, valid), attention_weights(x[0], x[1], valid)
    slow = weights @ x[2]
    assert torch.allclose(fast, slow, atol=1e-12)
    g = random(*fast.shape, seed=9)
    for a, b in zip(torch.autograd.grad(fast, x, g), torch.autograd.grad(slow, x, g), strict=True):
        assert bool(a.isfinite().all())
        assert torch.allclose(a, b, atol=1e-12)
    rows = weights.sum(-1)
    there = torch.ones(2, dtype=torch.bool) if valid is None else valid.any(1)
    assert torch.allclose(rows, there[:, None, None].double().expand_as(rows))
    if valid is not None:
        assert float(weights.detach().masked_select(~valid[:, None, None, :].expand_as(weights)).abs().max()) == 0


@pytest.mark.parametrize("valid", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("block_elements", [1, 30, 10**6], ids=["one by one", "blocks", "one block"])
def test_additive_attention_equals_its_reference(valid: Tensor | None, sigmoid: bool, block_elements: int) -> None:
    shapes = ((2, 3, 2), (2, 7, 2), (2,), (2, 7, 2), (1,))
    x = [random(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes[: 4 + sigmoid])]

    def fast(q: Tensor, k: Tensor, v: Tensor, h: Tensor, bias: Tensor | None = None) -> Tensor:
        return additive_attention(q, k, v, h, valid, bias, block_elements=block_elements)

    q, k, v, h, *bias = x
    assert torch.allclose(fast(*x), additive_attention_ref(q, k, v, h, valid, *bias), atol=1e-12)
    assert torch.autograd.gradcheck(fast, x)


def test_additive_attention_in_float32_and_bfloat16() -> None:
    q, k, v, h = random(1, 40, 16), random(1, 50, 16, seed=1), random(16, seed=2), random(1, 50, 8, seed=3)
    exact = additive_attention_ref(q, k, v, h)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
        got = additive_attention(*(x.to(dtype) for x in (q, k, v, h)))
        assert got.dtype == dtype
        assert float((got.double() - exact).abs().max()) < tolerance
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = additive_attention(q.float(), k.float(), v.float(), h.float())
    assert float((got.double() - exact).abs().max()) < 1e-5


def test_additive_attention_keeps_no_more_than_its_inputs_and_never_a_t_by_t_block() -> None:
    """What autograd saves, and the largest tensor alive at any moment."""
    t, d = 300, 16
    layer = AdditiveAttention(8, d)
    h = torch.randn(1, t, 8).requires_grad_()
    saved: list[int] = []

    def keep(x: Tensor) -> Tensor:
        saved.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        y = layer(Tokens(h))
    assert sum(saved) < 8 * t * d  # T x T alone would be 90,000

    q, k, v = layer.query(h), layer.key(h), layer.score.weight[0]
    sizes: dict[bool, list[int]] = {True: [], False: []}

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        """Records every result: the sums W h_t + W' h_t' apart, (rows, columns, D) each."""

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            for o in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(o, Tensor):
                    sizes[func.overloadpacket is torch.ops.aten.add and o.shape[2:] == (d,)].append(o.numel())
            return out

    for limit in (2**12, 2**16):  # less and more than one row of T x D
        with Sizes():
            y = additive_attention(q, k, v, h, block_elements=limit)
            y.sum().backward(retain_graph=True)
        assert 0 < max(sizes[True]) <= limit
        assert max(sizes[False]) <= max(limit, t * d)


def test_without_sigmoid_weights_can_choose_with_it_they_cannot() -> None:
    """Softmax of values in (0, 1): no weight exceeds e times another, whatever is learned (docs/papers/maven.md)."""
    q, k, v = torch.zeros(1, 1, 1), torch.linspace(-50, 50, 100)[None, :, None], torch.tensor([1e4])
    one_hot = torch.eye(100)[None]
    free = additive_attention(q, k, v, one_hot)[0, 0]
    squashed = additive_attention(q, k, v, one_hot, None, torch.zeros(1))[0, 0]
    assert float(free.max() / free.min().clamp_min(1e-30)) > 1e6
    assert float(squashed.max() / squashed.min()) == pytest.approx(math.e, rel=1e-3)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_multi_head_attention_equals_torchs(heads: int) -> None:
    ours = MultiHeadAttention(16, heads)
    theirs = nn.MultiheadAttention(16, heads, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat((ours.query.weight, ours.key.weight, ours.value.weight)))
        theirs.in_proj_bias.copy_(torch.cat((ours.query.bias, ours.key.bias, ours.value.bias)))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    x, y = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    valid = MASKS["some"]
    expected, weights = theirs(x, y, y, key_padding_mask=~valid, average_attn_weights=False)
    assert torch.allclose(ours(Tokens(x), Tokens(y, valid)), expected, atol=1e-6)
    assert torch.allclose(ours.weights(Tokens(x), Tokens(y, valid)), weights, atol=1e-6)


def test_one_key_passes_its_value_through_with_the_same_gradients() -> None:
    layer = MultiHeadAttention(8, 2)
    x, one = torch.randn(2, 5, 8), torch.randn(2, 1, 8)
    slow = layer(Tokens(x), Tokens(one.expand(-1, 2, -1)))  # the same key twice: weights of one half
    fast = layer(Tokens(x), Tokens(one))
    assert torch.allclose(fast, slow, atol=1e-6)
    for p in (layer.value.weight, layer.out.weight, layer.out.bias):
        a, b = (
            torch.autograd.grad(fast.square().sum(), p, retain_graph=True)[0],
            torch.autograd.grad(slow.square().sum(), p, retain_graph=True)[0],
        )
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_sample_whose_keys_are_all_missing_gets_nothing_not_even_a_bias() -> None:
    layer = MultiHeadAttention(8, 2)
    nn.init.ones_(layer.out.bias)
    for keys in (1, 4):
        there = torch.tensor([[False] * keys, [True] * keys])
        y = layer(Tokens(torch.randn(2, 3, 8)), Tokens(torch.randn(2, keys, 8), there))
        assert float(y[0].abs().max()) == 0
        assert float(y[1].abs().max()) > 0
    assert float(layer(Tokens(torch.randn(2, 3, 8)), Tokens(torch.zeros(2, 0, 8))).abs().max()) == 0
    assert layer(Tokens(torch.zeros(2, 0, 8)), Tokens(torch.randn(2, 3, 8))).shape == (2, 0, 8)


def test_relative_positions_depend_on_differences_in_time_only() -> None:
    layer = MultiHeadAttention(16, 2, rotary=TimeRotary(8, 0.25, 60)).double()
    x, y = random(1, 5, 16), random(1, 7, 16, seed=1)
    tx, ty = random(1, 5).abs(), random(1, 7, seed=1).abs()
    at = layer(Tokens(x, times=tx), Tokens(y, times=ty))
    assert torch.allclose(at, layer(Tokens(x, times=tx + 12.5), Tokens(y, times=ty + 12.5)), atol=1e-9)
    assert not torch.allclose(at, layer(Tokens(x, times=tx + 0.5), Tokens(y, times=ty)), atol=1e-3)
    order = torch.randperm(7)
    assert torch.allclose(at, layer(Tokens(x, times=tx), Tokens(y[:, order], times=ty[:, order])), atol=1e-9)


def test_rotary_positions_keep_lengths_and_sinusoids_have_their_periods() -> None:
    periods = geometric_periods(3, 0.5, 50)
    assert periods.tolist() == pytest.approx([0.5, 5, 50], rel=1e-5)
    x = torch.randn(1, 2, 9, 6)
    assert torch.allclose(TimeRotary(6, 0.5, 50)(x, torch.rand(1, 9) * 100).norm(dim=-1), x.norm(dim=-1), rtol=1e-5)
    s = sinusoids(torch.tensor([[0.0, 0.5, 50.0]]), periods)
    assert s.shape == (1, 3, 6)
    assert s[0, 0].tolist() == pytest.approx([0, 0, 0, 1, 1, 1], abs=1e-5)
    assert s[0, 2, :].tolist() == pytest.approx([0, 0, 0, 1, 1, 1], abs=1e-3)  # whole turns of all three
    assert s[0, 1, :].tolist()[0::3] == pytest.approx([0, 1], abs=1e-5)
