"""Evaluation commands: evaluate, compare, submit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectrace import config as configs
from affectrace.cli import DONE, SOME_FAILED
from affectrace.cli.commands import (
    CompareOptions,
    EnsembleOptions,
    EvaluateOptions,
    ModelOptions,
    ScoredOptions,
    SubmitOptions,
)
from affectrace.cli.data import manifest_of
from affectrace.cli.options import named_streams, written
from affectrace.cli.terminal import Terminal
from affectrace.cli.traces import load_traces, trace_paths
from affectrace.datasets.aff_wild2_files import find_tree, is_aff_wild2, read_sample
from affectrace.datasets.catalog import read_labels, read_raters
from affectrace.datasets.folds import fold_sets
from affectrace.datasets.gold_standard import HumanRow, human_row
from affectrace.datasets.manifest import FILE_NAME, Manifest
from affectrace.errors import FormatError, InputError, UnknownNameError
from affectrace.evaluate import Evaluation, best_smoothing, plain
from affectrace.evaluate import evaluate as score
from affectrace.evaluate.compare import (
    Comparison,
    Published,
    ablation,
    ablation_dict,
    published,
    published_modalities,
)
from affectrace.evaluate.compare import compare as compare_models
from affectrace.evaluate.smoothing import AUTO, keep_choice, kept_choice, parse_smoothing, smoothed
from affectrace.evaluate.submission import check_submission, write_submission
from affectrace.features.base import ExtractorId
from affectrace.features.identity import (
    ACCEPTED,
    SEEN,
    extractors_of_training,
    how_to_make,
    made_by_several,
    not_as_trained,
    refuse_unless,
    seen_in_tuning,
    unknown,
)
from affectrace.features.store import FeatureStore
from affectrace.metrics import DIMENSIONS, FEW, few_units, mean_defined
from affectrace.progress import ProgressEvent
from affectrace.recording import Recording
from affectrace.sequences.config import WindowScheme
from affectrace.trace import Trace

if TYPE_CHECKING:
    from affectrace.inference.run import TrainedModel

SAMPLE = Path("CVPR_8th_ABAW_VA_test_set_sample.txt")
Predict = Callable[[Sequence[str]], list[Trace]]
"""Masked modalities -> traces."""


def evaluate(options: EvaluateOptions, terminal: Terminal) -> int:
    """Score a model, or traces, against labels."""
    models_given = are_models(options.predictions)
    if not models_given:
        trace_paths(options.predictions)  # refuses what is not there before a data set is read
    if (options.drop or options.modalities) and not models_given:
        what = "only a checkpoint can be run without a modality"
        raise InputError(what, where="--drop", hint="give a checkpoint folder")
    one = models_given and len(options.predictions) == 1
    if options.keep_smoothing and not (options.smoothing_curve and one and options.smooth == "none"):
        raise InputError(
            "keeps the best of --smoothing-curve beside one checkpoint, without other smoothing",
            where="--keep-smoothing",
            hint="affectrace evaluate CHECKPOINT --smoothing-curve --keep-smoothing",
        )
    manifest = manifest_of(options.data, terminal)
    recordings = _scored(manifest, options)
    predict, models = _predictor(options.predictions, recordings, manifest, options, terminal)
    predictions = predict(options.drop)
    labels = _labels(recordings, manifest, predictions)
    by = None if options.by is None else _groups(recordings, options.by)
    bootstrap: Any = {"n_draws": options.draws, "seed": options.seed}
    found = score(labels, predictions, by=by, smoothing=options.smoothing_curve, **bootstrap)
    panels, gold = read_raters(manifest, [r for r in recordings if r.id in found.each])
    several = len({rater for panel in panels for rater in panel.raters}) > 1
    raters = human_row(panels, gold, **bootstrap) if several else None
    subsets: Comparison | None = None
    if options.modalities:
        from affectrace.inference.modalities import modalities_of, named_modalities

        dropped = named_modalities(models[0].model, options.drop)
        kept = tuple(m for m in modalities_of(models[0].model) if m not in dropped)
        subsets = ablation(labels, lambda drop: predict((*dropped, *drop)) if drop else predictions, kept, **bootstrap)
    terminal.close()
    _print_scores(found, raters, terminal)
    about = {"options": written(options), "data": manifest.about()}
    values = {**about, **found.to_dict(), **marks_of(predictions)}
    if raters is not None:
        each = {name: scores.to_dict() for name, scores in raters.each.items()}
        values["human"] = plain({"pooled": raters.to_dict(), "intervals": raters.intervals, "raters": each})
    if subsets is not None:
        official = one and not options.fold and options.split != "train"
        _print_subsets(
            subsets, published_modalities(manifest, models[0].model.name, kept) if official else (), terminal
        )
        values["modalities"] = ablation_dict(subsets)
    if options.keep_smoothing:
        best = best_smoothing(found.smoothing)
        scored = {"mean_ccc": best.mean_ccc, "data": manifest.about(), "split": options.split, "fold": options.fold}
        terminal.say(f"kept: {keep_choice(Path(options.predictions[0]), best.method, best.window_s, scored)}")
    _write(values, options.out, "scores", terminal)
    return SOME_FAILED if found.without_prediction else DONE


def compare(options: CompareOptions, terminal: Terminal) -> int:
    """Compare several models on the same frames."""
    manifest = manifest_of(options.data, terminal)
    recordings = _scored(manifest, options)
    predictions: dict[str, list[Trace]] = {}
    for given in options.models:
        name, _, path = given.rpartition("=")
        if (name or path) in predictions:
            raise InputError(f"'{name or path}' is given twice", hint="name models as NAME=PATH")
        paths = [path] if Path(path).exists() else [part for part in path.split(",") if part]
        predict, _ = _predictor(paths, recordings, manifest, options, terminal)
        predictions[name or path] = predict(())
    traces = [t for several in predictions.values() for t in several]
    labels = _labels(recordings, manifest, traces)
    found = compare_models(labels, predictions, n_draws=options.draws, seed=options.seed)
    terminal.close()
    figures = published(manifest, options.split, options.fold) if options.published else ()
    _print_comparison(found, figures, terminal)
    about = {"options": written(options), "data": manifest.about()}
    _write({**about, **found.to_dict(), **marks_of(traces)}, options.out, "comparison", terminal)
    return DONE


def submit(options: SubmitOptions, terminal: Terminal) -> int:
    """Write and check an ABAW submission."""
    sample = read_sample(options.sample or _sample(options.data, terminal))
    path, marks = options.check or options.out, dict[str, list[str]]()
    if options.check is None:
        manifest = manifest_of(options.data, terminal) if are_models(options.predictions) else None
        recordings = () if manifest is None else tuple(r for r in manifest if r.id in sample.trials)
        traces = _predictor(options.predictions, recordings, manifest, options, terminal)[0](())
        marks = marks_of(traces)
        filled, repeated = write_submission(sample, traces, path)
        terminal.close()
        for what, trials in (
            ("frames without a value, filled with the last one", filled),
            ("frames beyond the end, filled with the last value", repeated),
        ):
            if trials:
                terminal.say(f"{sum(trials.values())} {what} ({len(trials)} trials)")
        terminal.say(f"submission: {path} ({len(sample)} rows)")
    problems = check_submission(path, sample)
    terminal.result({"file": str(path), "problems": [vars(p) for p in problems], **marks})
    if problems:
        terminal.table("", ["line", "problem", "what to do"], [[p.line, p.what, p.done] for p in problems])
        terminal.error(f"{path}: {len(problems)} kinds of problems")
        return SOME_FAILED
    terminal.say(f"checked: {len(sample)} rows of {len(sample.trials)} trials, no problems")
    return DONE


def _sample(data: Path, terminal: Terminal) -> Path:
    """The organizers' sample in the data set, else in the working folder."""
    root = data if data.is_dir() else data.parent
    if (root / FILE_NAME).is_file():
        root = Manifest.load(root).root
    found = find_tree(root).sample if is_aff_wild2(root) else None
    if found is not None:
        terminal.say(f"sample: {found}")
    return found or SAMPLE


