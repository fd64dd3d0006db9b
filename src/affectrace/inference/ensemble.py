"""Several trained models as one: each predicts a recording by itself, the traces are averaged.

    checkpoint 1 --its own features, windows, statistics--> trace 1  \\
    ...                                                               > mean, weighted; a frame counts where any does
    checkpoint n ------------------------------------------> trace n /
"""

from __future__ import annotations

from collections import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import InputError, UnknownNameError
from affectrace.features import registry
from affectrace.features.base import ExtractorId
from affectrace.features.runtime import Compute
from affectrace.inference.modalities import modalities_of, with_shares
from affectrace.inference.run import TrainedModel
from affectrace.models.publish import checkpoint_folder
from affectrace.sequences import Sequence, SequenceConfig
from affectrace.sequences.windows import NOT_COVERED, WindowScheme
from affectrace.trace import NO_SOUND, Trace


@dataclass(frozen=True)
class Ensemble:
    """Trained models and what each counts; weights need not add up to 1 (raises InputError: they do not fit).

    shares: of a single model: add each modality's share to its traces.
    """

    members: tuple[TrainedModel, ...]
    weights: tuple[float, ...] = ()
    shares: bool = False

    def __post_init__(self) -> None:
        weights = self.weights or (1.0,) * len(self.members)
        _check(len(self.members), weights)
        object.__setattr__(self, "weights", tuple(float(w) for w in weights))

    @classmethod
    def load(
        cls, folders: abc.Sequence[str | Path], weights: abc.Sequence[float] = (), *, device: str = "cpu"
    ) -> Ensemble:
        """Read checkpoint folders (raises FormatError, ConfigError, InputError)."""
        if weights:
            _check(len(folders), weights)
        return cls(tuple(TrainedModel.load(Path(f), device=device) for f in folders), tuple(weights))

    @property
    def id(self) -> str:
        """Trace.source: the member's own, or all of them."""
        return self.members[0].id if len(self.members) == 1 else "+".join(m.id for m in self.members)

    def predict(self, opened: Callable[[TrainedModel], Sequence]) -> Trace:
        """Valence and arousal of every frame of a recording, which `opened` gives as a member reads it."""
        traces = [member.predict(opened(member)) for member in self.members]
        return mean_trace(traces, self.weights, source=self.id)

    def explained(self, opened: Callable[[SequenceConfig], Sequence], missing: NDArray[np.str_]) -> Trace:
        """`predict`, of the recording as `opened` brings it to each; not valid where a model knows nothing yet.

        missing: (T,) why frames about which nothing is known have no estimate; "" where the model has to say why.
        """
        traces = []
        for member in self.members:
            sequence = opened(member.sequences)
            trace = with_shares(member, sequence) if self.shares else member.predict(sequence)
            informed = _informed(sequence, causal=member.causal)
            valid = trace.valid & informed[:, None]
            traces.append(
                replace(
                    trace,
                    valence=np.where(valid[:, 0], trace.valence, np.nan),
                    arousal=np.where(valid[:, 1], trace.arousal, np.nan),
                    valid=valid,
                    reason=np.where(trace.known & ~informed, np.where(missing == "", NO_SOUND, missing), trace.reason),
                    extras={name: np.where(informed, x, np.nan) for name, x in trace.extras.items()},
                )
            )
        return traces[0] if len(traces) == 1 else mean_trace(traces, self.weights, source=self.id)

    def check_features(self, found: Mapping[str, ExtractorId], hint: str) -> None:
        """As each member's own (raises InputError)."""
        for member in self.members:
            member.check_features(found, hint)

    def described(self) -> dict[str, Any]:
        """The model for a trace's provenance."""
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
    """Checkpoints that read the same, stream -> extractor of what that is, what they run on, and their windows.

    Arguments and errors as of `predictor.load`.
    """
    folders = [_checkpoint_folder(name) for name in names]
    scheme = WindowScheme.parse(windows) if isinstance(windows, str) else windows
    compute = Compute.choose(device)
    members = Ensemble.load(folders, device=compute.device).members
    if shares and len(members) > 1:
        raise InputError("--shares are of one model, several are given", hint="ask them one at a time")
    if shares:
        modalities_of(members[0].model)
    if scheme is not None:  # the causal ones read windows; the others read those of their training anyway
        if not any(m.causal for m in members):
            raise InputError(
                f"{'+'.join(m.id for m in members)} is not causal: it carries no state and always reads windows",
                hint="leave out --windows",
            )
        members = tuple(replace(m, scheme=scheme) if m.causal else m for m in members)
    read = [_streams(member, f, features) for member, f in zip(members, folders, strict=True)]
    for i, streams in enumerate(read):
        if streams != read[0]:
            told = [f"{folders[k]}: {', '.join(f'{s}={x}' for s, x in sorted(read[k].items()))}" for k in (0, i)]
            raise InputError(
                f"the models read different features ({'; '.join(told)})",
                hint="predict with those that read the same; `affectrace evaluate --ensemble` averages any",
            )
    asked = None if scheme is None else f"{scheme.size}:{scheme.stride}"
    return Ensemble(members, shares=shares), read[0], compute, asked


