"""Attention maps in a report: data for the page's script, and a ranking for each pathway."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affectrace.inference.attention_maps import AttentionMaps, Pathway, Window, rank_attention

NAMES = {"visual": "face", "audio": "voice", "text": "words"}
"""A modality's name on the page; others keep their own."""
BINS = 96
"""Largest number of rows and columns of a map; neighbours are averaged (our choice: a map is 300 pixels wide)."""
WITH_HEADS = 12
"""With more windows than this the page holds the mean over heads alone (our choice: size of the page)."""
MAX_WINDOWS = 120
"""Windows drawn; the file holds all of them (our choice: size of the page)."""
SHOWN = 6
"""Words or moments listed for a pathway."""
MISSING = 255

Floats = NDArray[np.float64]


def name_of(modality: str) -> str:
    """A modality's name on the page."""
    return NAMES.get(modality, modality)


def attention_data(maps: AttentionMaps) -> dict[str, Any]:
    """The data the page's script draws."""
    windows = maps.windows[:MAX_WINDOWS]
    return {
        "missing": MISSING,
        "names": {m: name_of(m) for m in maps.modalities},
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
                "query": name_of(path[0]),
                "key": name_of(path[1]),
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
    """Bin of each row, and starts and ends of the bins to the millisecond."""
    n = len(starts)
    size = max(1, -(-n // BINS))
    first = np.arange(0, n, size)
    last = np.minimum(first + size, n) - 1
    return np.arange(n) // size, starts[first].round(3), ends[last].round(3)


def _map(w: Window, path: Pathway, rows: NDArray[np.intp], columns: NDArray[np.intp], heads: bool) -> dict[str, Any]:
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
    q = np.where(count > 0, np.rint(binned / scale * (MISSING - 1)), MISSING).astype(np.uint8)
    return {"scale": round(scale, 4), "layers": [base64.b64encode(layer.tobytes()).decode("ascii") for layer in q]}
