"""Faster layers for inference: folded weight norm, bfloat16 and int8 weights.

Same calls and states as the originals. float32 changes rounding only; bench/mamba_va_stream.py measures the effect of
bfloat16 and int8 on the output.
"""

from __future__ import annotations

import copy
from typing import Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from affectrace.errors import UnknownNameError
from affectrace.models.layers import CausalConv1d, with_past

Precision = Literal["float32", "bfloat16", "int8"]

FEW_FRAMES = 8
"""Up to this many frames one product per frame is faster than torch's convolution."""

INT8_BLOCK = 32
"""Rows and columns of an int8 product must be multiples of this."""

M = TypeVar("M", bound=nn.Module)


def for_inference(model: M, precision: Precision = "float32") -> M:
    """A copy of a model for inference: eval mode, no gradients, dense causal convolutions folded."""
    if precision not in get_args(Precision):
        raise UnknownNameError.of("precision", precision, get_args(Precision))
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    for parent in list(fast.modules()):
        for name, child in parent.named_children():
            if isinstance(child, CausalConv1d) and child.groups == 1:
                setattr(parent, name, FoldedConv1d(child, precision))
    return fast


class FoldedConv1d(nn.Module):
    """A CausalConv1d for inference: frame by frame, y_t = b + [x_{t-(k-1)d} ... x_t] W as one product.

    bfloat16 rounds weights and inputs; int8 quantizes the weights, one scale per output channel, and rounds the inputs
    to bfloat16. The result of a frame does not depend on the other frames of the call.
    """

    taps: Tensor
    bias: Tensor
    scale: Tensor | None

    def __init__(self, conv: CausalConv1d, precision: Precision) -> None:
        super().__init__()
        self.kernel_size, self.dilation, self.precision = conv.kernel_size, conv.dilation, precision
        weight = conv.kernel_weight().detach()  # (out, in, k)
        taps = weight.transpose(1, 2).flatten(1).contiguous()  # (out, k in)
        self.register_buffer("bias", conv.bias.detach().clone())
        self.register_buffer("scale", None)
        if precision == "int8":
            scale = taps.abs().amax(1).clamp_min(torch.finfo(taps.dtype).tiny) / 127
            self.scale = scale.to(torch.bfloat16)
            taps = (taps / self.scale.to(taps.dtype)[:, None]).round().clamp(-127, 127).to(torch.int8)
            taps, self.scale = _to_blocks(_to_blocks(taps, 1), 0), _to_blocks(self.scale, 0)
        elif precision == "bfloat16":
            taps = taps.to(torch.bfloat16)
        self.register_buffer("taps", taps)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x (B, T, in) -> y (B, T, out); state (B, (k-1)d, in), float32 whatever the precision."""
        history, state = with_past(x, state, (self.kernel_size - 1) * self.dilation)
        if x.shape[1] > FEW_FRAMES and self.precision != "int8":
            weight = self.taps.unflatten(1, (self.kernel_size, -1)).transpose(1, 2)
            y = F.conv1d(
                history.transpose(1, 2).to(weight.dtype), weight, self.bias.to(weight.dtype), dilation=self.dilation
            )
            return y.transpose(1, 2).to(x.dtype), state
        frames = [
            history[:, t : t + (self.kernel_size - 1) * self.dilation + 1 : self.dilation].flatten(1)
            for t in range(x.shape[1])
        ]
        return torch.stack([self._product(rows) for rows in frames], dim=1).to(x.dtype), state

    def _product(self, rows: Tensor) -> Tensor:
        """(B, k in) -> (B, out)."""
        if self.scale is None:
            return F.linear(rows.to(self.taps.dtype), self.taps).to(self.bias.dtype) + self.bias
        y = torch._weight_int8pack_mm(_to_blocks(rows.to(torch.bfloat16), 1), self.taps, self.scale)
        return y[:, : len(self.bias)].to(self.bias.dtype) + self.bias


def _to_blocks(x: Tensor, dim: int) -> Tensor:
    """Zero-padded to a multiple of INT8_BLOCK: torch's int8 product reads whole blocks and does not check."""
    missing = -x.shape[dim] % INT8_BLOCK
    return x if missing == 0 else torch.cat([x, x.new_zeros(*x.shape[:dim], missing, *x.shape[dim + 1 :])], dim)