def _scored(manifest: Manifest, options: ScoredOptions) -> tuple[Recording, ...]:
    """The labelled recordings of a split or fold (raises InputError: none)."""
    found = fold_sets(manifest, options.fold)[1] if options.fold else manifest.of_split(options.split)
    labelled = tuple(r for r in found if r.labels is not None)
    if not labelled:
        folds = sorted({r.fold for r in manifest if r.fold is not None})
        hint = f"try --split, or --fold {folds[0]} to {folds[-1]}" if folds else "try --split"
        raise InputError(f"no labelled recording in '{options.split}'", where=manifest.name, hint=hint)
    return labelled


def _labels(recordings: Sequence[Recording], manifest: Manifest, predictions: Sequence[Trace]) -> list[Trace]:
    """Labels on the timelines of their predictions."""
    timelines = {t.recording_id: t.timeline for t in predictions}
    return [read_labels(manifest, r, timelines.get(r.id)) for r in recordings]


def _groups(recordings: Sequence[Recording], column: str) -> dict[str, str]:
    known = {c for r in recordings for c in r.columns} | {"subject", "fold", "person"}
    if column not in known:
        raise InputError(f"no column '{column}'", where="--by", hint=f"there are {', '.join(sorted(known))}")
    return {r.id: str(r.columns.get(column, getattr(r, column, None) or "")) for r in recordings}


