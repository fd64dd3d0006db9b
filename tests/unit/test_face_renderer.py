"""The synthetic face: what expressions move, identities, and the committed example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("skimage", reason='needs pip install "affectrace[test]"')

from affectrace.datasets.synthetic.face import EXPRESSIONS, MESH, VIEW, Appearance, FaceRenderer, Pose

SIZE = 128
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
POINTS = (MESH[:, :2] - VIEW[:2]) * SIZE / VIEW[2]  # where the landmarks of the photograph lie in the picture


@pytest.fixture(scope="module")
def face() -> FaceRenderer:
    return FaceRenderer(SIZE)


def patch(image: np.ndarray, at: np.ndarray, half: int = 1) -> np.ndarray:
    x, y = np.rint(at).astype(int)
    return image[y - half : y + half + 1, x - half : x + half + 1].astype(float)


def moved(face: FaceRenderer, landmark: int, pose: Pose) -> np.ndarray:
    """Where the surroundings of a landmark are found again, in pixels (right, down)."""
    from skimage.feature import match_template

    before, after = (face.render(p).mean(2) for p in (Pose(), pose))
    x, y = np.rint(POINTS[landmark]).astype(int)
    likeness = match_template(after[y - 15 : y + 16, x - 15 : x + 16], before[y - 5 : y + 6, x - 5 : x + 6])
    down, right = np.unravel_index(np.argmax(likeness), likeness.shape)
    return np.array([right, down]) - 10


def test_an_open_mouth_is_dark_and_a_smile_shows_teeth(face: FaceRenderer) -> None:
    closed, opened = (patch(face.render(Pose(jaw=jaw)), POINTS[14] + (0, 2.2)).mean() for jaw in (0.0, 0.5))
    assert opened < 0.6 * closed
    gap, smile = (patch(face.render(Pose(jaw=0.15, teeth=teeth)), POINTS[13] + (0, 1.6)).mean() for teeth in (0, 1))
    assert gap < 0.75 * smile


@pytest.mark.parametrize(
    "pose",
    [
        *(Pose(**{n: 0.8}) for n in EXPRESSIONS if n not in ("jaw", "close")),
        Pose(jaw=0.4),
        *(Pose(**{n: 5.0}) for n in ("yaw", "pitch", "roll")),
        *(Pose(**{n: 0.1}) for n in ("dx", "dy", "zoom")),
    ],
)
def test_everything_in_a_pose_shows_in_the_face(face: FaceRenderer, pose: Pose) -> None:
    change = np.abs(face.render(pose).astype(float) - face.render(Pose())).max(2)
    left, top, side = (round(v) for v in face.face_square(Pose()))
    inside = np.zeros_like(change, bool)
    inside[top : top + round(1.3 * side), left : left + side] = True  # with the throat under a moving jaw
    assert (change > 12).sum() > 20
    assert change[inside].mean() > 1.5 * change[~inside].mean()


@pytest.mark.parametrize(
    "landmark, pose, direction",
    [
        (291, Pose(wide=1), (1, 0)),  # a corner of the mouth
        (105, Pose(brows=1), (0, -1)),
        (107, Pose(furrow=1), (0, 1)),
        (152, Pose(jaw=0.4), (0, 1)),
        (1, Pose(yaw=10), (1, 0)),  # the nose leads
        (1, Pose(pitch=10), (0, -1)),
    ],
)
def test_expressions_move_what_they_name(
    face: FaceRenderer, landmark: int, pose: Pose, direction: tuple[int, int]
) -> None:
    for way, distance in zip(direction, moved(face, landmark, pose), strict=True):
        if way:
            assert way * distance >= 1


def test_identities_differ_in_shape_colour_side_and_noise(face: FaceRenderer) -> None:
    pose = Pose(smile=0.5)
    plain = face.render(pose)

    def rendered(rng: np.random.Generator | None = None, **appearance: Any) -> np.ndarray:
        return FaceRenderer(SIZE, Appearance(**appearance)).render(pose, rng).astype(int)

    assert np.array_equal(rendered(), plain)
    assert np.abs(plain - rendered(shape={"broad": 1.5, "large_eyes": 2.0})).max() > 30
    assert np.array_equal(rendered(mirrored=True), plain[:, ::-1])
    assert rendered(tint=(0.5, 0.5, 0.5)).mean() == pytest.approx(plain.mean() / 2, rel=0.05)
    assert np.array_equal(rendered(noise=5.0), plain)  # noise needs a generator
    assert (rendered(np.random.default_rng(0), noise=5.0) - plain).std() == pytest.approx(5.0, abs=0.7)


def test_the_face_square_follows_the_head(face: FaceRenderer) -> None:
    still, shifted = face.face_square(Pose()), face.face_square(Pose(dx=0.2))
    eyes = np.linalg.norm(POINTS[263] - POINTS[33])
    assert shifted[0] - still[0] == pytest.approx(0.2 * eyes, rel=0.15)
    assert still[0] >= 0
    assert still[0] + still[2] <= SIZE
