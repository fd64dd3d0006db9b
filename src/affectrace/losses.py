"""Masked losses over (B, T, 2) predictions: CCC (Mamba-VA), MSE, and their mixture (MAVEN).

    CCC = 2 cov(x, y) / (var x + var y + (mean x - mean y)^2)      population moments (Lin 1989)
    ccc      w_v (1 - CCC_v) + w_a (1 - CCC_a)                     over the whole batch, or the mean over sequences
    mse      (w_v MSE_v + w_a MSE_a) / (w_v + w_a)
    mixture  mse + lambda (w_v (1 - CCC_v) + w_a (1 - CCC_a)) / (w_v + w_a)

Moments are taken in float64 (float32 on devices without float64), so the loss equals metrics.ccc to 1e-6. Masked
frames have no value and no gradient, even if NaN. A dimension without any counted frame has weight 0. Where CCC is
undefined (both constant and equal) it is 0 without gradient; at a constant prediction the gradient is finite and exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from affectrace.errors import InputError

if TYPE_CHECKING:
    from affectrace.train.config import LossConfig


def loss(config: LossConfig, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """The configured loss, a scalar in the prediction's dtype; 0 without any counted frame.

    prediction, target: (B, T, 2), valence and arousal. mask: (B, T, 2) bool, True = counts, or (B, T) for both; None =
    all.
    """
    x, y, counts = _masked(prediction, target, mask)
    n = counts.sum((0, 1))
    weights = torch.tensor((config.valence_weight, config.arousal_weight), dtype=x.dtype, device=x.device)
    weights = torch.where(n > 0, weights, 0)
    total = torch.where(weights.sum() > 0, weights.sum(), 1)
    mse = (weights * (((x - y) ** 2).sum((0, 1)) / n.clamp_min(1))).sum() / total
    if config.kind == "mse":
        return mse.to(prediction.dtype)
    one_minus_ccc = (weights * (1 - _concordance(x, y, counts, per=config.per))).sum()
    if config.kind == "ccc":
        return one_minus_ccc.to(prediction.dtype)
    apart = one_minus_ccc / total
    return (mse + config.ccc_weight * (apart.detach() if config.detach_ccc else apart)).to(prediction.dtype)


def _concordance(x: Tensor, y: Tensor, counts: Tensor, per: str) -> Tensor:
    """(2,): over all counted frames, or the mean over the sequences that have any. x, y are 0 where nothing counts."""
    if per == "batch":
        x, y, counts = (a.flatten(0, 1)[None] for a in (x, y, counts))  # one long sequence
    m = counts.to(x.dtype)
    n = m.sum(1).clamp_min(1)
    mean_x, mean_y = x.sum(1) / n, y.sum(1) / n
    dx, dy = (x - mean_x[:, None]) * m, (y - mean_y[:, None]) * m
    covariance = (dx * dy).sum(1) / n
    spread = (dx**2).sum(1) / n + (dy**2).sum(1) / n + (mean_x - mean_y) ** 2
    defined = spread > torch.finfo(x.dtype).tiny
    ccc = torch.where(defined, 2 * covariance / torch.where(defined, spread, 1), 0)  # (B, 2)
    return ccc.sum(0) / counts.any(1).sum(0).clamp_min(1)


def _masked(prediction: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Both in the precision of the moments, 0 where the mask is False, and the mask as (B, T, 2)."""
    if mask is None:
        mask = torch.ones(prediction.shape, dtype=torch.bool, device=prediction.device)
    elif mask.ndim == 2:
        mask = mask[..., None].expand(*mask.shape, 2)
    shapes = [tuple(a.shape) for a in (prediction, target, mask)]
    if len(set(shapes)) > 1 or prediction.ndim != 3 or prediction.shape[2] != 2 or mask.dtype != torch.bool:
        given = f"prediction {shapes[0]}, target {shapes[1]}, mask {shapes[2]} of {mask.dtype}"
        raise InputError(f"shapes or types differ: {given}", hint="all must be (batch, frames, 2), the mask bool")
    precision = torch.float32 if prediction.device.type == "mps" else torch.float64
    x, y = (torch.where(mask, a.to(precision), 0) for a in (prediction, target))
    return x, y, mask
