"""Cross-modal attention maps with the times of queries and keys, and ranked words and moments.

    TrainedModel, Sequence --attention_of--> AttentionMaps --save--> one safetensors file
                                                           --rank_attention--> words and moments attended to most

Attention weights are not an explanation of the output (Jain & Wallace 2019, arXiv:1902.10186); masking a modality shows
its effect (modalities.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from affectrace.config import write_atomic
from affectrace.errors import FormatError, InputError
from affectrace.media.transcript import Word

if TYPE_CHECKING:
    from affectrace.inference.run import TrainedModel
    from affectrace.sequences import Sequence
    from affectrace.timeline import Timeline

Floats = NDArray[np.float64]
Pathway = tuple[str, str]
"""(m, n): queries of modality m, keys and values of n."""
FORMAT = "affectrace-attention-1"
ROWS = ("starts", "ends", "valid")
MOMENT_S = 0.5
"""Length of the moments that are ranked in modalities without words, seconds (ours)."""


@dataclass(frozen=True, eq=False)
class AttentionWindow:
    """Attention within one window of a recording.

    start_s, end_s: seconds. starts, ends: modality -> (T_m,) seconds of its rows. valid: modality -> (T_m,) bool.
    weights: (m, n) -> (H, T_m, T_n), from row i of m to row j of n; rows sum to 1, or are 0 where n has no valid row.
    """

    start_s: float
    end_s: float
    starts: Mapping[str, Floats]
    ends: Mapping[str, Floats]
    valid: Mapping[str, NDArray[np.bool_]]
    weights: Mapping[Pathway, NDArray[np.floating[Any]]]


@dataclass(frozen=True, eq=False)
class AttentionMaps:
    """The windows of one recording in order, which may overlap; the model's id; the words of the transcript."""

    recording_id: str
    source: str
    windows: tuple[AttentionWindow, ...]
    words: tuple[Word, ...] = ()

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities of all windows."""
        return tuple(dict.fromkeys(m for w in self.windows for m in w.starts))

    @property
    def pathways(self) -> tuple[Pathway, ...]:
        """The pathways of all windows."""
        return tuple(dict.fromkeys(path for w in self.windows for path in w.weights))

    def save(self, path: str | Path) -> Path:
        """One safetensors file: `000/visual.audio` (H, T_visual, T_audio) float16, `000/starts.visual`, ...; header."""
        path = Path(path)
        arrays: dict[str, NDArray[Any]] = {}
        for i, w in enumerate(self.windows):
            arrays |= {f"{i:03d}/{m}.{n}": x.astype(np.float16, order="C") for (m, n), x in w.weights.items()}
            for what in ROWS:
                arrays |= {f"{i:03d}/{what}.{m}": np.ascontiguousarray(x) for m, x in getattr(w, what).items()}
        header = {
            "format": FORMAT,
            "recording_id": self.recording_id,
            "source": self.source,
            "pathways": json.dumps(self.pathways),
            "windows": json.dumps([[w.start_s, w.end_s] for w in self.windows]),
            "words": json.dumps([[w.text, w.start_s, w.end_s] for w in self.words]),
        }
        write_atomic(path, save(arrays, metadata=header))
        return path

    @classmethod
    def load(cls, path: str | Path) -> AttentionMaps:
        """Read what `save` wrote (raises FormatError)."""
        try:
            with safe_open(str(path), framework="np") as file:
                header = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            if header.get("format") != FORMAT:
                raise FormatError(
                    "is not a file of attention maps", where=path, hint="affectrace attention writes them"
                )
            spans, words = json.loads(header["windows"]), json.loads(header["words"])
            pathways = [(m, n) for m, n in json.loads(header["pathways"])]
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise FormatError(f"cannot be read ({error})", where=path, hint="write it again") from None
        windows = []
        for i, (start, end) in enumerate(spans):
            prefix = f"{i:03d}/"
            own = {tuple(k.removeprefix(prefix).split(".", 1)): x for k, x in arrays.items() if k.startswith(prefix)}
            rows = {what: {m: x for (part, m), x in own.items() if part == what} for what in ROWS}
            windows.append(
                AttentionWindow(start, end, **rows, weights={path: own[path] for path in pathways if path in own})
            )
        return cls(
            header["recording_id"],
            header["source"],
            tuple(windows),
            tuple(Word(start, end, text) for text, start, end in words),
        )


# ---- from a model


def attention_of(
    model: TrainedModel,
    sequence: Sequence,
    words: Iterable[Word] = (),
    *,
    start_s: float = -np.inf,
    end_s: float = np.inf,
) -> AttentionMaps:
    """Attention weights in each window the model runs in; start_s, end_s: only windows that overlap this span.

    Raises InputError: the model has no pathways, streams do not fit, or no window is in the span. In memory: T_m x T_n
    numbers for each window, pathway and head.
    """
    from affectrace.inference.run import OVERLAPPING
    from affectrace.inference.trained import check_streams

    check_streams(model.input_dims, sequence)
    cuts = [(frames, sequence.timeline.cut(frames)) for frames in sequence.windows(model.scheme or OVERLAPPING)]
    windows = [_window(model, sequence, f, span) for f, span in cuts if span.start_s < end_s and span.end_s > start_s]
    if not windows:
        what = f"no frame between {start_s:g} and {end_s:g} s"
        raise InputError(what, where=sequence.recording_id, hint="check the times")
    return AttentionMaps(sequence.recording_id, model.id, tuple(windows), tuple(words))


def _window(model: TrainedModel, sequence: Sequence, frames: slice, span: Timeline) -> AttentionWindow:
    from affectrace.inference.run import window_batch

    batch = window_batch(model.model, sequence, frames, model.statistics)
    maps = model.model.attention_maps(batch.inputs, batch.valid, batch.times)
    weights = {path: x[0].float().cpu().numpy() for path, x in maps.items()}
    starts, ends, valid = {}, {}, {}
    for m, streams in model.model.modalities.items():
        n = next(x.shape[1] for path, x in weights.items() if path[0] == m)
        starts[m], ends[m], valid[m] = _rows(sequence, [s for s in streams if s in sequence.streams], span, n)
    return AttentionWindow(span.start_s, span.end_s, starts, ends, valid, weights)


def _rows(sequence: Sequence, streams: list[str], span: Timeline, n: int) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Starts, ends and validity of a modality's n rows in a window."""
    if not streams:
        return np.full(n, span.start_s), np.full(n, span.end_s), np.zeros(n, bool)
    stream = sequence.streams[streams[0]]
    rows = stream.timeline.frames_between(span.start_s, span.end_s)
    valid = np.logical_or.reduce([sequence.streams[s].valid[rows] for s in streams])
    if rows.stop - rows.start != n:  # averaged to one vector
        return np.full(n, span.start_s), np.full(n, span.end_s), np.full(n, bool(valid.any()))
    own = stream.source.ends if stream.timeline == stream.source.timeline else None
    ends = (stream.timeline.ends if own is None else np.asarray(own))[rows]
    return stream.timeline.times[rows].copy(), np.array(ends, np.float64), np.array(valid)


