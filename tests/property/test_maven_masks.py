"""Padding and missing modalities: whatever is not there changes nothing, and nothing turns into NaN."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from affectrace.models.maven import Maven, MavenConfig
from affectrace.sequences import FRAME
from near import assert_near

VARIANTS = {
    "paper": {},
    "paper with positions": {"positions": "relative"},
    "arxiv_v1": {"visual": "both", "clock": "native", "topology": "parallel", "additive_sigmoid": True},
    "arxiv_v1 with positions": {"clock": "native", "positions": "sinusoidal", "merge": "sum"},
    "released": {
        "clock": "utterance",
        "merge_norm": True,
        "self_attention": False,
        "attention": "beit",
        "topology": "parallel",
        "head": "theta",
    },
    "clip": {"pool": "clip", "topology": "none", "standardise": True},
}
MODELS = {name: Maven(MavenConfig.tiny(**changes)).eval() for name, changes in VARIANTS.items()}

variants = st.sampled_from(sorted(VARIANTS))
seeds = st.integers(0, 2**31)


def recording(model: Maven, t: int, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """One recording: inputs, masks with random gaps, times; clocks of their own where the model has them."""
    g = torch.Generator().manual_seed(seed)
    native = model.clock != "frame"
    lengths = {"audio": 2 * t, "text": max(1, t // 3)} if native else {}
    inputs, valid, times = {}, {}, {}
    for m, width in model.config.streams.items():
        n = lengths.get(m, t)
        inputs[m] = torch.randn(1, n, width, generator=g)
        valid[m] = torch.rand(1, n, generator=g) < 0.7
        times[m] = (torch.arange(n).double()[None] + 0.5) * (t / 25 / n)
    if native or seed % 2:  # on the frame clock the masks alone tell padding
        valid[FRAME] = torch.ones(1, t, dtype=torch.bool)
    times[FRAME] = times["visual"]
    return inputs, valid, times


def padded(x: dict[str, Tensor], n: int, value: float) -> dict[str, Tensor]:
    return {
        m: torch.cat((v, torch.full((v.shape[0], n, *v.shape[2:]), value).to(v.dtype)), dim=1) for m, v in x.items()
    }


@given(variants, st.integers(1, 12), st.integers(1, 9), st.sampled_from([0.0, 5.0, float("nan"), float("inf")]), seeds)
@settings(max_examples=60, deadline=None)
@torch.no_grad()
def test_appended_padding_changes_nothing(variant: str, t: int, n: int, junk: float, seed: int) -> None:
    model = MODELS[variant]
    inputs, valid, times = recording(model, t, seed)
    y, _ = model(inputs, valid, times)
    longer, _ = model(padded(inputs, n, junk), padded(valid, n, False), padded(times, n, 99.0))
    assert longer.shape == (1, t + n, 2)
    assert bool(longer.isfinite().all())
    assert_near(longer[:, :t], y)


@given(variants, st.integers(1, 12), st.sampled_from(["visual", "audio", "text"]), seeds)
@settings(max_examples=60, deadline=None)
def test_a_modality_without_a_valid_row_contributes_nothing(variant: str, t: int, missing: str, seed: int) -> None:
    """The same with anything in its place as with the modality left out, and no gradient from or to it."""
    model = MODELS[variant]
    inputs, valid, times = recording(model, t, seed)
    gone = [m for m in inputs if m.startswith(missing)]
    valid |= {m: torch.zeros_like(valid[m]) for m in gone}
    junk = inputs | {m: torch.full_like(inputs[m], float("nan")) for m in gone}
    junk = {m: x.requires_grad_() for m, x in junk.items()}
    model.zero_grad()
    y, _ = model(junk, valid, times)
    without, _ = model(*({k: v for k, v in x.items() if k not in gone} for x in (inputs, valid, times)))
    assert bool(y.isfinite().all())
    assert_near(y, without)
    y.square().sum().backward()
    for p in model.parameters():
        assert p.grad is None or bool(p.grad.isfinite().all())
    for m, x in junk.items():
        assert bool(x.grad.isfinite().all())  # type: ignore[union-attr]
        if m in gone:
            assert float(x.grad.abs().max()) == 0  # type: ignore[union-attr]
