"""Ensembles: models that read their own features and windows, and the mean of their traces."""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import InputError, UnknownNameError, optional_packages
from affectrace.features.base import ExtractorId
from affectrace.features.compute import Compute
from affectrace.inference.onnx_model import OnnxModel, is_onnx
from affectrace.inference.trained import Trained
from affectrace.sequences import Sequence, SequenceConfig
from affectrace.sequences.config import WindowScheme
from affectrace.sequences.windows import NOT_COVERED
from affectrace.trace import NO_SOUND, Trace


@dataclass(frozen=True)
class Ensemble:
    """Trained models and their weights (by default equal). shares: add each modality's share to a single model's trace.

    Raises:
        InputError: no models, or weights that are negative, all 0, or not one for each model.
    """

    members: tuple[Trained, ...]
    weights: tuple[float, ...] = ()
    shares: bool = False

    def __post_init__(self) -> None:
        weights = tuple(float(w) for w in self.weights) or (1.0,) * len(self.members)
        object.__setattr__(self, "weights", weights)
        if len(weights) != len(self.members) or not 0 < sum(weights) < np.inf or min(weights) < 0:
            what = f"{len(weights)} weights for {len(self.members)} models: {', '.join(f'{w:g}' for w in weights)}"
            raise InputError(what, where="weights", hint="give one for each model, none negative, not all 0")

    @classmethod
    def load(
        cls, names: abc.Sequence[str | Path], weights: abc.Sequence[float] = (), *, device: str = "cpu"
    ) -> Ensemble:
        """Read checkpoints and ONNX files (raises FormatError, ConfigError, InputError)."""
        return cls(tuple(load_member(name, device) for name in names), tuple(weights))

    @property
    def id(self) -> str:
        """Trace.source: the ids of its members, joined by +."""
        return "+".join(m.id for m in self.members)

    def predict(self, opened: Callable[[Trained], Sequence]) -> Trace:
        """Valence and arousal of every frame of a recording; `opened` gives it as a member reads it."""
        traces = [member.predict(opened(member)) for member in self.members]
        return mean_trace(traces, self.weights, source=self.id)

    def explained(self, opened: Callable[[SequenceConfig], Sequence], missing: NDArray[np.str_]) -> Trace:
        """`predict` on the recording as `opened` gives it; frames a model has no input for (yet) are invalid.

        missing: (T,) reasons for frames without an estimate, "" = no sound.
        """
        traces = []
        for member in self.members:
            sequence = opened(member.sequences)
            trace = self._with_shares(member, sequence) if self.shares else member.predict(sequence)
            informed = _informed(sequence, causal=member.causal)
            reason = np.where(missing == "", NO_SOUND, missing)
            reason = np.where(trace.known & ~informed, reason, trace.reason)
            extras = {name: np.where(informed, x, np.nan) for name, x in trace.extras.items()}
            traces.append(replace(trace, valid=trace.valid & informed[:, None], reason=reason, extras=extras))
        return mean_trace(traces, self.weights, source=self.id)

    @staticmethod
    def _with_shares(member: Trained, sequence: Sequence) -> Trace:
        from affectrace.inference.modalities import with_shares  # loads torch

        return with_shares(member, sequence)  # type: ignore[arg-type]

    def check_features(self, found: Mapping[str, ExtractorId], hint: str) -> None:
        """As Trained's, for each member (raises InputError)."""
        for member in self.members:
            member.check_features(found, hint)

    def described(self) -> dict[str, Any]:
        """The model, for a trace's provenance."""
        described = [m.described() for m in self.members]
        if len(described) == 1:
            return described[0]
        return {"name": "+".join(m["name"] for m in described), "checkpoint": self.id, "mean_of": described}


