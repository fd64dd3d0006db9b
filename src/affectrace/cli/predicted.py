"""What is scored or handed in: predictions of checkpoints, or traces from files, and the labels beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from cyclopts import Group

from affectrace.cli.commands import _traces
from affectrace.cli.options import DATA, MODEL, Common, under
from affectrace.cli.terminal import Terminal
from affectrace.errors import FormatError, InputError
from affectrace.features.identity import ACCEPTED, SEEN
from affectrace.progress import ProgressEvent

if TYPE_CHECKING:
    from affectrace.datasets.manifest import Manifest
    from affectrace.features.store import FeatureStore
    from affectrace.inference.run import TrainedModel
    from affectrace.recording import Recording
    from affectrace.sequences import Sequence as Recorded
    from affectrace.trace import Trace

Split = Literal["train", "validation", "test"]
SCORES = Group("Scores", sort_key=5)


@dataclass(frozen=True, kw_only=True)
class ScoredOptions(Common):
    """Shared by what reads models or traces beside a data set."""

    data: Annotated[Path, under(DATA)] = Path()
    """Data set: manifest.json, its folder, or the Aff-Wild2 layout."""
    split: Annotated[Split, under(DATA)] = "validation"
    """Which recordings (with --fold 0)."""
    fold: Annotated[int, under(DATA)] = 0
    """k > 0: the recordings held out in fold k instead of a split."""
    store: Annotated[Path, under(DATA)] = Path("features")
    """Folder that `affectrace extract` wrote, for models."""
    accept_features: Annotated[bool, under(DATA)] = False
    """Use features made by a different extractor than in training; the result says so."""
    device: Annotated[str, under(MODEL)] = "cpu"
    """Where models run: cpu, cuda, ..."""
    smooth: Annotated[str, under(MODEL)] = "none"
    """Smooth predictions first: none, or median, mean, wiener with the window in seconds (median:0.5), or auto: what
    was kept beside the checkpoint."""
    draws: Annotated[int, under(SCORES)] = 2000
    """Bootstrap resamples of recordings."""
    seed: Annotated[int, under(SCORES)] = 0
    """Of the bootstrap."""


class Stored(Protocol):
    """Which features are read, and whether others than those of training may be."""

    @property
    def data(self) -> Path: ...

    @property
    def store(self) -> Path: ...

    @property
    def accept_features(self) -> bool: ...


class Wanted(Stored, Protocol):
    """What prediction is asked with."""

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
    checked: bool = False,
) -> list[Trace]:
    """Traces given, or what checkpoints predict.

    Args:
        weights: of an ensemble, None where none is asked for. drop: modalities that are masked out.
        checked: the same checkpoints were predicted with before, so what is to be said of them has been said.
    """
    from affectrace.evaluate.smoothing import AUTO, kept_choice, parse_smoothing, smoothed

    if options.smooth == AUTO:
        method, window_s = kept_choice([Path(g) for g in given])
    else:
        method, window_s = parse_smoothing(options.smooth)
    if are_models(given) and manifest is not None:
        if weights is None and len(given) > 1:
            hint = "average them with --ensemble, or set them side by side with `affectrace compare`"
            raise InputError(f"{len(given)} checkpoints are given", hint=hint)
        traces = _predicted(
            [Path(g) for g in given], weights or (), recordings, manifest, options, terminal, drop, checked
        )
    elif weights:
        raise InputError("only checkpoints are weighted", where="--weights", hint="give checkpoint folders")
    else:
        traces = _traces(given)
        for line in told_in(traces):
            terminal.say(line)
    return [smoothed(t, method, window_s) for t in traces]


def _predicted(
    folders: Sequence[Path],
    weights: Sequence[float],
    recordings: Sequence[Recording],
    manifest: Manifest,
    options: Wanted,
    terminal: Terminal,
    drop: Sequence[str] = (),
    checked: bool = False,
) -> list[Trace]:
    from affectrace.inference.ensemble import Ensemble
    from affectrace.inference.modalities import mask_modalities

    loaded = Ensemble.load(folders, weights, device=options.device)
    accepted = [] if checked else check_features(folders, loaded.members, recordings, options, terminal)
    members = [replace(mask_modalities(m, drop), strict=not options.accept_features) for m in loaded.members]
    ensemble = Ensemble(tuple(members), loaded.weights)
    opened, traces = opener(manifest, options, folders, ensemble.members), []
    what = ", ".join(f.name for f in folders)
    for i, recording in enumerate(recordings):
        terminal.progress(ProgressEvent("predicting", i, len(recordings), "recordings", what))
        traces.append(ensemble.predict(lambda m, r=recording: opened(m, r)))  # type: ignore[misc]
    terminal.progress(ProgressEvent("predicting", len(recordings), len(recordings), "recordings", what))
    if checked:
        return traces
    for folder, model in zip(folders, loaded.members, strict=True):
        accepted += [f"{folder}, in training: {line}" for line in model.about.get(ACCEPTED) or ()]
    seen = _seen_before(folders, loaded.members, [r.id for r in recordings])
    traces = [replace(t, provenance={**t.provenance, ACCEPTED: accepted, SEEN: seen}) for t in traces]
    for line in told_in(traces):
        terminal.say(line)
    return traces


def check_features(
    folders: Sequence[Path],
    models: Sequence[TrainedModel],
    recordings: Sequence[Recording],
    options: Stored,
    terminal: Terminal,
) -> list[str]:
    """See that the store holds the features that checkpoints were trained on, before anything is predicted.

    Returns:
        What was accepted because the user insists, a line each.

    Raises:
        FormatError: features are missing. InputError: they were made by another extractor, or by several.
    """
    from affectrace.features.identity import (
        INSIST,
        extractors_of_training,
        how_to_make,
        made_by_several,
        not_as_trained,
        unknown,
    )

    lines, remarks, hints = list[str](), list[str](), list[str]()
    for folder, model in zip(folders, models, strict=True):
        store = store_of(folder, options)
        if store.beside is not None:
            remarks.append(f"{folder}: features of its fold, {store.root}")
        made = {s: {r.id: store.get(name, r.id).extractor for r in recordings} for s, name in model.features.items()}
        wanted, kinds = extractors_of_training(model.about), {s: list(of.values()) for s, of in made.items() if of}
        apart = {s: [line for e in of for line in not_as_trained(wanted, {s: e})] for s, of in kinds.items()}
        wrong = {s: wanted[s] for s, some in apart.items() if some}
        found = [f"{folder}: {line}" for some in apart.values() for line in some] or made_by_several(made)
        remarks += [f"{folder}: {line}" for line in unknown(wanted, {s: of[0] for s, of in kinds.items()})]
        hints += [how_to_make(wrong or wanted, options.data, options.store)] if found else []
        lines += found
    lines = list(dict.fromkeys(lines))
    if lines and not options.accept_features:
        raise InputError("; ".join(lines[:3]), where=options.store, hint=f"{hints[0]}; {INSIST}")
    for line in remarks:
        terminal.say(line)
    return lines


def store_of(folder: Path, options: Stored) -> FeatureStore:
    """Where a checkpoint's features are: --store, and before it what `crossval --finetune` made for its fold."""
    from affectrace.features.store import FeatureStore

    store, fold = FeatureStore(options.store), folder.resolve().parent
    return FeatureStore(fold / "features", beside=store) if (fold / "encoder.json").is_file() else store


