"""What every model of the registry promises, in each of its presets, made small. A new model joins by its MODELS line.

The presets as they are, at full size, come in the slow part at the end.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from affectrace.errors import InputError
from affectrace.models.checkpoint import MODELS, create, entry, load, save

T = 23
CAUSAL = [name for name in MODELS if entry(name).model_class().causal]
Values = dict[str, Tensor]


def batch_for(model: Any, b: int = 2, t: int = T, seed: int = 0) -> tuple[Values, Values, Values]:
    """Random features, some frames not valid (never all), frame times at 25 a second."""
    gen = torch.Generator().manual_seed(seed)
    inputs = {m: torch.randn(b, t, dim, generator=gen) for m, dim in model.input_dims.items()}
    valid = {m: torch.rand(b, t, generator=gen) > 0.3 for m in inputs}
    for mask in valid.values():
        mask[:, min(1, t - 1)] = True
    valid["frame"] = torch.ones(b, t, dtype=torch.bool)
    return inputs, valid, {m: torch.arange(t).expand(b, t) / 25 for m in (*inputs, "frame")}


def cut(values: Values, a: int, b: int) -> Values:
    return {k: v[:, a:b] for k, v in values.items()}


def small(name: str, preset: str) -> dict[str, Any]:
    """The sizes of a model's tiny preset, to be put over another preset that keeps its choices."""
    kind = entry(name).config_class()
    tiny, plain, own = kind.tiny(), kind.paper(), getattr(kind, preset)()
    sizes = {f.name for f in fields(kind) if getattr(tiny, f.name) != getattr(plain, f.name)}
    return {f: getattr(tiny, f) for f in sizes if preset == "tiny" or getattr(own, f) == getattr(plain, f)}


def made(name: str, preset: str = "tiny", **changes: Any) -> Any:
    torch.manual_seed(0)
    model = create(name, preset, **small(name, preset) | changes).eval()
    for parameter in model.parameters():  # no weight at a special value: zero-initialized parts must count too
        if parameter.abs().max() == 0:
            nn.init.normal_(parameter, 0.0, 0.1)
    return model


PRESETS = [(name, preset) for name, found in MODELS.items() for preset in found.presets]


SEVERAL = [(name, "several") for name in ("gru", "tcn-transformer")]  # streams of a model that reads one row a frame


@pytest.fixture(params=PRESETS + SEVERAL, ids="-".join)
def model(request: pytest.FixtureRequest) -> Any:
    name, preset = request.param
    return made(name, more_streams={"voice": 3, "text": 5}) if preset == "several" else made(name, preset)


def without_gradient(model: Any) -> set[str]:
    """Parameters that cannot have one.

    A bias on keys adds the same to a whole row of logits, which softmax ignores; queries and keys of a pathway over a
    single key, whose softmax is 1.
    """
    names = [name for name, _ in model.named_parameters()]
    ignored = {name for name in names if name.endswith(".key.bias")}
    if model.clock != "utterance":
        return ignored
    single = [m for m in model.config.modalities if m != model.config.frame_modality]
    paths = [name for name in names if name.startswith("pathways.")]
    return ignored | {p for p in paths for n in single if f"_from_{n}." in p and p.split(".")[2] in ("query", "key")}


def test_output_is_valence_and_arousal_of_every_frame(model: Any) -> None:
    inputs, valid, times = batch_for(model)
    y, state = model(inputs, valid, times)
    assert y.shape == (2, T, 2)
    assert y.dtype == torch.float32
    assert torch.isfinite(y).all()
    assert set(inputs) == {s for streams in model.modalities.values() for s in streams}
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
    sizes = {name: 0.0 if p.grad is None else float(p.grad.abs().max()) for name, p in model.named_parameters()}
    rounding = 1e-8 * max(sizes.values())  # what remains of terms that cancel; the smallest gradient is 1e-7 of it
    without = {name for name, size in sizes.items() if not size > rounding}
    assert without == without_gradient(model)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_invalid_frames_change_nothing_and_teach_nothing(model: Any) -> None:
    inputs, valid, times = batch_for(model)

    def outcome(given: Values) -> list[Tensor]:
        y, _ = model(given, valid, times)
        return [y, *torch.autograd.grad((y**2).sum(), list(model.parameters()), allow_unused=True)]

    clean = outcome(inputs)
    for junk in (1e6, float("nan")):
        spoilt = {m: x.masked_fill(~valid[m][..., None], junk) for m, x in inputs.items()}
        for found, expected in zip(outcome(spoilt), clean):
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


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
    unreached = {name for name, p in model.named_parameters() if p.grad is None}
    assert unreached <= without_gradient(model)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


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


