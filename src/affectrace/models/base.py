"""What every network of the registry is: features in, valence and arousal of every frame out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from affectrace.errors import InputError

State = Any
"""What a causal model carries from frame to frame: a tensor, or a (named) tuple of States; None: the beginning."""

Tensors = Mapping[str, Tensor]

FRAME = "frame"
"""Key in `valid` and `times` for the frames themselves, where the outputs lie."""


class AffectModel(nn.Module):
    """Base of the registry's networks.

    name:   in the registry and in checkpoints.
    causal: frame t depends on the frames up to t only, and `forward` carries a state.
    clock:  "frame": one row a frame; "native": each modality on its own clock; "utterance": see MavenConfig.
    config: everything that shapes it.
    """

    name: ClassVar[str]
    causal: ClassVar[bool] = False
    clock: str = "frame"
    config: Any

    @property
    def input_dims(self) -> dict[str, int]:
        """Stream -> width of each input."""
        return dict(self.config.streams)

    @property
    def modalities(self) -> dict[str, tuple[str, ...]]:
        """Modality -> the streams that belong to it (a visual modality may have two encoders)."""
        return {stream: (stream,) for stream in self.config.streams}

    def forward(
        self, inputs: Tensors, valid: Tensors | None = None, times: Tensors | None = None, state: State = None
    ) -> tuple[Tensor, State]:
        """Valence and arousal for every frame.

        Args:
            inputs: stream -> (B, T, D).
            valid: stream -> (B, T) bool, True = there; missing keys mean all are. "frame" -> (B, T): frames that exist.
            times: stream -> (B, T) seconds, where the model's clock or positions need them.
            state: of a causal model: what an earlier call returned for the frames before these.

        Returns:
            (B, T, 2) valence, arousal; and the state after the last frame, None of a model that is not causal.

        Raises:
            InputError: keys or shapes do not fit the configuration, or a state for a model that is not causal.
        """
        raise NotImplementedError

    def attention_maps(
        self, inputs: Tensors, valid: Tensors | None = None, times: Tensors | None = None
    ) -> dict[tuple[str, str], Tensor]:
        """Attention between modalities, (m, n) -> (B, H, T_m, T_n); raises InputError: the model has none."""
        raise InputError(
            f"{self.name} has no attention between modalities", hint="attention maps need a model such as maven"
        )
