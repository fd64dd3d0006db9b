"""Cross-validation: a model trained and scored on every fold; goes on where it was stopped, also inside a fold.

    fold k --train--> a checkpoint --inference.run--> traces of the held-out recordings --evaluate--> CCC with intervals
    folds 1 to n: their mean and deviation, and all held-out recordings pooled (each is held out once)

The held-out recordings are scored once. The checkpoint is the best one on an inner split of the training recordings, or
the last one; only on the official split (fold 0) may the scored recordings select it, as the Mamba-VA authors have it.
OUT/fold_k is what `train` writes, with held_out/ (traces) and scores.json; OUT/crossval.json is the table. Fold 0
stands beside the others and is in no mean.
"""

from __future__ import annotations

import json
import math
from collections import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from affectrace import config as configs
from affectrace.errors import ConfigError, InputError
from affectrace.evaluate import N_DRAWS, Evaluation, evaluate
from affectrace.features.identity import SEEN
from affectrace.inference.run import TrainedModel
from affectrace.metrics import Interval
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.trace import Trace
from affectrace.train.config import describe_selection
from affectrace.train.jobs import TrainingJob
from affectrace.train.loop import RESUME, describe_differences
from affectrace.train.model_card import Measured, write_card
from affectrace.train.trainer import identity_of, train

SCORES, HELD_OUT, RESULT = "scores.json", "held_out", "crossval.json"
CCCS = ("ccc_valence", "ccc_arousal", "mean_ccc")
Report = Callable[[int, Mapping[str, Any]], None]


