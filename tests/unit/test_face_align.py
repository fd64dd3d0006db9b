"""Cutting faces out: where the eyes land, borders, sizes, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from affectrace.errors import InputError
from affectrace.media.faces.alignment import Square, align_face, crop_square, face_square


def drawn(size: tuple[int, int], points: list[tuple[float, float]], radius: float = 3.0) -> np.ndarray:
    """Black RGB with a white dot at every point."""
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    image = np.zeros((size[1], size[0], 3), np.uint8)
    for px, py in points:
        image[np.hypot(x - px, y - py) < radius] = 255
    return image


def dots(image: np.ndarray, n: int) -> list[tuple[float, float]]:
    """Centres of the n brightest separate dots, from left to right."""
    grey = image[..., 0].astype(float)
    y, x = np.mgrid[: grey.shape[0], : grey.shape[1]] + 0.5
    found = []
    for _ in range(n):
        j, i = np.unravel_index(grey.argmax(), grey.shape)
        near = np.hypot(x - i, y - j) < grey.shape[0] / 12
        weight = grey * near
        found.append((float((x * weight).sum() / weight.sum()), float((y * weight).sum() / weight.sum())))
        grey = np.where(near, 0, grey)
    return sorted(found)


def face(angle_deg: float, scale: float = 60.0, centre: tuple[float, float] = (200.0, 150.0)) -> np.ndarray:
    """Keypoints of a face tilted clockwise by an angle."""
    a = math.radians(angle_deg)
    own = np.array([[-0.5, 0], [0.5, 0], [0, 0.6], [0, 1.0]]) * scale
    return own @ np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]]) + centre


@pytest.mark.parametrize("angle", [0, 10, -35, 90, 170])
@pytest.mark.parametrize("size", [64, 224])
def test_eyes_are_level_and_where_the_margin_puts_them(angle: float, size: int) -> None:
    points = face(angle)
    image = drawn((400, 300), [tuple(points[0]), tuple(points[1])])
    right, left = dots(align_face(image, points, size, margin=0.25), 2)
    assert right[1] == pytest.approx(left[1], abs=size / 100)
    middle = ((right[0] + left[0]) / 2, (right[1] + left[1]) / 2)
    side = face_square(points, 0.25).side
    assert left[0] - right[0] == pytest.approx(60 / side * size, abs=size / 80)
    assert middle[0] == pytest.approx(size / 2, abs=size / 80)
    assert middle[1] == pytest.approx(size / 2 - 0.2 * 60 / side * size, abs=size / 80)


def test_a_face_turned_aside_keeps_its_size() -> None:
    points = face(0)
    plain, wide = face_square(points), face_square(points, 0.5)
    assert (wide.x, wide.y, wide.side) == pytest.approx((plain.x, plain.y, 2 * plain.side))
    points[:2, 0] = 200 + (points[:2, 0] - 200) * 0.4
    assert face_square(points).side == pytest.approx(plain.side)
    points[3] = np.nan  # without the mouth only the eyes are left
    assert face_square(points).side == pytest.approx(0.4 * plain.side)


def test_the_border_is_repeated() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, :30], image[:, 30:] = (200, 10, 30), (5, 120, 250)
    crop = np.asarray(crop_square(image, Square(30, 20, 300), 64))
    assert (crop[:, :28] == (200, 10, 30)).all()
    assert (crop[:, 36:] == (5, 120, 250)).all()
    black = np.asarray(crop_square(image, Square(30, 20, 300), 64, replicate=False))
    assert (black[:20] == 0).all()
    assert (black[32, 28] == (200, 10, 30)).all()
    outside = np.full((40, 60, 3), 7, np.uint8)
    outside[0, 0] = 99
    assert (np.asarray(crop_square(outside, Square(-500, -500, 100), 16)) == 99).all()
    assert (np.asarray(crop_square(outside, Square(900, 900, 100, 0.7), 16)) == 7).all()


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("side", [20.0, 64.0, 150.0, 640.0, 2600.0])
def test_resampling_agrees_with_pil(side: float, quick: bool) -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).resize((2700, 2700), Image.BICUBIC)
    image = np.asarray(smooth)
    ours = np.asarray(crop_square(image, Square(1350, 1350, side), 64, quick=quick)).astype(int)
    box = (1350 - side / 2, 1350 - side / 2, 1350 + side / 2, 1350 + side / 2)
    theirs = np.asarray(smooth.resize((64, 64), Image.BILINEAR, box=box)).astype(int)
    slope = np.abs(np.gradient(theirs.astype(float), axis=(0, 1))).mean()  # grey values a pixel
    assert np.abs(ours - theirs).max() <= 1 + 1.5 * slope
    assert np.abs(ours - theirs).mean() < 0.5 + (0.25 if quick else 0.15) * slope  # that share of a pixel


def test_a_turned_square_maps_its_own_points_to_the_image() -> None:
    square = Square(100, 50, 40, math.pi / 2)  # its right is the image's down
    corners = square.to_image(np.array([[0.5, 0.5], [1.0, 0.5], [0.5, 1.0]]))
    np.testing.assert_allclose(corners, [[100, 50], [100, 70], [80, 50]], atol=1e-4)
    assert (square.moved(0.5, 0).x, square.moved(0.5, 0).y) == pytest.approx((100, 70))


def test_tiny_images_and_faces_without_eyes() -> None:
    for shape in ((1, 1, 3), (16, 16, 3), (2, 300, 3)):
        points = face(20, scale=6, centre=(shape[1] / 2, shape[0] / 2))
        assert (align_face(np.full(shape, 50, np.uint8), points, 32) == 50).all()
    for points in (np.full((4, 2), np.nan), np.zeros((4, 2))):
        with pytest.raises(InputError, match="eyes"):
            align_face(np.zeros((5, 5, 3), np.uint8), points)
