"""The commands that train models: one run, or one for each fold."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import Group

from affectrace import config as configs
from affectrace.cli import DONE, SOME_FAILED
from affectrace.cli.data import manifest_of
from affectrace.cli.options import TRAINING, Common, flat, parse, under, written
from affectrace.cli.terminal import Terminal
from affectrace.errors import ConfigError, InputError
from affectrace.features.config import ExtractConfig
from affectrace.features.identity import INSIST, one_of
from affectrace.finetune.config import FinetuneConfig
from affectrace.metrics import FEW
from affectrace.recording import Recording
from affectrace.train.config import TrainConfig, recipe, recipe_name

if TYPE_CHECKING:
    from affectrace.datasets.manifest import Manifest
    from affectrace.evaluate.compare import Published
    from affectrace.features.base import ExtractorId
    from affectrace.features.store import FeatureStore
    from affectrace.train.crossval import CrossValidation, FoldJob, FoldResult

COVERED = 0.5
"""Share of the labelled rows under which a stream with features in so few of them is warned of (ours)."""

TUNING, EXTRACTION = (Group(f"{name} (with --finetune)", sort_key=12) for name in ("Tuning", "Extraction"))


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Common):
    """Shared by `train` and `crossval`."""

    model: str = field(default="mamba-va", kw_only=False)
    """Model name."""
    data: Path = Path()
    """Data set: manifest.json, its folder, or the Aff-Wild2 layout."""
    features: tuple[str, ...] = ()
    """Extractors whose features are read, as NAME or STREAM=NAME (visual=mae-vit-l audio=hubert-base)."""
    store: Path = Path("features")
    """Folder that `affectrace extract` wrote."""
    accept_features: bool = False
    """Use features that several extractors made, or whose encoder was tuned on held-out recordings; the result and the
    model card say so."""
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
    training: Annotated[TrainConfig, flat(TRAINING)] = field(default_factory=TrainConfig)


T = TypeVar("T", bound=TrainingOptions)


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
    options = parse(TrainOptions, "train", argv, lambda o: _behind(o, o.fold))
    with _terminal(options) as terminal:
        from affectrace.datasets.folds import fold_sets
        from affectrace.features.store import FeatureStore
        from affectrace.train import train as run
        from affectrace.train.loop import check_out

        manifest = manifest_of(options.data, terminal)
        sets = fold_sets(manifest, options.fold)
        job = _job(options, options.fold, manifest, (*sets, sets[1]), FeatureStore(options.store), terminal)
        _tell_coverage(job, terminal)
        check_out(options.out, options.resume)
        if _is_first_process() and not options.resume:  # a resumed run keeps what it was started with
            values = written(replace(options, resume=False))
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
            accept_features=options.accept_features,
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
        from affectrace.evaluate.compare import published_folds
        from affectrace.features.store import FeatureStore
        from affectrace.train.crossval import cross_validate

        manifest = manifest_of(options.data, terminal)

        def of_fold(fold: int) -> CrossvalOptions:
            return parse(CrossvalOptions, "crossval", argv, lambda o: _behind(o, fold))

        for fold in options.folds:
            _check_fold(of_fold(fold), fold, manifest)  # a mistake is said before hours of tuning and training

        def job(fold: int) -> FoldJob:
            own = of_fold(fold)
            sets, store = _sets(own, fold, manifest), FeatureStore(own.store)
            if own.finetune is not None:
                store = FeatureStore(_tuned_features(own, fold, manifest, terminal), beside=store)
            made = _job(own, fold, manifest, sets, store, terminal)
            _tell_coverage(made, terminal, f"fold {fold}, ")
            return made

        def report(fold: int, row: Mapping[str, Any]) -> None:
            _tell_validation(row, terminal, f"fold {fold}, ")

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
        beside = published_folds(manifest, options.model, options.folds) if options.published else {}
        _tell_folds(found, beside, terminal)
        terminal.say(f"cross-validation: {options.out / 'crossval.json'}")
        terminal.result(found.to_dict())
    return DONE


CHANGES_VALUES = ("precision", "compute", "fps", "asr_model", "language")
"""Options of an extraction that change its values; the others change where and how fast."""
Sets = tuple[Sequence[Recording], Sequence[Recording], Sequence[Recording]]
"""Recordings that are trained on, that choose the checkpoint, and that are held out."""


def _sets(options: CrossvalOptions, fold: int, manifest: Manifest) -> Sets:
    """The sets of a fold (raises InputError: no such fold; ConfigError: --choose scored where it may not be)."""
    from affectrace.datasets.folds import fold_sets, inner_split

    training, held_out = fold_sets(manifest, fold)
    if options.choose == "last":
        return training, (), held_out
    if options.choose == "inner":
        return *inner_split(manifest, training), held_out
    if fold or recipe_name(options.model, options.recipe) != "authors":
        raise ConfigError(
            f"fold {fold}: only the official split, under the authors' recipe, may be chosen on the scored set",
            where="--choose",
            hint="use --choose scored --folds 0 --recipe authors, or --choose inner",
        )
    return training, held_out, held_out


def _check_fold(options: CrossvalOptions, fold: int, manifest: Manifest) -> None:
    """See that a fold can be trained as asked, before its encoder is tuned (raises InputError, ConfigError)."""
    sets = _sets(options, fold, manifest)
    if options.choose == "last":
        from affectrace.train import check_unvalidated

        check_unvalidated(options.training)
    if options.finetune is None:
        return
    from affectrace.features.base import ExtractorId
    from affectrace.features.store import FeatureStore
    from affectrace.finetune.encoder import modality_of
    from affectrace.weights.locate import Place

    encoder, _, start = options.finetune.partition("=")
    stream, here = modality_of(encoder), options.out / f"fold_{fold}"
    if options.training.devices > 1 or int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise InputError("encoders are tuned by one process", where="--devices", hint="leave it out with --finetune")
    if options.tuning.objective == "expression":
        raise InputError("crossval tunes on valence and arousal", where="--tuning.objective", hint="use va or mae")
    if (here / "run.json").is_file() and not (here / "encoder.json").is_file():
        raise ConfigError("the fold was trained without --finetune", where=here, hint="use another --out")
    store = FeatureStore(options.store)
    streams = _streams(options, store, sets[0][0])
    others = {s: name for s, name in streams.items() if s != stream}
    for recording in (r for part in sets for r in part):
        for name in others.values():
            store.get(name, recording.id)  # FormatError: it has no such features
    dims = {s: store.get(others[s], sets[0][0].id).dim if s in others else 1 for s in streams}
    if fold == options.folds[0]:
        _sized(options, fold, dims)  # refuses fields and streams that the model does not have
    if start and Path(start).expanduser().exists():
        before = ExtractorId(encoder, tuned_on=Place(Path(start).expanduser(), "").tuned_on())
        if (lines := _seen({stream: before}, sets[2], manifest)) and not options.accept_features:
            hint = f"start from weights that have not seen them: --finetune {encoder}"
            raise InputError("; ".join(lines), where=start, hint=f"{hint}; {INSIST}")


def _tuned_features(options: CrossvalOptions, fold: int, manifest: Manifest, terminal: Terminal) -> Path:
    """Tune the encoder on a fold's training recordings and extract all of the fold: fold_K/encoder, fold_K/features.

    It is chosen on the inner split, whatever --choose says of the model, so the held-out recordings play no part.
    fold_K/encoder.json says how far this came; what is finished is not done again.

    Raises:
        ConfigError: it was begun with other settings. InputError: recordings that cannot be extracted.
    """
    from affectrace.cli.finetune import tell_tuning
    from affectrace.datasets.folds import fold_sets, inner_split
    from affectrace.features.extract import extract
    from affectrace.finetune import finetune
    from affectrace.finetune.labels import Affect
    from affectrace.train.state import told_differences

    training, held_out = fold_sets(manifest, fold)
    rest, inner = inner_split(manifest, training)
    here, tuning = options.out / f"fold_{fold}", options.tuning
    folder, features, path = here / "encoder", here / "features", here / "encoder.json"
    data = manifest.about() | {"fold": fold}
    settings = {
        "encoder": options.finetune,
        "tuning": {k: v for k, v in configs.to_dict(tuning).items() if k != "threads"},
        "extraction": {k: v for k, v in configs.to_dict(options.extraction).items() if k in CHANGES_VALUES},
        "data": data,
        "training": [r.id for r in rest],
        "validation": [r.id for r in inner],
    }
    asked = json.loads(json.dumps(settings))
    kept = configs.read_json(path) if path.is_file() else {"asked": asked, "done": []}
    if wrong := told_differences(kept["asked"], asked):
        raise ConfigError(
            f"the encoder was tuned otherwise ({wrong})",
            where=here,
            hint="use the same options and data, or another --out",
        )

    def finished(step: str) -> None:
        kept["done"] = [*kept["done"], step]
        configs.write_atomic(path, json.dumps(kept, indent=2) + "\n")

    configs.write_atomic(path, json.dumps(kept, indent=2) + "\n")
    if "tuned" not in kept["done"]:
        done = finetune(
            str(options.finetune),
            rest,
            inner,
            folder,
            tuning,
            labels=None if tuning.objective == "mae" else Affect(manifest),
            media=options.out / "media",
            about={"data": data},
            resume=(folder / "resume.pt").is_file(),
            note=lambda text: terminal.say(f"fold {fold}: {text}"),
            progress=terminal.progress,
            report=lambda row: tell_tuning(row, terminal, f"fold {fold}, encoder, "),
        )
        if not done.best_step:
            raise InputError(f"fold {fold}: no validation of the encoder had a defined score", where=folder)
        finished("tuned")
    if "extracted" not in kept["done"]:
        name = str(options.finetune).partition("=")[0]
        report = extract(
            [*training, *held_out],
            features,
            [f"{name}={folder / 'best'}"],
            options.extraction,
            progress=terminal.progress,
        )
        if report.failed:
            first = "; ".join(f"{k}: {why}" for k, why in list(report.failed.items())[:3])
            raise InputError(
                f"fold {fold}: {len(report.failed)} recordings have no features ({first})",
                where=features,
                hint="repair them, or leave them out of the data set; the same command goes on",
            )
        finished("extracted")
    return features


def _tell_coverage(job: FoldJob, terminal: Terminal, where: str = "") -> None:
    """How many labelled rows have features, of each stream."""
    found = job.about["labelled_rows"]
    parts = [f"{stream} {some} of {n}" for stream, (some, n) in found.items()]
    terminal.say(f"{where}labelled rows with features: {', '.join(parts)}")
    for stream, (some, n) in found.items():
        if some < COVERED * n:
            terminal.say(
                f"warning: {where}{stream} covers {some} of {n} labelled rows: check its time, unit_s and start_s "
                "(docs/data.md), or leave it out"
            )


def _tell_validation(row: Mapping[str, Any], terminal: Terminal, where: str = "") -> None:
    if "mean_ccc" not in row:  # nothing is validated: the last checkpoint is taken
        terminal.say(f"{where}epoch {row['epoch']}, step {row['step']}: loss {row['loss']:.4f}")
        return
    terminal.say(
        f"{where}epoch {row['epoch']}, step {row['step']}: loss {row['loss']:.4f}, validation CCC "
        f"valence {row['ccc_valence']:.4f}, arousal {row['ccc_arousal']:.4f}, mean {row['mean_ccc']:.4f}"
    )


def _tell_folds(found: CrossValidation, published: Mapping[int | str, Published], terminal: Terminal) -> None:
    names = ("ccc_valence", "ccc_arousal", "mean_ccc")

    def beside(row: int | str) -> list[object]:
        if row in published:
            return [getattr(published[row], name) for name in names]
        return [""] * 3 if published else []

    columns = ["fold", "recordings", "checkpoint"]
    for name in ("CCC valence", "CCC arousal", "mean"):
        columns += [name, "95 %"]
    columns += [f"Mamba-VA paper: {x}" for x in ("valence", "arousal", "mean")] if published else []
    rows: list[list[object]] = []
    for result in found.folds:
        row: list[object] = [result.fold, result.n_recordings, result.chosen]
        for name in names:
            row += [result.scores[name], _span(result, name)]
        rows.append(row + beside(result.fold))
    if found.mean is not None and found.mean.n_folds > 1:
        row = [f"mean of {found.mean.n_folds} folds (SD)", "", ""]
        for name in names:
            row += [found.mean.mean[name], f"({_number(found.mean.sd[name])})"]
        rows.append(row + beside("mean"))
    if found.pooled is not None:
        row = ["all held out, pooled", found.pooled.n_recordings, ""]
        for name in names:
            row += [found.pooled.scores[name], _span(found.pooled, name)]
        rows.append(row + beside("pooled"))
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


def _span(result: FoldResult, name: str) -> str:
    low, high = result.intervals[name]
    return "no interval" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _number(value: float | None) -> str:
    return "undefined" if value is None or value != value else f"{value:.3f}"


# ---- settings


def _behind(options: T, fold: int) -> dict[str, Any]:
    """What the recipe of a fold gives to the options."""
    return {"training": asdict(_recipe(options, fold).training)}


def _recipe(options: TrainingOptions, fold: int) -> Any:
    from affectrace.models.checkpoint import entry

    entry(options.model)  # a model that is not known is said as such
    return recipe(options.model, options.recipe, fold=fold)


# ---- what is trained


def _job(
    options: TrainingOptions, fold: int, manifest: Manifest, sets: Sets, store: FeatureStore, terminal: Terminal
) -> FoldJob:
    """What a fold trains, of features that may be trained on (raises InputError: they may not)."""
    import torch

    from affectrace.inference.run import sequence_config, sequences_dict
    from affectrace.sequences import extractors_of, labelled_coverage, open_sequences
    from affectrace.train.crossval import FoldJob

    streams = _streams(options, store, sets[0][0])
    examples = {stream: store.get(name, sets[0][0].id) for stream, name in streams.items()}
    torch.manual_seed(options.training.seed)
    model = _sized(options, fold, {s: file.dim for s, file in examples.items()})
    if options.beit is not None:
        _start_from_beit(model, options.beit)
    how = replace(sequence_config(model), missing=options.missing)
    training, validation = (open_sequences(part, manifest, store, streams, how) for part in sets[:2])
    chosen_by_held_out = sets[1] is sets[2]
    held_out = validation if chosen_by_held_out else open_sequences(sets[2], manifest, store, streams, how)
    made = extractors_of([*training, *validation, *held_out])
    parts = ("training",) if chosen_by_held_out else ("training", "validation")
    where = f"fold {fold}: " if isinstance(options, CrossvalOptions) else ""
    accepted = [f"{where}{line}" for line in _check_features(made, sets[2], parts, manifest, options, terminal, where)]
    about = {
        **({"choose": options.choose} if isinstance(options, CrossvalOptions) else {}),
        "data": manifest.about() | {"fold": fold, "labels": manifest.labels},
        "features": streams,
        "extractors": {s: one_of(of.values()).to_dict() for s, of in made.items()},
        "sequences": sequences_dict(how),
        "labelled_rows": {s: list(n) for s, n in labelled_coverage([*training, *validation]).items()},
        "recipe": _recipe(options, fold).source,
        "licence": options.licence,
    } | ({"accepted": accepted} if accepted else {})
    return FoldJob(
        model,
        training=training,
        validation=validation,
        held_out=held_out,
        config=options.training,
        preset=options.preset,
        about=about,
        accept_features=options.accept_features,
    )


def _sized(options: TrainingOptions, fold: int, dims: Mapping[str, int]) -> Any:
    """A new model of the recipe, the preset and --set; dims: stream -> width of its features."""
    from affectrace.inference.run import sized

    fields = _known_fields(options.model, _recipe(options, fold).model) | _fields(options.set)
    return sized(options.model, options.preset, dims, **fields)


def _seen(
    extractors: Mapping[str, ExtractorId],
    held_out: Sequence[Recording],
    manifest: Manifest,
    parts: Sequence[str] = ("training", "validation"),
) -> list[str]:
    """A line for every encoder that was tuned on held-out recordings or on the same videos, or chosen by them."""
    from affectrace.datasets.folds import shared_keys
    from affectrace.features.identity import seen_in_tuning, tuned_data

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
    made: Mapping[str, Mapping[str, ExtractorId]],
    held_out: Sequence[Recording],
    parts: Sequence[str],
    manifest: Manifest,
    options: TrainingOptions,
    terminal: Terminal,
    where: str = "",
) -> list[str]:
    """See that each stream is of one extractor, and that its encoder was not tuned on what is held out.

    Args:
        made: stream -> recording id -> extractor. parts: of the encoder's own recordings, those that may not be held
            out here ("training"; "validation": they chose it).

    Returns:
        What was accepted because the user insists, a line each, told as well.

    Raises:
        InputError: it is not so, and the user does not insist.
    """
    from affectrace.features import registry
    from affectrace.features.identity import how_to_make, made_by_several

    first = {stream: one_of(of.values()) for stream, of in made.items()}
    lines, hint = made_by_several(made), how_to_make(first, options.data, options.store)
    if seen := _seen(first, held_out, manifest, parts):
        lines += seen
        name = next(e.name for e in first.values() if e.tuned_on)
        hint = f"tune it in every fold: affectrace crossval {options.model} --finetune {name}"
        if isinstance(options, TrainOptions):
            hint = f"tune it on this fold: affectrace finetune {name} --fold {options.fold}, and extract again"
    if lines and not options.accept_features:
        raise InputError(where + "; ".join(lines[:3]), where=options.store, hint=f"{hint}; {INSIST}")
    for stream, of in made.items():
        extractor = first[stream]
        if not all(e.is_known for e in of.values()):
            terminal.say(f"the '{stream}' features do not say what made them ({extractor}): taken as they are")
        elif (
            any(e.tuned_on is None for e in of.values())
            and registry.network_and_layer(extractor.name)[0] in registry.TUNABLE
        ):
            terminal.say(
                f"the '{stream}' features ({extractor}) do not say what their encoder was tuned on, as older ones: "
                "taken as they are"
            )
    for line in lines:
        terminal.say(f"{where}accepted: {line}")
    return lines


def _known_fields(model: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's fields that the model has."""
    from affectrace.models.checkpoint import entry

    return {k: v for k, v in fields.items() if k in entry(model).config_class().__dataclass_fields__}


def _start_from_beit(model: Any, source: str) -> None:
    from affectrace.models.beit import read_beit
    from affectrace.weights.locate import find

    if not hasattr(model, "load_beit"):
        raise ConfigError(f"{model.name} has no BEiT blocks", where="--beit", hint="leave it out, or train maven")
    place = find(source)
    model.load_beit(read_beit(place.path), name=f"{source} ({place.sha256[:12]})")


def _streams(options: TrainingOptions, store: FeatureStore, recording: Recording) -> dict[str, str]:
    """Stream -> extractor; without a name a stream is called by its features' modality."""
    streams: dict[str, str] = {}
    if isinstance(options, CrossvalOptions) and options.finetune is not None:
        from affectrace.finetune.encoder import modality_of

        streams[modality_of(options.finetune)] = options.finetune.partition("=")[0]
    elif not options.features:
        known = ", ".join(store.extractors) or "none"
        raise InputError("no features named", where="--features", hint=f"the store has {known}")
    for text in options.features:
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
