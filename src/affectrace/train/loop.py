"""The way through the epochs that all training shares: steps, validations between them, the log, and stopping.

A position is (epoch, batch) as `Position.step` counts it, so a run that is resumed makes the steps an uninterrupted one
would have made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from affectrace import config as configs
from affectrace.errors import InputError
from affectrace.progress import Progress, ProgressEvent
from affectrace.train.log import STEP, VALIDATION, VALIDATION_COLUMNS, Log
from affectrace.train.state import Position

Report = Callable[[Mapping[str, Any]], None]
B = TypeVar("B", contravariant=True)


class Run(Protocol[B]):
    """What is trained: a step of the optimiser, and a validation; each gives its row of the log."""

    def step(self, batch: B, at: Position) -> dict[str, Any]: ...

    def validate(self, at: Position, epoch: int) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Course:
    """How far a run goes.

    n_batches: of an epoch. patience: validations without a better one after which it stops; None: never.
    columns: of validations.csv.
    """

    epochs: int
    n_batches: int
    validations_per_epoch: int
    patience: int | None = None
    columns: Sequence[str] = VALIDATION_COLUMNS

    def validates_after(self, batch: int) -> bool:
        """Whether a validation follows after so many batches of an epoch."""
        n, k = self.n_batches, self.validations_per_epoch
        return batch in {math.ceil(n * i / k) for i in range(1, k + 1)}

    def out_of_patience(self, at: Position) -> bool:
        """Whether it has to stop."""
        return self.patience is not None and at.since_best >= self.patience


def run_epochs(
    run: Run[B],
    batches: Callable[[int, int], Iterable[B]],
    course: Course,
    at: Position,
    out: Path,
    identity: Mapping[str, Any],
    *,
    stage: str = "training",
    first: bool = True,
    progress: Progress,
    report: Report | None = None,
) -> bool:
    """From a position to the end of a run; whether it stopped for want of patience.

    Args:
        batches: (epoch, number) -> its batches from that number on. at: goes on with every step.
        identity: written to run.json. first: whether this process writes and reports.
    """
    log = Log(out, at.step, validation=course.columns) if first else None
    if first:
        configs.write_atomic(out / "run.json", json.dumps(identity, indent=2) + "\n")
    n, total = course.n_batches, course.n_batches * course.epochs
    try:
        for epoch in range(at.step // n, course.epochs):
            if course.out_of_patience(at):
                return True
            for batch in batches(epoch, at.step % n):
                row = run.step(batch, at)
                if log is not None:
                    log.add(STEP, row)
                name = str(identity.get("model", ""))
                progress(ProgressEvent(stage, at.step, total, "steps", name, _how_it_goes(row, at)))
                if not course.validates_after(at.step - epoch * n):
                    continue
                found = run.validate(at, epoch + 1)
                if log is not None:
                    log.add(VALIDATION, found)
                if report is not None and first:
                    report(found | {"loss": row["loss"]})
                if course.out_of_patience(at):
                    return True
    finally:
        if log is not None:
            log.close()
    return course.out_of_patience(at)


def _how_it_goes(row: Mapping[str, Any], at: Position) -> str:
    best = f", best validation {abs(at.best):.3f} at step {at.best_step}" if at.best_step else ""  # either sign
    return f"epoch {row['epoch']}, loss {row['loss']:.4f}{best}"


def stop_at(
    path: Path, at: Position, loss: float, norm: float, *, kind: str, items: Sequence[Mapping[str, Any]]
) -> None:
    """Write down the batch whose loss or gradient is no number, and end the run.

    Args:
        kind: what the batch holds ("windows", ...). items: which, each with its "recording".

    Raises:
        InputError: always; names the recordings.
    """
    about = {"step": at.step + 1, "loss": str(loss), "grad_norm": str(norm), kind: list(items)}
    configs.write_atomic(path, json.dumps(about, indent=2) + "\n")
    names = ", ".join(sorted({str(item["recording"]) for item in items})[:5])
    raise InputError(
        f"training stopped at step {at.step + 1}: loss {loss:g}, gradient norm {norm:g} (recordings {names})",
        where=path,
        hint="look at the features of these recordings, or lower lr; the best checkpoint is kept",
    )


def check_out(out: Path, resume: bool) -> None:
    """Refuse a folder that holds a run already (raises InputError)."""
    if not resume and (out / "resume.pt").exists():
        raise InputError("holds a run already", where=out, hint="go on with --resume, or name another folder")


def check_apart(training: Iterable[str], validation: Iterable[str]) -> None:
    """Refuse recordings that are trained on and validated on (raises InputError)."""
    shared = sorted(set(training) & set(validation))
    if shared:
        raise InputError(f"{len(shared)} recordings are trained on and validated on (first: {shared[0]})")
