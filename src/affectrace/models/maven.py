"""MAVEN: multimodal attention for valence and arousal.

Ahire, Shah, Khan, Pakhale, Sookha, Ganaie, Dhall: "MAVEN: Multi-modal Attention for Valence-Arousal Emotion Network",
CVPR 2025 workshops (8th ABAW), arXiv:2503.12623. The two versions of the text differ: numbers in parentheses are
equations of the published one, "arXiv" marks the earlier one. docs/papers/maven.md compares both papers, the authors'
code and this file, choice by choice.

    x_m (T_m, D_m)   one modality's features: Swin 1024, HuBERT 768, RoBERTa 768          (4) (7) (11)
    F_m (T_m, 512)   projections     Linear to a common width                             arXiv III-D
    C_m (T_m, 512)   pathways        own + cross-attention over every other modality n    (13)-(14), arXiv (1)
    R_m (T_m, 512)   refine          LayerNorm(MHA(F, F, F) + F)                          (15)-(18)
        (T, 512)     on_frames       every modality on the frames                         (12), with clock="native"
    h   (T, 768)     fuse            Linear of the concatenation, M x 512 wide            (19)-(20)
    l   (T, 768)     encoders        two, each additive attention, then BEiT blocks       (21)-(25), arXiv (2)-(5)
        (1, 768)     pool            mean over time, only with pool="clip"                (26)
    y   (T, 2)       head            theta and intensity -> valence, arousal              (27)-(31), arXiv (6)-(7)

Glossary: m, n modalities (visual, audio, text), M of them; B batch; T_m steps of m, T frames; D_m feature width of m.

With clock="frame" equation (12) comes first: the features are on frames already, by `align`. Not causal: every frame
attends to all frames of its segment. Recordings of any length: models/segments.py; live streams: models/sliding.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Annotated, Any, Literal

import torch
from annotated_types import MinLen
from torch import Tensor, nn

from affectrace.config import Config, Count, NotNegative, Positive
from affectrace.errors import ConfigError, InputError
from affectrace.features.align import How as Align
from affectrace.models.attention import (
    AdditiveAttention,
    MultiHeadAttention,
    SelfAttention,
    TimeRotary,
    Tokens,
    geometric_periods,
    sinusoids,
)
from affectrace.models.base import AffectModel, Dropout, Name, Tensors
from affectrace.models.beit import BeitBlocks
from affectrace.models.heads import CartesianHead, PolarHead, ThetaHead
from affectrace.models.inputs import InputSpec, ModelInputs, masked_mean, onto_frames, prepare_inputs
from affectrace.sequences import FRAME


class Maven(AffectModel):
    """The network, as laid out at the top of this file.

    On the frame clock all T_m equal T; on the native clock each modality has its own T_m, and `times`; on the utterance
    clock every modality but the frames' is averaged to one vector. Any modality may be missing, wholly or in part
    (`valid`); where it is, it contributes nothing.
    """

    name = "maven"
    config: MavenConfig
    head: PolarHead | CartesianHead | ThetaHead
    _sinusoid_periods: Tensor

    def __init__(self, config: MavenConfig) -> None:
        super().__init__(config)
        c = self.config
        self.clock, self.spec = c.clock, c.inputs
        attention: dict[str, Any] = {"dropout": c.dropout, "rotary": c.rotary(c.width // c.heads)}
        self.projections = nn.ModuleDict({m: nn.Linear(sum(d.values()), c.width) for m, d in self.spec.streams.items()})
        self.pathways = nn.ModuleDict(
            {_path(m, n): MultiHeadAttention(c.width, c.heads, **attention) for m, n in permutations(c.modalities, 2)}
        )
        self.dropout = nn.Dropout(c.dropout)
        self.merge_norm = nn.LayerNorm(c.width) if c.merge_norm else nn.Identity()
        refined = c.modalities if c.self_attention else ()
        self.refine = nn.ModuleDict({m: SelfAttention(c.width, c.heads, **attention) for m in refined})
        joined = c.width * len(c.modalities)
        self.fuse = nn.Identity() if c.topology == "none" else nn.Linear(joined, c.encoder_width)
        rotary = c.rotary(c.encoder_width // c.encoder_heads)
        self.encoders = nn.ModuleList(FusionEncoder(c, rotary) for _ in range(0 if c.topology == "none" else 2))
        width = {"none": joined, "series": c.encoder_width, "parallel": 2 * c.encoder_width}[c.topology]
        if c.head == "cartesian":
            self.head = CartesianHead(width, c.head_widths, c.head_dropout, bounded=c.head_bounded)
        else:
            self.head = (PolarHead if c.head == "polar" else ThetaHead)(width, c.head_widths, c.head_dropout)
        periods = geometric_periods(c.width // 2, c.shortest_period_s, c.longest_period_s)
        self.register_buffer("_sinusoid_periods", periods, persistent=False)

    @property
    def modalities(self) -> dict[str, tuple[str, ...]]:
        return {m: tuple(streams) for m, streams in self.spec.streams.items()}

    def forward(
        self, inputs: Tensors, valid: Tensors | None = None, times: Tensors | None = None, state: None = None
    ) -> tuple[Tensor, None]:
        """{stream: (B, T_m, D_m)} -> (B, T, 2) valence, arousal; and None. Arguments as AffectModel's.

        valid: "frame" tells which frames exist (the others are padding); without it, those where any modality is valid
            (frame clock) or the frame modality is.
        times: needed on the native clock and for positions. "frame": of the outputs; without it they are on the frame
            modality's rows.
        """
        if state is not None:
            hint = "run it live with models.sliding.SlidingModel"
            raise InputError("MAVEN is not causal and takes no state", hint=hint)
        return self.head(self._refined(inputs, valid, times)), None  # (27)-(31)

    def _refined(self, inputs: Tensors, valid: Tensors | None, times: Tensors | None) -> Tensor:
        """Everything before the head: (B, T, D)."""
        x = prepare_inputs(self.spec, inputs, valid, times, training=self.training)
        f = self._projected(x)  # F_m, arXiv III-D
        c = {m: self._merged(m, f) for m in f}  # C_m, (13)-(14)
        r = {m: self._self_attended(m, c[m]) for m in c}  # R_m, (15)-(18)
        h = torch.cat([self._on_frames(m, r[m], x) for m in r], dim=-1)  # (12), (19)
        h = self.fuse(h)  # (20)
        h = self._encoded(Tokens(h, x.frames, x.frame_times))  # (21)-(25)
        return masked_mean(h, x.frames).expand_as(h) if self.config.pool == "clip" else h  # (26)

    def _projected(self, inputs: ModelInputs) -> dict[str, Tokens]:
        f = {m: t._replace(x=self.projections[m](t.x)) for m, t in inputs.tokens.items()}
        if self.config.positions == "sinusoidal":
            for m, t in f.items():
                assert t.times is not None  # as prepare_inputs checked
                f[m] = t._replace(x=t.x + sinusoids(t.times, self._sinusoid_periods).to(t.x.dtype))
        return f

    def _merged(self, m: str, f: Mapping[str, Tokens]) -> Tokens:
        """F_m plus its pathways; the mean is over those with a valid row in their source."""
        total, count = f[m].x, f[m].x.new_ones(len(f[m].x), 1, 1)
        for n, source in f.items():
            if n != m:
                total = total + self.pathways[_path(m, n)](f[m], source)  # (13)-(14) softmax(Q_m K_n^T / sqrt(d_k)) V_n
                count = count + (1 if source.valid is None else source.valid.any(dim=1)[:, None, None])
        merged = total / count if self.config.merge == "mean" else total
        return f[m]._replace(x=self.merge_norm(self.dropout(merged)))

    def _self_attended(self, m: str, c: Tokens) -> Tokens:
        x = self.refine[m](c) if self.config.self_attention else c.x
        return c._replace(x=x if c.valid is None else x.masked_fill(~c.valid[..., None], 0.0))  # nothing from gaps

    def _on_frames(self, m: str, r: Tokens, inputs: ModelInputs) -> Tensor:
        if self.clock == "frame" or (m == self.config.frame_modality and r.x.shape[1] == inputs.n_frames):
            return r.x
        if self.clock == "utterance" and m != self.config.frame_modality:
            return r.x.expand(-1, inputs.n_frames, -1)
        assert r.times is not None  # as prepare_inputs checked
        assert inputs.frame_times is not None
        return onto_frames(r.x, r.valid, r.times, inputs.frame_times)  # (12)

    def _encoded(self, h: Tokens) -> Tensor:
        if self.config.topology == "none":
            return h.x
        first, second = self.encoders
        if self.config.topology == "series":
            return second(h._replace(x=first(h)))  # (25)
        return torch.cat((first(h), second(h)), dim=-1)  # arXiv III-E.3

    def polar(
        self, inputs: Tensors, valid: Tensors | None = None, times: Tensors | None = None
    ) -> tuple[Tensor, Tensor]:
        """theta (B, T) in radians and intensity (B, T); with head="theta" what the authors' network returns."""
        return self.head.polar(self._refined(inputs, valid, times))

    @torch.no_grad()
    def attention_maps(
        self, inputs: Tensors, valid: Tensors | None = None, times: Tensors | None = None
    ) -> dict[tuple[str, str], Tensor]:
        """Attention weights of each pathway: (m, n) -> (B, H, T_m, T_n), from step t of m to step t' of n.

        Rows sum to 1, or are 0 where n is missing. For one segment: T_m x T_n numbers for each pathway and head.
        """
        f = self._projected(prepare_inputs(self.spec, inputs, valid, times, training=False))
        return {(m, n): self.pathways[_path(m, n)].weights(f[m], f[n]) for m, n in permutations(f, 2)}  # type: ignore[operator]

    def load_beit(self, weights: Tensors, *, name: str) -> list[str]:
        """Initialize the blocks of both encoders from a pretrained BEiT, and record its name in the configuration.

        weights: its state dict, from `models.beit.read_beit` or a transformers model. name: for the model card.
        Returns the names of unused tensors (patch embedding, pooler, ...). Raises WeightsError where it does not fit,
        ConfigError where this configuration has no BEiT blocks.
        """
        stacks = [module for module in self.modules() if isinstance(module, BeitBlocks)]
        if not stacks:
            hint = "topology series or parallel, attention beit or both"
            raise ConfigError("there are no BEiT blocks to load into", hint=hint)
        unused = [stack.load(weights, where=name) for stack in stacks]
        self.config = replace(self.config, beit_init=name)
        return unused[0]


