"""Training loop of `train` and `finetune`: steps, validation, early stopping, logs, resuming.

Batch order is a function of (seed, epoch), dropout of (seed, step, process), and log rows hold no clock time, so a run
that was killed and resumed writes the same files as an uninterrupted one.
"""

from __future__ import annotations

import csv
import io
import json
import math
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from affectrace.config import write_atomic
from affectrace.errors import ConfigError, FormatError, InputError
from affectrace.progress import Progress, ProgressEvent
from affectrace.train.config import TrainConfig

BEST, LAST, RESUME = "best", "last", "resume.pt"
RESUME_FORMAT = "affectrace.resume"
STEP, VALIDATION = "step", "validation"
STEP_COLUMNS = ("step", "epoch", "loss", "lr", "grad_norm")
VALIDATION_COLUMNS = ("step", "epoch", "mean_ccc", "ccc_valence", "ccc_arousal", "rmse_valence", "rmse_arousal")
SPEED_ONLY = ("training.threads", "finetune.threads", "tuning.threads")
"""Settings that change no number: a run may be resumed with other values."""

Row = dict[str, Any]
Report = Callable[[Mapping[str, Any]], None]
B = TypeVar("B")


@dataclass
class Position:
    """Steps taken, best validation score (higher is better), the step it was reached at, and validations since."""

    step: int = 0
    best: float = float("-inf")
    best_step: int = 0
    since_best: int = 0

    def add(self, score: float) -> bool:
        """Count a validation; whether it is the best so far. An undefined score (NaN) never is."""
        if better := score > self.best:
            self.best, self.best_step = score, self.step
        self.since_best = 0 if better else self.since_best + 1
        return better


