"""The selective scan of Mamba (Gu & Dao 2023, algorithm 2), four ways that give the same numbers.

    h_t = exp(dt_t A) h_{t-1} + (dt_t u_t) B_t          state, (B, D, N)
    y_t = C_t h_t + D u_t                               output, (B, D)

The discretisation is the public implementation's: zero-order hold for A, Euler for B (equation 4 of the paper has
zero-order hold for both).

    plain      one step after another, differentiated by autograd. In float64 it is the truth the others are held to.
    chunked    torch operations on whole blocks of time, recomputed in the backward pass. The default on CPU.
    triton     one fused kernel (scan_triton.py). The default on a GPU with Triton.
    mamba_ssm  the kernel of that package, where it is installed and no initial state is given.

Glossary: B batch, T time, D channels, N states a channel. u input, dt step size (after softplus, >= 0), A decay (< 0).
Inside the chunked form the state has its channels last, (..., N, D), so that every operation runs along memory.
"""

from __future__ import annotations

import importlib.util
import threading
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from affectrace.errors import InputError, UnknownNameError

Form = Literal["auto", "plain", "chunked", "triton", "mamba_ssm"]

LOG2_E = 1.4426950408889634  # exp(x) = 2^(x log2 e): torch's exp2 is three times as fast as its exp on a CPU

SEGMENT_STEPS = 16
"""Steps of a segment in the chunked form. States are kept for the backward pass once a segment."""

STEP_ELEMENTS = 65_536
"""Elements one operation of the time loop should touch: enough to share between threads (torch splits above 32,768)."""

SHORT = 4
"""Up to this many steps (live use) the plain form is the fastest."""


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
    """Run the selective state space over a sequence.

    Computed in float32 (float64 for float64 input) whatever the input's precision. Every form is stable for any
    dt >= 0: it only ever multiplies by decays <= 1 and never divides by them.

    Args:
        u: input, (B, T, D).
        dt: step size, (B, T, D), not negative.
        A: decay of each state, (D, N), negative.
        B: input weights, (B, T, N).
        C: output weights, (B, T, N).
        D: skip weights, (D,), or None for no skip.
        h0: state before the first step, (B, D, N), or None for zero.
        form: which computation; "auto" takes the fastest that fits the device and the arguments.

    Returns:
        y (B, T, D) in the type of u, and the state after the last step (B, D, N) in float32 (float64).

    Raises:
        InputError: shapes do not fit, T is 0, or the form cannot run here.
        UnknownNameError: no such form.
    """
    _check(u, dt, A, B, C, D, h0)
    chosen = choose_form(u, h0) if form == "auto" else form
    if chosen not in get_args(Form):
        raise UnknownNameError.of("scan form", chosen, get_args(Form))
    if chosen == "plain":
        return scan_plain(u, dt, A, B, C, D, h0)
    if chosen == "mamba_ssm":
        return _scan_mamba_ssm(u, dt, A, B, C, D, h0)
    if h0 is None:
        h0 = u.new_zeros(u.shape[0], u.shape[2], A.shape[1], dtype=_compute_type(u))
    if chosen == "triton":
        from affectrace.models.ops.scan_triton import scan_triton

        return scan_triton(u, dt, A, B, C, D, h0)
    y, h_T = _Chunked.apply(u, dt, A, B, C, D, h0)
    return y, h_T


def choose_form(u: Tensor, h0: Tensor | None = None) -> Form:
    """The fastest form for this input: see the module's head."""
    if u.is_cuda:
        if h0 is None and has_module("mamba_ssm"):
            return "mamba_ssm"
        return "triton" if has_module("triton") else "chunked"
    return "plain" if u.shape[1] <= SHORT else "chunked"


@cache
def has_module(name: str) -> bool:
    """Whether a module is installed; it is not imported."""
    return importlib.util.find_spec(name) is not None


def _compute_type(u: Tensor) -> torch.dtype:
    return torch.float64 if u.dtype == torch.float64 else torch.float32


