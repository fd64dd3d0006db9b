"""losses.py: equal to numpy's CCC, masked, finite everywhere, its gradient that of the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from affectrace.losses import ccc_loss, concordance, loss, mixture_loss, mse_loss
from affectrace.metrics import ccc
from affectrace.train.config import LossConfig


def batch(b: int = 3, t: int = 50, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    y = torch.rand(b, t, 2, generator=gen) * 2 - 1
    x = 0.6 * y + 0.2 * torch.randn(b, t, 2, generator=gen) + 0.1
    return x, y, torch.rand(b, t, generator=gen) > 0.3


def numpy_ccc(x: Tensor, y: Tensor, mask: Tensor) -> list[float]:
    return [ccc(x[..., i][mask].detach().numpy(), y[..., i][mask].numpy()) for i in range(2)]


@pytest.mark.parametrize("offset", [0.0, 0.7, 100.0])
def test_batch_concordance_equals_numpy(offset: float) -> None:
    x, y, mask = batch()
    x, y = x + offset, y + offset
    np.testing.assert_allclose(concordance(x, y, mask).numpy(), numpy_ccc(x, y, mask), atol=1e-6)
    found = ccc_loss(x, y, mask, weights=(2.0, 0.5)).item()
    v, a = numpy_ccc(x, y, mask)
    assert found == pytest.approx(2 * (1 - v) + 0.5 * (1 - a), abs=1e-6)


def test_sequence_concordance_is_the_mean_over_sequences_with_frames() -> None:
    x, y, mask = batch()
    mask[1] = False
    each = [numpy_ccc(x[i], y[i], mask[i]) for i in (0, 2)]
    np.testing.assert_allclose(concordance(x, y, mask, per="sequence").numpy(), np.mean(each, axis=0), atol=1e-6)
    assert not np.allclose(concordance(x, y, mask).numpy(), np.mean(each, axis=0), atol=1e-3)


def test_mse_counts_only_masked_frames() -> None:
    x, y, mask = batch()
    squares = ((x - y) ** 2)[mask].double().mean(0)
    assert mse_loss(x, y, mask).item() == pytest.approx(squares.mean().item(), abs=1e-7)
    weighted = (3 * squares[0] + squares[1]) / 4
    assert mse_loss(x, y, mask, weights=(3.0, 1.0)).item() == pytest.approx(weighted.item(), abs=1e-7)


def test_mixture_is_mse_and_ccc_and_can_be_detached() -> None:
    x, y, mask = batch()
    x.requires_grad_()
    expected = mse_loss(x, y, mask).item() + 0.1 * (1 - np.mean(numpy_ccc(x, y, mask)))
    whole, detached = mixture_loss(x, y, mask), mixture_loss(x, y, mask, detach_ccc=True)
    assert whole.item() == pytest.approx(expected, abs=1e-6)
    assert detached.item() == pytest.approx(expected, abs=1e-6)
    (g_mse,) = torch.autograd.grad(mse_loss(x, y, mask), x)
    (g_detached,) = torch.autograd.grad(detached, x)
    (g_whole,) = torch.autograd.grad(whole, x)
    assert torch.equal(g_detached, g_mse)
    assert not torch.allclose(g_whole, g_mse)


@pytest.mark.parametrize("per", ["batch", "sequence"])
def test_gradcheck(per: str) -> None:
    x, y, mask = batch(2, 9)
    x = x.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: ccc_loss(p, y.double(), mask, per=per), x)  # type: ignore[arg-type]


@pytest.mark.parametrize("per", ["batch", "sequence"])
@pytest.mark.parametrize("value", [0.0, 0.25, -1.0])
def test_gradient_at_constant_predictions_is_finite_and_right(per: str, value: float) -> None:
    _, y, mask = batch(2, 12)
    x = torch.full_like(y, value, dtype=torch.float64).requires_grad_()
    found = ccc_loss(x, y, mask, per=per)  # type: ignore[arg-type]
    assert found.item() == pytest.approx(2.0, abs=1e-9)  # CCC is 0
    (gradient,) = torch.autograd.grad(found, x)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0
    assert (gradient[~mask] == 0).all()
    step = 1e-6
    for index in ((0, 3, 0), (1, 5, 1)):  # against the definition, by differences
        moved = [x.detach().clone(), x.detach().clone()]
        moved[0][index] += step
        moved[1][index] -= step
        difference = sum(s * ccc_loss(m, y, mask, per=per).item() for s, m in zip((1, -1), moved)) / (2 * step)  # type: ignore[arg-type]
        assert gradient[index].item() == pytest.approx(difference, abs=1e-6)


def test_both_constant_and_empty_are_finite_without_gradient() -> None:
    y = torch.full((2, 5, 2), 0.5)
    for x, mask in ((y.clone(), None), (torch.rand(2, 5, 2), torch.zeros(2, 5, dtype=torch.bool))):
        x.requires_grad_()
        for function in (ccc_loss, mse_loss, mixture_loss):
            found = function(x, y, mask)
            (gradient,) = torch.autograd.grad(found, x)
            assert torch.isfinite(found)
            assert (gradient == 0).all()


def test_what_the_mask_leaves_out_has_no_value_and_no_gradient() -> None:
    x, y, mask = batch()
    clean = loss(LossConfig(kind="mixture"), x, y, mask)
    x[~mask], y[~mask] = float("nan"), float("inf")
    x.requires_grad_()
    found = loss(LossConfig(kind="mixture"), x, y, mask)
    (gradient,) = torch.autograd.grad(found, x)
    assert found.item() == clean.item()
    assert (gradient[~mask] == 0).all()
    assert torch.isfinite(gradient).all()


def test_bfloat16_predictions_keep_float64_moments() -> None:
    x, y, mask = batch(4, 4000)
    x = (x + 3).bfloat16()
    np.testing.assert_allclose(concordance(x, y, mask).numpy(), numpy_ccc(x.float(), y, mask), atol=1e-6)
    assert ccc_loss(x, y, mask).dtype == torch.bfloat16
