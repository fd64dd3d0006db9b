"""MAVEN: multi-modal attention for valence and arousal.

Ahire, Shah, Khan, Pakhale, Sookha, Ganaie, Dhall: "MAVEN: Multi-modal Attention for Valence-Arousal Emotion Network",
CVPR 2025 workshops (8th ABAW), arXiv:2503.12623. Two versions of the text differ; numbers in parentheses are equations
of the published one, "arXiv" marks the earlier one. Every choice beside the papers' and the authors' code is a row in
docs/papers/maven.md.

    x_m (T_m, D_m)   one modality's features: Swin 1024, HuBERT 768, RoBERTa 768          (4) (7) (11)
    F_m (T_m, 512)   projections     Linear to a common width                             arXiv III-D
    C_m (T_m, 512)   pathways        own + cross-attention over every other modality n    (13)-(14), arXiv (1)
    R_m (T_m, 512)   refine          LayerNorm(MHA(F, F, F) + F)                          (15)-(18)
        (T, 512)     onto_frames     every modality on the frames                         (12), with clock="native"
    h   (T, 768)     fuse            Linear of the concatenation                          (19)-(20)
    l   (T, 768)     encoders        two, each additive attention, then BEiT blocks       (21)-(25), arXiv (2)-(5)
        (1, 768)     pool            mean over time, only with pool="clip"                (26)
    y   (T, 2)       head            theta and intensity -> valence, arousal              (27)-(31), arXiv (6)-(7)

With clock="frame" (12) comes first: features are on frames when they come in, by `align` (models_run.sequence_config).
Not causal: every frame attends to every other frame of its segment. models/segments.py runs a recording of any length
utterance by utterance, models/sliding.py runs it live with a stated latency, models/shares.py says what each modality
contributed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from itertools import permutations
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from affectrace.config import Config
from affectrace.errors import ConfigError, InputError
from affectrace.features.align import How as Align
from affectrace.models.attention import (
    AdditiveAttention,
    MultiHeadAttention,
    SelfAttention,
    geometric_periods,
    sinusoids,
)
from affectrace.models.beit import BeitBlocks
from affectrace.models.clocks import masked_mean, onto_frames
from affectrace.models.heads import CartesianHead, PolarHead, ThetaHead
from affectrace.models.inputs import FRAME, Entrance, Seen, enter

ALIGNMENTS = get_args(Align)


@dataclasses.dataclass(frozen=True)
class MavenConfig(Config):
    """Everything that shapes a MAVEN. Defaults are `.paper()`.

    "paper" is the published version, "seed" the arXiv text, "authors" their released code, "ours" neither.
    """

    modalities: tuple[str, ...] = ("visual", "audio", "text")  # any number, 1 or more; the pathways follow from it
    input_dims: tuple[int, ...] = (1024, 768, 768)  # D_m; Swin-B, HuBERT-base, RoBERTa-base (paper 3.2)
    visual: Literal["swin", "beit", "both"] = "swin"  # both: seed III-C, joined before projection
    visual_beit_dim: int = 768  # width of the input "visual_beit", which visual="both" adds
    frame_modality: str = "visual"  # whose rows are the frames on the native and utterance clocks (ours)
    clock: Literal["frame", "native", "utterance"] = "frame"  # (12) | seed's T_m, T_n | authors: a vector a segment
    align: Align = "linear"  # features onto frames: (12) for words, ours for the rest
    width: int = 512  # d of F_m (authors)
    heads: int = 2  # of pathways and refinement (authors; the papers give none)
    dropout: float = 0.1  # on their attention weights and after merging (authors)
    merge: Literal["mean", "sum"] = "mean"  # of a modality's own F_m and its pathways (authors: mean)
    merge_norm: bool = False  # one LayerNorm, shared by all modalities, after merging (authors)
    self_attention: bool = True  # (15)-(18); off in the authors' code
    positions: Literal["none", "sinusoidal", "relative"] = "none"  # none: papers and authors, no notion of order
    shortest_period_s: float = 0.25  # of sinusoidal and relative positions, seconds (ours)
    longest_period_s: float = 120.0  # likewise (ours)
    topology: Literal["series", "parallel", "none"] = "series"  # of the encoders: (25) | seed, authors | authors' MLP
    attention: Literal["beit", "additive", "both"] = "both"  # in an encoder: blocks | (21)-(24) | these before those
    additive_width: int = 256  # of d_tt' (ours; the papers give none)
    additive_sigmoid: bool = False  # arXiv (3); the published (22) has none
    additive_residual: bool = True  # h + l (ours: l alone forgets which frame it is, see docs)
    encoder_width: int = 768  # D of h: BEiT base
    encoder_depth: int = 12  # blocks in each of the two encoders: BEiT base
    encoder_heads: int = 12  # BEiT base
    mlp_ratio: int = 4  # BEiT base
    encoder_dropout: float = 0.0  # BEiT base
    layer_scale: float = 0.1  # initial lambda_1, lambda_2: BEiT base
    beit_init: str = "random"  # what the blocks started from; `load_beit` sets it, the model card states it
    head: Literal["polar", "cartesian", "theta"] = "polar"  # (27)-(31), no seam | V, A | with a seam: authors' MLP
    head_bounded: bool = True  # cartesian: through tanh (ours; the authors' is not bounded)
    head_widths: tuple[int, int] = (512, 256)  # hidden layers of the head (authors)
    head_dropout: tuple[float, float] = (0.2, 0.2)  # after each of them (paper 3.8; authors .5 and .3)
    pool: Literal["none", "clip"] = "none"  # "clip": (26), one value for all frames
    modality_dropout: float = 0.0  # probability to hide a modality from a sample in training, never all of them (ours)
    embedding_noise: float = 0.0  # standard deviation added to inputs in training (authors .01, at test time as well)
    standardise: bool = False  # each input tensor by its own mean and deviation (authors)
    max_segment_s: float = 30.0  # longest of `segments_of`, seconds (ours); `train` cuts by frames (--window.size)
    segment_overlap_s: float = 2.0  # shared by two pieces of a longer one, seconds (ours)

    def __post_init__(self) -> None:
        wrong = [
            message
            for broken, message in (
                (not self.modalities, "modalities: give at least one"),
                (len(set(self.modalities)) < len(self.modalities), "modalities: a name appears twice"),
                (FRAME in self.modalities, f"modalities: '{FRAME}' is reserved for the frames' own times"),
                (any("." in m for m in self.modalities), "modalities: a name holds a dot"),
                (self.align not in ALIGNMENTS, f"align: one of {', '.join(ALIGNMENTS)}, got '{self.align}'"),
                (
                    self.clock != "frame" and self.align != "linear",
                    "align: features are brought onto frames only with clock frame",
                ),
                (len(self.input_dims) != len(self.modalities), "input_dims: give one width for each modality"),
                (min((*self.input_dims, self.width, self.visual_beit_dim), default=1) < 1, "widths: must be positive"),
                (self.width % (2 * self.heads) != 0, "width: must be a multiple of 2 x heads"),
                (
                    self.encoder_width % (2 * self.encoder_heads) != 0,
                    "encoder_width: not a multiple of 2 x encoder_heads",
                ),
                (not 0 <= self.modality_dropout < 1, "modality_dropout: must lie in [0, 1)"),
                (not 0 < self.shortest_period_s < self.longest_period_s, "periods: need 0 < shortest < longest"),
                (
                    not 0 <= 2 * self.segment_overlap_s < self.max_segment_s,
                    "segment_overlap_s: at most half max_segment_s",
                ),
            )
            if broken
        ]
        if wrong:
            raise ConfigError("; ".join(wrong), where="MavenConfig", hint="see docs/papers/maven.md for the fields")

    @property
    def streams(self) -> dict[str, int]:
        """Name -> width of each input: the modalities in order, and "visual_beit" with visual="both"."""
        return {name: width for streams in self.entrance.groups.values() for name, width in streams.items()}

    @property
    def entrance(self) -> Entrance:
        """What the network lets in."""
        groups = {m: {m: width} for m, width in zip(self.modalities, self.input_dims, strict=True)}
        if self.visual == "both" and "visual" in groups:
            groups["visual"]["visual_beit"] = self.visual_beit_dim
        return Entrance(
            groups,
            self.clock,
            self.frame_modality,
            self.positions != "none",
            self.standardise,
            self.embedding_noise,
            self.modality_dropout,
        )

    @classmethod
    def paper(cls, **changes: Any) -> MavenConfig:
        """The published version, with an output for every frame (`pool="clip"` gives equation 26)."""
        if changes.get("visual") == "beit":
            changes = {"input_dims": (768, 768, 768)} | changes
        return cls(**changes)

    @classmethod
    def seed(cls, **changes: Any) -> MavenConfig:
        """The arXiv text: both visual paths, own clocks, additive attention with a sigmoid, encoders side by side."""
        values: dict[str, Any] = {
            "visual": "both",
            "clock": "native",
            "topology": "parallel",
            "additive_sigmoid": True,
        }
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


@dataclasses.dataclass(frozen=True)
class AttentionMaps:
    """Where each pathway looked.

    weights: (m, n) -> (B, H, T_m, T_n): how much step t of m attends to step t' of n; rows sum to 1, or are 0 where
             n is missing.
    times:   modality -> (B, T_m) seconds, where given.
    """

    weights: dict[tuple[str, str], Tensor]
    times: dict[str, Tensor]


class Maven(nn.Module):
    """The network; see the module's first lines.

    inputs: modality -> (B, T_m, D_m). On the frame clock all T_m are the same; on the native clock each has its own,
    with `times`; on the utterance clock every modality but the frames' is averaged to one vector ((B, 1, D_m) stays as
    it is). A modality may be missing altogether, or be masked by `valid`: where it is, it contributes nothing.
    """

    name = "maven"
    causal = False
    head: PolarHead | CartesianHead | ThetaHead
    _sinusoid_periods: Tensor
    _path_periods: Tensor
    _encoder_periods: Tensor

    def __init__(self, config: MavenConfig) -> None:
        super().__init__()
        c = self.config = config
        self.modalities = tuple(c.streams)
        self.clock = c.clock
        self._door = c.entrance
        self.projections = nn.ModuleDict({m: nn.Linear(sum(s.values()), c.width) for m, s in c.entrance.groups.items()})
        self.pathways = nn.ModuleDict(
            {
                _path(m, n): MultiHeadAttention(c.width, c.heads, dropout=c.dropout)
                for m, n in permutations(c.modalities, 2)
            }
        )
        self.dropout = nn.Dropout(c.dropout)
        self.merge_norm = nn.LayerNorm(c.width) if c.merge_norm else nn.Identity()
        self.refine = nn.ModuleDict(
            {m: SelfAttention(c.width, c.heads, dropout=c.dropout) for m in c.modalities if c.self_attention}
        )
        joined = c.width * len(c.modalities)
        self.fuse = nn.Identity() if c.topology == "none" else nn.Linear(joined, c.encoder_width)
        self.encoders = nn.ModuleList(Encoder(c) for _ in range(0 if c.topology == "none" else 2))
        head_in = {"none": joined, "series": c.encoder_width, "parallel": 2 * c.encoder_width}[c.topology]
        self.head = _head(c, head_in)
        for buffer, n in (
            ("_sinusoid_periods", c.width // 2),
            ("_path_periods", c.width // c.heads // 2),
            ("_encoder_periods", c.encoder_width // c.encoder_heads // 2),
        ):
            self.register_buffer(
                buffer, geometric_periods(n, c.shortest_period_s, c.longest_period_s), persistent=False
            )

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        valid: Mapping[str, Tensor] | None = None,
        times: Mapping[str, Tensor] | None = None,
        state: None = None,
    ) -> tuple[Tensor, None]:
        """Valence and arousal for every frame.

        Args:
            inputs: modality -> (B, T_m, D_m).
            valid: modality -> (B, T_m) bool; missing keys mean all valid. "frame" -> (B, T): which frames exist (the
                rest is padding); without it those where any modality is valid (frame clock) or the frame modality is.
            times: modality -> (B, T_m) seconds; needed on the native clock and by positions. "frame" -> (B, T): where
                the outputs lie; without it on the frame modality's rows.
            state: None; the model is not causal and carries none.

        Returns:
            (B, T, 2) valence, arousal; and None.

        Raises:
            InputError: shapes, keys or times do not fit the configuration; the message says which.
        """
        if state is not None:
            raise InputError(
                "MAVEN is not causal and takes no state", hint="run it live with models.sliding.SlidingModel"
            )
        return self.head(self._refined(inputs, valid, times)), None  # (27)-(31)

    def _refined(
        self, inputs: Mapping[str, Tensor], valid: Mapping[str, Tensor] | None, times: Mapping[str, Tensor] | None
    ) -> Tensor:
        """Everything before the head: (B, T, D)."""
        seen = enter(self._door, inputs, valid or {}, times or {}, training=self.training)
        f = self._projected(seen)  # F_m
        g = {m: self._merged(m, f, seen) for m in f}  # (13)-(14)
        g = {m: self._self_attended(m, g[m], seen) for m in g}  # (15)-(18)
        h = torch.cat([self._on_frames(m, g, seen) for m in self.config.modalities], dim=-1)  # (12), (19)
        h = self.fuse(h)  # (20)
        h = self._encoded(h, seen)  # (21)-(25)
        return masked_mean(h, seen.frames).expand_as(h) if self.config.pool == "clip" else h  # (26)

    def _projected(self, seen: Seen) -> dict[str, Tensor]:
        f = {m: self.projections[m](x) for m, x in seen.x.items()}
        if self.config.positions == "sinusoidal":
            f = {m: y + sinusoids(seen.times[m], self._sinusoid_periods).to(y.dtype) for m, y in f.items()}
        return f

    def _merged(self, m: str, f: dict[str, Tensor], seen: Seen) -> Tensor:
        """Own representation and what its pathways bring; the mean is over those whose source is there at all."""
        total, count = f[m], f[m].new_ones(len(f[m]), 1, 1)
        for n in f:
            if n == m:
                continue
            path, at = self._pathway(m, n), self._path_positions(m, n, seen)
            total = total + path(f[m], f[n], seen.valid[n], **at)  # (13)-(14) softmax(Q_m K_n^T / sqrt(d_k)) V_n
            count = count + _any(seen.valid[n], f[n])
        merged = total / count if self.config.merge == "mean" else total
        return self.merge_norm(self.dropout(merged))

    def _self_attended(self, m: str, x: Tensor, seen: Seen) -> Tensor:
        if self.config.self_attention:
            own = {"times": seen.times[m], "periods": self._path_periods} if self.config.positions == "relative" else {}
            x = self.refine[m](x, seen.valid[m], **own)
        gaps = seen.valid[m]
        return x if gaps is None else x.masked_fill(~gaps[..., None], 0.0)  # a row that is missing says nothing

    def _on_frames(self, m: str, g: dict[str, Tensor], seen: Seen) -> Tensor:
        if m not in g:
            first = next(iter(g.values()))
            return first.new_zeros(first.shape[0], seen.n_frames, self.config.width)
        x = g[m]
        if self.clock == "frame" or (m == self.config.frame_modality and x.shape[1] == seen.n_frames):
            return x
        if self.clock == "utterance" and m != self.config.frame_modality:
            return x.expand(-1, seen.n_frames, -1)
        assert seen.frame_times is not None  # the door saw to it
        return onto_frames(x, seen.valid[m], seen.times[m], seen.frame_times)  # (12)

    def _encoded(self, h: Tensor, seen: Seen) -> Tensor:
        if self.config.topology == "none":
            return h
        clock = (seen.frame_times, self._encoder_periods) if self.config.positions == "relative" else (None, None)
        first, second = self.encoders
        if self.config.topology == "series":
            return second(first(h, seen.frames, *clock), seen.frames, *clock)  # (25)
        return torch.cat((first(h, seen.frames, *clock), second(h, seen.frames, *clock)), dim=-1)  # arXiv III-E.3

    def _pathway(self, m: str, n: str) -> MultiHeadAttention:
        return cast(MultiHeadAttention, self.pathways[_path(m, n)])

    def _path_positions(self, m: str, n: str, seen: Seen) -> dict[str, Any]:
        if self.config.positions != "relative":
            return {}
        return {"clocks": (seen.times[m], seen.times[n]), "periods": self._path_periods}

    def polar(
        self,
        inputs: Mapping[str, Tensor],
        valid: Mapping[str, Tensor] | None = None,
        times: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """theta (B, T) in radians and intensity (B, T); with head="theta" what the authors' network returns."""
        h = self._refined(inputs, valid, times)
        polar: tuple[Tensor, Tensor] = self.head.polar(h)
        return polar

    @torch.no_grad()
    def attention_maps(
        self,
        inputs: Mapping[str, Tensor],
        valid: Mapping[str, Tensor] | None = None,
        times: Mapping[str, Tensor] | None = None,
    ) -> AttentionMaps:
        """Where each pathway looks, for one segment: holds T_m x T_n numbers for each pathway and head."""
        seen = enter(self._door, inputs, valid or {}, times or {}, training=False)
        f = self._projected(seen)
        weights = {
            (m, n): self._pathway(m, n).weights(f[m], f[n], seen.valid[n], **self._path_positions(m, n, seen))
            for m, n in permutations(f, 2)
        }
        given = times or {}
        return AttentionMaps(weights, {m: given[m] for m in f if m in given})

    def load_beit(self, weights: Mapping[str, Tensor], *, name: str) -> list[str]:
        """Start both encoders' blocks from a pretrained BEiT, and say so in the configuration.

        Args:
            weights: its state dict, from `models.beit_blocks.read_beit` or a transformers model.
            name: what the card shall call it.

        Returns:
            The tensors not used (patch embedding, pooler, ...).

        Raises:
            WeightsError: it does not fit.
            ConfigError: this configuration has no BEiT blocks.
        """
        stacks = [module for module in self.modules() if isinstance(module, BeitBlocks)]
        if not stacks:
            raise ConfigError(
                "there are no BEiT blocks to load into", hint="topology series or parallel, attention beit or both"
            )
        rest = [stack.load(weights, where=name) for stack in stacks]
        self.config = dataclasses.replace(self.config, beit_init=name)
        return rest[0]


