"""Cutting a recording into utterances without losing time between them, and joining what was computed on each.

MAVEN (arXiv section III-A): segment k runs from the end of utterance k - 1 (0 for the first) to the end of utterance k.
Ours besides: the tail after the last utterance is kept (the authors' code drops it), and a segment longer than a
maximum is cut into pieces that overlap, so that attention never sees more than that and memory grows with the
recording's length, not with its square.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from affectrace.errors import InputError, TranscriptError
from affectrace.models.base import AffectModel, Tensors


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording, start_s <= t < end_s, that attention sees at once, and what is said in it.

    fade_in_s, fade_out_s: overlap with the piece before and after, 0 at an utterance's own boundary.
    """

    start_s: float
    end_s: float
    text: str = ""
    fade_in_s: float = 0.0
    fade_out_s: float = 0.0


def segments_of(
    utterances: Iterable[tuple[float, float, str]],
    end_s: float,
    *,
    start_s: float = 0.0,
    max_s: float = math.inf,
    overlap_s: float = 0.0,
) -> tuple[Segment, ...]:
    """Segments that cover [start_s, end_s) without gaps, from (start_s, end_s, text) of utterances in any order.

    Utterances that end together add their text to one segment. What lies outside the recording is cut off. No
    utterances: the whole recording is one segment.

    Args:
        max_s: longest segment; longer ones become pieces, of which neighbours share overlap_s < max_s / 2.

    Raises:
        TranscriptError: a time that is NaN or infinite, or an utterance that ends before it starts.
    """
    if not (max_s > 0 and 0 <= overlap_s < max_s / 2):
        raise ValueError(f"need 0 <= overlap_s < max_s / 2, got overlap_s={overlap_s}, max_s={max_s}")
    if not end_s > start_s:
        return ()
    texts: dict[float, list[str]] = {}  # end of a segment -> what is said in it
    spans = list(utterances)
    for i, (start, end, _) in enumerate(spans):
        if not (math.isfinite(start) and math.isfinite(end) and start <= end):
            raise TranscriptError(
                f"utterance {i + 1} runs from {start} s to {end} s",
                hint="every utterance needs finite times, its end not before its start",
            )
    for start, end, text in sorted(spans, key=lambda span: (span[1], span[0])):
        if end > start_s and start < end_s:
            texts.setdefault(min(end, end_s), []).append(text.strip())
    texts.setdefault(end_s, [])  # the tail
    starts = [start_s, *texts][:-1]
    whole = [Segment(a, b, " ".join(filter(None, said))) for a, (b, said) in zip(starts, texts.items(), strict=True)]
    return tuple(piece for segment in whole for piece in _pieces(segment, max_s, overlap_s))


def _pieces(segment: Segment, max_s: float, overlap_s: float) -> list[Segment]:
    """Equal pieces of at most max_s, neighbours sharing overlap_s."""
    length = segment.end_s - segment.start_s
    if length <= max_s:
        return [segment]
    n = math.ceil((length - overlap_s) / (max_s - overlap_s))
    size = (length + (n - 1) * overlap_s) / n
    starts = [segment.start_s + i * (size - overlap_s) for i in range(n)]
    return [
        Segment(
            start,
            segment.end_s if i == n - 1 else start + size,
            segment.text,
            fade_in_s=overlap_s if i else 0.0,
            fade_out_s=overlap_s if i < n - 1 else 0.0,
        )
        for i, start in enumerate(starts)
    ]


def fade(times: Tensor, segment: Segment) -> Tensor:
    """How much a piece counts at each time, (T,) in (0, 1]: rising over fade_in_s, falling over fade_out_s.

    Two neighbouring pieces' weights add up to 1 where they overlap.
    """
    weight = torch.ones_like(times)
    if segment.fade_in_s:
        weight = weight * ((times - segment.start_s) / segment.fade_in_s).clamp(0, 1)
    if segment.fade_out_s:
        weight = weight * ((segment.end_s - times) / segment.fade_out_s).clamp(0, 1)
    return weight.clamp_min(torch.finfo(weight.dtype).eps)


@torch.no_grad()
def over_segments(
    model: AffectModel,
    inputs: Tensors,
    segments: Sequence[Segment],
    valid: Tensors | None = None,
    times: Tensors | None = None,
) -> Tensor:
    """A whole recording through a model, segment by segment: memory grows with its length, not with the square of it.

    inputs, valid, times: as the model takes them, B = 1; times of "frame" or the model's first modality are needed.
    segments: from `segments_of`. -> (1, T, 2) valence, arousal; where pieces overlap the fading mean of both.

    Raises:
        InputError: more than one recording, no times, or frames outside every segment.
    """
    valid, times = valid or {}, times or {}
    at = times.get("frame", times.get(next(iter(model.modalities))))
    if at is None or at.shape[0] != 1 or not segments:
        raise InputError(
            "segments need one recording (B = 1), its frames' times and at least one segment",
            hint="give times['frame'] (1, T)",
        )
    total, weight = at.new_zeros(1, at.shape[1], 2), at.new_zeros(1, at.shape[1], 1)
    clocks = {m: times.get(m, at) for m in inputs} | {"frame": at}
    for i, segment in enumerate(segments):
        first = -math.inf if i == 0 else segment.start_s
        last = math.inf if i == len(segments) - 1 else segment.end_s
        rows = {m: slice(*torch.searchsorted(t[0], t.new_tensor([first, last])).tolist()) for m, t in clocks.items()}
        if rows["frame"].start == rows["frame"].stop:
            continue
        y, _ = model(
            {m: x[:, rows[m]] for m, x in inputs.items()},
            {m: x[:, rows[m]] for m, x in valid.items() if m in rows},
            {m: t[:, rows[m]] for m, t in clocks.items()},
        )
        share = fade(at[:, rows["frame"]], segment)[..., None]
        total[:, rows["frame"]] += share * y
        weight[:, rows["frame"]] += share
    if not bool((weight > 0).all()):
        raise InputError("some frames lie in no segment", hint="make the segments with segments_of(utterances, end_s)")
    return (total / weight).float()
