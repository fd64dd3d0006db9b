"""Training: one loop for every model of the registry.

    windows --batch--> model --loss--> backward --clip--> AdamW, learning rate by the step
    several times an epoch: every validation recording whole --models_run--> trace --metrics--> pooled CCC

OUT holds best/ (by validation CCC, with a model card) and last/ (checkpoints, with statistics.safetensors where
features are standardised), log.jsonl, steps.csv, validations.csv, run.json and resume.pt. A killed run goes on from
its last validation with the same numbers: the order of windows follows from (seed, epoch), dropout from (seed, step,
process).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Several
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
from affectrace.train import model_card
from affectrace.train.config import TrainConfig as TrainConfig
from affectrace.train.loop import Course, Report, check_apart, check_out, run_epochs, stop_at
from affectrace.train.state import Position, load_state, save_state

BEST, LAST = "best", "last"
UNUSED_ALLOWED = "ddp_find_unused_parameters_true"
"""What "ddp" means here: a process whose windows lack a modality altogether has no gradient for its weights."""


@dataclass(frozen=True)
class Trained:
    """What a run came to. best: checkpoint of the highest mean validation CCC, reached at best_step (0: there is none).

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
    training: Several[Sequence],
    validation: Several[Sequence],
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
            recordings nothing is chosen: there is last/ and no best/.
        out: folder to write; with `resume` one that holds a run of the same configuration.
        accept_features: take a stream whose features were made by several extractors.
        about: plain values to keep in checkpoints and run.json (data set, hash, features, fold).
        report: called with the row of every validation, on the first process.

    Raises:
        InputError: no labelled frames, streams that do not fit or that several extractors made, a folder that holds
            another run, or loss or gradient that are no numbers: the run stops and stopped.json names the recordings of
            that batch.
        ConfigError: resumed with another configuration.
    """
    c = config or TrainConfig()
    out = Path(out)
    _check(c, model, training, validation, out, resume)
    if not accept_features and (lines := made_by_several(extractors_of([*training, *validation]))):
        raise InputError("; ".join(lines), hint="extract the features of all recordings with one extractor")
    fabric = fabric_of(c)
    fabric.launch()
    torch.manual_seed(c.seed)
    statistics = FeatureNormalizer.fit(training, progress=progress) if c.standardise else None
    if statistics is not None:
        statistics.check_held_out(s.recording_id for s in validation)
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
    run = _Run(c, model, preset, batches, tuple(validation), statistics, out, fabric, dict(about or {}))
    return run.go(resume, progress, report)


class _Run:
    """One run on one process."""

    def __init__(
        self,
        config: TrainConfig,
        model: AffectModel,
        preset: str,
        batches: Batches,
        validation: tuple[Sequence, ...],
        statistics: FeatureNormalizer | None,
        out: Path,
        fabric: Any,
        about: dict[str, Any],
    ) -> None:
        self.config, self.model, self.preset, self.batches = config, model, preset, batches
        self.validation, self.statistics, self.out, self.fabric = validation, statistics, out, fabric
        kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        optimizer = kind(model.parameters(), lr=config.lr, eps=config.eps, weight_decay=config.weight_decay)
        self.plateau = _plateau(optimizer, config)
        self.wrapped, self.optimizer = fabric.setup(model, optimizer)
        self.identity = identity_of(model, batches.sequences, validation, config, about)
        self.course = Course(config.epochs, len(batches), config.validations_per_epoch, config.patience)

    def go(self, resume: bool, progress: Progress, report: Report | None) -> Trained:
        """From the start, or where the run stood, to its end."""
        at = self._resumed() if resume else Position()
        first = self.fabric.is_global_zero
        stopped = run_epochs(
            self,
            self.batches.epoch,
            self.course,
            at,
            self.out,
            self.identity,
            first=first,
            progress=progress,
            report=report,
        )
        return Trained(self.out / BEST, self.out / LAST, at.best, at.best_step, at.step, stopped)

    def step(self, batch: Batch, at: Position) -> dict[str, Any]:
        """One step of the optimiser; returns its row of the log."""
        c, n = self.config, len(self.batches)
        epoch = (at.step + 1) / n
        if self.plateau is None or epoch <= c.warmup_epochs:
            for group in self.optimizer.param_groups:
                group["lr"] = c.lr_at(epoch)
        seed_dropout(c.seed, at.step, self.fabric.global_rank)
        self.wrapped.train()
        batch = batch.to(self.fabric.device)
        prediction, _ = self.wrapped(batch.inputs, batch.valid, batch.times)
        everyone = _of_all_processes(prediction.float(), batch.target, batch.mask, self.fabric)
        loss = losses.loss(c.loss, *everyone)
        self.optimizer.zero_grad()
        # every process has the loss of the whole batch, but the gradient of its own rows; the strategy averages them
        self.fabric.backward(loss * self.fabric.world_size)
        norm = self.fabric.clip_gradients(self.wrapped, self.optimizer, max_norm=c.clip_norm, error_if_nonfinite=False)
        counted = everyone[0].detach()[everyone[2]]
        value, size = float(loss.detach()) if bool(counted.isfinite().all()) else math.nan, float(norm)
        if not (math.isfinite(value) and math.isfinite(size)):
            self._stop(batch, at, value, size)
        self.optimizer.step()
        lr = float(self.optimizer.param_groups[0]["lr"])
        at.step += 1
        return {"step": at.step, "epoch": (at.step - 1) // n + 1, "loss": value, "lr": lr, "grad_norm": size}

    def validate(self, at: Position, epoch: int) -> dict[str, Any]:
        """Score the merged traces of the validation recordings, keep checkpoints and state; returns the log's row."""
        if not self.validation:
            return self._unvalidated(at, epoch)
        pairs = self._pairs()
        scores = metrics.score_pooled(pairs)
        better = scores.mean_ccc > at.best  # False where it is not defined
        at.since_best = 0 if better else at.since_best + 1
        if better:
            at.best, at.best_step = scores.mean_ccc, at.step
        if self.plateau is not None and at.step % len(self.batches) == 0:
            self.plateau.step(scores.mean_ccc)
        row = {"step": at.step, "epoch": epoch} | scores.to_dict()
        if self.fabric.is_global_zero:
            for folder in (BEST, LAST) if better else (LAST,):
                stops = self.plateau is not None or self.config.patience is not None  # validation decides the end
                self._save(self.out / folder, {**row, "chosen": folder == BEST or stops})
            if better:
                self._describe(self.out / BEST, row, pairs)
            save_state(self.out, self._state(), at, self.identity)
        self.fabric.barrier()
        return row

    def _unvalidated(self, at: Position, epoch: int) -> dict[str, Any]:
        """Keep checkpoint and state of a run that has nothing to choose by."""
        row = {"step": at.step, "epoch": epoch}
        if self.fabric.is_global_zero:
            self._save(self.out / LAST, row)
            save_state(self.out, self._state(), at, self.identity)
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
                trace = predict_sequence(self.model, sequence, statistics=self.statistics, scheme=scheme)
            target = np.asarray(piece.target, np.float64)
            pairs.append((i, (trace.values, target, piece.mask & trace.valid)))
        if world > 1:
            shares: list[Any] = [None] * world
            torch.distributed.all_gather_object(shares, pairs)
            pairs = [p for share in shares for p in share]
        return [p for _, p in sorted(pairs, key=lambda p: p[0])]

    def _save(self, folder: Path, row: Mapping[str, Any]) -> None:
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        if self.statistics is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.statistics.save(folder)
        checkpoint.save(self.model, folder, preset=self.preset, extra={**self.identity, "validation": plain})

    def _describe(self, folder: Path, row: Mapping[str, Any], pairs: list[metrics.Pair]) -> None:
        found = model_card.Measured(row, metrics.bootstrap(pairs), len(pairs), int(row["step"]))
        parameters = sum(p.numel() for p in self.model.parameters())
        model_card.write_card(folder, self.identity, found, preset=self.preset, parameters=parameters)

    def _resumed(self) -> Position:
        state, at = load_state(self.out, self.identity)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.plateau is not None:
            self.plateau.load_state_dict(state["schedule"])
        return at

    def _state(self) -> dict[str, dict[str, Any]]:
        schedule = {} if self.plateau is None else self.plateau.state_dict()
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "schedule": schedule}

    def _stop(self, batch: Batch, at: Position, loss: float, norm: float) -> None:
        rank = self.fabric.global_rank
        path = self.out / ("stopped.json" if rank == 0 else f"stopped_{rank}.json")
        windows = [{"recording": w.recording_id, "start": w.start, "stop": w.stop} for w in batch.windows]
        stop_at(path, at, loss, norm, kind="windows", items=windows)


