"""`train`: one loop for every model of the registry.

    windows --batch--> model --loss--> backward --clip--> AdamW, learning rate by the step
    several times an epoch: every validation recording whole --inference.run--> trace --metrics--> pooled CCC

OUT holds best/ (by validation CCC, with a model card) and last/ (checkpoints, with statistics.safetensors where
features are standardised), log.jsonl, steps.csv, validations.csv, run.json and resume.pt. A killed run goes on from
its last validation with the same numbers: the order of windows follows from (seed, epoch), dropout from (seed, step,
process).
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

from affectrace import config as configs
from affectrace import losses, metrics
from affectrace.errors import AffectraceError, InputError
from affectrace.features.identity import made_by_several
from affectrace.inference.run import check_streams, predict_sequence
from affectrace.models import checkpoint
from affectrace.models.base import AffectModel
from affectrace.progress import Progress, silent
from affectrace.sequences import Sequence, extractors_of
from affectrace.sequences.batches import Batch, Batches
from affectrace.sequences.normalization import FeatureNormalizer
from affectrace.train.config import TrainConfig
from affectrace.train.loop import BEST, LAST, Position, Report, Row, Run, check_apart, check_out, run_epochs
from affectrace.train.model_card import Measured, write_card

UNUSED_ALLOWED = "ddp_find_unused_parameters_true"
"""What "ddp" means here: a process whose windows lack a modality altogether has no gradient for its weights."""


@dataclass(frozen=True)
class Trained:
    """The outcome of a run. best: checkpoint of the highest mean validation CCC, reached at best_step (0: none).

    last: checkpoint of the last step.
    """

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
        model: freshly made (make it after torch.manual_seed for a run that can be repeated).
        training, validation: recordings with labels, cut and joined as the configuration says. Without validation
            recordings nothing is selected: there is last/ and no best/.
        out: folder to write; with `resume` one that holds a run of the same configuration.
        accept_features: accept a stream whose features were made by several extractors.
        about: plain values to keep in checkpoints and run.json (data set, hash, features, fold).
        report: called with the row of every validation, on the first process.

    Raises:
        InputError: no labelled frames, streams that do not fit or that several extractors made, a folder that holds
            another run, or a NaN or infinite loss or gradient: the run stops and stopped.json names the recordings of
            that batch.
        ConfigError: resumed with another configuration.
    """
    c, out = configs.checked(config or TrainConfig()), Path(out)
    if not validation:
        check_unvalidated(c)
    for name, sequences in (("training", training), ("validation", validation)):
        if (name == "training" or sequences) and not sum(s.n_labelled for s in sequences):
            raise InputError(f"the {name} recordings hold no labelled frame", hint="check the split and the labels")
        for sequence in sequences:
            check_streams(model, sequence)
    check_apart((s.recording_id for s in training), (s.recording_id for s in validation))
    check_out(out, resume)
    if not accept_features and (lines := made_by_several(extractors_of([*training, *validation]))):
        raise InputError("; ".join(lines), hint="extract the features of all recordings with one extractor")
    fabric = fabric_of(c)
    fabric.launch()
    torch.manual_seed(c.seed)
    statistics = FeatureNormalizer.fit(training, progress=progress) if c.standardise else None
    batches = Batches(
        training,
        c.window,
        batch_size=c.batch_size,
        seed=c.seed,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        statistics=statistics,
        threads=c.threads,
    )
    if not len(batches):
        raise InputError("the training recordings give no window", hint="keep partial windows, or make them shorter")
    identity = identity_of(model, training, validation, c, about or {})
    run = _ModelRun(c, model, fabric, batches, tuple(validation), preset, identity, out)
    at, stopped = run_epochs(run, resume=resume, progress=progress, report=report)
    return Trained(out / BEST, out / LAST, at.best, at.best_step, at.step, stopped)


