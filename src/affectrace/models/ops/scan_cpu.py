"""Selective scan on CPUs: blockwise torch operations, recomputed in the backward pass.

Time is cut into blocks of K segments of L steps. One loop of L steps runs all K segments of a block at the same time,
from the start states of the segments; these come from a first pass from zero (which gives the end states e_k), and
    s_{k+1} = exp(A sum dt) s_k + e_k.
The tensors of a block are (L, K, B, N, D), a few megabytes, in one scratch buffer that all blocks and calls share:
nothing of size B x T x D x N is stored. For the backward pass only the start states of the segments are saved, N / L of
the size of the input; the rest is recomputed, block by block from the end.
The state is (..., N, D) here, channels last, for contiguous access.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LOG2_E = math.log2(math.e)  # exp(x) = 2^(x log2 e): torch's exp2 is three times as fast as its exp on a CPU

SEGMENT_STEPS = 16
"""L, steps of a segment; one state per segment is saved for the backward pass."""

STEP_ELEMENTS = 65_536
"""Elements per operation of the time loop: enough for two threads (torch splits above 32,768)."""

Shape = tuple[int, ...]


def scan_cpu(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, h0: Tensor
) -> tuple[Tensor, Tensor]:
    """The chunked form; arguments and results as selective_scan's."""
    y, h_T = _Chunked.apply(u, dt, A, B, C, D, h0)
    return y, h_T


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, h0: Tensor
    ) -> tuple[Tensor, Tensor]:
        blocks = _Blocks(u, A.shape[1])
        A2 = (A.to(blocks.kind).t() * LOG2_E).contiguous()
        y = torch.empty_like(u, memory_format=torch.contiguous_format)
        carry = h0.to(blocks.kind).transpose(1, 2).clone(memory_format=torch.contiguous_format)
        keep = any(ctx.needs_input_grad)
        starts = torch.empty(blocks.n_blocks, *blocks.segment, device=u.device, dtype=blocks.kind) if keep else None
        E, H, dt_, x, y_, B_, C_, e, P, s = blocks.scratch(
            2 * [blocks.state] + 3 * [blocks.channel] + 2 * [blocks.weight] + 3 * [blocks.segment]
        )
        for g in range(blocks.n_blocks):
            blocks.read(g, dt, dt_)
            blocks.read(g, u, y_)
            blocks.read(g, B, B_)
            blocks.read(g, C, C_)
            torch.mul(dt_, y_, out=x)
            torch.exp2(torch.mul(dt_.unsqueeze(-2), A2, out=E), out=E)  # decay a_t
            torch.mul(x.unsqueeze(-2), B_.unsqueeze(-1), out=H)  # drive b_t
            if starts is not None:
                s = starts[g]
            _segment_starts(E, H, dt_, A2, carry, e, P, s)
            _walk(E, H, s)
            carry.copy_(H[-1, -1])
            if D is None:
                y_.zero_()
            else:
                y_.mul_(D)
            flat = y_.view(-1, 1, blocks.d)
            torch.baddbmm(flat, C_.view(-1, 1, blocks.n), H.view(-1, blocks.n, blocks.d), out=flat)
            blocks.write(g, y_, y)
        ctx.save_for_backward(u, dt, A, B, C, D, starts)
        return y, carry.transpose(1, 2).contiguous()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dh_T: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        u, dt, A, B, C, D, starts = ctx.saved_tensors
        blocks = _Blocks(u, A.shape[1])
        n, d = blocks.n, blocks.d
        A1 = A.to(blocks.kind).t().contiguous()
        A2 = A1 * LOG2_E
        du, ddt, dB, dC = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (u, dt, B, C))
        dD = torch.zeros(d, dtype=blocks.kind, device=u.device)
        carry = dh_T.to(blocks.kind).transpose(1, 2).clone(memory_format=torch.contiguous_format)
        states_and_start = (blocks.steps + 1, *blocks.segment)
        E, G, Q, H, dt_, u_, x, dy_, dx, out, B_, C_, w, e, P, R, dA = blocks.scratch(
            [*3 * [blocks.state], states_and_start] + 6 * [blocks.channel] + 3 * [blocks.weight] + 4 * [blocks.segment]
        )
        dA.zero_()
        before, after = H[:-1], H[1:]
        for g in reversed(range(blocks.n_blocks)):
            for source, target in ((dt, dt_), (u, u_), (dy, dy_), (B, B_), (C, C_)):
                blocks.read(g, source, target)
            torch.mul(dt_, u_, out=x)
            torch.exp2(torch.mul(dt_.unsqueeze(-2), A2, out=E), out=E)
            torch.mul(x.unsqueeze(-2), B_.unsqueeze(-1), out=after)
            H[0].copy_(starts[g])
            _walk(E, after, H[0])  # the states again
            torch.mul(C_.unsqueeze(-1), dy_.unsqueeze(-2), out=G)
            _segment_ends(E, G, dt_, A2, carry, e, P, R)
            _walk_back(E, G, R)  # G = d loss / d h_t
            torch.mul(E[0, 0], G[0, 0], out=carry)
            torch.sum(torch.mul(after, dy_.unsqueeze(-2), out=Q), -1, out=w)
            blocks.write(g, w, dC)
            torch.sum(torch.mul(G, x.unsqueeze(-2), out=Q), -1, out=w)
            blocks.write(g, w, dB)
            torch.bmm(B_.view(-1, 1, n), G.view(-1, n, d), out=dx.view(-1, 1, d))
            G.mul_(before).mul_(E)  # d loss / d (dt_t A)
            torch.sum(torch.mul(G, A1, out=Q), -2, out=out)
            blocks.write(g, out.addcmul_(dx, u_), ddt)
            for q_l, dt_l in zip(G.unbind(0), dt_.unsqueeze(-2).unbind(0)):
                dA.addcmul_(q_l, dt_l)
            dx.mul_(dt_)
            if D is not None:
                dx.addcmul_(dy_, D.to(blocks.kind))
                dD += dy_.mul_(u_).view(-1, d).sum(0)
            blocks.write(g, dx, du)
        dA_sum = dA.sum((0, 1)).t().to(A.dtype)
        return du, ddt, dA_sum, dB, dC, None if D is None else dD.to(D.dtype), carry.transpose(1, 2)


