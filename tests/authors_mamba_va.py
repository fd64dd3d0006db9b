"""Mamba-VA's authors' network, written from the published facts (docs/papers/mamba-va.md), independently of src.

torch's own weight_norm, a chomp after symmetric padding, InstanceNorm1d over (batch, time, feature), the recurrence
step by step; names as in their checkpoints.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn


class Chomp(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.size].contiguous()


def normed(*sizes: int, dilation: int, padding: int) -> nn.Conv1d:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old weight_norm is what their checkpoints hold
        return nn.utils.weight_norm(nn.Conv1d(*sizes, dilation=dilation, padding=padding))


class TheirBlock(nn.Module):
    def __init__(self, n_in: int, n_out: int, k: int, dilation: int) -> None:
        super().__init__()
        pad = (k - 1) * dilation
        self.conv1 = normed(n_in, n_out, k, dilation=dilation, padding=pad)
        self.relu1 = nn.PReLU()
        self.conv2 = normed(n_out, n_out, k, dilation=dilation, padding=pad)
        self.relu2 = nn.PReLU()
        first = (self.conv1, Chomp(pad), self.relu1, nn.Dropout(0.3))
        self.net = nn.Sequential(*first, self.conv2, Chomp(pad), self.relu2, nn.Dropout(0.3))
        self.downsample = nn.Conv1d(n_in, n_out, 1) if n_in != n_out else None
        self.relu = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.net(x) + (x if self.downsample is None else self.downsample(x)))


class TheirMamba(nn.Module):
    def __init__(self, d: int, n: int, d_conv: int, expand: int) -> None:
        super().__init__()
        e, self.n, self.r = expand * d, n, math.ceil(d / 16)
        self.A_log, self.D = nn.Parameter(torch.randn(e, n) * 0.5), nn.Parameter(torch.randn(e))
        self.in_proj, self.out_proj = nn.Linear(d, 2 * e, bias=False), nn.Linear(e, d, bias=False)
        self.conv1d = nn.Conv1d(e, e, d_conv, groups=e, padding=d_conv - 1)
        self.x_proj, self.dt_proj = nn.Linear(e, self.r + 2 * n, bias=False), nn.Linear(self.r, e)

    def forward(self, x: Tensor) -> Tensor:
        u, z = self.in_proj(x).chunk(2, dim=-1)
        u = nn.functional.silu(self.conv1d(u.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        dt, B, C = torch.split(self.x_proj(u), [self.r, self.n, self.n], dim=-1)
        dt = nn.functional.softplus(self.dt_proj(dt))
        A = -torch.exp(self.A_log)
        h = x.new_zeros(x.shape[0], u.shape[2], self.n)
        ys = []
        for t in range(x.shape[1]):
            h = torch.exp(dt[:, t, :, None] * A) * h + dt[:, t, :, None] * B[:, t, None, :] * u[:, t, :, None]
            ys.append((h * C[:, t, None, :]).sum(-1) + self.D * u[:, t])
        return self.out_proj(torch.stack(ys, dim=1) * nn.functional.silu(z))


class TheirMambaStack(nn.Module):
    def __init__(self, d: int, layers: int, n: int, d_conv: int, expand: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(TheirMamba(d, n, d_conv, expand), nn.LayerNorm(d)) for _ in range(layers)
        )
        self.proj = nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer[1](layer[0](x) + x)
        return self.proj(x)


class TheirEncoder(nn.Module):
    def __init__(self, d: int, layers: int, n: int, d_conv: int, expand: int) -> None:
        super().__init__()
        self.mamba = TheirMambaStack(d, layers, n, d_conv, expand)
        self.norm_in = nn.InstanceNorm1d(d)
        self.adaptor = nn.Sequential(nn.LayerNorm(d), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is given time where it expects channels, and says so
            return self.mamba(self.norm_in(x.transpose(1, 2)))


class TheirNetwork(nn.Module):
    def __init__(
        self,
        n_in: int,
        channels: tuple[int, ...],
        k: int,
        layers: int = 4,
        n: int = 8,
        d_conv: int = 4,
        expand: int = 1,
        head: int = 128,
    ) -> None:
        super().__init__()
        widths = (n_in, *channels)
        self.temporal = nn.Module()
        self.temporal.network = nn.Sequential(
            *(TheirBlock(widths[i], widths[i + 1], k, 2**i) for i in range(len(channels)))
        )
        self.mamba = TheirEncoder(channels[-1], layers, n, d_conv, expand)
        self.dual_reg = nn.Sequential(nn.Linear(channels[-1], head), nn.ReLU(), nn.Linear(head, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.dual_reg(self.mamba(self.temporal.network(x.transpose(1, 2))))


def small(**sizes: int) -> TheirNetwork:
    torch.manual_seed(3)
    network = TheirNetwork(24, (24, 20, 16, 32), 7, head=12, **sizes).eval()
    for block in network.temporal.network:  # nothing at a special value
        for conv in (block.conv1, block.conv2):
            nn.init.uniform_(conv.weight_g, 0.5, 1.5)
        for relu in (block.relu1, block.relu2, block.relu):
            nn.init.uniform_(relu.weight, -0.2, 0.6)
    return network