# ---- predictions of checkpoints or from files


def are_models(given: Sequence[str]) -> bool:
    """Whether only checkpoint folders are given."""
    return bool(given) and all((Path(g) / "model.safetensors").is_file() for g in given)


def _predictor(
    given: Sequence[str],
    recordings: Sequence[Recording],
    manifest: Manifest | None,
    options: ModelOptions,
    terminal: Terminal,
) -> tuple[Predict, tuple[TrainedModel, ...]]:
    """A function that returns smoothed traces, by checkpoints (returned as well) or from files."""
    folders = [Path(g) for g in given]
    method, window_s = kept_choice(folders) if options.smooth == AUTO else parse_smoothing(options.smooth)
    if manifest is not None and are_models(given):
        predict, models = by_models(folders, recordings, manifest, options, terminal)
        return lambda drop: [smoothed(t, method, window_s) for t in predict(drop)], models
    for name in ("weights", "windows", "features"):
        if getattr(options, name, None):
            raise InputError("needs checkpoints, not traces", where=f"--{name}", hint="give checkpoints")
    traces = load_traces(given)
    _print_marks(marks_of(traces), terminal)
    return lambda _: [smoothed(t, method, window_s) for t in traces], ()


def by_models(
    folders: Sequence[Path],
    recordings: Sequence[Recording],
    manifest: Manifest,
    options: ModelOptions,
    terminal: Terminal,
) -> tuple[Predict, tuple[TrainedModel, ...]]:
    """A function that returns the traces of recordings by checkpoints, and these."""
    from affectrace.inference.ensemble import Ensemble
    from affectrace.inference.modalities import mask_modalities  # loads torch
    from affectrace.inference.run import TrainedModel
    from affectrace.sequences import open_sequence

    if isinstance(options, EnsembleOptions) and len(folders) > 1 and not options.ensemble:
        hint = "average them with --ensemble, or compare them with `affectrace compare`"
        raise InputError(f"{len(folders)} checkpoints are given", hint=hint)
    weights = options.weights if isinstance(options, EnsembleOptions) else ()
    models = tuple(TrainedModel.load(folder, device=options.device) for folder in folders)
    weights = Ensemble(models, weights).weights  # refuses wrong ones
    if isinstance(options, EvaluateOptions):
        models = _with_windows(_with_features(models, options.features), options.windows)
    store = FeatureStore.of(options.store, manifest.root)
    accepted = check_features(folders, models, recordings, store, options, terminal)
    for folder, model in zip(folders, models, strict=True):
        accepted += [f"{folder}, in training: {line}" for line in model.about.get(ACCEPTED) or ()]
    scored = [r.id for r in recordings if r.labels is not None]
    marks = {ACCEPTED: accepted, SEEN: _seen_before(folders, models, scored)}
    _print_marks(marks, terminal)
    what = ", ".join(f.name for f in folders)

    def predict(drop: Sequence[str]) -> list[Trace]:
        members = [replace(mask_modalities(m, drop), strict=not options.accept_features) for m in models]
        ensemble = Ensemble(tuple(members), weights)
        stores = {id(m): store_of(folder, store) for m, folder in zip(members, folders, strict=True)}
        traces = []
        for i, recording in enumerate(recordings):
            terminal.progress(ProgressEvent("predicting", i, len(recordings), "recordings", what))
            trace = ensemble.predict(
                lambda m, r=recording: open_sequence(r, manifest, stores[id(m)], m.features, m.sequences)  # type: ignore[misc]
            )
            traces.append(replace(trace, provenance={**trace.provenance, **marks}))
        terminal.progress(ProgressEvent("predicting", len(recordings), len(recordings), "recordings", what))
        for note in dict.fromkeys(note for t in traces if not drop for note in t.provenance.get("notes", ())):
            terminal.say(f"note: {note}")
        return traces

    return predict, models


