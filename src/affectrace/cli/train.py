"""The commands that train models: one run, or one for each fold."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group

from affectrace import config as configs
from affectrace.cli import DONE, SOME_FAILED
from affectrace.cli.data import manifest_of
from affectrace.cli.options import TRAINING, Common, flat, parse, under
from affectrace.cli.terminal import Terminal
from affectrace.errors import ConfigError
from affectrace.features.config import ExtractConfig
from affectrace.finetune.config import FinetuneConfig
from affectrace.train.config import TrainConfig, TrainingSetup, recipe

if TYPE_CHECKING:
    from affectrace.evaluate.compare import Published
    from affectrace.train.crossval import CrossValidation
    from affectrace.train.jobs import TrainingJob

TUNING, EXTRACTION = (Group(f"{name} (with --finetune)", sort_key=12) for name in ("Tuning", "Extraction"))


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(TrainingSetup, Common):
    """Shared by `train` and `crossval`."""

    model: str = field(default="mamba-va", kw_only=False)
    """Model name."""
    out: Path = Path("run")
    """Folder for checkpoints and logs."""
    training: Annotated[TrainConfig, flat(TRAINING)] = field(default_factory=TrainConfig)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(TrainingOptions):
    """Train a model on extracted features: mamba-va, gru, tcn-transformer, frame-regressor, maven.

    Settings follow the model, the fold and --recipe (for mamba-va those of its authors: fold 0 windows 1000/800, lr
    3e-4, weight decay 1e-2, dropout .3; folds 1-5 windows 300/200, lr 3e-5, weight decay 1e-3, dropout .2); what is
    given on the command line wins. The defaults shown below are those without a recipe.
    OUT gets best/ and last/ (checkpoints; best/README.md is the model card), log.jsonl, steps.csv, validations.csv,
    tensorboard/ where it is installed, run.json and options.json.
    """

    fold: int = 0
    """0: the official split; k: fold k is held out (of the manifest's, or of the five it is divided into)."""
    resume: bool = False
    """Go on with the run in OUT."""


@dataclass(frozen=True, kw_only=True)
class CrossvalOptions(TrainingOptions):
    """Train and score a model on every fold; stopped and started again, it goes on inside the fold it was in.

    OUT gets fold_K/ (as `affectrace train` writes it, and held_out/: the traces of the recordings held out) and
    crossval.json: CCC of every fold with bootstrap intervals, their mean, all held-out recordings pooled. For mamba-va
    on Aff-Wild2 Table 1 of its paper is shown beside it. Settings follow the model, each fold and --recipe, as in
    `affectrace train`.

    With --finetune the encoder is tuned, its features are extracted and the model is trained in every fold, without the
    held-out recordings: fold_K/ also gets encoder/ and features/. Features of an encoder that was tuned on held-out
    recordings are refused.
    """

    out: Path = Path("crossval")
    """Folder for the folds."""
    folds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """Which: 0 is the official split, 1 to 5 are cross-validation."""
    choose: Literal["inner", "last", "scored"] = "inner"
    """Which checkpoint is scored. inner: the best on a fifth of the training recordings, which is kept apart. last: the
    last one, trained on all of them. scored: the best on the recordings that are scored, as the authors have it on the
    official split: only with --folds 0 and --recipe authors, and marked."""
    finetune: str | None = None
    """Encoder to tune in every fold, as in `affectrace finetune` (mae-vit-l, or NAME=WEIGHTS); other streams come from
    --features."""
    tuning: Annotated[FinetuneConfig, under(TUNING)] = field(default_factory=FinetuneConfig)
    extraction: Annotated[ExtractConfig, under(EXTRACTION)] = field(default_factory=ExtractConfig)
    published: bool = True
    """For mamba-va on Aff-Wild2: show Table 1 of its paper (fold 0, and the mean of folds 1 to 5)."""
    draws: int = 2000
    """Bootstrap resamples of recordings."""


def train(argv: Sequence[str]) -> int:
    """`affectrace train`."""
    options = parse(TrainOptions, "train", argv, lambda o: _of_recipe(o, o.fold))
    _known(options.model)
    with _terminal(options) as terminal, _alone(options.out):
        from affectrace.features.store import FeatureStore
        from affectrace.train import train as run
        from affectrace.train.jobs import prepare_job
        from affectrace.train.loop import check_out

        manifest = manifest_of(options.data, terminal)
        job = prepare_job(options, options.fold, manifest, FeatureStore(options.store), note=terminal.say)
        check_out(options.out, options.resume)
        if _is_first_process() and not options.resume:  # a resumed run keeps what it was started with
            write_options("train", options, options.out)
        done = run(
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
            report=lambda row: print_validation(row, terminal),
        )
        terminal.close()
        if not done.best_step:
            terminal.error(
                f"no validation had a defined CCC (constant labels?), so there is no best; last: {done.last}"
            )
            terminal.result(vars(done) | {"best": None, "best_mean_ccc": None})
            return SOME_FAILED
        terminal.say(f"best: {done.best} (mean validation CCC {done.best_mean_ccc:.4f} at step {done.best_step})")
        terminal.result(vars(done))
    return DONE


def crossval(argv: Sequence[str]) -> int:
    """`affectrace crossval`."""
    options = parse(CrossvalOptions, "crossval", argv)
    _known(options.model)
    with _terminal(options) as terminal, _alone(options.out):
        from affectrace.evaluate.compare import published_folds
        from affectrace.features.store import FeatureStore
        from affectrace.finetune.folds import FoldEncoder
        from affectrace.train.crossval import cross_validate
        from affectrace.train.jobs import fold_recordings, prepare_job
        from affectrace.train.trainer import check_unvalidated

        manifest = manifest_of(options.data, terminal)
        encoder = None
        if options.finetune is not None:
            encoder = FoldEncoder(options.finetune, options.tuning, options.extraction, options.out)
        setups = {
            fold: parse(CrossvalOptions, "crossval", argv, lambda o, fold=fold: _of_recipe(o, fold))  # type: ignore[misc]
            for fold in options.folds
        }
        for fold, setup in setups.items():  # a mistake is said before hours of tuning and training
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
            print_validation(row, terminal, f"fold {fold}, {what}")

        def job(fold: int) -> TrainingJob:
            store = FeatureStore(options.store)
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
            options={"options": configs.to_dict(options), "data": manifest.about()},
            n_draws=options.draws,
            progress=terminal.progress,
            report=report,
        )
        terminal.close()
        _print_folds(
            found, published_folds(manifest, options.model, options.folds) if options.published else {}, terminal
        )
        terminal.say(f"cross-validation: {options.out / 'crossval.json'}")
        terminal.result(found.to_dict())
    return DONE


