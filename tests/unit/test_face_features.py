"""Expression and geometry of faces: known changes of a mesh, known expressions of real people."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from affectrace import weights
from affectrace.features.face import (
    GEOMETRY,
    NETWORKS,
    REST_LEAN_DEG,
    ExpressionNetwork,
    MeshGeometry,
    mesh_geometry,
)
from affectrace.media.faces.pipeline import SeenFace, track_faces
from affectrace.media.video import open_video

LEAN = np.tan(np.deg2rad(REST_LEAN_DEG))
PLACES = {  # x right, y down, z away; the eyes' centres 2 apart, so lengths in the table below halve
    (33,): (-1.4, 0, 0.2),
    (133,): (-0.6, 0, 0.2),
    (362,): (0.6, 0, 0.2),
    (263,): (1.4, 0, 0.2),
    (127,): (-2.2, 0, 1),
    (356,): (2.2, 0, 1),
    (234,): (-2.2, 0.6, 1),
    (454,): (2.2, 0.6, 1),
    (160, 158): (-1.0, -0.12, 0.2),
    (144, 153): (-1.0, 0.12, 0.2),
    (385, 387): (1.0, -0.12, 0.2),
    (380, 373): (1.0, 0.12, 0.2),
    (63, 105, 66): (-1.1, -0.7, 0),
    (293, 334, 296): (1.1, -0.7, 0),
    (107,): (-0.35, -0.6, 0),
    (336,): (0.35, -0.6, 0),
    (10,): (0, -2, 0),
    (2,): (0, 1.2, -3.2 * LEAN),
    (13,): (0, 1.8, -0.2),
    (14,): (0, 1.9, -0.2),
    (61,): (-0.8, 1.9, 0),
    (291,): (0.8, 1.9, 0),
}
REST = {
    "mouth_open": 0.05,
    "mouth_width": 0.8,
    "corner_lift": -0.35,
    "eye_open": 0.3,
    "brow_raise": 0.35,
    "brow_gap": 0.35,
    "yaw_deg": 0,
    "pitch_deg": 0,
    "roll_deg": 0,
}


def mesh() -> np.ndarray:
    """A neutral face that looks into the camera."""
    points = np.zeros((468, 3))
    for indices, place in PLACES.items():
        points[list(indices)] = place
    return points


def turned(points: np.ndarray, axis: int, degrees: float) -> np.ndarray:
    """Rotated by the right-hand rule about x, y or z."""
    a = np.deg2rad(degrees)
    i, j = [(1, 2), (2, 0), (0, 1)][axis]
    rotation = np.eye(3)
    rotation[[i, i, j, j], [i, j, i, j]] = np.cos(a), -np.sin(a), np.sin(a), np.cos(a)
    return points @ rotation.T


def measured(points: np.ndarray) -> dict[str, float]:
    return dict(zip(GEOMETRY, mesh_geometry(points).tolist(), strict=True))


def test_a_neutral_face() -> None:
    assert measured(mesh()) == pytest.approx(REST, abs=0.02)


@pytest.mark.parametrize(
    ("points", "move", "changes"),
    [
        ((14,), (0, 0.6, 0), {"mouth_open": 0.35}),
        ((61,), (-0.2, -0.4, 0), {"mouth_width": 0.9, "corner_lift": -0.25}),
        ((144, 153, 380, 373), (0, -0.24, 0), {"eye_open": 0.0}),
        ((63, 105, 66, 293, 334, 296), (0, -0.2, 0), {"brow_raise": 0.45}),
        ((107,), (0.2, 0, 0), {"brow_gap": 0.25}),
    ],
)
def test_each_movement_moves_its_measure(
    points: tuple[int, ...], move: tuple[float, ...], changes: dict[str, float]
) -> None:
    face = mesh()
    face[list(points)] += move
    got = measured(face)
    for name, rest in REST.items():
        if name in changes:
            assert got[name] == pytest.approx(changes[name], abs=0.03), name
        elif not name.endswith("_deg") or name == "roll_deg":
            assert got[name] == pytest.approx(rest, abs=0.03), name


@pytest.mark.parametrize(
    ("axis", "degrees", "name", "expected"),
    [
        (1, 30, "yaw_deg", -30),  # about the downward axis: the nose goes to the picture's left
        (1, -25, "yaw_deg", 25),
        (0, 20, "pitch_deg", -20),  # about the rightward axis: the nose goes down
        (0, -15, "pitch_deg", 15),
        (2, 40, "roll_deg", 40),  # clockwise in the picture
        (2, -170, "roll_deg", -170),
    ],
)
def test_turning_the_head_changes_its_angle_and_nothing_else(
    axis: int, degrees: float, name: str, expected: float
) -> None:
    got = measured(turned(mesh(), axis, degrees) * 83 + [400, 200, 9])
    rest = measured(mesh())
    for other in GEOMETRY:
        assert got[other] == pytest.approx(expected + rest[other] if other == name else rest[other], abs=0.02), other


@pytest.mark.parametrize(
    "points", [np.zeros((468, 3)), np.full((468, 3), np.nan), np.where(mesh() > 1.5, np.inf, mesh())]
)
def test_what_cannot_be_measured_is_nan(points: np.ndarray) -> None:
    assert np.isnan(mesh_geometry(points)).all()


# ---- observers


def test_geometry_without_a_mesh_is_missing() -> None:
    geometry = MeshGeometry()
    image = np.zeros((8, 8, 3), np.uint8)
    face = SeenFace(image, 0, 0.0, np.zeros(4, np.float32), np.zeros((4, 2), np.float32), None)
    looks = np.stack([geometry.look(face), mesh().astype(np.float32)])
    values = geometry.measure(looks)
    assert np.isnan(values[0]).all()
    assert dict(zip(GEOMETRY, values[1].tolist(), strict=True)) == pytest.approx(REST, abs=0.02)
    assert geometry.extractor.columns == GEOMETRY


# ---- the real network


@pytest.mark.parametrize("name", NETWORKS)
def test_batches_change_nothing(name: str) -> None:
    network, crop = ExpressionNetwork.load(name), NETWORKS[name]
    looks = np.random.default_rng(0).integers(0, 255, (5, crop.size, crop.size), dtype=np.uint8)
    together = network.measure(looks)
    np.testing.assert_allclose(together, np.concatenate([network.measure(x[None]) for x in looks]), atol=1e-6)
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-5)
    assert network.extractor.columns == crop.columns
    assert len(network.extractor.weights_sha256) == 64


def test_the_crop_and_the_columns_are_those_of_the_training() -> None:
    crop = NETWORKS["ferplus"]
    session = ort.InferenceSession(weights.directory("ferplus") / crop.file, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["affectrace"])
    assert about["columns"] == list(crop.columns)
    assert about["crop"] == {"size": crop.size, "margin": crop.margin}


@pytest.mark.real
@pytest.mark.parametrize("name", NETWORKS)
def test_grief_and_joy(name: str, clips: Path) -> None:
    """WolfgangLanger: she weeps at the beginning (frames 0 to 90) and laughs at the end (300 to 350)."""
    source = open_video(clips / "WolfgangLanger_Pexels.mp4")
    kept = [f for f in source.frames() if f.index < 91 or 300 <= f.index < 350]
    observers = {"expression": ExpressionNetwork.load(name), "geometry": MeshGeometry()}
    (track,) = track_faces(kept, timeline=lambda: source.timeline, observers=observers)
    assert track.valid.sum() == len(kept)
    p = dict(zip(NETWORKS[name].columns, track.measured["expression"].T, strict=True))
    g = dict(zip(GEOMETRY, track.measured["geometry"].T, strict=True))
    early, late = slice(0, 91), slice(300, 350)
    assert np.median(p["sad"][early]) > 0.5
    assert np.median(p["happy"][early]) < 0.1
    assert np.median(p["happy"][late]) > 0.9
    for name in ("mouth_open", "mouth_width"):
        assert np.median(g[name][late]) > np.median(g[name][early]) + 0.08
    assert np.abs(g["yaw_deg"][track.valid]).max() < 30
    assert np.median(g["pitch_deg"][late]) > np.median(g["pitch_deg"][early]) + 10  # she throws it back
