"""JSON data of a report page: traces and attention maps, quantized, with exact times."""

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

from affectrace.inference.attention_maps import AttentionMaps, AttentionWindow, Pathway, rank_attention
from affectrace.report.media import Medium
from affectrace.report.quality_flags import MIN_WORD_CONFIDENCE
from affectrace.trace import Trace

MISSING = -32768
"""int16 of a missing trace value."""
NO_ATTENTION = 255
"""uint8 of a missing attention weight."""
_SHOWN_AS = {"visual": "face", "audio": "voice", "text": "words"}  # names on the page; older traces have them too
_DIMENSION = re.compile(r".+_(valence|arousal)$|(valence|arousal)_sd$|share_.+")
LINE_PAUSE_S = 0.8  # words without utterances start a new line after such a pause
# Limits of attention maps (our choice, for the size of the page): a map is 300 pixels wide
BINS = 96
"""Largest number of rows and columns of a map; neighbours are averaged."""
WITH_HEADS = 12
"""With more windows than this the page holds the mean over heads alone."""
MAX_WINDOWS = 120
"""Windows drawn; the file of attention maps holds all of them."""
LISTED = 6
"""Words or moments listed for a pathway."""

Floats = NDArray[np.float64]


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


def pack(values: Floats) -> dict[str, Any]:
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
    return f"{_shown(modality)}_{dimension}"


def _shown(modality: str) -> str:
    return _SHOWN_AS.get(modality, modality)


def _box(trace: Trace, medium: Medium) -> list[dict[str, Any]] | None:
    """Face box x, y, w, h as shares of the upright picture; without a picture only when it was found."""
    names = ("face_x", "face_y", "face_w", "face_h")
    if "face_x" not in trace.extras:
        return None
    if not all(n in trace.extras for n in names) or not medium.width:
        return [pack(np.where(np.isfinite(trace.extras["face_x"]), 0.0, np.nan))] * 4
    sizes = (medium.width, medium.height) * 2
    return [pack(trace.extras[n] / size) for n, size in zip(names, sizes, strict=True)]


# ---- attention maps


def attention_data(maps: AttentionMaps) -> dict[str, Any]:
    """The data the page's script draws."""
    windows = maps.windows[:MAX_WINDOWS]
    return {
        "missing": NO_ATTENTION,
        "names": {m: _shown(m) for m in maps.modalities},
        "pathways": [list(path) for path in maps.pathways],
        "words": [[w.text, w.start_s, w.end_s] for w in maps.words],
        "windows": [_window(w, heads=len(maps.windows) <= WITH_HEADS) for w in windows],
    }


def attention_card(maps: AttentionMaps) -> dict[str, Any]:
    """Contents of the card: how many windows are drawn, and what each pathway attends to most."""
    ranked = rank_attention(maps)
    return {
        "drawn": MAX_WINDOWS,
        "left_out": len(maps.windows) - MAX_WINDOWS,
        "lists": [
            {
                "query": _shown(path[0]),
                "key": _shown(path[1]),
                "seen": [s for s in ranked if s.pathway == path][:LISTED],
            }
            for path in maps.pathways
        ],
    }


def _window(w: AttentionWindow, *, heads: bool) -> dict[str, Any]:
    axes = {m: _bins(w.starts[m], w.ends[m]) for m in w.starts}
    return {
        "start": w.start_s,
        "end": w.end_s,
        "axes": {m: {"starts": a.tolist(), "ends": b.tolist()} for m, (_, a, b) in axes.items()},
        "maps": {f"{m}.{n}": _map(w, (m, n), axes[m][0], axes[n][0], heads) for m, n in w.weights},
    }


def _bins(starts: Floats, ends: Floats) -> tuple[NDArray[np.intp], Floats, Floats]:
    """Bin of each row, and starts and ends of the bins to the millisecond."""
    n = len(starts)
    size = max(1, -(-n // BINS))
    first = np.arange(0, n, size)
    last = np.minimum(first + size, n) - 1
    return np.arange(n) // size, starts[first].round(3), ends[last].round(3)


def _map(
    w: AttentionWindow, path: Pathway, rows: NDArray[np.intp], columns: NDArray[np.intp], heads: bool
) -> dict[str, Any]:
    """Attention relative to even attention: the mean over heads, then each head; uint8 of one common scale."""
    known = np.outer(w.valid[path[0]], w.valid[path[1]]).astype(np.float64)
    x = w.weights[path].astype(np.float64) * w.valid[path[1]].sum()
    layers = [x.mean(axis=0), *(x if heads and len(x) > 1 else ())]
    at = (rows[:, None], columns[None])
    count = np.zeros((int(rows.max(initial=-1)) + 1, int(columns.max(initial=-1)) + 1))
    np.add.at(count, at, known)
    binned = np.zeros((len(layers), *count.shape))
    for total, layer in zip(binned, layers, strict=True):
        np.add.at(total, at, layer * known)
    binned /= np.maximum(count, 1)
    scale = float(binned.max(initial=0.0)) or 1.0
    q = np.where(count > 0, np.rint(binned / scale * (NO_ATTENTION - 1)), NO_ATTENTION).astype(np.uint8)
    return {"scale": round(scale, 4), "layers": [base64.b64encode(layer.tobytes()).decode("ascii") for layer in q]}
