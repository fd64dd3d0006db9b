"""A trained model over a whole recording: one trace out, whatever the model and however long the recording.

Causal models read the recording in pieces and carry their state: the same numbers as live, in constant memory. Others
read overlapping windows that are joined again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from affectrace import config as configs
from affectrace.datasets.manifest import data_of
from affectrace.errors import ConfigError, InputError
from affectrace.features.base import ExtractorId
from affectrace.features.identity import ACCEPTED, extractors_of_training, how_to_make, not_as_trained
from affectrace.models import checkpoint
from affectrace.models.base import AffectModel
from affectrace.sequences import Sequence, SequenceConfig
from affectrace.sequences.batches import Batch, collate
from affectrace.sequences.normalization import FILE_NAME, FeatureNormalizer
from affectrace.sequences.windows import WindowScheme, to_trace
from affectrace.trace import Trace

CHUNK_FRAMES = 1024
"""Frames a causal model reads at a time (ours: memory; the result does not depend on it)."""
OVERLAPPING = WindowScheme(size=1000, stride=500)
"""Windows of models that are not causal, where the caller states none (ours)."""


def sequence_config(model: AffectModel) -> SequenceConfig:
    """How features are brought to a model: on frames as its `align` says (without one by their mean), or on their own
    clocks where it asks for these.
    """
    if model.clock != "frame":
        return SequenceConfig(clock="native", causal=model.causal)
    return SequenceConfig(align=getattr(model.config, "align", "mean"), causal=model.causal)


def sized(name: str, preset: str, dims: Mapping[str, int], **changes: Any) -> AffectModel:
    """A new model whose inputs are these streams, stream -> width; changes: further fields of its configuration.

    Raises:
        ConfigError: the model reads one stream and several are given; or the changes are refused.
    """
    found = checkpoint.entry(name)
    fields = found.config_class().__dataclass_fields__
    fitting: dict[str, Any] = {}
    if "modalities" in fields:
        own = [m for m in dims if m != "visual_beit"]
        fitting = {"modalities": tuple(own), "input_dims": tuple(dims[m] for m in own)}
        if "visual_beit" in dims:
            fitting |= {"visual": "both", "visual_beit_dim": dims["visual_beit"]}
        if "visual" not in own:
            fitting["frame_modality"] = own[0]
    elif len(dims) == 1:
        ((fitting["modality"], fitting["input_dim"]),) = dims.items()
    else:
        what = f"{name} reads one stream, {len(dims)} are given ({', '.join(dims)})"
        raise ConfigError(what, hint="give one --features")
    if unknown := sorted(set(changes) - set(fields)):
        raise ConfigError(f"{name} has no field {', '.join(unknown)}", hint=f"it has {', '.join(fields)}")
    return checkpoint.create(name, preset, **fitting | changes)


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint that `train` wrote, and all that it takes to run it.

    model: in eval mode. id: name and hash, for Trace.source. statistics: of its training features, None where these
    were not standardised. scheme: windows it runs in, None: whole recordings with carried state.
    features: stream -> extractor. sequences: how features were brought to it in training, and are again. about: what
    its writer kept.
    strict: refuse features that another extractor made than those of training.
    """

    model: AffectModel
    id: str
    statistics: FeatureNormalizer | None
    scheme: WindowScheme | None
    features: Mapping[str, str]
    sequences: SequenceConfig
    about: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = True

    @classmethod
    def load(cls, folder: Path, *, device: str = "cpu") -> TrainedModel:
        """Read a checkpoint folder (raises FormatError, ConfigError)."""
        found = checkpoint.load(Path(folder))
        extractors_of_training(found.extra)  # what is damaged is said now
        training = found.extra.get("training") or {}
        scheme = None
        if not found.model.causal:
            window = training.get("window")
            scheme = configs.from_dict(WindowScheme, window, where=folder) if window else OVERLAPPING
        kept = found.extra.get("sequences")
        return cls(
            model=found.model.to(device),
            id=found.id,
            statistics=FeatureNormalizer.load(found.folder) if (found.folder / FILE_NAME).is_file() else None,
            scheme=scheme,
            features=dict(found.extra.get("features") or {}),
            sequences=configs.from_dict(SequenceConfig, {"label_rows": "start"} | kept, where=folder)
            if kept
            else sequence_config(found.model),
            about=found.extra,
        )

    @property
    def causal(self) -> bool:
        """Whether it sees the past only, and can carry its state through a recording."""
        return self.model.causal

    @property
    def synthetic(self) -> bool:
        """Whether it was trained on recordings of `affectrace synth`."""
        return bool(data_of(self.about).get("synthetic"))

    def described(self) -> dict[str, Any]:
        """The model for a trace's provenance; windows: those it reads, None where its state is carried."""
        return {
            "name": str(self.model.name),
            "checkpoint": self.id,
            "config": configs.to_dict(self.model.config),
            "data": data_of(self.about) or None,
            "validation": self._validation(),
            **({ACCEPTED: list(self.about[ACCEPTED])} if self.about.get(ACCEPTED) else {}),
            "windows": None if self.scheme is None else configs.to_dict(self.scheme),
        }

    def _validation(self) -> dict[str, Any] | None:
        """What the checkpoint scored at its validation, None for one that `train` did not write.

        n, n_recordings: labelled frames and recordings. chosen: whether it is the best on them (None: not recorded).
        inner: whether they are of the training set, kept apart to choose the checkpoint (cross-validation).
        """
        row, ids = self.about.get("validation"), (self.about.get("recordings") or {}).get("validation")
        if not row or not ids:
            return None
        held_out = self.about.get("held_out") or ()
        names = ("mean_ccc", "ccc_valence", "ccc_arousal", "n", "step", "chosen")
        inner = bool(held_out) and not set(held_out) & set(ids)
        return {name: row.get(name) for name in names} | {"n_recordings": len(ids), "inner": inner}

    def check_features(self, found: Mapping[str, ExtractorId], hint: str = "") -> None:
        """Refuse features that something else made than those of training, unless not strict (raises InputError).

        found: stream -> what made them.
        """
        wanted = extractors_of_training(self.about)
        if self.strict and (lines := not_as_trained(wanted, found)):
            raise InputError("; ".join(lines), where=self.id, hint=hint or how_to_make(wanted))

    def predict(self, sequence: Sequence) -> Trace:
        """Valence and arousal of every frame of a recording (raises InputError: what does not fit)."""
        self.check_features({stream: table.extractor for stream, table in sequence.inputs.items()})
        trace = predict_sequence(self.model, sequence, statistics=self.statistics, scheme=self.scheme, source=self.id)
        if accepted := self.about.get(ACCEPTED):
            trace = replace(trace, provenance={**trace.provenance, ACCEPTED: list(accepted)})
        return trace


