"""Base of trained models, in torch or ONNX: identity, alignment, checks and provenance. Without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affectrace import config as configs
from affectrace.datasets.manifest import data_of
from affectrace.errors import InputError
from affectrace.features.base import ExtractorId
from affectrace.features.identity import ACCEPTED, extractors_of_training, how_to_make, not_as_trained
from affectrace.metrics import DIMENSIONS
from affectrace.sequences import Sequence, SequenceConfig
from affectrace.sequences.config import WindowScheme
from affectrace.sequences.windows import to_trace
from affectrace.trace import Trace

CHUNK_FRAMES = 1024
"""Frames read at a time for a causal model (ours: memory only; the values do not depend on it)."""
CLOCK_RATIO = {"start": 2.5, "end": 2.0}
"""Clocks that differ by more are not the same: of video frames (60 and 30 fps are the same), of label rows (ours)."""
Window = tuple[slice, NDArray[np.float64]]
"""Frames and their (n, 2) valence and arousal."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained model with everything needed to run it.

    id: name and hash, for Trace.source. scheme: windows; None: whole recordings with carried state. features: stream ->
    extractor. sequences: alignment of the features, as in training. about: what was stored with it. strict: refuse
    features of other extractors than those of training.
    """

    id: str
    scheme: WindowScheme | None
    features: Mapping[str, str]
    sequences: SequenceConfig
    about: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = True

    @property
    def causal(self) -> bool:
        """Whether the model uses the past only, and can carry its state through a recording."""
        raise NotImplementedError

    @property
    def input_dims(self) -> Mapping[str, int]:
        """Stream -> width of each input."""
        raise NotImplementedError

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The dimensions that were labelled in training; both where that is not recorded."""
        return tuple(self.about.get("dimensions") or DIMENSIONS)

    @property
    def synthetic(self) -> bool:
        """Whether it was trained on recordings of `affectrace synth`."""
        return bool(data_of(self.about).get("synthetic"))

    def described(self) -> dict[str, Any]:
        """The model, for a trace's provenance; windows: None where the state is carried."""
        accepted = {ACCEPTED: list(self.about[ACCEPTED])} if self.about.get(ACCEPTED) else {}
        windows = None if self.scheme is None else configs.to_dict(self.scheme)
        return {"checkpoint": self.id, "data": data_of(self.about) or None, **accepted, "windows": windows}

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
        check_streams(self.input_dims, sequence)
        read, note = self._on_training_clock(sequence)
        trace = trace_of(read, self.windows(read), source=self.id)
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
        ratio = CLOCK_RATIO[kept["until"]]
        if (whole and len(own) == 1) or (not whole and step_s / ratio < usual_s < step_s * ratio):
            return sequence, []
        duration_s = (own.end_tick - int(own.ticks[0])) * own.time_base
        rate_hz = 1 / (duration_s if whole else Fraction(step_s).limit_denominator(1_000_000))
        trained = "a label per recording" if whole else f"a label every {step_s:.3g} s"
        note = f"a row every {usual_s:.3g} s here, {trained} in training: predicted as in training, and held"
        return replace(sequence, timeline=own.resampled(rate_hz), until=kept["until"]), [note]

    def windows(self, sequence: Sequence) -> Iterable[Window]:
        """The values of each window the model runs in."""
        raise NotImplementedError


def check_streams(wanted: Mapping[str, int], sequence: Sequence) -> None:
    """Check that a recording has a stream that a model reads, and their widths (raises InputError).

    wanted: stream -> width.
    """
    given = {m: stream.dim for m, stream in sequence.streams.items()}
    if not set(wanted) & set(given):
        what = f"the model reads {', '.join(wanted)}; the recording has {', '.join(given) or 'no features'}"
        raise InputError(what, where=sequence.recording_id, hint="name features as stream=extractor")
    for m, dim in given.items():
        if m in wanted and dim != wanted[m]:
            what = f"'{m}' has {dim} columns, the model reads {wanted[m]}"
            raise InputError(what, where=sequence.recording_id, hint="use the features it was trained on")


def trace_of(sequence: Sequence, windows: Iterable[Window], *, source: str) -> Trace:
    """Trace of a recording from a model's windows, clipped to [-1, 1] (raises InputError: NaN or infinite values).

    Overlapping values are averaged, weighted by the distance to the edge of their window.
    """
    person = "main" if sequence.labels is None else sequence.labels.person
    place = (sequence.recording_id, sequence.timeline)
    values = ((frames, np.clip(_finite(y, frames, sequence), -1, 1)) for frames, y in windows)
    return to_trace(*place, values, source=source, person=person, overlap_weighting="triangular")


def _finite(y: NDArray[np.float64], frames: slice, sequence: Sequence) -> NDArray[np.float64]:
    if not np.isfinite(y).all():
        what = f"the model gives NaN or infinite values in frames {frames.start} to {frames.stop}"
        raise InputError(what, where=sequence.recording_id, hint="check its weights and these features for NaN")
    return y
