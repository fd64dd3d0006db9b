"""The committed mesh and layers of the photograph are what the face network and the script make of it."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from affectrace.datasets.synthetic.face import MESH
from affectrace.media.faces.pipeline import FaceModels

data = pytest.importorskip("skimage.data", reason='needs pip install "affectrace[test]"')


def test_the_layers_are_the_scripts() -> None:
    script = runpy.run_path(str(Path(__file__).parents[2] / "training" / "synthetic_face.py"))
    made, shipped = script["layers"](data.astronaut()), Image.open(script["OUT"])
    assert np.abs(np.asarray(made, int) - np.asarray(shipped, int)).max() <= 1


def test_the_mesh_is_the_networks() -> None:
    models = FaceModels.load()
    image = data.astronaut()
    mesh = models.mesh.locate(image, models.short.detect(image)[0].square)
    for _ in range(5):  # where the mesh settles
        mesh = models.mesh.locate(image, mesh.square)
    apart = np.linalg.norm(mesh.points[:, :2] - MESH[:, :2], axis=1)
    assert np.median(apart) < 0.5  # pixels of a face 95 wide
    assert apart.max() < 2.0