@pytest.mark.parametrize("name", [n for n in MODELS if n not in CAUSAL])
def test_models_that_are_not_causal_refuse_a_state(name: str) -> None:
    model = made(name)
    inputs, valid, times = batch_for(model)
    with pytest.raises(InputError, match="takes no state"):
        model(inputs, valid, times, state=())


@pytest.mark.parametrize("missing", ["hold", "zero", "mask-token"])
@pytest.mark.parametrize("name", CAUSAL)
def test_policies_for_missing_frames_differ(name: str, missing: str) -> None:
    model, held = made(name, missing=missing), made(name, missing="hold")
    inputs, valid, times = batch_for(model)
    held.load_state_dict(model.state_dict(), strict=False)
    y, _ = model(inputs, valid, times)
    assert (missing == "hold") == torch.equal(held(inputs, valid, times)[0], y)


@pytest.mark.parametrize("name", CAUSAL)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
@torch.no_grad()
def test_any_cuts_at_random_give_the_same_trace(name: str, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=8))
    seed = data.draw(st.integers(0, 2**31))
    model = made(name)
    inputs, valid, times = batch_for(model, t=sum(lengths), seed=seed)
    y, _ = model(inputs, valid, times)
    state, ys, a = None, [], 0
    for length in lengths:
        part, state = model(*(cut(v, a, a + length) for v in (inputs, valid, times)), state)
        ys.append(part)
        a += length
    torch.testing.assert_close(torch.cat(ys, 1), y, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "preset"), [pair for pair in PRESETS if pair[1] != "tiny"])
def test_presets_at_full_size(name: str, preset: str, tmp_path: Path) -> None:
    """One window forwards and backwards, its padding, its halves; saved and loaded."""
    t = 6
    torch.manual_seed(0)
    model: Any = create(name, preset).eval()
    inputs, valid, times = batch_for(model, b=1, t=t)
    y, _ = model(inputs, valid, times)
    assert y.shape == (1, t, 2)
    assert torch.isfinite(y).all()
    y.square().sum().backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None}
    assert reached >= {n for n, _ in model.named_parameters()} - without_gradient(model)
    model.zero_grad(set_to_none=True)
    y = y.detach()
    with torch.no_grad():
        padded = {m: torch.cat([x, torch.ones_like(x[:, :2])], 1) for m, x in inputs.items()}
        masks = {m: torch.cat([v, torch.zeros_like(v[:, :2])], 1) for m, v in valid.items()}
        clock = {m: torch.arange(t + 2).expand(1, -1) / 25 for m in times}
        scale = max(1.0, y.abs().max().item())
        torch.testing.assert_close(model(padded, masks, clock)[0][:, :t], y, atol=1e-5 * scale, rtol=0)
        if model.causal:
            first, state = model(*(cut(v, 0, 4) for v in (inputs, valid, times)))
            rest, _ = model(*(cut(v, 4, t) for v in (inputs, valid, times)), state)
            torch.testing.assert_close(torch.cat([first, rest], 1), y, atol=1e-5 * scale, rtol=0)
        save(model, tmp_path / "m", preset=preset)
        del padded
        assert torch.equal(load(tmp_path / "m").model(inputs, valid, times)[0], model(inputs, valid, times)[0])
