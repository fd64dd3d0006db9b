"""The people of a video: one FaceTrack for each, and the choice among them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import InputError, UnknownNameError
from affectrace.recording import PERSONS
from affectrace.timeline import Timeline

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class FaceTrack:
    """One person's face on the clock of the video.

    person: number, in order of appearance. timeline: T frames.
    box: (T, 4) float32 x, y, w, h in pixels of the upright frame; NaN where the face is not seen.
    keypoints: (T, 4, 2) float32 right eye, left eye, nose, mouth (the person's right, the viewer's left); NaN likewise.
    confidence: (T,) float32, probability that a face is there, by the mesh or the detector; 0 where none was found.
    valid: (T,) bool, seen. reason: (T,) why not; "" exactly where valid.
    measured: observer's name -> (T, D) float32; NaN where not seen or not measurable.
    mesh: (T, 468, 3) float32 if it was asked for.
    """

    person: int
    timeline: Timeline
    box: Array
    keypoints: Array
    confidence: Array
    valid: NDArray[np.bool_]
    reason: NDArray[np.str_]
    measured: Mapping[str, Array] = field(default_factory=dict)
    mesh: Array | None = None

    def __len__(self) -> int:
        return len(self.timeline)

    @property
    def seen_s(self) -> float:
        """For how long the face is seen, in seconds."""
        return float((self.timeline.ends - self.timeline.times)[self.valid].sum())

    @property
    def share_seen(self) -> float:
        """Share of frames in which the face is seen (0 if there are no frames)."""
        return float(self.valid.mean()) if len(self) else 0.0

    @property
    def centre_x(self) -> float:
        """Mean horizontal position in pixels."""
        return float(np.mean(self.box[self.valid, 0] + self.box[self.valid, 2] / 2))

    @property
    def area(self) -> float:
        """Mean area of the box in square pixels."""
        return float(np.mean(self.box[self.valid, 2] * self.box[self.valid, 3]))


@dataclass(frozen=True, eq=False)
class FaceTracks:
    """The people of a video, in order of appearance.

    tracks: one for each person. timeline: the video's. decoded: (T,) bool, frames that had a picture.
    cuts: frames at which a shot begins. notes: what a user should know (people left out).
    """

    tracks: tuple[FaceTrack, ...]
    timeline: Timeline
    decoded: NDArray[np.bool_]
    cuts: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tracks)

    def __iter__(self) -> Iterator[FaceTrack]:
        return iter(self.tracks)

    def __getitem__(self, i: int) -> FaceTrack:
        return self.tracks[i]


def select_person(tracks: Iterable[FaceTrack], who: str | int = "main") -> tuple[FaceTrack, ...]:
    """The tracks of the people that are asked for; empty only if nobody was seen.

    who: "main" (seen longest; among equals the largest), "all", "left" or "right" (in the picture, of the two seen
        longest; as in Aff-Wild2's `_left` and `_right`), or a person's number (as int or text).

    Raises:
        UnknownNameError: another word. InputError: no such number, or "left"/"right" of only one person.
    """
    people = sorted(tracks, key=lambda t: (-t.seen_s, -t.area, t.person))
    if isinstance(who, str) and who.strip().isdecimal():
        who = int(who)
    if isinstance(who, str) and who not in PERSONS:
        raise UnknownNameError.of("person", who, (*PERSONS, *(str(t.person) for t in people)))
    if not people:
        return ()
    if who == "all":
        return tuple(sorted(people, key=lambda t: t.person))
    if who == "main":
        return (people[0],)
    if isinstance(who, int):
        found = tuple(t for t in people if t.person == who)
        if not found:
            raise InputError(f"there is no person {who}", hint=f"seen: {_listed(people)}")
        return found
    if len(people) == 1:
        raise InputError(f"only one person is seen, so nobody is '{who}'", hint="ask for main")
    pair = sorted(people[:2], key=lambda t: t.centre_x)
    return (pair[0 if who == "left" else 1],)


def _listed(people: Sequence[FaceTrack]) -> str:
    return ", ".join(f"{t.person} ({t.seen_s:.1f} s)" for t in sorted(people, key=lambda t: t.person))