# ---- ranking


@dataclass(frozen=True)
class Ranked:
    """A word, or a moment of a modality without words (text ""), and how much a pathway attends to it.

    lift: mean weight relative to even attention over all valid rows, 1 = as much as to anything else.
    """

    pathway: Pathway
    text: str
    start_s: float
    end_s: float
    lift: float


def rank_attention(maps: AttentionMaps) -> list[Ranked]:
    """Words and moments by lift, pathway by pathway. A row of text belongs to the last word begun before its middle."""
    found = []
    for path in maps.pathways:
        lifts: dict[tuple[str, float, float], list[float]] = {}
        for w in maps.windows:
            if path in w.weights:
                for unit, lift in _lifts(w, path, maps.words if path[1] == "text" else ()):
                    lifts.setdefault(unit, []).append(lift)
        ranked = [Ranked(path, *unit, float(np.mean(x))) for unit, x in lifts.items()]
        found += sorted(ranked, key=lambda r: -r.lift)
    return found


def _lifts(
    w: AttentionWindow, path: Pathway, words: tuple[Word, ...]
) -> Iterator[tuple[tuple[str, float, float], float]]:
    """Units (text, start, end) of a pathway's keys, and their lift averaged over valid queries."""
    queries, keys = w.valid[path[0]], w.valid[path[1]]
    if not queries.any() or not keys.any():
        return
    lift = w.weights[path].astype(np.float64).mean(axis=0)[queries].mean(axis=0) * keys.sum()
    middles = (w.starts[path[1]] + w.ends[path[1]]) / 2
    if words:
        unit_of = np.searchsorted([word.start_s for word in words], middles, side="right") - 1
    else:
        unit_of = np.floor(middles / MOMENT_S).astype(int)
    for i in np.unique(unit_of[keys]).tolist():
        if words and i < 0:  # before the first word
            continue
        unit = (words[i].text, words[i].start_s, words[i].end_s) if words else ("", i * MOMENT_S, (i + 1) * MOMENT_S)
        yield unit, float(lift[keys & (unit_of == i)].mean())
