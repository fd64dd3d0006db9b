"""Windows cover every frame and come back together exactly; what is read in windows is what lies in the files."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from affectrace.features.base import ExtractorId, Features
from affectrace.sequences import Sequence, SequenceConfig
from affectrace.sequences.batches import Batches
from affectrace.sequences.config import WindowScheme
from affectrace.sequences.normalization import RunningMoments
from affectrace.sequences.windows import OverlapAdd, to_trace
from affectrace.timeline import Timeline

WEIGHTINGS = st.sampled_from(["mean", "triangular", "context"])


@st.composite
def schemes(draw: Any) -> WindowScheme:
    if draw(st.booleans()) and draw(st.booleans()):
        return WindowScheme(None, None, utterances=draw(st.booleans()))
    size = draw(st.integers(1, 40))
    return WindowScheme(size, draw(st.integers(1, size)), utterances=draw(st.booleans()))


ENDS = st.lists(st.floats(-5, 40, allow_nan=False), max_size=6)


@settings(max_examples=200, deadline=None)
@given(schemes(), st.integers(0, 200), ENDS)
def test_every_frame_lies_in_a_window_and_no_window_is_empty(scheme: WindowScheme, n: int, ends: list[float]) -> None:
    windows = scheme.cut(Timeline.regular(n, 7), ends)
    assert {i for w in windows for i in range(w.start, w.stop)} == set(range(n))
    assert all(0 <= w.start < w.stop <= n for w in windows)
    assert all(scheme.size is None or w.stop - w.start <= scheme.size for w in windows)
    assert windows == sorted(windows, key=lambda w: w.start)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.data(), st.integers(0, 200))
def test_dropping_keeps_whole_windows_only(size: int, data: Any, n: int) -> None:
    stride = data.draw(st.integers(1, size))
    kept = WindowScheme(size, stride).cut(Timeline.regular(n, 7))
    dropped = WindowScheme(size, stride, partial="drop").cut(Timeline.regular(n, 7))
    assert dropped == [w for w in kept if w.stop - w.start == size]


@settings(max_examples=150, deadline=None)
@given(schemes(), st.integers(0, 120), ENDS, WEIGHTINGS, st.sampled_from([np.float32, np.float64]), st.data())
def test_overlap_add_returns_its_input_exactly(
    scheme: WindowScheme, n: int, ends: list[float], how: Any, dtype: type, data: Any
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = rng.uniform(-1, 1, size=(n, 2)).astype(dtype)
    windows = scheme.cut(Timeline.regular(n, 7), ends)
    shuffled = [windows[i] for i in rng.permutation(len(windows))]
    overlap = OverlapAdd(n, overlap_weighting=how)
    for w in shuffled:
        overlap.add(w, values[w])
    joined, covered = overlap.result()
    assert covered.all()
    assert np.array_equal(joined.astype(dtype), values)
    assert np.array_equal(joined, values.astype(np.float64))
    trace = to_trace("r", Timeline.regular(n, 7), ((w, values[w]) for w in windows), source="m", overlap_weighting=how)
    assert np.array_equal(trace.values, values)


@st.composite
def recordings(draw: Any) -> list[Sequence]:
    made = []
    config = SequenceConfig(missing=draw(st.sampled_from(["mask", "hold", "zero"])), causal=draw(st.booleans()))
    for k in range(draw(st.integers(1, 3))):
        rng = np.random.default_rng([k, draw(st.integers(0, 99))])
        n, rate = draw(st.integers(1, 60)), draw(st.integers(3, 50))
        inputs = {}
        for name, rows, hz in (("visual", n, 7), ("audio", draw(st.integers(0, 200)), rate)):
            valid = rng.random(rows) < 0.6
            values = np.where(valid[:, None], rng.normal(size=(rows, 2)), np.nan)
            inputs[name] = Features(name, Timeline.regular(rows, hz), values, valid, ExtractorId("x"))
        made.append(Sequence(f"r{k}", Timeline.regular(n, 7), inputs, config=config))
    return made


@settings(max_examples=60, deadline=None)
@given(recordings(), schemes(), st.integers(1, 5), st.integers(0, 9))
def test_batches_hold_what_the_recordings_hold(
    made: list[Sequence], scheme: WindowScheme, batch_size: int, seed: int
) -> None:
    """Every window of every recording once, its values where the whole recording has them, padding empty."""
    whole = {s.recording_id: s.read() for s in made}
    batches = Batches(made, scheme, batch_size=batch_size, seed=seed)
    met = []
    for batch in batches.epoch(seed):
        for i, w in enumerate(batch.windows):
            met.append((w.recording_id, w.start, w.stop))
            n = len(w)
            assert batch.valid["frame"][i].tolist() == [True] * n + [False] * (batch.valid["frame"].shape[1] - n)
            for m in ("visual", "audio"):
                assert np.array_equal(batch.inputs[m][i, :n].numpy(), whole[w.recording_id].inputs[m][w.start : w.stop])
                assert batch.valid[m][i, :n].tolist() == whole[w.recording_id].valid[m][w.start : w.stop].tolist()
                assert not batch.inputs[m][i, n:].any()
                assert not batch.valid[m][i, n:].any()
                assert torch.isfinite(batch.inputs[m]).all()
    expected = [(s.recording_id, w.start, w.stop) for s in made for w in s.windows(scheme)]
    assert sorted(met) == sorted(expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), st.lists(st.integers(0, 50), max_size=6), st.floats(-1e6, 1e6))
def test_moments_do_not_depend_on_how_rows_come(seed: int, sizes: list[int], offset: float) -> None:
    x = np.random.default_rng(seed).normal(offset, 1, size=(sum(sizes), 2))
    running = RunningMoments(2)
    for part in np.split(x, np.cumsum(sizes)):
        running.add(part)
    if len(x):
        assert np.allclose(running.mean, x.mean(axis=0), rtol=1e-9, atol=1e-9)
        assert np.allclose(running.deviation, x.std(axis=0), rtol=1e-5, atol=1e-6)
