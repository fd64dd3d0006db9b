"""Losses: equal to numpy's CCC, masked, finite everywhere, with the gradient of the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from affectrace.losses import loss
from affectrace.metrics import ccc
from affectrace.train.config import LossConfig

PER_BATCH, PER_SEQUENCE = LossConfig(), LossConfig(per="sequence")
MSE, MIXTURE = LossConfig(kind="mse"), LossConfig(kind="mixture")
EVERY = (PER_BATCH, PER_SEQUENCE, MSE, MIXTURE)


def batch(b: int = 3, t: int = 50, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    gen = torch.Generator().manual_seed(seed)
    y = torch.rand(b, t, 2, generator=gen) * 2 - 1
    x = 0.6 * y + 0.2 * torch.randn(b, t, 2, generator=gen) + 0.1
    return x, y, torch.rand(b, t, generator=gen) > 0.3


def numpy_ccc(x: Tensor, y: Tensor, mask: Tensor) -> list[float]:
    return [ccc(x[..., i][mask].detach().numpy(), y[..., i][mask].numpy()) for i in range(2)]


def gradient(config: LossConfig, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(loss(config, x, y, mask), x)[0]


@pytest.mark.parametrize("offset", [0.0, 0.7, 100.0])
def test_ccc_over_the_batch_equals_numpy_and_is_weighted(offset: float) -> None:
    x, y, mask = batch()
    x, y = x + offset, y + offset
    v, a = numpy_ccc(x, y, mask)
    found = loss(LossConfig(valence_weight=2.0, arousal_weight=0.5), x, y, mask)
    assert found.item() == pytest.approx(2 * (1 - v) + 0.5 * (1 - a), abs=1e-6)


def test_ccc_per_sequence_is_the_mean_over_sequences_with_frames() -> None:
    x, y, mask = batch()
    mask[1] = False
    each = sum(2 - sum(numpy_ccc(x[i], y[i], mask[i])) for i in (0, 2)) / 2
    assert loss(PER_SEQUENCE, x, y, mask).item() == pytest.approx(each, abs=1e-6)
    assert loss(PER_BATCH, x, y, mask).item() != pytest.approx(each, abs=1e-3)


def test_mse_and_the_mixture_which_can_be_detached() -> None:
    x, y, mask = batch()
    squares = ((x - y) ** 2)[mask].double().mean(0)
    expected = (3 * squares[0] + squares[1]) / 4
    weighted = loss(LossConfig(kind="mse", valence_weight=3.0), x, y, mask)
    assert weighted.item() == pytest.approx(expected.item(), abs=1e-7)
    mixture = squares.mean().item() + 0.1 * (1 - np.mean(numpy_ccc(x, y, mask)))
    detached = LossConfig(kind="mixture", detach_ccc=True)
    for config in (MIXTURE, detached):
        assert loss(config, x, y, mask).item() == pytest.approx(mixture, abs=1e-6)
    assert torch.equal(gradient(detached, x, y, mask), gradient(MSE, x, y, mask))
    assert not torch.allclose(gradient(MIXTURE, x, y, mask), gradient(MSE, x, y, mask))


@pytest.mark.parametrize("config", EVERY)
def test_gradcheck(config: LossConfig) -> None:
    x, y, mask = batch(2, 9)
    assert torch.autograd.gradcheck(lambda p: loss(config, p, y.double(), mask), x.double().requires_grad_())


@pytest.mark.parametrize("config", [PER_BATCH, PER_SEQUENCE])
@pytest.mark.parametrize("value", [0.0, 0.25, -1.0])
def test_gradient_at_constant_predictions_is_finite_and_right(config: LossConfig, value: float) -> None:
    _, y, mask = batch(2, 12)
    x = torch.full_like(y, value, dtype=torch.float64)
    assert loss(config, x, y, mask).item() == pytest.approx(2.0, abs=1e-9)  # CCC is 0
    found = gradient(config, x, y, mask)
    assert (found[~mask] == 0).all()
    for index in ((0, 3, 0), (1, 5, 1)):  # against finite differences
        step = torch.zeros_like(x)
        step[index] = 1e-6
        difference = (loss(config, x + step, y, mask) - loss(config, x - step, y, mask)).item() / 2e-6
        assert found[index].item() == pytest.approx(difference, abs=1e-6)


@pytest.mark.parametrize("config", EVERY)
def test_two_equal_constants_and_no_frames_are_finite_without_gradient(config: LossConfig) -> None:
    y = torch.full((2, 5, 2), 0.5)
    for x, mask in ((y.clone(), None), (torch.rand(2, 5, 2), torch.zeros(2, 5, dtype=torch.bool))):
        assert torch.isfinite(loss(config, x, y, mask))
        assert (gradient(config, x, y, mask) == 0).all()


def test_masked_frames_have_no_value_and_no_gradient() -> None:
    x, y, mask = batch()
    clean = loss(MIXTURE, x, y, mask)
    x[~mask], y[~mask] = float("nan"), float("inf")
    assert loss(MIXTURE, x, y, mask).item() == clean.item()
    found = gradient(MIXTURE, x, y, mask)
    assert (found[~mask] == 0).all()
    assert torch.isfinite(found).all()


def test_bfloat16_predictions_keep_float64_moments() -> None:
    x, y, mask = batch(4, 4000)
    x = (x + 3).bfloat16()
    found = loss(PER_BATCH, x, y, mask)
    assert found.dtype == torch.bfloat16
    assert found.float().item() == pytest.approx(2 - sum(numpy_ccc(x.float(), y, mask)), rel=2**-8)
