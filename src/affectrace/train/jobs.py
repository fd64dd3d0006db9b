"""Training jobs: recordings, features, new model and settings of one fold.

Features are refused if several extractors made one stream, or if their encoder was tuned on held-out recordings, which
would inflate the scores.
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
from affectrace.features.identity import (
    how_to_make,
    made_by_several,
    one_of,
    refuse_unless,
    seen_in_tuning,
    tuned_data,
)
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
Note = Callable[[str], None]
"""Called with lines for the user."""
MIN_COVERAGE = 0.5
"""Smallest share of labelled rows with features in a stream that passes without a warning (ours)."""


@dataclass(frozen=True)
class TrainingJob:
    """What one fold trains: a new model, its recordings, and the other arguments of `train`.

    validation: recordings that select the checkpoint: an inner split of the training set, none (the last checkpoint is
    scored), or the held-out ones themselves. held_out: recordings that are scored.
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


def fold_recordings(manifest: Manifest, fold: int, selection: Selection) -> tuple[Recordings, Recordings, Recordings]:
    """(training, validation, held-out) recordings; InputError: no such fold, or it cannot be split further."""
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
    """The job of a fold.

    Args:
        crossval: the fold is one of several. tuned: stream -> encoder tuned on this fold, with features in the store.
    """
    training, validation, held_out = fold_recordings(manifest, fold, selection)
    first, where = training[0], f"fold {fold}: " if crossval else ""
    streams = streams_of(setup, store, first, tuned or {})
    model = new_model(setup, fold, {s: store.get(name, first.id).dim for s, name in streams.items()})
    if setup.beit is not None:
        if not hasattr(model, "load_beit"):
            raise ConfigError(f"{model.name} has no BEiT blocks", where="--beit", hint="leave it out, or train maven")
        place = find(setup.beit)
        model.load_beit(read_beit(place.path), name=f"{setup.beit} ({place.sha256[:12]})")
    how = replace(sequence_config(model), missing=setup.missing)
    trained, scored = (open_sequences(part, manifest, store, streams, how) for part in (training, held_out))
    selected = scored if selection == "scored" else open_sequences(validation, manifest, store, streams, how)
    made = extractors_of([*trained, *selected, *scored])
    extractors = {stream: one_of(of.values()) for stream, of in made.items()}
    # recordings that select the checkpoint anyway may have selected the encoder as well
    parts = ("training",) if selection == "scored" else ("training", "validation")
    seen = seen_in_held_out(extractors, held_out, manifest, parts)
    accepted = [where + line for line in made_by_several(made) + seen]
    hint = how_to_make(extractors, setup.data, store.root)
    if seen:
        name = next(e.name for e in extractors.values() if e.tuned_on)
        hint = f"tune it on this fold: affectrace finetune {name} --fold {fold}, and extract again"
        if crossval:
            hint = f"tune it in every fold: affectrace crossval {setup.model} --finetune {name}"
    refuse_unless(setup.accept_features, accepted, store.root, hint)
    for line in (*_unknown_origin(made), *(f"accepted: {line}" for line in accepted)):
        note(line)
    rows = labelled_coverage([*trained, *selected])
    parts_known = ", ".join(f"{stream} {some} of {n}" for stream, (some, n) in rows.items())
    note(f"{where}labelled rows with features: {parts_known}")
    for stream, (some, n) in rows.items():
        if some < MIN_COVERAGE * n:
            note(
                f"warning: {where}{stream} covers {some} of {n} labelled rows: check its time, unit_s and start_s "
                "(docs/data.md), or leave it out"
            )
    about = {
        **({"choose": selection} if crossval else {}),
        "data": manifest.about() | {"fold": fold, "labels": manifest.labels},
        "features": streams,
        "extractors": {s: e.to_dict() for s, e in extractors.items()},
        "sequences": sequences_dict(how),
        "labelled_rows": {s: list(n) for s, n in rows.items()},
        "recipe": recipe(setup.model, setup.recipe, fold=fold).source,
        "licence": setup.licence,
        **({"accepted": accepted} if accepted else {}),
    }
    return TrainingJob(model, trained, selected, scored, setup.training, setup.preset, about, setup.accept_features)


def streams_of(
    setup: TrainingSetup, store: FeatureStore, recording: Recording, tuned: Mapping[str, str]
) -> dict[str, str]:
    """Stream -> extractor. A stream without a name gets the modality of its features, read from one recording."""
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
    """A model of the preset, the recipe and `set`, initialized by the seed. dims: stream -> width of its features."""
    given: dict[str, Any] = {}
    for text in setup.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"'{text}' is not FIELD=VALUE", where="--set", hint="for instance dropout=0.2")
        try:
            given[name] = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            given[name] = value
    kind = entry(setup.model).config_class()
    known = kind.__dataclass_fields__
    mine = [k for k in given if k in known]  # `sized` reports the others
    typed = configs.from_dict(kind, configs.to_dict(kind()) | {k: given[k] for k in mine}, where="--set")
    given |= {k: getattr(typed, k) for k in mine}  # dropout=0 becomes 0.0
    torch.manual_seed(setup.training.seed)
    return sized(setup.model, setup.preset, dims, **{**recipe(setup.model, setup.recipe, fold=fold).model, **given})


def seen_in_held_out(
    extractors: Mapping[str, ExtractorId],
    held_out: Recordings,
    manifest: Manifest,
    parts: abc.Sequence[str] = ("training", "validation"),
) -> list[str]:
    """A line for every encoder that was tuned on, or selected by, held-out recordings or others of the same videos.

    Args:
        extractors: by stream. parts: which recordings of the encoder may not be held out here.
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


def _unknown_origin(made: Mapping[str, Mapping[str, ExtractorId]]) -> list[str]:
    """A line for every stream whose features, being older, do not say what made or tuned their extractor."""
    lines = []
    for stream, of in made.items():
        extractor = one_of(of.values())
        tunable = registry.network_and_layer(extractor.name)[0] in registry.ENCODERS
        if not all(e.is_known for e in of.values()):
            lines.append(f"the '{stream}' features do not say what made them ({extractor}): taken as they are")
        elif tunable and any(e.tuned_on is None for e in of.values()):
            what = f"the '{stream}' features ({extractor}) do not say what their encoder was tuned on"
            lines.append(f"{what}: taken as they are")
    return lines
