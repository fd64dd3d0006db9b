"""The committed mesh of the photograph is what the face network finds there."""

from __future__ import annotations

import numpy as np
import pytest

from affectrace import weights
from affectrace.datasets.synthetic.face_mesh import mesh_points
from affectrace.errors import WeightsError

pytestmark = pytest.mark.weights


def test_the_mesh_is_the_networks() -> None:
    data = pytest.importorskip("skimage.data", reason='needs pip install "affectrace[data]"')
    from affectrace.media.faces.detection import BlazeFace
    from affectrace.media.faces.mesh import FaceMesh, square_of

    try:
        folder = weights.directory("mediapipe-face")
    except WeightsError as error:
        pytest.skip(f"weights not there and not fetchable: {error}")
    image = data.astronaut()
    detector, network = (
        BlazeFace(folder / "face_detection_short_range.tflite"),
        FaceMesh(folder / "face_landmark.tflite"),
    )
    found = detector.detect(image)[0]
    mesh = network.locate(image, square_of(found.box, found.keypoints))
    for _ in range(5):  # where the mesh settles
        mesh = network.locate(image, mesh.square)
    apart = np.linalg.norm(mesh.points[:, :2] - mesh_points()[:, :2], axis=1)
    assert np.median(apart) < 0.5  # pixels of a face 95 wide
    assert apart.max() < 2.0
