"""Traces as JSON for a report page: exact times, values quantized to a hundredth of a pixel."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affectrace.report.media import Medium
from affectrace.report.quality_flags import MIN_WORD_CONFIDENCE
from affectrace.trace import Trace

MISSING = -32768
_SHOWN_AS = {"visual": "face", "audio": "voice", "text": "words"}  # layer names of the page; older traces have them too
_DIMENSION = re.compile(r".+_(valence|arousal)$|(valence|arousal)_sd$|share_.+")
LINE_PAUSE_S = 0.8  # words without utterances start a new line after such a pause


def page_data(traces: Sequence[Trace], labels: Sequence[str], medium: Medium) -> dict[str, Any]:
    """Everything the page's script needs except the medium's bytes."""
    return {
        "medium": {k: v for k, v in dataclasses.asdict(medium).items() if k not in ("payload", "note")},
        "unsure_below": MIN_WORD_CONFIDENCE,
        "line_pause_s": LINE_PAUSE_S,
        "traces": [_trace(trace, label, medium) for trace, label in zip(traces, labels, strict=True)],
    }


def script_json(values: object) -> str:
    """JSON that is safe inside a <script> element, whatever its strings hold."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def pack(values: NDArray[np.float64]) -> dict[str, Any]:
    """(T,) values as base64 of little-endian int16: value = q * scale / 32767, q = -32768 where missing.

    The error is at most scale / 65534, a hundredth of a pixel.
    """
    known = np.isfinite(values)
    scale = float(np.abs(values[known]).max(initial=0.0)) or 1.0
    q = np.where(known, np.rint(np.where(known, values, 0) / scale * 32767), MISSING).astype("<i2")
    return {"scale": scale, "q": base64.b64encode(q.tobytes()).decode("ascii")}


def _trace(trace: Trace, label: str, medium: Medium) -> dict[str, Any]:
    clock, base = trace.timeline.to_dict(), trace.timeline.time_base
    reasons, index = np.unique(np.append("", trace.reason), return_inverse=True)  # "" first: its index is 0
    edges = np.flatnonzero(np.diff(index[1:], prepend=-1, append=-1))
    runs = [[int(b - a), int(index[1 + a])] for a, b in itertools.pairwise(edges)]
    extras = {_layer(k): v for k, v in trace.extras.items() if _DIMENSION.match(k) and np.isfinite(v).any()}
    return {
        "id": trace.recording_id,
        "label": label,
        "source": trace.source,
        "n": len(trace),
        "clock": {k: clock[k] for k in ("first", "steps", "end")} | {"time_base": [base.numerator, base.denominator]},
        "channels": {k: pack(v) for k, v in {"valence": trace.valence, "arousal": trace.arousal, **extras}.items()},
        "reasons": reasons.tolist(),
        "reason_runs": runs,
        "box": _box(trace, medium),
        "spans": [{k: v for k, v in dataclasses.asdict(s).items() if v is not None} for s in trace.spans],
    }


def _layer(column: str) -> str:
    modality, _, dimension = column.partition("_")
    return f"{_SHOWN_AS.get(modality, modality)}_{dimension}"


def _box(trace: Trace, medium: Medium) -> list[dict[str, Any]] | None:
    """Face box x, y, w, h as shares of the upright picture; without a picture only when it was found."""
    names = ("face_x", "face_y", "face_w", "face_h")
    if "face_x" not in trace.extras:
        return None
    if not all(n in trace.extras for n in names) or not medium.width:
        return [pack(np.where(np.isfinite(trace.extras["face_x"]), 0.0, np.nan))] * 4
    sizes = (medium.width, medium.height) * 2
    return [pack(trace.extras[n] / size) for n, size in zip(names, sizes, strict=True)]
