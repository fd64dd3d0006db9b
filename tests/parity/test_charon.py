"""The authors' checkpoint converts, and the network it makes gives what theirs gives.

Theirs is tests/authors_mamba_va.py, written from the published facts.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from affectrace.errors import FormatError
from affectrace.models.checkpoint import convert
from affectrace.models.mamba_va_convert import convert_state
from authors_mamba_va import TheirNetwork, small


@pytest.mark.parametrize("sizes", [{}, {"n": 5, "layers": 2, "expand": 2, "d_conv": 3}])
@pytest.mark.parametrize("prefix", ["", "module."])
@torch.no_grad()
def test_outputs_equal_theirs_at_any_length(sizes: dict[str, int], prefix: str, tmp_path: Path) -> None:
    theirs = small(**sizes)
    torch.save({prefix + name: tensor for name, tensor in theirs.state_dict().items()}, tmp_path / "ckpt.pt")
    converted = convert(tmp_path / "ckpt.pt", "charon")
    for t in (1, 2, 3, 17, 60, 300):
        x = torch.randn(2, t, 24)
        y, _ = converted.model({"visual": x})
        torch.testing.assert_close(y, theirs(x), atol=1e-5, rtol=0)
    assert y.std() > 0.01  # not a constant that anything equals


@pytest.mark.slow
@torch.no_grad()
def test_the_published_size_equals_theirs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = TheirNetwork(1024, (1024, 768, 512, 256), 15).eval()
    torch.save(theirs.state_dict(), tmp_path / "ckpt.pt")
    converted = convert(tmp_path / "ckpt.pt", "charon")
    assert sum(p.numel() for p in converted.model.parameters()) == 67_155_086
    for t in (2, 300, 500):
        x = torch.randn(1, t, 1024)
        torch.testing.assert_close(converted.model({"visual": x})[0], theirs(x), atol=1e-5, rtol=0)


def test_every_tensor_is_used_or_named() -> None:
    state = small().state_dict()
    converted = convert_state(state)
    used = {name for name in state if name not in converted.unused}
    assert {"mamba.adaptor.0.weight", "mamba.adaptor.0.bias"} <= converted.unused.keys()
    assert converted.unused["temporal.network.1.net.4.weight_v"] == (
        "the same tensor as temporal.network.1.conv2.weight_v"
    )
    assert len(used) == len(converted.model.state_dict())
    assert converted.model.config.tcn_channels == (24, 20, 16, 32)
    assert converted.model.config.mamba_init == "authors"


def test_new_names_of_weight_norm_are_read() -> None:
    state = small().state_dict()
    renamed = {
        name.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): tensor
        for name, tensor in state.items()
        if ".net." not in name
    }
    new, old = convert_state(renamed).model.state_dict(), convert_state(state).model.state_dict()
    assert all(torch.equal(new[name], old[name]) for name in old)


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda s: s.pop("mamba.mamba.layers.1.0.D"), r"mamba\.mamba\.layers\.1\.0\.D is missing"),
        (
            lambda s: s.pop("temporal.network.0.conv1.weight_v"),
            r"not a Mamba-VA checkpoint.*temporal\.network\.0\.conv1\.weight_v",
        ),
        (lambda s: s.update({"extra.weight": torch.zeros(1)}), r"extra\.weight is not known"),
        (
            lambda s: s.update({"temporal.network.0.net.0.bias": torch.zeros(24)}),
            r"net\.0\.bias differs from temporal\.network\.0\.conv1\.bias",
        ),
        (
            lambda s: s.update({"mamba.mamba.layers.0.0.D": torch.zeros(3)}),
            r"mamba\.mamba\.layers\.0\.0\.D is \(3,\), not \(32,\)",
        ),
        (lambda s: s.clear(), r"not a Mamba-VA checkpoint"),
    ],
)
def test_layouts_that_do_not_fit_are_refused_by_name(change: object, message: str) -> None:
    state = dict(small().state_dict())
    change(state)  # type: ignore[operator]
    with pytest.raises(FormatError, match=message):
        convert_state(state, where="ckpt.pt")


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"model": small()}, tmp_path / "whole.pt")  # a pickled module, not tensors
    with pytest.raises(FormatError, match=r"whole\.pt: .*tensors only"):
        convert(tmp_path / "whole.pt", "charon")
