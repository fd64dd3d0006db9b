"""The command that trains models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from affectrace import config as configs
from affectrace.commands import DONE, Speaking, parse
from affectrace.commands_data import manifest_of
from affectrace.errors import ConfigError, InputError
from affectrace.recording import Recording
from affectrace.terminal import Terminal
from affectrace.train import TrainConfig


@dataclass(frozen=True)
class TrainOptions(Speaking):
    """Train a model on extracted features: mamba-va, gru, tcn-transformer, frame-regressor, maven.

    OUT gets best/ and last/ (checkpoints), log.jsonl, steps.csv, validations.csv, run.json and options.json.
    """

    model: tyro.conf.Positional[str] = "mamba-va"
    """Model name."""
    data: Path = Path()
    """Data set: manifest.json, its folder, or the Aff-Wild2 layout."""
    features: tuple[str, ...] = ()
    """Extractors whose features are read, as NAME or STREAM=NAME (visual=mae-vit-l audio=hubert-base)."""
    store: Path = Path("features")
    """Folder that `affectrace extract` wrote."""
    out: Path = Path("run")
    """Folder for checkpoints and logs."""
    preset: str = "paper"
    """Sizes of the model: paper, tiny, ..."""
    set: tuple[str, ...] = ()
    """Fields of the model's configuration, as FIELD=VALUE (dropout=0.2)."""
    fold: int = 0
    """0: the official split; k: fold k of the manifest is held out."""
    missing: Literal["mask", "hold", "zero"] = "mask"
    """Frames without features: left to the model, the last one repeated, or zeros."""
    resume: bool = False
    """Go on with the run in OUT."""
    training: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)


def train(argv: Sequence[str]) -> int:
    """`affectrace train`."""
    options = parse(TrainOptions, "train", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        import torch

        from affectrace.datasets.folds import fold_sets
        from affectrace.features.store import FeatureStore
        from affectrace.models_run import sequence_config, sequences_dict, sized
        from affectrace.sequences import open_sequences
        from affectrace.train import train as run

        manifest = manifest_of(options.data, terminal)
        sets = fold_sets(manifest, options.fold)
        store = FeatureStore(options.store)
        streams = _streams(options.features, store, sets[0][0])
        dims = {stream: store.get(name, sets[0][0].id).dim for stream, name in streams.items()}
        torch.manual_seed(options.training.seed)
        model = sized(options.model, options.preset, dims, **_fields(options.set))
        how = replace(sequence_config(model), missing=options.missing)
        training, validation = (open_sequences(part, manifest, store, streams, how) for part in sets)
        about = {
            "data": {"name": manifest.name, "digest": manifest.digest(), "fold": options.fold},
            "features": streams,
            "extractors": {s: store.get(n, sets[0][0].id).extractor.digest() for s, n in streams.items()},
            "sequences": sequences_dict(how),
        }
        values = configs.to_dict(replace(options, resume=False))
        configs.write_atomic(options.out / "options.json", json.dumps({"options": values}, indent=2) + "\n")

        def report(row: Mapping[str, Any]) -> None:
            terminal.say(
                f"epoch {row['epoch']}, step {row['step']}: loss {row['loss']:.4f}, validation CCC "
                f"valence {row['ccc_valence']:.4f}, arousal {row['ccc_arousal']:.4f}, mean {row['mean_ccc']:.4f}"
            )

        done = run(
            model,
            training,
            validation,
            options.out,
            options.training,
            preset=options.preset,
            about=about,
            resume=options.resume,
            progress=terminal.progress,
            report=report,
        )
        terminal.close()
        terminal.say(f"best: {done.best} (mean validation CCC {done.best_mean_ccc:.4f} at step {done.best_step})")
        terminal.result(vars(done))
    return DONE


def _streams(given: Sequence[str], store: Any, recording: Recording) -> dict[str, str]:
    """Stream -> extractor; without a name a stream is called by its features' modality."""
    if not given:
        known = ", ".join(store.extractors) or "none"
        raise InputError("no features named", where="--features", hint=f"the store has {known}")
    streams: dict[str, str] = {}
    for text in given:
        stream, _, name = text.rpartition("=")
        stream = stream or store.get(name, recording.id).modality
        if stream in streams:
            raise InputError(f"two features for the stream '{stream}'", where="--features", hint="give STREAM=NAME")
        streams[stream] = name
    return streams


def _fields(given: Sequence[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"'{text}' is not FIELD=VALUE", where="--set", hint="for instance dropout=0.2")
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError:
            parsed = value
        values[name] = tuple(parsed) if isinstance(parsed, list) else parsed
    return values
