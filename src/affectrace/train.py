"""Training: one loop for every model of the registry.

    windows --batch--> model --loss--> backward --clip--> AdamW, learning rate by the step
    several times an epoch: every validation recording whole --models_run--> trace --metrics--> pooled CCC

OUT holds best/ and last/ (checkpoints, with statistics.safetensors where features are standardised), log.jsonl,
steps.csv, validations.csv, run.json and resume.pt. A run that was killed goes on from the last validation with the same
numbers: the order of windows follows from (seed, epoch), dropout from (seed, step, process).
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from affectrace import config as configs
from affectrace import losses, metrics
from affectrace.batches import Batch, Batches
from affectrace.errors import AffectraceError, ConfigError, InputError
from affectrace.losses import LossConfig
from affectrace.metrics import Scores
from affectrace.models import checkpoint
from affectrace.models_run import check_streams, predict_sequence
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.sequences import Sequence
from affectrace.standardise import Statistics, statistics_of
from affectrace.train_log import STEP, VALIDATION, Log
from affectrace.train_state import Position, load_state, save_state
from affectrace.windows import WindowScheme

BEST, LAST = "best", "last"
Report = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. Defaults are Mamba-VA's (section 4.2) for the official split."""

    epochs: int = 50  # (4.2)
    batch_size: int = 16  # windows a step, over all devices together (4.2)
    window: WindowScheme = field(default_factory=WindowScheme.mamba_va)  # 1000/800 (authors, fold 0)
    loss: LossConfig = field(default_factory=LossConfig)  # (4.2): CCC
    optimizer: Literal["adamw", "adam"] = "adamw"  # (4.2)
    lr: float = 3e-4  # highest learning rate (authors, fold 0; 3e-5 in folds 1-5)
    eps: float = 1e-7  # of AdamW (authors)
    weight_decay: float = 1e-3  # (4.2; authors 1e-2 in fold 0)
    schedule: Literal["cosine", "constant"] = "cosine"  # after the warm-up (4.2)
    warmup_epochs: float = 5.0  # linear from 0 (authors)
    restart_epochs: float | None = None  # T_0 of the cosine; None: epochs - warmup_epochs + 1 (authors), so no restart
    lr_min: float = 0.0  # lowest of the cosine (authors)
    clip_norm: float = 1.0  # gradient norm (4.2)
    validations_per_epoch: int = 4  # (authors)
    patience: int | None = None  # stop after so many validations without a better one; None: never (ours)
    standardise: bool = True  # features by mean and deviation of the training set (ours; authors: not)
    seed: int = 42  # (authors)
    precision: Literal["32-true", "bf16-mixed"] = "32-true"  # (ours)
    accelerator: str = "auto"  # Lightning Fabric's: cpu, cuda, ...
    devices: int = 1  # processes (and GPUs)
    strategy: str = "auto"  # Lightning Fabric's: ddp where devices > 1
    threads: int = 2  # that read windows ahead

    def __post_init__(self) -> None:
        restart = self.restart_epochs
        wrong = [
            message
            for broken, message in (
                (self.epochs < 1, "epochs: at least 1"),
                (self.batch_size < 1, "batch_size: at least 1"),
                (not 0 < self.lr < math.inf, "lr: must be positive"),
                (self.eps <= 0, "eps: must be positive"),
                (self.weight_decay < 0, "weight_decay: must not be negative"),
                (not 0 <= self.lr_min <= self.lr, "lr_min: between 0 and lr"),
                (self.warmup_epochs < 0, "warmup_epochs: must not be negative"),
                (restart is not None and restart <= 0, "restart_epochs: must be positive, or null"),
                (self.clip_norm <= 0, "clip_norm: must be positive"),
                (self.validations_per_epoch < 1, "validations_per_epoch: at least 1"),
                (self.patience is not None and self.patience < 1, "patience: at least 1, or null"),
                (self.devices < 1 or self.threads < 1, "devices and threads: at least 1"),
            )
            if broken
        ]
        if wrong:
            raise ConfigError("; ".join(wrong), where="TrainConfig", hint="see `affectrace train --help`")

    @classmethod
    def mamba_va(cls, fold: int = 0, **changes: Any) -> Self:
        """The authors' settings of a fold: 0 is the official split."""
        values: dict[str, Any] = {"window": WindowScheme.mamba_va(fold), "lr": 3e-4 if fold == 0 else 3e-5}
        return cls(**values | changes)

    def lr_at(self, epoch: float) -> float:
        """Learning rate after `epoch` (fractional) epochs."""
        if epoch < self.warmup_epochs:
            return self.lr * epoch / self.warmup_epochs
        if self.schedule == "constant":
            return self.lr
        period = self.restart_epochs or max(self.epochs - self.warmup_epochs, 0) + 1
        within = math.fmod(epoch - self.warmup_epochs, period) / period
        return self.lr_min + (self.lr - self.lr_min) * (1 + math.cos(math.pi * within)) / 2


