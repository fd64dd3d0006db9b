"""The committed mesh of the photograph is what the face network finds there."""

from __future__ import annotations

import numpy as np
import pytest

from affectrace.datasets.synthetic.face import MESH
from affectrace.errors import WeightsError

pytestmark = pytest.mark.weights


def test_the_mesh_is_the_networks() -> None:
    data = pytest.importorskip("skimage.data", reason='needs pip install "affectrace[data]"')
    from affectrace.media.faces.pipeline import FaceModels

    try:
        models = FaceModels.load()
    except WeightsError as error:
        pytest.skip(f"weights not there and not fetchable: {error}")
    image = data.astronaut()
    mesh = models.mesh.locate(image, models.short.detect(image)[0].square)
    for _ in range(5):  # where the mesh settles
        mesh = models.mesh.locate(image, mesh.square)
    apart = np.linalg.norm(mesh.points[:, :2] - MESH[:, :2], axis=1)
    assert np.median(apart) < 0.5  # pixels of a face 95 wide
    assert apart.max() < 2.0
