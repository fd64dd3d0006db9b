"""A stream through a sliding window: every frame once, in order, in time, whatever the pushes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from affectrace.errors import ConfigError, InputError
from affectrace.features.base import ExtractorId, Features
from affectrace.inference.run import OVERLAPPING, TrainedModel
from affectrace.models.maven import Maven, MavenConfig
from affectrace.models.sliding import SlidingModel
from affectrace.sequences import Sequence, SequenceConfig
from affectrace.sequences.normalization import FeatureNormalizer
from affectrace.timeline import Timeline


class Echo(nn.Module):
    """Returns the first two features of each frame, and records its windows."""

    def __init__(self) -> None:
        super().__init__()
        self.windows: list[Tensor] = []

    def forward(self, inputs, valid, times):  # type: ignore[no-untyped-def]
        self.windows.append(times["visual"][0])
        return inputs["visual"][..., :2], None


def frames(n: int, fps: float = 25.0) -> tuple[Tensor, Tensor]:
    times = torch.arange(n, dtype=torch.float64) / fps
    return torch.stack((times.sin(), times.cos(), times), dim=-1).float(), times


def run(sliding: SlidingModel, x: Tensor, t: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor, list[float]]:
    """Push in parts of these sizes; times, values and delays."""
    got_t, got_y, delays, i = [], [], [], 0
    for size in [*sizes, len(t)]:
        part = slice(i, min(i + size, len(t)))
        i = part.stop
        times, values = sliding.push({"visual": x[part]}, {"visual": t[part]})
        got_t.append(times)
        got_y.append(values)
        if part.stop > part.start:
            delays += (t[part.stop - 1] - times).tolist()
    times, values = sliding.flush()
    return torch.cat([*got_t, times]), torch.cat([*got_y, values]), delays


@pytest.mark.parametrize(
    "sizes", [[1] * 500, [7, 0, 30, 1, 200, 50], [500], []], ids=["one by one", "cuts", "all", "rest"]
)
def test_every_frame_comes_out_once_in_order_with_its_own_value(sizes: list[int]) -> None:
    x, t = frames(500)
    echo = Echo()
    sliding = SlidingModel(echo, window_s=4, hop_s=0.5, lookahead_s=1)
    got_t, got_y, delays = run(sliding, x, t, sizes)
    assert torch.equal(got_t, t)
    assert torch.equal(got_y, x[:, :2])
    assert all(float(w[-1] - w[0]) <= 4 for w in echo.windows)  # memory is one window
    if sizes == [1] * 500:
        assert max(delays) <= sliding.latency_s + 1 / 25 + 1e-9  # to the next frame
        assert len(echo.windows) < 50


def test_the_cuts_do_not_change_what_a_real_model_says_and_one_window_is_the_offline_answer() -> None:
    torch.manual_seed(0)
    model = Maven(MavenConfig.tiny(modalities=("visual",), input_dims=(3,), positions="relative")).eval()
    x, t = frames(200)
    one, cut = (
        run(SlidingModel(model, window_s=3, hop_s=0.4, lookahead_s=0.6), x, t, sizes)[1]
        for sizes in ([1] * 200, [13, 90, 5])
    )
    assert float((one - cut).abs().max()) < 1e-6
    whole = run(SlidingModel(model, window_s=100, hop_s=50, lookahead_s=10), x, t, [])[1]
    with torch.no_grad():
        offline = model({"visual": x[None]}, None, {"visual": t[None]})[0][0]
    assert float((whole - offline).abs().max()) < 1e-6
    assert not torch.allclose(one, offline, atol=1e-4)


def test_bad_windows_and_times_are_refused() -> None:
    with pytest.raises(ConfigError, match="a window of 1 s is too short"):
        SlidingModel(Echo(), window_s=1, hop_s=0.5, lookahead_s=0.6)
    sliding, (x, t) = SlidingModel(Echo()), frames(5)
    sliding.push({"visual": x}, {"visual": t})
    for times, message in (
        ({}, "without a time for each row"),
        ({"visual": t.flip(0) + 9}, "increase"),
        ({"visual": t}, "increase"),
    ):
        with pytest.raises(InputError, match=message):
            sliding.push({"visual": x}, times)
    sliding.reset()
    assert len(sliding.flush().times) == len(sliding.push({}, {}).times) == 0


def features(modality: str, n: int, rate: int, dim: int) -> Features:
    rng = np.random.default_rng(dim)
    valid = rng.random(n) > 0.2
    values = rng.normal(50, 20, (n, dim)).astype(np.float32)
    return Features(modality, Timeline.regular(n, rate), values, valid, ExtractorId(f"{modality}-net"))


@pytest.mark.parametrize("missing", ["mask", "hold", "zero"])
def test_one_window_over_a_recording_gives_the_trace_of_the_trained_model(missing: Any) -> None:
    torch.manual_seed(0)
    config = MavenConfig.tiny(modalities=("visual", "audio"), input_dims=(5, 3), clock="native", head="cartesian")
    model = Maven(config).eval()
    visual, audio = features("visual", 90, 30, 5), features("audio", 150, 50, 3)
    how = SequenceConfig(clock="native", missing=missing)
    sequence = Sequence("r", visual.timeline, {"visual": visual, "audio": audio}, config=how)
    statistics = FeatureNormalizer.fit([sequence])
    trained, last = (
        TrainedModel(model=model, id="maven@0", statistics=statistics, scheme=OVERLAPPING, features={}, sequences=how),
        model.head.fc[-1],
    )
    y = torch.from_numpy(np.array(trained.predict(sequence).values, np.float32))
    with torch.no_grad():  # an untrained network hardly moves
        last.weight.div_(y.std(dim=0)[:, None])
        last.bias.sub_(y.mean(dim=0)).div_(y.std(dim=0))
    expected = trained.predict(sequence).values
    assert expected.std(axis=0).min() > 0.2
    piece = sequence.read()
    rows = [
        {m: torch.from_numpy(np.array(part[m])) for m in ("visual", "audio")}
        for part in (piece.inputs, piece.times, piece.valid, piece.filled)
    ]

    def live(given: FeatureNormalizer | None) -> np.ndarray:
        sliding = SlidingModel(model, statistics=given, window_s=100, hop_s=50, lookahead_s=10)
        return torch.cat((sliding.push(*rows).values, sliding.flush().values)).numpy()

    np.testing.assert_allclose(live(statistics), expected, atol=1e-5)
    assert np.abs(live(None) - expected).max() > 0.1


def test_rows_without_data_are_zeros_and_unknown_streams_are_refused() -> None:
    statistics = FeatureNormalizer(
        {"visual": np.array([1, 2, 0], np.float32)}, {"visual": np.array([4, 8, 1], np.float32)}, {"visual": 9}, ()
    )
    sliding = SlidingModel(Echo(), statistics=statistics, lookahead_s=0)
    x, t = torch.tensor([[3.0, 4.0, 0.0], [float("nan")] * 3, [41.0, -42.0, 0.0]]), torch.tensor([0.0, 1.0, 2.0])
    output = sliding.push({"visual": x}, {"visual": t}, {"visual": torch.tensor([True, False, True])})
    assert torch.cat((output.values, sliding.flush().values)).tolist() == [[0.5, 0.25], [0.0, 0.0], [1.0, -1.0]]
    with pytest.raises(InputError, match="no statistics of 'audio', only of visual"):
        sliding.push({"audio": x}, {"audio": t + 9})
