"""Utterances to segments without gaps; pieces with overlap; a recording run over them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from affectrace.errors import InputError, TranscriptError
from affectrace.models.maven import Maven, MavenConfig
from affectrace.models.segments import Segment, fade, over_segments, segments_of


@pytest.mark.parametrize(
    ("utterances", "end_s", "expected"),
    [
        ([], 10.0, [(0.0, 10.0, "")]),
        ([(10.5, 15.2, "I was really surprised")], 20.0, [(0.0, 15.2, "I was really surprised"), (15.2, 20.0, "")]),
        ([(1, 2, "a"), (3, 4, "b")], 4.0, [(0.0, 2, "a"), (2, 4.0, "b")]),
        ([(3, 4, "b"), (1, 2, "a")], 5.0, [(0.0, 2, "a"), (2, 4, "b"), (4, 5.0, "")]),  # any order, tail kept
        ([(0, 6, "long"), (2, 3, "inside")], 6.0, [(0.0, 3, "inside"), (3, 6.0, "long")]),
        ([(0, 2, "a"), (1, 2, "b")], 2.0, [(0.0, 2.0, "a b")]),  # end together
        ([(1, 12, "over the end")], 8.0, [(0.0, 8.0, "over the end")]),
        ([(-3, -1, "before"), (9, 12, "after")], 8.0, [(0.0, 8.0, "")]),
        ([(1, 1, "a word without length")], 3.0, [(0.0, 1, "a word without length"), (1, 3.0, "")]),
        ([(1, 2, "  ")], 3.0, [(0.0, 2, ""), (2, 3.0, "")]),
        ([(1, 2, "a")], 0.0, []),  # an empty recording
    ],
)
def test_segments_of(utterances, end_s: float, expected) -> None:
    assert [(s.start_s, s.end_s, s.text) for s in segments_of(utterances, end_s)] == expected


def test_impossible_times_and_pieces_are_refused() -> None:
    for utterance in ((2.0, 1.0, "x"), (math.nan, 1.0, "x"), (0.0, math.inf, "x")):
        with pytest.raises(TranscriptError, match="utterance 2 runs from"):
            segments_of([(0, 1, "a"), utterance], 10)
    for max_s, overlap_s in ((2, 1), (0, 0), (2, -1), (math.nan, 0)):
        with pytest.raises(InputError):
            segments_of([], 10, max_s=max_s, overlap_s=overlap_s)


@pytest.mark.parametrize(
    ("length", "max_s", "overlap_s"), [(100, 30, 2), (30, 30, 2), (30.01, 30, 2), (61, 30, 0), (3600, 7, 3)]
)
def test_long_segments_become_pieces_that_cover_them_and_fade_into_each_other(
    length: float, max_s: float, overlap_s: float
) -> None:
    pieces = segments_of([(0, length, "all of it")], length, max_s=max_s, overlap_s=overlap_s)
    assert pieces[0].start_s == 0
    assert pieces[-1].end_s == length
    assert all(p.end_s - p.start_s <= max_s + 1e-9 and p.text == "all of it" for p in pieces)
    for a, b in pairwise(pieces):
        assert a.end_s - b.start_s == pytest.approx(overlap_s)
    times = torch.linspace(0, length - 1e-6, 500, dtype=torch.float64)
    total = torch.zeros_like(times)
    for p in pieces:
        inside = (times >= p.start_s) & (times < p.end_s)
        total[inside] += fade(times[inside], p)
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)


class Mean(nn.Module):
    """The mean of everything it is shown, for every frame; so segments show."""

    modalities = ("visual",)

    def forward(self, inputs, valid, times):  # type: ignore[no-untyped-def]
        x = inputs["visual"]
        return x.mean(dim=1, keepdim=True).expand(-1, x.shape[1], 2), None


def test_over_segments_runs_each_by_itself_and_fades_between_pieces() -> None:
    t = torch.arange(0, 10, 0.5, dtype=torch.float64)[None]
    x = t[..., None].float()
    segments = segments_of([(0, 4, "a")], 9.9)
    y = over_segments(Mean(), {"visual": x}, segments, None, {"visual": t})
    assert y[0, :, 0].tolist() == pytest.approx([1.75] * 8 + [6.75] * 12)
    pieces = (Segment(0, 6, fade_out_s=2), Segment(4, 10, fade_in_s=2))
    y = over_segments(Mean(), {"visual": x}, pieces, None, {"visual": t})[0, :, 0]
    assert y[0] == pytest.approx(2.75)
    assert y[-1] == pytest.approx(6.75)
    assert y[t[0] == 5.0].item() == pytest.approx((2.75 + 6.75) / 2)
    assert bool((y[(t[0] >= 4) & (t[0] < 6)].diff() > 0).all())
    for wrong in ((), (Segment(0, 1), Segment(2, 4))):
        with pytest.raises(InputError):
            over_segments(Mean(), {"visual": x}, wrong, None, {"visual": t})


@pytest.mark.parametrize("clock", ["frame", "native", "utterance"])
def test_over_segments_equals_the_model_on_each_segment(clock: str) -> None:
    torch.manual_seed(0)
    model = Maven(MavenConfig.tiny(clock=clock)).eval()
    t = torch.arange(75, dtype=torch.float64)[None] / 25
    ta = t if clock == "frame" else torch.arange(150, dtype=torch.float64)[None] / 50
    tw = t if clock == "frame" else torch.tensor([[0.2, 0.9, 1.1]]).double()  # no word in the tail
    times = {"visual": t, "audio": ta, "text": tw}
    inputs = {m: torch.randn(1, times[m].shape[1], w) for m, w in model.config.streams.items()}
    valid = {"visual": torch.rand(1, 75) < 0.8}
    y = over_segments(model, inputs, segments_of([(0, 1, "one two"), (1, 1.5, "three")], 3), valid, times)
    with torch.no_grad():
        for a, b in ((0, 1), (1, 1.5), (1.5, 3)):
            rows = {m: ((s >= a) & (s < b))[0] for m, s in times.items()}
            part, _ = model(
                {m: x[:, rows[m]] for m, x in inputs.items()},
                {m: v[:, rows[m]] for m, v in valid.items()},
                {m: s[:, rows[m]] for m, s in times.items()},
            )
            assert float((part - y[:, rows["visual"]]).abs().max()) < 1e-6