def _checkpoint_folder(name: str | Path) -> Path:
    folder = checkpoint_folder(name)
    if folder is None:
        error = UnknownNameError.of("model", str(name), ("zero-shot",))
        raise UnknownNameError(error.what, hint=f"{error.hint}, a checkpoint folder, or user/model@REVISION")
    return folder


def _streams(trained: TrainedModel, folder: Path, features: Mapping[str, str]) -> dict[str, str]:
    """Stream -> extractor of what a checkpoint reads (raises InputError, UnknownNameError)."""
    wanted = tuple(trained.model.config.streams)  # type: ignore[union-attr, arg-type]
    for stream in features:
        if stream not in wanted:
            raise UnknownNameError.of("stream", stream, wanted)
    streams = {**trained.features, **features}
    if not streams:
        raise InputError(
            "does not name the features it reads, so it cannot be run on recordings",
            where=folder,
            hint=f"give them: {', '.join(f'{stream}=EXTRACTOR' for stream in wanted)}",
        )
    for stream, name in streams.items():
        if name.split("=", 1)[0] not in registry.NAMES:
            raise UnknownNameError(
                f"'{stream}' is made by '{name}', which is no extractor of ours",
                where=folder,
                hint="predict from feature files (`affectrace evaluate`), or name an extractor for it",
            )
    return streams


def _informed(sequence: Sequence, *, causal: bool) -> NDArray[np.bool_]:
    """(T,) frames about which the model was told anything: by now, or, where it sees the future, ever."""
    times = sequence.timeline.times
    first = [s.timeline.times[s.filled][0] for s in sequence.streams.values() if s.filled.any()]
    if not first:
        return np.zeros(len(times), bool)
    return times >= min(first) if causal else np.ones(len(times), bool)


def mean_trace(traces: abc.Sequence[Trace], weights: abc.Sequence[float] = (), *, source: str | None = None) -> Trace:
    """Traces of one recording as their weighted mean, on the first one's clock (raises InputError: they do not fit).

    In every frame the mean of a dimension is over the traces that know it there; a frame of which none knows either
    keeps the first one's reason.
    """
    weights = tuple(weights) or (1.0,) * len(traces)
    _check(len(traces), weights)
    first = traces[0]
    if len({(t.recording_id, t.person) for t in traces}) > 1:
        raise InputError(
            "traces of several recordings or persons cannot be averaged", hint="give one trace a model of each"
        )
    on_clock = [t if t.timeline == first.timeline else t.resample(first.timeline) for t in traces]
    if len(on_clock) == 1:
        return replace(first, source=source or first.source)
    counts = np.stack([float(w) * t.valid for w, t in zip(weights, on_clock, strict=True)])  # (M, T, 2)
    total = counts.sum(axis=0)
    valid = np.asarray(total > 0)
    shares = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    values = np.stack([np.where(t.valid, t.values, 0) for t in on_clock])
    mean = np.clip(np.einsum("mtd,mtd->td", shares, values), -1, 1)
    mean[~valid] = np.nan
    return Trace(
        recording_id=first.recording_id,
        person=first.person,
        timeline=first.timeline,
        valence=mean[:, 0],
        arousal=mean[:, 1],
        valid=valid,
        reason=np.where(valid.any(axis=1), "", np.where(first.known, NOT_COVERED, first.reason)),
        source=source or "+".join(t.source for t in traces),
    )


def _check(n: int, weights: abc.Sequence[float]) -> None:
    if not n:
        raise InputError("an ensemble of no models", hint="give at least one checkpoint folder")
    if len(weights) != n or not all(np.isfinite(w) and w >= 0 for w in weights) or not sum(weights):
        raise InputError(
            f"{len(weights)} weights for {n} models: {', '.join(f'{w:g}' for w in weights)}",
            where="weights",
            hint="give one a model, none negative, not all 0",
        )
