"""Face crops that were cut already (Aff-Wild2's `00001.jpg`, ...): numbered files onto the video's frames."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import InputError, MediaError
from affectrace.media.images import LARGEST_NUMBER, read_image
from affectrace.media.video import scan_timeline
from affectrace.recording import IMAGE_SUFFIXES
from affectrace.timeline import Timeline


class NumberedCrops:
    """A folder of crops, each named by the 1-based number of its frame; numbers that are absent are frames without one.

    timeline: the video's clock, scanned; without a video, `fps` frames a second up to the last number.
    notes: what was left out, complete when `pictures` has been read to its end.

    Raises:
        InputError: neither a video nor `fps`. MediaError: the folder or the video cannot be read.
    """

    def __init__(self, folder: Path, video: Path | None, fps: Fraction | None) -> None:
        self.notes: list[str] = []
        try:
            images = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != ".")
        except OSError as error:
            raise MediaError(f"cannot be read ({error.strerror})", where=folder, hint="check the path") from None
        numbered = [p for p in images if p.stem.isdecimal() and 0 < int(p.stem) <= LARGEST_NUMBER]
        known = set(numbered)
        self._say([p.name for p in images if p not in known], "images without a frame number")
        self._files: dict[int, Path] = {}
        for path in numbered:
            self._files.setdefault(int(path.stem) - 1, path)
        taken = set(self._files.values())
        self._say([p.name for p in numbered if p not in taken], "images of a number that is there")
        if video is not None:
            self.timeline = scan_timeline(video)
        elif fps is not None:
            self.timeline = Timeline.regular(1 + max(self._files, default=-1), fps)
        else:
            hint = "give frames a second (--fps), or put the video beside them"
            raise InputError("crops without a video have no clock", where=folder, hint=hint)
        beyond = [i for i in self._files if i >= len(self.timeline)]
        if beyond:
            self.notes.append(f"{len(beyond)} crops lie beyond the video's {len(self.timeline)} frames: left out")
        self._inside = sorted(set(self._files) - set(beyond))

    def pictures(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(0-based frame, (H, W, 3)) of every crop that can be read, in order."""
        broken = []
        for index in self._inside:
            try:
                image = read_image(self._files[index])
            except MediaError:
                broken.append(self._files[index].name)
                continue
            yield index, image
        self._say(broken, "crops that cannot be read")

    def _say(self, names: list[str], what: str) -> None:
        if names:
            self.notes.append(f"{len(names)} {what} (first: {names[0]}): left out")
