"""Cross-validation: training and scoring on every fold; resumable.

    fold k --train--> a checkpoint --inference.run--> traces of the held-out recordings --evaluate--> CCC with intervals
    folds 1 to n: their mean and deviation, and all held-out recordings pooled (each is held out once)

Held-out recordings are scored once, with the best checkpoint on an inner split of the training recordings, or the last
one; only on the official split (fold 0) may the scored recordings select it, as the Mamba-VA authors do.
OUT/fold_k is what `train` writes, with held_out/ (traces) and scores.json; OUT/crossval.json is the table. Fold 0 is
reported beside the others and is in no mean.
"""

from __future__ import annotations

import json
from collections import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from affectrace import config as configs
from affectrace.errors import InputError
from affectrace.evaluate import N_DRAWS, Evaluation, evaluate
from affectrace.features.identity import SEEN
from affectrace.inference.run import TrainedModel
from affectrace.metrics import Interval
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.trace import Trace
from affectrace.train.config import describe_selection
from affectrace.train.jobs import TrainingJob
from affectrace.train.loop import BEST, LAST, RESUME, check_same
from affectrace.train.model_card import CheckpointScores, write_card
from affectrace.train.trainer import n_parameters, run_identity, train

SCORES, HELD_OUT, RESULT = "scores.json", "held_out", "crossval.json"
CCCS = ("ccc_valence", "ccc_arousal", "mean_ccc")
Report = Callable[[int, Mapping[str, Any]], None]


@dataclass(frozen=True)
class FoldResult:
    """CCCs of the held-out recordings (None: undefined), with bootstrap intervals.

    checkpoint: the folder that was scored. chosen: how it was selected, in words. step: of the checkpoint. steps: of
    the run. accepted: what was used although it would have been refused.
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

    @classmethod
    def of(cls, fold: int, scored: Evaluation, **more: Any) -> FoldResult:
        """The result of an evaluation; more: the fields with a default."""
        flat, intervals = scored.pooled.to_dict(), {name: scored.intervals[name] for name in CCCS}
        scores = {name: _none(flat[name]) for name in CCCS}
        return cls(fold, scores, intervals, len(scored.each), scored.pooled.n, **more)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; intervals as [low, high]."""
        spans = {k: [_none(i.low), _none(i.high)] for k, i in self.intervals.items()}
        return dict(vars(self)) | {"intervals": spans, "accepted": list(self.accepted)}


