"""Trace smoothing (median, mean, Wiener), and its choice on validation data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from affectrace.config import read_json, write_atomic
from affectrace.errors import FormatError, InputError, UnknownNameError
from affectrace.trace import Trace, rolling

SmoothingMethod = Literal["none", "median", "mean", "wiener"]
METHODS: tuple[SmoothingMethod, ...] = get_args(SmoothingMethod)
AUTO, CHOICE = "auto", "smoothing.json"
"""The name for the smoothing kept beside a checkpoint, and the file it is kept in."""
WINDOWS_S = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Full widths tried, seconds (our choice)."""
LONGEST_S = 86_400.0


def smoothed(trace: Trace, method: SmoothingMethod, window_s: float) -> Trace:
    """A trace smoothed over its valid frames; window_s: full width of the centred window, seconds."""
    if method == "none":
        return trace
    if method != "wiener":
        return trace.smooth(window_s, method)
    valence, arousal = (wiener(trace.timeline.times, x, window_s) for x in (trace.valence, trace.arousal))
    return replace(trace, valence=valence, arousal=arousal)


def wiener(times: NDArray[np.float64], x: NDArray[np.float64], window_s: float) -> NDArray[np.float64]:
    """Wiener's local filter over the finite values: y = m + max(v - n, 0) / max(v, n) (x - m), NaN where x is.

    m, v: mean and variance in the window around a frame. n: the noise, estimated as the mean of v (Lim 1990, 9.2).
    """
    window, known = rolling(times, x, window_s), np.isfinite(x)
    mean, variance = window.mean().to_numpy(), np.maximum(window.var(ddof=0).to_numpy(), 0)
    noise = variance[known].mean() if known.any() else 0.0
    gain = np.maximum(variance - noise, 0) / np.maximum(np.maximum(variance, noise), np.finfo(np.float64).tiny)
    return np.clip(mean + gain * (x - mean), -1, 1)


def parse_smoothing(text: str) -> tuple[SmoothingMethod, float]:
    """`median:0.5` -> ("median", 0.5); `none` -> ("none", 0)."""
    name, _, width = text.partition(":")
    if name not in METHODS:
        raise UnknownNameError.of("smoothing", name, METHODS)
    if name == "none":
        return "none", 0.0
    try:
        window_s = float(width)
    except ValueError:
        window_s = 0.0
    if not 0 < window_s <= LONGEST_S:
        raise InputError(f"smoothing '{text}' states no window in seconds", hint=f"for instance {name}:0.5")
    return name, window_s  # type: ignore[return-value]


def keep_choice(folder: Path, method: SmoothingMethod, window_s: float, about: Mapping[str, Any]) -> Path:
    """Write the smoothing that was best on validation data beside a checkpoint; about: the data and the score."""
    path = folder / CHOICE
    write_atomic(path, json.dumps({"method": method, "window_s": window_s, **about}, indent=2) + "\n")
    return path


def kept_choice(folders: Sequence[Path]) -> tuple[SmoothingMethod, float]:
    """The smoothing kept beside checkpoints, the same one for all."""
    found: dict[tuple[SmoothingMethod, float], Path] = {}
    for folder in folders:
        path = folder / CHOICE
        if not path.is_file():
            hint = "choose one on validation data: affectrace evaluate CHECKPOINT --smoothing-curve --keep-smoothing"
            raise InputError("has no stored smoothing", where=folder, hint=hint)
        values = read_json(path)
        try:
            chosen = parse_smoothing(f"{values['method']}:{values['window_s']}")
        except (KeyError, TypeError, InputError) as error:
            raise FormatError(f"is not a stored smoothing ({error})", where=path, hint="choose it again") from None
        found.setdefault(chosen, folder)
    if len(found) > 1:
        kept = "; ".join(f"{folder}: {method}:{window_s:g}" for (method, window_s), folder in found.items())
        raise InputError(f"the checkpoints have different stored smoothing ({kept})", hint="name one with --smooth")
    return next(iter(found))
