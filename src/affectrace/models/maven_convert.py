"""Conversion of the MAVEN authors' checkpoints (BEiT and MLP variants).

Their layout: multihead_attention.* (projections, six pathways, one layer norm), projection_layer, beit3_encoders.{0,1}
(BEiT variant only), regressor.fc. Every tensor is used or listed with the reason; unknown ones are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from affectrace.errors import ConfigError, FormatError
from affectrace.features.runtime import load_strict
from affectrace.models.beit import OLD_NAMES, rename_blocks
from affectrace.models.checkpoint import Converted
from affectrace.models.maven import Maven, MavenConfig

_THEIRS = {"visual": "video", "audio": "audio", "text": "text"}  # our name of a modality: theirs
_PARTS = {"merge_norm": "multihead_attention.layer_norm", "fuse": "projection_layer"}
_THIRDS = ("query", "key", "value")  # of their in_proj
_HEAD_CHANNELS = 64  # in every published BEiT; the tensors do not tell the number of heads
_NOT_USED = {
    r"relative_position_(bias_table|index)$": "position bias of BEiT's image grid, not used over frames",
}


def convert_state(tensors: Mapping[str, Tensor], *, where: str | Path | None = None) -> Converted:
    """Convert their state dict; raises FormatError naming every missing, unknown or misshapen tensor."""
    state = {_older_name(name): tensor for name, tensor in tensors.items()}
    unused = {name: why for name in state for pattern, why in _NOT_USED.items() if re.search(pattern, name)}
    try:
        model = Maven(_config(state))
    except (KeyError, IndexError, ZeroDivisionError, ConfigError) as error:
        what = f"is not a MAVEN checkpoint of the authors (tensors missing or misshapen: {error})"
        raise FormatError(what, where=where, hint="give the .pth file their training script saves") from None
    sources = {name: _their_name(name) for name in model.state_dict()}
    ours = {}
    for name, source in sources.items():
        if source in state:
            kind = name.split(".")[-2]
            thirds = state[source].chunk(3) if ".in_proj_" in source else ()
            ours[name] = thirds[_THIRDS.index(kind)] if len(thirds) == 3 else state[source]
    load_strict(
        model,
        ours,
        where=where,
        what="does not fit the authors' layout",
        hint="see docs/papers/maven.md for the layout",
        mistakes=[f"{name} is not known" for name in state if name not in {*sources.values(), *unused}],
        name=_their_name,
    )
    return Converted(model.eval(), unused)


def _older_name(name: str) -> str:
    """Without DataParallel's prefix; BEiT's blocks as transformers 4 and earlier name them."""
    name = name.removeprefix("module.")
    encoder = re.match(r"beit3_encoders\.\d+\.", name)
    for renamed in rename_blocks({name: Tensor()})[0] if encoder else ():
        _, index, rest = renamed.split(".", 2)
        return f"{encoder[0]}layer.{index}.{OLD_NAMES[rest]}"  # type: ignore[index]
    return name


def _their_name(name: str) -> str:
    """Their name of our tensor, or of the one that holds it as a third."""
    parent, _, leaf = name.rpartition(".")
    if parent in _PARTS:
        return f"{_PARTS[parent]}.{leaf}"
    if match := re.fullmatch(r"projections\.(\w+)", parent):
        return f"multihead_attention.{_THEIRS[match[1]]}_proj.{leaf}"
    if match := re.fullmatch(r"pathways\.(\w+)_from_(\w+)\.(\w+)", parent):
        path = f"multihead_attention.attn_{_THEIRS[match[1]][0]}2{_THEIRS[match[2]][0]}"
        return f"{path}.out_proj.{leaf}" if match[3] == "out" else f"{path}.in_proj_{leaf}"
    if match := re.fullmatch(r"encoders\.(\d+)\.blocks\.blocks\.(\d+)\.(.+)", name):
        return f"beit3_encoders.{match[1]}.layer.{match[2]}.{OLD_NAMES[match[3]]}"
    return re.sub(r"^head\.", "regressor.", name)


def _config(state: Mapping[str, Tensor]) -> MavenConfig:
    """Variant and sizes, read from the tensors; KeyError names the first missing one."""
    projections = [state[f"multihead_attention.{theirs}_proj.weight"] for theirs in _THEIRS.values()]
    sizes: dict[str, Any] = {
        "input_dims": tuple(p.shape[1] for p in projections),
        "width": projections[0].shape[0],
        "head_widths": (state["regressor.fc.0.weight"].shape[0], state["regressor.fc.3.weight"].shape[0]),
    }
    if "projection_layer.weight" not in state:
        return MavenConfig.released_mlp(**sizes)
    depth = len({m[1] for name in state if (m := re.match(r"beit3_encoders\.0\.layer\.(\d+)\.", name))})
    if not depth:
        raise KeyError("beit3_encoders.0")
    width = state["projection_layer.weight"].shape[0]
    return MavenConfig.released_beit(
        **sizes,
        encoder_width=width,
        encoder_heads=max(1, width // _HEAD_CHANNELS),
        encoder_depth=depth,
        mlp_ratio=state["beit3_encoders.0.layer.0.intermediate.dense.weight"].shape[0] // width,
        beit_init="converted from the authors' checkpoint",
    )
