"""Face identity: detections assigned to persons by position, size and appearance; no networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from affectrace.config import Config, NotNegative, Positive
from affectrace.media.faces.detection import FaceDetection, iou

Array = NDArray[np.float32]

APPEARANCE_SIZE = 16  # an appearance is a (16, 16, 3) picture of the face and its surroundings, eyes level, RGB 0..1
UNASSIGNED = -1  # of a duplicate of another detection
CHROMA_WEIGHT = 4.0  # of colour against pattern in `appearance_similarity` (ours, see IdentityConfig)


@dataclass(frozen=True)
class IdentityConfig(Config):
    """When two detections are one person. All values ours, times in seconds; similarities in the test clips: one person
    within 20 s of speaking, crying and laughing .59 to 1, two people at most .05.

    max_gap_s: longest absence after which a face is recognized by its position.
    reach, reach_per_s: how far a face may move between two detections, in its own sizes; and further per second.
    size_ratio: growth or shrinkage between two detections.
    min_similarity: of a face recognized by its position after a gap.
    blink_s: after an absence up to this long a face that overlaps its last position is the same one whatever its
        appearance: a hand or a cloth passes before it.
    same_similarity: of a face recognized by its appearance alone, after a cut or a longer gap.
    overlap: intersection over union from which two detections are of one face.
    appearance_s: time constant of a person's mean appearance; four times longer while the face looks different.
    reidentify_s: for how long a new person may still be recognized as an earlier one: who returns is often half hidden
        at first.
    """

    max_gap_s: NotNegative = 1.0
    reach: NotNegative = 0.6
    reach_per_s: NotNegative = 2.0
    size_ratio: Annotated[float, Ge(1)] = 2.0
    min_similarity: NotNegative = 0.15
    blink_s: NotNegative = 0.25
    same_similarity: NotNegative = 0.5
    overlap: NotNegative = 0.4
    appearance_s: Positive = 2.0
    reidentify_s: NotNegative = 1.0


@dataclass
class Person:
    """First time, last box and its time, mean appearance, velocity in pixels per second."""

    id: int
    first_s: float
    box: Array
    time_s: float
    appearance: Array | None
    velocity: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))

    def update(self, face: FaceDetection, time_s: float, config: IdentityConfig) -> None:
        """Add another detection of this person."""
        step = time_s - self.time_s
        if step > 0:
            moved = (_centre(face.box) - _centre(self.box)) / step
            self.velocity += (1 - math.exp(-step / 0.2)) * (moved - self.velocity)
        similarity = appearance_similarity(self.appearance, face.appearance)
        if self.appearance is None or face.appearance is None or similarity is None:
            self.appearance = self.appearance if face.appearance is None else face.appearance
        else:
            slower = 1 if similarity >= config.same_similarity else 4
            share = np.float32(1 - math.exp(-step / (config.appearance_s * slower)))
            self.appearance = self.appearance + share * (face.appearance - self.appearance)
        self.box, self.time_s = face.box, time_s


class IdentityTracker:
    """Assigns every detection to a person, frame by frame; persons are numbered in order of appearance.

    same: new person -> the earlier one that it turned out to be.
    """

    def __init__(self, config: IdentityConfig | None = None) -> None:
        self.config = config or IdentityConfig()
        self.people: list[Person] = []
        self.same: dict[int, int] = {}

    def assign(self, faces: Sequence[FaceDetection], time_s: float, *, cut: bool = False) -> list[int]:
        """Persons of one frame's detections (UNASSIGNED for duplicates). cut: a new shot begins, positions are void."""
        given = [UNASSIGNED] * len(faces)
        if not cut:
            self._follow(faces, time_s, given)
        duplicates = self._duplicates(faces, given)
        free = [i for i in range(len(faces)) if given[i] == UNASSIGNED and i not in duplicates]
        self._recognize(faces, time_s, given, free, cut)
        for i in free:
            if given[i] == UNASSIGNED:
                given[i] = len(self.people)
                self.people.append(Person(given[i], time_s, faces[i].box, time_s, faces[i].appearance))
            else:
                person = self.people[given[i]]
                if cut or time_s - person.time_s > self.config.max_gap_s:
                    person.velocity[:] = 0
                    person.box = faces[i].box
        for i, person_id in enumerate(given):
            if person_id != UNASSIGNED:
                self.people[person_id].update(faces[i], time_s, self.config)
                given[i] = self._reidentify(person_id, faces[i], time_s, given)
        return given

    def _follow(self, faces: Sequence[FaceDetection], time_s: float, given: list[int]) -> None:
        """A detection at a person's last position is that person, unless it jumped."""
        for i, face in enumerate(faces):
            if face.follows is None or face.follows in given:
                continue
            if self._distance(self.people[face.follows], face, time_s) is not None:
                given[i] = face.follows

    def _duplicates(self, faces: Sequence[FaceDetection], given: list[int]) -> set[int]:
        """Repeated detections of one face. A face that two persons claim is assigned to the more similar one."""

        def claim(i: int) -> tuple[bool, float, float]:
            if given[i] == UNASSIGNED:
                return (False, 0.0, faces[i].confidence)
            similarity = appearance_similarity(self.people[given[i]].appearance, faces[i].appearance)
            return (True, similarity or 0.0, faces[i].confidence)

        duplicates: set[int] = set()
        for i in range(len(faces)):
            for j in range(i + 1, len(faces)):
                if i in duplicates or j in duplicates:
                    continue
                if iou(faces[i].box, faces[j].box[None])[0] >= self.config.overlap:
                    worse = min((j, i), key=claim)
                    given[worse] = UNASSIGNED
                    duplicates.add(worse)
        return duplicates

    def _recognize(
        self, faces: Sequence[FaceDetection], time_s: float, given: list[int], free: Sequence[int], cut: bool
    ) -> None:
        """Free detections to persons who are not in this frame yet, cheapest pair first."""
        absent = [person for person in self.people if person.id not in given and person.id not in self.same]
        costs = [(self._cost(person, faces[i], time_s, cut), i, person.id) for i in free for person in absent]
        for cost, i, person_id in sorted(costs):
            if cost < math.inf and given[i] == UNASSIGNED and person_id not in given:
                given[i] = person_id

    def _reidentify(self, person_id: int, face: FaceDetection, time_s: float, given: Sequence[int]) -> int:
        """The earlier person that a new one turns out to be: gone by then, of the same appearance."""
        new = self.people[person_id]
        if time_s - new.first_s > self.config.reidentify_s or person_id in self.same.values():
            return person_id
        best, found = self.config.same_similarity, None
        for person in self.people[:person_id]:
            similarity = appearance_similarity(person.appearance, face.appearance)
            gone = person.id not in self.same and person.id not in given and person.time_s < new.first_s
            if gone and similarity is not None and similarity >= best:
                best, found = similarity, person
        if found is None:
            return person_id
        self.same[person_id] = found.id
        found.box, found.time_s, found.velocity = new.box, new.time_s, new.velocity
        return found.id

    def _cost(self, person: Person, face: FaceDetection, time_s: float, cut: bool) -> float:
        """Cost of assigning `face` to `person`; infinite: impossible."""
        c, similarity = self.config, appearance_similarity(person.appearance, face.appearance)
        gap = time_s - person.time_s
        if not cut and gap <= c.max_gap_s:
            distance = self._distance(person, face, time_s)
            at_once = gap <= c.blink_s and iou(face.box, person.box[None])[0] >= c.overlap
            if distance is not None and (similarity is None or similarity >= c.min_similarity or at_once):
                return distance + (0.0 if similarity is None else 1 - similarity)
        if similarity is None or similarity < c.same_similarity:
            return math.inf
        apart = float(np.hypot(*(_centre(face.box) - _centre(person.box)))) / max(_size(person.box), 1e-6)
        return 10 + 1 - similarity + 0.1 * min(apart, 1.0)  # after everything that position supports; twins by place

    def _distance(self, person: Person, face: FaceDetection, time_s: float) -> float | None:
        """Distance of `face` from where `person` is expected, in face sizes; None: too far, too large, too small."""
        gap = max(time_s - person.time_s, 0.0)
        size, before = _size(face.box), _size(person.box)
        stayed = _centre(face.box) - _centre(person.box)
        away = _centre(face.box) - (_centre(person.box) + person.velocity * min(gap, 0.5))
        distance = min(float(np.hypot(*away)), float(np.hypot(*stayed))) / max(size, before, 1e-6)
        ratio = max(size, before) / max(min(size, before), 1e-6)
        if distance > self.config.reach + self.config.reach_per_s * gap or ratio > self.config.size_ratio:
            return None
        return distance + math.log(ratio)


def appearance_similarity(a: Array | None, b: Array | None) -> float | None:
    """Correlation of brightness less the weighted difference of colour, at most 1; None where either is unknown."""
    if a is None or b is None:
        return None
    ya, yb = a @ _LUMA, b @ _LUMA
    da, db = ya - ya.mean(), yb - yb.mean()
    scale = math.sqrt((float((da * da).mean()) + 1e-4) * (float((db * db).mean()) + 1e-4))
    colour = (a[..., ::2] - ya[..., None]) - (b[..., ::2] - yb[..., None])
    chroma = math.sqrt(2 * float((colour * colour).mean()))
    return float((da * db).mean()) / scale - CHROMA_WEIGHT * chroma


_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def _centre(box: Array) -> NDArray[np.float64]:
    return np.array([box[0] + box[2] / 2, box[1] + box[3] / 2], np.float64)


def _size(box: Array) -> float:
    return math.sqrt(max(float(box[2] * box[3]), 0.0))
