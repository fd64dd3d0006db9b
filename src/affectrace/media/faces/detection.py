"""Finding faces in one image: BlazeFace short and full range (TensorFlow Lite), MTCNN (ONNX) behind them.

BlazeFace: Bazarevsky et al. 2019, models and settings of MediaPipe's face_detection modules. MTCNN: Zhang et al. 2016.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from affectrace.media.faces.alignment import Square, cut_square, every

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

Array = NDArray[np.float32]

# the person's right eye is the viewer's left one
KEYPOINTS = ("right_eye", "left_eye", "nose", "mouth")


@dataclass(frozen=True)
class Detection:
    """A face found in one image: box (4,) x, y, w, h and keypoints (4, 2), in pixels; score in [0, 1]; by which."""

    box: Array
    keypoints: Array
    score: float
    source: str


class LiteNetwork:
    """A TensorFlow Lite network of one image: float input (1, size, size, 3), a list of float outputs."""

    def __init__(self, path: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        with _silenced():
            self._interpreter: Any = Interpreter(model_path=str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
        given = self._interpreter.get_input_details()[0]
        self._input = given["index"]
        self.size = int(given["shape"][1])
        self._buffer = np.empty(given["shape"], np.float32)
        self.outputs = {tuple(o["shape"]): o["index"] for o in self._interpreter.get_output_details()}

    def run(self, image: NDArray[np.uint8], scale: float, offset: float) -> dict[tuple[int, ...], Array]:
        """Outputs by shape for one (size, size, 3) image; the network sees image * scale + offset."""
        np.multiply(image, np.float32(scale), out=self._buffer[0], dtype=np.float32)
        if offset:
            self._buffer += np.float32(offset)
        self._interpreter.set_tensor(self._input, self._buffer)
        self._interpreter.invoke()
        return {shape: self._interpreter.get_tensor(index) for shape, index in self.outputs.items()}


_SILENCING = threading.Lock()


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """TensorFlow Lite announces its CPU delegate on the process's stderr and has no switch for that."""
    with _SILENCING:
        try:
            kept = os.dup(2)
        except OSError:  # no stderr at all
            yield
            return
        try:
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


# ---- BlazeFace ----


