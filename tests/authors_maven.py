"""The MAVEN authors' two networks, written from the published facts (docs/papers/maven.md), independently of src.

torch's own MultiheadAttention, transformers' own BeitLayer; names as in their checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

PAIRS = ("v2a", "v2t", "a2v", "a2t", "t2v", "t2a")


class Fusion(nn.Module):
    """Projections, six pathways, mean of three, one shared LayerNorm; audio and text are one vector."""

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.video_proj, self.audio_proj, self.text_proj = (nn.Linear(d, width) for d in (1024, 768, 768))
        for pair in PAIRS:
            setattr(self, f"attn_{pair}", nn.MultiheadAttention(width, 2, dropout=0.1, batch_first=True))
        self.layer_norm = nn.LayerNorm(width)

    def forward(self, frames: Tensor, audio: Tensor, text: Tensor) -> Tensor:
        f = {
            "v": self.video_proj(frames),
            "a": self.audio_proj(audio)[:, None],
            "t": self.text_proj(text)[:, None],
        }
        out = []
        for m in "vat":
            total = f[m]
            for n in "vat".replace(m, ""):
                total = total + getattr(self, f"attn_{m}2{n}")(f[m], f[n], f[n])[0]
            out.append(self.layer_norm(total / 3).expand(-1, frames.shape[1], -1))
        return torch.cat(out, dim=-1)


class Regressor(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Linear(width, 512),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(512, 256),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(256, 2),
        )


class Stack(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        from transformers import BeitConfig
        from transformers.models.beit.modeling_beit import BeitLayer

        config = BeitConfig(attn_implementation="eager", use_relative_position_bias=False, layer_scale_init_value=0.1)
        self.layers = nn.ModuleList(BeitLayer(config) for _ in range(depth))


class ReleasedBeit(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.multihead_attention = Fusion()
        self.projection_layer = nn.Linear(3 * 512, 768)
        self.beit3_encoders = nn.ModuleList(Stack(depth) for _ in range(2))
        self.regressor = Regressor(2 * 768)

    def forward(self, frames: Tensor, audio: Tensor, text: Tensor) -> Tensor:
        h = self.projection_layer(self.multihead_attention(frames, audio, text))
        both = []
        for stack in self.beit3_encoders:
            x = h
            for layer in stack.layers:
                x = layer(x)
            both.append(x)
        return self.regressor.fc(torch.cat(both, dim=-1))


class ReleasedMlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.multihead_attention = Fusion()
        self.regressor = Regressor(3 * 512)

    def forward(self, frames: Tensor, audio: Tensor, text: Tensor) -> Tensor:
        return self.regressor.fc(self.multihead_attention(frames, audio, text))  # theta, intensity


OLD_NAMES = (
    ("layers.", "layer."),
    ("attention.q_proj", "attention.attention.query"),
    ("attention.k_proj", "attention.attention.key"),
    ("attention.v_proj", "attention.attention.value"),
    ("attention.o_proj", "attention.output.dense"),
    ("mlp.fc1", "intermediate.dense"),
    ("mlp.fc2", "output.dense"),
)


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """BEiT blocks as transformers 4 named them, which is how the authors' own files name them."""
    renamed = {}
    for name, tensor in state.items():
        for new, old in OLD_NAMES:
            name = name.replace(new, old)
        renamed[name] = tensor
    return renamed


def shaken(model: nn.Module) -> nn.Module:
    """Random weights everywhere, norms, biases and layer scales too: no mistake can hide behind a 0 or a 1."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model.eval()
