"""Face detection (BlazeFace) and face mesh (MediaPipe) in one image, in onnxruntime.

Bazarevsky et al. 2019 (arXiv:1907.05047), Kartynnik et al. 2019 (arXiv:1907.06724); models and settings are those of
MediaPipe's modules face_detection and face_landmark. training/face_networks.py converted the networks to ONNX.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from affectrace.media.faces.alignment import Square, crop_square, every

Array = NDArray[np.float32]

N_POINTS = 468
RIGHT_EYE, LEFT_EYE = (33, 133), (362, 263)  # corners: outer and inner, inner and outer
NOSE_TIP, MOUTH_CORNERS = 1, (61, 291)
ENLARGE = 1.5  # square around a face, in sides of its box (MediaPipe: face_detection_front_detection_to_roi)
TILES = 3.4  # tiles along the longer side of an image, if they did not overlap (ours)
STEP = 0.8  # from tile to tile at most, in sides (ours)


@dataclass(frozen=True)
class FaceDetection:
    """A face in one image.

    box: (4,) x, y, w, h; keypoints: (4, 2) right eye (the viewer's left one), left eye, nose, mouth; in pixels.
    confidence: in [0, 1]. mesh: None if none fits. appearance: (16, 16, 3) RGB 0..1, see `identity`. follows: the
    person whose last position led here, None if found by searching. detected: by a detector in this image, not only by
    following a mesh.
    """

    box: Array
    keypoints: Array
    confidence: float
    mesh: Mesh | None = None
    appearance: Array | None = None
    follows: int | None = None
    detected: bool = True

    @property
    def square(self) -> Square:
        """The region for this face's mesh, here or in the next frame."""
        return _mesh_square(self.box, *self.keypoints[:2]) if self.mesh is None else self.mesh.square


@dataclass(frozen=True)
class Mesh:
    """468 points of one face.

    points: (468, 3) float32: x, y in pixels of the image; z in the same unit, growing away from the camera.
    presence: probability of a face in the region. crop: the network's input (192 x 192 RGB, eyes level).
    """

    points: Array
    presence: float
    crop: Image.Image

    @cached_property
    def keypoints(self) -> Array:
        """(4, 2) right eye, left eye, nose, mouth."""
        xy = self.points[:, :2]
        pairs = (RIGHT_EYE, LEFT_EYE, (NOSE_TIP, NOSE_TIP), MOUTH_CORNERS)
        return np.stack([(xy[a] + xy[b]) / 2 for a, b in pairs])

    @cached_property
    def box(self) -> Array:
        """(4,) x, y, w, h: the upright box around all points."""
        lo, hi = self.points[:, :2].min(axis=0), self.points[:, :2].max(axis=0)
        return np.concatenate([lo, hi - lo])

    @cached_property
    def square(self) -> Square:
        """The region for the same face in the next frame."""
        return _mesh_square(self.box, self.points[RIGHT_EYE[0], :2], self.points[LEFT_EYE[1], :2])


def _mesh_square(box: Array, right_eye: Array, left_eye: Array) -> Square:
    x, y, w, h = (float(v) for v in box)
    across = left_eye - right_eye
    angle = math.atan2(float(across[1]), float(across[0]))
    return Square(x + w / 2, y + h / 2, max(w, h) * ENLARGE, angle)


def open_session(path: Path) -> ort.InferenceSession:
    """An ONNX network on one thread of the CPU, silent."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # one memory block per input shape: larger, and no faster
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class _ImageNetwork:
    """A network of one image: float input (1, size, size, 3), two named outputs."""

    def __init__(self, path: Path, outputs: tuple[str, str]) -> None:
        self._session, self._outputs = open_session(path), outputs
        self._buffer = np.empty(self._session.get_inputs()[0].shape, np.float32)
        self.size = self._buffer.shape[1]

    def run(self, image: NDArray[np.uint8], scale: float, offset: float) -> tuple[Array, Array]:
        """Outputs for one (size, size, 3) image, of which image * scale + offset is the input."""
        np.multiply(image, np.float32(scale), out=self._buffer[0], dtype=np.float32)
        if offset:
            self._buffer += np.float32(offset)
        first, second = self._session.run(self._outputs, {"image": self._buffer})
        return first[0], second[0]


class BlazeFace:
    """BlazeFace; the file decides between the short-range model (faces near the camera) and the full-range one."""

    def __init__(self, path: Path) -> None:
        self._network = _ImageNetwork(path, ("boxes", "scores"))
        self.size = self._network.size
        # MediaPipe's SsdAnchorsCalculator: two anchors a cell at stride 8 and six at stride 16, or one at stride 4
        layers = [(16, 2), (8, 6)] if self.size == 128 else [(48, 1)]
        self._anchors = np.concatenate([_anchors(cells, each) for cells, each in layers])

    def detect(self, image: NDArray[np.uint8], min_score: float = 0.5) -> list[FaceDetection]:
        """Faces in a (H, W, 3) RGB image, best first."""
        height, width = image.shape[:2]
        square = Square(width / 2, height / 2, float(max(width, height)))
        return self._run(_letterbox(image, self.size), square, min_score)

    def detect_in(self, image: NDArray[np.uint8], square: Square, min_score: float = 0.5) -> list[FaceDetection]:
        """Faces in one square of the image, possibly rotated; boxes are upright in the image."""
        return self._run(np.asarray(crop_square(image, square, self.size, replicate=False)), square, min_score)

    def detect_tiled(self, image: NDArray[np.uint8], min_score: float = 0.5) -> list[FaceDetection]:
        """Faces too small to be found in the whole image, by a grid of overlapping squares, best first."""
        height, width = image.shape[:2]
        side = max(max(height, width) / TILES, self.size)
        rows, columns = (
            np.linspace(side / 2, max(n - side / 2, side / 2), math.ceil(max(n - side, 0) / (STEP * side)) + 1)
            for n in (height, width)
        )
        squares = [Square(x, y, side) for y in rows.tolist() for x in columns.tolist()]
        found = [face for square in squares for face in self.detect_in(image, square, min_score)]
        return without_overlap(sorted(found, key=lambda face: -face.confidence))

    def _run(self, picture: NDArray[np.uint8], square: Square, min_score: float) -> list[FaceDetection]:
        boxes, logits = self._network.run(picture, 2 / 255, -1.0)  # (anchors, 16) and (anchors, 1)
        logits = logits[:, 0]
        threshold = np.log(min_score / (1 - min_score))
        kept = np.flatnonzero(logits >= threshold)
        if not kept.size:
            return []
        raw = boxes[kept].reshape(-1, 8, 2) / self.size
        scores = (1 / (1 + np.exp(-np.clip(logits[kept], -100, 100)))).astype(np.float32)
        points = (raw + self._anchors[kept, None]).astype(np.float32)
        points[:, 1] = raw[:, 1]  # width and height are not offsets
        found = []
        for merged, score in _merge(points, scores):
            keypoints = square.to_image(merged[2:6])  # the two ears after them are not used
            centre = square.to_image(merged[:1])[0]
            size = merged[1] * square.side
            box = np.concatenate([centre - size / 2, size]).astype(np.float32)
            found.append(FaceDetection(box, keypoints, float(score)))
        return found


def _anchors(cells: int, each: int) -> Array:
    centres = (np.arange(cells, dtype=np.float32) + 0.5) / cells
    y, x = np.meshgrid(centres, centres, indexing="ij")
    return np.repeat(np.stack([x.ravel(), y.ravel()], axis=1), each, axis=0)


def _letterbox(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The whole image in a (size, size, 3) square, centred, black around it."""
    height, width = image.shape[:2]
    scale = size / max(height, width)
    stride = min(max(1, int(1 / scale / 2)), height, width)
    picture = Image.fromarray(np.ascontiguousarray(every(image, stride)))
    w, h = max(1, round(width * scale)), max(1, round(height * scale))
    out = np.zeros((size, size, 3), np.uint8)
    x, y = (size - w) // 2, (size - h) // 2
    out[y : y + h, x : x + w] = np.asarray(picture.resize((w, h), Image.Resampling.BILINEAR))
    return out


def _merge(points: Array, scores: Array, overlap: float = 0.3) -> Iterator[tuple[Array, float]]:
    """Weighted non-maximum suppression (BlazeFace, section 3.4): overlapping boxes are averaged by score."""
    boxes = np.concatenate([points[:, 0] - points[:, 1] / 2, points[:, 1]], axis=1)
    left = np.argsort(-scores, kind="stable")
    while left.size:
        best = left[0]
        near = iou(boxes[best], boxes[left]) > overlap
        near[0] = True
        weight = scores[left[near]]
        yield np.average(points[left[near]], axis=0, weights=weight).astype(np.float32), float(scores[best])
        left = left[~near]


def iou(box: NDArray[np.floating], boxes: NDArray[np.floating]) -> NDArray[np.floating]:
    """(n,) intersection over union of one x, y, w, h box with n others; 0 where both are empty."""
    lo = np.maximum(box[:2], boxes[:, :2])
    hi = np.minimum(box[:2] + box[2:], boxes[:, :2] + boxes[:, 2:])
    common = np.prod(np.maximum(hi - lo, 0), axis=1)
    either = np.prod(box[2:]) + np.prod(boxes[:, 2:], axis=1) - common
    return np.where(either > 0, common / np.maximum(either, 1e-12), 0.0)


def without_overlap(faces: Iterable[FaceDetection], overlap: float = 0.3) -> list[FaceDetection]:
    """Faces without repetition: of two that overlap the first stays."""
    kept: list[FaceDetection] = []
    for face in faces:
        if not covers(kept, face.box, overlap):
            kept.append(face)
    return kept


def covers(faces: list[FaceDetection], box: Array, overlap: float) -> bool:
    """Whether one of the faces overlaps a box by more than `overlap` (intersection over union)."""
    return bool(faces) and bool(iou(box, np.stack([face.box for face in faces])).max() > overlap)


class FaceMesh:
    """The mesh network. path: face_mesh.onnx."""

    def __init__(self, path: Path) -> None:
        self._network = _ImageNetwork(path, ("points", "presence"))
        self.size = self._network.size

    def locate(self, image: NDArray[np.uint8], square: Square) -> Mesh:
        """The mesh of the face in `square` of an RGB image; a low `presence` means no face."""
        crop = crop_square(image, square, self.size, quick=True)
        own, logits = self._network.run(np.asarray(crop), 1 / 255, 0.0)  # (1404,) and (1,)
        own = own.reshape(N_POINTS, 3)
        points = np.empty((N_POINTS, 3), np.float32)
        points[:, :2] = square.to_image(own[:, :2] / self.size)
        points[:, 2] = own[:, 2] * (square.side / self.size)
        logit = logits.item()
        return Mesh(points, 1 / (1 + math.exp(-max(min(logit, 50.0), -50.0))), crop)
