"""Generate astronaut_layers.png, the image layers warped by affectrace.datasets.synthetic.face.

Three squares of the photograph side by side, RGBA: the face without the shadows of its smile (alpha: the inside of the
mouth and below), the photograph (alpha: the layer of the lower lip), and the inside of the mouth.

    python training/synthetic_face.py    requires scikit-image (for the photograph); the result is committed
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

import affectrace.datasets
from affectrace.datasets.synthetic.face import MESH, VIEW, landmarks

Floats = NDArray[np.floating[Any]]
Pixels = NDArray[np.uint8]

OUT = Path(affectrace.datasets.__file__).with_name("astronaut_layers.png")
LEFT, TOP, SIZE = VIEW
DARK = (46, 18, 18)  # the inside of a mouth
POINTS = MESH[:, :2] - VIEW[:2]
UNIT = float(np.linalg.norm(POINTS[263] - POINTS[33]))  # the distance of the eyes
RIGHT = (POINTS[263] - POINTS[33]) / UNIT  # in the picture
DOWN = np.array([-RIGHT[1], RIGHT[0]])  # the face


def layers(astronaut: Pixels) -> Image.Image:
    """The layers of skimage.data.astronaut()."""
    photo = astronaut[TOP : TOP + SIZE, LEFT : LEFT + SIZE]
    below_upper, lower = mouth_masks()
    tiles = [(calm(photo), below_upper), (photo, lower), (mouth_inside(photo), np.ones((SIZE, SIZE)))]
    return Image.fromarray(np.hstack([np.dstack([x, (mask * 255 + 0.5).astype(np.uint8)]) for x, mask in tiles]))


def mouth_masks() -> tuple[Floats, Floats]:
    """Inside the mouth and below; the lower lip's layer: below its upper edge, as far as it reaches."""
    down, out = DOWN * UNIT, RIGHT * UNIT
    left, right = POINTS[landmarks("inner_corners")]
    upper, lower = POINTS[landmarks("upper_inner")], POINTS[landmarks("lower_inner")]
    under = [right + 0.03 * (out + down), right + 0.05 * out + 0.12 * down, right + 0.22 * down]
    under += [left + 0.22 * down, left - 0.05 * out + 0.12 * down, left - 0.03 * (out - down)]
    sides = [right + 0.6 * out + 0.05 * down, right + 0.6 * out + 2 * down]
    sides += [left - 0.6 * out + 2 * down, left - 0.6 * out + 0.05 * down]
    chin = [right + 0.42 * down - 0.04 * out, left + 0.42 * down + 0.04 * out]
    core = [left - 0.06 * out, *lower, right + 0.06 * out, *chin]
    reach = gaussian_filter(mask(core, grow=0.10), 0.05 * UNIT)
    return mask([left, *upper, right, *under]), mask([left, *lower, right, *sides]) * reach


def mask(points: Iterable[Any], grow: float = 0.0, closed: bool = True) -> Floats:
    """(SIZE, SIZE) 0 to 1: a polygon, or a line of points, grown on all sides by `grow` eye distances."""
    fine = 4
    large = Image.new("L", (SIZE * fine, SIZE * fine))
    outline, radius = [tuple((point + 0.5) * fine) for point in points], grow * UNIT * fine
    draw = ImageDraw.Draw(large)
    if closed:
        draw.polygon(outline, fill=255)
        outline.append(outline[0])
    if grow:
        draw.line(outline, fill=255, width=round(2 * radius))
        for x, y in outline:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return np.asarray(large.resize((SIZE, SIZE), Image.Resampling.BOX), np.float32) / 255


def calm(photo: Pixels) -> Pixels:
    """The photograph without the shadows of its smile: even cheeks, no folds, no dark corners of the mouth."""
    lips = mask(POINTS[landmarks("lips")], grow=0.035)
    cheeks = np.maximum(*(mask(POINTS[landmarks(name)]) for name in ("right_cheek", "left_cheek"))) * (1 - lips)
    folds = np.maximum(*(mask(POINTS[landmarks(n)], 0.06, closed=False) for n in ("right_fold", "left_fold")))
    picture: Floats = photo.astype(np.float32)
    even = filled(picture, cheeks * (1 - folds), 0.3 * UNIT)
    grain = (picture - blurred(picture, 0.035 * UNIT)) * (1 - gaussian_filter(folds, 0.03 * UNIT))[..., None]
    part = gaussian_filter(cheeks * (1 - gaussian_filter(lips, 0.02 * UNIT)), 0.07 * UNIT)[..., None]
    picture = picture + (even + grain - picture) * part
    inwards = 0.03 * UNIT * RIGHT
    left, right = POINTS[landmarks("corners")]
    corners = np.maximum(*(mask([at], 0.055, closed=False) for at in (left + inwards, right - inwards)))
    smooth = filled(picture, 1 - corners, 0.035 * UNIT)
    picture += (smooth - picture) * gaussian_filter(corners, 0.015 * UNIT)[..., None]
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def mouth_inside(photo: Pixels) -> Pixels:
    """The mouth's inside in place: the photograph's teeth, darkness behind and below them."""
    left, right = landmarks("inner_corners")
    ids = [left, *landmarks("upper_inner"), right, *reversed(landmarks("lower_inner"))]
    teeth = gaussian_filter(mask(POINTS[ids]), 0.012 * UNIT)[..., None]
    rows, columns = np.mgrid[:SIZE, :SIZE].astype(np.float32)
    x, y = POINTS[13]
    depth = ((columns - x) * DOWN[0] + (rows - y) * DOWN[1]) / UNIT
    behind = np.clip(depth - 0.14, 0, 0.5)[..., None] * np.array([190.0, 80.0, 80.0]) + DARK
    return np.clip(behind + (photo - behind) * teeth, 0, 255).astype(np.uint8)


def blurred(picture: Floats, radius: float) -> Floats:
    """Each channel by itself."""
    return np.asarray(gaussian_filter(picture, (radius, radius, 0)))


def filled(picture: Floats, keep: Floats, radius: float) -> Floats:
    """Means of the kept pixels around each one."""
    return blurred(picture * keep[..., None], radius) / np.maximum(gaussian_filter(keep, radius), 1e-3)[..., None]


if __name__ == "__main__":
    from skimage import data

    layers(data.astronaut()).save(OUT, optimize=True)
    print(f"{OUT}: {OUT.stat().st_size} bytes")