def _walk(E: Tensor, H: Tensor, start: Tensor) -> None:
    """h_l = a_l h_{l-1} + b_l in place: H is b before, h after."""
    previous = start
    for a, h in zip(E.unbind(0), H.unbind(0)):
        h.addcmul_(a, previous)
        previous = h


def _walk_back(E: Tensor, G: Tensor, end: Tensor) -> None:
    """g_l = c_l + a_{l+1} g_{l+1} in place: G is c before, g after; `end`: gradient of the last state from later."""
    a, g = E.unbind(0), G.unbind(0)
    g[-1].add_(end)
    for step in range(len(g) - 2, -1, -1):
        g[step].addcmul_(a[step + 1], g[step + 1])


def _segment_starts(
    E: Tensor, b: Tensor, dt: Tensor, A2: Tensor, carry: Tensor, e: Tensor, P: Tensor, s: Tensor
) -> None:
    """Fill s (K, B, N, D) with the state before each segment; `carry`: before the first."""
    s[0].copy_(carry)
    if len(s) == 1:
        return
    drives = b.unbind(0)
    e.copy_(drives[0])
    for a_l, b_l in zip(E.unbind(0)[1:], drives[1:]):
        torch.addcmul(b_l, a_l, e, out=e)
    torch.exp2(torch.mul(dt.sum(0).unsqueeze(-2), A2, out=P), out=P)
    for k in range(len(s) - 1):
        torch.addcmul(e[k], P[k], s[k], out=s[k + 1])


def _segment_ends(E: Tensor, c: Tensor, dt: Tensor, A2: Tensor, carry: Tensor, e: Tensor, P: Tensor, R: Tensor) -> None:
    """Fill R (K, B, N, D) with the gradient of each segment's last state from later steps; `carry`: of the last."""
    R[-1].copy_(carry)
    if len(R) == 1:
        return
    a, gradients = E.unbind(0), c.unbind(0)
    e.copy_(gradients[-1])
    for step in range(len(a) - 2, -1, -1):
        torch.addcmul(gradients[step], a[step + 1], e, out=e)
    e.mul_(a[0])
    torch.exp2(torch.mul(dt.sum(0).unsqueeze(-2), A2, out=P), out=P)
    for k in range(len(R) - 1, 0, -1):
        torch.addcmul(e[k], P[k], R[k], out=R[k - 1])


class _Scratch(threading.local):
    """One buffer per thread, reused: allocating fresh pages costs more than the arithmetic on them."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[torch.device, torch.dtype], Tensor] = {}


_SCRATCH = _Scratch()


class _Blocks:
    """The cut of a sequence into blocks, and block-sized tensors in the layout (L, K, B, ...)."""

    def __init__(self, u: Tensor, n: int) -> None:
        self.device, self.kind = u.device, torch.promote_types(u.dtype, torch.float32)
        self.b, t, self.d = u.shape
        self.n = n
        self.steps = min(SEGMENT_STEPS, t)  # L
        n_segments = -(-t // self.steps)
        self.segments = max(1, min(STEP_ELEMENTS // (self.b * n * self.d), n_segments))  # K
        self.length = self.steps * self.segments
        self.n_blocks = -(-t // self.length)
        self.segment: Shape = (self.segments, self.b, n, self.d)  # a state for each segment
        self.state: Shape = (self.steps, *self.segment)
        self.channel: Shape = (self.steps, self.segments, self.b, self.d)
        self.weight: Shape = (self.steps, self.segments, self.b, n)

    def scratch(self, shapes: Iterable[Shape]) -> list[Tensor]:
        """Uninitialized tensors of these shapes in the thread's buffer."""
        shapes = list(shapes)
        sizes = [math.prod(shape) for shape in shapes]
        key, total = (self.device, self.kind), sum(sizes)
        if key not in _SCRATCH.buffers or _SCRATCH.buffers[key].numel() < total:
            with torch.inference_mode(False):  # a tensor made in inference mode cannot be written to in training
                _SCRATCH.buffers[key] = torch.empty(total, device=self.device, dtype=self.kind)
        parts = _SCRATCH.buffers[key][:total].split(sizes)
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _split(self, part: Tensor) -> Tensor:
        """View (B, K L, X) as (L, K, B, X)."""
        return part.unflatten(1, (self.segments, self.steps)).permute(2, 1, 0, 3)

    def read(self, block: int, source: Tensor, target: Tensor) -> None:
        """Copy a block of source (B, T, X) into target (L, K, B, X); steps past the end become zero."""
        part = source[:, block * self.length : (block + 1) * self.length]
        missing = self.length - part.shape[1]
        if missing:  # dt = 0 leaves the state as it is
            part = F.pad(part, (0, 0, 0, missing))
        target.copy_(self._split(part))

    def write(self, block: int, source: Tensor, target: Tensor) -> None:
        """Copy a block (L, K, B, X) back into target (B, T, X)."""
        part = target[:, block * self.length : (block + 1) * self.length]
        if part.shape[1] == self.length:
            self._split(part).copy_(source)
        else:
            part.copy_(source.permute(2, 1, 0, 3).reshape(self.b, self.length, -1)[:, : part.shape[1]])
