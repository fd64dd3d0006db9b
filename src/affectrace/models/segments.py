"""Utterance segments: cutting a recording without gaps, and running a model segment by segment.

MAVEN (arXiv section III-A): segment k runs from the end of utterance k - 1 (0 for the first) to the end of utterance k.
Ours: the tail after the last utterance is kept (the authors' code drops it), and a long segment is cut into overlapping
pieces, so that memory grows linearly with the length of a recording, not quadratically.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from affectrace.errors import InputError, TranscriptError
from affectrace.models.base import AffectModel, Tensors
from affectrace.sequences import FRAME


@dataclass(frozen=True)
class Segment:
    """The span start_s <= t < end_s of a recording, and the text spoken in it.

    fade_in_s, fade_out_s: overlap with the piece before and after; 0 at the boundary of an utterance.
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
    """Segments that cover [start_s, end_s) without gaps, from utterances (start_s, end_s, text) in any order.

    Utterances with the same end share a segment; one that reaches beyond the recording is cut off there. Without
    utterances the whole recording is one segment.

    Args:
        max_s: longer segments are cut into equal pieces of at most this length, neighbours sharing overlap_s.

    Raises:
        InputError: pieces that overlap by half or more. TranscriptError: an utterance with impossible times.
    """
    if not (max_s > 0 and 0 <= overlap_s < max_s / 2):
        what = f"pieces of at most {max_s:g} s cannot overlap by {overlap_s:g} s"
        raise InputError(what, hint="need 0 <= overlap_s < max_s / 2")
    spans = list(utterances)
    for i, (start, end, _) in enumerate(spans):
        if not (math.isfinite(start) and math.isfinite(end) and start <= end):
            raise TranscriptError(f"utterance {i + 1} runs from {start} s to {end} s", hint="correct its times")
    if end_s <= start_s:
        return ()
    texts: dict[float, list[str]] = {}  # by the end of the segment
    for start, end, text in sorted(spans, key=lambda span: (span[1], span[0])):
        if end > start_s and start < end_s:
            texts.setdefault(min(end, end_s), []).append(text.strip())
    texts.setdefault(end_s, [])  # the tail
    whole = zip([start_s, *texts], texts.items(), strict=False)
    segments = [Segment(start, end, " ".join(filter(None, text))) for start, (end, text) in whole]
    return tuple(piece for segment in segments for piece in _pieces(segment, max_s, overlap_s))


def _pieces(segment: Segment, max_s: float, overlap_s: float) -> list[Segment]:
    """Equal pieces of at most max_s, neighbours sharing overlap_s."""
    length = segment.end_s - segment.start_s
    if length <= max_s:
        return [segment]
    n = math.ceil((length - overlap_s) / (max_s - overlap_s))
    size = (length + (n - 1) * overlap_s) / n
    starts = [segment.start_s + i * (size - overlap_s) for i in range(n)]
    ends = [start + size for start in starts[:-1]] + [segment.end_s]
    fades = [0.0] + [overlap_s] * (n - 1) + [0.0]
    return [Segment(starts[i], ends[i], segment.text, fades[i], fades[i + 1]) for i in range(n)]


def fade(times: Tensor, segment: Segment) -> Tensor:
    """Weights of a piece at these times, (T,) in (0, 1]; those of overlapping neighbours add up to 1."""
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
    """Run a model on each segment of a recording: (1, T, 2) valence, arousal, overlapping pieces faded into each other.

    inputs, valid, times: as the model takes them, B = 1, with times of "frame" or of the model's first modality.
    Raises InputError: several recordings, no times, or frames outside every segment.
    """
    valid, times = valid or {}, times or {}
    at = times.get(FRAME, times.get(next(iter(model.modalities))))
    if at is None or at.shape[0] != 1 or not segments:
        what = "segments need one recording (B = 1), its frames' times and at least one segment"
        raise InputError(what, hint="give times['frame'] (1, T)")
    total, weight = at.new_zeros(1, at.shape[1], 2), at.new_zeros(1, at.shape[1], 1)
    clocks = {m: times.get(m, at) for m in inputs} | {FRAME: at}
    for i, segment in enumerate(segments):
        first = -math.inf if i == 0 else segment.start_s
        last = math.inf if i == len(segments) - 1 else segment.end_s
        rows = {m: slice(*torch.searchsorted(t[0], t.new_tensor([first, last])).tolist()) for m, t in clocks.items()}
        frames = rows[FRAME]
        if frames.start == frames.stop:
            continue
        parts = [{m: x[:, rows[m]] for m, x in given.items() if m in rows} for given in (inputs, valid, clocks)]
        share = fade(at[:, frames], segment)[..., None]
        total[:, frames] += share * model(*parts)[0]
        weight[:, frames] += share
    if not bool((weight > 0).all()):
        raise InputError("some frames lie in no segment", hint="make the segments with segments_of(utterances, end_s)")
    return (total / weight).float()