class BlazeFace:
    """BlazeFace: one look at a whole image; short range for faces near the camera, full range for smaller ones.

    path: face_detection_short_range.tflite or face_detection_full_range_sparse.tflite.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        self._network = LiteNetwork(path, threads)
        self.size = self._network.size
        self.source = "blazeface-short" if self.size == 128 else "blazeface-full"
        # MediaPipe's SsdAnchorsCalculator: two anchors a cell at stride 8 and six at stride 16, or one at stride 4
        layers = [(16, 2), (8, 6)] if self.size == 128 else [(48, 1)]
        self._anchors = np.concatenate([_anchors(cells, each) for cells, each in layers])
        self._shapes = ((1, len(self._anchors), 16), (1, len(self._anchors), 1))

    def detect(self, image: NDArray[np.uint8], min_score: float = 0.5) -> list[Detection]:
        """Faces in a (H, W, 3) RGB image, best first."""
        height, width = image.shape[:2]
        square = Square(width / 2, height / 2, float(max(width, height)))
        return self._look(_letterbox(image, self.size), square, min_score)

    def detect_in(self, image: NDArray[np.uint8], square: Square, min_score: float = 0.5) -> list[Detection]:
        """Faces in one square of the image, which may be turned; boxes are upright in the image."""
        return self._look(cut_square(image, square, self.size, replicate=False), square, min_score)

    def _look(self, picture: NDArray[np.uint8], square: Square, min_score: float) -> list[Detection]:
        out = self._network.run(picture, 2 / 255, -1.0)
        logits = out[self._shapes[1]][0, :, 0]
        threshold = np.log(min_score / (1 - min_score))
        kept = np.flatnonzero(logits >= threshold)
        if not kept.size:
            return []
        raw = out[self._shapes[0]][0, kept].reshape(-1, 8, 2) / self.size
        scores = (1 / (1 + np.exp(-np.clip(logits[kept], -100, 100)))).astype(np.float32)
        points = (raw + self._anchors[kept, None]).astype(np.float32)
        points[:, 1] = raw[:, 1]  # width and height are not offsets
        found = []
        for merged, score in _merge(points, scores):
            keypoints = square.to_image(merged[2:6])  # the two ears after them are not used
            centre = square.to_image(merged[:1])[0]
            size = merged[1] * square.side
            box = np.concatenate([centre - size / 2, size]).astype(np.float32)
            found.append(Detection(box, keypoints, float(score), self.source))
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
    """Weighted non-maximum suppression (BlazeFace, section 3.4): overlapping answers are averaged by their scores."""
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


# ---- MTCNN ----


class Mtcnn:
    """MTCNN: a cascade of three networks over an image pyramid; slower, finds smaller and harder faces.

    folder: holds pnet.onnx, rnet.onnx, onet.onnx. The steps and thresholds follow facenet-pytorch; the pyramid is made
    with PIL's box filter instead of torch's area interpolation.
    """

    SCALE = 0.709  # between levels of the pyramid
    THRESHOLDS = (0.6, 0.7, 0.7)
    LONG_SIDE = 1280  # larger images are reduced to it first

    def __init__(self, folder: Path, threads: int = 1) -> None:
        self._pnet, self._rnet, self._onet = (
            onnx_session(folder / f"{n}.onnx", threads) for n in ("pnet", "rnet", "onet")
        )

    def detect(self, image: NDArray[np.uint8], min_score: float = 0.7, min_size: int = 20) -> list[Detection]:
        """Faces of at least `min_size` pixels (of the image at most LONG_SIDE long), best first."""
        height, width = image.shape[:2]
        reduced = max(1.0, max(height, width) / self.LONG_SIDE)
        stride = min(max(1, int(reduced / 2)), height, width)
        picture = Image.fromarray(np.ascontiguousarray(every(image, stride)))
        if reduced > 1:
            size = (max(1, round(width / reduced)), max(1, round(height / reduced)))
            picture = picture.resize(size, Image.Resampling.BOX)
        ratio = np.array([width / picture.width, height / picture.height], np.float32)
        boxes = self._refine(picture, self._propose(picture, min_size))
        found = []
        for box, score, points in zip(*self._answer(picture, boxes, min_score), strict=True):
            five = points * ratio
            keypoints = np.concatenate([five[:3], five[3:].mean(axis=0, keepdims=True)]).astype(np.float32)
            corners = box.reshape(2, 2) * ratio
            whole = np.concatenate([corners[0], corners[1] - corners[0]]).astype(np.float32)
            found.append(Detection(whole, keypoints, float(score), "mtcnn"))
        return sorted(found, key=lambda d: -d.score)

    def detect_in(self, image: NDArray[np.uint8], square: Square, min_score: float = 0.7) -> list[Detection]:
        """Faces in one square of the image (which may be turned) that fill at least a quarter of its side."""
        size = int(np.clip(square.side, 48, 192))
        found = []
        for d in self.detect(cut_square(image, square, size, replicate=False), min_score, max(20, size // 4)):
            centre = square.to_image((d.box[None, :2] + d.box[None, 2:] / 2) / size)[0]
            extent = d.box[2:] * np.float32(square.side / size)
            box = np.concatenate([centre - extent / 2, extent])
            found.append(Detection(box, square.to_image(d.keypoints / size), d.score, d.source))
        return found

    def _propose(self, picture: Image.Image, min_size: int) -> Array:
        """First stage over the pyramid: square candidates (n, 4) x1, y1, x2, y2."""
        level, parts = 12.0 / min_size, []
        while min(picture.size) * level >= 12:
            w, h = int(picture.width * level + 1), int(picture.height * level + 1)
            x = np.asarray(picture.resize((w, h), Image.Resampling.BOX))
            probability, shift = self._pnet.run(["probability", "box"], {"image": _normalised(x[None])})
            rows, columns = np.nonzero(probability[0, 1] >= self.THRESHOLDS[0])
            cells = np.stack([columns, rows], axis=1).astype(np.float32)
            corner = np.floor((2 * cells + 1) / level)
            boxes = np.concatenate([corner, np.floor((2 * cells + 12) / level)], axis=1)
            scores = probability[0, 1, rows, columns]
            kept = _suppress(boxes, scores, 0.5)
            parts.append(np.concatenate([boxes, shift[0, :, rows, columns], scores[:, None]], axis=1)[kept])
            level *= self.SCALE
        every = np.concatenate(parts) if parts else np.zeros((0, 9), np.float32)
        every = every[_suppress(every[:, :4], every[:, 8], 0.7)]
        size = np.tile(every[:, 2:4] - every[:, :2], 2)
        return _squared(every[:, :4] + every[:, 4:8] * size)

    def _refine(self, picture: Image.Image, boxes: Array) -> Array:
        crops, boxes = _crops(picture, boxes, 24)
        if not len(boxes):
            return boxes
        probability, shift = self._rnet.run(["probability", "box"], {"image": crops})
        kept = np.flatnonzero(probability[:, 1] > self.THRESHOLDS[1])
        kept = kept[_suppress(boxes[kept], probability[kept, 1], 0.7)]
        return _squared(_shifted(boxes[kept], shift[kept]))

    def _answer(self, picture: Image.Image, boxes: Array, min_score: float) -> tuple[Array, Array, Array]:
        crops, boxes = _crops(picture, boxes, 48)
        if not len(boxes):
            return np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 5, 2), np.float32)
        probability, shift, points = self._onet.run(["probability", "box", "points"], {"image": crops})
        kept = np.flatnonzero(probability[:, 1] > max(min_score, self.THRESHOLDS[2]))
        size = boxes[kept, 2:] - boxes[kept, :2] + 1
        pixels = points[kept].reshape(-1, 2, 5).transpose(0, 2, 1) * size[:, None] + boxes[kept, None, :2] - 1
        final, scores = _shifted(boxes[kept], shift[kept]), probability[kept, 1]
        best = _suppress(final, scores, 0.7, of_smaller=True)
        return final[best], scores[best], pixels[best]


def onnx_session(path: Path, threads: int = 1) -> InferenceSession:
    """An onnxruntime session on the CPU that keeps to `threads` threads and says nothing."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _normalised(images: NDArray[np.uint8]) -> Array:
    return np.ascontiguousarray((images.astype(np.float32) - 127.5) * 0.0078125).transpose(0, 3, 1, 2)


