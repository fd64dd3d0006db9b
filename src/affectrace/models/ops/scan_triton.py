"""Selective scan on GPUs: fused Triton kernels (reference: scan.selective_scan_ref).

A program runs BLOCK_D channels of one sequence in chunks of CHUNK steps. Within a chunk the pairs (a, b) of
h -> a h + b are combined by an associative scan, (a1, b1) then (a2, b2) = (a1 a2, a2 b1 + b2); across chunks the state
stays in registers. The backward kernel recomputes the states from one saved state per chunk, as scan_cpu.py does. Sums
over programs are stored in parts and added afterwards, so that results are deterministic.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from affectrace.errors import InputError
from affectrace.models.ops.scan_cpu import LOG2_E
from affectrace.weights import cache_folder

os.environ.setdefault("TRITON_CACHE_DIR", str(cache_folder() / "triton"))  # compiled kernels; else in ~/.triton

CHUNK = 16
BLOCK_D = 16


@triton.jit
def _combine(a1, b1, a2, b2):  # type: ignore[no-untyped-def]
    return a1 * a2, a2 * b1 + b2


@triton.jit
def _forward_kernel(  # type: ignore[no-untyped-def]
    u_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, h0_ptr, y_ptr, hT_ptr, starts_ptr,
    T, d, n, n_chunks,
    LOG2: tl.constexpr, SAVE: tl.constexpr, SKIP: tl.constexpr, L: tl.constexpr, N: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    i_d = tl.program_id(1) * BD + tl.arange(0, BD)
    i_n = tl.arange(0, N)
    i_l = tl.arange(0, L)
    in_d = i_d < d
    in_n = i_n < n
    in_nd = in_n[:, None] & in_d[None, :]
    nd = i_d[None, :] * n + i_n[:, None]
    A2 = tl.load(A_ptr + nd, mask=in_nd, other=0.0) * LOG2  # (N, BD)
    h = tl.load(h0_ptr + batch * d * n + nd, mask=in_nd, other=0.0)
    kind = h.dtype
    if SKIP:
        D = tl.load(D_ptr + i_d, mask=in_d, other=0.0)
    for chunk in range(0, n_chunks):
        t = chunk * L + i_l
        in_t = t < T
        ld = batch * T * d + t[:, None] * d + i_d[None, :]
        in_ld = in_t[:, None] & in_d[None, :]
        ln = batch * T * n + t[:, None] * n + i_n[None, :]
        in_ln = in_t[:, None] & in_n[None, :]
        dt = tl.load(dt_ptr + ld, mask=in_ld, other=0.0).to(kind)
        u = tl.load(u_ptr + ld, mask=in_ld, other=0.0).to(kind)
        B = tl.load(B_ptr + ln, mask=in_ln, other=0.0).to(kind)
        C = tl.load(C_ptr + ln, mask=in_ln, other=0.0).to(kind)
        a = tl.exp2(dt[:, None, :] * A2[None, :, :])  # (L, N, BD)
        b = (dt * u)[:, None, :] * B[:, :, None]
        P, local = tl.associative_scan((a, b), 0, _combine)
        if SAVE:
            tl.store(starts_ptr + (batch * n_chunks + chunk) * d * n + nd, h, mask=in_nd)
        states = local + P * h[None, :, :]
        y = tl.sum(states * C[:, :, None], axis=1)
        if SKIP:
            y += D[None, :] * u
        tl.store(y_ptr + ld, y, mask=in_ld)
        h = tl.sum(tl.where(i_l[:, None, None] == L - 1, states, 0.0), axis=0)
    tl.store(hT_ptr + batch * d * n + nd, h, mask=in_nd)


@triton.jit
def _backward_kernel(  # type: ignore[no-untyped-def]
    u_ptr, dt_ptr, A_ptr, B_ptr, C_ptr, D_ptr, starts_ptr, dy_ptr, dhT_ptr,
    du_ptr, ddt_ptr, dA_ptr, dB_ptr, dC_ptr, dD_ptr, dh0_ptr,
    T, d, n, n_chunks, n_batch,
    LOG2: tl.constexpr, SKIP: tl.constexpr, L: tl.constexpr, N: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    i_d = part * BD + tl.arange(0, BD)
    i_n = tl.arange(0, N)
    i_l = tl.arange(0, L)
    in_d = i_d < d
    in_n = i_n < n
    in_nd = in_n[:, None] & in_d[None, :]
    nd = i_d[None, :] * n + i_n[:, None]
    A1 = tl.load(A_ptr + nd, mask=in_nd, other=0.0)
    A2 = A1 * LOG2
    R = tl.load(dhT_ptr + batch * d * n + nd, mask=in_nd, other=0.0)  # what reaches a chunk's last state from later
    kind = R.dtype
    dA = tl.zeros((N, BD), dtype=kind)
    dD = tl.zeros((BD,), dtype=kind)
    if SKIP:
        D = tl.load(D_ptr + i_d, mask=in_d, other=0.0)
    for back in range(0, n_chunks):
        chunk = n_chunks - 1 - back
        t = chunk * L + i_l
        in_t = t < T
        ld = batch * T * d + t[:, None] * d + i_d[None, :]
        in_ld = in_t[:, None] & in_d[None, :]
        ln = batch * T * n + t[:, None] * n + i_n[None, :]
        in_ln = in_t[:, None] & in_n[None, :]
        dt = tl.load(dt_ptr + ld, mask=in_ld, other=0.0).to(kind)
        u = tl.load(u_ptr + ld, mask=in_ld, other=0.0).to(kind)
        dy = tl.load(dy_ptr + ld, mask=in_ld, other=0.0).to(kind)
        B = tl.load(B_ptr + ln, mask=in_ln, other=0.0).to(kind)
        C = tl.load(C_ptr + ln, mask=in_ln, other=0.0).to(kind)
        h = tl.load(starts_ptr + (batch * n_chunks + chunk) * d * n + nd, mask=in_nd, other=0.0)
        x = dt * u
        a = tl.exp2(dt[:, None, :] * A2[None, :, :])
        # states before each step: the same scan over the inputs one step earlier, nothing before the first
        later = (i_l > 0)[:, None]
        dt_before = tl.load(dt_ptr + ld - d, mask=in_ld & later, other=0.0).to(kind)
        u_before = tl.load(u_ptr + ld - d, mask=in_ld & later, other=0.0).to(kind)
        B_before = tl.load(B_ptr + ln - n, mask=in_ln & later, other=0.0).to(kind)
        a_before = tl.exp2(dt_before[:, None, :] * A2[None, :, :])
        b_before = (dt_before * u_before)[:, None, :] * B_before[:, :, None]
        P, local = tl.associative_scan((a_before, b_before), 0, _combine)
        before = local + P * h[None, :, :]
        states = a * before + x[:, None, :] * B[:, :, None]
        # gradients of the states: the scan run from the end, with the decays one step later
        in_next = (t + 1 < T)[:, None] & (i_l < L - 1)[:, None] & in_d[None, :]
        dt_next = tl.load(dt_ptr + ld + d, mask=in_next, other=0.0).to(kind)
        a_next = tl.exp2(dt_next[:, None, :] * A2[None, :, :])
        P_back, local_back = tl.associative_scan((a_next, C[:, :, None] * dy[:, None, :]), 0, _combine, reverse=True)
        g = local_back + P_back * R[None, :, :]
        parts = (part * n_batch + batch) * T * n + t[:, None] * n + i_n[None, :]
        tl.store(dC_ptr + parts, tl.sum(states * dy[:, None, :], axis=2), mask=in_ln)
        tl.store(dB_ptr + parts, tl.sum(g * x[:, None, :], axis=2), mask=in_ln)
        dx = tl.sum(g * B[:, :, None], axis=1)
        q = g * before * a  # d loss / d (dt A)
        tl.store(ddt_ptr + ld, tl.sum(q * A1[None, :, :], axis=1) + dx * u, mask=in_ld)
        du = dx * dt
        if SKIP:
            du += D[None, :] * dy
            dD += tl.sum(dy * u, axis=0)
        tl.store(du_ptr + ld, du, mask=in_ld)
        dA += tl.sum(q * dt[:, None, :], axis=0)
        R = tl.sum(tl.where(i_l[:, None, None] == 0, a * g, 0.0), axis=0)
    tl.store(dA_ptr + batch * d * n + nd, dA, mask=in_nd)
    tl.store(dh0_ptr + batch * d * n + nd, R, mask=in_nd)
    if SKIP:
        tl.store(dD_ptr + batch * d + i_d, dD, mask=in_d)


def scan_triton(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, h0: Tensor
) -> tuple[Tensor, Tensor]:
    """The fused form; arguments and results as selective_scan's.

    Raises:
        InputError: the tensors are not on a GPU (and Triton's interpreter is off).
    """
    if not u.is_cuda and not triton.knobs.runtime.interpret:
        raise InputError("the triton form needs CUDA tensors", where="selective_scan", hint="use form='auto'")
    y, h_T = _Fused.apply(u, dt, A, B, C, D, h0)
    return y, h_T


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, h0: Tensor
    ) -> tuple[Tensor, Tensor]:
        b, t, d = u.shape
        n = A.shape[1]
        kind = torch.float64 if u.dtype == torch.float64 else torch.float32
        u, dt, B, C = (x.contiguous() for x in (u, dt, B, C))
        y = torch.empty_like(u)
        h_T = torch.empty(b, d, n, dtype=kind, device=u.device)
        n_chunks = triton.cdiv(t, CHUNK)
        keep = any(ctx.needs_input_grad)
        starts = torch.empty((b, n_chunks, d, n) if keep else (1,), dtype=kind, device=u.device)
        _forward_kernel[(b, triton.cdiv(d, BLOCK_D))](
            u, dt, A.to(kind).contiguous(), B, C, A if D is None else D.to(kind), h0.to(kind).contiguous(),
            y, h_T, starts, t, d, n, n_chunks,
            LOG2=LOG2_E, SAVE=keep, SKIP=D is not None, L=CHUNK, N=triton.next_power_of_2(n), BD=BLOCK_D,
        )  # fmt: skip
        ctx.save_for_backward(u, dt, A, B, C, D, starts)
        return y, h_T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dh_T: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        u, dt, A, B, C, D, starts = ctx.saved_tensors
        b, t, d = u.shape
        n = A.shape[1]
        kind = starts.dtype
        parts = triton.cdiv(d, BLOCK_D)
        du, ddt = torch.empty_like(u), torch.empty_like(dt)
        dA = torch.empty(b, d, n, dtype=kind, device=u.device)
        dB, dC = (torch.empty(parts, b, t, n, dtype=kind, device=u.device) for _ in range(2))
        dD = torch.empty(b, d, dtype=kind, device=u.device)
        dh0 = torch.empty(b, d, n, dtype=kind, device=u.device)
        _backward_kernel[(b, parts)](
            u, dt, A.to(kind).contiguous(), B, C, A if D is None else D.to(kind), starts, dy.contiguous(),
            dh_T.to(kind).contiguous(), du, ddt, dA, dB, dC, dD, dh0,
            t, d, n, starts.shape[1], b,
            LOG2=LOG2_E, SKIP=D is not None, L=CHUNK, N=triton.next_power_of_2(n), BD=BLOCK_D,
        )  # fmt: skip
        dD_sum = None if D is None else dD.sum(0).to(D.dtype)
        return du, ddt, dA.sum(0).to(A.dtype), dB.sum(0).to(B.dtype), dC.sum(0).to(C.dtype), dD_sum, dh0
