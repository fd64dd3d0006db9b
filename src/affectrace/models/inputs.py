"""What comes into a network: checked once, gaps filled, modalities dropped, normalized, moved between clocks.

one_stream       models of one stream on the frame clock (Mamba-VA, the baselines)
LastSeen         what stands in for frames without a face in these
prepare_inputs   models of several modalities (MAVEN), as their InputSpec says
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from affectrace.errors import InputError
from affectrace.models.attention import Tokens
from affectrace.models.base import MissingPolicy, Tensors
from affectrace.sequences import FRAME

# ---- one stream on the frame clock


def one_stream(inputs: Tensors, valid: Tensors | None, modality: str, width: int) -> tuple[Tensor, Tensor | None]:
    """One modality's rows (B, T, width) and which of them are valid, (B, T) bool or None for all; raises InputError."""
    if modality not in inputs:
        what = f"the model reads '{modality}', given: {', '.join(sorted(inputs)) or 'none'}"
        raise InputError(what, hint="extract these features, or set the model's modality")
    x = inputs[modality]
    if x.ndim != 3 or x.shape[1] == 0 or x.shape[2] != width:
        what = f"'{modality}' is {tuple(x.shape)}, expected (batch, frames >= 1, {width})"
        raise InputError(what, hint="the width must be that of the features the model was made for")
    mask = None if valid is None else valid.get(modality)
    if mask is not None and (mask.dtype != torch.bool or mask.shape != x.shape[:2]):
        what = f"valid['{modality}'] is {mask.dtype} {tuple(mask.shape)}, expected bool {tuple(x.shape[:2])}"
        raise InputError(what, hint="True = valid, one for each frame")
    return x, mask


def existing_frames(mask: Tensor | None, valid: Tensors | None) -> Tensor | None:
    """Which frames exist, (B, T) bool or None for all: valid["frame"], or all up to the last valid one."""
    if valid is not None and FRAME in valid:
        return valid[FRAME]
    if mask is None or bool(mask.all()):
        return None
    exists = mask.flip(1).int().cummax(dim=1).values.flip(1).bool()
    return exists | ~mask.any(dim=1, keepdim=True)  # nothing seen at all says nothing about which frames exist


