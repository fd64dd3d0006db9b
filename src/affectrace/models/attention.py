"""Attention over sequences with gaps: multi-head (scaled dot product) and additive, each with a slow twin.

    attend                    softmax(Q K^T / sqrt(d_k)) V              never holds T x S         MAVEN arXiv (1)
    attend_plain              its slow twin, which also gives the weights
    additive_attention        softmax(v tanh(W h_t + W' h_t' + b)) h    never holds T x S x D     MAVEN (21)-(24)
    additive_attention_plain  its slow twin
    MultiHeadAttention, SelfAttention, AdditiveAttention                the layers made of them

`valid` is a mask over the keys, (B, S) bool, True = there. A sample without any valid key gets zeros: nothing was
attended to, so nothing comes back. No gradient and no NaN reaches a key that is not there.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

BLOCK_ELEMENTS = 2**20
"""Numbers in one block of tanh(W h_t + W' h_t' + b): 4 MB in float32, about one core's cache (ours, measured)."""


def attend(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(Q K^T / sqrt(d_k)) V, fused.

    Args:
        q: (B, H, T, d_k).
        k, v: (B, H, S, d_k) and (B, H, S, d_v).
        valid: (B, S) bool, True = this key counts; None = all do.
        dropout: probability with which a weight is dropped.

    Returns:
        (B, H, T, d_v); zeros for a sample none of whose keys is valid.
    """
    if k.shape[2] == 0:
        return q.new_zeros(*q.shape[:3], v.shape[3])
    if valid is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    some = valid.any(dim=1)[:, None]  # a row of only -inf would be NaN: let it look, then wipe what it saw
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=(valid | ~some)[:, None, None, :], dropout_p=dropout)
    return y.masked_fill(~some[:, :, None, None], 0.0)


def attend_plain(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The slow twin of `attend`, line by line, without dropout.

    Returns:
        (B, H, T, d_v), and the weights (B, H, T, S); rows sum to 1, or are 0 where no key is valid.
    """
    a = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if valid is not None:
        some = valid.any(dim=1)[:, None]
        a = a.masked_fill(~(valid | ~some)[:, None, None, :], -torch.inf)
    a = a.softmax(dim=-1)
    if valid is not None:
        a = a.masked_fill(~some[:, :, None, None], 0.0)
    return a @ v, a


def rotate(x: Tensor, times: Tensor, periods: Tensor) -> Tensor:
    """Turn pairs of channels by their time, so that q.k depends on t_q - t_k only (Su et al. 2021, RoFormer).

    Args:
        x: (B, H, T, d) with d even.
        times: (B, T) seconds, on any clock; float32 is exact enough when they count from the segment's start.
        periods: (d / 2,) seconds for one full turn of each pair.
    """
    angle = 2 * math.pi * times[:, None, :, None] / periods  # (B, 1, T, d/2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def geometric_periods(n: int, shortest_s: float, longest_s: float) -> Tensor:
    """n periods in seconds, in equal ratios from the shortest to the longest; (n,)."""
    return torch.logspace(math.log10(shortest_s), math.log10(longest_s), n)


def sinusoids(times: Tensor, periods: Tensor) -> Tensor:
    """Sines and cosines of time (Vaswani 2017, section 3.5, with seconds in the place of positions).

    Args:
        times: (B, T) seconds.
        periods: (D / 2,) seconds.

    Returns:
        (B, T, D): sines, then cosines.
    """
    angle = 2 * math.pi * times[..., None] / periods
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


class MultiHeadAttention(nn.Module):
    """Queries of one sequence over keys and values of another: out(concat of softmax(Q_h K_h^T / sqrt(d_k)) V_h).

    Args:
        width: D, of query, key and output.
        heads: H, divides D.
        dropout: on the attention weights, in training.
        key_bias: False for BEiT's blocks (a bias on keys adds the same to a whole row of logits: softmax ignores it).
    """

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0, key_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=key_bias)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        valid: Tensor | None = None,
        *,
        clocks: tuple[Tensor, Tensor] | None = None,
        periods: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, T, D).
            key: (B, S, D), the keys' and the values' source.
            valid: (B, S) bool over the keys.
            clocks: seconds of the queries (B, T) and of the keys (B, S); with `periods` (D / H / 2,) positions are
                relative in time.

        Returns:
            (B, T, D); zeros for a sample without a valid key.
        """
        if key.shape[1] == 1 and not (self.training and self.dropout):
            y = self.out(self.value(key)).expand_as(query)  # a single key: its softmax is 1, the value passes through
        else:
            q, k = self._heads(self.query(query)), self._heads(self.key(key))
            if clocks is not None and periods is not None:
                q, k = rotate(q, clocks[0], periods), rotate(k, clocks[1], periods)
            dropout = self.dropout if self.training else 0.0
            y = attend(q, k, self._heads(self.value(key)), valid, dropout)
            y = self.out(y.transpose(1, 2).flatten(2))
        if key.shape[1] == 0:
            return torch.zeros_like(y)
        return y if valid is None else y.masked_fill(~valid.any(dim=1)[:, None, None], 0.0)

    def weights(
        self,
        query: Tensor,
        key: Tensor,
        valid: Tensor | None = None,
        *,
        clocks: tuple[Tensor, Tensor] | None = None,
        periods: Tensor | None = None,
    ) -> Tensor:
        """The attention weights (B, H, T, S) of the same call; holds T x S numbers a head."""
        q, k = self._heads(self.query(query)), self._heads(self.key(key))
        if clocks is not None and periods is not None:
            q, k = rotate(q, clocks[0], periods), rotate(k, clocks[1], periods)
        return attend_plain(q, k, k, valid)[1]

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, D / H)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class SelfAttention(nn.Module):
    """SelfAtt(F) = LayerNorm(MHA(F, F, F) + F), MAVEN (published) eqs. (15)-(18)."""

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(width, heads, dropout=dropout)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, valid: Tensor | None = None, *, times: Tensor | None = None, periods: Tensor | None = None
    ) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        clocks = None if times is None else (times, times)
        return self.norm(self.attention(x, x, valid, clocks=clocks, periods=periods) + x)


class AdditiveAttention(nn.Module):
    """l_t = sum_t' softmax_t'(v_d^T tanh(W_d h_t + W'_d h_t' + b_d)) h_t', MAVEN (published) eqs. (21)-(24).

    With `sigmoid` the logits are sigma(W_alpha d + b_alpha), as in the arXiv text, eqs. (2)-(5). A sigmoid keeps every
    logit in (0, 1), so no weight can exceed e times another: over n steps each lies in [1 / (e n), e / n], and l_t
    stays near the mean over time however it is trained.

    Args:
        width: D of h_t.
        inner: width of d_tt'.
        sigmoid: squash the logits before the softmax (eq. 3 of the arXiv text).
    """

    def __init__(self, width: int, inner: int, *, sigmoid: bool = False) -> None:
        super().__init__()
        self.query = nn.Linear(width, inner)  # W_d, b_d
        self.key = nn.Linear(width, inner, bias=False)  # W'_d
        self.score = nn.Linear(inner, 1, bias=sigmoid)  # v_d; or W_alpha, b_alpha (a bias without sigmoid does nothing)

    def forward(self, h: Tensor, valid: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); `valid` (B, T) bool over the t'."""
        return additive_attention(
            self.query(h), self.key(h), self.score.weight[0], h, valid, self.score.bias, block_elements=BLOCK_ELEMENTS
        )


