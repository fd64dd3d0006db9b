"""What every model of the registry promises, at its tiny size. A new model joins by its line in MODELS."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from affectrace.errors import InputError
from affectrace.models.checkpoint import MODELS, create, entry, load, save
from affectrace.models.layers import map_state

T = 23
CAUSAL = [name for name in MODELS if entry(name).model_class().causal]
Values = dict[str, Tensor]


def shapes(model: Any) -> dict[str, tuple[int, ...]]:
    return {m: (s,) if isinstance(s, int) else tuple(s) for m, s in model.config.streams.items()}


def batch_for(model: Any, b: int = 2, t: int = T, seed: int = 0) -> tuple[Values, Values, Values]:
    """Random features, some frames not valid (never all), frame times at 25 a second."""
    gen = torch.Generator().manual_seed(seed)
    inputs = {m: torch.randn(b, t, *shape, generator=gen) for m, shape in shapes(model).items()}
    valid = {m: torch.rand(b, t, generator=gen) > 0.3 for m in inputs}
    for mask in valid.values():
        mask[:, min(1, t - 1)] = True
    valid["frame"] = torch.ones(b, t, dtype=torch.bool)
    return inputs, valid, {m: torch.arange(t).expand(b, t) / 25 for m in (*inputs, "frame")}


def cut(values: Values, a: int, b: int) -> Values:
    return {k: v[:, a:b] for k, v in values.items()}


def made(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    model = create(name, "tiny", **changes).eval()
    for parameter in model.parameters():  # no weight at a special value: zero-initialised parts must count too
        if parameter.abs().max() == 0:
            nn.init.normal_(parameter, 0.0, 0.1)
    return model


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> Any:
    return made(request.param)


def test_every_preset_of_the_registry_exists() -> None:
    for name, found in MODELS.items():
        assert found.model_class().name == name
        assert {"paper", "tiny"} <= set(found.presets)
        assert all(callable(getattr(found.config_class(), preset)) for preset in found.presets)


def test_output_is_valence_and_arousal_of_every_frame(model: Any) -> None:
    inputs, valid, times = batch_for(model)
    y, state = model(inputs, valid, times)
    assert y.shape == (2, T, 2)
    assert y.dtype == torch.float32
    assert torch.isfinite(y).all()
    assert set(inputs) == set(model.modalities)
    assert (state is None) or model.causal


def test_one_frame_and_nothing_valid_are_finite(model: Any) -> None:
    inputs, valid, times = batch_for(model, t=1)
    assert torch.isfinite(model(inputs, valid, times)[0]).all()
    nothing = {k: v if k == "frame" else torch.zeros_like(v) for k, v in valid.items()}
    assert torch.isfinite(model(inputs, nothing, times)[0]).all()


def test_gradient_reaches_every_parameter(model: Any) -> None:
    inputs, valid, times = batch_for(model, b=3, t=40)
    model.train()
    y, _ = model(inputs, valid, times)
    (y * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not without
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_what_stands_in_frames_that_are_not_valid_changes_nothing(model: Any) -> None:
    inputs, valid, times = batch_for(model)
    y, _ = model(inputs, valid, times)
    for rubbish in (1e6, float("nan")):
        spoilt = {m: x.clone() for m, x in inputs.items()}
        for m, x in spoilt.items():
            x[~valid[m]] = rubbish
        torch.testing.assert_close(model(spoilt, valid, times)[0], y, atol=1e-6, rtol=0)


def test_nothing_is_learned_from_frames_that_are_not_valid(model: Any) -> None:
    inputs, valid, times = batch_for(model)

    def gradients(given: Values) -> list[Tensor]:
        y, _ = model(given, valid, times)
        return list(torch.autograd.grad((y**2).sum(), list(model.parameters()), allow_unused=True))

    spoilt = {m: x.masked_fill(~valid[m][(...,) + (None,) * (x.ndim - 2)], float("nan")) for m, x in inputs.items()}
    for clean, found in zip(gradients(inputs), gradients(spoilt)):
        torch.testing.assert_close(found, clean, atol=1e-5, rtol=1e-4)


def test_padding_changes_nothing(model: Any) -> None:
    inputs, valid, times = batch_for(model)
    y, _ = model(inputs, valid, times)
    more = 6
    padded = {m: torch.cat([x, 1e3 * torch.ones_like(x[:, :more])], 1) for m, x in inputs.items()}
    masks = {m: torch.cat([v, torch.zeros_like(v[:, :more])], 1) for m, v in valid.items()}
    clock = {m: torch.arange(T + more).expand(2, -1) / 25 for m in times}
    z, _ = model(padded, masks, clock)
    torch.testing.assert_close(z[:, :T], y, atol=1e-5, rtol=1e-5)


def test_a_batch_of_two_is_two_of_one(model: Any) -> None:
    inputs, valid, times = batch_for(model)
    y, _ = model(inputs, valid, times)
    for i in range(2):
        one = [{k: v[i : i + 1] for k, v in values.items()} for values in (inputs, valid, times)]
        torch.testing.assert_close(model(*one)[0], y[i : i + 1], atol=1e-5, rtol=1e-5)


def test_saved_and_loaded_is_bit_equal(model: Any, tmp_path: Path) -> None:
    inputs, valid, times = batch_for(model)
    save(model, tmp_path / "m", preset="tiny", extra={"note": 1})
    back = load(tmp_path / "m")
    assert back.name == model.name
    assert back.preset == "tiny"
    assert back.extra == {"note": 1}
    assert back.model.config == model.config
    state = model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in back.model.state_dict().items())
    assert torch.equal(back.model(inputs, valid, times)[0], model(inputs, valid, times)[0])
    assert all(p.requires_grad for p in back.model.parameters())


def test_bfloat16_autocast_stays_close_and_trains(model: Any) -> None:
    inputs, valid, times = batch_for(model)
    y, _ = model(inputs, valid, times)
    with torch.autocast("cpu", torch.bfloat16):
        z, _ = model(inputs, valid, times)
    assert (z.float() - y).abs().max() <= 0.05 * max(1.0, y.abs().max().item())
    z.float().square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_foreign_inputs_are_refused(model: Any) -> None:
    inputs, valid, times = batch_for(model)
    first = next(iter(inputs))
    with pytest.raises(InputError):
        model({"smell": inputs[first]}, None, times)
    with pytest.raises(InputError):
        model(inputs | {first: inputs[first][..., :-1]}, valid, times)


@pytest.mark.parametrize("name", CAUSAL)
def test_the_future_cannot_change_the_past(name: str) -> None:
    model = made(name)
    inputs, valid, times = batch_for(model)
    y, _ = model(inputs, valid, times)
    for t in (1, 7, T - 1):
        other, masks, _ = batch_for(model, seed=1)
        changed = {m: torch.cat([x[:, :t], other[m][:, t:]], 1) for m, x in inputs.items()}
        masks = {m: torch.cat([v[:, :t], masks[m][:, t:]], 1) for m, v in valid.items()}
        torch.testing.assert_close(model(changed, masks, times)[0][:, :t], y[:, :t], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", CAUSAL)
def test_every_cut_gives_the_same_trace(name: str) -> None:
    model = made(name)
    inputs, valid, times = batch_for(model)
    y, _ = model(inputs, valid, times)
    for cuts in (range(T + 1), (0, T), (0, 1, 2, 12, T), (0, 5, 6, T)):
        state, ys = None, []
        for a, b in pairwise(cuts):
            part, state = model(cut(inputs, a, b), cut(valid, a, b), cut(times, a, b), state)
            state = map_state(state, torch.Tensor.detach)
            ys.append(part)
        torch.testing.assert_close(torch.cat(ys, 1), y, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [n for n in MODELS if n not in CAUSAL])
def test_models_that_are_not_causal_refuse_a_state(name: str) -> None:
    model = made(name)
    inputs, valid, times = batch_for(model)
    with pytest.raises(InputError, match="takes no state"):
        model(inputs, valid, times, state=())


@pytest.mark.parametrize("missing", ["hold", "zero", "mask-token"])
@pytest.mark.parametrize("name", CAUSAL)
def test_policies_for_missing_frames_differ_and_stream(name: str, missing: str) -> None:
    model = made(name, missing=missing)
    inputs, valid, times = batch_for(model)
    y, _ = model(inputs, valid, times)
    held = made(name, missing="hold")
    held.load_state_dict(model.state_dict(), strict=False)
    assert (missing == "hold") == torch.equal(held(inputs, valid, times)[0], y)
    state, ys = None, []
    for t in range(T):
        part, state = model(cut(inputs, t, t + 1), cut(valid, t, t + 1), cut(times, t, t + 1), state)
        ys.append(part)
    torch.testing.assert_close(torch.cat(ys, 1), y, atol=1e-5, rtol=0)
