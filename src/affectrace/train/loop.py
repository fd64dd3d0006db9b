"""The training loop that `train` and `finetune` share: steps, validations, early stopping, the log, and resuming.

Which batch comes next follows from the number of steps, dropout from (seed, step, process), and rows of the log hold
no clock time: a run that was killed and resumed leaves the same files as one that was not.
"""

from __future__ import annotations

import csv
import io
import json
import math
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from affectrace.config import write_atomic
from affectrace.errors import ConfigError, FormatError, InputError
from affectrace.progress import Progress, ProgressEvent
from affectrace.train.config import TrainConfig

BEST, LAST = "best", "last"
RESUME, RESUME_FORMAT = "resume.pt", "affectrace.resume"
STEP, VALIDATION = "step", "validation"
STEP_COLUMNS = ("step", "epoch", "loss", "lr", "grad_norm")
VALIDATION_COLUMNS = ("step", "epoch", "mean_ccc", "ccc_valence", "ccc_arousal", "rmse_valence", "rmse_arousal")

Row = dict[str, Any]
Report = Callable[[Mapping[str, Any]], None]
B = TypeVar("B")


@dataclass
class Position:
    """Steps done, the best score so far (higher is better) and at which step, and validations since."""

    step: int = 0
    best: float = float("-inf")
    best_step: int = 0
    since_best: int = 0

    def is_better(self, score: float) -> bool:
        """Count a validation; whether it is the best so far. An undefined score (NaN) is not."""
        if better := score > self.best:
            self.best, self.best_step = score, self.step
        self.since_best = 0 if better else self.since_best + 1
        return better

    def is_over(self, patience: int | None) -> bool:
        """Whether so many validations have passed without a better one."""
        return patience is not None and self.since_best >= patience


