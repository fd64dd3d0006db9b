"""Progress hook of long-running functions; the library prints nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgressEvent:
    """One progress report.

    stage: the work, in words ("faces", "transcribing", "downloading whisper-base").
    done:  amount finished so far, in `unit`.
    total: final amount, or None while unknown. done == total ends the stage.
    unit:  "frames", "s", "bytes", "files", ...
    item:  a file name, a recording id, or "".
    note:  a remark such as "loss 0.512", or "".
    """

    stage: str
    done: float
    total: float | None
    unit: str
    item: str = ""
    note: str = ""


Progress = Callable[[ProgressEvent], None]


def silent(event: ProgressEvent) -> None:
    """The default hook: does nothing."""
