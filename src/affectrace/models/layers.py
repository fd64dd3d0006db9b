"""Causal layers, each `forward(x, state) -> (y, state)`: whole sequences, pieces of them and single frames alike.

    CausalConv1d   y_t = b + sum_j W_j x_{t-(k-1-j)d}        state: the last (k-1)d inputs
    TcnBlock       two of them, PReLU, dropout, residual     state: theirs
    FrameNorm      (x - mean) / sqrt(var + eps) over D       none
    MambaBlock     selective state space (Gu & Dao 2023)     state: its convolution's, and h (B, D_inner, N)
    MambaLayer     LayerNorm(MambaBlock(x) + x)              state: the block's
    LastSeen       what stands in for frames that are not valid   state: the last valid frame

x is (B, T, D), T >= 1. A state of None is the beginning: zeros before the first frame, as a whole sequence has. The
pieces of a sequence, cut anywhere, give what the whole gives (to rounding): `for_inference` changes speed, not that.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affectrace.errors import InputError, UnknownNameError
from affectrace.models.ops.scan import Form, selective_scan

Precision = Literal["float32", "bfloat16", "int8"]
MissingPolicy = Literal["hold", "zero", "mask-token"]

FEW_FRAMES = 8
"""Up to this many frames a folded convolution is one product of its taps; beyond, the convolution proper is faster."""

INT8_BLOCK = 32
"""Rows and columns of an int8 product come in multiples of this."""

State = Any
"""A tensor, None, or a (named) tuple of States."""
S = TypeVar("S")


def map_state(state: S, function: Callable[[Tensor], Tensor]) -> S:
    """A state with `function` applied to each of its tensors (detach, move, choose rows)."""
    if isinstance(state, Tensor):
        return function(state)  # type: ignore[return-value]
    if isinstance(state, tuple):
        parts = [map_state(part, function) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)  # type: ignore[return-value]
    return state


def state_bytes(state: State) -> int:
    """Bytes a state's tensors hold."""
    total = 0

    def count(x: Tensor) -> Tensor:
        nonlocal total
        total += x.nbytes
        return x

    map_state(state, count)
    return total


def with_past(x: Tensor, past: Tensor | None, reach: int) -> tuple[Tensor, Tensor]:
    """x (B, T, D) with the `reach` frames before it in front (zeros at the beginning), and the next call's past."""
    if past is None:
        past = x.new_zeros(x.shape[0], reach, x.shape[2])
    whole = torch.cat([past.to(x.dtype), x], dim=1)
    rest = whole[:, whole.shape[1] - reach :]
    return whole, rest.clone() if x.shape[1] > reach else rest  # a view would keep a long sequence alive


class CausalConv1d(nn.Module):
    """Convolution over time that sees the present and the past only: padded left by (k-1)d, or by the state.

    With weight_norm W = g v / |v| (Salimans & Kingma 2016, the norm over each output channel).

    Args:
        init_std: weights from N(0, init_std); None keeps torch's own initialisation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        dilation: int = 1,
        *,
        groups: int = 1,
        weight_norm: bool = False,
        init_std: float | None = None,
    ) -> None:
        super().__init__()
        conv = nn.Conv1d(in_channels, out_channels, kernel_size, groups=groups)  # for its initialisation
        if init_std is not None:
            nn.init.normal_(conv.weight, 0.0, init_std)
        self.kernel_size, self.dilation, self.groups = kernel_size, dilation, groups
        self.weight_norm = weight_norm
        if weight_norm:
            self.weight_v = conv.weight
            self.weight_g = nn.Parameter(conv.weight.detach().norm(dim=(1, 2), keepdim=True))
        else:
            self.weight = conv.weight
        assert conv.bias is not None
        self.bias = conv.bias

    def kernel_weight(self) -> Tensor:
        """W, (out, in / groups, k)."""
        if not self.weight_norm:
            return self.weight
        return torch._weight_norm(self.weight_v, self.weight_g, 0)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B, T, in) -> y (B, T, out); state (B, (k-1)d, in)."""
        history, state = with_past(x, state, (self.kernel_size - 1) * self.dilation)
        y = F.conv1d(
            history.transpose(1, 2), self.kernel_weight(), self.bias, dilation=self.dilation, groups=self.groups
        )
        return y.transpose(1, 2), state

    def for_inference(self, precision: Precision) -> FoldedConv1d:
        """The same layer with its weight norm folded and its taps as one product."""
        return FoldedConv1d(self, precision)