class LastSeen(nn.Module):
    """What a model sees in an invalid frame.

    hold        the last valid frame, zeros before the first (Mamba-VA's authors in training)
    zero        zeros (the same authors at test time)
    mask-token  a learned vector (ours)
    """

    def __init__(self, policy: MissingPolicy, width: int) -> None:
        super().__init__()
        self.policy = policy
        self.token = nn.Parameter(torch.zeros(width)) if policy == "mask-token" else None

    def forward(self, x: Tensor, valid: Tensor | None, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x (B, T, D), valid (B, T) bool or None for all -> y (B, T, D); state (B, D), with "hold" only."""
        if self.policy != "hold":
            if valid is None:
                return x, None
            stand_in = x.new_zeros(()) if self.token is None else self.token.to(x.dtype)
            return torch.where(valid[..., None], x, stand_in), None
        if valid is None:
            return x, x[:, -1].clone()
        if state is None:
            state = torch.zeros_like(x[:, 0])
        steps = torch.arange(1, x.shape[1] + 1, device=x.device)
        last = torch.where(valid, steps, 0).cummax(dim=1).values  # 0: none yet, the state's
        known = torch.cat([state[:, None].to(x.dtype), torch.where(valid[..., None], x, x.new_zeros(()))], dim=1)
        y = known.gather(1, last[..., None].expand(-1, -1, x.shape[2]))
        return y, y[:, -1].clone()


# ---- several modalities


@dataclass(frozen=True)
class InputSpec:
    """What a network of several modalities reads; fields from `clock` on as in MavenConfig.

    streams: modality -> the streams joined to it, stream -> width. positions: whether times are needed on every clock.
    """

    streams: Mapping[str, Mapping[str, int]]
    clock: str
    frame_modality: str
    positions: bool
    standardise: bool
    embedding_noise: float
    modality_dropout: float

    @property
    def widths(self) -> dict[str, int]:
        """Stream -> width."""
        return {stream: width for streams in self.streams.values() for stream, width in streams.items()}


@dataclass(frozen=True)
class ModelInputs:
    """What came in, modality by modality, those that are there; x is 0 where invalid, times count from the first frame.

    frame_times: (B, T) float32 seconds likewise, or None. frames: (B, T) bool, which exist; None = all. n_frames: T.
    """

    tokens: dict[str, Tokens]
    frame_times: Tensor | None
    frames: Tensor | None
    n_frames: int


def prepare_inputs(
    spec: InputSpec, inputs: Tensors, valid: Tensors | None, times: Tensors | None, *, training: bool
) -> ModelInputs:
    """Check, mask, normalize; in training add noise and drop modalities (raises InputError)."""
    valid, times = valid or {}, times or {}
    n_frames = _check(spec, inputs, valid, times)
    seconds, frame_times = _seconds(spec, inputs, times, n_frames)
    masks = {stream: _mask(x, valid.get(stream)) for stream, x in inputs.items()}
    tokens: dict[str, Tokens] = {}
    for m, streams in spec.streams.items():
        here = [stream for stream in streams if stream in inputs]
        if not here:
            continue
        mask, at = _either(masks[stream] for stream in here), seconds.get(m)
        averaged = spec.clock == "utterance" and m != spec.frame_modality
        rows = 1 if averaged else inputs[here[0]].shape[1]
        parts = [
            _prepared(spec, inputs[s], masks[s], averaged, training)
            if s in inputs
            else inputs[here[0]].new_zeros(len(inputs[here[0]]), rows, width)  # missing beside one that is there
            for s, width in streams.items()
        ]
        if averaged:
            at = None if at is None else masked_mean(at[..., None], mask)[..., 0]
            mask = None if mask is None else mask.any(dim=1, keepdim=True)
        tokens[m] = Tokens(torch.cat(parts, dim=-1), mask, at)
    if training and spec.modality_dropout:
        tokens = drop_modalities(tokens, spec.modality_dropout)
    return ModelInputs(tokens, frame_times, _frames(spec, masks, valid.get(FRAME)), n_frames)


def _check(spec: InputSpec, inputs: Tensors, valid: Tensors, times: Tensors) -> int:
    """See that keys and shapes fit the spec and each other; the number of frames."""
    widths = spec.widths
    known = ", ".join(widths)
    for what, tensors in (("inputs", inputs), ("valid", valid), ("times", times)):
        for key, y in tensors.items():
            if key not in widths and (what == "inputs" or key != FRAME):
                raise InputError(f"{what} has '{key}', which this model does not take", hint=f"it takes {known}")
            if what != "inputs" and key in inputs and y.shape != inputs[key].shape[:2]:
                given = tuple(inputs[key].shape)
                raise InputError(f"{what}['{key}'] is {tuple(y.shape)}, its input {given}", hint="need (B, T)")
            if what == "valid" and y.dtype != torch.bool:
                raise InputError(f"valid['{key}'] is {y.dtype}", hint="masks are bool, True = valid")
    if not inputs:
        raise InputError("no modality is given", hint=f"give at least one of {known}")
    batch = next(iter(inputs.values())).shape[0]
    for m, x in inputs.items():
        if x.ndim != 3 or x.shape[0] != batch or x.shape[2] != widths[m]:
            what = f"'{m}' is {tuple(x.shape)}, not (B={batch}, T, {widths[m]})"
            raise InputError(what, hint="the width is set by input_dims")
    for streams in [widths] if spec.clock == "frame" else spec.streams.values():
        lengths = {s: inputs[s].shape[1] for s in streams if s in inputs}
        if len(set(lengths.values())) > 1:
            what = f"streams of one clock have one row a frame, got {', '.join(f'{s} {n}' for s, n in lengths.items())}"
            raise InputError(what, hint="align them first, or configure clock='native'")
    at_frames = widths if spec.clock == "frame" else spec.streams.get(spec.frame_modality, ())
    rows = [inputs[s].shape[1] for s in at_frames if s in inputs]
    if FRAME in times and spec.clock != "frame":
        rows = [times[FRAME].shape[1]]
    if not rows:
        what = f"where the frames lie is not known: '{spec.frame_modality}' is missing"
        raise InputError(what, hint=f"give times['{FRAME}'] (B, T)")
    n_frames = rows[0]
    for what, tensors in (("valid", valid), ("times", times)):
        if FRAME in tensors and tensors[FRAME].shape[1] != n_frames:
            found = f"{what}['{FRAME}'] has {tensors[FRAME].shape[1]} frames, not {n_frames}"
            raise InputError(found, hint="need (B, T)")
    return n_frames


def _seconds(
    spec: InputSpec, inputs: Tensors, times: Tensors, n_frames: int
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Times of each modality and of the frames, counted from the first frame so that float32 is exact enough."""
    here = {m: [s for s in streams if s in inputs] for m, streams in spec.streams.items() if {*streams} & {*inputs}}
    found = {m: times[s] for m, streams in here.items() for s in reversed(streams) if s in times}
    frame = times.get(FRAME, found.get(spec.frame_modality))
    if spec.clock == "frame":
        frame = frame if frame is not None else next(iter(found.values()), None)
        found = {} if frame is None else dict.fromkeys(here, frame)
    needed = list(here)
    if spec.clock != "native" and not spec.positions:
        resampled = any(inputs[s].shape[1] != n_frames for s in here.get(spec.frame_modality, ()))
        needed = [spec.frame_modality] if resampled else []
    missing = [m for m in needed if m not in found] + ([FRAME] if needed and frame is None else [])
    if missing:
        why = "positions in time" if spec.positions else f"the {spec.clock} clock"
        raise InputError(f"{why}: times of {', '.join(missing)} are missing", hint="give times (B, T) in seconds")
    origin = next((t[:, :1] for t in (frame, *found.values()) if t is not None and t.shape[1]), None)
    if origin is None:
        return found, frame
    return {m: (t - origin).float() for m, t in found.items()}, None if frame is None else (frame - origin).float()


def _frames(spec: InputSpec, masks: Mapping[str, Tensor | None], given: Tensor | None) -> Tensor | None:
    """Which frames exist. Padding must be told from a frame without a face: give valid["frame"] where it matters."""
    if given is not None:
        return None if bool(given.all()) else given
    if spec.clock == "frame":
        return _either(masks.values())
    mask = _either(masks[s] for s in spec.streams.get(spec.frame_modality, ()) if s in masks)
    return None if mask is None else mask | ~mask.any(dim=1, keepdim=True)  # no face at all says nothing about frames


def _mask(x: Tensor, valid: Tensor | None) -> Tensor | None:
    """None when all rows are valid; no rows at all is nothing valid."""
    if x.shape[1] == 0:
        return x.new_zeros(x.shape[:2], dtype=torch.bool)
    return None if valid is None or bool(valid.all()) else valid


def _either(masks: Iterable[Tensor | None]) -> Tensor | None:
    """Valid in any of them; None = everywhere."""
    found = list(masks)
    known = [mask for mask in found if mask is not None]
    return None if len(known) < len(found) or not known else torch.stack(known).any(dim=0)


def _prepared(spec: InputSpec, x: Tensor, mask: Tensor | None, averaged: bool, training: bool) -> Tensor:
    """One stream: gaps filled with 0, averaged to one vector, noised, normalized."""
    x = x if mask is None else x.masked_fill(~mask[..., None], 0.0)
    if averaged:
        x = masked_mean(x, mask)
        mask = None if mask is None else mask.any(dim=1, keepdim=True)
    if training and spec.embedding_noise:  # MAVEN's authors, who add it at test time as well
        x = x + spec.embedding_noise * torch.randn_like(x)
        x = x if mask is None else x.masked_fill(~mask[..., None], 0.0)
    return normalized(x, mask) if spec.standardise else x


def normalized(x: Tensor, valid: Tensor | None) -> Tensor:
    """Each sample minus its own mean, by its own deviation, over all its valid numbers together (MAVEN's authors).

    (B, T, D) -> (B, T, D); invalid rows become 0. n - 1 in the deviation, 1e-8 added to it, as theirs.
    """
    if x.numel() == 0:
        return x
    there = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if valid is None else valid
    n = (there.sum(dim=1) * x.shape[2])[:, None, None]
    mean = x.masked_fill(~there[..., None], 0.0).sum(dim=(1, 2), keepdim=True) / n.clamp_min(1)
    centred = (x - mean).masked_fill(~there[..., None], 0.0)
    sd = (centred.square().sum(dim=(1, 2), keepdim=True) / (n - 1).clamp_min(1)).sqrt()
    return centred / (sd + 1e-8)


def drop_modalities(tokens: Mapping[str, Tokens], p: float) -> dict[str, Tokens]:
    """Hide each modality from each sample with probability p; a sample that would lose all keeps all (ours).

    As ModDrop (Neverova et al. 2016, arXiv:1501.00102), sample by sample.
    """
    parts = list(tokens.values())
    device, n = parts[0].x.device, len(parts[0].x)
    there = torch.stack(
        [torch.ones(n, dtype=torch.bool, device=device) if t.valid is None else t.valid.any(dim=1) for t in parts], 1
    )
    keep = torch.rand(there.shape, device=device) >= p
    keep = keep | ~(keep & there).any(dim=1, keepdim=True)
    shown = [keep[:, i, None].expand(t.x.shape[:2]) for i, t in enumerate(parts)]
    return {
        m: t._replace(x=t.x.masked_fill(~s[..., None], 0.0), valid=s if t.valid is None else t.valid & s)
        for (m, t), s in zip(tokens.items(), shown, strict=True)
    }


# ---- clocks


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

    x (B, S, D), valid (B, S) bool or None, times (B, S) seconds in any order, frame_times (B, T) seconds -> (B, T, D).
    Before the first and after the last valid row its value is held; zeros for a sample without one.
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
