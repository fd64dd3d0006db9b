"""Face tracks: the face of one person in a video, and selection of people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import InputError, UnknownNameError
from affectrace.recording import PERSONS
from affectrace.timeline import Timeline

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class FaceTrack:
    """One person's face on the clock of the video (T frames); NaN wherever it is not seen.

    person: number, in order of appearance. box: (T, 4) float32 x, y, w, h in pixels of the upright frame.
    keypoints: (T, 4, 2) float32 right eye (the viewer's left), left eye, nose, mouth. confidence: (T,) float32
    probability of a face by the mesh or the detector, 0 where none was found. valid: (T,) bool, seen. reason: (T,) why
    not, "" exactly where valid. measured: observer's name -> (T, D) float32.
    """

    person: int
    timeline: Timeline
    box: Array
    keypoints: Array
    confidence: Array
    valid: NDArray[np.bool_]
    reason: NDArray[np.str_]
    measured: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.timeline)

    @property
    def seen_s(self) -> float:
        """Seconds in which the face is seen."""
        return float((self.timeline.ends - self.timeline.times)[self.valid].sum())

    @property
    def share_seen(self) -> float:
        """Share of frames in which the face is seen (0 without frames)."""
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

    decoded: (T,) bool, frames that had a picture. cuts: frames at which a shot begins. notes: for a user.
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
    """The tracks of the requested people; empty only if nobody was seen (raises InputError for people not there).

    who: "main" (seen longest; among equals the largest), "all", "left" or "right" (in the picture, of the two seen
    longest; as in Aff-Wild2's `_left` and `_right`), or a person's number.
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
        seen = {track.person: track for track in people}
        if who not in seen:
            listed = ", ".join(f"{person} ({seen[person].seen_s:.1f} s)" for person in sorted(seen))
            raise InputError(f"there is no person {who}", hint=f"seen: {listed}")
        return (seen[who],)
    if len(people) == 1:
        raise InputError(f"only one person is seen, so nobody is '{who}'", hint="ask for main")
    pair = sorted(people[:2], key=lambda t: t.centre_x)
    return (pair[0 if who == "left" else 1],)
