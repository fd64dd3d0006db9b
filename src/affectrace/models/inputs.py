"""The door of a multi-modal network: checks what comes in once, masks gaps, drops modalities in training.

Behind it every tensor fits the configuration, gaps hold 0 and are masked, and nothing is checked again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from affectrace.errors import InputError
from affectrace.models.clocks import masked_mean, standardised

FRAME = "frame"
"""Key in `valid` and `times` for the frames themselves, where the outputs lie."""


@dataclass(frozen=True)
class Entrance:
    """What a network lets in.

    groups:          modality -> the streams joined to it, stream -> width.
    clock:           "frame", "native" or "utterance" (see MavenConfig).
    frame_modality:  whose rows are the frames on the native and the utterance clock.
    positions:       whether times are needed on every clock.
    standardise, embedding_noise, modality_dropout: as in MavenConfig.
    """

    groups: Mapping[str, Mapping[str, int]]
    clock: str
    frame_modality: str
    positions: bool
    standardise: bool
    embedding_noise: float
    modality_dropout: float


@dataclass(frozen=True)
class Seen:
    """What came through: present modalities only.

    x:           modality -> (B, T_m, D_m), 0 where not valid.
    valid:       modality -> (B, T_m) bool, None = all.
    times:       modality -> (B, T_m) float32 seconds from the first frame, where given.
    frame_times: (B, T) float32 seconds from the first frame, or None.
    frames:      (B, T) bool, True = a frame that exists; None = all do.
    n_frames:    T.
    """

    x: dict[str, Tensor]
    valid: dict[str, Tensor | None]
    times: dict[str, Tensor]
    frame_times: Tensor | None
    frames: Tensor | None
    n_frames: int


def enter(
    door: Entrance,
    inputs: Mapping[str, Tensor],
    valid: Mapping[str, Tensor],
    times: Mapping[str, Tensor],
    *,
    training: bool,
) -> Seen:
    """Check, mask and prepare one batch.

    Raises:
        InputError: keys, shapes, widths or times that do not fit.
    """
    _check_shapes(door, inputs, valid, times)
    n_frames = _count_frames(door, inputs, times)
    for what, given in (("valid", valid), ("times", times)):
        if FRAME in given and given[FRAME].shape[1] != n_frames:
            raise InputError(
                f"{what}['{FRAME}'] has {given[FRAME].shape[1]} frames, not {n_frames}", hint="need (B, T)"
            )
    masks = {stream: _mask(x, valid.get(stream)) for stream, x in inputs.items()}
    seconds, frame_times = _seconds(door, inputs, times, n_frames)
    frames = _frames(door, inputs, masks, valid.get(FRAME))
    x: dict[str, Tensor] = {}
    kept: dict[str, Tensor | None] = {}
    clocks: dict[str, Tensor] = {}
    for m, streams in door.groups.items():
        here = [stream for stream in streams if stream in inputs]
        if not here:
            continue
        averaged = door.clock == "utterance" and m != door.frame_modality
        mask = _either([masks[stream] for stream in here])
        x[m] = torch.cat(
            [_prepared(door, s, streams[s], inputs, masks.get(s), here, averaged, training) for s in streams], -1
        )
        kept[m] = mask if not averaged or mask is None else mask.any(dim=1, keepdim=True)
        if m in seconds:
            clocks[m] = masked_mean(seconds[m][..., None], mask)[..., 0] if averaged else seconds[m]
    if training and door.modality_dropout:
        x, kept = _drop_modalities(x, kept, door.modality_dropout)
    return Seen(x, kept, clocks, frame_times, frames, n_frames)


def _prepared(
    door: Entrance,
    stream: str,
    width: int,
    inputs: Mapping[str, Tensor],
    mask: Tensor | None,
    here: list[str],
    averaged: bool,
    training: bool,
) -> Tensor:
    """One stream: gaps filled with 0, averaged, noised, standardised; 0 when missing beside one that is there."""
    if stream not in inputs:
        beside = inputs[here[0]]
        return beside.new_zeros(beside.shape[0], 1 if averaged else beside.shape[1], width)
    y = inputs[stream]
    if mask is not None:
        y = y.masked_fill(~mask[..., None], 0.0)
    if averaged:
        y = masked_mean(y, mask)
        mask = None if mask is None else mask.any(dim=1, keepdim=True)
    if training and door.embedding_noise:
        y = y + door.embedding_noise * torch.randn_like(y)
        y = y if mask is None else y.masked_fill(~mask[..., None], 0.0)
    return standardised(y, mask) if door.standardise else y


def _check_shapes(
    door: Entrance, inputs: Mapping[str, Tensor], valid: Mapping[str, Tensor], times: Mapping[str, Tensor]
) -> None:
    widths = {stream: width for streams in door.groups.values() for stream, width in streams.items()}
    known = ", ".join(widths)
    for what, keys, names in (
        ("inputs", inputs, widths),
        ("valid", valid, (*widths, FRAME)),
        ("times", times, (*widths, FRAME)),
    ):
        for key in keys:
            if key not in names:
                raise InputError(f"{what} has '{key}', which this model does not take", hint=f"it takes {known}")
    if not inputs:
        raise InputError("no modality is given", hint=f"give at least one of {known}")
    batch = next(iter(inputs.values())).shape[0]
    for m, x in inputs.items():
        if x.ndim != 3 or x.shape[0] != batch or x.shape[2] != widths[m]:
            raise InputError(
                f"'{m}' is {tuple(x.shape)}, not (B={batch}, T, {widths[m]})", hint="the width is set by input_dims"
            )
    for what, tensors in (("valid", valid), ("times", times)):
        for m, y in tensors.items():
            if m in inputs and y.shape != inputs[m].shape[:2]:
                raise InputError(
                    f"{what}['{m}'] is {tuple(y.shape)}, its input {tuple(inputs[m].shape)}", hint="need (B, T)"
                )
    for m, y in valid.items():
        if y.dtype != torch.bool:
            raise InputError(f"valid['{m}'] is {y.dtype}", hint="masks are bool, True = valid")
    for streams in door.groups.values():
        lengths = {inputs[stream].shape[1] for stream in streams if stream in inputs}
        if len(lengths) > 1:
            raise InputError(
                f"{' and '.join(streams)} differ in length", hint="features joined to one modality share its clock"
            )


def _count_frames(door: Entrance, inputs: Mapping[str, Tensor], times: Mapping[str, Tensor]) -> int:
    if door.clock == "frame":
        lengths = {m: x.shape[1] for m, x in inputs.items()}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{m} {n}" for m, n in lengths.items())
            raise InputError(
                f"on the frame clock all modalities have one row a frame, got {found}",
                hint="align them first, or configure clock='native'",
            )
        return next(iter(lengths.values()))
    if FRAME in times:
        return times[FRAME].shape[1]
    for stream in door.groups.get(door.frame_modality, ()):
        if stream in inputs:
            return inputs[stream].shape[1]
    raise InputError(
        f"where the frames lie is not known: '{door.frame_modality}' is missing", hint=f"give times['{FRAME}'] (B, T)"
    )


def _seconds(
    door: Entrance, inputs: Mapping[str, Tensor], times: Mapping[str, Tensor], n_frames: int
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Times of each modality and of the frames, counted from the first frame so that float32 is exact enough."""
    found = {
        m: times[s] for m, streams in door.groups.items() for s in reversed(list(streams)) if s in times and s in inputs
    }
    frame = times.get(FRAME, found.get(door.frame_modality))
    if door.clock == "frame":
        frame = frame if frame is not None else next(iter(found.values()), None)
        if frame is not None:
            found = {m: frame for m, streams in door.groups.items() if any(s in inputs for s in streams)}
    resampled = any(s in inputs and inputs[s].shape[1] != n_frames for s in door.groups.get(door.frame_modality, ()))
    needed = [m for m, streams in door.groups.items() if any(s in inputs for s in streams)]
    if door.clock != "native" and not door.positions:
        needed = [door.frame_modality] if resampled else []
    if needed:
        missing = [m for m in needed if m not in found] + ([FRAME] if frame is None else [])
        if missing:
            why = "positions in time" if door.positions else f"the {door.clock} clock"
            raise InputError(f"{why}: times of {', '.join(missing)} are missing", hint="give times (B, T) in seconds")
    origin = next((t[:, :1] for t in (frame, *found.values()) if t is not None and t.shape[1]), None)
    if origin is None:
        return found, frame
    return (
        {m: (t - origin).float() for m, t in found.items()},
        None if frame is None else (frame - origin).float(),
    )


