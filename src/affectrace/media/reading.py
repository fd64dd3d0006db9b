"""What every source of pictures gives: frames in the order they are shown, on an exact clock, converted on demand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from affectrace.timeline import Timeline

if TYPE_CHECKING:
    from affectrace.media.probe import MediaInfo


@dataclass(frozen=True)
class Shown:
    """One frame of a reader: when it is shown, and what makes its picture (None: it could not be decoded)."""

    tick: int
    payload: Any


class SoundSink(Protocol):
    """Where the sound of a video goes that is read for its pictures; called in the reader's thread."""

    def begin_sound(self, media: MediaInfo, stream: Any) -> None:
        """Before the first packet, and before the first picture is given out."""

    def add_sound(self, packet: Any) -> None:
        """The next packet of the sound, in the order of the file."""


class Reader(Protocol):
    """A source of frames. `shown` may be run again; `end_tick` and `notes` are complete once it is exhausted."""

    width: int
    height: int
    time_base: Fraction
    end_tick: int
    nominal_rate: Fraction | None
    n_frames_estimate: int | None
    duration_s_estimate: float | None

    def shown(self, sound: SoundSink | None = None) -> Iterator[Shown]:
        """Frames in order of presentation, ticks strictly increasing."""

    def picture(self, payload: Any) -> NDArray[np.uint8] | None:
        """(H, W, 3) uint8 RGB, upright; None where the picture turns out to be unreadable."""

    def scan(self) -> Timeline:
        """The clock of all frames, without decoding."""

    def notes(self) -> list[str]:
        """What a person should know of this source."""
