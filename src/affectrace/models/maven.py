"""MAVEN: multi-modal attention for valence and arousal.

Ahire, Shah, Khan, Pakhale, Sookha, Ganaie, Dhall: "MAVEN: Multi-modal Attention for Valence-Arousal Emotion Network",
CVPR 2025 workshops (8th ABAW), arXiv:2503.12623. Two versions of the text differ; numbers in parentheses are equations
of the published one, "arXiv" marks the earlier one. Every choice beside the papers' and the authors' code is a row in
docs/papers/maven.md.

Glossary: m, n modalities (visual, audio, text); B batch; T_m steps of m, T frames; D_m width of m's features, M number
of modalities. Not causal: every frame attends to every other frame of its segment.

    x_m (T_m, D_m)   one modality's features: Swin 1024, HuBERT 768, RoBERTa 768          (4) (7) (11)
    F_m (T_m, 512)   projections     Linear to a common width                             arXiv III-D
    C_m (T_m, 512)   pathways        own + cross-attention over every other modality n    (13)-(14), arXiv (1)
    R_m (T_m, 512)   refine          LayerNorm(MHA(F, F, F) + F)                          (15)-(18)
        (T, 512)     on_frames       every modality on the frames                         (12), with clock="native"
    h   (T, 768)     fuse            Linear of the concatenation, M x 512 wide            (19)-(20)
    l   (T, 768)     encoders        two, each additive attention, then BEiT blocks       (21)-(25), arXiv (2)-(5)
        (1, 768)     pool            mean over time, only with pool="clip"                (26)
    y   (T, 2)       head            theta and intensity -> valence, arousal              (27)-(31), arXiv (6)-(7)

With clock="frame" (12) comes first: features are on frames when they come in, by `align`. models/segments.py runs a
recording of any length utterance by utterance, models/sliding.py runs it live with a stated latency.
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
    """The network; see the module's first lines.

    On the frame clock all T_m are the same; on the native clock each has its own, with `times`; on the utterance clock
    every modality but the frames' is averaged to one vector ((B, 1, D_m) stays as it is). A modality may be missing
    altogether, or be masked by `valid`: where it is, it contributes nothing.
    """

    name = "maven"
    config: MavenConfig
    head: PolarHead | CartesianHead | ThetaHead
    _sinusoid_periods: Tensor

    def __init__(self, config: MavenConfig) -> None:
        super().__init__(config)
        c = config
        self.clock = c.clock
        self.spec = c.inputs
        relative, periods = c.positions == "relative", (c.shortest_period_s, c.longest_period_s)
        rotary = TimeRotary(c.width // c.heads, *periods) if relative else None
        self.projections = nn.ModuleDict(
            {m: nn.Linear(sum(widths.values()), c.width) for m, widths in self.spec.streams.items()}
        )
        self.pathways = nn.ModuleDict(
            {
                _path(m, n): MultiHeadAttention(c.width, c.heads, dropout=c.dropout, rotary=rotary)
                for m, n in permutations(c.modalities, 2)
            }
        )
        self.dropout = nn.Dropout(c.dropout)
        self.merge_norm = nn.LayerNorm(c.width) if c.merge_norm else nn.Identity()
        refined = c.modalities if c.self_attention else ()
        self.refine = nn.ModuleDict(
            {m: SelfAttention(c.width, c.heads, dropout=c.dropout, rotary=rotary) for m in refined}
        )
        joined = c.width * len(c.modalities)
        self.fuse = nn.Identity() if c.topology == "none" else nn.Linear(joined, c.encoder_width)
        rotary = TimeRotary(c.encoder_width // c.encoder_heads, *periods) if relative else None
        self.encoders = nn.ModuleList(Encoder(c, rotary) for _ in range(0 if c.topology == "none" else 2))
        head_in = {"none": joined, "series": c.encoder_width, "parallel": 2 * c.encoder_width}[c.topology]
        heads = {"polar": PolarHead, "theta": ThetaHead, "cartesian": CartesianHead}
        bounded = {"bounded": c.head_bounded} if c.head == "cartesian" else {}
        self.head = heads[c.head](head_in, c.head_widths, c.head_dropout, **bounded)
        self.register_buffer("_sinusoid_periods", geometric_periods(c.width // 2, *periods), persistent=False)

    @property
    def modalities(self) -> dict[str, tuple[str, ...]]:
        return {m: tuple(streams) for m, streams in self.spec.streams.items()}

    def forward(
        self, inputs: Tensors, valid: Tensors | None = None, times: Tensors | None = None, state: None = None
    ) -> tuple[Tensor, None]:
        """(B, T_m, D_m) by stream -> (B, T, 2) valence, arousal; and None. Arguments as AffectModel's.

        valid: "frame" says which frames exist (the rest is padding); without it those where any modality is valid
            (frame clock) or the frame modality is.
        times: needed on the native clock and by positions. "frame" says where the outputs lie; without it on the frame
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
        h = torch.cat([self._on_frames(m, r, x) for m in self.config.modalities], dim=-1)  # (12), (19)
        h = self.fuse(h)  # (20)
        h = self._encoded(Tokens(h, x.frames, x.frame_times))  # (21)-(25)
        return masked_mean(h, x.frames).expand_as(h) if self.config.pool == "clip" else h  # (26)

    def _projected(self, inputs: ModelInputs) -> dict[str, Tokens]:
        f = {m: t._replace(x=self.projections[m](t.x)) for m, t in inputs.tokens.items()}
        if self.config.positions == "sinusoidal":
            for m, t in f.items():
                assert t.times is not None  # prepare_inputs saw to it
                f[m] = t._replace(x=t.x + sinusoids(t.times, self._sinusoid_periods).to(t.x.dtype))
        return f

    def _merged(self, m: str, f: Mapping[str, Tokens]) -> Tokens:
        """Own representation and what its pathways bring; the mean is over those whose source is there at all."""
        total, count = f[m].x, f[m].x.new_ones(len(f[m].x), 1, 1)
        for n in f:
            if n != m:
                total = total + self.pathways[_path(m, n)](f[m], f[n])  # (13)-(14) softmax(Q_m K_n^T / sqrt(d_k)) V_n
                count = count + _any(f[n])
        merged = total / count if self.config.merge == "mean" else total
        return f[m]._replace(x=self.merge_norm(self.dropout(merged)))

    def _self_attended(self, m: str, c: Tokens) -> Tokens:
        x = self.refine[m](c) if self.config.self_attention else c.x
        return c._replace(x=x if c.valid is None else x.masked_fill(~c.valid[..., None], 0.0))  # a gap says nothing

    def _on_frames(self, m: str, r: Mapping[str, Tokens], inputs: ModelInputs) -> Tensor:
        if m not in r:
            first = next(iter(r.values())).x
            return first.new_zeros(first.shape[0], inputs.n_frames, self.config.width)
        x, valid, times = r[m]
        if self.clock == "frame" or (m == self.config.frame_modality and x.shape[1] == inputs.n_frames):
            return x
        if self.clock == "utterance" and m != self.config.frame_modality:
            return x.expand(-1, inputs.n_frames, -1)
        assert times is not None  # prepare_inputs saw to it
        assert inputs.frame_times is not None
        return onto_frames(x, valid, times, inputs.frame_times)  # (12)

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
        """Where each pathway looks: (m, n) -> (B, H, T_m, T_n), how much step t of m attends to step t' of n.

        Rows sum to 1, or are 0 where n is missing. For one segment: holds T_m x T_n numbers a pathway and head.
        """
        f = self._projected(prepare_inputs(self.spec, inputs, valid, times, training=False))
        return {(m, n): self.pathways[_path(m, n)].weights(f[m], f[n]) for m, n in permutations(f, 2)}  # type: ignore[operator]

    def load_beit(self, weights: Tensors, *, name: str) -> list[str]:
        """Start both encoders' blocks from a pretrained BEiT, and say so in the configuration.

        weights: its state dict, from `models.beit.read_beit` or a transformers model. name: what the card calls it.
        Returns the tensors not used (patch embedding, pooler, ...). Raises WeightsError where it does not fit,
        ConfigError where this configuration has no BEiT blocks.
        """
        stacks = [module for module in self.modules() if isinstance(module, BeitBlocks)]
        if not stacks:
            hint = "topology series or parallel, attention beit or both"
            raise ConfigError("there are no BEiT blocks to load into", hint=hint)
        rest = [stack.load(weights, where=name) for stack in stacks]
        self.config = replace(self.config, beit_init=name)
        return rest[0]


