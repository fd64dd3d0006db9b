"""What each modality contributed to a model's output, frame by frame."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


@torch.no_grad()
def modality_share(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    valid: Mapping[str, Tensor] | None = None,
    times: Mapping[str, Tensor] | None = None,
    *,
    groups: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[str, Tensor]:
    """How much of each frame's output hangs on each modality: |y - y without it|, as shares of their sum.

    "Without" is what the model says when told that the modality is missing, so it costs one more run for each, and
    means most for a model trained with modality dropout.

    Args:
        model: any model of this package's common interface.
        inputs, valid, times: as its `forward` takes them; give valid["frame"] where there is padding.
        groups: name -> inputs hidden together; None = each input by itself.

    Returns:
        name -> (B, T) in [0, 1], summing to 1 over names; all 0 where no modality changes anything.
    """
    valid = dict(valid or {})
    groups = groups or {m: (m,) for m in inputs}
    training = model.training
    model.eval()
    try:
        y, _ = model(inputs, valid, times)
        change = {}
        for name, members in groups.items():
            gone = {
                m: torch.zeros(inputs[m].shape[:2], dtype=torch.bool, device=y.device) for m in members if m in inputs
            }
            change[name] = torch.linalg.vector_norm(model(inputs, valid | gone, times)[0] - y, dim=-1)
    finally:
        model.train(training)
    return relative(change)


def relative(change: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sizes of change as shares of their sum, frame by frame; 0 where nothing changes anything."""
    total = torch.stack(list(change.values())).sum(dim=0)
    return {name: torch.where(total > 0, c / total.clamp_min(1e-12), 0.0) for name, c in change.items()}


def per_second(shares: Mapping[str, Tensor], times: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean share over each second that holds a frame.

    Args:
        shares: name -> (T,), one recording of `modality_share`.
        times: (T,) seconds of the frames.

    Returns:
        The seconds' starts (S,), rising, and name -> (S,).
    """
    seconds, index = torch.unique(times.floor(), return_inverse=True)
    counts = torch.bincount(index, minlength=len(seconds)).clamp_min(1)
    return seconds, {
        name: torch.zeros(len(seconds), dtype=share.dtype).index_add_(0, index, share) / counts
        for name, share in shares.items()
    }
