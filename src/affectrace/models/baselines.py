"""What Mamba-VA is compared with, each trained and served like it.

    FrameRegressor    every frame alone: the challenge's ResNet-50 baseline, on cached features       causal
    ResNetRegressor   the same, whole: face crops in                                                  causal
    Gru               a recurrent network                                                             causal
    TcnTransformer    TCN + Transformer encoder: CtyunAI's form (8th ABAW, arXiv:2503.09929; 2024)    not causal

TcnTransformer has the TCN, head and sizes of Mamba-VA by default, so that the two differ in the encoder alone; of
CtyunAI's entry it keeps the form, not its features or sizes.

All but ResNetRegressor are trained by `affectrace train NAME` on extracted features. The challenge's baseline comes in
three forms: FrameRegressor on features of the stock ResNet-50 (`extract --features resnet-50`, the network frozen); the
same on a ResNet-50 tuned by `affectrace finetune` on the same frames (`extract --features resnet-50=FOLDER`), which is
the baseline's training in two steps; and ResNetRegressor, one network from pixels to valence and arousal, for one's own
loop in Python.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from affectrace.config import Config
from affectrace.errors import ConfigError, InputError
from affectrace.models.layers import FrameNorm, LastSeen, MissingPolicy, State, TcnBlock
from affectrace.models.streams import existing_frames, one_stream

Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class FrameRegressorConfig(Config):
    """Defaults: the challenge's baseline (Kollias 2022), a ResNet-50 whose output layer gives valence and arousal."""

    modality: str = "visual"  # the one stream the network reads
    input_dim: int = 2048  # D: ResNet-50's pooled features
    hidden: tuple[int, ...] = ()  # widths of hidden layers, ReLU between (none in the challenge's baseline)
    dropout: float = 0.0  # after each hidden layer (ours)
    missing: MissingPolicy = "hold"  # frames without a face

    def __post_init__(self) -> None:
        _check("FrameRegressorConfig", (self.input_dim, *self.hidden), self.dropout)

    @property
    def streams(self) -> dict[str, int]:
        """Name -> width of each input."""
        return {self.modality: self.input_dim}

    @classmethod
    def paper(cls, **changes: Any) -> Self:
        """The challenge's baseline."""
        return cls(**changes)

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """Small, with one hidden layer."""
        values: dict[str, Any] = {"input_dim": 32, "hidden": (16,)}
        return cls(**values | changes)


