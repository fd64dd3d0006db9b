"""Faces of one frame after another: following meshes from their last place, searching where that does not do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from affectrace.errors import InputError
from affectrace.media.faces.alignment import Square, cut_image, face_square
from affectrace.media.faces.detection import Detection, iou, without_overlap
from affectrace.media.faces.identity import LOOK_SIZE, Sighting, likeness
from affectrace.media.faces.mesh import Mesh, square_of
from affectrace.media.faces.networks import FaceModels

Array = NDArray[np.float32]


@dataclass(frozen=True)
class SeekConfig:
    """How faces are looked for.

    min_score: least score of BlazeFace's short-range model; min_score_full: of its full-range one; both MediaPipe's
        defaults. min_score_fallback: of MTCNN, 0.7 in its code; a face that the mesh does not confirm needs
        `sure_score` of MTCNN (ours).
    min_presence: least face probability of a mesh that is followed (MediaPipe's default for tracking);
        new_presence: of a mesh that introduces a face (ours).
    detect_every_s: how often the whole frame is searched for new faces while some are followed, seconds (ours).
    search_every_s: how often the full-range model helps while no face is in sight, seconds (ours).
    fallback_every_s: how often MTCNN helps while BlazeFace finds nothing, seconds (ours).
    doubt_s: how long a mesh may be followed that no detector confirms, or a BlazeFace detection on which no mesh can be
        laid (a head turned away), seconds (ours).
    sudden_likeness: a face that is less like itself than this from one frame to the next is searched for anew: a cut
        that the picture as a whole did not show, or one person passing before another (ours; clips: .79 at least).
    min_size_px: smallest face that is believed, pixels of its longer side (ours).
    max_faces: most faces followed at once; the largest are kept (ours).
    """

    min_score: float = 0.5
    min_score_full: float = 0.6
    min_score_fallback: float = 0.7
    sure_score: float = 0.95
    min_presence: float = 0.5
    new_presence: float = 0.8
    detect_every_s: float = 1.0
    search_every_s: float = 0.25
    fallback_every_s: float = 1.0
    doubt_s: float = 4.0
    sudden_likeness: float = 0.3
    min_size_px: float = 12.0
    max_faces: int = 8

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not math.isfinite(value) or value < 0:
                raise InputError(f"must be zero or more, got {value}", where=f"SeekConfig.{name}")
            if ("score" in name or "presence" in name) and not 0 < value < 1:
                raise InputError(f"must lie between 0 and 1, got {value}", where=f"SeekConfig.{name}")
        if self.max_faces < 1:
            raise InputError(f"max_faces must be 1 or more, got {self.max_faces}")


@dataclass
class _Followed:
    """A face to be looked for at its last place.

    confirmed_s: when a detector last agreed that there is one. meshed_s: when a mesh, or MTCNN, last did.
    """

    square: Square
    source: str
    look: Array | None
    confirmed_s: float
    meshed_s: float


class FaceSeeker:
    """Finds the faces of successive frames of one video.

    For each frame: `step` gives its faces, then `follow` says whose they are, so that the next frame looks there first.
    """

    def __init__(self, models: FaceModels, config: SeekConfig | None = None) -> None:
        self.models, self.config = models, config or SeekConfig()
        models.warm()
        self._followed: dict[int, _Followed] = {}
        self._lost_s = self._near_s = self._far_s = self._fallback_s = -math.inf  # when last lost, searched, ...

    def step(self, image: NDArray[np.uint8], time_s: float, *, cut: bool = False) -> list[Sighting]:
        """Faces of the next frame. cut: nothing of the frame before can be followed into this one."""
        if cut:
            self._followed = {}
        seen = [s for s in (self._follow(image, person, f) for person, f in self._followed.items()) if s is not None]
        if len(seen) < len(self._followed):
            self._lost_s = time_s
        c = self.config
        due = cut or time_s - self._far_s >= (c.detect_every_s if seen else c.search_every_s)
        lately_lost = time_s - self._lost_s <= c.detect_every_s and time_s - self._near_s >= c.search_every_s
        if not (due or not seen or lately_lost or self._lost_s == time_s):
            return seen
        found = self._search(image, time_s, far=due)
        if due:
            self._confirm_followed(image, seen, found, time_s)
        new = self._introduce(image, found, seen)
        if not seen and not new and self.models.short and time_s - self._fallback_s >= c.fallback_every_s:
            self._fallback_s = time_s
            new = self._introduce(image, self._fall_back(image), seen)
        return seen + new

    def follow(self, persons: Mapping[int, Sighting], time_s: float) -> None:
        """Who the faces of this frame are: to be followed into the next one."""
        followed = {}
        for person, face in persons.items():
            before = self._followed.get(person)
            confirmed_s = before.confirmed_s if face.source == "mesh" and before is not None else time_s
            doubtful = face.mesh is None and face.source != "mtcnn" and before is not None
            meshed_s = before.meshed_s if doubtful and before is not None else time_s
            if time_s - min(confirmed_s, meshed_s) <= self.config.doubt_s:
                square = square_of(face.box, face.keypoints) if face.mesh is None else face.mesh.square
                followed[person] = _Followed(square, face.source, face.look, confirmed_s, meshed_s)
        self._followed = followed

    def _follow(self, image: NDArray[np.uint8], person: int, face: _Followed) -> Sighting | None:
        """The face near its last place: by its mesh, else by a detector's closer look at the surroundings."""
        if self.models.mesh is not None:
            mesh = self.models.mesh.locate(image, face.square)
            if mesh.presence >= self.config.min_presence and self._plausible(mesh, image, face.square):
                return self._steady(face, _of_mesh(mesh, person, "mesh"))
        near = self._look_closer(image, face)
        if near is None:
            return None
        laid = self._lay_mesh(image, near, person, self.config.min_presence)
        return self._steady(face, laid or _of_detection(image, near, person))

    def _steady(self, face: _Followed, now: Sighting) -> Sighting | None:
        alike = likeness(face.look, now.look)
        return now if alike is None or alike >= self.config.sudden_likeness else None

    def _look_closer(self, image: NDArray[np.uint8], face: _Followed) -> Detection | None:
        """What a detector finds nearest to a face's last place."""
        around, found = face.square.enlarged(1.4), []
        if self.models.short is not None:
            found = self.models.short.detect_in(image, around, self.config.min_score)
        if not found and self.models.mtcnn is not None and (face.source == "mtcnn" or self.models.short is None):
            found = self.models.mtcnn.detect_in(image, around, self.config.min_score_fallback)
        away = [float(np.hypot(*(d.box[:2] + d.box[2:] / 2 - (face.square.x, face.square.y)))) for d in found]
        near = [
            (distance, i)
            for i, distance in enumerate(away)
            if distance < face.square.side / 2 and self._large_enough(found[i].box)
        ]
        return found[min(near)[1]] if near else None

    def _search(self, image: NDArray[np.uint8], time_s: float, *, far: bool) -> list[Detection]:
        """BlazeFace on the whole frame; `far`: with the full-range model."""
        c, found = self.config, []
        self._near_s = time_s
        if far:
            self._far_s = time_s
        if self.models.short is not None:
            found = self.models.short.detect(image, c.min_score)
        if far and self.models.full is not None:
            found = without_overlap([*found, *self.models.full.detect(image, c.min_score_full)])
        return self._fall_back(image) if far and self.models.short is None else found

    def _fall_back(self, image: NDArray[np.uint8]) -> list[Detection]:
        mtcnn = self.models.mtcnn
        return [] if mtcnn is None else mtcnn.detect(image, self.config.min_score_fallback)

    def _confirm_followed(
        self, image: NDArray[np.uint8], seen: list[Sighting], found: list[Detection], time_s: float
    ) -> None:
        """A mesh can sit on nothing: note where a detector agrees with it."""
        for face in seen:
            state = self._followed[face.follows] if face.follows is not None else None
            if state is not None and (_covers(found, face.box, 0.2) or self._look_closer(image, state) is not None):
                state.confirmed_s = time_s

    def _introduce(self, image: NDArray[np.uint8], found: list[Detection], seen: list[Sighting]) -> list[Sighting]:
        """Detected faces that are not among `seen` and that the mesh, or a very sure MTCNN, confirms."""
        c, new = self.config, list[Sighting]()
        for face in sorted(found, key=lambda d: -float(d.box[2] * d.box[3])):
            if len(seen) + len(new) >= c.max_faces:
                break
            if not self._large_enough(face.box) or _covers([*seen, *new], face.box, 0.3):
                continue
            sighting = self._lay_mesh(image, face, None, c.new_presence)
            if sighting is None and face.source == "mtcnn" and (self.models.mesh is None or face.score >= c.sure_score):
                sighting = _of_detection(image, face, None)
            if sighting is not None and not _covers([*seen, *new], sighting.box, 0.3):
                new.append(sighting)
        return new

    def _lay_mesh(
        self, image: NDArray[np.uint8], face: Detection, follows: int | None, presence: float
    ) -> Sighting | None:
        """The mesh of a detected face, laid twice: from the detection, then from its own first answer."""
        if self.models.mesh is None:
            return None
        first = self.models.mesh.locate(image, square_of(face.box, face.keypoints))
        if first.presence < self.config.min_presence:
            return None
        mesh = self.models.mesh.locate(image, first.square)
        if mesh.presence < presence or not _covers([face], mesh.box, 0.2):
            return None
        return _of_mesh(mesh, follows, face.source)

    def _plausible(self, mesh: Mesh, image: NDArray[np.uint8], square: Square) -> bool:
        """A followed mesh that left the picture or changed its size at once is not believed."""
        box = mesh.box
        centre, limit = box[:2] + box[2:] / 2, np.array(image.shape[1::-1], np.float32)
        inside = bool((centre > -box[2:] / 4).all() and (centre < limit + box[2:] / 4).all())
        return inside and self._large_enough(box) and 0.5 < mesh.square.side / square.side < 2

    def _large_enough(self, box: Array) -> bool:
        return bool(np.isfinite(box).all() and box[2:].max() >= self.config.min_size_px and box[2:].min() > 0)


def _covers(faces: Sequence[Sighting | Detection], box: Array, overlap: float) -> bool:
    return bool(faces) and bool(iou(box, np.stack([f.box for f in faces])).max() > overlap)


def _of_mesh(mesh: Mesh, follows: int | None, source: str) -> Sighting:
    look = np.asarray(mesh.crop.resize((LOOK_SIZE, LOOK_SIZE), Image.Resampling.BOX), np.float32) / np.float32(255)
    return Sighting(mesh.box, mesh.keypoints, mesh.presence, look, mesh, follows, source)


def _of_detection(image: NDArray[np.uint8], face: Detection, follows: int | None) -> Sighting:
    """A detection without a mesh; its look shows what a mesh's would (median of the test clips)."""
    view = face_square(face.keypoints).moved(0, 0.1).enlarged(1.55)
    look = np.asarray(cut_image(image, view, LOOK_SIZE), np.float32) / np.float32(255)
    return Sighting(face.box, face.keypoints, face.score, look, None, follows, face.source)
