"""What one fold of a data set trains: its recordings, their features, a new model and its settings.

Features are refused where several extractors made one stream, or where their encoder was tuned on recordings that are
held out: scores would be too high.
"""

from __future__ import annotations

import json
from collections import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from affectrace import config as configs
from affectrace.datasets.folds import fold_sets, inner_split, shared_keys
from affectrace.datasets.manifest import Manifest
from affectrace.errors import ConfigError, InputError
from affectrace.features import registry
from affectrace.features.base import ExtractorId
from affectrace.features.identity import INSIST, how_to_make, made_by_several, one_of, seen_in_tuning, tuned_data
from affectrace.features.store import FeatureStore
from affectrace.inference.run import sequence_config, sequences_dict, sized
from affectrace.models.base import AffectModel
from affectrace.models.beit import read_beit
from affectrace.models.checkpoint import entry
from affectrace.recording import Recording
from affectrace.sequences import Sequence, extractors_of, labelled_coverage, open_sequences
from affectrace.train.config import Selection, TrainConfig, TrainingSetup, recipe
from affectrace.weights.hub import find

Recordings = abc.Sequence[Recording]
Sets = tuple[Recordings, Recordings, Recordings]
"""Recordings that are trained on, that select the checkpoint, and that are held out."""
Note = Callable[[str], None]
"""Called with what a person should know."""
COVERED = 0.5
"""Share of the labelled rows under which a stream with features in so few of them is warned of (ours)."""


@dataclass(frozen=True)
class TrainingJob:
    """What one fold trains: a fresh model, its recordings, and what `train` takes besides.

    validation: recordings that select the checkpoint: some of the training set (an inner split), none (the last one is
    taken), or the held-out ones themselves. held_out: recordings that are scored.
    """

    model: AffectModel
    training: abc.Sequence[Sequence]
    validation: abc.Sequence[Sequence]
    held_out: abc.Sequence[Sequence]
    config: TrainConfig
    preset: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    accept_features: bool = False

    @property
    def selection(self) -> Selection:
        """How the checkpoint is selected."""
        if not self.validation:
            return "last"
        shared = {s.recording_id for s in self.validation} & {s.recording_id for s in self.held_out}
        return "scored" if shared else "inner"


def fold_recordings(manifest: Manifest, fold: int, selection: Selection) -> Sets:
    """The sets of a fold (raises InputError: no such fold, or its training set cannot be divided)."""
    training, held_out = fold_sets(manifest, fold)
    if selection == "inner":
        return *inner_split(manifest, training), held_out
    return training, held_out if selection == "scored" else (), held_out


def prepare_job(
    setup: TrainingSetup,
    fold: int,
    manifest: Manifest,
    store: FeatureStore,
    *,
    selection: Selection = "scored",
    crossval: bool = False,
    tuned: Mapping[str, str] | None = None,
    note: Note = lambda text: None,
) -> TrainingJob:
    """What a fold trains, with features that may be trained on.

    Args:
        crossval: the fold is one of several. tuned: stream -> encoder whose features of this fold are in the store.
        note: called with what a person should know.

    Raises:
        InputError, ConfigError: what is asked for is not there, or must not be trained on.
    """
    sets = fold_recordings(manifest, fold, selection)
    streams = streams_of(setup, store, sets[0][0], tuned or {})
    model = new_model(setup, fold, {s: store.get(name, sets[0][0].id).dim for s, name in streams.items()})
    if setup.beit is not None:
        if not hasattr(model, "load_beit"):
            raise ConfigError(f"{model.name} has no BEiT blocks", where="--beit", hint="leave it out, or train maven")
        place = find(setup.beit)
        model.load_beit(read_beit(place.path), name=f"{setup.beit} ({place.sha256[:12]})")
    how = replace(sequence_config(model), missing=setup.missing)
    training, held_out = (open_sequences(part, manifest, store, streams, how) for part in (sets[0], sets[2]))
    validation = held_out if selection == "scored" else open_sequences(sets[1], manifest, store, streams, how)
    made = extractors_of([*training, *validation, *held_out])
    where = f"fold {fold}: " if crossval else ""
    accepted = _check_features(setup, fold, made, sets[2], selection, manifest, where, note)
    rows = labelled_coverage([*training, *validation])
    parts = ", ".join(f"{stream} {some} of {n}" for stream, (some, n) in rows.items())
    note(f"{where.replace(':', ',')}labelled rows with features: {parts}")
    for stream, (some, n) in rows.items():
        if some < COVERED * n:
            note(
                f"warning: {where.replace(':', ',')}{stream} covers {some} of {n} labelled rows: check its time, "
                "unit_s and start_s (docs/data.md), or leave it out"
            )
    about = {
        **({"choose": selection} if crossval else {}),
        "data": manifest.about() | {"fold": fold, "labels": manifest.labels},
        "features": streams,
        "extractors": {s: one_of(of.values()).to_dict() for s, of in made.items()},
        "sequences": sequences_dict(how),
        "labelled_rows": {s: list(n) for s, n in rows.items()},
        "recipe": recipe(setup.model, setup.recipe, fold=fold).source,
        "licence": setup.licence,
    } | ({"accepted": accepted} if accepted else {})
    return TrainingJob(
        model, training, validation, held_out, setup.training, setup.preset, about, setup.accept_features
    )


