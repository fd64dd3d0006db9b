"""Additive attention: the reference, and a blockwise form recomputed in the backward pass.

MAVEN (published) eqs. (21)-(24), with the sigmoid of the arXiv text's eq. (3) where a bias is given. Glossary: B batch,
T queries, S keys, D width of d_tt', E width of the values h.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_ELEMENTS = 2**20
"""Elements in one block of tanh(W h_t + W' h_t' + b): 4 MB in float32, about one core's cache (ours, measured)."""


def additive_attention_ref(
    q: Tensor, k: Tensor, v: Tensor, h: Tensor, valid: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """The reference, which stores (B, T, S, D). Arguments and result as additive_attention's."""
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
    """Additive attention in blocks: memory O(T + S), neither T x S x D nor T x S is stored.

    Args:
        q: (B, T, D) = W_d h_t + b_d.
        k: (B, S, D) = W'_d h_t'.
        v: (D,) the scoring vector.
        h: (B, S, E) the values.
        valid: (B, S) bool over the keys; None = all valid.
        bias: (1,) b_alpha: the logits go through a sigmoid (arXiv eq. 3); None = no sigmoid (published eq. 22).
        block_elements: elements of tanh(...) in memory at a time.

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
    """Forward saves its inputs only; backward recomputes each block and applies its derivative by hand."""

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
                keep = slice(None) if valid is None else valid[i].nonzero()[:, 0]
                ki, hi = k[i, keep], h[i, keep]
                if not len(ki):
                    continue
                for rows in _blocks(len(q[i]), len(ki) * len(v), block_elements):
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
                for rows in _blocks(len(q[i]), len(ki) * len(v), block_elements):
                    a, alpha = _weights(q[i, rows], ki, v, b, sigmoid, block_elements)
                    dhi += a.T @ g[i, rows]
                    da = g[i, rows] @ hi.T
                    dalpha = a * (da - (a * da).sum(dim=1, keepdim=True))
                    if sigmoid:
                        dalpha = dalpha * alpha * (1 - alpha)
                        db += dalpha.sum()
                    for cols in _blocks(len(ki), len(dalpha) * len(v), block_elements):
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
    for cols in _blocks(len(k), len(q) * len(v), block_elements):
        alpha[:, cols] = torch.tanh_(q[:, None, :] + k[None, cols, :]) @ v  # (21), (22)
    if sigmoid:
        alpha = torch.sigmoid_(alpha + b)  # (3) of the arXiv text
    return alpha.softmax(dim=1), alpha  # (23)


def _blocks(n: int, elements_each: int, block_elements: int) -> list[slice]:
    """Slices of n rows (or columns) of elements_each, block_elements at a time."""
    size = max(1, block_elements // elements_each)
    return [slice(i, min(i + size, n)) for i in range(0, n, size)]
