"""What is scored or handed in: predictions of checkpoints, or traces from files, and the labels beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from affectrace.commands import Speaking, _traces
from affectrace.errors import FormatError, InputError
from affectrace.progress import ProgressEvent
from affectrace.terminal import Terminal

if TYPE_CHECKING:
    from affectrace.datasets.manifest import Manifest
    from affectrace.models_run import TrainedModel
    from affectrace.recording import Recording
    from affectrace.sequences import Sequence as Recorded
    from affectrace.trace import Trace

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class ScoredOptions(Speaking):
    """Shared by what reads models or traces beside a data set."""

    data: Path = Path()
    """Data set: manifest.json, its folder, or the Aff-Wild2 layout."""
    split: Split = "validation"
    """Which recordings (with --fold 0)."""
    fold: int = 0
    """k > 0: the recordings held out in fold k instead of a split."""
    store: Path = Path("features")
    """Folder that `affectrace extract` wrote, for models."""
    device: str = "cpu"
    """Where models run: cpu, cuda, ..."""
    smooth: str = "none"
    """Smooth predictions first: none, or median, mean, wiener with the window in seconds (median:0.5), or auto: what
    was kept beside the checkpoint."""
    draws: int = 2000
    """Bootstrap resamples of recordings."""
    seed: int = 0
    """Of the bootstrap."""


class Wanted(Protocol):
    """What prediction is asked with."""

    @property
    def store(self) -> Path: ...

    @property
    def device(self) -> str: ...

    @property
    def smooth(self) -> str: ...


def members(manifest: Manifest, options: ScoredOptions) -> tuple[Recording, ...]:
    """The labelled recordings that are scored (raises InputError: none)."""
    from affectrace.datasets.folds import fold_sets

    found = fold_sets(manifest, options.fold)[1] if options.fold else manifest.of_split(options.split)
    labelled = tuple(r for r in found if r.labels is not None)
    if not labelled:
        raise InputError(f"no labelled recording in '{options.split}'", where=manifest.name, hint="try --split")
    return labelled


def is_model(given: Sequence[str]) -> bool:
    """Whether one checkpoint folder is given."""
    return len(given) == 1 and are_models(given)


def are_models(given: Sequence[str]) -> bool:
    """Whether nothing but checkpoint folders is given."""
    return bool(given) and all((Path(g) / "model.safetensors").is_file() for g in given)


def paths_in(text: str) -> tuple[str, ...]:
    """A path, or several between commas."""
    return (text,) if Path(text).exists() else tuple(part for part in text.split(",") if part)


def predictions_of(
    given: Sequence[str],
    recordings: Sequence[Recording],
    manifest: Manifest | None,
    options: Wanted,
    terminal: Terminal,
    weights: Sequence[float] | None,
    drop: Sequence[str] = (),
) -> list[Trace]:
    """Traces given, or what checkpoints predict; weights: of an ensemble, None where none is asked for."""
    from affectrace.evaluate_smoothing import AUTO, kept_choice, parse_smoothing, smoothed

    if options.smooth == AUTO:
        method, window_s = kept_choice([Path(g) for g in given])
    else:
        method, window_s = parse_smoothing(options.smooth)
    if are_models(given) and manifest is not None:
        if weights is None and len(given) > 1:
            hint = "average them with --ensemble, or set them side by side with `affectrace compare`"
            raise InputError(f"{len(given)} checkpoints are given", hint=hint)
        traces = _predicted([Path(g) for g in given], weights or (), recordings, manifest, options, terminal, drop)
    elif weights:
        raise InputError("only checkpoints are weighted", where="--weights", hint="give checkpoint folders")
    else:
        traces = _traces(given)
    return [smoothed(t, method, window_s) for t in traces]


def _predicted(
    folders: Sequence[Path],
    weights: Sequence[float],
    recordings: Sequence[Recording],
    manifest: Manifest,
    options: Wanted,
    terminal: Terminal,
    drop: Sequence[str] = (),
) -> list[Trace]:
    from affectrace.ensemble import Ensemble
    from affectrace.hidden import without

    loaded = Ensemble.load(folders, weights, device=options.device)
    ensemble = Ensemble(tuple(without(m, drop) for m in loaded.members), loaded.weights)
    opened, traces = opener(manifest, options, folders, ensemble.members), []
    what = ", ".join(f.name for f in folders)
    for i, recording in enumerate(recordings):
        terminal.progress(ProgressEvent("predicting", i, len(recordings), "recordings", what))
        traces.append(ensemble.predict(lambda m, r=recording: opened(m, r)))  # type: ignore[misc]
    terminal.progress(ProgressEvent("predicting", len(recordings), len(recordings), "recordings", what))
    for name, seen in ensemble.trained_on([r.id for r in recordings]).items():
        terminal.say(f"{name} was trained on {len(seen)} of these {len(recordings)} recordings: scores are too high")
    return traces


def opener(
    manifest: Manifest, options: Wanted, folders: Sequence[Path], members: Sequence[TrainedModel]
) -> Callable[[TrainedModel, Recording], Recorded]:
    """(model, recording) -> the recording as the model reads it."""
    from affectrace.features.store import FeatureStore
    from affectrace.sequences import open_sequence

    for folder, member in zip(folders, members, strict=True):
        if not member.features:
            raise FormatError("does not say which features it reads", where=folder, hint="give traces instead")
    store = FeatureStore(options.store)
    return lambda model, recording: open_sequence(recording, manifest, store, model.features, model.sequences)


def labels_beside(recordings: Sequence[Recording], manifest: Manifest, predictions: Sequence[Trace]) -> list[Trace]:
    """Labels of the recordings, on the clocks of their predictions."""
    from affectrace.datasets.catalog import read_labels

    clocks = {t.recording_id: t.timeline for t in predictions}
    return [read_labels(manifest, r, clocks.get(r.id)) for r in recordings]