def streams_of(
    setup: TrainingSetup, store: FeatureStore, recording: Recording, tuned: Mapping[str, str]
) -> dict[str, str]:
    """Stream -> extractor. A stream without a name is called by its features' modality, asked of one recording."""
    streams = dict(tuned)
    if not streams and not setup.features:
        known = ", ".join(store.extractors) or "none"
        raise InputError("no features named", where="--features", hint=f"the store has {known}")
    for text in setup.features:
        stream, _, name = text.rpartition("=")
        stream = stream or store.get(name, recording.id).modality
        if stream in streams:
            raise InputError(f"two features for the stream '{stream}'", where="--features", hint="give STREAM=NAME")
        streams[stream] = name
    return streams


def new_model(setup: TrainingSetup, fold: int, dims: Mapping[str, int]) -> Any:
    """A new model of the recipe, the preset and `set`, by the seed; dims: stream -> width of its features."""
    given: dict[str, Any] = {}
    for text in setup.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"'{text}' is not FIELD=VALUE", where="--set", hint="for instance dropout=0.2")
        try:
            parsed = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            parsed = value
        given[name] = parsed
    kind = entry(setup.model).config_class()
    known = kind.__dataclass_fields__
    mine = [k for k in given if k in known]  # `sized` names the others
    typed = configs.from_dict(kind, configs.to_dict(kind()) | {k: given[k] for k in mine}, where="--set")
    given |= {k: getattr(typed, k) for k in mine}  # dropout=0 is .0
    fields = {k: v for k, v in recipe(setup.model, setup.recipe, fold=fold).model.items() if k in known}
    torch.manual_seed(setup.training.seed)
    return sized(setup.model, setup.preset, dims, **fields | given)


def seen_in_held_out(
    extractors: Mapping[str, ExtractorId],
    held_out: Recordings,
    manifest: Manifest,
    parts: abc.Sequence[str] = ("training", "validation"),
) -> list[str]:
    """A line for every encoder that was tuned on held-out recordings or on the same videos, or chosen by them.

    Args:
        extractors: by stream. parts: of the encoder's own recordings, those that may not be held out here.
    """
    videos = {key for r in held_out for key in shared_keys(r) if key[0] == "video"}
    ids = {r.id for r in held_out} | {r.id for r in manifest if videos & shared_keys(r)}
    lines = []
    for part in parts:
        did = "tuned on" if part == "training" else "chosen by its scores on"
        for stream, seen in seen_in_tuning(extractors, ids, part).items():
            encoder = extractors[stream]
            what = f"{len(seen)} recordings of the held-out videos (first: {seen[0]}, in {tuned_data(encoder)})"
            lines.append(f"the encoder of '{stream}', {encoder}, was {did} {what}")
    return lines


def _check_features(
    setup: TrainingSetup,
    fold: int,
    made: Mapping[str, Mapping[str, ExtractorId]],
    held_out: Recordings,
    selection: Selection,
    manifest: Manifest,
    where: str,
    note: Note,
) -> list[str]:
    """See that each stream is of one extractor, and that its encoder was not tuned on what is held out.

    Returns:
        What was accepted because the user insists, a line each.
    """
    first = {stream: one_of(of.values()) for stream, of in made.items()}
    lines, hint = made_by_several(made), how_to_make(first, setup.data, setup.store)
    # what the scored recordings select anyway may have selected the encoder too
    parts = ("training",) if selection == "scored" else ("training", "validation")
    if seen := seen_in_held_out(first, held_out, manifest, parts):
        lines += seen
        name = next(e.name for e in first.values() if e.tuned_on)
        hint = f"tune it on this fold: affectrace finetune {name} --fold {fold}, and extract again"
        if where:
            hint = f"tune it in every fold: affectrace crossval {setup.model} --finetune {name}"
    if lines and not setup.accept_features:
        raise InputError(where + "; ".join(lines[:3]), where=setup.store, hint=f"{hint}; {INSIST}")
    for stream, of in made.items():
        extractor = first[stream]
        tunable = registry.network_and_layer(extractor.name)[0] in registry.ENCODERS
        if not all(e.is_known for e in of.values()):
            note(f"the '{stream}' features do not say what made them ({extractor}): taken as they are")
        elif tunable and any(e.tuned_on is None for e in of.values()):
            note(
                f"the '{stream}' features ({extractor}) do not say what their encoder was tuned on, as older ones: "
                "taken as they are"
            )
    accepted = [f"{where}{line}" for line in lines]
    for line in accepted:
        note(f"accepted: {line}")
    return accepted
