"""Detectors and mesh: overlapping boxes without weights; boxes, keypoints and meshes of real faces with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from affectrace.media.faces.alignment import Square
from affectrace.media.faces.detection import FaceDetection, iou, without_overlap
from affectrace.media.faces.pipeline import FaceModels
from affectrace.media.video import open_video

EXAMPLE = Path(__file__).parents[2] / "examples" / "example.mp4"


def test_overlaps() -> None:
    boxes = np.array([(0, 0, 10, 10), (5, 0, 10, 10), (10, 0, 10, 10), (2, 2, 5, 5), (0, 0, 0, 0)], float)
    np.testing.assert_allclose(iou(boxes[0], boxes), [1, 1 / 3, 0, 0.25, 0])
    assert iou(np.zeros(4), boxes[-1:])[0] == 0
    faces = [
        FaceDetection(np.array([x, 0, 10, 10], np.float32), np.zeros((4, 2), np.float32), score)
        for x, score in ((0, 0.9), (1, 0.99), (30, 0.5))
    ]
    assert without_overlap(faces) == [faces[0], faces[2]]


# ---- real networks, real faces


@pytest.fixture(scope="module")
def models() -> FaceModels:
    return FaceModels.load()


@pytest.fixture(scope="module")
def photo(clips: Path) -> np.ndarray:
    """A man, one face, about 150 pixels wide."""
    return np.asarray(Image.open(clips / "single_face.jpg").convert("RGB"))


@pytest.mark.real
def test_boxes_and_keypoints_of_three_pictures(models: FaceModels, photo: np.ndarray, clips: Path) -> None:
    """As read off the pictures by hand; by both models, on the picture alone and low in one that is twice as high."""
    woman = next(iter(open_video(clips / "WolfgangLanger_Pexels.mp4").frames())).image
    example = next(iter(open_video(EXAMPLE).frames())).image
    by_hand = (
        (photo, (185, 195, 200, 205), [(230, 247), (312, 245), (272, 290), (278, 333)]),
        (woman, (330, 130, 215, 220), [(367, 183), (475, 176), (413, 222), (430, 285)]),
        (example, (155, 125, 175, 190), [(203, 175), (286, 181), (242, 213), (240, 257)]),
    )
    for image, box, keypoints in by_hand:
        eyes = np.hypot(*np.subtract(keypoints[1], keypoints[0]))
        for detector in (models.short, models.full):
            (face,) = detector.detect(image)
            assert iou(face.box, np.array([box], np.float32))[0] > 0.7
            assert np.abs(face.keypoints - keypoints).max() < 0.2 * eyes
            assert face.confidence > 0.6
            tall = np.zeros((2 * image.shape[1], image.shape[1], 3), np.uint8)
            tall[-image.shape[0] :] = image
            (lower,) = detector.detect(tall, 0.4)
            assert np.abs(lower.keypoints - keypoints - (0, len(tall) - len(image))).max() < 0.3 * eyes


@pytest.mark.real
@pytest.mark.parametrize("angle_deg", [-60, 30, 180])
def test_a_turned_square_shows_a_turned_face_upright(models: FaceModels, photo: np.ndarray, angle_deg: int) -> None:
    height, width = photo.shape[:2]
    straight = models.short.detect(photo)[0]
    turned = np.asarray(Image.fromarray(photo).rotate(angle_deg, Image.BILINEAR))  # counter-clockwise about the middle
    a = np.deg2rad(angle_deg)
    centre = np.array([width / 2, height / 2])
    expected = (straight.keypoints - centre) @ np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) + centre
    middle = expected.mean(axis=0)
    square = Square(float(middle[0]), float(middle[1]), 2.2 * float(straight.box[2]), -a)
    found = models.short.detect_in(turned, square)
    assert len(found) == 1
    assert np.abs(found[0].keypoints - expected).max() < 0.15 * straight.box[2]


@pytest.mark.real
def test_the_mesh_lies_on_the_face(models: FaceModels, photo: np.ndarray) -> None:
    face = models.short.detect(photo)[0]
    mesh = models.mesh.locate(photo, face.square)
    assert mesh.presence > 0.99
    assert mesh.points.shape == (468, 3)
    eyes = np.linalg.norm(face.keypoints[1] - face.keypoints[0])
    assert np.abs(mesh.keypoints - face.keypoints)[[0, 1, 3]].max() < 0.2 * eyes
    assert mesh.points[1, 2] < mesh.points[[234, 454], 2].mean()  # the nose is nearer than the ears
    again = models.mesh.locate(photo, mesh.square)
    assert np.abs(again.points - mesh.points).max() < 0.15 * eyes
    wall = models.mesh.locate(photo, Square(photo.shape[1] * 0.8, photo.shape[0] * 0.2, 60))
    assert wall.presence < 0.5


def test_nothing_is_found_in_empty_pictures(models: FaceModels) -> None:
    for shape in ((1, 1), (16, 16), (90, 160), (700, 20), (1, 5000)):
        image = np.full((*shape, 3), 127, np.uint8)
        assert models.short.detect(image) == models.full.detect(image) == models.full.detect_tiled(image) == []


def test_loading_says_nothing() -> None:
    """In a process of its own: libraries announce themselves once a process."""
    command = "from affectrace.media.faces.pipeline import FaceModels; FaceModels.load()"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
