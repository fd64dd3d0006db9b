"""The door of a network that reads one stream on the frame clock: picked out and checked once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from affectrace.errors import InputError

FRAME = "frame"
"""Key in `valid` for the frames themselves: False = padding. Only models that are not causal need it."""


def one_stream(
    inputs: Mapping[str, Tensor],
    valid: Mapping[str, Tensor] | None,
    modality: str,
    *shape: int,
) -> tuple[Tensor, Tensor | None]:
    """One modality's rows (B, T, *shape) and which of them are valid, (B, T) bool or None for all.

    Raises:
        InputError: the modality is missing, or shapes or mask do not fit.
    """
    if modality not in inputs:
        given = ", ".join(sorted(inputs)) or "none"
        raise InputError(
            f"the model reads '{modality}', given: {given}", hint="extract these features, or set the model's modality"
        )
    x = inputs[modality]
    if x.ndim != 2 + len(shape) or x.shape[1] == 0 or tuple(x.shape[2:]) != shape:
        raise InputError(
            f"'{modality}' is {tuple(x.shape)}, expected (batch, frames >= 1, {', '.join(map(str, shape))})",
            hint="the width must be that of the features the model was made for",
        )
    mask = None if valid is None else valid.get(modality)
    if mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape[:2]):
        raise InputError(
            f"valid['{modality}'] is {mask.dtype} {tuple(mask.shape)}, expected bool {tuple(x.shape[:2])}",
            hint="True = valid, one for each frame",
        )
    return x, mask


def existing_frames(x: Tensor, mask: Tensor | None, valid: Mapping[str, Tensor] | None) -> Tensor | None:
    """Which frames exist, (B, T) bool or None for all: valid["frame"], or all up to the last valid one."""
    if valid is not None and FRAME in valid:
        return valid[FRAME]
    if mask is None or bool(mask.all()):
        return None
    exists = mask.flip(1).int().cummax(dim=1).values.flip(1).bool()
    return exists | ~mask.any(dim=1, keepdim=True)  # nothing seen at all says nothing about which frames exist