@dataclass(eq=False, kw_only=True)
class Run(Generic[B]):
    """A network in training on one process. Subclasses define batches, loss, validation and what is saved.

    n_batches: per epoch. identity: plain values written to run.json; a resumed run must have the same. score: the
    validation number that selects the best checkpoint; sign: -1 if lower is better. columns: of validations.csv.
    """

    network: Any
    optimizer: torch.optim.Optimizer
    fabric: Any
    n_batches: int
    config: TrainConfig
    identity: Mapping[str, Any]
    out: Path
    stage: str = "training"
    score: str = "mean_ccc"
    sign: int = 1
    columns: Sequence[str] = VALIDATION_COLUMNS

    def __post_init__(self) -> None:
        self.module, self.optimizer = self.fabric.setup(self.network, self.optimizer)

    def batches(self, epoch: int, start: int) -> Iterable[B]:
        """The batches of an epoch from number `start` on."""
        raise NotImplementedError

    def describe(self, batch: B) -> tuple[str, list[Row]]:
        """What a batch consists of ("windows", "items"), and each of them with its "recording"."""
        raise NotImplementedError

    def set_lr(self, epoch: float) -> float:
        """Set the learning rates of a step that ends at `epoch` (fractional); returns the highest."""
        raise NotImplementedError

    def loss(self, batch: B, step: int) -> Tensor:
        """The loss of a batch, in training mode."""
        raise NotImplementedError

    def evaluate(self, step: int) -> Row:
        """Validation scores; {} without validation data."""
        raise NotImplementedError

    def save(self, folder: Path, row: Row) -> None:
        """Write a checkpoint. row: the validation it belongs to."""
        raise NotImplementedError

    def state(self) -> dict[str, dict[str, Any]]:
        """State dicts of model, optimizer and schedule."""
        return {"model": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "schedule": {}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Load what `state` returned."""
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def fit(self, *, resume: bool, progress: Progress, report: Report | None) -> tuple[Position, bool]:
        """Train from the start, or from the last validation of an earlier run.

        Returns:
            The final position, and whether patience ran out.
        """
        at, c, n = Position(), self.config, self.n_batches
        if resume:
            state, at = load_state(self.out / RESUME, self.identity)
            self.restore(state)
        validated = {math.ceil(n * i / c.validations_per_epoch) for i in range(1, c.validations_per_epoch + 1)}
        log = Log(self.out if self.fabric.is_global_zero else None, at.step, self.columns)
        if self.fabric.is_global_zero:
            write_atomic(self.out / "run.json", json.dumps(self.identity, indent=2) + "\n")
        model = self.identity["model"]
        with closing(log):
            for epoch in range(at.step // n, c.epochs):
                for batch in self.batches(epoch, at.step % n):
                    if c.patience is not None and at.since_best >= c.patience:
                        return at, True
                    row = self._step(batch, at.step)
                    at.step += 1
                    log.add(STEP, row)
                    note = f"epoch {epoch + 1}, loss {row['loss']:.4f}"
                    if at.best_step:
                        note += f", best validation {at.best * self.sign:.3f} at step {at.best_step}"
                    progress(ProgressEvent(self.stage, at.step, n * c.epochs, "steps", model, note))
                    if at.step - epoch * n in validated:
                        found = self._validate(at, epoch + 1)
                        log.add(VALIDATION, found)
                        if self.fabric.is_global_zero:
                            save_state(self.out / RESUME, self.state(), at, self.identity)
                            if report is not None:
                                report(found | {"loss": row["loss"]})
        return at, c.patience is not None and at.since_best >= c.patience

    def _step(self, batch: B, step: int) -> Row:
        """One optimizer step; a NaN or infinite loss or gradient ends the run instead (InputError)."""
        n = self.n_batches
        lr = self.set_lr((step + 1) / n)
        seed = np.random.SeedSequence([self.config.seed, step, self.fabric.global_rank])
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        loss = self.loss(batch, step)
        self.optimizer.zero_grad()
        # every process has the loss of the whole batch, but the gradient of its own rows; the strategy averages them
        self.fabric.backward(loss * self.fabric.world_size)
        norm = self.fabric.clip_gradients(
            self.module, self.optimizer, max_norm=self.config.clip_norm, error_if_nonfinite=False
        )
        value, size = float(loss.detach()), float(norm)
        row = {"step": step + 1, "epoch": step // n + 1, "loss": value, "lr": lr, "grad_norm": size}
        if not (math.isfinite(value) and math.isfinite(size)):
            self._stop(batch, row)
        self.optimizer.step()
        return row

    def _validate(self, at: Position, epoch: int) -> Row:
        """Score the model and write last/, and best/ if it is the best so far."""
        scores = self.evaluate(at.step)
        better = bool(scores) and at.add(scores[self.score] * self.sign)
        row = {"step": at.step, "epoch": epoch, **scores}
        if self.fabric.is_global_zero:
            for name in (BEST, LAST) if better else (LAST,):
                self.save(self.out / name, row)
        self.fabric.barrier()
        return row

    def _stop(self, batch: B, row: Row) -> None:
        """Write the batch to stopped.json and raise InputError."""
        rank = self.fabric.global_rank
        path = self.out / (f"stopped_{rank}.json" if rank else "stopped.json")
        kind, items = self.describe(batch)
        about = {"step": row["step"], "loss": str(row["loss"]), "grad_norm": str(row["grad_norm"]), kind: items}
        write_atomic(path, json.dumps(about, indent=2) + "\n")
        names = ", ".join(sorted({str(item["recording"]) for item in items})[:5])
        raise InputError(
            f"training stopped at step {row['step']}: loss {row['loss']:g}, gradient norm {row['grad_norm']:g} "
            f"(recordings {names})",
            where=path,
            hint="check the features of these recordings, or lower lr; the best checkpoint is kept",
        )


def check_out(out: Path, resume: bool) -> None:
    """Refuse a folder that already holds a run (raises InputError)."""
    if not resume and (out / RESUME).exists():
        raise InputError("already holds a run", where=out, hint="continue it with --resume, or name another folder")


def check_apart(training: Iterable[str], validation: Iterable[str]) -> None:
    """Refuse recordings that are in both the training and the validation set (raises InputError)."""
    if shared := sorted(set(training) & set(validation)):
        raise InputError(f"{len(shared)} recordings are in training and validation (first: {shared[0]})")


# ---- log.jsonl, steps.csv, validations.csv, and TensorBoard if it is installed


class Log:
    """The log files of a run in `folder` (None: no files). Rows after `from_step`, of a killed run, are dropped."""

    def __init__(self, folder: Path | None, from_step: int, columns: Sequence[str]) -> None:
        self._files: list[Any] = []
        self._tables: dict[str, csv.DictWriter[str]] = {}
        self._board: Any = None
        if folder is None:
            return
        kept = [row for row in read_log(folder) if row["step"] <= from_step]
        write_atomic(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
        # line buffering: a row is on disk when `add` returns
        self._files = [(folder / "log.jsonl").open("a", encoding="utf-8", buffering=1)]
        for event, names in ((STEP, STEP_COLUMNS), (VALIDATION, columns)):
            file = (folder / f"{event}s.csv").open("w", encoding="utf-8", newline="", buffering=1)
            self._files.append(file)
            self._tables[event] = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
            self._tables[event].writeheader()
        for row in kept:
            self._tables[row["event"]].writerow(row)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1)
        self._files.append(self._board)

    def add(self, event: str, row: Row) -> None:
        """A row of kind STEP or VALIDATION."""
        if not self._files:
            return
        row = finite(row)
        self._files[0].write(json.dumps({"event": event, **row}) + "\n")
        self._tables[event].writerow(row)
        if self._board is not None:
            for name, value in row.items():
                if name not in ("step", "epoch") and isinstance(value, (int, float)):
                    self._board.add_scalar(f"{event}/{name}", value, row["step"])

    def close(self) -> None:
        """Close all files."""
        for file in self._files:
            file.close()


def finite(row: Mapping[str, Any]) -> Row:
    """A row with None for NaN and infinite values, which JSON lacks."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def read_log(folder: Path) -> list[Row]:
    """Rows of log.jsonl, without a last line that a kill cut off."""
    path, rows = folder / "log.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


# ---- resume.pt


def save_state(path: Path, state: Mapping[str, Any], at: Position, identity: Mapping[str, Any]) -> None:
    """Write resume.pt, atomically."""
    sink = io.BytesIO()  # torch.save into a file hides why a disk refuses it
    about = {"format": RESUME_FORMAT, "position": asdict(at), "run": json.dumps(identity, sort_keys=True)}
    torch.save({**state, **about}, sink)
    write_atomic(path, sink.getvalue())


def load_state(path: Path, identity: Mapping[str, Any]) -> tuple[Mapping[str, Any], Position]:
    """State dicts and position of a run, read with weights_only (raises FormatError; ConfigError: other settings)."""
    if not path.is_file():
        raise FormatError("no run to resume", where=path, hint="leave out --resume to start one")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        then, at = json.loads(state["run"]), Position(**state["position"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError, OSError):
        raise FormatError("is not a resume file", where=path, hint="start again without --resume") from None
    check_same(then, identity, "the run had other settings", path.parent)
    return state, at


def check_same(then: Mapping[str, Any], now: Mapping[str, Any], what: str, where: Path) -> None:
    """Refuse to continue with other settings or data (raises ConfigError). then: as read from JSON."""
    a, b = _flat(then), _flat(json.loads(json.dumps(now)))
    changed = [k for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k) and k not in SPEED_ONLY]
    if changed:
        found = "; ".join(f"{k}: was {a.get(k)}, is {b.get(k)}" for k in changed[:8])
        raise ConfigError(f"{what} ({found})", where=where, hint="use the same options and data, or another --out")


def _flat(values: Any, path: str = "") -> dict[str, Any]:
    """Nested JSON values by path: {"window.size": 40, "recordings.training[0]": "r1"}."""
    if isinstance(values, dict):
        parts = {f"{path}.{k}".lstrip("."): v for k, v in values.items()}
    elif isinstance(values, list):
        parts = {f"{path}[{i}]": v for i, v in enumerate(values)}
    else:
        return {path: values}
    return {k: v for name, part in parts.items() for k, v in _flat(part, name).items()}
