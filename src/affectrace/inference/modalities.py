"""A trained model with some of its modalities masked out, and what each of them contributed.

TrainedModel --mask_modalities--> the same with streams not valid
             --with_shares--> a trace with share_<modality>: how far the answer moves without it, second by second
"""

from __future__ import annotations

from collections import abc
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from affectrace.errors import InputError, UnknownNameError
from affectrace.inference.run import TrainedModel
from affectrace.models.base import AffectModel
from affectrace.sequences import Sequence
from affectrace.trace import Trace

SHARE = "share_"
"""Prefix of the trace's extras that hold shares."""


class MaskedModel(AffectModel):
    """A model with some streams masked at inference: all their rows are not valid, whatever it is given.

    Everything else (configuration, clock, state) is the model's own, so it runs wherever the model does.
    """

    def __init__(self, model: AffectModel, streams: Iterable[str]) -> None:
        super().__init__(model.config)
        self.model, self.streams = model, frozenset(streams)
        self.name, self.causal, self.clock = model.name, model.causal, model.clock  # type: ignore[misc]

    @property
    def modalities(self) -> dict[str, tuple[str, ...]]:
        """As the model's own."""
        return self.model.modalities

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        valid: Mapping[str, Tensor] | None = None,
        times: Mapping[str, Tensor] | None = None,
        state: Any = None,
    ) -> Any:
        """As the model's own."""
        masked = {
            m: torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
            for m, x in inputs.items()
            if m in self.streams
        }
        return self.model(inputs, {**(valid or {}), **masked}, times, state)


def modalities_of(model: AffectModel) -> dict[str, tuple[str, ...]]:
    """Modality -> the streams that belong to it ("visual" may be two, a Swin's and a BEiT's).

    Raises:
        InputError: the model reads one modality, so that nothing is left without it.
    """
    groups = model.modalities
    if len(groups) < 2:
        raise InputError(
            f"{model.name} reads one modality ({', '.join(groups)}): nothing is left without it",
            hint="ablations and shares need a model that reads several, such as maven",
        )
    return groups


def mask_modalities(model: TrainedModel, drop: abc.Sequence[str]) -> TrainedModel:
    """The model with these modalities masked out; its id says so.

    Raises:
        InputError: the model reads one modality, or all of its modalities are dropped.
        UnknownNameError: it has no such modality.
    """
    if not drop:
        return model
    groups = modalities_of(model.model)
    for name in drop:
        if name not in groups:
            raise UnknownNameError.of("modality", name, tuple(groups))
    if set(drop) == set(groups):
        raise InputError(f"all modalities are dropped ({', '.join(groups)})", hint="leave at least one")
    streams = [stream for name in dict.fromkeys(drop) for stream in groups[name]]
    masked = MaskedModel(model.model, streams)
    return replace(model, model=masked, id=f"{model.id} without {', '.join(dict.fromkeys(drop))}")


def with_shares(model: TrainedModel, sequence: Sequence) -> Trace:
    """The model's trace with `share_<modality>` among its extras: mean share over each second, on every frame of it.

    A modality's share of a frame is |y - y without it| over the sum of these, 0 where nothing changes anything. One
    more run for each; it means most for a model trained with modality dropout.

    Raises:
        InputError: the model reads one modality.
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
