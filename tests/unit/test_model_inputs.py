"""Model inputs: what does not fit is refused, rows are resampled onto frames, normalization is over valid rows only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from affectrace.errors import InputError
from affectrace.models.inputs import LastSeen, normalized, one_stream, onto_frames
from affectrace.models.mamba_va import MambaVA, MambaVAConfig
from affectrace.models.maven import Maven, MavenConfig

T = 11
X = torch.zeros(2, T, 8)
FRAMES = torch.zeros(1, 3, 32)


@pytest.mark.parametrize(
    ("inputs", "valid", "named"),
    [
        ({"visual": FRAMES[:, :0]}, None, "(1, 0, 32)"),
        ({"visual": FRAMES[0]}, None, "(3, 32)"),
        ({"visual": FRAMES}, {"visual": torch.ones(1, 2, dtype=torch.bool)}, "bool (1, 2)"),
        ({"visual": FRAMES}, {"visual": torch.ones(1, 3)}, "float32 (1, 3)"),
    ],
)
def test_one_stream_that_does_not_fit_is_refused(inputs: Any, valid: Any, named: str) -> None:
    with pytest.raises(InputError) as caught:
        MambaVA(MambaVAConfig.tiny())(inputs, valid)
    assert named in str(caught.value)


def test_streams_of_one_row_are_filled_each_by_itself() -> None:
    streams = {"visual": 1, "voice": 2, "text": 1}
    inputs = {"visual": torch.tensor([[[1.0], [2], [3]]]), "voice": torch.tensor([[[4.0, 5], [6, 7], [8, 9]]])}
    x, seen = one_stream(inputs, {"voice": torch.tensor([[True, False, True]])}, streams)
    filled, last = LastSeen("hold", 4)(x, seen)
    assert filled[0].tolist() == [[1, 4, 5, 0], [2, 4, 5, 0], [3, 8, 9, 0]]
    assert last is not None
    assert last.tolist() == [[3, 8, 9, 0]]


@pytest.mark.parametrize(
    ("clock", "change", "named"),
    [
        ("frame", lambda i, v, t: i.clear(), "visual, audio, text; given: none"),
        ("frame", lambda i, v, t: v.update(voice=X), "voice"),
        ("frame", lambda i, v, t: i.update(audio=X[:1]), "'audio' is (1, 11, 8)"),
        ("frame", lambda i, v, t: i.update(audio=X[:, :4]), "visual 11, audio 4, text 11"),
        ("frame", lambda i, v, t: v.update(audio=X[..., 0]), "valid['audio'] is torch.float32"),
        ("frame", lambda i, v, t: v.update(frame=X[:, :4, 0] > 0), "valid['frame'] is torch.bool (2, 4)"),
        ("native", lambda i, v, t: i.pop("visual"), "'visual' is missing; give times['frame']"),
        ("native", lambda i, v, t: t.pop("audio"), "times of audio are missing"),
        ("native", lambda i, v, t: t.update(audio=X[..., 0]), "need (2, 22)"),
        ("relative", lambda i, v, t: t.clear(), "times of visual, audio, text, frame are missing"),
    ],
)
def test_several_modalities_that_do_not_fit_are_refused(clock: str, change: Any, named: str) -> None:
    how = {"positions": "relative"} if clock == "relative" else {"clock": clock}
    inputs = {"visual": torch.zeros(2, T, 12), "audio": X, "text": X}
    if clock == "native":
        inputs |= {"audio": torch.zeros(2, 2 * T, 8)}
    times = {m: torch.arange(x.shape[1])[None].repeat(2, 1) / 25 for m, x in inputs.items() if clock == "native"}
    valid: dict[str, torch.Tensor] = {}
    change(inputs, valid, times)
    with pytest.raises(InputError) as caught:
        Maven(MavenConfig.tiny(**how))(inputs, valid, times)
    assert named in str(caught.value)


def test_onto_frames_is_linear_interpolation_over_valid_rows() -> None:
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.uniform(0.01, 0.5, (3, 20)), axis=1)
    values = rng.normal(size=(3, 20, 2))
    valid = rng.random((3, 20)) < 0.6
    frames = np.sort(rng.uniform(-1, 8, (3, 50)), axis=1)
    got = onto_frames(*(torch.from_numpy(x) for x in (values, valid, times, frames))).numpy()
    for i in range(3):
        for d in range(2):
            expected = np.interp(frames[i], times[i][valid[i]], values[i, valid[i], d])
            np.testing.assert_allclose(got[i, :, d], expected, atol=1e-9)


def test_standardized_is_the_authors_formula_over_valid_rows() -> None:
    x = 3 + 2 * torch.randn(2, 9, 4)
    valid = torch.arange(9)[None] < torch.tensor([[9], [5]])
    y = normalized(x, valid)
    for i, n in ((0, 9), (1, 5)):
        part = x[i, :n]
        assert torch.allclose(y[i, :n], (part - part.mean()) / (part.std() + 1e-8), atol=1e-5)
    assert float(y[1, 5:].abs().max()) == 0
    assert bool(normalized(torch.ones(1, 1, 1), torch.ones(1, 1, dtype=torch.bool)).isfinite().all())
    assert normalized(x[:, :0], valid[:, :0]).shape == (2, 0, 4)