def identity_of(
    model: AffectModel,
    training: Several[Sequence],
    validation: Several[Sequence],
    config: TrainConfig,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """What makes a run the one it is, as plain values: run.json, and what resuming compares."""
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


def _check(
    c: TrainConfig,
    model: AffectModel,
    training: Several[Sequence],
    validation: Several[Sequence],
    out: Path,
    resume: bool,
) -> None:
    if not validation:
        check_unvalidated(c)
    for name, sequences in (("training", training), ("validation", validation)):
        if (name == "training" or sequences) and not sum(s.n_labelled for s in sequences):
            raise InputError(f"the {name} recordings hold no labelled frame", hint="check the split and the labels")
        for sequence in sequences:
            check_streams(model, sequence)
    check_apart((s.recording_id for s in training), (s.recording_id for s in validation))
    check_out(out, resume)


def _plateau(optimizer: torch.optim.Optimizer, c: TrainConfig) -> torch.optim.lr_scheduler.ReduceLROnPlateau | None:
    """Told the validation CCC at the end of every epoch; one that is not defined counts as no better."""
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
    with _quiet():
        return Fabric(accelerator=c.accelerator, devices=c.devices, strategy=strategy, precision=c.precision)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    import logging
    import warnings

    for name in ("lightning_fabric", "lightning_fabric.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Seed torch's generator by (seed, step, process): a resumed run drops what an uninterrupted one drops."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1)))


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