def _with_features(models: tuple[TrainedModel, ...], features: Sequence[str]) -> tuple[TrainedModel, ...]:
    """Models that read other features of the store, as STREAM=EXTRACTOR."""
    named = named_streams(features)
    streams = {s for m in models for s in m.model.input_dims}
    if wrong := sorted(set(named) - streams):
        raise UnknownNameError.of("stream", wrong[0], streams)
    return tuple(
        replace(m, features={**m.features, **{s: e for s, e in named.items() if s in m.model.input_dims}})
        for m in models
    )


def _with_windows(models: tuple[TrainedModel, ...], windows: str | None) -> tuple[TrainedModel, ...]:
    """Causal models read windows instead of carrying their state; the others keep their windows of training."""
    if windows is None:
        return models
    scheme = WindowScheme.parse(windows)
    if not any(m.causal for m in models):
        what = f"{models[0].id} is not causal: it carries no state and always reads windows"
        raise InputError(what, hint="leave out --windows")
    return tuple(replace(m, scheme=scheme) if m.causal else m for m in models)


def check_features(
    folders: Sequence[Path],
    models: Sequence[TrainedModel],
    recordings: Sequence[Recording],
    store: FeatureStore,
    options: Any,
    terminal: Terminal,
) -> list[str]:
    """Compare the features of a store with those that checkpoints were trained on, before anything is predicted.

    options: with `data` and `accept_features`. Returns a line for each mismatch that the user accepts.

    Raises:
        FormatError: features are missing. InputError: they were made by another extractor, or by several.
    """
    mismatches, notes, hints = dict[str, None](), list[str](), list[str]()
    for folder, model in zip(folders, models, strict=True):
        if not model.features:
            raise FormatError("does not name its features", where=folder, hint="give traces instead")
        own, wanted = store_of(folder, store), extractors_of_training(model.about)
        if own is not store:
            notes.append(f"{folder}: features of its fold, {own.root}")
        made = {s: {r.id: own.get(name, r.id).extractor for r in recordings} for s, name in model.features.items()}
        lines = {s: [line for e in of.values() for line in not_as_trained(wanted, {s: e})] for s, of in made.items()}
        wrong = [f"{folder}: {line}" for some in lines.values() for line in some] or made_by_several(made)
        if wrong:
            hints.append(
                how_to_make({s: wanted[s] for s, some in lines.items() if some} or wanted, options.data, store.root)
            )
        first = {s: next(iter(of.values())) for s, of in made.items() if of}
        notes += [f"{folder}: {line}" for line in unknown(wanted, first)]
        mismatches |= dict.fromkeys(wrong)
    refuse_unless(options.accept_features, list(mismatches), store.root, hints[0] if hints else "")
    for line in notes:
        terminal.say(line)
    return list(mismatches)


