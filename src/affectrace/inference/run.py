"""Trained models: checkpoint loading, and prediction of recordings of any length.

Causal models read a recording in chunks and carry their state: the same values as live, in constant memory. Others
read overlapping windows, averaged where they overlap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
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
from affectrace.features.runtime import Compute
from affectrace.metrics import DIMENSIONS
from affectrace.models import checkpoint
from affectrace.models.base import AffectModel
from affectrace.sequences import Sequence, SequenceConfig
from affectrace.sequences.batches import Batch, collate
from affectrace.sequences.config import WindowScheme
from affectrace.sequences.normalization import FILE_NAME, FeatureNormalizer
from affectrace.sequences.windows import to_trace
from affectrace.trace import Trace

CHUNK_FRAMES = 1024
"""Frames per call of a causal model (ours: memory only; the values do not depend on it)."""
CLOCK_RATIO = 2.0
"""Clocks that differ by more are not taken for the same (ours)."""
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


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint with everything needed to run it.

    model: in eval mode. id: name and hash, for Trace.source. statistics: of its training features; None: these were
    not standardized. scheme: windows; None: whole recordings with carried state. features: stream -> extractor.
    sequences: alignment of the features, as in training. about: the checkpoint's `extra`. strict: refuse features of
    other extractors than those of training.
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
    def dimensions(self) -> tuple[str, ...]:
        """The dimensions that were labelled in training; both where that is not recorded."""
        return tuple(self.about.get("dimensions") or DIMENSIONS)

    @property
    def causal(self) -> bool:
        """Whether the model uses the past only, and can carry its state through a recording."""
        return self.model.causal

    @property
    def synthetic(self) -> bool:
        """Whether it was trained on recordings of `affectrace synth`."""
        return bool(data_of(self.about).get("synthetic"))

    def described(self) -> dict[str, Any]:
        """The model, for a trace's provenance; windows: None where the state is carried."""
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

    def check_features(self, found: Mapping[str, ExtractorId], hint: str = "") -> None:
        """Refuse features of other extractors (stream -> extractor) than those of training (raises InputError)."""
        wanted = extractors_of_training(self.about)
        if self.strict and (lines := not_as_trained(wanted, found)):
            raise InputError("; ".join(lines), where=self.id, hint=hint or how_to_make(wanted))

    def predict(self, sequence: Sequence) -> Trace:
        """Valence and arousal of every frame of a recording, of what was labelled in training (raises InputError).

        On a clock more than `CLOCK_RATIO` times as fast or as slow as that of training, the model runs on training's
        and its values are held; the provenance says so in a note.
        """
        self.check_features({stream: table.extractor for stream, table in sequence.inputs.items()})
        read, note = self._on_training_clock(sequence)
        trace = predict_sequence(self.model, read, statistics=self.statistics, scheme=self.scheme, source=self.id)
        valid = trace.valid & np.array([d in self.dimensions for d in DIMENSIONS])
        about = {ACCEPTED: list(self.about.get(ACCEPTED) or ()), "notes": note}
        trace = replace(trace, valid=valid, provenance={name: lines for name, lines in about.items() if lines})
        return trace if read is sequence else trace.resample(sequence.timeline)

    def _on_training_clock(self, sequence: Sequence) -> tuple[Sequence, list[str]]:
        """The recording on a clock like that of training, and a note if that is not its own."""
        kept, own = self.about.get("clock"), sequence.timeline
        if not kept or not len(own):
            return sequence, []
        step_s, whole = float(kept["step_s"]), bool(kept["per_recording"])
        usual_s = float(np.median(own.ends - own.times))
        if (whole and len(own) == 1) or (not whole and step_s / CLOCK_RATIO < usual_s < step_s * CLOCK_RATIO):
            return sequence, []
        duration_s = (own.end_tick - int(own.ticks[0])) * own.time_base
        rate_hz = 1 / (duration_s if whole else Fraction(step_s).limit_denominator(1_000_000))
        trained = "a label per recording" if whole else f"a label every {step_s:.3g} s"
        note = f"a row every {usual_s:.3g} s here, {trained} in training: predicted as in training, and held"
        return replace(sequence, timeline=own.resampled(rate_hz), until=kept["until"]), [note]


def check_streams(model: AffectModel, sequence: Sequence) -> None:
    """Check that a recording has a stream that the model reads, and their widths (raises InputError)."""
    wanted = model.input_dims
    given = {m: stream.dim for m, stream in sequence.streams.items()}
    if not set(wanted) & set(given):
        what = f"the model reads {', '.join(wanted)}; the recording has {', '.join(given) or 'no features'}"
        raise InputError(what, where=sequence.recording_id, hint="name features as stream=extractor")
    for m, dim in given.items():
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
    check_streams(model, sequence)
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            windows = list(_windows(model, sequence, statistics, scheme))
    finally:
        model.train(was_training)
    person = "main" if sequence.labels is None else sequence.labels.person
    place = (sequence.recording_id, sequence.timeline)
    return to_trace(*place, windows, source=source or model.name, person=person, overlap_weighting="triangular")


def _windows(
    model: AffectModel, sequence: Sequence, statistics: FeatureNormalizer | None, scheme: WindowScheme | None
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Frames and their values: chunks with carried state, or windows."""
    carried, state = scheme is None and model.causal, None
    chunks = WindowScheme(CHUNK_FRAMES, None)
    for frames in sequence.windows(chunks if carried else scheme or OVERLAPPING):
        batch = window_batch(model, sequence, frames, statistics)
        y, new_state = model(batch.inputs, batch.valid, batch.times, state)
        state = new_state if carried else None
        values = y[0].double().cpu().numpy()
        if not np.isfinite(values).all():
            what = f"the model gives NaN or infinite values in frames {frames.start} to {frames.stop}"
            hint = "check its weights and these features for NaN"
            raise InputError(what, where=sequence.recording_id, hint=hint)
        yield frames, np.clip(values, -1, 1)


def window_batch(model: AffectModel, sequence: Sequence, frames: slice, statistics: FeatureNormalizer | None) -> Batch:
    """A window of a recording as the model's input, on its device."""
    dims = model.input_dims | {m: stream.dim for m, stream in sequence.streams.items()}
    return collate([sequence.read(frames)], dims=dims, statistics=statistics).to(next(model.parameters()).device)
