"""The commands that train models: one run, or one for each fold."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from affectrace import config as configs
from affectrace.commands import DONE, SOME_FAILED, Speaking, parse
from affectrace.commands_data import manifest_of
from affectrace.errors import ConfigError, InputError
from affectrace.recording import Recording
from affectrace.terminal import Terminal
from affectrace.train_config import TrainConfig, recipe
from affectrace.usage import read

if TYPE_CHECKING:
    from affectrace.crossval import CrossValidation, FoldJob
    from affectrace.datasets.manifest import Manifest

COVERED = 0.5
"""Share of the labelled rows under which a stream with features in so few of them is warned of (ours)."""


@dataclass(frozen=True)
class TrainingOptions(Speaking):
    """Shared by `train` and `crossval`."""

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
    recipe: str | None = None
    """Where training settings come from. mamba-va: authors (default; lr, weight decay, dropout and windows by fold) or
    paper. maven: paper-38 (default), paper-42, seed-a, seed-b, authors. none: the defaults below. Every setting given
    on the command line or in --config wins over the recipe."""
    set: tuple[str, ...] = ()
    """Fields of the model's configuration, as FIELD=VALUE (dropout=0.2)."""
    missing: Literal["mask", "hold", "zero"] = "mask"
    """Frames without features: left to the model, the last one repeated, or zeros."""
    beit: str | None = None
    """maven: pretrained BEiT whose blocks its encoders start from (a folder, or user/model@commit); else random."""
    licence: str = "other"
    """Licence of the trained weights, for the model card (a Hub identifier, such as cc-by-nc-4.0)."""
    training: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)


T = TypeVar("T", bound=TrainingOptions)


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class CrossvalOptions(TrainingOptions):
    """Train and score a model on every fold; stopped and started again, it goes on inside the fold it was in.

    OUT gets fold_K/ (as `affectrace train` writes it, and held_out/: the traces of the recordings held out) and
    crossval.json: CCC of every fold with bootstrap intervals, their mean, all held-out recordings pooled. Table 1 of
    the Mamba-VA paper is shown beside it. Settings follow the model, each fold and --recipe, as in `affectrace train`.
    """

    out: Path = Path("crossval")
    """Folder for the folds."""
    folds: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """Which: 0 is the official split, 1 to 5 are cross-validation."""
    published: bool = True
    """Show Table 1 of the Mamba-VA paper (measured on Aff-Wild2)."""
    draws: int = 2000
    """Bootstrap resamples of recordings."""


