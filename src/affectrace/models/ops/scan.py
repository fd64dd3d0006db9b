"""Selective scan of Mamba: the reference recurrence, and dispatch to the fast forms.

Gu & Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023, arXiv:2312.00752, algorithm 2.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t            state (B, D, N)     (2a)
    y_t = C_t h_t + D u_t                               output (B, D)       (2b), with the skip of their code

Discretized as in their code: zero-order hold for A, Euler for B (equation 4 has zero-order hold for both).

Glossary: B batch, T time, D channels, N states per channel; u input, dt step size (after softplus, >= 0), A decay < 0.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from affectrace.errors import InputError, UnknownNameError
from affectrace.models.ops.scan_cpu import scan_cpu


def selective_scan_ref(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, h0: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The reference, step by step, differentiated by autograd. Arguments and results as selective_scan's."""
    kind = torch.promote_types(u.dtype, torch.float32)
    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1], dtype=kind) if h0 is None else h0.to(kind)
    A = A.to(kind)
    ys = []
    for u_t, dt_t, B_t, C_t in zip(*(x.to(kind).unbind(1) for x in (u, dt, B, C))):
        h = torch.exp(dt_t[..., None] * A) * h + (dt_t * u_t)[..., None] * B_t[:, None, :]  # (2a)
        ys.append((h * C_t[:, None, :]).sum(-1))  # (2b)
    y = torch.stack(ys, 1)
    if D is not None:
        y = y + D.to(kind) * u.to(kind)
    return y.to(u.dtype), h


Form = Literal["auto", "plain", "chunked", "triton", "mamba_ssm"]
"""plain      the reference; the fastest for a few steps (live streams)
chunked    torch operations on blocks of time (scan_cpu.py): the default on a CPU
triton     one fused kernel each way (scan_triton.py): the default on a GPU with Triton
mamba_ssm  the kernel of that package, where it is installed and there is no initial state
"""

SHORT = 4
"""Up to this many steps the plain form is the fastest (measured)."""


def selective_scan(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    form: Form = "auto",
) -> tuple[Tensor, Tensor]:
    """Selective state space model over a sequence, in float32 at least.

    Every form is stable for any dt >= 0: it multiplies by decays <= 1 and never divides by them.

    Args:
        u: input, (B, T, D), T >= 1.
        dt: step size, (B, T, D), >= 0.
        A: decay of each state, (D, N), negative.
        B: input weights, (B, T, N).
        C: output weights, (B, T, N).
        D: skip weights, (D,), or None for no skip.
        h0: state before the first step, (B, D, N), or None for zero.
        form: "auto" takes the fastest for the device and the arguments.

    Returns:
        y (B, T, D) in u's dtype, and the state after the last step (B, D, N) in float32 (float64 for float64 input).
    """
    if form == "auto":
        form = choose_form(u, h0)
    if form == "plain":
        return selective_scan_ref(u, dt, A, B, C, D, h0)
    if form == "mamba_ssm":
        return _scan_mamba_ssm(u, dt, A, B, C, D, h0)
    if h0 is None:
        h0 = u.new_zeros(u.shape[0], u.shape[2], A.shape[1], dtype=torch.promote_types(u.dtype, torch.float32))
    if form == "chunked":
        return scan_cpu(u, dt, A, B, C, D, h0)
    if form == "triton":
        from affectrace.models.ops.scan_triton import scan_triton

        return scan_triton(u, dt, A, B, C, D, h0)
    raise UnknownNameError.of("scan form", form, get_args(Form))


def choose_form(u: Tensor, h0: Tensor | None = None) -> Form:
    """The fastest form for this input."""
    if u.is_cuda:
        if h0 is None and has_module("mamba_ssm"):
            return "mamba_ssm"
        return "triton" if has_module("triton") else "chunked"
    return "plain" if u.shape[1] <= SHORT else "chunked"


@cache
def has_module(name: str) -> bool:
    """Whether a module is installed; it is not imported."""
    return importlib.util.find_spec(name) is not None


def _scan_mamba_ssm(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, h0: Tensor | None
) -> tuple[Tensor, Tensor]:
    if not has_module("mamba_ssm") or not u.is_cuda or h0 is not None:
        raise InputError(
            "the mamba_ssm form needs that package, a CUDA tensor and no initial state",
            where="selective_scan",
            hint="use form='auto'",
        )
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    kind = torch.promote_types(u.dtype, torch.float32)
    y, h_T = selective_scan_fn(
        u.transpose(1, 2).contiguous(),
        dt.to(u.dtype).transpose(1, 2).contiguous(),
        A.to(kind),
        B.to(u.dtype).transpose(1, 2).contiguous(),
        C.to(u.dtype).transpose(1, 2).contiguous(),
        None if D is None else D.to(kind),
        return_last_state=True,
    )
    return y.transpose(1, 2), _NoGradient.apply(h_T)


class _NoGradient(torch.autograd.Function):
    """mamba_ssm's backward pass ignores the last state: refuse rather than train on a wrong gradient."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:  # type: ignore[override]
        return h.clone()

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> None:  # type: ignore[override]
        raise InputError(
            "the mamba_ssm form has no gradient through the last state",
            where="selective_scan",
            hint="use form='triton' or 'chunked', or detach the state",
        )
