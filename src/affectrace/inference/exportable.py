"""Layers that ONNX has no words for, said in words that it has; and tracing at one fixed size. The same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from affectrace.models.attention import AdditiveAttention, additive_attention_plain
from affectrace.models.layers import LastSeen, MambaBlock, for_inference


def exportable(model: nn.Module) -> nn.Module:
    """A copy for inference whose layers an exporter knows; the same numbers."""
    copy = for_inference(model)
    for parent in list(copy.modules()):
        if isinstance(parent, MambaBlock):
            parent.form = "plain"
        for name, child in parent.named_children():
            if isinstance(child, LastSeen):
                setattr(parent, name, _LastSeenStepwise(child))
            elif isinstance(child, AdditiveAttention):
                setattr(parent, name, _AdditivePlain(child))
    if hasattr(copy, "_pooled"):
        object.__setattr__(copy, "_pooled", _AllPictures(cast(nn.Module, copy.backbone)))  # it is a method's name
    return copy


class _LastSeenStepwise(nn.Module):
    """LastSeen frame by frame: ONNX has no running maximum."""

    def __init__(self, layer: LastSeen) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, valid: Tensor | None, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if self.layer.policy != "hold" or valid is None:
            y: tuple[Tensor, Tensor | None] = self.layer(x, valid, state)
            return y
        last = torch.zeros_like(x[:, 0]) if state is None else state
        rows = []
        for t in range(x.shape[1]):
            last = torch.where(valid[:, t, None], x[:, t], last)
            rows.append(last)
        return torch.stack(rows, dim=1), last


class _AdditivePlain(nn.Module):
    """Additive attention by its slow twin, which is made of ordinary operations."""

    def __init__(self, layer: AdditiveAttention) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, h: Tensor, valid: Tensor | None = None) -> Tensor:
        a = self.layer
        return additive_attention_plain(a.query(h), a.key(h), a.score.weight[0], h, valid, a.score.bias)


class _AllPictures(nn.Module):
    """An image network over every picture; those that do not count are masked after it."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor, seen: Tensor | None) -> Tensor:
        pooled: Tensor = self.backbone(images).pooler_output.flatten(1)
        return pooled


class _FixedShapes(TorchFunctionMode):
    """Shapes are plain numbers while a call is traced: a file is of one size."""

    _asked = frozenset(
        (
            torch.Tensor.shape.__get__,  # type: ignore[attr-defined]
            torch.Tensor.size,
            torch.Tensor.__len__,
            torch.Tensor.numel,
        )
    )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self._asked:
            return func(*args, **(kwargs or {}))
        state = torch._C._get_tracing_state()
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
        try:
            return func(*args, **(kwargs or {}))
        finally:
            torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


@contextmanager
def traceable() -> Iterator[None]:
    """Shapes fixed, and without torch's fused Transformer layers, which no exporter knows."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _FixedShapes():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
