"""`train`: a training run of any model of the registry.

    windows --batch--> model --loss--> backward --clip--> AdamW, learning rate by the step
    several times an epoch: every validation recording whole --inference.run--> trace --metrics--> pooled CCC

OUT holds the checkpoints best/ (by validation CCC, with a model card) and last/, log.jsonl, steps.csv,
validations.csv, run.json and resume.pt. A killed run continues from its last validation with the same numbers.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections import abc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from affectrace import config as configs
from affectrace import losses, metrics
from affectrace.errors import InputError, optional_packages
from affectrace.features.identity import made_by_several
from affectrace.inference.run import predict_sequence
from affectrace.inference.trained import check_streams
from affectrace.models import checkpoint
from affectrace.models.base import AffectModel
from affectrace.progress import Progress, silent
from affectrace.sequences import Sequence, extractors_of, label_clock, labelled_dimensions
from affectrace.sequences.batches import Batch, Batches
from affectrace.sequences.normalization import FILE_NAME as STATISTICS
from affectrace.sequences.normalization import FeatureNormalizer
from affectrace.train.config import TrainConfig
from affectrace.train.loop import BEST, LAST, Report, Row, Run, check_apart, check_out, finite
from affectrace.train.model_card import CheckpointScores, write_card


@dataclass(frozen=True)
class Trained:
    """The outcome of a run: checkpoint of the highest mean validation CCC (best_step 0: none), and of the last step."""

    best: Path
    last: Path
    best_mean_ccc: float
    best_step: int
    steps: int
    stopped_early: bool


def train(
    model: AffectModel,
    training: abc.Sequence[Sequence],
    validation: abc.Sequence[Sequence],
    out: Path,
    config: TrainConfig | None = None,
    *,
    preset: str = "",
    about: Mapping[str, Any] | None = None,
    accept_features: bool = False,
    resume: bool = False,
    progress: Progress = silent,
    report: Report | None = None,
) -> Trained:
    """Train a model of the registry.

    Args:
        model: a new one (made after torch.manual_seed, the run can be repeated).
        training, validation: recordings with labels. Without validation recordings there is last/ and no best/.
        out: folder to write; with `resume`, one that holds a run of the same configuration.
        about: plain values to keep in checkpoints and run.json (data set, hash, features, fold).
        accept_features: accept a stream whose features were made by several extractors.
        report: called with the row of every validation, on the first process.

    Raises:
        InputError: unusable recordings, a folder that holds another run, or a NaN or infinite loss or gradient, whose
            batch is in stopped.json. ConfigError: resumed with another configuration.
    """
    c, out = configs.checked(config or TrainConfig()), Path(out)
    if not validation:
        check_unvalidated(c)
    for name, sequences in (("training", training), ("validation", validation)):
        if (name == "training" or sequences) and not sum(s.n_labelled for s in sequences):
            raise InputError(f"the {name} recordings have no labelled frame", hint="check the split and the labels")
        for sequence in sequences:
            check_streams(model.input_dims, sequence)
    check_apart((s.recording_id for s in training), (s.recording_id for s in validation))
    check_out(out, resume)
    if not accept_features and (lines := made_by_several(extractors_of([*training, *validation]))):
        raise InputError("; ".join(lines), hint="extract the features of all recordings with one extractor")
    fabric = fabric_of(c)
    fabric.launch()
    torch.manual_seed(c.seed)
    windows = Batches(
        training,
        c.window,
        batch_size=c.batch_size,
        seed=c.seed,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        statistics=FeatureNormalizer.fit(training, progress=progress) if c.standardise else None,
        threads=c.threads,
    )
    if not len(windows):
        raise InputError("the training recordings give no window", hint="keep partial windows, or make them shorter")
    kind = torch.optim.AdamW if c.optimizer == "adamw" else torch.optim.Adam
    run = _ModelRun(
        network=model,
        optimizer=kind(model.parameters(), lr=c.lr, eps=c.eps, weight_decay=c.weight_decay),
        fabric=fabric,
        n_batches=len(windows),
        config=c,
        identity=run_identity(model, training, validation, c, about or {}),
        out=out,
        windows=windows,
        validation=validation,
        preset=preset,
    )
    at, stopped = run.fit(resume=resume, progress=progress, report=report)
    return Trained(out / BEST, out / LAST, at.best, at.best_step, at.step, stopped)


@dataclass(eq=False, kw_only=True)
class _ModelRun(Run[Batch]):
    """A model trained on windows of features."""

    windows: Batches
    validation: abc.Sequence[Sequence]
    preset: str

    def __post_init__(self) -> None:
        c = self.config
        self.plateau = None
        if c.schedule == "plateau":  # gets the validation CCC at the end of every epoch; NaN counts as no better
            self.plateau = ReduceLROnPlateau(
                self.optimizer,
                mode="max",
                factor=c.plateau_factor,
                patience=c.plateau_patience,
                threshold=0.0,
                threshold_mode="abs",
                min_lr=c.lr_min,
            )
        super().__post_init__()

    def batches(self, epoch: int, start: int) -> Iterable[Batch]:
        return self.windows.epoch(epoch, start)

    def describe(self, batch: Batch) -> tuple[str, list[Row]]:
        return "windows", [{"recording": w.recording_id, "start": w.start, "stop": w.stop} for w in batch.windows]

    def set_lr(self, epoch: float) -> float:
        if self.plateau is None or epoch <= self.config.warmup_epochs:
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.lr_at(epoch)
        return float(self.optimizer.param_groups[0]["lr"])

    def loss(self, batch: Batch, step: int) -> Tensor:
        self.module.train()
        batch = batch.to(self.fabric.device)
        own, _ = self.module(batch.inputs, batch.valid, batch.times)
        prediction, target, mask = _gather(own.float(), batch.target, batch.mask, self.fabric)
        value = losses.loss(self.config.loss, prediction, target, mask)
        # the loss leaves out masked values even if NaN; a NaN prediction under a label must stop the run
        return value if bool(prediction.detach()[mask].isfinite().all()) else value * math.nan

    def evaluate(self, step: int) -> Row:
        if not self.validation:
            return {}
        self.pairs = self._predictions()
        scores = metrics.score_pooled(self.pairs)
        if self.plateau is not None and step % self.n_batches == 0:
            self.plateau.step(scores.mean_ccc)
        return scores.to_dict()

    def save(self, folder: Path, row: Row) -> None:
        if self.windows.statistics is not None:
            self.windows.statistics.save(folder / STATISTICS)
        if self.validation:  # whether these scores selected the checkpoint, directly or by schedule and early stopping
            by_scores = folder.name == BEST or self.plateau is not None or self.config.patience is not None
            row = {**row, "chosen": by_scores}
        extra = {**self.identity, "validation": finite(row)}
        checkpoint.save(self.network, folder, preset=self.preset, extra=extra)
        if folder.name == BEST:
            found = CheckpointScores(row, metrics.bootstrap(self.pairs), len(self.pairs), row["step"])
            write_card(folder, self.identity, found, preset=self.preset, parameters=n_parameters(self.network))

    def state(self) -> dict[str, dict[str, Any]]:
        return super().state() | ({} if self.plateau is None else {"schedule": self.plateau.state_dict()})

    def restore(self, state: Mapping[str, Any]) -> None:
        super().restore(state)
        if self.plateau is not None:
            self.plateau.load_state_dict(dict(state["schedule"]))

    def _predictions(self) -> list[metrics.Pair]:
        """(prediction, target, mask) of every validation recording; on every process those of all."""
        rank, world = self.fabric.global_rank, self.fabric.world_size
        scheme = None if self.network.causal else self.config.window
        pairs: list[tuple[int, metrics.Pair]] = []
        for i in range(rank, len(self.validation), world):
            sequence = self.validation[i]
            piece = sequence.read()
            with self.fabric.autocast():
                trace = predict_sequence(self.network, sequence, statistics=self.windows.statistics, scheme=scheme)
            counts = piece.mask & trace.valid & np.array([d in self.identity["dimensions"] for d in metrics.DIMENSIONS])
            pairs.append((i, (trace.values, np.asarray(piece.target, np.float64), counts)))
        if world > 1:
            shares: list[Any] = [None] * world
            torch.distributed.all_gather_object(shares, pairs)
            pairs = [p for share in shares for p in share]
        return [p for _, p in sorted(pairs, key=lambda p: p[0])]


def run_identity(
    model: AffectModel,
    training: abc.Sequence[Sequence],
    validation: abc.Sequence[Sequence],
    config: TrainConfig,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """The plain values of run.json, which a resumed run must share."""
    sets = {"training": training, "validation": validation}
    return {
        "model": model.name,
        "model_config": configs.to_dict(model.config),
        "training": configs.to_dict(config),
        "recordings": {name: [s.recording_id for s in part] for name, part in sets.items()},
        "dimensions": labelled_dimensions(training),
        "clock": label_clock(training),
        **about,
    }


def n_parameters(model: AffectModel) -> int:
    """How many parameters a model has."""
    return sum(p.numel() for p in model.parameters())


def check_unvalidated(c: TrainConfig) -> None:
    """Refuse settings that need validation recordings in a run without any (raises InputError)."""
    if c.schedule == "plateau" or c.patience is not None:
        needs = "the plateau schedule" if c.schedule == "plateau" else "patience"
        raise InputError(f"{needs} needs validation recordings", hint="keep some apart, or train without it")


def fabric_of(c: TrainConfig) -> Any:
    """Lightning Fabric as configured (raises InputError if it is not installed)."""
    with optional_packages("training"):
        from lightning_fabric import Fabric
    strategy = c.strategy
    if strategy == "ddp" or (strategy == "auto" and c.devices > 1):
        # a process whose windows lack a whole modality has no gradient for its weights
        strategy = "ddp_find_unused_parameters_true"
    for name in ("lightning_fabric", "lightning_fabric.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Fabric(accelerator=c.accelerator, devices=c.devices, strategy=strategy, precision=c.precision)


def _gather(prediction: Tensor, target: Tensor, mask: Tensor, fabric: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The batch of all processes, so that CCC is over all its frames; gradients flow to the own rows only."""
    if fabric.world_size == 1:
        return prediction, target, mask
    rows, frames = mask.shape[:2]
    b, t = fabric.all_gather(torch.tensor([rows, frames], device=mask.device)).amax(0).tolist()
    mine = prediction.new_zeros(b, t, 6)
    mine[:rows, :frames] = torch.cat([prediction.detach(), target, mask.to(prediction.dtype)], dim=-1)
    every = fabric.all_gather(mine)  # (world, b, t, 6)
    predictions = every[..., :2].clone()
    predictions[fabric.global_rank, :rows, :frames] = prediction
    every = every.flatten(0, 1)
    return predictions.flatten(0, 1), every[..., 2:4], every[..., 4:] > 0
