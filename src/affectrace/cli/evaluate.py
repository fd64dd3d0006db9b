"""The commands that score models and traces, set them side by side, and hand in what they predict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from affectrace import config as configs
from affectrace.cli import DONE, SOME_FAILED
from affectrace.cli.carrying import tell_ways
from affectrace.cli.data import manifest_of
from affectrace.cli.options import DATA, MODEL, OUTPUT, Common, Files, parse, under
from affectrace.cli.predicted import (
    SCORES,
    ScoredOptions,
    are_models,
    is_model,
    labels_beside,
    marks_of,
    members,
    opener,
    paths_in,
    predictions_of,
)
from affectrace.cli.terminal import Terminal
from affectrace.errors import InputError
from affectrace.metrics import FEW, few_units

if TYPE_CHECKING:
    from affectrace.datasets.gold_standard import HumanRow
    from affectrace.datasets.manifest import Manifest
    from affectrace.evaluate import Evaluation
    from affectrace.evaluate.ablation import Ablation
    from affectrace.evaluate.compare import Comparison, Published
    from affectrace.inference.carrying import Ways
    from affectrace.recording import Recording
    from affectrace.trace import Trace


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ScoredOptions):
    """Score a trained model, or traces, against a data set's labels."""

    predictions: Files = field(default=(), kw_only=False)
    """A checkpoint folder (several with --ensemble), or trace files and folders of them."""
    ensemble: Annotated[bool, under(MODEL)] = False
    """Average the predictions of several checkpoints (folds, seeds, models)."""
    weights: Annotated[tuple[float, ...], under(MODEL)] = ()
    """What each checkpoint of an ensemble counts; by default all the same."""
    windows: Annotated[str | None, under(MODEL)] = None
    """SIZE:STRIDE in frames: predict a causal checkpoint in overlapping windows as well, and tell how far that is from
    carried state, also beyond the length it was trained on."""
    by: Annotated[str | None, under(SCORES)] = None
    """Column of the manifest (or subject, fold): scores of each group, and its difference to the others."""
    smoothing_curve: Annotated[bool, under(SCORES)] = False
    """Score again after smoothing with several methods and windows."""
    keep_smoothing: Annotated[bool, under(SCORES)] = False
    """Keep the best of --smoothing-curve beside the checkpoint, for --smooth auto. For validation data only."""
    drop: Annotated[tuple[str, ...], under(MODEL)] = ()
    """Modalities to mask out of a checkpoint's input (audio, text, ...): every frame of them is not valid."""
    modalities: Annotated[bool, under(SCORES)] = False
    """Score a checkpoint with each modality alone, each pair, ..., all (the others masked out), with intervals."""
    out: Annotated[Path | None, under(OUTPUT)] = None
    """JSON file for everything."""


