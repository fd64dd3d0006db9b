"""The Mamba-VA authors' checkpoints (FreedomPuppy77/Charon) as ours: every tensor is used, or named with the reason.

Their layout: temporal.network.{i} (TCN blocks), mamba.mamba (Mamba layers and projection), mamba.adaptor (never
called), dual_reg (head); the names may carry DataParallel's `module.`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from affectrace.errors import ConfigError, FormatError
from affectrace.models.checkpoint import Converted, load_strict
from affectrace.models.mamba_va import MambaVA, MambaVAConfig

_NET = {"0": "conv1", "2": "relu1", "4": "conv2", "6": "relu2"}  # places in their Sequential of the block's layers
_RENAMED = (
    (r"temporal\.network\.(\d+)\.(conv1|conv2)\.(weight_g|weight_v|bias)", r"tcn.\1.\2.\3"),
    (r"temporal\.network\.(\d+)\.(conv1|conv2)\.parametrizations\.weight\.original0", r"tcn.\1.\2.weight_g"),
    (r"temporal\.network\.(\d+)\.(conv1|conv2)\.parametrizations\.weight\.original1", r"tcn.\1.\2.weight_v"),
    (r"temporal\.network\.(\d+)\.(relu1|relu2|relu)\.weight", r"tcn.\1.\2.weight"),
    (r"temporal\.network\.(\d+)\.downsample\.(weight|bias)", r"tcn.\1.downsample.\2"),
    (r"mamba\.mamba\.layers\.(\d+)\.0\.(.+)", r"mamba.\1.block.\2"),
    (r"mamba\.mamba\.layers\.(\d+)\.1\.(weight|bias)", r"mamba.\1.norm.\2"),
    (r"mamba\.mamba\.proj\.(weight|bias)", r"proj.\1"),
    (r"dual_reg\.([02])\.(weight|bias)", r"head.\1.\2"),
)
_THEIRS = (  # the way back, for messages
    (r"tcn\.(\d+)\.(.+)", r"temporal.network.\1.\2"),
    (r"mamba\.(\d+)\.block\.(.+)", r"mamba.mamba.layers.\1.0.\2"),
    (r"mamba\.(\d+)\.norm\.(.+)", r"mamba.mamba.layers.\1.1.\2"),
    (r"proj\.(.+)", r"mamba.mamba.proj.\1"),
    (r"head\.(.+)", r"dual_reg.\1"),
)


def convert_state(theirs: Mapping[str, Tensor], *, where: str | Path | None = None) -> Converted:
    """A state dict of theirs; raises FormatError: every tensor missing, unknown or misshapen is named."""
    state = {name.removeprefix("module."): tensor for name, tensor in theirs.items()}
    unused, wrong = _without_use(state)
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in unused:
            continue
        new = _our_name(name)
        if new is None:
            wrong.append(f"{name} is not known")
        else:
            ours[new] = tensor.squeeze(-1) if new.endswith("downsample.weight") and tensor.ndim == 3 else tensor
    try:
        model = MambaVA(_sizes(ours))
    except (KeyError, IndexError, ConfigError) as error:
        raise FormatError(
            f"is no Mamba-VA of the authors' ({_their_name(error.args[0])} is missing)"
            if isinstance(error, KeyError)
            else f"has odd sizes ({error})",
            where=where,
            hint="give the .pt file their training script saves",
        ) from None
    load_strict(
        model,
        ours,
        where=where,
        what="does not fit the authors' layout",
        hint="see docs/papers/mamba-va.md for the layout",
        mistakes=wrong,
        name=_their_name,
    )
    return Converted(model.eval(), unused)


def _our_name(name: str) -> str | None:
    for pattern, replacement in _RENAMED:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return None


def _their_name(name: str) -> str:
    for pattern, replacement in _THEIRS:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def _without_use(state: Mapping[str, Tensor]) -> tuple[dict[str, str], list[str]]:
    """Tensors that need no place, with the reason; and second copies that differ from the first."""
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


def _sizes(ours: Mapping[str, Tensor]) -> MambaVAConfig:
    """Sizes read from the tensors; KeyError names the first that is missing."""

    def count(prefix: str) -> int:
        return len({name.split(".")[1] for name in ours if name.startswith(prefix)})

    blocks = [ours[f"tcn.{i}.conv1.weight_v"] for i in range(max(1, count("tcn.")))]
    in_proj, A_log = ours["mamba.0.block.in_proj.weight"], ours["mamba.0.block.A_log"]
    return MambaVAConfig.released(
        input_dim=blocks[0].shape[1],
        tcn_channels=tuple(weight.shape[0] for weight in blocks),
        kernel_size=blocks[0].shape[2],
        mamba_layers=count("mamba."),
        d_state=A_log.shape[1],
        d_conv=ours["mamba.0.block.conv1d.weight"].shape[2],
        expand=max(1, A_log.shape[0] // in_proj.shape[1]),
        head_width=ours["head.0.weight"].shape[0],
    )
