"""Losses over (B, T, 2) predictions, masked: CCC (Mamba-VA's), MSE, and their mixture (MAVEN's).

    CCC = 2 cov(x, y) / (var x + var y + (mean x - mean y)^2)      population moments (Lin 1989)
    ccc      w_v (1 - CCC_v) + w_a (1 - CCC_a)                     over the whole batch, or each sequence on its own
    mse      w_v MSE_v + w_a MSE_a, over w_v + w_a
    mixture  MSE + lambda (1 - mean CCC)

Moments are taken in float64 (float32 where a device has no float64): the loss then equals metrics.ccc to 1e-6. What the
mask leaves out has no value and no gradient, NaN or not. A dimension of which no frame counts is left out of the sum
and its weight with it, so that labels of valence alone give the loss of valence. Where CCC is undefined (both traces
constant and equal) it counts as 0, without gradient; at a constant prediction the gradient is finite and right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from affectrace.errors import InputError

if TYPE_CHECKING:
    from affectrace.train.config import LossConfig

Per = Literal["batch", "sequence"]


def loss(config: LossConfig, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """The configured loss, a scalar.

    Args:
        prediction: (B, T, 2), valence and arousal.
        target: (B, T, 2).
        mask: (B, T, 2) bool, True = counts, or (B, T) for both dimensions; None = all.

    Raises:
        InputError: shapes differ.
    """
    weights = (config.valence_weight, config.arousal_weight)
    if config.kind == "ccc":
        return ccc_loss(prediction, target, mask, per=config.per, weights=weights)
    if config.kind == "mse":
        return mse_loss(prediction, target, mask, weights=weights)
    return mixture_loss(
        prediction,
        target,
        mask,
        ccc_weight=config.ccc_weight,
        detach_ccc=config.detach_ccc,
        per=config.per,
        weights=weights,
    )


def ccc_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    per: Per = "batch",
    weights: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """w_v (1 - CCC_v) + w_a (1 - CCC_a); arguments as loss's. Per sequence: the mean over sequences with any frame."""
    ccc, there = _concordance(prediction, target, mask, per)
    return (_weights(weights, there) * (1 - ccc)).sum().to(prediction.dtype)


def mse_loss(
    prediction: Tensor, target: Tensor, mask: Tensor | None = None, *, weights: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """Mean squared error over what counts of each dimension, these weighted; 0 without frames."""
    x, y, counts = _masked(prediction, target, mask)
    n = counts.sum((0, 1))
    squares = ((x - y) ** 2).sum((0, 1)) / n.clamp_min(1)
    return _mean(squares, _weights(weights, n.to(x.dtype))).to(prediction.dtype)


def mixture_loss(
    prediction: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    ccc_weight: float = 0.1,
    detach_ccc: bool = False,
    per: Per = "batch",
    weights: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """MSE + ccc_weight (1 - mean CCC). With detach_ccc the second part is added, but nothing learns from it."""
    ccc, there = _concordance(prediction, target, mask, per)
    apart = _mean(1 - ccc, _weights(weights, there))
    apart = apart.detach() if detach_ccc else apart
    return mse_loss(prediction, target, mask, weights=weights) + (ccc_weight * apart).to(prediction.dtype)


def concordance(prediction: Tensor, target: Tensor, mask: Tensor | None = None, *, per: Per = "batch") -> Tensor:
    """CCC of valence and of arousal, (2,), differentiable, 0 where undefined; arguments as loss's."""
    return _concordance(prediction, target, mask, per)[0]


def _concordance(prediction: Tensor, target: Tensor, mask: Tensor | None, per: Per) -> tuple[Tensor, Tensor]:
    """(2,) CCCs, the mean over the sequences with any frame, and (2,) how many sequences those are."""
    x, y, counts = _masked(prediction, target, mask)
    if per == "batch":
        x, y, counts = (a.flatten(0, 1)[None] for a in (x, y, counts))  # one long sequence
    there = counts.any(1).sum(0).to(x.dtype)
    return _cccs(x, y, counts).sum(0) / there.clamp_min(1), there


def _weights(weights: tuple[float, float], there: Tensor) -> Tensor:
    """(2,) weights of the dimensions of which something counts, 0 of the others."""
    return torch.where(there > 0, torch.tensor(weights, dtype=there.dtype, device=there.device), 0)


def _mean(values: Tensor, w: Tensor) -> Tensor:
    return (w * values).sum() / torch.where(w.sum() > 0, w.sum(), 1)


def _cccs(x: Tensor, y: Tensor, counts: Tensor) -> Tensor:
    """(B, T, 2) twice, masked to 0, and (B, T, 2) bool -> CCC (B, 2); 0 where it is undefined."""
    m = counts.to(x.dtype)
    n = m.sum(1).clamp_min(1)
    mean_x, mean_y = x.sum(1) / n, y.sum(1) / n
    dx, dy = (x - mean_x[:, None]) * m, (y - mean_y[:, None]) * m
    covariance = (dx * dy).sum(1) / n
    spread = (dx**2).sum(1) / n + (dy**2).sum(1) / n + (mean_x - mean_y) ** 2
    defined = spread > torch.finfo(x.dtype).tiny
    return torch.where(defined, 2 * covariance / torch.where(defined, spread, 1), 0)


def _masked(prediction: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Both in the precision of the moments, 0 where the mask is False, and the mask (B, T, 2)."""
    if prediction.ndim != 3 or prediction.shape[2] != 2 or prediction.shape != target.shape:
        raise InputError(
            f"prediction is {tuple(prediction.shape)}, target {tuple(target.shape)}",
            hint="both must be (batch, frames, 2)",
        )
    if mask is None:
        mask = torch.ones(prediction.shape, dtype=torch.bool, device=prediction.device)
    elif mask.ndim == 2:
        mask = mask[..., None].expand(*mask.shape, 2)
    if mask.shape != prediction.shape or mask.dtype != torch.bool:
        raise InputError(f"mask is {mask.dtype} {tuple(mask.shape)}", hint=f"it must be bool {tuple(prediction.shape)}")
    kind = _kind(prediction)
    x, y = (torch.where(mask, a.to(kind), 0) for a in (prediction, target))
    return x, y, mask


def _kind(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64
