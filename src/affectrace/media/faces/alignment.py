"""Face alignment: rotated square crops with level eyes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from affectrace.errors import InputError

# Face square without margin: its side in units of the face's scale (see `face_square`), and the distance of its centre
# below the eyes. It spans brows to chin, as the boxes of frontal-face detectors do (ours).
SIDE_PER_SCALE = 2.55
CENTRE_BELOW_EYES = 0.2
_QUICK_FROM = 1.4  # pixels of the image per pixel of the crop


@dataclass(frozen=True)
class Square:
    """A square of an image, possibly rotated: centre and side in pixels, angle in radians (positive: clockwise)."""

    x: float
    y: float
    side: float
    angle: float = 0.0

    def enlarged(self, factor: float) -> Square:
        """The same square with its side times `factor`."""
        return Square(self.x, self.y, self.side * factor, self.angle)

    def moved(self, right: float, down: float) -> Square:
        """The same square moved along its own sides, by fractions of its side."""
        c, s = math.cos(self.angle), math.sin(self.angle)
        x, y = (right * c - down * s) * self.side, (right * s + down * c) * self.side
        return Square(self.x + x, self.y + y, self.side, self.angle)

    def to_image(self, points: NDArray[np.floating]) -> NDArray[np.float32]:
        """Points (n, 2) from the square's own coordinates (0..1 from its upper left corner) to image pixels."""
        own = (np.asarray(points, np.float32) - 0.5) * self.side
        c, s = math.cos(self.angle), math.sin(self.angle)
        turned = own @ np.array([[c, s], [-s, c]], np.float32)
        return turned + np.array([self.x, self.y], np.float32)


def crop_square(
    image: NDArray[np.uint8], square: Square, size: int, *, replicate: bool = True, quick: bool = False
) -> Image.Image:
    """A square of a (H, W, 3) uint8 RGB image at size x size pixels, bilinear, averaged first where it shrinks.

    replicate: beyond the image its border pixels are repeated, else it is black. quick: where the square shrinks by
    _QUICK_FROM or more, the mean of four nearest pixels instead of bilinear: half the time. Mesh points found on it are
    within .3 % of the eyes' distance (RMS, test clips); expressions flicker half as much again: not for their crops.
    """
    height, width = image.shape[:2]
    c, s = math.cos(square.angle), math.sin(square.angle)
    reach = square.side / 2 * (abs(c) + abs(s)) + 1.5
    left, top = math.floor(square.x - reach), math.floor(square.y - reach)
    right, bottom = math.ceil(square.x + reach), math.ceil(square.y + reach)
    inside = image[
        min(max(top, 0), height - 1) : max(min(bottom, height), 1),
        min(max(left, 0), width - 1) : max(min(right, width), 1),
    ]
    shrink = square.side / size
    coarse = max(1, int(shrink / 8))  # very large faces: every coarse-th pixel is enough for the averages that follow
    coarse = coarse if min(inside.shape[:2]) > coarse else 1
    inside = every(inside, coarse)
    origin_x, origin_y, pixel = float(max(left, 0)), float(max(top, 0)), float(coarse)
    if replicate:
        above, below, before, after = (max(0, -(-n // coarse)) for n in (-top, bottom - height, -left, right - width))
        if above or below or before or after:
            inside = _pad_edges(inside, (above, below), (before, after))
            origin_x -= before * coarse
            origin_y -= above * coarse
    picture = Image.fromarray(np.ascontiguousarray(inside))
    grid = 2 if quick and shrink >= _QUICK_FROM else 1
    # means of blocks finer than the crop's pixels: with both of one size, crops of a moving face flicker
    fine = max(1, int(shrink / coarse / (2 if grid == 2 else 1.5)))
    if fine > 1 and min(picture.size) >= fine:
        picture = picture.reduce(fine)
        pixel *= fine
    size *= grid
    step = square.side / size / pixel
    a, b = c * step, -s * step
    x0 = (square.x - origin_x) / pixel - (a + b) * size / 2
    y0 = (square.y - origin_y) / pixel - (a - b) * size / 2
    how = Image.Resampling.BILINEAR if grid == 1 else Image.Resampling.NEAREST
    cut = picture.transform((size, size), Image.Transform.AFFINE, (a, b, x0, -b, a, y0), how)
    return cut if grid == 1 else cut.reduce(grid)


def every(image: NDArray[np.uint8], stride: int) -> NDArray[np.uint8]:
    """The middle pixel of every stride x stride block; the image must be larger than half a block."""
    return image[stride // 2 :: stride, stride // 2 :: stride]


def _pad_edges(image: NDArray[np.uint8], rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[np.uint8]:
    """np.pad(image, mode="edge"), several times faster on small images."""
    (top, bottom), (left, right) = rows, columns
    height, width = image.shape[:2]
    out = np.empty((height + top + bottom, width + left + right, 3), np.uint8)
    middle = out[top : top + height]
    middle[:, left : left + width] = image
    middle[:, :left] = image[:, :1]
    middle[:, left + width :] = image[:, -1:]
    out[:top] = out[top]
    out[top + height :] = out[top + height - 1]
    return out


def face_square(keypoints: NDArray[np.floating], margin: float = 0.0) -> Square:
    """The square around a face, turned so that the eyes are level.

    keypoints: (4, 2) pixels: right eye, left eye, nose, mouth (nose and mouth may be NaN). margin: share of the face's
    side (brows to chin) added on each side. The scale is the distance of the eyes, or from eyes to mouth if that is
    larger: a face turned to the side keeps its size.
    """
    points = np.asarray(keypoints, np.float64)
    right, left, mouth = points[0], points[1], points[3]
    middle = (right + left) / 2
    across = left - right
    angle = math.atan2(across[1], across[0])
    scale = float(np.hypot(*across))
    if np.isfinite(mouth).all():
        scale = max(scale, float(np.hypot(*(mouth - middle))))
    face = Square(float(middle[0]), float(middle[1]), SIDE_PER_SCALE * scale, angle)
    return face.moved(0, CENTRE_BELOW_EYES / SIDE_PER_SCALE).enlarged(1 + 2 * margin)


def align_face(
    image: NDArray[np.uint8], keypoints: NDArray[np.floating], size: int = 224, margin: float = 0.25
) -> NDArray[np.uint8]:
    """A crop of one face with level eyes, (size, size, 3) uint8 RGB; beyond the image its border pixels are repeated.

    image: (H, W, 3) uint8 RGB. keypoints, margin: as of `face_square` (raises InputError for unknown eyes).
    """
    square = face_square(keypoints, margin)
    if not square.side > 0:  # nor NaN
        raise InputError("the eyes are unknown or coincide", hint="leave out frames in which the face is invalid")
    return np.asarray(crop_square(image, square, size))