def _squared(boxes: Array) -> Array:
    """Boxes x1, y1, x2, y2 made square about their centres."""
    centre, side = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True)
    return np.concatenate([centre - side / 2, centre + side / 2], axis=1)


def _shifted(boxes: Array, shift: Array) -> Array:
    return boxes + shift * np.tile(boxes[:, 2:] - boxes[:, :2] + 1, 2)


def _crops(picture: Image.Image, boxes: Array, size: int) -> tuple[Array, Array]:
    """Network input for every box (clipped to the picture), and the boxes that are not empty."""
    limit = np.array([picture.width, picture.height] * 2, np.float32)
    clipped = np.trunc(boxes)
    clipped[:, :2] = np.maximum(clipped[:, :2], 1) - 1
    clipped = np.clip(clipped, 0, limit)
    there = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    crops = [
        np.asarray(picture.resize((size, size), Image.Resampling.BOX, box=tuple(box)))
        for box in clipped[there].tolist()
    ]
    images = np.stack(crops) if crops else np.zeros((0, size, size, 3), np.uint8)
    return _normalised(images), boxes[there]


def _suppress(boxes: Array, scores: Array, overlap: float, *, of_smaller: bool = False) -> NDArray[np.int64]:
    """Indices that survive non-maximum suppression, best first; overlap of the union, or of the smaller box."""
    area = np.prod(boxes[:, 2:] - boxes[:, :2] + 1, axis=1)
    left, kept = np.argsort(-scores, kind="stable"), []
    while left.size:
        best, rest = left[0], left[1:]
        kept.append(int(best))
        lo = np.maximum(boxes[best, :2], boxes[rest, :2])
        hi = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        common = np.prod(np.maximum(hi - lo + 1, 0), axis=1)
        whole = np.minimum(area[best], area[rest]) if of_smaller else area[best] + area[rest] - common
        left = rest[common / whole <= overlap]
    return np.array(kept, np.int64)


# ---- both ----


def without_overlap(found: Sequence[Detection], overlap: float = 0.3) -> list[Detection]:
    """The same faces once each: of two that overlap the first stays."""
    kept: list[Detection] = []
    for face in found:
        if not kept or iou(face.box, np.stack([k.box for k in kept])).max() <= overlap:
            kept.append(face)
    return kept