def additive_attention_plain(
    q: Tensor, k: Tensor, v: Tensor, h: Tensor, valid: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """The slow twin of `additive_attention`: holds (B, T, S, D), equation by equation."""
    d = torch.tanh(q[:, :, None, :] + k[:, None, :, :])  # (21)
    alpha = d @ v  # (22)
    if bias is not None:
        alpha = torch.sigmoid(alpha + bias)  # (3) of the arXiv text
    if valid is not None:
        some = valid.any(dim=1)[:, None]
        alpha = alpha.masked_fill(~(valid | ~some)[:, None, :], -torch.inf)
    a = alpha.softmax(dim=-1)  # (23)
    if valid is not None:
        a = a.masked_fill(~some[:, :, None], 0.0)
    return a @ h  # (24)


def additive_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    h: Tensor,
    valid: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    block_elements: int = BLOCK_ELEMENTS,
) -> Tensor:
    """Additive attention in blocks, recomputed in the backward pass: memory O(T + S), never T x S x D nor T x S.

    Args:
        q: (B, T, D) = W_d h_t + b_d.
        k: (B, S, D) = W'_d h_t'.
        v: (D,) the scoring vector.
        h: (B, S, E) what is averaged.
        valid: (B, S) bool over the keys; None = all valid.
        bias: (1,) b_alpha: the logits go through a sigmoid (arXiv eq. 3); None = they do not (published eq. 22).
        block_elements: how many numbers of tanh(...) are held at a time.

    Returns:
        (B, T, E) in h's dtype; computed in float32 at least.
    """
    if h.shape[1] == 0:
        return h.new_zeros(q.shape[0], q.shape[1], h.shape[2])
    dtype = torch.promote_types(h.dtype, torch.float32)
    tensors = [x.to(dtype) for x in (q, k, v, h)]
    b = v.new_zeros(1, dtype=dtype) if bias is None else bias.to(dtype)
    return _BlockedAdditive.apply(*tensors, b, valid, bias is not None, block_elements).to(h.dtype)


