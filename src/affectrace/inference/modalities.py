"""A trained model with some of its modalities masked out, and what each of them contributed.

TrainedModel --without--> the same with streams not valid
             --with_shares--> a trace with share_<modality>: how far the answer moves without it, second by second
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Several
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from affectrace.errors import InputError, UnknownNameError
from affectrace.inference.run import TrainedModel
from affectrace.inference.shares import per_second, relative
from affectrace.sequences import Sequence
from affectrace.trace import Trace

SHARE = "share_"
"""Prefix of the trace's extras that hold shares."""


class Hidden(nn.Module):
    """A model that never sees some streams: all their rows are not valid, whatever it is given.

    Everything else (configuration, clock, state) is the model's own, so it runs wherever the model does.
    """

    def __init__(self, model: nn.Module, streams: Iterable[str]) -> None:
        super().__init__()
        self.model, self.streams = model, frozenset(streams)
        for name in ("name", "causal", "clock", "config"):
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        valid: Mapping[str, Tensor] | None = None,
        times: Mapping[str, Tensor] | None = None,
        state: Any = None,
    ) -> Any:
        """As the model's own."""
        gone = {
            m: torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
            for m, x in inputs.items()
            if m in self.streams
        }
        return self.model(inputs, {**(valid or {}), **gone}, times, state)


def modalities_of(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Modality -> the streams that belong to it ("visual" may be two, a Swin's and a BEiT's).

    Raises:
        InputError: the model reads one modality, so that nothing is left without it.
    """
    config: Any = model.config
    entrance = getattr(config, "entrance", None)
    groups = {m: (m,) for m in config.streams} if entrance is None else entrance.groups
    if len(groups) < 2:
        name = getattr(model, "name", "the model")
        raise InputError(
            f"{name} reads one modality ({', '.join(groups)}): nothing is left without it",
            hint="ablations and shares need a model that reads several, such as maven",
        )
    return {m: tuple(streams) for m, streams in groups.items()}


def without(model: TrainedModel, drop: Several[str]) -> TrainedModel:
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
    hidden = [stream for name in dict.fromkeys(drop) for stream in groups[name]]
    return replace(model, model=Hidden(model.model, hidden), id=f"{model.id} without {', '.join(dict.fromkeys(drop))}")


def with_shares(model: TrainedModel, sequence: Sequence) -> Trace:
    """The model's trace with `share_<modality>` among its extras: mean share over each second, on every frame of it.

    A modality's share of a frame is |y - y without it| over the sum of these (models/shares.py): one more run for each.

    Raises:
        InputError: the model reads one modality.
    """
    trace = model.predict(sequence)
    change: dict[str, Tensor] = {}
    for name in modalities_of(model.model):
        other = without(model, [name]).predict(sequence)
        apart = np.linalg.norm(np.nan_to_num(other.values - trace.values), axis=1)
        change[name] = torch.from_numpy(apart)
    seconds, means = per_second(relative(change), torch.from_numpy(np.array(trace.timeline.times)))
    index = np.searchsorted(seconds.numpy(), np.floor(trace.timeline.times))
    extras: dict[str, NDArray[np.float64]] = {
        f"{SHARE}{name}": np.where(trace.known, share.numpy()[index], np.nan) if len(trace) else np.zeros(0)
        for name, share in means.items()
    }
    return replace(trace, extras={**trace.extras, **extras})
