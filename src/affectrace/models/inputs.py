"""Model inputs: validation, filling of missing rows, modality dropout, normalization, resampling onto frames.

one_stream       models that read one row a frame (Mamba-VA, the baselines), of one stream or of several concatenated
LastSeen         how these fill missing rows
prepare_inputs   models that read several modalities (MAVEN), as their InputSpec says
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from affectrace.errors import InputError
from affectrace.models.attention import Tokens
from affectrace.models.base import MissingPolicy, Tensors
from affectrace.sequences import FRAME

# ---- one row a frame


def one_stream(inputs: Tensors, valid: Tensors | None, streams: Mapping[str, int]) -> tuple[Tensor, Tensor | None]:
    """Rows of the streams (name -> width) side by side, (B, T, D), and what is valid of them.

    The mask is bool, (B, T, 1) of one stream and (B, T, D) of several, or None where all are valid. Of several streams,
    one that is not given counts as invalid.
    """
    given = [s for s in streams if s in inputs]
    if not given:
        what = f"the model reads '{', '.join(streams)}', given: {', '.join(sorted(inputs)) or 'none'}"
        raise InputError(what, hint="extract these features, or set the model's modality")
    rows = inputs[given[0]].shape[:2]
    values, masks = list[Tensor](), list[Tensor | None]()
    for name, width in streams.items():
        x = inputs[name] if name in inputs else inputs[given[0]].new_zeros(*rows, width)
        if x.ndim != 3 or x.shape[1] == 0 or x.shape != (*rows, width):
            what = f"'{name}' is {tuple(x.shape)}, expected (batch, frames >= 1, {width})"
            raise InputError(what, hint="give features of the width the model was built for, on the same frames")
        mask = None if valid is None else valid.get(name)
        if mask is not None and (mask.dtype != torch.bool or mask.shape != rows):
            what = f"valid['{name}'] is {mask.dtype} {tuple(mask.shape)}, expected bool {tuple(rows)}"
            raise InputError(what, hint="True = valid, one for each frame")
        mask = x.new_zeros(rows, dtype=torch.bool) if name not in inputs else mask
        values.append(x)
        masks.append(None if mask is None else mask[..., None])
    if len(values) == 1:
        return values[0], masks[0]
    whole = torch.cat(values, dim=2)
    if all(mask is None for mask in masks):
        return whole, None
    every = [x.new_ones(x.shape, dtype=torch.bool) if m is None else m.expand_as(x) for x, m in zip(values, masks)]
    return whole, torch.cat(every, dim=2)


def existing_frames(mask: Tensor | None, valid: Tensors | None) -> Tensor | None:
    """Which frames are not padding, (B, T) bool or None for all: valid["frame"], or all up to the last valid one.

    mask: as of `one_stream`.
    """
    if valid is not None and FRAME in valid:
        return valid[FRAME]
    if mask is None or bool(mask.all()):
        return None
    mask = mask.any(dim=2)
    exists = mask.flip(1).int().cummax(dim=1).values.flip(1).bool()
    return exists | ~mask.any(dim=1, keepdim=True)  # without a single valid frame nothing is known about padding


class LastSeen(nn.Module):
    """Fills invalid rows, each stream by itself.

    hold        with the last valid row, zeros before the first (Mamba-VA's authors in training)
    zero        with zeros (the same authors at test time)
    mask-token  with a learned vector (ours)
    """

    def __init__(self, policy: MissingPolicy, width: int) -> None:
        super().__init__()
        self.policy = policy
        self.token = nn.Parameter(torch.zeros(width)) if policy == "mask-token" else None

    def forward(self, x: Tensor, valid: Tensor | None, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x (B, T, D), valid as of `one_stream` -> y (B, T, D); state (B, D), with "hold" only."""
        if self.policy != "hold":
            fill = x.new_zeros(()) if self.token is None else self.token.to(x.dtype)
            return x if valid is None else torch.where(valid, x, fill), None
        if valid is None:
            return x, x[:, -1].clone()
        if state is None:
            state = torch.zeros_like(x[:, 0])
        steps = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        last = torch.where(valid, steps, 0).cummax(dim=1).values  # 0: none so far, take the state
        known = torch.cat([state[:, None].to(x.dtype), torch.where(valid, x, x.new_zeros(()))], dim=1)
        y = known.gather(1, last.expand(-1, -1, x.shape[2]))
        return y, y[:, -1].clone()


# ---- several modalities


@dataclass(frozen=True)
class InputSpec:
    """What a multimodal model reads; fields from `clock` on as in MavenConfig.

    streams: modality -> {stream: width} of the streams concatenated for it. positions: times are needed on every clock.
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
    """Every modality's rows: x is 0 where invalid, times count from the first frame.

    frame_times: (B, T) float32 seconds likewise, or None. frames: (B, T) bool, False = padding; None = no padding.
    n_frames: T.
    """

    tokens: dict[str, Tokens]
    frame_times: Tensor | None
    frames: Tensor | None
    n_frames: int


def prepare_inputs(
    spec: InputSpec, inputs: Tensors, valid: Tensors | None, times: Tensors | None, *, training: bool
) -> ModelInputs:
    """Check, fill, average (utterance clock), normalize; in training add noise and drop modalities too.

    A stream that is not given counts as one without valid rows. Raises InputError for keys or shapes that do not fit.
    """
    valid, times = valid or {}, times or {}
    n_frames = _check(spec, inputs, valid, times)
    seconds, frame_times = _seconds(spec, inputs, times, n_frames)
    like = next(iter(inputs.values()))
    tokens: dict[str, Tokens] = {}
    for m, streams in spec.streams.items():
        rows = next((inputs[s].shape[1] for s in streams if s in inputs), n_frames if spec.clock == "frame" else 0)
        averaged = spec.clock == "utterance" and m != spec.frame_modality
        parts, masks = [], []
        for s, width in streams.items():
            if s in inputs:
                x = inputs[s]
                mask = valid.get(s, x.new_ones(x.shape[:2], dtype=torch.bool))
            else:
                x = like.new_zeros(len(like), rows, width)
                mask = like.new_zeros(len(like), rows, dtype=torch.bool)
            masks.append(mask)
            if averaged:
                x, mask = masked_mean(x, mask), mask.any(dim=1, keepdim=True)
            if training and spec.embedding_noise:  # MAVEN's authors, who add it at test time as well
                x = x + spec.embedding_noise * torch.randn_like(x)
            parts.append(normalized(x, mask) if spec.standardise else x.masked_fill(~mask[..., None], 0.0))
        there, at = torch.stack(masks).any(dim=0), seconds.get(m)
        if averaged:
            at = None if at is None else masked_mean(at[..., None], there)[..., 0]
            there = there.any(dim=1, keepdim=True)
        tokens[m] = Tokens(torch.cat(parts, dim=-1), there, at)
    frames = valid[FRAME] if FRAME in valid else _existing(spec, tokens, n_frames)
    if training and spec.modality_dropout:
        tokens = drop_modalities(tokens, spec.modality_dropout)
    tokens = {m: t._replace(valid=_none_if_all(t.valid)) for m, t in tokens.items()}
    return ModelInputs(tokens, frame_times, _none_if_all(frames), n_frames)


def _check(spec: InputSpec, inputs: Tensors, valid: Tensors, times: Tensors) -> int:
    """Check keys and shapes against the spec and each other; returns the number of frames."""
    widths = spec.widths
    unknown = [s for s in inputs if s not in widths] + [s for s in (*valid, *times) if s not in {*widths, FRAME}]
    if unknown or not inputs:
        what = f"the model reads {', '.join(widths)}; given: {', '.join((*inputs, *unknown)) or 'none'}"
        raise InputError(what, hint="give at least one of these and nothing else")
    batch = next(iter(inputs.values())).shape[0]
    for s, x in inputs.items():
        if x.ndim != 3 or x.shape[0] != batch or x.shape[2] != widths[s]:
            what = f"'{s}' is {tuple(x.shape)}, not (B={batch}, T, {widths[s]})"
            raise InputError(what, hint="the width is set by input_dims")
    rows = {s: x.shape[1] for s, x in inputs.items()}
    for streams in [widths] if spec.clock == "frame" else spec.streams.values():
        if len({rows[s] for s in streams if s in rows}) > 1:
            what = f"streams of one clock differ in length: {', '.join(f'{s} {n}' for s, n in rows.items())}"
            raise InputError(what, hint="align them first, or configure clock='native'")
    at_frames = widths if spec.clock == "frame" else spec.streams.get(spec.frame_modality, ())
    lengths = [rows[s] for s in at_frames if s in rows]
    if FRAME in times and spec.clock != "frame":
        lengths = [times[FRAME].shape[-1]]
    if not lengths:
        what = f"the times of the frames are not known: '{spec.frame_modality}' is missing"
        raise InputError(what, hint=f"give times['{FRAME}'] (B, T)")
    for what, tensors in (("valid", valid), ("times", times)):
        for s, y in tensors.items():
            n = lengths[0] if s == FRAME else rows.get(s, y.shape[-1])
            if y.shape != (batch, n) or (what == "valid" and y.dtype != torch.bool):
                kind = "bool, True = valid" if what == "valid" else "seconds"
                raise InputError(f"{what}['{s}'] is {y.dtype} {tuple(y.shape)}", hint=f"need {(batch, n)} {kind}")
    return lengths[0]


def _seconds(
    spec: InputSpec, inputs: Tensors, times: Tensors, n_frames: int
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Times of each modality and of the frames, counted from the first frame so that float32 is exact enough."""
    given = {m: [s for s in streams if s in inputs] for m, streams in spec.streams.items()}
    found = {m: times[s] for m, streams in given.items() for s in reversed(streams) if s in times}
    frame = times.get(FRAME, found.get(spec.frame_modality))
    if spec.clock == "frame":
        frame = frame if frame is not None else next(iter(found.values()), None)
        found = {} if frame is None else dict.fromkeys(given, frame)
    if spec.clock == "native" or spec.positions:
        needed = [m for m in given if given[m]]
    else:
        needed = [
            m for m in given if m == spec.frame_modality and any(inputs[s].shape[1] != n_frames for s in given[m])
        ]
    missing = [m for m in needed if m not in found] + ([FRAME] if needed and frame is None else [])
    if missing:
        why = "positions in time" if spec.positions else f"the {spec.clock} clock"
        raise InputError(f"{why}: times of {', '.join(missing)} are missing", hint="give times (B, T) in seconds")
    if frame is None:
        return found, None
    found |= {m: frame[:, :0] for m in given if not given[m] and m not in found}
    origin = next((t[:, :1] for t in (frame, *found.values()) if t.shape[1]), 0)
    return {m: (t - origin).float() for m, t in found.items()}, (frame - origin).float()


def _existing(spec: InputSpec, tokens: Mapping[str, Tokens], n_frames: int) -> Tensor | None:
    """Frames that are not padding, without valid["frame"]: a gap in all masks counts as padding."""
    masks = {m: t.valid for m, t in tokens.items() if t.valid is not None and t.valid.shape[1] == n_frames}
    if spec.clock == "frame":
        return torch.stack(list(masks.values())).any(dim=0)
    mask = masks.get(spec.frame_modality)
    return None if mask is None else mask | ~mask.any(dim=1, keepdim=True)


def _none_if_all(mask: Tensor | None) -> Tensor | None:
    """A mask without gaps as None, which attention computes faster."""
    return None if mask is None or (mask.shape[1] and bool(mask.all())) else mask


def normalized(x: Tensor, valid: Tensor) -> Tensor:
    """Each sample minus its mean, over its standard deviation, both over all its valid numbers (MAVEN's authors).

    x (B, T, D), valid (B, T) -> (B, T, D); invalid rows become 0. n - 1 in the deviation plus 1e-8, as in their code.
    """
    gaps = ~valid[..., None]
    n = (valid.sum(dim=1) * x.shape[2])[:, None, None]
    mean = x.masked_fill(gaps, 0.0).sum(dim=(1, 2), keepdim=True) / n.clamp_min(1)
    centred = (x - mean).masked_fill(gaps, 0.0)
    sd = (centred.square().sum(dim=(1, 2), keepdim=True) / (n - 1).clamp_min(1)).sqrt()
    return centred / (sd + 1e-8)


def drop_modalities(tokens: Mapping[str, Tokens], p: float) -> dict[str, Tokens]:
    """Drop each modality from each sample with probability p; a sample that would lose all of them keeps all.

    ModDrop (Neverova et al. 2016, arXiv:1501.00102), sample by sample.
    """
    masks = [t.valid for t in tokens.values() if t.valid is not None]
    there = torch.stack([mask.any(dim=1) for mask in masks], dim=1)  # (B, M)
    keep = torch.rand(there.shape, device=there.device) >= p
    keep = keep | ~(keep & there).any(dim=1, keepdim=True)
    return {
        m: Tokens(t.x.masked_fill(~keep[:, i, None, None], 0.0), masks[i] & keep[:, i, None], t.times)
        for i, (m, t) in enumerate(tokens.items())
    }


# ---- clocks


def masked_mean(x: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over the valid steps: (B, T, D), (B, T) -> (B, 1, D); zeros for a sample without any."""
    if valid is None:
        return x.mean(dim=1, keepdim=True)
    n = valid.sum(dim=1)[:, None, None]
    return x.masked_fill(~valid[..., None], 0.0).sum(dim=1, keepdim=True) / n.clamp_min(1)


def onto_frames(x: Tensor, valid: Tensor | None, times: Tensor, frame_times: Tensor) -> Tensor:
    """Linear interpolation in time from a modality's own clock onto frames, over its valid rows (MAVEN eq. 12).

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
    x_low = x.gather(1, order.gather(1, low)[..., None].expand(b, t, d))
    x_high = x.gather(1, order.gather(1, high)[..., None].expand(b, t, d))
    return torch.lerp(x_low, x_high, share).masked_fill((n == 0)[..., None], 0.0)
