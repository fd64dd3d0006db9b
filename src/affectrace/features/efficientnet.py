"""EfficientNet-Lite0 (Tan & Le 2019, arXiv:1905.11946; "lite": no squeeze-excitation, ReLU6), up to pooled features.

    (B, 3, 224, 224) --stem--> (B, 32, 112, 112) --16 bottlenecks--> (B, 320, 7, 7) --head, mean--> (B, 1280)

Padding is TensorFlow's "same" (more on the right and below), which the weights were trained with.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# repeats, kernel, stride, channels out, expansion
STAGES = (
    (1, 3, 1, 16, 1),
    (2, 3, 2, 24, 6),
    (2, 5, 2, 40, 6),
    (3, 3, 2, 80, 6),
    (3, 5, 1, 112, 6),
    (4, 5, 2, 192, 6),
    (1, 3, 1, 320, 6),
)
STEM, HEAD = 32, 1280
EPS = 1e-3  # of the batch normalisation


class EfficientNetLite0(nn.Module):
    """`forward(pixels (B, 3, H, W)) -> (B, 1280)`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, STEM, 3, stride=2)
        blocks, width = [], STEM
        for repeats, kernel, stride, out, expansion in STAGES:
            for i in range(repeats):
                blocks.append(Bottleneck(width, out, kernel, stride if i == 0 else 1, expansion))
                width = out
        self.blocks = nn.ModuleList(blocks)
        self.head = ConvNorm(width, HEAD, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        x: Tensor = self.stem(pixels)
        for block in self.blocks:
            x = block(x)
        return self.head(x).mean(dim=(2, 3))


class ConvNorm(nn.Module):
    """Convolution, batch normalisation, ReLU6 (or nothing)."""

    def __init__(self, d_in: int, d_out: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(d_in, d_out, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(d_out, eps=EPS)
        self.kernel, self.stride, self.act = kernel, stride, act

    def forward(self, x: Tensor) -> Tensor:
        down, right = (max((-(-n // self.stride) - 1) * self.stride + self.kernel - n, 0) for n in x.shape[2:])
        x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        x = self.norm(self.conv(x))
        return F.relu6(x) if self.act else x


class Bottleneck(nn.Module):
    """Widen, convolve each channel, narrow; the input is added where shapes agree."""

    def __init__(self, d_in: int, d_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = d_in * expansion
        self.expand = ConvNorm(d_in, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(wide, wide, kernel, stride, groups=wide)
        self.project = ConvNorm(wide, d_out, 1, act=False)
        self.adds = stride == 1 and d_in == d_out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds else y


def rename_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published state dict (EfficientNet-PyTorch's names) with our names; the classifier is left out."""
    parts = {
        "_expand_conv": "expand.conv",
        "_depthwise_conv": "depthwise.conv",
        "_project_conv": "project.conv",
        "_conv_stem": "stem.conv",
        "_conv_head": "head.conv",
    }
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("_fc."):
            continue
        *place, module, kind = name.split(".")
        if place:  # _blocks.3._bn1.weight
            block = int(place[1])
            # without an expansion, the normalisations are counted from 1 all the same
            norm = {"_bn0": "expand", "_bn1": "depthwise", "_bn2": "project"}
            ours = parts.get(module) or f"{norm[module]}.norm"
            renamed[f"blocks.{block}.{ours}.{kind}"] = tensor
        else:
            ours = parts.get(module) or {"_bn0": "stem.norm", "_bn1": "head.norm"}[module]
            renamed[f"{ours}.{kind}"] = tensor
    return renamed


def load(state: Mapping[str, Tensor]) -> EfficientNetLite0:
    """A network ready to run from the published state dict (RuntimeError where a tensor is missing or unknown)."""
    with torch.device("meta"):
        network = EfficientNetLite0()
    network.load_state_dict(rename_state(state), assign=True)
    return network.eval().requires_grad_(False)
