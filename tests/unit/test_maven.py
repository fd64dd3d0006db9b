"""MAVEN: every option runs and trains; sizes; order in time, clocks, topologies, attention maps, pretrained blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from affectrace.errors import ConfigError, WeightsError
from affectrace.models.beit import OLD_NAMES, BeitBlocks
from affectrace.models.inputs import prepare_inputs
from affectrace.models.maven import Maven, MavenConfig

T = 11


def made(b: int = 2, t: int = T, seed: int = 0, **changes) -> tuple[Maven, dict[str, Tensor], dict[str, Tensor]]:
    """A tiny model in eval mode, inputs and times for it."""
    torch.manual_seed(seed)
    model = Maven(MavenConfig.tiny(**changes)).eval()
    lengths = {"audio": 2 * t, "text": 3} if model.clock == "native" else {}
    inputs = {m: torch.randn(b, lengths.get(m, t), w) for m, w in model.config.streams.items()}
    times = {m: (torch.arange(x.shape[1]).double() + 0.5)[None].repeat(b, 1) / x.shape[1] for m, x in inputs.items()}
    return model, inputs, times


OPTIONS = [
    {"visual": "beit"},
    {"visual": "both"},
    {"clock": "native"},
    {"clock": "utterance"},
    {"merge": "sum"},
    {"merge_norm": True},
    {"topology": "parallel"},
    {"topology": "none"},
    {"attention": "beit"},
    {"attention": "additive"},
    {"additive_sigmoid": True},
    {"attention": "additive", "additive_residual": False},
    {"self_attention": False},
    {"positions": "sinusoidal"},
    {"positions": "relative", "clock": "native"},
    {"positions": "relative", "clock": "utterance"},
    {"head": "cartesian"},
    {"head": "theta"},
    {"pool": "clip"},
    {"embedding_noise": 0.01},
    {"standardise": True},
    {"modality_dropout": 0.5},
    {"modalities": ("visual",), "input_dims": (12,)},
    {"modalities": ("visual", "audio", "text", "physiology"), "input_dims": (12, 8, 8, 4)},
]


@pytest.mark.parametrize(
    ("preset", "count"),
    [
        ("paper", 183_392_003),
        ("arxiv_v1", 184_178_437),
        ("released_beit", 179_843_586),  # of which the BEiT blocks are 2 x 12 x 7,088,640
        ("released_mlp", 8_535_810),
    ],
)
def test_parameters_of_the_presets(preset: str, count: int) -> None:
    """Of the released ones as many as the tensors in the authors' checkpoints hold (docs/papers/maven.md)."""
    with torch.device("meta"):
        model = Maven(getattr(MavenConfig, preset)())
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_every_option_runs_and_every_parameter_learns(changes) -> None:
    model, inputs, times = made(**changes)
    model.train()
    y, state = model(inputs, None, times)
    assert y.shape == (2, T, 2)
    assert state is None
    assert bool(y.isfinite().all())
    y.square().sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert bool(p.grad.isfinite().all()), name
    if model.config.clock != "utterance":  # there, one key: what queries it cannot matter
        silent = [n for n, p in model.named_parameters() if float(p.grad.abs().max()) == 0 and not n.startswith("head")]
        assert silent == []


@pytest.mark.parametrize("positions", ["none", "sinusoidal", "relative"])
@torch.no_grad()
def test_order_matters_with_positions_only_and_the_origin_of_time_never(positions: str) -> None:
    model, inputs, times = made(positions=positions)
    order = torch.arange(T).flip(0)
    y, _ = model(inputs, None, times)
    reversed_, _ = model({m: x[:, order] for m, x in inputs.items()}, None, times)
    assert (float((reversed_ - y[:, order]).abs().max()) < 1e-5) == (positions == "none")
    later, _ = model(inputs, None, {m: t + 3600 for m, t in times.items()})
    assert float((later - y).abs().max()) < 1e-5


@torch.no_grad()
def test_clip_pooling_gives_one_value_for_the_frames_that_exist() -> None:
    model, inputs, _ = made(pool="clip")
    y, _ = model(inputs)
    assert float((y - y[:, :1]).abs().max()) == 0
    valid = torch.arange(T) < 7
    masked, _ = model(inputs, dict.fromkeys(inputs, valid[None].repeat(2, 1)))
    cut, _ = model({m: x[:, :7] for m, x in inputs.items()})
    assert float((masked[:, 0] - cut[:, 0]).abs().max()) < 1e-6


