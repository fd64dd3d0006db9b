"""Training commands: finetune, train, crossval."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from affectrace import config as configs
from affectrace.cli import DONE, SOME_FAILED
from affectrace.cli.commands import CrossvalOptions, FinetuneOptions, TrainOptions
from affectrace.cli.data import manifest_of
from affectrace.cli.options import written
from affectrace.cli.terminal import Terminal
from affectrace.datasets import is_dataset
from affectrace.errors import ConfigError, InputError
from affectrace.evaluate.compare import Published, published_folds
from affectrace.features.store import FeatureStore
from affectrace.finetune.encoder import load_encoder
from affectrace.finetune.folds import FoldEncoder
from affectrace.finetune.tuner import finetune as tune
from affectrace.finetune.tuner import tuning_sets
from affectrace.metrics import FEW
from affectrace.models.checkpoint import entry
from affectrace.recording import find_recordings
from affectrace.train.config import recipe
from affectrace.train.crossval import CrossValidation, cross_validate
from affectrace.train.jobs import TrainingJob, fold_recordings, prepare_job
from affectrace.train.loop import check_out
from affectrace.train.trainer import check_unvalidated
from affectrace.train.trainer import train as train_model

SHOWN = ("ccc_valence", "ccc_arousal", "mean_ccc", "macro_f1", "accuracy", "reconstruction_loss")


def finetune(options: FinetuneOptions, terminal: Terminal) -> int:
    """Tune an encoder."""
    tuning, objective = options.tuning, options.tuning.objective
    if (objective == "expression") != (options.expressions is not None):
        what = "needs labels" if objective == "expression" else f"is not for --objective {objective}"
        raise InputError(what, where="--expressions", hint="give both --objective expression and --expressions")
    with configs.locked_folder(options.out, "tuning"):
        manifest, about = None, {"data": {"folder": options.data.absolute().name}}
        if objective == "mae" and not is_dataset(options.data):
            recordings = find_recordings([str(options.data)], note=terminal.say)
        else:
            manifest = manifest_of(options.data, terminal)
            recordings, about = list(manifest), {"data": manifest.about() | {"fold": options.fold}}
        training, validation, labels = tuning_sets(recordings, manifest, options.fold, objective, options.expressions)
        check_out(options.out, options.resume)
        encoder = load_encoder(
            options.encoder, mean=tuning.image_mean, std=tuning.image_std, progress=terminal.progress
        )
        tuning.n_frozen(len(encoder.groups.blocks))  # refuses a mistake before anything is written
        if not options.resume:
            _write_options("finetune", options)
        done = tune(
            encoder,
            training,
            validation,
            options.out,
            tuning,
            labels=labels,
            media=options.media,
            about=about,
            resume=options.resume,
            note=terminal.say,
            progress=terminal.progress,
            report=lambda row: _print_validation(row, terminal),
        )
        score = f"{done.score.replace('_', ' ')} {done.best_score:.4f} at step {done.best_step}"
        command = f"affectrace extract ... --features {encoder.name}={done.best}"
        terminal.done(vars(done), f"best: {done.best} ({score}); to use it: {command}")
    return DONE


def train(options: TrainOptions, terminal: Terminal) -> int:
    """Train one model."""
    entry(options.model)  # refuses an unknown model
    with _first_process(options.out, terminal) as first:
        manifest = manifest_of(options.data, terminal)
        job = prepare_job(
            options, options.fold, manifest, FeatureStore.of(options.store, manifest.root), note=terminal.say
        )
        check_out(options.out, options.resume)
        if first and not options.resume:
            _write_options("train", options)
        done = train_model(
            job.model,
            job.training,
            job.validation,
            options.out,
            options.training,
            preset=options.preset,
            about=job.about,
            accept_features=options.accept_features,
            resume=options.resume,
            progress=terminal.progress,
            report=lambda row: _print_validation(row, terminal),
        )
        terminal.close()
        if not done.best_step:
            what = "no validation had a defined CCC (constant labels?), so there is no best"
            terminal.error(f"{what}; last: {done.last}")
            terminal.result(vars(done) | {"best": None, "best_mean_ccc": None})
            return SOME_FAILED
        score = f"mean validation CCC {done.best_mean_ccc:.4f} at step {done.best_step}"
        terminal.done(vars(done), f"best: {done.best} ({score})")
    return DONE


def crossval(options: CrossvalOptions, terminal: Terminal) -> int:
    """Train and score a model on every fold."""
    entry(options.model)  # refuses an unknown model
    with _first_process(options.out, terminal):
        manifest = manifest_of(options.data, terminal)
        encoder = None
        if options.finetune is not None:
            encoder = FoldEncoder(options.finetune, options.tuning, options.extraction, options.out)
        setups = {fold: options.for_fold(fold) for fold in options.folds}
        for fold, setup in setups.items():  # refuses mistakes before hours of tuning and training
            if options.choose == "scored" and (fold or recipe(options.model, options.recipe).name != "authors"):
                raise ConfigError(
                    f"fold {fold}: only the official split, under the authors' recipe, may be chosen on the scored set",
                    where="--choose",
                    hint="use --choose scored --folds 0 --recipe authors, or --choose inner",
                )
            fold_recordings(manifest, fold, options.choose)
            if options.choose == "last":
                check_unvalidated(setup.training)
            if encoder is not None:
                encoder.check(setup, fold, manifest, options.choose)

        def report(fold: int, row: Mapping[str, Any], what: str = "") -> None:
            _print_validation(row, terminal, f"fold {fold}, {what}")

        def job(fold: int) -> TrainingJob:
            store = FeatureStore.of(options.store, manifest.root)
            if encoder is not None:
                features = encoder.features(
                    fold, manifest, terminal.say, terminal.progress, lambda row: report(fold, row, "encoder, ")
                )
                store = FeatureStore(features, beside=store)
            return prepare_job(
                setups[fold],
                fold,
                manifest,
                store,
                selection=options.choose,
                crossval=True,
                tuned=None if encoder is None else encoder.streams,
                note=terminal.say,
            )

        found = cross_validate(
            options.folds,
            job,
            options.out,
            options={"options": written(options), "data": manifest.about()},
            n_draws=options.draws,
            progress=terminal.progress,
            report=report,
        )
        terminal.close()
        published = published_folds(manifest, options.model, options.folds) if options.published else {}
        _print_folds(found, published, terminal)
        terminal.done(found.to_dict(), f"cross-validation: {options.out / 'crossval.json'}")
    return DONE


@contextlib.contextmanager
def _first_process(out: Path, terminal: Terminal) -> Iterator[bool]:
    """Whether this is the first process of --devices, which prints and locks OUT; the others are silent."""
    first = int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0) == 0
    terminal.quiet, terminal.as_json = terminal.quiet or not first, terminal.as_json and first
    lock: AbstractContextManager[None] = configs.locked_folder(out, "training") if first else contextlib.nullcontext()
    with lock:
        yield first


def _write_options(command: str, options: FinetuneOptions | TrainOptions) -> None:
    """Write OUT/options.json, for --config."""
    values = {"command": command, "options": written(replace(options, resume=False))}
    configs.write_atomic(options.out / "options.json", json.dumps(values, indent=2) + "\n")


def _print_validation(row: Mapping[str, Any], terminal: Terminal, where: str = "") -> None:
    known = {name: value for name in SHOWN if (value := row.get(name)) is not None and value == value}
    scores = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in known.items())
    scores = scores.replace("ccc", "CCC")
    line = f"{where}epoch {row['epoch']}, step {row['step']}: loss {row['loss']:.4f}"
    terminal.say(line + (f", validation {scores}" if scores else ""))


def _print_folds(found: CrossValidation, published: Mapping[int | str, Published], terminal: Terminal) -> None:
    titles = {"ccc_valence": "CCC valence", "ccc_arousal": "CCC arousal", "mean_ccc": "mean"}
    names = [name for name in titles if any(r.scores[name] is not None for r in found.folds)]
    names = names[:1] if len(names) == 2 else names or list(titles)  # the mean of one dimension is this dimension
    columns = ["fold", "recordings", "checkpoint", *(part for name in names for part in (titles[name], "95 %"))]
    if published:
        columns += [f"Mamba-VA paper: {x}" for x in ("valence", "arousal", "mean")]
    rows: list[list[object]] = []

    def add(key: int | str, head: list[object], cells: Sequence[tuple[object, object]]) -> None:
        paper = published.get(key)
        figures = [getattr(paper, name) if paper else "" for name in names] if published else []
        rows.append([*head, *(x for pair in cells for x in pair), *figures])

    for r in found.folds:
        add(r.fold, [r.fold, r.n_recordings, r.chosen], [(r.scores[n], f"{r.intervals[n]:.3f}") for n in names])
    if found.mean is not None and (n_folds := found.mean["n_folds"]) > 1:
        mean, sd = found.mean["mean"], found.mean["sd"]
        spread = [(mean[n], "(undefined)" if sd[n] is None else f"({sd[n]:.3f})") for n in names]
        add("mean", [f"mean of {n_folds} folds (SD)", "", ""], spread)
    if (p := found.pooled) is not None:
        cells = [(p.scores[n], f"{p.intervals[n]:.3f}") for n in names]
        add("pooled", ["all held out, pooled", p.n_recordings, ""], cells)
    terminal.table("", columns, rows)
    for result in found.folds:
        for line in result.accepted:
            terminal.say(f"accepted: {line}")
    for paper in list(published.values())[:1]:
        terminal.say(f"published scores: {paper.source}; mean over its folds 1 to 5, whose recordings are unpublished")
    few = [f"fold {r.fold} ({r.n_recordings})" for r in found.folds if r.n_recordings < FEW]
    if few:
        terminal.say(
            f"note: intervals are imprecise with few recordings (none for a single recording): {', '.join(few)}"
        )
