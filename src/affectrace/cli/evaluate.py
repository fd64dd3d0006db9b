"""The commands that score models and traces, set them side by side, and hand in what they predict."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from affectrace import config as configs
from affectrace.cli import DONE, SOME_FAILED
from affectrace.cli.data import manifest_of
from affectrace.cli.options import Common, Files, parse
from affectrace.cli.terminal import Terminal
from affectrace.cli.traces import load_traces
from affectrace.errors import FormatError, InputError, UnknownNameError
from affectrace.progress import ProgressEvent

if TYPE_CHECKING:
    from affectrace.datasets.gold_standard import HumanRow
    from affectrace.datasets.manifest import Manifest
    from affectrace.evaluate import Evaluation
    from affectrace.evaluate.compare import Comparison, Published
    from affectrace.features.store import FeatureStore
    from affectrace.inference.run import TrainedModel
    from affectrace.recording import Recording
    from affectrace.trace import Trace

Split = Literal["train", "validation", "test"]
Predict = Callable[[Sequence[str]], list["Trace"]]
"""Masked modalities -> traces."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Common):
    """Shared by what runs trained models on a data set's features, or reads traces."""

    data: Path = Path()
    """Data set: manifest.json, its folder, or the Aff-Wild2 layout."""
    store: Path = Path("features")
    """Folder that `affectrace extract` wrote, for models."""
    accept_features: bool = False
    """Use features made by a different extractor than in training; the result says so."""
    device: str = "cpu"
    """Where models run: cpu, cuda, ..."""
    smooth: str = "none"
    """Smooth predictions first: none, or median, mean, wiener with the window in seconds (median:0.5), or auto: what
    was kept beside the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class EnsembleOptions(ModelOptions):
    """Shared by what takes one model, several as one, or traces."""

    predictions: Files = field(default=(), kw_only=False)
    """A checkpoint folder (several with --ensemble), or trace files and folders of them."""
    ensemble: bool = False
    """Average the predictions of several checkpoints (folds, seeds, models)."""
    weights: tuple[float, ...] = ()
    """What each checkpoint of an ensemble counts; by default all the same."""


@dataclass(frozen=True, kw_only=True)
class ScoredOptions(ModelOptions):
    """Shared by what scores."""

    split: Split = "validation"
    """Which recordings (with --fold 0)."""
    fold: int = 0
    """k > 0: the recordings held out in fold k instead of a split."""
    draws: int = 2000
    """Bootstrap resamples of recordings."""
    seed: int = 0
    """Of the bootstrap."""
    out: Path | None = None
    """JSON file for everything."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ScoredOptions, EnsembleOptions):
    """Score a trained model, or traces, against a data set's labels."""

    features: tuple[str, ...] = ()
    """STREAM=EXTRACTOR where it is not what the checkpoint names: the features of the store that it reads."""
    windows: str | None = None
    """For causal checkpoints: SIZE:STRIDE in frames. They read overlapping windows, joined by fading, instead of
    carrying their state through the recording."""
    by: str | None = None
    """Column of the manifest (or subject, fold): scores of each group, and its difference to the others."""
    smoothing_curve: bool = False
    """Score again after smoothing with several methods and windows."""
    keep_smoothing: bool = False
    """Keep the best of --smoothing-curve beside the checkpoint, for --smooth auto. For validation data only."""
    drop: tuple[str, ...] = ()
    """Modalities to mask out of a checkpoint's input (audio, text, ...): every frame of them is not valid."""
    modalities: bool = False
    """Score a checkpoint with each modality alone, each pair, ..., all (the others masked out), with intervals."""


@dataclass(frozen=True, kw_only=True)
class CompareOptions(ScoredOptions):
    """Several models on the frames all of them predict, with paired intervals."""

    models: Files = field(default=(), kw_only=False)
    """Checkpoint folders or folders of traces, each as PATH or NAME=PATH; NAME=PATH,PATH,... averages checkpoints."""
    published: bool = True
    """On Aff-Wild2's own validation set: also show the published figures of it (tables in the Mamba-VA paper)."""