class Encoder(nn.Module):
    """One of the two encoders over the fused sequence: additive attention (21)-(24), BEiT blocks (25), or both."""

    additive: AdditiveAttention | None
    blocks: BeitBlocks | None

    def __init__(self, config: MavenConfig, rotary: TimeRotary | None) -> None:
        super().__init__()
        c = config
        self.residual = c.additive_residual
        self.additive = self.blocks = None
        if c.attention != "beit":
            self.additive = AdditiveAttention(c.encoder_width, c.additive_width, sigmoid=c.additive_sigmoid)
        if c.attention != "additive":
            sizes = (c.encoder_depth, c.encoder_width, c.encoder_heads, c.mlp_ratio * c.encoder_width)
            options: dict[str, Any] = {"dropout": c.encoder_dropout, "layer_scale": c.layer_scale, "rotary": rotary}
            self.blocks = BeitBlocks(*sizes, **options)

    def forward(self, h: Tokens) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if self.additive is not None:
            refined = self.additive(h)  # (21)-(24)
            h = h._replace(x=h.x + refined if self.residual else refined)
        return h.x if self.blocks is None else self.blocks(h)  # (25)


def _any(t: Tokens) -> Tensor:
    """1 for each sample that has a valid row, else 0: (B, 1, 1)."""
    if t.valid is None:
        return t.x.new_full((len(t.x), 1, 1), float(t.x.shape[1] > 0))
    return t.valid.any(dim=1)[:, None, None].to(t.x.dtype)


