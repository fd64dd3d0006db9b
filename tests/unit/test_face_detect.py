"""Detectors: geometry of boxes, anchors and squares without weights; real faces with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from affectrace import weights
from affectrace.errors import WeightsError
from affectrace.media.faces import detection as face_detect
from affectrace.media.faces.alignment import Square
from affectrace.media.faces.detection import Detection, iou, without_overlap
from affectrace.media.faces.mesh import square_of
from affectrace.media.faces.networks import FaceModels


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 0, 10, 10), 1.0),
        ((5, 0, 10, 10), 1 / 3),
        ((10, 0, 10, 10), 0.0),
        ((2, 2, 5, 5), 0.25),
        ((0, 0, 0, 0), 0.0),
        ((-50, -50, 1, 1), 0.0),
    ],
)
def test_iou(box: tuple[float, ...], expected: float) -> None:
    assert iou(np.array([0, 0, 10, 10.0]), np.array([box], float))[0] == pytest.approx(expected)


def test_iou_of_nothing() -> None:
    assert iou(np.zeros(4), np.zeros((0, 4))).shape == (0,)
    assert iou(np.zeros(4), np.zeros((1, 4)))[0] == 0


def detection(x: float, score: float) -> Detection:
    return Detection(np.array([x, 0, 10, 10], np.float32), np.zeros((4, 2), np.float32), score, "made")


def test_without_overlap_keeps_the_first() -> None:
    faces = [detection(0, 0.9), detection(1, 0.99), detection(30, 0.5)]
    assert without_overlap(faces) == [faces[0], faces[2]]
    assert without_overlap([]) == []


def test_anchors_of_the_short_range_model() -> None:
    anchors = np.concatenate([face_detect._anchors(16, 2), face_detect._anchors(8, 6)])
    assert anchors.shape == (896, 2)
    np.testing.assert_allclose(anchors[:3], [[1 / 32, 1 / 32], [1 / 32, 1 / 32], [3 / 32, 1 / 32]])
    np.testing.assert_allclose(anchors[-1], [15 / 16, 15 / 16])


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [((360, 640), (28, 100), (0, 128)), ((640, 360), (0, 128), (28, 100)), ((4320, 7680), (28, 100), (0, 128))],
)
def test_letterbox_centres_the_image(shape: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]) -> None:
    out = face_detect._letterbox(np.full((*shape, 3), 200, np.uint8), 128)
    assert (out[slice(*rows), slice(*columns)] == 200).all()
    assert out.sum() == 200 * 3 * (rows[1] - rows[0]) * (columns[1] - columns[0])


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (16, 16), (3, 2)])
def test_letterbox_of_odd_images(shape: tuple[int, int]) -> None:
    assert face_detect._letterbox(np.full((*shape, 3), 9, np.uint8), 128).max() == 9


def test_overlapping_answers_are_averaged_by_score() -> None:
    points = np.zeros((3, 8, 2), np.float32)
    points[:, 0] = [[0.5, 0.5], [0.52, 0.5], [0.1, 0.1]]
    points[:, 1] = 0.2
    merged = list(face_detect._merge(points, np.array([0.9, 0.3, 0.6], np.float32)))
    assert [score for _, score in merged] == pytest.approx([0.9, 0.6])
    assert merged[0][0][0, 0] == pytest.approx((0.9 * 0.5 + 0.3 * 0.52) / 1.2)
    assert list(face_detect._merge(points[:0], np.zeros(0, np.float32))) == []
    points[:, 1] = 0  # boxes without a size overlap with nothing, not even themselves
    assert len(list(face_detect._merge(points, np.array([0.9, 0.3, 0.6], np.float32)))) == 3


def test_suppression_by_union_and_by_the_smaller() -> None:
    boxes = np.array([[0, 0, 99, 99], [0, 0, 29, 29], [200, 0, 299, 99]], np.float32)
    scores = np.array([0.5, 0.4, 0.9], np.float32)
    assert face_detect._suppress(boxes, scores, 0.7).tolist() == [2, 0, 1]
    assert face_detect._suppress(boxes, scores, 0.7, of_smaller=True).tolist() == [2, 0]
    assert face_detect._suppress(boxes[:0], scores[:0], 0.7).tolist() == []


def test_models_need_one_detector() -> None:
    with pytest.raises(WeightsError, match="affectrace weights fetch"):
        FaceModels(None, None)


def test_without_tensorflow_lite_mtcnn_does_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    monkeypatch.setattr(weights, "directory", lambda name, **_: tmp_path / name)
    models = FaceModels.load()
    assert models.short is None
    assert models.mesh is None
    assert "ai-edge-litert is not installed" in models.notes[0]


def test_without_the_second_detector_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def directory(name: str, **_: object) -> Path:
        if name == "mtcnn":
            raise WeightsError("cannot be fetched", where="mtcnn")
        return tmp_path / name

    monkeypatch.setattr(weights, "directory", directory)
    models = FaceModels.load()
    assert models.mtcnn is None
    assert "no second detector (mtcnn: cannot be fetched)" in models.notes[0]


# ---- real networks, real faces


@pytest.fixture(scope="module")
def models() -> FaceModels:
    return FaceModels.load()


@pytest.fixture(scope="module")
def photo(clips: Path) -> np.ndarray:
    """A man, one face, about 150 pixels wide."""
    return np.asarray(Image.open(clips / "single_face.jpg").convert("RGB"))


@pytest.mark.real
@pytest.mark.weights
def test_three_detectors_agree_on_a_face(models: FaceModels, photo: np.ndarray) -> None:
    found = [models.short.detect(photo), models.full.detect(photo), models.mtcnn.detect(photo)]
    assert [len(f) for f in found] == [1, 1, 1]
    faces = [f[0] for f in found]
    eyes = np.linalg.norm(faces[0].keypoints[1] - faces[0].keypoints[0])
    for other in faces[1:]:
        assert iou(faces[0].box, other.box[None])[0] > 0.5
        assert np.abs(other.keypoints - faces[0].keypoints).max() < 0.2 * eyes
    right, left, nose, mouth = faces[0].keypoints
    assert right[0] < nose[0] < left[0]
    assert right[1] < nose[1] < mouth[1]


@pytest.mark.real
@pytest.mark.weights
@pytest.mark.parametrize("angle_deg", [-60, 30, 90, 180])
def test_a_turned_square_shows_a_turned_face_upright(models: FaceModels, photo: np.ndarray, angle_deg: int) -> None:
    height, width = photo.shape[:2]
    straight = models.short.detect(photo)[0]
    turned = np.asarray(Image.fromarray(photo).rotate(angle_deg, Image.BILINEAR))  # counter-clockwise about the middle
    a = np.deg2rad(angle_deg)
    centre = np.array([width / 2, height / 2])
    expected = (straight.keypoints - centre) @ np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) + centre
    middle = expected.mean(axis=0)
    square = Square(float(middle[0]), float(middle[1]), 2.2 * float(straight.box[2]), -a)
    for detector in (models.short, models.mtcnn):
        found = detector.detect_in(turned, square)
        assert len(found) == 1
        assert np.abs(found[0].keypoints - expected).max() < 0.15 * straight.box[2]


@pytest.mark.real
@pytest.mark.weights
def test_the_mesh_lies_on_the_face(models: FaceModels, photo: np.ndarray) -> None:
    face = models.short.detect(photo)[0]
    mesh = models.mesh.locate(photo, square_of(face.box, face.keypoints))
    assert mesh.presence > 0.99
    assert mesh.points.shape == (468, 3)
    eyes = np.linalg.norm(face.keypoints[1] - face.keypoints[0])
    assert np.abs(mesh.keypoints - face.keypoints)[[0, 1, 3]].max() < 0.2 * eyes
    assert mesh.points[1, 2] < mesh.points[[234, 454], 2].mean()  # the nose is nearer than the ears
    again = models.mesh.locate(photo, mesh.square)
    assert np.abs(again.points - mesh.points).max() < 0.15 * eyes
    wall = models.mesh.locate(photo, Square(photo.shape[1] * 0.8, photo.shape[0] * 0.2, 60))
    assert wall.presence < 0.5


@pytest.mark.weights
@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (90, 160), (700, 20)])
def test_nothing_is_found_where_nothing_is(models: FaceModels, shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), 127, np.uint8)
    assert models.short.detect(image) == []
    assert models.full.detect(image) == []
    assert models.mtcnn.detect(image) == []


@pytest.mark.weights
def test_loading_says_nothing() -> None:
    """In a process of its own: TensorFlow Lite announces its delegate once a process."""
    command = "from affectrace.media.faces.networks import FaceModels; FaceModels.load().warm()"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