@dataclass(frozen=True, kw_only=True)
class SubmitOptions(EnsembleOptions):
    """The ABAW submission file from the organisers' sample, checked; or, with --check, the check alone."""

    sample: Path | None = None
    """The organisers' sample: which frames are asked for. By default the one that the data set holds, or
    CVPR_8th_ABAW_VA_test_set_sample.txt."""
    out: Path = Path("predictions.txt")
    """File to write."""
    check: Path | None = None
    """Check this file and write none."""


def evaluate(argv: Sequence[str]) -> int:
    """`affectrace evaluate`."""
    options = parse(EvaluateOptions, "evaluate", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace.evaluate import best_smoothing, plain
        from affectrace.evaluate import evaluate as score
        from affectrace.evaluate.compare import ablation, ablation_dict, published_modalities
        from affectrace.evaluate.smoothing import keep_choice
        from affectrace.inference.modalities import modalities_of

        if (options.drop or options.modalities) and not are_models(options.predictions):
            raise InputError(
                "only a checkpoint can be run without a modality", where="--drop", hint="give a checkpoint folder"
            )
        one = are_models(options.predictions) and len(options.predictions) == 1
        if options.keep_smoothing and not (options.smoothing_curve and one and options.smooth == "none"):
            raise InputError(
                "keeps the best of --smoothing-curve beside one checkpoint, without other smoothing",
                where="--keep-smoothing",
                hint="affectrace evaluate CHECKPOINT --smoothing-curve --keep-smoothing",
            )
        manifest = manifest_of(options.data, terminal)
        recordings = _scored(manifest, options)
        predict, models = predictor_of(options.predictions, recordings, manifest, options, terminal)
        predictions = predict(options.drop)
        labels = _labels(recordings, manifest, predictions)
        bootstrap: Any = {"n_draws": options.draws, "seed": options.seed}
        subsets: Comparison | None = None
        beside: tuple[Published, ...] = ()
        if options.modalities:
            kept = tuple(m for m in modalities_of(models[0].model) if m not in options.drop)
            subsets = ablation(
                labels, lambda drop: predict((*options.drop, *drop)) if drop else predictions, kept, **bootstrap
            )
            if one and not options.fold and options.split != "train":
                beside = published_modalities(manifest, models[0].model.name, kept)
        by = None if options.by is None else _groups(recordings, options.by)
        found = score(labels, predictions, by=by, smoothing=options.smoothing_curve, **bootstrap)
        raters = _raters([r for r in recordings if r.id in found.each], manifest, options)
        terminal.close()
        _tell_scores(found, raters, terminal)
        values = {
            "options": configs.to_dict(options),
            "data": manifest.about(),
            **found.to_dict(),
            **marks_of(predictions),
        }
        if raters is not None:
            each = {name: scores.to_dict() for name, scores in raters.each.items()}
            values["human"] = plain({"pooled": raters.to_dict(), "intervals": raters.intervals, "raters": each})
        if subsets:
            _tell_subsets(subsets, beside, terminal)
            values["modalities"] = ablation_dict(subsets)
        if options.keep_smoothing:
            best = best_smoothing(found.smoothing)
            about = {"mean_ccc": best.mean_ccc, "data": manifest.about(), "split": options.split, "fold": options.fold}
            path = keep_choice(Path(options.predictions[0]), best.method, best.window_s, about)
            terminal.say(f"kept: {path}")
        _write(values, options.out, "scores", terminal)
    return SOME_FAILED if found.without_prediction else DONE


def compare(argv: Sequence[str]) -> int:
    """`affectrace compare`."""
    options = parse(CompareOptions, "compare", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace.evaluate.compare import compare as beside
        from affectrace.evaluate.compare import published

        manifest = manifest_of(options.data, terminal)
        recordings = _scored(manifest, options)
        named: dict[str, str] = {}
        for given in options.models:
            name, _, path = given.rpartition("=")
            if (name or path) in named:
                raise InputError(f"'{name or path}' is given twice", hint="name models as NAME=PATH")
            named[name or path] = path
        predictions = {}
        for name, path in named.items():
            paths = (path,) if Path(path).exists() else tuple(part for part in path.split(",") if part)
            predictions[name] = predictor_of(paths, recordings, manifest, options, terminal)[0](())
        some = [t for traces in predictions.values() for t in traces]
        found = beside(_labels(recordings, manifest, some), predictions, n_draws=options.draws, seed=options.seed)
        terminal.close()
        _tell_comparison(found, published(manifest, options.split, options.fold) if options.published else (), terminal)
        values = {"options": configs.to_dict(options), "data": manifest.about(), **found.to_dict(), **marks_of(some)}
        _write(values, options.out, "comparison", terminal)
    return DONE


def submit(argv: Sequence[str]) -> int:
    """`affectrace submit`."""
    options = parse(SubmitOptions, "submit", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace.datasets.aff_wild2_files import read_sample
        from affectrace.evaluate.submission import check_submission, write_submission

        sample = read_sample(options.sample or _sample(options.data, terminal))
        path, marks = options.check, dict[str, list[str]]()
        if path is None:
            manifest = manifest_of(options.data, terminal) if are_models(options.predictions) else None
            recordings = () if manifest is None else tuple(r for r in manifest if r.id in sample.trials)
            traces = predictor_of(options.predictions, recordings, manifest, options, terminal)[0](())
            marks = marks_of(traces)
            path = options.out
            filled, repeated = write_submission(sample, traces, path)
            terminal.close()
            for what, found in (
                ("frames without a value took the last one", filled),
                ("frames past the end took the last value", repeated),
            ):
                if found:
                    terminal.say(f"{sum(found.values())} {what} ({len(found)} trials)")
            terminal.say(f"submission: {path} ({len(sample)} rows)")
        problems = check_submission(path, sample)
        terminal.result({"file": str(path), "problems": [vars(p) for p in problems], **marks})
        if problems:
            terminal.table("", ["line", "what is wrong", "what to do"], [[p.line, p.what, p.done] for p in problems])
            terminal.error(f"{path}: {len(problems)} kinds of problems")
        else:
            terminal.say(f"checked: {len(sample)} rows of {len(sample.trials)} trials, nothing wrong")
    return SOME_FAILED if problems else DONE


def _sample(data: Path, terminal: Terminal) -> Path:
    """The sample that the data set holds; else the one in this folder."""
    from affectrace.datasets.aff_wild2_files import find_tree, is_aff_wild2
    from affectrace.datasets.manifest import FILE_NAME, Manifest

    root = data if data.is_dir() else data.parent
    if (root / FILE_NAME).is_file():
        root = Manifest.load(root).root
    found = find_tree(root).sample if is_aff_wild2(root) else None
    if found is not None:
        terminal.say(f"sample: {found}")
    return found or Path("CVPR_8th_ABAW_VA_test_set_sample.txt")


# ---- what is scored


def _scored(manifest: Manifest, options: ScoredOptions) -> tuple[Recording, ...]:
    """The labelled recordings of a split or fold (raises InputError: none)."""
    from affectrace.datasets.folds import fold_sets

    found = fold_sets(manifest, options.fold)[1] if options.fold else manifest.of_split(options.split)
    labelled = tuple(r for r in found if r.labels is not None)
    if not labelled:
        raise InputError(f"no labelled recording in '{options.split}'", where=manifest.name, hint="try --split")
    return labelled


def _labels(recordings: Sequence[Recording], manifest: Manifest, predictions: Sequence[Trace]) -> list[Trace]:
    """Labels of the recordings, on the clocks of their predictions."""
    from affectrace.datasets import read_labels

    clocks = {t.recording_id: t.timeline for t in predictions}
    return [read_labels(manifest, r, clocks.get(r.id)) for r in recordings]


def _groups(recordings: Sequence[Recording], column: str) -> dict[str, str]:
    known = {c for r in recordings for c in r.columns} | {"subject", "fold", "person"}
    if column not in known:
        raise InputError(f"no column '{column}'", where="--by", hint=f"there are {', '.join(sorted(known))}")
    return {r.id: str(r.columns.get(column, getattr(r, column, None) or "")) for r in recordings}


def _raters(recordings: Sequence[Recording], manifest: Manifest, options: EvaluateOptions) -> HumanRow | None:
    """Inter-rater agreement on these recordings, where the data set keeps several raters."""
    from affectrace.datasets import read_raters
    from affectrace.datasets.gold_standard import human_row

    panels, gold = read_raters(manifest, recordings)
    if len({rater for panel in panels for rater in panel.raters}) < 2:
        return None
    return human_row(panels, gold, n_draws=options.draws, seed=options.seed)


# ---- what predicts


def are_models(given: Sequence[str]) -> bool:
    """Whether nothing but checkpoint folders is given."""
    return bool(given) and all((Path(g) / "model.safetensors").is_file() for g in given)


def predictor_of(
    given: Sequence[str],
    recordings: Sequence[Recording],
    manifest: Manifest | None,
    options: ModelOptions,
    terminal: Terminal,
) -> tuple[Predict, tuple[TrainedModel, ...]]:
    """What gives traces without some modalities, smoothed as asked for: checkpoints, which come along, or files."""
    from affectrace.evaluate.smoothing import AUTO, kept_choice, parse_smoothing, smoothed

    folders = [Path(g) for g in given]
    method, window_s = kept_choice(folders) if options.smooth == AUTO else parse_smoothing(options.smooth)
    if manifest is not None and are_models(given):
        predict, models = _by_models(folders, recordings, manifest, options, terminal)
        return lambda drop: [smoothed(t, method, window_s) for t in predict(drop)], models
    for name in ("weights", "windows", "features"):
        if getattr(options, name, None):
            raise InputError("is for checkpoints, and traces are given", where=f"--{name}", hint="give checkpoints")
    traces = load_traces(given)
    _tell_marks(marks_of(traces), terminal)
    return lambda _: [smoothed(t, method, window_s) for t in traces], ()


def _by_models(
    folders: Sequence[Path],
    recordings: Sequence[Recording],
    manifest: Manifest,
    options: ModelOptions,
    terminal: Terminal,
) -> tuple[Predict, tuple[TrainedModel, ...]]:
    from affectrace.features.identity import ACCEPTED, SEEN
    from affectrace.inference.ensemble import Ensemble
    from affectrace.inference.modalities import mask_modalities
    from affectrace.sequences import open_sequence

    if isinstance(options, EnsembleOptions) and len(folders) > 1 and not options.ensemble:
        hint = "average them with --ensemble, or set them side by side with `affectrace compare`"
        raise InputError(f"{len(folders)} checkpoints are given", hint=hint)
    weights = options.weights if isinstance(options, EnsembleOptions) else ()
    loaded = Ensemble.load(folders, weights, device=options.device)
    models = loaded.members
    if isinstance(options, EvaluateOptions):
        models = _in_windows(_reading(models, options.features), options.windows)
    accepted = check_features(folders, models, recordings, options, terminal)
    for folder, model in zip(folders, models, strict=True):
        accepted += [f"{folder}, in training: {line}" for line in model.about.get(ACCEPTED) or ()]
    marks = {ACCEPTED: accepted, SEEN: _seen_before(folders, models, [r.id for r in recordings])}
    _tell_marks(marks, terminal)
    what = ", ".join(f.name for f in folders)

    def predict(drop: Sequence[str]) -> list[Trace]:
        members = [replace(mask_modalities(m, drop), strict=not options.accept_features) for m in models]
        ensemble = Ensemble(tuple(members), loaded.weights)
        stores = {id(m): store_of(folder, options.store) for m, folder in zip(members, folders, strict=True)}
        traces = []
        for i, recording in enumerate(recordings):
            terminal.progress(ProgressEvent("predicting", i, len(recordings), "recordings", what))
            trace = ensemble.predict(
                lambda m, r=recording: open_sequence(r, manifest, stores[id(m)], m.features, m.sequences)  # type: ignore[misc]
            )
            traces.append(replace(trace, provenance={**trace.provenance, **marks}))
        terminal.progress(ProgressEvent("predicting", len(recordings), len(recordings), "recordings", what))
        return traces

    return predict, models


def _reading(models: tuple[TrainedModel, ...], features: Sequence[str]) -> tuple[TrainedModel, ...]:
    """The models, reading other features of the store where STREAM=EXTRACTOR says so."""
    named = {stream: extractor for stream, _, extractor in (text.partition("=") for text in features)}
    if odd := [text for text in features if "=" not in text]:
        raise InputError(f"'{odd[0]}' is not STREAM=EXTRACTOR", where="--features", hint="as visual=mae-vit-l")
    streams = {s for m in models for s in m.model.input_dims}
    if unknown := sorted(set(named) - streams):
        raise UnknownNameError.of("stream", unknown[0], tuple(sorted(streams)))
    return tuple(
        replace(m, features={**m.features, **{s: e for s, e in named.items() if s in m.model.input_dims}})
        for m in models
    )


def _in_windows(models: tuple[TrainedModel, ...], windows: str | None) -> tuple[TrainedModel, ...]:
    """The causal ones read windows instead of carrying their state; the others read those of their training anyway."""
    if windows is None:
        return models
    from affectrace.sequences.windows import WindowScheme

    scheme = WindowScheme.parse(windows)
    if not any(m.causal for m in models):
        what = f"{models[0].id} is not causal: it carries no state and always reads windows"
        raise InputError(what, hint="leave out --windows")
    return tuple(replace(m, scheme=scheme) if m.causal else m for m in models)


def check_features(
    folders: Sequence[Path],
    models: Sequence[TrainedModel],
    recordings: Sequence[Recording],
    options: Any,
    terminal: Terminal,
) -> list[str]:
    """See that the store holds the features that checkpoints were trained on, before anything is predicted.

    options: its `data`, `store` and `accept_features`. Returns what is accepted because the user insists, a line each.

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

    lines, remarks, hints = dict[str, None](), list[str](), list[str]()
    for folder, model in zip(folders, models, strict=True):
        if not model.features:
            raise FormatError("does not say which features it reads", where=folder, hint="give traces instead")
        store = store_of(folder, options.store)
        if store.beside is not None:
            remarks.append(f"{folder}: features of its fold, {store.root}")
        made = {s: {r.id: store.get(name, r.id).extractor for r in recordings} for s, name in model.features.items()}
        wanted, first = (
            extractors_of_training(model.about),
            {s: next(iter(of.values())) for s, of in made.items() if of},
        )
        apart = {s: [line for e in of.values() for line in not_as_trained(wanted, {s: e})] for s, of in made.items()}
        wrong = {s: wanted[s] for s, some in apart.items() if some}
        found = [f"{folder}: {line}" for some in apart.values() for line in some] or made_by_several(made)
        remarks += [f"{folder}: {line}" for line in unknown(wanted, first)]
        hints += [how_to_make(wrong or wanted, options.data, options.store)] if found else []
        lines |= dict.fromkeys(found)
    if lines and not options.accept_features:
        raise InputError("; ".join(list(lines)[:3]), where=options.store, hint=f"{hints[0]}; {INSIST}")
    for line in remarks:
        terminal.say(line)
    return list(lines)


def store_of(folder: Path, root: Path) -> FeatureStore:
    """Where a checkpoint's features are: --store, and before it what `crossval --finetune` made for its fold."""
    from affectrace.features.store import FeatureStore

    store, fold = FeatureStore(root), folder.resolve().parent
    return FeatureStore(fold / "features", beside=store) if (fold / "encoder.json").is_file() else store


def marks_of(traces: Iterable[Trace]) -> dict[str, list[str]]:
    """ACCEPTED and SEEN of all traces, for results."""
    from affectrace.features.identity import ACCEPTED, SEEN

    some = list(traces)
    return {k: list(dict.fromkeys(str(x) for t in some for x in t.provenance.get(k) or ())) for k in (ACCEPTED, SEEN)}


def _tell_marks(marks: Mapping[str, list[str]], terminal: Terminal) -> None:
    accepted, seen = marks.values()
    for line in [f"accepted: {line}" for line in accepted] + seen:
        terminal.say(line)


def _seen_before(folders: Sequence[Path], models: Sequence[TrainedModel], recordings: Sequence[str]) -> list[str]:
    """What checkpoints, and the encoders of their features, have seen of the recordings that are scored."""
    from affectrace.features.base import ExtractorId
    from affectrace.features.identity import extractors_of_training, seen_in_tuning

    n, lines = len(recordings), []
    for folder, model in zip(folders, models, strict=True):
        encoders = {s: e for s, e in extractors_of_training(model.about).items() if isinstance(e, ExtractorId)}
        chose = (model.about.get("validation") or {}).get("chosen") is not False
        for part, did in (("training", "trained on"), ("validation", "chosen by its scores on")):
            kept = (model.about.get("recordings") or {}).get(part) or ()
            if (both := set(recordings) & set(kept)) and (chose or part == "training"):
                lines.append(f"{folder} was {did} {len(both)} of these {n} recordings")
            did = did.replace("trained", "tuned")
            for stream, seen in seen_in_tuning(encoders, recordings, part).items():
                lines.append(f"{folder}: the encoder of '{stream}' was {did} {len(seen)} of these {n} recordings")
    return [f"{line}: scores are too high" for line in lines]


# ---- what is said


def _write(values: Mapping[str, Any], out: Path | None, what: str, terminal: Terminal) -> None:
    if out is not None:
        configs.write_atomic(out, json.dumps(values, indent=1, allow_nan=False) + "\n")
        terminal.say(f"{what}: {out}")
    terminal.result(values)


def _tell_scores(found: Evaluation, raters: HumanRow | None, terminal: Terminal) -> None:
    from affectrace.evaluate import best_smoothing
    from affectrace.metrics import FEW, few_units

    rows = _score_rows("", found.pooled, found.intervals, found.each)
    if raters is not None:
        rows += _score_rows("inter-rater agreement: ", raters.pooled, raters.intervals, raters.recordings)
    terminal.table("", ["", "CCC", "95 %", "PCC", "RMSE", "SAGR", "CCC, mean of recordings", "of recordings"], rows)
    if raters is not None:
        terminal.say(
            f"inter-rater agreement: each of {len(raters.each)} raters against the gold standard of the others, mean "
            "over raters; what the labels themselves allow"
        )
    if found.groups:
        names = ["group", "recordings", "frames", "CCC valence", "CCC arousal", "mean", "minus the others", "95 %"]
        lines = []
        for g in found.groups:
            apart, s = g.difference_intervals.get("mean_ccc"), g.scores
            lines.append([g.name, g.n_recordings, s.n, s.valence.ccc, s.arousal.ccc, s.mean_ccc])
            lines[-1] += [g.difference.get("mean_ccc", ""), "" if apart is None else f"{apart:.3f}"]
        terminal.table("", names, lines)
        few = [f"{g.name or 'no group'} ({g.n_recordings})" for g in found.groups if g.n_recordings < FEW]
        if few:
            terminal.say(f"groups of few recordings, whose figures are rough: {', '.join(few)}")
    if found.smoothing:
        lines = [[p.method, p.window_s, p.ccc_valence, p.ccc_arousal, p.mean_ccc] for p in found.smoothing]
        terminal.table("", ["smoothing", "window (s)", "CCC valence", "CCC arousal", "mean"], lines)
        best = best_smoothing(found.smoothing)
        terminal.say(f"best smoothing: {best.method}:{best.window_s:g} (choose it on validation data only)")
    s, n = found.pooled, len(found.each)
    if s.valence.n == s.arousal.n:
        terminal.say(f"{s.n} frames of {n} recordings; {s.n_missing} not predicted")
    else:
        terminal.say(
            f"{s.valence.n} frames of valence, {s.arousal.n} of arousal; {n} recordings; {s.n_missing} missing"
        )
    if said := few_units(found.intervals["mean_ccc"].n_units):
        terminal.say(f"note: {said}")
    for name, frames in found.without_prediction.items():
        terminal.error(f"{name}: not predicted ({frames} labelled frames)")


def _score_rows(what: str, pooled: Any, intervals: Mapping[str, Any], each: Mapping[str, Any]) -> list[list[object]]:
    """Rows of valence, arousal and their mean."""
    from affectrace.metrics import mean_defined

    rows: list[list[object]] = []
    for dimension in ("valence", "arousal"):
        a = getattr(pooled, dimension)
        mean, n = mean_defined([getattr(s, dimension).ccc for s in each.values()])
        rows.append([what + dimension, a.ccc, f"{intervals[f'ccc_{dimension}']:.3f}", a.pcc, a.rmse, a.sagr, mean, n])
    return [*rows, [f"{what}mean", pooled.mean_ccc, f"{intervals['mean_ccc']:.3f}", *[""] * 5]]


def _tell_subsets(found: Comparison, published: Sequence[Published], terminal: Terminal) -> None:
    rows: list[list[object]] = []
    for (name, s), lost in zip(found.scores.items(), found.differences, strict=True):
        span, apart = f"{found.intervals[name]['mean_ccc']:.3f}", lost.intervals["mean_ccc"]
        rows.append([name, s.valence.ccc, s.arousal.ccc, s.mean_ccc, span])
        rows[-1] += ["", ""] if lost.a == lost.b else [lost.difference["mean_ccc"], f"{apart:.3f}"]
    rows += [[f"{p.name}: {p.source}", p.ccc_valence, p.ccc_arousal, p.mean_ccc, "", "", ""] for p in published]
    columns = ["modalities", "CCC valence", "CCC arousal", "mean", "95 %", "all minus this", "95 %"]
    terminal.table("", columns, rows)
    terminal.say(
        f"the same network with the other modalities masked out, not trained again; {found.n_frames} frames of "
        f"{found.n_recordings} recordings"
    )
    for p in published[:1]:
        terminal.say(f"{p.source}: {p.data}")


def _tell_comparison(found: Comparison, published: Sequence[Published], terminal: Terminal) -> None:
    from affectrace.metrics import few_units

    rows: list[list[object]] = []
    for name, s in found.scores.items():
        span = f"{found.intervals[name]['mean_ccc']:.3f}"
        rows.append([name, s.valence.ccc, s.arousal.ccc, s.mean_ccc, span, "here"])
    rows += [[p.name, p.ccc_valence, p.ccc_arousal, p.mean_ccc, "", f"{p.source}: {p.data}"] for p in published]
    terminal.table("", ["model", "CCC valence", "CCC arousal", "mean", "95 %", "measured"], rows)
    lines = []
    for d in found.differences:
        p = d.p["mean_ccc"]  # never 0: the smallest one possible is 2 / (draws + 1)
        shown = "" if p != p else "< 0.001" if p < 0.001 else f"{p:.3f}"
        lines.append([f"{d.a} - {d.b}", d.difference["mean_ccc"], f"{d.intervals['mean_ccc']:.3f}", shown])
    terminal.table("", ["difference of mean CCC", "", "95 %", "p"], lines)
    terminal.say(
        f"{found.n_frames} frames of {found.n_recordings} recordings; {found.n_left_out} labelled frames are not "
        "predicted by all and left out"
    )
    if said := few_units(found.n_units, "intervals and p-values"):
        terminal.say(f"note: {said}")