class Encoder(nn.Module):
    """One of the two encoders over the fused sequence: additive attention (21)-(24), BEiT blocks (25), or both."""

    def __init__(self, config: MavenConfig) -> None:
        super().__init__()
        c = config
        self.residual = c.additive_residual
        self.additive = (
            AdditiveAttention(c.encoder_width, c.additive_width, sigmoid=c.additive_sigmoid)
            if c.attention != "beit"
            else None
        )
        self.blocks = (
            BeitBlocks(
                c.encoder_depth,
                c.encoder_width,
                c.encoder_heads,
                c.mlp_ratio * c.encoder_width,
                dropout=c.encoder_dropout,
                layer_scale=c.layer_scale,
            )
            if c.attention != "additive"
            else None
        )

    def forward(self, h: Tensor, valid: Tensor | None, times: Tensor | None, periods: Tensor | None) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        if self.additive is not None:
            refined = self.additive(h, valid)  # (21)-(24)
            h = h + refined if self.residual else refined
        if self.blocks is not None:
            h = self.blocks(h, valid, times=times, periods=periods)  # (25)
        return h


def _head(config: MavenConfig, width: int) -> PolarHead | CartesianHead | ThetaHead:
    if config.head == "polar":
        return PolarHead(width, config.head_widths, config.head_dropout)
    if config.head == "theta":
        return ThetaHead(width, config.head_widths, config.head_dropout)
    return CartesianHead(width, config.head_widths, config.head_dropout, bounded=config.head_bounded)


def _any(valid: Tensor | None, x: Tensor) -> Tensor:
    """1 for each sample that has a valid row, else 0: (B, 1, 1)."""
    if valid is None:
        return x.new_full((len(x), 1, 1), float(x.shape[1] > 0))
    return valid.any(dim=1)[:, None, None].to(x.dtype)


def _path(m: str, n: str) -> str:
    """Name of the pathway whose queries are of modality m and whose keys and values are of n."""
    return f"{m}_from_{n}"
