"""Recording: one person in one medium. Ids and paths, no data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from affectrace.errors import InputError

SPLITS = ("train", "validation", "test")
PATHS = ("video", "audio", "transcript", "labels", "crops")


@dataclass(frozen=True)
class Recording:
    """One person in one medium.

    id: unique in its data set; the name results are stored under, so no path separators.
    video: video file, folder of images, or single image.
    audio: sound file, where it is not the video's own track.
    transcript: timed words (MAVEN lines, SRT, VTT, Whisper JSON).
    labels: per-frame valence and arousal.
    crops: folder of face crops cut from the video, named by 1-based frame number; absent numbers: frames without one.
    subject: who is seen, where known; recordings of one subject never stand on both sides of a split.
    person: which face of the medium: "main", "left", "right" or a track number.
    split: "train", "validation" or "test"; fold: cross-validation fold in which it is held out.
    columns: anything else known of it (condition, group, site), for tables and `--by`.

    Raises:
        InputError: id empty or with path separators, no medium at all, unknown split.
    """

    id: str
    video: Path | None = None
    audio: Path | None = None
    transcript: Path | None = None
    labels: Path | None = None
    crops: Path | None = None
    subject: str | None = None
    person: str = "main"
    split: str | None = None
    fold: int | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.id or self.id in (".", "..") or any(c in self.id for c in "/\\\0"):
            raise InputError(f"recording id {self.id!r} must be a name without path separators")
        for name in PATHS:
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, Path(value))
        if self.split is not None and self.split not in SPLITS:
            raise InputError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}", where=self.id)
        object.__setattr__(self, "columns", MappingProxyType(dict(self.columns)))

    def __reduce__(self) -> tuple[object, ...]:  # a mapping proxy does not pickle
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return (_rebuild, ({**values, "columns": dict(self.columns)},))


def _rebuild(values: dict[str, object]) -> Recording:
    return Recording(**values)  # type: ignore[arg-type]