def _check(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, h0: Tensor | None) -> None:
    if u.dim() != 3 or u.shape[1] == 0:
        raise InputError(f"u is {tuple(u.shape)}", where="selective_scan", hint="give (batch, time >= 1, channels)")
    b, t, d = u.shape
    n = A.shape[-1]
    expected = {"dt": (b, t, d), "A": (d, n), "B": (b, t, n), "C": (b, t, n), "D": (d,), "h0": (b, d, n)}
    for (name, shape), given in zip(expected.items(), (dt, A, B, C, D, h0)):
        if given is not None and tuple(given.shape) != shape:
            what = f"{name} is {tuple(given.shape)}, expected {shape}"
            raise InputError(what, where="selective_scan", hint=f"u is {tuple(u.shape)}")


def scan_plain(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, h0: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The recurrence as it is written: the truth. Arguments and results as selective_scan's."""
    kind = _compute_type(u)
    h = u.new_zeros(u.shape[0], u.shape[2], A.shape[1], dtype=kind) if h0 is None else h0.to(kind)
    A = A.to(kind)
    ys = []
    for u_t, dt_t, B_t, C_t in zip(*(x.to(kind).unbind(1) for x in (u, dt, B, C))):
        h = torch.exp(dt_t[..., None] * A) * h + (dt_t * u_t)[..., None] * B_t[:, None, :]
        ys.append((h * C_t[:, None, :]).sum(-1))
    y = torch.stack(ys, 1)
    if D is not None:
        y = y + D.to(kind) * u.to(kind)
    return y.to(u.dtype), h


# ---------------------------------------------------------------------------------------------------------------------
# The chunked form
# ---------------------------------------------------------------------------------------------------------------------
#
# Time is cut into blocks of K segments of L steps. One loop of L steps walks all K segments of a block at the same
# time, from the segments' start states; these come from a first walk from zero (giving the end states e_k), and
#     s_{k+1} = exp(A sum dt) s_k + e_k.
# A block's tensors are (L, K, B, N, D), a few megabytes in all, and live in one scratch buffer that every block (and
# every call) uses again: nothing of size B x T x D x N exists. For the backward pass only the segments' start states
# are kept, N / L of the input's size; everything else is computed again, block by block from the end.


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
        starts = blocks.new_states() if keep else None
        blocks.allocate(state=2, channel=3, weight=2, segment=3)
        E, H = blocks.take_states(2)
        dt_, x, y_ = blocks.take_channels(3)
        B_, C_ = blocks.take_weights(2)
        e, P, s = blocks.take_segments(3)
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
        blocks.allocate(state=4, channel=6, weight=3, segment=4, spare=1)
        E, G, Q = blocks.take_states(3)
        H = blocks.take_states_and_start()
        dt_, u_, x, dy_, dx, out = blocks.take_channels(6)
        B_, C_, w = blocks.take_weights(3)
        e, P, R, dA = blocks.take_segments(4)
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
    """h_l = a_l h_{l-1} + b_l, in place: H holds b and becomes h."""
    previous = start
    for a, h in zip(E.unbind(0), H.unbind(0)):
        h.addcmul_(a, previous)
        previous = h


def _walk_back(E: Tensor, G: Tensor, end: Tensor) -> None:
    """g_l = c_l + a_{l+1} g_{l+1}, in place: G holds c and becomes g; `end` reaches the last step from later."""
    a, g = E.unbind(0), G.unbind(0)
    g[-1].add_(end)
    for step in range(len(g) - 2, -1, -1):
        g[step].addcmul_(a[step + 1], g[step + 1])


def _segment_starts(
    E: Tensor, b: Tensor, dt: Tensor, A2: Tensor, carry: Tensor, e: Tensor, P: Tensor, s: Tensor
) -> None:
    """Fill s (K, B, N, D) with the state before each segment, `carry` being the one before the first."""
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
    """Fill R (K, B, N, D) with the gradient that reaches each segment's last state from later, `carry` for the last."""
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
    """One buffer a thread, used again by every call: fresh pages cost more than the arithmetic done on them."""

    def __init__(self) -> None:
        self.buffers: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def buffer(self, n_elements: int, like: Tensor, kind: torch.dtype) -> Tensor:
        key = (like.device, kind)
        held = self.buffers.get(key)
        if held is None or held.numel() < n_elements:
            with torch.inference_mode(False):  # a tensor made in inference mode cannot be written to in training
                held = self.buffers[key] = torch.empty(n_elements, device=like.device, dtype=kind)
        return held


_SCRATCH = _Scratch()


class _Blocks:
    """How a sequence is cut into blocks, and the block-sized tensors, laid out (L, K, B, ...)."""

    def __init__(self, u: Tensor, n: int) -> None:
        self.like = u
        self.kind = _compute_type(u)
        self.b, self.t, self.d = u.shape
        self.n = n
        self.steps = min(SEGMENT_STEPS, self.t)  # L
        n_segments = -(-self.t // self.steps)
        self.segments = max(1, min(STEP_ELEMENTS // (self.b * n * self.d), n_segments))  # K
        self.length = self.steps * self.segments
        self.n_blocks = -(-self.t // self.length)

    def new_states(self) -> Tensor:
        """A state before every segment, (blocks, K, B, N, D)."""
        shape = (self.n_blocks, self.segments, self.b, self.n, self.d)
        return torch.empty(shape, device=self.like.device, dtype=self.kind)

    def allocate(self, *, state: int, channel: int, weight: int, segment: int, spare: int = 0) -> None:
        """Reserve scratch for so many tensors of each shape (spare: segments added for a state's start)."""
        rows = self.length * self.b
        one_segment = self.segments * self.b * self.n * self.d
        total = rows * (state * self.n * self.d + channel * self.d + weight * self.n) + (segment + spare) * one_segment
        self._buffer = _SCRATCH.buffer(total, self.like, self.kind)
        self._used = 0

    def _take(self, *shape: int) -> Tensor:
        size = 1
        for side in shape:
            size *= side
        part = self._buffer[self._used : self._used + size].view(shape)
        self._used += size
        return part

    def take_states(self, count: int) -> list[Tensor]:
        return [self._take(self.steps, self.segments, self.b, self.n, self.d) for _ in range(count)]

    def take_states_and_start(self) -> Tensor:
        return self._take(self.steps + 1, self.segments, self.b, self.n, self.d)

    def take_channels(self, count: int) -> list[Tensor]:
        return [self._take(self.steps, self.segments, self.b, self.d) for _ in range(count)]

    def take_weights(self, count: int) -> list[Tensor]:
        return [self._take(self.steps, self.segments, self.b, self.n) for _ in range(count)]

    def take_segments(self, count: int) -> list[Tensor]:
        return [self._take(self.segments, self.b, self.n, self.d) for _ in range(count)]

    def _split(self, part: Tensor) -> Tensor:
        """(B, K L, X) seen as (L, K, B, X)."""
        return part.unflatten(1, (self.segments, self.steps)).permute(2, 1, 0, 3)

    def read(self, block: int, source: Tensor, target: Tensor) -> None:
        """Copy a block's time span of source (B, T, X) into target (L, K, B, X); steps past the end become zero."""
        part = source[:, block * self.length : (block + 1) * self.length]
        missing = self.length - part.shape[1]
        if missing:  # dt = 0 leaves the state as it is
            part = torch.nn.functional.pad(part, (0, 0, 0, missing))
        target.copy_(self._split(part))

    def write(self, block: int, source: Tensor, target: Tensor) -> None:
        """The way back: a block (L, K, B, X) into its time span of target (B, T, X)."""
        part = target[:, block * self.length : (block + 1) * self.length]
        if part.shape[1] == self.length:
            self._split(part).copy_(source)
        else:
            part.copy_(source.permute(2, 1, 0, 3).reshape(self.b, self.length, -1)[:, : part.shape[1]])


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

    kind = _compute_type(u)
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
    """mamba_ssm leaves the last state out of its backward pass: say so rather than train on a wrong gradient."""

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
