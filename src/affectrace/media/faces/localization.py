"""Face localization in successive frames: tracking by the mesh, search by the detector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray
from PIL import Image

from affectrace import weights
from affectrace.config import Config, Count, NotNegative
from affectrace.media.faces.alignment import Square, crop_square, face_square
from affectrace.media.faces.detection import (
    BlazeFace,
    FaceDetection,
    FaceMesh,
    Mesh,
    covers,
    without_overlap,
)
from affectrace.media.faces.identity import APPEARANCE_SIZE, appearance_similarity

Array = NDArray[np.float32]
Probability = Annotated[float, Interval(gt=0, lt=1)]


@dataclass(frozen=True)
class FaceModels:
    """The networks that find faces: BlazeFace short range and full range, the 468-point mesh."""

    short: BlazeFace
    full: BlazeFace
    mesh: FaceMesh

    @classmethod
    def load(cls) -> FaceModels:
        """The networks of the package."""
        folder = weights.directory("mediapipe-face")
        short, full = (BlazeFace(folder / f"blazeface_{reach}.onnx") for reach in ("short", "full"))
        return cls(short, full, FaceMesh(folder / "face_mesh.onnx"))


@dataclass(frozen=True)
class LocalizationConfig(Config):
    """How faces are searched for and followed (ours unless said otherwise; times in seconds).

    min_score, min_score_full: of BlazeFace's short-range and full-range model (MediaPipe's defaults).
    min_presence: of a mesh that is followed (MediaPipe's default for tracking); new_presence: of a new face's mesh.
    detect_every_s: interval of searches of the whole frame for new faces while some are followed.
    search_every_s: interval of the full-range model while no face is found.
    small_every_s: interval of searches tile by tile for small faces while no face is found.
    doubt_s: how long a mesh is followed without confirmation by a detector, or a detection that no mesh fits (a head
        turned away).
    sudden_similarity: a face whose appearance changes to less than this from one frame to the next is searched for
        anew: a cut that changed little of the picture, or one person passing before another (clips: .79 at least).
    min_size_px: smallest accepted face, pixels of its longer side. max_faces: followed at once, the largest.
    """

    min_score: Probability = 0.5
    min_score_full: Probability = 0.6
    min_presence: Probability = 0.5
    new_presence: Probability = 0.8
    detect_every_s: NotNegative = 1.0
    search_every_s: NotNegative = 0.25
    small_every_s: NotNegative = 1.0
    doubt_s: NotNegative = 4.0
    sudden_similarity: NotNegative = 0.3
    min_size_px: NotNegative = 12.0
    max_faces: Count = 8


@dataclass
class _Followed:
    """A face of the previous frame; when a detector last confirmed it, and when a mesh last fitted."""

    face: FaceDetection
    confirmed_s: float
    meshed_s: float


class FaceLocalizer:
    """Finds the faces in successive frames of one video."""

    def __init__(self, models: FaceModels, config: LocalizationConfig | None = None) -> None:
        self.models, self.config = models, config or LocalizationConfig()
        self._followed: dict[int, _Followed] = {}
        self._time_s = self._lost_s = self._near_s = self._far_s = self._small_s = -math.inf  # of the last ...

    def locate(
        self, image: NDArray[np.uint8], time_s: float, people: Mapping[int, FaceDetection], *, cut: bool = False
    ) -> list[FaceDetection]:
        """Faces in the next frame. people: person -> face in the previous one, followed unless a new shot begins."""
        c = self.config
        self._followed = {} if cut else self._plausible_people(people)
        self._time_s = time_s
        seen = [f for f in (self._follow(image, person, old) for person, old in self._followed.items()) if f]
        if len(seen) < len(self._followed):
            self._lost_s = time_s
        due = cut or time_s - self._far_s >= (c.detect_every_s if seen else c.search_every_s)
        lately_lost = time_s - self._lost_s <= c.detect_every_s and time_s - self._near_s >= c.search_every_s
        if not (due or not seen or lately_lost or self._lost_s == time_s):
            return seen
        self._near_s = time_s
        found = self.models.short.detect(image, c.min_score)
        if due:
            self._far_s = time_s
            found = without_overlap([*found, *self.models.full.detect(image, c.min_score_full)])
            self._confirm(image, seen, found)
        new = self._introduce(image, found, seen)
        if not seen and not new and time_s - self._small_s >= c.small_every_s:
            self._small_s = time_s
            new = self._introduce(image, self.models.full.detect_tiled(image, c.min_score_full), seen)
        return seen + new

    def _plausible_people(self, people: Mapping[int, FaceDetection]) -> dict[int, _Followed]:
        """The faces of the previous frame, without those unconfirmed for too long."""
        followed = {}
        for person, face in people.items():
            before = self._followed.get(person)
            confirmed_s = before.confirmed_s if before is not None and not face.detected else self._time_s
            meshed_s = before.meshed_s if before is not None and face.mesh is None else self._time_s
            if self._time_s - min(confirmed_s, meshed_s) <= self.config.doubt_s:
                followed[person] = _Followed(face, confirmed_s, meshed_s)
        return followed

    def _follow(self, image: NDArray[np.uint8], person: int, old: _Followed) -> FaceDetection | None:
        """The face near its last position: by its mesh, else by the detector on its surroundings."""
        square = old.face.square
        mesh = self.models.mesh.locate(image, square)
        if mesh.presence >= self.config.min_presence and self._plausible(mesh, image, square):
            now = _with_mesh(mesh, person, detected=False)
        else:
            near = self._detect_near(image, square)
            if near is None:
                return None
            now = self._fit_mesh(image, near, person, self.config.min_presence) or _without_mesh(image, near, person)
        similarity = appearance_similarity(old.face.appearance, now.appearance)
        return now if similarity is None or similarity >= self.config.sudden_similarity else None

    def _detect_near(self, image: NDArray[np.uint8], square: Square) -> FaceDetection | None:
        """The detected face nearest to the middle of a square."""
        nearest, least = None, square.side / 2
        for face in self.models.short.detect_in(image, square.enlarged(1.4), self.config.min_score):
            distance = float(np.hypot(*(face.box[:2] + face.box[2:] / 2 - (square.x, square.y))))
            if distance < least and self._large_enough(face.box):
                nearest, least = face, distance
        return nearest

    def _confirm(self, image: NDArray[np.uint8], seen: list[FaceDetection], found: list[FaceDetection]) -> None:
        """Note which followed meshes a detector confirms: one may be followed without a face."""
        for face in seen:
            assert face.follows is not None
            old = self._followed[face.follows]
            if covers(found, face.box, 0.2) or self._detect_near(image, old.face.square) is not None:
                old.confirmed_s = self._time_s

    def _introduce(
        self, image: NDArray[np.uint8], found: list[FaceDetection], seen: list[FaceDetection]
    ) -> list[FaceDetection]:
        """Detected faces not among `seen` that a mesh fits, the largest first."""
        new: list[FaceDetection] = []
        for face in sorted(found, key=lambda face: -float(face.box[2] * face.box[3])):
            if len(seen) + len(new) >= self.config.max_faces:
                break
            if not self._large_enough(face.box) or covers([*seen, *new], face.box, 0.3):
                continue
            meshed = self._fit_mesh(image, face, None, self.config.new_presence)
            if meshed is not None and not covers([*seen, *new], meshed.box, 0.3):
                new.append(meshed)
        return new

    def _fit_mesh(
        self, image: NDArray[np.uint8], face: FaceDetection, follows: int | None, presence: float
    ) -> FaceDetection | None:
        """A detected face with its mesh, fitted twice: from the detection, then from its own first result."""
        first = self.models.mesh.locate(image, face.square)
        if first.presence < self.config.min_presence:
            return None
        mesh = self.models.mesh.locate(image, first.square)
        return _with_mesh(mesh, follows) if mesh.presence >= presence and covers([face], mesh.box, 0.2) else None

    def _plausible(self, mesh: Mesh, image: NDArray[np.uint8], square: Square) -> bool:
        """Whether a followed mesh stayed in the picture without an abrupt change of size."""
        box = mesh.box
        centre, limit = box[:2] + box[2:] / 2, np.array(image.shape[1::-1], np.float32)
        inside = bool((centre > -box[2:] / 4).all() and (centre < limit + box[2:] / 4).all())
        return inside and self._large_enough(box) and 0.5 < mesh.square.side / square.side < 2

    def _large_enough(self, box: Array) -> bool:
        return bool(np.isfinite(box).all() and box[2:].max() >= self.config.min_size_px and box[2:].min() > 0)


def _with_mesh(mesh: Mesh, follows: int | None, *, detected: bool = True) -> FaceDetection:
    picture = mesh.crop.resize((APPEARANCE_SIZE, APPEARANCE_SIZE), Image.Resampling.BOX)
    return FaceDetection(mesh.box, mesh.keypoints, mesh.presence, mesh, _rgb(picture), follows, detected)


def _without_mesh(image: NDArray[np.uint8], face: FaceDetection, follows: int | None) -> FaceDetection:
    """A detection with its appearance, cut as a mesh's would be (median of the test clips)."""
    view = face_square(face.keypoints).moved(0, 0.1).enlarged(1.55)
    return replace(face, appearance=_rgb(crop_square(image, view, APPEARANCE_SIZE)), follows=follows)


def _rgb(picture: Image.Image) -> Array:
    return np.asarray(picture, np.float32) / np.float32(255)
