"""The authors' MAVEN checkpoints as ours: their BEiT and MLP networks, BEiT blocks named by old or new transformers.

Their layout: multihead_attention.* (projections, six pathways, one layer norm), projection_layer, beit3_encoders.{0,1}
(BEiT variant only), regressor.fc. Every tensor is used, or named with the reason why not; anything else is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

from torch import Tensor

from affectrace.errors import FormatError
from affectrace.models.beit import OLD_NAMES, rename_blocks
from affectrace.models.checkpoint import Converted, load_strict
from affectrace.models.maven import Maven, MavenConfig

_THEIRS = {"visual": "video", "audio": "audio", "text": "text"}  # our modality: theirs
_HEAD_CHANNELS = 64  # of every published BEiT; the number of heads cannot be read from the tensors
_NOT_USED = {
    r"relative_position_(bias_table|index)$": "position bias of BEiT's image grid, not used over frames",
}


def convert_state(theirs: Mapping[str, Tensor], *, where: str | Path | None = None) -> Converted:
    """A state dict of theirs; raises FormatError: every tensor missing, unknown or misshapen is named."""
    state = {name.removeprefix("module."): tensor for name, tensor in theirs.items()}  # DataParallel's prefix
    unused = {name: why for name in state for pattern, why in _NOT_USED.items() if re.search(pattern, name)}
    ours, rest = _renamed({name: tensor for name, tensor in state.items() if name not in unused})
    try:
        config = _config(state)
    except KeyError as error:
        raise FormatError(
            f"is no MAVEN of the authors' ({error.args[0]} is missing)",
            where=where,
            hint="give the .pth file their training script saves",
        ) from None
    model = Maven(config)
    load_strict(
        model,
        ours,
        where=where,
        what="does not fit the authors' layout",
        hint="see docs/papers/maven.md for the layout",
        mistakes=[f"{name} is not known" for name in rest],
        name=_their_name,
    )
    return Converted(model.eval(), unused)


def _config(state: Mapping[str, Tensor]) -> MavenConfig:
    """Variant and sizes, read from the tensors; KeyError names the first that is missing."""
    projections = [state[f"multihead_attention.{theirs}_proj.weight"] for theirs in _THEIRS.values()]
    sizes: dict[str, Any] = {
        "input_dims": tuple(p.shape[1] for p in projections),
        "width": projections[0].shape[0],
        "head_widths": (state["regressor.fc.0.weight"].shape[0], state["regressor.fc.3.weight"].shape[0]),
    }
    if "projection_layer.weight" not in state:
        return MavenConfig.released_mlp(**sizes)
    blocks, _ = rename_blocks({n: t for n, t in state.items() if n.startswith("beit3_encoders.0.")})
    if not blocks:
        raise KeyError("beit3_encoders.0")
    width = state["projection_layer.weight"].shape[0]
    return MavenConfig.released_beit(
        **sizes,
        encoder_width=width,
        encoder_heads=max(1, width // _HEAD_CHANNELS),
        encoder_depth=1 + max(int(name.split(".")[1]) for name in blocks),
        mlp_ratio=next(t for n, t in blocks.items() if n.endswith("mlp_in.weight")).shape[0] // width,
        beit_init="converted from the authors' checkpoint",
    )


def _renamed(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under our names, and the names nothing is known of."""
    ours: dict[str, Tensor] = {}
    rest: list[str] = []
    paths, prefixes = _paths(), _prefixes()
    for name, tensor in state.items():
        parent, _, leaf = name.rpartition(".")
        encoder = re.match(r"beit3_encoders\.(\d+)\.", name)
        path = re.fullmatch(r"multihead_attention\.(attn_\w2\w)\.in_proj_(weight|bias)", name)
        if parent in prefixes and leaf in ("weight", "bias"):
            ours[f"{prefixes[parent]}.{leaf}"] = tensor
        elif path and path[1] in paths and tensor.shape[0] % 3 == 0:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                ours[f"{paths[path[1]]}.{part}.{path[2]}"] = third
        elif encoder and (block := rename_blocks({name: tensor})[0]):
            ours |= {f"encoders.{encoder[1]}.blocks.{key}": value for key, value in block.items()}
        else:
            rest.append(name)
    return ours, rest


def _paths() -> dict[str, str]:
    """Their pathways -> ours."""
    return {f"attn_{_THEIRS[m][0]}2{_THEIRS[n][0]}": f"pathways.{m}_from_{n}" for m, n in permutations(_THEIRS, 2)}


def _prefixes() -> dict[str, str]:
    """Their modules with a weight and a bias -> ours."""
    prefixes = {f"multihead_attention.{theirs}_proj": f"projections.{m}" for m, theirs in _THEIRS.items()}
    prefixes |= {f"multihead_attention.{theirs}.out_proj": f"{m}.out" for theirs, m in _paths().items()}
    prefixes |= {"multihead_attention.layer_norm": "merge_norm", "projection_layer": "fuse"}
    return prefixes | {f"regressor.fc.{i}": f"head.fc.{i}" for i in (0, 3, 6)}


def _their_name(name: str) -> str:
    """The tensor of theirs that one of ours is made of, for messages."""
    parent, _, leaf = name.rpartition(".")
    for theirs, ours in _prefixes().items():
        if parent == ours:
            return f"{theirs}.{leaf}"
    for theirs, ours in _paths().items():
        if parent.startswith(f"{ours}."):
            return f"multihead_attention.{theirs}.in_proj_{leaf}"
    if block := re.fullmatch(r"encoders\.(\d+)\.blocks\.blocks\.(\d+)\.(.+)", name):
        return f"beit3_encoders.{block[1]}.layer.{block[2]}.{OLD_NAMES[block[3]]}"
    return name
