"""Where a run stands, in one file that is written whole: resume.pt, read with weights_only.

Dropout is seeded by (seed, step, process) and the order of windows by (seed, epoch), so weights, the state of
optimiser and schedule, and the position are all there is to keep.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from affectrace.config import write_atomic
from affectrace.errors import ConfigError, FormatError

FILE_NAME = "resume.pt"
FORMAT = "affectrace.resume"
PARTS = ("model", "optimizer", "schedule")


@dataclass
class Position:
    """Steps done, the best mean CCC so far and at which step, and validations since."""

    step: int = 0
    best: float = float("-inf")
    best_step: int = 0
    since_best: int = 0


def save_state(folder: Path, state: Mapping[str, Mapping[str, Any]], at: Position, run: Mapping[str, Any]) -> None:
    """Write resume.pt.

    Args:
        state: what PARTS name: state dicts of the model, the optimiser and the schedule (empty where it has none).
        run: plain values that must be the same when the run goes on.
    """
    sink = io.BytesIO()
    parts = {part: dict(state[part]) for part in PARTS}
    about = {"format": FORMAT, "position": dict(vars(at)), "run": json.dumps(run, sort_keys=True)}
    torch.save(parts | about, sink)
    write_atomic(folder / FILE_NAME, sink.getvalue())


def load_state(folder: Path, run: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], Position]:
    """The state dicts that PARTS name, and the position.

    Raises:
        FormatError: no such file, foreign or damaged. ConfigError: the run was started otherwise; all is named.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        raise FormatError("no run to resume", where=path, hint="leave out --resume to start one")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["format"] != FORMAT:
            raise KeyError("format")
        then, at = json.loads(state["run"]), Position(**state["position"])
        parts = {part: state[part] for part in PARTS}
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError, OSError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FormatError(f"is no state of a run ({first})", where=path, hint="start again without --resume") from None
    now = json.loads(json.dumps(run))
    if wrong := told_differences(then, now):
        raise ConfigError(
            f"the run was started otherwise ({wrong})",
            where=path,
            hint="resume with the same options and data, or start in another folder",
        )
    return parts, at


def told_differences(a: Any, b: Any, most: int = 8) -> str:
    """What differs between two nested plain values, for a message; "" where nothing does."""

    def short(value: Any) -> Any:
        return f"{len(value)} values" if isinstance(value, list | tuple) and len(value) > most else value

    lines = []
    for path, was, now in differences("", a, b):
        if isinstance(was, list | tuple) and isinstance(now, list | tuple) and len(was) == len(now) > most:
            i = next(i for i in range(len(was)) if was[i] != now[i])
            path, was, now = f"{path}[{i}]", was[i], now[i]
        lines.append(f"{path}: was {short(was)}, is {short(now)}")
    return "; ".join(lines[:most])


def differences(path: str, a: Any, b: Any) -> list[tuple[str, Any, Any]]:
    """(dotted path, value in a, value in b) of everything in which two nested plain values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted(set(a) | set(b))
        return [d for k in keys for d in differences(f"{path}.{k}".lstrip("."), a.get(k), b.get(k))]
    return [] if a == b else [(path, a, b)]