def marks_of(traces: Iterable[Trace]) -> dict[str, list[str]]:
    """ACCEPTED and SEEN of all traces, for results."""
    some = list(traces)
    return {k: list(dict.fromkeys(str(x) for t in some for x in t.provenance.get(k) or ())) for k in (ACCEPTED, SEEN)}


def told_in(traces: Iterable[Trace]) -> list[str]:
    """The same, as lines to say."""
    marks = marks_of(traces)
    return [f"accepted: {line}" for line in marks[ACCEPTED]] + marks[SEEN]


def _seen_before(folders: Sequence[Path], models: Sequence[TrainedModel], recordings: Sequence[str]) -> list[str]:
    """What checkpoints, and the encoders of their features, have seen of the recordings that are scored."""
    from affectrace.features.base import ExtractorId
    from affectrace.features.identity import extractors_of_training, seen_in_tuning

    asked, n, lines = set(recordings), len(recordings), []
    for folder, model in zip(folders, models, strict=True):
        kept = model.about.get("recordings") or {}
        encoders = {s: e for s, e in extractors_of_training(model.about).items() if isinstance(e, ExtractorId)}
        for part, did in (("training", "trained on"), ("validation", "chosen by its scores on")):
            if part == "validation" and (model.about.get("validation") or {}).get("chosen") is False:
                kept = {**kept, part: ()}
            if both := asked & set(kept.get(part) or ()):
                lines.append(f"{folder} was {did} {len(both)} of these {n} recordings")
            did = did.replace("trained", "tuned")
            for stream, seen in seen_in_tuning(encoders, recordings, part).items():
                lines.append(f"{folder}: the encoder of '{stream}' was {did} {len(seen)} of these {n} recordings")
    return [f"{line}: scores are too high" for line in lines]


def opener(
    manifest: Manifest, options: Wanted, folders: Sequence[Path], members: Sequence[TrainedModel]
) -> Callable[[TrainedModel, Recording], Recorded]:
    """(model, recording) -> the recording as the model, one of the members, reads it."""
    from affectrace.sequences import open_sequence

    for folder, member in zip(folders, members, strict=True):
        if not member.features:
            raise FormatError("does not say which features it reads", where=folder, hint="give traces instead")
    stores = {member.id: store_of(folder, options) for folder, member in zip(folders, members, strict=True)}
    return lambda model, recording: open_sequence(
        recording, manifest, stores[model.id], model.features, model.sequences
    )


def labels_beside(recordings: Sequence[Recording], manifest: Manifest, predictions: Sequence[Trace]) -> list[Trace]:
    """Labels of the recordings, on the clocks of their predictions."""
    from affectrace.datasets import read_labels

    clocks = {t.recording_id: t.timeline for t in predictions}
    return [read_labels(manifest, r, clocks.get(r.id)) for r in recordings]