class FrameRegressor(nn.Module):
    """Valence and arousal of every frame from that frame's features; where none are, from the last that were."""

    name = "frame-regressor"
    causal = True
    clock = "frame"

    def __init__(self, config: FrameRegressorConfig) -> None:
        super().__init__()
        self.config = config
        self.modalities = (config.modality,)
        self.last_seen = LastSeen(config.missing, config.input_dim)
        widths = (config.input_dim, *config.hidden)
        hidden = [
            part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU(), nn.Dropout(config.dropout))
        ]
        self.head = nn.Sequential(*hidden, nn.Linear(widths[-1], 2))

    def forward(
        self, inputs: Inputs, valid: Inputs | None = None, times: Inputs | None = None, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """inputs {modality: (B, T, D)} -> (B, T, 2) valence, arousal; state: the last valid frame."""
        x, seen = one_stream(inputs, valid, self.config.modality, self.config.input_dim)
        x, state = self.last_seen(x, seen, state)
        return self.head(x), state


@dataclass(frozen=True)
class ResNetRegressorConfig(Config):
    """Defaults: ResNet-50 (He et al. 2016, bottleneck blocks). `widths` and `depths` are those of its four stages."""

    modality: str = "frames"  # face crops, normalised as the weights were trained
    image_size: int = 224  # pixels, square (ImageNet's)
    embedding_size: int = 64  # width of the stem
    widths: tuple[int, ...] = (256, 512, 1024, 2048)  # output widths of the stages
    depths: tuple[int, ...] = (3, 4, 6, 3)  # blocks in each stage
    missing: MissingPolicy = "hold"  # frames without a face, decided on the pooled features

    def __post_init__(self) -> None:
        _check("ResNetRegressorConfig", (self.image_size, self.embedding_size, *self.widths, *self.depths), 0.0)
        if len(self.widths) != len(self.depths):
            raise ConfigError("widths and depths differ in length", where="ResNetRegressorConfig", hint="one a stage")

    @property
    def streams(self) -> dict[str, tuple[int, int, int]]:
        """Name -> shape of each input's rows."""
        return {self.modality: (3, self.image_size, self.image_size)}

    @classmethod
    def paper(cls, **changes: Any) -> Self:
        """ResNet-50."""
        return cls(**changes)

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """Two short stages on small images."""
        values: dict[str, Any] = {"image_size": 32, "embedding_size": 8, "widths": (16, 32), "depths": (1, 1)}
        return cls(**values | changes)


class ResNetRegressor(nn.Module):
    """The challenge's baseline whole: face crops (B, T, 3, S, S) in. The network is transformers' own.

    `affectrace train` reads features, so this one is trained in Python; the module's first lines name the other ways.
    """

    name = "resnet50"
    causal = True
    clock = "frame"

    def __init__(self, config: ResNetRegressorConfig) -> None:
        from transformers import ResNetConfig, ResNetModel

        super().__init__()
        self.config = config
        self.modalities = (config.modality,)
        backbone = ResNetConfig(
            embedding_size=config.embedding_size,
            hidden_sizes=list(config.widths),
            depths=list(config.depths),
            layer_type="bottleneck",
        )
        self.backbone = ResNetModel(backbone)
        self.last_seen = LastSeen(config.missing, config.widths[-1])
        self.head = nn.Linear(config.widths[-1], 2)

    def forward(
        self, inputs: Inputs, valid: Inputs | None = None, times: Inputs | None = None, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """inputs {modality: (B, T, 3, S, S)} -> (B, T, 2) valence, arousal; state: the last valid frame's features."""
        size = self.config.image_size
        x, seen = one_stream(inputs, valid, self.config.modality, 3, size, size)
        x = self._pooled(x.flatten(0, 1), None if seen is None else seen.flatten()).unflatten(0, x.shape[:2])
        x, state = self.last_seen(x, seen, state)
        return self.head(x), state

    def _pooled(self, images: Tensor, seen: Tensor | None) -> Tensor:
        """(n, 3, S, S) -> (n, widths[-1]). Frames without a face do not enter: batch statistics are of faces alone."""
        if seen is None or bool(seen.all()):
            pooled: Tensor = self.backbone(images).pooler_output.flatten(1)
            return pooled
        features = images.new_zeros(len(images), self.config.widths[-1])
        if bool(seen.any()):
            found = self.backbone(images[seen]).pooler_output.flatten(1)
            features = features.to(found.dtype).index_put((seen,), found)
        return features


@dataclass(frozen=True)
class GruConfig(Config):
    """A gated recurrent network (Cho et al. 2014); sizes chosen to match Mamba-VA's encoder (ours)."""

    modality: str = "visual"  # the one stream the network reads
    input_dim: int = 1024  # D of the features
    width: int = 256  # of the recurrent state
    layers: int = 2  # recurrent layers
    dropout: float = 0.3  # between layers and before the head
    missing: MissingPolicy = "hold"  # frames without a face

    def __post_init__(self) -> None:
        _check("GruConfig", (self.input_dim, self.width, self.layers), self.dropout)

    @property
    def streams(self) -> dict[str, int]:
        """Name -> width of each input."""
        return {self.modality: self.input_dim}

    @classmethod
    def paper(cls, **changes: Any) -> Self:
        """Beside Mamba-VA at the paper's size."""
        return cls(**changes)

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """Beside Mamba-VA's tiny."""
        return cls(**{"input_dim": 32, "width": 24, "dropout": 0.1} | changes)


class GruState(NamedTuple):
    """The last valid frame, and the recurrent state (B, layers, width)."""

    last_seen: Tensor | None
    h: Tensor


class Gru(nn.Module):
    """GRU, then Linear."""

    name = "gru"
    causal = True
    clock = "frame"

    def __init__(self, config: GruConfig) -> None:
        super().__init__()
        self.config = config
        self.modalities = (config.modality,)
        self.last_seen = LastSeen(config.missing, config.input_dim)
        between = config.dropout if config.layers > 1 else 0.0
        self.gru = nn.GRU(config.input_dim, config.width, config.layers, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.width, 2)

    def forward(
        self, inputs: Inputs, valid: Inputs | None = None, times: Inputs | None = None, state: GruState | None = None
    ) -> tuple[Tensor, GruState]:
        """inputs {modality: (B, T, D)} -> (B, T, 2) valence, arousal."""
        x, seen = one_stream(inputs, valid, self.config.modality, self.config.input_dim)
        last, h = state if state is not None else (None, None)
        x, last = self.last_seen(x, seen, last)
        x, h = self.gru(x, None if h is None else h.transpose(0, 1).contiguous())
        return self.head(self.dropout(x)), GruState(last, h.transpose(0, 1))


@dataclass(frozen=True)
class TcnTransformerConfig(Config):
    """TCN as Mamba-VA's, then a Transformer encoder (Vaswani et al. 2017)."""

    modality: str = "visual"  # the one stream the network reads
    input_dim: int = 1024  # D of the features
    tcn_channels: tuple[int, ...] = (1024, 768, 512, 256)  # as Mamba-VA's
    kernel_size: int = 15  # as Mamba-VA's
    dropout: float = 0.3  # in both parts, as Mamba-VA's
    tcn_init_std: float | None = 0.01  # as Mamba-VA's
    layers: int = 4  # as Mamba-VA's encoder
    heads: int = 4  # "the number of multi-head attention" of the Mamba-VA paper (4.2), which no module of it has
    feedforward: int = 1024  # 4 x width (Vaswani et al.)
    positions: bool = True  # sinusoidal positions, counted in frames, before the encoder (Vaswani et al. 3.5)
    head_width: int = 128  # hidden layer of the head, as Mamba-VA's
    missing: MissingPolicy = "hold"  # frames without a face

    def __post_init__(self) -> None:
        sizes = (self.input_dim, *self.tcn_channels, self.kernel_size, self.layers, self.heads, self.feedforward)
        _check("TcnTransformerConfig", (*sizes, self.head_width), self.dropout)
        if not self.tcn_channels or self.tcn_channels[-1] % (2 * self.heads):
            what = "the last of tcn_channels must be a multiple of 2 x heads"
            raise ConfigError(what, where="TcnTransformerConfig", hint="change heads")

    @property
    def streams(self) -> dict[str, int]:
        """Name -> width of each input."""
        return {self.modality: self.input_dim}

    @classmethod
    def paper(cls, **changes: Any) -> Self:
        """Mamba-VA's sizes."""
        return cls(**changes)

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """Beside Mamba-VA's tiny."""
        values: dict[str, Any] = {
            "input_dim": 32,
            "tcn_channels": (32, 24, 24, 16),
            "kernel_size": 5,
            "dropout": 0.1,
            "tcn_init_std": None,
            "layers": 2,
            "heads": 2,
            "feedforward": 32,
            "head_width": 16,
        }
        return cls(**values | changes)


class TcnTransformer(nn.Module):
    """Not causal: every frame attends to every frame of its window."""

    name = "tcn-transformer"
    causal = False
    clock = "frame"

    def __init__(self, config: TcnTransformerConfig) -> None:
        super().__init__()
        c = self.config = config
        self.modalities = (c.modality,)
        self.last_seen = LastSeen(c.missing, c.input_dim)
        self.tcn = nn.ModuleList(
            TcnBlock(n_in, n_out, c.kernel_size, 2**i, c.dropout, c.tcn_init_std)
            for i, (n_in, n_out) in enumerate(zip((c.input_dim, *c.tcn_channels), c.tcn_channels))
        )
        self.norm = FrameNorm()
        width = c.tcn_channels[-1]
        layer = nn.TransformerEncoderLayer(width, c.heads, c.feedforward, c.dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, c.layers, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.Linear(width, c.head_width), nn.ReLU(), nn.Linear(c.head_width, 2))

    def forward(
        self, inputs: Inputs, valid: Inputs | None = None, times: Inputs | None = None, state: State = None
    ) -> tuple[Tensor, None]:
        """inputs {modality: (B, T, D)} -> (B, T, 2) valence, arousal.

        valid["frame"] (B, T) says which frames exist; without it all up to the last valid one do.

        Raises:
            InputError: a state is given, or shapes do not fit.
        """
        if state is not None:
            raise InputError("tcn-transformer is not causal and takes no state", hint="run it in overlapping windows")
        x, seen = one_stream(inputs, valid, self.config.modality, self.config.input_dim)
        exists = existing_frames(x, seen, valid)
        x, _ = self.last_seen(x, seen)
        for block in self.tcn:
            x, _ = block(x)
        x, _ = self.norm(x)
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


def _check(where: str, sizes: tuple[int, ...], dropout: float) -> None:
    if min(sizes) < 1 or not 0 <= dropout < 1:
        raise ConfigError("sizes must be positive and dropout in [0, 1)", where=where, hint="check the fields")
