"""The polar head has no seam; plain regression of theta does."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from affectrace.models.heads import SOFTNESS, CartesianHead, PolarHead, ThetaHead, polar_to_va, va_to_polar


def circle(n: int = 240, radii: tuple[float, ...] = (0.25, 0.6, 0.95)) -> torch.Tensor:
    """Points round the whole circle at several intensities, denser across the seam at +-pi, and the origin."""
    theta = torch.cat((torch.linspace(-math.pi, math.pi, n), torch.linspace(math.pi - 0.05, math.pi + 0.05, n // 8)))
    ring = torch.stack((theta.cos(), theta.sin()), dim=-1)
    return torch.cat([r * ring for r in radii] + [torch.zeros(n // 8, 2)])


def features(va: torch.Tensor, width: int = 128) -> torch.Tensor:
    """What a backbone would give: smooth functions of the emotion (random cosines of it), no seam of their own."""
    generator = torch.Generator().manual_seed(1)
    return torch.cos(2 * va @ torch.randn(2, width, generator=generator) + 6.3 * torch.rand(width, generator=generator))


def train(head: nn.Module, x: torch.Tensor, loss, steps: int = 500) -> None:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(head).backward()
        optimizer.step()
        schedule.step()


def near_seam(va: torch.Tensor) -> torch.Tensor:
    theta, intensity = va_to_polar(va)
    return (theta.abs() > math.pi - 0.06) & (intensity > 0.1)


def test_polar_head_learns_the_whole_circle_the_seam_and_the_origin() -> None:
    torch.manual_seed(0)
    va = circle()
    x = features(va)
    head = PolarHead(128, (64, 32), (0.0, 0.0))
    train(head, x, lambda h: nn.functional.mse_loss(h(x), va))
    with torch.no_grad():
        error = (head(x) - va).abs().amax(dim=-1)
    assert float(error.max()) < 0.02
    assert float(error[near_seam(va)].max()) < 0.02
    assert float(error[va.abs().amax(dim=-1) == 0].max()) < 0.02


def test_plain_theta_regression_fails_at_the_seam_and_nowhere_else() -> None:
    torch.manual_seed(0)
    va = circle()
    x = features(va)
    target = torch.stack(va_to_polar(va), dim=-1)
    head = ThetaHead(128, (64, 32), (0.0, 0.0))
    train(head, x, lambda h: nn.functional.mse_loss(torch.stack(h.polar(x), dim=-1), target))
    with torch.no_grad():
        error = (head(x) - va).abs().amax(dim=-1)
    theta, intensity = va_to_polar(va)
    assert float(error[near_seam(va)].max()) > 0.5  # the opposite emotion
    assert float(error[(theta.abs() < 2.0) & (intensity > 0.5)].max()) < 0.1


@pytest.mark.parametrize(
    ("direction", "log_odds", "expected"),
    [
        ((0.0, 0.0), 3.0, (0.0, 0.0)),
        ((1e6, 0.0), 40.0, (1.0, 0.0)),
        ((-1e6, 1e-3), 40.0, (-1.0, 0.0)),
        ((-1e6, -1e-3), 40.0, (-1.0, 0.0)),  # the other side of the seam: the same place
        ((1e6, 1e6), 40.0, (1.0, 1.0)),  # the corner: intensity sqrt 2
        ((0.0, -500.0), 0.0, (0.0, -0.5)),
        ((3.0, 4.0), -60.0, (0.0, 0.0)),
    ],
)
def test_polar_to_va(direction: tuple[float, float], log_odds: float, expected: tuple[float, float]) -> None:
    va = polar_to_va(torch.tensor(direction), torch.tensor(log_odds))
    assert va.tolist() == pytest.approx(expected, abs=6e-4)


def test_polar_to_va_is_bounded_keeps_the_angle_and_has_finite_gradients_everywhere() -> None:
    torch.manual_seed(0)
    scales = torch.tensor([0.0, 1e-30, 1e-8, 1e-3, 1.0, 1e3, 1e8])
    p = torch.randn(200, 1, 2) * scales[None, :, None]
    p = p.double().requires_grad_()
    q = (20 * torch.randn(200, len(scales))).double().requires_grad_()
    va = polar_to_va(p, q)
    assert bool((va.abs() <= 1).all())
    big = (scales >= 1e-8) & (scales <= 1e3)
    assert torch.allclose(torch.atan2(va[..., 1], va[..., 0])[:, big], torch.atan2(p[..., 1], p[..., 0])[:, big])
    for i in (0, 1):
        dp, dq = torch.autograd.grad(va[..., i].sum(), (p, q), retain_graph=True)
        assert bool(dp.isfinite().all())
        assert bool(dq.isfinite().all())
        assert float(dp.abs().max()) <= 2 / SOFTNESS


def test_gradients_are_finite_in_the_corners_too() -> None:
    """In float32, as far into the corner (1, 1) as it goes."""
    p = (torch.linspace(3, 1e5, 1000)[:, None] * torch.tensor([-1.0, 1.0])).requires_grad_()
    q = torch.full((1000,), 100.0, requires_grad=True)
    va = polar_to_va(p, q)
    assert float(va.detach().abs().min()) > 0.98
    for g in torch.autograd.grad(va.sum(), (p, q)):
        assert bool(g.isfinite().all())


@pytest.mark.parametrize("head", [PolarHead(4, (4, 4)), ThetaHead(4, (4, 4)), CartesianHead(4, (4, 4))])
def test_heads_give_valence_and_arousal_that_agree_with_their_polar_form(head: nn.Module) -> None:
    head.eval()
    x = torch.randn(2, 5, 4)
    va, (theta, intensity) = head(x), head.polar(x)
    assert va.shape == (2, 5, 2)
    assert torch.allclose(va, torch.stack((intensity * theta.cos(), intensity * theta.sin()), dim=-1), atol=1e-6)
    assert head(torch.zeros(1, 0, 4)).shape == (1, 0, 2)