class FoldedConv1d(nn.Module):
    """A CausalConv1d made for inference: frame by frame, y_t = b + [x_{t-(k-1)d} ... x_t] W as one product.

    float32 changes rounding only. bfloat16 rounds weights and inputs, int8 quantises the weights, one scale an output
    channel, and rounds the inputs to bfloat16. No frame's result depends on its neighbours in the call.
    """

    taps: Tensor
    bias: Tensor
    scale: Tensor | None

    def __init__(self, conv: CausalConv1d, precision: Precision) -> None:
        super().__init__()
        if conv.groups != 1:
            raise InputError("a grouped convolution is not folded", where="FoldedConv1d")
        if precision not in get_args(Precision):
            raise UnknownNameError.of("precision", precision, get_args(Precision))
        self.kernel_size, self.dilation, self.precision = conv.kernel_size, conv.dilation, precision
        weight = conv.kernel_weight().detach()  # (out, in, k)
        taps = weight.transpose(1, 2).flatten(1).contiguous()  # (out, k in)
        self.register_buffer("bias", conv.bias.detach().clone())
        self.register_buffer("scale", None)
        if precision == "int8":
            scale = taps.abs().amax(1).clamp_min(torch.finfo(taps.dtype).tiny) / 127
            self.scale = scale.to(torch.bfloat16)
            taps = (taps / self.scale.to(taps.dtype)[:, None]).round().clamp(-127, 127).to(torch.int8)
            taps, self.scale = _to_blocks(_to_blocks(taps, 1), 0), _to_blocks(self.scale, 0)
        elif precision == "bfloat16":
            taps = taps.to(torch.bfloat16)
        self.register_buffer("taps", taps)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B, T, in) -> y (B, T, out); state (B, (k-1)d, in), float32 whatever the precision."""
        history, state = with_past(x, state, (self.kernel_size - 1) * self.dilation)
        if x.shape[1] > FEW_FRAMES and self.precision != "int8":
            weight = self.taps.unflatten(1, (self.kernel_size, -1)).transpose(1, 2)
            y = F.conv1d(
                history.transpose(1, 2).to(weight.dtype), weight, self.bias.to(weight.dtype), dilation=self.dilation
            )
            return y.transpose(1, 2).to(x.dtype), state
        frames = [
            history[:, t : t + (self.kernel_size - 1) * self.dilation + 1 : self.dilation].flatten(1)
            for t in range(x.shape[1])
        ]
        return torch.stack([self._product(rows) for rows in frames], dim=1).to(x.dtype), state

    def _product(self, rows: Tensor) -> Tensor:
        """(B, k in) -> (B, out)."""
        if self.scale is None:
            return F.linear(rows.to(self.taps.dtype), self.taps).to(self.bias.dtype) + self.bias
        y = torch._weight_int8pack_mm(_to_blocks(rows.to(torch.bfloat16), 1), self.taps, self.scale)
        return y[:, : len(self.bias)].to(self.bias.dtype) + self.bias


def _to_blocks(x: Tensor, dim: int) -> Tensor:
    """Zeros appended up to a multiple of INT8_BLOCK: torch's int8 product reads whole blocks and does not check."""
    missing = -x.shape[dim] % INT8_BLOCK
    return x if missing == 0 else torch.cat([x, x.new_zeros(*x.shape[:dim], missing, *x.shape[dim + 1 :])], dim)


class TcnBlock(nn.Module):
    """Residual block of a temporal convolutional network (Bai et al. 2018) with PReLU for ReLU.

    PReLU(dropout(PReLU(conv(dropout(PReLU(conv(x)))))) + residual); where widths differ the residual goes through a
    linear layer (a 1x1 convolution).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        dilation: int,
        dropout: float,
        init_std: float | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = CausalConv1d(in_channels, out_channels, kernel_size, dilation, weight_norm=True, init_std=init_std)
        self.relu1 = nn.PReLU()
        self.conv2 = CausalConv1d(
            out_channels, out_channels, kernel_size, dilation, weight_norm=True, init_std=init_std
        )
        self.relu2 = nn.PReLU()
        self.relu = nn.PReLU()
        self.dropout = nn.Dropout(dropout)
        self.downsample = nn.Linear(in_channels, out_channels) if in_channels != out_channels else None
        if self.downsample is not None and init_std is not None:
            nn.init.normal_(self.downsample.weight, 0.0, init_std)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (B, T, in) -> y (B, T, out); state: the two convolutions'."""
        first, second = state if state is not None else (None, None)
        y, first = self.conv1(x, first)
        y = self.dropout(self.relu1(y))
        y, second = self.conv2(y, second)
        y = self.dropout(self.relu2(y))
        residual = x if self.downsample is None else self.downsample(x)
        return self.relu(y + residual), (first, second)


class FrameNorm(nn.Module):
    """Each frame by its own mean and deviation over the features, without parameters, biased variance."""

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor, state: None = None) -> tuple[Tensor, None]:
        """x (B, T, D) -> y (B, T, D); no state."""
        return F.layer_norm(x, x.shape[-1:], eps=self.eps), None


class MambaState(NamedTuple):
    """What a Mamba block carries: its convolution's last inputs (B, k-1, D_inner) and h (B, D_inner, N) in float32."""

    conv: Tensor
    h: Tensor