class Run(Generic[B]):
    """What is trained, on one process; `train` and `finetune` say how.

    identity: plain values written to run.json and compared when the run is resumed. score: name of the number of a
    validation that decides what is best. sign: -1 where less is better, else 1. columns: of validations.csv.
    """

    stage, score, sign = "training", "mean_ccc", 1
    columns: Sequence[str] = VALIDATION_COLUMNS

    def __init__(
        self,
        config: TrainConfig,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        fabric: Any,
        n_batches: int,
        identity: Mapping[str, Any],
        out: Path,
    ) -> None:
        self.config, self.network, self.fabric, self.identity, self.out = config, network, fabric, identity, out
        self.n_batches = n_batches  # an epoch
        self.module, self.optimizer = fabric.setup(network, optimizer)

    def batches(self, epoch: int, start: int) -> Iterable[B]:
        """The batches of an epoch from number `start` on."""
        raise NotImplementedError

    def items(self, batch: B) -> tuple[str, list[dict[str, Any]]]:
        """What a batch holds ("windows", "items"), and each of them with its "recording"."""
        raise NotImplementedError

    def set_lr(self, epoch: float) -> float:
        """Set the learning rates for a step that ends at `epoch`; returns the highest."""
        raise NotImplementedError

    def loss(self, batch: B, at: Position) -> Tensor:
        """The loss of a batch, the module in training mode."""
        raise NotImplementedError

    def validate(self, at: Position, epoch: int) -> Row:
        """Score the model and keep its checkpoints; returns the row of the log."""
        raise NotImplementedError

    def step(self, batch: B, at: Position) -> Row:
        """A step of the optimiser, not taken where loss or gradient are NaN or infinite; returns its row of the log."""
        n, world = self.n_batches, self.fabric.world_size
        lr = self.set_lr((at.step + 1) / n)
        # seeded by (seed, step, process): a resumed run drops what an uninterrupted one drops
        seed = np.random.SeedSequence([self.config.seed, at.step, self.fabric.global_rank])
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0] >> np.uint64(1)))
        loss = self.loss(batch, at)
        self.optimizer.zero_grad()
        # every process has the loss of the whole batch, but the gradient of its own rows; the strategy averages them
        self.fabric.backward(loss * world)
        norm = self.fabric.clip_gradients(
            self.module, self.optimizer, max_norm=self.config.clip_norm, error_if_nonfinite=False
        )
        value, size = float(loss.detach()), float(norm)
        if math.isfinite(value) and math.isfinite(size):
            self.optimizer.step()
        return {"step": at.step + 1, "epoch": at.step // n + 1, "loss": value, "lr": lr, "grad_norm": size}

    def state(self) -> dict[str, dict[str, Any]]:
        """State dicts of model, optimizer and schedule."""
        return {"model": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), "schedule": {}}

    def restore(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over what `state` gave."""
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]


def run_epochs(run: Run[B], *, resume: bool, progress: Progress, report: Report | None) -> tuple[Position, bool]:
    """A run from its start, or from its last validation, to its end.

    Returns:
        Where it ended, and whether it ended early because patience ran out.
    """
    at, c, n = Position(), run.config, run.n_batches
    if resume:
        state, at = load_state(run.out, run.identity)
        run.restore(state)
    log = None
    if run.fabric.is_global_zero:
        log = Log(run.out, at.step, run.columns)
        write_atomic(run.out / "run.json", json.dumps(run.identity, indent=2) + "\n")
    # validations of an epoch follow these batches of it
    validated = {math.ceil(n * i / c.validations_per_epoch) for i in range(1, c.validations_per_epoch + 1)}
    try:
        for epoch in range(at.step // n, c.epochs):
            if at.is_over(c.patience):
                break
            for batch in run.batches(epoch, at.step % n):
                row = run.step(batch, at)
                if not (math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"])):
                    _stop(run, batch, row)
                at.step += 1
                if log is not None:
                    log.add(STEP, row)
                note = f"epoch {row['epoch']}, loss {row['loss']:.4f}"
                if at.best_step:
                    note += f", best validation {at.best * run.sign:.3f} at step {at.best_step}"
                model = str(run.identity.get("model", ""))
                progress(ProgressEvent(run.stage, at.step, n * c.epochs, "steps", model, note))
                if at.step - epoch * n not in validated:
                    continue
                found = run.validate(at, epoch + 1)
                if log is not None:
                    log.add(VALIDATION, found)
                    save_state(run.out, run.state(), at, run.identity)
                    if report is not None:
                        report(found | {"loss": row["loss"]})
                if at.is_over(c.patience):
                    break
    finally:
        if log is not None:
            log.close()
    return at, at.is_over(c.patience)


def _stop(run: Run[B], batch: B, row: Row) -> None:
    """Write the batch with a NaN or infinite loss or gradient to stopped.json, and end the run with InputError."""
    rank = run.fabric.global_rank
    path = run.out / (f"stopped_{rank}.json" if rank else "stopped.json")
    kind, items = run.items(batch)
    about = {"step": row["step"], "loss": str(row["loss"]), "grad_norm": str(row["grad_norm"]), kind: items}
    write_atomic(path, json.dumps(about, indent=2) + "\n")
    names = ", ".join(sorted({str(item["recording"]) for item in items})[:5])
    raise InputError(
        f"training stopped at step {row['step']}: loss {row['loss']:g}, gradient norm {row['grad_norm']:g} "
        f"(recordings {names})",
        where=path,
        hint="look at the features of these recordings, or lower lr; the best checkpoint is kept",
    )


def check_out(out: Path, resume: bool) -> None:
    """Refuse a folder that holds a run already (raises InputError)."""
    if not resume and (out / RESUME).exists():
        raise InputError("holds a run already", where=out, hint="go on with --resume, or name another folder")


def check_apart(training: Iterable[str], validation: Iterable[str]) -> None:
    """Refuse recordings that are in the training and in the validation set (raises InputError)."""
    shared = sorted(set(training) & set(validation))
    if shared:
        raise InputError(f"{len(shared)} recordings are trained on and validated on (first: {shared[0]})")


# ---- the log: log.jsonl, steps.csv, validations.csv, and TensorBoard where it is installed


class Log:
    """Rows of a run in a folder; rows after step `from_step` (of a run that was killed) are dropped first."""

    def __init__(self, folder: Path, from_step: int, validation: Sequence[str]) -> None:
        kept = [row for row in read_log(folder) if row["step"] <= from_step]
        write_atomic(folder / "log.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
        self._files = {"": (folder / "log.jsonl").open("a", encoding="utf-8")}
        self._csv = {}
        for event, columns in ((STEP, STEP_COLUMNS), (VALIDATION, validation)):
            self._files[event] = (folder / f"{event}s.csv").open("w", encoding="utf-8", newline="")
            self._csv[event] = csv.DictWriter(self._files[event], columns, extrasaction="ignore", lineterminator="\n")
            self._csv[event].writeheader()
            self._csv[event].writerows(row for row in kept if row["event"] == event)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self._board: Any = None
        else:
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1)

    def add(self, event: str, row: Mapping[str, Any]) -> None:
        """A row of kind STEP or VALIDATION; it is on disk when this returns."""
        plain = {k: None if isinstance(v, float) and v != v else v for k, v in row.items()}
        self._files[""].write(json.dumps({"event": event, **plain}) + "\n")
        self._csv[event].writerow(plain)
        for file in (self._files[""], self._files[event]):
            file.flush()
        if self._board is not None:
            for name, value in plain.items():
                if name not in ("step", "epoch") and isinstance(value, (int, float)):
                    self._board.add_scalar(f"{event}/{name}", value, plain["step"])

    def close(self) -> None:
        """Close all files."""
        for file in (*self._files.values(), *filter(None, [self._board])):
            file.close()


def read_log(folder: Path) -> list[Row]:
    """Rows of log.jsonl; a last line cut off by a kill is left out."""
    path, rows = folder / "log.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


# ---- resume.pt: one file, written whole, read with weights_only


def save_state(folder: Path, state: Mapping[str, Mapping[str, Any]], at: Position, run: Mapping[str, Any]) -> None:
    """Write resume.pt. run: plain values that must be the same when the run goes on."""
    sink = io.BytesIO()
    parts = {part: dict(values) for part, values in state.items()}
    about = {"format": RESUME_FORMAT, "position": dict(vars(at)), "run": json.dumps(run, sort_keys=True)}
    torch.save(parts | about, sink)
    write_atomic(folder / RESUME, sink.getvalue())


def load_state(folder: Path, run: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], Position]:
    """State dicts of model, optimizer and schedule, and the position.

    Raises:
        FormatError: no such file, or a foreign or damaged one. ConfigError: the run had other settings; each is named.
    """
    path = folder / RESUME
    if not path.is_file():
        raise FormatError("no run to resume", where=path, hint="leave out --resume to start one")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["format"] != RESUME_FORMAT:
            raise KeyError("format")
        then, at = json.loads(state["run"]), Position(**state["position"])
        parts = {part: state[part] for part in ("model", "optimizer", "schedule")}
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError, OSError):
        raise FormatError("is not a resume file", where=path, hint="start again without --resume") from None
    if wrong := describe_differences(then, json.loads(json.dumps(run))):
        raise ConfigError(
            f"the run had other settings ({wrong})",
            where=path,
            hint="resume with the same options and data, or start in another folder",
        )
    return parts, at


_ANY_VALUE = ("training.threads", "finetune.threads", "tuning.threads")
"""Settings that change no number: a run may go on with others."""


def describe_differences(a: Any, b: Any, most: int = 8) -> str:
    """How two nested plain values differ, for a message; "" where they do not."""

    def short(value: Any) -> Any:
        return f"{len(value)} values" if isinstance(value, list | tuple) and len(value) > most else value

    lines = []
    for path, was, now in _differences("", a, b):
        if isinstance(was, list | tuple) and isinstance(now, list | tuple) and len(was) == len(now) > most:
            i = next(i for i in range(len(was)) if was[i] != now[i])
            path, was, now = f"{path}[{i}]", was[i], now[i]
        if path not in _ANY_VALUE:
            lines.append(f"{path}: was {short(was)}, is {short(now)}")
    return "; ".join(lines[:most])


def _differences(path: str, a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        return [d for k in sorted(a | b) for d in _differences(f"{path}.{k}".lstrip("."), a.get(k), b.get(k))]
    return [] if a == b else [(path, a, b)]