class _ModelRun(Run[Batch]):
    """A model on windows of features."""

    network: AffectModel

    def __init__(
        self,
        config: TrainConfig,
        model: AffectModel,
        fabric: Any,
        batches: Batches,
        validation: tuple[Sequence, ...],
        preset: str,
        identity: Mapping[str, Any],
        out: Path,
    ) -> None:
        kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        optimizer = kind(model.parameters(), lr=config.lr, eps=config.eps, weight_decay=config.weight_decay)
        self.plateau = _plateau(optimizer, config)
        super().__init__(config, model, optimizer, fabric, len(batches), identity, out)
        self.model, self.windows, self.validation, self.preset = model, batches, validation, preset

    def batches(self, epoch: int, start: int) -> Iterable[Batch]:
        return self.windows.epoch(epoch, start)

    def items(self, batch: Batch) -> tuple[str, list[dict[str, Any]]]:
        return "windows", [{"recording": w.recording_id, "start": w.start, "stop": w.stop} for w in batch.windows]

    def set_lr(self, epoch: float) -> float:
        if self.plateau is None or epoch <= self.config.warmup_epochs:
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.lr_at(epoch)
        return float(self.optimizer.param_groups[0]["lr"])

    def loss(self, batch: Batch, at: Position) -> Tensor:
        self.module.train()
        batch = batch.to(self.fabric.device)
        own, _ = self.module(batch.inputs, batch.valid, batch.times)
        prediction, target, mask = _of_all_processes(own.float(), batch.target, batch.mask, self.fabric)
        value = losses.loss(self.config.loss, prediction, target, mask)
        # the loss leaves out what does not count, NaN or not; a prediction that counts must be a number
        return value if bool(prediction.detach()[mask].isfinite().all()) else value * math.nan

    def validate(self, at: Position, epoch: int) -> Row:
        """Score the whole validation recordings and keep checkpoints."""
        row: Row = {"step": at.step, "epoch": epoch}
        if not self.validation:  # nothing to select by
            if self.fabric.is_global_zero:
                self._save(self.out / LAST, row)
            self.fabric.barrier()
            return row
        pairs = self._pairs()
        scores = metrics.score_pooled(pairs)
        better = at.is_better(scores.mean_ccc)
        if self.plateau is not None and at.step % self.n_batches == 0:
            self.plateau.step(scores.mean_ccc)
        row |= scores.to_dict()
        if self.fabric.is_global_zero:
            decides_end = self.plateau is not None or self.config.patience is not None
            for folder in (BEST, LAST) if better else (LAST,):
                self._save(self.out / folder, {**row, "chosen": folder == BEST or decides_end})
            if better:
                found = Measured(row, metrics.bootstrap(pairs), len(pairs), at.step)
                parameters = sum(p.numel() for p in self.network.parameters())
                write_card(self.out / BEST, self.identity, found, preset=self.preset, parameters=parameters)
        self.fabric.barrier()
        return row

    def _pairs(self) -> list[metrics.Pair]:
        """Predictions beside labels of every validation recording, on every process."""
        rank, world = self.fabric.global_rank, self.fabric.world_size
        scheme = None if self.model.causal else self.config.window
        pairs: list[tuple[int, metrics.Pair]] = []
        for i in range(rank, len(self.validation), world):
            sequence = self.validation[i]
            piece = sequence.read()
            with self.fabric.autocast():
                trace = predict_sequence(self.model, sequence, statistics=self.windows.statistics, scheme=scheme)
            target = np.asarray(piece.target, np.float64)
            pairs.append((i, (trace.values, target, piece.mask & trace.valid)))
        if world > 1:
            shares: list[Any] = [None] * world
            torch.distributed.all_gather_object(shares, pairs)
            pairs = [p for share in shares for p in share]
        return [p for _, p in sorted(pairs, key=lambda p: p[0])]

    def _save(self, folder: Path, row: Row) -> None:
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        if self.windows.statistics is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.windows.statistics.save(folder)
        checkpoint.save(self.model, folder, preset=self.preset, extra={**self.identity, "validation": plain})

    def state(self) -> dict[str, dict[str, Any]]:
        return super().state() | ({} if self.plateau is None else {"schedule": self.plateau.state_dict()})

    def restore(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        super().restore(state)
        if self.plateau is not None:
            self.plateau.load_state_dict(dict(state["schedule"]))


def identity_of(
    model: AffectModel,
    training: abc.Sequence[Sequence],
    validation: abc.Sequence[Sequence],
    config: TrainConfig,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """What a run is, as plain values: run.json, and what resuming compares."""
    return {
        "model": model.name,
        "model_config": configs.to_dict(model.config),
        "training": configs.to_dict(config),
        "recordings": {
            "training": [s.recording_id for s in training],
            "validation": [s.recording_id for s in validation],
        },
        **about,
    }


def check_unvalidated(c: TrainConfig) -> None:
    """Refuse what needs validation recordings in a run without any (raises InputError)."""
    if c.schedule == "plateau" or c.patience is not None:
        needs = "the plateau schedule" if c.schedule == "plateau" else "patience"
        raise InputError(f"{needs} needs validation recordings", hint="keep some apart, or train without it")


def _plateau(optimizer: torch.optim.Optimizer, c: TrainConfig) -> torch.optim.lr_scheduler.ReduceLROnPlateau | None:
    """Given the validation CCC at the end of every epoch; an undefined one counts as no better."""
    if c.schedule != "plateau":
        return None
    return torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        mode="max",
        factor=c.plateau_factor,
        patience=c.plateau_patience,
        threshold=0.0,
        threshold_mode="abs",
        min_lr=c.lr_min,
    )


def fabric_of(c: TrainConfig) -> Any:
    """Lightning Fabric as configured (AffectraceError where it is not installed)."""
    try:
        from lightning_fabric import Fabric
    except ImportError:
        raise AffectraceError(
            "training needs Lightning Fabric", hint="install it with pip install 'affectrace[train]'"
        ) from None
    strategy = c.strategy
    if strategy == "ddp" or (strategy == "auto" and c.devices > 1):
        strategy = UNUSED_ALLOWED
    for name in ("lightning_fabric", "lightning_fabric.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Fabric(accelerator=c.accelerator, devices=c.devices, strategy=strategy, precision=c.precision)


def _of_all_processes(prediction: Tensor, target: Tensor, mask: Tensor, fabric: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The whole batch on every process, so that CCC is over all its frames; gradients flow to the own rows alone."""
    if fabric.world_size == 1:
        return prediction, target, mask
    world, rank = fabric.world_size, fabric.global_rank
    sizes = [torch.zeros(2, dtype=torch.int64, device=mask.device) for _ in range(world)]
    torch.distributed.all_gather(sizes, torch.tensor(mask.shape[:2], dtype=torch.int64, device=mask.device))
    b, t = (int(max(s[i] for s in sizes)) for i in (0, 1))
    mine = prediction.new_zeros(b, t, 6)
    rows, frames = mask.shape[:2]
    mine[:rows, :frames] = torch.cat([prediction.detach(), target, mask.to(prediction.dtype)], dim=-1)
    shares = [torch.zeros_like(mine) for _ in range(world)]
    torch.distributed.all_gather(shares, mine)
    predictions = [share[..., :2] for share in shares]
    own = predictions[rank].clone()
    own[:rows, :frames] = prediction
    predictions[rank] = own
    every = torch.cat(shares)
    return torch.cat(predictions), every[..., 2:4], every[..., 4:] > 0