class MambaBlock(nn.Module):
    """The selective state space block (Gu & Dao 2023, section 3.4).

    Glossary: D d_model, E = expand D inner width, N d_state, R dt_rank = ceil(D / 16).
        x, z    in_proj                  (B, T, E) each
        x       SiLU(causal depthwise convolution)
        dt, B, C x_proj                  (B, T, R), (B, T, N), (B, T, N);  dt = softplus(dt_proj(dt)) (B, T, E)
        y       selective_scan(x, dt, A, B, C, D) with A = -exp(A_log)
        out     out_proj(y SiLU(z))

    Args:
        dt_min, dt_max: range the step sizes start in (log-uniform).
        form: which selective scan; "auto" takes the fastest.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int,
        d_conv: int,
        expand: int,
        *,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        form: Form = "auto",
    ) -> None:
        super().__init__()
        inner = expand * d_model
        self.dt_rank, self.d_state, self.form = math.ceil(d_model / 16), d_state, form
        self.in_proj = nn.Linear(d_model, 2 * inner, bias=False)
        self.conv1d = CausalConv1d(inner, inner, d_conv, groups=inner)
        self.x_proj = nn.Linear(inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, inner)
        self.A_log = nn.Parameter(torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, d_model, bias=False)
        self._init_dt(dt_min, dt_max)

    @torch.no_grad()
    def _init_dt(self, dt_min: float, dt_max: float) -> None:
        """Mamba's own: weights uniform in +-R^-1/2, bias the inverse softplus of a log-uniform step size."""
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        steps = torch.empty_like(self.dt_proj.bias).uniform_(math.log(dt_min), math.log(dt_max)).exp().clamp_min(1e-4)
        self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))

    def forward(self, x: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """x (B, T, D) -> y (B, T, D)."""
        conv, h = state if state is not None else (None, None)
        x, z = self.in_proj(x).chunk(2, dim=-1)
        x, conv = self.conv1d(x, conv)
        x = F.silu(x)
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        dt = F.softplus(self.dt_proj(dt))
        A = -torch.exp(self.A_log.float())
        y, h = selective_scan(x, dt, A, B, C, self.D, h, form=self.form)
        return self.out_proj(y * F.silu(z)), MambaState(conv, h)


class MambaLayer(nn.Module):
    """x <- LayerNorm(Mamba(x) + x): post-norm, as Mamba-VA has it."""

    def __init__(self, block: MambaBlock, d_model: int) -> None:
        super().__init__()
        self.block = block
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """x (B, T, D) -> y (B, T, D)."""
        y, state = self.block(x, state)
        return self.norm(y + x), state


class LastSeen(nn.Module):
    """What a model sees where a frame is not valid.

    hold        the last valid frame, zeros before the first (Mamba-VA's authors in training)
    zero        zeros (the same authors at test time)
    mask-token  a learned vector (ours)
    """

    def __init__(self, policy: MissingPolicy, width: int) -> None:
        super().__init__()
        if policy not in get_args(MissingPolicy):
            raise UnknownNameError.of("policy for missing frames", policy, get_args(MissingPolicy))
        self.policy = policy
        self.token = nn.Parameter(torch.zeros(width)) if policy == "mask-token" else None

    def forward(self, x: Tensor, valid: Tensor | None, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x (B, T, D), valid (B, T) bool or None for all -> y (B, T, D); state (B, D), with "hold" only."""
        if self.policy != "hold":
            if valid is None:
                return x, None
            stand_in = x.new_zeros(()) if self.token is None else self.token.to(x.dtype)
            return torch.where(valid[..., None], x, stand_in), None
        if valid is None:
            return x, x[:, -1].clone()
        if state is None:
            state = torch.zeros_like(x[:, 0])
        steps = torch.arange(1, x.shape[1] + 1, device=x.device)
        last = torch.where(valid, steps, 0).cummax(dim=1).values  # 0: none yet, the state's
        known = torch.cat([state[:, None].to(x.dtype), torch.where(valid[..., None], x, x.new_zeros(()))], dim=1)
        y = known.gather(1, last[..., None].expand(-1, -1, x.shape[2]))
        return y, y[:, -1].clone()


M = TypeVar("M", bound=nn.Module)


def for_inference(model: M, precision: Precision = "float32") -> M:
    """A copy of a model for prediction: evaluation mode, no gradients, dense causal convolutions folded.

    Its state and its calls are the original's. What bfloat16 and int8 change in the output is measured by
    bench/mamba_va_stream.py; float32 changes rounding only.

    Raises:
        UnknownNameError: no such precision.
    """
    if precision not in get_args(Precision):
        raise UnknownNameError.of("precision", precision, get_args(Precision))
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    for parent in list(fast.modules()):
        for name, child in parent.named_children():
            if isinstance(child, CausalConv1d) and child.groups == 1:
                setattr(parent, name, child.for_inference(precision))
    return fast
