"""The progress hook: libraries report through it and stay silent themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class ProgressEvent:
    """One report of work under way.

    stage: what is being done, for a person ("faces", "transcribing", "downloading whisper-base").
    done:  amount finished so far, in `unit`.
    total: amount there will be, or None while unknown. done == total ends the stage.
    unit:  "frames", "s", "bytes", "files", ...
    item:  what it is done to (a file name, a recording id), or "".
    note:  how it goes, for a person ("loss 0.512"), or "".
    """

    stage: str
    done: float
    total: float | None
    unit: str
    item: str = ""
    note: str = ""


Progress = Callable[[ProgressEvent], None]


def silent(event: ProgressEvent) -> None:
    """The default hook: says nothing."""