@dataclass(frozen=True)
class FoldResult:
    """CCCs of a fold's held-out recordings (None: undefined), with bootstrap intervals.

    checkpoint: the folder that was scored. chosen: how it was selected, in words. step: of the checkpoint. steps: of
    the run. accepted: what was used because the user insisted.
    """

    fold: int
    scores: Mapping[str, float | None]
    intervals: Mapping[str, Interval]
    n_recordings: int
    n_frames: int
    checkpoint: str = ""
    chosen: str = ""
    step: int = 0
    steps: int = 0
    accepted: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; intervals as [low, high]."""
        spans = {k: [_none(i.low), _none(i.high)] for k, i in self.intervals.items()}
        return dict(vars(self)) | {"intervals": spans, "accepted": list(self.accepted)}


@dataclass(frozen=True)
class CrossValidation:
    """The folds in order; pooled: all held-out frames of folds 1 and above as one (fold -1).

    mean: of these folds, `n_folds`, and of each CCC `mean` and sample deviation `sd`, None where undefined.
    """

    folds: tuple[FoldResult, ...]
    mean: Mapping[str, Any] | None
    pooled: FoldResult | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        known = {} if self.pooled is None else self.pooled.to_dict()
        pooled = {k: known[k] for k in ("scores", "intervals", "n_recordings", "n_frames") if known} or None
        return {"folds": [r.to_dict() for r in self.folds], "mean": self.mean, "pooled": pooled}


def cross_validate(
    folds: abc.Sequence[int],
    job: Callable[[int], TrainingJob],
    out: Path,
    *,
    options: Mapping[str, Any] | None = None,
    n_draws: int = N_DRAWS,
    seed: int = 0,
    progress: Progress = silent,
    report: Report | None = None,
) -> CrossValidation:
    """Train and score every fold.

    Args:
        folds: their numbers; 0 is the official split.
        job: fold -> what it trains; called anew for every fold, finished or not (opening reads headers only).
        out: folder to write, or one in which a cross-validation of the same settings was stopped.
        options: plain values to keep in crossval.json.
        report: called with the fold and the row of every validation.

    Raises:
        InputError: no folds, one named twice, and what `train` raises. ConfigError: OUT holds folds of other settings.
    """
    if not folds or len(set(folds)) < len(folds):
        raise InputError("give every fold once, and at least one", where="folds")
    out = Path(out)
    results, labels, traces = [], [], []
    for i, fold in enumerate(sorted(folds)):
        progress(ProgressEvent("cross-validation", i, len(folds), "folds"))
        here, asked = out / f"fold_{fold}", job(fold)
        result = _finished(here, asked, n_draws, seed)
        if result is None:
            result = _run(fold, asked, here, n_draws, seed, progress, report)
        results.append(result)
        if fold:
            labels += [s.labels for s in asked.held_out if s.labels is not None]
            traces += [Trace.load(here / HELD_OUT / f"{s.recording_id}.parquet") for s in asked.held_out]
    progress(ProgressEvent("cross-validation", len(folds), len(folds), "folds"))
    held = [r for r in results if r.fold]
    found = CrossValidation(
        tuple(results),
        mean=_mean(held) if held else None,
        pooled=_result(-1, evaluate(labels, traces, n_draws=n_draws, seed=seed)) if len(held) > 1 else None,
    )
    text = json.dumps({**(options or {}), **found.to_dict()}, indent=2, allow_nan=False)
    configs.write_atomic(out / RESULT, text + "\n")
    return found


def _run(
    fold: int,
    job: TrainingJob,
    here: Path,
    n_draws: int,
    seed: int,
    progress: Progress,
    report: Report | None,
) -> FoldResult:
    """Train a fold, predict and score its held-out recordings, and keep all of it."""
    if not sum(s.n_labelled for s in job.held_out):
        raise InputError(
            f"fold {fold}: the held-out recordings hold no labelled frame", hint="check the folds and the labels"
        )
    done = train(
        job.model,
        job.training,
        job.validation,
        here,
        job.config,
        preset=job.preset,
        about=_about(job),
        accept_features=job.accept_features,
        resume=(here / RESUME).is_file(),
        progress=progress,
        report=None if report is None else lambda row: report(fold, row),
    )
    if job.validation and not done.best_step:
        raise InputError(f"fold {fold}: no validation had a defined CCC", where=here, hint="train longer, or lower lr")
    folder, step = (done.best, done.best_step) if job.validation else (done.last, done.steps)
    model = replace(TrainedModel.load(folder), strict=not job.accept_features)
    traces, n = [], len(job.held_out)
    for i, sequence in enumerate(job.held_out):
        progress(ProgressEvent("predicting", i, n, "recordings", f"fold {fold}"))
        trace = model.predict(sequence)
        if job.selection == "scored":
            line = f"fold {fold}: the checkpoint was chosen by its scores on these recordings: scores are too high"
            trace = replace(trace, provenance={**trace.provenance, SEEN: [line]})
        trace.save(here / HELD_OUT / f"{sequence.recording_id}.parquet")
        traces.append(trace)
    progress(ProgressEvent("predicting", n, n, "recordings", f"fold {fold}"))
    labels = [s.labels for s in job.held_out if s.labels is not None]
    scored = evaluate(labels, traces, n_draws=n_draws, seed=seed)
    result = _result(
        fold,
        scored,
        checkpoint=str(folder),
        chosen=describe_selection(job.selection, len(job.validation)),
        step=step,
        steps=done.steps,
        accepted=tuple(job.about.get("accepted", ())),
    )
    measured = Measured(scored.pooled.to_dict(), scored.intervals, len(scored.each), step, job.selection)
    parameters = sum(p.numel() for p in model.model.parameters())
    write_card(folder, model.about, measured, preset=job.preset, parameters=parameters)
    kept = {"draws": [n_draws, seed], "result": result.to_dict(), "evaluation": scored.to_dict()}
    configs.write_atomic(here / SCORES, json.dumps(kept, indent=2, allow_nan=False) + "\n")
    return result


def _finished(here: Path, job: TrainingJob, n_draws: int, seed: int) -> FoldResult | None:
    """A fold that was trained and scored before; None where it was not, or with other draws of the bootstrap.

    Raises:
        ConfigError: it was, with other settings.
    """
    if not (here / SCORES).is_file():
        return None
    now = identity_of(job.model, job.training, job.validation, job.config, _about(job))
    if wrong := describe_differences(configs.read_json(here / "run.json"), json.loads(json.dumps(now))):
        raise ConfigError(
            f"the fold was trained otherwise ({wrong})",
            where=here,
            hint="use the same options and data, or another folder",
        )
    kept = configs.read_json(here / SCORES)
    if kept.get("draws") != [n_draws, seed]:
        return None
    values = kept["result"]
    intervals = {}
    for name, span in values["intervals"].items():
        low, high = (math.nan if x is None else x for x in span)
        intervals[name] = Interval(low, high, 0.95, values["n_recordings"], n_draws)
    return FoldResult(**values | {"intervals": intervals, "accepted": tuple(values["accepted"])})


def _about(job: TrainingJob) -> dict[str, Any]:
    return {**job.about, "held_out": [s.recording_id for s in job.held_out]}


def _result(fold: int, scored: Evaluation, **more: Any) -> FoldResult:
    flat = scored.pooled.to_dict()
    return FoldResult(
        fold,
        {name: _none(flat[name]) for name in CCCS},
        {name: scored.intervals[name] for name in CCCS},
        n_recordings=len(scored.each),
        n_frames=scored.pooled.n,
        **more,
    )


def _mean(results: abc.Sequence[FoldResult]) -> dict[str, Any]:
    mean, sd = {}, {}
    for name in CCCS:
        values = [v for r in results if (v := r.scores[name]) is not None]
        mean[name] = float(np.mean(values)) if values else None
        sd[name] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"n_folds": len(results), "mean": mean, "sd": sd}


def _none(value: float) -> float | None:
    return None if value != value else float(value)
