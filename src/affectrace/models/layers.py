"""Causal layers, each `forward(x, state) -> (y, state)`: whole sequences, pieces of them and single frames alike.

    CausalConv1d   y_t = b + sum_j W_j x_{t-(k-1-j)d}        state: the last (k-1)d inputs
    TCNBlock       two of them, PReLU, dropout, residual     state: theirs
    MambaBlock     selective state space (Gu & Dao 2023)     state: its convolution's, and h (B, D_inner, N)
    Stack, TCN     layers in series                          state: theirs

x is (B, T, D), T >= 1. A state of None is the beginning: zeros before the first frame, as a whole sequence has. The
pieces of a sequence, cut anywhere, give what the whole gives (to rounding).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affectrace.models.base import State
from affectrace.models.ops.scan import Form, selective_scan


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


class TCNBlock(nn.Module):
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


class Stack(nn.ModuleList):
    """Layers in series, each with its own state."""

    def forward(self, x: Tensor, states: tuple[State, ...] | None = None) -> tuple[Tensor, tuple[State, ...]]:
        """x (B, T, in) -> y (B, T, out); states: one a layer."""
        after = []
        for layer, state in zip(self, states or (None,) * len(self), strict=True):
            x, state = layer(x, state)
            after.append(state)
        return x, tuple(after)


class TCN(Stack):
    """Temporal convolutional network (Bai et al. 2018): blocks of dilation 1, 2, 4, ..., one for each output width."""

    def __init__(
        self, in_channels: int, channels: tuple[int, ...], kernel_size: int, dropout: float, init_std: float | None
    ) -> None:
        widths = pairwise((in_channels, *channels))
        super().__init__(TCNBlock(*io, kernel_size, 2**i, dropout, init_std) for i, io in enumerate(widths))