def evaluate(argv: Sequence[str]) -> int:
    """`affectrace evaluate`."""
    options = parse(EvaluateOptions, "evaluate", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace.evaluate import evaluate as score

        if (options.drop or options.modalities) and not are_models(options.predictions):
            raise InputError(
                "only a checkpoint can be run without a modality", where="--drop", hint="give a checkpoint folder"
            )
        if options.windows is not None:
            from affectrace.sequences.config import WindowScheme

            WindowScheme.parse(options.windows)
        if options.keep_smoothing:
            _check_keeping(options)
        manifest = manifest_of(options.data, terminal)
        recordings = members(manifest, options)
        weights = options.weights if options.ensemble else None
        predictions = predictions_of(
            options.predictions, recordings, manifest, options, terminal, weights, options.drop
        )
        ways = _ways(recordings, manifest, options, terminal) if options.windows else None
        subsets = _subsets(recordings, manifest, predictions, options, terminal) if options.modalities else None
        found = score(
            labels_beside(recordings, manifest, predictions),
            predictions,
            by=None if options.by is None else _groups(recordings, options.by),
            smoothing=options.smoothing_curve,
            n_draws=options.draws,
            seed=options.seed,
        )
        human = _human([r for r in recordings if r.id in found.each], manifest, options)
        terminal.close()
        _tell_scores(found, human, terminal)
        values = {"options": configs.to_dict(options), "data": manifest.about(), **found.to_dict()}
        values |= marks_of(predictions)
        if human is not None:
            values["human"] = _human_dict(human)
        if subsets is not None:
            _tell_subsets(subsets, _published_subsets(subsets, manifest, options), terminal)
            values["modalities"] = subsets.to_dict()
        if options.keep_smoothing:
            _keep_smoothing(found, manifest, options, terminal)
        if ways is not None:
            tell_ways(ways, terminal)
            values["ways"] = ways.to_dict()
        if options.out is not None:
            configs.write_atomic(options.out, json.dumps(values, indent=1, allow_nan=False) + "\n")
            terminal.say(f"scores: {options.out}")
        terminal.result(values)
    return SOME_FAILED if found.without_prediction else DONE


def _check_keeping(options: EvaluateOptions) -> None:
    if not (options.smoothing_curve and is_model(options.predictions) and options.smooth == "none"):
        raise InputError(
            "keeps the best of --smoothing-curve beside one checkpoint, without other smoothing",
            where="--keep-smoothing",
            hint="affectrace evaluate CHECKPOINT --smoothing-curve --keep-smoothing",
        )


def _keep_smoothing(found: Evaluation, manifest: Manifest, options: EvaluateOptions, terminal: Terminal) -> None:
    from affectrace.evaluate import best_smoothing
    from affectrace.evaluate.smoothing import keep_choice

    best = best_smoothing(found.smoothing)
    about = {"mean_ccc": best.mean_ccc, "data": manifest.about(), "split": options.split, "fold": options.fold}
    path = keep_choice(Path(options.predictions[0]), best.method, best.window_s, about)
    terminal.say(f"kept: {path}")


def _human(recordings: Sequence[Recording], manifest: Manifest, options: EvaluateOptions) -> HumanRow | None:
    """What one rater scores on these recordings, where the data set keeps several."""
    from affectrace.datasets import read_raters
    from affectrace.datasets.gold_standard import human_row

    panels, gold = read_raters(manifest, recordings)
    if len({rater for panel in panels for rater in panel.raters}) < 2:
        return None
    return human_row(panels, gold, n_draws=options.draws, seed=options.seed)


def _human_dict(human: HumanRow) -> dict[str, object]:
    from affectrace.evaluate import intervals_dict, plain

    return {
        "pooled": plain(human.to_dict()),
        "intervals": intervals_dict(human.intervals),
        "raters": {name: plain(scores.to_dict()) for name, scores in human.each.items()},
    }


def _tell_scores(found: Evaluation, human: HumanRow | None, terminal: Terminal) -> None:
    from affectrace.evaluate import best_smoothing

    rows = []
    for dimension in ("valence", "arousal"):
        a, i = getattr(found.pooled, dimension), found.intervals[f"ccc_{dimension}"]
        each, n = found.mean_each()[f"ccc_{dimension}"]
        rows.append([dimension, a.ccc, f"{i:.3f}", a.pcc, a.rmse, a.sagr, each, n])
    i = found.intervals["mean_ccc"]
    rows.append(["mean", found.pooled.mean_ccc, f"{i:.3f}", *[""] * 5])
    if human is not None:
        rows += _human_rows(human)
    columns = ["", "CCC", "95 %", "PCC", "RMSE", "SAGR", "CCC, mean of recordings", "of recordings"]
    terminal.table("", columns, rows)
    if human is not None:
        terminal.say(
            f"one rater: each of {len(human.each)} raters against the gold standard of the others, mean over raters; "
            "what the labels themselves allow"
        )
    if found.groups:
        names = ["group", "recordings", "frames", "CCC valence", "CCC arousal", "mean", "minus the others", "95 %"]
        lines = []
        for g in found.groups:
            apart = g.difference_intervals.get("mean_ccc")
            span = "" if apart is None else f"{apart:.3f}"
            s = g.scores
            lines.append([g.name, g.n_recordings, s.n, s.valence.ccc, s.arousal.ccc, s.mean_ccc])
            lines[-1] += [g.difference.get("mean_ccc", ""), span]
        terminal.table("", names, lines)
        few = [f"{g.name or 'no group'} ({g.n_recordings})" for g in found.groups if g.n_recordings < FEW]
        if few:
            terminal.say(f"groups of few recordings, whose figures are rough: {', '.join(few)}")
    if found.smoothing:
        lines = [[p.method, p.window_s, p.ccc_valence, p.ccc_arousal, p.mean_ccc] for p in found.smoothing]
        terminal.table("", ["smoothing", "window (s)", "CCC valence", "CCC arousal", "mean"], lines)
        best = best_smoothing(found.smoothing)
        terminal.say(f"best smoothing: {best.method}:{best.window_s:g} (choose it on validation data only)")
    s = found.pooled
    frames = (
        f"{s.n} frames" if s.valence.n == s.arousal.n else f"{s.valence.n} (valence), {s.arousal.n} (arousal) frames"
    )
    terminal.say(f"{frames} of {len(found.each)} recordings; {s.n_missing} not predicted")
    _tell_few(found.intervals["mean_ccc"].n_units, "intervals", terminal)
    for name, n in found.without_prediction.items():
        terminal.error(f"{name}: not predicted ({n} labelled frames)")


def _tell_few(n: int, what: str, terminal: Terminal) -> None:
    if said := few_units(n, what):
        terminal.say(f"note: {said}")


def _human_rows(human: HumanRow) -> list[list[object]]:
    """Rows of the table of scores, in its columns."""
    spans = {name: f"{i:.3f}" for name, i in human.intervals.items()}
    rows: list[list[object]] = []
    for dimension in ("valence", "arousal"):
        a = getattr(human.pooled, dimension)
        defined = [x for s in human.recordings.values() if (x := getattr(s, dimension).ccc) == x]
        each = sum(defined) / len(defined) if defined else float("nan")
        row = [f"one rater: {dimension}", a.ccc, spans[f"ccc_{dimension}"], a.pcc, a.rmse, a.sagr, each, len(defined)]
        rows.append(row)
    rows.append(["one rater: mean", human.pooled.mean_ccc, spans["mean_ccc"], *[""] * 5])
    return rows


def _subsets(
    recordings: Sequence[Recording],
    manifest: Manifest,
    predictions: Sequence[Trace],
    options: EvaluateOptions,
    terminal: Terminal,
) -> Ablation:
    """The checkpoint with every subset of its modalities, those of --drop left out of all of them."""
    from affectrace.evaluate.ablation import ablation
    from affectrace.inference.modalities import modalities_of
    from affectrace.inference.run import TrainedModel

    known = modalities_of(TrainedModel.load(Path(options.predictions[0])).model)
    kept = tuple(m for m in known if m not in options.drop)

    def predict(dropped: tuple[str, ...]) -> list[Trace]:
        if not dropped:
            return list(predictions)
        gone = (*options.drop, *dropped)
        weights = options.weights if options.ensemble else None
        return predictions_of(options.predictions, recordings, manifest, options, terminal, weights, gone, checked=True)

    labels = labels_beside(recordings, manifest, predictions)
    return ablation(labels, predict, kept, n_draws=options.draws, seed=options.seed)


def _published_subsets(found: Ablation, manifest: Manifest, options: EvaluateOptions) -> tuple[Published, ...]:
    """MAVEN's Table 2, where one MAVEN is scored on Aff-Wild2's own validation or test set."""
    from affectrace.evaluate.compare import published_modalities
    from affectrace.models import checkpoint

    own_set = manifest.is_aff_wild2 and not options.fold and options.split != "train"
    if not (own_set and is_model(options.predictions)):
        return ()
    return published_modalities(manifest, checkpoint.load(Path(options.predictions[0])).name, found.modalities)


def _tell_subsets(found: Ablation, published: Sequence[Published], terminal: Terminal) -> None:
    rows: list[list[object]] = []
    for subset in found.subsets:
        s, i, lost = subset.scores, subset.intervals["mean_ccc"], subset.lost_intervals["mean_ccc"]
        rows.append([" + ".join(subset.kept), s.valence.ccc, s.arousal.ccc, s.mean_ccc, f"{i:.3f}"])
        all_of_them = subset.kept == found.modalities
        rows[-1] += ["", ""] if all_of_them else [subset.lost["mean_ccc"], f"{lost:.3f}"]
    rows += [[f"{p.name}: {p.source}", p.ccc_valence, p.ccc_arousal, p.mean_ccc, "", "", ""] for p in published]
    columns = ["modalities", "CCC valence", "CCC arousal", "mean", "95 %", "all minus this", "95 %"]
    terminal.table("", columns, rows)
    terminal.say(
        f"the same network with the other modalities masked out, not trained again; {found.n_frames} frames of "
        f"{found.n_recordings} recordings"
    )
    for p in published[:1]:
        terminal.say(f"{p.source}: {p.data}")


@dataclass(frozen=True, kw_only=True)
class CompareOptions(ScoredOptions):
    """Several models on the frames all of them predict, with paired intervals."""

    models: Files = field(default=(), kw_only=False)
    """Checkpoint folders or folders of traces, each as PATH or NAME=PATH; NAME=PATH,PATH,... averages checkpoints."""
    published: Annotated[bool, under(SCORES)] = True
    """On Aff-Wild2's own validation set: also show the published figures of it (tables in the Mamba-VA paper)."""
    out: Annotated[Path | None, under(OUTPUT)] = None
    """JSON file for everything."""


def compare(argv: Sequence[str]) -> int:
    """`affectrace compare`."""
    options = parse(CompareOptions, "compare", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace.evaluate.compare import compare as beside
        from affectrace.evaluate.compare import published

        manifest = manifest_of(options.data, terminal)
        recordings = members(manifest, options)
        named: dict[str, str] = {}
        for given in options.models:
            name, _, path = given.rpartition("=")
            key = name or path
            if key in named:
                raise InputError(f"'{key}' is given twice", hint="name models as NAME=PATH")
            named[key] = path
        predictions = {
            k: predictions_of(paths_in(p), recordings, manifest, options, terminal, ()) for k, p in named.items()
        }
        some = [t for traces in predictions.values() for t in traces]
        labels = labels_beside(recordings, manifest, some)
        found = beside(labels, predictions, n_draws=options.draws, seed=options.seed)
        terminal.close()
        beside_them = published(manifest, options.split, options.fold) if options.published else ()
        _tell_comparison(found, beside_them, terminal)
        values = {"options": configs.to_dict(options), "data": manifest.about(), **found.to_dict()}
        values |= marks_of(some)
        if options.out is not None:
            configs.write_atomic(options.out, json.dumps(values, indent=1, allow_nan=False) + "\n")
            terminal.say(f"comparison: {options.out}")
        terminal.result(values)
    return DONE


def _tell_comparison(found: Comparison, published: Sequence[Published], terminal: Terminal) -> None:
    rows: list[list[object]] = []
    for e in found.entrants:
        i, s = e.intervals["mean_ccc"], e.scores
        rows.append([e.name, s.valence.ccc, s.arousal.ccc, s.mean_ccc, f"{i:.3f}", "here"])
    rows += [[p.name, p.ccc_valence, p.ccc_arousal, p.mean_ccc, "", f"{p.source}: {p.data}"] for p in published]
    terminal.table("", ["model", "CCC valence", "CCC arousal", "mean", "95 %", "measured"], rows)
    lines = []
    for d in found.differences:
        i = d.intervals["mean_ccc"]
        lines.append([f"{d.a} - {d.b}", d.difference["mean_ccc"], f"{i:.3f}", _p_value(d.p["mean_ccc"])])
    terminal.table("", ["difference of mean CCC", "", "95 %", "p"], lines)
    terminal.say(
        f"{found.n_frames} frames of {found.n_recordings} recordings; {found.n_left_out} labelled frames are not "
        "predicted by all and left out"
    )
    _tell_few(found.n_units, "intervals and p-values", terminal)


def _p_value(p: float) -> str:
    """Never 0: the smallest one possible is 2 / (draws + 1)."""
    return "" if p != p else "< 0.001" if p < 0.001 else f"{p:.3f}"


@dataclass(frozen=True, kw_only=True)
class SubmitOptions(Common):
    """The ABAW submission file from the organisers' sample, checked; or, with --check, the check alone."""

    predictions: Files = field(default=(), kw_only=False)
    """A checkpoint folder (several with --ensemble), or trace files and folders of them."""
    ensemble: Annotated[bool, under(MODEL)] = False
    """Average the predictions of several checkpoints (folds, seeds, models)."""
    weights: Annotated[tuple[float, ...], under(MODEL)] = ()
    """What each checkpoint of an ensemble counts; by default all the same."""
    sample: Annotated[Path, under(DATA)] = Path("CVPR_8th_ABAW_VA_test_set_sample.txt")
    """The organisers' sample: which frames are asked for."""
    out: Annotated[Path, under(OUTPUT)] = Path("predictions.txt")
    """File to write."""
    check: Annotated[Path | None, under(OUTPUT)] = None
    """Check this file and write none."""
    data: Annotated[Path, under(DATA)] = Path()
    """Data set whose test recordings a model predicts."""
    store: Annotated[Path, under(DATA)] = Path("features")
    """Folder that `affectrace extract` wrote, for a model."""
    accept_features: Annotated[bool, under(DATA)] = False
    """Use features made by a different extractor than in training; the result says so."""
    device: Annotated[str, under(MODEL)] = "cpu"
    """Where the model runs."""
    smooth: Annotated[str, under(MODEL)] = "none"
    """Smooth first, as chosen on validation data: median:0.5, or auto for what was kept beside the checkpoint."""


def submit(argv: Sequence[str]) -> int:
    """`affectrace submit`."""
    options = parse(SubmitOptions, "submit", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace.datasets.aff_wild2_files import read_sample
        from affectrace.evaluate.submission import check_submission, write_submission

        sample = read_sample(options.sample)
        path, marks = options.check, dict[str, list[str]]()
        if path is None:
            recordings: tuple[Recording, ...] = ()
            manifest = None
            if are_models(options.predictions):
                manifest = manifest_of(options.data, terminal)
                recordings = tuple(r for r in manifest if r.id in sample.trials)
            weights = options.weights if options.ensemble else None
            traces = predictions_of(options.predictions, recordings, manifest, options, terminal, weights)
            marks = marks_of(traces)
            done = write_submission(sample, traces, options.out)
            path = done.path
            terminal.close()
            for what, found in (
                ("frames without a value took the last one", done.filled),
                ("frames past the end took the last value", done.repeated),
            ):
                if found:
                    terminal.say(f"{sum(found.values())} {what} ({len(found)} trials)")
            terminal.say(f"submission: {path} ({done.n_rows} rows)")
        problems = check_submission(path, sample)
        terminal.result({"file": str(path), "problems": [vars(p) for p in problems], **marks})
        if problems:
            terminal.table("", ["line", "what is wrong", "what to do"], [[p.line, p.what, p.done] for p in problems])
            terminal.error(f"{path}: {len(problems)} kinds of problems")
        else:
            terminal.say(f"checked: {len(sample)} rows of {len(sample.trials)} trials, nothing wrong")
    return SOME_FAILED if problems else DONE


def _ways(recordings: Sequence[Recording], manifest: Manifest, options: EvaluateOptions, terminal: Terminal) -> Ways:
    from affectrace.cli.carrying import ways_of

    if not is_model(options.predictions) or options.windows is None:
        raise InputError("needs one checkpoint folder", where="--windows", hint="give a single trained model")
    from affectrace.inference.run import TrainedModel

    folder = Path(options.predictions[0])
    opened = opener(manifest, options, [folder], [TrainedModel.load(folder)])
    return ways_of(folder, options.windows, recordings, opened, device=options.device, terminal=terminal)


def _groups(recordings: Sequence[Recording], column: str) -> dict[str, str]:
    known = {c for r in recordings for c in r.columns} | {"subject", "fold", "person"}
    if column not in known:
        raise InputError(f"no column '{column}'", where="--by", hint=f"there are {', '.join(sorted(known))}")
    return {r.id: str(r.columns.get(column, getattr(r, column, None) or "")) for r in recordings}
