"""Causal layers with state, `forward(x, state) -> (y, state)`: convolution, TCN, Mamba.

    CausalConv1d   y_t = b + sum_j W_j x_{t-(k-1-j)d}        state: the last (k-1)d inputs
    TCNBlock       two of them, PReLU, dropout, residual     state: one for each convolution
    MambaBlock     selective state space (Gu & Dao 2023)     state: of its convolution, and h (B, E, N)
    Stack, TCN     layers in series                          state: one for each layer

x is (B, T, D), T >= 1; state None = start of a sequence (zeros before the first frame). A sequence cut anywhere and run
piece by piece, each with the state of the one before, gives the same output as in one call, up to rounding.
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
    """x (B, T, D) preceded by its `reach` past frames (zeros at the start), and the past for the next call."""
    if past is None:
        past = x.new_zeros(x.shape[0], reach, x.shape[2])
    whole = torch.cat([past.to(x.dtype), x], dim=1)
    rest = whole[:, whole.shape[1] - reach :]
    return whole, rest.clone() if x.shape[1] > reach else rest  # a view would keep a long sequence alive


class CausalConv1d(nn.Module):
    """Causal convolution over time: padded on the left by (k-1)d zeros, or by the state.

    weight_norm: W = g v / |v|, norm per output channel (Salimans & Kingma 2016). init_std: weights from
    N(0, init_std); None: torch's own initialization.
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
        conv = nn.Conv1d(in_channels, out_channels, kernel_size, groups=groups)  # for its initialization
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
    """Residual block of a temporal convolutional network (Bai et al. 2018), with PReLU in place of ReLU.

    y = PReLU(f(f(x)) + residual), f = dropout(PReLU(conv)); a linear layer (1x1 convolution) on the residual where the
    widths differ.
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
        """x (B, T, in) -> y (B, T, out); state: one for each convolution."""
        first, second = state if state is not None else (None, None)
        y, first = self.conv1(x, first)
        y = self.dropout(self.relu1(y))
        y, second = self.conv2(y, second)
        y = self.dropout(self.relu2(y))
        residual = x if self.downsample is None else self.downsample(x)
        return self.relu(y + residual), (first, second)


class MambaState(NamedTuple):
    """State of a Mamba block: the last inputs of its convolution (B, k-1, E), and h (B, E, N) in float32."""

    conv: Tensor
    h: Tensor


class MambaBlock(nn.Module):
    """The Mamba block (Gu & Dao 2023, section 3.4, figure 3; selection: algorithm 2).

    Glossary: D d_model; E = expand D, inner width; N d_state; R dt_rank = ceil(D / 16). dt_min, dt_max: range of the
    initial step sizes (log-uniform). form: of the selective scan, "auto" takes the fastest.
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
        """Mamba's own (section 3.6): weights uniform in +-R^-1/2, bias the inverse softplus of a log-uniform step."""
        nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        steps = torch.empty_like(self.dt_proj.bias).uniform_(math.log(dt_min), math.log(dt_max)).exp().clamp_min(1e-4)
        self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))

    def forward(self, x: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """x (B, T, D) -> y (B, T, D)."""
        conv, h = state if state is not None else (None, None)
        x, z = self.in_proj(x).chunk(2, dim=-1)  # (B, T, E) each
        x, conv = self.conv1d(x, conv)  # causal, depthwise
        x = F.silu(x)
        dt, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)  # (B, T, R), 2 x (B, T, N)
        dt = F.softplus(self.dt_proj(dt))  # (B, T, E)
        A = -torch.exp(self.A_log.float())  # (E, N)
        y, h = selective_scan(x, dt, A, B, C, self.D, h, form=self.form)  # (B, T, E)
        return self.out_proj(y * F.silu(z)), MambaState(conv, h)


class Stack(nn.ModuleList):
    """Layers in series, each with its own state."""

    def forward(self, x: Tensor, states: tuple[State, ...] | None = None) -> tuple[Tensor, tuple[State, ...]]:
        """x (B, T, in) -> y (B, T, out); states: one for each layer."""
        new_states = []
        for layer, state in zip(self, states or (None,) * len(self), strict=True):
            x, state = layer(x, state)
            new_states.append(state)
        return x, tuple(new_states)


class TCN(Stack):
    """Temporal convolutional network (Bai et al. 2018): blocks of dilation 1, 2, 4, ..., one for each output width."""

    def __init__(
        self, in_channels: int, channels: tuple[int, ...], kernel_size: int, dropout: float, init_std: float | None
    ) -> None:
        widths = pairwise((in_channels, *channels))
        super().__init__(TCNBlock(*io, kernel_size, 2**i, dropout, init_std) for i, io in enumerate(widths))
