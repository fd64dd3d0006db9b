"""Cross-validation: a model trained and scored on every fold; goes on where it was stopped, also inside a fold.

    fold k --train--> a checkpoint --models_run--> traces of the held-out recordings --evaluate--> CCC with intervals
    folds 1 to n: their mean and deviation, and all held-out recordings pooled (each is held out once)

The held-out recordings are scored once. The checkpoint is the best one on an inner split of the training recordings, or
the last one; only on the official split (fold 0) may the scored recordings choose it, as the Mamba-VA authors have it.
OUT/fold_k is what `train` writes, with held_out/ (traces) and scores.json; OUT/crossval.json is the table. Fold 0
stands beside the others and is in no mean.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from affectrace import config as configs
from affectrace.errors import ConfigError, InputError
from affectrace.evaluate import N_DRAWS, Evaluation, evaluate
from affectrace.features.identity import SEEN
from affectrace.inference.run import TrainedModel
from affectrace.models.base import AffectModel
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.sequences import Sequence
from affectrace.trace import Trace
from affectrace.train import identity_of, train
from affectrace.train.config import TrainConfig
from affectrace.train.model_card import HELD_OUT_SET, Measured, write_card
from affectrace.train.state import told_differences

SCORES, HELD_OUT, RESULT = "scores.json", "held_out", "crossval.json"
ON_SCORED = "chosen on the scored set"
"""`FoldResult.chosen` where the recordings that are scored chose the checkpoint."""
CCCS = ("ccc_valence", "ccc_arousal", "mean_ccc")


@dataclass(frozen=True)
class FoldJob:
    """What one fold trains: a fresh model, its recordings, and what `train` takes besides.

    validation: recordings that choose the checkpoint: some of the training set (an inner split), none (the last one is
    taken), or the held-out ones themselves, which the result then says. held_out: recordings that are scored.
    """

    model: AffectModel
    training: Several[Sequence]
    validation: Several[Sequence]
    held_out: Several[Sequence]
    config: TrainConfig
    preset: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    accept_features: bool = False

    @property
    def chosen(self) -> str:
        """How the checkpoint is chosen, in words for tables."""
        if not self.validation:
            return "the last one"
        if {s.recording_id for s in self.validation} & {s.recording_id for s in self.held_out}:
            return ON_SCORED
        n = len(self.validation)
        return f"the best on {n} training recording{'s' * (n != 1)} kept apart"


@dataclass(frozen=True)
class FoldResult:
    """CCCs of a fold's held-out recordings (None: undefined), and their bootstrap intervals (low, high).

    checkpoint: the folder that was scored. chosen: how it was chosen. step: of the checkpoint. steps: of the run.
    accepted: what was used because the user insisted.
    """

    fold: int
    scores: Mapping[str, float | None]
    intervals: Mapping[str, tuple[float | None, float | None]]
    n_recordings: int
    n_frames: int
    checkpoint: str = ""
    chosen: str = ""
    step: int = 0
    steps: int = 0
    accepted: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoldMean:
    """Mean and sample deviation over the folds on which a CCC is defined; nan where there are too few."""

    mean: Mapping[str, float]
    sd: Mapping[str, float]
    n_folds: int


@dataclass(frozen=True)
class CrossValidation:
    """The folds in order; mean: of folds 1 and above. pooled: all their held-out frames as one (fold -1)."""

    folds: tuple[FoldResult, ...]
    mean: FoldMean | None
    pooled: FoldResult | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "folds": [_plain(r) for r in self.folds],
            "mean": None
            if self.mean is None
            else {"n_folds": self.mean.n_folds}
            | {part: {k: _none(v) for k, v in getattr(self.mean, part).items()} for part in ("mean", "sd")},
            "pooled": None if self.pooled is None else {k: v for k, v in _plain(self.pooled).items() if k in _POOLED},
        }


_POOLED = ("scores", "intervals", "n_recordings", "n_frames")


def cross_validate(
    folds: Several[int],
    job: Callable[[int], FoldJob],
    out: Path,
    *,
    options: Mapping[str, Any] | None = None,
    n_draws: int = N_DRAWS,
    seed: int = 0,
    progress: Progress = silent,
    report: Callable[[int, Mapping[str, Any]], None] | None = None,
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
    job: FoldJob,
    here: Path,
    n_draws: int,
    seed: int,
    progress: Progress,
    report: Callable[[int, Mapping[str, Any]], None] | None,
) -> FoldResult:
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
        resume=(here / "resume.pt").is_file(),
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
        if job.chosen == ON_SCORED:
            line = f"fold {fold}: the checkpoint was chosen by its scores on these recordings: scores are too high"
            trace = replace(trace, provenance={**trace.provenance, SEEN: [line]})
        trace.save(here / HELD_OUT / f"{sequence.recording_id}.parquet")
        traces.append(trace)
    progress(ProgressEvent("predicting", n, n, "recordings", f"fold {fold}"))
    labels = [s.labels for s in job.held_out if s.labels is not None]
    scored = evaluate(labels, traces, n_draws=n_draws, seed=seed)
    accepted = tuple(job.about.get("accepted", ()))
    result = _result(
        fold, scored, checkpoint=str(folder), chosen=job.chosen, step=step, steps=done.steps, accepted=accepted
    )
    which = "" if job.chosen == ON_SCORED else HELD_OUT_SET
    measured = Measured(scored.pooled.to_dict(), scored.intervals, len(scored.each), step, job.chosen, which)
    parameters = sum(p.numel() for p in model.model.parameters())
    write_card(folder, model.about, measured, preset=job.preset, parameters=parameters)
    kept = {"run": _digest(job), "draws": [n_draws, seed], "result": _plain(result), "evaluation": scored.to_dict()}
    configs.write_atomic(here / SCORES, json.dumps(kept, indent=2, allow_nan=False) + "\n")
    return result


def _finished(here: Path, job: FoldJob, n_draws: int, seed: int) -> FoldResult | None:
    """A fold that was trained and scored before; None where it was not, or with other draws of the bootstrap.

    Raises:
        ConfigError: it was, with other settings.
    """
    if not (here / SCORES).is_file():
        return None
    kept = configs.read_json(here / SCORES)
    if kept["run"] != _digest(job):
        now, then = _identity(job), configs.read_json(here / "run.json")
        raise ConfigError(
            f"the fold was trained otherwise ({told_differences(then, now)})",
            where=here,
            hint="use the same options and data, or another folder",
        )
    if kept.get("draws") != [n_draws, seed]:
        return None
    values = kept["result"] | {"intervals": {k: tuple(v) for k, v in kept["result"]["intervals"].items()}}
    values["accepted"] = tuple(values["accepted"])
    return FoldResult(**values)


def _about(job: FoldJob) -> dict[str, Any]:
    return {**job.about, "held_out": [s.recording_id for s in job.held_out]}


def _identity(job: FoldJob) -> dict[str, Any]:
    made = identity_of(job.model, job.training, job.validation, job.config, _about(job))
    plain: dict[str, Any] = json.loads(json.dumps(made))
    return plain


def _digest(job: FoldJob) -> str:
    return hashlib.sha256(json.dumps(_identity(job), sort_keys=True).encode()).hexdigest()


def _result(fold: int, scored: Evaluation, **more: Any) -> FoldResult:
    flat = scored.pooled.to_dict()
    return FoldResult(
        fold,
        {name: _none(flat[name]) for name in CCCS},
        {name: (_none(scored.intervals[name].low), _none(scored.intervals[name].high)) for name in CCCS},
        n_recordings=len(scored.each),
        n_frames=scored.pooled.n,
        **more,
    )


def _mean(results: Several[FoldResult]) -> FoldMean:
    mean, sd = {}, {}
    for name in CCCS:
        values = [v for r in results if (v := r.scores[name]) is not None]
        mean[name] = float(np.mean(values)) if values else float("nan")
        sd[name] = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return FoldMean(mean, sd, len(results))


def _plain(result: FoldResult) -> dict[str, Any]:
    lists = {"intervals": {k: list(v) for k, v in result.intervals.items()}, "accepted": list(result.accepted)}
    return dict(vars(result)) | lists


def _none(value: float) -> float | None:
    return None if value != value else float(value)