def _path(m: str, n: str) -> str:
    """Name of the pathway whose queries are of modality m and whose keys and values are of n."""
    return f"{m}_from_{n}"


# ---- configuration


@dataclass(frozen=True)
class MavenConfig(Config):
    """Everything that shapes a MAVEN. Defaults are `.paper()`.

    "paper" is the published version, "arXiv" the earlier text, "authors" their released code, "ours" neither.
    """

    modalities: Annotated[tuple[Name, ...], MinLen(1)] = (
        "visual",
        "audio",
        "text",
    )  # any number, 1 or more; the pathways follow from it
    input_dims: tuple[Count, ...] = (1024, 768, 768)  # D_m; Swin-B, HuBERT-base, RoBERTa-base (paper 3.2)
    visual: Literal["swin", "beit", "both"] = "swin"  # both: arXiv III-C, joined before projection
    visual_beit_dim: Count = 768  # width of the input "visual_beit", which visual="both" adds
    frame_modality: str = "visual"  # whose rows are the frames on the native and utterance clocks (ours)
    clock: Literal["frame", "native", "utterance"] = "frame"  # (12) | arXiv's T_m, T_n | authors: a vector a segment
    align: Align = "linear"  # features onto frames: (12) for words, ours for the rest
    width: Count = 512  # d of F_m (authors)
    heads: Count = 2  # of pathways and refinement (authors; the papers give none)
    dropout: Dropout = 0.1  # on their attention weights and after merging (authors)
    merge: Literal["mean", "sum"] = "mean"  # of a modality's own F_m and its pathways (authors: mean)
    merge_norm: bool = False  # one LayerNorm, shared by all modalities, after merging (authors)
    self_attention: bool = True  # (15)-(18); off in the authors' code
    positions: Literal["none", "sinusoidal", "relative"] = "none"  # none: papers and authors, no notion of order
    shortest_period_s: Positive = 0.25  # of sinusoidal and relative positions, seconds (ours)
    longest_period_s: Positive = 120.0  # likewise (ours)
    topology: Literal["series", "parallel", "none"] = "series"  # of the encoders: (25) | arXiv, authors | authors' MLP
    attention: Literal["beit", "additive", "both"] = "both"  # in an encoder: blocks | (21)-(24) | these before those
    additive_width: Count = 256  # of d_tt' (ours; the papers give none)
    additive_sigmoid: bool = False  # arXiv (3); the published (22) has none
    additive_residual: bool = True  # h + l (ours: l alone forgets which frame it is, see docs)
    encoder_width: Count = 768  # D of h: BEiT base
    encoder_depth: Count = 12  # blocks in each of the two encoders: BEiT base
    encoder_heads: Count = 12  # BEiT base
    mlp_ratio: Count = 4  # BEiT base
    encoder_dropout: Dropout = 0.0  # BEiT base
    layer_scale: float = 0.1  # initial lambda_1, lambda_2: BEiT base
    beit_init: str = "random"  # what the blocks started from; `load_beit` sets it, the model card states it
    head: Literal["polar", "cartesian", "theta"] = "polar"  # (27)-(31), no seam | V, A | with a seam: authors' MLP
    head_bounded: bool = True  # cartesian: through tanh (ours; the authors' is not bounded)
    head_widths: tuple[Count, Count] = (512, 256)  # hidden layers of the head (authors)
    head_dropout: tuple[Dropout, Dropout] = (0.2, 0.2)  # after each of them (paper 3.8; authors .5 and .3)
    pool: Literal["none", "clip"] = "none"  # "clip": (26), one value for all frames
    modality_dropout: Dropout = (
        0.0  # probability to hide a modality from a sample in training, never all of them (ours)
    )
    embedding_noise: NotNegative = (
        0.0  # standard deviation added to inputs in training (authors .01, at test time as well)
    )
    standardise: bool = False  # each input tensor by its own mean and deviation (authors)

    def __post_init__(self) -> None:
        m, heads, encoder_heads = self.modalities, max(1, self.heads), max(1, self.encoder_heads)
        wrong = [
            what
            for what, broken in (
                ("modalities: a name appears twice", len(set(m)) < len(m)),
                (f"modalities: '{FRAME}' is reserved for the frames' own times", FRAME in m),
                ("input_dims: give one width for each modality", len(self.input_dims) != len(m)),
                ("align: features are aligned with clock=frame only", self.clock != "frame" and self.align != "linear"),
                ("width: not a multiple of 2 x heads", self.width % (2 * heads)),
                ("encoder_width: not a multiple of 2 x encoder_heads", self.encoder_width % (2 * encoder_heads)),
                ("longest_period_s: not above shortest_period_s", self.shortest_period_s >= self.longest_period_s),
            )
            if broken
        ]
        if wrong:
            raise ConfigError("; ".join(wrong), where="MavenConfig", hint="see docs/papers/maven.md for the fields")

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
        """The authors' BEiT network: audio and text one vector a segment, (V, A) directly. Not the slips around it."""
        values: dict[str, Any] = {
            "clock": "utterance",
            "merge_norm": True,
            "self_attention": False,
            "topology": "parallel",
            "attention": "beit",
            "head": "cartesian",
            "head_bounded": False,
            "head_dropout": (0.5, 0.3),
        }
        return cls(**values | changes)

    @classmethod
    def released_mlp(cls, **changes: Any) -> MavenConfig:
        """The authors' MLP network: no encoders, theta and intensity as plain numbers (`Maven.polar` returns them)."""
        return cls.released_beit(**{"topology": "none", "head": "theta"} | changes)

    @classmethod
    def tiny(cls, **changes: Any) -> MavenConfig:
        """The published version made small, for tests and first runs."""
        values: dict[str, Any] = {
            "input_dims": (12, 8, 8),
            "visual_beit_dim": 8,
            "width": 16,
            "additive_width": 8,
            "encoder_width": 24,
            "encoder_depth": 2,
            "encoder_heads": 2,
            "head_widths": (16, 8),
        }
        return cls(**values | changes)