@dataclass(frozen=True)
class CrossValidation:
    """The folds in order; pooled: all held-out frames of folds 1 and above as one (fold -1).

    mean: over these folds: `n_folds`, and of each CCC `mean` and sample deviation `sd`, None where undefined.
    """

    folds: tuple[FoldResult, ...]
    mean: Mapping[str, Any] | None
    pooled: FoldResult | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        pooled = self.pooled and self.pooled.to_dict()
        pooled = pooled and {k: pooled[k] for k in ("scores", "intervals", "n_recordings", "n_frames")}
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
        job: fold -> what it trains; called for finished folds as well (opening reads headers only).
        out: folder to write, or one in which a cross-validation of the same settings was stopped.
        options: plain values to keep in crossval.json.
        n_draws, seed: of the bootstrap.
        report: called with the fold and the row of every validation.
    """
    if not folds or len(set(folds)) < len(folds):
        raise InputError("give every fold once, and at least one", where="folds")
    results, labels, traces = [], [], []
    for i, fold in enumerate(sorted(folds)):
        progress(ProgressEvent("cross-validation", i, len(folds), "folds"))
        here, asked = Path(out) / f"fold_{fold}", job(fold)
        own = [s.labels for s in asked.held_out if s.labels is not None]
        if not any(s.n_labelled for s in asked.held_out):
            what = f"fold {fold}: the held-out recordings have no labelled frame"
            raise InputError(what, hint="check the folds and the labels")
        about = {**asked.about, "held_out": [s.recording_id for s in asked.held_out]}
        identity = run_identity(asked.model, asked.training, asked.validation, asked.config, about)
        kept = None
        if (here / SCORES).is_file():
            check_same(configs.read_json(here / "run.json"), identity, "the fold was trained with other settings", here)
            kept = configs.read_json(here / SCORES)
        made = kept["result"] if kept else _train_and_predict(fold, asked, about, here, progress, report)
        predicted = [Trace.load(here / HELD_OUT / f"{s.recording_id}.parquet") for s in asked.held_out]
        scored = evaluate(own, predicted, n_draws=n_draws, seed=seed)
        folder = here / (BEST if asked.validation else LAST)
        result = FoldResult.of(
            fold,
            scored,
            checkpoint=str(folder),
            chosen=describe_selection(asked.selection, len(asked.validation)),
            step=made["step"],
            steps=made["steps"],
            accepted=tuple(asked.about.get("accepted", ())),
        )
        if kept is None or kept["draws"] != [n_draws, seed]:
            pooled, n = scored.pooled.to_dict(), len(scored.each)
            measured = CheckpointScores(pooled, scored.intervals, n, result.step, asked.selection)
            write_card(folder, identity, measured, preset=asked.preset, parameters=n_parameters(asked.model))
            made = {"draws": [n_draws, seed], "result": result.to_dict(), "evaluation": scored.to_dict()}
            _write(here / SCORES, made)
        results.append(result)
        if fold:
            labels += own
            traces += predicted
    progress(ProgressEvent("cross-validation", len(folds), len(folds), "folds"))
    held = [r for r in results if r.fold]
    found = CrossValidation(
        tuple(results),
        mean=_mean(held) if held else None,
        pooled=FoldResult.of(-1, evaluate(labels, traces, n_draws=n_draws, seed=seed)) if len(held) > 1 else None,
    )
    _write(Path(out) / RESULT, {**(options or {}), **found.to_dict()})
    return found


def _train_and_predict(
    fold: int,
    job: TrainingJob,
    about: Mapping[str, Any],
    here: Path,
    progress: Progress,
    report: Report | None,
) -> dict[str, int]:
    """Train a fold and write the traces of its held-out recordings; `step` and `steps` of its FoldResult."""
    done = train(
        job.model,
        job.training,
        job.validation,
        here,
        job.config,
        preset=job.preset,
        about=about,
        accept_features=job.accept_features,
        resume=(here / RESUME).is_file(),
        progress=progress,
        report=None if report is None else lambda row: report(fold, row),
    )
    if job.validation and not done.best_step:
        raise InputError(f"fold {fold}: no validation had a defined CCC", where=here, hint="train longer, or lower lr")
    folder, step = (done.best, done.best_step) if job.validation else (done.last, done.steps)
    n, model = len(job.held_out), replace(TrainedModel.load(folder), strict=not job.accept_features)
    for i, sequence in enumerate(job.held_out):
        progress(ProgressEvent("predicting", i, n, "recordings", f"fold {fold}"))
        trace = model.predict(sequence)
        if job.selection == "scored":
            line = f"fold {fold}: the checkpoint was chosen by its scores on these recordings: scores are too high"
            trace = replace(trace, provenance={**trace.provenance, SEEN: [line]})
        trace.save(here / HELD_OUT / f"{sequence.recording_id}.parquet")
    progress(ProgressEvent("predicting", n, n, "recordings", f"fold {fold}"))
    return {"step": step, "steps": done.steps}


def _write(path: Path, values: Any) -> None:
    configs.write_atomic(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def _mean(results: abc.Sequence[FoldResult]) -> dict[str, Any]:
    mean, sd = {}, {}
    for name in CCCS:
        values = [v for r in results if (v := r.scores[name]) is not None]
        mean[name] = float(np.mean(values)) if values else None
        sd[name] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"n_folds": len(results), "mean": mean, "sd": sd}


def _none(value: float) -> float | None:
    return None if value != value else float(value)
