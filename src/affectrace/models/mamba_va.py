"""Mamba-VA: a TCN, then Mamba, from face features to valence and arousal. Causal.

Liang, Wang, Liu, Liu, Yao: "Mamba-VA: A Mamba-based Approach for Continuous Emotion Recognition in Valence-Arousal
Space", 2025, arXiv:2503.10104; the authors' code is FreedomPuppy77/Charon. docs/papers/mamba-va.md compares the paper,
the authors' code and this file, choice by choice.

    f (T, 1024)  inputs      features of the fine-tuned MAE encoder (features/image.py)       section 3.1
    f (T, 1024)  last_seen   frames without a face filled                                     authors' data sets
    g (T, 256)   tcn         four residual blocks, kernel 15, dilation 1, 2, 4, 8             (1), section 3.2
    g (T, 256)   norm        layer norm of every frame, without affine parameters             authors' code
    m (T, 256)   mamba       four layers LayerNorm(Mamba(x) + x)                              (2), section 3.3
    m (T, 256)   proj        Linear                                                           authors' code
    y (T, 2)     head        Linear, ReLU, Linear: valence, arousal, not clipped              section 3.3

Glossary: T frames; f, g, m as in the paper; widths of the paper. 67.2 M parameters, 66.2 M of them in the TCN;
132 MFLOP per frame. layers.py holds TCN and Mamba block, ops/scan.py the selective scan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from annotated_types import Ge
from torch import Tensor, nn

from affectrace.config import Count, Positive
from affectrace.models.base import AffectModel, Dropout, OneStreamConfig, State, Tensors, Widths
from affectrace.models.inputs import LastSeen, one_stream
from affectrace.models.layers import TCN, MambaBlock, MambaState, Stack


class MambaVA(AffectModel):
    """The network, as laid out at the top of this file."""

    name = "mamba-va"
    causal = True
    config: MambaVAConfig

    def __init__(self, config: MambaVAConfig) -> None:
        super().__init__(config)
        c = self.config
        self.last_seen = LastSeen(c.missing, c.row_dim)
        self.tcn = TCN(c.row_dim, c.tcn_channels, c.kernel_size, c.dropout, c.tcn_init_std)
        width = c.tcn_channels[-1]
        self.norm = nn.LayerNorm(width, c.frame_norm_eps, elementwise_affine=False)
        self.mamba = Stack(
            MambaLayer(MambaBlock(width, c.d_state, c.d_conv, c.expand), width) for _ in range(c.mamba_layers)
        )
        self.proj = nn.Linear(width, width)
        self.head = nn.Sequential(nn.Linear(width, c.head_width), nn.ReLU(), nn.Linear(c.head_width, 2))
        if c.mamba_init == "authors":
            for module in self.modules():
                if isinstance(module, MambaBlock):
                    _authors_init(module)

    def forward(
        self,
        inputs: Tensors,
        valid: Tensors | None = None,
        times: Tensors | None = None,
        state: MambaVAState | None = None,
    ) -> tuple[Tensor, MambaVAState]:
        """{modality: (B, T, input_dim)} -> (B, T, 2) valence, arousal, not clipped; and the state after the last frame.

        valid: {modality: (B, T) bool}, True = the frame has a face. Padding at the end needs no mask.
        times: not used, one row is one frame. state: None = start of a recording.
        """
        f, seen = one_stream(inputs, valid, self.config.streams)
        last, tcn, mamba = state if state is not None else (None, None, None)
        f, last = self.last_seen(f, seen, last)
        g, tcn = self.tcn(f, tcn)  # (1) g_i = TCN(f_i)
        m, mamba = self.mamba(self.norm(g), mamba)  # (2) m_i = Mamba(g_i)
        y = self.head(self.proj(m))  # section 3.3, "a linear projection"
        return y, MambaVAState(last, tcn, mamba)


class MambaVAState(NamedTuple):
    """State after a frame: 1.0 MB at the paper's size, whatever the length of the recording."""

    last_seen: Tensor | None
    tcn: tuple[State, ...]
    mamba: tuple[State, ...]


class MambaLayer(nn.Module):
    """y = LayerNorm(Mamba(x) + x): post-norm, unlike Mamba's own pre-norm blocks."""

    def __init__(self, block: MambaBlock, d_model: int) -> None:
        super().__init__()
        self.block = block
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        """x (B, T, D) -> y (B, T, D)."""
        y, state = self.block(x, state)
        return self.norm(y + x), state


def _authors_init(block: MambaBlock) -> None:
    """The authors' code overwrites Mamba's own initialization."""
    conv = block.conv1d
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="linear")
    nn.init.zeros_(conv.bias)
    nn.init.normal_(block.A_log, 0.0, 0.01)
    nn.init.normal_(block.dt_proj.weight, 0.0, 0.02)
    nn.init.normal_(block.dt_proj.bias, 0.0, 0.02)
    nn.init.xavier_uniform_(block.out_proj.weight)


# ---- configuration


@dataclass(frozen=True)
class MambaVAConfig(OneStreamConfig):
    """Everything that shapes a Mamba-VA. Defaults are `.paper()`; sources are paper sections, or the authors' code."""

    input_dim: Count = 1024  # D of f_i: ViT-Large's class token (section 3.1)
    tcn_channels: Widths = (1024, 768, 512, 256)  # output widths of the blocks (authors)
    kernel_size: Count = 15  # k (4.2)
    dropout: Dropout = 0.3  # in the TCN (4.2; authors: 0.2 in folds 1-5)
    tcn_init_std: Positive | None = 0.01  # convolution weights from N(0, std) (authors); None: torch's own
    frame_norm_eps: Positive = 1e-5  # (authors: InstanceNorm1d's default)
    mamba_layers: Annotated[int, Ge(0)] = 4  # (4.2)
    d_state: Count = 8  # N (4.2)
    d_conv: Count = 4  # (4.2, "convolutional channel dimension")
    expand: Count = 1  # E / D (4.2)
    mamba_init: Literal["mamba", "authors"] = "mamba"  # Gu & Dao's, or the authors' (see _authors_init)
    head_width: Count = 128  # hidden layer of the head (authors)

    TINY: ClassVar[dict[str, Any]] = {
        "tcn_channels": (32, 24, 24, 16),
        "kernel_size": 5,
        "dropout": 0.1,
        "tcn_init_std": None,  # N(0, 0.01) would starve narrow layers
        "mamba_layers": 2,
        "head_width": 16,
    }

    @classmethod
    def released(cls, **changes: Any) -> Self:
        """The authors' code: the same network with their initialization of Mamba."""
        return cls(**{"mamba_init": "authors"} | changes)
