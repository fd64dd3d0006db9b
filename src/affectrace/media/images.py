"""Images as video: a single image, or a folder with a frame rate or a list of times."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from affectrace.errors import InputError, MediaError
from affectrace.recording import IMAGE_SUFFIXES
from affectrace.timeline import Timeline

_TIME_COLUMNS = ("time_s", "time", "timestamp", "timestamps", "t", "seconds")
_EXIF_ORIENTATION = 0x0112
LARGEST_PIXELS = 120_000_000  # of one picture (stated limit: 360 MB decoded); the largest single-shot cameras have 102


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which frame2 comes before frame10."""
    parts = re.findall(r"\d+|\D+", name.lower())
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts)


def image_files(folder: Path) -> list[Path]:
    """The images of a folder in natural order of their names (raises MediaError)."""
    try:
        files = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    except OSError as error:
        what = f"the folder cannot be read ({error.strerror})"
        raise MediaError(what, where=folder, hint="check the path and its permissions") from None
    if not files:
        hint = f"known suffixes: {', '.join(sorted(IMAGE_SUFFIXES))}"
        raise MediaError("the folder holds no images", where=folder, hint=hint)
    return sorted(files, key=lambda p: natural_key(p.name))


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image, upright, from its header (raises MediaError)."""
    with _opened(path) as image:
        turned = image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else image.size


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB, turned upright by its EXIF orientation; at most LARGEST_PIXELS (raises MediaError)."""
    with _opened(path) as image:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit grey: PIL clips instead of scaling
            grey = (np.asarray(image) // 256).clip(0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image whose header was read; any error inside becomes one clear line."""
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, LARGEST_PIXELS)  # PIL's own limit only warns
    try:
        with Image.open(path) as image:
            if image.width * image.height > LARGEST_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except Image.DecompressionBombError:
        what = f"the image has more than {LARGEST_PIXELS // 10**6} million pixels"
        raise MediaError(what, where=path, hint="make it smaller") from None
    except Exception as error:  # damaged files raise anything in PIL's readers
        why = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
        what = f"not an image that can be read{why}"
        raise MediaError(what, where=path, hint="check what the file really is") from None


def read_times(path: str | Path) -> list[float]:
    """Seconds from a text file: one number per line, or a CSV with a column such as `time_s` or `timestamp`."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        rows = [row for row in csv.reader(text.splitlines()) if any(cell.strip() for cell in row)]
        header = [cell.strip().lower() for cell in rows[0]] if rows else []
        named = [i for i, name in enumerate(header) if name in _TIME_COLUMNS]
        if len(header) > 1 and not named:
            raise ValueError(f"no column is named {', '.join(_TIME_COLUMNS[:3])}")
        return [float(row[named[0]]) for row in rows[1:]] if named else [float(row[0]) for row in rows]
    except (OSError, ValueError, IndexError, csv.Error) as error:
        what = f"the file of times cannot be read ({str(error)[:100]})"
        raise InputError(what, where=path, hint="one time in seconds per line is expected") from None


class ImageReader:
    """Images in order as frames, with the interface of `decode.VideoReader`.

    fps: images per second, exact. times: seconds of every image instead.
    """

    def __init__(
        self, path: Path, fps: Fraction | None = None, times: str | Path | Sequence[float] | None = None
    ) -> None:
        self.files = image_files(path) if path.is_dir() else [path]
        self.width, self.height = image_size(self.files[0])
        self.n_frames = len(self.files)
        self._timeline = self._clock(path, fps if path.is_dir() else fps or Fraction(1), times)
        self.time_base, self.end_tick = self._timeline.time_base, self._timeline.end_tick
        self.nominal_rate, self.duration_s = self._timeline.nominal_rate, self._timeline.duration_s
        self._broken: list[str] = []
        self._n_resized = 0

    def _clock(self, path: Path, fps: Fraction | None, times: str | Path | Sequence[float] | None) -> Timeline:
        if times is not None:
            seconds = read_times(times) if isinstance(times, str | Path) else times
            if len(seconds) != self.n_frames:
                what = f"{len(seconds)} times for {self.n_frames} images"
                raise InputError(what, where=path, hint="give every image one time")
            return Timeline.from_times(seconds)
        if fps is None:
            hint = "give images per second (--fps) or a file of times"
            raise InputError("a folder of images has no clock", where=path, hint=hint)
        return Timeline.regular(self.n_frames, fps)

    def scan(self) -> Timeline:
        """The clock, which is given."""
        return self._timeline

    def shown(self, sound: object = None) -> Iterator[tuple[int, Path]]:
        """Every image in order."""
        self._broken, self._n_resized = [], 0
        yield from zip(self._timeline.ticks.tolist(), self.files, strict=True)

    def picture(self, path: Path) -> NDArray[np.uint8] | None:
        """(H, W, 3) of an image file in the size of the first one; None if it cannot be read."""
        try:
            image = read_image(path)
        except MediaError:
            if self.n_frames == 1:
                raise
            self._broken.append(path.name)
            return None
        if image.shape[:2] != (self.height, self.width):
            self._n_resized += 1
            image = np.asarray(Image.fromarray(image).resize((self.width, self.height), Image.Resampling.BILINEAR))
        return image

    def notes(self) -> list[str]:
        """What was unusual."""
        notes = []
        if self._broken:
            notes.append(f"{len(self._broken)} images cannot be read and are left out (first: {self._broken[0]})")
        if self._n_resized:
            notes.append(f"{self._n_resized} images of another size scaled to {self.width}x{self.height}")
        return notes
