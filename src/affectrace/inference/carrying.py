"""A causal model's two ways through a recording, side by side: how far apart they are, and where.

    carried   state from the first frame to the last: what live use gives
    windows   overlapping windows that each start anew and are joined

Training shows a model windows of a certain length; beyond it carried state is on its own. So everything is also told by
how many frames lie before a frame, in bins around that length.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affectrace import metrics
from affectrace.errors import InputError
from affectrace.inference.run import OVERLAPPING, TrainedModel, predict_sequence
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.sequences import Sequence as Recorded
from affectrace.sequences.windows import OverlapWeighting, WindowScheme


@dataclass(frozen=True)
class Stretch:
    """Frames with `first` to `last` - 1 frames before them (last None: all beyond), over all recordings.

    n: labelled ones. apart: mean |carried - windows| of (valence, arousal), all frames. carried, windows: pooled
    scores.
    """

    first: int
    last: int | None
    n_frames: int
    n: int
    apart: tuple[float, float]
    carried: metrics.Scores
    windows: metrics.Scores


@dataclass(frozen=True)
class Ways:
    """Both ways over the same recordings.

    scheme: of the windows. trained_frames: length of the training windows, None where not known.
    whole: all frames. stretches: by how many frames lie before. largest: max |carried - windows| of each dimension.
    """

    scheme: WindowScheme
    trained_frames: int | None
    n_recordings: int
    whole: Stretch
    stretches: tuple[Stretch, ...]
    largest: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; undefined numbers are None."""
        return {
            "size": self.scheme.size,
            "stride": self.scheme.stride,
            "trained_frames": self.trained_frames,
            "n_recordings": self.n_recordings,
            "largest": {"valence": self.largest[0], "arousal": self.largest[1]},
            "whole": _plain(self.whole),
            "stretches": [_plain(s) for s in self.stretches],
        }


def compare_ways(
    model: TrainedModel,
    sequences: Sequence[Recorded],
    scheme: WindowScheme = OVERLAPPING,
    *,
    how: OverlapWeighting = "triangular",
    progress: Progress = silent,
) -> Ways:
    """Predict recordings both ways.

    Args:
        sequences: as the model reads them; labels are needed for the scores only.
        scheme, how: the windows, and how they are joined.

    Raises:
        InputError: the model is not causal (it has no state to carry), or there are no frames.
    """
    if not model.model.causal:
        raise InputError(
            f"{model.id} is not causal: it carries no state and always reads windows", hint="leave out --windows"
        )
    parts: list[_Part] = []
    for i, sequence in enumerate(sequences):
        progress(ProgressEvent("comparing", i, len(sequences), "recordings", sequence.recording_id))
        if not len(sequence):
            continue
        carried, windows = (
            predict_sequence(
                model.model, sequence, statistics=model.statistics, scheme=way, overlap_weighting=how
            ).values
            for way in (None, scheme)
        )
        parts.append(_Part.of(sequence, carried, windows))
    progress(ProgressEvent("comparing", len(sequences), len(sequences), "recordings"))
    if not parts:
        raise InputError("no frames to compare", hint="give recordings with features")
    trained = (model.about.get("training") or {}).get("window", {}).get("size")
    edges = _edges(trained or scheme.size, max(len(p.carried) for p in parts))
    largest = np.max([np.abs(p.carried - p.windows).max(axis=0) for p in parts], axis=0)
    return Ways(
        scheme=scheme,
        trained_frames=trained,
        n_recordings=len(parts),
        whole=_stretch(parts, 0, None),
        stretches=tuple(_stretch(parts, a, b) for a, b in edges),
        largest=(float(largest[0]), float(largest[1])),
    )


@dataclass(frozen=True)
class _Part:
    carried: NDArray[np.float64]
    windows: NDArray[np.float64]
    target: NDArray[np.float64]
    mask: NDArray[np.bool_]

    @classmethod
    def of(cls, sequence: Recorded, carried: NDArray[np.float64], windows: NDArray[np.float64]) -> _Part:
        n = len(sequence)
        if sequence.labels is None:
            return cls(carried, windows, np.zeros((n, 2)), np.zeros(n, bool))
        labels = sequence.labels
        labels = labels if labels.timeline == sequence.timeline else labels.resample(sequence.timeline)
        return cls(carried, windows, np.where(labels.valid, labels.values, 0), labels.known)


def _edges(length: int | None, longest: int) -> list[tuple[int, int | None]]:
    """Quarter, half, whole and then doubled training lengths, up to the longest recording."""
    length = length or longest
    at = sorted({0, length // 4, length // 2, length})
    while at[-1] * 2 < longest:
        at.append(at[-1] * 2)
    at = [a for a in at if a < longest] or [0]
    return [*itertools.pairwise(at), (at[-1], None)]


def _stretch(parts: Sequence[_Part], first: int, last: int | None) -> Stretch:
    rows = slice(first, last)
    apart = np.concatenate([np.abs(p.carried[rows] - p.windows[rows]) for p in parts])
    pairs = {
        way: [(getattr(p, way)[rows], p.target[rows], p.mask[rows]) for p in parts] for way in ("carried", "windows")
    }
    mean = apart.mean(axis=0) if len(apart) else np.full(2, math.nan)
    return Stretch(
        first=first,
        last=last,
        n_frames=len(apart),
        n=int(sum(p.mask[rows].sum() for p in parts)),
        apart=(float(mean[0]), float(mean[1])),
        carried=metrics.score_pooled(pairs["carried"]),
        windows=metrics.score_pooled(pairs["windows"]),
    )


def _plain(s: Stretch) -> dict[str, Any]:
    scores = {
        way: {k: None if v != v else v for k, v in getattr(s, way).to_dict().items() if "ccc" in k}
        for way in ("carried", "windows")
    }
    apart = {"valence": s.apart[0], "arousal": s.apart[1]}
    return {"first": s.first, "last": s.last, "n_frames": s.n_frames, "n": s.n, "mean_apart": apart, **scores}
