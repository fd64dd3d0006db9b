"""Modality masking at inference, and the share of each modality in the output.

TrainedModel --mask_modalities--> the same model with streams invalid
             --with_shares--> a trace with share_<modality>: the change without it, second by second
"""

from __future__ import annotations

from collections import abc
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from affectrace.errors import InputError, UnknownNameError
from affectrace.features.config import MODALITY_ALIASES
from affectrace.inference.run import TrainedModel
from affectrace.models.base import AffectModel, State, Tensors
from affectrace.sequences import Sequence
from affectrace.trace import Trace

SHARE = "share_"
"""Prefix of the trace's extras that hold shares."""


class MaskedModel(AffectModel):
    """A model with some streams invalid, whatever their values; otherwise as the model itself."""

    def __init__(self, model: AffectModel, streams: Iterable[str]) -> None:
        super().__init__(model.config)
        self.model, self.streams = model, frozenset(streams)
        self.name, self.causal, self.clock = model.name, model.causal, model.clock  # type: ignore[misc]

    @property
    def modalities(self) -> dict[str, tuple[str, ...]]:
        return self.model.modalities

    def forward(
        self, inputs: Tensors, valid: Tensors | None = None, times: Tensors | None = None, state: State = None
    ) -> tuple[Tensor, State]:
        invalid = {m: x.new_zeros(x.shape[:2], dtype=torch.bool) for m, x in inputs.items() if m in self.streams}
        return self.model(inputs, {**(valid or {}), **invalid}, times, state)  # type: ignore[no-any-return]


def modalities_of(model: AffectModel) -> dict[str, tuple[str, ...]]:
    """Modality -> its streams (visual may have two encoders); raises InputError for a model with a single modality."""
    groups = model.modalities
    if len(groups) < 2:
        hint = "ablations and shares need a model with several modalities, such as maven"
        raise InputError(f"{model.name} reads one modality ({', '.join(groups)})", hint=hint)
    return groups


def named_modalities(model: AffectModel, names: abc.Iterable[str]) -> tuple[str, ...]:
    """Modalities of a model; face, voice, words are accepted for visual, audio, text (raises UnknownNameError)."""
    groups = modalities_of(model)
    found = tuple(dict.fromkeys(name if name in groups else MODALITY_ALIASES.get(name, name) for name in names))
    for name in found:
        if name not in groups:
            raise UnknownNameError.of("modality", name, tuple(groups))
    return found


def mask_modalities(model: TrainedModel, drop: abc.Sequence[str]) -> TrainedModel:
    """The model with these modalities masked, which its id states (raises InputError, UnknownNameError)."""
    if not drop:
        return model
    groups, dropped = modalities_of(model.model), named_modalities(model.model, drop)
    if len(dropped) == len(groups):
        raise InputError(f"all modalities are dropped ({', '.join(groups)})", hint="leave at least one")
    streams = [stream for name in dropped for stream in groups[name]]
    masked = MaskedModel(model.model, streams)
    return replace(model, model=masked, id=f"{model.id} without {', '.join(dropped)}")


def with_shares(model: TrainedModel, sequence: Sequence) -> Trace:
    """The model's trace with `share_<modality>` among its extras, averaged over each second.

    The share of a modality in a frame is |y - y without it| over the sum of these, 0 where nothing changes. Takes one
    more run for each modality; most meaningful for a model trained with modality dropout.
    """
    trace = model.predict(sequence)
    change: dict[str, NDArray[np.float64]] = {}
    for name in modalities_of(model.model):
        masked = mask_modalities(model, [name]).predict(sequence)
        change[name] = np.linalg.norm(np.nan_to_num(masked.values - trace.values), axis=1)
    total = np.sum(list(change.values()), axis=0)
    _, second = np.unique(np.floor(trace.timeline.times), return_inverse=True)
    n_frames = np.bincount(second)
    extras = {}
    for name, moved in change.items():
        share = np.divide(moved, total, out=np.zeros_like(moved), where=total > 0)
        extras[f"{SHARE}{name}"] = np.where(trace.known, (np.bincount(second, share) / n_frames)[second], np.nan)
    return replace(trace, extras={**trace.extras, **extras})
