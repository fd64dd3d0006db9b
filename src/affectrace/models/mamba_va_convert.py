"""Conversion of the Mamba-VA authors' checkpoints (FreedomPuppy77/Charon).

Their layout: temporal.network.{i} (TCN blocks), mamba.mamba (Mamba layers and projection), mamba.adaptor (never
called), dual_reg (head); with or without DataParallel's `module.`, weight norm in torch's old or new names. Tensors are
used, listed with the reason they are not, or refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from affectrace.errors import ConfigError, FormatError
from affectrace.features.runtime import load_strict
from affectrace.models.checkpoint import Converted
from affectrace.models.mamba_va import MambaVA, MambaVAConfig

_NET = {"0": "conv1", "2": "relu1", "4": "conv2", "6": "relu2"}  # a block's layers in their nn.Sequential
_THEIRS = (  # our names -> theirs
    (r"tcn\.(\d+)\.(.+)", r"temporal.network.\1.\2"),
    (r"mamba\.(\d+)\.block\.(.+)", r"mamba.mamba.layers.\1.0.\2"),
    (r"mamba\.(\d+)\.norm\.(.+)", r"mamba.mamba.layers.\1.1.\2"),
    (r"proj\.(.+)", r"mamba.mamba.proj.\1"),
    (r"head\.(.+)", r"dual_reg.\1"),
)


def convert_state(tensors: Mapping[str, Tensor], *, where: str | Path | None = None) -> Converted:
    """Convert their state dict; raises FormatError naming every missing, unknown or misshapen tensor."""
    state = {_older_name(name): tensor for name, tensor in tensors.items()}
    unused, wrong = _unused(state)
    try:
        model = MambaVA(_sizes(state))
    except (KeyError, IndexError, ConfigError) as error:
        what = f"is not a Mamba-VA checkpoint of the authors (tensors missing or misshapen: {error})"
        raise FormatError(what, where=where, hint="give the .pt file their training script saves") from None
    names = {_their_name(name): name for name in model.state_dict()}
    wrong += [f"{name} is not known" for name in state if name not in names and name not in unused]
    ours = {names[name]: tensor for name, tensor in state.items() if name in names}
    for name, tensor in ours.items():
        if name.endswith("downsample.weight") and tensor.ndim == 3:  # a convolution of width 1 in their code
            ours[name] = tensor.squeeze(-1)
    load_strict(
        model,
        ours,
        where=where,
        what="does not fit the authors' layout",
        hint="see docs/papers/mamba-va.md for the layout",
        mistakes=wrong,
        name=_their_name,
    )
    originals = {_older_name(name): name.removeprefix("module.") for name in tensors}
    return Converted(model.eval(), {originals[name]: why for name, why in unused.items()})


def _older_name(name: str) -> str:
    """Without DataParallel's prefix; weight norms as torch named them before 2.0."""
    name = name.removeprefix("module.")
    for newer, older in (("original0", "weight_g"), ("original1", "weight_v")):
        name = name.replace(f"parametrizations.weight.{newer}", older)
    return name


def _their_name(name: str) -> str:
    for pattern, replacement in _THEIRS:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def _unused(state: Mapping[str, Tensor]) -> tuple[dict[str, str], list[str]]:
    """Tensors that are not used, with the reason; and second copies that differ from the first."""
    unused: dict[str, str] = {}
    wrong: list[str] = []
    for name, tensor in state.items():
        if re.fullmatch(r"mamba\.adaptor\.0\.(weight|bias)", name):
            unused[name] = "the adaptor is never called in their forward pass"
        elif copy := re.fullmatch(r"(temporal\.network\.\d+)\.net\.([0246])\.(.+)", name):
            first = f"{copy[1]}.{_NET[copy[2]]}.{copy[3]}"
            unused[name] = f"the same tensor as {first}"
            if first not in state:
                wrong.append(f"{name} has no {first} beside it")
            elif not torch.equal(tensor, state[first]):
                wrong.append(f"{name} differs from {first}")
    return unused, wrong


def _sizes(state: Mapping[str, Tensor]) -> MambaVAConfig:
    """Sizes read from the tensors; KeyError names the first missing one."""

    def count(prefix: str) -> int:
        return len({m[1] for name in state if (m := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name))})

    blocks = [state[f"temporal.network.{i}.conv1.weight_v"] for i in range(max(1, count("temporal.network")))]
    first = "mamba.mamba.layers.0.0"
    in_proj, A_log = state[f"{first}.in_proj.weight"], state[f"{first}.A_log"]
    return MambaVAConfig.released(
        input_dim=blocks[0].shape[1],
        tcn_channels=tuple(weight.shape[0] for weight in blocks),
        kernel_size=blocks[0].shape[2],
        mamba_layers=count("mamba.mamba.layers"),
        d_state=A_log.shape[1],
        d_conv=state[f"{first}.conv1d.weight"].shape[2],
        expand=max(1, A_log.shape[0] // in_proj.shape[1]),
        head_width=state["dual_reg.0.weight"].shape[0],
    )
