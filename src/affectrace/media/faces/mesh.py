"""The face mesh: 468 points of one face in 3D, and the probability that a face is there (MediaPipe's face_landmark)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from affectrace.media.faces.alignment import Square, cut_image
from affectrace.media.faces.detection import LiteNetwork

N_POINTS = 468
RIGHT_EYE, LEFT_EYE = (33, 133), (362, 263)  # corners: outer and inner, inner and outer
NOSE_TIP, MOUTH_CORNERS = 1, (61, 291)
ENLARGE = 1.5  # square around a face, in sides of its box (MediaPipe: face_detection_front_detection_to_roi)


@dataclass(frozen=True)
class Mesh:
    """468 points of one face.

    points: (468, 3) float32: x, y in pixels of the image; z in the same unit, growing away from the camera.
    presence: probability that the looked-at square held a face.
    crop: the network's own view of the face (192 x 192 RGB, eyes level), for what else wants a small picture of it.
    """

    points: NDArray[np.float32]
    presence: float
    crop: Image.Image

    @cached_property
    def keypoints(self) -> NDArray[np.float32]:
        """(4, 2) right eye, left eye, nose, mouth."""
        xy = self.points[:, :2]
        pairs = (RIGHT_EYE, LEFT_EYE, (NOSE_TIP, NOSE_TIP), MOUTH_CORNERS)
        return np.stack([(xy[a] + xy[b]) / 2 for a, b in pairs])

    @cached_property
    def box(self) -> NDArray[np.float32]:
        """(4,) x, y, w, h: the upright box around all points."""
        lo, hi = self.points[:, :2].min(axis=0), self.points[:, :2].max(axis=0)
        return np.concatenate([lo, hi - lo])

    @cached_property
    def square(self) -> Square:
        """Where to look for the same face in the next frame."""
        return _square(self.box, self.points[RIGHT_EYE[0], :2], self.points[LEFT_EYE[1], :2])


def square_of(box: NDArray[np.float32], keypoints: NDArray[np.float32]) -> Square:
    """Where to lay the mesh for a detected face."""
    return _square(box, keypoints[0], keypoints[1])


def _square(box: NDArray[np.float32], right_eye: NDArray[np.float32], left_eye: NDArray[np.float32]) -> Square:
    x, y, w, h = (float(v) for v in box)
    across = left_eye - right_eye
    angle = math.atan2(float(across[1]), float(across[0]))
    return Square(x + w / 2, y + h / 2, max(w, h) * ENLARGE, angle)


class FaceMesh:
    """The mesh network. path: face_landmark.tflite."""

    def __init__(self, path: Path, threads: int = 1) -> None:
        self._network = LiteNetwork(path, threads)
        self.size = self._network.size

    def locate(self, image: NDArray[np.uint8], square: Square) -> Mesh:
        """The mesh of the face in `square` of an RGB image; look at `presence` before believing it."""
        crop = cut_image(image, square, self.size, quick=True)
        out = self._network.run(np.asarray(crop), 1 / 255, 0.0)
        own = out[1, 1, 1, N_POINTS * 3].reshape(N_POINTS, 3)
        points = np.empty((N_POINTS, 3), np.float32)
        points[:, :2] = square.to_image(own[:, :2] / self.size)
        points[:, 2] = own[:, 2] * (square.side / self.size)
        logit = float(out[1, 1, 1, 1].item())
        return Mesh(points, 1 / (1 + math.exp(-max(min(logit, 50.0), -50.0))), crop)