def _frames(
    door: Entrance, inputs: Mapping[str, Tensor], masks: Mapping[str, Tensor | None], given: Tensor | None
) -> Tensor | None:
    """Which frames exist. Padding must be told from a frame without a face: give valid["frame"] where it matters."""
    if given is not None:
        return None if bool(given.all()) else given
    if door.clock == "frame":
        return _either(list(masks.values()))
    mask = _either([masks[s] for s in door.groups.get(door.frame_modality, ()) if s in inputs])
    if mask is None:
        return None
    return mask | ~mask.any(dim=1, keepdim=True)  # no face at all says nothing about which frames exist


def _mask(x: Tensor, valid: Tensor | None) -> Tensor | None:
    """None when all rows are valid; no rows at all is nothing valid."""
    if x.shape[1] == 0:
        return x.new_zeros(x.shape[:2], dtype=torch.bool)
    return None if valid is None or bool(valid.all()) else valid


def _either(masks: list[Tensor | None]) -> Tensor | None:
    """Valid in any of them; None = everywhere."""
    total: Tensor | None = None
    for mask in masks:
        if mask is None:
            return None
        total = mask if total is None else total | mask
    return total


def _drop_modalities(
    x: dict[str, Tensor], valid: dict[str, Tensor | None], p: float
) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    """Hide each modality from each sample with probability p; a sample that would lose all keeps all."""
    names = list(x)
    first = x[names[0]]
    there = torch.stack(
        [
            torch.ones(len(first), dtype=torch.bool, device=first.device) if (v := valid[m]) is None else v.any(dim=1)
            for m in names
        ],
        dim=1,
    )
    keep = torch.rand(there.shape, device=first.device) >= p
    keep = keep | ~(keep & there).any(dim=1, keepdim=True)
    out_x, out_valid = dict(x), dict(valid)
    for i, m in enumerate(names):
        shown = keep[:, i, None].expand(x[m].shape[:2])
        v = valid[m]
        out_valid[m] = shown if v is None else v & shown
        out_x[m] = x[m].masked_fill(~shown[..., None], 0.0)
    return out_x, out_valid
