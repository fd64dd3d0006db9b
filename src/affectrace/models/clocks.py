"""Moving representations between clocks inside a network, differentiably: means over time, and onto frames."""

from __future__ import annotations

import torch
from torch import Tensor


def masked_mean(x: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over the valid steps: (B, T, D), (B, T) -> (B, 1, D); zeros for a sample without any."""
    if x.shape[1] == 0:
        return x.new_zeros(x.shape[0], 1, x.shape[2])
    if valid is None:
        return x.mean(dim=1, keepdim=True)
    n = valid.sum(dim=1)[:, None, None]
    return x.masked_fill(~valid[..., None], 0.0).sum(dim=1, keepdim=True) / n.clamp_min(1)


def onto_frames(x: Tensor, valid: Tensor | None, times: Tensor, frame_times: Tensor) -> Tensor:
    """Linear interpolation in time from a modality's own clock onto frames, over its valid rows only (MAVEN eq. 12).

    Before the first and after the last valid row its value is held.

    Args:
        x: (B, S, D).
        valid: (B, S) bool, or None.
        times: (B, S) seconds, in any order.
        frame_times: (B, T) seconds.

    Returns:
        (B, T, D); zeros for a sample without a valid row.
    """
    b, t, d = x.shape[0], frame_times.shape[1], x.shape[2]
    if x.shape[1] == 0:
        return x.new_zeros(b, t, d)
    there = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if valid is None else valid
    seconds, order = times.masked_fill(~there, torch.inf).sort(dim=1)
    n = there.sum(dim=1, keepdim=True)
    last = (n - 1).clamp_min(0)
    after = torch.searchsorted(seconds, frame_times.to(seconds.dtype).contiguous())
    high, low = after.minimum(last), (after - 1).clamp_min(0).minimum(last)
    start, end = seconds.gather(1, low), seconds.gather(1, high)
    share = torch.where(end > start, (frame_times - start) / (end - start), 0.0).clamp(0, 1).to(x.dtype)[..., None]
    before = x.gather(1, order.gather(1, low)[..., None].expand(b, t, d))
    behind = x.gather(1, order.gather(1, high)[..., None].expand(b, t, d))
    return torch.lerp(before, behind, share).masked_fill((n == 0)[..., None], 0.0)


def standardised(x: Tensor, valid: Tensor | None) -> Tensor:
    """Each sample minus its own mean, by its own deviation, over all its valid numbers together (authors' code).

    (B, T, D) -> (B, T, D); invalid rows become 0. n - 1 in the deviation, 1e-8 added to it, as theirs.
    """
    if x.numel() == 0:
        return x
    there = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if valid is None else valid
    keep = there[..., None]
    n = (there.sum(dim=1) * x.shape[2])[:, None, None]
    mean = x.masked_fill(~keep, 0.0).sum(dim=(1, 2), keepdim=True) / n.clamp_min(1)
    centred = (x - mean).masked_fill(~keep, 0.0)
    sd = (centred.square().sum(dim=(1, 2), keepdim=True) / (n - 1).clamp_min(1)).sqrt()
    return centred / (sd + 1e-8)
