"""BEiT transformer blocks (Bao et al. 2022) over frames, and loading of pretrained ones.

    x <- x + lambda_1 * MHA(LN(x))         pre-norm, layer scale, keys without bias
    x <- x + lambda_2 * MLP(LN(x))         GELU

MAVEN's encoders over time (published eq. 25) are the 12 blocks of a pretrained BEiT base, without its patch embedding,
class token and relative position bias.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affectrace.errors import WeightsError
from affectrace.features.runtime import load_strict, read_fields, read_tensors
from affectrace.models.attention import MultiHeadAttention, TimeRotary, Tokens

NORM_EPS = 1e-12
"""Epsilon of BEiT's layer norms (its published configuration)."""

# ours: (transformers 4 and earlier, transformers 5)
_NAMES = {
    "norm_1.weight": ("layernorm_before.weight", "layernorm_before.weight"),
    "norm_1.bias": ("layernorm_before.bias", "layernorm_before.bias"),
    "attention.query.weight": ("attention.attention.query.weight", "attention.q_proj.weight"),
    "attention.query.bias": ("attention.attention.query.bias", "attention.q_proj.bias"),
    "attention.key.weight": ("attention.attention.key.weight", "attention.k_proj.weight"),
    "attention.value.weight": ("attention.attention.value.weight", "attention.v_proj.weight"),
    "attention.value.bias": ("attention.attention.value.bias", "attention.v_proj.bias"),
    "attention.out.weight": ("attention.output.dense.weight", "attention.o_proj.weight"),
    "attention.out.bias": ("attention.output.dense.bias", "attention.o_proj.bias"),
    "lambda_1": ("lambda_1", "lambda_1"),
    "norm_2.weight": ("layernorm_after.weight", "layernorm_after.weight"),
    "norm_2.bias": ("layernorm_after.bias", "layernorm_after.bias"),
    "mlp_in.weight": ("intermediate.dense.weight", "mlp.fc1.weight"),
    "mlp_in.bias": ("intermediate.dense.bias", "mlp.fc1.bias"),
    "mlp_out.weight": ("output.dense.weight", "mlp.fc2.weight"),
    "mlp_out.bias": ("output.dense.bias", "mlp.fc2.bias"),
    "lambda_2": ("lambda_2", "lambda_2"),
}
OLD_NAMES = {ours: both[0] for ours, both in _NAMES.items()}
"""Our name of a block's tensor -> that of transformers 4 and earlier."""
_OURS = {theirs: ours for ours, both in _NAMES.items() for theirs in both}
_BLOCK = re.compile(r"^(?P<prefix>(?:.*\.)?)layers?\.(?P<index>\d+)\.(?P<rest>.+)$")


class BeitBlock(nn.Module):
    """One block; layer_scale: initial value of lambda_1 and lambda_2. Defaults are BEiT base's."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        *,
        dropout: float = 0.0,
        layer_scale: float = 0.1,
        rotary: TimeRotary | None = None,
    ) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attention = MultiHeadAttention(width, heads, dropout=dropout, key_bias=False, rotary=rotary)
        self.lambda_1 = nn.Parameter(torch.full((width,), layer_scale))
        self.norm_2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp_in = nn.Linear(width, mlp_width)
        self.mlp_out = nn.Linear(mlp_width, width)
        self.lambda_2 = nn.Parameter(torch.full((width,), layer_scale))
        self.dropout = nn.Dropout(dropout)
        for layer in (m for m in self.modules() if isinstance(m, nn.Linear)):
            nn.init.normal_(layer.weight, std=0.02)  # BEiT's initializer_range
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(self, t: Tokens) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        h = t._replace(x=self.norm_1(t.x))
        x = t.x + self.lambda_1 * self.dropout(self.attention(h, h))
        return x + self.lambda_2 * self.dropout(self.mlp_out(F.gelu(self.mlp_in(self.norm_2(x)))))


class BeitBlocks(nn.Module):
    """A stack of blocks, arguments as BeitBlock's; `load` initializes it from a pretrained BEiT."""

    def __init__(self, depth: int, width: int, heads: int, mlp_width: int, **options: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(BeitBlock(width, heads, mlp_width, **options) for _ in range(depth))

    def forward(self, t: Tokens) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        for block in self.blocks:
            t = t._replace(x=block(t))
        return t.x

    def load(self, weights: Mapping[str, Tensor], *, where: str | Path) -> list[str]:
        """Load the blocks of a pretrained BEiT, named by transformers 4 or 5.

        Returns the names of unused tensors (patch embedding, pooler, position bias, ...), sorted. Raises WeightsError,
        and changes nothing, where a tensor of a block is missing or has another shape.
        """
        state, rest = rename_blocks(weights)
        load_strict(
            self,
            state,
            where=where,
            what=f"is not a BEiT of {len(self.blocks)} blocks and this width",
            hint="give a BEiT of encoder_depth, encoder_width and mlp_ratio as configured, or change these",
            error=WeightsError,
        )
        return rest


def rename_blocks(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Blocks of transformers' BEiT under our names (`blocks.3.mlp_in.weight`), and the other names, sorted.

    Reads `layer.{i}.attention.attention.query...` (transformers 4) and `layers.{i}.attention.q_proj...` (5), with any
    prefix.
    """
    found: dict[str, Tensor] = {}
    rest: list[str] = []
    for name, tensor in weights.items():
        match = _BLOCK.match(name)
        ours = _OURS.get(match["rest"]) if match else None
        if match is None or ours is None:
            rest.append(name)
        else:
            found[f"blocks.{match['index']}.{ours}"] = tensor
    return found, sorted(rest)


def read_beit(path: Path) -> dict[str, Tensor]:
    """Tensors of a BEiT saved by transformers, from its folder or weights file (raises WeightsError)."""
    if path.is_dir():
        kind = read_fields(path / "config.json").get("model_type", "beit")
        if kind != "beit":
            raise WeightsError(f"holds a {kind} model, not BEiT", where=path, hint="give the folder of a BEiT")
        files = [path / name for name in ("model.safetensors", "pytorch_model.bin")]
        path = next((file for file in files if file.is_file()), files[0])
    return read_tensors(path, WeightsError)
