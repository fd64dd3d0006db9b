"""Attention maps and shares in a report: a card with one map a pathway, what each looks at most, and its data."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affectrace.inference.attention_maps import AttentionMaps, Pathway, Window, rank_attention

NAMES = {"visual": "face", "audio": "voice", "text": "words"}
"""What the page calls a modality; others keep their own name."""
BINS = 96
"""A map has at most so many rows and columns: neighbouring ones are put together (ours: a map is 300 pixels wide)."""
WITH_HEADS = 12
"""With more windows than this the page holds the mean over heads alone (ours: size of the page)."""
MAX_WINDOWS = 120
"""Windows drawn; the file holds all of them (ours: size of the page)."""
SHOWN = 6
"""Words or moments listed for a pathway."""
MISSING = 255

Floats = NDArray[np.float64]


def name_of(modality: str) -> str:
    """As the page calls it."""
    return NAMES.get(modality, modality)


def attention_data(maps: AttentionMaps) -> dict[str, Any]:
    """What the page's script draws."""
    windows = maps.windows[:MAX_WINDOWS]
    return {
        "missing": MISSING,
        "names": {m: name_of(m) for m in maps.modalities},
        "pathways": [list(path) for path in maps.pathways],
        "words": [[w.text, w.start_s, w.end_s] for w in maps.words],
        "windows": [_window(w, heads=len(maps.windows) <= WITH_HEADS) for w in windows],
    }


def attention_card(maps: AttentionMaps) -> dict[str, Any]:
    """What the card says: how much is drawn, and what each pathway looks at most."""
    ranked = rank_attention(maps)
    return {
        "drawn": MAX_WINDOWS,
        "left_out": len(maps.windows) - MAX_WINDOWS,
        "lists": [
            {
                "asks": name_of(path[0]),
                "looks": name_of(path[1]),
                "seen": [s for s in ranked if s.pathway == path][:SHOWN],
            }
            for path in maps.pathways
        ],
    }


def _window(w: Window, *, heads: bool) -> dict[str, Any]:
    axes = {m: _bins(w.starts[m], w.ends[m]) for m in w.starts}
    return {
        "start": w.start_s,
        "end": w.end_s,
        "axes": {m: {"starts": a.tolist(), "ends": b.tolist()} for m, (_, a, b) in axes.items()},
        "maps": {f"{m}.{n}": _map(w, (m, n), axes[m][0], axes[n][0], heads) for m, n in w.weights},
    }


def _bins(starts: Floats, ends: Floats) -> tuple[NDArray[np.intp], Floats, Floats]:
    """Bin of each row, and starts and ends of the bins in milliseconds' precision."""
    n = len(starts)
    size = max(1, -(-n // BINS))
    of = np.arange(n) // size
    first = np.arange(0, n, size)
    last = np.minimum(first + size, n) - 1
    return of, starts[first].round(3), ends[last].round(3)


def _map(w: Window, path: Pathway, rows: NDArray[np.intp], columns: NDArray[np.intp], heads: bool) -> dict[str, Any]:
    """How many times as much as evenly: the mean over heads, then each head; uint8 of one common scale."""
    asked, there = w.valid[path[0]], w.valid[path[1]]
    x = w.weights[path].astype(np.float64) * there.sum()
    layers = [x.mean(axis=0), *(x if heads and len(x) > 1 else ())]
    pooled = [_pooled(layer, rows, columns, asked, there) for layer in layers]
    scale = max((float(p[np.isfinite(p)].max(initial=0.0)) for p in pooled), default=0.0) or 1.0
    return {"scale": round(scale, 4), "layers": [_packed(p / scale) for p in pooled]}


def _pooled(
    x: Floats, rows: NDArray[np.intp], columns: NDArray[np.intp], asked: NDArray[np.bool_], there: NDArray[np.bool_]
) -> Floats:
    """Means over bins of valid rows and columns; NaN where a bin has none."""
    known = np.outer(asked, there).astype(np.float64)
    shape = (int(rows.max(initial=-1)) + 1, int(columns.max(initial=-1)) + 1)
    total, count = np.zeros(shape), np.zeros(shape)
    np.add.at(total, (rows[:, None], columns[None]), x * known)
    np.add.at(count, (rows[:, None], columns[None]), known)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(count > 0, total / count, np.nan))


def _packed(x: Floats) -> str:
    q = np.full(x.shape, MISSING, np.uint8)
    known = np.isfinite(x)
    q[known] = np.rint(np.clip(x[known], 0, 1) * (MISSING - 1)).astype(np.uint8)
    return base64.b64encode(q.tobytes()).decode("ascii")
