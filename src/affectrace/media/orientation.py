"""Display matrices: how a stored picture must be turned or mirrored to be upright."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Orientation:
    """Mirror left-right first (`mirrored`), then turn clockwise by `quarter_turns` x 90 degrees."""

    quarter_turns: int = 0
    mirrored: bool = False

    @property
    def swaps_sides(self) -> bool:
        """Whether width and height change places."""
        return self.quarter_turns % 2 == 1

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) as stored to (H', W', 3) upright, contiguous."""
        if self.mirrored:
            image = image[:, ::-1]
        if self.quarter_turns:
            image = np.rot90(image, k=-self.quarter_turns)
        return np.ascontiguousarray(image)

    def __str__(self) -> str:
        parts = ["mirrored"] if self.mirrored else []
        parts += [f"turned {self.quarter_turns * 90} degrees clockwise"] if self.quarter_turns else []
        return " and ".join(parts) or "upright"


UPRIGHT = Orientation()


def from_display_matrix(raw: bytes) -> Orientation:
    """The orientation nearest to a display matrix (nine little-endian int32, FFmpeg's AV_FRAME_DATA_DISPLAYMATRIX).

    The matrix maps stored pixels (p, q) to shown (a p + c q, b p + d q) with q and the shown rows counted downwards.
    """
    if len(raw) < 36:
        return UPRIGHT
    a, b, _, c, d, _, _, _, _ = struct.unpack("<9i", raw[:36])
    if a * d - b * c == 0:
        return UPRIGHT
    mirrored = a * d - b * c < 0
    # A mirrored matrix is turn x diag(-1, 1): its first column belongs to the pixel axis that points left.
    p, q = (-a, -b) if mirrored else (a, b)
    return Orientation(round(np.degrees(np.arctan2(q, p)) / 90) % 4, mirrored)