def store_of(folder: Path, store: FeatureStore) -> FeatureStore:
    """A checkpoint's features: those that `crossval --finetune` made for its fold, then those of the store."""
    fold = folder.resolve().parent
    return FeatureStore(fold / "features", beside=store) if (fold / "encoder.json").is_file() else store


def marks_of(traces: Iterable[Trace]) -> dict[str, list[str]]:
    """ACCEPTED and SEEN of all traces, for results."""
    some = list(traces)
    return {k: list(dict.fromkeys(str(x) for t in some for x in t.provenance.get(k) or ())) for k in (ACCEPTED, SEEN)}


def _print_marks(marks: Mapping[str, list[str]], terminal: Terminal) -> None:
    for line in [f"accepted: {line}" for line in marks[ACCEPTED]] + marks[SEEN]:
        terminal.say(line)


def _seen_before(folders: Sequence[Path], models: Sequence[TrainedModel], recordings: Sequence[str]) -> list[str]:
    """A line for each way in which checkpoints, or the encoders of their features, have seen scored recordings."""
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


# ---- output


def _write(values: Mapping[str, Any], out: Path | None, what: str, terminal: Terminal) -> None:
    if out is not None:
        configs.write_atomic(out, json.dumps(values, indent=1, allow_nan=False) + "\n")
        terminal.say(f"{what}: {out}")
    terminal.result(values)


def _print_scores(found: Evaluation, raters: HumanRow | None, terminal: Terminal) -> None:
    rows = _score_rows("", found.pooled, found.intervals, found.each)
    if raters is not None:
        rows += _score_rows("inter-rater agreement: ", raters.pooled, raters.intervals, raters.recordings)
    terminal.table("", ["", "CCC", "95 %", "PCC", "RMSE", "SAGR", "CCC, mean of recordings", "of recordings"], rows)
    if raters is not None:
        terminal.say(
            f"inter-rater agreement: each of {len(raters.each)} raters against the gold standard of the others, mean "
            "over raters; the ceiling set by the labels"
        )
    if found.groups:
        names = [
            "group",
            "recordings",
            "frames",
            "CCC valence",
            "CCC arousal",
            "mean",
            "difference from the others",
            "95 %",
        ]
        rows = []
        for g in found.groups:
            apart, s = g.difference_intervals.get("mean_ccc"), g.scores
            row = [g.name, g.n_recordings, s.n, s.valence.ccc, s.arousal.ccc, s.mean_ccc]
            rows.append([*row, g.difference.get("mean_ccc", ""), "" if apart is None else f"{apart:.3f}"])
        terminal.table("", names, rows)
        few = [f"{g.name or 'no group'} ({g.n_recordings})" for g in found.groups if g.n_recordings < FEW]
        if few:
            terminal.say(f"groups with few recordings, scores are imprecise: {', '.join(few)}")
    if found.smoothing:
        rows = [[p.method, p.window_s, p.ccc_valence, p.ccc_arousal, p.mean_ccc] for p in found.smoothing]
        terminal.table("", ["smoothing", "window (s)", "CCC valence", "CCC arousal", "mean"], rows)
        best = best_smoothing(found.smoothing)
        terminal.say(f"best smoothing: {best.method}:{best.window_s:g} (choose it on validation data only)")
    s, n = found.pooled, len(found.each)
    if s.valence.n == s.arousal.n or not (s.valence.n and s.arousal.n):
        terminal.say(f"{s.n} frames of {n} recordings; {s.n_missing} not predicted")
    else:
        counts = f"{s.valence.n} frames of valence, {s.arousal.n} of arousal"
        terminal.say(f"{counts}; {n} recordings; {s.n_missing} missing")
    if warning := few_units(found.intervals["mean_ccc"].n_units):
        terminal.say(f"note: {warning}")
    for name, frames in found.without_prediction.items():
        terminal.error(f"{name}: not predicted ({frames} labelled frames)")