def for_recordings(
    names: abc.Sequence[str | Path],
    features: Mapping[str, str],
    device: str,
    shares: bool,
    windows: WindowScheme | str | None,
) -> tuple[Ensemble, dict[str, str], Compute, str | None]:
    """Checkpoints with the same inputs, these (stream -> extractor), the device, and the windows.

    Arguments and errors as of `predictor.load`.
    """
    scheme = WindowScheme.parse(windows) if isinstance(windows, str) else windows
    compute = Compute.choose(device)
    ensemble = Ensemble.load(names, device=compute.device)
    members = ensemble.members
    if shares and len(members) > 1:
        raise InputError("--shares needs a single model", hint="run the models one at a time")
    if shares:
        if isinstance(members[0], OnnxModel):
            hint = "give the checkpoint it was exported from"
            raise InputError("--shares does not work with an ONNX file", where=names[0], hint=hint)
        from affectrace.inference.modalities import modalities_of

        modalities_of(members[0].model)  # type: ignore[attr-defined]
    if scheme is not None and not any(m.causal for m in members):
        raise InputError(f"{ensemble.id} is not causal and always reads windows", hint="leave out --windows")
    if scheme is not None:
        members = tuple(replace(m, scheme=scheme) if m.causal else m for m in members)
    streams = [_streams(member, name, features) for member, name in zip(members, names, strict=True)]
    for name, read in zip(names, streams, strict=True):
        if read != streams[0]:
            what = f"the models read different features: {names[0]} {streams[0]}, {name} {read}"
            raise InputError(what, hint="average models of different features with `affectrace evaluate --ensemble`")
    given = None if scheme is None else f"{scheme.size}:{scheme.stride}"
    return Ensemble(members, shares=shares), streams[0], compute, given


def load_member(name: str | Path, device: str = "cpu") -> Trained:
    """A checkpoint folder, "user/model@REVISION" (see `checkpoint_folder`), or an exported ONNX file."""
    if is_onnx(name):
        return OnnxModel.load(Path(name).expanduser())
    with optional_packages("a trained model"):
        from affectrace.inference.run import TrainedModel
        from affectrace.models.publish import checkpoint_folder
    return TrainedModel.load(checkpoint_folder(name), device=device)


def _streams(trained: Trained, name: str | Path, features: Mapping[str, str]) -> dict[str, str]:
    """Stream -> extractor of what a checkpoint reads (raises InputError, UnknownNameError)."""
    known = tuple(trained.input_dims)
    for stream in features:
        if stream not in known:
            raise UnknownNameError.of("stream", stream, known)
    streams = {**trained.features, **features}
    if not streams:
        hint = f"give them: {', '.join(f'{stream}=EXTRACTOR' for stream in known)}"
        raise InputError("does not name the features it reads", where=name, hint=hint)
    return streams


def _informed(sequence: Sequence, *, causal: bool) -> NDArray[np.bool_]:
    """(T,) whether a frame has any input: up to then for a causal model, anywhere for another."""
    times = sequence.timeline.times
    first = min((s.timeline.times[s.filled][0] for s in sequence.streams.values() if s.filled.any()), default=np.inf)
    return times >= first if causal else np.full(len(times), np.isfinite(first))


def mean_trace(traces: abc.Sequence[Trace], weights: abc.Sequence[float] = (), *, source: str | None = None) -> Trace:
    """Weighted mean of traces of one recording, on the clock of the first; of a single one that trace.

    Each dimension of a frame is averaged over the traces where it is valid; a frame valid in none keeps the first one's
    reason. Raises InputError for traces of several recordings or persons.
    """
    first = traces[0]
    if len({(t.recording_id, t.person) for t in traces}) > 1:
        raise InputError("traces of several recordings or persons cannot be averaged", hint="give traces of one person")
    if len(traces) == 1:
        return replace(first, source=source or first.source)
    on_clock = [t if t.timeline == first.timeline else t.resample(first.timeline) for t in traces]
    weights = tuple(weights) or (1.0,) * len(traces)
    counts = np.stack([float(w) * t.valid for w, t in zip(weights, on_clock, strict=True)])  # (M, T, 2)
    total = counts.sum(axis=0)
    shares = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    values = np.stack([np.where(t.valid, t.values, 0) for t in on_clock])
    valence, arousal = np.clip((shares * values).sum(axis=0), -1, 1).T
    valid = total > 0
    reason = np.where(valid.any(axis=1), "", np.where(first.known, NOT_COVERED, first.reason))
    source = source or "+".join(t.source for t in traces)
    return Trace(first.recording_id, first.timeline, valence, arousal, valid, reason, source, first.person)
