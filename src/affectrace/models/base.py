"""Base classes of models and of their configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Interval, MinLen
from pydantic import StringConstraints
from torch import Tensor, nn

from affectrace.config import Config, Count, checked
from affectrace.errors import InputError

State = Any
"""State of a causal model after a frame: a tensor, or a (named) tuple of States; None: start of a recording."""

Tensors = Mapping[str, Tensor]

MissingPolicy = Literal["hold", "zero", "mask-token"]
"""How frames without a face are filled: see inputs.LastSeen."""

Name = Annotated[str, StringConstraints(pattern=r"^[^.]+$")]
"""Name of a modality, without dots: it becomes part of tensor names."""
Dropout = Annotated[float, Interval(ge=0, lt=1)]
Widths = Annotated[tuple[Count, ...], MinLen(1)]


@dataclass(frozen=True)
class OneStreamConfig(Config):
    """Base of configurations of models that read one stream on the frame clock, or several as one.

    `.paper()`: the defaults, see the fields. `.tiny()`: small, for tests, small data and first runs.
    """

    modality: Name = "visual"  # name of the stream
    input_dim: Count = 1024  # D of its features
    more_streams: Mapping[Name, Count] = field(default_factory=dict)  # name -> D of streams concatenated behind it
    missing: MissingPolicy = "hold"  # frames without a face (Mamba-VA's authors: hold in training, zero in testing)

    TINY: ClassVar[dict[str, Any]] = {}

    @property
    def streams(self) -> dict[str, int]:
        """Name -> width of each input."""
        return {self.modality: self.input_dim, **self.more_streams}

    @property
    def row_dim(self) -> int:
        """Width of all streams together."""
        return sum(self.streams.values())

    @classmethod
    def paper(cls, **changes: Any) -> Self:
        return cls(**changes)

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        return cls(**{"input_dim": 32} | cls.TINY | changes)


class AffectModel(nn.Module):
    """Base of the registry's models.

    name:   in the registry and in checkpoints.
    causal: frame t depends on frames up to t only, and `forward` carries a state.
    clock:  "frame": one row per frame; "native": each modality on its own clock; "utterance": see MavenConfig.
    config: everything that shapes it; checked, a ConfigError lists all mistakes.
    """

    name: ClassVar[str]
    causal: ClassVar[bool] = False
    clock: str = "frame"
    config: Any

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = checked(config)

    @property
    def input_dims(self) -> dict[str, int]:
        """Stream -> width of each input."""
        return dict(self.config.streams)

    @property
    def modalities(self) -> dict[str, tuple[str, ...]]:
        """Modality -> its streams (the visual one may have two encoders)."""
        return {stream: (stream,) for stream in self.config.streams}

    def forward(
        self, inputs: Tensors, valid: Tensors | None = None, times: Tensors | None = None, state: State = None
    ) -> tuple[Tensor, State]:
        """Valence and arousal for every frame.

        Args:
            inputs: stream -> (B, T, D).
            valid: stream -> (B, T) bool; a missing key = all valid. "frame" -> (B, T), False = padding.
            times: stream -> (B, T) seconds, where the model's clock or positions need them.
            state: of a causal model: the one returned for the frames before these.

        Returns:
            (B, T, 2) valence, arousal; and the state after the last frame (None: the model is not causal).

        Raises:
            InputError: keys or shapes that do not fit the configuration, or a state for a non-causal model.
        """
        raise NotImplementedError

    def attention_maps(
        self, inputs: Tensors, valid: Tensors | None = None, times: Tensors | None = None
    ) -> dict[tuple[str, str], Tensor]:
        """Cross-modal attention weights, (m, n) -> (B, H, T_m, T_n); raises InputError where the model has none."""
        what = f"{self.name} has no attention between modalities"
        raise InputError(what, hint="attention maps need a model such as maven")