@torch.no_grad()
def test_utterance_clock_averages_all_but_the_frames_modality() -> None:
    model, inputs, _ = made(clock="utterance")
    y, _ = model(inputs)
    one = {m: x if m == "visual" else x.mean(1, keepdim=True) for m, x in inputs.items()}
    assert float((model(one)[0] - y).abs().max()) < 1e-6
    still = inputs | {"visual": inputs["visual"][:, :1].expand(-1, T, -1)}
    assert float(model(still)[0].std(dim=1).max()) < 1e-6  # what changes in the voice within an utterance is lost


@torch.no_grad()
def test_dual_visual_path_is_joined_before_projection() -> None:
    model, inputs, _ = made(visual="both")
    assert tuple(model.input_dims) == ("visual", "visual_beit", "audio", "text")
    assert model.modalities["visual"] == ("visual", "visual_beit")
    single, _, _ = made(input_dims=(20, 8, 8))
    single.load_state_dict(model.state_dict())
    joined = {m: x for m, x in inputs.items() if m != "visual_beit"}
    joined["visual"] = torch.cat((inputs["visual"], inputs["visual_beit"]), -1)
    assert torch.equal(single(joined)[0], model(inputs)[0])
    without = {m: x for m, x in inputs.items() if m != "visual_beit"}
    joined["visual"] = torch.cat((inputs["visual"], torch.zeros(2, T, 8)), -1)
    assert torch.equal(single(joined)[0], model(without)[0])


def test_modality_dropout_hides_some_never_all() -> None:
    model, inputs, _ = made(b=400, modality_dropout=0.6, dropout=0.0, head_dropout=(0.0, 0.0))
    valid = {"text": torch.arange(400)[:, None].expand(-1, T) < 200}
    torch.manual_seed(0)
    found = prepare_inputs(model.spec, inputs, valid, {}, training=True).tokens.values()
    there = torch.stack([t.valid.any(1) for t in found], 1)
    assert bool(there.any(1).all())
    assert 0.6 < float(there[:, 0].float().mean()) < 0.8  # .4, and a sample that would lose all keeps all
    assert not bool(there[200:, 2].any())
    assert bool((next(iter(found)).x[~there[:, 0]] == 0).all())


@pytest.mark.parametrize("clock", ["frame", "native", "utterance"])
def test_no_frames_and_no_rows(clock: str) -> None:
    model, inputs, times = made(clock=clock)
    y, _ = model({m: x[:, :0] for m, x in inputs.items()}, None, {m: t[:, :0] for m, t in times.items()})
    assert y.shape == (2, 0, 2)
    if clock != "frame":
        empty = inputs | {"text": inputs["text"][:, :0]}
        gone = {m: x for m, x in inputs.items() if m != "text"}
        with torch.no_grad():
            a, _ = model(empty, None, times | {"text": times["text"][:, :0]})
            b, _ = model(gone, None, {m: t for m, t in times.items() if m != "text"})
        assert float((a - b).abs().max()) < 1e-6


def test_pretrained_beit_goes_into_both_encoders_and_the_config_says_so() -> None:
    model, _, _ = made()
    source = BeitBlocks(2, 24, 2, 96)
    torch.nn.init.ones_(source.blocks[1].lambda_2)
    names = {f"blocks.{i}.{ours}": f"encoder.layer.{i}.{old}" for i in (0, 1) for ours, old in OLD_NAMES.items()}
    weights = {names[n]: t for n, t in source.state_dict().items()} | {"pooler.layernorm.bias": torch.zeros(24)}
    assert model.config.beit_init == "random"
    assert model.load_beit(weights, name="beit-base") == ["pooler.layernorm.bias"]
    assert model.config.beit_init == "beit-base"
    for encoder in model.encoders:
        assert torch.equal(encoder.blocks.blocks[1].lambda_2, torch.ones(24))
    with pytest.raises(WeightsError, match="beit-base: is not a BEiT of 2 blocks"):
        model.load_beit({}, name="beit-base")
    with pytest.raises(ConfigError, match="there are no BEiT blocks to load into"):
        made(topology="none")[0].load_beit(weights, name="beit-base")
