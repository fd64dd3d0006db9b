"""Sliding-window streaming for non-causal models: each frame is returned once.

    newest frame  ----------------------------------------|
    window        |<------------- window_s -------------->|
    returned                         |<- hop_s ->|<- lookahead_s ->|

Every hop_s seconds the model runs on the last window_s seconds, and the frames at least lookahead_s old that were not
returned before are returned. Features are standardized and values clipped as in `inference.run.predict_sequence`: one
window over a whole recording gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from affectrace.errors import ConfigError, InputError
from affectrace.models.base import AffectModel, Tensors
from affectrace.sequences import FRAME
from affectrace.sequences.normalization import FeatureNormalizer


class StreamRows(NamedTuple):
    """Rows of one stream: times (n,) seconds, x (n, D), valid (n,) bool."""

    times: Tensor
    x: Tensor
    valid: Tensor

    def where(self, keep: Tensor) -> StreamRows:
        return StreamRows(*(part[keep] for part in self))


class Output(NamedTuple):
    """Frames of a stream: times (K,) seconds, values (K, 2) valence and arousal in [-1, 1]."""

    times: Tensor
    values: Tensor


_NOTHING = Output(torch.empty(0, dtype=torch.float64), torch.empty(0, 2))


class SlidingModel:
    """Feeds a live stream through a model in eval mode; memory is that of one window.

    statistics: of the features it was trained on (`TrainedModel.statistics`); None: features as they are pushed.
    frame_stream: the stream whose rows are the frames, unless "frame" is pushed.
    """

    causal = False

    def __init__(
        self,
        model: AffectModel,
        *,
        statistics: FeatureNormalizer | None = None,
        window_s: float = 10.0,
        hop_s: float = 0.5,
        lookahead_s: float = 1.0,
        frame_stream: str = "visual",
    ) -> None:
        if not (hop_s > 0 and lookahead_s >= 0 and window_s > hop_s + lookahead_s):
            what = f"a window of {window_s} s is too short for a hop of {hop_s} s and a lookahead of {lookahead_s} s"
            raise ConfigError(what, hint="need hop_s > 0, lookahead_s >= 0 and window_s > hop_s + lookahead_s")
        self.model = model.eval()
        self.window_s, self.hop_s, self.lookahead_s = window_s, hop_s, lookahead_s
        self.frame_stream, self.statistics = frame_stream, statistics
        self.reset()

    @property
    def latency_s(self) -> float:
        """The longest delay of a frame in seconds, computing time aside."""
        return self.lookahead_s + self.hop_s

    def reset(self) -> None:
        """Start a new recording."""
        self._rows: dict[str, StreamRows] = {}
        self._returned_until = -torch.inf
        self._next_run = -torch.inf

    @torch.no_grad()
    def push(
        self, inputs: Tensors, times: Tensors, valid: Tensors | None = None, filled: Tensors | None = None
    ) -> Output:
        """Add new rows; returns the frames that are due.

        Args:
            inputs: stream -> (n_m, D_m), any number of rows, also none.
            times: stream -> (n_m,) seconds, increasing within a stream and from push to push; "frame" -> times of the
                frames, where they are not those of the frame stream.
            valid: stream -> (n_m,) bool; missing = all valid.
            filled: stream -> (n_m,) bool, rows with data, the others become 0; missing = the valid ones. (With
                missing="zero" in training, rows without data are valid.)

        Raises:
            InputError: rows without times, times that do not increase, or a stream without statistics.
        """
        valid, filled = valid or {}, filled or {}
        rows = dict(self._rows)
        for m in {**inputs, **times}:
            if m not in times or (m in inputs and times[m].shape != inputs[m].shape[:1]):
                raise InputError(f"'{m}' comes without a time for each row", hint="push times (n,) with inputs (n, D)")
            t = times[m]
            x = self._standardized(m, inputs[m], filled.get(m, valid.get(m))) if m in inputs else t.new_empty(len(t), 0)
            new = StreamRows(t, x, valid.get(m, torch.ones(len(t), dtype=torch.bool)))
            rows[m] = StreamRows(*map(torch.cat, zip(rows[m], new, strict=True))) if m in rows else new
            if not bool((rows[m].times.diff() > 0).all()):
                raise InputError(f"times of '{m}' do not increase", hint="push rows in order of time, each once")
        self._rows = rows
        outputs = []
        for t in times.get(FRAME, times.get(self.frame_stream, torch.empty(0))).tolist():
            if t >= self._next_run:  # so a large push gives the same as many small ones
                self._next_run = t + self.hop_s
                outputs.append(self._run(t, t - self.lookahead_s))
        self._rows = self._window(torch.inf)
        return Output(*map(torch.cat, zip(*outputs, strict=True))) if outputs else _NOTHING

    @torch.no_grad()
    def flush(self) -> Output:
        """The remaining frames, at the end of a stream."""
        return self._run(torch.inf, torch.inf)

    def _standardized(self, stream: str, x: Tensor, filled: Tensor | None) -> Tensor:
        """(x - mean) / deviation, 0 in rows without data."""
        if self.statistics is None:
            return x
        if stream not in self.statistics.mean:
            what = f"no statistics of '{stream}', only of {', '.join(self.statistics.mean)}"
            raise InputError(what, hint="push the streams the model was trained on")
        mean, deviation = (x.new_tensor(p[stream]) for p in (self.statistics.mean, self.statistics.deviation))
        y = (x - mean) / deviation
        return y if filled is None else torch.where(filled[:, None], y, 0.0)

    def _window(self, now: float) -> dict[str, StreamRows]:
        """Rows of the window that ends `now`, longer where a frame that is not returned yet is older (after a gap)."""
        rows = {m: r.where(r.times <= now) for m, r in self._rows.items()}
        frames = self._frames(rows)
        if not len(frames):
            return rows
        waiting = frames[frames > self._returned_until]
        oldest = min([float(frames[-1]) - self.window_s, *(float(t) - self.hop_s for t in waiting[:1])])
        return {m: r.where(r.times > oldest) for m, r in rows.items()}

    def _frames(self, rows: Mapping[str, StreamRows]) -> Tensor:
        """Times of the frames."""
        found = rows.get(FRAME, rows.get(self.frame_stream))
        return _NOTHING.times if found is None else found.times

    def _run(self, now: float, until: float) -> Output:
        """Run the model on the window that ends `now`; its frames up to `until` that are not returned yet."""
        rows = self._window(now)
        frames = self._frames(rows)
        due = (frames > self._returned_until) & (frames <= until)
        if not bool(due.any()):
            return _NOTHING
        exist = torch.ones(1, len(frames), dtype=torch.bool, device=frames.device)  # also frames without a face
        streams = {m: r for m, r in rows.items() if m != FRAME}
        y, _ = self.model(
            {m: r.x[None] for m, r in streams.items()},
            {m: r.valid[None] for m, r in streams.items()} | {FRAME: exist},
            {m: r.times[None] for m, r in streams.items()} | {FRAME: frames[None]},
        )
        self._returned_until = float(frames[due][-1])
        return Output(frames[due], y[0, due].clamp(-1, 1))