def _score_rows(what: str, pooled: Any, intervals: Mapping[str, Any], each: Mapping[str, Any]) -> list[list[object]]:
    """Rows of valence, arousal and their mean, as far as they were labelled."""
    rows: list[list[object]] = []
    for dimension in (d for d in DIMENSIONS if getattr(pooled, d).n):
        a = getattr(pooled, dimension)
        mean, n = mean_defined([getattr(s, dimension).ccc for s in each.values()])
        rows.append([what + dimension, a.ccc, f"{intervals[f'ccc_{dimension}']:.3f}", a.pcc, a.rmse, a.sagr, mean, n])
    both: list[object] = [f"{what}mean", pooled.mean_ccc, f"{intervals['mean_ccc']:.3f}", *[""] * 5]
    return [*rows, both] if len(rows) > 1 else rows


def _print_subsets(found: Comparison, figures: Sequence[Published], terminal: Terminal) -> None:
    rows: list[list[object]] = []
    for (name, s), lost in zip(found.scores.items(), found.differences, strict=True):
        row = [name, s.valence.ccc, s.arousal.ccc, s.mean_ccc, f"{found.intervals[name]['mean_ccc']:.3f}"]
        apart = lost.difference["mean_ccc"], f"{lost.intervals['mean_ccc']:.3f}"
        rows.append([*row, *(("", "") if lost.a == lost.b else apart)])
    rows += [[f"{p.name}: {p.source}", p.ccc_valence, p.ccc_arousal, p.mean_ccc, "", "", ""] for p in figures]
    columns = ["modalities", "CCC valence", "CCC arousal", "mean", "95 %", "all minus this", "95 %"]
    terminal.table("", columns, rows)
    counts = f"{found.n_frames} frames of {found.n_recordings} recordings"
    terminal.say(f"the same network with the other modalities masked, not retrained; {counts}")
    for p in figures[:1]:
        terminal.say(f"{p.source}: {p.data}")


def _print_comparison(found: Comparison, figures: Sequence[Published], terminal: Terminal) -> None:
    rows: list[list[object]] = []
    for name, s in found.scores.items():
        span = f"{found.intervals[name]['mean_ccc']:.3f}"
        rows.append([name, s.valence.ccc, s.arousal.ccc, s.mean_ccc, span, "here"])
    rows += [[p.name, p.ccc_valence, p.ccc_arousal, p.mean_ccc, "", f"{p.source}: {p.data}"] for p in figures]
    terminal.table("", ["model", "CCC valence", "CCC arousal", "mean", "95 %", "measured"], rows)
    rows = []
    for d in found.differences:
        p = d.p["mean_ccc"]  # NaN below two recordings
        shown = "" if p != p else "< 0.001" if p < 0.001 else f"{p:.3f}"
        rows.append([f"{d.a} - {d.b}", d.difference["mean_ccc"], f"{d.intervals['mean_ccc']:.3f}", shown])
    terminal.table("", ["difference of mean CCC", "", "95 %", "p"], rows)
    terminal.say(
        f"{found.n_frames} frames of {found.n_recordings} recordings; {found.n_left_out} labelled frames without "
        "a prediction of every model are excluded"
    )
    if warning := few_units(found.n_units, "intervals and p-values"):
        terminal.say(f"note: {warning}")
