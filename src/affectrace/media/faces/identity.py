"""Who is who from frame to frame: positions, sizes and looks of faces to persons. No networks here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import InputError
from affectrace.media.faces.detection import iou
from affectrace.media.faces.mesh import Mesh

Array = NDArray[np.float32]

LOOK_SIZE = 16  # a look is a (16, 16, 3) picture of the face with some surroundings, eyes level, RGB 0..1
NOBODY = -1  # of a sighting that is another one's double
CHROMA_WEIGHT = 4.0  # of colour against pattern in `likeness` (ours, see TrackConfig)


@dataclass(frozen=True)
class TrackConfig:
    """When two sightings are one person. All ours; the likenesses were read off the three people of the test clips:
    one person within 20 s of speaking, crying and laughing .59 to 1, two people at most .05.

    max_gap_s: how long a face may be gone and still be told by its position, seconds.
    reach: how far a face may move between two sightings, in its own sizes; reach_per_s: and more for each second.
    size_ratio: how much it may grow or shrink between two sightings.
    min_likeness: least likeness of a face told by its position after a gap.
    blink_s: how long a face may be gone and be the same one however it looks where it overlaps its last place, seconds:
        a hand or a cloth passes before it.
    same_likeness: least likeness of a face told by its look alone, after a cut or a longer gap.
    overlap: intersection over union from which two sightings are the same face.
    look_s: time constant with which a person's look is remembered, seconds; four times slower while the look is not
        alike (something passes before the face).
    settle_s: how long a newcomer may still turn out to be somebody seen before, seconds: who comes back is often half
        hidden at first.
    """

    max_gap_s: float = 1.0
    reach: float = 0.6
    reach_per_s: float = 2.0
    size_ratio: float = 2.0
    min_likeness: float = 0.15
    blink_s: float = 0.25
    same_likeness: float = 0.5
    overlap: float = 0.4
    look_s: float = 2.0
    settle_s: float = 1.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not math.isfinite(value) or value < 0:
                raise InputError(f"must be zero or more, got {value}", where=f"TrackConfig.{name}")
        if self.size_ratio < 1 or self.look_s == 0:
            raise InputError("size_ratio must be 1 or more and look_s positive", where="TrackConfig")


@dataclass(frozen=True)
class Sighting:
    """A face in one frame.

    box (4,) x, y, w, h and keypoints (4, 2) in pixels; confidence in [0, 1]; look (LOOK_SIZE, LOOK_SIZE, 3) or None;
    mesh where one was laid; follows: the person whose last place led here, None where it was found by searching.
    """

    box: Array
    keypoints: Array
    confidence: float
    look: Array | None = None
    mesh: Mesh | None = None
    follows: int | None = None
    source: str = "mesh"


@dataclass
class Person:
    """What is remembered of somebody: last box, its time, look (running mean), velocity in pixels a second."""

    id: int
    first_s: float
    box: Array
    time_s: float
    look: Array | None
    velocity: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))

    def update(self, seen: Sighting, time_s: float, config: TrackConfig) -> None:
        """Another sighting of the same person."""
        step = time_s - self.time_s
        if step > 0:
            moved = (_centre(seen.box) - _centre(self.box)) / step
            self.velocity += (1 - math.exp(-step / 0.2)) * (moved - self.velocity)
        alike = likeness(self.look, seen.look)
        if alike is None or self.look is None or seen.look is None:
            self.look = self.look if seen.look is None else seen.look
        else:
            slower = 1 if alike >= config.same_likeness else 4
            share = np.float32(1 - math.exp(-step / (config.look_s * slower)))
            self.look = self.look + share * (seen.look - self.look)
        self.box, self.time_s = seen.box, time_s


class Tracker:
    """Gives every sighting a person, frame after frame; persons are numbered as they appear."""

    def __init__(self, config: TrackConfig | None = None) -> None:
        self.config = config or TrackConfig()
        self.people: list[Person] = []
        self.same: dict[int, int] = {}  # newcomers who turned out to be somebody seen before

    def step(self, time_s: float, seen: Sequence[Sighting], *, cut: bool = False) -> list[int]:
        """Persons of the sightings of one frame (NOBODY for doubles of another sighting).

        time_s: when; must not go back. cut: the picture changed altogether, so that positions mean nothing.
        """
        given = [NOBODY] * len(seen)
        if not cut:
            self._follow(time_s, seen, given)
        doubles = self._doubles(seen, given)
        free = [i for i in range(len(seen)) if given[i] == NOBODY and i not in doubles]
        self._recognise(time_s, seen, given, free, cut)
        for i in free:
            if given[i] == NOBODY:
                given[i] = len(self.people)
                self.people.append(Person(given[i], time_s, seen[i].box, time_s, seen[i].look))
            else:
                person = self.people[given[i]]
                if cut or time_s - person.time_s > self.config.max_gap_s:
                    person.velocity[:] = 0
                    person.box = seen[i].box
        for i, person_id in enumerate(given):
            if person_id != NOBODY:
                self.people[person_id].update(seen[i], time_s, self.config)
                given[i] = self._settle(person_id, seen[i], time_s, given)
        return given

    def _settle(self, person_id: int, face: Sighting, time_s: float, given: Sequence[int]) -> int:
        """Who a newcomer is after a closer look: somebody who was seen before, was gone by then and looks the same."""
        newcomer = self.people[person_id]
        if time_s - newcomer.first_s > self.config.settle_s or person_id in self.same.values():
            return person_id
        best, found = self.config.same_likeness, None
        for person in self.people[:person_id]:
            alike = likeness(person.look, face.look)
            gone = person.id not in self.same and person.id not in given and person.time_s < newcomer.first_s
            if gone and alike is not None and alike >= best:
                best, found = alike, person
        if found is None:
            return person_id
        self.same[person_id] = found.id
        found.box, found.time_s, found.velocity = newcomer.box, newcomer.time_s, newcomer.velocity
        return found.id

    def _follow(self, time_s: float, seen: Sequence[Sighting], given: list[int]) -> None:
        """Sightings that a person's last place led to belong to that person, unless they jump."""
        for i, face in enumerate(seen):
            if face.follows is not None and face.follows not in given:
                person = self.people[face.follows]
                if self._distance(person, face, time_s) is not None:
                    given[i] = person.id

    def _doubles(self, seen: Sequence[Sighting], given: list[int]) -> set[int]:
        """Sightings of a face that another one shows too. A face that two persons claim belongs to the likelier."""
        doubles: set[int] = set()
        for i in range(len(seen)):
            for j in range(i + 1, len(seen)):
                if i in doubles or j in doubles or iou(seen[i].box, seen[j].box[None])[0] < self.config.overlap:
                    continue
                worse = min((j, i), key=lambda k: self._claim(seen[k], given[k]))
                given[worse] = NOBODY
                doubles.add(worse)
        return doubles

    def _claim(self, face: Sighting, person_id: int) -> tuple[bool, float, float]:
        if person_id == NOBODY:
            return (False, 0.0, face.confidence)
        alike = likeness(self.people[person_id].look, face.look)
        return (True, 0.0 if alike is None else alike, face.confidence)

    def _recognise(
        self, time_s: float, seen: Sequence[Sighting], given: list[int], free: Sequence[int], cut: bool
    ) -> None:
        """Free sightings to persons who are not seen elsewhere, cheapest pair first."""
        pairs = []
        for i in free:
            for person in self.people:
                absent = person.id not in given and person.id not in self.same
                cost = self._cost(person, seen[i], time_s, cut) if absent else None
                if cost is not None:
                    pairs.append((cost, i, person.id))
        for _, i, person_id in sorted(pairs):
            if given[i] == NOBODY and person_id not in given:
                given[i] = person_id

    def _cost(self, person: Person, face: Sighting, time_s: float, cut: bool) -> float | None:
        """What it costs to believe that `face` is `person`; None: not to be believed."""
        c, alike = self.config, likeness(person.look, face.look)
        if not cut and time_s - person.time_s <= c.max_gap_s:
            distance = self._distance(person, face, time_s)
            at_once = time_s - person.time_s <= c.blink_s and iou(face.box, person.box[None])[0] >= c.overlap
            if distance is not None and (alike is None or alike >= c.min_likeness or at_once):
                return distance + (0.0 if alike is None else 1 - alike)
        if alike is not None and alike >= c.same_likeness:
            apart = float(np.hypot(*(_centre(face.box) - _centre(person.box)))) / max(_size(person.box), 1e-6)
            return 10 + 1 - alike + 0.1 * min(apart, 1.0)  # after everything that position speaks for; twins by place
        return None

    def _distance(self, person: Person, face: Sighting, time_s: float) -> float | None:
        """How far `face` is from where `person` should be, in face sizes; None: too far, too large or too small."""
        gap = max(time_s - person.time_s, 0.0)
        size, before = _size(face.box), _size(person.box)
        expected = _centre(person.box) + person.velocity * min(gap, 0.5)
        away = _centre(face.box) - expected
        stayed = _centre(face.box) - _centre(person.box)
        distance = min(float(np.hypot(*away)), float(np.hypot(*stayed))) / max(size, before, 1e-6)
        ratio = max(size, before) / max(min(size, before), 1e-6)
        if distance > self.config.reach + self.config.reach_per_s * gap or ratio > self.config.size_ratio:
            return None
        return distance + math.log(ratio)


def likeness(a: Array | None, b: Array | None) -> float | None:
    """How alike two looks are: correlation of brightness less the weighted difference of colour; at most 1.

    None where either is not known.
    """
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


class CutFinder:
    """Shot cuts by the mean difference of one frame's coarse grid of pixels to the one before.

    threshold: of the full range. Within a shot the test clips stay below .04, at their one cut it is .56 (ours).
    """

    GRID = 36  # pixels along the shorter side

    def __init__(self, threshold: float = 0.12) -> None:
        self.threshold = threshold
        self._before: Array | None = None

    def step(self, image: NDArray[np.uint8]) -> bool:
        """Whether a new shot begins with this (H, W, 3) frame; the first frame begins none."""
        stride = max(1, min(image.shape[:2]) // self.GRID)
        now = image[stride // 2 :: stride, stride // 2 :: stride].astype(np.float32)
        before, self._before = self._before, now
        if before is None:
            return False
        if before.shape != now.shape:
            return True
        return float(np.abs(now - before).mean()) > self.threshold * 255