class FusionEncoder(nn.Module):
    """One of the two encoders of the fused sequence: additive attention (21)-(24), BEiT blocks (25), or both."""

    def __init__(self, c: MavenConfig, rotary: TimeRotary | None) -> None:
        super().__init__()
        self.residual = c.additive_residual
        self.additive: AdditiveAttention | None = None
        self.blocks: BeitBlocks | None = None
        if c.attention != "beit":
            self.additive = AdditiveAttention(c.encoder_width, c.additive_width, sigmoid=c.additive_sigmoid)
        if c.attention != "additive":
            self.blocks = BeitBlocks(
                c.encoder_depth,
                c.encoder_width,
                c.encoder_heads,
                c.mlp_ratio * c.encoder_width,
                dropout=c.encoder_dropout,
                layer_scale=c.layer_scale,
                rotary=rotary,
            )

    def forward(self, h: Tokens) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if self.additive is not None:
            refined = self.additive(h)  # (21)-(24)
            h = h._replace(x=h.x + refined if self.residual else refined)
        return h.x if self.blocks is None else self.blocks(h)  # (25)


def _path(m: str, n: str) -> str:
    """Name of the pathway with queries of modality m, keys and values of modality n."""
    return f"{m}_from_{n}"


# ---- configuration


@dataclass(frozen=True)
class MavenConfig(Config):
    """Everything that shapes a MAVEN. Defaults are `.paper()`.

    Sources: "paper" is the published version, "arXiv" the earlier text, "authors" their released code, "ours" neither.
    """

    modalities: Annotated[tuple[Name, ...], MinLen(1)] = ("visual", "audio", "text")  # pathways follow from them
    input_dims: tuple[Count, ...] = (1024, 768, 768)  # D_m; Swin-B, HuBERT-base, RoBERTa-base (paper 3.2)
    visual: Literal["swin", "beit", "both"] = "swin"  # both: arXiv III-C, concatenated before projection
    visual_beit_dim: Count = 768  # width of the input "visual_beit", which visual="both" adds
    frame_modality: str = "visual"  # whose rows are the frames on the native and utterance clocks (ours)
    clock: Literal["frame", "native", "utterance"] = (
        "frame"  # (12) | arXiv's T_m, T_n | authors: one vector per segment
    )
    align: Align = "linear"  # features onto frames: (12) for words, ours for the rest
    width: Count = 512  # d of F_m (authors)
    heads: Count = 2  # of pathways and refinement (authors; the papers give none)
    dropout: Dropout = 0.1  # on their attention weights and after merging (authors)
    merge: Literal["mean", "sum"] = "mean"  # of F_m and its pathways (authors: mean)
    merge_norm: bool = False  # one LayerNorm, shared by all modalities, after merging (authors)
    self_attention: bool = True  # (15)-(18); off in the authors' code
    positions: Literal["none", "sinusoidal", "relative"] = "none"  # none: papers and authors, no notion of order
    shortest_period_s: Positive = 0.25  # of sinusoidal and relative positions, seconds (ours)
    longest_period_s: Positive = 120.0  # likewise (ours)
    topology: Literal["series", "parallel", "none"] = "series"  # of the encoders: (25) | arXiv, authors | authors' MLP
    attention: Literal["beit", "additive", "both"] = "both"  # in an encoder: (25) | (21)-(24) | (21)-(24), then (25)
    additive_width: Count = 256  # of d_tt' (ours; the papers give none)
    additive_sigmoid: bool = False  # arXiv (3); the published (22) has none
    additive_residual: bool = True  # h + l (ours: l alone is nearly the same in every frame, see docs)
    encoder_width: Count = 768  # D of h: BEiT base
    encoder_depth: Count = 12  # blocks in each of the two encoders: BEiT base
    encoder_heads: Count = 12  # BEiT base
    mlp_ratio: Count = 4  # BEiT base
    encoder_dropout: Dropout = 0.0  # BEiT base
    layer_scale: float = 0.1  # initial lambda_1, lambda_2: BEiT base
    beit_init: str = "random"  # what the blocks were initialized from; set by `load_beit`, stated in the model card
    head: Literal["polar", "cartesian", "theta"] = "polar"  # (27)-(31), no seam | V, A | with a seam: authors' MLP
    head_bounded: bool = True  # cartesian: through tanh (ours; the authors' is not bounded)
    head_widths: tuple[Count, Count] = (512, 256)  # hidden layers of the head (authors)
    head_dropout: tuple[Dropout, Dropout] = (0.2, 0.2)  # after each of them (paper 3.8; authors .5 and .3)
    pool: Literal["none", "clip"] = "none"  # "clip": (26), one value for all frames
    modality_dropout: Dropout = 0.0  # probability of dropping a modality of a training sample, never all (ours)
    embedding_noise: NotNegative = 0.0  # standard deviation, in training (authors .01, at test time as well)
    standardise: bool = False  # each input tensor by its own mean and deviation (authors)

    def __post_init__(self) -> None:
        m, heads, encoder_heads = self.modalities, max(1, self.heads), max(1, self.encoder_heads)
        mistakes = {
            "modalities: a name appears twice": len(set(m)) < len(m),
            f"modalities: '{FRAME}' is reserved for the frames' own times": FRAME in m,
            "input_dims: give one width for each modality": len(self.input_dims) != len(m),
            "align: features are aligned with clock=frame only": self.clock != "frame" and self.align != "linear",
            "width: not a multiple of 2 x heads": self.width % (2 * heads),
            "encoder_width: not a multiple of 2 x encoder_heads": self.encoder_width % (2 * encoder_heads),
            "longest_period_s: not above shortest_period_s": self.shortest_period_s >= self.longest_period_s,
        }
        if any(mistakes.values()):
            what = "; ".join(mistake for mistake, made in mistakes.items() if made)
            raise ConfigError(what, where="MavenConfig", hint="see docs/papers/maven.md for the fields")

    @property
    def streams(self) -> dict[str, int]:
        """Name -> width of each input: the modalities in order, and "visual_beit" with visual="both"."""
        return self.inputs.widths

    @property
    def inputs(self) -> InputSpec:
        """What the network reads."""
        streams = {m: {m: width} for m, width in zip(self.modalities, self.input_dims, strict=True)}
        if self.visual == "both" and "visual" in streams:
            streams["visual"]["visual_beit"] = self.visual_beit_dim
        shared = ("clock", "frame_modality", "standardise", "embedding_noise", "modality_dropout")
        return InputSpec(streams, positions=self.positions != "none", **{name: getattr(self, name) for name in shared})

    def rotary(self, channels: int) -> TimeRotary | None:
        """Relative positions for heads of so many channels, where configured."""
        relative = self.positions == "relative"
        return TimeRotary(channels, self.shortest_period_s, self.longest_period_s) if relative else None

    @classmethod
    def paper(cls, **changes: Any) -> MavenConfig:
        """The published version, with an output for every frame (`pool="clip"` gives equation 26)."""
        if changes.get("visual") == "beit":
            changes = {"input_dims": (768, 768, 768)} | changes
        return cls(**changes)

    @classmethod
    def arxiv_v1(cls, **changes: Any) -> MavenConfig:
        """The arXiv text: both visual paths, own clocks, additive attention with a sigmoid, encoders side by side."""
        values: dict[str, Any] = {"visual": "both", "clock": "native", "topology": "parallel", "additive_sigmoid": True}
        return cls(**values | changes)

    @classmethod
    def released_beit(cls, **changes: Any) -> MavenConfig:
        """The authors' BEiT network: audio and text one vector per segment, (V, A) directly."""
        encoder: dict[str, Any] = {"self_attention": False, "topology": "parallel", "attention": "beit"}
        head: dict[str, Any] = {"head": "cartesian", "head_bounded": False, "head_dropout": (0.5, 0.3)}
        return cls(**encoder | head | {"clock": "utterance", "merge_norm": True} | changes)

    @classmethod
    def released_mlp(cls, **changes: Any) -> MavenConfig:
        """The authors' MLP network: no encoders, theta and intensity as plain numbers (`Maven.polar` returns them)."""
        return cls.released_beit(**{"topology": "none", "head": "theta"} | changes)

    @classmethod
    def tiny(cls, **changes: Any) -> MavenConfig:
        """The published version with small layers, for tests and first runs."""
        inputs: dict[str, Any] = {"input_dims": (12, 8, 8), "visual_beit_dim": 8, "width": 16}
        encoder: dict[str, Any] = {"encoder_width": 24, "encoder_depth": 2, "encoder_heads": 2, "additive_width": 8}
        return cls(**inputs | encoder | {"head_widths": (16, 8)} | changes)