SHOWN = ("ccc_valence", "ccc_arousal", "mean_ccc", "macro_f1", "accuracy", "reconstruction_loss")


def print_validation(row: Mapping[str, Any], terminal: Terminal, where: str = "") -> None:
    """Say how a validation went; one without scores where nothing is validated."""
    scores = ", ".join(f"{name.replace('_', ' ')} {row[name]:.4f}" for name in SHOWN if name in row)
    scores = scores.replace("ccc", "CCC")
    line = f"{where}epoch {row['epoch']}, step {row['step']}: loss {row['loss']:.4f}"
    terminal.say(line + (f", validation {scores}" if scores else ""))


def write_options(command: str, options: Any, out: Path) -> None:
    """Keep the options of a run in OUT/options.json, for --config."""
    values = {"command": command, "options": configs.to_dict(replace(options, resume=False))}
    configs.write_atomic(out / "options.json", json.dumps(values, indent=2) + "\n")


def _print_folds(found: CrossValidation, published: Mapping[int | str, Published], terminal: Terminal) -> None:
    from affectrace.metrics import FEW

    names = ("ccc_valence", "ccc_arousal", "mean_ccc")
    columns = ["fold", "recordings", "checkpoint", "CCC valence", "95 %", "CCC arousal", "95 %", "mean", "95 %"]
    if published:
        columns += [f"Mamba-VA paper: {x}" for x in ("valence", "arousal", "mean")]
    rows: list[list[object]] = []

    def add(key: int | str, head: list[object], cells: Sequence[tuple[object, object]]) -> None:
        paper = published.get(key)
        beside = [getattr(paper, name) if paper else "" for name in names] if published else []
        rows.append([*head, *(x for pair in cells for x in pair), *beside])

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
        terminal.say(
            f"the paper's figures: {paper.source}; of its folds 1 to 5, whose recordings nobody knows, the mean"
        )
    few = [f"fold {r.fold} ({r.n_recordings})" for r in found.folds if r.n_recordings < FEW]
    if few:
        terminal.say(f"note: few recordings, so rough intervals (none for a single recording): {', '.join(few)}")


def _known(model: str) -> None:
    from affectrace.models.checkpoint import entry  # loads torch and pydantic, so only when the line is read

    entry(model)


def _of_recipe(options: TrainingOptions, fold: int) -> dict[str, Any]:
    """The settings that stand behind what the command line and --config say."""
    return {"training": asdict(recipe(options.model, options.recipe, fold=fold).training)}


# ---- several processes (--devices, --strategy ddp): each runs the command, the first speaks and locks the folder


def _is_first_process() -> bool:
    return int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0) == 0


def _alone(out: Path) -> AbstractContextManager[None]:
    return configs.locked_folder(out, "training") if _is_first_process() else contextlib.nullcontext()


def _terminal(options: TrainingOptions) -> Terminal:
    first = _is_first_process()
    return Terminal(quiet=options.quiet or not first, as_json=options.json and first)
