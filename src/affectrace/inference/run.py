"""Trained models: checkpoint loading, and prediction of recordings of any length.

Causal models read a recording in chunks and carry their state: the same values as live, in constant memory. Others
read overlapping windows, averaged where they overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from affectrace import config as configs
from affectrace.errors import ConfigError
from affectrace.features.compute import Compute
from affectrace.features.identity import extractors_of_training
from affectrace.inference.trained import CHUNK_FRAMES, Trained, Window, check_streams, trace_of
from affectrace.models import checkpoint
from affectrace.models.base import AffectModel
from affectrace.sequences import Sequence, SequenceConfig
from affectrace.sequences.batches import Batch, collate
from affectrace.sequences.config import WindowScheme
from affectrace.sequences.normalization import FILE_NAME, FeatureNormalizer
from affectrace.trace import Trace

OVERLAPPING = WindowScheme(size=1000, stride=500)
"""Default windows of models that are not causal (ours)."""


def sequence_config(model: AffectModel) -> SequenceConfig:
    """How a new model's features are aligned: on frames by its `align` (default: mean), or on their native clocks."""
    if model.clock != "frame":
        return SequenceConfig(clock="native", causal=model.causal)
    return SequenceConfig(align=getattr(model.config, "align", "mean"), causal=model.causal)


def sequences_dict(config: SequenceConfig) -> dict[str, Any]:
    """What a checkpoint stores of a SequenceConfig."""
    return {name: value for name, value in configs.to_dict(config).items() if name != "frames"}


def sized(name: str, preset: str, dims: Mapping[str, int], **changes: Any) -> AffectModel:
    """A new model for these streams, stream -> width; changes: further fields of its configuration.

    Raises ConfigError: invalid changes.
    """
    fields = checkpoint.entry(name).config_class().__dataclass_fields__
    inputs: dict[str, Any] = {}
    if "modalities" in fields:
        own = tuple(m for m in dims if m != "visual_beit")
        inputs = {"modalities": own, "input_dims": tuple(dims[m] for m in own)}
        if "visual_beit" in dims:
            inputs |= {"visual": "both", "visual_beit_dim": dims["visual_beit"]}
        if "visual" not in own:
            inputs["frame_modality"] = own[0]
    else:
        (inputs["modality"], inputs["input_dim"]), *more = dims.items()
        inputs["more_streams"] = dict(more)
    if unknown := sorted(set(changes) - set(fields)):
        raise ConfigError(f"{name} has no field {', '.join(unknown)}", hint=f"it has {', '.join(fields)}")
    return checkpoint.create(name, preset, **inputs | changes)


@dataclass(frozen=True, kw_only=True)
class TrainedModel(Trained):
    """A checkpoint in torch.

    model: in eval mode. statistics: of its training features; None: these were not standardized.
    """

    model: AffectModel
    statistics: FeatureNormalizer | None

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> TrainedModel:
        """Read a checkpoint folder (raises FormatError, ConfigError)."""
        found = checkpoint.load(Path(folder))
        extractors_of_training(found.extra)  # refuses damaged ones now
        scheme, sequences = None, sequence_config(found.model)
        if not found.model.causal:
            window = (found.extra.get("training") or {}).get("window")
            scheme = configs.from_dict(WindowScheme, window, where=folder) if window else OVERLAPPING
        if kept := found.extra.get("sequences"):
            sequences = configs.from_dict(SequenceConfig, {"label_rows": "start"} | kept, where=folder)
        return cls(
            model=found.model.to(Compute.choose(device).device),
            id=found.id,
            statistics=FeatureNormalizer.load(found.folder) if (found.folder / FILE_NAME).is_file() else None,
            scheme=scheme,
            features=dict(found.extra.get("features") or {}),
            sequences=sequences,
            about=found.extra,
        )

    @property
    def causal(self) -> bool:
        return self.model.causal

    @property
    def input_dims(self) -> dict[str, int]:
        return self.model.input_dims

    def described(self) -> dict[str, Any]:
        """The model, for a trace's provenance; windows: None where the state is carried."""
        network = {"name": str(self.model.name), "config": configs.to_dict(self.model.config)}
        return {**network, "validation": self._validation(), **super().described()}

    def _validation(self) -> dict[str, Any] | None:
        """Validation scores of the checkpoint; None where `train` did not write it.

        n, n_recordings: labelled frames and recordings. chosen: whether it is the best on them (None: not recorded).
        inner: whether they are part of the training set, held out to choose the checkpoint (cross-validation).
        """
        row, ids = self.about.get("validation"), (self.about.get("recordings") or {}).get("validation")
        if not row or not ids:
            return None
        held_out = self.about.get("held_out") or ()
        names = ("mean_ccc", "ccc_valence", "ccc_arousal", "n", "step", "chosen")
        inner = bool(held_out) and not set(held_out) & set(ids)
        return {name: row.get(name) for name in names} | {"n_recordings": len(ids), "inner": inner}

    def windows(self, sequence: Sequence) -> list[Window]:
        return _values(self.model, sequence, self.statistics, self.scheme)


def predict_sequence(
    model: AffectModel,
    sequence: Sequence,
    *,
    statistics: FeatureNormalizer | None = None,
    scheme: WindowScheme | None = None,
    source: str | None = None,
) -> Trace:
    """Valence and arousal of every frame of a recording, clipped to [-1, 1].

    The model runs in eval mode and is left in the mode it was in.

    Args:
        statistics: of the features it was trained on; None: features as they are.
        scheme: windows; None: a causal model carries its state through the recording, another one reads OVERLAPPING
            windows. Overlapping values are averaged, weighted by the distance to the edge of their window.
        source: Trace.source; by default the model's name.

    Raises:
        InputError: streams do not fit the model, or NaN or infinite values come out of it.
    """
    check_streams(model.input_dims, sequence)
    return trace_of(sequence, _values(model, sequence, statistics, scheme), source=source or model.name)


def _values(
    model: AffectModel, sequence: Sequence, statistics: FeatureNormalizer | None, scheme: WindowScheme | None
) -> list[Window]:
    """Frames and their values: chunks with carried state, or windows."""
    carried, state = scheme is None and model.causal, None
    chunks, was_training, found = WindowScheme(CHUNK_FRAMES, None), model.training, list[Window]()
    model.eval()
    try:
        with torch.inference_mode():
            for frames in sequence.windows(chunks if carried else scheme or OVERLAPPING):
                batch = window_batch(model, sequence, frames, statistics)
                y, new_state = model(batch.inputs, batch.valid, batch.times, state)
                state = new_state if carried else None
                found.append((frames, y[0].double().cpu().numpy()))
    finally:
        model.train(was_training)
    return found


def window_batch(model: AffectModel, sequence: Sequence, frames: slice, statistics: FeatureNormalizer | None) -> Batch:
    """A window of a recording as the model's input, on its device."""
    dims = model.input_dims | {m: stream.dim for m, stream in sequence.streams.items()}
    return collate([sequence.read(frames)], dims=dims, statistics=statistics).to(next(model.parameters()).device)
