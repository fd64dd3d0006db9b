"""Masked attention over timed sequences: multi-head scaled dot product, and additive.

    attend               softmax(Q K^T / sqrt(d_k)) V              T x S is never stored       MAVEN arXiv (1)
    MultiHeadAttention   the same between two sequences, with projections                      MAVEN (13)-(14)
    SelfAttention        LayerNorm(MHA(F, F, F) + F)                                           MAVEN (15)-(18)
    AdditiveAttention    softmax(v tanh(W h_t + W' h_t' + b)) h    T x S x D is never stored   MAVEN (21)-(24)
    TimeRotary           rotary positions in seconds: q.k depends on t_q - t_k                 Su et al. 2021

Glossary: B batch, T queries, S keys, D width, H heads, d_k = D / H. A sample without a valid key gets zeros. Invalid
keys receive no gradient, and a NaN in them does not spread.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affectrace.models.ops.additive_attention import additive_attention


class Tokens(NamedTuple):
    """A sequence: x (B, T, D); valid (B, T) bool, None = all; times (B, T) seconds from its start, for positions."""

    x: Tensor
    valid: Tensor | None = None
    times: Tensor | None = None


def attend(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(Q K^T / sqrt(d_k)) V, fused: q (B, H, T, d_k), k (B, H, S, d_k), v (B, H, S, d_v) -> (B, H, T, d_v).

    valid: (B, S) bool, of the keys; None = all. Zeros for a sample without a valid key.
    """
    if k.shape[2] == 0:
        return q.new_zeros(*q.shape[:3], v.shape[3])
    if valid is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    some = valid.any(dim=1)[:, None]  # a row of -inf alone would be NaN: leave it unmasked, then zero the result
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=(valid | ~some)[:, None, None, :], dropout_p=dropout)
    return y.masked_fill(~some[:, :, None, None], 0.0)


def attention_weights(q: Tensor, k: Tensor, valid: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(d_k)), (B, H, T, S), explicitly; rows sum to 1, or are 0 where no key is valid."""
    a = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if valid is None:
        return a.softmax(dim=-1)
    some = valid.any(dim=1)[:, None]
    a = a.masked_fill(~(valid | ~some)[:, None, None, :], -torch.inf).softmax(dim=-1)
    return a.masked_fill(~some[:, :, None, None], 0.0)


def geometric_periods(n: int, shortest_s: float, longest_s: float) -> Tensor:
    """n periods in seconds, (n,), geometrically spaced."""
    return torch.logspace(math.log10(shortest_s), math.log10(longest_s), n)


def sinusoids(times: Tensor, periods: Tensor) -> Tensor:
    """Sines, then cosines of time: (B, T) and (D / 2,) seconds -> (B, T, D) (Vaswani et al. 2017, section 3.5)."""
    angle = 2 * math.pi * times[..., None] / periods
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


class TimeRotary(nn.Module):
    """Rotary position embedding (Su et al. 2021, RoFormer) in seconds: q.k depends on t_q - t_k only.

    dim: channels of a head. shortest_s, longest_s: periods of the first and of the last pair of channels.
    """

    periods: Tensor

    def __init__(self, dim: int, shortest_s: float, longest_s: float) -> None:
        super().__init__()
        self.register_buffer("periods", geometric_periods(dim // 2, shortest_s, longest_s), persistent=False)

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        """x (B, H, T, d), times (B, T) seconds -> (B, H, T, d)."""
        angle = 2 * math.pi * times[:, None, :, None] / self.periods  # (B, 1, T, d/2)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class MultiHeadAttention(nn.Module):
    """out(concat_h(softmax(Q_h K_h^T / sqrt(d_k)) V_h)), queries from one sequence, keys and values from another.

    dropout: on the attention weights. rotary: relative positions in time; None: permutation-equivariant.
    key_bias: False for BEiT's blocks (softmax ignores it: it adds the same to a whole row of logits).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        dropout: float = 0.0,
        key_bias: bool = True,
        rotary: TimeRotary | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.dropout, self.rotary = heads, dropout, rotary
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=key_bias)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        for layer in (self.query, self.key, self.value):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, q: Tokens, kv: Tokens) -> Tensor:
        """q over T steps, kv over S -> (B, T, D); zeros for a sample without a valid key."""
        if kv.x.shape[1] == 0:
            return torch.zeros_like(q.x)
        if kv.x.shape[1] == 1 and not (self.training and self.dropout):
            y = self.out(self.value(kv.x)).expand_as(q.x)  # the softmax over a single key is 1
        else:
            dropout = self.dropout if self.training else 0.0
            y = attend(*self._queries_and_keys(q, kv), self._split(self.value(kv.x)), kv.valid, dropout)
            y = self.out(y.transpose(1, 2).flatten(2))
        return y if kv.valid is None else y.masked_fill(~kv.valid.any(dim=1)[:, None, None], 0.0)

    def weights(self, q: Tokens, kv: Tokens) -> Tensor:
        """The attention weights (B, H, T, S) of the same call."""
        return attention_weights(*self._queries_and_keys(q, kv), kv.valid)

    def _queries_and_keys(self, q: Tokens, kv: Tokens) -> tuple[Tensor, Tensor]:
        queries, keys = self._split(self.query(q.x)), self._split(self.key(kv.x))
        if self.rotary is None:
            return queries, keys
        return self.rotary(queries, q.times), self.rotary(keys, kv.times)

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, D / H)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class SelfAttention(nn.Module):
    """SelfAtt(F) = LayerNorm(MHA(F, F, F) + F), MAVEN (published) eqs. (15)-(18)."""

    def __init__(self, width: int, heads: int, *, dropout: float = 0.0, rotary: TimeRotary | None = None) -> None:
        super().__init__()
        self.attention = MultiHeadAttention(width, heads, dropout=dropout, rotary=rotary)
        self.norm = nn.LayerNorm(width)

    def forward(self, f: Tokens) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.norm(self.attention(f, f) + f.x)


class AdditiveAttention(nn.Module):
    """l_t = sum_t' softmax_t'(v_d^T tanh(W_d h_t + W'_d h_t' + b_d)) h_t', MAVEN (published) eqs. (21)-(24).

    With `sigmoid` the logits are sigma(W_alpha d + b_alpha), as in the arXiv text, eqs. (2)-(5). Logits in (0, 1) bound
    each of n weights to [1 / (e n), e / n], so l_t stays near the mean over time. width: of h_t. inner: of d_tt'.
    """

    def __init__(self, width: int, inner: int, *, sigmoid: bool = False) -> None:
        super().__init__()
        self.query = nn.Linear(width, inner)  # W_d, b_d
        self.key = nn.Linear(width, inner, bias=False)  # W'_d
        self.score = nn.Linear(inner, 1, bias=sigmoid)  # v_d; or W_alpha, b_alpha (a bias without sigmoid does nothing)
        self.function: Callable[..., Tensor] = additive_attention

    def forward(self, h: Tokens) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        return self.function(self.query(h.x), self.key(h.x), self.score.weight[0], h.x, h.valid, self.score.bias)
