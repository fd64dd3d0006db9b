"""Baselines for Mamba-VA: frame regressor, GRU, TCN + Transformer.

    FrameRegressor    each frame by itself: the challenge's baseline, on features of a ResNet-50    causal
    Gru               a recurrent network                                                           causal
    TcnTransformer    TCN + Transformer encoder, the form of CtyunAI's entry to the 8th ABAW        not causal

TcnTransformer has the TCN, head and sizes of Mamba-VA by default, so that the two differ in the encoder alone; CtyunAI
(arXiv:2503.09929) used other features and sizes.

The challenge's baseline (Kollias 2022) is a ResNet-50 whose output layer gives valence and arousal: FrameRegressor on
`extract --features resnet-50` (frozen), or on `resnet-50=FOLDER` tuned by `affectrace finetune` on the same frames,
which is the baseline's training in two steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from affectrace.config import Count, Positive
from affectrace.errors import ConfigError, InputError
from affectrace.models.base import AffectModel, Dropout, OneStreamConfig, State, Tensors, Widths
from affectrace.models.inputs import LastSeen, existing_frames, one_stream
from affectrace.models.layers import TCN


@dataclass(frozen=True)
class FrameRegressorConfig(OneStreamConfig):
    """The challenge's baseline: one linear layer on ResNet-50's pooled features."""

    input_dim: Count = 2048  # D: ResNet-50's pooled features
    dropout: Dropout = 0.0  # after each hidden layer (ours)
    hidden: tuple[Count, ...] = ()  # widths of hidden layers, ReLU between (none in the challenge's baseline)

    TINY: ClassVar[dict[str, Any]] = {"hidden": (16,)}


class FrameRegressor(AffectModel):
    """Linear layers on the features of each frame; invalid frames are filled first."""

    name = "frame-regressor"
    causal = True

    def __init__(self, config: FrameRegressorConfig) -> None:
        super().__init__(config)
        self.last_seen = LastSeen(config.missing, config.row_dim)
        widths = (config.row_dim, *config.hidden)
        hidden = [
            part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU(), nn.Dropout(config.dropout))
        ]
        self.head = nn.Sequential(*hidden, nn.Linear(widths[-1], 2))

    def forward(
        self, inputs: Tensors, valid: Tensors | None = None, times: Tensors | None = None, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """inputs {modality: (B, T, D)} -> (B, T, 2) valence, arousal; state: the last valid frame."""
        x, seen = one_stream(inputs, valid, self.config.streams)
        x, state = self.last_seen(x, seen, state)
        return self.head(x), state


@dataclass(frozen=True)
class GruConfig(OneStreamConfig):
    """A gated recurrent network (Cho et al. 2014); sizes chosen to match Mamba-VA's encoder (ours)."""

    width: Count = 256  # of the recurrent state
    layers: Count = 2
    dropout: Dropout = 0.3  # between the layers and before the head; as Mamba-VA's

    TINY: ClassVar[dict[str, Any]] = {"width": 24, "dropout": 0.1}


class GruState(NamedTuple):
    """The last valid frame, and the recurrent state (B, layers, width)."""

    last_seen: Tensor | None
    h: Tensor


class Gru(AffectModel):
    """GRU, then Linear."""

    name = "gru"
    causal = True

    def __init__(self, config: GruConfig) -> None:
        super().__init__(config)
        self.last_seen = LastSeen(config.missing, config.row_dim)
        between = config.dropout if config.layers > 1 else 0.0
        self.gru = nn.GRU(config.row_dim, config.width, config.layers, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.width, 2)

    def forward(
        self, inputs: Tensors, valid: Tensors | None = None, times: Tensors | None = None, state: GruState | None = None
    ) -> tuple[Tensor, GruState]:
        """inputs {modality: (B, T, D)} -> (B, T, 2) valence, arousal."""
        x, seen = one_stream(inputs, valid, self.config.streams)
        last, h = state if state is not None else (None, None)
        x, last = self.last_seen(x, seen, last)
        x, h = self.gru(x, None if h is None else h.transpose(0, 1).contiguous())
        return self.head(self.dropout(x)), GruState(last, h.transpose(0, 1))


@dataclass(frozen=True)
class TcnTransformerConfig(OneStreamConfig):
    """TCN as Mamba-VA's, then a Transformer encoder (Vaswani et al. 2017); dropout in both parts."""

    dropout: Dropout = 0.3  # as Mamba-VA's
    tcn_channels: Widths = (1024, 768, 512, 256)  # as Mamba-VA's
    kernel_size: Count = 15  # as Mamba-VA's
    tcn_init_std: Positive | None = 0.01  # as Mamba-VA's
    layers: Count = 4  # as Mamba-VA's encoder
    heads: Count = 4  # "the number of multi-head attention" of the Mamba-VA paper (4.2), which no module of it has
    feedforward: Count = 1024  # 4 x width (Vaswani et al.)
    positions: bool = True  # sinusoidal positions, counted in frames, before the encoder (Vaswani et al. 3.5)
    head_width: Count = 128  # hidden layer of the head, as Mamba-VA's

    TINY: ClassVar[dict[str, Any]] = {
        "tcn_channels": (32, 24, 24, 16),
        "kernel_size": 5,
        "dropout": 0.1,
        "tcn_init_std": None,
        "layers": 2,
        "heads": 2,
        "feedforward": 32,
        "head_width": 16,
    }

    def __post_init__(self) -> None:
        if self.tcn_channels[-1:] and self.heads > 0 and self.tcn_channels[-1] % (2 * self.heads):
            raise ConfigError("the last of tcn_channels must be a multiple of 2 x heads", where="heads")


class TcnTransformer(AffectModel):
    """Not causal: every frame attends to every frame of its window."""

    name = "tcn-transformer"

    def __init__(self, config: TcnTransformerConfig) -> None:
        super().__init__(config)
        c = config
        self.last_seen = LastSeen(c.missing, c.row_dim)
        self.tcn = TCN(c.row_dim, c.tcn_channels, c.kernel_size, c.dropout, c.tcn_init_std)
        width = c.tcn_channels[-1]
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        layer = nn.TransformerEncoderLayer(width, c.heads, c.feedforward, c.dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, c.layers, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.Linear(width, c.head_width), nn.ReLU(), nn.Linear(c.head_width, 2))

    def forward(
        self, inputs: Tensors, valid: Tensors | None = None, times: Tensors | None = None, state: State = None
    ) -> tuple[Tensor, None]:
        """inputs {modality: (B, T, D)} -> (B, T, 2) valence, arousal.

        valid["frame"] (B, T): False = padding; without it the frames after the last valid one are padding.
        """
        if state is not None:
            raise InputError("tcn-transformer is not causal and takes no state", hint="run it in overlapping windows")
        x, seen = one_stream(inputs, valid, self.config.streams)
        exists = existing_frames(seen, valid)
        x, _ = self.last_seen(x, seen)
        x, _ = self.tcn(x)
        x = self.norm(x)
        if self.config.positions:
            x = x + frame_positions(x.shape[1], x.shape[2], x)
        x = self.encoder(x, src_key_padding_mask=None if exists is None else ~exists)
        return self.head(x), None


def frame_positions(n_frames: int, width: int, like: Tensor) -> Tensor:
    """Sines and cosines of the frame number, (T, width), periods from 2 pi to 20,000 pi frames."""
    steps = torch.arange(n_frames, device=like.device, dtype=torch.float32)
    rates = torch.exp(torch.arange(0, width, 2, device=like.device) * (-math.log(10_000.0) / width))
    angles = steps[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(like.dtype)
