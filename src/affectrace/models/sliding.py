"""A model that is not causal, live: run again and again over the last seconds, each frame given out once.

    newest frame  ----------------------------------------|
    window        |<------------- window_s -------------->|
    given out                        |<- hop_s ->|<- lookahead_s ->|

Every hop_s seconds the model sees the last window_s seconds; a frame's value is given out once lookahead_s seconds
after it have been seen, so each rests on that much future and on window_s - lookahead_s - hop_s of past or more.
Features are standardised and values clipped as `inference.run.predict_sequence` does it: one window that holds the
whole recording gives its numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from affectrace.errors import ConfigError, InputError
from affectrace.models.base import Tensors
from affectrace.sequences import FRAME
from affectrace.sequences.normalization import FeatureNormalizer

Given = tuple[Tensor, Tensor]
"""Frames given out: times (K,) seconds, values (K, 2) valence and arousal in [-1, 1]."""


class SlidingModel:
    """Feeds a live stream through a model, which is put into eval mode; memory is that of one window.

    Args:
        statistics: those it was trained with (`TrainedModel.statistics`); None: features as they are pushed.
        frame_stream: whose rows are the frames, unless "frame" is pushed.

    Raises:
        ConfigError: the window does not hold a hop and the lookahead.
    """

    causal = False

    def __init__(
        self,
        model: nn.Module,
        *,
        statistics: FeatureNormalizer | None = None,
        window_s: float = 10.0,
        hop_s: float = 0.5,
        lookahead_s: float = 1.0,
        frame_stream: str = "visual",
    ) -> None:
        if not (hop_s > 0 and lookahead_s >= 0 and window_s > hop_s + lookahead_s):
            what = f"a window of {window_s} s does not hold a hop of {hop_s} s and a lookahead of {lookahead_s} s"
            raise ConfigError(what, hint="need hop_s > 0, lookahead_s >= 0 and window_s > hop_s + lookahead_s")
        self.model = model.eval()
        self.window_s, self.hop_s, self.lookahead_s = window_s, hop_s, lookahead_s
        self.frame_stream, self.statistics = frame_stream, statistics
        self.reset()

    @property
    def latency_s(self) -> float:
        """The longest a frame waits to be given out, in seconds: to the frame that comes then, computing aside."""
        return self.lookahead_s + self.hop_s

    def reset(self) -> None:
        """Forget everything: a new recording begins."""
        self._held: dict[str, _Rows] = {}
        self._given_until = -torch.inf
        self._next_run = -torch.inf

    @torch.no_grad()
    def push(
        self, inputs: Tensors, times: Tensors, valid: Tensors | None = None, filled: Tensors | None = None
    ) -> Given:
        """Take new rows, give out the frames that have become due.

        Args:
            inputs: stream -> (n_m, D_m), any number of rows, none as well.
            times: stream -> (n_m,) seconds, rising within each stream and from push to push; "frame" -> the frames'
                own, where the frame stream does not carry them.
            valid: stream -> (n_m,) bool; missing = all valid.
            filled: stream -> (n_m,) bool, rows that hold data: the others are 0 after standardising as well; missing =
                those that are valid (a model trained with missing="zero" takes rows that are valid and not filled).

        Raises:
            InputError: rows without times, times that do not rise, or a stream that the statistics do not know.
        """
        valid, filled = valid or {}, filled or {}
        new = {}
        for m in {**inputs, **times}:
            if m not in times or (m in inputs and times[m].shape != inputs[m].shape[:1]):
                raise InputError(f"'{m}' comes without a time for each row", hint="push times (n,) with inputs (n, D)")
            t = times[m]
            if not (bool((t.diff() > 0).all()) and (len(t) == 0 or float(t[0]) > self._newest(m))):
                raise InputError(f"times of '{m}' do not rise", hint="push rows in order of time, each once")
            x = self._standardised(m, inputs[m], filled.get(m, valid.get(m))) if m in inputs else t.new_empty(len(t), 0)
            new[m] = _Rows(t, x, valid.get(m, torch.ones(len(t), dtype=torch.bool)))
        given: list[Given] = []
        for until in self._stops(times):
            for m, rows in new.items():
                part = rows.cut((rows.times > self._newest(m)) & (rows.times <= until))
                held = self._held.get(m)
                self._held[m] = part if held is None else _Rows(*map(torch.cat, zip(held, part, strict=True)))
            self._forget()
            frames = self._frames()
            if len(frames) and float(frames[-1]) >= self._next_run:
                self._next_run = float(frames[-1]) + self.hop_s
                given.append(self._give(float(frames[-1]) - self.lookahead_s))
        return _joined(given)

    @torch.no_grad()
    def flush(self) -> Given:
        """The stream has ended: give out what is left."""
        return self._give(torch.inf)

    def _standardised(self, stream: str, x: Tensor, filled: Tensor | None) -> Tensor:
        """(x - mean) / deviation, 0 in rows without data."""
        if self.statistics is None:
            return x
        if stream not in self.statistics.mean:
            what = f"the normalisation knows no '{stream}', only {', '.join(self.statistics.mean)}"
            raise InputError(what, hint="push the streams the model was trained on")
        mean, deviation = (x.new_tensor(p[stream]) for p in (self.statistics.mean, self.statistics.deviation))
        y = (x - mean) / deviation
        return y if filled is None else torch.where(filled[:, None], y, 0.0)

    def _stops(self, times: Tensors) -> list[float]:
        """Frames at which the model runs, then the end: one large push gives what many small ones would."""
        stops, next_run = [], self._next_run
        for t in times.get(FRAME, times.get(self.frame_stream, torch.empty(0))).tolist():
            if t >= next_run:
                stops.append(t)
                next_run = t + self.hop_s
        return [*stops, torch.inf]

    def _newest(self, stream: str) -> float:
        held = self._held.get(stream)
        return -torch.inf if held is None or not len(held.times) else float(held.times[-1])

    def _frames(self) -> Tensor:
        """Times of the frames held."""
        held = self._held.get(FRAME, self._held.get(self.frame_stream))
        return torch.empty(0, dtype=torch.float64) if held is None else held.times

    def _give(self, until: float) -> Given:
        """Run the model over what is held; values of frames after the last one given, up to `until`."""
        frames = self._frames()
        due = (frames > self._given_until) & (frames <= until)
        if not bool(due.any()):
            return _joined([])
        there = torch.ones(1, len(frames), dtype=torch.bool, device=frames.device)  # a face may be missing there
        rows = {m: held for m, held in self._held.items() if m != FRAME}
        y, _ = self.model(
            {m: r.x[None] for m, r in rows.items()},
            {m: r.valid[None] for m, r in rows.items()} | {FRAME: there},
            {m: r.times[None] for m, r in rows.items()} | {FRAME: frames[None]},
        )
        self._given_until = float(frames[due][-1])
        return frames[due], y[0, due].clamp(-1, 1)

    def _forget(self) -> None:
        """Drop rows older than the window; frames not yet given out are kept (a gap can make them older)."""
        frames = self._frames()
        if len(frames):
            waiting = frames[frames > self._given_until]
            oldest = min([float(frames[-1]) - self.window_s, *(float(t) - self.hop_s for t in waiting[:1])])
            self._held = {m: rows.cut(rows.times > oldest) for m, rows in self._held.items()}


class _Rows(NamedTuple):
    """Rows of one stream: times (n,) seconds, x (n, D), valid (n,) bool."""

    times: Tensor
    x: Tensor
    valid: Tensor

    def cut(self, keep: Tensor) -> _Rows:
        return _Rows(*(part[keep] for part in self))


def _joined(given: list[Given]) -> Given:
    given = [g for g in given if len(g[0])]
    if not given:
        return torch.empty(0, dtype=torch.float64), torch.empty(0, 2)
    return torch.cat([g[0] for g in given]), torch.cat([g[1] for g in given])