@dataclass(frozen=True)
class Trained:
    """What a run came to. best: checkpoint of the highest mean validation CCC, reached at best_step."""

    best: Path
    last: Path
    best_mean_ccc: float
    best_step: int
    steps: int
    stopped_early: bool


def train(
    model: nn.Module,
    training: Several[Sequence],
    validation: Several[Sequence],
    out: Path,
    config: TrainConfig | None = None,
    *,
    preset: str = "",
    about: Mapping[str, Any] | None = None,
    resume: bool = False,
    progress: Progress = silent,
    report: Report | None = None,
) -> Trained:
    """Train a model of the registry.

    Args:
        model: freshly made (make it after torch.manual_seed for a run that can be repeated).
        training, validation: recordings with labels, cut and joined as the configuration says.
        out: folder to write; with `resume` one that holds a run of the same configuration.
        about: plain values to keep in checkpoints and run.json (data set, hash, features, fold).
        report: called with the row of every validation, on the first process.

    Raises:
        InputError: no labelled frames, streams that do not fit, a folder that holds another run, or loss or gradient
            that are no numbers: the run stops and stopped.json names the recordings of that batch.
        ConfigError: resumed with another configuration.
    """
    c = config or TrainConfig()
    out = Path(out)
    _check(model, training, validation, out, resume)
    fabric = fabric_of(c)
    fabric.launch()
    torch.manual_seed(c.seed)
    statistics = statistics_of(training, progress=progress) if c.standardise else None
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
        model: nn.Module,
        preset: str,
        batches: Batches,
        validation: tuple[Sequence, ...],
        statistics: Statistics | None,
        out: Path,
        fabric: Any,
        about: dict[str, Any],
    ) -> None:
        self.config, self.model, self.preset, self.batches = config, model, preset, batches
        self.validation, self.statistics, self.out, self.fabric = validation, statistics, out, fabric
        kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        optimizer = kind(model.parameters(), lr=config.lr, eps=config.eps, weight_decay=config.weight_decay)
        self.wrapped, self.optimizer = fabric.setup(model, optimizer)
        name = getattr(model, "name", "")
        self.identity = {
            "model": name,
            "model_config": configs.to_dict(model.config),
            "training": configs.to_dict(config),
            "recordings": {
                "training": [s.recording_id for s in batches.sequences],
                "validation": [s.recording_id for s in validation],
            },
            **about,
        }
        n = len(batches)
        k = config.validations_per_epoch
        self.validate_after = {math.ceil(n * i / k) for i in range(1, k + 1)}  # batches of an epoch

    def go(self, resume: bool, progress: Progress, report: Report | None) -> Trained:
        """From the start, or where the run stood, to its end."""
        at = self._resumed() if resume else Position()
        first = self.fabric.is_global_zero
        log = Log(self.out, at.step) if first else None
        if first:
            configs.write_atomic(self.out / "run.json", json.dumps(self.identity, indent=2) + "\n")
        n, total = len(self.batches), len(self.batches) * self.config.epochs
        stopped = self._out_of_patience(at)
        try:
            for epoch in range(at.step // n, self.config.epochs):
                if stopped:
                    break
                for batch in self.batches.epoch(epoch, at.step % n):
                    row = self.step(batch, at)
                    if log is not None:
                        log.add(STEP, row)
                    progress(ProgressEvent("training", at.step, total, "steps", str(self.identity["model"])))
                    if (at.step - epoch * n) in self.validate_after:
                        found = self.validate(at, epoch + 1)
                        if log is not None:
                            log.add(VALIDATION, found)
                        if report is not None and first:
                            report(found | {"loss": row["loss"]})
                        stopped = self._out_of_patience(at)
                        if stopped:
                            break
        finally:
            if log is not None:
                log.close()
        return Trained(self.out / BEST, self.out / LAST, at.best, at.best_step, at.step, stopped)

    def step(self, batch: Batch, at: Position) -> dict[str, Any]:
        """One step of the optimiser; returns its row of the log."""
        c, n = self.config, len(self.batches)
        lr = c.lr_at((at.step + 1) / n)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
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
        at.step += 1
        return {"step": at.step, "epoch": (at.step - 1) // n + 1, "loss": value, "lr": lr, "grad_norm": size}

    def validate(self, at: Position, epoch: int) -> dict[str, Any]:
        """Score the merged traces of the validation recordings, keep checkpoints and state; returns the log's row."""
        scores = self._scores()
        better = scores.mean_ccc > at.best  # False where it is not defined
        at.since_best = 0 if better else at.since_best + 1
        if better:
            at.best, at.best_step = scores.mean_ccc, at.step
        row = {"step": at.step, "epoch": epoch} | scores.to_dict()
        if self.fabric.is_global_zero:
            for folder in (BEST, LAST) if better else (LAST,):
                self._save(self.out / folder, row)
            save_state(self.out, self.model.state_dict(), self.optimizer.state_dict(), at, self.identity)
        self.fabric.barrier()
        return row

    def _scores(self) -> Scores:
        rank, world = self.fabric.global_rank, self.fabric.world_size
        scheme = None if getattr(self.model, "causal", False) else self.config.window
        pairs: list[tuple[int, metrics.Pair]] = []
        for i in range(rank, len(self.validation), world):
            sequence = self.validation[i]
            piece = sequence.read()
            with self.fabric.autocast():
                trace = predict_sequence(self.model, sequence, statistics=self.statistics, scheme=scheme)
            target = np.asarray(piece.target, np.float64)
            pairs.append((i, (trace.values, target, np.asarray(piece.mask) & trace.valid)))
        if world > 1:
            shares: list[Any] = [None] * world
            torch.distributed.all_gather_object(shares, pairs)
            pairs = [p for share in shares for p in share]
        return metrics.score_pooled([p for _, p in sorted(pairs, key=lambda p: p[0])])

    def _save(self, folder: Path, row: Mapping[str, Any]) -> None:
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        if self.statistics is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self.statistics.save(folder)
        checkpoint.save(self.model, folder, preset=self.preset, extra={**self.identity, "validation": plain})

    def _resumed(self) -> Position:
        weights, moments, at = load_state(self.out, self.identity)
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(moments)
        return at

    def _out_of_patience(self, at: Position) -> bool:
        return self.config.patience is not None and at.since_best >= self.config.patience

    def _stop(self, batch: Batch, at: Position, loss: float, norm: float) -> None:
        rank = self.fabric.global_rank
        path = self.out / ("stopped.json" if rank == 0 else f"stopped_{rank}.json")
        windows = [{"recording": w.recording_id, "start": w.start, "stop": w.stop} for w in batch.windows]
        about = {"step": at.step + 1, "loss": str(loss), "grad_norm": str(norm), "windows": windows}
        configs.write_atomic(path, json.dumps(about, indent=2) + "\n")
        names = ", ".join(sorted({w.recording_id for w in batch.windows})[:5])
        raise InputError(
            f"training stopped at step {at.step + 1}: loss {loss:g}, gradient norm {norm:g} (recordings {names})",
            where=path,
            hint="look at the features of these recordings, or lower lr; the best checkpoint is kept",
        )


def _check(
    model: nn.Module, training: Several[Sequence], validation: Several[Sequence], out: Path, resume: bool
) -> None:
    for name, sequences in (("training", training), ("validation", validation)):
        if not sum(s.n_labelled for s in sequences):
            raise InputError(f"the {name} recordings hold no labelled frame", hint="check the split and the labels")
        for sequence in sequences:
            check_streams(model, sequence)
    shared = sorted({s.recording_id for s in training} & {s.recording_id for s in validation})
    if shared:
        raise InputError(f"{len(shared)} recordings are trained on and validated on (first: {shared[0]})")
    if not resume and (out / "resume.pt").exists():
        raise InputError("holds a run already", where=out, hint="go on with --resume, or name another folder")


def fabric_of(c: TrainConfig) -> Any:
    """Lightning Fabric as configured (AffectraceError where it is not installed)."""
    try:
        from lightning_fabric import Fabric
    except ImportError:
        raise AffectraceError(
            "training needs Lightning Fabric", hint="install it with pip install 'affectrace[train]'"
        ) from None
    with _quiet():
        return Fabric(accelerator=c.accelerator, devices=c.devices, strategy=c.strategy, precision=c.precision)


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
    """Seed torch by (seed, step, process): a resumed run drops what an uninterrupted one drops."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def _of_all_processes(prediction: Tensor, target: Tensor, mask: Tensor, fabric: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The whole batch on every process, so that CCC is over all its frames; gradients flow to the own rows alone."""
    if fabric.world_size == 1:
        return prediction, target, mask
    world, rank = fabric.world_size, fabric.global_rank
    sizes = [torch.zeros(2, dtype=torch.int64, device=mask.device) for _ in range(world)]
    torch.distributed.all_gather(sizes, torch.tensor(mask.shape, dtype=torch.int64, device=mask.device))
    b, t = (int(max(s[i] for s in sizes)) for i in (0, 1))
    mine = prediction.new_zeros(b, t, 5)
    rows, frames = mask.shape
    mine[:rows, :frames] = torch.cat([prediction.detach(), target, mask[..., None].to(prediction.dtype)], dim=-1)
    shares = [torch.zeros_like(mine) for _ in range(world)]
    torch.distributed.all_gather(shares, mine)
    predictions = [share[..., :2] for share in shares]
    own = predictions[rank].clone()
    own[:rows, :frames] = prediction
    predictions[rank] = own
    every = torch.cat(shares)
    return torch.cat(predictions), every[..., 2:4], every[..., 4] > 0
