"""A trained model over a whole recording: one trace out, whatever the model and however long the recording.

Causal models read the recording in pieces and carry their state: the same numbers as live, in constant memory. Others
read overlapping windows that are joined again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from affectrace.batches import collate
from affectrace.errors import InputError
from affectrace.sequences import Sequence, SequenceConfig
from affectrace.standardise import Statistics
from affectrace.trace import Trace
from affectrace.windows import Joining, WindowScheme, to_trace

CHUNK_FRAMES = 1024
"""Frames a causal model reads at a time (ours: memory; the result does not depend on it)."""
OVERLAPPING = WindowScheme(size=1000, stride=500)
"""Windows of models that are not causal, where the caller states none (ours)."""

Part = tuple[slice, NDArray[np.float64]]


def sequence_config(model: nn.Module) -> SequenceConfig:
    """How features are brought to a model by default: on frames, or on their own clocks where it asks for these."""
    causal, clock = bool(getattr(model, "causal", False)), getattr(model, "clock", "frame")
    return SequenceConfig(clock="frame" if clock == "frame" else "native", causal=causal)


def check_streams(model: nn.Module, sequence: Sequence) -> None:
    """See that a recording has what the model reads.

    Raises:
        InputError: a stream is missing altogether, or has another width.
    """
    wanted: dict[str, Any] = dict(model.config.streams)  # type: ignore[union-attr, arg-type]
    there = {m: s.dim for m, s in sequence.streams.items()}
    if not set(wanted) & set(there):
        raise InputError(
            f"the model reads {', '.join(wanted)}; the recording has {', '.join(there) or 'no features'}",
            where=sequence.recording_id,
            hint="name features as stream=extractor",
        )
    for m, dim in there.items():
        if m in wanted and dim != wanted[m]:
            raise InputError(
                f"'{m}' has {dim} columns, the model reads {wanted[m]}",
                where=sequence.recording_id,
                hint="use the features it was trained on",
            )


def predict_sequence(
    model: nn.Module,
    sequence: Sequence,
    *,
    statistics: Statistics | None = None,
    scheme: WindowScheme | None = None,
    how: Joining = "fade",
    source: str | None = None,
    person: str | None = None,
) -> Trace:
    """Valence and arousal of every frame of a recording, clipped to [-1, 1].

    Args:
        model: of the registry, on any device; it is run in eval mode and left in the mode it was in.
        statistics: those the model was trained with; None: features as they are.
        scheme: windows to run it in; None: a causal model carries its state through the whole recording, another one
            takes overlapping windows.
        how: how windows are joined.
        source: Trace.source; by default the model's name.
        person: whose; by default that of the labels, or "main".

    Raises:
        InputError: streams do not fit the model, or it gives values that are no numbers.
    """
    check_streams(model, sequence)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            if scheme is None and getattr(model, "causal", False):
                parts = list(_carried(model, sequence, statistics))
            else:
                parts = list(_windowed(model, sequence, statistics, scheme or OVERLAPPING))
    finally:
        model.train(was_training)
    if person is None:
        person = "main" if sequence.labels is None else sequence.labels.person
    name = source or str(getattr(model, "name", type(model).__name__))
    return to_trace(sequence.recording_id, sequence.timeline, parts, source=name, person=person, how=how)


def _carried(model: nn.Module, sequence: Sequence, statistics: Statistics | None) -> Iterator[Part]:
    state: Any = None
    for start in range(0, len(sequence), CHUNK_FRAMES):
        frames = slice(start, min(start + CHUNK_FRAMES, len(sequence)))
        values, state = _run(model, sequence, frames, statistics, state)
        yield frames, values


def _windowed(
    model: nn.Module, sequence: Sequence, statistics: Statistics | None, scheme: WindowScheme
) -> Iterator[Part]:
    for frames in sequence.windows(scheme):
        yield frames, _run(model, sequence, frames, statistics, None)[0]


def _run(
    model: nn.Module, sequence: Sequence, frames: slice, statistics: Statistics | None, state: Any
) -> tuple[NDArray[np.float64], Any]:
    device = next(model.parameters()).device
    batch = collate([sequence.read(frames)], dims=model_dims(model, sequence), statistics=statistics).to(device)
    y, state = model(batch.inputs, batch.valid, batch.times, state)
    values = _numbers(y)
    if not np.isfinite(values).all():
        raise InputError(
            f"the model gives values that are no numbers in frames {frames.start} to {frames.stop}",
            where=sequence.recording_id,
            hint="its weights or these features hold NaN; check both",
        )
    return np.clip(values, -1, 1), state


def model_dims(model: nn.Module, sequence: Sequence) -> dict[str, int]:
    """Stream -> width of what the model reads and of what the recording has."""
    wanted: dict[str, Any] = dict(model.config.streams)  # type: ignore[union-attr, arg-type]
    return {m: int(d) for m, d in wanted.items() if isinstance(d, int)} | {
        m: s.dim for m, s in sequence.streams.items()
    }


def _numbers(y: Tensor) -> NDArray[np.float64]:
    return np.asarray(y[0].float().cpu().numpy(), dtype=np.float64)