class _BlockedAdditive(torch.autograd.Function):
    """Forward keeps its inputs only; backward runs the same blocks again and differentiates each by hand."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        h: Tensor,
        b: Tensor,
        valid: Tensor | None,
        sigmoid: bool,
        block_elements: int,
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, h, b, valid)
        ctx.sigmoid, ctx.block_elements = sigmoid, block_elements
        out = torch.zeros(q.shape[0], q.shape[1], h.shape[2], dtype=h.dtype, device=h.device)
        with torch.autocast(q.device.type, enabled=False):
            for i in range(q.shape[0]):
                keep = None if valid is None else valid[i].nonzero()[:, 0]
                ki, hi = (k[i], h[i]) if keep is None else (k[i, keep], h[i, keep])
                if not len(ki):
                    continue
                for rows in _row_blocks(len(q[i]), len(ki), len(v), block_elements):
                    out[i, rows] = _weights(q[i, rows], ki, v, b, sigmoid, block_elements)[0] @ hi
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        g = grads[0]
        q, k, v, h, b, valid = ctx.saved_tensors
        sigmoid, block_elements = ctx.sigmoid, ctx.block_elements
        dq, dk, dv, dh, db = (torch.zeros_like(x) for x in (q, k, v, h, b))
        with torch.autocast(q.device.type, enabled=False):
            for i in range(q.shape[0]):
                keep = slice(None) if valid is None else valid[i].nonzero()[:, 0]
                ki, hi = k[i, keep], h[i, keep]
                dki, dhi = torch.zeros_like(ki), torch.zeros_like(hi)
                if not len(ki):
                    continue
                for rows in _row_blocks(len(q[i]), len(ki), len(v), block_elements):
                    a, alpha = _weights(q[i, rows], ki, v, b, sigmoid, block_elements)
                    dhi += a.T @ g[i, rows]
                    da = g[i, rows] @ hi.T
                    dalpha = a * (da - (a * da).sum(dim=1, keepdim=True))
                    if sigmoid:
                        dalpha = dalpha * alpha * (1 - alpha)
                        db += dalpha.sum()
                    for cols in _column_blocks(len(dalpha), len(ki), len(v), block_elements):
                        d = torch.tanh(q[i, rows, None, :] + ki[None, cols, :])
                        part = dalpha[:, cols]
                        dv += part.flatten() @ d.flatten(0, 1)
                        d.mul_(d).neg_().add_(1).mul_(part[..., None])  # d tanh(x) = 1 - tanh(x)^2
                        dq[i, rows] += d.sum(dim=1) * v
                        dki[cols] += d.sum(dim=0) * v
                dk[i, keep], dh[i, keep] = dki, dhi
        return dq, dk, dv, dh, db if sigmoid else None, None, None, None


def _weights(q: Tensor, k: Tensor, v: Tensor, b: Tensor, sigmoid: bool, block_elements: int) -> tuple[Tensor, Tensor]:
    """Weights a (R, S) of R queries over S keys, and the logits alpha before the softmax."""
    alpha = q.new_empty(len(q), len(k))
    for cols in _column_blocks(len(q), len(k), len(v), block_elements):
        alpha[:, cols] = torch.tanh_(q[:, None, :] + k[None, cols, :]) @ v  # (21), (22)
    if sigmoid:
        alpha = torch.sigmoid_(alpha + b)  # (3) of the arXiv text
    return alpha.softmax(dim=1), alpha  # (23)


def _row_blocks(rows: int, cols: int, depth: int, block_elements: int) -> list[slice]:
    size = max(1, block_elements // (cols * depth))
    return [slice(i, min(i + size, rows)) for i in range(0, rows, size)]


def _column_blocks(rows: int, cols: int, depth: int, block_elements: int) -> list[slice]:
    size = max(1, block_elements // (rows * depth))
    return [slice(i, min(i + size, cols)) for i in range(0, cols, size)]