def sequences_dict(config: SequenceConfig) -> dict[str, Any]:
    """A SequenceConfig as plain values, to be kept with a model."""
    return {name: getattr(config, name) for name in ("clock", "align", "causal", "missing", "label_rows")} | {
        "align_by": dict(config.align_by)
    }


def check_streams(model: AffectModel, sequence: Sequence) -> None:
    """See that a recording has streams that the model reads, in its widths (raises InputError)."""
    wanted = model.input_dims
    there = {m: s.dim for m, s in sequence.streams.items()}
    if not set(wanted) & set(there):
        what = f"the model reads {', '.join(wanted)}; the recording has {', '.join(there) or 'no features'}"
        raise InputError(what, where=sequence.recording_id, hint="name features as stream=extractor")
    for m, dim in there.items():
        if m in wanted and dim != wanted[m]:
            what = f"'{m}' has {dim} columns, the model reads {wanted[m]}"
            raise InputError(what, where=sequence.recording_id, hint="use the features it was trained on")


def predict_sequence(
    model: AffectModel,
    sequence: Sequence,
    *,
    statistics: FeatureNormalizer | None = None,
    scheme: WindowScheme | None = None,
    source: str | None = None,
    person: str | None = None,
) -> Trace:
    """Valence and arousal of every frame of a recording, clipped to [-1, 1].

    Args:
        model: of the registry, on any device; it is run in eval mode and left in the mode it was in.
        statistics: those the model was trained with; None: features as they are.
        scheme: windows to run it in; None: a causal model carries its state through the whole recording, another one
            takes overlapping windows, a frame in several of which is their mean, by distance to their edges.
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
            parts = list(_parts(model, sequence, statistics, scheme))
    finally:
        model.train(was_training)
    if person is None:
        person = "main" if sequence.labels is None else sequence.labels.person
    return to_trace(
        sequence.recording_id,
        sequence.timeline,
        parts,
        source=source or model.name,
        person=person,
        overlap_weighting="triangular",
    )


def _parts(
    model: AffectModel, sequence: Sequence, statistics: FeatureNormalizer | None, scheme: WindowScheme | None
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Frames and their values: of pieces that carry the state, or of windows that do not."""
    carried, state = scheme is None and model.causal, None
    starts = range(0, len(sequence), CHUNK_FRAMES)
    chunks = [slice(start, min(start + CHUNK_FRAMES, len(sequence))) for start in starts]
    for frames in chunks if carried else sequence.windows(scheme or OVERLAPPING):
        batch = window_batch(model, sequence, frames, statistics)
        y, after = model(batch.inputs, batch.valid, batch.times, state)
        state = after if carried else None
        values = y[0].double().cpu().numpy()
        if not np.isfinite(values).all():
            raise InputError(
                f"the model gives values that are no numbers in frames {frames.start} to {frames.stop}",
                where=sequence.recording_id,
                hint="its weights or these features hold NaN; check both",
            )
        yield frames, np.clip(values, -1, 1)


def window_batch(model: AffectModel, sequence: Sequence, frames: slice, statistics: FeatureNormalizer | None) -> Batch:
    """Some frames of a recording as the model takes them, on its device."""
    dims = model.input_dims | {m: s.dim for m, s in sequence.streams.items()}
    return collate([sequence.read(frames)], dims=dims, statistics=statistics).to(next(model.parameters()).device)