def train(argv: Sequence[str]) -> int:
    """`affectrace train`."""
    options = parsed(TrainOptions, "train", argv, fold=lambda o: o.fold)
    with _terminal(options) as terminal:
        from affectrace.train import train as run
        from affectrace.train_loop import check_out

        manifest = manifest_of(options.data, terminal)
        job = _job(options, options.fold, manifest)
        _tell_coverage(job, terminal)
        check_out(options.out, options.resume)
        if _is_first_process() and not options.resume:  # a resumed run keeps what it was started with
            values = configs.to_dict(replace(options, resume=False))
            configs.write_atomic(
                options.out / "options.json", json.dumps({"command": "train", "options": values}, indent=2) + "\n"
            )
        done = run(
            job.model,
            job.training,
            job.validation,
            options.out,
            options.training,
            preset=options.preset,
            about=job.about,
            resume=options.resume,
            progress=terminal.progress,
            report=lambda row: _tell_validation(row, terminal),
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
    with _terminal(options) as terminal:
        from affectrace.crossval import cross_validate

        manifest = manifest_of(options.data, terminal)

        def job(fold: int) -> FoldJob:
            own = parsed(CrossvalOptions, "crossval", argv, fold=lambda _: fold)
            made = _job(own, fold, manifest)
            _tell_coverage(made, terminal, f"fold {fold}, ")
            return made

        def report(fold: int, row: Mapping[str, Any]) -> None:
            _tell_validation(row, terminal, f"fold {fold}, ")

        found = cross_validate(
            options.folds,
            job,
            options.out,
            options={"options": configs.to_dict(options), "data": manifest.digest()},
            n_draws=options.draws,
            progress=terminal.progress,
            report=report,
        )
        terminal.close()
        _tell_folds(found, options.published, terminal)
        terminal.say(f"cross-validation: {options.out / 'crossval.json'}")
        terminal.result(found.to_dict())
    return DONE


def _tell_coverage(job: FoldJob, terminal: Terminal, where: str = "") -> None:
    """How many labelled rows have features, of each stream."""
    found = job.about["labelled_rows"]
    parts = [f"{stream} {some} of {n}" for stream, (some, n) in found.items()]
    terminal.say(f"{where}labelled rows with features: {', '.join(parts)}")
    for stream, (some, n) in found.items():
        if some < COVERED * n:
            terminal.say(
                f"warning: {where}{stream} has features in under half of the labelled rows; if it should have more, "
                "its times are not the labels' (time, unit_s, start_s; docs/data.md), else leave it out"
            )


def _tell_validation(row: Mapping[str, Any], terminal: Terminal, where: str = "") -> None:
    terminal.say(
        f"{where}epoch {row['epoch']}, step {row['step']}: loss {row['loss']:.4f}, validation CCC "
        f"valence {row['ccc_valence']:.4f}, arousal {row['ccc_arousal']:.4f}, mean {row['mean_ccc']:.4f}"
    )


def _tell_folds(found: CrossValidation, published: bool, terminal: Terminal) -> None:
    from affectrace.evaluate_compare import MAMBA_VA_TABLE_1

    beside = {p.name: p for p in MAMBA_VA_TABLE_1} if published else {}
    names = ("ccc_valence", "ccc_arousal", "mean_ccc")
    columns = ["fold", "recordings"]
    for name in ("CCC valence", "CCC arousal", "mean"):
        columns += [name, "95 %"]
    columns += [f"Mamba-VA paper: {x}" for x in ("valence", "arousal", "mean")] if published else []
    rows: list[list[object]] = []
    for result in found.folds:
        row: list[object] = [result.fold, result.n_recordings]
        for name in names:
            low, high = result.intervals[name]
            row += [result.scores[name], f"{_number(low)} to {_number(high)}"]
        if published:
            paper = beside.get(f"Mamba-VA fold {result.fold}")
            row += ["", "", ""] if paper is None else [paper.ccc_valence, paper.ccc_arousal, paper.mean_ccc]
        rows.append(row)
    tables = [p for p in MAMBA_VA_TABLE_1 if p.name[-1] in {str(r.fold) for r in found.folds if r.fold}]
    if found.mean is not None:
        row = [f"mean of {found.mean.n_folds} folds (SD)", ""]
        for name in names:
            row += [found.mean.mean[name], f"({_number(found.mean.sd[name])})"]
        if published:
            row += [sum(getattr(p, n) for p in tables) / len(tables) if tables else "" for n in names]
        rows.append(row)
    if found.pooled is not None:
        row = ["all held out, pooled", found.pooled.n_recordings]
        for name in names:
            low, high = found.pooled.intervals[name]
            row += [found.pooled.scores[name], f"{_number(low)} to {_number(high)}"]
        rows.append(row + ([""] * 3 if published else []))
    terminal.table("", columns, rows)
    if published:
        terminal.say("the paper's figures are of Aff-Wild2 (arXiv:2503.10104, Table 1): beside other data, orientation")


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


# ---- settings


def parsed(kind: type[T], name: str, argv: Sequence[str], *, fold: Any) -> T:
    """Options in which the recipe stands behind what the command line and --config say.

    fold: options -> which fold is trained.
    """
    given = parse(kind, name, argv)
    behind: dict[str, Any] = {"training": configs.to_dict(_recipe(given, fold(given)).training)}
    args, values = _config_file(argv)
    default = configs.from_dict(kind, _over(behind, values), where=None)
    return read(kind, name, args, default)


def _recipe(options: TrainingOptions, fold: int) -> Any:
    from affectrace.models.checkpoint import entry

    entry(options.model)  # a model that is not known is said as such
    return recipe(options.model, options.recipe, fold=fold)


def _config_file(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Arguments without --config, and what the file holds; `parse` has seen that all is well."""
    args = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    if "--config" not in args:
        return args, {}
    at = args.index("--config")
    values = configs.read_json(Path(args[at + 1]))
    del args[at : at + 2]
    return args, values.get("options", values)


def _over(behind: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values, those of `before` where both have one."""
    merged = dict(behind)
    for key, value in before.items():
        below = merged.get(key)
        merged[key] = _over(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


# ---- what is trained


def _job(options: TrainingOptions, fold: int, manifest: Manifest) -> FoldJob:
    import torch

    from affectrace.crossval import FoldJob
    from affectrace.datasets.folds import fold_sets
    from affectrace.features.store import FeatureStore
    from affectrace.models_run import sequence_config, sequences_dict, sized
    from affectrace.sequences import labelled_coverage, open_sequences

    sets = fold_sets(manifest, fold)
    store = FeatureStore(options.store)
    streams = _streams(options.features, store, sets[0][0])
    examples = {stream: store.get(name, sets[0][0].id) for stream, name in streams.items()}
    torch.manual_seed(options.training.seed)
    own = _recipe(options, fold)
    fields = _known_fields(options.model, own.model) | _fields(options.set)
    model = sized(options.model, options.preset, {s: file.dim for s, file in examples.items()}, **fields)
    if options.beit is not None:
        _start_from_beit(model, options.beit)
    how = replace(sequence_config(model), missing=options.missing)
    training, validation = (open_sequences(part, manifest, store, streams, how) for part in sets)
    about = {
        "data": {"name": manifest.name, "digest": manifest.digest(), "fold": fold, "labels": manifest.labels},
        "features": streams,
        "extractors": {s: file.extractor.digest() for s, file in examples.items()},
        "encoders": {
            s: {"name": file.extractor.name, "weights_sha256": file.extractor.weights_sha256}
            for s, file in examples.items()
        },
        "sequences": sequences_dict(how),
        "labelled_rows": {s: list(n) for s, n in labelled_coverage([*training, *validation]).items()},
        "recipe": own.source,
        "licence": options.licence,
    }
    return FoldJob(model, training, validation, options.training, options.preset, about)


def _known_fields(model: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's fields that the model has."""
    from affectrace.models.checkpoint import entry

    return {k: v for k, v in fields.items() if k in entry(model).config_class().__dataclass_fields__}


def _start_from_beit(model: Any, source: str) -> None:
    from affectrace.features.sources import find
    from affectrace.models.beit_blocks import read_beit

    if not hasattr(model, "load_beit"):
        raise ConfigError(f"{model.name} has no BEiT blocks", where="--beit", hint="leave it out, or train maven")
    place = find(source)
    model.load_beit(read_beit(place.path), name=f"{source} ({place.sha256[:12]})")


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
            parsed_value = json.loads(value)
        except json.JSONDecodeError:
            parsed_value = value
        values[name] = tuple(parsed_value) if isinstance(parsed_value, list) else parsed_value
    return values


# ---- several processes (--devices, --strategy ddp): each runs the command, the first speaks


def _is_first_process() -> bool:
    return int(os.environ.get("RANK") or os.environ.get("LOCAL_RANK") or 0) == 0


def _terminal(options: TrainingOptions) -> Terminal:
    first = _is_first_process()
    return Terminal(quiet=options.quiet or not first, as_json=options.json and first)
