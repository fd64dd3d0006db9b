"""Still images as recordings: one image, or a folder of them in natural order with a rate or a list of times."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from affectrace.errors import InputError, MediaError
from affectrace.recording import IMAGE_SUFFIXES
from affectrace.timeline import Timeline

_TIME_COLUMNS = ("time_s", "time", "timestamp", "timestamps", "t", "seconds")
LARGEST_PIXELS = 120_000_000  # of one picture (stated limit: 360 MB decoded); the largest single-shot cameras have 102
LARGEST_NUMBER = 20_000_000  # of a numbered image: 92 hours at 60 frames a second


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which frame2 comes before frame10."""
    parts = re.findall(r"\d+|\D+", name.lower())
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts)


def image_files(folder: Path) -> list[Path]:
    """The images of a folder in natural order of their names."""
    try:
        files = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    except FileNotFoundError:
        raise MediaError("no such folder", where=folder, hint="check the path") from None
    except PermissionError:
        raise MediaError("the folder cannot be read", where=folder, hint="check its permissions") from None
    if not files:
        raise MediaError(
            "the folder holds no images", where=folder, hint=f"known kinds: {', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return sorted(files, key=lambda p: natural_key(p.name))


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image, upright, from its header (raises MediaError)."""
    with _opened(path) as image:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else (image.width, image.height)


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB, turned upright by its EXIF orientation.

    Raises:
        MediaError: not an image that can be read, cut off, or of more than LARGEST_PIXELS.
    """
    with _opened(path) as image:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit grey: PIL clips instead of scaling
            grey = (np.asarray(image) // 256).clip(0, 255).astype(np.uint8)
            return np.repeat(grey[..., None], 3, axis=2)
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image whose header was read; whatever goes wrong inside is one clear line."""
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, LARGEST_PIXELS)  # its own guard is no error yet
    try:
        with Image.open(path) as image:
            if image.width * image.height > LARGEST_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except Image.DecompressionBombError:
        what = f"the image has more than {LARGEST_PIXELS // 10**6} million pixels"
        raise MediaError(what, where=path, hint="make it smaller") from None
    except FileNotFoundError:
        raise MediaError("no such file", where=path, hint="check the path") from None
    except PermissionError:
        raise MediaError("the file cannot be read", where=path, hint="check its permissions") from None
    except Exception:  # whatever a damaged file comes to in PIL's readers
        raise MediaError("not an image that can be read", where=path, hint="check what the file really is") from None


def read_times(path: str | Path) -> NDArray[np.float64]:
    """(T,) seconds from a text file: one number a line, or a CSV with a column such as `time_s` or `timestamp`."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = [row for row in csv.reader(text.splitlines()) if any(cell.strip() for cell in row)]
    except FileNotFoundError:
        raise InputError("no such file of times", where=path, hint="check the path") from None
    except (OSError, UnicodeDecodeError, csv.Error):  # csv.Error: a field of more than 131,072 characters
        raise InputError("the file of times cannot be read", where=path, hint="one time in seconds a line") from None
    column = 0
    if rows and (len(rows[0]) > 1 or not _is_number(rows[0][0])):
        header = [cell.strip().lower() for cell in rows.pop(0)]
        named = [i for i, name in enumerate(header) if name in _TIME_COLUMNS]
        if not named and len(header) > 1:
            hint = f"name one of the columns {', '.join(_TIME_COLUMNS[:3])}"
            raise InputError("no column of times", where=path, hint=hint)
        column = named[0] if named else 0
    cells = [row[column].strip() if column < len(row) else "" for row in rows]
    if not cells:
        raise InputError("the file of times is empty", where=path, hint="one time in seconds a line")
    for number, cell in enumerate(cells, 1):
        if not _is_number(cell):
            raise InputError(f"time {number} is '{cell[:60]}', not a number of seconds", where=path)
    return np.array(cells, np.float64)


def _is_number(text: str) -> bool:
    try:
        return abs(float(text)) < 1e9  # seconds; false for what is infinite or no number
    except ValueError:
        return False


class ImageReader:
    """Images in order, as shown frames; as `decode.AvReader` is of a video.

    fps: images a second, exact. times: seconds of every image instead. numbered: the number in a file's name is its
    1-based frame number (Aff-Wild2's crops), so absent numbers are frames without a picture.
    """

    def __init__(
        self,
        path: Path,
        fps: Fraction | None,
        times: str | Path | Sequence[float] | None,
        numbered: bool = False,
    ) -> None:
        self.path = path
        single = not path.is_dir()
        self.files: list[Path | None] = [path] if single else list(image_files(path))
        self.width, self.height = image_size(next(f for f in self.files if f is not None))
        if numbered and not single:
            self.files = _by_number([f for f in self.files if f is not None], path)
        self.clock = _clock(len(self.files), fps if not single else fps or Fraction(1), times, path)
        self.time_base, self.end_tick = self.clock.time_base, self.clock.end_tick
        self.nominal_rate = self.clock.nominal_rate
        self.n_frames_estimate: int | None = len(self.files)
        self.duration_s_estimate: float | None = self.clock.duration_s
        self._broken: list[str] = []
        self._resized = 0

    def scan(self) -> Timeline:
        """The clock: given, not measured."""
        return self.clock

    def shown(self, sound: Any = None) -> Iterator[tuple[int, Path | None]]:
        """Every image in order; None where there is none."""
        self._broken, self._resized = [], 0
        yield from zip(self.clock.ticks.tolist(), self.files, strict=True)

    def picture(self, payload: Any) -> NDArray[np.uint8] | None:
        """(H, W, 3) of one image file; None where it cannot be read."""
        try:
            image = read_image(payload)
        except MediaError:
            if len(self.files) == 1:
                raise
            self._broken.append(payload.name)
            return None
        if image.shape[:2] != (self.height, self.width):
            self._resized += 1
            image = np.asarray(Image.fromarray(image).resize((self.width, self.height), Image.Resampling.BILINEAR))
        return image

    def notes(self) -> list[str]:
        """What was odd."""
        notes = []
        absent = sum(file is None for file in self.files)
        if absent:
            notes.append(f"{absent} of {len(self.files)} frame numbers have no image")
        if self._broken:
            notes.append(f"{len(self._broken)} images cannot be read and are left out (first: {self._broken[0]})")
        if self._resized:
            notes.append(f"{self._resized} images of another size scaled to {self.width}x{self.height}")
        return notes


def _by_number(files: Sequence[Path], folder: Path) -> list[Path | None]:
    numbered: dict[int, Path] = {}
    for file in files:
        if not file.stem.isdecimal() or not 1 <= int(file.stem) <= LARGEST_NUMBER:
            raise MediaError(f"image '{file.name}' has no frame number for a name", where=folder, hint="as in 00001")
        if int(file.stem) in numbered:
            raise MediaError(f"two images have frame number {int(file.stem)}", where=folder, hint="remove one of them")
        numbered[int(file.stem)] = file
    return [numbered.get(n) for n in range(1, max(numbered) + 1)]


def _clock(n: int, fps: Fraction | None, times: str | Path | Sequence[float] | None, path: Path) -> Timeline:
    if times is not None:
        seconds = read_times(times) if isinstance(times, str | Path) else np.asarray(times, dtype=np.float64)
        if len(seconds) != n:
            raise InputError(f"{len(seconds)} times for {n} images", where=path, hint="give every image one time")
        return Timeline.from_times(seconds)
    if fps is not None:
        return Timeline.regular(n, fps)
    raise InputError(
        "a folder of images has no clock", where=path, hint="give images a second (--fps) or a file of times"
    )
