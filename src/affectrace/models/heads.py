"""Output heads to valence and arousal: polar, theta, Cartesian.

MAVEN predicts an angle theta and an intensity I; valence = I cos(theta), arousal = I sin(theta) (published eqs. 27-31,
arXiv eqs. 6-7). Plain regression of theta has a seam: +pi and -pi are the same emotion and the largest error, which
pulls predictions around the negative valence axis to theta = 0, the opposite emotion; at I = 0 theta is undefined.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SOFTNESS = 0.1
"""epsilon of `polar_to_va`, the length scale below which a vector has no clear direction (ours)."""


def polar_to_va(direction: Tensor, log_odds: Tensor) -> Tensor:
    """Valence and arousal from a direction and an intensity, without a seam.

        d      = sigma(q) p / sqrt(|p|^2 + epsilon^2)                     a point of the unit disc at angle theta
        (V, A) = d sqrt(2 / (1 + sqrt(1 - (2 d_x d_y / |d|)^2)))          the same angle, the disc made a square

    p is a free vector in the plane with angle theta: the plane has no seam. sigma(q) is the intensity relative to the
    largest one in that direction, 1 along the axes and sqrt 2 on the diagonals; the second line maps the disc to the
    square (the Fernandez-Guasti squircle, Fong 2015, arXiv:1509.06344). So I lies in [0, sqrt 2), |V| and |A| stay
    below 1 and every point of the open square is reached. Where p passes through 0 the angle jumps by pi at intensity
    0; epsilon keeps this smooth, with finite gradients. The loss belongs on the resulting (V, A), not on theta.

    Args:
        direction: (..., 2), p.
        log_odds: (...,), q.

    Returns:
        (..., 2): valence, arousal.
    """
    length = torch.sqrt(direction.square().sum(dim=-1) + SOFTNESS**2)
    disc = direction * (torch.sigmoid(log_odds) / length)[..., None]
    xx, yy = disc.square().unbind(dim=-1)
    bend = 4 * xx * yy / (xx + yy + 1e-12)  # (|d| sin 2 theta)^2; 1e-12: 0 at the origin
    return disc * torch.sqrt(2 / (1 + torch.sqrt(1 + 1e-6 - bend)))[..., None]  # 1e-6: finite gradient in the corners


def va_to_polar(va: Tensor) -> tuple[Tensor, Tensor]:
    """theta in (-pi, pi] radians and intensity of (..., 2) valence and arousal; not for training."""
    return torch.atan2(va[..., 1], va[..., 0]), torch.linalg.vector_norm(va, dim=-1)


class _Head(nn.Module):
    """Three fully connected layers with ReLU and dropout (published eqs. 27-29 and section 3.8).

    width: of the input. widths, dropout: of the two hidden layers.
    """

    n_out = 2

    def __init__(
        self, width: int, widths: tuple[int, int] = (512, 256), dropout: tuple[float, float] = (0.2, 0.2)
    ) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(width, widths[0]),
            nn.ReLU(),
            nn.Dropout(dropout[0]),
            nn.Linear(widths[0], widths[1]),
            nn.ReLU(),
            nn.Dropout(dropout[1]),
            nn.Linear(widths[1], self.n_out),
        )

    def polar(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) -> theta (B, T) radians, intensity (B, T)."""
        return va_to_polar(self(x))


class PolarHead(_Head):
    """The papers' theta and I without a seam, as direction and intensity (see `polar_to_va`)."""

    n_out = 3

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, 2) valence, arousal in (-1, 1)."""
        y = self.fc(x)  # (27)-(29)
        return polar_to_va(y[..., :2], y[..., 2])  # (30)-(31)


class ThetaHead(_Head):
    """theta and I as plain numbers, as in the authors' MLP variant: with the seam, unbounded. For comparison."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, 2) valence, arousal, unbounded."""
        theta, intensity = self.polar(x)
        return torch.stack((intensity * theta.cos(), intensity * theta.sin()), dim=-1)  # (30)-(31)

    def polar(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) -> theta (B, T) radians, intensity (B, T): what the authors' network returns, in its order."""
        theta, intensity = self.fc(x).unbind(dim=-1)
        return theta, intensity


class CartesianHead(_Head):
    """Valence and arousal directly; `bounded`: through tanh, in (-1, 1) (the authors' BEiT variant is not)."""

    def __init__(self, *sizes: Any, bounded: bool = True) -> None:
        super().__init__(*sizes)
        self.bounded = bounded

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, 2) valence, arousal."""
        y: Tensor = self.fc(x)
        return y.tanh() if self.bounded else y
